//! What foreign SQL may do: an authorizer with an allow list, and a time limit.

mod functions;

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use rusqlite::Connection;
use rusqlite::config::DbConfig;
use rusqlite::hooks::{AuthAction, AuthContext, Authorization};
use rusqlite::limits::Limit;

use crate::tracked::AGENT_STORE;

/// First part of the names of our own tables; nobody else writes to them.
pub(crate) const RESERVED: &str = "_pando_";
/// First part of the names of the triggers that [`crate::track`] makes.
pub(crate) const TRACKER: &str = "_pando_track_";
/// The function that those triggers call.
pub(crate) const CHANGED: &str = "pando_changed";
/// First part of the names by which SQL reads pragmas. Tables of such a name could not be told from them.
const PRAGMA: &str = "pragma_";
/// Longest statement, in bytes. A longer one is refused with `E_TOO_LARGE`.
pub const MAX_SQL_BYTES: usize = 1 << 20;
/// Largest text, blob or row that SQLite makes, in bytes. A larger one fails its statement with `E_TOO_LARGE`. Nothing larger comes or leaves by the wire, and
/// what one function takes, which nothing interrupts, grows with it.
pub const MAX_VALUE_BYTES: i32 = 8 << 20;
/// Most arguments of a function, for the same reason. More fail the statement with `E_SQL`.
const MAX_ARGUMENTS: i32 = 127;
/// Longest pattern of LIKE and GLOB, in bytes: their time grows with the product of text and pattern, and cannot be limited.
pub const MAX_PATTERN_BYTES: i32 = 256;
/// Most instructions of one prepared statement.
const MAX_INSTRUCTIONS: i32 = 250_000;
/// Functions that foreign SQL may not call: they load code, or their time cannot be limited.
const FORBIDDEN: &[&str] = &["load_extension", "fts3_tokenizer", "json_patch", "jsonb_patch"];
/// Instructions of SQLite's machine between two looks at the clock: few, for one of them may work on megabytes.
const TICK: i32 = 100;

/// Whose SQL is being prepared or run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Mode {
    /// Our own: everything goes.
    Internal = 0,
    /// Reading only.
    Read = 1,
    /// Reading and changing rows.
    Write = 2,
    /// Changing the schema, too.
    Schema = 3,
}

impl Mode {
    fn from_u8(value: u8) -> Self {
        match value {
            0 => Self::Internal,
            2 => Self::Write,
            3 => Self::Schema,
            _ => Self::Read,
        }
    }

    /// Returns what precedes foreign SQL in this mode.
    ///
    /// The authorizer speaks when a statement is prepared, and prepared statements are kept by their text: without a
    /// mark, foreign SQL could meet a statement that we ourselves prepared.
    fn mark(self) -> &'static str {
        match self {
            Self::Internal => "",
            Self::Read => "/*r*/ ",
            Self::Write => "/*w*/ ",
            Self::Schema => "/*s*/ ",
        }
    }

    /// Returns foreign SQL as it is prepared in this mode.
    pub(crate) fn marked(self, sql: &str) -> String {
        [self.mark(), sql].concat()
    }
}

/// The guard of one connection. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Guard {
    mode: Arc<AtomicU8>,
    /// Nanoseconds after `start` at which a statement is interrupted; 0 for never.
    limit: Arc<AtomicU64>,
    start: Instant,
    /// What the authorizer denied last: SQLite itself only says "not authorized".
    denied: Arc<Mutex<Option<String>>>,
}

