//! Functions of SQLite whose time grows with the product of their arguments, made anew so that it grows with the sum.
//!
//! A time limit ends a statement between two instructions, never inside a function. `instr(zeroblob(6e7), zeroblob(3e7) || x'01')` would run for
//! hours, in the writer or in a reader, and nobody could stop it.

use std::borrow::Cow;
use std::cell::RefCell;

use fnv::FnvHashSet;
use rusqlite::functions::{Context, FunctionFlags};
use rusqlite::types::{ToSqlOutput, ValueRef};
use rusqlite::{Connection, Error, ToSql, ffi};

use super::MAX_VALUE_BYTES;

/// Replaces the functions on a connection.
pub(super) fn install(connection: &Connection) -> rusqlite::Result<()> {
    let flags = FunctionFlags::SQLITE_UTF8 | FunctionFlags::SQLITE_DETERMINISTIC | FunctionFlags::SQLITE_INNOCUOUS;
    let reals = Reals::default();
    connection.create_scalar_function("instr", 2, flags, move |context| instr(context, &reals))?;
    let reals = Reals::default();
    connection.create_scalar_function("replace", 3, flags, move |context| replace(context, &reals))?;
    for (name, start, end) in [("trim", true, true), ("ltrim", true, false), ("rtrim", false, true)] {
        for arguments in [1, 2] {
            let reals = Reals::default();
            let work = move |context: &Context<'_>| trim(context, &reals, start, end);
            connection.create_scalar_function(name, arguments, flags, work)?;
        }
    }
    Ok(())
}

/// Writes real numbers as SQLite does: it alone knows how.
#[derive(Debug, Default)]
struct Reals(RefCell<Option<Connection>>);

impl Reals {
    fn text(&self, real: f64) -> rusqlite::Result<String> {
        let connection = match self.0.take() {
            Some(connection) => connection,
            None => Connection::open_in_memory()?,
        };
        let text = connection.prepare_cached("SELECT CAST(?1 AS TEXT)")?.query_row([real], |row| row.get(0));
        self.0.replace(Some(connection));
        text
    }
}

/// Returns an argument as SQLite reads it as text; `None` for NULL.
fn bytes<'a>(context: &'a Context<'_>, at: usize, reals: &Reals) -> rusqlite::Result<Option<Cow<'a, [u8]>>> {
    Ok(match context.get_raw(at) {
        ValueRef::Null => None,
        ValueRef::Integer(integer) => Some(integer.to_string().into_bytes().into()),
        ValueRef::Real(real) => Some(reals.text(real)?.into_bytes().into()),
        ValueRef::Text(bytes) | ValueRef::Blob(bytes) => Some(bytes.into()),
    })
}

/// Text as SQLite has it: any bytes.
struct Text(Vec<u8>);

impl ToSql for Text {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::Borrowed(ValueRef::Text(&self.0)))
    }
}

fn instr(context: &Context<'_>, reals: &Reals) -> rusqlite::Result<Option<i64>> {
    let are_blobs = [0, 1].iter().all(|at| matches!(context.get_raw(*at), ValueRef::Blob(_)));
    let (Some(haystack), Some(needle)) = (bytes(context, 0, reals)?, bytes(context, 1, reals)?) else {
        return Ok(None);
    };
    let goes_on = |byte: &u8| *byte & 0xC0 == 0x80;
    let at = match needle.first() {
        // What begins within a character can only stand where the text does, too.
        Some(first) if !are_blobs && goes_on(first) => haystack.starts_with(&needle).then_some(0),
        _ => memchr::memmem::find(&haystack, &needle),
    };
    let Some(at) = at else { return Ok(Some(0)) };
    let steps = if are_blobs { at } else { haystack.iter().skip(1).take(at).filter(|byte| !goes_on(byte)).count() };
    Ok(Some(i64::try_from(steps + 1).unwrap_or(i64::MAX)))
}

fn replace(context: &Context<'_>, reals: &Reals) -> rusqlite::Result<Option<Text>> {
    let (text, pattern) = (bytes(context, 0, reals)?, bytes(context, 1, reals)?);
    let (Some(text), Some(pattern)) = (text, pattern) else { return Ok(None) };
    if pattern.first().is_none_or(|first| *first == 0) {
        return Ok(Some(Text(text.into_owned())));
    }
    let Some(with) = bytes(context, 2, reals)? else { return Ok(None) };
    let (mut made, mut behind) = (Vec::with_capacity(text.len()), 0);
    for at in memchr::memmem::find_iter(&text, &*pattern) {
        made.extend_from_slice(&text[behind..at]);
        made.extend_from_slice(&with);
        behind = at + pattern.len();
        if i32::try_from(made.len()).map_or(true, |length| length > MAX_VALUE_BYTES) {
            return Err(Error::SqliteFailure(
                ffi::Error::new(ffi::SQLITE_TOOBIG),
                Some("string or blob too big".into()),
            ));
        }
    }
    made.extend_from_slice(&text[behind..]);
    Ok(Some(Text(made)))
}

