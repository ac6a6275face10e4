//! The agent store: all 21 writes, typed and in the documented form.

use tokio::sync::watch;

use super::*;
use crate::store::{params, rows};
use crate::{Db, DbError, DbOptions, Deliver, Querier, wire};

fn db(bench: &Bench, writer: &Writer) -> (Db, watch::Sender<Option<Arc<dyn Deliver>>>) {
    let local: Arc<dyn Deliver> = Arc::new(writer.clone());
    let (sender, route) = watch::channel(Some(local));
    (Db::new(bench.readers(), route, Writes::new(), "inst-A", DbOptions::default()), sender)
}

#[tokio::test]
async fn sessions_messages_and_files_round_trip() {
    let bench = Bench::new();
    let writer = bench.writer();
    let (db, _route) = db(&bench, &writer);
    let made = db
        .create_session(params::CreateSession {
            id: "s".into(),
            title: "first".into(),
            cost: 0.5,
            ..Default::default()
        })
        .await
        .unwrap();
    assert!(made.created_at > 1_700_000_000 && made.updated_at == made.created_at);
    let expected = rows::Session { id: "s".into(), title: "first".into(), cost: 0.5, ..made.clone() };
    assert_eq!((&made, made.parent_session_id.as_ref(), made.message_count), (&expected, None, 0));
    assert_eq!(db.get_session("s").await.unwrap(), Some(made));
    let update = params::UpdateSession {
        title: "second".into(),
        prompt_tokens: 3,
        completion_tokens: 4,
        summary_message_id: Some("m1".into()),
        cost: 1.0,
        id: "s".into(),
    };
    let changed = db.update_session(update.clone()).await.unwrap();
    assert_eq!((changed.title.as_str(), changed.summary_message_id.as_deref()), ("second", Some("m1")));
    let missing = db.update_session(params::UpdateSession { id: "none".into(), ..update }).await.unwrap_err();
    assert!(
        missing.fault().unwrap().message.starts_with("dbproxy: INTERNAL (UpdateSession): sql: no rows in result set")
    );

    for id in ["m1", "m2", "m3"] {
        let message = params::CreateMessage {
            id: id.into(),
            session_id: "s".into(),
            role: "user".into(),
            parts: r#"[{"type":"text"}]"#.into(),
            model: (id == "m2").then(|| "gpt".to_owned()),
        };
        let row = db.create_message(message).await.unwrap();
        assert_eq!((row.id.as_str(), row.model.is_some(), row.finished_at), (id, id == "m2", None));
    }
    let count = async || db.get_session("s").await.unwrap().unwrap().message_count;
    assert_eq!(count().await, 3);
    db.update_message(params::UpdateMessage { parts: "[]".into(), finished_at: Some(7), id: "m1".into() })
        .await
        .unwrap();
    let row = db.get_message("m1").await.unwrap().unwrap();
    assert_eq!((row.parts.as_str(), row.finished_at), ("[]", Some(7)));
    db.delete_message("m1").await.unwrap();
    assert_eq!(count().await, 2);
    let ids: Vec<_> = db.list_messages_by_session("s").await.unwrap().into_iter().map(|row| row.id).collect();
    assert_eq!(ids, ["m2", "m3"]);
    db.delete_session_messages("s").await.unwrap();
    assert_eq!(count().await, 0);

    for (id, version) in [("f1", "v1"), ("f2", "v2")] {
        let file = params::CreateFile {
            id: id.into(),
            session_id: "s".into(),
            path: "a.rs".into(),
            content: "x".into(),
            version: version.into(),
        };
        assert_eq!(db.create_file(file).await.unwrap().version, version);
    }
    let file = params::UpdateFile { content: "y".into(), version: "v3".into(), id: "f1".into() };
    assert_eq!(db.update_file(file).await.unwrap().content, "y");
    db.delete_file("f2").await.unwrap();
    assert_eq!(db.get_file("f2").await.unwrap(), None);
    assert_eq!(db.list_files_by_session("s").await.unwrap().len(), 1);
    db.delete_session_files("s").await.unwrap();
    assert_eq!(db.list_files_by_session("s").await.unwrap(), []);
    assert_eq!(db.list_sessions(10, 0).await.unwrap().len(), 1);
    db.delete_session("s").await.unwrap();
    assert_eq!(db.list_sessions(10, 0).await.unwrap(), []);
    db.delete_session("s").await.unwrap();
}

