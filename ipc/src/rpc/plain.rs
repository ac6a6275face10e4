//! JSON as most of it is written: read straight from its bytes, without what few write.

use super::json::{Json, has_control};

/// Nesting beyond this is left to the general reader.
const MAX_PLAIN_DEPTH: u32 = 32;

/// JSON on one line, and how far it is read.
///
/// Each step takes what it is named for. `None` is no error: there stands something else, or JSON as few write it, and the general reader is to
/// be asked about the whole.
#[derive(Debug)]
pub(crate) struct Plain<'a> {
    json: &'a str,
    at: usize,
}

impl<'a> Plain<'a> {
    /// Begins to read.
    pub(crate) fn new(json: &'a str) -> Option<Self> {
        (!has_control(json)).then_some(Self { json, at: 0 })
    }

    /// Passes over exactly this.
    #[inline]
    pub(crate) fn exactly(&mut self, text: &str) -> Option<()> {
        let is_there = self.rest()?.starts_with(text.as_bytes());
        is_there.then(|| self.at += text.len())
    }

    /// Reads a string without escapes.
    pub(crate) fn text(&mut self) -> Option<&'a str> {
        self.byte(b'"')?;
        let from = self.at;
        self.at += until_quote_or_escape(self.rest()?);
        let text = self.json.get(from..self.at)?;
        self.byte(b'"').map(|()| text)
    }

    /// Reads a number of digits alone.
    pub(crate) fn number(&mut self) -> Option<u64> {
        let from = self.at;
        self.skip_whole()?;
        let digits = self.json.as_bytes().get(from..self.at)?;
        let add = |number: u64, digit: &u8| number.checked_mul(10)?.checked_add(u64::from(digit - b'0'));
        digits.iter().try_fold(0, add)
    }

    /// Reads a value of any kind, which stays text.
    pub(crate) fn json(&mut self) -> Option<Json> {
        let from = self.at;
        self.skip(MAX_PLAIN_DEPTH)?;
        Some(Json(self.json.get(from..self.at)?.to_owned()))
    }

    /// Ends the reading where nothing is left.
    pub(crate) fn end(self) -> Option<()> {
        (self.at == self.json.len()).then_some(())
    }

    fn rest(&self) -> Option<&'a [u8]> {
        self.json.as_bytes().get(self.at..)
    }

    fn next(&self) -> Option<u8> {
        self.json.as_bytes().get(self.at).copied()
    }

    fn byte(&mut self, byte: u8) -> Option<()> {
        (self.next() == Some(byte)).then(|| self.at += 1)
    }

    /// Passes over a value.
    fn skip(&mut self, depth: u32) -> Option<()> {
        let deeper = depth.checked_sub(1)?;
        match self.next()? {
            b'"' => self.skip_string(),
            b'{' => self.skip_list(b'}', |it| {
                it.skip_string()?;
                it.skip_spaces();
                it.byte(b':')?;
                it.skip_spaces();
                it.skip(deeper)
            }),
            b'[' => self.skip_list(b']', |it| it.skip(deeper)),
            b'n' => self.exactly("null"),
            b't' => self.exactly("true"),
            b'f' => self.exactly("false"),
            _ => self.skip_number(),
        }
    }

    fn skip_list(&mut self, close: u8, element: impl Fn(&mut Self) -> Option<()>) -> Option<()> {
        self.at += 1;
        self.skip_spaces();
        if self.byte(close).is_some() {
            return Some(());
        }
        loop {
            element(self)?;
            self.skip_spaces();
            if self.byte(close).is_some() {
                return Some(());
            }
            self.byte(b',')?;
            self.skip_spaces();
        }
    }

    fn skip_string(&mut self) -> Option<()> {
        self.byte(b'"')?;
        loop {
            self.at += until_quote_or_escape(self.rest()?);
            if self.byte(b'"').is_some() {
                return Some(());
            }
            self.at += match self.rest()? {
                [b'\\', b'u', digits @ ..] if digits.first_chunk::<4>()?.iter().all(u8::is_ascii_hexdigit) => 6,
                [b'\\', b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't', ..] => 2,
                _ => return None,
            };
        }
    }

    fn skip_number(&mut self) -> Option<()> {
        let _sign = self.byte(b'-');
        self.skip_whole()?;
        if self.byte(b'.').is_some() {
            self.skip_digits()?;
        }
        if self.byte(b'e').or_else(|| self.byte(b'E')).is_some() {
            let _sign = self.byte(b'+').or_else(|| self.byte(b'-'));
            self.skip_digits()?;
        }
        Some(())
    }

    /// Passes over digits that do not begin with a zero, or one zero.
    fn skip_whole(&mut self) -> Option<()> {
        self.byte(b'0').or_else(|| self.skip_digits())
    }

    /// Passes over one digit or more.
    fn skip_digits(&mut self) -> Option<()> {
        let digits = self.rest()?.iter().take_while(|byte| byte.is_ascii_digit()).count();
        self.at += digits;
        (digits > 0).then_some(())
    }

    fn skip_spaces(&mut self) {
        while self.byte(b' ').is_some() {}
    }
}

