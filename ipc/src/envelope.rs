//! One event as it travels: the envelope and its PUB frame.

use std::fmt;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use chrono::{DateTime, Datelike, NaiveDate, SecondsFormat, Timelike, Utc};
use serde::de::Visitor;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::rpc::Json;
use crate::topic::Topic;

/// Nanoseconds of a second.
const NANOS: u32 = 1_000_000_000;

/// A point in time in UTC, written as RFC 3339 with `T`, `Z` and nanoseconds whose trailing zeros are trimmed.
///
/// Peers of the documented format drop a space separator or a number silently, so there is one way to write it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(DateTime<Utc>);

impl Timestamp {
    /// Returns the wall clock's time.
    pub fn now() -> Self {
        Self(Utc::now())
    }

    /// Returns the time as seconds since the Unix epoch.
    pub fn unix_seconds(&self) -> i64 {
        self.0.timestamp()
    }

    /// Returns the time as chrono knows it.
    pub fn as_datetime(&self) -> DateTime<Utc> {
        self.0
    }
}

/// Writes a number in decimal, with zeros before it.
fn put(digits: &mut [u8], mut number: u32) {
    for digit in digits.iter_mut().rev() {
        *digit = b"0123456789"[(number % 10) as usize];
        number /= 10;
    }
}

impl From<DateTime<Utc>> for Timestamp {
    fn from(time: DateTime<Utc>) -> Self {
        Self(time)
    }
}

impl Timestamp {
    /// Writes the time into `text` and returns it; `None` where its year has no four digits.
    ///
    /// Digit by digit: it stands in every event, and the general way takes ten times as long.
    fn write<'t>(&self, text: &'t mut [u8; 30]) -> Option<&'t str> {
        let time = self.0.naive_utc();
        let year = u16::try_from(time.year()).ok().filter(|year| *year <= 9_999)?;
        *text = *b"0000-00-00T00:00:00.000000000Z";
        put(&mut text[..4], u32::from(year));
        put(&mut text[5..7], time.month());
        put(&mut text[8..10], time.day());
        put(&mut text[11..13], time.hour());
        put(&mut text[14..16], time.minute());
        // A leap second is the sixtieth.
        put(&mut text[17..19], time.second() + time.nanosecond() / NANOS);
        put(&mut text[20..29], time.nanosecond() % NANOS);
        let mut end = 29;
        while text[end - 1] == b'0' && end > 19 {
            end -= 1;
        }
        let end = if text[end - 1] == b'.' { end - 1 } else { end };
        text[end] = b'Z';
        str::from_utf8(&text[..=end]).ok()
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(text) = self.write(&mut [0; 30]) {
            return f.write_str(text);
        }
        let full = self.0.to_rfc3339_opts(SecondsFormat::Nanos, true);
        let digits = full.trim_end_matches('Z').trim_end_matches('0').trim_end_matches('.');
        write!(f, "{digits}Z")
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.write(&mut [0; 30]) {
            Some(text) => serializer.serialize_str(text),
            None => serializer.collect_str(self),
        }
    }
}

/// Reads so many digits.
fn number(digits: &[u8]) -> Option<u32> {
    digits.iter().try_fold(0, |number, digit| digit.is_ascii_digit().then(|| number * 10 + u32::from(digit - b'0')))
}

/// Reads the form that [`Timestamp`] is written in; `None`: it is another one, or no time.
fn canonical(text: &[u8]) -> Option<DateTime<Utc>> {
    let (whole, fraction) = text.strip_suffix(b"Z")?.split_at_checked(19)?;
    let [b'-', b'-', b'T', b':', b':'] = [4, 7, 10, 13, 16].map(|at| whole[at]) else { return None };
    let nanos = match fraction {
        [] => 0,
        [b'.', digits @ ..] if (1..=9).contains(&digits.len()) => {
            (digits.len()..9).try_fold(number(digits)?, |nanos, _| nanos.checked_mul(10))?
        }
        _ => return None,
    };
    let field = |from: usize, to: usize| number(&whole[from..to]);
    let date = NaiveDate::from_ymd_opt(i32::try_from(field(0, 4)?).ok()?, field(5, 7)?, field(8, 10)?)?;
    Some(date.and_hms_nano_opt(field(11, 13)?, field(14, 16)?, field(17, 19)?, nanos)?.and_utc())
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl Visitor<'_> for Text {
            type Value = Timestamp;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a time as RFC 3339 writes it")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Timestamp, E> {
                if let Some(time) = canonical(text.as_bytes()) {
                    return Ok(Timestamp(time));
                }
                DateTime::parse_from_rfc3339(text).map(|time| Timestamp(time.with_timezone(&Utc))).map_err(E::custom)
            }
        }
        deserializer.deserialize_str(Text)
    }
}

