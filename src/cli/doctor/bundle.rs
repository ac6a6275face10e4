//! One file for a report of a fault: findings, logs and sizes, without anybody's data.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use serde_json::{Value, json};

use super::Report;
use super::room::Room;
use crate::cli::context::Context;
use crate::cli::failure::Failure;

/// Lines of each log, from its end.
const LOG_LINES: usize = 500;
/// Keys whose values nobody else needs to know.
const SECRET_KEYS: [&str; 4] = ["token", "secret", "password", "payload"];

/// Writes the file (0600); one that is there already is not overwritten.
pub(super) fn write(path: &Path, report: &Report, room: &Room, context: &Context) -> Result<(), Failure> {
    let failed = |error: &io::Error| {
        let failure = Failure::io(format_args!("write {}", path.display()), error);
        match error.kind() {
            io::ErrorKind::AlreadyExists => failure.hint("name another file: nothing is overwritten"),
            _ => failure,
        }
    };
    let dir = room.workdir.pando_dir();
    let log = |name: &str| {
        let text = fs::read_to_string(dir.join(name)).unwrap_or_default();
        let lines: Vec<String> = text.lines().map(str::to_owned).collect();
        lines[lines.len().saturating_sub(LOG_LINES)..].to_vec()
    };
    let mut bundle = json!({
        "report": report,
        "lock": room.info,
        "primary": room.primary(),
        "database": room.stats(),
        "lifecycle": room.lifecycle,
        "up_log": log("up.log"),
        "kernel": fs::read_to_string("/proc/version").unwrap_or_default().trim(),
    });
    redact(&mut bundle, context.environment().home.as_deref());
    let mut file =
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(|error| failed(&error))?;
    file.write_all(format!("{bundle:#}\n").as_bytes()).map_err(|error| failed(&error))
}

/// Takes out what is nobody's business: the home directory's name, and the values of secret keys.
fn redact(value: &mut Value, home: Option<&Path>) {
    match value {
        Value::String(text) => {
            if let Some(home) = home.and_then(Path::to_str).filter(|home| home.len() > 1) {
                *text = text.replace(home, "~");
            }
        }
        Value::Array(values) => values.iter_mut().for_each(|value| redact(value, home)),
        Value::Object(fields) => {
            for (key, value) in fields.iter_mut() {
                if SECRET_KEYS.iter().any(|secret| key.contains(secret)) {
                    *value = json!("[redacted]");
                }
                redact(value, home);
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_secrets_are_taken_out_at_any_depth() {
        let mut value = json!({"path": "/home/eve/w", "list": [{"door_token": "abc", "payload": {"x": 1}}, "in /home/eve"], "n": 1});
        redact(&mut value, Some(Path::new("/home/eve")));
        let expected =
            json!({"path": "~/w", "list": [{"door_token": "[redacted]", "payload": "[redacted]"}, "in ~"], "n": 1});
        assert_eq!(value, expected);
    }
}
