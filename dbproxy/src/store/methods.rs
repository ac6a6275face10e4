//! The 21 named writes as a table: their params, their SQL, and both JSON forms of their rows.

use pando_ipc::{Code, Fault, Timestamp};
use serde_json::{Map, Number, Value, json};

use crate::named::Named;
use crate::params::Params;
use crate::refusal::{Word, invalid, refuse};
use crate::tx::Tx;
use crate::value::SqlValue;

/// Type of a column or param.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Text,
    Integer,
    Real,
    /// Text or null; `{"String": "", "Valid": false}` in the documented form.
    MaybeText,
    /// An integer or null; `{"Int64": 0, "Valid": false}` in the documented form.
    MaybeInteger,
}

/// What a write takes.
#[derive(Debug, Clone, Copy)]
enum Takes {
    /// null.
    Nothing,
    /// A bare string.
    Id,
    /// An object; all fields are columns.
    Fields(&'static [&'static str]),
}

/// One named write.
#[derive(Debug)]
pub(crate) struct Method {
    pub(crate) name: &'static str,
    takes: Takes,
    /// Has the params as `:name`, the bare string as `:id`, and the time as `:now`.
    sql: &'static str,
    /// Whether its result is a row; without one, the thing named did not exist.
    returns_row: bool,
}

/// The columns whose type is not [`Kind::Text`]; a name has the same type in every table.
const KINDS: &[(&str, Kind)] = &[
    ("parent_session_id", Kind::MaybeText),
    ("summary_message_id", Kind::MaybeText),
    ("model", Kind::MaybeText),
    ("template_id", Kind::MaybeText),
    ("judge_analysis", Kind::MaybeText),
    ("judge_model", Kind::MaybeText),
    ("source_session_id", Kind::MaybeText),
    ("source_template_id", Kind::MaybeText),
    ("finished_at", Kind::MaybeInteger),
    ("acp_pid", Kind::MaybeInteger),
    ("acp_port", Kind::MaybeInteger),
    ("last_opened", Kind::MaybeInteger),
    ("message_count", Kind::Integer),
    ("prompt_tokens", Kind::Integer),
    ("completion_tokens", Kind::Integer),
    ("initialized", Kind::Integer),
    ("is_active", Kind::Integer),
    ("is_default", Kind::Integer),
    ("user_corrections", Kind::Integer),
    ("usage_count", Kind::Integer),
    ("cost", Kind::Real),
    ("reward", Kind::Real),
    ("success_score", Kind::Real),
    ("efficiency_score", Kind::Real),
    ("success_rate", Kind::Real),
];

