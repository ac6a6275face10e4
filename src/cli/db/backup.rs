//! `pando db backup`: a verified copy, while others write.

use std::path::PathBuf;

use pando_dbproxy::backup::{Copied, back_up};

use super::{copying, open};
use crate::cli::context::Context;
use crate::cli::failure::Failure;
use crate::cli::output;

/// Copy the database into a file, consistent while others write
///
/// The copy is the database at one moment, in one file, checked; it appears under its name once it is complete and on disk. Works
/// without a primary too. Files in '.pando' and what is no regular file are never replaced.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  pando db backup yesterday.db
  pando db backup --force /media/stick/pando.db")]
pub(crate) struct Args {
    /// Where the copy goes
    #[arg(value_hint = clap::ValueHint::FilePath)]
    file: PathBuf,
    /// Replace the file when it exists
    #[arg(long)]
    force: bool,
}

/// Copies, and says what the copy holds.
pub(crate) async fn run(args: Args, context: &Context) -> Result<(), Failure> {
    let workdir = context.workdir()?;
    let database = open(&workdir)?.path().to_owned();
    let Args { file, force } = args;
    let copied = copying::copy(context, move |stop, on_step| back_up(&database, &file, force, stop, on_step)).await?;
    if context.json() {
        return output::json_for_reader(&copied);
    }
    output::line(&human(&copied))
}

fn human(copied: &Copied) -> String {
    let Copied { path, bytes, standing } = copied;
    format!("{}: {}, up to seq {}, checked", path.display(), output::bytes(*bytes), standing.seq)
}

#[cfg(test)]
pub(crate) mod tests {
    use pando_dbproxy::incarnation::Standing;

    use super::*;
    use crate::cli::output::Palette;

    pub(crate) fn look(_palette: Palette, _columns: Option<usize>) -> String {
        let standing = Standing { database: uuid::Uuid::nil(), epoch: 3, seq: 42 };
        human(&Copied { path: "yesterday.db".into(), bytes: 5 << 20, standing })
    }
}
