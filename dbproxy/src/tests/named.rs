//! Named writes of an application: inside the transaction, alone in failure, over the wire.

use pando_ipc::Topic;
use pando_ipc::fault::Code;
use tokio::sync::watch;

use super::*;
use crate::{Db, DbOptions, Deliver, Remote, Tracked, Tx, WriteError};

#[derive(Clone, Copy, serde::Deserialize)]
struct Charge {
    account: i64,
    cents: i64,
}

/// The read-modify-write of an application: takes money, notes it, tells everyone.
fn charge(tx: &Tx<'_>, charge: Charge) -> Result<Value, Fault> {
    let balance = tx.query_one("SELECT cents FROM account WHERE id = ?1", [charge.account], |row| row.get::<i64>(0))?;
    let left = balance.ok_or_else(|| tx.refuse("no such account"))? - charge.cents;
    tx.execute("UPDATE account SET cents = ?1 WHERE id = ?2", (left, charge.account))?;
    tx.publish(Topic::known("account.charged"), json!({"left": left}), "");
    if left < 0 {
        return Err(tx.refuse("insufficient funds").with("balance", left + charge.cents));
    }
    Ok(json!({"left": left}))
}

fn writes() -> Writes {
    let writes = Writes::new();
    writes.register("charge", charge).unwrap();
    writes.register("open-or-pay", open_or_pay).unwrap();
    writes
}

/// Opens two accounts, and where one of them exists pays into it.
fn open_or_pay(tx: &Tx<'_>, _: Value) -> Result<Value, Fault> {
    if tx.execute("INSERT INTO account VALUES (2, 0), (1, 0), (3, 0)", ()).is_err() {
        tx.execute("UPDATE account SET cents = cents + 1 WHERE id = 1", ())?;
        let _kept = tx.execute("INSERT OR FAIL INTO account VALUES (4, 0), (1, 0), (5, 0)", ()).unwrap_err();
    }
    Ok(Value::Null)
}

async fn bank(bench: &Bench) -> Writer {
    let options = WriterOptions { writes: writes(), ..bench.options() };
    let writer = Writer::open(&bench.path(), options).unwrap();
    let account =
        ["CREATE TABLE account (id INTEGER PRIMARY KEY, cents INTEGER)", "INSERT INTO account VALUES (1, 100)"];
    apply(&writer, ddl(&account)).await;
    bench.forget();
    writer
}

/// A handle of another process, which need not know the name.
fn secondary(bench: &Bench, writer: &Writer) -> (Db, watch::Sender<Option<Arc<dyn Deliver>>>) {
    let remote: Arc<dyn Deliver> =
        Arc::new(Remote::new(Arc::new(delivery::OverTheWire::new(writer.clone(), writes())), Writes::new()));
    let (sender, route) = watch::channel(Some(remote));
    (Db::new(bench.readers(), route, Writes::new(), "inst-B", DbOptions::default()), sender)
}

#[tokio::test]
async fn a_registered_write_reads_changes_and_tells_in_one_transaction() {
    let bench = Bench::new();
    let writer = bank(&bench).await;
    let (db, _route) = secondary(&bench, &writer);
    assert_eq!(db.named("charge", &json!({"account": 1, "cents": 30})).await.unwrap(), json!({"left": 70}));
    assert_eq!(bench.seen(), ["account.charged"]);
    let event = bench.events.lock().unwrap()[1].clone();
    assert_eq!(
        (event.instance_id.as_str(), event.payload.read::<Value>().unwrap()["left"].as_i64()),
        ("inst-B", Some(70))
    );
    let refused = db.named("charge", &json!({"account": 1, "cents": 71})).await.unwrap_err();
    let WriteError::Refused(fault) = &refused else { panic!("{refused:?}") };
    assert!(fault.is(Code::Conflict), "{fault:?}");
    assert_eq!(fault.message, "dbproxy: CONFLICT (charge): insufficient funds");
    assert_eq!(fault.data.as_ref().unwrap()["balance"], 70);
    assert_eq!(bench.value("SELECT cents FROM account").await, 70);
    assert_eq!(bench.seen().len(), 1, "what was refused told nobody");
    bench.check_journal().await;
}

