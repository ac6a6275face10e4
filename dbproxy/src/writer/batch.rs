//! Group commit: many writes in one transaction, of which a bad one fails alone.
//!
//! A savepoint copies every page before it is changed again, so the first attempt does without. A write that fails before it has
//! changed anything leaves nothing to take back; one that fails later takes the transaction along, and the others go again without it,
//! each in a savepoint.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

use pando_ipc::failpoint::{self, Flaw, Point};
use pando_ipc::fault::Code;
use pando_ipc::{Fault, Recorded};
use rusqlite::{DEFAULT_NAME, Error, ErrorCode, FileControl};

use super::Fenced;
use super::apply::Applied;
use super::dedup::OpsMark;
use super::thread::{Desk, Job};
use crate::journal;
use crate::refusal::{Word, commit_unknown, fenced, from_sqlite, panicked, refuse};
use crate::trouble::may_have_committed;
use crate::write::{Ack, WriteRequest};

/// How a transaction without a failure is controlled.
pub(crate) const CONTROL: &[&str] = &["BEGIN IMMEDIATE", "COMMIT"];

/// A write with its answer.
pub(super) type Answered = Vec<(Job, Result<Ack, Fault>)>;

/// A write in a transaction.
struct Slot {
    job: Job,
    outcome: Option<Result<Ack, Fault>>,
    /// Whether the outcome stands whatever becomes of the transaction: refused, or committed earlier.
    settled: bool,
}

/// A point in a transaction.
#[derive(Debug, Clone, Copy)]
struct Mark {
    journal: journal::Mark,
    ops: OpsMark,
}

/// How a failing write is kept from the others of its transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Care {
    /// Not at all: most do not fail.
    Optimistic,
    /// By a savepoint for each.
    Savepoints,
}

/// What became of a transaction.
enum Attempt {
    /// It is committed, with the first so many writes.
    Committed { taken: usize, events: Vec<Recorded> },
    /// It was rolled back at this write, which has its answer: the others go again.
    Lost { culprit: usize },
    /// A constraint that is checked at COMMIT refused it: some write is to blame, the writes go one by one.
    Blamed(Fault),
    /// Nothing can be committed.
    Failed(Fault),
}

impl Desk {
    /// Commits the first writes of `pending`, in one transaction. Those that had no room stay.
    pub(super) fn commit_some(&mut self, pending: &mut VecDeque<Job>) -> (Answered, Vec<Recorded>) {
        let count = if self.alone > 0 { 1 } else { pending.len() };
        self.alone = self.alone.saturating_sub(count);
        let mut slots: Vec<_> = pending.drain(..count).map(|job| Slot { job, outcome: None, settled: false }).collect();
        let mut care = Care::Optimistic;
        loop {
            match self.attempt(&mut slots, care) {
                Attempt::Committed { taken, events } => {
                    put_back(&mut slots, taken, pending);
                    return (answers(slots, None), events);
                }
                Attempt::Lost { culprit } => {
                    put_back(&mut slots, culprit + 1, pending);
                    for slot in slots.iter_mut().filter(|slot| !slot.settled) {
                        slot.outcome = None;
                    }
                    care = Care::Savepoints;
                }
                Attempt::Blamed(fault) => {
                    if slots.len() == 1 {
                        return (answers(slots, Some(&fault)), Vec::new());
                    }
                    self.alone = slots.len() - 1;
                    put_back(&mut slots, 1, pending);
                    slots[0].outcome = slots[0].outcome.take().filter(|_| slots[0].settled);
                }
                Attempt::Failed(fault) => return (answers(slots, Some(&fault)), Vec::new()),
            }
        }
    }

