//! Opening the database for writing: file checks, settings, migrations, and the term.

mod error;

use std::fs::{self, File, OpenOptions};
use std::hash::Hasher;
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use fnv::FnvHasher;
use pando_ipc::Timestamp;
use pando_ipc::failpoint::{self, Point};
use rusqlite::config::DbConfig;
use rusqlite::{Connection, DEFAULT_NAME, FileControl, OpenFlags, OptionalExtension, TransactionBehavior, params};
use uuid::Uuid;

use crate::file_system::FileSystem;
use crate::guard::Guard;
use crate::incarnation::{self, Standing};
use crate::write::Durability;
pub use error::StoreError;

/// Where it is written down what was applied.
const MIGRATION_TABLE: &str = "CREATE TABLE IF NOT EXISTS _pando_migration (
    id INTEGER PRIMARY KEY, name TEXT NOT NULL, checksum INTEGER NOT NULL, at TEXT NOT NULL, made_by TEXT NOT NULL
) STRICT";
const APPLIED: &str = "SELECT id, name, checksum, made_by FROM _pando_migration ORDER BY id";
const NAME_DATABASE: &str =
    "INSERT INTO _pando_meta (key, value) VALUES ('database', ?1), ('epoch', 0) ON CONFLICT DO NOTHING";
const NEXT_EPOCH: &str = "UPDATE _pando_meta SET value = value + 1 WHERE key = 'epoch' RETURNING value";
const DATABASE_ID: &str = "SELECT value FROM _pando_meta WHERE key = 'database'";
/// What [`begin`] runs in any case.
pub(crate) const TERM_RUNS: &[&str] =
    &[MIGRATION_TABLE, APPLIED, NAME_DATABASE, incarnation::KNOWN_FILE, NEXT_EPOCH, DATABASE_ID];

/// How long opening waits for another program that writes.
pub(crate) const OPEN_BUSY_TIMEOUT: Duration = Duration::from_secs(2);
/// Size to which the WAL is cut when it begins anew, in bytes.
const JOURNAL_SIZE_LIMIT: u32 = 32 << 20;
/// Prepared statements that a connection keeps.
pub(crate) const STATEMENTS_KEPT: usize = 128;

struct Migration {
    id: u32,
    name: &'static str,
    sql: &'static str,
}

/// In order; what was released is never changed.
const MIGRATIONS: &[Migration] = &[
    Migration { id: 1, name: "pando", sql: include_str!("migrations/0001_pando.sql") },
    Migration { id: 2, name: "agent_store", sql: include_str!("migrations/0002_agent_store.sql") },
    Migration { id: 3, name: "op_clients", sql: include_str!("migrations/0003_op_clients.sql") },
    Migration { id: 4, name: "app_migration", sql: include_str!("migrations/0004_app_migration.sql") },
    Migration { id: 5, name: "fewer_pages", sql: include_str!("migrations/0005_fewer_pages.sql") },
    Migration { id: 6, name: "ops_with_events", sql: include_str!("migrations/0006_ops_with_events.sql") },
];

/// An open database at the beginning of a term.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) connection: Connection,
    pub(crate) guard: Guard,
    pub(crate) path: PathBuf,
    pub(crate) database: Uuid,
    pub(crate) epoch: u64,
    pub(crate) durability: Durability,
}

/// A writable connection with all its settings; nothing was written by it.
#[derive(Debug)]
pub(crate) struct Ready {
    pub(crate) connection: Connection,
    pub(crate) guard: Guard,
    pub(crate) path: PathBuf,
}

/// Opens or creates the database, migrates it, and begins a new term.
pub(crate) fn open(path: &Path, durability: Durability) -> Result<Opened, StoreError> {
    failpoint::hit(Point::StoreOpen);
    begin(ready(prepare_file(path)?)?, durability)
}

/// Opens a database that exists and sets the connection up for writing.
pub(crate) fn ready(path: PathBuf) -> Result<Ready, StoreError> {
    let failed = |source| StoreError::Sqlite { path: path.clone(), source };
    let mut connection = connect(&path).map_err(failed)?;
    let guard = Guard::install(&mut connection).map_err(failed)?;
    let mode = configure(&connection).map_err(failed)?;
    if !mode.eq_ignore_ascii_case("wal") {
        return Err(StoreError::NoWal { path, mode });
    }
    Ok(Ready { connection, guard, path })
}

