//! One line per event, for people.

use pando_ipc::Envelope;
use pando_ipc::client::{Followed, Resync};
use serde_json::{Map, Value};

use crate::cli::output::{Palette, WIDE, cut, printable};

use super::select::plain;

/// How events look on one line each: time, number, topic, session or instance, payload.
#[derive(Debug, Clone, Copy)]
pub(super) struct Lines {
    palette: Palette,
    /// Where lines end; `None`: nowhere.
    width: Option<usize>,
}

impl Lines {
    pub(super) fn new(palette: Palette, width: Option<usize>) -> Self {
        Self { palette, width }
    }

    pub(super) fn palette(&self) -> Palette {
        self.palette
    }

    /// Returns the line for what a follower received.
    pub(super) fn render(&self, item: &Followed) -> String {
        match item {
            Followed::Event(event) => self.event(event),
            Followed::Lagged(lost) => self.palette.error(&lagged(*lost)),
            Followed::Resync(gap) => self.palette.error(&format!("-- {}", resync(gap))),
        }
    }

    fn event(&self, event: &Envelope) -> String {
        let is_wide = self.width.is_none_or(|width| width >= WIDE);
        let (times, topics, sources) = if is_wide { ("%H:%M:%S%.3f", 22, 17) } else { ("%H:%M:%S", 20, 10) };
        let time = event.timestamp.as_datetime().format(times).to_string();
        let number = match (event.seq, event.n) {
            (Some(seq), _) => format!("#{seq}"),
            (None, Some(n)) => format!("~{n}"),
            (None, None) => String::new(),
        };
        let topic = printable(event.topic.as_str());
        let source = printable(if event.session_id.is_empty() { &event.instance_id } else { &event.session_id });
        let source = if is_wide { source } else { cut(source, sources) };
        let head = format!("{number:>7}");
        let taken = [&time, &head, &padded(&topic, topics), &padded(&source, sources)];
        let used: usize = taken.iter().map(|text| text.chars().count() + 1).sum();
        let payload = printable(&payload(event));
        let payload = match self.width {
            Some(width) => cut(payload, width.saturating_sub(used)),
            None => payload,
        };
        let line = format!(
            "{} {head} {} {} {payload}",
            self.palette.faint(&time),
            self.palette.family(&topic, &padded(&topic, topics)),
            padded(&source, sources)
        );
        line.trim_end().to_owned()
    }
}

/// Returns what is said when ephemeral events were lost.
fn lagged(lost: u64) -> String {
    format!("-- {lost} ephemeral events were lost")
}

/// Returns what is said when durable events are gone.
pub(super) fn resync(gap: &Resync) -> String {
    format!("events {} to {} are gone from the journal: {}", gap.from, gap.to, printable(&gap.reason))
}

fn padded(text: &str, width: usize) -> String {
    format!("{text:<width$}")
}

/// Returns the payload as `key=value`; of a change of a row only what the topic does not say already.
fn payload(event: &Envelope) -> String {
    let whole = event.payload.raw();
    let change = event.topic.as_str().starts_with("db.").then(|| whole.member("payload")).flatten();
    let shown = change.unwrap_or(whole);
    match shown.read() {
        Ok(Value::Null) => String::new(),
        Ok(Value::Object(fields)) => pairs(&fields),
        _ => shown.as_str().to_owned(),
    }
}

fn pairs(fields: &Map<String, Value>) -> String {
    let pair = |(key, value): (&String, &Value)| {
        let text = plain(value);
        let needs_quotes = text.is_empty() || text.contains(char::is_whitespace);
        if value.is_string() && needs_quotes { format!("{key}={value}") } else { format!("{key}={text}") }
    };
    fields.iter().map(pair).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::Arc;

    use pando_ipc::{Timestamp, Topic};
    use serde_json::json;

    use super::*;

    fn event(topic: &'static str, payload: Value) -> Envelope {
        let mut event = Envelope::new("inst-0a1b2c3d4e5f", Topic::known(topic), payload);
        event.timestamp = serde_json::from_str::<Timestamp>("\"2026-11-21T02:53:37.1205Z\"").unwrap();
        event
    }

    fn stream() -> Vec<Followed> {
        let mut made = event("session.update", json!({"id": "s1", "title": "A plan for the day"}));
        made.seq = Some(42);
        let mut token = event("llm.token", json!("\u{1b}[2J"));
        (token.n, token.session_id) = (Some(7), "s1".into());
        let inner = json!({"method": "CreateMessage", "table": "messages", "key": "m-1"});
        let mut row = event("db.message.created", json!({"instance_id": "i", "path": "/w", "payload": inner}));
        (row.seq, row.session_id) = (Some(123_456), "a-session-with-a-long-id".into());
        let mut long = event("tool.start", json!({"command": "x".repeat(200)}));
        long.seq = Some(123_457);
        let gap = Resync { from: 5, to: 9, reason: "pruned".into() };
        let mut stream: Vec<_> = [made, token, row, long].map(|it| Followed::Event(Arc::new(it))).into();
        stream.extend([Followed::Lagged(3), Followed::Resync(gap)]);
        stream
    }

    pub(crate) fn look(palette: Palette, width: Option<usize>) -> String {
        let lines = Lines::new(palette, width);
        stream().iter().map(|item| lines.render(item)).collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn a_line_is_never_wider_than_the_terminal() {
        for width in [60, 80, 100, 140] {
            let text = look(Palette::plain(), Some(width));
            let widest = text.lines().take(4).map(|line| line.chars().count()).max();
            assert!(widest <= Some(width), "{width}: {text}");
        }
    }
}
