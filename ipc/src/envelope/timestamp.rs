//! When an event was published.

use std::fmt;

use chrono::{DateTime, Datelike, NaiveDate, SecondsFormat, Timelike, Utc};
use serde::de::Visitor;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

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
    fn write<'t>(&self, text: &'t mut [u8; 30]) -> Option<&'t [u8]> {
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
        Some(&text[..=end])
    }

    /// Appends the time.
    pub(super) fn append_to(&self, out: &mut Vec<u8>) {
        match self.write(&mut [0; 30]) {
            Some(text) => out.extend_from_slice(text),
            None => out.extend_from_slice(self.to_string().as_bytes()),
        }
    }

    /// Reads the form that it is written in; `None`: it is another one, or no time.
    pub(super) fn canonical(text: &str) -> Option<Self> {
        let (whole, fraction) = text.as_bytes().strip_suffix(b"Z")?.split_first_chunk::<19>()?;
        if [whole[4], whole[7], whole[10], whole[13], whole[16]] != *b"--T::" {
            return None;
        }
        let nanos = match fraction {
            [] => 0,
            [b'.', digits @ ..] if (1..=9).contains(&digits.len()) => {
                (digits.len()..9).fold(number(digits)?, |nanos, _| nanos * 10)
            }
            _ => return None,
        };
        let field = |from: usize, to: usize| number(&whole[from..to]);
        let date = NaiveDate::from_ymd_opt(i32::try_from(field(0, 4)?).ok()?, field(5, 7)?, field(8, 10)?)?;
        let time = date.and_hms_nano_opt(field(11, 13)?, field(14, 16)?, field(17, 19)?, nanos)?;
        Some(Self(time.and_utc()))
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(text) = self.write(&mut [0; 30]).and_then(|text| str::from_utf8(text).ok()) {
            return f.write_str(text);
        }
        let full = self.0.to_rfc3339_opts(SecondsFormat::Nanos, true);
        let digits = full.trim_end_matches('Z').trim_end_matches('0').trim_end_matches('.');
        write!(f, "{digits}Z")
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Reads so many digits.
fn number(digits: &[u8]) -> Option<u32> {
    let mut number = 0;
    for digit in digits {
        number = number * 10 + char::from(*digit).to_digit(10)?;
    }
    Some(number)
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
                if let Some(time) = Timestamp::canonical(text) {
                    return Ok(time);
                }
                DateTime::parse_from_rfc3339(text).map(|time| Timestamp(time.with_timezone(&Utc))).map_err(E::custom)
            }
        }
        deserializer.deserialize_str(Text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

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
}