pub(super) const METHODS: &[Method] = &[
    Method {
        name: "CreateSession",
        takes: Takes::Fields(&[
            "id",
            "parent_session_id",
            "title",
            "message_count",
            "prompt_tokens",
            "completion_tokens",
            "cost",
        ]),
        sql: "INSERT INTO sessions (id, parent_session_id, title, message_count, prompt_tokens, completion_tokens, cost,
                  summary_message_id, updated_at, created_at)
              VALUES (:id, :parent_session_id, :title, :message_count, :prompt_tokens, :completion_tokens, :cost,
                  NULL, :now, :now) RETURNING *",
        returns_row: true,
    },
    Method {
        name: "UpdateSession",
        takes: Takes::Fields(&["title", "prompt_tokens", "completion_tokens", "summary_message_id", "cost", "id"]),
        sql: "UPDATE sessions SET title = :title, prompt_tokens = :prompt_tokens, completion_tokens = :completion_tokens,
                  summary_message_id = :summary_message_id, cost = :cost, updated_at = :now
              WHERE id = :id RETURNING *",
        returns_row: true,
    },
    Method {
        name: "DeleteSession",
        takes: Takes::Id,
        sql: "DELETE FROM sessions WHERE id = :id",
        returns_row: false,
    },
    Method {
        name: "CreateMessage",
        takes: Takes::Fields(&["id", "session_id", "role", "parts", "model"]),
        sql: "INSERT INTO messages (id, session_id, role, parts, model, created_at, updated_at)
              VALUES (:id, :session_id, :role, :parts, :model, :now, :now) RETURNING *",
        returns_row: true,
    },
    Method {
        name: "UpdateMessage",
        takes: Takes::Fields(&["parts", "finished_at", "id"]),
        sql: "UPDATE messages SET parts = :parts, finished_at = :finished_at, updated_at = :now WHERE id = :id",
        returns_row: false,
    },
    Method {
        name: "DeleteMessage",
        takes: Takes::Id,
        sql: "DELETE FROM messages WHERE id = :id",
        returns_row: false,
    },
    Method {
        name: "DeleteSessionMessages",
        takes: Takes::Id,
        sql: "DELETE FROM messages WHERE session_id = :id",
        returns_row: false,
    },
    Method {
        name: "CreateFile",
        takes: Takes::Fields(&["id", "session_id", "path", "content", "version"]),
        sql: "INSERT INTO files (id, session_id, path, content, version, created_at, updated_at)
              VALUES (:id, :session_id, :path, :content, :version, :now, :now) RETURNING *",
        returns_row: true,
    },
    Method {
        name: "UpdateFile",
        takes: Takes::Fields(&["content", "version", "id"]),
        sql: "UPDATE files SET content = :content, version = :version, updated_at = :now WHERE id = :id RETURNING *",
        returns_row: true,
    },
    Method {
        name: "DeleteFile",
        takes: Takes::Id,
        sql: "DELETE FROM files WHERE id = :id",
        returns_row: false,
    },
    Method {
        name: "DeleteSessionFiles",
        takes: Takes::Id,
        sql: "DELETE FROM files WHERE session_id = :id",
        returns_row: false,
    },
    Method {
        name: "InsertPromptTemplate",
        takes: Takes::Fields(&["id", "name", "section", "content", "version", "is_active", "is_default"]),
        sql: "INSERT INTO prompt_templates (id, name, section, content, version, is_active, is_default, created_at, updated_at)
              VALUES (:id, :name, :section, :content, :version, :is_active, :is_default, :now, :now) RETURNING *",
        returns_row: true,
    },
    Method {
        name: "InsertSessionScore",
        takes: Takes::Fields(&[
            "id",
            "session_id",
            "template_id",
            "reward",
            "success_score",
            "efficiency_score",
            "judge_analysis",
            "judge_model",
            "prompt_tokens",
            "completion_tokens",
            "message_count",
            "user_corrections",
        ]),
        sql: "INSERT INTO session_scores (id, session_id, template_id, reward, success_score, efficiency_score,
                  judge_analysis, judge_model, prompt_tokens, completion_tokens, message_count, user_corrections,
                  evaluated_at, created_at)
              VALUES (:id, :session_id, :template_id, :reward, :success_score, :efficiency_score,
                  :judge_analysis, :judge_model, :prompt_tokens, :completion_tokens, :message_count, :user_corrections,
                  :now, :now) RETURNING *",
        returns_row: true,
    },
    Method {
        name: "InsertSkill",
        takes: Takes::Fields(&["id", "title", "content", "source_session_id", "source_template_id", "task_type"]),
        sql: "INSERT INTO skills (id, title, content, source_session_id, source_template_id, task_type, created_at, updated_at)
              VALUES (:id, :title, :content, :source_session_id, :source_template_id, :task_type, :now, :now) RETURNING *",
        returns_row: true,
    },
    Method {
        name: "DeactivateLowestSkill",
        takes: Takes::Nothing,
        sql: "UPDATE skills SET is_active = 0, updated_at = :now WHERE id = (
                  SELECT id FROM skills WHERE is_active = 1 ORDER BY success_rate, usage_count, created_at, id LIMIT 1)",
        returns_row: false,
    },
    Method {
        name: "IncrementSkillUsage",
        takes: Takes::Id,
        sql: "UPDATE skills SET usage_count = usage_count + 1, updated_at = :now WHERE id = :id",
        returns_row: false,
    },
    Method {
        name: "CreateProject",
        takes: Takes::Fields(&[
            "id",
            "name",
            "path",
            "status",
            "initialized",
            "acp_pid",
            "acp_port",
            "last_opened",
        ]),
        sql: "INSERT INTO projects (id, name, path, status, initialized, acp_pid, acp_port, last_opened, created_at, updated_at)
              VALUES (:id, :name, :path, :status, :initialized, :acp_pid, :acp_port, :last_opened, :now, :now) RETURNING *",
        returns_row: true,
    },
    Method {
        name: "UpdateProjectStatus",
        takes: Takes::Fields(&["status", "acp_pid", "acp_port", "id"]),
        sql: "UPDATE projects SET status = :status, acp_pid = :acp_pid, acp_port = :acp_port, updated_at = :now WHERE id = :id",
        returns_row: false,
    },
    Method {
        name: "UpdateProjectLastOpened",
        takes: Takes::Fields(&["last_opened", "id"]),
        sql: "UPDATE projects SET last_opened = :last_opened, updated_at = :now WHERE id = :id",
        returns_row: false,
    },
    Method {
        name: "MarkProjectInitialized",
        takes: Takes::Id,
        sql: "UPDATE projects SET initialized = 1, updated_at = :now WHERE id = :id",
        returns_row: false,
    },
    Method {
        name: "DeleteProject",
        takes: Takes::Id,
        sql: "DELETE FROM projects WHERE id = :id",
        returns_row: false,
    },
];

