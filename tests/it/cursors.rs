//! A named consumer goes on where it was, whoever restarted meanwhile, and knows another database when it meets one.

use std::fs;

use serde_json::{Value, json};

use crate::support::{PandoProcess, Sandbox, pando};

fn publish(sandbox: &Sandbox, number: u64) {
    let payload = json!({"number": number}).to_string();
    let outcome = pando(sandbox, &["ipc", "publish", "note.made", &payload]);
    assert_eq!(outcome.code, Some(0), "{outcome}");
}

/// Reads what is new for the cursor, as it was printed.
fn read(sandbox: &Sandbox) -> Vec<String> {
    let args = [
        "ipc",
        "tail",
        "note.*",
        "--cursor",
        "build",
        "--since",
        "all",
        "--until",
        "now",
        "--format",
        "{payload.number}",
    ];
    let outcome = pando(sandbox, &args);
    assert_eq!(outcome.code, Some(0), "{outcome}");
    outcome.stdout.lines().map(str::to_owned).collect()
}

fn unread(sandbox: &Sandbox) -> Value {
    pando(sandbox, &["ipc", "cursors", "--json"]).json::<Value>()["cursors"][0]["unread"].clone()
}

#[test]
fn a_cursor_goes_on_where_it_was_with_and_without_a_primary() {
    let sandbox = Sandbox::new();
    let (mut first, _) = PandoProcess::primary(&sandbox);
    (1..=3).for_each(|number| publish(&sandbox, number));
    assert_eq!(read(&sandbox), ["1", "2", "3"]);
    assert_eq!((read(&sandbox).len(), unread(&sandbox)), (0, json!(0)));
    publish(&sandbox, 4);
    assert_eq!(unread(&sandbox), json!(1));
    first.kill();
    assert_eq!(read(&sandbox), ["4"], "from the file, while nobody leads");
    let (_second, _) = PandoProcess::primary(&sandbox);
    publish(&sandbox, 5);
    assert_eq!(read(&sandbox), ["5"]);
}

#[test]
fn a_new_cursor_begins_with_the_oldest_or_where_it_was_told_and_remembers_that() {
    let sandbox = Sandbox::new();
    let (mut instance, _) = PandoProcess::primary(&sandbox);
    (1..=2).for_each(|number| publish(&sandbox, number));
    let read = |args: &[&str]| {
        let outcome = pando(
            &sandbox,
            &[&["ipc", "tail", "note.*", "--until", "now", "--format", "{payload.number}"], args].concat(),
        );
        assert_eq!(outcome.code, Some(0), "{outcome}");
        outcome.stdout.lines().map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(read(&["--cursor", "whole"]), ["1", "2"]);
    assert_eq!(read(&["--cursor", "later", "--since", "now"]), [""; 0]);
    publish(&sandbox, 3);
    instance.kill();
    assert_eq!(read(&["--cursor", "whole"]), ["3"]);
    assert_eq!(read(&["--cursor", "later"]), ["3"], "it had read nothing, but knew from where");
}

#[test]
fn a_recreated_database_is_recognised_and_read_from_its_start() {
    let sandbox = Sandbox::new();
    let (mut first, _) = PandoProcess::primary(&sandbox);
    (1..=3).for_each(|number| publish(&sandbox, number));
    assert_eq!(read(&sandbox).len(), 3);
    first.kill();
    for suffix in ["", "-wal", "-shm"] {
        let file = sandbox.workdir().database_path().with_extension(format!("db{suffix}"));
        // A WAL need not be there.
        drop(fs::remove_file(file));
    }
    assert_eq!(unread(&sandbox), Value::Null, "its database is gone");
    let (_second, _) = PandoProcess::primary(&sandbox);
    (7..=12).for_each(|number| publish(&sandbox, number));
    let page: Value =
        pando(&sandbox, &["ipc", "call", "events.since", r#"{"cursor":"build","topics":["note.*"]}"#]).json();
    assert_eq!((&page["resync"]["from"], page["events"].as_array().unwrap().len()), (&json!(1), 6), "{page}");
    assert_eq!(read(&sandbox), ["7", "8", "9", "10", "11", "12"]);
}

#[test]
fn a_consumer_in_any_language_acknowledges_by_a_call() {
    let sandbox = Sandbox::new();
    let (_instance, _) = PandoProcess::primary(&sandbox);
    (1..=3).for_each(|number| publish(&sandbox, number));
    let since = || -> Value {
        pando(&sandbox, &["ipc", "call", "events.since", r#"{"cursor":"py","topics":["note.*"]}"#]).json()
    };
    let page = since();
    assert_eq!(page["events"].as_array().unwrap().len(), 3, "one that does not exist yet begins with the oldest");
    let second = page["events"][1]["seq"].as_u64().unwrap();
    let ack = json!({"cursor": "py", "seq": second, "database": page["database"], "topics": ["note.*"]}).to_string();
    let moved: Value = pando(&sandbox, &["ipc", "call", "events.ack", &ack]).json();
    assert_eq!((&moved["seq"], &moved["unread"]), (&json!(second), &json!(1)));
    assert_eq!(since()["events"][0]["payload"]["number"], json!(3));
    let back = json!({"cursor": "py", "seq": 1}).to_string();
    let moved: Value = pando(&sandbox, &["ipc", "call", "events.ack", &back]).json();
    assert_eq!(moved["seq"], json!(second), "it does not move back");
    for bad in [json!({"cursor": "../x", "seq": 1}), json!({"cursor": "py", "seq": 1_000_000})] {
        assert_eq!(pando(&sandbox, &["ipc", "call", "events.ack", &bad.to_string()]).code, Some(1));
    }
    let foreign = json!({"cursor": "py", "seq": 1, "database": "67e55044-10b1-426f-9247-bb680e5fe0c8"}).to_string();
    assert_eq!(pando(&sandbox, &["ipc", "call", "events.ack", &foreign]).code, Some(6));
}
