//! Who answers: Pando's bus, or a plain socket.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::thread;

use pando::Workdir;

use crate::load::{Course, Pace};
use crate::plain::{self, LENGTH_BYTES};
use crate::runtime::Threads;
use crate::station::Station;
use crate::{Failure, fleet};

/// Room for what arrives at once.
const INPUT_BYTES: usize = 64 * 1024;

/// Serves Pando's bus.
pub(super) fn station(
    workdir: &Path,
    pace: Pace,
    ready: impl FnOnce(&str) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let runtime = Threads::Cores.runtime()?;
    let workdir = Workdir::open(workdir)?;
    let station = runtime.block_on(Station::open(workdir.clone()))?;
    let doors = pando_ipc::read_lock_for_path(&workdir)?.doors();
    ready(&doors.rpc.join(" "))?;
    let outcome = Course::idle(pace);
    fleet::done(Some(&outcome))?;
    runtime.block_on(station.close());
    Ok(())
}

/// Sends back each message that comes in whole, one thread for each connection.
pub(super) fn raw(
    workdir: &Path,
    tcp: bool,
    pace: Pace,
    ready: impl FnOnce(&str) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let place = if tcp {
        let listener = TcpListener::bind(("127.0.0.1", 0))?;
        let place = format!("tcp://{}", listener.local_addr()?);
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                thread::spawn(move || stream.set_nodelay(true).and_then(|()| echo(stream)));
            }
        });
        place
    } else {
        let path = Workdir::open(workdir)?.pando_dir().join("raw");
        let listener = UnixListener::bind(&path)?;
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                thread::spawn(move || echo(stream));
            }
        });
        format!("ipc://{}", path.display())
    };
    ready(&place)?;
    fleet::done(Some(&Course::idle(pace)))
}

fn echo(mut stream: impl Read + Write) -> std::io::Result<()> {
    let mut input = vec![0; INPUT_BYTES];
    let mut held = 0;
    loop {
        let read = stream.read(&mut input[held..])?;
        if read == 0 {
            return Ok(());
        }
        held += read;
        let mut whole = 0;
        while let Some(length) = plain::length(&input[whole..held]) {
            whole += LENGTH_BYTES + length;
        }
        stream.write_all(&input[..whole])?;
        input.copy_within(whole..held, 0);
        held -= whole;
    }
}
