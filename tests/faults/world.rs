//! One trial: a workdir, the instances that write in it, those who watch, and the record of all that is done to them.

use std::collections::HashSet;
use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::net::{Ipv4Addr, TcpStream};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::time::{Duration, Instant};

use pando_ipc::lock;
use rustix::process::Signal;
use rustix::time::{ClockId, clock_gettime};
use serde::Deserialize;

use crate::history::{Database, Dated, Deed};
use crate::judged::Judged;
use crate::observer::Observer;
use crate::random::Random;
use crate::record::{Outcome, Record, What};
use crate::shim::Shim;
use crate::support::{Process, RoleLine, Sandbox, binary, eventually};

/// How long anything may take that normally takes milliseconds: the machine may be busy, Pando must not be stuck.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);
/// How often the use of memory and descriptors is measured.
const MEASURE: Duration = Duration::from_millis(250);

/// A trial.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) sandbox: Sandbox,
    pub(crate) random: Random,
    pub(crate) instances: Vec<Instance>,
    /// Databases that were moved away.
    pub(crate) elsewhere: Vec<PathBuf>,
    name: String,
    seed: u64,
    under: String,
    report: PathBuf,
    deeds: File,
    observers: Vec<Observer>,
    started: usize,
    measured: Instant,
}

/// An instance that is written by and may be broken.
#[derive(Debug)]
pub(crate) struct Instance {
    pub(crate) name: String,
    pub(crate) process: Process,
    pub(crate) shim: Shim,
    pub(crate) role: Option<RoleLine>,
    /// The latest epoch in which a write of its was acknowledged.
    pub(crate) acked: u64,
}

/// How far the record of each instance went at some time.
#[derive(Debug)]
pub(crate) struct Mark(Vec<(String, u64)>);

/// The line that tells of the first acknowledgement in an epoch.
#[derive(Debug, Deserialize)]
struct AckedLine {
    acked: u64,
}

impl Instance {
    /// Tells in which epoch it leads, as far as it has said.
    pub(crate) fn leads(&self) -> Option<u64> {
        self.role.as_ref().filter(|role| role.role == "primary").and_then(|role| role.epoch)
    }

    fn look(&mut self) {
        for line in self.process.unread().collect::<Vec<_>>() {
            if let Some(role) = RoleLine::read(&line) {
                self.role = Some(role);
            } else if let Ok(AckedLine { acked }) = serde_json::from_str(&line.text) {
                self.acked = acked;
            }
        }
    }
}

impl World {
    /// Makes an empty workdir, and a directory under `target` for the report.
    pub(crate) fn new(name: &str, seed: u64) -> Self {
        let report = Path::new(env!("CARGO_TARGET_TMPDIR")).join("faults").join(format!("{name}-{seed}"));
        drop(fs::remove_dir_all(&report));
        fs::create_dir_all(&report).unwrap();
        let deeds = OpenOptions::new().append(true).create(true).open(report.join("deeds.jsonl")).unwrap();
        Self {
            sandbox: Sandbox::new(),
            random: Random::new(seed),
            instances: Vec::new(),
            elsewhere: Vec::new(),
            name: name.to_owned(),
            seed,
            under: String::new(),
            report,
            deeds,
            observers: Vec::new(),
            started: 0,
            measured: Instant::now(),
        }
    }

    /// Says which faults the world is under, for a failure.
    pub(crate) fn is_under(&mut self, faults: &[&str]) {
        self.under = faults.join(", ");
    }

    /// Records something.
    pub(crate) fn note(&mut self, deed: Deed) {
        let line = serde_json::to_string(&Dated { at: now(), deed }).unwrap();
        writeln!(self.deeds, "{line}").unwrap();
    }

    /// Records that something was broken.
    pub(crate) fn fault(&mut self, name: &str, detail: &str) {
        self.note(Deed::Fault { name: name.to_owned(), detail: detail.to_string() });
    }

    /// Starts an instance under load; `args` are more arguments of `pando up`. Returns its place.
    pub(crate) fn start(&mut self, args: &[&str]) -> usize {
        let name = self.next_name();
        let command = self.command(&name, self.sandbox.path(), args);
        self.spawn(name, command, args)
    }

