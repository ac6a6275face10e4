//! Named places where tests end, stop or slow a process, and known mistakes which tests must notice.
//!
//! Only with the cargo feature `failpoints`, which the shipped binary is built without: there [`hit`] is empty and
//! [`has`] is always false, so that nothing of either remains in the code. Neither does [`protocol`], by which a test makes a
//! binary another release's.

/// Declares an enum whose variants have names that a person can type.
macro_rules! named {
    ($(#[$doc:meta])* $type:ident { $($(#[$of:meta])* $variant:ident = $name:literal,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum $type {
            $($(#[$of])* $variant,)*
        }

        impl $type {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// Returns its name.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)*
                }
            }

            /// Returns the one with this name.
            pub fn find(name: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|it| it.name() == name)
            }
        }
    };
}

named! {
    /// A place in the code, in about the order in which a primary's life passes them.
    Point {
        /// The lock file is about to be opened.
        LockOpen = "lock.open",
        /// The lock is ours; the path is not yet compared with the file.
        LockWon = "lock.won",
        /// A secondary's thread is about to wait for the lock.
        CandidateWait = "candidate.wait",
        /// The file of the database is about to be opened for writing.
        StoreOpen = "store.open",
        /// A migration is about to be committed.
        MigrationCommit = "migration.commit",
        /// The new epoch is written, not yet committed.
        EpochCommit = "epoch.commit",
        /// The new epoch is committed.
        EpochCommitted = "epoch.committed",
        /// The writer is open; the hub has not caught up.
        TermOpened = "term.opened",
        /// The hub has caught up; nothing is bound.
        TermCaughtUp = "term.caught-up",
        /// The Unix sockets are about to be bound.
        BindUnix = "bind.unix",
        /// The Unix sockets are bound, the TCP ports are not.
        BindTcp = "bind.tcp",
        /// Everything is bound, nothing is accepted.
        BindDone = "bind.done",
        /// Everything serves; nothing is advertised.
        AdvertiseWrite = "advertise.write",
        /// The lock file is written over, not yet cut to length.
        AdvertiseCut = "advertise.cut",
        /// The lock file says who we are.
        AdvertiseDone = "advertise.done",
        /// The term serves; its beginning is not yet announced.
        TermServes = "term.serves",
        /// A call was read from a peer.
        CallRead = "call.read",
        /// A transaction is about to begin.
        BeginBefore = "begin.before",
        /// A transaction has begun; the epoch is not yet checked.
        BeginAfter = "begin.after",
        /// The epoch of the transaction is right; nothing is applied.
        FenceChecked = "fence.checked",
        /// One write of the transaction is applied, its stored answer included.
        WriteApplied = "write.applied",
        /// All writes of the transaction are applied.
        CommitBefore = "commit.before",
        /// The transaction is committed; nobody knows.
        CommitAfter = "commit.after",
        /// The events of the commit are about to be published.
        PublishBefore = "publish.before",
        /// The events of the commit are published; the writes are not answered.
        PublishAfter = "publish.after",
        /// A write is about to be answered.
        ReplyBefore = "reply.before",
        /// A write was answered; others of the same commit may not be.
        ReplyAfter = "reply.after",
        /// The answer to a call is about to be queued for its peer.
        AnswerBefore = "answer.before",
        /// The answer to a call is queued for its peer.
        AnswerAfter = "answer.after",
        /// The WAL is about to be moved into the database.
        CheckpointBefore = "checkpoint.before",
        /// The WAL was moved into the database.
        CheckpointAfter = "checkpoint.after",
        /// A primary begins to leave.
        ShutdownBegin = "shutdown.begin",
        /// The goodbye is committed and published.
        ShutdownGoodbye = "shutdown.goodbye",
        /// The writer is closed: all writes are answered.
        ShutdownDrained = "shutdown.drained",
        /// Peers have what was queued for them.
        ShutdownFlushed = "shutdown.flushed",
        /// All sockets are closed.
        ShutdownClosed = "shutdown.closed",
        /// The lock is about to be released.
        LockRelease = "lock.release",
        /// The lock is released and about to be unlinked: only [`Flaw::UnlinkedLock`] comes here.
        LockUnlink = "lock.unlink",
        /// A secondary has sent a call to the primary.
        ClientSent = "client.sent",
        /// A secondary's link to the primary is up.
        ClientLinked = "client.linked",
        /// A secondary has been given the lock.
        CandidateWon = "candidate.won",
    }
}

named! {
    /// A mistake that other systems of this kind made: the negative controls of the tests.
    Flaw {
        /// The lock file is unlinked after the lock was released.
        UnlinkedLock = "unlinked-lock",
        /// A write whose outcome is unknown is sent again under another op id.
        RetryWithoutOpId = "retry-without-op-id",
        /// Events are published before their commit.
        PublishBeforeCommit = "publish-before-commit",
        /// A primary does not look whether its epoch is over.
        UncheckedEpoch = "unchecked-epoch",
    }
}

#[cfg(not(feature = "failpoints"))]
mod facility {
    use super::{Flaw, Point};

    /// Does nothing: the feature `failpoints` is off.
    #[inline]
    pub const fn hit(_: Point) {}

    /// Returns false: the feature `failpoints` is off.
    #[inline]
    pub const fn has(_: Flaw) -> bool {
        false
    }

    /// Returns `None`: the feature `failpoints` is off.
    #[inline]
    pub const fn protocol() -> Option<u32> {
        None
    }
}

#[cfg(feature = "failpoints")]
#[path = "failpoint/facility.rs"]
mod facility;

pub use facility::*;
