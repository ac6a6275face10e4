//! What goes to stdout, and how it looks.

use std::io::{self, IsTerminal, Write};

use clap::builder::styling::{AnsiColor, Style};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde::Serialize;
use serde_json::Value;

use super::failure::{Failure, Kind};

/// When to colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Color {
    /// On a terminal, unless `NO_COLOR` is set.
    Auto,
    /// Also into pipes and files.
    Always,
    /// Not at all.
    Never,
}

/// The few colours we use, or none.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Palette {
    colored: bool,
}

impl Palette {
    /// Returns no colours.
    pub(crate) fn plain() -> Self {
        Self { colored: false }
    }

    /// Returns all colours.
    #[cfg(test)]
    pub(crate) fn colored() -> Self {
        Self { colored: true }
    }

    /// Returns the palette for a stream. `no_color` is whether the environment asks for none.
    pub(crate) fn for_stream(color: Color, is_terminal: bool, no_color: bool) -> Self {
        let colored = match color {
            Color::Always => true,
            Color::Never => false,
            Color::Auto => is_terminal && !no_color,
        };
        Self { colored }
    }

    fn paint(self, style: Style, text: &str) -> String {
        if self.colored { format!("{style}{text}{style:#}") } else { text.to_owned() }
    }

    /// Paints the word that opens an error.
    pub(crate) fn error(self, text: &str) -> String {
        self.paint(AnsiColor::Red.on_default().bold(), text)
    }

    /// Paints the word that opens a hint.
    pub(crate) fn hint(self, text: &str) -> String {
        self.paint(AnsiColor::Cyan.on_default().bold(), text)
    }

    /// Paints what is well.
    pub(crate) fn good(self, text: &str) -> String {
        self.paint(AnsiColor::Green.on_default().bold(), text)
    }

    /// Paints a heading.
    pub(crate) fn heading(self, text: &str) -> String {
        self.paint(Style::new().bold(), text)
    }

    /// Paints a text in the colour of the family that a topic belongs to: what stands before its first dot.
    pub(crate) fn family(self, topic: &str, text: &str) -> String {
        let color = match topic.split('.').next().unwrap_or_default() {
            "session" => AnsiColor::Cyan,
            "message" => AnsiColor::Green,
            "llm" => AnsiColor::Magenta,
            "tool" => AnsiColor::Yellow,
            "instance" => AnsiColor::Blue,
            "db" => AnsiColor::BrightBlack,
            _ => return self.heading(text),
        };
        self.paint(color.on_default(), text)
    }

    /// Paints what matters less.
    pub(crate) fn faint(self, text: &str) -> String {
        self.paint(Style::new().dimmed(), text)
    }
}

/// Tells whether a person reads our stdout.
pub(crate) fn is_terminal() -> bool {
    io::stdout().is_terminal()
}

/// Returns how many columns the terminal behind our stdout has; `None` when it is no terminal.
pub(crate) fn terminal_columns() -> Option<usize> {
    let size = rustix::termios::tcgetwinsize(io::stdout()).ok()?;
    (size.ws_col > 0).then(|| size.ws_col.into())
}

/// A terminal with fewer columns is narrow: what matters less is left out there. `--json` has all.
pub(crate) const WIDE: usize = 100;

/// Returns how many rows it has.
pub(crate) fn terminal_rows() -> Option<usize> {
    let size = rustix::termios::tcgetwinsize(io::stdout()).ok()?;
    (size.ws_row > 0).then(|| size.ws_row.into())
}

/// Returns a time of RFC 3339 with milliseconds at most: more are nothing for people.
pub(crate) fn brief_time(time: &str) -> String {
    match time.split_once('.') {
        Some((seconds, fraction)) => {
            let millis: String = fraction.chars().take_while(char::is_ascii_digit).take(3).collect();
            let zone = fraction.trim_start_matches(|c: char| c.is_ascii_digit());
            format!("{seconds}.{millis}{zone}")
        }
        None => time.to_owned(),
    }
}

/// Writes to stdout at once. A reader that has gone is [`Kind::ReaderGone`].
pub(crate) fn raw(bytes: &[u8]) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    out.write_all(bytes).and_then(|()| out.flush()).map_err(|error| match error.kind() {
        io::ErrorKind::BrokenPipe => reader_gone(),
        _ => Failure::io("write to stdout", &error),
    })
}

/// Returns what ends a command whose output nobody reads any more.
pub(crate) fn reader_gone() -> Failure {
    Failure::new(Kind::ReaderGone, "nobody reads our output any more")
}

/// Tells whether whoever read our stdout has gone, without writing to it.
pub(crate) fn is_unread() -> bool {
    let stdout = io::stdout();
    let mut watched = [PollFd::new(&stdout, PollFlags::empty())];
    // What nobody asks for is told nevertheless: that a pipe has no reader.
    let told = poll(&mut watched, Some(&Timespec::default())).unwrap_or_default();
    told > 0 && watched[0].revents().intersects(PollFlags::ERR | PollFlags::HUP)
}

