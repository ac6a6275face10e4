//! rqlite as a peer: SQLite behind a server, asked over HTTP.

use std::io::{Read, Write};
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use super::open::micros;
use super::{BODY_BYTES, COUNT, FILL, INSERT, SCHEMA};
use crate::Failure;
use crate::servers::{Connection, Talk, free_port, line};

/// One node with its defaults: a write is answered once it is in the log of Raft, which is synced, and applied.
#[derive(Clone, Copy)]
pub(super) struct Rqlite;

impl Talk for Rqlite {
    const NAME: &'static str = "rqlite";
    const PROGRAM: &'static str = "rqlited";

    fn command(self, program: &Path, dir: &Path, port: u16) -> Result<Command, Failure> {
        let address = |port| format!("127.0.0.1:{port}");
        let mut command = Command::new(program);
        command.args(["-http-addr", &address(port), "-raft-addr", &address(free_port()?)]).arg(dir.join("rqlite"));
        Ok(command)
    }

    fn set_up(self, server: &mut Connection) -> Result<bool, Failure> {
        let mut out = Vec::new();
        execute(&json!([SCHEMA.as_slice(), &FILL].concat()), &mut out);
        server.get_mut().write_all(&out)?;
        // There is no leader at first.
        self.answered(server)
    }

    fn request(self, client: u32, out: &mut Vec<u8>) {
        execute(&json!([[INSERT, client, micros(), "x".repeat(BODY_BYTES)], [COUNT, client]]), out);
    }

    fn answered(self, server: &mut Connection) -> Result<bool, Failure> {
        let is_ok = line(server)?.split(' ').nth(1) == Some("200");
        let mut length = None;
        loop {
            let head = line(server)?.to_ascii_lowercase();
            if head.is_empty() {
                break;
            }
            if let Some(value) = head.strip_prefix("content-length:") {
                length = Some(value.trim().parse()?);
            }
        }
        let mut body = vec![0; length.ok_or("rqlite answered without a length")?];
        server.read_exact(&mut body)?;
        Ok(is_ok && !body.windows(7).any(|part| part == b"\"error\""))
    }
}

/// Appends the request to run these statements in one transaction.
fn execute(statements: &Value, out: &mut Vec<u8>) {
    let body = statements.to_string();
    let head = "POST /db/execute?transaction HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\n";
    out.extend_from_slice(format!("{head}Content-Length: {}\r\n\r\n{body}", body.len()).as_bytes());
}