/// Migrates the database and begins a new term.
///
/// None of that waits for the disk: it stands in the log before all that the term acknowledges, whose sync is its own, too. Who runs beside us sees
/// the term at once; a power cut that loses it ends all who could have.
pub(crate) fn begin(ready: Ready, durability: Durability) -> Result<Opened, StoreError> {
    let Ready { mut connection, guard, path } = ready;
    let failed = |source| StoreError::Sqlite { path: path.clone(), source };
    migrate(&mut connection, &path, MIGRATIONS)?;
    let identity = incarnation::identity(&path).map_err(|source| StoreError::File { path: path.clone(), source })?;
    let (database, epoch) = begin_term(&mut connection, &identity).map_err(failed)?;
    if durability == Durability::Disk {
        connection.execute_batch("PRAGMA synchronous = FULL").map_err(failed)?;
    }
    Ok(Opened { connection, guard, path, database, epoch, durability })
}

/// Opens a writable connection to a database that exists.
pub(crate) fn connect(path: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX | OpenFlags::SQLITE_OPEN_NOFOLLOW;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(OPEN_BUSY_TIMEOUT)?;
    // The log is moved by the checkpointer, and at last by `tidy`: under the lock both, which whoever closes a database may have lost. And a log
    // that turns out to be another database's must not be moved into this one by the connection that found that out.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    // Kept, so that a read-only connection can open the database after the last writer has left.
    let mut keep = 1;
    connection.file_control(DEFAULT_NAME, FileControl::PersistWal(&mut keep))?;
    Ok(connection)
}

/// Removes the WAL and its index beside a database that nobody has open any more; where somebody has, they stay.
///
/// The caller holds the workdir's lock, so that the files at the path belong to this database and nobody begins to write. SQLite
/// would do the same at the last close, but only by path: a writer that lost its place could remove its successor's WAL.
/// Beside a copy that nobody has led yet they stay, too: they may be another database's.
pub fn tidy(path: &Path) -> Result<(), StoreError> {
    let failed = |source| StoreError::Sqlite { path: path.to_owned(), source };
    let connection = connect(path).map_err(failed)?;
    connection.busy_timeout(Duration::ZERO).map_err(failed)?;
    let mut keep = 0;
    connection.file_control(DEFAULT_NAME, FileControl::PersistWal(&mut keep)).map_err(failed)?;
    let identity = incarnation::identity(path).map_err(|source| StoreError::File { path: path.to_owned(), source })?;
    // A connection that has read nothing does not know that there is a WAL.
    let known = connection.query_row(incarnation::KNOWN_FILE, [], |row| row.get::<_, String>(0)).optional();
    let known = known.map_err(failed)?;
    if known.is_none_or(|known| known != identity) {
        return Ok(());
    }
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, false).map_err(failed)?;
    connection.close().map_err(|(_, source)| failed(source))
}

/// Makes the file (0600) or checks it. Returns its canonical path.
pub(crate) fn prepare_file(path: &Path) -> Result<PathBuf, StoreError> {
    let failed = |source| StoreError::File { path: path.to_owned(), source };
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(failed(io::Error::from(io::ErrorKind::InvalidInput)));
    };
    let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
    let path = fs::canonicalize(parent).map_err(failed)?.join(name);
    let FileSystem { name: file_system, objection } = FileSystem::of(parent).map_err(failed)?;
    if let Some(why) = objection {
        return Err(StoreError::UnsafeFileSystem { path, file_system, why });
    }
    match OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path) {
        Ok(_created) => File::open(path.with_file_name(".")).and_then(|dir| dir.sync_all()).map_err(failed)?,
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(failed(error)),
    }
    let meta = fs::symlink_metadata(&path).map_err(failed)?;
    if !meta.is_file() {
        return Err(StoreError::NotAFile { path });
    }
    if meta.nlink() > 1 {
        return Err(StoreError::HardLinked { path, links: meta.nlink() });
    }
    if meta.mode() & 0o077 != 0 {
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).map_err(failed)?;
    }
    Ok(path)
}

/// Sets the connection up for writing. Returns the journal mode.
///
/// What a large write sorts, and what it may have to take back, goes to a temporary file: in memory nothing would bound it.
fn configure(connection: &Connection) -> rusqlite::Result<String> {
    connection.set_prepared_statement_cache_capacity(STATEMENTS_KEPT);
    let mode = connection.query_row("PRAGMA journal_mode = WAL", [], |row| row.get(0))?;
    connection.execute_batch(
        "PRAGMA synchronous = NORMAL;
         PRAGMA foreign_keys = ON;
         PRAGMA recursive_triggers = ON;
         PRAGMA temp_store = FILE;",
    )?;
    connection.query_row("PRAGMA wal_autocheckpoint = 0", [], |_| Ok(()))?;
    connection.query_row(&format!("PRAGMA journal_size_limit = {JOURNAL_SIZE_LIMIT}"), [], |_| Ok(()))?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_FKEY, true)?;
    Ok(mode)
}

