//! Whose a loopback connection is: the kernel knows the owner of the socket at its other end.

mod diag;
mod process;
mod table;

use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream};
use std::sync::{Mutex, PoisonError};

use diag::Diag;
use table::Tables;

pub(super) use process::holders;

/// Whose a socket is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Owner {
    pub(super) uid: u32,
    /// The socket's number, by which the processes that hold it can be found.
    pub(super) inode: u32,
}

/// Looks up the owners of connections to two ports of ours.
#[derive(Debug)]
pub(super) struct Owners {
    /// `None` where netlink is closed to us, as in some sandboxes.
    diag: Option<Mutex<Diag>>,
    /// Asked when netlink does not know.
    tables: Tables,
    /// Whether a peer whose owner cannot be told comes in.
    pub(super) admit_unknown: bool,
}

/// Tells whether this system says whose a loopback connection is, by asking it about one of our own.
pub(super) fn can_be_told() -> bool {
    let ask = || -> io::Result<bool> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let stream = TcpStream::connect(listener.local_addr()?)?;
        let (SocketAddr::V4(peer), SocketAddr::V4(ours)) = (stream.local_addr()?, listener.local_addr()?) else {
            return Ok(false);
        };
        let owners = Owners::new([ours.port(), 0], false);
        let owner = match owners.ask(peer, ours) {
            Some(Ok(owner)) => owner,
            Some(Err(_)) | None => table::read_rows([ours.port(), 0]).get(&(peer, ours)).copied(),
        };
        Ok(owner.is_some_and(|owner| owner.uid == rustix::process::geteuid().as_raw()))
    };
    ask().unwrap_or(false)
}

impl Owners {
    pub(super) fn new(ports: [u16; 2], admit_unknown: bool) -> Self {
        let diag = Diag::open().inspect_err(|error| tracing::debug!(%error, "no netlink, reading the socket tables"));
        Self { diag: diag.ok().map(Mutex::new), tables: Tables::new(ports), admit_unknown }
    }

    /// Returns the owner of the socket that `peer` has connected to `ours`; `None` when it cannot be told.
    pub(super) async fn owner_of(&self, peer: SocketAddrV4, ours: SocketAddrV4) -> Option<Owner> {
        match self.ask(peer, ours) {
            Some(Ok(owner)) => owner,
            Some(Err(_)) | None => self.tables.owner_of(peer, ours).await,
        }
    }

    fn ask(&self, peer: SocketAddrV4, ours: SocketAddrV4) -> Option<rustix::io::Result<Option<Owner>>> {
        let mut diag = self.diag.as_ref()?.lock().unwrap_or_else(PoisonError::into_inner);
        Some(diag.owner_of(peer, ours))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v4(address: SocketAddr) -> SocketAddrV4 {
        let SocketAddr::V4(address) = address else { panic!("{address} is not IPv4") };
        address
    }

    /// Checks a way of looking up; without netlink the tables must do.
    async fn check_owner(with_netlink: bool) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let ours = v4(listener.local_addr().unwrap());
        let mut owners = Owners::new([ours.port(), 0], false);
        if !with_netlink {
            owners.diag = None;
        }
        let stream = TcpStream::connect(ours).unwrap();
        let peer = v4(stream.local_addr().unwrap());
        let owner = owners.owner_of(peer, ours).await.unwrap();
        assert_eq!(owner.uid, rustix::process::geteuid().as_raw());
        assert_eq!(holders(&[owner.inode]).get(&owner.inode), Some(&std::process::id()));
        assert_eq!(owners.owner_of(peer, SocketAddrV4::new(Ipv4Addr::LOCALHOST, 1)).await, None);
        drop(stream);
        assert_eq!(owners.owner_of(peer, ours).await, None, "an orphan shows uid 0 and must not be believed");
        let _listening = TcpListener::bind(peer).ok();
        assert_eq!(owners.owner_of(peer, ours).await, None, "nor a listener on the same port");
    }

    #[test]
    fn linux_tells_whose_a_connection_is() {
        assert_eq!(can_be_told(), cfg!(target_os = "linux"));
    }

    #[tokio::test]
    async fn a_loopback_connection_has_an_owner_until_it_is_closed() {
        check_owner(true).await;
        check_owner(false).await;
    }

    #[tokio::test]
    async fn an_ipv6_socket_that_carries_an_ipv4_connection_has_an_owner_too() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let ours = v4(listener.local_addr().unwrap());
        let mapped = SocketAddr::from((ours.ip().to_ipv6_mapped(), ours.port()));
        // A machine without IPv6 has no such peers.
        let Ok(_stream) = TcpStream::connect(mapped) else { return };
        let (_accepted, peer) = listener.accept().unwrap();
        let peer = v4(peer);
        let mut owners = Owners::new([ours.port(), 0], false);
        let uid = rustix::process::geteuid().as_raw();
        assert_eq!(owners.owner_of(peer, ours).await.map(|owner| owner.uid), Some(uid));
        owners.diag = None;
        assert_eq!(owners.owner_of(peer, ours).await.map(|owner| owner.uid), Some(uid));
    }

    #[test]
    fn netlink_answers_where_it_is_there() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let ours = v4(listener.local_addr().unwrap());
        let stream = TcpStream::connect(ours).unwrap();
        let peer = v4(stream.local_addr().unwrap());
        let Ok(mut diag) = Diag::open() else { return };
        match diag.owner_of(peer, ours) {
            Ok(owner) => assert_eq!(owner.map(|owner| owner.uid), Some(rustix::process::geteuid().as_raw())),
            Err(error) => assert_eq!(error, rustix::io::Errno::NOENT),
        }
    }
}
