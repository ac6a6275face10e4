//! Writes and queries as JSON: `db.exec`, `db.write`, `events.publish`, `db.query`, on both ends.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use pando_ipc::rpc::{Json, Raw};
use pando_ipc::{Envelope, Fault, Timestamp, Topic};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::named::{Named, Writes};
use crate::op::OpId;
use crate::params::Params;
use crate::refusal::invalid;
use crate::store::methods;
use crate::write::{Ack, DEFAULT_TIMEOUT, Durability, Statement, Work, WriteRequest, check_payload};

/// Longest time that a request may ask for; a longer one is cut to it.
pub const MAX_TIMEOUT: Duration = Duration::from_secs(60);
/// Method that runs SQL statements.
pub const EXEC: &str = "db.exec";
/// Method that runs a named write.
pub const WRITE: &str = "db.write";
/// Method that tells what became of a write.
pub const OUTCOME: &str = "db.outcome";
/// Method that publishes an event.
pub const PUBLISH: &str = pando_ipc::hello::PUBLISH;

/// Reads the fields of an object; a fault names the field.
struct Fields<'a> {
    method: &'a str,
    prefix: &'a str,
    members: Vec<(Cow<'a, str>, Raw<'a>)>,
}

impl<'a> Fields<'a> {
    fn of(method: &'a str, params: &'a Json) -> Result<Self, Fault> {
        let members = params.raw().members().ok_or_else(|| invalid(method, "params", "expected an object"))?;
        Ok(Self { method, prefix: "", members })
    }

    fn get(&self, name: &str) -> Option<Raw<'a>> {
        let member = self.members.iter().find(|(other, _)| other == name);
        member.map(|(_, value)| *value).filter(|value| !value.is_null())
    }

    fn bad(&self, name: &str, why: &str) -> Fault {
        invalid(self.method, &format!("{}{name}", self.prefix), why)
    }

    fn inner(&self, name: &str, prefix: &'a str) -> Result<Self, Fault> {
        let members = match self.get(name) {
            None => Vec::new(),
            Some(value) => value.members().ok_or_else(|| self.bad(name, "expected an object"))?,
        };
        Ok(Self { method: self.method, prefix, members })
    }

    fn text(&self, name: &str) -> Result<Option<Cow<'a, str>>, Fault> {
        self.get(name).map(|value| value.text().ok_or_else(|| self.bad(name, "expected a string"))).transpose()
    }

    /// Reads text of which an empty one is none.
    fn some_text(&self, name: &str) -> Result<Option<Cow<'a, str>>, Fault> {
        Ok(self.text(name)?.filter(|text| !text.is_empty()))
    }

    fn required(&self, name: &str) -> Result<Cow<'a, str>, Fault> {
        self.text(name)?.ok_or_else(|| self.bad(name, "is missing"))
    }

    fn flag(&self, name: &str) -> Result<Option<bool>, Fault> {
        self.get(name).map(|value| value.read().map_err(|_| self.bad(name, "expected true or false"))).transpose()
    }

    fn number(&self, name: &str) -> Result<Option<u64>, Fault> {
        // SQLite's integers have a sign.
        let read = |value: Raw<'_>| value.read().ok().filter(|number| i64::try_from(*number).is_ok());
        let why = "expected a number from 0 to 2^63 - 1";
        self.get(name).map(|value| read(value).ok_or_else(|| self.bad(name, why))).transpose()
    }

    /// Returns any value as it is, null when it is not there.
    fn json(&self, name: &str) -> Json {
        self.get(name).map_or_else(Json::null, Json::from)
    }

    /// Reads any value, null when it is not there.
    fn value(&self, name: &str) -> Result<Value, Fault> {
        let read = |value: Raw<'_>| value.read().map_err(|error| self.bad(name, &error.to_string()));
        self.get(name).map_or(Ok(Value::Null), read)
    }

    fn deadline(&self) -> Result<Instant, Fault> {
        let asked = self.number("timeout_ms")?.map_or(DEFAULT_TIMEOUT, Duration::from_millis);
        Ok(Instant::now() + asked.min(MAX_TIMEOUT))
    }

    fn database(&self) -> Result<Option<Uuid>, Fault> {
        let text = self.some_text("database")?;
        text.map(|text| Uuid::parse_str(&text).map_err(|_| self.bad("database", "expected a UUID"))).transpose()
    }

    /// Reads an op id. An empty one is refused like all that cannot be, and not taken for none: then the write could not be sent again.
    fn op_id(&self, name: &str) -> Result<Option<OpId>, Fault> {
        Ok(self.text(name)?.map(|text| OpId::parse(&text)))
    }

    /// Returns the write that the fields frame. Without an op id it gets a new one: such a write cannot be retried.
    fn request(&self, op_id: Option<OpId>, source: String, work: Work) -> Result<WriteRequest, Fault> {
        let op_id = op_id.unwrap_or_else(OpId::fresh);
        let request = WriteRequest::new(op_id, source, self.deadline()?, work)?;
        let epoch = self.number("epoch")?.unwrap_or(0);
        Ok(request.meant_for(self.database()?, epoch).acked(self.number("acked")?.unwrap_or(0)))
    }

    /// Returns the instance that the sender says it is, or what the connection knows.
    fn source(&self, known: &str) -> Result<String, Fault> {
        Ok(self.some_text("source_instance_id")?.map_or_else(|| known.to_owned(), Cow::into_owned))
    }

    /// Reads `{sql, params?}`.
    fn statement(&self) -> Result<Statement, Fault> {
        let params = Params::from_json(self.method, &format!("{}params", self.prefix), self.get("params"))?;
        Ok(Statement { sql: self.required("sql")?.into_owned(), params })
    }
}