    /// Starts an instance that sees the workdir at another place only, where it is mounted once more for this process alone.
    pub(crate) fn start_at_mount(&mut self, mount: &Path, args: &[&str]) -> usize {
        let name = self.next_name();
        let pando = self.command(&name, mount, args);
        let script = "mount --bind \"$0\" \"$1\" && cd \"$1\" && shift && exec \"$@\"";
        let mut command = Command::new("unshare");
        command.args(["-rm", "sh", "-c", script]).args([self.sandbox.path(), mount]);
        command.arg(pando.get_program()).args(pando.get_args());
        for (key, value) in pando.get_envs() {
            match value {
                Some(value) => command.env(key, value),
                None => command.env_remove(key),
            };
        }
        self.spawn(name, command, args)
    }

    fn spawn(&mut self, name: String, mut command: Command, args: &[&str]) -> usize {
        let shim = Shim::preload(&mut command, &self.sandbox.root().join(format!("{name}.wishes")));
        let process = Process::spawn(&self.sandbox, &name, command);
        let args = args.iter().map(|&arg| arg.to_owned()).collect();
        self.note(Deed::Start { who: name.clone(), pid: process.pid(), args });
        self.instances.push(Instance { name, process, shim, role: None, acked: 0 });
        self.instances.len() - 1
    }

    fn next_name(&mut self) -> String {
        self.started += 1;
        format!("{}{}", char::from(b'a' + u8::try_from(self.seed % 26).unwrap()), self.started)
    }

    fn command(&self, name: &str, workdir: &Path, args: &[&str]) -> Command {
        let mut command = binary(workdir);
        command.args(["--json", "up", "--name", name, "--record"]).arg(self.record(name)).args(args);
        command
    }

    fn record(&self, name: &str) -> PathBuf {
        self.report.join(format!("{name}.instance.jsonl"))
    }

    /// Returns how far the instances' records go now.
    pub(crate) fn mark(&self) -> Mark {
        let length = |name: &str| fs::metadata(self.record(name)).map_or(0, |meta| meta.len());
        Mark(self.instances.iter().map(|it| (it.name.clone(), length(&it.name))).collect())
    }

    /// Returns how the writes ended that were begun and have ended since.
    pub(crate) fn outcomes_since(&self, mark: &Mark) -> Vec<Outcome> {
        let mut outcomes = Vec::new();
        for (name, length) in &mark.0 {
            let text = fs::read(self.record(name)).unwrap_or_default();
            let new = String::from_utf8_lossy(text.get(usize::try_from(*length).unwrap()..).unwrap_or_default());
            let mut begun = HashSet::new();
            for line in new.lines() {
                match serde_json::from_str(line).map(|Record { what, .. }| what) {
                    Ok(What::Invoke { op, .. }) => drop(begun.insert(op)),
                    Ok(What::Return { op, outcome }) if begun.contains(&op) => outcomes.push(outcome),
                    _ => {}
                }
            }
        }
        outcomes
    }

    /// Starts an observer that follows from the first event on, and waits until it does.
    #[track_caller]
    pub(crate) fn observe(&mut self) {
        self.started += 1;
        let path = self.report.join(format!("t{}.tail.jsonl", self.started));
        let observer = Observer::start(&self.sandbox, path);
        self.wait("the observer's first event", |_| observer.has_begun().then_some(()));
        self.observers.push(observer);
    }

    /// Sends a signal to every observer.
    pub(crate) fn signal_observer(&mut self, signal: Signal) {
        self.observers.iter().for_each(|observer| observer.signal(signal));
    }

    /// Kills an observer and starts another one.
    pub(crate) fn replace_observer(&mut self) {
        if let Some(mut observer) = self.observers.pop() {
            observer.kill();
        }
        self.observe();
    }

    /// Returns a path beside the workdir where nothing is.
    pub(crate) fn new_place(&mut self, name: &str) -> PathBuf {
        self.started += 1;
        self.sandbox.root().join(format!("{name}-{}", self.started))
    }

    /// Forgets what is known of roles: the workdir begins anew.
    pub(crate) fn is_new(&mut self) {
        for instance in &mut self.instances {
            (instance.role, instance.acked) = (None, 0);
        }
    }

