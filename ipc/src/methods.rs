//! The table of methods that a bus answers.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock, PoisonError, RwLock};

use fnv::FnvHashMap;
use std::time::Instant;

use futures::FutureExt;
use futures::future::BoxFuture;
use serde::Serialize;
use tokio::sync::oneshot;

use crate::access::{LocalTrust, Needs, PeerVerifier};
use crate::fault::Fault;
use crate::hello::Hello;
use crate::metrics::{Distribution, Histogram};
use crate::rpc::Json;

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

/// Who calls: what the system vouches for, and what the caller says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// Number of the connection, unique for the life of this process; 0 is this process itself.
    pub peer: u64,
    /// How it came in.
    pub door: Door,
    /// Its user; `None` at a TCP door that is open to those whose user the system does not tell.
    pub uid: Option<u32>,
    /// Its process, where the door can tell.
    pub pid: Option<u32>,
    said: Arc<OnceLock<Hello>>,
}

impl Caller {
    pub(crate) fn new(peer: u64, door: Door, uid: Option<u32>, pid: Option<u32>) -> Self {
        Self { peer, door, uid, pid, said: Arc::default() }
    }

    /// Returns this process as a caller.
    pub fn local() -> Self {
        Self::new(0, Door::Local, Some(rustix::process::geteuid().as_raw()), Some(std::process::id()))
    }

    /// Notes what the caller says of itself and returns what stands: the first hello of a connection, so that no later one widens what it may.
    pub fn introduce(&self, hello: Hello) -> &Hello {
        self.said.get_or_init(|| hello)
    }

    /// Returns what the caller said of itself, once it has; nothing of it is proven.
    pub fn hello(&self) -> Option<&Hello> {
        self.said.get()
    }
}

/// One call of a method.
#[derive(Debug, Clone)]
pub struct Call {
    /// The method's name.
    pub method: Arc<str>,
    /// Its parameters; `null` when there were none.
    pub params: Json,
    /// Who calls.
    pub caller: Caller,
}

type Outcome = Result<Json, Fault>;
type InlineHandler = dyn Fn(Call) -> Outcome + Send + Sync;
type DeferredHandler = dyn Fn(Call, Reply) + Send + Sync;
type AsyncHandler = dyn Fn(Call) -> BoxFuture<'static, Outcome> + Send + Sync;

/// Where the outcome of a call goes, once and from any thread. Dropped without one it answers with an internal fault.
pub struct Reply(Option<Box<dyn FnOnce(Outcome) -> Sent + Send>>);

/// An answer that stands in its peer's queue; it leaves when this is dropped. Who answers many calls at once keeps these until all are answered: then
/// the answers of each peer leave in one write.
#[derive(Default)]
#[must_use = "the answer leaves when this is dropped"]
pub struct Sent(Option<Arc<dyn Flush>>);

/// Writes what is queued.
pub(crate) trait Flush: Send + Sync {
    /// Writes what is queued, as far as that takes no waiting.
    fn flush(&self);
}

impl Reply {
    pub(crate) fn new(tell: impl FnOnce(Outcome) -> Sent + Send + 'static) -> Self {
        Self(Some(Box::new(tell)))
    }

    /// Answers the call.
    pub fn send<R: Into<Json>>(mut self, outcome: Result<R, Fault>) -> Sent {
        self.0.take().map(|tell| tell(outcome.map(Into::into))).unwrap_or_default()
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        if let Some(tell) = self.0.take() {
            drop(tell(Err(Fault::internal("the call was given up"))));
        }
    }
}

impl fmt::Debug for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reply").finish_non_exhaustive()
    }
}

impl Sent {
    pub(crate) fn new(queue: Arc<dyn Flush>) -> Self {
        Self(Some(queue))
    }
}

impl Drop for Sent {
    fn drop(&mut self) {
        if let Some(queue) = self.0.take() {
            queue.flush();
        }
    }
}

impl fmt::Debug for Sent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sent").finish_non_exhaustive()
    }
}

