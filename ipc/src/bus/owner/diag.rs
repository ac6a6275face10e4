//! One question to the kernel about one connection, by netlink: takes microseconds however many sockets there are.
//!
//! The layouts are those of `linux/netlink.h`, `linux/sock_diag.h` and `linux/inet_diag.h`.

use std::net::SocketAddrV4;
use std::os::fd::OwnedFd;

use rustix::io::{Errno, Result};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, recv, send, socket_with};

use super::Owner;

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const NLM_F_REQUEST: u16 = 1;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const IPPROTO_TCP: u8 = 6;
const ESTABLISHED: u8 = 1;
/// Length of `nlmsghdr`.
const HEADER_BYTES: usize = 16;
/// Where its sequence number stands.
const SEQUENCE_AT: usize = 8;
/// Length of `nlmsghdr` and `inet_diag_req_v2`.
const QUESTION_BYTES: u32 = 16 + 56;
/// Where the fields of `inet_diag_msg` stand behind the header.
const FAMILY_AT: usize = HEADER_BYTES;
const STATE_AT: usize = HEADER_BYTES + 1;
const SOCKET_AT: usize = HEADER_BYTES + 4;
const UID_AT: usize = HEADER_BYTES + 64;
const INODE_AT: usize = HEADER_BYTES + 68;
/// Both ports and both addresses at the head of `inet_diag_sockid`.
const SOCKET_BYTES: usize = 36;

/// A netlink socket. Each answer is there when its question has been sent.
#[derive(Debug)]
pub(super) struct Diag {
    socket: OwnedFd,
    /// Number of the last question; an answer to an earlier one is passed over.
    sequence: u32,
}

impl Diag {
    pub(super) fn open() -> Result<Self> {
        let protocol = Some(netlink::SOCK_DIAG);
        let socket = socket_with(AddressFamily::NETLINK, SocketType::DGRAM, SocketFlags::CLOEXEC, protocol)?;
        Ok(Self { socket, sequence: 0 })
    }

    /// Returns the owner of the socket with this own and remote address; `None` when it is not, or no longer, connected.
    ///
    /// An error, `NOENT` too, says that the kernel cannot tell: it may lack the module that answers.
    pub(super) fn owner_of(&mut self, own: SocketAddrV4, remote: SocketAddrV4) -> Result<Option<Owner>> {
        let socket = socket_id(AF_INET, own, remote);
        self.sequence = self.sequence.wrapping_add(1);
        send(&self.socket, &question(self.sequence, &socket), SendFlags::DONTWAIT)?;
        let mut answer = [0; 512];
        loop {
            let (_, length) = recv(&self.socket, &mut answer, RecvFlags::DONTWAIT)?;
            let answer = answer.get(..length).unwrap_or_default();
            if word(answer, SEQUENCE_AT)? == self.sequence {
                return read(answer, own, remote);
            }
        }
    }
}

/// Returns the head of `inet_diag_sockid`: ports and addresses in network order, each address in 16 bytes: padded, or
/// mapped when an IPv6 socket carries the IPv4 connection.
fn socket_id(family: u8, own: SocketAddrV4, remote: SocketAddrV4) -> [u8; SOCKET_BYTES] {
    let mut socket = [0; SOCKET_BYTES];
    socket[0..2].copy_from_slice(&own.port().to_be_bytes());
    socket[2..4].copy_from_slice(&remote.port().to_be_bytes());
    for (at, ip) in [(4, own.ip()), (20, remote.ip())] {
        if family == AF_INET6 {
            socket[at..at + 16].copy_from_slice(&ip.to_ipv6_mapped().octets());
        } else {
            socket[at..at + 4].copy_from_slice(&ip.octets());
        }
    }
    socket
}

fn question(sequence: u32, socket: &[u8; SOCKET_BYTES]) -> Vec<u8> {
    let mut out = Vec::new();
    out.extend(QUESTION_BYTES.to_ne_bytes());
    out.extend(SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    out.extend(NLM_F_REQUEST.to_ne_bytes());
    out.extend(sequence.to_ne_bytes());
    out.extend([0; 4]);
    out.extend([AF_INET, IPPROTO_TCP, 0, 0]);
    // Every state, no interface, no cookie.
    out.extend(u32::MAX.to_ne_bytes());
    out.extend(socket);
    out.extend([0; 4]);
    out.extend([0xff; 8]);
    out
}

/// Reads a number in the machine's own byte order.
fn word(bytes: &[u8], at: usize) -> Result<u32> {
    let word = bytes.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
    word.map(u32::from_ne_bytes).ok_or(Errno::BADMSG)
}

/// Reads the answer about the socket with these addresses.
fn read(answer: &[u8], own: SocketAddrV4, remote: SocketAddrV4) -> Result<Option<Owner>> {
    let kind = answer.get(4..6).and_then(|bytes| bytes.try_into().ok()).map(u16::from_ne_bytes);
    if kind != Some(SOCK_DIAG_BY_FAMILY) {
        return Err(Errno::NOENT);
    }
    let (uid, inode) = (word(answer, UID_AT)?, word(answer, INODE_AT)?);
    // A listener on the same port may stand in for a connection that is gone; a closed socket has no owner and shows uid 0.
    let asked = socket_id(answer[FAMILY_AT], own, remote);
    let same = answer.get(SOCKET_AT..SOCKET_AT + SOCKET_BYTES) == Some(&asked);
    Ok((same && answer[STATE_AT] == ESTABLISHED && inode != 0).then_some(Owner { uid, inode }))
}