    /// Reads what the instances have said, and measures them now and then.
    pub(crate) fn look(&mut self) {
        self.instances.iter_mut().for_each(Instance::look);
        if self.measured.elapsed() > MEASURE {
            self.measured = Instant::now();
            self.measure();
        }
    }

    fn measure(&mut self) {
        let usage = |instance: &Instance| {
            let proc = PathBuf::from(format!("/proc/{}", instance.process.pid()));
            let status = fs::read_to_string(proc.join("status")).ok()?;
            let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
            let resident_kib = resident.trim().strip_suffix(" kB")?.parse().ok()?;
            let descriptors = fs::read_dir(proc.join("fd")).ok()?.count() as u64;
            Some(Deed::Usage { who: instance.name.clone(), resident_kib, descriptors })
        };
        let deeds: Vec<_> = self.instances.iter().filter_map(usage).collect();
        let wal = self.sandbox.path().join(".pando/pando.db-wal");
        let wal = fs::metadata(wal).map(|meta| Deed::Wal { bytes: meta.len() });
        deeds.into_iter().chain(wal).for_each(|deed| self.note(deed));
    }

    /// Waits until `look` sees something.
    #[track_caller]
    pub(crate) fn wait<T>(&mut self, what: &str, mut look: impl FnMut(&mut Self) -> Option<T>) -> T {
        let told = format!("{what} [{self}]");
        eventually(&told, PATIENCE, || {
            self.look();
            look(self)
        })
    }

    /// Waits until an instance leads in a later epoch than `after`, and somebody's write was acknowledged there.
    #[track_caller]
    pub(crate) fn led_beyond(&mut self, after: u64) -> (usize, u64) {
        self.wait(&format!("a primary beyond epoch {after} that serves"), |world| {
            let led = world.instances.iter().enumerate().filter_map(|(at, it)| Some((at, it.leads()?)));
            let (at, epoch) = led.max_by_key(|(_, epoch)| *epoch).filter(|(_, epoch)| *epoch > after)?;
            world.instances.iter().any(|it| it.acked == epoch).then_some((at, epoch))
        })
    }

    /// Kills an instance with SIGKILL.
    pub(crate) fn kill(&mut self, at: usize) {
        let mut instance = self.instances.swap_remove(at);
        self.note(Deed::Kill { who: instance.name.clone() });
        instance.process.kill();
        self.note_errors(&instance);
        self.note(Deed::End { who: instance.name, status: "killed".to_owned() });
    }

    /// Asks an instance to leave and waits for its end.
    #[track_caller]
    pub(crate) fn term(&mut self, at: usize) {
        let instance = self.instances.swap_remove(at);
        self.note(Deed::Term { who: instance.name.clone() });
        instance.process.signal(Signal::TERM);
        self.ended(instance);
    }

    /// Waits for the end of an instance that ends by itself.
    #[track_caller]
    pub(crate) fn ends(&mut self, at: usize) -> ExitStatus {
        let instance = self.instances.swap_remove(at);
        self.ended(instance)
    }

    #[track_caller]
    fn ended(&mut self, mut instance: Instance) -> ExitStatus {
        let status = instance.process.end(PATIENCE);
        self.note_errors(&instance);
        self.note(Deed::End { who: instance.name, status: status.to_string() });
        status
    }

    fn note_errors(&mut self, instance: &Instance) {
        for error in instance.process.stderr().lines().filter(|line| line.contains("rror")) {
            self.note(Deed::Said { who: instance.name.clone(), error: error.to_owned() });
        }
    }

    /// Waits until an instance that stops itself has done so.
    #[track_caller]
    pub(crate) fn stops(&mut self, at: usize) {
        self.wait("an instance that stops itself", |world| (world.state(at) == 'T').then_some(()));
        self.note(Deed::Stop { who: self.instances[at].name.clone() });
    }