/// Reads the params of `db.exec`; `source` is who sent them.
///
/// `{op_id?, acked?, database?, epoch?, ddl?, statements: [{sql, params?}], timeout_ms?, source_instance_id?}`. A statement may also be
/// a plain string, and a single one may stand as `{sql, params?}` without `statements`.
pub fn parse_exec(params: &Json, source: &str) -> Result<WriteRequest, Fault> {
    let fields = Fields::of("exec", params)?;
    let read = |(at, value): (usize, Raw<'_>)| {
        if let Some(sql) = value.text() {
            return Ok(Statement::new(sql.into_owned(), ()));
        }
        let place = format!("statements[{at}]");
        match value.members() {
            Some(members) => Fields { method: "exec", prefix: &format!("{place}."), members }.statement(),
            None => Err(invalid("exec", &place, "expected {sql, params?} or a string")),
        }
    };
    let statements = match fields.get("statements") {
        Some(value) => {
            let elements = value.elements().ok_or_else(|| fields.bad("statements", "expected an array"))?;
            elements.into_iter().enumerate().map(read).collect::<Result<Vec<_>, _>>()?
        }
        None if fields.get("sql").is_some() => vec![fields.statement()?],
        None => return Err(fields.bad("statements", "is missing")),
    };
    let work = Work::Exec { statements, ddl: fields.flag("ddl")?.unwrap_or(false) };
    fields.request(fields.op_id("op_id")?, fields.source(source)?, work)
}

/// Returns the result of `db.exec`: `{seq, epoch, durability, results, replayed}`.
pub fn exec_result(ack: &Ack) -> Json {
    Json::of(ack)
}

/// How a `db.write` is answered.
pub struct WriteAnswer {
    write: Option<Arc<dyn Named>>,
    /// Whether the sender asked for the whole acknowledgement (`meta.ack`).
    whole: bool,
}

impl fmt::Debug for WriteAnswer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WriteAnswer").field("whole", &self.whole).finish_non_exhaustive()
    }
}

/// Reads the params of `db.write`; `source` is who sent them, unless they say it themselves.
///
/// `{meta: {source_instance_id, request_id, timestamp, op_id?, acked?, database?, epoch?, timeout_ms?, ack?}, method, params}`. `request_id` is
/// the op id among those of its source, unless `op_id` names one that is unique for ever. Params are taken with plain nulls and with `{"String": "", "Valid": false}`.
pub fn parse_write(params: &Json, source: &str, writes: &Writes) -> Result<(WriteRequest, WriteAnswer), Fault> {
    let outer = Fields::of("write", params)?;
    let method = &*outer.required("method")?;
    let outer = Fields { method, ..outer };
    let meta = outer.inner("meta", "meta.")?;
    let work = writes.work(method, &outer.value("params")?)?;
    let source = meta.source(source)?;
    let op_id = match meta.op_id("op_id")? {
        None => meta.some_text("request_id")?.map(|text| OpId::parse(&text).within(&source)),
        given => given,
    };
    let request = meta.request(op_id, source, work)?;
    let answer = WriteAnswer { write: writes.get(method), whole: meta.flag("ack")?.unwrap_or(false) };
    Ok((request, answer))
}

