//! Copies of the database, and what is put in its place.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use pando_ipc::fault::Code;
use pando_ipc::lock::try_lock;
use pando_ipc::{Lease, Workdir};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::*;
use crate::backup::{Copied, CopyError, OnStep, Step, back_up};
use crate::restore::{Restored, restore};
use crate::{Trouble, tidy};

fn quiet() -> OnStep {
    Arc::new(|_| {})
}

fn backup(bench: &Bench, to: &str) -> Result<Copied, CopyError> {
    back_up(&bench.path(), &bench.dir.path().join(to), false, &CancellationToken::new(), &quiet())
}

fn lease(bench: &Bench) -> Lease {
    try_lock(&Workdir::open(bench.dir.path()).unwrap()).unwrap().unwrap()
}

fn put_back(bench: &Bench, from: &str) -> Result<Restored, CopyError> {
    let from = bench.dir.path().join(from);
    restore(&lease(bench), &from, &bench.path(), &CancellationToken::new(), &quiet())
}

/// Files of the workdir and beside the database whose names hold this.
fn beside(bench: &Bench, part: &str) -> Vec<String> {
    let dirs = [bench.dir.path().to_owned(), bench.dir.path().join(".pando")];
    let names = dirs.iter().flat_map(|dir| fs::read_dir(dir).unwrap());
    let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = names.filter(|name| name.contains(part)).collect();
    names.sort();
    names
}

fn one<T: rusqlite::types::FromSql>(path: &Path, sql: &str) -> T {
    rusqlite::Connection::open(path).unwrap().query_row(sql, [], |row| row.get(0)).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_under_load_is_one_moment_of_the_database() {
    let bench = Bench::new();
    let writer = bench.writer();
    apply(&writer, ddl(&["CREATE TABLE pair (a INTEGER, b INTEGER)", "INSERT INTO pair VALUES (0, 0)"])).await;
    let stop = CancellationToken::new();
    let (writing, stopped) = (writer.clone(), stop.clone());
    let tasks = TaskTracker::new();
    tasks.spawn(async move {
        while !stopped.is_cancelled() {
            let filler = "INSERT INTO files (id, session_id, path, content, version) SELECT hex(randomblob(16)), 's', hex(randomblob(8)), hex(randomblob(2000)), 'v'";
            apply(&writing, exec(&["UPDATE pair SET a = a + 1", filler, "UPDATE pair SET b = b + 1"])).await;
        }
    });
    apply(&writer, session("s")).await;
    for round in 0..5 {
        let name = format!("copy-{round}");
        let bench = &bench;
        let copied = tokio::task::block_in_place(|| backup(bench, &name)).unwrap();
        assert_eq!(one::<i64>(&copied.path, "SELECT a - b FROM pair"), 0);
        let head: u64 = one(&copied.path, "SELECT max(seq) FROM _pando_event");
        assert_eq!(copied.standing.seq, head);
        assert_eq!(fs::metadata(&copied.path).unwrap().permissions().mode() & 0o777, 0o600);
    }
    stop.cancel();
    tasks.close();
    tasks.wait().await;
    assert_eq!(beside(&bench, "partial"), [""; 0]);
}

#[tokio::test]
async fn a_backup_replaces_nothing_unless_told_and_never_the_database() {
    let bench = Bench::new();
    apply(&bench.writer(), session("s")).await;
    let (path, target) = (bench.path(), bench.dir.path().join("copy"));
    fs::write(&target, "precious").unwrap();
    assert!(matches!(backup(&bench, "copy"), Err(CopyError::Exists { .. })));
    assert_eq!(fs::read(&target).unwrap(), b"precious");
    let over = |to: &Path| back_up(&path, to, true, &CancellationToken::new(), &quiet());
    assert_eq!(over(&target).unwrap().standing.seq, 2);
    let alias = bench.dir.path().join("alias");
    std::os::unix::fs::symlink(&path, &alias).unwrap();
    for itself in [&path, &alias] {
        assert!(matches!(over(itself), Err(CopyError::Itself { .. })));
    }
    let nowhere = over(Path::new("/nowhere/at/all")).unwrap_err();
    assert!(nowhere.to_string().contains("/nowhere/at/all"), "{nowhere}");
}

#[tokio::test]
async fn a_backup_replaces_neither_files_of_pandos_own_nor_what_is_no_file() {
    let bench = Bench::new();
    apply(&bench.writer(), session("s")).await;
    let at = |name: &str| bench.dir.path().join(name);
    let over = |to: &Path| back_up(&bench.path(), to, true, &CancellationToken::new(), &quiet());
    fs::create_dir(at(".pando/run")).unwrap();
    fs::write(at(".pando/settings.json"), "{}").unwrap();
    std::os::unix::fs::symlink(at(".pando"), at("alias")).unwrap();
    for own in [".pando/pando.db-wal", ".pando/settings.json", ".pando/new", ".pando/run/new", "alias/settings.json"] {
        let refused = over(&at(own));
        assert!(matches!(refused, Err(CopyError::Inside { .. })), "{own}: {refused:?}");
    }
    assert_eq!(fs::read(at(".pando/settings.json")).unwrap(), b"{}");
    fs::create_dir(at("dir")).unwrap();
    let pipe = |path: &Path| rustix::fs::mkfifoat(rustix::fs::CWD, path, 0o600.into()).unwrap();
    pipe(&at("pipe"));
    std::os::unix::fs::symlink(at("nowhere"), at("link")).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(at("socket")).unwrap();
    for (name, is) in [("dir", "a directory"), ("pipe", "a pipe"), ("link", "a symbolic link"), ("socket", "a socket")]
    {
        let refused = over(&at(name));
        assert!(matches!(refused, Err(CopyError::NotAFile { what, .. }) if what == is), "{name}: {refused:?}");
    }
    assert_eq!(beside(&bench, "partial"), [""; 0]);
}

#[tokio::test]
async fn a_cancelled_backup_leaves_nothing() {
    let bench = Bench::new();
    let writer = bench.writer();
    let rows = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n WHERE x < 20000) INSERT INTO big SELECT x, hex(randomblob(200)) FROM n";
    apply(&writer, ddl(&["CREATE TABLE big (a, b)", rows])).await;
    let stop = CancellationToken::new();
    let told = stop.clone();
    let on_step: OnStep = Arc::new(move |step| {
        if matches!(step, Step::Copying { .. }) {
            told.cancel();
        }
    });
    let cancelled = back_up(&bench.path(), &bench.dir.path().join("copy"), false, &stop, &on_step);
    assert!(matches!(cancelled, Err(CopyError::Cancelled)), "{cancelled:?}");
    assert_eq!((beside(&bench, "copy"), beside(&bench, "partial")), (vec![], vec![]));
}

