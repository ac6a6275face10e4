//! A secondary's term: follow the primary, forward to it, and wait for its place.

use std::sync::Arc;

use pando_bridge::inbound;
use pando_dbproxy::{RecentStatements, Remote};
use pando_ipc::client::{self, Cause, Client, Link, LocalHistory, Since};
use pando_ipc::cursor::Bookmark;
use pando_ipc::failpoint::{self, Point};
use pando_ipc::lock::{Candidate, Lease};
use pando_ipc::{Kind, LockError, hello, topic};
use serde_json::json;
use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::lead::LOCK_CHECK;
use super::route::Route;
use super::terms::Ended;
use super::warm::Warm;
use super::{HEARTBEAT, JoinError, Role, Shared, lead, silence};

enum Step {
    Stop,
    Won(Result<(), LockError>),
    Link,
    Beat,
    CheckLock,
    Look,
}

/// Follows until `stop`, or until the lock is ours.
pub(super) async fn follow(
    shared: &Arc<Shared>,
    stop: &CancellationToken,
    failed: &mut Option<oneshot::Sender<JoinError>>,
) -> Result<Ended, JoinError> {
    let recent = RecentStatements::default();
    let warm = Warm::new(shared.workdir.database_path(), recent.clone());
    let mut candidate = stand(shared, &warm)?;
    let client = Client::open(
        shared.workdir.clone(),
        client::Options {
            instance_id: shared.id.clone(),
            kind: Kind::Instance,
            headless: shared.options.headless,
            dial_timeout: shared.options.dial_timeout,
            call_timeout: shared.options.call_timeout,
        },
    );
    let writes = shared.options.writes.clone();
    let remote = Remote::new(Arc::new(client.clone()), writes).noting(recent);
    shared.routes.set(Route::Remote(client.clone()), Some(Arc::new(remote)));
    let term = stop.child_token();
    let tasks = TaskTracker::new();
    tasks.spawn(listen(Arc::clone(shared), client.clone(), term.clone()));
    tasks.spawn(silence::watch(Arc::clone(shared), client.clone(), term.clone()));
    tasks.close();

    let mut link = client.link();
    // It may have come up already, by what the tasks asked for.
    if link.borrow().is_some() {
        link.mark_changed();
    }
    let mut beat = interval(HEARTBEAT);
    let mut check = interval(LOCK_CHECK);
    let mut look_at = Instant::now() + warm.pause();
    for timer in [&mut beat, &mut check] {
        timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
    }
    let ended = loop {
        let step = tokio::select! {
            () = stop.cancelled() => Step::Stop,
            won = candidate.won() => Step::Won(won),
            Ok(()) = link.changed() => Step::Link,
            _ = beat.tick() => Step::Beat,
            _ = check.tick() => Step::CheckLock,
            () = sleep_until(look_at) => Step::Look,
        };
        match step {
            Step::Stop => break candidate.withdraw().await.map_err(JoinError::Lock),
            Step::Won(won) => break won.map(|()| Some(candidate)).map_err(JoinError::Lock),
            Step::Link => {
                failed.take();
                let role = role_of(link.borrow_and_update().as_ref());
                let is_led = matches!(role, Role::Secondary { .. });
                shared.take_role(role);
                if is_led {
                    warm.look(&tasks);
                }
            }
            Step::Beat if link.borrow().is_some() => tell_that_it_lives(shared, &client).await,
            Step::Beat => {}
            Step::CheckLock if candidate.is_current() => {
                // Who is told at once that it cannot join need not find out by calls that fail.
                if failed.as_ref().is_some_and(|failed| !failed.is_closed())
                    && let Some(cause @ Cause::Version { .. }) = client.trouble()
                {
                    break match candidate.withdraw().await {
                        Ok(None) => Err(JoinError::Version(cause)),
                        late => late.map_err(JoinError::Lock),
                    };
                }
            }
            Step::Look => {
                look_at = Instant::now() + warm.pause();
                if link.borrow().is_some() {
                    warm.look(&tasks);
                }
            }
            Step::CheckLock => {
                tracing::warn!("the lock file was removed or replaced: racing for the new one");
                candidate = match candidate.withdraw().await {
                    Ok(None) => match stand(shared, &warm) {
                        Ok(anew) => anew,
                        Err(error) => break Err(JoinError::Lock(error)),
                    },
                    late => break late.map_err(JoinError::Lock),
                };
            }
        }
    };
    term.cancel();
    match ended {
        Ok(Some(candidate)) => Ok(Ended::Elected(Box::new(succeed(shared, candidate, client, tasks).await?))),
        ended => {
            shared.routes.clear();
            // An open database would keep the last one to leave from cleaning up.
            tasks.spawn_blocking(move || drop(warm.take()));
            client.close().await;
            tasks.wait().await;
            ended.map(|_| Ended::Stopped)
        }
    }
}

