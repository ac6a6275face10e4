//! What can be called: one table that binds, dispatches and describes every method.

mod db;
mod events;
mod instance;
mod message;
mod rpc;
mod session;
mod state;

pub use rpc::open_rpc;

use std::sync::Arc;

use futures::FutureExt;
use futures::future::BoxFuture;
use pando_ipc::Fault;
use pando_ipc::access::Needs;
use pando_ipc::methods::{Call, Caller, Methods, Reply};
use pando_ipc::rpc::Json;
use schemars::{JsonSchema, SchemaGenerator};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::instance::Primary;

/// The schema of a type, written into a generator that collects shared definitions.
type SchemaOf = fn(&mut SchemaGenerator) -> schemars::Schema;
type Handler = Arc<dyn Fn(Arc<Primary>, Call) -> BoxFuture<'static, Result<Json, Fault>> + Send + Sync>;
type InlineHandler = fn(&Primary, &Call) -> Result<Json, Fault>;
type DeferredHandler = fn(&Primary, &Call, Reply);

enum Body {
    /// Answered in the peer's reader: cheap, and never refused for load.
    Inline(InlineHandler),
    /// Answered by a task of its own.
    Spawned(Handler),
    /// Begun at once, and answered by the thread that has the outcome.
    Deferred(DeferredHandler),
}

/// One method: its name, what it needs of its callers, what it does, its shapes and the code that answers it.
struct Method {
    name: &'static str,
    needs: Needs,
    summary: &'static str,
    params: SchemaOf,
    result: SchemaOf,
    body: Body,
}

impl Method {
    /// A method whose params are read into `P` before `handler` sees them.
    fn new<P, R, F, Fut>(name: &'static str, needs: impl Into<Needs>, summary: &'static str, handler: F) -> Self
    where
        P: DeserializeOwned + JsonSchema,
        R: Serialize + JsonSchema,
        F: Fn(Arc<Primary>, Caller, P) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<R, Fault>> + Send + 'static,
    {
        let handler = Arc::new(handler);
        Self::raw::<P, R, _, _>(name, needs, summary, move |primary, call| {
            let handler = Arc::clone(&handler);
            async move {
                let params = read_params(&call.params)?;
                write_result(handler(primary, call.caller, params).await?)
            }
        })
    }

    /// A method that reads its own params; `P` and `R` describe its shapes.
    fn raw<P, R, F, Fut>(name: &'static str, needs: impl Into<Needs>, summary: &'static str, handler: F) -> Self
    where
        P: JsonSchema,
        R: JsonSchema,
        F: Fn(Arc<Primary>, Call) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Json, Fault>> + Send + 'static,
    {
        let body = Body::Spawned(Arc::new(move |primary, call| handler(primary, call).boxed()));
        Self::described::<P, R>(name, needs.into(), summary, body)
    }

    /// A cheap method that is answered even under full load.
    fn inline<P: JsonSchema, R: JsonSchema>(
        name: &'static str,
        needs: impl Into<Needs>,
        summary: &'static str,
        handler: InlineHandler,
    ) -> Self {
        Self::described::<P, R>(name, needs.into(), summary, Body::Inline(handler))
    }

    /// A method that is answered later, by whatever thread has the outcome; `P` and `R` describe its shapes.
    fn deferred<P: JsonSchema, R: JsonSchema>(
        name: &'static str,
        needs: impl Into<Needs>,
        summary: &'static str,
        handler: DeferredHandler,
    ) -> Self {
        Self::described::<P, R>(name, needs.into(), summary, Body::Deferred(handler))
    }

    fn described<P: JsonSchema, R: JsonSchema>(
        name: &'static str,
        needs: Needs,
        summary: &'static str,
        body: Body,
    ) -> Self {
        Self { name, needs, summary, params: |g| g.subschema_for::<P>(), result: |g| g.subschema_for::<R>(), body }
    }
}

/// Every method there is.
fn table() -> Vec<Method> {
    [
        instance::methods(),
        rpc::methods(),
        state::methods(),
        session::methods(),
        message::methods(),
        events::methods(),
        db::methods(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// Returns the table of methods that answer in the name of a primary.
pub(crate) fn bind(primary: &Arc<Primary>) -> Methods {
    let methods = Methods::verified_by(Arc::clone(&primary.shared.options.verifier));
    for Method { name, needs, body, .. } in table() {
        let primary = Arc::clone(primary);
        match body {
            Body::Inline(handler) => methods.register_inline(name, needs, move |call| handler(&primary, &call)),
            Body::Deferred(handler) => {
                methods.register_deferred(name, needs, move |call, reply| handler(&primary, &call, reply));
            }
            Body::Spawned(handler) => methods.register(name, needs, move |call| handler(Arc::clone(&primary), call)),
        }
    }
    methods
}

/// Reads params; none at all are taken as an empty object. The fault names the field.
fn read_params<P: DeserializeOwned>(params: &Json) -> Result<P, Fault> {
    // By way of a tree: then what is wrong is said of a value, not of a line and a column.
    let params = params.read().map_err(|error| Fault::invalid_params("params", error))?;
    let params = if params == Value::Null { Value::Object(Map::new()) } else { params };
    serde_path_to_error::deserialize(params).map_err(|error| {
        let path = error.path().to_string();
        Fault::invalid_params(&path, error.into_inner())
    })
}

fn write_result(result: impl Serialize) -> Result<Json, Fault> {
    Json::write(&result).map_err(Fault::internal)
}

/// Params of a method that needs none.
#[derive(Debug, serde::Deserialize, JsonSchema)]
struct NoParams {}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn bad_params_name_the_field() {
        #[derive(Debug, serde::Deserialize)]
        struct Params {
            #[expect(dead_code, reason = "only its shape matters")]
            id: String,
        }
        let field = |params: Value| read_params::<Params>(&params.into()).unwrap_err().data.unwrap()["field"].clone();
        assert_eq!(field(json!({"id": 5})), "id");
        let missing = read_params::<Params>(&Json::null()).unwrap_err();
        assert!(missing.message.contains("missing field `id`"), "{missing}");
    }

    #[test]
    fn every_method_has_a_name_of_its_own_and_a_summary() {
        let mut names: Vec<_> = table().iter().map(|method| method.name).collect();
        assert!(table().iter().all(|method| method.summary.ends_with('.')));
        names.sort_unstable();
        let count = names.len();
        names.dedup();
        assert_eq!(names.len(), count);
    }
}