#[tokio::test]
async fn what_is_restored_is_a_database_of_its_own() {
    let bench = Bench::new();
    let writer = bench.writer();
    apply(&writer, session("kept")).await;
    backup(&bench, "copy").unwrap();
    apply(&writer, session("later")).await;
    let lost = request("op-lost", message("m", "kept")).meant_for(Some(writer.database()), 0);
    writer.submit(lost.clone()).await.unwrap();
    let (database, epoch, head) = (writer.database(), writer.epoch(), writer.head());
    writer.close().await;

    let restored = put_back(&bench, "copy").unwrap();
    assert_eq!(restored.copy_of, database);
    assert_ne!(restored.standing.database, database);
    let former = restored.former.unwrap();
    assert_eq!(one::<i64>(&former, "SELECT count(*) FROM sessions"), 2, "the former database is whole");

    bench.forget();
    let writer = bench.writer();
    assert_eq!(writer.database(), restored.standing.database);
    assert!(writer.epoch() > epoch);
    assert_eq!(writer.head(), head + 1, "numbers go on");
    assert_eq!(bench.value("SELECT group_concat(id) FROM sessions").await, "kept");
    // A client that was away sends its write again: it was meant for the former database.
    let refused = writer.submit(lost).await.unwrap_err();
    assert!(refused.is(Code::WrongDatabase), "{refused}");
    apply(&writer, session("new")).await;

    let readers = bench.readers();
    let followed = |after| {
        let readers = readers.clone();
        async move { readers.since(after, &[Pattern::All], 10).await.unwrap() }
    };
    let up_to_date = followed(head).await;
    assert_eq!((up_to_date.resync, up_to_date.events[0].topic.as_str()), (None, "db.restored"));
    assert_eq!(up_to_date.events[0].payload.read::<Value>().unwrap()["former"], database.to_string());
    assert_eq!(up_to_date.events[1].prev, Some(1), "topics remember their last event");
    let behind = followed(1).await;
    assert_eq!(behind.resync.map(|gone| (gone.from, gone.to)), Some((2, head)));
    assert_eq!(behind.events[0].topic.as_str(), "db.restored");
}

#[tokio::test]
async fn a_database_that_somebody_reads_is_not_replaced_and_keeps_its_log() {
    let bench = Bench::new();
    let writer = bench.writer();
    apply(&writer, session("kept")).await;
    backup(&bench, "copy").unwrap();
    let reader = rusqlite::Connection::open(bench.path()).unwrap();
    let read = reader.unchecked_transaction().unwrap();
    assert_eq!(read.query_row("SELECT count(*) FROM sessions", [], |row| row.get::<_, i64>(0)).unwrap(), 1);
    apply(&writer, session("later")).await;
    writer.close().await;
    let log = crate::schema::beside(&bench.path(), "-wal");
    assert_ne!(fs::metadata(&log).unwrap().len(), 0, "what the reader has not seen is in the log");
    let refused = put_back(&bench, "copy");
    assert!(matches!(refused, Err(CopyError::InUse { .. })), "{refused:?}");
    assert_ne!(fs::metadata(&log).unwrap().len(), 0);
    assert_eq!((beside(&bench, "partial"), beside(&bench, "replaced")), (vec![], vec![]));
    assert_eq!(one::<i64>(&bench.path(), "SELECT count(*) FROM sessions"), 2);
    drop(read);
    let former = put_back(&bench, "copy").unwrap().former.unwrap();
    assert_eq!(one::<i64>(&former, "SELECT count(*) FROM sessions"), 2);
}