/// Hashes a migration's text: FNV-1a, 64 bits, as a signed number because SQLite's integers are.
pub(crate) fn checksum(sql: &str) -> i64 {
    let mut hasher = FnvHasher::default();
    hasher.write(sql.as_bytes());
    i64::from_ne_bytes(hasher.finish().to_ne_bytes())
}

fn migrate(connection: &mut Connection, path: &Path, known: &[Migration]) -> Result<(), StoreError> {
    let failed = |source| StoreError::Sqlite { path: path.to_owned(), source };
    connection.prepare_cached(MIGRATION_TABLE).and_then(|mut table| table.execute([])).map_err(failed)?;
    for migration in missing(connection, path, known)? {
        apply(connection, migration).map_err(|source| StoreError::MigrationFailed {
            path: path.to_owned(),
            id: migration.id,
            name: migration.name,
            source,
        })?;
    }
    Ok(())
}

/// Checks that this binary knows all that was applied to a database.
pub(crate) fn check_known(connection: &Connection, path: &Path) -> Result<(), StoreError> {
    missing(connection, path, MIGRATIONS).map(drop)
}

/// Checks that a database is as far as this binary needs it, and no further than it knows: for whoever does not migrate it.
pub(crate) fn check_current(connection: &Connection, path: &Path) -> Result<(), StoreError> {
    if missing(connection, path, MIGRATIONS)?.is_empty() {
        return Ok(());
    }
    let last = connection.query_row("SELECT id, made_by FROM _pando_migration ORDER BY id DESC LIMIT 1", [], |row| {
        Ok((row.get(0)?, row.get(1)?))
    });
    let (found, made_by) = last.map_err(|source| StoreError::Sqlite { path: path.to_owned(), source })?;
    Err(StoreError::OlderSchema {
        path: path.to_owned(),
        found,
        made_by,
        needed: MIGRATIONS.last().map_or(0, |migration| migration.id),
        own: env!("CARGO_PKG_VERSION"),
    })
}

/// Returns the migrations that are still to be applied; what was applied must be known.
fn missing<'a>(connection: &Connection, path: &Path, known: &'a [Migration]) -> Result<Vec<&'a Migration>, StoreError> {
    let failed = |source| StoreError::Sqlite { path: path.to_owned(), source };
    let applied = {
        let mut statement = connection.prepare_cached(APPLIED).map_err(failed)?;
        let rows = statement.query_map([], |row| {
            Ok((row.get::<_, u32>(0)?, row.get::<_, String>(1)?, row.get::<_, i64>(2)?, row.get::<_, String>(3)?))
        });
        rows.and_then(Iterator::collect::<rusqlite::Result<Vec<_>>>).map_err(failed)?
    };
    let newest = known.last().map_or(0, |migration| migration.id);
    if let Some((found, _, _, made_by)) = applied.last().filter(|(id, ..)| *id > newest) {
        return Err(StoreError::NewerSchema {
            path: path.to_owned(),
            found: *found,
            made_by: made_by.clone(),
            known: newest,
            own: env!("CARGO_PKG_VERSION"),
        });
    }
    for (id, name, sum, _) in &applied {
        let same = known.iter().any(|migration| migration.id == *id && checksum(migration.sql) == *sum);
        if !same {
            return Err(StoreError::MigrationDiffers { path: path.to_owned(), id: *id, name: name.clone() });
        }
    }
    Ok(known.iter().filter(|migration| applied.iter().all(|(id, ..)| *id != migration.id)).collect())
}

/// Returns the path of a file that stands beside the database: its name with a suffix, such as `-wal`.
pub(crate) fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

fn apply(connection: &mut Connection, migration: &Migration) -> rusqlite::Result<()> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    transaction.execute_batch(migration.sql)?;
    transaction.execute(
        "INSERT INTO _pando_migration (id, name, checksum, at, made_by) VALUES (?1, ?2, ?3, ?4, ?5)",
        params![
            migration.id,
            migration.name,
            checksum(migration.sql),
            Timestamp::now().to_string(),
            env!("CARGO_PKG_VERSION")
        ],
    )?;
    failpoint::hit(Point::MigrationCommit);
    transaction.commit()
}

