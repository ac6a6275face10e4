//! A database made ready for writing while somebody else leads, so that who is elected begins its term at once.
//!
//! What takes time when a writer opens is done beforehand: two connections, their settings, the schema they read, the triggers that track
//! changes, and the statements that the first transactions of a term run. What is a decision is not: whether the file is fit to be written,
//! migrations and the term are looked at when the lock is held. Until then the connections commit nothing and move nothing when they are closed.

use std::path::Path;
use std::time::{Duration, Instant};

use pando_ipc::failpoint::{self, Point};
use rusqlite::{Connection, DEFAULT_NAME, FileControl};

use crate::checkpoint;
use crate::guard::Mode;
use crate::incarnation::LogFiles;
use crate::journal::{self, Journal};
use crate::recent::RecentStatements;
use crate::schema::{self, Opened, Ready, StoreError};
use crate::track::Track;
use crate::tx::reserved_names;
use crate::write::Durability;
use crate::writer::{self, Ops};

/// How long the preparation waits for whoever recovers the log: a secondary has time, but not for that.
const BUSY_TIMEOUT: Duration = Duration::from_millis(100);

/// How long a term that follows another one does nothing but write: everybody waits for answers, and what a former primary left in the log
/// would take the disk from them. Everybody is linked again by then; a longer calm makes a longer log, and its first checkpoint a pause of its own.
pub const CALM: Duration = Duration::from_millis(50);

/// A database that is open for writing, and that nothing may be written to before the lock is held.
#[derive(Debug)]
pub struct Standby {
    ready: Ready,
    checkpoints: Connection,
    log_files: LogFiles,
    tracking: Tracking,
    /// The op ids that are stored, as of the last look.
    ops: Ops,
    /// Whether that look found something new.
    is_written: bool,
}

/// How changes are tracked on a connection, and what that was made for.
#[derive(Debug)]
pub(crate) struct Tracking {
    pub(crate) track: Track,
    /// Names with the reserved prefix.
    pub(crate) reserved: i64,
    basis: Basis,
}

/// What the triggers depend on: the schema's version, and what applications wish for their tables.
#[derive(Debug, PartialEq, Eq)]
struct Basis {
    schema: i64,
    wishes: Vec<(String, String)>,
}

impl Basis {
    fn of(connection: &Connection) -> rusqlite::Result<Self> {
        let schema = connection.prepare_cached("PRAGMA main.schema_version")?.query_row([], |row| row.get(0))?;
        let sql = "SELECT key, value FROM main._pando_meta WHERE key >= 'track.' AND key < 'track/' ORDER BY key";
        let mut wishes = connection.prepare_cached(sql)?;
        let wishes = wishes.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
        Ok(Self { schema, wishes: wishes.collect::<rusqlite::Result<_>>()? })
    }
}

impl Tracking {
    /// Begins to track on a connection.
    pub(crate) fn install(connection: &mut Connection) -> rusqlite::Result<Self> {
        // Read first: what changes meanwhile makes the triggers out of date, never the other way round.
        let basis = Basis::of(connection)?;
        let track = Track::install(connection)?;
        Ok(Self { track, reserved: reserved_names(connection)?, basis })
    }

    /// Makes the triggers anew, if what they depend on has changed on this very connection.
    pub(crate) fn renewed(mut self, connection: &Connection) -> rusqlite::Result<Self> {
        let basis = Basis::of(connection)?;
        if self.basis != basis {
            self.track.renew(connection)?;
            self.reserved = reserved_names(connection)?;
            self.basis = basis;
        }
        Ok(self)
    }
}

impl Standby {
    /// Opens a database that somebody else leads, without writing to it.
    pub fn prepare(path: &Path) -> Result<Self, StoreError> {
        let failed = |source| StoreError::Sqlite { path: path.to_owned(), source };
        // Nothing is made here: without a database there is nothing to prepare.
        let file = path.canonicalize().map_err(|source| StoreError::File { path: path.to_owned(), source })?;
        let mut ready = schema::ready(file)?;
        let checkpoints = checkpoint::connect(&ready.path).map_err(failed)?;
        let tracking = Self::settle(&mut ready.connection).map_err(failed)?;
        let log_files = LogFiles::beside(&ready.path);
        let mut ops = Ops::default();
        ops.follow(&ready.connection).map_err(failed)?;
        Self::rehearse(&ready.connection).map_err(failed)?;
        Ok(Self { ready, checkpoints, log_files, tracking, ops, is_written: false })
    }