/// Returns the result of `db.write`: what the write returned, a row in the documented form, or null.
///
/// With `meta.ack` it is `{seq, epoch, durability, results, replayed}`, with a plain row as `results`.
pub fn write_result(answer: &WriteAnswer, ack: &Ack) -> Json {
    match &answer.write {
        Some(write) if !answer.whole => {
            ack.results.read().map_or_else(|_| ack.results.clone(), |row| write.to_wire(&row).into())
        }
        None if !answer.whole => ack.results.clone(),
        _ => Json::of(ack),
    }
}

/// An event on its way out.
#[derive(Debug, Clone, PartialEq)]
pub enum Publication {
    /// It goes through the journal.
    Durable(WriteRequest),
    /// It goes out at once, and may be lost with notice.
    Ephemeral(Envelope),
}

/// Reads the params of `events.publish`; `source` is who sent them.
///
/// `{topic, payload?, session_id?, project_id?, durable?, op_id?, acked?, database?, epoch?, timeout_ms?, source_instance_id?}`. Without
/// `durable` the topic decides.
pub fn parse_publish(params: &Json, source: &str) -> Result<Publication, Fault> {
    let fields = Fields::of("publish", params)?;
    let topic = Topic::new(&*fields.required("topic")?).map_err(|why| fields.bad("topic", &why.to_string()))?;
    let payload = fields.json("payload");
    let session_id = fields.text("session_id")?.unwrap_or_default().into_owned();
    let project_id = fields.text("project_id")?.unwrap_or_default().into_owned();
    let source = fields.source(source)?;
    if !fields.flag("durable")?.unwrap_or(!topic.is_ephemeral()) {
        check_payload(&payload)?;
        let mut event = Envelope::new(source, topic, payload);
        (event.session_id, event.project_id) = (session_id, project_id);
        return Ok(Publication::Ephemeral(event));
    }
    let work = Work::Publish { topic, payload, session_id, project_id };
    Ok(Publication::Durable(fields.request(fields.op_id("op_id")?, source, work)?))
}

/// Returns the result of a durable `events.publish`: `{seq, epoch, durability, replayed}`.
pub fn publish_result(ack: &Ack) -> Value {
    json!({"seq": ack.seq, "epoch": ack.epoch, "durability": ack.durability, "replayed": ack.replayed})
}

/// Reads the params of `db.outcome`: `{op_id, source_instance_id?, database?, epoch?, timeout_ms?}`; `source` is who asks.
///
/// `source_instance_id` says that the op id is the `request_id` of a `db.write` from there.
pub fn parse_outcome(params: &Json, source: &str) -> Result<WriteRequest, Fault> {
    let fields = Fields::of("outcome", params)?;
    let op_id = OpId::parse(&fields.required("op_id")?);
    let op_id = op_id.within(&fields.text("source_instance_id")?.unwrap_or_default());
    fields.request(Some(op_id), source.to_owned(), Work::Settle)
}

/// Returns the result of `db.outcome`: an [`crate::Outcome`].
pub fn outcome_result(ack: Ack) -> Json {
    ack.results
}

/// The params of `db.query`.
#[derive(Debug, Clone, PartialEq)]
pub struct Query {
    /// One statement that only reads.
    pub statement: Statement,
    /// The event that the query must see.
    pub min_seq: Option<u64>,
    /// When waiting for it ends.
    pub deadline: Instant,
}

/// Reads the params of `db.query`: `{sql, params?, min_seq?, timeout_ms?}`.
pub fn parse_query(params: &Json) -> Result<Query, Fault> {
    let fields = Fields::of("query", params)?;
    Ok(Query { statement: fields.statement()?, min_seq: fields.number("min_seq")?, deadline: fields.deadline()? })
}

/// What every write says of itself, beside what it does.
#[derive(Serialize)]
struct Frame<'a> {
    op_id: &'a str,
    acked: u64,
    database: Option<Uuid>,
    epoch: u64,
    timeout_ms: u64,
    source_instance_id: Option<&'a str>,
}

#[derive(Serialize)]
struct ExecCall<'a> {
    #[serde(flatten)]
    frame: Frame<'a>,
    ddl: bool,
    statements: &'a [Statement],
}

#[derive(Serialize)]
struct WriteCall<'a> {
    meta: Meta<'a>,
    method: &'a str,
    params: Cow<'a, Value>,
}

