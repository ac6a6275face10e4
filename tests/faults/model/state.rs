//! The state machine: lock files, databases, nodes and the messages between them, and every step that may come next.

mod promises;

use pando_ipc::failpoint::Flaw;

/// Most messages under way; a real wire is bounded, too.
const MESSAGES: usize = 4;

/// Everything there is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct State {
    pub(super) flaw: Option<Flaw>,
    /// The file that `.pando/ipc.lock` leads to.
    lock_path: Option<usize>,
    /// The file that `.pando/pando.db` leads to.
    database_path: Option<usize>,
    /// Each lock file that ever was: who holds it, and who says to lead.
    locks: Vec<Lock>,
    /// Each database that ever was.
    databases: Vec<Database>,
    pub(super) nodes: Vec<Node>,
    wire: Vec<Message>,
    /// What subscribers saw: database, number, op.
    seen: Vec<(usize, usize, usize)>,
    /// What callers were told: op, database, number, epoch.
    pub(super) acks: Vec<(usize, usize, usize, usize)>,
    /// Whether somebody took a lock file away.
    vandalised: bool,
    next_op: usize,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
struct Lock {
    holder: Option<usize>,
    /// Node and epoch.
    info: Option<(usize, usize)>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
struct Database {
    epoch: usize,
    /// Who is in a transaction.
    writer: Option<usize>,
    /// Committed writes: epoch, op, and the key by which a retry is found.
    log: Vec<(usize, usize, usize)>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(super) struct Node {
    role: Role,
    is_paused: bool,
    call: Option<Call>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
enum Role {
    #[default]
    Out,
    /// In the queue for a lock file.
    Waiting(usize),
    /// Holds a lock file; the path is not yet compared.
    Won(usize),
    /// Holds the lock file of the path.
    Sure(usize),
    /// Has begun an epoch; nobody knows.
    Opened(Term),
    Leading(Term, Work),
    /// Has left, and is about to unlink the lock file: a mistake.
    Unlinking,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Term {
    lock: usize,
    database: usize,
    epoch: usize,
}

/// What a primary is in the middle of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Work {
    Idle,
    /// A transaction with this write.
    Applied {
        from: usize,
        op: usize,
        key: usize,
    },
    /// It is committed under this number, and not yet told.
    Committed {
        from: usize,
        op: usize,
        number: usize,
    },
}

/// A write that its caller waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Call {
    op: usize,
    key: usize,
    is_sent: bool,
    /// The database that it is meant for.
    database: Option<usize>,
    /// The numbers known to be acknowledged when it was begun: how many, of all databases.
    acks_before: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Message {
    Request { from: usize, to: usize, epoch: usize, op: usize, key: usize, database: Option<usize> },
    Reply { to: usize, op: usize, database: usize, number: usize, epoch: usize },
}

/// Something that may happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Step {
    /// Opens the lock file, or makes it.
    Open(usize),
    /// Is given the lock.
    Grant(usize),
    /// Compares the path with the locked file.
    Compare(usize),
    /// Opens the database, or makes it, and counts the epoch up.
    Begin(usize),
    /// Writes who it is, and serves.
    Advertise(usize),
    /// Looks whether the lock file is still its own, and steps down when not.
    CheckLock(usize),
    /// Begins a write.
    Invoke(usize),
    /// Sends it to whoever leads.
    Send(usize),
    /// Hears nothing, and will send again.
    Timeout(usize),
    /// Takes a request into a transaction, or refuses it.
    Serve(usize),
    Commit(usize),
    /// Publishes and answers.
    Tell(usize),
    Receive(usize),
    /// Leaves in good order.
    Leave(usize),
    Unlink(usize),
    /// Faults.
    Lose(usize),
    Crash(usize),
    Pause(usize),
    Resume(usize),
    RemoveLock,
    RemoveAll,
}

impl Step {
    /// Tells whether this is a fault, which need not happen.
    pub(super) fn is_fault(self) -> bool {
        use Step::{Crash, Leave, Lose, Pause, RemoveAll, RemoveLock, Timeout};
        matches!(self, Lose(_) | Crash(_) | Pause(_) | Leave(_) | Timeout(_) | RemoveLock | RemoveAll)
    }
}

impl State {
    pub(super) fn new(nodes: usize, flaw: Option<Flaw>) -> Self {
        Self {
            flaw,
            lock_path: None,
            database_path: None,
            locks: Vec::new(),
            databases: Vec::new(),
            nodes: vec![Node::default(); nodes],
            wire: Vec::new(),
            seen: Vec::new(),
            acks: Vec::new(),
            vandalised: false,
            next_op: 0,
        }
    }

    /// Returns every step that can be taken.
    pub(super) fn enabled(&self) -> Vec<Step> {
        let mut steps = self.candidates();
        steps.retain(|&step| self.clone().take(step));
        steps
    }

