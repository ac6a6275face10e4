//! Joins the tokens of answers to text that can be read while it comes.

use std::borrow::Cow;

use pando_ipc::client::Followed;
use pando_ipc::rpc::Raw;
use pando_ipc::{Envelope, topic};

use crate::cli::output::printable;

use super::line::Lines;

/// Where publishers put the text of a token when the payload is not the text itself.
const TEXT_KEYS: [&str; 4] = ["text", "token", "content", "delta"];

/// Joins tokens; all else stays a line per event.
#[derive(Debug)]
pub(super) struct Stitch {
    lines: Lines,
    /// Whose answer the last line is, while it is open: session and instance.
    open: Option<(String, String)>,
}

impl Stitch {
    pub(super) fn new(lines: Lines) -> Self {
        Self { lines, open: None }
    }

    /// Returns what is to be printed for an item, without a newline behind open text.
    pub(super) fn add(&mut self, item: &Followed) -> String {
        match item {
            Followed::Event(event) if event.topic.as_str() == topic::LLM_TOKEN => self.token(event),
            Followed::Lagged(lost) if self.open.is_some() => {
                self.lines.palette().error(&format!("[… {lost} tokens were lost …]"))
            }
            item => format!("{}{}\n", self.end(), self.lines.render(item)),
        }
    }

    /// Returns what closes open text.
    pub(super) fn end(&mut self) -> &'static str {
        if self.open.take().is_some() { "\n" } else { "" }
    }

    fn token(&mut self, event: &Envelope) -> String {
        let whose = (event.session_id.clone(), event.instance_id.clone());
        let mut shown = String::new();
        if self.open.as_ref() != Some(&whose) {
            let (session, instance) = (printable(&whose.0), printable(&whose.1));
            let heading = if session.is_empty() { instance } else { format!("{session} ({instance})") };
            shown = format!("{}{}\n", self.end(), self.lines.palette().heading(&format!("── {heading}")));
            self.open = Some(whose);
        }
        let text = text_of(event.payload.raw()).unwrap_or_default();
        // A line break is part of the text; other control characters could move the cursor.
        shown.push_str(&text.split('\n').map(printable).collect::<Vec<_>>().join("\n"));
        shown
    }
}

fn text_of(payload: Raw<'_>) -> Option<Cow<'_, str>> {
    payload.text().or_else(|| TEXT_KEYS.iter().find_map(|key| payload.member(key)?.text()))
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::Arc;

    use pando_ipc::Topic;
    use serde_json::{Value, json};

    use super::*;
    use crate::cli::output::Palette;

    fn event(topic: &'static str, session: &str, payload: Value) -> Followed {
        let mut event = Envelope::new("inst-A", Topic::known(topic), payload);
        event.session_id = session.into();
        event.timestamp = serde_json::from_str("\"2026-11-21T02:53:37Z\"").unwrap();
        Followed::Event(Arc::new(event))
    }

    pub(crate) fn look(palette: Palette, columns: Option<usize>) -> String {
        let mut stitch = Stitch::new(Lines::new(palette, columns));
        let token = |session, payload| event("llm.token", session, payload);
        let stream = [
            event("llm.start", "s1", json!({"model": "m"})),
            token("s1", json!({"text": "Two "})),
            token("s1", json!("words\nand\u{1b}[2J ")),
            Followed::Lagged(2),
            token("s2", json!({"delta": "Meanwhile"})),
            token("s1", json!({"content": "more."})),
            event("llm.end", "s1", Value::Null),
        ];
        let mut shown: String = stream.iter().map(|item| stitch.add(item)).collect();
        shown.push_str(stitch.end());
        shown.trim_end().to_owned()
    }
}
