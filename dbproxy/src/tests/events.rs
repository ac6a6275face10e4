//! Change events: every row, in the write's own transaction, numbered without a gap.

use pando_ipc::fault::Code;

use super::*;

#[tokio::test]
async fn a_change_event_has_the_documented_keys_and_the_rows_key() {
    let bench = Bench::new();
    let writer = bench.writer();
    apply(&writer, session("s1")).await;
    let event = bench.events.lock().unwrap()[0].clone();
    assert_eq!((event.instance_id.as_str(), event.session_id.as_str()), ("inst-A", "s1"));
    let expected = json!({
        "instance_id": "inst-A",
        "path": "/w",
        "topic": "db.session.created",
        "payload": {"method": "CreateSession", "table": "sessions", "key": "s1"},
        "timestamp": event.timestamp,
    });
    assert_eq!(event.payload.to_string(), expected.to_string());
    assert_eq!((event.seq, event.prev, event.epoch), (Some(1), Some(0), Some(1)));
}

#[tokio::test]
async fn a_deleted_session_emits_its_messages_and_files() {
    let bench = Bench::new();
    let writer = bench.writer();
    for work in [session("s"), message("m1", "s"), message("m2", "s")] {
        apply(&writer, work).await;
    }
    let file = json!({"id": "f", "session_id": "s", "path": "p", "content": "", "version": "v1"});
    apply(&writer, named("CreateFile", &file)).await;
    bench.forget();
    apply(&writer, named("DeleteSession", &json!("s"))).await;
    let mut seen = bench.seen();
    seen.sort();
    let expected = ["db.file.deleted f", "db.message.deleted m1", "db.message.deleted m2", "db.session.deleted s"];
    assert_eq!(seen, expected);
    assert!(bench.events.lock().unwrap().iter().all(|event| event.session_id == "s"));
    bench.check_journal().await;
}

#[tokio::test]
async fn replace_and_a_bare_delete_emit_the_rows_they_remove() {
    let bench = Bench::new();
    let writer = bench.writer();
    apply(&writer, session("s")).await;
    bench.forget();
    apply(&writer, exec(&["REPLACE INTO sessions (id, title) VALUES ('s', 'new')"])).await;
    assert_eq!(bench.seen(), ["db.session.deleted s", "db.session.created s"]);
    bench.forget();
    apply(&writer, exec(&["DELETE FROM sessions"])).await;
    assert_eq!(bench.seen(), ["db.session.deleted s"]);
}

/// Returns the tables of the summaries.
pub(super) fn summaries(bench: &Bench) -> Vec<Value> {
    let events = bench.events.lock().unwrap();
    let summaries = events.iter().filter(|event| event.topic.as_str() == "db.changed");
    summaries.map(|event| event.payload.read::<Value>().unwrap()["payload"]["tables"].clone()).collect()
}

#[tokio::test]
async fn every_write_that_changes_rows_makes_one_event_with_the_tables_and_operations() {
    let bench = Bench::new();
    let writer = bench.writer();
    apply(&writer, ddl(&["CREATE TABLE plain (a INTEGER PRIMARY KEY)"])).await;
    apply(&writer, exec(&["INSERT INTO plain VALUES (1), (2)", "DELETE FROM plain WHERE a = 1"])).await;
    apply(&writer, session("s")).await;
    apply(&writer, message("m", "s")).await;
    apply(&writer, exec(&["DELETE FROM sessions"])).await;
    assert!(submit(&writer, exec(&["DELETE FROM plain", "SELECT missing"])).await.is_err());
    apply(&writer, exec(&["DELETE FROM plain WHERE a = 9", "SELECT 1"])).await;
    let changed = [
        json!({"plain": {"created": 2, "deleted": 1}}),
        json!({"sessions": {"created": 1}}),
        json!({"messages": {"created": 1}, "sessions": {"updated": 1}}),
        json!({"messages": {"deleted": 1}, "sessions": {"deleted": 1}}),
    ];
    assert_eq!(summaries(&bench), changed);
    let rows = ["db.session.created s", "db.message.created m", "db.session.updated s"];
    assert_eq!(bench.seen()[..3], rows, "the tables of the agent store are tracked");
    bench.check_journal().await;
    let untracked = named("Track", &json!({"table": "sessions", "rows": false}));
    apply(&writer, untracked).await;
    bench.forget();
    apply(&writer, session("t")).await;
    assert_eq!((summaries(&bench), bench.seen()), (vec![json!({"sessions": {"created": 1}})], vec![]));
}

