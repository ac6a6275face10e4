//! The table of methods that a bus answers.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, PoisonError, RwLock};

use fnv::FnvHashMap;
use futures::FutureExt;
use futures::future::BoxFuture;
use serde::Serialize;
use serde_json::Value;

use crate::fault::Fault;

/// How a caller came in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Door {
    /// Inside this process.
    Local,
    /// A Unix socket in our private directory.
    Native,
    /// TCP on the loopback interface.
    Tcp,
}

/// Who calls, as far as the system vouches for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// Number of the connection, unique for the life of this process; 0 is this process itself.
    pub peer: u64,
    /// How it came in.
    pub door: Door,
    /// Its user.
    pub uid: u32,
    /// Its process, where the door can tell.
    pub pid: Option<u32>,
}

impl Caller {
    /// Returns this process as a caller.
    pub fn local() -> Self {
        let uid = rustix::process::geteuid().as_raw();
        Self { peer: 0, door: Door::Local, uid, pid: Some(std::process::id()) }
    }
}

/// One call of a method.
#[derive(Debug, Clone)]
pub struct Call {
    /// The method's name.
    pub method: Arc<str>,
    /// Its parameters; `Null` when there were none.
    pub params: Value,
    /// Who calls.
    pub caller: Caller,
}

type Outcome = Result<Value, Fault>;
type InlineHandler = dyn Fn(Call) -> Outcome + Send + Sync;
type AsyncHandler = dyn Fn(Call) -> BoxFuture<'static, Outcome> + Send + Sync;

/// What answers a method.
#[derive(Clone)]
pub(crate) enum Handler {
    /// Cheap: answered in the peer's reader, whatever the load.
    Inline(Arc<InlineHandler>),
    /// A task of its own, under the caps on calls in flight.
    Task(Arc<AsyncHandler>),
}

impl Handler {
    /// Runs the method. A panic is the caller's fault answer and the log's error, never the process's end.
    pub(crate) async fn run(&self, call: Call) -> Outcome {
        let method = Arc::clone(&call.method);
        match self {
            Self::Inline(handler) => run_inline(&**handler, call),
            Self::Task(handler) => {
                // The handler may panic before it has returned its future.
                let run = AssertUnwindSafe(async { handler(call).await }).catch_unwind();
                run.await.unwrap_or_else(|_| Err(panicked(&method)))
            }
        }
    }
}

pub(crate) fn run_inline(handler: &InlineHandler, call: Call) -> Outcome {
    let method = Arc::clone(&call.method);
    catch_unwind(AssertUnwindSafe(|| handler(call))).unwrap_or_else(|_| Err(panicked(&method)))
}

fn panicked(method: &str) -> Fault {
    tracing::error!(method, "handler panicked");
    Fault::internal(format_args!("handler of {method} panicked"))
}

/// A table of methods, shared by its clones. Methods may be added while it is in use.
#[derive(Clone, Default)]
pub struct Methods {
    table: Arc<RwLock<FnvHashMap<Arc<str>, Handler>>>,
}

impl fmt::Debug for Methods {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.names()).finish()
    }
}

impl Methods {
    /// Returns an empty table.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds or replaces a cheap method that never waits: it is answered in the peer's reader, exempt from the caps on calls in flight.
    pub fn register_inline(
        &self,
        name: impl Into<Arc<str>>,
        handler: impl Fn(Call) -> Result<Value, Fault> + Send + Sync + 'static,
    ) {
        self.insert(name.into(), Handler::Inline(Arc::new(handler)));
    }

    /// Adds or replaces a method. Its calls run concurrently, each in a task of its own.
    pub fn register<F, Fut>(&self, name: impl Into<Arc<str>>, handler: F)
    where
        F: Fn(Call) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Value, Fault>> + Send + 'static,
    {
        self.insert(name.into(), Handler::Task(Arc::new(move |call| handler(call).boxed())));
    }

    /// Returns the names of all methods, sorted.
    pub fn names(&self) -> Vec<Arc<str>> {
        let mut names: Vec<_> =
            self.table.read().unwrap_or_else(PoisonError::into_inner).keys().map(Arc::clone).collect();
        names.sort_unstable();
        names
    }

    /// Runs a call in place. A panic becomes an internal fault; an unknown name is [`Fault::method_not_found`].
    pub async fn dispatch(&self, call: Call) -> Result<Value, Fault> {
        match self.find(&call.method) {
            Some((_, handler)) => handler.run(call).await,
            None => Err(Fault::method_not_found(&call.method)),
        }
    }

    /// Returns a method with the table's own copy of its name.
    pub(crate) fn find(&self, name: &str) -> Option<(Arc<str>, Handler)> {
        let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
        table.get_key_value(name).map(|(name, handler)| (Arc::clone(name), handler.clone()))
    }

    fn insert(&self, name: Arc<str>, handler: Handler) {
        self.table.write().unwrap_or_else(PoisonError::into_inner).insert(name, handler);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    async fn call(methods: &Methods, method: &str, params: Value) -> Outcome {
        methods.dispatch(Call { method: method.into(), params, caller: Caller::local() }).await
    }

    #[tokio::test]
    async fn both_kinds_answer_and_the_last_registration_wins() {
        let methods = Methods::new();
        methods.register_inline("echo", |_| Ok(Value::Null));
        methods.register_inline("echo", |call| Ok(call.params));
        methods.register("later", |call: Call| async move { Ok(json!([call.params, call.caller.peer])) });
        assert_eq!(call(&methods, "echo", json!(1)).await, Ok(json!(1)));
        assert_eq!(call(&methods, "later", json!(2)).await, Ok(json!([2, 0])));
        assert_eq!(call(&methods, "none", Value::Null).await, Err(Fault::method_not_found("none")));
        assert_eq!(format!("{methods:?}"), r#"{"echo", "later"}"#);
    }

    #[tokio::test]
    async fn a_panic_is_an_internal_fault() {
        let methods = Methods::new();
        methods.register_inline("now", |_| panic!("inline"));
        methods.register("first", |_| -> BoxFuture<'static, Outcome> { panic!("before the future") });
        methods.register("then", |_| async { panic!("in the future") });
        for method in ["now", "first", "then"] {
            let fault = call(&methods, method, Value::Null).await.unwrap_err();
            assert_eq!(fault.code, crate::fault::INTERNAL);
            assert!(fault.message.contains(method), "{fault}");
        }
    }
}
