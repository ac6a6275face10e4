//! What the process was started with: the one place that reads it.

use std::env;
use std::ffi::OsString;
use std::io;
use std::path::PathBuf;

/// Variable that silences colours, see <https://no-color.org>.
const NO_COLOR: &str = "NO_COLOR";
/// Variable that says what to log, in the form of `tracing`'s filters, such as `pando_ipc=debug`.
const LOG: &str = "PANDO_LOG";

/// Variable that says how wide a line may be, where that is not a terminal's business.
const COLUMNS: &str = "COLUMNS";

/// Variable by which a shell asks what could be typed next; it holds the shell's name.
pub(crate) const COMPLETE: &str = "PANDO_COMPLETE";

/// The environment, as far as we care.
#[derive(Debug)]
pub(crate) struct Environment {
    /// Where we are, or why that cannot be told.
    pub(crate) current_dir: io::Result<PathBuf>,
    /// The user's home.
    pub(crate) home: Option<PathBuf>,
    /// The user's runtime directory.
    pub(crate) runtime_dir: Option<PathBuf>,
    /// Where temporary directories belong.
    pub(crate) temp_dir: PathBuf,
    /// Whether colours are unwanted.
    pub(crate) no_color: bool,
    /// How wide a line may be, when somebody said so.
    pub(crate) columns: Option<usize>,
    /// What to log.
    pub(crate) log: Option<String>,
    /// The command line.
    pub(crate) args: Vec<OsString>,
    /// Whether the command line asks for JSON, known even when the rest of it is wrong.
    pub(crate) wants_json: bool,
}

impl Environment {
    /// Reads it once.
    pub(crate) fn read() -> Self {
        let is_set = |name: &str| env::var_os(name).is_some_and(|value| !value.is_empty());
        #[expect(clippy::disallowed_methods, reason = "the command line finds its workdir from here; nobody else may")]
        let current_dir = env::current_dir();
        let args: Vec<OsString> = env::args_os().collect();
        Self {
            current_dir,
            home: env::var_os("HOME").filter(|home| !home.is_empty()).map(PathBuf::from),
            runtime_dir: env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|dir| dir.is_absolute()),
            temp_dir: env::temp_dir(),
            no_color: is_set(NO_COLOR),
            columns: env::var(COLUMNS).ok().and_then(|columns| columns.parse().ok()).filter(|columns| *columns > 0),
            log: env::var(LOG).ok().filter(|filter| !filter.is_empty()),
            wants_json: args.iter().any(|arg| arg == "--json"),
            args,
        }
    }
}