    /// Returns the letter of an instance's state: T stopped, Z ended.
    pub(crate) fn state(&self, at: usize) -> char {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.instances[at].process.pid())).unwrap();
        // The state stands behind the name, which is in parentheses.
        stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next()).unwrap()
    }

    /// Stops an instance.
    pub(crate) fn stop(&mut self, at: usize) {
        self.note(Deed::Stop { who: self.instances[at].name.clone() });
        self.instances[at].process.signal(Signal::STOP);
    }

    /// Lets a stopped instance go on.
    pub(crate) fn go_on(&mut self, at: usize) {
        self.instances[at].process.signal(Signal::CONT);
        self.note(Deed::Continue { who: self.instances[at].name.clone() });
    }

    /// Ends everything in good order, the primary last, and returns what the history violates.
    #[track_caller]
    pub(crate) fn finish(mut self) -> Judged {
        if self.instances.is_empty() {
            self.start(&[]);
        }
        let (primary, _) = self.led_beyond(0);
        let primary = self.instances[primary].name.clone();
        // An observer that follows now is told everything to the last goodbye: one that has seen what came after its first look at the journal.
        // A database that has just begun has no event yet.
        let head = "SELECT coalesce(max(seq), 0) FROM _pando_event";
        let now =
            self.wait("a first event", |world| Some(world.sandbox.count(head).unsigned_abs()).filter(|seq| *seq > 0));
        self.wait("the observers to follow", |world| {
            world.observers.iter().all(|observer| observer.last_seen() >= Some(now)).then_some(())
        });
        while let Some(at) = self.instances.iter().position(|it| it.name != primary) {
            self.hang_up(at);
        }
        self.hang_up(0);
        self.note_what_is_left();
        let head = self.dump();
        for observer in &mut self.observers {
            eventually("the observer's last event", PATIENCE, || (observer.last_seen() == Some(head)).then_some(()));
            observer.kill();
        }
        Judged::of(self)
    }

    /// Kills everything and returns what the history violates.
    pub(crate) fn crash(mut self) -> Judged {
        while !self.instances.is_empty() {
            self.kill(0);
        }
        self.observers.iter_mut().for_each(Observer::kill);
        self.dump();
        Judged::of(self)
    }

    /// Returns the directory with the record of all.
    pub(crate) fn report(&self) -> &Path {
        &self.report
    }

    /// Writes down what is in the databases. Returns the number of the last event of the workdir's.
    fn dump(&self) -> u64 {
        let workdirs = self.sandbox.workdir().database_path();
        let mut head = 0;
        for (number, path) in self.elsewhere.iter().chain([&workdirs]).enumerate() {
            let database = Database::read(path);
            let text = serde_json::to_string(&database).unwrap() + "\n";
            fs::write(self.report.join(format!("{number}.database.jsonl")), text).unwrap();
            head = database.events.last().map_or(0, |last| last.event.seq);
        }
        head
    }

    fn hang_up(&mut self, at: usize) {
        self.instances[at].process.hang_up();
        let status = self.ends(at);
        assert!(status.success(), "an instance that was let go ends well: {status}");
    }

    fn note_what_is_left(&mut self) {
        let workdir = self.sandbox.workdir();
        let mut left = Vec::new();
        if lock::is_held(&workdir).unwrap() {
            left.push("the lock is held".to_owned());
        }
        let sockets = fs::read_dir(workdir.socket_dir().unwrap()).unwrap();
        let sockets = sockets.map(Result::unwrap).filter(|entry| entry.file_type().unwrap().is_socket());
        left.extend(sockets.map(|entry| format!("socket {}", entry.path().display())));
        let info = self.sandbox.lock_info();
        for port in [info.pub_port, info.rpc_port] {
            if TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok() {
                left.push(format!("port {port} is served"));
            }
        }
        for what in left {
            self.note(Deed::Left { what });
        }
    }
}

impl fmt::Display for World {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, seed, under, report, .. } = self;
        write!(f, "{name} with seed {seed} under [{under}], report in {}", report.display())
    }
}

/// After a failure the logs and the database are kept beside the history.
impl Drop for World {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for dir in [self.sandbox.root(), &self.sandbox.path().join(".pando")] {
                for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
                    // Sockets and directories cannot be copied, and need not be.
                    drop(fs::copy(entry.path(), self.report.join(entry.file_name())));
                }
            }
        }
    }
}

/// Returns nanoseconds of `CLOCK_MONOTONIC`.
pub(crate) fn now() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    u64::try_from(now.tv_sec).unwrap() * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap()
}
