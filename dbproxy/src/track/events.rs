//! What the change events of a write say, written as JSON from what was collected.

use pando_ipc::rpc::Json;
use pando_ipc::{Envelope, Timestamp, Topic};
use serde::ser::{Serialize, SerializeMap, Serializer};

use super::SUMMARY;
use super::collector::{Collector, MAX_ROW_EVENTS, Operation, Row, Table};

/// Room for an entity's name in a topic, in bytes; a longer one is cut.
const MAX_ENTITY_BYTES: usize = 200;

/// Who changed rows: what every change event of a write says.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Author<'a> {
    /// The instance that the write comes from.
    pub(crate) source: &'a str,
    /// The workdir, as JSON.
    pub(crate) path: &'a Json,
    /// The name of the write.
    pub(crate) method: &'a str,
}

/// The payload of a change event: `{instance_id, path, topic, payload: {method, …}, timestamp}`.
#[derive(Debug, serde::Serialize)]
pub(crate) struct Body<'a> {
    instance_id: &'a str,
    path: &'a Json,
    topic: Topic,
    payload: Change<'a>,
    timestamp: Timestamp,
}

/// A write and what it changed: `{method, table, key, columns?}`, `{method, table, created, updated, deleted}` or `{method, tables}`.
#[derive(Debug)]
struct Change<'a> {
    method: &'a str,
    detail: Detail<'a>,
}

#[derive(Debug, Clone, Copy)]
enum Detail<'a> {
    Row(&'a Table, &'a Row),
    Bulk(&'a Table),
    Summary(&'a [Table]),
}

impl Serialize for Change<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("method", self.method)?;
        match self.detail {
            Detail::Row(table, row) => {
                map.serialize_entry("table", &table.name)?;
                map.serialize_entry("key", &row.key.text)?;
                match &row.columns {
                    Some(columns) if columns.is_empty() => {}
                    Some(columns) => map.serialize_entry("columns", columns)?,
                    None => map.serialize_entry("columns_omitted", &true)?,
                }
            }
            Detail::Bulk(table) => {
                map.serialize_entry("table", &table.name)?;
                for (name, count) in table.counts() {
                    map.serialize_entry(name, &count)?;
                }
            }
            Detail::Summary(tables) => map.serialize_entry("tables", &Summary(tables))?,
        }
        map.end()
    }
}

/// Tables with the operations on them: `{"t": {"created": 1}}`.
struct Summary<'a>(&'a [Table]);

impl Serialize for Summary<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|table| (&table.name, Operations(table))))
    }
}

struct Operations<'a>(&'a Table);

impl Serialize for Operations<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.counts().into_iter().filter(|(_, count)| *count > 0))
    }
}

impl Table {
    /// Returns the counts by name.
    fn counts(&self) -> [(&'static str, u64); 3] {
        Operation::ALL.map(|operation| (operation.as_str(), self.counts[operation as usize]))
    }
}

impl Collector {
    /// Returns the change events of the write: rows in an order in which the last one of each tells what became of it, and the summary; none when no row changed.
    pub(crate) fn events<'a>(&'a self, author: Author<'a>) -> impl Iterator<Item = Envelope<Body<'a>>> {
        let Self { tables, rows, .. } = self;
        let single = rows.values().filter(|row| tables[row.table].rows <= MAX_ROW_EVENTS).map(|row| {
            let table = &tables[row.table];
            (topic(&table.name, row.operation.as_str()), row.session.as_str(), Detail::Row(table, row))
        });
        let bulk = tables.iter().filter(|table| table.rows > MAX_ROW_EVENTS);
        let bulk = bulk.map(|table| (topic(&table.name, "bulk"), "", Detail::Bulk(table)));
        let summary = (!tables.is_empty()).then(|| (Topic::known(SUMMARY), self.session(), Detail::Summary(tables)));
        single.chain(bulk).chain(summary).map(move |(topic, session, detail)| {
            let Author { source, path, method } = author;
            let (payload, timestamp) = (Change { method, detail }, Timestamp::now());
            let payload = Body { instance_id: source, path, topic: topic.clone(), payload, timestamp };
            Envelope { session_id: session.to_owned(), timestamp, ..Envelope::carrying(source, topic, payload) }
        })
    }

    /// Returns the session that all changed rows belong to, if they do: of rows that have no event nobody knows.
    fn session(&self) -> &str {
        if self.tables.iter().any(|table| table.rows == 0 || table.rows > MAX_ROW_EVENTS) {
            return "";
        }
        let mut sessions = self.rows.values().map(|row| row.session.as_str());
        sessions.next().filter(|first| sessions.all(|session| session == *first)).unwrap_or_default()
    }
}

/// Returns the topic of a change: singular for the agent store's tables, the table's own name otherwise.
fn topic(table: &str, what: &str) -> Topic {
    let entity = match table {
        "sessions" => "session",
        "messages" => "message",
        "files" => "file",
        "projects" => "project",
        "skills" => "skill",
        "prompt_templates" => "prompt_template",
        "session_scores" => "session_score",
        other => other,
    };
    let mut clean: String =
        entity.chars().map(|c| if c.is_control() || c.is_whitespace() || c == '*' { '_' } else { c }).collect();
    while clean.len() > MAX_ENTITY_BYTES {
        clean.pop();
    }
    Topic::new(format!("db.{clean}.{what}")).unwrap_or_else(|_| Topic::known("db.unnamed.updated"))
}
