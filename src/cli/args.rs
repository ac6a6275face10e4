//! The command line's grammar.

use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgAction, Args, Parser, Subcommand};

use super::output::Color;
use super::{completions, db, demo, doctor, down, duration, ipc, man, metrics, status, up};

const LONG_ABOUT: &str = "\
Lets several editor and agent processes share one working directory.

Whoever comes first is the primary: it alone writes the database and publishes events. All others read locally, write \
through it and follow its events. When it goes, the next one takes over within milliseconds, and nothing acknowledged is lost. \
A directory is the address: there is no port to type and nothing to configure.";

/// Stands below the list of commands.
pub(super) const AFTER_HELP: &str = "\
Examples:
  pando demo                          four processes, one killed, nothing lost
  pando up                            run an instance here, until Ctrl-C
  pando status                        who is primary, who else is here
  pando ipc tail                      follow every event
  pando ipc call instance.info        call a method
  pando db query 'SELECT * FROM sessions'

Exit codes:
  0 ok   1 failed   2 usage   3 no primary or unreachable   4 not authorised
  5 timeout   6 conflict or fenced   7 version mismatch   8 'doctor' has warnings, no faults
  75 lost the election (--require-primary)   130 interrupted   143 terminated";

/// The whole command line.
#[derive(Debug, Parser)]
#[command(name = "pando", version, about = "Lets several processes share one working directory", long_about = LONG_ABOUT)]
#[command(after_help = AFTER_HELP, disable_help_subcommand = false, infer_long_args = false)]
pub(crate) struct Cli {
    /// Options of every command.
    #[command(flatten)]
    pub(crate) globals: Globals,
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Options of every command.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Options of every command")]
pub(crate) struct Globals {
    /// Print JSON; streams print one object per line
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// Directory to work in [default: the nearest one upwards that holds .pando, else the current one]
    #[arg(long, global = true, value_name = "DIR", value_hint = clap::ValueHint::DirPath)]
    pub(crate) workdir: Option<PathBuf>,
    /// How long to wait for an answer, such as 500ms, 5s or 1m [default: 10s]
    #[arg(long, global = true, value_name = "TIME", value_parser = duration::parse)]
    pub(crate) timeout: Option<Duration>,
    /// How to write the log
    #[arg(long, global = true, value_enum, value_name = "FORM", default_value = "text")]
    pub(crate) log_format: LogFormat,
    /// When to colour
    #[arg(long, global = true, value_enum, value_name = "WHEN", default_value = "auto")]
    pub(crate) color: Color,
    /// Log nothing and print only what was asked for
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    pub(crate) quiet: bool,
    /// Log more to stderr (-v info, -vv debug, -vvv trace); `PANDO_LOG` takes filters
    #[arg(short, long, global = true, action = ArgAction::Count)]
    pub(crate) verbose: u8,
}

/// How the log on stderr looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum LogFormat {
    /// A line for people.
    Text,
    /// A JSON object on each line.
    Json,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Up(up::Args),
    Down(down::Args),
    Status(status::Args),
    Metrics(metrics::Args),
    Doctor(doctor::Args),
    #[command(subcommand)]
    Ipc(ipc::Command),
    #[command(subcommand)]
    Db(db::Command),
    Demo(demo::Args),
    Completions(completions::Args),
    Man(man::Args),
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_grammar_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_takes_the_common_options_before_or_behind_it() {
        for line in [
            "pando --json --timeout 5s status",
            "pando status --json --timeout 5s",
            "pando ipc ports --json --timeout 5s",
        ] {
            let cli = Cli::try_parse_from(line.split(' ')).unwrap();
            assert!(cli.globals.json, "{line}");
            assert_eq!(cli.globals.timeout, Some(Duration::from_secs(5)), "{line}");
        }
    }

    #[test]
    fn a_misspelt_command_is_answered_with_the_right_one() {
        let error = Cli::try_parse_from(["pando", "statsu"]).unwrap_err().to_string();
        assert!(error.contains("status"), "{error}");
    }
}