#[derive(Serialize)]
struct Meta<'a> {
    #[serde(flatten)]
    frame: Frame<'a>,
    request_id: &'a str,
    timestamp: Timestamp,
    ack: bool,
}

#[derive(Serialize)]
struct PublishCall<'a> {
    #[serde(flatten)]
    frame: Frame<'a>,
    topic: &'a Topic,
    payload: &'a Json,
    session_id: &'a str,
    project_id: &'a str,
    durable: bool,
}

/// Returns the method and params by which a write travels to the primary.
pub(crate) fn call(request: &WriteRequest, writes: &Writes) -> (&'static str, Json) {
    let left = request.deadline.saturating_duration_since(Instant::now());
    let timeout_ms = u64::try_from(left.as_millis()).unwrap_or(u64::MAX);
    let WriteRequest { op_id, acked, database, epoch, source, .. } = request;
    let (op_id, acked, database, epoch) = (&*op_id.to_string(), *acked, *database, *epoch);
    let frame = Frame { op_id, acked, database, epoch, timeout_ms, source_instance_id: Some(source) };
    match &request.work {
        Work::Exec { statements, ddl } => (EXEC, Json::of(&ExecCall { frame, ddl: *ddl, statements })),
        Work::Named { method, params } => {
            let to_wire = |write: Arc<dyn Named>| Cow::Owned(write.to_wire(params));
            let params = writes.get(method).map_or(Cow::Borrowed(params), to_wire);
            let meta = Meta { frame, request_id: op_id, timestamp: Timestamp::now(), ack: true };
            (WRITE, Json::of(&WriteCall { meta, method, params }))
        }
        Work::Publish { topic, payload, session_id, project_id } => {
            (PUBLISH, Json::of(&PublishCall { frame, topic, payload, session_id, project_id, durable: true }))
        }
        Work::Settle => (OUTCOME, Json::of(&Frame { source_instance_id: None, ..frame })),
    }
}

/// Returns an acknowledgement that tells nothing but results.
fn bare(results: Json) -> Ack {
    Ack { seq: 0, epoch: 0, durability: Durability::Os, results, replayed: false }
}