/// Tells a person something beside the data: one line on stderr. Nobody is left to tell when that is closed.
pub(crate) fn note(text: &str) {
    drop(io::stderr().write_all(format!("{}\n", printable(text)).as_bytes()));
}

/// Writes one line.
pub(crate) fn line(text: &str) -> Result<(), Failure> {
    raw(format!("{text}\n").as_bytes())
}

/// Writes one line of JSON.
pub(crate) fn json(value: &impl Serialize) -> Result<(), Failure> {
    line(&encode(value)?)
}

/// Writes JSON: over several lines for a person, in one line for a program.
pub(crate) fn json_for_reader(value: &impl Serialize) -> Result<(), Failure> {
    if !is_terminal() {
        return json(value);
    }
    line(&serde_json::to_string_pretty(value).map_err(|error| unwritable(&error))?)
}

/// Returns a value as JSON in one line.
pub(crate) fn encode(value: &impl Serialize) -> Result<String, Failure> {
    serde_json::to_string(value).map_err(|error| unwritable(&error))
}

fn unwritable(error: &serde_json::Error) -> Failure {
    Failure::new(Kind::Failed, format!("cannot write JSON: {error}"))
}

/// Returns a value as it stands in a cell: text without quotes, NULL for nothing, JSON for the rest.
pub(crate) fn cell(value: &Value) -> String {
    match value {
        Value::Null => "NULL".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// Returns a number of bytes with its unit.
pub(crate) fn bytes(count: u64) -> String {
    const UNITS: [(u64, &str); 3] = [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    match UNITS.iter().find(|(size, _)| count >= *size) {
        // Tenths, rounded down.
        Some((size, unit)) => format!("{}.{} {unit}", count / size, count % size * 10 / size),
        None => format!("{count} bytes"),
    }
}

/// Returns text that cannot move a terminal's cursor: control characters become escapes.
pub(crate) fn printable(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() { safe.extend(c.escape_default()) } else { safe.push(c) }
    }
    safe
}

/// Rows under headings, columns aligned: numbers to the right, all else to the left.
#[derive(Debug)]
pub(crate) struct Table {
    headings: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// Returns a table without rows.
    pub(crate) fn new<S: AsRef<str>>(headings: impl IntoIterator<Item = S>) -> Self {
        Self { headings: headings.into_iter().map(|heading| printable(heading.as_ref())).collect(), rows: vec![] }
    }

    /// Tells whether there are no rows.
    pub(crate) fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Adds a row.
    pub(crate) fn row<S: AsRef<str>>(&mut self, cells: impl IntoIterator<Item = S>) {
        self.rows.push(cells.into_iter().map(|cell| printable(cell.as_ref())).collect());
    }

    /// Returns the lines, the headings first, as wide as they are.
    #[cfg(test)]
    pub(crate) fn render(&self, palette: Palette) -> String {
        self.render_within(palette, None)
    }

    /// Returns the lines, no wider than `columns` where that can be: the widest cells are cut, which `…` shows.
    pub(crate) fn render_within(&self, palette: Palette, columns: Option<usize>) -> String {
        let cell = |row: &[String], column: usize| row.get(column).cloned().unwrap_or_default();
        let mut widths: Vec<usize> = (0..self.headings.len())
            .map(|column| {
                let heading = self.headings[column].chars().count();
                self.rows.iter().map(|row| cell(row, column).chars().count()).fold(heading, usize::max)
            })
            .collect();
        if let Some(columns) = columns {
            narrow(&mut widths, columns);
        }
        let numeric: Vec<bool> = (0..self.headings.len())
            .map(|column| {
                let mut told = self.rows.iter().map(|row| cell(row, column)).filter(|cell| cell != "NULL").peekable();
                told.peek().is_some() && told.all(|cell| cell.parse::<f64>().is_ok())
            })
            .collect();
        let render_row = |row: &[String]| {
            let cells: Vec<String> = (0..widths.len())
                .map(|column| {
                    let (text, width) = (cut(cell(row, column), widths[column]), widths[column]);
                    // `format!` knows no width beyond 65,535.
                    let pad = " ".repeat(width.saturating_sub(text.chars().count()));
                    if numeric[column] { pad + &text } else { text + &pad }
                })
                .collect();
            cells.join(GAP).trim_end().to_owned()
        };
        let mut lines = vec![palette.heading(&render_row(&self.headings))];
        lines.extend(self.rows.iter().map(|row| render_row(row)));
        lines.join("\n")
    }
}

/// Between two columns of a table.
const GAP: &str = "  ";
/// No column of a table is made narrower than this.
const MIN_WIDTH: usize = 8;

/// Takes from the widest columns what does not fit.
fn narrow(widths: &mut [usize], columns: usize) {
    let room = columns.saturating_sub(GAP.len() * widths.len().saturating_sub(1));
    let fits = |cap: usize| widths.iter().map(|width| (*width).min(cap)).sum::<usize>() <= room;
    let widest = widths.iter().copied().max().unwrap_or_default();
    let cap = (MIN_WIDTH..=widest).rev().find(|cap| fits(*cap)).unwrap_or(MIN_WIDTH);
    for width in widths {
        *width = (*width).min(cap);
    }
}

/// Returns the text in so many characters, the last of them an ellipsis where something is missing.
pub(crate) fn cut(text: String, width: usize) -> String {
    if text.chars().count() <= width {
        return text;
    }
    text.chars().take(width.saturating_sub(1)).chain((width > 0).then_some('…')).collect()
}

/// Names and values below each other, the values aligned.
pub(crate) fn facts(facts: &[(&str, String)], palette: Palette) -> String {
    facts_within(facts, palette, None)
}

/// A fact of this name is a command to copy: it is never cut.
pub(crate) const NEXT: &str = "next";
/// A fact of this name says what is wrong, and the end of that says it best: it is never cut.
pub(crate) const PROBLEM: &str = "problem";

/// Names and values below each other, no line wider than `columns`: values are cut, which `…` shows.
pub(crate) fn facts_within(facts: &[(&str, String)], palette: Palette, columns: Option<usize>) -> String {
    let width = facts.iter().map(|(name, _)| name.chars().count()).max().unwrap_or_default();
    let room = columns.map_or(usize::MAX, |columns| columns.saturating_sub(width + GAP.len()));
    let line = |(name, value): &(&str, String)| {
        let value = if [NEXT, PROBLEM].contains(name) { printable(value) } else { cut(printable(value), room) };
        format!("{}{GAP}{value}", palette.heading(&format!("{name:<width$}")))
    };
    facts.iter().map(line).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_table_aligns_numbers_right_and_text_left() {
        let mut table = Table::new(["id", "count", "note"]);
        table.row(["a", "5", "x"]);
        table.row(["long-id", "1200", ""]);
        insta::assert_snapshot!(table.render(Palette::plain()), @r"
        id       count  note
        a            5  x
        long-id   1200
        ");
    }

    #[test]
    fn a_column_may_be_as_wide_as_a_value() {
        let mut table = Table::new(["id", "text"]);
        table.row(["a", &"x".repeat(70_000)]);
        table.row(["b", "short"]);
        assert_eq!(table.render(Palette::plain()).lines().map(str::len).collect::<Vec<_>>(), [8, 70_004, 9]);
    }

    #[test]
    fn a_table_that_is_too_wide_is_cut_in_its_widest_column() {
        let mut table = Table::new(["id", "text", "n"]);
        table.row(["a", "twenty characters!!!", "NULL"]);
        table.row(["b", "short", "7"]);
        insta::assert_snapshot!(table.render_within(Palette::plain(), Some(24)), @r"
        id  text               n
        a   twenty charac…  NULL
        b   short              7
        ");
        let wide = table.render_within(Palette::plain(), Some(80));
        assert_eq!(wide, table.render(Palette::plain()), "nothing is cut without need");
    }

    #[test]
    fn a_time_is_brief() {
        assert_eq!(brief_time("2026-11-21T15:27:33.614247511Z"), "2026-11-21T15:27:33.614Z");
        assert_eq!(brief_time("2026-11-21T15:27:33.5+01:00"), "2026-11-21T15:27:33.5+01:00");
        assert_eq!(brief_time("2026-11-21T15:27:33Z"), "2026-11-21T15:27:33Z");
        assert_eq!(brief_time("?"), "?");
    }

    #[test]
    fn bytes_have_units() {
        let shown: Vec<String> = [0, 1_023, 1_024, 1_600_000, 5 << 30].map(bytes).to_vec();
        assert_eq!(shown, ["0 bytes", "1023 bytes", "1.0 KiB", "1.5 MiB", "5.0 GiB"]);
    }

    #[test]
    fn a_table_without_rows_shows_its_headings() {
        assert_eq!(Table::new(["id", "note"]).render(Palette::plain()), "id  note");
    }

    #[test]
    fn a_cell_cannot_move_the_cursor_or_break_the_row() {
        let mut table = Table::new(["text"]);
        table.row(["a\nb\u{1b}[2J"]);
        assert_eq!(table.render(Palette::plain()), "text\na\\nb\\u{1b}[2J");
    }

    #[test]
    fn cells_show_null_text_and_json() {
        let cells: Vec<String> = [json!(null), json!("a b"), json!(1.5), json!([1])].iter().map(cell).collect();
        assert_eq!(cells, ["NULL", "a b", "1.5", "[1]"]);
    }

    #[test]
    fn colours_follow_the_option_then_the_terminal_then_no_color() {
        let colored = |color, terminal, no_color| Palette::for_stream(color, terminal, no_color).colored;
        assert!(colored(Color::Auto, true, false));
        assert!(!colored(Color::Auto, true, true));
        assert!(!colored(Color::Auto, false, false));
        assert!(colored(Color::Always, false, true));
        assert!(!colored(Color::Never, true, false));
    }

    #[test]
    fn facts_stand_below_each_other() {
        insta::assert_snapshot!(facts(&[("epoch", "3".into()), ("pid", "12".into())], Palette::plain()), @r"
        epoch  3
        pid    12
        ");
    }
}