#[tokio::test]
async fn a_new_a_renamed_and_a_dropped_table_are_followed() {
    let bench = Bench::new();
    let writer = bench.writer();
    apply(&writer, ddl(&["CREATE TABLE notes (k TEXT PRIMARY KEY, v)", "INSERT INTO notes VALUES ('a', 1)"])).await;
    apply(&writer, ddl(&["ALTER TABLE notes RENAME TO memos", "UPDATE memos SET v = 2"])).await;
    apply(&writer, ddl(&["ALTER TABLE memos RENAME COLUMN k TO id", "DELETE FROM memos"])).await;
    let changed =
        [json!({"notes": {"created": 1}}), json!({"memos": {"updated": 1}}), json!({"memos": {"deleted": 1}})];
    assert_eq!(summaries(&bench), changed);
    bench.forget();
    let failing = ddl(&["CREATE TABLE gone (a)", "INSERT INTO gone VALUES (1)", "SELECT missing"]);
    assert!(submit(&writer, failing).await.is_err());
    apply(&writer, ddl(&["DROP TABLE memos", "CREATE TABLE gone (a)", "DROP TRIGGER temp._pando_track_0_DELETE"]))
        .await;
    apply(&writer, exec(&["INSERT INTO gone VALUES (1)", "DELETE FROM gone"])).await;
    apply(&writer, session("still")).await;
    let changed = [json!({"gone": {"created": 1, "deleted": 1}}), json!({"sessions": {"created": 1}})];
    assert_eq!(summaries(&bench), changed);
    assert_eq!(bench.seen(), ["db.session.created still"]);
    assert_eq!(bench.value("SELECT count(*) FROM sqlite_schema WHERE name LIKE '%track%'").await, 0);
    bench.check_journal().await;
}

#[tokio::test]
async fn many_rows_become_one_bulk_event() {
    let bench = Bench::new();
    let writer = bench.writer();
    let many = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n WHERE x < 1001)
                INSERT INTO sessions (id, title) SELECT x, '' FROM n";
    let ack = apply(&writer, exec(&[many])).await;
    assert_eq!((bench.seen(), ack.seq), (vec!["db.session.bulk".to_owned()], 2));
    let payload = bench.events.lock().unwrap()[0].payload.read::<Value>().unwrap()["payload"].clone();
    let expected = json!({"method": "exec", "table": "sessions", "created": 1001, "updated": 0, "deleted": 0});
    assert_eq!(payload, expected);
}

#[tokio::test]
async fn numbers_are_dense_over_failures_restarts_and_terms() {
    let bench = Bench::new();
    for round in 0..4 {
        let writer = bench.writer();
        let works = (0..40).map(|at| match at % 4 {
            0 => session(&format!("{round}-{at}")),
            1 => session("same"),
            2 => exec(&["INSERT OR ROLLBACK INTO sessions (id, title) VALUES ('0-0', '')"]),
            _ => message(&format!("{round}-{at}"), &format!("{round}-{}", at - 3)),
        });
        let results = futures::future::join_all(works.map(|work| submit(&writer, work))).await;
        assert!(results.iter().filter(|result| result.is_ok()).count() >= 20);
        let heads = results.iter().flatten().map(|ack| ack.seq).max().unwrap();
        assert_eq!(heads, writer.head());
        if round % 2 == 0 {
            writer.close().await;
        }
    }
    // 10 sessions a round, and once "same"; 10 messages, each of which also changes its session; and a summary of each write.
    assert_eq!(bench.check_journal().await, (4 * 10 + 1) * 2 + 4 * 10 * 3);
}

