//! `pando completions`: what the shell needs to complete our commands.

pub(super) mod live;

use clap::{CommandFactory, ValueEnum};
use clap_complete::CompleteEnv;

use super::args::Cli;
use super::environment::{COMPLETE, Environment};
use super::failure::Failure;
use super::output;

/// Print a completion script for a shell
///
/// The shell completes commands and options, and what is there in the workdir: methods, topics, instances, sessions, cursors and
/// tables. It asks this program at each press of the key, so the script fits every later release, too.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  pando completions bash > ~/.local/share/bash-completion/completions/pando
  pando completions zsh > ~/.zfunc/_pando
  pando completions fish > ~/.config/fish/completions/pando.fish
  eval \"$(pando completions bash)\"       in this shell alone

bash looks there when the package bash-completion is installed; else put the last line into ~/.bashrc. zsh looks there when
~/.zshrc has 'fpath+=~/.zfunc' before 'autoload -U compinit; compinit'.")]
pub(crate) struct Args {
    /// Shell to complete in
    #[arg(value_enum)]
    shell: Shell,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Shell {
    Bash,
    Zsh,
    Fish,
}

impl Shell {
    /// Returns what the shell runs when it first completes. How it then asks is a matter between it and the program of that day: a file
    /// that holds more would be wrong after an upgrade.
    fn script(self) -> String {
        match self {
            Self::Bash => format!("eval \"$({COMPLETE}=bash pando 2>/dev/null)\"\n"),
            // Found by its name in `fpath` it is the function that completes, the first time: then the one it defines goes on.
            Self::Zsh => format!(
                "#compdef pando\neval \"$({COMPLETE}=zsh pando 2>/dev/null)\"\n\
                 if [[ $funcstack[1] == _pando && -n $_comps[pando] && $_comps[pando] != _pando ]]; then $_comps[pando] \"$@\"; fi\n"
            ),
            Self::Fish => format!("{COMPLETE}=fish pando 2>/dev/null | source\n"),
        }
    }
}

/// Prints the script.
pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    output::raw(args.shell.script().as_bytes())
}

/// Answers a shell that asks how to ask, or what could be typed next; tells whether one did. It never says what went wrong: that would
/// stand in the midst of somebody's command line.
pub(crate) fn answer(environment: &Environment) -> bool {
    let here = environment.current_dir.as_deref().ok();
    let asked = CompleteEnv::with_factory(Cli::command)
        .var(COMPLETE)
        .completer("pando")
        .try_complete(environment.args.iter().cloned(), here);
    asked.unwrap_or(true)
}