impl Guard {
    /// Puts the guard on a connection. It begins in [`Mode::Internal`] without a time limit.
    pub(crate) fn install(connection: &mut Connection) -> rusqlite::Result<Self> {
        let guard = Self {
            mode: Arc::new(AtomicU8::new(Mode::Internal as u8)),
            limit: Arc::new(AtomicU64::new(0)),
            start: Instant::now(),
            denied: Arc::default(),
        };
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true)?;
        connection.set_limit(Limit::SQLITE_LIMIT_ATTACHED, 0)?;
        connection.set_limit(Limit::SQLITE_LIMIT_LENGTH, MAX_VALUE_BYTES)?;
        connection.set_limit(Limit::SQLITE_LIMIT_LIKE_PATTERN_LENGTH, MAX_PATTERN_BYTES)?;
        connection.set_limit(Limit::SQLITE_LIMIT_VDBE_OP, MAX_INSTRUCTIONS)?;
        connection.set_limit(Limit::SQLITE_LIMIT_FUNCTION_ARG, MAX_ARGUMENTS)?;
        functions::install(connection)?;
        let own = guard.clone();
        connection.authorizer(Some(move |context: AuthContext<'_>| own.judge(&context)))?;
        let own = guard.clone();
        connection.progress_handler(TICK, Some(move || own.is_late()))?;
        Ok(guard)
    }

    /// Runs `work` in a mode, interrupted at `deadline`. Our own SQL has no deadline.
    pub(crate) fn run<T>(&self, mode: Mode, deadline: Instant, work: impl FnOnce() -> T) -> T {
        /// Back to our own mode, also when `work` panics.
        struct Reset<'a>(&'a Guard);
        impl Drop for Reset<'_> {
            fn drop(&mut self) {
                self.0.limit.store(0, Ordering::Relaxed);
                self.0.mode.store(Mode::Internal as u8, Ordering::Relaxed);
            }
        }
        self.forget();
        let nanos = deadline.saturating_duration_since(self.start).as_nanos();
        self.limit.store(u64::try_from(nanos).unwrap_or(u64::MAX).max(1), Ordering::Relaxed);
        self.mode.store(mode as u8, Ordering::Relaxed);
        let _reset = Reset(self);
        work()
    }

    /// Returns what was denied last, if anything was since the mode was entered.
    pub(crate) fn denied(&self) -> Option<String> {
        self.denied.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn forget(&self) {
        *self.denied.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    fn is_late(&self) -> bool {
        let limit = self.limit.load(Ordering::Relaxed);
        limit != 0 && self.start.elapsed().as_nanos() > u128::from(limit)
    }

    fn judge(&self, context: &AuthContext<'_>) -> Authorization {
        let mode = Mode::from_u8(self.mode.load(Ordering::Relaxed));
        match objection(mode, context) {
            None => Authorization::Allow,
            Some(what) => {
                *self.denied.lock().unwrap_or_else(PoisonError::into_inner) = Some(what);
                Authorization::Deny
            }
        }
    }
}

/// Tells whether a name begins with `prefix`; SQLite's names know no upper and lower case.
pub(crate) fn begins(name: &str, prefix: &str) -> bool {
    name.as_bytes().get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix.as_bytes()))
}

fn is_catalog(table: &str) -> bool {
    begins(table, "sqlite_")
}

/// Pragmas that only describe the schema, also as `pragma_…` functions.
const DESCRIBING: &[&str] =
    &["table_info", "table_xinfo", "table_list", "index_list", "index_info", "index_xinfo", "foreign_key_list"];

