//! `pando ipc tail`: every event, in order, across takeovers.

pub(crate) mod line;
mod moment;
mod select;
mod template;
pub(crate) mod text;

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use clap_complete::ArgValueCandidates;
use futures::FutureExt;
use pando_dbproxy::Readers;
use pando_ipc::client::{CallError, Cause, Client, Followed, Follower, History, HistoryError, LocalHistory, Since};
use pando_ipc::cursor::{Bookmark, Cursor, Cursors};
use pando_ipc::{Kind as PeerKind, Pattern, Timestamp, Workdir};
use serde_json::json;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};
use uuid::Uuid;

use crate::cli::completions::live;
use crate::cli::context::Context;
use crate::cli::failure::{Failure, Kind};
use crate::cli::output;

use line::Lines;
use moment::Moment;
use select::{Condition, Selection};
use template::Template;
use text::Stitch;

/// How often the command looks whether there is a primary, to say so when there is none.
const LOOK: Duration = Duration::from_millis(500);

/// Bytes that are printed at once where so many events are there already: what a pipe holds.
const CHUNK_BYTES: usize = 64 << 10;

/// How often a cursor is moved while events come: whoever is killed reads what was printed since then once more.
const KEEP: Duration = Duration::from_millis(200);

/// Follow events until Ctrl-C
///
/// Durable events come in the order of their numbers, each once, also when the primary changes meanwhile. Without a primary the
/// journal's file is read, and the command waits for one. What was lost for good is said in a line of its own: with --json
/// {"lagged": n} or {"resync": {from, to, reason}}.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Where to begin and to end: 'now', the number of an event, a time such as 2026-11-21T03:04:15Z, or how
long ago, such as 5m.

Examples:
  pando ipc tail                               everything from now on
  pando ipc tail 'db.*' session.update         some topics
  pando ipc tail --since 5m '*.created'        what was made in the last five minutes, and what follows
  pando ipc tail --since all --until now       the whole journal, then stop; needs no primary
  pando ipc tail --since 41 --limit 1 --json   event 42, as JSON
  pando ipc tail --cursor build --until now    what is new since the last time
  pando ipc tail --where payload.role=user --where payload.role=system
  pando ipc tail --format '{seq} {topic} {payload.id}'
  pando ipc tail --text 'llm.*'                read along while a model answers"
)]
pub(crate) struct Args {
    /// Topics: 'a.b', or a pattern in which '*' stands for any text
    #[arg(value_name = "TOPIC", default_value = "*", add = ArgValueCandidates::new(live::topics))]
    topics: Vec<Pattern>,
    /// Where to begin: 'now', 'all', behind event SEQ, or at a time [default: now; a new --cursor begins with all]
    #[arg(long, value_name = "WHEN", value_parser = moment::parse_start)]
    since: Option<Moment>,
    /// Where to end: with event SEQ, or before a time
    #[arg(long, value_name = "WHEN", value_parser = moment::parse_end)]
    until: Option<Moment>,
    /// Remember under this name how far was read, and go on there the next time; --since counts the first time only
    #[arg(long, value_name = "NAME", add = ArgValueCandidates::new(live::cursors))]
    cursor: Option<String>,
    /// Only events of this session; may be repeated
    #[arg(long, value_name = "ID", add = ArgValueCandidates::new(live::sessions))]
    session: Vec<String>,
    /// Only events from this instance; may be repeated
    #[arg(long, value_name = "ID", add = ArgValueCandidates::new(live::instances))]
    instance: Vec<String>,
    /// Only events in which PATH, such as payload.role, is VALUE; several values of one path are alternatives
    #[arg(long = "where", value_name = "PATH=VALUE", value_parser = select::parse_condition)]
    conditions: Vec<Condition>,
    /// Stop after this many events
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    limit: Option<u64>,
    /// Print this for each event; {PATH} stands for what the event has there, such as {seq} or {payload.id}
    #[arg(long, value_name = "TEMPLATE", conflicts_with = "json")]
    format: Option<Template>,
    /// Join the tokens of an answer (llm.token) to text
    #[arg(long, conflicts_with_all = ["json", "format"])]
    text: bool,
}

/// How events are printed.
enum Style {
    Json,
    Template(Template),
    Text(Stitch),
    Lines(Lines),
}

