//! Events without gaps.

use futures::FutureExt;
use futures::future::BoxFuture;

use super::fake::{Fake, Journal, Setup, append, page};
use super::*;
use crate::envelope::Timestamp;
use crate::rpc::Json;

async fn linked(setup: Setup) -> (TempDir, Workdir, Fake, Client) {
    let (dir, workdir) = workdir();
    let fake = Fake::start(&workdir, setup).await;
    let client = soon(Client::connect(workdir.clone(), patient())).await.unwrap();
    (dir, workdir, fake, client)
}

fn follow(client: &Client, patterns: &[&str], since: Since) -> Follower {
    let patterns = patterns.iter().map(|text| pattern(text)).collect();
    client.follow(patterns, since, Arc::new(RemoteHistory(client.clone())))
}

/// Returns the number of the next event.
async fn seq(follower: &mut Follower) -> u64 {
    match soon(follower.recv()).await {
        Some(Followed::Event(event)) => event.seq.unwrap_or_else(|| panic!("{event:?}")),
        other => panic!("{other:?}"),
    }
}

async fn check_follows(follower: &mut Follower, numbers: impl IntoIterator<Item = u64>) {
    for number in numbers {
        assert_eq!(seq(follower).await, number);
    }
}

#[tokio::test]
async fn the_past_comes_first_and_then_the_present() {
    let (_dir, _workdir, fake, client) = linked(Setup::default()).await;
    (0..10).for_each(|_| fake.commit("a.b"));
    let mut all = follow(&client, &["*"], Since::All);
    let mut some = follow(&client, &["*"], Since::Seq(7));
    check_follows(&mut all, 1..=10).await;
    check_follows(&mut some, 8..=10).await;
    (0..10).for_each(|_| fake.commit("a.b"));
    check_follows(&mut all, 11..=20).await;
    check_follows(&mut some, 11..=20).await;
    assert_eq!(all.position(), 20);
}

#[tokio::test]
async fn an_event_that_is_too_deep_for_a_tree_is_followed_like_any_other() {
    let journal = Journal::default();
    let (_dir, _workdir, fake, client) =
        linked(Setup { journal: Some(Arc::clone(&journal)), ..Setup::default() }).await;
    let mut follower = follow(&client, &["*"], Since::All);
    let payload: Json = serde_json::from_str(&("[".repeat(200) + &"]".repeat(200))).unwrap();
    fake.commit_silently("a.b");
    journal.lock().unwrap()[0].payload = payload.clone();
    fake.commit("a.b");
    let first = soon(follower.recv()).await;
    assert!(matches!(&first, Some(Followed::Event(event)) if event.payload == payload), "{first:?}");
    check_follows(&mut follower, 2..=2).await;
}

#[tokio::test]
async fn now_is_when_started_returns() {
    let (_dir, _workdir, fake, client) = linked(Setup::default()).await;
    (0..5).for_each(|_| fake.commit("a.b"));
    let mut follower = follow(&client, &["*"], Since::Now);
    assert!(soon(follower.started()).await);
    fake.commit("a.b");
    check_follows(&mut follower, 6..=6).await;
}

#[tokio::test]
async fn what_the_stream_lost_comes_from_the_journal_in_order() {
    let (_dir, _workdir, fake, client) = linked(Setup::default()).await;
    let mut follower = follow(&client, &["*"], Since::Now);
    assert!(soon(follower.started()).await);
    for _ in 0..5 {
        (0..4).for_each(|_| drop(fake.commit_silently("a.b")));
        fake.commit("c");
    }
    check_follows(&mut follower, 1..=25).await;
}

#[tokio::test]
async fn with_a_filter_only_what_was_asked_for_comes_and_none_is_missing() {
    let (_dir, _workdir, fake, client) = linked(Setup::default()).await;
    let mut follower = follow(&client, &["a.*", "c"], Since::Now);
    assert!(soon(follower.started()).await);
    for _ in 0..3 {
        fake.commit("a.b");
        fake.commit("x");
        fake.commit_silently("c");
        fake.commit("c");
    }
    check_follows(&mut follower, [1, 3, 4, 5, 7, 8, 9, 11, 12]).await;
}

#[tokio::test]
async fn a_lost_last_event_is_noticed_by_the_heartbeat() {
    for filter in ["*", "a.*"] {
        let (_dir, _workdir, fake, client) = linked(Setup::default()).await;
        let mut follower = follow(&client, &[filter], Since::Now);
        assert!(soon(follower.started()).await);
        fake.commit_silently("a.b");
        fake.heartbeat();
        let next = soon(async {
            loop {
                match follower.recv().await {
                    Some(Followed::Event(event)) if event.seq.is_none() => {}
                    next => break next,
                }
            }
        });
        assert!(matches!(next.await, Some(Followed::Event(event)) if event.seq == Some(1)), "{filter}");
    }
}