/// Returns why an action is denied; `None` allows it. What is not listed is denied.
fn objection(mode: Mode, context: &AuthContext<'_>) -> Option<String> {
    use AuthAction as A;
    if mode == Mode::Internal {
        return None;
    }
    let deny = |what: &str| Some(format!("{what} is not allowed here"));
    match context.action {
        A::Select | A::Recursive => None,
        A::Read { table_name, .. } => match table_name.get(PRAGMA.len()..) {
            Some(pragma) if begins(table_name, PRAGMA) && !describes(pragma) => deny(table_name),
            _ => None,
        },
        A::Pragma { pragma_name, .. } if describes(pragma_name) => None,
        A::Pragma { pragma_name, .. } => deny(&format!("PRAGMA {pragma_name}")),
        A::Function { function_name } => judge_function(function_name, context.accessor),
        A::Insert { table_name } | A::Delete { table_name } | A::Update { table_name, .. } => match mode {
            Mode::Write | Mode::Schema => judge_change(mode, table_name, context.database_name),
            _ => deny("a change in a query"),
        },
        A::Attach { .. } => deny("ATTACH or VACUUM INTO"),
        A::Detach { .. } => deny("DETACH"),
        A::Transaction { .. } | A::Savepoint { .. } => deny("transaction control (BEGIN, COMMIT, SAVEPOINT, ..)"),
        A::CreateVtable { .. } | A::DropVtable { .. } => deny("a virtual table"),
        A::CreateTempIndex { .. }
        | A::CreateTempTable { .. }
        | A::CreateTempTrigger { .. }
        | A::CreateTempView { .. }
        | A::DropTempIndex { .. }
        | A::DropTempTable { .. }
        | A::DropTempView { .. } => deny("TEMP"),
        A::DropTempTrigger { trigger_name, .. } => match mode {
            // Dropping a table drops our triggers on it.
            Mode::Schema if begins(trigger_name, TRACKER) => None,
            _ => deny("TEMP"),
        },
        A::CreateTable { table_name: name } | A::CreateView { view_name: name } if begins(name, PRAGMA) => {
            deny(&format!("a name with {PRAGMA}, as SQLite's own functions have,"))
        }
        A::DropTable { table_name } if AGENT_STORE.iter().any(|own| own.eq_ignore_ascii_case(table_name)) => {
            deny(&format!("dropping {table_name}, which belongs to the agent store,"))
        }
        A::CreateTable { table_name: name }
        | A::DropTable { table_name: name }
        | A::AlterTable { table_name: name, .. }
        | A::CreateView { view_name: name }
        | A::DropView { view_name: name } => judge_schema(mode, &[name]),
        // Without a name they go through our tables, too, and change nothing that anyone reads.
        A::Reindex { .. } | A::Analyze { .. } => judge_schema(mode, &[]),
        A::CreateIndex { index_name, table_name } | A::DropIndex { index_name, table_name } => {
            judge_schema(mode, &[index_name, table_name])
        }
        A::CreateTrigger { trigger_name, table_name } | A::DropTrigger { trigger_name, table_name } => {
            judge_schema(mode, &[trigger_name, table_name])
        }
        _ => deny("this statement"),
    }
}

fn describes(pragma: &str) -> bool {
    DESCRIBING.iter().any(|known| known.eq_ignore_ascii_case(pragma))
}

fn judge_function(name: &str, accessor: Option<&str>) -> Option<String> {
    let ours = accessor.is_some_and(|trigger| begins(trigger, TRACKER));
    let forbidden = FORBIDDEN.iter().any(|bad| bad.eq_ignore_ascii_case(name)) || (begins(name, "pando_") && !ours);
    forbidden.then(|| format!("function {name}() is not allowed here"))
}

fn judge_change(mode: Mode, table: &str, database: Option<&str>) -> Option<String> {
    if begins(table, RESERVED) {
        return Some(format!("writing to {table} is not allowed: names with {RESERVED} are reserved"));
    }
    // A change of the schema is a change of the catalog; SQLite itself refuses to change it by hand.
    if is_catalog(table) {
        return (mode != Mode::Schema).then(|| {
            format!("changing the schema ({table}) is not allowed without \"ddl\": true; applications use migrations")
        });
    }
    (database != Some("main")).then(|| format!("writing to {table} outside of the main database is not allowed"))
}

fn judge_schema(mode: Mode, names: &[&str]) -> Option<String> {
    if mode != Mode::Schema {
        return Some(
            "changing the schema is not allowed without \"ddl\": true; applications use migrations".to_owned(),
        );
    }
    let reserved = names.iter().find(|name| begins(name, RESERVED))?;
    Some(format!("changing {reserved} is not allowed: names with {RESERVED} are reserved"))
}
