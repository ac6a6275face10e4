//! Whom the client believes, and what it says when there is nobody.

use std::fs;
use std::os::unix::net::UnixListener;

use tokio::net::TcpListener;
use tokio::time::Instant;

use super::fake::{Fake, Setup, info};
use super::*;
use crate::lock::try_lock;

const BRIEFLY: Duration = Duration::from_millis(300);

#[track_caller]
fn check_not_sent(outcome: &Result<Value, CallError>, cause: &str) {
    let Err(error @ CallError::NotSent(_)) = outcome else { panic!("{outcome:?}") };
    assert!(error.to_string().contains(cause), "{error}");
    assert!(error.is_unreachable());
}

#[tokio::test]
async fn without_anybody_a_call_is_not_sent() {
    let (_dir, workdir) = workdir();
    let client = Client::open(workdir.clone(), impatient(BRIEFLY));
    let started = Instant::now();
    check_not_sent(&soon(client.call("echo", Value::Null)).await, "the lock is free");
    assert!(started.elapsed() < Duration::from_secs(5));
    assert!(matches!(client.trouble(), Some(Cause::NoPrimary { held: false, .. })));
    let connected = soon(Client::connect(workdir, impatient(BRIEFLY))).await;
    assert!(matches!(connected, Err(CallError::NotSent(Cause::NoPrimary { .. }))));
}

#[tokio::test]
async fn an_empty_lock_file_is_waited_for() {
    let (_dir, workdir) = workdir();
    let lease = try_lock(&workdir).unwrap().unwrap();
    let client = Client::open(workdir.clone(), impatient(BRIEFLY));
    check_not_sent(&soon(client.call("echo", Value::Null)).await, "its holder has not advertised itself");
    drop(lease);
    let client = Client::open(workdir.clone(), patient());
    let call = client.call("echo", json!([1]));
    let (answer, _fake) = soon(async { tokio::join!(call, Fake::start(&workdir, Setup::default())) }).await;
    assert_eq!(answer, Ok(json!([1])));
}

#[tokio::test]
async fn a_lock_file_that_nobody_holds_is_not_believed() {
    let (_dir, workdir) = workdir();
    let fake = Fake::bind(workdir.socket_dir().unwrap(), Setup::default()).await;
    fs::write(workdir.lock_path(), fake.info.to_text()).unwrap();
    let client = Client::open(workdir, impatient(BRIEFLY));
    check_not_sent(&soon(client.call("echo", Value::Null)).await, "the lock is free");
    assert_eq!(fake.heard(), [""; 0], "nobody was even dialled");
}

#[tokio::test]
async fn nothing_is_sent_to_somebody_else_at_the_endpoint() {
    for stranger in [Setup { instance_id: "inst-Z", ..Setup::default() }, Setup { epoch: 7, ..Setup::default() }] {
        let (_dir, workdir) = workdir();
        let lease = try_lock(&workdir).unwrap().unwrap();
        let fake = Fake::bind(workdir.socket_dir().unwrap(), stranger).await;
        let doors = fake.info.doors();
        lease.advertise(&info(&Setup::default(), doors.rpc, doors.publish)).unwrap();
        let client = Client::open(workdir, impatient(BRIEFLY));
        let (call, note) =
            soon(async { tokio::join!(client.call("echo", Value::Null), client.notify("n", Value::Null)) }).await;
        check_not_sent(&call, "whoever answers there is not inst-A in term 1");
        check_not_sent(&note.map(|()| Value::Null), "whoever answers there is not inst-A in term 1");
        assert!(fake.heard().iter().all(|method| method == "instance.hello"), "{:?}", fake.heard());
        assert!(!fake.heard().is_empty());
    }
}

#[tokio::test]
async fn an_older_server_is_known_by_its_ping() {
    let (_dir, workdir) = workdir();
    let _fake = Fake::start(&workdir, Setup { is_older: true, ..Setup::default() }).await;
    let client = soon(Client::connect(workdir, patient())).await.unwrap();
    assert_eq!(soon(client.call("echo", json!([1]))).await, Ok(json!([1])));
    assert_eq!(client.link().borrow().as_ref().unwrap().welcome.epoch, 0);
}

