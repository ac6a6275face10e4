//! Death without notice: what was acknowledged is there, once, and the journal goes on without a gap.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};

use super::*;

const DATABASE: &str = "PANDO_TEST_CRASH_DATABASE";

/// Runs in a process of its own: writes until it is killed, and tells each acknowledged write.
#[test]
#[ignore = "a part of the_next_writer_finds_all_that_was_acknowledged"]
fn writes_until_killed() {
    let path = PathBuf::from(std::env::var(DATABASE).unwrap());
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let writer = Writer::open(&path, WriterOptions::new("child", "/w")).unwrap();
        let epoch = writer.epoch();
        for round in 0.. {
            let ids: Vec<_> = (0..8).map(|at| format!("{epoch}-{round}-{at}")).collect();
            let writes = ids.iter().map(|id| writer.submit(request(id, session(id))));
            for (id, result) in ids.iter().zip(futures::future::join_all(writes).await) {
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
            .args(["--exact", "tests::crash::writes_until_killed", "--ignored", "--nocapture", "--test-threads=1"])
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
    let ops = bench.value("SELECT count(*) FROM _pando_op").await;
    assert_eq!(bench.value("SELECT count(*) FROM sessions").await, ops);
    assert_eq!(bench.value("SELECT count(*) FROM _pando_event").await, ops);
    assert!(ops.as_u64().unwrap() >= acked.len() as u64);
    bench.check_journal().await;
}