#[tokio::test]
async fn what_happened_between_two_primaries_is_not_missing() {
    let (_dir, workdir, mut fake, client) = linked(Setup::default()).await;
    let mut follower = follow(&client, &["*"], Since::All);
    let mut last = 0;
    for _ in 0..5 {
        (0..3).for_each(|_| fake.commit("a.b"));
        check_follows(&mut follower, last + 1..=last + 3).await;
        fake.commit_silently("a.b");
        fake = fake.succeed(&workdir).await;
        fake.commit_silently("a.b");
        check_follows(&mut follower, last + 4..=last + 5).await;
        last += 5;
    }
}

#[tokio::test]
async fn a_follower_that_falls_behind_loses_nothing() {
    let (_dir, _workdir, fake, client) = linked(Setup::default()).await;
    let mut follower = follow(&client, &["*"], Since::Now);
    assert!(soon(follower.started()).await);
    let mut marker = soon(client.subscribe(pattern("marker"))).await.unwrap();
    let count = INBOX_CAPACITY as u64 + 50;
    (0..count).for_each(|_| fake.commit("a.b"));
    fake.publish("marker", Value::Null);
    soon(marker.recv()).await.unwrap();
    soon(async {
        let mut expected = 1;
        while expected <= count {
            if let Some(Followed::Event(event)) = follower.recv().await
                && let Some(seq) = event.seq
            {
                assert_eq!(seq, expected);
                expected += 1;
            }
        }
    })
    .await;
}

#[tokio::test]
async fn lost_ephemeral_events_are_told() {
    let (_dir, _workdir, fake, client) = linked(Setup::default()).await;
    let mut follower = follow(&client, &["llm.token"], Since::Now);
    assert!(soon(follower.started()).await);
    for n in [1, 2, 6] {
        let mut event = crate::Envelope::new("i", crate::Topic::known("llm.token"), json!(n));
        event.n = Some(n);
        fake.publish_frame(event.to_frame());
    }
    let mut seen = Vec::new();
    while seen.len() < 4 {
        seen.push(match soon(follower.recv()).await.unwrap() {
            Followed::Event(event) => event.payload.to_string(),
            other => format!("{other:?}"),
        });
    }
    assert_eq!(seen, ["1", "2", "Lagged(3)", "6"]);
}

#[tokio::test]
async fn a_server_without_journal_is_followed_live() {
    let (_dir, workdir, mut fake, client) = linked(Setup { journal: None, ..Setup::default() }).await;
    for since in [Since::Now, Since::All] {
        let mut follower = follow(&client, &["a.b"], since);
        let following = soon(async {
            loop {
                fake.publish("a.b", json!("live"));
                if let Ok(next) = timeout(Duration::from_millis(20), follower.recv()).await {
                    break next;
                }
            }
        });
        assert!(matches!(following.await, Some(Followed::Event(event)) if event.payload == json!("live")));
        fake = fake.succeed(&workdir).await;
        let gap = soon(async {
            loop {
                match follower.recv().await {
                    Some(Followed::Event(_)) => {}
                    other => break other,
                }
            }
        });
        assert!(matches!(gap.await, Some(Followed::Resync(Resync { from: 0, to: 0, .. }))));
    }
}

struct FileHistory(Journal);

impl History for FileHistory {
    fn since<'a>(
        &'a self,
        after: u64,
        patterns: &'a [Pattern],
        limit: usize,
    ) -> BoxFuture<'a, Result<Page, HistoryError>> {
        Box::pin(async move { Ok(page(&self.0.lock().unwrap(), after, patterns, limit)) })
    }

    fn last_before(&self, time: Option<Timestamp>) -> BoxFuture<'_, Result<u64, HistoryError>> {
        Box::pin(async move {
            let journal = self.0.lock().unwrap();
            Ok(journal.iter().filter(|event| time.is_none_or(|time| event.timestamp < time)).count() as u64)
        })
    }
}

