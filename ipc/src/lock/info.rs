//! What the holder of the lock says of itself.

use std::fs::File;
use std::io::{self, Read, Seek};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::open_options;
use crate::envelope::Timestamp;
use crate::process::ProcessId;
use crate::workdir::Workdir;

/// Longest lock file that is read, in bytes; a longer one is foreign.
const MAX_INFO_BYTES: u64 = 64 * 1024;

/// The lock file's content: JSON with 2-space indent and a trailing newline; the first five keys are documented and fixed.
///
/// Readers ignore keys they do not know. It is true only while the flock is held *and* the instance answers hello with the same id and epoch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LockInfo {
    /// The primary's instance id.
    pub instance_id: String,
    /// Its process. For people: liveness is the flock and hello, never a pid.
    pub pid: u32,
    /// TCP port of its PUB socket on 127.0.0.1; 0: closed.
    pub pub_port: u16,
    /// TCP port of its ROUTER socket on 127.0.0.1; 0: closed.
    pub rpc_port: u16,
    /// When its term began.
    pub started_at: Timestamp,
    /// Its term, counted in the database. `None` is an older peer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epoch: Option<u64>,
    /// The canonical workdir.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workdir: Option<PathBuf>,
    /// Its wire version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<u32>,
    /// Its release.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Its doors as ZeroMQ endpoints, best first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoints: Option<Endpoints>,
    /// What tells its process from a later one of the same pid, so that it can be evicted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub process: Option<ProcessId>,
    /// Whom it hands its role to, written just before it lets go: other candidates let that one go first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub successor: Option<String>,
}

/// ZeroMQ endpoints of a primary, best first: `ipc:///path` (native door), then `tcp://127.0.0.1:port`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoints {
    /// Where events are published.
    #[serde(rename = "pub")]
    pub publish: Vec<String>,
    /// Where calls are answered.
    pub rpc: Vec<String>,
}

impl LockInfo {
    /// Returns the content of the lock file.
    pub fn to_text(&self) -> String {
        #[expect(clippy::expect_used, reason = "strings, numbers and lists always serialise into memory")]
        let mut text = serde_json::to_string_pretty(self).expect("a LockInfo serialises");
        text.push('\n');
        text
    }

    /// Returns where to reach the primary: what it advertises, else the documented ports.
    pub fn doors(&self) -> Endpoints {
        let tcp = |port: u16| if port == 0 { vec![] } else { vec![format!("tcp://127.0.0.1:{port}")] };
        self.endpoints.clone().unwrap_or_else(|| Endpoints { publish: tcp(self.pub_port), rpc: tcp(self.rpc_port) })
    }
}

/// Why the lock file says nothing of a primary.
#[derive(Debug, thiserror::Error)]
pub enum InfoError {
    /// There is no lock file: nobody has ever been here.
    #[error("{path} does not exist")]
    Missing {
        /// The lock file.
        path: PathBuf,
    },
    /// The file cannot be read.
    #[error("cannot read {path}: {source}")]
    Io {
        /// The lock file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The holder has not written yet.
    #[error("{path} is empty")]
    Empty {
        /// The lock file.
        path: PathBuf,
    },
    /// The content is torn or not ours.
    #[error("{path} holds no lock info: {source}")]
    Malformed {
        /// The lock file.
        path: PathBuf,
        /// What the JSON reader said.
        source: serde_json::Error,
    },
    /// The content is far too long to be ours.
    #[error("{path} is larger than {MAX_INFO_BYTES} bytes; it is no lock info")]
    TooLarge {
        /// The lock file.
        path: PathBuf,
    },
}

/// Reads once what the lock file of a workdir says, without believing it.
pub fn read_lock_for_path(workdir: &Workdir) -> Result<LockInfo, InfoError> {
    let path = workdir.lock_path();
    match open_options().read(true).open(&path) {
        Ok(file) => read_from(&file, &path),
        Err(source) if source.kind() == io::ErrorKind::NotFound => Err(InfoError::Missing { path }),
        Err(source) => Err(InfoError::Io { path, source }),
    }
}

/// Reads an open lock file from its start; `path` is for the error.
pub(super) fn read_from(file: &File, path: &Path) -> Result<LockInfo, InfoError> {
    let path = path.to_owned();
    let mut text = String::new();
    let mut start = file;
    let read = start.rewind().and_then(|()| start.take(MAX_INFO_BYTES + 1).read_to_string(&mut text));
    match read {
        Ok(0) => Err(InfoError::Empty { path }),
        Ok(len) if len as u64 > MAX_INFO_BYTES => Err(InfoError::TooLarge { path }),
        Ok(_) => serde_json::from_str(&text).map_err(|source| InfoError::Malformed { path, source }),
        Err(source) => Err(InfoError::Io { path, source }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documented_file_reads_and_writes_back_the_same() {
        let golden = include_str!("../../../tests/golden/ipc.lock");
        let info: LockInfo = serde_json::from_str(golden).unwrap();
        assert_eq!(info.to_text(), golden);
        assert_eq!(info.doors().rpc, ["tcp://127.0.0.1:58826"]);
    }

    #[test]
    fn a_file_with_all_keys_reads_and_writes_back_the_same() {
        let golden = include_str!("../../../tests/golden/ipc-all-keys.lock");
        let info: LockInfo = serde_json::from_str(golden).unwrap();
        assert_eq!(info.to_text(), golden);
        let process = ProcessId { boot_id: "f1dd8c0f-2e4a-4c5f-9b6e-0a1b2c3d4e5f".into(), start_ticks: 1_268_400 };
        assert_eq!((info.epoch, info.process, info.successor.as_deref()), (Some(3), Some(process), Some("inst-B")));
    }
}
