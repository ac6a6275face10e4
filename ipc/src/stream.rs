//! One connected byte stream, whichever side has opened it: what is read goes to an [`Engine`], what is written waits in a [`Ring`].

mod ring;
mod socket;

use std::io;

use crate::zmtp::Engine;

pub(crate) use ring::{Push, Ring};
pub(crate) use socket::{Input, Output, split};

/// Room for a read: the smallest, for a peer that says little, and the largest, for one that fills it.
const READ_BYTES: [usize; 2] = [4 * 1024, 64 * 1024];

/// How much is read at once: as much as comes at once.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Room(usize);

impl Default for Room {
    fn default() -> Self {
        Self(READ_BYTES[0])
    }
}

/// What a look at a socket found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Came {
    /// Nothing has come since the last look.
    Nothing,
    /// All that was there: so many bytes.
    All(usize),
    /// As many bytes as there was room for; more may be there.
    Part(usize),
    /// The peer says nothing more.
    End,
}

impl Room {
    /// Takes what has come into the engine, without waiting.
    pub(crate) fn look(&mut self, engine: &mut Engine, input: &Input) -> io::Result<Came> {
        let [smallest, largest] = READ_BYTES;
        let (buffer, room) = (engine.input(), self.0);
        let before = buffer.len();
        buffer.resize(before + room, 0);
        let read = input.try_read(&mut buffer[before..]);
        buffer.truncate(before + read.as_ref().map_or(0, |read| *read));
        match read {
            Ok(0) => Ok(Came::End),
            Ok(read) if read == room => {
                self.0 = (room * 2).min(largest);
                Ok(Came::Part(read))
            }
            Ok(read) => {
                self.0 = smallest.max(read);
                Ok(Came::All(read))
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(Came::Nothing),
            Err(error) => Err(error),
        }
    }

    /// Takes what has come into the engine, or waits until something comes; 0 bytes are the end of the stream. Safe to drop and call again.
    pub(crate) async fn receive(&mut self, engine: &mut Engine, input: &Input) -> io::Result<usize> {
        loop {
            let ready = input.ready().await?;
            match ready.after(self.look(engine, input)?) {
                Came::Nothing => {}
                Came::All(read) | Came::Part(read) => return Ok(read),
                Came::End => return Ok(0),
            }
        }
    }
}
