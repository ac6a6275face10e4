//! Durations as people write and read them.

use std::time::Duration;

/// Reads `500ms`, `5s`, `1.5s`, `1m` or `2h`; a bare number is refused, for its unit is a guess.
pub(crate) fn parse(text: &str) -> Result<Duration, String> {
    const UNITS: [(&str, f64); 4] = [("ms", 0.001), ("s", 1.0), ("m", 60.0), ("h", 3600.0)];
    let split = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let number: f64 = number.parse().map_err(|_| "write a number and a unit, such as 500ms, 5s or 1m".to_owned())?;
    if unit.is_empty() {
        return Err(format!("the unit is missing; write {number}s for seconds or {number}ms for milliseconds"));
    }
    let (_, seconds) = UNITS
        .iter()
        .find(|(name, _)| *name == unit)
        .ok_or_else(|| format!("{unit:?} is no unit of time; write 500ms, 5s, 1m or 1h"))?;
    match Duration::try_from_secs_f64(number * seconds) {
        Ok(duration) if !duration.is_zero() => Ok(duration),
        Ok(_) => Err("a duration of zero leaves no time for anything".to_owned()),
        Err(_) => Err("that is longer than a clock can count".to_owned()),
    }
}

/// Returns a duration in its two largest units, such as `2m 5s`.
pub(crate) fn human(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0 => format!("{} ms", duration.as_millis()),
        1..60 => format!("{seconds}s"),
        60..3600 => format!("{}m {}s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{}h {}m", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{}d {}h", seconds / 86_400, seconds % 86_400 / 3600),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_has_a_number_and_a_unit() {
        for (text, millis) in [("500ms", 500), ("5s", 5_000), ("1.5s", 1_500), ("1m", 60_000), ("2h", 7_200_000)] {
            assert_eq!(parse(text), Ok(Duration::from_millis(millis)), "{text}");
        }
    }

    #[test]
    fn what_is_no_duration_says_why() {
        let why: Vec<String> = ["5", "s", "", "5 s", "5x", "-1s", "0s", "1.2.3s", "1e9s"]
            .iter()
            .map(|text| parse(text).unwrap_err())
            .collect();
        insta::assert_snapshot!(why.join("\n"), @r#"
        the unit is missing; write 5s for seconds or 5ms for milliseconds
        write a number and a unit, such as 500ms, 5s or 1m
        write a number and a unit, such as 500ms, 5s or 1m
        " s" is no unit of time; write 500ms, 5s, 1m or 1h
        "x" is no unit of time; write 500ms, 5s, 1m or 1h
        write a number and a unit, such as 500ms, 5s or 1m
        a duration of zero leaves no time for anything
        write a number and a unit, such as 500ms, 5s or 1m
        "e9s" is no unit of time; write 500ms, 5s, 1m or 1h
        "#);
        assert!(parse(&format!("{}h", "9".repeat(40))).is_err());
    }

    #[test]
    fn people_read_the_two_largest_units() {
        let texts = [7, 59_999, 61_000, 3_700_000, 90_000_000].map(|ms| human(Duration::from_millis(ms)));
        assert_eq!(texts, ["7 ms", "59s", "1m 1s", "1h 1m", "1d 1h"]);
    }
}
