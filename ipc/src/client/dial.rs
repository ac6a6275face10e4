//! Finds the primary and makes sure that it is the one the lock file names, before anything else is said to it.

use std::fmt::Display;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde_json::{Value, json};

use super::Link;
use super::calls::encode;
use super::error::Cause;
use super::options::Options;
use super::socket::{Dealer, Outlet, failed};
use crate::fault::{Code, Fault};
use crate::hello::{self, HELLO, Hello, PING, Welcome};
use crate::lock::{InfoError, LockInfo, is_held, read_lock_for_path};
use crate::rpc::{Json, parse_response};
use crate::workdir::Workdir;

/// How long a peer may take to answer hello; one that accepts and says nothing is given up.
const HELLO_TIMEOUT: Duration = Duration::from_secs(1);
/// How often the lock file is read again while a peer is dialled, or looked for.
const REREAD_PAUSE: Duration = Duration::from_millis(2);

/// Reads who leads the workdir: what the lock file says while someone holds the lock.
pub(super) fn advertised(workdir: &Workdir) -> Result<LockInfo, Cause> {
    let unreadable = |detail: &dyn Display| failed(&workdir.lock_path().display().to_string(), detail);
    let absent = |held| Cause::NoPrimary { workdir: workdir.path().to_owned(), held };
    let held = is_held(workdir).map_err(|error| unreadable(&error))?;
    match read_lock_for_path(workdir) {
        Ok(info) if held => Ok(info),
        Ok(_) | Err(InfoError::Missing { .. } | InfoError::Empty { .. } | InfoError::Malformed { .. }) => {
            Err(absent(held))
        }
        Err(error @ (InfoError::Io { .. } | InfoError::TooLarge { .. })) => Err(unreadable(&error)),
    }
}

/// Tells whether the lock file names another primary, or another term, by now.
pub(super) fn is_superseded(workdir: &Workdir, info: &LockInfo) -> bool {
    let term = |info: &LockInfo| (info.instance_id.clone(), info.epoch, info.started_at);
    read_lock_for_path(workdir).is_ok_and(|now| term(&now) != term(info))
}

/// Waits until the lock file says something else than `seen`.
pub(super) async fn changed(workdir: &Workdir, seen: Option<&LockInfo>) {
    while read_lock_for_path(workdir).ok().as_ref() == seen {
        tokio::time::sleep(REREAD_PAUSE).await;
    }
}

/// Waits until the lock file names another primary: dialling the old one is in vain then.
pub(super) async fn superseded(workdir: &Workdir, info: &LockInfo) {
    while !is_superseded(workdir, info) {
        tokio::time::sleep(REREAD_PAUSE).await;
    }
}

/// Dials the first door of the primary that works, and believes it when it is the one that `info` names.
pub(super) async fn dial(info: LockInfo, options: &Options) -> Result<(Arc<Dealer>, Outlet, Link), Cause> {
    let mut trouble = failed("the primary", &"it advertises no ROUTER endpoint");
    for endpoint in &info.doors().rpc {
        match introduce(endpoint, &info, options).await {
            Ok((dealer, outlet, welcome)) => return Ok((dealer, outlet, Link { info, welcome, number: 0 })),
            Err(cause @ Cause::Version { .. }) => return Err(cause),
            Err(cause) => trouble = cause,
        }
    }
    Err(trouble)
}