    fn attempt(&mut self, slots: &mut [Slot], care: Care) -> Attempt {
        failpoint::hit(Point::BeginBefore);
        if let Err(error) = self.control("BEGIN IMMEDIATE") {
            return Attempt::Failed(from_sqlite(label(slots), &error, None));
        }
        failpoint::hit(Point::BeginAfter);
        let start = self.mark();
        if let Some(fault) = self.check_fence(label(slots)) {
            self.abandon(start);
            return Attempt::Failed(fault);
        }
        failpoint::hit(Point::FenceChecked);
        let began = Instant::now();
        let (mut events, mut taken) = (Vec::new(), slots.len());
        for at in 0..slots.len() {
            let (earlier, slot) = slots.split_at_mut(at);
            let Some(slot) = slot.first_mut() else { break };
            if at > 0 && began.elapsed() > self.tuning.batch_time {
                taken = at;
                break;
            }
            if slot.settled {
                continue;
            }
            let applied = match care {
                Care::Optimistic if !slot.job.request.work.changes_schema() => self.in_place(&slot.job.request),
                Care::Optimistic | Care::Savepoints => self.in_savepoint(&slot.job.request),
            };
            match applied {
                Ok(Applied::Now(ack, new)) => {
                    failpoint::hit(Point::WriteApplied);
                    slot.outcome = Some(Ok(ack));
                    events.extend(new);
                }
                Ok(Applied::Before(ack)) => {
                    // What stands in this transaction goes with it.
                    let op_id = &slot.job.request.op_id;
                    slot.settled = !earlier.iter().any(|other| !other.settled && other.job.request.op_id == *op_id);
                    slot.outcome = Some(Ok(ack));
                }
                Err(fault) => {
                    (slot.outcome, slot.settled) = (Some(Err(fault)), true);
                    if self.connection.is_autocommit() {
                        self.abandon(start);
                        return Attempt::Lost { culprit: at };
                    }
                }
            }
        }
        if failpoint::has(Flaw::PublishBeforeCommit) {
            self.tell(&events);
        }
        failpoint::hit(Point::CommitBefore);
        match self.control("COMMIT") {
            Ok(()) => {
                failpoint::hit(Point::CommitAfter);
                self.unchanged = self.data_version();
                self.journal.commit();
                self.ops.commit();
                self.track.schema_is_committed();
                Attempt::Committed { taken, events }
            }
            Err(error) => {
                self.abandon(start);
                not_committed(label(slots), &error, || self.overwrite_lost_commit())
            }
        }
    }

    /// Applies a write without a savepoint. When it fails after it has changed something, the whole transaction is rolled back.
    fn in_place(&mut self, request: &WriteRequest) -> Result<Applied, Fault> {
        let (mark, changes) = (self.mark(), self.connection.total_changes());
        let applied = self.apply_caught(request);
        if applied.is_err() {
            if self.connection.total_changes() == changes {
                self.take_back(mark);
                self.track.clear();
            } else {
                self.abandon(mark);
            }
        }
        applied
    }

    /// Applies a write in a savepoint of its own; a fault leaves nothing of it.
    fn in_savepoint(&mut self, request: &WriteRequest) -> Result<Applied, Fault> {
        let sqlite = |error: Error| from_sqlite(request.work.label(), &error, None);
        let mark = self.mark();
        self.control("SAVEPOINT pando_write").map_err(sqlite)?;
        let applied = self.apply_caught(request).and_then(|applied| {
            self.control("RELEASE pando_write").map_err(sqlite)?;
            Ok(applied)
        });
        if applied.is_err() && !self.connection.is_autocommit() {
            let back = self.control("ROLLBACK TO pando_write").and_then(|()| self.control("RELEASE pando_write"));
            self.take_back(mark);
            if let Err(error) = back.and_then(|()| self.track.schema_was_taken_back(&self.connection)) {
                // The savepoint cannot be trusted: all of the transaction goes, which the caller notices.
                tracing::error!(%error, "rolling back a savepoint failed");
                self.abandon(mark);
            }
        }
        applied
    }

    fn apply_caught(&mut self, request: &WriteRequest) -> Result<Applied, Fault> {
        catch_unwind(AssertUnwindSafe(|| self.apply(request))).unwrap_or_else(|_| {
            let label = request.work.label();
            tracing::error!(write = label, "a write panicked; it is rolled back");
            Err(panicked(label))
        })
    }

    /// Runs one statement of transaction control, prepared once.
    fn control(&self, sql: &str) -> rusqlite::Result<()> {
        self.connection.prepare_cached(sql)?.execute([]).map(drop)
    }