/// Counts the term up, in a transaction of its own; a copy becomes a database of its own first. Returns the database's id and the new term.
fn begin_term(connection: &mut Connection, identity: &str) -> rusqlite::Result<(Uuid, u64)> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    transaction.prepare_cached(NAME_DATABASE)?.execute([Uuid::new_v4().to_string()])?;
    if incarnation::settle_in(&transaction, identity)? {
        let copy = Standing::of(&transaction)?;
        let renewed = incarnation::renew(&transaction, copy, copy.far_behind(), None)?;
        tracing::warn!(copy_of = %copy.database, database = %renewed.database, "the database is a copy; it has a new id from now on");
    }
    let epoch = transaction.prepare_cached(NEXT_EPOCH)?.query_row([], |row| row.get::<_, u64>(0))?;
    let database = database_id(&transaction)?;
    failpoint::hit(Point::EpochCommit);
    transaction.commit()?;
    failpoint::hit(Point::EpochCommitted);
    Ok((database, epoch))
}

/// Reads the database's own id.
pub(crate) fn database_id(connection: &Connection) -> rusqlite::Result<Uuid> {
    let text: String = connection.prepare_cached(DATABASE_ID)?.query_row([], |row| row.get(0))?;
    Uuid::parse_str(&text)
        .map_err(|why| rusqlite::Error::FromSqlConversionFailure(0, rusqlite::types::Type::Text, Box::new(why)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fresh() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pando.db");
        (dir, path)
    }

    #[test]
    fn a_term_counts_up_and_the_id_stays() {
        let (_dir, path) = fresh();
        let first = open(&path, Durability::Disk).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        let synchronous = first.connection.query_row("PRAGMA synchronous", [], |row| row.get::<_, i64>(0));
        assert_eq!(synchronous.unwrap(), 2);
        let (database, epoch) = (first.database, first.epoch);
        drop(first);
        let second = open(&path, Durability::Os).unwrap();
        assert_eq!((second.database, second.epoch), (database, epoch + 1));
        let one =
            |pragma: &str| second.connection.query_row(&format!("PRAGMA {pragma}"), [], |row| row.get::<_, i64>(0));
        assert_eq!(one("synchronous").unwrap(), 1);
        assert_eq!(one("foreign_keys").unwrap(), 1);
        assert_eq!(one("recursive_triggers").unwrap(), 1);
        assert_eq!(one("wal_autocheckpoint").unwrap(), 0);
        assert_eq!(one("temp_store").unwrap(), 1, "in files");
    }

    #[test]
    fn a_copy_is_a_database_of_its_own() {
        let (dir, path) = fresh();
        let first = open(&path, Durability::Os).unwrap();
        let (database, epoch) = (first.database, first.epoch);
        drop(first);
        tidy(&path).unwrap();
        let copy = dir.path().join("copy.db");
        fs::copy(&path, &copy).unwrap();
        let second = open(&copy, Durability::Os).unwrap();
        assert_ne!(second.database, database);
        assert!(second.epoch > epoch + incarnation::UNKNOWN_JUMP);
        let sql = "SELECT seq, topic FROM _pando_event";
        let event = second.connection.query_row(sql, [], |row| Ok((row.get::<_, u64>(0)?, row.get::<_, String>(1)?)));
        assert_eq!(event.unwrap(), (incarnation::UNKNOWN_JUMP + 1, "db.restored".to_owned()));
        let renewed = second.database;
        drop(second);
        tidy(&copy).unwrap();
        fs::rename(&copy, dir.path().join("moved.db")).unwrap();
        let moved = open(&dir.path().join("moved.db"), Durability::Os).unwrap();
        assert_eq!(moved.database, renewed, "a file that was moved is the same file");
        drop(moved);
        assert_eq!(open(&path, Durability::Os).unwrap().database, database);
    }

    #[test]
    fn aliases_of_a_database_are_refused() {
        let (dir, path) = fresh();
        drop(open(&path, Durability::Disk).unwrap());
        let alias = dir.path().join("alias.db");
        std::os::unix::fs::symlink(&path, &alias).unwrap();
        assert!(matches!(open(&alias, Durability::Disk), Err(StoreError::NotAFile { .. })));
        fs::hard_link(&path, dir.path().join("second.db")).unwrap();
        assert!(matches!(open(&path, Durability::Disk), Err(StoreError::HardLinked { links: 2, .. })));
        assert!(matches!(open(dir.path(), Durability::Disk), Err(StoreError::NotAFile { .. })));
    }

    #[test]
    fn a_newer_schema_is_refused_and_both_versions_are_named() {
        let (_dir, path) = fresh();
        let opened = open(&path, Durability::Disk).unwrap();
        let sql = "INSERT INTO _pando_migration VALUES (99, 'later', 1, 'now', '9.9.9')";
        opened.connection.execute(sql, []).unwrap();
        let error = open(&path, Durability::Disk).unwrap_err();
        assert!(matches!(error, StoreError::NewerSchema { found: 99, .. }));
        let text = error.to_string();
        assert!(text.contains("9.9.9") && text.contains(env!("CARGO_PKG_VERSION")), "{text}");
    }

    /// Returns the schema as it stands, apart from white space and the order in which it came to be.
    fn definitions(connection: &Connection) -> Vec<(String, String)> {
        let plain = |sql: String| sql.split_whitespace().collect::<Vec<_>>().join(" ");
        let sql = "SELECT name, sql FROM sqlite_schema WHERE sql IS NOT NULL ORDER BY name";
        let mut statement = connection.prepare(sql).unwrap();
        let rows = statement.query_map([], |row| Ok((row.get(0)?, plain(row.get(1)?)))).unwrap();
        rows.map(Result::unwrap).collect()
    }

    /// Databases as former releases left them, by schema version.
    const RELEASED: &[(u32, &str)] =
        &[(2, include_str!("../../tests/golden/schema-2.sql")), (5, include_str!("../../tests/golden/schema-5.sql"))];

    #[test]
    fn every_released_schema_becomes_the_present_one_and_keeps_its_rows() {
        for (version, released) in RELEASED {
            let (_dir, path) = fresh();
            let former = Connection::open(&path).unwrap();
            former.execute_batch(released).unwrap();
            let found: u32 = former.query_row("SELECT max(id) FROM _pando_migration", [], |row| row.get(0)).unwrap();
            assert_eq!(found, *version);
            let opened = open(&path, Durability::Disk).unwrap();
            let (_other, fresh_path) = fresh();
            let made_now = open(&fresh_path, Durability::Disk).unwrap();
            assert_eq!(definitions(&opened.connection), definitions(&made_now.connection));
            check_current(&opened.connection, &path).unwrap();
            let title: String = opened
                .connection
                .query_row("SELECT title FROM sessions WHERE id = 's-1'", [], |row| row.get(0))
                .unwrap();
            assert_eq!((title.as_str(), opened.epoch), ("kept", 8));
            assert_eq!(crate::journal::head(&opened.connection).unwrap(), (1, 8));
        }
    }

    #[test]
    fn a_database_that_is_behind_is_named_with_both_versions() {
        let (_dir, path) = fresh();
        let connection = open(&path, Durability::Disk).unwrap().connection;
        check_current(&connection, &path).unwrap();
        connection.execute("DELETE FROM _pando_migration WHERE id > 1", []).unwrap();
        let error = check_current(&connection, &path).unwrap_err();
        assert!(matches!(error, StoreError::OlderSchema { found: 1, .. }), "{error}");
    }

    #[test]
    fn a_changed_migration_is_refused_and_a_failing_one_leaves_nothing() {
        let (_dir, path) = fresh();
        let mut connection = open(&path, Durability::Disk).unwrap().connection;
        let step = |id, sql| Migration { id, name: "step", sql };
        let base = || MIGRATIONS.iter().map(|known| Migration { ..*known });
        let with = |last: Migration| base().chain([last]).collect::<Vec<_>>();
        let broken = with(step(99, "CREATE TABLE three (a); CREATE TABLE three (b);"));
        let failed = migrate(&mut connection, &path, &broken);
        assert!(matches!(failed, Err(StoreError::MigrationFailed { id: 99, .. })));
        migrate(&mut connection, &path, &with(step(99, "CREATE TABLE three (a)"))).unwrap();
        let differs = migrate(&mut connection, &path, &with(step(99, "CREATE TABLE three (c)")));
        assert!(matches!(differs, Err(StoreError::MigrationDiffers { id: 99, .. })));
    }

    #[test]
    fn what_is_no_database_is_an_error() {
        let (_dir, path) = fresh();
        fs::write(&path, "certainly not a database, but long enough to look at").unwrap();
        assert!(matches!(open(&path, Durability::Disk), Err(StoreError::Sqlite { .. })));
    }
}