/// Returns how many bytes stand before the next quote or backslash; eight are looked at together.
fn until_quote_or_escape(text: &[u8]) -> usize {
    let (words, rest) = text.as_chunks::<8>();
    for (at, word) in words.iter().enumerate() {
        let word = u64::from_le_bytes(*word);
        let found = zeros(word ^ (EACH * u64::from(b'"'))) | zeros(word ^ (EACH * u64::from(b'\\')));
        if found != 0 {
            return at * 8 + found.trailing_zeros() as usize / 8;
        }
    }
    words.len() * 8 + rest.iter().take_while(|byte| !matches!(byte, b'"' | b'\\')).count()
}

/// One in each of eight bytes.
const EACH: u64 = u64::from_ne_bytes([1; 8]);

/// Marks bytes that are zero with their highest bit: the lowest of them, none below it, and some above.
fn zeros(word: u64) -> u64 {
    word.wrapping_sub(EACH) & !word & (EACH << 7)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::value::RawValue;

    fn read(text: &str) -> Option<Json> {
        let mut plain = Plain::new(text)?;
        let json = plain.json()?;
        plain.end().map(|()| json)
    }

    #[test]
    fn what_most_write_is_read() {
        for text in [
            "null",
            "true",
            "false",
            "0",
            "-0",
            "12",
            "-1.50",
            "1e9",
            "2.5E-3",
            "0e+1",
            r#""""#,
            r#""é\n\u00e9\"\/""#,
            "[]",
            "{}",
            "[ ]",
            r#"[1,{"a":[],"b":{}},"c"]"#,
            r#"{"a": 1, "b" : [2, 3] }"#,
        ] {
            assert_eq!(read(text).as_ref().map(Json::as_str), Some(text));
        }
        for other in [
            "",
            "nul",
            "00",
            "-",
            "1.",
            "1e",
            ".5",
            r#"""#,
            r#""\x""#,
            r#""\u00g0""#,
            "[1,]",
            "{1:2}",
            "[1}",
            "\"\n\"",
            " 1",
        ] {
            assert_eq!(read(other), None, "{other}");
        }
        let nested = |depth: usize| "[".repeat(depth) + &"]".repeat(depth);
        assert!(read(&nested(32)).is_some() && read(&nested(33)).is_none());
    }

    #[test]
    fn a_number_has_digits_alone() {
        let number = |text| Plain::new(text).and_then(|mut plain| plain.number());
        assert_eq!([number("0"), number("7,"), number("18446744073709551615")], [Some(0), Some(7), Some(u64::MAX)]);
        assert_eq!([number("-1"), number(""), number("18446744073709551616")], [None; 3]);
    }

    /// Short text of what JSON is made of, which is JSON often enough.
    fn tokens() -> impl Strategy<Value = String> {
        const TOKENS: [&str; 20] = [
            "{", "}", "[", "]", ",", ":", "\"a\"", "\"a\":", "\"", "\\n", "\\u00e9", "0", "12", "-", "+", ".", "e",
            "null", "true", " ",
        ];
        prop::collection::vec(prop::sample::select(&TOKENS[..]), 0..8).prop_map(|tokens| tokens.concat())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(20_000))]

        #[test]
        fn a_value_is_read_exactly_where_the_general_reader_reads_one(text in tokens()) {
            let raw = serde_json::from_str::<&RawValue>(&text).ok().map(RawValue::get).filter(|raw| *raw == text);
            let json = read(&text);
            prop_assert_eq!(json.as_ref().map(Json::as_str), raw);
        }
    }
}