/// Returns a column's type. The `version` of a prompt template is a number, that of a file a text.
fn kind(method: &str, column: &str) -> Kind {
    match (method, column) {
        ("InsertPromptTemplate", "version") => Kind::Integer,
        _ => KINDS.iter().find(|(name, _)| *name == column).map_or(Kind::Text, |(_, kind)| *kind),
    }
}

impl Named for &'static Method {
    fn sql(&self) -> Option<&str> {
        Some(self.sql)
    }

    /// Takes params of either form and returns them in ours: plain nulls, every field present, in order.
    fn read(&self, params: &Value) -> Result<Value, Fault> {
        match (self.takes, params) {
            (Takes::Nothing, _) => Ok(Value::Null),
            (Takes::Id, Value::String(id)) => Ok(json!(id)),
            (Takes::Id, _) => Err(invalid(self.name, "params", "expected the id as a JSON string")),
            (Takes::Fields(fields), Value::Object(map)) => {
                let read = |field: &&str| {
                    let value = read_field(kind(self.name, field), map.get(*field));
                    value
                        .map(|value| ((*field).to_owned(), value))
                        .map_err(|why| invalid(self.name, &format!("params.{field}"), why))
                };
                fields.iter().map(read).collect::<Result<Map<_, _>, _>>().map(Value::Object)
            }
            (Takes::Fields(_), _) => Err(invalid(self.name, "params", "expected an object")),
        }
    }

    fn run(&self, tx: &Tx<'_>, params: &Value) -> Result<Value, Fault> {
        let mut values = match params {
            Value::Object(map) => map.iter().map(|(name, value)| (format!(":{name}"), value.clone())).collect(),
            Value::Null => Vec::new(),
            id => vec![(":id".to_owned(), id.clone())],
        };
        if self.sql.contains(":now") {
            values.push((":now".to_owned(), json!(Timestamp::now().unix_seconds())));
        }
        let read = |(name, value): (String, Value)| {
            SqlValue::from_json(&value).map(|value| (name, value)).map_err(|why| invalid(self.name, "params", why))
        };
        let values = values.into_iter().map(read).collect::<Result<Vec<_>, _>>()?;
        let row = tx.query_one(self.sql, Params::named(values), |row| Ok(row.to_json()))?;
        if self.returns_row && row.is_none() {
            let id = params.get("id").unwrap_or(&Value::Null);
            let message = format!("sql: no rows in result set: nothing has id {id}");
            return Err(refuse(Code::NotFound, Word::Internal, self.name, message));
        }
        Ok(row.unwrap_or(Value::Null))
    }

    fn to_wire(&self, value: &Value) -> Value {
        let Value::Object(map) = value else { return value.clone() };
        let dress = |(column, value): (&String, &Value)| {
            let value = match kind(self.name, column) {
                Kind::MaybeText => json!({"String": value.as_str().unwrap_or(""), "Valid": !value.is_null()}),
                Kind::MaybeInteger => json!({"Int64": value.as_i64().unwrap_or(0), "Valid": !value.is_null()}),
                _ => value.clone(),
            };
            (column.clone(), value)
        };
        Value::Object(map.iter().map(dress).collect())
    }
}

/// Returns a row of the documented form in ours. What is plain already stays.
pub(crate) fn from_wire(value: Value) -> Value {
    let Value::Object(map) = value else { return value };
    Value::Object(map.into_iter().map(|(column, value)| (column, undress(&value).unwrap_or(value))).collect())
}