#[tokio::test]
async fn an_older_server_of_another_workdir_is_not_believed() {
    let (_dir, workdir) = workdir();
    let lease = try_lock(&workdir).unwrap().unwrap();
    let stranger = Setup { is_older: true, instance_id: "inst-Z", ..Setup::default() };
    let fake = Fake::bind(workdir.socket_dir().unwrap(), stranger).await;
    let doors = fake.info.doors();
    lease.advertise(&info(&Setup { is_older: true, ..Setup::default() }, doors.rpc, doors.publish)).unwrap();
    let client = Client::open(workdir, impatient(BRIEFLY));
    check_not_sent(&soon(client.call("echo", Value::Null)).await, "whoever answers there is not inst-A");
    assert!(!fake.heard().contains(&"echo".to_owned()));
}

#[tokio::test]
async fn another_protocol_is_named_at_once() {
    let (_dir, workdir) = workdir();
    let _fake = Fake::start(&workdir, Setup { protocol: 99, ..Setup::default() }).await;
    let error = soon(Client::connect(workdir, patient())).await.unwrap_err();
    assert!(matches!(error, CallError::NotSent(Cause::Version { protocol: 99, .. })), "{error}");
    assert!(error.to_string().contains("(release 9.9.9) speaks protocol 99, this build speaks 1"), "{error}");
}

#[tokio::test]
async fn a_door_that_says_nothing_is_passed_over() {
    let (dir, workdir) = workdir();
    let lease = try_lock(&workdir).unwrap().unwrap();
    let fake = Fake::bind(workdir.socket_dir().unwrap(), Setup::default()).await;
    let silent = dir.path().join("silent");
    let _silent = UnixListener::bind(&silent).unwrap();
    let missing = dir.path().join("missing");
    let mut doors = fake.info.doors();
    for rpc_and_pub in [&mut doors.rpc, &mut doors.publish] {
        rpc_and_pub.insert(0, format!("ipc://{}", silent.display()));
        rpc_and_pub.insert(0, format!("ipc://{}", missing.display()));
    }
    lease.advertise(&info(&Setup::default(), doors.rpc, doors.publish)).unwrap();
    let client = soon(Client::connect(workdir, patient())).await.unwrap();
    assert_eq!(soon(client.call("echo", json!([1]))).await, Ok(json!([1])));
    soon(client.subscribe(pattern("*"))).await.unwrap();
}

#[tokio::test]
async fn a_call_can_run_out_of_time_while_a_silent_door_is_dialled() {
    let (_dir, workdir) = workdir();
    let lease = try_lock(&workdir).unwrap().unwrap();
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("tcp://{}", silent.local_addr().unwrap());
    lease.advertise(&info(&Setup::default(), vec![endpoint.clone()], vec![endpoint])).unwrap();
    let client = Client::open(workdir, impatient(BRIEFLY));
    check_not_sent(&soon(client.call("echo", Value::Null)).await, "it has not answered yet");
}

#[tokio::test]
async fn a_lock_file_that_names_another_primary_ends_the_link() {
    let (_dir, workdir) = workdir();
    let fake = Fake::start(&workdir, Setup::default()).await;
    let client = soon(Client::connect(workdir.clone(), patient())).await.unwrap();
    // Somebody removed `.pando`: the old primary still answers, but leads nothing any more.
    fs::remove_dir_all(workdir.pando_dir()).unwrap();
    let _successor = Fake::start(&workdir, Setup::default().successor()).await;
    let epoch = |link: &Option<Link>| link.as_ref().map(|link| link.welcome.epoch);
    soon(client.link().wait_for(|link| epoch(link) == Some(2))).await.unwrap();
    fake.kill().await;
    assert_eq!(soon(client.call("echo", json!([1]))).await, Ok(json!([1])));
}

#[tokio::test]
async fn who_waits_for_ever_gets_an_answer() {
    let (_dir, workdir) = workdir();
    let _fake = Fake::start(&workdir, Setup::default()).await;
    let options = Options { dial_timeout: Duration::MAX, call_timeout: Duration::MAX, ..patient() };
    let client = soon(Client::connect(workdir.clone(), options)).await.unwrap();
    assert_eq!(soon(client.call("echo", json!([1]))).await, Ok(json!([1])));
}

#[tokio::test]
async fn a_primary_that_dies_while_it_is_greeted_is_followed_by_the_next() {
    let (_dir, workdir) = workdir();
    let first = Fake::start(&workdir, Setup { is_deaf_to_pings: true, ..Setup::default() }).await;
    let succession = async {
        while first.times_heard(PING) == 0 {
            tokio::task::yield_now().await;
        }
        first.kill().await;
        Fake::start(&workdir, Setup::default().successor()).await
    };
    let (client, _second) = soon(async { tokio::join!(Client::connect(workdir.clone(), patient()), succession) }).await;
    assert_eq!(client.unwrap().link().borrow().as_ref().unwrap().welcome.epoch, 2);
}