#[tokio::test]
async fn a_write_and_its_events_are_committed_together() {
    let bench = Bench::new();
    let writer = bench.writer();
    let readers = bench.readers();
    let count = "SELECT (SELECT count(*) FROM sessions), (SELECT count(*) FROM _pando_event WHERE topic = 'db.session.created'),
                        (SELECT count(*) FROM _pando_op_named)";
    let work = async {
        for at in 0..200 {
            apply(&writer, session(&format!("s{at}"))).await;
        }
    };
    let look = async {
        loop {
            let row = readers.query(count, (), QueryLimits::default()).await.unwrap().rows.remove(0);
            assert!(row[0] == row[1] && row[1] == row[2], "{row:?}");
            if row[0] == 200_i64.into() {
                return;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(30), futures::future::join(work, look)).await.unwrap();
}

#[tokio::test]
async fn a_tracked_table_tells_the_columns_that_were_asked_for() {
    let bench = Bench::new();
    let writer = bench.writer();
    let table =
        "CREATE TABLE tasks (id INTEGER PRIMARY KEY, name TEXT UNIQUE, done INTEGER, data BLOB, twice AS (done * 2))";
    apply(&writer, ddl(&[table])).await;
    let track =
        |key: &[&str], columns: &[&str]| named("Track", &json!({"table": "Tasks", "key": key, "columns": columns}));
    apply(&writer, track(&["name"], &["done", "twice", "data"])).await;
    let told = |bench: &Bench| {
        let events = bench.events.lock().unwrap();
        let rows = events.iter().filter(|event| event.topic.as_str() != "db.changed");
        let last: Vec<_> = rows
            .map(|event| (event.topic.to_string(), event.payload.read::<Value>().unwrap()["payload"].clone()))
            .collect();
        last.into_iter().map(|(topic, change)| json!([topic, change["key"], change["columns"]])).collect::<Vec<_>>()
    };
    apply(&writer, exec(&["INSERT INTO tasks (name, done, data) VALUES ('a', 0, x'00ff')"])).await;
    apply(&writer, exec(&["UPDATE tasks SET done = 1", "UPDATE tasks SET done = 9007199254740993"])).await;
    apply(&writer, exec(&["DELETE FROM tasks"])).await;
    let large =
        json!({"done": 9_007_199_254_740_993_i64, "twice": 18_014_398_509_481_986_i64, "data": {"$blob": "AP8="}});
    assert_eq!(
        told(&bench),
        [
            json!(["db.tasks.created", "a", {"done": 0, "twice": 0, "data": {"$blob": "AP8="}}]),
            json!(["db.tasks.updated", "a", large]),
            json!(["db.tasks.deleted", "a", large]),
        ]
    );
    bench.forget();
    let most = crate::MAX_COLUMNS_BYTES;
    apply(&writer, exec(&[&format!("INSERT INTO tasks (name, data) VALUES ('l', zeroblob({most}))")])).await;
    let told_of = bench.events.lock().unwrap()[0].payload.read::<Value>().unwrap()["payload"].clone();
    let expected = json!({"method": "exec", "table": "tasks", "key": "l", "columns_omitted": true});
    assert_eq!(told_of, expected, "it would fit into no frame");
    apply(&writer, exec(&["DELETE FROM tasks"])).await;
    bench.forget();
    // A column that is renamed is another one; without a wish events are as before.
    let rename = ["ALTER TABLE tasks RENAME COLUMN data TO content", "INSERT INTO tasks (name, done) VALUES ('b', 1)"];
    apply(&writer, ddl(&rename)).await;
    assert!(submit(&writer, ddl(&["ALTER TABLE tasks DROP COLUMN name"])).await.is_err(), "it is in use");
    apply(&writer, track(&[], &[])).await;
    apply(&writer, exec(&["UPDATE tasks SET done = 3"])).await;
    let expected = [json!(["db.tasks.created", "b", {"done": 1, "twice": 2}]), json!(["db.tasks.updated", "1", null])];
    assert_eq!(told(&bench), expected);
    for (table, columns) in [("missing", json!([])), ("_pando_op", json!([])), ("tasks", json!(["nothing"]))] {
        let fault = submit(&writer, named("Track", &json!({"table": table, "columns": columns}))).await.unwrap_err();
        assert!(fault.is(Code::NotFound), "{fault}");
    }
    bench.check_journal().await;
}

#[tokio::test]
async fn triggers_do_what_they_do_in_sqlite_and_replaced_rows_are_told() {
    let bench = Bench::new();
    let writer = bench.writer();
    let told = || {
        let events = bench.events.lock().unwrap();
        let mut tables = events.iter().filter(|event| event.topic.as_str() == "db.changed");
        let last = tables.next_back().unwrap().payload.read::<Value>().unwrap();
        last["payload"]["tables"].clone()
    };
    apply(&writer, ddl(&["CREATE TABLE notes (id INTEGER PRIMARY KEY, text UNIQUE, at)", "CREATE TABLE n (n)"])).await;
    apply(
        &writer,
        exec(&["INSERT INTO notes (text) VALUES ('a'), ('b')", "REPLACE INTO notes (id, text) VALUES (7, 'a')"]),
    )
    .await;
    assert_eq!(told(), json!({"notes": {"created": 3, "deleted": 1}}));
    let triggers = [
        "CREATE TRIGGER touch AFTER UPDATE ON notes BEGIN UPDATE notes SET at = replace(NEW.text, ' ', '-') WHERE id = NEW.id; END",
        "CREATE TRIGGER more AFTER INSERT ON n BEGIN INSERT INTO n SELECT NEW.n + 1 WHERE NEW.n < 3; END",
    ];
    let broken = [&triggers[..], &["CREATE TABLE notes (a)"]].concat();
    submit(&writer, ddl(&broken)).await.unwrap_err();
    apply(&writer, exec(&["REPLACE INTO notes (id, text) VALUES (8, 'a')"])).await;
    assert_eq!(told(), json!({"notes": {"created": 1, "deleted": 1}}), "the triggers were taken back");
    apply(&writer, ddl(&triggers)).await;
    for _ in 0..2 {
        apply(
            &writer,
            exec(&["UPDATE notes SET text = replace (text || 'x', 'replaced', '')", "INSERT INTO n VALUES (0)"]),
        )
        .await;
        assert_eq!(told(), json!({"notes": {"updated": 4}, "n": {"created": 2}}), "none of them starts itself again");
        apply(&writer, exec(&["INSERT OR Replace INTO notes (id, text) SELECT id + 10, text FROM notes"])).await;
        assert_eq!(told(), json!({"notes": {"created": 2, "deleted": 2}}));
    }
    apply(&writer, ddl(&["DROP TRIGGER touch", "DROP TRIGGER more"])).await;
    bench.check_journal().await;
}

#[tokio::test]
async fn a_summary_names_a_session_where_all_rows_are_known_to_have_it() {
    let bench = Bench::new();
    let writer = bench.writer();
    apply(&writer, ddl(&["CREATE TABLE k (a)"])).await;
    apply(&writer, session("s")).await;
    let update = "UPDATE sessions SET title = 'x'";
    for (sql, session) in [(vec![update], "s"), (vec![update, "INSERT INTO k VALUES (1)"], "")] {
        bench.forget();
        apply(&writer, exec(&sql)).await;
        let events = bench.events.lock().unwrap();
        let summary = events.iter().find(|event| event.topic.as_str() == "db.changed").unwrap();
        assert_eq!(summary.session_id, session);
    }
}

#[tokio::test]
async fn a_row_whose_event_nobody_could_be_sent_is_not_written() {
    let bench = Bench::new();
    let writer = bench.writer();
    apply(&writer, ddl(&["CREATE TABLE k (a PRIMARY KEY)"])).await;
    apply(&writer, named("Track", &json!({"table": "k"}))).await;
    bench.forget();
    let insert = |bytes: usize| exec(&[&format!("INSERT INTO k VALUES (printf('%.*c', {bytes}, 'x'))")]);
    let fault = submit(&writer, insert(5_000_000)).await.unwrap_err();
    assert!(fault.is(Code::TooLarge) && fault.message.contains("db.k.created"), "{fault}");
    assert_eq!(bench.seen(), [""; 0]);
    apply(&writer, insert(3_000_000)).await;
    assert_eq!(bench.value("SELECT length(a) FROM k").await, 3_000_000);
    bench.check_journal().await;
}

#[tokio::test]
async fn a_row_has_as_many_columns_in_its_events_as_are_allowed() {
    let bench = Bench::new();
    let writer = bench.writer();
    let columns: Vec<_> = (0..2 * crate::tracked::MAX_TRACKED_COLUMNS).map(|at| format!("c{at}")).collect();
    apply(&writer, ddl(&[&format!("CREATE TABLE wide ({})", columns.join(", "))])).await;
    let (key, carried) = columns.split_at(crate::tracked::MAX_TRACKED_COLUMNS);
    apply(&writer, named("Track", &json!({"table": "wide", "key": key, "columns": carried}))).await;
    bench.forget();
    apply(&writer, exec(&["INSERT INTO wide (c0) VALUES (1)"])).await;
    apply(&writer, exec(&["UPDATE wide SET c0 = 2"])).await;
    assert_eq!(bench.seen().len(), 3, "one of them for the key that was");
    let more = Writes::new().work("Track", &json!({"table": "wide", "key": &columns[..=key.len()]}));
    assert_eq!(more.unwrap_err().code, -32602);
}
