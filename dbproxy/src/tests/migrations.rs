//! An application's own schema: applied once, in order, on the primary, by whoever asks.

use pando_ipc::fault::Code;
use tokio::sync::watch;

use super::*;
use crate::{Db, DbOptions, Deliver, Migrated, Migrations, Tracked, WriteError};

fn db(bench: &Bench, writer: &Writer) -> Db {
    let direct: Arc<dyn Deliver> = Arc::new(writer.clone());
    let (_route, route) = watch::channel(Some(direct));
    Db::new(bench.readers(), route, Writes::new(), "inst-B", DbOptions::default())
}

fn first() -> Migrations {
    Migrations::of("editor").step(
        1,
        "notes",
        "CREATE TABLE notes (id INTEGER PRIMARY KEY, text TEXT); -- one; or two?
         CREATE TRIGGER notes_new AFTER INSERT ON notes BEGIN UPDATE notes SET text = text || ';' WHERE id = NEW.id; END;
         INSERT INTO notes (text) VALUES ('hello; world')",
    )
}

fn second() -> Migrations {
    first().step(5, "tags", "ALTER TABLE notes ADD COLUMN tag TEXT; UPDATE notes SET tag = 'old'")
}

#[track_caller]
fn refused(result: Result<Migrated, WriteError>) -> Fault {
    match result {
        Err(WriteError::Refused(fault)) => fault,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn steps_are_applied_once_in_order_with_their_events() {
    let bench = Bench::new();
    let writer = bench.writer();
    let db = db(&bench, &writer);
    assert_eq!(db.migrate(&first()).await.unwrap(), Migrated { version: 1, applied: vec![1] });
    assert_eq!(bench.value("SELECT text FROM notes").await, "hello; world;");
    assert_eq!(bench.seen(), ["db.migrated"]);
    let (head, ops) = (writer.head(), bench.value("SELECT count(*) FROM _pando_op").await);
    assert_eq!(db.migrate(&first()).await.unwrap(), Migrated { version: 1, applied: vec![] });
    assert_eq!(
        (writer.head(), bench.value("SELECT count(*) FROM _pando_op").await),
        (head, ops),
        "no write was needed"
    );
    assert_eq!(db.migrate(&second()).await.unwrap(), Migrated { version: 5, applied: vec![5] });
    let other = Migrations::of("viewer").step(1, "views", "CREATE VIEW v AS SELECT tag FROM notes");
    assert_eq!(db.migrate(&other).await.unwrap().applied, [1]);
    assert_eq!(bench.value("SELECT tag FROM v").await, "old");
}

#[tokio::test]
async fn many_instances_that_come_at_once_apply_each_step_once() {
    let bench = Bench::new();
    let writer = bench.writer();
    let all = futures::future::join_all((0..8).map(|_| {
        let db = db(&bench, &writer);
        async move { db.migrate(&second()).await.unwrap().applied }
    }));
    let mut applied = all.await;
    applied.sort();
    assert_eq!(applied.last().unwrap(), &[1, 5]);
    assert_eq!(applied.iter().filter(|steps| steps.is_empty()).count(), 7);
    assert_eq!(bench.value("SELECT count(*) FROM notes").await, 1);
}

#[tokio::test]
async fn an_older_program_is_refused_with_both_versions_and_a_changed_or_late_step_too() {
    let bench = Bench::new();
    let writer = bench.writer();
    let db = db(&bench, &writer);
    db.migrate(&second()).await.unwrap();
    let older = refused(db.migrate(&first()).await);
    assert!(
        older.is(Code::Version) && older.message.contains("version 5") && older.message.contains("up to 1"),
        "{older}"
    );
    let changed = Migrations::of("editor").step(1, "notes", "SELECT 1").step(5, "tags", "SELECT 1");
    assert!(refused(db.migrate(&changed).await).message.contains("never changed"));
    let mut late = second();
    late.steps.insert(1, crate::Migration { id: 3, name: "late".into(), sql: "SELECT 1".into() });
    assert!(refused(db.migrate(&late).await).message.contains("too late"));
}

#[tokio::test]
async fn a_step_that_fails_leaves_nothing_and_may_not_touch_what_is_ours() {
    let bench = Bench::new();
    let writer = bench.writer();
    let db = db(&bench, &writer);
    for (sql, code) in [
        ("CREATE TABLE t (a); CREATE TABLE t (a)", Code::Sql),
        ("CREATE TABLE t (a); INSERT INTO missing VALUES (1)", Code::Sql),
        ("CREATE TABLE t (a); COMMIT; DELETE FROM _pando_event", Code::Forbidden),
        ("CREATE TABLE t (a); PRAGMA writable_schema = ON", Code::Forbidden),
        ("CREATE TABLE t (a); UPDATE _pando_meta SET value = 9", Code::Forbidden),
        ("CREATE TABLE t (a); CREATE TABLE _pando_mine (a)", Code::Forbidden),
        ("CREATE TABLE t (a); CREATE TRIGGER temp.g AFTER INSERT ON main.t BEGIN SELECT 1; END", Code::Forbidden),
        ("CREATE TABLE t (a); ATTACH ':memory:' AS x", Code::Forbidden),
    ] {
        let fault = refused(db.migrate(&second().step(6, "broken", sql)).await);
        assert!(fault.is(code), "{sql}: {fault}");
        assert!(fault.message.contains("(step 6 of editor)"), "{fault}");
    }
    assert_eq!(bench.value("SELECT count(*) FROM sqlite_schema WHERE name IN ('t', 'notes')").await, 0);
    assert_eq!(bench.seen(), [""; 0]);
    for bad in [
        Migrations::of(""),
        Migrations::of("a b"),
        second().step(5, "twice", ""),
        Migrations::of("x").step(0, "zero", ""),
    ] {
        assert_eq!(refused(db.migrate(&bad).await).code, -32602);
    }
    db.migrate(&second()).await.unwrap();
    bench.check_journal().await;
}

#[tokio::test]
async fn a_table_is_tracked_from_its_first_row_on() {
    let bench = Bench::new();
    let writer = bench.writer();
    let db = db(&bench, &writer);
    let schema = Migrations::of("app")
        .step(1, "tasks", "CREATE TABLE tasks (id INTEGER PRIMARY KEY, name TEXT)")
        .track(Tracked::table("tasks").columns(["name"]));
    db.migrate(&schema).await.unwrap();
    db.execute("INSERT INTO tasks (name) VALUES (?1)", ["first"]).await.unwrap();
    assert_eq!(bench.seen(), ["db.migrated", "db.tasks.created 1"]);
    // A wish for what is not there takes the step along.
    let wrong = schema.step(2, "more", "CREATE TABLE more (a)").track(Tracked::table("none"));
    let fault = refused(db.migrate(&wrong).await);
    assert!(fault.is(Code::NotFound) && fault.message.contains("no table \"none\""), "{fault}");
    assert_eq!(bench.value("SELECT count(*) FROM pragma_table_list WHERE name = 'more'").await, 0);
    bench.check_journal().await;
}

#[tokio::test]
async fn a_tracked_column_can_be_dropped_and_one_that_cannot_be_leaves_its_table_tracked() {
    let bench = Bench::new();
    let writer = bench.writer();
    let db = db(&bench, &writer);
    let tracked = |columns: &[&str]| Tracked::table("tasks").columns(columns.iter().copied());
    let first =
        Migrations::of("app").step(1, "tasks", "CREATE TABLE tasks (id INTEGER PRIMARY KEY, a, b, c, UNIQUE (c))");
    db.migrate(&first.clone().track(tracked(&["a", "b", "c"]))).await.unwrap();
    let drop_b = "ALTER TABLE tasks DROP COLUMN b; INSERT INTO tasks (a, c) VALUES ('step', 1)";
    let second = first.step(2, "no b", drop_b).track(tracked(&["a", "c"]));
    assert_eq!(db.migrate(&second).await.unwrap().applied, [2]);
    // Part of an index: SQLite refuses.
    let fault = refused(db.migrate(&second.clone().step(3, "no c", "ALTER TABLE tasks DROP COLUMN c")).await);
    assert!(fault.is(Code::Sql), "{fault}");
    assert!(submit(&writer, ddl(&["ALTER TABLE tasks DROP COLUMN c"])).await.is_err());
    db.execute("UPDATE tasks SET a = 'after'", ()).await.unwrap();
    apply(&writer, ddl(&["/* by hand */ alter table tasks drop column a"])).await;
    db.execute("DELETE FROM tasks", ()).await.unwrap();
    let events = ["db.tasks.created 1", "db.tasks.updated 1", "db.tasks.deleted 1"];
    let told: Vec<_> = bench.seen().into_iter().filter(|event| event.starts_with("db.tasks")).collect();
    assert_eq!(told, events);
    let carried = bench.value(
        "SELECT group_concat(envelope ->> '$.payload.payload.columns') FROM _pando_event WHERE topic LIKE 'db.tasks.%'",
    );
    assert_eq!(carried.await, r#"{"a":"step","c":1},{"a":"after","c":1},{"c":1}"#);
    bench.check_journal().await;
}

#[tokio::test]
async fn a_table_that_others_refer_to_can_be_made_anew_and_not_be_dropped_from_under_them() {
    let bench = Bench::new();
    let writer = bench.writer();
    let db = db(&bench, &writer);
    let schema = Migrations::of("app").step(
        1,
        "families",
        "CREATE TABLE parent (id INTEGER PRIMARY KEY, name TEXT);
         CREATE TABLE child (id INTEGER PRIMARY KEY, parent REFERENCES parent (id) ON DELETE CASCADE);
         INSERT INTO parent VALUES (1, 'a'), (2, 'b');
         INSERT INTO child VALUES (10, 1), (20, 2), (30, NULL)",
    );
    db.migrate(&schema).await.unwrap();
    // As SQLite's documentation describes it.
    let rebuild = "CREATE TABLE parent_new (id INTEGER PRIMARY KEY, name TEXT NOT NULL);
                   INSERT INTO parent_new SELECT * FROM parent;
                   /* and */ DROP TABLE parent; ALTER TABLE parent_new RENAME TO parent";
    let schema = schema.step(2, "names", rebuild);
    assert_eq!(db.migrate(&schema).await.unwrap().applied, [2]);
    assert_eq!(bench.value("SELECT group_concat(parent) FROM child").await, "1,2");
    let without = rebuild.replace("SELECT * FROM parent", "SELECT * FROM parent WHERE id = 1");
    for sql in ["DROP TABLE parent", &without] {
        let fault = refused(db.migrate(&schema.clone().step(3, "gone", sql)).await);
        assert!(fault.is(Code::Conflict) && fault.message.contains("child refer to rows of parent"), "{sql}: {fault}");
    }
    assert!(submit(&writer, ddl(&["DROP TABLE parent"])).await.unwrap_err().is(Code::Conflict));
    assert_eq!(bench.value("SELECT group_concat(parent) FROM child").await, "1,2");
    // References are looked at as before, and one that was wrong already is nobody's fault.
    assert!(submit(&writer, exec(&["INSERT INTO child VALUES (40, 9)"])).await.unwrap_err().is(Code::Conflict));
    apply(&writer, exec(&["DELETE FROM parent WHERE id = 2"])).await;
    assert_eq!(bench.value("SELECT group_concat(id) FROM child").await, "10,30");
    apply(&writer, ddl(&["DELETE FROM child", "DROP TABLE parent", "DROP TABLE child"])).await;
    // What is referred to is not unique: SQLite cannot look at such references.
    apply(&writer, ddl(&["CREATE TABLE p (a)", "CREATE TABLE c (x REFERENCES p (a))", "DROP TABLE c"])).await;
    bench.check_journal().await;
}
