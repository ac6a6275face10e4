//! How fast a follower that was away reads the journal.

use std::sync::Arc;
use std::time::Instant;

use pando_dbproxy::Readers;
use pando_ipc::client::{Client, Followed, LocalHistory, Since};
use pando_ipc::{Kind, Pattern};
use serde_json::json;

use crate::client;
use crate::fleet::Fleet;

/// Rows of one write: as many events, each with its row's key.
const ROWS: u64 = 900;

pub(crate) async fn a_follower_that_was_away_misses_none(events: u64, rate: u64) {
    let fleet = Fleet::start().await;
    let client = client(fleet.workdir(), "away", Kind::Client);
    let before = client.call("events.head", json!({})).await.unwrap()["seq"].as_u64().unwrap();
    fill(&client, events).await;
    let head = client.call("events.head", json!({})).await.unwrap()["seq"].as_u64().unwrap();
    let file = Arc::new(Readers::open(fleet.workdir().database_path(), 1));
    let history = Arc::new(LocalHistory::new(file, client.clone()));
    let mut follower = client.follow(vec![Pattern::All], Since::Seq(before), history);
    let (began, busy, mut last) = (Instant::now(), processor_seconds(), before);
    while let Some(item) = follower.recv_upto(head).await {
        let Followed::Event(event) = item else { panic!("{item:?}") };
        assert_eq!(event.seq, Some(last + 1));
        last += 1;
    }
    assert_eq!(last, head);
    let (seconds, busy) = (began.elapsed().as_secs_f64(), processor_seconds() - busy);
    #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
    let reached = (head - before) as f64 / seconds;
    println!(
        "caught up: {} events in {seconds:.2} s ({busy:.2} s of processor time), {reached:.0} events/s",
        head - before
    );
    #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
    let wanted = rate as f64;
    assert!(reached >= wanted, "{reached:.0} events/s, {rate} were wanted");
    client.close().await;
}

/// Returns the processor time of this process so far; a busy machine does not lengthen it.
fn processor_seconds() -> f64 {
    /// Ticks in a second, see proc(5): fixed for user space on Linux.
    const TICKS: f64 = 100.0;
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    // The name may hold anything: what comes behind its last parenthesis is counted.
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    let ticks: f64 = fields[11..13].iter().map(|field| field.parse::<f64>().unwrap()).sum();
    ticks / TICKS
}

async fn fill(client: &Client, events: u64) {
    let create = json!({"ddl": true, "statements": [{"sql": "CREATE TABLE note (k INTEGER PRIMARY KEY, v)"}]});
    client.call("db.exec", create).await.unwrap();
    for at in (0..events).step_by(usize::try_from(ROWS).unwrap()) {
        let rows = format!(
            "WITH RECURSIVE n(k) AS (SELECT {at} UNION ALL SELECT k + 1 FROM n WHERE k + 1 < {}) INSERT INTO note SELECT k, 'v' FROM n",
            (at + ROWS).min(events)
        );
        client.call("db.exec", json!({"statements": [{"sql": rows}]})).await.unwrap();
    }
}