    /// Returns every step that there is, those that cannot be taken now included.
    pub(super) fn candidates(&self) -> Vec<Step> {
        let mut steps = vec![Step::RemoveLock, Step::RemoveAll];
        for node in 0..self.nodes.len() {
            let all = [
                Step::Open(node),
                Step::Grant(node),
                Step::Compare(node),
                Step::Begin(node),
                Step::Advertise(node),
                Step::CheckLock(node),
                Step::Invoke(node),
                Step::Send(node),
                Step::Timeout(node),
                Step::Commit(node),
                Step::Tell(node),
                Step::Leave(node),
                Step::Unlink(node),
                Step::Crash(node),
                Step::Pause(node),
                Step::Resume(node),
            ];
            steps.extend(all);
        }
        for message in 0..self.wire.len() {
            steps.extend([Step::Serve(message), Step::Receive(message), Step::Lose(message)]);
        }
        steps
    }

    /// Takes a step; false when it cannot be taken now, and then the state is not to be used.
    pub(super) fn take(&mut self, step: Step) -> bool {
        match step {
            Step::Open(node)
            | Step::Grant(node)
            | Step::Compare(node)
            | Step::Begin(node)
            | Step::Advertise(node)
            | Step::CheckLock(node)
            | Step::Commit(node)
            | Step::Tell(node)
            | Step::Leave(node)
            | Step::Unlink(node) => !self.nodes[node].is_paused && self.lead(step, node).is_some(),
            Step::Invoke(node) | Step::Send(node) | Step::Timeout(node) => {
                !self.nodes[node].is_paused && self.call(step, node).is_some()
            }
            Step::Serve(at) => self.serve(at).is_some(),
            Step::Receive(at) => self.receive(at).is_some(),
            Step::Lose(at) => {
                at < self.wire.len() && {
                    self.wire.remove(at);
                    true
                }
            }
            Step::Crash(node) => self.crash(node),
            Step::Pause(node) => !std::mem::replace(&mut self.nodes[node].is_paused, true),
            Step::Resume(node) => std::mem::replace(&mut self.nodes[node].is_paused, false),
            Step::RemoveLock => self.remove(false),
            Step::RemoveAll => self.remove(true),
        }
    }

    fn lead(&mut self, step: Step, node: usize) -> Option<()> {
        let next = match (step, self.nodes[node].role) {
            (Step::Open(_), Role::Out) => {
                let lock = *self.lock_path.get_or_insert_with(|| {
                    self.locks.push(Lock::default());
                    self.locks.len() - 1
                });
                Role::Waiting(lock)
            }
            (Step::Grant(_), Role::Waiting(lock)) if self.locks[lock].holder.is_none() => {
                self.locks[lock].holder = Some(node);
                Role::Won(lock)
            }
            (Step::Compare(_), Role::Won(lock)) if self.lock_path == Some(lock) => Role::Sure(lock),
            (Step::Compare(_), Role::Won(lock)) => self.release(lock),
            (Step::Begin(_), Role::Sure(lock)) => {
                let database = *self.database_path.get_or_insert_with(|| {
                    self.databases.push(Database::default());
                    self.databases.len() - 1
                });
                let file = &mut self.databases[database];
                // Whoever is in a transaction is waited for.
                if file.writer.is_some() {
                    return None;
                }
                file.epoch += 1;
                Role::Opened(Term { lock, database, epoch: file.epoch })
            }
            (Step::Advertise(_), Role::Opened(term)) => {
                self.locks[term.lock].info = Some((node, term.epoch));
                Role::Leading(term, Work::Idle)
            }
            (Step::CheckLock(_), Role::Leading(term, Work::Idle)) if self.lock_path != Some(term.lock) => {
                self.release(term.lock)
            }
            (Step::Commit(_), Role::Leading(term, Work::Applied { from, op, key })) => {
                let file = &mut self.databases[term.database];
                file.writer = None;
                file.log.push((term.epoch, op, key));
                Role::Leading(term, Work::Committed { from, op, number: file.log.len() })
            }
            (Step::Tell(_), Role::Leading(term, Work::Committed { from, op, number })) => {
                self.publish(term.database, number, op);
                let Term { database, epoch, .. } = term;
                self.wire.push(Message::Reply { to: from, op, database, number, epoch });
                Role::Leading(term, Work::Idle)
            }
            (Step::Leave(_), Role::Leading(term, Work::Idle)) => {
                let out = self.release(term.lock);
                if self.flaw == Some(Flaw::UnlinkedLock) { Role::Unlinking } else { out }
            }
            (Step::Unlink(_), Role::Unlinking) => {
                self.lock_path = None;
                Role::Out
            }
            _ => return None,
        };
        self.nodes[node].role = next;
        Some(())
    }

