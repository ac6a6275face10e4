//! How a status looks, and what it advises.

use std::time::Duration;

use pando_dbproxy::PINNED_BYTES;
use pando_ipc::metrics::{Distribution, Metric, Reading};
use pando_ipc::{Holder, Timestamp};
use serde_json::Value;

use super::{Report, State, Trouble};
use crate::cli::output::{self, Palette, Table};
use crate::cli::{duration, ipc};

/// Bytes that wait for one follower and are worth a word: a quarter of what cuts it off.
const LAGGING_BYTES: u64 = 2 << 20;

/// Returns the whole, no wider than `columns`.
pub(super) fn human(report: &Report, trouble: Trouble, palette: Palette, columns: Option<usize>) -> String {
    let mut facts = vec![("workdir", report.workdir.display().to_string())];
    match report.state {
        State::Free => {
            facts.push(("state", "no primary, the lock is free".to_owned()));
            if let Some(last) = &report.last_holder {
                facts.push((
                    "last",
                    format!("{}, from {}", last.instance_id, output::brief_time(&last.started_at.to_string())),
                ));
            }
        }
        State::Silent => {
            facts.push(("state", "the lock is held, but its holder does not answer".to_owned()));
            if let Some(info) = &report.holder {
                let executable = report.executable.clone();
                let holder = Holder { info: info.clone(), executable, state: report.process_state };
                facts.push(("holder", format!("{holder:#}")));
            }
        }
        State::Led => led(report, &mut facts),
    }
    // What is wrong goes to stderr as the command's failure, with the next step; where there is no failure both belong here.
    let is_told_here = trouble == Trouble::Here || !matches!(report.state, State::Silent);
    if let Some(problem) = report.problem.as_ref().filter(|_| is_told_here) {
        facts.push((output::PROBLEM, problem.clone()));
    }
    if let Some(stats) = report.database.as_ref().filter(|_| !matches!(report.state, State::Led)) {
        facts.push(("head", format!("seq {}, epoch {}", stats.head, stats.epoch)));
    }
    if let Some(stats) = &report.database {
        facts.push(("database", format!("{}, log {}", output::bytes(stats.bytes), output::bytes(stats.wal_bytes))));
    }
    if is_told_here {
        facts.extend(report.hints.iter().map(|hint| (output::NEXT, hint.clone())));
    }
    let mut parts = vec![output::facts_within(&facts, palette, columns)];
    let everyone: Vec<Value> = report.instances.iter().chain(&report.gone).cloned().collect();
    if !everyone.is_empty() {
        parts.push(ipc::instances::table(&everyone, Timestamp::now()).render_within(palette, columns));
    }
    if !report.followers.is_empty() {
        parts.push(followers(&report.followers).render_within(palette, columns));
    }
    if let Some(diag) = &report.diag {
        parts.push(
            lines(
                ["AT", "INSTANCE", "PID", "ROLE", "EPOCH"],
                &diag.lifecycle,
                ["at", "instance_id", "pid", "what", "epoch"],
            )
            .render_within(palette, columns),
        );
        parts.push(
            lines(
                ["AT", "CONNECTION", "PID", "SOCKET", "WHAT"],
                &diag.transitions,
                ["at", "peer", "pid", "socket", "what"],
            )
            .render_within(palette, columns),
        );
    }
    parts.join("\n\n")
}

fn lines(titles: [&str; 5], lines: &[Value], keys: [&str; 5]) -> Table {
    let mut table = Table::new(titles);
    for line in lines {
        table.row(keys.map(|key| match (key, &line[key]) {
            (_, Value::Null) => "-".to_owned(),
            ("at", Value::String(time)) => output::brief_time(time),
            (_, value) => output::cell(value),
        }));
    }
    table
}

fn followers(followers: &[Value]) -> Table {
    let mut table = Table::new(["FOLLOWER", "PID", "DOOR", "TOPICS", "WAITING"]);
    for follower in followers {
        let text = |key: &str| if follower[key].is_null() { "-".to_owned() } else { output::cell(&follower[key]) };
        let waiting = follower["queued_bytes"].as_u64().map_or_else(|| "-".to_owned(), output::bytes);
        table.row([text("instance_id"), text("pid"), text("door"), text("subscriptions"), waiting]);
    }
    table
}

