//! `pando ipc tail`: every event, in order, across takeovers.

use std::sync::Arc;
use std::time::Duration;

use pando_dbproxy::Readers;
use pando_ipc::client::{Followed, History, RemoteHistory, Resync, Silence, Since};
use pando_ipc::{Envelope, Kind as PeerKind, Pattern};
use serde_json::json;
use tokio::sync::watch;

use crate::cli::context::Context;
use crate::cli::failure::{Failure, Kind};
use crate::cli::output::{self, Palette, printable};

/// How many characters of a payload a person is shown; programs get all of it.
const SHOWN_PAYLOAD: usize = 200;

/// A silence is told every 500 ms from 2 s on; only the first time is worth a line.
const NOTED_AGAIN: Duration = Duration::from_millis(2_500);

/// Follow events until Ctrl-C
///
/// Durable events come in the order of their numbers, each once, also when the primary changes meanwhile. What was lost for good is
/// said in a line of its own: with --json {"lagged": n} or {"resync": {from, to, reason}}.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  pando ipc tail                          everything from now on
  pando ipc tail 'db.*' session.update    some topics
  pando ipc tail --since all --json       from the first event of the journal, one JSON object per line
  pando ipc tail --since 41 --limit 1     event 42, then stop")]
pub(crate) struct Args {
    /// Topics: 'a.b' for one, 'a.*' for all below, '*' for all
    #[arg(value_name = "TOPIC", default_value = "*")]
    topics: Vec<Pattern>,
    /// Where to begin: 'now', 'all', or behind the event of this number
    #[arg(long, value_name = "now|all|SEQ", value_parser = parse_since, default_value = "now")]
    since: Since,
    /// Stop after this many events
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    limit: Option<u64>,
}

fn parse_since(text: &str) -> Result<Since, String> {
    match text {
        "now" => Ok(Since::Now),
        "all" => Ok(Since::All),
        number => number.parse().map(Since::Seq).map_err(|_| "write 'now', 'all' or the number of an event".to_owned()),
    }
}

/// Prints events until the limit, or until nobody reads any more.
pub(crate) async fn run(args: Args, context: &Context) -> Result<(), Failure> {
    let workdir = context.workdir()?;
    let client = context.client(&workdir, PeerKind::Observer).await?;
    let database = workdir.database_path();
    // Our own journal is read from the file, also while nobody leads. A primary of another make keeps it elsewhere, or keeps none.
    let history: Arc<dyn History> =
        if database.exists() { Arc::new(Readers::open(database, 1)) } else { Arc::new(RemoteHistory(client.clone())) };
    let mut events = client.follow(args.topics, args.since, history);
    let mut left = args.limit.unwrap_or(u64::MAX);
    let mut silence = client.silence();
    while left > 0 {
        let followed = tokio::select! {
            followed = events.recv() => followed,
            Ok(()) = silence.changed() => {
                note_silence(&mut silence);
                continue;
            }
        };
        let Some(followed) = followed else {
            return Err(Failure::new(Kind::Unreachable, "the stream of events has ended"));
        };
        let line = match followed {
            Followed::Event(event) => {
                left -= 1;
                event_line(&event, context)?
            }
            Followed::Lagged(lost) if context.json() => json!({"lagged": lost}).to_string(),
            Followed::Lagged(lost) => context.palette().error(&format!("-- {lost} ephemeral events were lost")),
            Followed::Resync(gap) if context.json() => {
                json!({"resync": {"from": gap.from, "to": gap.to, "reason": gap.reason}}).to_string()
            }
            Followed::Resync(gap) => context.palette().error(&resync_line(&gap)),
        };
        output::line(&line)?;
    }
    client.close().await;
    Ok(())
}

/// Says once that the primary has fallen silent: without it there are no events, and nobody would know why.
fn note_silence(silence: &mut watch::Receiver<Option<Silence>>) {
    match &*silence.borrow_and_update() {
        Some(Silence { holder, lasted }) if *lasted < NOTED_AGAIN => {
            tracing::warn!("the primary has said nothing for {lasted:?} ({holder:#}); to end it: 'pando ipc evict'");
        }
        Some(_) => {}
        None => tracing::warn!("the primary is no longer silent, or another one leads"),
    }
}

fn event_line(event: &Envelope, context: &Context) -> Result<String, Failure> {
    if context.json() {
        return serde_json::to_string(event)
            .map_err(|error| Failure::new(Kind::Failed, format!("cannot write event as JSON: {error}")));
    }
    Ok(human(event, context.palette()))
}

fn resync_line(gap: &Resync) -> String {
    format!("-- events {} to {} are gone from the journal: {}", gap.from, gap.to, printable(&gap.reason))
}

/// Returns time, number, topic, session or instance, and payload; aligned as long as nothing is unusually long.
fn human(event: &Envelope, palette: Palette) -> String {
    let time = event.timestamp.as_datetime().format("%H:%M:%S%.3f").to_string();
    let number = match (event.seq, event.n) {
        (Some(seq), _) => format!("#{seq}"),
        (None, Some(n)) => format!("~{n}"),
        (None, None) => String::new(),
    };
    let topic = palette.heading(&format!("{:<22}", printable(event.topic.as_str())));
    let from = printable(if event.session_id.is_empty() { &event.instance_id } else { &event.session_id });
    let payload = event.payload.to_string();
    let mut shown: String = payload.chars().take(SHOWN_PAYLOAD).collect();
    if shown.len() < payload.len() {
        shown.push('…');
    }
    format!("{}  {number:>7}  {topic}  {from:<12}  {}", palette.faint(&time), printable(&shown))
}

#[cfg(test)]
mod tests {
    use pando_ipc::Topic;

    use super::*;

    #[test]
    fn people_read_one_aligned_line_per_event() {
        let mut event = Envelope::new("inst-A", Topic::known("session.update"), json!({"id": "s1"}));
        event.timestamp = serde_json::from_str("\"2026-11-21T02:53:37.1205Z\"").unwrap();
        event.seq = Some(42);
        let mut token = Envelope::new("inst-A", Topic::known("llm.token"), json!("\u{1b}[2J"));
        (token.timestamp, token.n, token.session_id) = (event.timestamp, Some(7), "s1".into());
        let lines = [human(&event, Palette::plain()), human(&token, Palette::plain())].join("\n");
        insta::assert_snapshot!(lines, @r#"
        02:53:37.120      #42  session.update          inst-A        {"id":"s1"}
        02:53:37.120       ~7  llm.token               s1            "\u001b[2J"
        "#);
    }

    #[test]
    fn a_beginning_is_now_all_or_a_number() {
        assert!(matches!(parse_since("now"), Ok(Since::Now)));
        assert!(matches!(parse_since("all"), Ok(Since::All)));
        assert!(matches!(parse_since("41"), Ok(Since::Seq(41))));
        assert!(parse_since("yesterday").is_err());
    }
}
