//! One connected byte stream, whichever side has opened it: what is read goes to an [`Engine`], what is written waits in a [`Ring`].

mod ring;
mod socket;

use std::cell::RefCell;
use std::io;

use crate::zmtp::Engine;

pub(crate) use ring::{Push, Ring};
pub(crate) use socket::{Input, Output, split};

/// Most bytes that are read at once.
const READ_BYTES: usize = 64 * 1024;

thread_local! {
    /// Where a read puts what it finds, before it is appended to what its connection has.
    static FOUND: RefCell<Box<[u8]>> = RefCell::new(vec![0; READ_BYTES].into());
}

/// What a look at a socket found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Came {
    /// Nothing has come since the last look.
    Nothing,
    /// All that was there: so many bytes.
    All(usize),
    /// As many bytes as are read at once; more may be there.
    Part(usize),
    /// The peer says nothing more.
    End,
}

/// Takes what has come into the engine, without waiting.
pub(crate) fn look(engine: &mut Engine, input: &Input) -> io::Result<Came> {
    FOUND.with_borrow_mut(|found| {
        let read = match input.try_read(found) {
            Ok(0) => return Ok(Came::End),
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Came::Nothing),
            Err(error) => return Err(error),
        };
        engine.input().extend_from_slice(&found[..read]);
        Ok(if read < found.len() { Came::All(read) } else { Came::Part(read) })
    })
}

/// Takes what has come into the engine, or waits until something comes; 0 bytes are the end of the stream. Safe to drop and call again.
pub(crate) async fn receive(engine: &mut Engine, input: &Input) -> io::Result<usize> {
    loop {
        let ready = input.ready().await?;
        match ready.after(look(engine, input)?) {
            Came::Nothing => {}
            Came::All(read) | Came::Part(read) => return Ok(read),
            Came::End => return Ok(0),
        }
    }
}
