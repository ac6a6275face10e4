//! Names of events, and the patterns that select them.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize, Serializer};

/// Longest topic, in bytes. A longer one is refused with [`TopicError::TooLong`].
pub const MAX_TOPIC_BYTES: usize = 255;

/// A session's list changed as a whole.
pub const SESSION_LIST: &str = "session.list";
/// A session's row changed.
pub const SESSION_UPDATE: &str = "session.update";
/// A session became the one in front of the user.
pub const SESSION_ACTIVATED: &str = "session.activated";
/// A session was deleted.
pub const SESSION_DELETED: &str = "session.deleted";
/// Someone asked the agent of a session to stop.
pub const SESSION_INTERRUPT: &str = "session.interrupt";
/// A message was appended to a session.
pub const MESSAGE_APPEND: &str = "message.append";
/// A model began to answer.
pub const LLM_START: &str = "llm.start";
/// One token of a model's answer; ephemeral.
pub const LLM_TOKEN: &str = "llm.token";
/// A model finished its answer.
pub const LLM_END: &str = "llm.end";
/// A tool began to run.
pub const TOOL_START: &str = "tool.start";
/// A tool finished.
pub const TOOL_END: &str = "tool.end";
/// The primary is alive; ephemeral, at least every 5 s.
pub const HEARTBEAT: &str = "instance.heartbeat";
/// The primary is about to leave in good order.
pub const SHUTDOWN: &str = "instance.shutdown";
/// An instance joined the workdir.
pub const JOINED: &str = "instance.joined";
/// An instance left the workdir.
pub const LEFT: &str = "instance.left";
/// An instance became the primary.
pub const PROMOTED: &str = "instance.promoted";
/// An application's schema changed.
pub const MIGRATED: &str = "db.migrated";
/// A reader keeps the database's write-ahead log from beginning anew, and it has become large.
pub const WAL_PINNED: &str = "db.wal.pinned";
/// That reader has gone.
pub const WAL_RELEASED: &str = "db.wal.released";
/// Peers were refused or cut off: one event per reason and look, whatever their number; ephemeral.
pub const DOOR_REFUSED: &str = "door.refused";
/// The database was replaced by a copy: what was known of its rows is out of date.
pub const RESTORED: &str = "db.restored";
/// The primary holds the lock but says nothing: each instance tells itself, nobody publishes it; ephemeral.
pub const UNRESPONSIVE: &str = "instance.unresponsive";
/// A primary that said nothing speaks again: each instance tells itself, nobody publishes it; ephemeral.
pub const RESPONSIVE: &str = "instance.responsive";
/// Headless instances named in the payload are asked to leave.
pub const STOP: &str = "instance.stop";
/// First part of the topics by which a subscriber proves that its subscription is live; ephemeral.
pub const PROBE_PREFIX: &str = "probe.";

/// Every topic that has a name of its own here; applications publish under any other.
pub const KNOWN: [&str; 24] = [
    SESSION_LIST,
    SESSION_UPDATE,
    SESSION_ACTIVATED,
    SESSION_DELETED,
    SESSION_INTERRUPT,
    MESSAGE_APPEND,
    LLM_START,
    LLM_TOKEN,
    LLM_END,
    TOOL_START,
    TOOL_END,
    HEARTBEAT,
    SHUTDOWN,
    JOINED,
    LEFT,
    PROMOTED,
    MIGRATED,
    WAL_PINNED,
    WAL_RELEASED,
    DOOR_REFUSED,
    RESTORED,
    UNRESPONSIVE,
    RESPONSIVE,
    STOP,
];

/// Why a text is not a topic or a pattern.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TopicError {
    /// The text is empty.
    #[error("topic is empty; write a name such as 'session.update'")]
    Empty,
    /// The text is longer than [`MAX_TOPIC_BYTES`].
    #[error("topic has {0} bytes; the limit is {MAX_TOPIC_BYTES}")]
    TooLong(usize),
    /// The text holds white space, a control character or a `*` where none may stand.
    #[error(
        "topic {topic:?} holds {bad:?}; a topic has no spaces and no control characters, and only a pattern has a '*' (for any text)"
    )]
    Forbidden {
        /// The text as given.
        topic: String,
        /// The first character that may not stand there.
        bad: char,
    },
}

fn check(text: &str, stars: bool) -> Result<(), TopicError> {
    if text.is_empty() {
        return Err(TopicError::Empty);
    }
    if text.len() > MAX_TOPIC_BYTES {
        return Err(TopicError::TooLong(text.len()));
    }
    if text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'*') {
        return Ok(());
    }
    match text.chars().find(|c| c.is_control() || c.is_whitespace() || *c == '*' && !stars) {
        Some(bad) => Err(TopicError::Forbidden { topic: text.to_owned(), bad }),
        None => Ok(()),
    }
}

/// The name of an event: dot-separated words such as `message.append`.
///
/// 1 to [`MAX_TOPIC_BYTES`] bytes of UTF-8 without white space, control characters (NUL ends it on the wire) or `*`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Deserialize)]
#[serde(try_from = "String")]
pub struct Topic(Box<str>);

impl Serialize for Topic {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl Topic {
    /// Returns the topic for `text`, or why it is none.
    pub fn new(text: impl Into<String>) -> Result<Self, TopicError> {
        let text = text.into();
        check(&text, false)?;
        Ok(Self(text.into_boxed_str()))
    }

    /// Returns one of the topics named in this module.
    ///
    /// # Panics
    /// When `name` is not a valid topic; it is meant for the constants of this module.
    pub fn known(name: &'static str) -> Self {
        debug_assert!(check(name, false).is_ok(), "not a topic: {name:?}");
        Self(name.into())
    }

