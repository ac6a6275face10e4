//! How everything looks that people read: each output in one table, on narrow and wide terminals, with and without colours.

use clap::CommandFactory;

use super::args::Cli;
use super::output::{NEXT, PROBLEM, Palette};
use super::{db, demo, doctor, down, failure, ipc, metrics, status, up};

/// Returns an output with samples in it.
type Look = fn(Palette, Option<usize>) -> String;

/// What becomes of a line that is wider than the terminal.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Long {
    /// It is cut.
    Cut,
    /// It stays whole: a sentence, SQL, or what people copy, such as a path.
    Whole,
}
use Long::{Cut, Whole};

/// Every output: its command, its name where a command has several, and how it looks. A new one is a line here.
const OUTPUTS: [(&str, &str, Long, Look); 34] = [
    ("status", "led", Cut, status::view::tests::look_led),
    ("status", "diag", Cut, status::view::tests::look_diag),
    ("status", "free", Cut, status::view::tests::look_free),
    ("status", "silent", Cut, status::view::tests::look_silent),
    ("status", "file-system", Cut, status::view::tests::look_file_system),
    ("status", "watch", Whole, status::view::tests::look_watch),
    ("status", "watch-silent", Cut, status::view::tests::look_silent_watch),
    ("status", "watch-low", Whole, status::view::tests::look_low_watch),
    ("doctor", "", Whole, doctor::tests::look),
    ("metrics", "", Whole, metrics::tests::look),
    ("up", "", Whole, up::role::tests::look),
    ("down", "", Whole, down::tests::look),
    ("demo", "", Cut, demo::tally::tests::look),
    ("demo", "failed", Cut, demo::tally::tests::look_failed),
    ("ipc instances", "", Cut, ipc::instances::tests::look),
    ("ipc doors", "", Cut, ipc::doors::tests::look),
    ("ipc ports", "", Whole, ipc::ports::tests::look),
    ("ipc ports", "free", Whole, ipc::ports::tests::look_free),
    ("ipc methods", "", Cut, ipc::methods::tests::look),
    ("ipc describe", "", Cut, ipc::describe::tests::look),
    ("ipc tail", "", Cut, ipc::tail::line::tests::look),
    ("ipc tail", "text", Whole, ipc::tail::text::tests::look),
    ("ipc cursors", "", Cut, ipc::cursors::tests::look),
    ("ipc publish", "", Whole, ipc::publish::tests::look),
    ("ipc evict", "", Whole, ipc::evict::tests::look),
    ("db exec", "", Whole, db::exec::tests::look),
    ("db query", "", Cut, db::rows::tests::look),
    ("db tables", "", Cut, db::tables::tests::look),
    ("db schema", "", Whole, db::schema::tests::look),
    ("db stats", "", Whole, db::stats::tests::look),
    ("db check", "", Whole, db::check::tests::look),
    ("db backup", "", Whole, db::backup::tests::look),
    ("db restore", "", Whole, db::restore::tests::look),
    ("error", "", Whole, failure::tests::look),
];

/// Commands that print nothing of their own: the result of a method as JSON, what `status` prints, scripts and pages.
const NO_OUTPUT: [&str; 4] = ["ipc call", "ipc status", "completions", "man"];

const COLUMNS: [usize; 2] = [80, 140];

#[test]
fn every_output_looks_as_it_did() {
    for (command, case, _, look) in OUTPUTS {
        let mut looks = String::new();
        for (colours, palette) in [("plain", Palette::plain()), ("colours", Palette::colored())] {
            for columns in COLUMNS {
                let text = look(palette, Some(columns)).replace('\u{1b}', "^");
                looks.push_str(&["== ", colours, ", ", &columns.to_string(), " columns ==\n", &text, "\n"].concat());
            }
        }
        let name = [command, case].join(" ").trim_end().replace(' ', "-");
        insta::with_settings!({prepend_module_to_snapshot => false, omit_expression => true}, {
            insta::assert_snapshot!(name, looks);
        });
    }
}

#[test]
fn what_is_cut_is_no_wider_than_the_terminal() {
    for (command, case, _, look) in OUTPUTS.into_iter().filter(|(_, _, long, _)| *long == Cut) {
        for columns in COLUMNS {
            let text = look(Palette::plain(), Some(columns));
            for line in text.lines().filter(|line| ![NEXT, PROBLEM].iter().any(|whole| line.starts_with(whole))) {
                assert!(line.chars().count() <= columns, "{command} {case}, {columns}: {line}");
            }
        }
    }
}

#[test]
fn no_command_is_without_its_looks() {
    fn leaves(command: &clap::Command, path: &str) -> Vec<String> {
        let below = command.get_subcommands().filter(|it| it.get_name() != "help");
        let found: Vec<_> = below.flat_map(|it| leaves(it, &format!("{path} {}", it.get_name()))).collect();
        if found.is_empty() { vec![path.trim_start().to_owned()] } else { found }
    }
    for command in leaves(&Cli::command(), "") {
        let looks = OUTPUTS.iter().any(|(of, ..)| *of == command);
        assert!(looks != NO_OUTPUT.contains(&command.as_str()), "{command}: add a line for what it prints");
    }
}