async fn introduce(
    endpoint: &str,
    info: &LockInfo,
    options: &Options,
) -> Result<(Arc<Dealer>, Outlet, Welcome), Cause> {
    let (dealer, mut outlet) = Dealer::open(endpoint).await?;
    let silent = dealer.failure(&format_args!("no answer to hello within {HELLO_TIMEOUT:?}"));
    let hello = Hello {
        instance_id: options.instance_id.clone(),
        kind: options.kind,
        pid: std::process::id(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        protocol: hello::protocol(),
        headless: options.headless,
    };
    let asking = async {
        match ask(&dealer, &mut outlet, 1, HELLO, &hello).await? {
            Err(fault) if fault.is_method_not_found() => {
                Ok((true, ask(&dealer, &mut outlet, 2, PING, &json!({})).await?))
            }
            outcome => Ok((false, outcome)),
        }
    };
    let (older, outcome) = tokio::time::timeout(HELLO_TIMEOUT, asking).await.map_err(|_elapsed| silent)??;
    let welcome = match outcome {
        Ok(result) if older => older_welcome(&result, info),
        Ok(result) => welcome(result, info)?,
        Err(fault) => return Err(refused(&dealer, &fault, info)),
    };
    match welcome {
        Some(welcome) => Ok((dealer, outlet, welcome)),
        None => Err(dealer.failure(&format_args!(
            "whoever answers there is not {} in term {}, which holds the lock",
            info.instance_id,
            info.epoch.unwrap_or_default()
        ))),
    }
}

/// Asks one thing on a socket that nobody else uses yet.
async fn ask(
    dealer: &Dealer,
    outlet: &mut Outlet,
    number: u64,
    method: &str,
    params: &impl Serialize,
) -> Result<Result<Value, Fault>, Cause> {
    outlet.push(encode(Some(number), method, params));
    outlet.ring().flush().map_err(|error| dealer.failure(&error))?;
    loop {
        let body = dealer.next().await?;
        match parse_response(&body) {
            Ok(answer) if answer.id.as_number() == Some(number) => {
                let read = |result: Json| result.read().map_err(|error| dealer.failure(&error));
                return answer.outcome.map_or_else(|fault| Ok(Err(fault)), |result| read(result).map(Ok));
            }
            Ok(_) => {}
            Err(error) => return Err(dealer.failure(&error)),
        }
    }
}

/// Reads the answer to hello: `None` when it is not from the primary that holds the lock.
fn welcome(result: Value, info: &LockInfo) -> Result<Option<Welcome>, Cause> {
    // The version is looked at first: what else an incompatible peer says may have another shape.
    let protocol = result.get("protocol").and_then(Value::as_u64).and_then(|it| u32::try_from(it).ok()).unwrap_or(0);
    let text = |key| result.get(key).and_then(Value::as_str).unwrap_or_default();
    if protocol != 0 && protocol != hello::protocol() && text("instance_id") == info.instance_id {
        return Err(Cause::Version {
            instance_id: info.instance_id.clone(),
            version: text("version").to_owned(),
            protocol,
        });
    }
    let welcome = serde_json::from_value(result).ok();
    Ok(welcome
        .filter(|it: &Welcome| it.instance_id == info.instance_id && info.epoch.is_none_or(|epoch| epoch == it.epoch)))
}

/// Makes up the welcome of a server that knows no hello, from its answer to ping.
fn older_welcome(pong: &Value, info: &LockInfo) -> Option<Welcome> {
    (pong.get("instance_id").and_then(Value::as_str) == Some(&info.instance_id)).then(|| Welcome {
        instance_id: info.instance_id.clone(),
        epoch: info.epoch.unwrap_or_default(),
        version: info.version.clone().unwrap_or_default(),
        protocol: info.protocol.unwrap_or_default(),
        workdir: info.workdir.clone().unwrap_or_default(),
        database: uuid::Uuid::nil(),
    })
}

fn refused(dealer: &Dealer, fault: &Fault, info: &LockInfo) -> Cause {
    if fault.is(Code::Version) {
        let data = fault.data.as_ref();
        let protocol = data.and_then(|data| data.get("protocol")).and_then(Value::as_u64);
        return Cause::Version {
            instance_id: info.instance_id.clone(),
            version: info.version.clone().unwrap_or_default(),
            protocol: protocol.and_then(|it| u32::try_from(it).ok()).or(info.protocol).unwrap_or_default(),
        };
    }
    dealer.failure(&format_args!("it refused hello: {fault}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hello::PROTOCOL;

    fn info(epoch: Option<u64>) -> LockInfo {
        let golden = include_str!("../../../tests/golden/ipc.lock");
        LockInfo { epoch, ..serde_json::from_str(golden).unwrap() }
    }

    #[track_caller]
    fn check_welcome(answer: &Value, epoch: Option<u64>, expected: Option<u64>) {
        let welcome = welcome(answer.clone(), &info(epoch)).unwrap();
        assert_eq!(welcome.map(|it| it.epoch), expected, "{answer} in term {epoch:?}");
    }

    #[test]
    fn only_the_holder_of_the_lock_in_its_term_is_believed() {
        let answer = |id: &str, epoch: u64| json!({"instance_id": id, "epoch": epoch, "protocol": PROTOCOL});
        check_welcome(&answer("inst-A", 3), Some(3), Some(3));
        check_welcome(&answer("inst-A", 3), None, Some(3));
        check_welcome(&json!({"instance_id": "inst-A", "epoch": 3}), Some(3), Some(3));
        check_welcome(&answer("inst-A", 2), Some(3), None);
        check_welcome(&answer("inst-B", 3), Some(3), None);
        check_welcome(&Value::Null, Some(3), None);
    }

    #[test]
    fn another_protocol_is_named_whatever_else_the_answer_holds() {
        let answer = json!({"instance_id": "inst-A", "protocol": 9, "version": "9.1.0", "term": "four"});
        let cause = welcome(answer, &info(Some(3))).unwrap_err();
        let ours = format!("primary inst-A (release 9.1.0) speaks protocol 9, this build speaks {PROTOCOL}");
        assert_eq!(cause.to_string(), ours);
    }
}
