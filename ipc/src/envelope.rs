//! One event as it travels: the envelope and its PUB frame.

mod timestamp;

use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::rpc::{Json, Plain, needs_no_escape};
use crate::topic::Topic;

pub use timestamp::Timestamp;

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
    /// Appends the one PUB frame: topic, NUL, envelope as JSON.
    ///
    /// Key by key, as the derived [`Serialize`] writes it, in a fraction of the time.
    fn write_frame(&self, frame: &mut Vec<u8>) -> serde_json::Result<()> {
        frame.extend_from_slice(self.topic.as_str().as_bytes());
        frame.push(0);
        write_text(frame, "{\"instanceId\":\"", &self.instance_id)?;
        write_text(frame, ",\"projectId\":\"", &self.project_id)?;
        if !self.session_id.is_empty() {
            write_text(frame, ",\"sessionId\":\"", &self.session_id)?;
        }
        write_text(frame, ",\"topic\":\"", self.topic.as_str())?;
        frame.extend_from_slice(b",\"timestamp\":\"");
        self.timestamp.append_to(frame);
        frame.extend_from_slice(b"\",\"payload\":");
        serde_json::to_writer(&mut *frame, &self.payload)?;
        for (key, number) in NUMBERS.into_iter().zip([self.epoch, self.seq, self.prev, self.n]) {
            if let Some(number) = number {
                frame.extend_from_slice(key.as_bytes());
                serde_json::to_writer(&mut *frame, &number)?;
            }
        }
        frame.push(b'}');
        Ok(())
    }

    fn encode(&self) -> serde_json::Result<Vec<u8>> {
        let mut frame = Vec::with_capacity(USUAL_BYTES);
        self.write_frame(&mut frame)?;
        Ok(frame)
    }
}

/// Most events fit into so many bytes without a second allocation.
const USUAL_BYTES: usize = 512;

/// What stands before the numbers of an event, in their order.
const NUMBERS: [&str; 4] = [",\"epoch\":", ",\"seq\":", ",\"prev\":", ",\"n\":"];

/// Appends a key with what stands before it and the quote behind it, and its text.
fn write_text(out: &mut Vec<u8>, key: &str, text: &str) -> serde_json::Result<()> {
    out.extend_from_slice(key.as_bytes());
    if !needs_no_escape(text) {
        out.pop();
        return serde_json::to_writer(out, text);
    }
    out.extend_from_slice(text.as_bytes());
    out.push(b'"');
    Ok(())
}

impl Envelope {
    /// Returns an unnumbered event of now.
    pub fn new(instance_id: impl Into<String>, topic: Topic, payload: impl Into<Json>) -> Self {
        Self::carrying(instance_id, topic, payload.into())
    }

    /// Returns the one PUB frame: topic, NUL, envelope as JSON.
    pub fn to_frame(&self) -> Bytes {
        let mut frame = Vec::with_capacity(self.expected_bytes());
        self.append_to(&mut frame);
        Bytes::from(frame)
    }

    /// Appends the PUB frame.
    pub(crate) fn append_to(&self, out: &mut Vec<u8>) {
        #[expect(clippy::expect_used, reason = "strings, numbers and JSON always serialise into memory")]
        self.write_frame(out).expect("an envelope serialises");
    }

    /// Returns how many bytes the PUB frame has, or some more; fewer only where texts need escapes, or numbers are huge.
    pub(crate) fn expected_bytes(&self) -> usize {
        /// Keys, time, and numbers of a usual size.
        const AROUND: usize = 192;
        let texts = self.instance_id.len() + self.project_id.len() + self.session_id.len();
        2 * self.topic.as_str().len() + texts + self.payload.as_str().len() + AROUND
    }

    /// Reads an envelope.
    pub fn from_json(json: &str) -> serde_json::Result<Self> {
        Self::from_plain(json).map_or_else(|| serde_json::from_str(json), Ok)
    }

    /// Reads an envelope as most are written: with these keys in this order, without space between them or escapes in what is read. `None`: the
    /// general reader knows whether it is one.
    fn from_plain(json: &str) -> Option<Self> {
        let mut rest = Plain::new(json)?;
        rest.exactly("{\"instanceId\":")?;
        let instance_id = rest.text()?.to_owned();
        rest.exactly(",\"projectId\":")?;
        let project_id = rest.text()?.to_owned();
        let session_id = match rest.exactly(",\"sessionId\":") {
            Some(()) => rest.text()?.to_owned(),
            None => String::new(),
        };
        rest.exactly(",\"topic\":")?;
        let topic = Topic::new(rest.text()?).ok()?;
        rest.exactly(",\"timestamp\":")?;
        let timestamp = Timestamp::canonical(rest.text()?)?;
        rest.exactly(",\"payload\":")?;
        let payload = rest.json()?;
        let mut numbers = [None; NUMBERS.len()];
        for (key, number) in NUMBERS.into_iter().zip(&mut numbers) {
            if rest.exactly(key).is_some() {
                *number = Some(rest.number()?);
            }
        }
        rest.exactly("}")?;
        rest.end()?;
        let [epoch, seq, prev, n] = numbers;
        Some(Self { instance_id, project_id, session_id, topic, timestamp, payload, epoch, seq, prev, n })
    }

    /// Reads a PUB frame.
    pub fn from_frame(frame: &[u8]) -> Result<Self, FrameError> {
        let text = str::from_utf8(frame)?;
        let end = text.bytes().position(|byte| byte == 0).ok_or(FrameError::NoTopic)?;
        let (topic, json) = (&text[..end], &text[end + 1..]);
        let envelope =
            Self::from_json(json).map_err(|source| FrameError::Envelope { topic: topic.to_owned(), source })?;
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
        let read = || Arc::new(Envelope::from_json(self.text()).expect("an event reads back"));
        Arc::clone(self.envelope.get_or_init(read))
    }
}

#[cfg(test)]
mod tests;