#[tokio::test]
async fn charges_at_once_never_lose_one_another() {
    let bench = Bench::new();
    let writer = bank(&bench).await;
    let (db, _route) = secondary(&bench, &writer);
    let params = json!({"account": 1, "cents": 2});
    let charges = (0..60).map(|_| db.named("charge", &params));
    let answers = futures::future::join_all(charges).await;
    assert_eq!(answers.iter().filter(|answer| answer.is_ok()).count(), 50);
    assert_eq!(bench.value("SELECT cents FROM account").await, 0);
}

#[tokio::test]
async fn an_unknown_name_and_bad_params_are_named() {
    let bench = Bench::new();
    let writer = bank(&bench).await;
    let (db, _route) = secondary(&bench, &writer);
    let said = async |name: &str, params: Value| db.named(name, &params).await.unwrap_err().to_string();
    let unknown = said("refund", json!({})).await;
    assert!(
        unknown.starts_with("dbproxy: METHOD_NOT_FOUND (refund): this primary has no such write; it has Create"),
        "{unknown}"
    );
    assert!(unknown.contains("charge"), "{unknown}");
    let bad = said("charge", json!({"account": "x", "cents": 1})).await;
    assert!(bad.starts_with("dbproxy: INVALID_PARAMS (charge): params.account: invalid type: string"), "{bad}");
    let missing = said("charge", json!({"account": 1})).await;
    assert_eq!(missing, "dbproxy: INVALID_PARAMS (charge): params: missing field `cents`");
    let applied = submit(
        &writer,
        named("UpdateSession", &json!({"title": "", "prompt_tokens": 0, "completion_tokens": 0, "cost": 0, "id": "s"})),
    )
    .await;
    assert!(applied.unwrap_err().is(Code::NotFound));
}

#[test]
fn a_name_is_given_once() {
    let writes = writes();
    assert_eq!(writes.register("charge", charge), Err(crate::NameTaken("charge".into())));
    assert!(writes.register("CreateSession", charge).is_err());
    assert_eq!(writes.names().iter().filter(|name| name.as_str() == "charge").count(), 1);
}

#[tokio::test]
async fn a_registered_write_is_guarded_like_any_other() {
    let bench = Bench::new();
    let options = bench.options();
    let run = |tx: &Tx<'_>, sql: String| tx.execute(&sql, ()).map(|done| done.rows_affected);
    options.writes.register("run", run).unwrap();
    let nested =
        |tx: &Tx<'_>, name: String| tx.named(&name, &json!("INSERT INTO sessions (id, title) VALUES ('in', '')"));
    options.writes.register("nested", nested).unwrap();
    let writer = Writer::open(&bench.path(), options).unwrap();
    for sql in ["DELETE FROM _pando_op", "COMMIT", "PRAGMA synchronous = OFF", "CREATE TABLE t (a)"] {
        let fault = submit(&writer, named("run", &json!(sql))).await.unwrap_err();
        assert!(fault.is(Code::Forbidden), "{sql}: {fault}");
    }
    apply(&writer, named("nested", &json!("run"))).await;
    assert_eq!(bench.seen(), ["db.session.created in"]);
    assert!(
        submit(&writer, named("nested", &json!("nowhere")))
            .await
            .unwrap_err()
            .message
            .contains("METHOD_NOT_FOUND (nowhere)")
    );
}