async fn tell_that_it_lives(shared: &Shared, client: &Client) {
    let payload = shared.heartbeat("secondary", shared.hub.position()).await;
    let params = json!({"topic": topic::HEARTBEAT, "payload": payload, "durable": false});
    if let Err(error) = client.notify(hello::PUBLISH, params).await {
        tracing::debug!(%error, "heartbeat not sent");
    }
}

/// What a candidate makes of the lock.
type Begun = Result<lead::Opened, JoinError>;

/// Stands for election. The database is opened with what is prepared by then.
fn stand(shared: &Arc<Shared>, warm: &Warm) -> Result<Candidate<Begun>, LockError> {
    let (own, warm) = (Arc::clone(shared), warm.clone());
    let begin = move |lease: Lease| {
        failpoint::hit(Point::CandidateWon);
        // Until the database is open, calls and writes wait.
        own.routes.clear();
        lead::open(&own, lease, warm.take())
    };
    Candidate::wait(shared.workdir.clone(), &shared.id, begin)
}

/// Winds the former term up beside the next one. Every moment counts, and nobody is left to read our last words.
async fn succeed(shared: &Arc<Shared>, candidate: Candidate<Begun>, client: Client, tasks: TaskTracker) -> Begun {
    let own = Arc::clone(shared);
    let winding_up = TaskTracker::new().spawn(async move {
        client.hang_up().await;
        tasks.wait().await;
        // Nobody feeds the hub now. What cannot be read before the database is open is read then.
        if own.is_placed()
            && let Err(error) = lead::catch_up(&own).await
        {
            tracing::debug!(%error, "not caught up yet");
        }
    });
    match candidate.begun().await {
        Ok(opened) => Ok(opened.beside(winding_up)),
        Err(error) => {
            lead::ended(winding_up).await;
            Err(error)
        }
    }
}

fn role_of(link: Option<&Link>) -> Role {
    match link {
        Some(link) => Role::Secondary { primary: link.welcome.instance_id.clone(), epoch: link.welcome.epoch },
        None => Role::Seeking,
    }
}

/// Feeds the hub with what its subscribers want of what happens in the workdir, from the first link on.
///
/// The rest stays away: with many instances the primary would otherwise send, and all of them read, every event many times over.
async fn listen(shared: Arc<Shared>, client: Client, stop: CancellationToken) {
    let mut link: watch::Receiver<Option<Link>> = client.link();
    let Some(Ok(_)) = stop.run_until_cancelled(link.wait_for(Option::is_some)).await else { return };
    // A primary that keeps no journal (an older peer) has no head; its events come without numbers.
    shared.place_hub(shared.readers.head().await.map_or(0, |head| head.seq));
    let history = Arc::new(LocalHistory::new(Arc::new(shared.readers.clone()), client.clone()));
    let mut interest = shared.hub.interest();
    let mut since = Since::Seq(shared.hub.position());
    loop {
        let patterns = interest.borrow_and_update().clone();
        let mut follower = client.follow(patterns, since, history.clone());
        tokio::select! {
            () = inbound(&mut follower, &shared.hub, &stop) => return,
            // The hub, which has the sender, is ours.
            _ = interest.changed() => {}
        }
        shared.hub.start_behind(follower.position());
        let seq = shared.hub.position();
        since = follower.bookmark().map_or(Since::Seq(seq), |bookmark| Since::Bookmark(Bookmark { seq, ..bookmark }));
    }
}
