//! Redis with a stream as a peer of durable events, in its own protocol (RESP).

use std::io::Write;
use std::path::Path;
use std::process::Command;

use pando::Durability;

use super::EVENT_BYTES;
use crate::Failure;
use crate::servers::{Connection, Talk, line};

/// An append-only file: synced before each acknowledgement, or every second, which is Redis' default.
#[derive(Clone, Copy)]
pub(super) struct Redis(pub(super) Durability);

impl Talk for Redis {
    const NAME: &'static str = "Redis stream";
    const PROGRAM: &'static str = "redis-server";

    fn command(self, program: &Path, dir: &Path, port: u16) -> Result<Command, Failure> {
        let sync = match self.0 {
            Durability::Disk => "always",
            Durability::Os => "everysec",
        };
        let mut command = Command::new(program);
        command.args(["--bind", "127.0.0.1", "--port", &port.to_string(), "--save", ""]);
        command.args(["--appendonly", "yes", "--appendfsync", sync, "--dir"]).arg(dir);
        Ok(command)
    }

    fn set_up(self, server: &mut Connection) -> Result<bool, Failure> {
        server.get_mut().write_all(b"*1\r\n$4\r\nPING\r\n")?;
        // It says -LOADING while it opens its file.
        Ok(line(server)? == "+PONG")
    }

    fn request(self, _client: u32, out: &mut Vec<u8>) {
        out.extend_from_slice(b"*5\r\n$4\r\nXADD\r\n$5\r\nbench\r\n$1\r\n*\r\n$1\r\nt\r\n");
        out.extend_from_slice(format!("${EVENT_BYTES}\r\n").as_bytes());
        out.extend_from_slice(&[b'x'; EVENT_BYTES]);
        out.extend_from_slice(b"\r\n");
    }

    fn answered(self, server: &mut Connection) -> Result<bool, Failure> {
        let head = line(server)?;
        if head.starts_with('$') {
            line(server)?;
        }
        Ok(head.starts_with('$'))
    }
}