fn led(report: &Report, facts: &mut Vec<(&str, String)>) {
    let info = report.primary.as_ref().unwrap_or(&Value::Null);
    let text = |key: &str| info.get(key).map(output::cell).unwrap_or_default();
    let mut primary = format!("{}, pid {}", text("instance_id"), text("pid"));
    if let Some(executable) = &report.executable {
        primary.push_str(", ");
        primary.push_str(&executable.display().to_string());
    }
    facts.push(("primary", primary));
    if let Some(uptime) = info["uptime"].as_f64() {
        let up = duration::human(Duration::try_from_secs_f64(uptime).unwrap_or_default());
        let since = info["started_at"]
            .as_str()
            .map(|since| format!(", leads since {}", output::brief_time(since)))
            .unwrap_or_default();
        facts.push(("up", format!("{up}{since}")));
    }
    facts.push(("epoch", text("epoch")));
    facts.push(("head", format!("seq {}", text("head"))));
    if !info["sessions"].is_null() {
        facts.push(("sessions", text("sessions")));
    }
    if !info["durability"].is_null() {
        facts.push(("writes", written(info["durability"].as_str())));
    }
    facts.extend(speed(&report.metrics));
    let ports = match (&info["ports"]["pub"], &info["ports"]["rpc"]) {
        (Value::Number(publish), Value::Number(rpc)) => format!("pub {publish}, rpc {rpc}"),
        _ => "closed; Unix sockets only".to_owned(),
    };
    facts.push(("ports", ports));
    let bus = &info["bus"];
    if let (Some(callers), Some(subscribers)) = (bus["callers"].as_u64(), bus["subscribers"].as_u64()) {
        let some = |count: u64, noun: &str| format!("{count} {noun}{}", if count == 1 { "" } else { "s" });
        facts.push(("doors", format!("{}, {}", some(callers, "caller"), some(subscribers, "follower"))));
    }
    if let Some(refused) = ipc::doors::refused(&bus["refusals"]) {
        facts.push(("refused", refused));
    }
    facts.push(("version", format!("{}, protocol {}", text("version"), text("protocol"))));
}

/// Says what an acknowledged write has survived.
fn written(durability: Option<&str>) -> String {
    match durability {
        Some("os") => "os: acknowledged once the system has them; a power cut may take the last ones".to_owned(),
        Some(other) => format!("{other}: acknowledged once they are on the disk"),
        None => "unknown".to_owned(),
    }
}

/// Returns how fast it goes, as far as the primary tells.
fn speed(metrics: &[Metric]) -> Vec<(&'static str, String)> {
    let reading = |name: &str| metrics.iter().find(|it| it.name == name)?.samples.first().map(|sample| &sample.value);
    let number = |name: &str| match reading(name) {
        Some(Reading::Number(number)) => *number,
        _ => 0.0,
    };
    let Some(Reading::Distribution(writes)) = reading("pando_write_seconds") else { return vec![] };
    let writes = format!(
        "{:.1}/s, {}, {:.0} waiting",
        number("pando_writes_per_second"),
        times(writes),
        number("pando_queue_writes")
    );
    let events = format!("{:.1}/s", number("pando_events_per_second"));
    let calls = format!("{:.1}/s, {:.0} in flight", number("pando_calls_per_second"), number("pando_calls_in_flight"));
    vec![("speed", writes), ("events", events), ("calls", calls)]
}

fn times(distribution: &Distribution) -> String {
    if distribution.count == 0 {
        return "none yet".to_owned();
    }
    format!("p50 {}, p99 {}", millis(distribution.p50), millis(distribution.p99))
}

/// Writes microseconds as milliseconds.
fn millis(micros: u64) -> String {
    #[expect(clippy::cast_precision_loss, reason = "a time for people")]
    let millis = micros as f64 / 1_000.0;
    if millis < 10.0 { format!("{millis:.2} ms") } else { format!("{millis:.0} ms") }
}

/// Returns what to do when something is wrong although a primary answers, or beside the lack of one.
pub(super) fn next_steps(report: &Report) -> Vec<String> {
    let mut steps = Vec::new();
    for stale in report.instances.iter().filter(|instance| instance["state"] == "stale") {
        let (id, pid) = (output::cell(&stale["instance_id"]), output::cell(&stale["pid"]));
        steps.push(format!("{id} (pid {pid}) is connected but silent; look at it: 'ps -o stat,wchan,cmd -p {pid}'"));
    }
    for follower in &report.followers {
        if follower["queued_bytes"].as_u64() >= Some(LAGGING_BYTES) {
            let pid = output::cell(&follower["pid"]);
            steps
                .push(format!("the follower with pid {pid} does not keep up; it will be cut off and resume by replay"));
        }
    }
    if report.database.as_ref().is_some_and(|stats| stats.wal_bytes >= PINNED_BYTES) {
        steps.push("a long read keeps the log from shrinking; see whose: 'pando doctor'".to_owned());
    }
    steps
}

#[cfg(test)]
pub(crate) mod tests {
    use pando_dbproxy::catalog::Stats;
    use pando_ipc::metrics::{Histogram, Type};
    use serde_json::json;

    use super::super::{Diag, in_place_of_the_last};
    use super::*;

    fn report(state: State) -> Report {
        Report { state, ..Report::empty("/home/user/projects/pando".as_ref()) }
    }