/// Reads the primary's answer to [`call`], or says what is wrong with it.
///
/// A primary that knows only the documented form answers `db.write` with the bare row: then `seq` and `epoch` are 0.
pub(crate) fn ack(request: &WriteRequest, result: &Json) -> Result<Ack, String> {
    /// The answer to `events.publish`, which has no results.
    #[derive(Deserialize)]
    struct Published {
        seq: u64,
        epoch: u64,
        durability: Durability,
        #[serde(default)]
        replayed: bool,
    }
    let read = match &request.work {
        Work::Named { .. } => {
            result.read::<Ack>().or_else(|_| result.read().map(|row| bare(methods::from_wire(row).into())))
        }
        Work::Settle => Ok(bare(result.clone())),
        Work::Publish { .. } => result.read().map(|Published { seq, epoch, durability, replayed }| Ack {
            seq,
            epoch,
            durability,
            results: Json::null(),
            replayed,
        }),
        Work::Exec { .. } => result.read(),
    };
    read.map_err(|why| format!("the primary's answer is malformed: {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round_trip(work: Work) {
        let deadline = Instant::now() + Duration::from_secs(5);
        let sent = WriteRequest::new("op-1".into(), "inst-B".into(), deadline, work).unwrap();
        let sent = sent.meant_for(Some(Uuid::from_u128(7)), 3).acked(9);
        let (method, params) = call(&sent, &Writes::new());
        let got = match method {
            EXEC => parse_exec(&params, "peer").unwrap(),
            OUTCOME => parse_outcome(&params, "inst-B").unwrap(),
            WRITE => parse_write(&params, "peer", &Writes::new()).unwrap().0,
            _ => match parse_publish(&params, "peer").unwrap() {
                Publication::Durable(request) => request,
                Publication::Ephemeral(event) => panic!("{event:?}"),
            },
        };
        assert_eq!(got, WriteRequest { deadline: got.deadline, ..sent });
        assert!(got.deadline <= deadline + Duration::from_millis(50));
    }

    #[test]
    fn a_write_arrives_as_it_was_sent_with_the_same_fingerprint() {
        use crate::value::SqlValue;
        let values = (f64::INFINITY, vec![0_u8, 255], i64::MIN);
        let named = Params::named([(":a", SqlValue::Real(2.0)), ("b", SqlValue::Null)]);
        let statements = vec![Statement::new("SELECT ?, ?, ?", values), Statement { sql: "x".into(), params: named }];
        round_trip(Work::Exec { statements, ddl: true });
        let message = json!({"id": "m", "session_id": "s", "role": "user", "parts": "[]", "model": null});
        round_trip(Writes::new().work("CreateMessage", &message).unwrap());
        round_trip(Writes::new().work("DeleteMessage", &json!("m")).unwrap());
        round_trip(Writes::new().work("DeactivateLowestSkill", &Value::Null).unwrap());
        round_trip(Work::Settle);
        let topic = Topic::known("tool.end");
        round_trip(Work::Publish {
            topic,
            payload: json!([1.0, {"b": 1, "a": null}]).into(),
            session_id: "s".into(),
            project_id: String::new(),
        });
    }

    #[test]
    fn a_documented_write_is_read_and_answered_in_the_documented_form() {
        let params = json!({
            "meta": {"source_instance_id": "inst-A", "request_id": "req-7", "timestamp": "2026-11-21T03:04:15Z"},
            "method": "CreateMessage",
            "params": {"id": "m", "session_id": "s", "role": "user", "parts": "[]", "model": {"String": "", "Valid": false}},
        });
        let (request, answer) = parse_write(&params.into(), "peer", &Writes::new()).unwrap();
        assert_eq!((&request.op_id, request.source.as_str()), (&OpId::parse("req-7").within("inst-A"), "inst-A"));
        let row = json!({"id": "m", "model": null, "finished_at": 7});
        let ack = Ack { seq: 3, epoch: 1, durability: Durability::Disk, results: row.into(), replayed: false };
        let expected = r#"{"id":"m","model":{"String":"","Valid":false},"finished_at":{"Int64":7,"Valid":true}}"#;
        assert_eq!(write_result(&answer, &ack).to_string(), expected);
        assert_eq!(write_result(&answer, &Ack { results: Json::null(), ..ack }), Value::Null);
    }

    #[test]
    fn bad_params_name_the_field() {
        #[track_caller]
        fn check<T>(result: Result<T, Fault>, field: &str) {
            let fault = result.err().expect("refused");
            assert_eq!(fault.data.unwrap()["field"], field, "{}", fault.message);
        }
        check(parse_exec(&json!([]).into(), "i"), "params");
        check(parse_exec(&json!({}).into(), "i"), "statements");
        check(parse_exec(&json!({"statements": [{"params": []}]}).into(), "i"), "statements[0].sql");
        check(
            parse_exec(&json!({"statements": [{"sql": "x", "params": [1, [2]]}]}).into(), "i"),
            "statements[0].params[1]",
        );
        check(parse_exec(&json!({"statements": [7]}).into(), "i"), "statements[0]");
        check(parse_exec(&json!({"statements": ["x"], "ddl": 1}).into(), "i"), "ddl");
        check(parse_exec(&json!({"statements": ["x"], "database": "x"}).into(), "i"), "database");
        check(parse_exec(&json!({"statements": ["x"], "op_id": "x".repeat(200)}).into(), "i"), "op_id");
        check(parse_exec(&json!({"statements": ["x"], "op_id": ""}).into(), "i"), "op_id");
        check(parse_exec(&json!({"statements": ["x"], "acked": u64::MAX}).into(), "i"), "acked");
        check(parse_write(&json!({"params": null}).into(), "i", &Writes::new()), "method");
        check(parse_write(&json!({"method": ""}).into(), "i", &Writes::new()), "method");
        check(parse_write(&json!({"method": "DeleteFile", "params": 7}).into(), "i", &Writes::new()), "params");
        check(
            parse_write(
                &json!({"method": "DeleteFile", "params": "f", "meta": {"request_id": 7}}).into(),
                "i",
                &Writes::new(),
            ),
            "meta.request_id",
        );
        check(parse_publish(&json!({"topic": "a b"}).into(), "i"), "topic");
        check(parse_query(&json!({"sql": "x", "min_seq": -1}).into()), "min_seq");
    }

    #[test]
    fn the_topic_decides_whether_an_event_is_durable() {
        let durable = |params: Value| matches!(parse_publish(&params.into(), "i").unwrap(), Publication::Durable(_));
        assert!(durable(json!({"topic": "tool.end"})));
        assert!(!durable(json!({"topic": "llm.token"})));
        assert!(!durable(json!({"topic": "tool.end", "durable": false})));
    }
}
