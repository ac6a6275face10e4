//! `pando db restore`: puts a copy in the place of the database, where nobody runs.

use std::path::PathBuf;
use std::time::Duration;

use pando_dbproxy::restore::{self, Restored};
use pando_ipc::{Workdir, lock};

use super::copying;
use crate::cli::context::Context;
use crate::cli::failure::{Failure, Kind};
use crate::cli::output;
use crate::cli::standing::Standing;

/// Whoever looks at the lock holds it for an instant: try again after this, before saying that it is held.
const SECOND_TRY: Duration = Duration::from_millis(30);

/// Put a copy in the place of the database; the former one is kept beside it
///
/// Needs a workdir where no instance runs and nobody reads, so that no write is lost. The restored database gets an id of its own: a write
/// that was meant for the former one is refused, and every follower is told to read anew.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  pando down && pando db restore yesterday.db")]
pub(crate) struct Args {
    /// A file that 'pando db backup' made
    #[arg(value_hint = clap::ValueHint::FilePath)]
    file: PathBuf,
}

/// Restores, and says where the former database is.
pub(crate) async fn run(args: Args, context: &Context) -> Result<(), Failure> {
    let workdir = context.workdir()?;
    if !args.file.exists() {
        return Err(Failure::new(Kind::Usage, format!("no file at {}", args.file.display()))
            .hint("name a file that 'pando db backup' made"));
    }
    let lease = lock(&workdir).await?;
    let database = workdir.database_path();
    let Args { file } = args;
    let restored =
        copying::copy(context, move |stop, on_step| restore::restore(&lease, &file, &database, stop, on_step));
    let restored = restored.await?;
    if context.json() { output::json_for_reader(&restored) } else { output::line(&human(&restored)) }
}

/// Takes the lock, or names who has it.
async fn lock(workdir: &Workdir) -> Result<lock::Lease, Failure> {
    for attempt in 0..2 {
        if attempt > 0 {
            tokio::time::sleep(SECOND_TRY).await;
        }
        if let Some(lease) = lock::try_lock(workdir).map_err(|error| Failure::lock(&error))? {
            return Ok(lease);
        }
    }
    let holder = match Standing::of(workdir).map_err(|error| Failure::lock(&error))? {
        Standing::Held(Some(holder)) => format!("held by {holder}"),
        _ => "by whom is not said".to_owned(),
    };
    let path = workdir.path().display();
    Err(Failure::new(
        Kind::Conflict,
        format!("{path} is in use ({holder}); a restore would lose what is written meanwhile"),
    )
    .hint("end its instances first: 'pando down', and close the programs that 'pando ipc instances' still lists"))
}

fn human(restored: &Restored) -> String {
    let Restored { standing, former, .. } = restored;
    let kept = former.as_ref().map_or(String::new(), |path| format!("; the former database is {}", path.display()));
    format!("restored as database {}, seq {}{kept}", standing.database, standing.seq)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::cli::output::Palette;

    pub(crate) fn look(_palette: Palette, _columns: Option<usize>) -> String {
        let (database, copy_of) = (uuid::Uuid::nil(), uuid::Uuid::nil());
        let standing = pando_dbproxy::incarnation::Standing { database, epoch: 3, seq: 42 };
        human(&Restored { standing, copy_of, former: Some("/w/.pando/pando.db.replaced-20261121T025337Z".into()) })
    }
}
