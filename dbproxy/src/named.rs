//! The named writes: one table from names to code, the agent store's and an application's alike.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use pando_ipc::Fault;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::migrate::{MIGRATE, Migrate};
use crate::refusal::{invalid, unknown_method};
use crate::store;
use crate::tracked::{SetTracked, TRACK};
use crate::tx::Tx;
use crate::write::Work;

/// What the table holds under a name.
pub(crate) trait Named: Send + Sync {
    /// Checks the params and returns them in the form that is fingerprinted, stored and run.
    fn read(&self, params: &Value) -> Result<Value, Fault> {
        Ok(params.clone())
    }

    /// Runs on the primary, inside the write's transaction.
    fn run(&self, tx: &Tx<'_>, params: &Value) -> Result<Value, Fault>;

    /// Returns the one statement that it runs, if that is always the same.
    fn sql(&self) -> Option<&str> {
        None
    }

    /// Returns params or a result in the form in which they travel by `db.write`.
    fn to_wire(&self, value: &Value) -> Value {
        value.clone()
    }
}

/// A name that is in the table already: which of two writes it means must not depend on who came first.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a write named {0:?} is registered already")]
pub struct NameTaken(pub String);

/// The named writes of one process. Clones share the table. A new one holds those of the agent store, [`Migrate`](crate::migrate) and [`Track`](crate::tracked).
///
/// A named write runs on the primary, whoever that is: each program of a workdir that may lead registers the same ones, before it joins. A primary
/// refuses a name that it does not know (`METHOD_NOT_FOUND`), and applies nothing.
#[derive(Clone)]
pub struct Writes(Arc<RwLock<BTreeMap<String, Arc<dyn Named>>>>);

impl fmt::Debug for Writes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.table().keys()).finish()
    }
}

impl Default for Writes {
    fn default() -> Self {
        let migrate: (String, Arc<dyn Named>) = (MIGRATE.to_owned(), Arc::new(Migrate));
        let track: (String, Arc<dyn Named>) = (TRACK.to_owned(), Arc::new(SetTracked));
        Self(Arc::new(RwLock::new(store::writes().chain([migrate, track]).collect())))
    }
}

impl Writes {
    /// Returns a table with the writes that are always there.
    pub fn new() -> Self {
        Self::default()
    }

    /// Registers a write: code that runs on the primary, inside the write's transaction, for what one statement cannot say.
    ///
    /// `P` is what `db.write` takes as `params`, `R` its result. What returns a fault, or panics, is rolled back and fails alone. The code runs while every
    /// other write waits: it computes and uses its [`Tx`], and does not wait for anything else.
    ///
    /// ```
    /// use pando_dbproxy::{Tx, Writes};
    ///
    /// #[derive(serde::Deserialize)]
    /// struct Charge { account: i64, cents: i64 }
    ///
    /// let writes = Writes::new();
    /// writes.register("charge", |tx: &Tx<'_>, charge: Charge| {
    ///     let sql = "SELECT cents FROM accounts WHERE id = ?1";
    ///     let balance: Option<i64> = tx.query_one(sql, [charge.account], |row| row.get(0))?;
    ///     let left = balance.unwrap_or(0) - charge.cents;
    ///     if left < 0 {
    ///         return Err(tx.refuse("insufficient funds"));
    ///     }
    ///     tx.execute("UPDATE accounts SET cents = ?1 WHERE id = ?2", (left, charge.account))?;
    ///     Ok(left)
    /// })?;
    /// # Ok::<(), pando_dbproxy::NameTaken>(())
    /// ```
    pub fn register<P, R, F>(&self, name: impl Into<String>, write: F) -> Result<(), NameTaken>
    where
        P: DeserializeOwned,
        R: Serialize,
        F: Fn(&Tx<'_>, P) -> Result<R, Fault> + Send + Sync + 'static,
    {
        let name = name.into();
        let mut table = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if table.contains_key(&name) {
            return Err(NameTaken(name));
        }
        table.insert(name, Arc::new(Function(Box::new(move |tx, params| tx.call(&write, params)))));
        Ok(())
    }

    /// Returns the names, in order.
    pub fn names(&self) -> Vec<String> {
        self.table().keys().cloned().collect()
    }

    /// Returns the named write as work, its params checked if the name is known here; if not, the primary decides.
    pub fn work(&self, name: &str, params: &Value) -> Result<Work, Fault> {
        if name.is_empty() {
            return Err(invalid("write", "method", "is empty"));
        }
        let params = self.get(name).map_or_else(|| Ok(params.clone()), |write| write.read(params))?;
        Ok(Work::Named { method: name.to_owned(), params })
    }

    pub(crate) fn get(&self, name: &str) -> Option<Arc<dyn Named>> {
        self.table().get(name).cloned()
    }

    pub(crate) fn find(&self, name: &str) -> Result<Arc<dyn Named>, Fault> {
        self.get(name).ok_or_else(|| unknown_method(name, &self.names().join(", ")))
    }

    fn table(&self) -> RwLockReadGuard<'_, BTreeMap<String, Arc<dyn Named>>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }
}

type Run = dyn Fn(&Tx<'_>, &Value) -> Result<Value, Fault> + Send + Sync;

/// A write that an application registered.
struct Function(Box<Run>);

impl Named for Function {
    fn run(&self, tx: &Tx<'_>, params: &Value) -> Result<Value, Fault> {
        (self.0)(tx, params)
    }
}
