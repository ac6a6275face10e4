//! Rows as a table for people, as CSV or as JSON.

use std::fmt::Write as _;

use pando_dbproxy::SqlValue;
use serde::Serialize;

use crate::cli::context::Context;
use crate::cli::failure::Failure;
use crate::cli::output::{self, Table};

/// How rows are printed.
#[derive(Debug, Clone, Copy, clap::Args)]
pub(super) struct Format {
    /// Print CSV (RFC 4180): NULL is empty, an empty text is "", a blob is x'..'
    #[arg(long, conflicts_with = "json")]
    csv: bool,
}

impl Format {
    /// Prints rows; `json` is what `--json` prints.
    pub(super) fn print(
        self,
        columns: &[String],
        rows: &[Vec<SqlValue>],
        json: &impl Serialize,
        context: &Context,
    ) -> Result<(), Failure> {
        if context.json() {
            output::json_for_reader(json)
        } else if self.csv {
            output::raw(csv(columns, rows).as_bytes())
        } else {
            output::line(&table(columns, rows).render_within(context.palette(), context.width()))
        }
    }

    /// Tells whether a program reads the output.
    pub(super) fn is_for_programs(self, context: &Context) -> bool {
        self.csv || context.json()
    }
}

/// Returns rows as a table for people.
pub(super) fn table(columns: &[String], rows: &[Vec<SqlValue>]) -> Table {
    let mut table = Table::new(columns);
    for row in rows {
        table.row(row.iter().map(cell));
    }
    table
}

/// Returns a value as it stands in a table: NULL and blobs as SQL writes them, and no text that reads like NULL.
fn cell(value: &SqlValue) -> String {
    match value {
        SqlValue::Blob(_) => format!("x'{value}'"),
        SqlValue::Text(text) if text == "NULL" => "'NULL'".to_owned(),
        value => value.to_string(),
    }
}

fn csv(columns: &[String], rows: &[Vec<SqlValue>]) -> String {
    let mut text = String::new();
    let header: Vec<String> = columns.iter().map(|name| quoted(name)).collect();
    end_record(&mut text, &header);
    for row in rows {
        let fields: Vec<String> = row.iter().map(field).collect();
        end_record(&mut text, &fields);
    }
    text
}

fn end_record(text: &mut String, fields: &[String]) {
    // Writing into a String cannot fail.
    let _written = write!(text, "{}\r\n", fields.join(","));
}

fn field(value: &SqlValue) -> String {
    match value {
        SqlValue::Null => String::new(),
        SqlValue::Text(text) if text.is_empty() => "\"\"".to_owned(),
        SqlValue::Text(text) => quoted(text),
        value => cell(value),
    }
}

fn quoted(text: &str) -> String {
    if text.contains(['"', ',', '\r', '\n']) { format!("\"{}\"", text.replace('"', "\"\"")) } else { text.to_owned() }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::cli::output::Palette;

    fn all_kinds() -> (Vec<String>, Vec<Vec<SqlValue>>) {
        let columns = ["n", "r", "t", "b", "z"].map(str::to_owned).to_vec();
        let first = vec![7.into(), 1.5.into(), "a, \"b\"\nc".into(), vec![0_u8, 255].into(), SqlValue::Null];
        let second = vec![(-12).into(), f64::INFINITY.into(), "".into(), Vec::<u8>::new().into(), "NULL".into()];
        (columns, vec![first, second])
    }

    pub(crate) fn look(palette: Palette, width: Option<usize>) -> String {
        let (columns, rows) = all_kinds();
        let wide = vec![
            1.into(),
            2.5.into(),
            "one word after the other ".repeat(5).into(),
            vec![171_u8; 40].into(),
            SqlValue::Null,
        ];
        table(&columns, &[rows, vec![wide]].concat()).render_within(palette, width)
    }

    #[test]
    fn csv_tells_null_from_empty_text() {
        let (columns, rows) = all_kinds();
        assert_eq!(
            csv(&columns, &rows),
            "n,r,t,b,z\r\n7,1.5,\"a, \"\"b\"\"\nc\",x'00ff',\r\n-12,inf,\"\",x'',NULL\r\n"
        );
    }
}