    fn stats() -> Stats {
        Stats {
            path: "/w/.pando/pando.db".into(),
            database: uuid::Uuid::nil(),
            epoch: 3,
            schema_version: 2,
            schema_made_by: "0.1.0".into(),
            sqlite_version: "3.54.1".into(),
            bytes: 5 << 20,
            wal_bytes: 100 << 20,
            page_bytes: 4_096,
            pages: 1_280,
            free_pages: 1,
            tables: 7,
            oldest_event: 1,
            head: 42,
            ops: 9,
        }
    }

    fn led() -> Report {
        let times = Histogram::default();
        for micros in [800, 900, 1_000, 12_000] {
            times.record(micros);
        }
        let mut report = report(State::Led);
        report.executable = Some("/home/user/.local/share/pando/releases/0.1.0/bin/pando".into());
        report.primary = Some(json!({
            "instance_id": "inst-0a1b2c3d4e5f", "role": "primary", "epoch": 3, "pid": 12, "version": "0.1.0", "protocol": 1,
            "uptime": 61.5, "durability": "disk", "started_at": "2026-11-21T02:53:37.5Z", "head": 42, "sessions": 2, "ports": {"pub": 45337, "rpc": 45338},
            "bus": {"callers": 2, "subscribers": 1, "refusals": {"too_large": 2}},
        }));
        report.metrics = vec![
            Metric::new(Type::Histogram, "pando_write_seconds", "")
                .with(&[], Reading::Distribution(times.distribution())),
            Metric::new(Type::Gauge, "pando_writes_per_second", "").with(&[], Reading::Number(12.34)),
            Metric::number(Type::Gauge, "pando_queue_writes", "", 7),
        ];
        let instance = |id: &str, role: &str, state: &str| json!({"instance_id": id, "kind": "instance", "role": role, "pid": 12, "version": "0.1.0", "state": state, "since": "?"});
        report.instances =
            vec![instance("inst-0a1b2c3d4e5f", "primary", "online"), instance("inst-b", "secondary", "stale")];
        report.gone = vec![instance("inst-c", "secondary", "gone")];
        report.followers = vec![
            json!({"instance_id": "inst-b", "pid": 13, "door": "native", "subscriptions": 1, "queued_bytes": 3 << 20}),
            json!({"instance_id": null, "pid": null, "door": "tcp", "subscriptions": 4, "queued_bytes": 0}),
        ];
        report.database = Some(stats());
        report.diag = Some(Diag {
            lifecycle: vec![
                json!({"at": "2026-11-21T02:53:37.5Z", "instance_id": "inst-b", "pid": 13, "what": "secondary", "epoch": 3}),
            ],
            transitions: vec![
                json!({"at": "2026-11-21T02:53:37.5Z", "peer": 4, "pid": null, "socket": "pub", "what": "slow_subscriber"}),
            ],
        });
        report.hints = next_steps(&report);
        report
    }

    pub(crate) fn look_led(palette: Palette, columns: Option<usize>) -> String {
        human(&Report { diag: None, ..led() }, Trouble::OnStderr, palette, columns)
    }

    pub(crate) fn look_diag(palette: Palette, columns: Option<usize>) -> String {
        human(&led(), Trouble::OnStderr, palette, columns)
    }

    pub(crate) fn look_watch(palette: Palette, columns: Option<usize>) -> String {
        in_place_of_the_last(&look_free(palette, columns), Some(25))
    }

    pub(crate) fn look_low_watch(palette: Palette, columns: Option<usize>) -> String {
        in_place_of_the_last(&look_led(palette, columns), Some(10))
    }

    pub(crate) fn look_free(palette: Palette, columns: Option<usize>) -> String {
        let mut report = report(State::Free);
        report.database = Some(Stats { wal_bytes: 0, ..stats() });
        report.hints.push("start a primary with 'pando up'".into());
        human(&report, Trouble::OnStderr, palette, columns)
    }

    pub(crate) fn look_file_system(palette: Palette, columns: Option<usize>) -> String {
        let mut report = report(State::Free);
        report.problem = Some("no primary can lead on this file system (nfs): other machines see it".into());
        report.hints.push("work in a directory on a disk of this machine".into());
        human(&report, Trouble::OnStderr, palette, columns)
    }

    fn silent() -> Report {
        let mut report = report(State::Silent);
        report.holder = Some(serde_json::from_str(include_str!("../../../tests/golden/ipc.lock")).unwrap());
        report.problem = Some("it says nothing".into());
        report.hints.push("if it stays silent, end it and another instance takes over: 'pando ipc evict'".into());
        report
    }

    pub(crate) fn look_silent(palette: Palette, columns: Option<usize>) -> String {
        human(&silent(), Trouble::OnStderr, palette, columns)
    }

    pub(crate) fn look_silent_watch(palette: Palette, columns: Option<usize>) -> String {
        human(&silent(), Trouble::Here, palette, columns)
    }
}