/// What answers a method.
#[derive(Clone)]
pub(crate) enum Handler {
    /// Cheap: answered in the peer's reader, whatever the load.
    Inline(Arc<InlineHandler>),
    /// A task of its own, under the caps on calls in flight.
    Task(Arc<AsyncHandler>),
    /// Begun in the peer's reader and answered later by another thread, under the same caps.
    Deferred(Arc<DeferredHandler>),
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
            Self::Deferred(handler) => {
                let (sender, outcome) = oneshot::channel();
                let reply = Reply::new(move |outcome| {
                    // Whoever asked may have left.
                    drop(sender.send(outcome));
                    Sent::default()
                });
                run_deferred(&**handler, call, reply);
                outcome.await.unwrap_or_else(|_| Err(Fault::internal("the call was given up")))
            }
        }
    }
}

pub(crate) fn run_inline(handler: &InlineHandler, call: Call) -> Outcome {
    let method = Arc::clone(&call.method);
    catch_unwind(AssertUnwindSafe(|| handler(call))).unwrap_or_else(|_| Err(panicked(&method)))
}

/// Begins a call. A handler that panics drops its reply, which answers.
pub(crate) fn run_deferred(handler: &DeferredHandler, call: Call, reply: Reply) {
    let method = Arc::clone(&call.method);
    if catch_unwind(AssertUnwindSafe(|| handler(call, reply))).is_err() {
        tracing::error!(%method, "handler panicked");
    }
}

fn panicked(method: &str) -> Fault {
    tracing::error!(method, "handler panicked");
    Fault::internal(format_args!("handler of {method} panicked"))
}

/// What is counted and timed of one method.
#[derive(Debug, Default)]
struct CallMeter {
    time: Histogram,
    refused: AtomicU64,
}

impl CallMeter {
    fn note(&self, began: Instant, outcome: Outcome) -> Outcome {
        self.time.record_time(began.elapsed());
        self.refused.fetch_add(u64::from(outcome.is_err()), Relaxed);
        outcome
    }
}

/// What was counted and timed of one method since it was registered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CallStats {
    /// Its name.
    pub method: Arc<str>,
    /// Calls that ended with a fault.
    pub refused: u64,
    /// Times from the start of the handler to its outcome, in microseconds.
    pub time: Distribution,
}

/// A table of methods, shared by its clones. Methods may be added while it is in use.
#[derive(Clone)]
pub struct Methods {
    table: Arc<RwLock<FnvHashMap<Arc<str>, Entry>>>,
    verifier: Arc<dyn PeerVerifier>,
}

#[derive(Clone)]
struct Entry {
    needs: Needs,
    handler: Handler,
    meter: Arc<CallMeter>,
}

impl Default for Methods {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Methods {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.names()).finish()
    }
}

impl Methods {
    /// Returns an empty table that trusts as [`LocalTrust`] does.
    pub fn new() -> Self {
        Self::verified_by(Arc::new(LocalTrust))
    }

    /// Returns an empty table whose peers' calls `verifier` decides about.
    pub fn verified_by(verifier: Arc<dyn PeerVerifier>) -> Self {
        Self { table: Arc::default(), verifier }
    }

    /// Adds or replaces a cheap method that never waits: it is answered in the peer's reader, exempt from the caps on calls in flight.
    pub fn register_inline<R: Into<Json>>(
        &self,
        name: impl Into<Arc<str>>,
        needs: impl Into<Needs>,
        handler: impl Fn(Call) -> Result<R, Fault> + Send + Sync + 'static,
    ) {
        let meter = Arc::<CallMeter>::default();
        let own = Arc::clone(&meter);
        let handler = move |call| {
            let began = Instant::now();
            own.note(began, handler(call).map(Into::into))
        };
        self.insert(name.into(), Entry { needs: needs.into(), handler: Handler::Inline(Arc::new(handler)), meter });
    }

