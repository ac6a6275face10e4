//! Functions of SQLite whose time grows with the product of their arguments, made anew so that it grows with the sum.
//!
//! A time limit ends a statement between two instructions, never inside a function. `instr(zeroblob(6e7), zeroblob(3e7) || x'01')` would run for
//! hours, in the writer or in a reader, and nobody could stop it.

use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::HashSet;

use rusqlite::functions::{Context, FunctionFlags};
use rusqlite::types::ValueRef;
use rusqlite::{Connection, Error, ffi};

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

fn instr(context: &Context<'_>, reals: &Reals) -> rusqlite::Result<Option<i64>> {
    let are_blobs = [0, 1].iter().all(|at| matches!(context.get_raw(*at), ValueRef::Blob(_)));
    let (Some(haystack), Some(needle)) = (bytes(context, 0, reals)?, bytes(context, 1, reals)?) else {
        return Ok(None);
    };
    let Some(at) = memchr::memmem::find(&haystack, &needle) else { return Ok(Some(0)) };
    let before = &haystack[..at];
    let is_start = |byte: &&u8| **byte & 0xC0 != 0x80;
    let count = if are_blobs { before.len() } else { before.iter().filter(is_start).count() };
    Ok(Some(i64::try_from(count + 1).unwrap_or(i64::MAX)))
}

fn replace(context: &Context<'_>, reals: &Reals) -> rusqlite::Result<Option<String>> {
    let (text, pattern) = (bytes(context, 0, reals)?, bytes(context, 1, reals)?);
    let (Some(text), Some(pattern)) = (text, pattern) else { return Ok(None) };
    if pattern.first().is_none_or(|first| *first == 0) {
        return string(text.into_owned()).map(Some);
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
    string(made).map(Some)
}

fn trim(context: &Context<'_>, reals: &Reals, start: bool, end: bool) -> rusqlite::Result<Option<String>> {
    let Some(text) = bytes(context, 0, reals)? else { return Ok(None) };
    let set = if context.len() > 1 { bytes(context, 1, reals)? } else { Some(Cow::Borrowed(&b" "[..])) };
    let Some(set) = set else { return Ok(None) };
    let (text, set) = (string(text.into_owned())?, string(set.into_owned())?);
    let set: HashSet<char> = set.chars().collect();
    let mut rest = text.as_str();
    if start {
        rest = rest.trim_start_matches(|c| set.contains(&c));
    }
    if end {
        rest = rest.trim_end_matches(|c| set.contains(&c));
    }
    Ok(Some(rest.to_owned()))
}

fn string(bytes: Vec<u8>) -> rusqlite::Result<String> {
    String::from_utf8(bytes).map_err(|why| Error::UserFunctionError(Box::new(why)))
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
            "NULL", "''", "' '", "'a'", "'ab'", "'abcabc'", "'ça va'", "'ç'", "'va'", "'  x  '", "12345", "34", "1.5",
            "1e100", "0.1", "-7", "x''", "x'00ff'", "x'ff'", "x'61'",
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
            match run(&ours) {
                Ok(answer) => assert_eq!(answer, run(&own).unwrap(), "{call}"),
                Err(_) => assert!(call.contains("ff'"), "{call}: only what is no UTF-8 is refused"),
            }
        }
    }
}