#[tokio::test]
async fn projects_templates_scores_and_skills_round_trip() {
    let bench = Bench::new();
    let writer = bench.writer();
    let (db, _route) = db(&bench, &writer);
    let project = params::CreateProject {
        id: "p".into(),
        name: "n".into(),
        path: "/p".into(),
        status: "idle".into(),
        acp_pid: Some(7),
        ..Default::default()
    };
    let made = db.create_project(project).await.unwrap();
    assert_eq!((made.acp_pid, made.acp_port, made.initialized), (Some(7), None, 0));
    let status = params::UpdateProjectStatus { status: "up".into(), acp_pid: None, acp_port: Some(9), id: "p".into() };
    db.update_project_status(status).await.unwrap();
    db.update_project_last_opened(params::UpdateProjectLastOpened { last_opened: Some(5), id: "p".into() })
        .await
        .unwrap();
    db.mark_project_initialized("p").await.unwrap();
    let row = db.get_project("p").await.unwrap().unwrap();
    let seen = (row.status.as_str(), row.acp_pid, row.acp_port, row.last_opened, row.initialized);
    assert_eq!(seen, ("up", None, Some(9), Some(5), 1));
    assert_eq!(db.list_projects().await.unwrap(), [row]);
    db.delete_project("p").await.unwrap();
    assert_eq!(db.list_projects().await.unwrap(), []);

    let template = params::InsertPromptTemplate {
        id: "t".into(),
        name: "n".into(),
        section: "s".into(),
        content: "c".into(),
        version: 2,
        is_active: 1,
        is_default: 0,
    };
    let made = db.insert_prompt_template(template).await.unwrap();
    assert_eq!((made.version, made.is_active), (2, 1));
    assert_eq!(db.get_prompt_template("t").await.unwrap().as_ref(), Some(&made));
    assert_eq!(db.list_prompt_templates().await.unwrap(), [made]);

    let score = params::InsertSessionScore {
        id: "sc".into(),
        session_id: "s".into(),
        template_id: Some("t".into()),
        reward: 1.0,
        ..Default::default()
    };
    let made = db.insert_session_score(score).await.unwrap();
    assert_eq!((made.reward, made.template_id.as_deref(), made.judge_model.as_deref()), (1.0, Some("t"), None));
    assert_eq!(db.list_session_scores("s").await.unwrap(), [made]);

    for id in ["k1", "k2"] {
        let skill = params::InsertSkill { id: id.into(), task_type: "fix".into(), ..Default::default() };
        let made = db.insert_skill(skill).await.unwrap();
        assert_eq!((made.usage_count, made.is_active), (0, 1));
    }
    db.increment_skill_usage("k1").await.unwrap();
    assert_eq!(db.get_skill("k1").await.unwrap().unwrap().usage_count, 1);
    db.deactivate_lowest_skill().await.unwrap();
    let active: Vec<_> = db.list_skills().await.unwrap().into_iter().map(|row| row.id).collect();
    assert_eq!(active, ["k1"], "the least used one went");
    db.deactivate_lowest_skill().await.unwrap();
    db.deactivate_lowest_skill().await.unwrap();
}

#[tokio::test]
async fn the_documented_form_works_for_rows_and_bare_ids() {
    let bench = Bench::new();
    let writer = bench.writer();
    let call = async |request_id: &str, method: &str, params: Value| {
        let meta =
            json!({"source_instance_id": "inst-B", "request_id": request_id, "timestamp": "2026-11-21T03:04:15Z"});
        let params = json!({"meta": meta, "method": method, "params": params}).into();
        let (request, answer) = wire::parse_write(&params, "peer", &Writes::new()).unwrap();
        writer.submit(request).await.map(|ack| wire::write_result(&answer, &ack))
    };
    let null = json!({"String": "", "Valid": false});
    let mut params = session_params("s");
    params["parent_session_id"] = null.clone();
    let row = tree(&call("req-1", "CreateSession", params.clone()).await.unwrap());
    assert_eq!((&row["parent_session_id"], &row["summary_message_id"]), (&null, &null));
    let keys: Vec<_> = row.as_object().unwrap().keys().map(String::as_str).collect();
    let expected = [
        "id",
        "parent_session_id",
        "title",
        "message_count",
        "prompt_tokens",
        "completion_tokens",
        "cost",
        "updated_at",
        "created_at",
        "summary_message_id",
    ];
    assert_eq!(keys, expected);
    assert_eq!(call("req-1", "CreateSession", params.clone()).await.unwrap(), row, "a retry");
    let conflict = call("req-2", "CreateSession", params).await.unwrap_err();
    assert_eq!(conflict.message, "dbproxy: CONFLICT (CreateSession): UNIQUE constraint failed: sessions.id");
    assert_eq!(call("req-3", "DeleteSession", json!("s")).await.unwrap(), Value::Null);
    assert_eq!(bench.value("SELECT count(*) FROM sessions").await, 0);
    assert_eq!(bench.events.lock().unwrap()[0].instance_id, "inst-B");
}

#[tokio::test]
async fn plain_sql_keeps_counts_and_times_too() {
    let bench = Bench::new();
    let writer = bench.writer();
    let insert = "INSERT INTO sessions (id, title, updated_at, created_at) VALUES ('a', '', 5, 5), ('b', '', 5, 5)";
    apply(&writer, exec(&[insert])).await;
    apply(&writer, exec(&["UPDATE sessions SET title = 'x' WHERE id = 'a'"])).await;
    let now = pando_ipc::Timestamp::now().unix_seconds();
    let touched = bench.value("SELECT updated_at FROM sessions WHERE id = 'a'").await.as_i64().unwrap();
    assert!((now - 5..=now).contains(&touched), "{touched}");
    assert_eq!(bench.value("SELECT updated_at FROM sessions WHERE id = 'b'").await, 5);
    apply(&writer, exec(&["INSERT INTO messages (id, session_id, role) VALUES ('m', 'a', 'user')"])).await;
    apply(&writer, exec(&["UPDATE messages SET session_id = 'b'"])).await;
    assert_eq!(
        bench.value("SELECT group_concat(message_count) FROM (SELECT * FROM sessions ORDER BY id)").await,
        "0,1"
    );
    apply(&writer, exec(&["DELETE FROM messages"])).await;
    assert_eq!(bench.value("SELECT sum(message_count) FROM sessions").await, 0);
}

#[tokio::test]
async fn a_bad_call_names_method_and_field() {
    let bench = Bench::new();
    let writer = bench.writer();
    let (db, _route) = db(&bench, &writer);
    let error = DbError::from(db.named("CreateFile", &json!({"id": 7})).await.unwrap_err());
    let fault = error.fault().unwrap();
    assert_eq!(fault.message, "dbproxy: INVALID_PARAMS (CreateFile): params.id: expected a string");
    let error = db.query("SELECT missing", (), |_| Ok(())).await.unwrap_err();
    assert_eq!(error.to_string(), "dbproxy: INVALID_PARAMS (query): no such column: missing");
}