fn trim(context: &Context<'_>, reals: &Reals, start: bool, end: bool) -> rusqlite::Result<Option<Text>> {
    let Some(text) = bytes(context, 0, reals)? else { return Ok(None) };
    let set = if context.len() > 1 { bytes(context, 1, reals)? } else { Some(Cow::Borrowed(&b" "[..])) };
    let Some(set) = set else { return Ok(None) };
    let (set, mut rest) = (Set::of(&set), &*text);
    while start && let Some(length) = set.find(|length| rest.get(..length)) {
        rest = &rest[length..];
    }
    while end && let Some(length) = set.find(|length| rest.get(rest.len().checked_sub(length)?..)) {
        rest = &rest[..rest.len() - length];
    }
    Ok(Some(Text(rest.to_vec())))
}

/// The characters that are to be trimmed, as SQLite takes text apart: it ends before a NUL, and after a byte from 0xC0 on all that go on belong to
/// it. None has more than four bytes in any text that means something, and so none here.
struct Set {
    bytes: [bool; 256],
    /// Those of several bytes, as numbers.
    longer: FnvHashSet<u32>,
}

impl Set {
    fn of(mut text: &[u8]) -> Self {
        let mut set = Self { bytes: [false; 256], longer: FnvHashSet::default() };
        while let Some((first @ 1.., rest)) = text.split_first() {
            let goes_on = |byte: &&u8| *first >= 0xC0 && **byte & 0xC0 == 0x80;
            let (character, behind) = text.split_at(1 + rest.iter().take_while(goes_on).count());
            match character {
                [byte] => set.bytes[usize::from(*byte)] = true,
                [_, _] | [_, _, _] | [_, _, _, _] => _ = set.longer.insert(number(character)),
                _ => {}
            }
            text = behind;
        }
        set
    }

    /// Returns the length of the character that is at one end of a text, of which `at` gives so many bytes.
    fn find<'t>(&self, at: impl Fn(usize) -> Option<&'t [u8]>) -> Option<usize> {
        let byte = at(1)?.first()?;
        if self.bytes[usize::from(*byte)] {
            return Some(1);
        }
        let is_one = |length: &usize| at(*length).is_some_and(|bytes| self.longer.contains(&number(bytes)));
        (2..=4).find(is_one)
    }
}

fn number(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0, |number, byte| number << 8 | u32::from(*byte))
}

#[cfg(test)]
mod tests {
    use rusqlite::types::Value;

    use super::*;

    #[test]
    fn they_say_what_sqlites_own_say() {
        let ours = Connection::open_in_memory().unwrap();
        install(&ours).unwrap();
        let own = Connection::open_in_memory().unwrap();
        let values = [
            "NULL",
            "''",
            "' '",
            "'a'",
            "'ab'",
            "'abcabc'",
            "'ça va'",
            "'ç'",
            "'va'",
            "'  x  '",
            "12345",
            "34",
            "1.5",
            "1e100",
            "0.1",
            "-7",
            "x''",
            "x'00ff'",
            "x'ff'",
            "x'61'",
            "x'c3'",
            "x'a7'",
            "x'ff61ff'",
            "x'f09f9880'",
        ];
        let mut calls = Vec::new();
        for a in values {
            for name in ["trim", "ltrim", "rtrim"] {
                calls.push(format!("{name}({a})"));
            }
            for b in values {
                for name in ["instr", "trim", "ltrim", "rtrim"] {
                    calls.push(format!("{name}({a}, {b})"));
                }
                calls.push(format!("replace({a}, {b}, 'çz')"));
                calls.push(format!("replace('abcab', {a}, {b})"));
            }
        }
        for call in calls {
            let run = |connection: &Connection| {
                let sql = format!("SELECT typeof({call}), hex({call})");
                connection.query_row(&sql, [], |row| Ok((row.get::<_, Value>(0)?, row.get::<_, Value>(1)?)))
            };
            assert_eq!(run(&ours).unwrap(), run(&own).unwrap(), "{call}");
        }
    }
}