#[tokio::test]
async fn a_database_that_cannot_be_read_is_put_aside_with_its_log_and_no_log_meets_the_copy() {
    let bench = Bench::new();
    let writer = bench.writer();
    apply(&writer, session("kept")).await;
    backup(&bench, "copy").unwrap();
    writer.close().await;
    let log = crate::schema::beside(&bench.path(), "-wal");
    fs::write(bench.path(), "no database at all, but some bytes are there").unwrap();
    fs::write(&log, "a log that goes with it").unwrap();
    let former = put_back(&bench, "copy").unwrap().former.unwrap();
    assert!(fs::read(&former).unwrap().starts_with(b"no database"));
    assert!(fs::read(crate::schema::beside(&former, "-wal")).unwrap().starts_with(b"a log"));
    fs::remove_file(bench.path()).unwrap();
    fs::write(&log, "a log that was left").unwrap();
    assert_eq!(put_back(&bench, "copy").unwrap().former, None);
    assert!(!log.exists());
}

#[tokio::test]
async fn a_restore_removes_what_killed_ones_left() {
    let bench = Bench::new();
    let writer = bench.writer();
    apply(&writer, session("kept")).await;
    backup(&bench, "copy").unwrap();
    writer.close().await;
    let partial = |name: &str| crate::schema::beside(&bench.path(), &format!(".partial-{name}"));
    fs::rename(bench.dir.path().join("copy"), partial("restored")).unwrap();
    for left in ["left", "left-journal"] {
        fs::write(partial(left), "").unwrap();
    }
    put_back(&bench, ".pando/pando.db.partial-restored").unwrap();
    assert_eq!(beside(&bench, "partial"), ["pando.db.partial-restored"], "what is restored stays");
}

#[tokio::test]
async fn a_restore_needs_no_former_database_and_none_that_can_be_read() {
    let bench = Bench::new();
    let writer = bench.writer();
    apply(&writer, session("kept")).await;
    backup(&bench, "copy").unwrap();
    writer.close().await;
    let head = |bench: &Bench| one::<u64>(&bench.path(), "SELECT max(seq) FROM _pando_event");
    fs::write(bench.path(), "no database at all, but some bytes are there").unwrap();
    let restored = put_back(&bench, "copy").unwrap();
    assert!(fs::read(restored.former.unwrap()).unwrap().starts_with(b"no database"));
    assert_eq!(head(&bench), 2 + crate::incarnation::UNKNOWN_JUMP + 1);
    fs::remove_file(bench.path()).unwrap();
    assert_eq!(put_back(&bench, "copy").unwrap().former, None);
    assert_eq!(head(&bench), 3);
    bench.writer().close().await;
}

#[tokio::test]
async fn what_is_damaged_foreign_or_newer_is_not_restored() {
    let bench = Bench::new();
    let writer = bench.writer();
    let rows = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n WHERE x < 2000) INSERT INTO big SELECT x, hex(randomblob(50)) FROM n";
    apply(&writer, ddl(&["CREATE TABLE big (a, b)", "CREATE INDEX big_b ON big (b)", rows])).await;
    for name in ["damaged", "newer"] {
        backup(&bench, name).unwrap();
    }
    writer.close().await;
    let before = fs::read(bench.path()).unwrap();
    let at = |name: &str| bench.dir.path().join(name);
    let mut bytes = fs::read(at("damaged")).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle..middle + 8_192].fill(0x55);
    fs::write(at("damaged"), bytes).unwrap();
    assert!(matches!(put_back(&bench, "damaged"), Err(CopyError::Damaged { .. })));
    let newer = rusqlite::Connection::open(at("newer")).unwrap();
    newer.execute("INSERT INTO _pando_migration VALUES (99, 'later', 1, 'now', '9.9.9')", []).unwrap();
    assert!(matches!(put_back(&bench, "newer"), Err(CopyError::Schema(_))));
    rusqlite::Connection::open(at("foreign")).unwrap().execute_batch("CREATE TABLE t (a)").unwrap();
    assert!(matches!(put_back(&bench, "foreign"), Err(CopyError::Foreign { .. })));
    fs::write(at("text"), "just some text, longer than the header of a database would be: ".repeat(9)).unwrap();
    assert!(matches!(put_back(&bench, "text"), Err(CopyError::Damaged { .. })));
    assert_eq!(fs::read(bench.path()).unwrap(), before, "nothing was changed");
    assert_eq!(beside(&bench, "partial"), [""; 0]);
}