    /// Adds or replaces a method. Its calls run concurrently, each in a task of its own.
    pub fn register<F, Fut, R>(&self, name: impl Into<Arc<str>>, needs: impl Into<Needs>, handler: F)
    where
        F: Fn(Call) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<R, Fault>> + Send + 'static,
        R: Into<Json>,
    {
        let meter = Arc::<CallMeter>::default();
        let own = Arc::clone(&meter);
        let handler = move |call| {
            let (began, own) = (Instant::now(), Arc::clone(&own));
            let outcome = handler(call);
            async move { own.note(began, outcome.await.map(Into::into)) }.boxed()
        };
        self.insert(name.into(), Entry { needs: needs.into(), handler: Handler::Task(Arc::new(handler)), meter });
    }

    /// Adds or replaces a method that is begun in the peer's reader, which it must not hold up, and answered later by whatever thread has the
    /// outcome: without a task in between.
    pub fn register_deferred(
        &self,
        name: impl Into<Arc<str>>,
        needs: impl Into<Needs>,
        handler: impl Fn(Call, Reply) + Send + Sync + 'static,
    ) {
        let meter = Arc::<CallMeter>::default();
        let own = Arc::clone(&meter);
        let handler = move |call, reply: Reply| {
            let (began, own) = (Instant::now(), Arc::clone(&own));
            handler(call, Reply::new(move |outcome| reply.send(own.note(began, outcome))));
        };
        self.insert(name.into(), Entry { needs: needs.into(), handler: Handler::Deferred(Arc::new(handler)), meter });
    }

    /// Returns what was counted and timed of each method that was called at all, by name.
    pub fn calls(&self) -> Vec<CallStats> {
        let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
        let stats = |(name, entry): (&Arc<str>, &Entry)| CallStats {
            method: Arc::clone(name),
            refused: entry.meter.refused.load(Relaxed),
            time: entry.meter.time.distribution(),
        };
        let mut calls: Vec<_> = table.iter().map(stats).filter(|stats| stats.time.count > 0).collect();
        calls.sort_unstable_by(|one, other| one.method.cmp(&other.method));
        calls
    }

    /// Returns the names of all methods, sorted.
    pub fn names(&self) -> Vec<Arc<str>> {
        let mut names: Vec<_> =
            self.table.read().unwrap_or_else(PoisonError::into_inner).keys().map(Arc::clone).collect();
        names.sort_unstable();
        names
    }

    /// Runs a call in place. A panic becomes an internal fault; an unknown name is [`Fault::method_not_found`], a call
    /// that the verifier refuses `E_PEER_UNAUTHORIZED`.
    pub async fn dispatch(&self, call: Call) -> Result<Json, Fault> {
        let (_, handler) = self.admit(&call.method, &call.params, &call.caller)?;
        handler.run(call).await
    }

    /// Returns a method for a caller who may call it, with the table's own copy of its name.
    pub(crate) fn admit(&self, name: &str, params: &Json, caller: &Caller) -> Result<(Arc<str>, Handler), Fault> {
        let found = {
            let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
            table.get_key_value(name).map(|(name, entry)| (Arc::clone(name), entry.clone()))
        };
        let (name, Entry { needs, handler, .. }) = found.ok_or_else(|| Fault::method_not_found(name))?;
        if caller.door != Door::Local {
            let needs = needs.of(params);
            self.verifier.verify(caller, &name, needs).map_err(|rule| rule.refuse(&name, needs))?;
        }
        Ok((name, handler))
    }

