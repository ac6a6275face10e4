//! The kernel's tables of TCP sockets as text: works everywhere on Linux, but takes longer the more sockets there are.

use std::collections::HashMap;
use std::fs;
use std::net::{Ipv4Addr, SocketAddrV4};

use tokio::sync::Mutex;
use tokio::time::Instant;

use super::Owner;

/// The tables of TCP sockets. IPv6 sockets may carry IPv4 connections under mapped addresses.
const TABLES: [&str; 2] = ["/proc/net/tcp", "/proc/net/tcp6"];
/// The kernel's number for ESTABLISHED. A socket whose process has closed it is in another state, and shows uid 0.
const ESTABLISHED: &str = "01";
/// Prefix of an IPv4 address in the IPv6 table.
const MAPPED_PREFIX: &str = "0000000000000000FFFF0000";
/// A table read while sockets come and go may miss one, so it is read again before a peer is refused.
const MAX_READS: usize = 2;

pub(super) type Rows = HashMap<(SocketAddrV4, SocketAddrV4), Owner>;

/// Reads the tables; many look-ups at once share one read.
#[derive(Debug)]
pub(super) struct Tables {
    ports: [u16; 2],
    last: Mutex<Option<Read>>,
}

#[derive(Debug)]
struct Read {
    at: Instant,
    rows: Rows,
}

impl Tables {
    /// Reads for connections to these ports of ours.
    pub(super) fn new(ports: [u16; 2]) -> Self {
        Self { ports, last: Mutex::new(None) }
    }

    /// Returns the owner of the socket that `peer` has connected to `ours`; `None` when it cannot be told.
    pub(super) async fn owner_of(&self, peer: SocketAddrV4, ours: SocketAddrV4) -> Option<Owner> {
        for _ in 0..MAX_READS {
            let since = Instant::now();
            let mut last = self.last.lock().await;
            // A read that began after we asked has seen our connection; an older one may name a former user of the port.
            let fresh = match last.take() {
                Some(read) if read.at >= since => read,
                _ => {
                    let (at, ports) = (Instant::now(), self.ports);
                    let rows = tokio::task::spawn_blocking(move || read_rows(ports)).await.ok()?;
                    Read { at, rows }
                }
            };
            let owner = fresh.rows.get(&(peer, ours)).copied();
            *last = Some(fresh);
            if owner.is_some() {
                return owner;
            }
        }
        None
    }
}

/// Reads the established connections to our ports. A table that cannot be read has no rows: the peer is then refused.
pub(super) fn read_rows(ports: [u16; 2]) -> Rows {
    let mut rows = Rows::new();
    for table in TABLES {
        let text = fs::read_to_string(table).unwrap_or_default();
        rows.extend(text.lines().skip(1).filter_map(row).filter(|((_, ours), _)| ports.contains(&ours.port())));
    }
    rows
}

/// Reads a row: `sl local remote state queues timer retransmits uid timeout inode …`; the local side is the peer.
fn row(line: &str) -> Option<((SocketAddrV4, SocketAddrV4), Owner)> {
    let mut fields = line.split_ascii_whitespace().skip(1);
    let local = address(fields.next()?)?;
    let remote = address(fields.next()?)?;
    if fields.next()? != ESTABLISHED {
        return None;
    }
    let uid = fields.nth(3)?.parse().ok()?;
    let inode = fields.nth(1)?.parse().ok()?;
    (inode != 0).then_some(((local, remote), Owner { uid, inode }))
}

/// Reads `HEX:PORT`; the address is one word in the machine's own byte order.
fn address(text: &str) -> Option<SocketAddrV4> {
    let (ip, port) = text.split_once(':')?;
    let word = ip.strip_prefix(MAPPED_PREFIX).unwrap_or(ip);
    if word.len() != 8 {
        return None;
    }
    let ip = Ipv4Addr::from(u32::from_str_radix(word, 16).ok()?.to_ne_bytes());
    Some(SocketAddrV4::new(ip, u16::from_str_radix(port, 16).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mapped_addresses_are_read_and_other_states_are_not() {
        let word = format!("{:08X}", u32::from_ne_bytes([127, 0, 0, 1]));
        let line = |address: &str, state: &str, inode: u32| {
            format!(
                "  0: {address}:A000 {word}:9C40 {state} 00000000:00000000 00:00000000 00000000  1000 0 {inode} 1 0"
            )
        };
        let mapped = format!("{MAPPED_PREFIX}{word}");
        for address in [&word, &mapped] {
            let ((local, remote), owner) = row(&line(address, "01", 7)).unwrap();
            assert_eq!((local.to_string(), remote.port()), ("127.0.0.1:40960".to_owned(), 40_000));
            assert_eq!(owner, Owner { uid: 1_000, inode: 7 });
        }
        assert_eq!(row(&line(&word, "06", 7)), None);
        assert_eq!(row(&line(&word, "01", 0)), None);
        assert_eq!(row(&line("00000000000000000000000001000000", "01", 7)), None);
    }
}
