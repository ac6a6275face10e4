//! Instances of one workdir, of which the first is killed again and again.

use std::process::{Child, Command, Stdio};

use pando_ipc::client::Client;
use pando_ipc::{Kind, Workdir, read_lock_for_path};
use tempfile::TempDir;

use crate::client;

/// How many instances there are at any time.
const INSTANCES: usize = 2;

/// Instances as child processes; they end with their owner.
pub(crate) struct Fleet {
    _dir: TempDir,
    workdir: Workdir,
    children: Vec<Child>,
    watch: Client,
}

impl Fleet {
    /// Starts the instances, and returns once one of them leads.
    pub(crate) async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let workdir = Workdir::open(dir.path()).unwrap();
        let watch = client(&workdir, "fleet", Kind::Observer);
        let mut fleet = Self { _dir: dir, workdir, children: Vec::new(), watch };
        (0..INSTANCES).for_each(|_| fleet.spawn());
        fleet.led_by_another(None).await;
        fleet
    }

    pub(crate) fn workdir(&self) -> &Workdir {
        &self.workdir
    }

    fn spawn(&mut self) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pando"));
        command.args(["--quiet", "up", "--durability", "os", "--workdir"]).arg(self.workdir.path());
        command.stdin(Stdio::null()).stdout(Stdio::null());
        self.children.push(command.spawn().unwrap());
    }

    /// Kills the primary, returns once another one leads, and starts one in its place.
    pub(crate) async fn take_over(&mut self) {
        let pid = read_lock_for_path(&self.workdir).unwrap().pid;
        let at = self.children.iter().position(|child| child.id() == pid).expect("one of ours leads");
        let mut primary = self.children.remove(at);
        primary.kill().unwrap();
        primary.wait().unwrap();
        self.led_by_another(Some(pid)).await;
        self.spawn();
    }

    async fn led_by_another(&self, before: Option<u32>) {
        let mut link = self.watch.link();
        let led = link.wait_for(|link| link.as_ref().is_some_and(|link| Some(link.info.pid) != before));
        tokio::time::timeout(crate::PATIENCE, led).await.expect("somebody leads").expect("the client is open");
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        for child in &mut self.children {
            // It may have ended by itself.
            drop(child.kill());
            drop(child.wait());
        }
    }
}
