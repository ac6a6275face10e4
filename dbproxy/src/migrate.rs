//! An application's own schema: migrations that run on the primary, from wherever the application is.
//!
//! They are one named write, `Migrate`. So it does not matter whose binary leads, they commit or fail together, apply once, and make the
//! events that any write makes.

use pando_ipc::fault::Code;
use pando_ipc::{Fault, Timestamp, Topic, topic};
use rusqlite::{Connection, params};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::db::Db;
use crate::deliver::WriteError;
use crate::named::Named;
use crate::refusal::{Word, internal, invalid, refuse};
use crate::schema::checksum;
use crate::tracked::{Tracked, set_tracked};
use crate::tx::Tx;

/// The write's name.
pub const MIGRATE: &str = "Migrate";
/// Longest name of an application, in bytes.
const MAX_APP_BYTES: usize = 100;

/// One step of an application's schema. What was released is never changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Migration {
    /// Its number; a later step has a higher one.
    pub id: u32,
    /// What it does, in a word or two.
    pub name: String,
    /// Statements, separated by `;`. They may change the schema and rows, but for what is Pando's own; see `db.exec` with `ddl`.
    pub sql: String,
}

/// The schema of an application, step by step.
///
/// An application's tables are its own as long as it gives them names of its own: all tables of a workdir are in one database, with those of the agent
/// store: `sessions`, `messages`, `files`, `projects`, `prompt_templates`, `session_scores` and `skills`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Migrations {
    /// The application's name: its steps are counted apart from those of others.
    pub app: String,
    /// The steps, in ascending order.
    pub steps: Vec<Migration>,
    /// Tables whose rows have events of their own; in force from the step on that was applied last.
    #[serde(default)]
    pub tracked: Vec<Tracked>,
}

impl Migrations {
    /// Returns the schema of an application without any step.
    pub fn of(app: impl Into<String>) -> Self {
        Self { app: app.into(), steps: Vec::new(), tracked: Vec::new() }
    }

    /// Adds the next step.
    #[must_use]
    pub fn step(mut self, id: u32, name: impl Into<String>, sql: impl Into<String>) -> Self {
        self.steps.push(Migration { id, name: name.into(), sql: sql.into() });
        self
    }

    /// Asks for events of each row of a table that changes, from the first row on; see [`Db::track`]. What is asked for anew takes a further step.
    #[must_use]
    pub fn track(mut self, tracked: Tracked) -> Self {
        self.tracked.push(tracked);
        self
    }

    fn newest(&self) -> u32 {
        self.steps.last().map_or(0, |step| step.id)
    }

    /// Returns why these cannot be migrations: path of the field, and what is wrong.
    fn objection(&self) -> Option<(&'static str, String)> {
        let name = &self.app;
        if name.is_empty() || name.len() > MAX_APP_BYTES || name.chars().any(|c| c.is_control() || c.is_whitespace()) {
            return Some(("params.app", format!("expected 1 to {MAX_APP_BYTES} bytes without white space")));
        }
        let ascend = self.steps.windows(2).all(|pair| pair[0].id < pair[1].id);
        (!ascend || self.steps.first().is_some_and(|first| first.id == 0))
            .then(|| ("params.steps", "ids begin at 1 or later and ascend".to_owned()))
    }

    /// Returns the steps that are still to be applied, or why this schema does not fit the database's.
    fn missing(&self, applied: &[Applied]) -> Result<Vec<&Migration>, Fault> {
        let (app, newest) = (&self.app, self.newest());
        if let Some(later) = applied.last().filter(|last| last.id > newest) {
            let message = format!(
                "the schema of {app} has version {}, applied by {}; this program knows up to {newest}: upgrade it",
                later.id, later.made_by
            );
            let fault = refuse(Code::Version, Word::Conflict, MIGRATE, message);
            return Err(fault.with("app", app.as_str()).with("found", later.id).with("known", newest));
        }
        for done in applied {
            let same = self.steps.iter().any(|step| step.id == done.id && checksum(&step.sql) == done.checksum);
            if !same {
                let message = format!(
                    "step {} ({}) of {app} was applied with another text: what was released is never changed",
                    done.id, done.name
                );
                return Err(refuse(Code::Conflict, Word::Conflict, MIGRATE, message));
            }
        }
        let last = applied.last().map_or(0, |last| last.id);
        let missing: Vec<&Migration> =
            self.steps.iter().filter(|step| applied.iter().all(|done| done.id != step.id)).collect();
        match missing.first().filter(|first| first.id < last) {
            None => Ok(missing),
            Some(late) => {
                let message =
                    format!("step {} ({}) of {app} comes too late: step {last} is applied already", late.id, late.name);
                Err(refuse(Code::Conflict, Word::Conflict, MIGRATE, message))
            }
        }
    }
}

