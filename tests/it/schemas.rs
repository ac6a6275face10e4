//! Schemas move on under one writer: an application brings its own, and releases that do not fit are refused at once.

use std::time::{Duration, Instant};

use pando::{Instance, JoinError, Migrations, Options};

use crate::support::{PandoProcess, Sandbox, pando, tail};

/// Longest time to a refusal.
const AT_ONCE: Duration = Duration::from_secs(5);

fn options(migrations: Migrations) -> Options {
    Options { migrations: vec![migrations], ..Options::default() }
}

fn notes() -> Migrations {
    Migrations::of("editor").step(1, "notes", "CREATE TABLE notes (id TEXT PRIMARY KEY, text TEXT)")
}

#[tokio::test(flavor = "multi_thread")]
async fn an_application_brings_its_schema_to_a_primary_that_knows_nothing_of_it() {
    let sandbox = Sandbox::new();
    let (_primary, _) = PandoProcess::primary(&sandbox);
    let mut observer = tail(&sandbox, &["--since", "all", "db.migrated"]);
    let newer = notes().step(2, "stars", "ALTER TABLE notes ADD COLUMN star INTEGER NOT NULL DEFAULT 0");
    let editor = Instance::join(sandbox.workdir(), options(newer)).await.unwrap();
    let id = pando::time_ordered_id();
    editor.db().execute("INSERT INTO notes (id, star) VALUES (?1, 1)", [id.as_str()]).await.unwrap();
    assert_eq!(sandbox.count("SELECT sum(star) FROM notes"), 1);
    observer
        .wait_for("db.migrated", AT_ONCE, |line| line.text.contains("\"app\":\"editor\",\"version\":2").then_some(()));

    let began = Instant::now();
    let older = Instance::join(sandbox.workdir(), options(notes())).await.unwrap_err();
    assert!(began.elapsed() < AT_ONCE);
    assert!(matches!(&older, JoinError::Migrations { app, .. } if app == "editor"));
    let text = older.to_string();
    assert!(text.contains("version 2") && text.contains("up to 1"), "{text}");
    editor.leave().await;
}

#[test]
fn a_release_that_does_not_fit_the_schema_is_refused_with_both_versions() {
    let sandbox = Sandbox::new();
    let (_primary, _) = PandoProcess::primary(&sandbox);
    let foreign = rusqlite::Connection::open(sandbox.workdir().database_path()).unwrap();
    let newest = sandbox.count("SELECT max(id) FROM _pando_migration");
    for (change, versions) in [
        (
            "INSERT INTO _pando_migration VALUES (99, 'later', 1, 'now', '9.9.9')",
            format!("99, made by pando 9.9.9; this is pando {}", env!("CARGO_PKG_VERSION")),
        ),
        ("DELETE FROM _pando_migration WHERE id = 99 OR id > 2", format!("and needs {newest}")),
    ] {
        foreign.execute(change, []).unwrap();
        let began = Instant::now();
        let refused = pando(&sandbox, &["up"]);
        assert!(began.elapsed() < AT_ONCE, "{refused}");
        assert_eq!(refused.code, Some(7), "{refused}");
        assert!(refused.stderr.contains(&versions) && refused.stderr.contains("hint: "), "{refused}");
    }
}