    fn release(&mut self, lock: usize) -> Role {
        self.locks[lock].holder = None;
        Role::Out
    }

    fn publish(&mut self, database: usize, number: usize, op: usize) {
        if !self.seen.contains(&(database, number, op)) {
            self.seen.push((database, number, op));
        }
    }

    fn call(&mut self, step: Step, node: usize) -> Option<()> {
        match (step, self.nodes[node].call) {
            // A write that begins before there is a database is meant for any, and may be applied in two of them.
            (Step::Invoke(_), None) if self.database_path.is_some() => {
                let (op, acks_before) = (self.next_op, self.acks.len());
                self.next_op += 1;
                let database = self.database_path;
                self.nodes[node].call = Some(Call { op, key: op, is_sent: false, database, acks_before });
            }
            (Step::Send(_), Some(call)) if !call.is_sent && self.wire.len() < MESSAGES => {
                let (to, epoch) = self.answers_hello()?;
                let Call { op, key, database, .. } = call;
                self.wire.push(Message::Request { from: node, to, epoch, op, key, database });
                self.nodes[node].call = Some(Call { is_sent: true, ..call });
            }
            (Step::Timeout(_), Some(call)) if call.is_sent => {
                let mut again = Call { is_sent: false, ..call };
                if self.flaw == Some(Flaw::RetryWithoutOpId) {
                    again.key = usize::MAX - self.next_op;
                    self.next_op += 1;
                }
                self.nodes[node].call = Some(again);
            }
            _ => return None,
        }
        Some(())
    }

    /// Returns whom the lock file names, if that one holds the lock and answers with the same epoch.
    fn answers_hello(&self) -> Option<(usize, usize)> {
        let lock = &self.locks[self.lock_path?];
        let (node, epoch) = lock.info.filter(|(node, _)| lock.holder == Some(*node))?;
        let is_it = matches!(self.nodes[node].role, Role::Leading(term, _) if term.epoch == epoch);
        (is_it && !self.nodes[node].is_paused).then_some((node, epoch))
    }

    fn serve(&mut self, at: usize) -> Option<()> {
        let Message::Request { from, to, epoch, op, key, database } = *self.wire.get(at)? else { return None };
        if self.nodes[to].is_paused {
            return None;
        }
        let Role::Leading(term, work) = self.nodes[to].role else {
            self.wire.remove(at);
            return Some(());
        };
        if work != Work::Idle || self.databases[term.database].writer.is_some() {
            return None;
        }
        self.wire.remove(at);
        let is_over = self.database_path != Some(term.database) || self.databases[term.database].epoch != term.epoch;
        if is_over && self.flaw != Some(Flaw::UncheckedEpoch) {
            self.nodes[to].role = self.release(term.lock);
            return Some(());
        }
        if term.epoch != epoch || database.is_some_and(|meant| meant != term.database) {
            // Refused, and so given up by its caller.
            self.nodes[from].call = self.nodes[from].call.filter(|call| call.op != op);
            return Some(());
        }
        let log = &self.databases[term.database].log;
        if let Some(found) = log.iter().position(|(_, _, applied)| *applied == key) {
            let (epoch, number) = (log[found].0, found + 1);
            self.wire.push(Message::Reply { to: from, op, database: term.database, number, epoch });
            return Some(());
        }
        if self.flaw == Some(Flaw::PublishBeforeCommit) {
            let number = log.len() + 1;
            self.publish(term.database, number, op);
        }
        self.databases[term.database].writer = Some(to);
        self.nodes[to].role = Role::Leading(term, Work::Applied { from, op, key });
        Some(())
    }

    fn receive(&mut self, at: usize) -> Option<()> {
        let Message::Reply { to, op, database, number, epoch } = *self.wire.get(at)? else { return None };
        if self.nodes[to].is_paused {
            return None;
        }
        self.wire.remove(at);
        if self.nodes[to].call.is_some_and(|call| call.op == op) {
            self.acks.push((op, database, number, epoch));
        }
        Some(())
    }

    fn crash(&mut self, node: usize) -> bool {
        for lock in self.locks.iter_mut().filter(|lock| lock.holder == Some(node)) {
            lock.holder = None;
        }
        for database in self.databases.iter_mut().filter(|database| database.writer == Some(node)) {
            database.writer = None;
        }
        self.wire.retain(|message| match message {
            Message::Request { from, to, .. } => *from != node && *to != node,
            Message::Reply { to, .. } => *to != node,
        });
        std::mem::take(&mut self.nodes[node]) != Node::default()
    }

    fn remove(&mut self, everything: bool) -> bool {
        self.vandalised = true;
        let had = self.lock_path.take().is_some();
        if everything {
            self.database_path = None;
        }
        had
    }
}