    /// Returns the text of the topic.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Tells whether events of this topic skip the journal: they carry no `seq` and may be lost, with notice.
    pub fn is_ephemeral(&self) -> bool {
        matches!(self.as_str(), LLM_TOKEN | HEARTBEAT | UNRESPONSIVE | RESPONSIVE | DOOR_REFUSED)
            || self.as_str().starts_with(PROBE_PREFIX)
    }
}

impl fmt::Display for Topic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Topic {
    type Err = TopicError;
    fn from_str(text: &str) -> Result<Self, TopicError> {
        Self::new(text)
    }
}

impl TryFrom<String> for Topic {
    type Error = TopicError;
    fn try_from(text: String) -> Result<Self, TopicError> {
        Self::new(text)
    }
}

impl From<Topic> for String {
    fn from(topic: Topic) -> Self {
        topic.0.into()
    }
}

/// Selects topics: one exactly (`a.b`), all (`*`), or those that a glob describes, in which each `*` stands for any text,
/// dots included (`a.*`, `db.*.created`).
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Pattern {
    /// Every topic.
    All,
    /// Topics that this text describes; it holds a `*`.
    Glob(Box<str>),
    /// This topic alone.
    Exactly(Topic),
}

impl Pattern {
    /// Returns the pattern for `text`: `a.b`, `a.*`, `*.b` or `*`.
    pub fn new(text: &str) -> Result<Self, TopicError> {
        match text {
            "*" => Ok(Self::All),
            glob if glob.contains('*') => check(glob, true).map(|()| Self::Glob(glob.into())),
            topic => Topic::new(topic).map(Self::Exactly),
        }
    }

    /// Returns the pattern for one of the topics named in this module.
    pub fn known(topic: &'static str) -> Self {
        Self::Exactly(Topic::known(topic))
    }

    /// Tells whether an event of this topic is selected.
    pub fn matches(&self, topic: &str) -> bool {
        match self {
            Self::All => true,
            Self::Glob(glob) => fits(glob, topic),
            Self::Exactly(own) => own.as_str() == topic,
        }
    }

    /// Returns the narrowest ZeroMQ subscription that selects all these frames: a frame begins with its topic and a NUL.
    pub fn subscription(&self) -> String {
        match self {
            Self::All => String::new(),
            Self::Glob(glob) => glob.split('*').next().unwrap_or_default().to_owned(),
            Self::Exactly(topic) => format!("{topic}\0"),
        }
    }
}

/// Tells whether a topic is what a glob describes.
fn fits(glob: &str, topic: &str) -> bool {
    let mut parts = glob.split('*');
    let (first, last) = (parts.next().unwrap_or_default(), parts.next_back().unwrap_or_default());
    let Some(rest) = topic.strip_prefix(first).and_then(|rest| rest.strip_suffix(last)) else { return false };
    parts.try_fold(rest, |rest, part| rest.find(part).map(|at| &rest[at + part.len()..])).is_some()
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("*"),
            Self::Glob(glob) => f.write_str(glob),
            Self::Exactly(topic) => topic.fmt(f),
        }
    }
}

impl FromStr for Pattern {
    type Err = TopicError;
    fn from_str(text: &str) -> Result<Self, TopicError> {
        Self::new(text)
    }
}

impl TryFrom<String> for Pattern {
    type Error = TopicError;
    fn try_from(text: String) -> Result<Self, TopicError> {
        Self::new(&text)
    }
}

impl From<Pattern> for String {
    fn from(pattern: Pattern) -> Self {
        pattern.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check_matches(pattern: &str, topic: &str, expected: bool) {
        assert_eq!(Pattern::new(pattern).unwrap().matches(topic), expected, "{pattern} on {topic}");
    }

    #[test]
    fn a_pattern_selects_one_topic_a_family_or_all() {
        check_matches("*", "a.b", true);
        check_matches("a.b", "a.b", true);
        check_matches("a.b", "a.bc", false);
        check_matches("a.*", "a.b", true);
        check_matches("a.*", "a.b.c", true);
        check_matches("a.*", "ab.c", false);
        check_matches("a.*", "a", false);
        check_matches("db.*.created", "db.session.created", true);
        check_matches("db.*.created", "db.session.updated", false);
        check_matches("db.*.created", "db.created", false);
        check_matches("*.created", "db.session.created", true);
        check_matches("a*b*c", "a.b.b.c", true);
        check_matches("a*b*c", "a.c", false);
        check_matches("ab*ba", "aba", false);
    }

    #[test]
    fn a_subscription_selects_the_frames_of_its_pattern() {
        let subscription = |text: &str| Pattern::new(text).unwrap().subscription();
        assert_eq!(subscription("*"), "");
        assert_eq!(subscription("db.*"), "db.");
        assert_eq!(subscription("db.*.created"), "db.");
        assert_eq!(subscription("*.created"), "");
        assert_eq!(subscription("db.x"), "db.x\0");
    }

    #[test]
    fn a_bad_topic_is_named() {
        assert_eq!(Topic::new(""), Err(TopicError::Empty));
        assert_eq!(Topic::new("x".repeat(256)), Err(TopicError::TooLong(256)));
        for bad in ["a b", "a\0b", "a\nb", "a*", "*.a"] {
            assert!(matches!(Topic::new(bad), Err(TopicError::Forbidden { .. })), "{bad:?}");
        }
        assert!(Pattern::new("a *").is_err());
        assert!(Pattern::new("").is_err());
    }
}