/// Prints events until the end that was asked for, or until nobody reads any more.
pub(crate) async fn run(args: Args, context: &Context) -> Result<(), Failure> {
    let workdir = context.workdir()?;
    let client = context.open(&workdir, PeerKind::Observer);
    let file = Arc::new(Readers::open(workdir.database_path(), 1));
    let database = file.database().await.ok();
    let history: Arc<dyn History> = Arc::new(LocalHistory::new(file, client.clone()));
    let lines = Lines::new(context.palette(), context.width());
    let style = match args.format {
        _ if context.json() => Style::Json,
        Some(template) => Style::Template(template),
        None if args.text => Style::Text(Stitch::new(lines)),
        None => Style::Lines(lines),
    };
    let keeper = args.cursor.map(|name| Keeper::find(&workdir, name, &args.topics)).transpose()?;
    let begin = match &keeper {
        Some(Keeper { kept: Some(kept), .. }) => Since::Bookmark(*kept),
        // Whoever asks for what is new since the last time, and was never here, has read nothing.
        Some(_) => args.since.unwrap_or(Moment::All).since(),
        None => args.since.unwrap_or(Moment::Now).since(),
    };
    let tail = Tail {
        database,
        events: client.follow(args.topics, begin, Arc::clone(&history)),
        keeper,
        printed: None,
        selection: Selection::new(args.session, args.instance, args.conditions),
        style,
        left: args.limit,
        until: args.until,
        history,
        watch: Watch { client: client.clone(), workdir, said: None, is_silent: context.quiet() },
    };
    let is_bounded = args.limit.is_some() || args.until.is_some();
    let deadline = context.time_limit().map(|limit| (limit, Instant::now() + limit));
    let outcome = match deadline {
        None => tail.print().await,
        Some((limit, deadline)) => tokio::time::timeout_at(deadline, tail.print()).await.unwrap_or_else(|_| {
            if !is_bounded {
                return Ok(());
            }
            Err(Failure::new(Kind::Timeout, format!("what was waited for did not come within {limit:?}"))
                .hint("give it longer with '--timeout 30s', or see who leads: 'pando status'"))
        }),
    };
    client.close().await;
    outcome
}

/// Says once, to stderr, why nothing comes.
struct Watch {
    client: Client,
    workdir: Workdir,
    said: Option<String>,
    is_silent: bool,
}

impl Watch {
    fn look(&mut self) -> Result<(), Failure> {
        let holder = self.client.silence().borrow().as_ref().map(|silence| format!("{:#}", silence.holder));
        let trouble = match (holder, self.client.trouble()) {
            (_, Some(cause @ Cause::Version { .. })) => {
                return Err(Failure::call(CallError::NotSent(cause), &self.workdir));
            }
            (Some(holder), _) => {
                Some(format!("the primary has said nothing for 2s ({holder}); to end it: 'pando ipc evict'"))
            }
            (None, cause) => cause.map(|cause| cause.to_string()),
        };
        if trouble != self.said {
            match &trouble {
                _ if self.is_silent => {}
                Some(cause) => output::note(&format!("waiting: {cause}")),
                None => output::note("following the primary"),
            }
            self.said = trouble;
        }
        Ok(())
    }
}

/// A cursor that follows what was printed.
struct Keeper {
    cursors: Cursors,
    name: String,
    topics: Vec<Pattern>,
    kept: Option<Bookmark>,
}

impl Keeper {
    fn find(workdir: &Workdir, name: String, topics: &[Pattern]) -> Result<Self, Failure> {
        let cursors = Cursors::of(workdir);
        let kept = cursors.read(&name).map_err(|error| Failure::cursor(&error))?.map(|cursor| cursor.bookmark);
        Ok(Self { cursors, name, topics: topics.to_vec(), kept })
    }

    fn keep(&mut self, bookmark: Option<Bookmark>) -> Result<(), Failure> {
        let Some(bookmark) = bookmark.filter(|bookmark| Some(*bookmark) != self.kept) else { return Ok(()) };
        let (name, topics) = (self.name.clone(), self.topics.clone());
        self.cursors
            .advance(Cursor { name, bookmark, topics, at: Timestamp::now() })
            .map_err(|error| Failure::cursor(&error))?;
        self.kept = Some(bookmark);
        Ok(())
    }
}

struct Tail {
    events: Follower,
    keeper: Option<Keeper>,
    /// The database's id when we began; `None` where there was none.
    database: Option<Uuid>,
    /// Up to where everything was printed.
    printed: Option<Bookmark>,
    selection: Selection,
    style: Style,
    /// How many events may still be printed.
    left: Option<u64>,
    until: Option<Moment>,
    history: Arc<dyn History>,
    watch: Watch,
}

enum Step {
    Item(Option<Followed>),
    End(Result<u64, HistoryError>),
    Look,
    Keep,
}

impl Drop for Tail {
    /// Ctrl-C and a reader that has gone end the command where it is: what was printed is remembered nevertheless.
    fn drop(&mut self) {
        let printed = self.printed;
        let kept = self.keeper.as_mut().map_or(Ok(()), |keeper| keeper.keep(printed));
        if let Err(failure) = kept {
            output::note(&format!("the cursor was not moved: {}", failure.message));
        }
    }
}