    /// Commits something else where a lost commit may stand in the log. Returns whether that worked: then the lost one is gone for certain.
    fn overwrite_lost_commit(&self) -> bool {
        let sql = "UPDATE _pando_meta SET value = value WHERE key = 'epoch'";
        self.connection.execute(sql, []).inspect_err(|error| tracing::error!(%error, "the disk still fails")).is_ok()
    }

    fn mark(&self) -> Mark {
        Mark { journal: self.journal.mark(), ops: self.ops.mark() }
    }

    /// Takes what is kept in memory back to a point, as the database was.
    fn take_back(&mut self, mark: Mark) {
        self.journal.roll_back(mark.journal);
        self.ops.roll_back(mark.ops);
    }

    /// Rolls the transaction back, if SQLite has not done so, and takes the journal back to its start.
    fn abandon(&mut self, start: Mark) {
        if !self.connection.is_autocommit()
            && let Err(error) = self.control("ROLLBACK")
        {
            tracing::error!(%error, "rolling back failed");
        }
        self.take_back(start);
        self.track.clear();
        if let Err(error) = self.track.schema_was_taken_back(&self.connection) {
            tracing::error!(%error, "the triggers of a schema that was taken back may still be there");
        }
    }

    /// Returns a number that is another one as soon as anybody's commit is seen. Inside a transaction that is everybody's.
    fn data_version(&self) -> Option<u32> {
        let mut version = 0;
        let asked = self.connection.file_control(DEFAULT_NAME, FileControl::DataVersion(&mut version));
        asked.is_ok().then_some(version)
    }

    /// Tells whether the file at the database's path is not the open one.
    pub(super) fn has_moved(&self) -> bool {
        let mut moved = 0;
        let asked = self.connection.file_control(DEFAULT_NAME, FileControl::HasMoved(&mut moved));
        asked.is_ok() && moved != 0
    }

    /// Returns the fault for every write, when a newer primary exists or the file is no longer the one at its path.
    fn check_fence(&mut self, label: &str) -> Option<Fault> {
        if failpoint::has(Flaw::UncheckedEpoch) {
            return None;
        }
        if let Some(why) = self.signals.fenced.borrow().as_ref() {
            return Some(fenced(label, why));
        }
        if self.has_moved() {
            self.fence(Fenced::Replaced);
        } else if !self.log_files.has_log() {
            self.fence(Fenced::LogReplaced);
        } else if self.unchanged.is_none() || self.unchanged != self.data_version() {
            match journal::epoch(&self.connection) {
                Ok(Some(epoch)) if epoch == self.epoch => {}
                Ok(newer) => self.fence(Fenced::NewerEpoch { own: self.epoch, newer: newer.unwrap_or(0) }),
                Err(error) => return Some(from_sqlite(label, &error, None)),
            }
        }
        self.signals.fenced.borrow().as_ref().map(|why| fenced(label, why))
    }
}

/// Returns what the failure of a whole transaction is called by: its first write.
fn label(slots: &[Slot]) -> &str {
    slots.first().map_or("", |slot| slot.job.request.work.label())
}

/// Returns the writes from `keep` on to the front of the queue.
fn put_back(slots: &mut Vec<Slot>, keep: usize, pending: &mut VecDeque<Job>) {
    for slot in slots.drain(keep..).rev() {
        pending.push_front(slot.job);
    }
}

/// Returns the answers; `instead` goes to every write whose outcome hung on the transaction.
fn answers(slots: Vec<Slot>, instead: Option<&Fault>) -> Answered {
    slots
        .into_iter()
        .map(|Slot { job, outcome, settled }| {
            let label = job.request.work.label();
            let result = match (outcome, instead) {
                (Some(outcome), None) => outcome,
                (Some(outcome), Some(_)) if settled => outcome,
                (_, Some(fault)) => Err(fault.clone()),
                (None, None) => Err(refuse(Code::Busy, Word::Internal, label, "the write was not reached")),
            };
            (job, result)
        })
        .collect()
}

