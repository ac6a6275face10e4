//! NATS with `JetStream` as a peer of durable events, in its text protocol.

use std::io::{Read, Write};
use std::path::Path;
use std::process::Command;

use super::EVENT_BYTES;
use crate::Failure;
use crate::servers::{Connection, Talk, line};

/// File storage with its default sync every two minutes.
#[derive(Clone, Copy)]
pub(super) struct JetStream;

impl Talk for JetStream {
    const NAME: &'static str = "NATS JetStream";
    const PROGRAM: &'static str = "nats-server";

    fn command(self, program: &Path, dir: &Path, port: u16) -> Result<Command, Failure> {
        let mut command = Command::new(program);
        command.args(["-a", "127.0.0.1", "-p", &port.to_string(), "-js", "-sd"]).arg(dir);
        Ok(command)
    }

    fn set_up(self, server: &mut Connection) -> Result<bool, Failure> {
        const STREAM: &str = r#"{"name":"BENCH","subjects":["bench.>"],"storage":"file"}"#;
        self.greet(server, 0)?;
        // Before JetStream is ready nobody hears that, and nobody answers.
        let create = format!("PUB $JS.API.STREAM.CREATE.BENCH inbox.0 {}\r\n{STREAM}\r\n", STREAM.len());
        server.get_mut().write_all(create.as_bytes())?;
        self.answered(server)
    }

    fn greet(self, server: &mut Connection, client: u32) -> Result<(), Failure> {
        line(server)?;
        let hello =
            format!("CONNECT {{\"verbose\":false,\"pedantic\":false,\"name\":\"bench\"}}\r\nSUB inbox.{client} 1\r\n");
        Ok(server.get_mut().write_all(hello.as_bytes())?)
    }

    fn request(self, client: u32, out: &mut Vec<u8>) {
        out.extend_from_slice(format!("PUB bench.event inbox.{client} {EVENT_BYTES}\r\n").as_bytes());
        out.extend_from_slice(&[b'x'; EVENT_BYTES]);
        out.extend_from_slice(b"\r\n");
    }

    fn answered(self, server: &mut Connection) -> Result<bool, Failure> {
        loop {
            let head = line(server)?;
            if head == "PING" {
                server.get_mut().write_all(b"PONG\r\n")?;
            } else if head.starts_with("MSG") {
                let length: usize = head.rsplit(' ').next().unwrap_or_default().parse()?;
                let mut body = vec![0; length + 2];
                server.read_exact(&mut body)?;
                return Ok(!body.windows(7).any(|part| part == b"\"error\""));
            } else if head.starts_with("-ERR") {
                return Err(head.into());
            }
        }
    }
}