#[tokio::test]
async fn a_message_and_the_news_of_it_are_one_write() {
    let bench = Bench::new();
    let writer = bench.writer();
    apply(&writer, session("s")).await;
    bench.forget();
    let send = |id: &str, session: &str| {
        named("SendMessage", &json!({"id": id, "session_id": session, "role": "user", "content": "hi"}))
    };
    let ack = apply(&writer, send("m", "s")).await;
    assert_eq!(tree(&ack.results)["parts"], r#"[{"type":"text","text":"hi"}]"#);
    assert_eq!(bench.seen(), ["db.message.created m", "db.session.updated s", "message.append"]);
    let told = bench.events.lock().unwrap().last().unwrap().clone();
    assert_eq!((told.seq, told.session_id.as_str()), (Some(ack.seq), "s"));
    assert!(submit(&writer, send("m2", "nobody")).await.is_err());
    assert_eq!(bench.seen().len(), 3);
    bench.forget();
    bench.check_journal().await;
}

#[tokio::test]
async fn what_a_failed_statement_took_back_is_not_told_and_what_it_left_is() {
    let bench = Bench::new();
    let writer = bank(&bench).await;
    let (db, _route) = secondary(&bench, &writer);
    for rows in [false, true] {
        db.track(&Tracked { rows, ..Tracked::table("account") }).await.unwrap();
        bench.forget();
        db.named("open-or-pay", &Value::Null).await.unwrap();
        let changed = json!({"account": {"created": 1, "updated": 1}});
        assert_eq!(events::summaries(&bench), [changed]);
        apply(&writer, exec(&["DELETE FROM account WHERE id = 4"])).await;
    }
    assert_eq!(bench.seen(), ["db.account.updated 1", "db.account.created 4", "db.account.deleted 4"]);
}

#[tokio::test]
async fn a_script_s_changes_are_told_though_a_later_statement_fails() {
    let bench = Bench::new();
    let options = bench.options();
    let write = |tx: &Tx<'_>, (): ()| {
        tx.script("CREATE TABLE made (id INTEGER PRIMARY KEY); INSERT INTO made VALUES (1), (2); SELECT 1")?;
        let _nothing = tx.execute("INSERT INTO made VALUES (3), (1)", ()).unwrap_err();
        Ok(())
    };
    options.writes.register("script", write).unwrap();
    let writer = Writer::open(&bench.path(), options).unwrap();
    apply(&writer, named("script", &json!(null))).await;
    let told = tree(&bench.events.lock().unwrap().last().unwrap().payload);
    assert_eq!(told["payload"]["tables"], json!({"made": {"created": 2}}));
}

/// Swallows the fault of a statement, and goes on.
fn swallow(tx: &Tx<'_>, sql: &str) -> Result<bool, Fault> {
    tx.execute("UPDATE account SET cents = cents + 1 WHERE id = 1", ())?;
    let failed = tx.execute(sql, ()).is_err();
    // By itself it would be committed where the transaction is gone.
    drop(tx.execute("UPDATE account SET cents = cents + 10 WHERE id = 1", ()));
    Ok(failed)
}

#[tokio::test]
async fn a_write_whose_transaction_is_gone_or_whose_time_is_up_fails_alone_whatever_its_code_makes_of_it() {
    let endless = "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c)";
    let (reads, changes) =
        (format!("{endless} SELECT count(*) FROM c"), format!("{endless} INSERT INTO account SELECT x + 9, 0 FROM c"));
    let replaced = "INSERT OR ROLLBACK INTO account VALUES (1, 0)";
    for (sql, code) in [(replaced, Code::Conflict), (reads.as_str(), Code::Deadline), (&changes, Code::Deadline)] {
        let bench = Bench::new();
        let options = bench.options();
        options.writes.register("swallow", |tx: &Tx<'_>, sql: String| swallow(tx, &sql)).unwrap();
        let tuning = Tuning { write_time: Duration::from_millis(20), ..Tuning::default() };
        let writer = Writer::open_with(&bench.path(), options, tuning).unwrap();
        let account = "CREATE TABLE account (id INTEGER PRIMARY KEY, cents INTEGER)";
        apply(&writer, ddl(&[account, "INSERT INTO account VALUES (1, 0)"])).await;
        let pay = || submit(&writer, exec(&["UPDATE account SET cents = cents + 100"]));
        let op = fresh_op();
        let bad = writer.submit(request(&op, named("swallow", &json!(sql))));
        let (before, failed, behind) = tokio::join!(pay(), bad, pay());
        assert!(failed.as_ref().unwrap_err().is(code), "{sql}: {failed:?}");
        assert!(before.is_ok() && behind.is_ok(), "{sql}: {before:?} {behind:?}");
        let settled = writer.submit(request(&op, Work::Settle)).await.unwrap();
        assert_eq!(tree(&settled.results)["outcome"], "not_applied", "{sql}");
        apply(&writer, exec(&["UPDATE account SET cents = cents + 1000"])).await;
        assert_eq!(bench.value("SELECT cents FROM account").await, 1200, "{sql}");
        bench.check_journal().await;
        writer.close().await;
    }
}
