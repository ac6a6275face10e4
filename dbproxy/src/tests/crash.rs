//! Death without notice: what was acknowledged is there, once, and the journal goes on without a gap.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};

use super::*;

const DATABASE: &str = "PANDO_TEST_CRASH_DATABASE";

/// Runs in a process of its own: writes until it is killed, and tells each acknowledged write.
#[test]
fn writes_until_killed() {
    let Ok(path) = std::env::var(DATABASE).map(PathBuf::from) else { return };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let writer = Writer::open(&path, WriterOptions::new("child", "/w")).unwrap();
        let epoch = writer.epoch();
        for round in 0.. {
            let ids: Vec<_> = (0..8).map(|at| format!("{epoch}-{round}-{at}")).collect();
            let sent = ids.iter().map(|id| writer.submit(request(id, session(id))));
            for (id, result) in ids.iter().zip(futures::future::join_all(sent).await) {
                result.unwrap();
                let mut out = std::io::stdout().lock();
                writeln!(out, "acked {id}").unwrap();
                out.flush().unwrap();
            }
        }
    });
}

#[tokio::test]
async fn the_next_writer_finds_all_that_was_acknowledged() {
    let bench = Bench::new();
    let mut acked = Vec::new();
    for round in 0..4 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "tests::crash::writes_until_killed", "--nocapture", "--test-threads=1"])
            .env(DATABASE, bench.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut told = 0;
        while told < 40 + 17 * round {
            let line = lines.next().expect("the child lives").unwrap();
            if let Some(id) = line.strip_prefix("acked ") {
                acked.push(id.to_owned());
                told += 1;
            }
        }
        child.kill().unwrap();
        // What it told between our last look and its death was acknowledged, too.
        acked.extend(lines.map_while(Result::ok).filter_map(|line| line.strip_prefix("acked ").map(str::to_owned)));
        child.wait().unwrap();
    }
    let writer = bench.writer();
    assert_eq!(writer.epoch(), 5);
    for id in &acked {
        let retry = writer.submit(request(id, session(id))).await.unwrap();
        assert!(retry.replayed, "{id} was acknowledged");
    }
    let ops = bench.value("SELECT count(*) FROM _pando_op_named").await;
    assert_eq!(bench.value("SELECT count(*) FROM sessions").await, ops);
    assert_eq!(bench.value("SELECT count(*) / 2 FROM _pando_event").await, ops, "a row and a summary each");
    assert!(ops.as_u64().unwrap() >= acked.len() as u64);
    bench.check_journal().await;
}

/// Runs in a process of its own, whose files may not grow beyond 2 MiB.
#[tokio::test]
async fn writes_until_the_disk_is_full() {
    let Ok(path) = std::env::var(DATABASE).map(PathBuf::from) else { return };
    let writer = Writer::open(&path, WriterOptions::new("child", "/w")).unwrap();
    let readers = Readers::open(&path, 1);
    let first = || request("first", session("first"));
    writer.submit(first()).await.unwrap();
    let mut applied = 1;
    let fault = loop {
        let blob = Statement::new("INSERT INTO sessions (id, title) VALUES (?1, hex(zeroblob(20000)))", [applied]);
        match submit(&writer, Work::Exec { statements: vec![blob], ddl: false }).await {
            Ok(_) => applied += 1_i64,
            Err(fault) => break fault,
        }
        assert!(applied < 1_000, "the disk is never full");
    };
    assert!(fault.is(pando_ipc::fault::Code::Storage), "{fault}");
    let bad = (0..8).map(|at| submit(&writer, session(&format!("full-{at}"))));
    let (replay, bad) = futures::future::join(writer.submit(first()), futures::future::join_all(bad)).await;
    assert!(replay.unwrap().replayed, "what was applied earlier is told, whatever becomes of its neighbours");
    // The checkpointer may have made room again for some of them.
    applied += i64::try_from(bad.iter().filter(|result| result.is_ok()).count()).unwrap();
    let storage = |fault: &Fault| fault.is(pando_ipc::fault::Code::Storage);
    assert!(bad.iter().all(|result| result.as_ref().err().is_none_or(storage)), "{bad:?}");
    let count = readers.query("SELECT count(*) FROM sessions", (), QueryLimits::default()).await.unwrap();
    assert_eq!(count.rows[0][0], applied.into(), "reads go on, and see what was acknowledged");
    assert_eq!(readers.head().await.unwrap().seq, writer.head());
    writer.close().await;
    writeln!(std::io::stdout(), "applied {applied}").unwrap();
}

#[tokio::test]
async fn a_full_disk_ends_acknowledgements_and_nothing_else() {
    let bench = Bench::new();
    let output = Command::new("sh")
        .args(["-c", "trap '' XFSZ; ulimit -f 4096; exec \"$0\" \"$@\""])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "tests::crash::writes_until_the_disk_is_full", "--nocapture"])
        .env(DATABASE, bench.path())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    let applied: u64 = text.lines().find_map(|line| line.strip_prefix("applied ")?.parse().ok()).unwrap();
    assert!(applied > 3);
    // There is room again.
    let writer = bench.writer();
    assert_eq!(bench.value("SELECT count(*) FROM sessions").await, applied);
    assert_eq!(apply(&writer, session("after")).await.seq, 2 * applied + 2);
    bench.check_journal().await;
}