/// What became of migrations.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Migrated {
    /// The number of the last step that is applied now.
    pub version: u32,
    /// The steps that were applied just now.
    pub applied: Vec<u32>,
}

struct Applied {
    id: u32,
    name: String,
    checksum: i64,
    made_by: String,
}

fn applied(connection: &Connection, app: &str) -> rusqlite::Result<Vec<Applied>> {
    let sql = "SELECT id, name, checksum, made_by FROM _pando_app_migration WHERE app = ?1 ORDER BY id";
    let mut statement = connection.prepare_cached(sql)?;
    let rows = statement.query_map([app], |row| {
        Ok(Applied { id: row.get(0)?, name: row.get(1)?, checksum: row.get(2)?, made_by: row.get(3)? })
    })?;
    rows.collect()
}

impl Db {
    /// Brings the schema of an application up to date, on the primary, wherever that is. Returns once it is.
    ///
    /// Steps that were applied before are compared, not applied again. A schema that is newer than `migrations` knows is `E_VERSION`, with both versions
    /// named. All missing steps commit together, or none does; every instance hears of them by `db.migrated`.
    pub async fn migrate(&self, migrations: &Migrations) -> Result<Migrated, WriteError> {
        let app = migrations.app.clone();
        // What is up to date needs no write. What cannot be read is the primary's to judge.
        if let Ok(applied) = self.readers().own(move |connection| applied(connection, &app)).await
            && migrations.objection().is_none()
            && migrations.missing(&applied)?.is_empty()
        {
            return Ok(Migrated { version: migrations.newest(), applied: Vec::new() });
        }
        let result = self.named(MIGRATE, &json!(migrations)).await?;
        Ok(serde_json::from_value(result)
            .map_err(|why| internal(MIGRATE, format!("the primary's answer is malformed: {why}")))?)
    }
}

/// The named write.
pub(crate) struct Migrate;

impl Named for Migrate {
    fn read(&self, params: &Value) -> Result<Value, Fault> {
        let migrations: Migrations =
            serde_json::from_value(params.clone()).map_err(|why| invalid(MIGRATE, "params", why))?;
        match migrations.objection() {
            None => Ok(json!(migrations)),
            Some((field, why)) => Err(invalid(MIGRATE, field, why)),
        }
    }

    fn run(&self, tx: &Tx<'_>, params: &Value) -> Result<Value, Fault> {
        let migrations: Migrations =
            serde_json::from_value(params.clone()).map_err(|why| invalid(MIGRATE, "params", why))?;
        let app = &migrations.app;
        let missing = migrations.missing(&tx.own(|connection| applied(connection, app))?)?;
        for step in &missing {
            tx.script(&step.sql).map_err(|fault| Fault {
                message: format!("{} (step {} of {app})", fault.message, step.id),
                ..fault
            })?;
            tx.own(|connection| {
                connection.execute(
                    "INSERT INTO _pando_app_migration (app, id, name, checksum, at, made_by) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
                    params![app, step.id, step.name, checksum(&step.sql), Timestamp::now().to_string(), tx.source()],
                )
            })?;
        }
        for wish in migrations.tracked.iter().filter(|_| !missing.is_empty()) {
            set_tracked(tx, wish)?;
        }
        let applied: Vec<u32> = missing.iter().map(|step| step.id).collect();
        let migrated = Migrated { version: migrations.newest(), applied };
        if !missing.is_empty() {
            let payload = json!({"app": app, "version": migrated.version, "applied": migrated.applied});
            tx.publish(Topic::known(topic::MIGRATED), payload, "");
        }
        Ok(json!(migrated))
    }
}
