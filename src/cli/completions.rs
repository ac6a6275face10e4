//! `pando completions`: what the shell needs to complete our commands.

use clap::{CommandFactory, ValueEnum};
use clap_complete::generate;

use super::args::Cli;
use super::failure::Failure;
use super::output;

/// Print a completion script for a shell
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  pando completions bash > ~/.local/share/bash-completion/completions/pando
  pando completions zsh > ~/.zfunc/_pando
  pando completions fish > ~/.config/fish/completions/pando.fish")]
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

/// Prints the script.
pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    let mut script = Vec::new();
    let mut command = Cli::command();
    match args.shell {
        Shell::Bash => generate(clap_complete::Shell::Bash, &mut command, "pando", &mut script),
        Shell::Zsh => generate(clap_complete::Shell::Zsh, &mut command, "pando", &mut script),
        Shell::Fish => generate(clap_complete::Shell::Fish, &mut command, "pando", &mut script),
    }
    output::raw(&script)
}
