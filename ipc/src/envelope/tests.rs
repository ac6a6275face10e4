//! Events as they are written and read.

use super::*;
use chrono::DateTime;
use proptest::prelude::*;
use serde_json::json;

#[test]
fn a_documented_frame_reads_and_writes_back_the_same() {
    let golden = include_bytes!("../../../tests/golden/heartbeat.frame");
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
fn a_bad_frame_is_an_error() {
    assert!(matches!(Envelope::from_frame(b"a\0\xff"), Err(FrameError::NoText(_))));
    assert!(matches!(Envelope::from_frame(b"no nul"), Err(FrameError::NoTopic)));
    assert!(matches!(Envelope::from_frame(b"a\0{"), Err(FrameError::Envelope { .. })));
    let other = Envelope::new("i", Topic::known("b"), Json::null()).to_frame();
    let stolen = [b"a", &other[1..]].concat();
    assert!(matches!(Envelope::from_frame(&stolen), Err(FrameError::TopicsDiffer { .. })));
}

/// Numbers, times and texts of every kind; some texts need escapes, and some are no topic.
fn any_event() -> impl Strategy<Value = Envelope> {
    let text = || prop_oneof![3 => "[a-z0-9.-]{0,20}", 1 => r#"[a"\\é\n \u{7f}/*]{0,4}"#];
    let topic = prop_oneof![3 => "[a-z]{1,9}(\\.[a-z]{1,9})?", 1 => "[a\"\\\\é]{1,3}"]
        .prop_map(|text| Topic::new(text).unwrap());
    let time = (
        prop_oneof![-62_167_219_200..253_402_300_799_i64, 1_700_000_000..1_800_000_000_i64],
        0..1_000_000_000_u32,
        0..10_u32,
    )
        .prop_map(|(seconds, nanos, digits)| (seconds, nanos / 10_u32.pow(digits.min(9)) * 10_u32.pow(digits.min(9))))
        .prop_map(|(seconds, nanos)| Timestamp::from(DateTime::from_timestamp(seconds, nanos).unwrap()));
    let payload = prop_oneof![
        Just(json!(null)),
        text().prop_map(|text| json!({"text": text, "n": [1, -2.5, 1e9, true]})),
        any::<u64>().prop_map(|n| json!({"a": {"b": [n, {}, []]}, "c": "é\n\u{1}"})),
    ];
    let number = || proptest::option::of(prop_oneof![0..12_u64, any::<u64>()]);
    let numbers = (number(), number(), number(), number());
    (text(), text(), text(), topic, time, payload, numbers).prop_map(
        |(instance_id, project_id, session_id, topic, timestamp, payload, (epoch, seq, prev, n))| {
            let payload = Json::of(&payload);
            Envelope { instance_id, project_id, session_id, topic, timestamp, payload, epoch, seq, prev, n }
        },
    )
}

/// Text like that of an event, but for what happens to it on the way.
fn any_text() -> impl Strategy<Value = String> {
    /// What is put in, or exchanged for another one.
    const PARTS: [&str; 26] = [
        "\"",
        "\\",
        "{",
        "}",
        "[",
        "]",
        ",",
        ":",
        " ",
        "\n",
        "\0",
        "0",
        "-",
        ".",
        "e",
        "é",
        "\"n\":",
        "\"seq\":7,",
        "null",
        "Z",
        "+01:00",
        "\"topic\":\"a\",",
        "\"payload\":1,",
        "\"more\":[],",
        "\\u0061",
        "instanceId",
    ];
    let part = || prop::sample::select(&PARTS[..]);
    let change = (any::<prop::sample::Index>(), 0..4_usize, part(), part());
    (any_event(), prop::collection::vec(change, 0..3), any::<bool>()).prop_map(|(event, changes, is_reordered)| {
        let mut text = serde_json::to_string(&event).unwrap();
        if is_reordered {
            text = serde_json::from_str::<std::collections::BTreeMap<String, serde_json::Value>>(&text)
                .map(|sorted| serde_json::to_string(&sorted).unwrap())
                .unwrap();
        }
        for (at, kind, part, other) in changes {
            let places: Vec<usize> = text.char_indices().map(|(at, _)| at).chain([text.len()]).collect();
            let at = places[at.index(places.len())];
            match kind {
                0 => text.insert_str(at, part),
                1 => text.truncate(at),
                2 if at < text.len() => drop(text.remove(at)),
                _ => text = text.replacen(part, other, 1),
            }
        }
        text
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn an_event_is_written_as_its_keys_say_and_most_are_read_straight(event in any_event()) {
        let frame = event.to_frame();
        let json = serde_json::to_string(&event).unwrap();
        prop_assert_eq!(str::from_utf8(&frame).unwrap(), format!("{}\0{json}", event.topic));
        let texts = [&event.instance_id, &event.project_id, &event.session_id];
        if texts.into_iter().all(|text| needs_no_escape(text)) && needs_no_escape(event.topic.as_str()) {
            prop_assert_eq!(Envelope::from_plain(&json), Some(event));
        }
    }

    #[test]
    fn what_is_read_straight_is_what_the_general_reader_reads(json in any_text()) {
        if let Some(event) = Envelope::from_plain(&json) {
            prop_assert_eq!(serde_json::from_str::<Envelope>(&json).map_err(|error| error.to_string()), Ok(event));
        }
    }
}