impl Tail {
    async fn print(mut self) -> Result<(), Failure> {
        let (history, until) = (Arc::clone(&self.history), self.until);
        let end = end_of(&*history, until);
        tokio::pin!(end);
        let mut last = None;
        let mut look = interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        look.reset();
        let mut keep = interval(KEEP);
        keep.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while self.left != Some(0) {
            let events = &mut self.events;
            let step = tokio::select! {
                item = receive(events, last) => Step::Item(item),
                end = &mut end, if until.is_some() && last.is_none() => Step::End(end),
                _ = look.tick() => Step::Look,
                _ = keep.tick() => Step::Keep,
            };
            match step {
                Step::Item(item) => {
                    if self.show_all(item, last)?.is_break() {
                        break;
                    }
                }
                Step::End(seq) => last = Some(seq.map_err(|error| self.unreadable(error))?),
                Step::Look if output::is_unread() => return Err(output::reader_gone()),
                Step::Look => self.watch.look()?,
                Step::Keep => self.keep()?,
            }
        }
        match &mut self.style {
            Style::Text(stitch) => output::raw(stitch.end().as_bytes()),
            _ => Ok(()),
        }
    }

    /// Returns up to where everything was taken. Where no event was read yet, the stream does not know its database, but the file does.
    fn place(&self) -> Option<Bookmark> {
        let unread = || self.database.map(|database| Bookmark { database, seq: self.events.position() });
        self.events.bookmark().or_else(|| unread().filter(|place| place.seq > 0))
    }

    fn keep(&mut self) -> Result<(), Failure> {
        // Nothing is on its way to the reader now.
        self.printed = self.place();
        self.keeper.as_mut().map_or(Ok(()), |keeper| keeper.keep(self.printed))
    }

    /// Prints an item and those that are there already, all at once: whoever catches up waits for no system call per event.
    fn show_all(&mut self, first: Option<Followed>, last: Option<u64>) -> Result<ControlFlow<()>, Failure> {
        let mut text = String::new();
        let mut next = Some(first);
        while let Some(Some(item)) = next {
            self.show(&item, &mut text)?;
            let goes_on = self.left != Some(0) && text.len() < CHUNK_BYTES;
            next = if goes_on { receive(&mut self.events, last).now_or_never() } else { None };
        }
        output::raw(text.as_bytes())?;
        self.printed = self.place();
        Ok(if matches!(next, Some(None)) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    }

    /// Adds what is to be printed for an item.
    fn show(&mut self, item: &Followed, text: &mut String) -> Result<(), Failure> {
        if let Followed::Event(event) = item {
            if !self.selection.selects(event) {
                return Ok(());
            }
            self.left = self.left.map(|left| left - 1);
        }
        let line = match (&mut self.style, item) {
            (Style::Json, Followed::Event(event)) => output::encode(event)?,
            (Style::Json, Followed::Lagged(lost)) => output::encode(&json!({"lagged": lost}))?,
            (Style::Json, Followed::Resync(gap)) => output::encode(&json!({"resync": gap}))?,
            (Style::Template(template), Followed::Event(event)) => template.fill(event),
            (Style::Template(_), Followed::Lagged(_)) => return Ok(()),
            (Style::Template(_), Followed::Resync(gap)) => {
                output::note(&line::resync(gap));
                return Ok(());
            }
            (Style::Text(stitch), item) => {
                text.push_str(&stitch.add(item));
                return Ok(());
            }
            (Style::Lines(lines), item) => lines.render(item),
        };
        text.push_str(&line);
        text.push('\n');
        Ok(())
    }

    fn unreadable(&self, error: HistoryError) -> Failure {
        match error {
            HistoryError::Call(error) => Failure::call(error, &self.watch.workdir),
            error => Failure::new(Kind::Failed, error.to_string()),
        }
    }
}

/// Returns the next item; `None` behind event `last`.
async fn receive(events: &mut Follower, last: Option<u64>) -> Option<Followed> {
    match last {
        Some(last) => events.recv_upto(last).await,
        None => events.recv().await,
    }
}

/// Waits until the end can be told, and returns the number of the last event before it.
async fn end_of(history: &dyn History, until: Option<Moment>) -> Result<u64, HistoryError> {
    match until {
        None => std::future::pending().await,
        Some(Moment::Seq(seq)) => Ok(seq),
        Some(Moment::Now | Moment::All) => history.last_before(None).await,
        Some(Moment::Time(time)) => {
            let ahead = (time.as_datetime() - chrono::Utc::now()).to_std().unwrap_or_default();
            sleep_until(Instant::now() + ahead).await;
            history.last_before(Some(time)).await
        }
    }
}