/// Returns what a COMMIT that failed means for its writes; `overwrite` makes certain that a lost one is gone, where it can.
fn not_committed(label: &str, error: &Error, overwrite: impl FnOnce() -> bool) -> Attempt {
    let fault = from_sqlite(label, error, None);
    if is_constraint(error) {
        return Attempt::Blamed(fault);
    }
    tracing::error!(%error, "commit failed; nothing was acknowledged");
    if may_have_committed(error) && !overwrite() {
        return Attempt::Failed(commit_unknown(label, error));
    }
    Attempt::Failed(fault)
}

fn is_constraint(error: &Error) -> bool {
    matches!(error, Error::SqliteFailure(failure, _) if failure.code == ErrorCode::ConstraintViolation)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use pando_ipc::Topic;
    use rusqlite::ffi;
    use serde_json::json;

    use super::super::thread::Answer;
    use super::*;
    use crate::{OpId, Work, Writer, WriterOptions};

    fn publish(op_id: &str) -> WriteRequest {
        let (session_id, project_id) = (String::new(), String::new());
        let work = Work::Publish { topic: Topic::known("app.note"), payload: json!(1).into(), session_id, project_id };
        let deadline = Instant::now() + Duration::from_secs(20);
        WriteRequest::new(OpId::parse(op_id), "inst-A".to_owned(), deadline, work).unwrap()
    }

    #[tokio::test]
    async fn an_answer_hangs_on_the_transaction_unless_it_was_committed_before() {
        let dir = tempfile::tempdir().unwrap();
        let writer = Writer::open(&dir.path().join("pando.db"), WriterOptions::new("inst-A", dir.path())).unwrap();
        writer.submit(publish("before")).await.unwrap();
        let mut slots = ["new", "before", "new"].map(|op_id| {
            let job = Job { request: publish(op_id), weight: 0, answer: Answer::default() };
            Slot { job, outcome: None, settled: false }
        });
        assert_eq!((label(&slots), label(&[])), ("publish", ""));
        {
            let mut place = writer.0.place.lock().unwrap();
            let attempt = place.as_mut().unwrap().attempt(&mut slots, Care::Optimistic);
            assert!(matches!(attempt, Attempt::Committed { taken: 3, .. }));
        }
        let replayed = |slot: &Slot| slot.outcome.as_ref().unwrap().as_ref().unwrap().replayed;
        assert_eq!(slots.each_ref().map(replayed), [false, true, true]);
        assert_eq!(slots.each_ref().map(|slot| slot.settled), [false, true, false]);
        writer.close().await;
    }

    /// Returns the code of the answer when COMMIT fails with this error, and whether the lost commit was overwritten.
    fn answer(code: i32, can_overwrite: bool) -> (Code, bool) {
        let error = Error::SqliteFailure(ffi::Error::new(code), None);
        let mut tried = false;
        let attempt = not_committed("exec", &error, || {
            tried = true;
            can_overwrite
        });
        let Attempt::Failed(fault) = attempt else { panic!("nobody is to blame for {error}") };
        let codes = [Code::Storage, Code::OutcomeUnknown];
        (codes.into_iter().find(|code| fault.is(*code)).unwrap_or_else(|| panic!("{fault}")), tried)
    }

    #[test]
    fn only_a_commit_that_may_stand_in_the_log_is_unknown_and_only_while_it_cannot_be_overwritten() {
        for can_overwrite in [false, true] {
            assert_eq!(answer(ffi::SQLITE_FULL, can_overwrite), (Code::Storage, false));
            assert_eq!(answer(ffi::SQLITE_IOERR_WRITE, can_overwrite), (Code::Storage, false));
        }
        assert_eq!(answer(ffi::SQLITE_IOERR_FSYNC, true), (Code::Storage, true));
        assert_eq!(answer(ffi::SQLITE_IOERR_FSYNC, false), (Code::OutcomeUnknown, true));
    }

    #[test]
    fn a_constraint_at_commit_has_somebody_to_blame() {
        let error = Error::SqliteFailure(ffi::Error::new(ffi::SQLITE_CONSTRAINT_FOREIGNKEY), None);
        assert!(matches!(not_committed("exec", &error, || unreachable!()), Attempt::Blamed(_)));
    }
}
