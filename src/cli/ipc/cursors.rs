//! `pando ipc cursors`: how far named consumers got, and what they have not read yet.

use clap_complete::ArgValueCandidates;
use pando_dbproxy::Readers;
use pando_ipc::cursor::{Cursor, Cursors};
use pando_ipc::{Pattern, Timestamp};
use serde::Serialize;
use serde_json::json;

use crate::cli::completions::live;
use crate::cli::context::Context;
use crate::cli::failure::{Failure, Kind};
use crate::cli::output::{self, Table};

/// List named cursors and what they have not read yet
///
/// 'pando ipc tail --cursor NAME' and the method 'events.ack' make and move them. They are kept in .pando/cursors; no primary is needed.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  pando ipc tail --cursor build 'db.*'    follow, and go on there the next time
  pando ipc cursors
  pando ipc cursors --remove build")]
pub(crate) struct Args {
    /// Forget this cursor
    #[arg(long, value_name = "NAME", add = ArgValueCandidates::new(live::cursors))]
    remove: Option<String>,
}

/// What `--json` prints of each.
#[derive(Debug, Serialize)]
struct Listed {
    #[serde(flatten)]
    cursor: Cursor,
    /// Events behind it that it follows; null when its database is gone.
    unread: Option<u64>,
}

/// Prints them, or removes one.
pub(crate) async fn run(args: Args, context: &Context) -> Result<(), Failure> {
    let workdir = context.workdir()?;
    let cursors = Cursors::of(&workdir);
    if let Some(name) = args.remove {
        if !cursors.remove(&name).map_err(|error| Failure::cursor(&error))? {
            return Err(Failure::new(Kind::Failed, format!("there is no cursor {name:?}"))
                .hint("list them: 'pando ipc cursors'"));
        }
        return if context.json() { output::json(&json!({"removed": name})) } else { Ok(()) };
    }
    let readers = Readers::open(workdir.database_path(), 1);
    let mut listed = Vec::new();
    for cursor in cursors.list().map_err(|error| Failure::cursor(&error))? {
        let topics = if cursor.topics.is_empty() { vec![Pattern::All] } else { cursor.topics.clone() };
        let unread = readers.unread(cursor.bookmark, &topics).await;
        let unread = unread.map_err(|error| Failure::new(Kind::Failed, error.to_string()))?;
        listed.push(Listed { cursor, unread });
    }
    if context.json() {
        output::json_for_reader(&json!({"cursors": listed}))
    } else {
        output::line(&table(&listed).render_within(context.palette(), context.width()))
    }
}

fn table(listed: &[Listed]) -> Table {
    let mut table = Table::new(["CURSOR", "SEQ", "UNREAD", "MOVED", "TOPICS"]);
    for Listed { cursor, unread } in listed {
        let topics: Vec<String> = cursor.topics.iter().map(Pattern::to_string).collect();
        table.row([
            cursor.name.clone(),
            cursor.bookmark.seq.to_string(),
            unread.map_or_else(|| "database is gone".to_owned(), |unread| unread.to_string()),
            moved(cursor.at),
            topics.join(" "),
        ]);
    }
    table
}

fn moved(at: Timestamp) -> String {
    at.as_datetime().format("%Y-%m-%dT%H:%M:%SZ").to_string()
}

#[cfg(test)]
pub(crate) mod tests {
    use pando_ipc::cursor::Bookmark;

    use super::*;
    use crate::cli::output::Palette;

    pub(crate) fn look(palette: Palette, columns: Option<usize>) -> String {
        let listed = |name: &str, topics: &[&str], unread| {
            let at = serde_json::from_str("\"2026-11-21T02:53:37.5Z\"").unwrap();
            let topics = topics.iter().map(|text| Pattern::new(text).unwrap()).collect();
            let bookmark = Bookmark { database: uuid::Uuid::nil(), seq: 41 };
            Listed { cursor: Cursor { name: name.into(), bookmark, topics, at }, unread }
        };
        let rows = [listed("build", &["db.*", "tool.end"], Some(7)), listed("old", &[], None)];
        table(&rows).render_within(palette, columns)
    }
}