/// One event, with the keys and their order of the documented format (`docs/wire.md`).
///
/// Unknown keys are ignored when it is read. Durable events have `epoch`, `seq` and `prev`; ephemeral ones have `n`. Whoever only writes one
/// may do so with a payload of another type.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Envelope<P = Json> {
    /// The instance that the event comes from.
    pub instance_id: String,
    /// The project it belongs to; always present, may be empty.
    #[serde(default)]
    pub project_id: String,
    /// The session it belongs to; left out when empty.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub session_id: String,
    /// What kind of event it is.
    pub topic: Topic,
    /// When it was published.
    pub timestamp: Timestamp,
    /// What happened; its shape depends on the topic. It stays text until it is read, and has one line.
    #[serde(default)]
    pub payload: P,
    /// Term of the primary that numbered a durable event.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epoch: Option<u64>,
    /// Place of a durable event in the journal: dense, from 1, in commit order.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seq: Option<u64>,
    /// `seq` of the previous durable event on the same topic (0: there was none), so that a plain subscriber sees a gap.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prev: Option<u64>,
    /// Counter of an ephemeral event, per publisher and topic, from 1 in each term.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub n: Option<u64>,
}

/// Why bytes are not a PUB frame.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// It is no UTF-8.
    #[error("frame is no text: {0}")]
    NoText(#[from] std::str::Utf8Error),
    /// No NUL ends the topic.
    #[error("frame has no NUL after its topic")]
    NoTopic,
    /// What follows the NUL is not an envelope.
    #[error("frame of topic {topic:?} holds no envelope: {source}")]
    Envelope {
        /// The bytes before the NUL, as text.
        topic: String,
        /// What the JSON reader said.
        source: serde_json::Error,
    },
    /// The frame's topic and the envelope's differ.
    #[error("frame is addressed to topic {frame:?} but its envelope says {envelope:?}")]
    TopicsDiffer {
        /// The bytes before the NUL, as text.
        frame: String,
        /// The envelope's own topic.
        envelope: String,
    },
}

impl<P> Envelope<P> {
    /// Returns an unnumbered event of now, with a payload of any type.
    pub fn carrying(instance_id: impl Into<String>, topic: Topic, payload: P) -> Self {
        Self {
            instance_id: instance_id.into(),
            project_id: String::new(),
            session_id: String::new(),
            topic,
            timestamp: Timestamp::now(),
            payload,
            epoch: None,
            seq: None,
            prev: None,
            n: None,
        }
    }
}

impl<P: Serialize> Envelope<P> {
    /// Writes the one PUB frame: topic, NUL, envelope as JSON.
    fn encode(&self) -> serde_json::Result<Vec<u8>> {
        // A Vec, for serde_json writes a few bytes at a time: BytesMut checks each time whether it is shared.
        let mut frame = Vec::with_capacity(512);
        frame.extend_from_slice(self.topic.as_str().as_bytes());
        frame.push(0);
        serde_json::to_writer(&mut frame, self)?;
        Ok(frame)
    }
}

impl Envelope {
    /// Returns an unnumbered event of now.
    pub fn new(instance_id: impl Into<String>, topic: Topic, payload: impl Into<Json>) -> Self {
        Self::carrying(instance_id, topic, payload.into())
    }

    /// Returns the one PUB frame: topic, NUL, envelope as JSON.
    pub fn to_frame(&self) -> Bytes {
        #[expect(clippy::expect_used, reason = "strings, numbers and a Value always serialise into memory")]
        Bytes::from(self.encode().expect("an envelope serialises"))
    }

    /// Reads a PUB frame.
    pub fn from_frame(frame: &[u8]) -> Result<Self, FrameError> {
        let text = str::from_utf8(frame)?;
        let (topic, json) = text.split_once('\0').ok_or(FrameError::NoTopic)?;
        let envelope: Self =
            serde_json::from_str(json).map_err(|source| FrameError::Envelope { topic: topic.to_owned(), source })?;
        if envelope.topic.as_str() != topic {
            let envelope = envelope.topic.as_str().to_owned();
            return Err(FrameError::TopicsDiffer { frame: topic.to_owned(), envelope });
        }
        Ok(envelope)
    }
}

/// A durable event as the journal records it: encoded once for the file and the bus, and read again only where somebody takes it.
#[derive(Debug, Clone)]
pub struct Recorded {
    seq: u64,
    topic_bytes: usize,
    frame: String,
    envelope: OnceLock<Arc<Envelope>>,
}

impl Recorded {
    /// Encodes an event that has its number.
    pub fn new<P: Serialize>(event: &Envelope<P>) -> serde_json::Result<Self> {
        let frame = String::from_utf8(event.encode()?).map_err(serde::ser::Error::custom)?;
        let (seq, topic_bytes) = (event.seq.unwrap_or(0), event.topic.as_str().len());
        Ok(Self { seq, topic_bytes, frame, envelope: OnceLock::new() })
    }

    /// Returns the event's number.
    pub fn seq(&self) -> u64 {
        self.seq
    }

    /// Returns what kind of event it is.
    pub fn topic(&self) -> &str {
        &self.frame[..self.topic_bytes]
    }