/// Returns what `{"String": …, "Valid": …}` or `{"Int64": …, "Valid": …}` means.
fn undress(value: &Value) -> Option<Value> {
    let map = value.as_object().filter(|map| map.len() == 2)?;
    let valid = map.get("Valid")?.as_bool()?;
    let inner = map.get("String").or_else(|| map.get("Int64"))?;
    Some(if valid { inner.clone() } else { Value::Null })
}

fn read_field(kind: Kind, value: Option<&Value>) -> Result<Value, &'static str> {
    let optional = matches!(kind, Kind::MaybeText | Kind::MaybeInteger);
    let Some(value) = value else { return if optional { Ok(Value::Null) } else { Err("is missing") } };
    let undressed = undress(value).filter(|_| optional);
    match (kind, undressed.as_ref().unwrap_or(value)) {
        (Kind::MaybeText | Kind::MaybeInteger, Value::Null) => Ok(Value::Null),
        (Kind::Text | Kind::MaybeText, Value::String(text)) => Ok(json!(text)),
        (Kind::Text, _) => Err("expected a string"),
        (Kind::MaybeText, _) => Err("expected a string, null or {\"String\", \"Valid\"}"),
        (Kind::Integer, Value::Bool(truth)) => Ok(json!(i64::from(*truth))),
        (Kind::Integer | Kind::MaybeInteger, Value::Number(number)) if number.is_i64() => Ok(json!(number)),
        (Kind::Integer, _) => Err("expected an integer"),
        (Kind::MaybeInteger, _) => Err("expected an integer, null or {\"Int64\", \"Valid\"}"),
        (Kind::Real, Value::Number(number)) => {
            number.as_f64().and_then(Number::from_f64).map(Value::Number).ok_or("expected a finite number")
        }
        (Kind::Real, _) => Err("expected a number"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(name: &str) -> &'static Method {
        METHODS.iter().find(|method| method.name == name).unwrap()
    }

    #[test]
    fn there_are_twenty_one_writes() {
        assert_eq!(METHODS.len(), 21);
        for method in METHODS {
            if let Takes::Fields(fields) = method.takes {
                assert!(fields.iter().all(|field| method.sql.contains(&format!(":{field}"))), "{}", method.name);
            }
        }
    }

    #[test]
    fn both_forms_of_null_read_the_same() {
        let method = find("CreateMessage");
        let plain = json!({"id": "m", "session_id": "s", "role": "user", "parts": "[]", "model": null});
        for model in [json!({"String": "ignored", "Valid": false}), Value::Null] {
            let mut params = plain.clone();
            params["model"] = model;
            assert_eq!(method.read(&params).unwrap(), plain);
        }
        assert_eq!(method.to_wire(&plain)["model"], json!({"String": "", "Valid": false}));
        assert_eq!(from_wire(method.to_wire(&plain)), plain);
        let named = json!({"id": "m", "session_id": "s", "role": "user", "parts": "[]", "model": {"String": "x", "Valid": true}});
        assert_eq!(method.read(&named).unwrap()["model"], json!("x"));
        assert_eq!(method.to_wire(&method.read(&named).unwrap()), named);
    }

    #[test]
    fn a_bad_param_is_named() {
        #[track_caller]
        fn check(method: &str, params: &Value, expected: &str) {
            let fault = find(method).read(params).unwrap_err();
            assert_eq!(fault.message, expected);
        }
        check("CreateFile", &json!({"id": "f"}), "dbproxy: INVALID_PARAMS (CreateFile): params.session_id: is missing");
        check("UpdateFile", &json!([]), "dbproxy: INVALID_PARAMS (UpdateFile): params: expected an object");
        check(
            "DeleteFile",
            &json!({}),
            "dbproxy: INVALID_PARAMS (DeleteFile): params: expected the id as a JSON string",
        );
        check(
            "UpdateProjectLastOpened",
            &json!({"last_opened": "now", "id": "p"}),
            "dbproxy: INVALID_PARAMS (UpdateProjectLastOpened): params.last_opened: expected an integer, null or {\"Int64\", \"Valid\"}",
        );
    }

    #[test]
    fn a_whole_number_is_a_real_where_a_real_is_wanted() {
        let params = json!({"title": "t", "prompt_tokens": 1, "completion_tokens": 2, "cost": 1, "id": "s"});
        let normal = find("UpdateSession").read(&params).unwrap();
        assert_eq!(
            normal.to_string(),
            r#"{"title":"t","prompt_tokens":1,"completion_tokens":2,"summary_message_id":null,"cost":1.0,"id":"s"}"#
        );
    }
}
