//! `pando man`: the manual pages.

use clap::CommandFactory;
use clap_complete::ArgValueCandidates;

use super::args::Cli;
use super::completions::live;
use super::failure::{Failure, Kind};
use super::{output, suggest};

/// Print a manual page in roff
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  pando man | man -l -                read the page of pando
  pando man ipc call | man -l -       read the page of 'pando ipc call'
  pando man > ~/.local/share/man/man1/pando.1")]
pub(crate) struct Args {
    /// Command to describe, such as 'ipc call' [default: pando itself]
    #[arg(add = ArgValueCandidates::new(live::commands))]
    command: Vec<String>,
}

/// Prints the page.
pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    output::raw(&page(&args.command)?)
}

fn page(path: &[String]) -> Result<Vec<u8>, Failure> {
    let mut whole = Cli::command();
    // Gives each command its full name and the common options.
    whole.build();
    let mut command = &whole;
    for name in path {
        command = command.find_subcommand(name).ok_or_else(|| unknown(command, name))?;
    }
    let name = command.get_display_name().unwrap_or_else(|| command.get_name()).to_owned();
    let mut page = Vec::new();
    clap_mangen::Man::new(command.clone())
        .title(name)
        .render(&mut page)
        .map_err(|error| Failure::io("write the manual page", &error))?;
    Ok(page)
}

fn unknown(command: &clap::Command, name: &str) -> Failure {
    let failure = Failure::new(Kind::Usage, format!("{} has no command {name:?}", command.get_name()));
    match suggest::nearest(name, command.get_subcommands().map(clap::Command::get_name)).first() {
        Some(near) => failure.hint(format!("did you mean '{near}'?")),
        None => failure.hint("list the commands: 'pando --help'"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_has_a_page() {
        for path in ["", "up", "ipc", "ipc call", "db query"] {
            let words: Vec<String> = path.split_whitespace().map(str::to_owned).collect();
            let page = String::from_utf8(page(&words).unwrap()).unwrap();
            assert!(page.contains(".SH SYNOPSIS"), "{path}: {page}");
        }
        assert_eq!(page(&["statsu".to_owned()]).unwrap_err().hints, ["did you mean 'status'?"]);
    }
}