    /// Returns the envelope as JSON.
    pub fn text(&self) -> &str {
        &self.frame[self.topic_bytes + 1..]
    }

    /// Returns the PUB frame.
    pub fn frame(&self) -> &[u8] {
        self.frame.as_bytes()
    }

    /// Returns the envelope; it is read once.
    pub fn envelope(&self) -> Arc<Envelope> {
        #[expect(clippy::expect_used, reason = "what an envelope encodes to, an envelope reads")]
        let read = || Arc::new(serde_json::from_str(self.text()).expect("an event reads back"));
        Arc::clone(self.envelope.get_or_init(read))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_documented_frame_reads_and_writes_back_the_same() {
        let golden = include_bytes!("../../tests/golden/heartbeat.frame");
        let golden = golden.strip_suffix(b"\n").unwrap_or(golden);
        let envelope = Envelope::from_frame(golden).unwrap();
        assert_eq!(envelope.instance_id, "inst-A");
        assert_eq!(envelope.to_frame(), golden);
    }

    #[test]
    fn keys_keep_their_order_and_empty_session_is_left_out() {
        let mut event = Envelope::new("i", Topic::known("a.b"), json!({"z": 1, "a": 2}));
        event.timestamp = serde_json::from_str("\"2026-11-21T02:53:37.120000000Z\"").unwrap();
        let plain = r#"a.b/{"instanceId":"i","projectId":"","topic":"a.b","timestamp":"2026-11-21T02:53:37.12Z","payload":{"z":1,"a":2}}"#;
        assert_eq!(event.to_frame(), plain.replacen('/', "\0", 1).as_bytes());
        event.session_id = "s".into();
        (event.epoch, event.seq, event.prev) = (Some(3), Some(9), Some(7));
        let numbered = r#"a.b/{"instanceId":"i","projectId":"","sessionId":"s","topic":"a.b","timestamp":"2026-11-21T02:53:37.12Z","payload":{"z":1,"a":2},"epoch":3,"seq":9,"prev":7}"#;
        assert_eq!(event.to_frame(), numbered.replacen('/', "\0", 1).as_bytes());
    }

    #[test]
    fn a_recorded_event_is_its_frame_and_reads_back() {
        let mut event = Envelope::new("i", Topic::known("a.b"), json!({"z": 1.5, "a": ["é\0"]}));
        (event.epoch, event.seq, event.prev) = (Some(3), Some(9), Some(7));
        let recorded = Recorded::new(&event).unwrap();
        assert_eq!((recorded.seq(), recorded.topic(), recorded.frame()), (9, "a.b", &*event.to_frame()));
        assert_eq!(recorded.text(), serde_json::to_string(&event).unwrap());
        assert_eq!(*recorded.envelope(), event);
    }

    #[test]
    fn a_whole_second_has_no_fraction() {
        let time: Timestamp = serde_json::from_str("\"2026-11-21T04:00:00.000000000+01:00\"").unwrap();
        assert_eq!(time.to_string(), "2026-11-21T03:00:00Z");
    }

    #[test]
    fn a_time_is_written_as_chrono_writes_it_but_for_zeros_at_the_end_and_reads_back() {
        let check = |time: DateTime<Utc>| {
            let full = time.to_rfc3339_opts(SecondsFormat::Nanos, true);
            let trimmed = full.trim_end_matches('Z').trim_end_matches('0').trim_end_matches('.');
            let written = Timestamp(time).to_string();
            assert_eq!(written, format!("{trimmed}Z"));
            if (0..=9_999).contains(&time.year()) {
                assert_eq!(serde_json::from_value::<Timestamp>(json!(written)).unwrap(), Timestamp(time), "{written}");
            }
        };
        for nanos in [0, 1, 10, 120_000_000, 999_999_999, 100, 500_000_000, 1_000_000_000, 1_999_999_999] {
            for seconds in [0, 59, 60, 86_399, 951_782_399, 1_795_229_617, 253_402_300_799, -1, -62_167_219_200] {
                check(DateTime::from_timestamp(seconds, nanos % 1_000_000_000).unwrap());
                if let Some(leap) = DateTime::from_timestamp(seconds, nanos) {
                    check(leap);
                }
            }
        }
        check(DateTime::<Utc>::MAX_UTC);
        check(DateTime::<Utc>::MIN_UTC);
    }

    #[test]
    fn a_bad_frame_is_an_error() {
        assert!(matches!(Envelope::from_frame(b"a\0\xff"), Err(FrameError::NoText(_))));
        assert!(matches!(Envelope::from_frame(b"no nul"), Err(FrameError::NoTopic)));
        assert!(matches!(Envelope::from_frame(b"a\0{"), Err(FrameError::Envelope { .. })));
        let other = Envelope::new("i", Topic::known("b"), Json::null()).to_frame();
        let stolen = [b"a", &other[1..]].concat();
        assert!(matches!(Envelope::from_frame(&stolen), Err(FrameError::TopicsDiffer { .. })));
    }
}