    /// Looks at what was written since, and returns it unless it has become unfit, see [`Self::is_current`].
    #[must_use]
    pub fn kept_current(mut self) -> Option<Self> {
        if !self.is_current() {
            return None;
        }
        self.is_written = self.ops.follow(&self.ready.connection).ok()?;
        Some(self)
    }

    /// Tells whether something was written between the last two looks.
    pub fn is_written(&self) -> bool {
        self.is_written
    }

    fn settle(connection: &mut Connection) -> rusqlite::Result<Tracking> {
        connection.busy_timeout(BUSY_TIMEOUT)?;
        let tracking = Tracking::install(connection)?;
        // Not by `query_only`: when that ends, SQLite drops what is prepared.
        connection.commit_hook(Some(|| true))?;
        Ok(tracking)
    }

    /// Reads what the beginning of a term reads.
    fn rehearse(connection: &Connection) -> rusqlite::Result<()> {
        // What was prepared before the triggers were made is not any more.
        Basis::of(connection)?;
        Journal::load(connection, 0)?;
        journal::epoch(connection).map(drop)
    }

    /// Prepares the statements of this process's last writes, for it makes the same ones when it leads, and all that a term's first transactions run.
    /// To be had anew now and then.
    pub fn warm(&self, recent: &RecentStatements) {
        let Ready { connection, guard, .. } = &self.ready;
        for sql in recent.all() {
            let prepare = || connection.prepare_cached(&Mode::Write.marked(&sql)).map(drop);
            // Whoever runs what cannot be prepared is told so then.
            drop(guard.run(Mode::Write, Instant::now() + BUSY_TIMEOUT, prepare));
        }
        // Last, each time: where a connection has more statements than it keeps, it lets go of what was not asked for the longest.
        for sql in [schema::TERM_RUNS, journal::LOADS, journal::APPENDS, writer::OPS_RUN, writer::CONTROL].concat() {
            drop(connection.prepare_cached(sql));
        }
    }

    /// Tells whether it is what opening the database now would make: the same files, and all that its triggers depend on.
    pub fn is_current(&self) -> bool {
        let stays = |connection: &Connection| {
            let mut moved = 0;
            connection.file_control(DEFAULT_NAME, FileControl::HasMoved(&mut moved)).is_ok() && moved == 0
        };
        stays(&self.ready.connection)
            && stays(&self.checkpoints)
            && self.log_files.has_log()
            && Basis::of(&self.ready.connection).is_ok_and(|basis| basis == self.tracking.basis)
    }

    /// Returns its connections.
    #[cfg(test)]
    pub(crate) fn connections(&self) -> [&Connection; 2] {
        [&self.ready.connection, &self.checkpoints]
    }

    /// Lets the connections write: the lock is held now. Returns them, the one of the checkpointer last.
    pub(crate) fn enlist(self) -> rusqlite::Result<(Ready, Tracking, Ops, Connection)> {
        let Self { mut ready, checkpoints, tracking, ops, .. } = self;
        ready.connection.commit_hook(None::<fn() -> bool>)?;
        ready.connection.busy_timeout(schema::OPEN_BUSY_TIMEOUT)?;
        Ok((ready, tracking, ops, checkpoints))
    }
}

/// A term that has begun.
pub(crate) struct Begun {
    pub(crate) opened: Opened,
    pub(crate) tracking: Tracking,
    pub(crate) ops: Ops,
    /// How long it does nothing but write.
    pub(crate) calm: Duration,
}

/// Opens the database and begins a term, with what was prepared where it fits. The connection returned is the checkpointer's.
pub(crate) fn open(
    path: &Path,
    standby: Option<Standby>,
    durability: Durability,
) -> Result<(Begun, Connection), StoreError> {
    let failed = |source| StoreError::Sqlite { path: path.to_owned(), source };
    // The file is looked at in any case: somebody may have put a link or another database in its place.
    if let Some(standby) = standby.filter(|standby| {
        schema::prepare_file(path).is_ok_and(|file| file == standby.ready.path) && standby.is_current()
    }) {
        failpoint::hit(Point::StoreOpen);
        let (ready, tracking, ops, checkpoints) = standby.enlist().map_err(failed)?;
        let opened = schema::begin(ready, durability)?;
        // A migration of this binary's may have come.
        let tracking = tracking.renewed(&opened.connection).map_err(failed)?;
        return Ok((Begun { opened, tracking, ops, calm: CALM }, checkpoints));
    }
    let mut opened = schema::open(path, durability)?;
    let checkpoints = checkpoint::connect(&opened.path).map_err(failed)?;
    let tracking = Tracking::install(&mut opened.connection).map_err(failed)?;
    Ok((Begun { opened, tracking, ops: Ops::default(), calm: Duration::ZERO }, checkpoints))
}
