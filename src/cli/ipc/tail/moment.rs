//! A place in the stream of events, as people write it.

use chrono::{DateTime, Utc};
use pando_ipc::Timestamp;
use pando_ipc::client::Since;

use crate::cli::duration;

/// A place in the stream of events.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Moment {
    /// Where the stream is now.
    Now,
    /// The oldest event that is kept.
    All,
    /// Behind the event of this number.
    Seq(u64),
    /// A time.
    Time(Timestamp),
}

impl Moment {
    /// Returns where a follower begins.
    pub(super) fn since(self) -> Since {
        match self {
            Self::Now => Since::Now,
            Self::All => Since::All,
            Self::Seq(seq) => Since::Seq(seq),
            Self::Time(time) => Since::Time(time),
        }
    }
}

/// Reads where to begin.
pub(super) fn parse_start(text: &str) -> Result<Moment, String> {
    match text {
        "now" => Ok(Moment::Now),
        "all" => Ok(Moment::All),
        place => parse(place).ok_or_else(|| {
            "write 'now', 'all', the number of an event, a time such as 2026-11-21T03:04:15Z, or how long ago, such as 5m"
                .to_owned()
        }),
    }
}

/// Reads where to end.
pub(super) fn parse_end(text: &str) -> Result<Moment, String> {
    match text {
        "now" => Ok(Moment::Now),
        place => parse(place).ok_or_else(|| {
            "write 'now', the number of an event, a time such as 2026-11-21T03:04:15Z, or how long ago, such as 5m"
                .to_owned()
        }),
    }
}

fn parse(text: &str) -> Option<Moment> {
    let number = || text.parse().ok().map(Moment::Seq);
    let time = || DateTime::parse_from_rfc3339(text).ok().map(|time| Moment::Time(time.with_timezone(&Utc).into()));
    let ago = || {
        let ago = chrono::TimeDelta::from_std(duration::parse(text).ok()?).ok()?;
        Some(Moment::Time(Utc::now().checked_sub_signed(ago)?.into()))
    };
    number().or_else(time).or_else(ago)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_a_word_a_number_a_time_or_how_long_ago() {
        assert_eq!(parse_start("now"), Ok(Moment::Now));
        assert_eq!(parse_start("all"), Ok(Moment::All));
        assert_eq!(parse_start("41"), Ok(Moment::Seq(41)));
        let time: Timestamp = serde_json::from_str("\"2026-11-21T03:04:15Z\"").unwrap();
        assert_eq!(parse_end("2026-11-21T04:04:15+01:00"), Ok(Moment::Time(time)));
        let Ok(Moment::Time(ago)) = parse_start("1m") else { panic!("a duration is a time") };
        let seconds = (Utc::now() - ago.as_datetime()).num_seconds();
        assert!((60..70).contains(&seconds), "{seconds}");
        assert!(parse_end("all").is_err() && parse_start("yesterday").is_err() && parse_start("-5").is_err());
    }
}