    fn insert(&self, name: Arc<str>, entry: Entry) {
        self.table.write().unwrap_or_else(PoisonError::into_inner).insert(name, entry);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::access::Capability::{Admin, Read, Write};
    use crate::fault::Code;
    use serde_json::{Value, json};

    async fn call(methods: &Methods, method: &str, params: Value) -> Outcome {
        methods.dispatch(Call { method: method.into(), params: params.into(), caller: Caller::local() }).await
    }

    #[tokio::test]
    async fn both_kinds_answer_and_the_last_registration_wins() {
        let methods = Methods::new();
        methods.register_inline("echo", Read, |_| Ok(Value::Null));
        methods.register_inline("echo", Read, |call| Ok(call.params));
        methods.register("later", Read, |call: Call| async move { Ok(json!([call.params, call.caller.peer])) });
        assert_eq!(call(&methods, "echo", json!(1)).await, Ok(json!(1).into()));
        assert_eq!(call(&methods, "later", json!(2)).await, Ok(json!([2, 0]).into()));
        methods.register_deferred("deferred", Read, |call, reply| {
            std::thread::spawn(move || drop(reply.send(Ok(call.params))));
        });
        assert_eq!(call(&methods, "deferred", json!(3)).await, Ok(json!(3).into()));
        assert_eq!(call(&methods, "none", Value::Null).await, Err(Fault::method_not_found("none")));
        assert_eq!(format!("{methods:?}"), r#"{"deferred", "echo", "later"}"#);
        methods.register("bad", Read, |_| async { Outcome::Err(Fault::invalid_params("x", "is bad")) });
        drop(call(&methods, "bad", Value::Null).await);
        let mut told: Vec<_> =
            methods.calls().iter().map(|it| (it.method.to_string(), it.time.count, it.refused)).collect();
        assert_eq!(told.remove(1), ("deferred".to_owned(), 1, 0));
        assert_eq!(told, [("bad".to_owned(), 1, 1), ("echo".to_owned(), 1, 0), ("later".to_owned(), 1, 0)]);
    }

    #[tokio::test]
    async fn a_peer_is_refused_by_rule_before_anything_of_its_call_is_done() {
        let methods = Methods::new();
        methods.register_inline("admin", Admin, |_| -> Outcome { panic!("must not run") });
        let by_params = Needs::ByParams(|params| if params.raw().is_null() { Read } else { Admin });
        methods.register("depends", by_params, |_| async { Ok(json!(1)) });
        let peer = Caller::new(1, Door::Native, Some(0), None);
        let by =
            |method: &str, params: Value| Call { method: method.into(), params: params.into(), caller: peer.clone() };
        let refusal = methods.dispatch(by("admin", json!(1))).await.unwrap_err();
        assert!(refusal.is(Code::PeerUnauthorized), "{refusal:?}");
        let data = refusal.data.unwrap();
        assert_eq!((&data["method"], &data["needs"]), (&json!("admin"), &json!("admin")));
        assert_eq!((&data["rule"], &data["retryable"]), (&json!("no peer has admin"), &json!(false)));
        assert_eq!(methods.dispatch(by("depends", Value::Null)).await, Ok(json!(1).into()));
        assert!(methods.dispatch(by("depends", json!(1))).await.unwrap_err().is(Code::PeerUnauthorized));
        let nothing = Methods::verified_by(Arc::new(crate::access::AllowList::default()));
        nothing.register_inline("m", Write, |_| Ok(Value::Null));
        assert_eq!(call(&nothing, "m", Value::Null).await, Ok(Json::null()), "this process is no peer");
    }

    fn crash() -> impl Future<Output = Outcome> {
        std::future::poll_fn(|_| panic!("in the future"))
    }

    #[tokio::test]
    async fn a_panic_is_an_internal_fault() {
        let methods = Methods::new();
        methods.register_inline("now", Read, |_| -> Outcome { panic!("inline") });
        methods.register("first", Read, |_| -> BoxFuture<'static, Outcome> { panic!("before the future") });
        methods.register("then", Read, |_| crash());
        methods.register_deferred("begun", Read, |_, _reply| panic!("with the reply in hand"));
        let given_up = call(&methods, "begun", Value::Null).await.unwrap_err();
        assert_eq!((given_up.code, given_up.message.contains("given up")), (crate::fault::INTERNAL, true));
        for method in ["now", "first", "then"] {
            let fault = call(&methods, method, Value::Null).await.unwrap_err();
            assert_eq!(fault.code, crate::fault::INTERNAL);
            assert!(fault.message.contains(method), "{fault}");
        }
    }
}