#[tokio::test]
async fn a_database_that_is_moved_away_takes_its_log_along() {
    let bench = Bench::new();
    let writer = bench.writer();
    apply(&writer, session("a")).await;
    let (copy, moved) = (bench.dir.path().join("copy.db"), bench.dir.path().join("moved.db"));
    backup(&bench, "copy.db").unwrap();
    for name in ["b", "c"] {
        apply(&writer, session(name)).await;
    }
    fs::rename(bench.path(), &moved).unwrap();
    fs::rename(&copy, bench.path()).unwrap();
    assert!(submit(&writer, session("d")).await.unwrap_err().is(Code::Fenced));
    writer.close_for_successor().await;
    let count = |path: &Path| {
        let connection = rusqlite::Connection::open(path).unwrap();
        let sound: String = connection.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
        assert_eq!(sound, "ok");
        connection.query_row("SELECT count(*) FROM sessions", [], |row| row.get::<_, u64>(0)).unwrap()
    };
    assert_eq!(count(&moved), 3, "every acknowledged write went along");
    let next = bench.writer();
    assert_eq!(bench.value("SELECT count(*) FROM sessions").await, 1);
    apply(&next, session("d")).await;
    next.close().await;
    assert_eq!(count(&bench.path()), 2);
}

#[tokio::test]
async fn a_log_that_somebody_reads_is_kept_for_the_database_that_was_moved_away() {
    let bench = Bench::new();
    let writer = bench.writer();
    apply(&writer, session("a")).await;
    let reader = rusqlite::Connection::open(bench.path()).unwrap();
    reader.execute_batch("BEGIN; SELECT count(*) FROM sessions").unwrap();
    apply(&writer, session("b")).await;
    let moved = bench.dir.path().join("moved.db");
    fs::rename(bench.path(), &moved).unwrap();
    assert!(submit(&writer, session("c")).await.unwrap_err().is(Code::Fenced));
    writer.close_for_successor().await;
    drop(reader);
    let kept = beside(&bench, "pando.db-wal.parted");
    assert_eq!(kept.len(), 1, "{kept:?}");
    // As the log of the primary asks.
    fs::rename(bench.path().with_file_name(&kept[0]), bench.dir.path().join("moved.db-wal")).unwrap();
    let connection = rusqlite::Connection::open(&moved).unwrap();
    let count = connection.query_row("SELECT count(*) FROM sessions", [], |row| row.get::<_, u64>(0));
    assert_eq!(count.unwrap(), 2);
    let next = bench.writer();
    assert_eq!(bench.value("SELECT count(*) FROM sessions").await, 0, "a new database is in the former one's place");
    next.close().await;
}

#[tokio::test]
async fn a_log_beside_a_copy_that_nobody_led_is_not_moved_into_it() {
    let bench = Bench::new();
    let writer = bench.writer();
    let fill = |writer: Writer, names: std::ops::Range<u32>| async move {
        for name in names {
            apply(&writer, session(&format!("{name}-{}", "x".repeat(1_000)))).await;
        }
        writer
    };
    fill(writer, 0..10).await.close().await;
    tidy(&bench.path()).unwrap();
    let [raw, vacuumed] = ["raw.db", "vacuumed.db"].map(|name| bench.dir.path().join(name));
    fs::copy(bench.path(), &raw).unwrap();
    backup(&bench, "vacuumed.db").unwrap();
    fill(bench.writer(), 10..100).await.close().await;
    tidy(&bench.path()).unwrap();
    let writer = fill(bench.writer(), 100..110).await;
    let log = bench.path().with_extension("db-wal");
    let kept = fs::read(&log).unwrap();
    writer.close().await;
    for copy in [raw, vacuumed] {
        let as_copied = fs::read(&copy).unwrap();
        let is_as_it_was = || fs::read(bench.path()).unwrap() == as_copied;
        fs::rename(&copy, bench.path()).unwrap();
        fs::write(&log, &kept).unwrap();
        let error = crate::schema::open(&bench.path(), Durability::Disk).unwrap_err();
        assert!(error.trouble() == Some(Trouble::Damaged) && is_as_it_was(), "{error}");
        // As an instance that cannot lead, and leaves.
        drop(tidy(&bench.path()));
        assert!(is_as_it_was());
        // As the error asks.
        fs::remove_file(&log).unwrap();
        let writer = bench.writer();
        assert_eq!(bench.value("SELECT count(*) FROM sessions").await, 10);
        writer.close().await;
    }
}