#[tokio::test]
async fn a_local_journal_is_read_without_any_primary() {
    let (_dir, workdir) = workdir();
    let journal = Journal::default();
    (0..3).for_each(|_| drop(append(&mut journal.lock().unwrap(), "a.b", 1)));
    let client = Client::open(workdir.clone(), patient());
    let mut follower = client.follow(vec![pattern("*")], Since::All, Arc::new(FileHistory(journal.clone())));
    check_follows(&mut follower, 1..=3).await;
    append(&mut journal.lock().unwrap(), "a.b", 1);
    let fake = Fake::start(&workdir, Setup { journal: Some(journal), ..Setup::default() }).await;
    check_follows(&mut follower, 4..=4).await;
    fake.commit("a.b");
    check_follows(&mut follower, 5..=5).await;
}

#[tokio::test]
async fn what_a_primary_wrote_that_left_before_there_was_a_link_is_not_waited_for() {
    for since in [Since::All, Since::Now] {
        let (_dir, workdir) = workdir();
        let journal = Journal::default();
        let commit = || drop(append(&mut journal.lock().unwrap(), "a.b", 1));
        commit();
        let client = Client::open(workdir.clone(), patient());
        let mut follower = client.follow(vec![pattern("*")], since, Arc::new(FileHistory(journal.clone())));
        if since == Since::All {
            check_follows(&mut follower, 1..=1).await;
        }
        // This journal answers at once, so all that there is was read before the first wait.
        assert_eq!(follower.recv().now_or_never(), None);
        commit();
        // Whoever waits looks at other things now and then.
        let next = soon(async {
            loop {
                if let Ok(next) = timeout(Duration::from_millis(20), follower.recv()).await {
                    break next;
                }
            }
        });
        assert!(matches!(next.await, Some(Followed::Event(event)) if event.seq == Some(2)), "{since:?}");
    }
}

#[tokio::test]
async fn a_stretch_of_the_past_needs_no_primary_and_ends() {
    let (_dir, workdir) = workdir();
    let journal = Journal::default();
    (0..9).for_each(|n| drop(append(&mut journal.lock().unwrap(), if n % 2 == 0 { "a.b" } else { "c" }, 1)));
    let time = journal.lock().unwrap()[3].timestamp;
    let client = Client::open(workdir, patient());
    let read = async |pattern_text: &str, since, last| {
        let mut follower = client.follow(vec![pattern(pattern_text)], since, Arc::new(FileHistory(journal.clone())));
        let mut seen = Vec::new();
        while let Some(item) = soon(follower.recv_upto(last)).await {
            let Followed::Event(event) = item else { panic!("{item:?}") };
            seen.push(event.seq.unwrap());
        }
        (seen, follower.position())
    };
    assert_eq!(read("*", Since::Seq(2), 5).await.0, [3, 4, 5]);
    assert_eq!(read("*", Since::Time(time), 9).await, (vec![4, 5, 6, 7, 8, 9], 9));
    assert_eq!(read("c", Since::All, 9).await, (vec![2, 4, 6, 8], 9), "the end is reached without a matching event");
    assert_eq!(read("c", Since::All, 0).await.0, [0; 0]);
}

#[tokio::test]
async fn a_position_resumes_a_filtered_follower_exactly() {
    let (_dir, _workdir, fake, client) = linked(Setup::default()).await;
    let commit = || ["a.b", "x", "c", "x", "a.d"].into_iter().for_each(|topic| fake.commit(topic));
    let mut follower = follow(&client, &["a.*", "c"], Since::Now);
    assert!(soon(follower.started()).await);
    commit();
    check_follows(&mut follower, [1, 3]).await;
    let position = follower.position();
    drop(follower);
    commit();
    let mut resumed = follow(&client, &["a.*", "c"], Since::Seq(position));
    check_follows(&mut resumed, [5, 6, 8, 10]).await;
}

#[tokio::test]
async fn the_position_counts_only_what_was_taken() {
    let (_dir, _workdir, fake, client) = linked(Setup::default()).await;
    (0..3).for_each(|_| fake.commit("a.b"));
    let mut follower = follow(&client, &["*"], Since::All);
    for expected in 1..=3 {
        check_follows(&mut follower, expected..=expected).await;
        assert_eq!(follower.position(), expected);
    }
}

#[tokio::test]
async fn a_closed_client_ends_its_followers() {
    let (_dir, _workdir, fake, client) = linked(Setup::default()).await;
    let (mut live, mut fresh) = (follow(&client, &["*"], Since::Now), follow(&client, &["*"], Since::All));
    assert!(soon(live.started()).await);
    soon(client.close()).await;
    fake.kill().await;
    assert_eq!(soon(live.recv()).await, None);
    assert_eq!(soon(fresh.recv()).await, None);
}
