//! Where peers come in: Unix sockets in our private directory, and TCP on the loopback interface.

use std::fs;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::Interest;
use tokio::net::{TcpListener, TcpSocket, TcpStream, UnixListener, UnixStream};
use tokio::time::timeout;
use uuid::Uuid;

use super::owner::{self, Owners};
use super::stats::{Offence, Refusal};
use super::{BusError, BusOptions, TcpDoor};
use crate::failpoint::{self, Point};
use crate::lock::Endpoints;
use crate::methods::{Caller, Door};
use crate::parting::{Place, moved};
use crate::ports::{Ports, ports_for_path};
use crate::stream::{Input, Output, split};
use crate::zmtp::SocketType;

/// Connections that the kernel holds for us until they are accepted; more are refused or retried by the kernel.
const BACKLOG: u32 = 1_024;
/// Pairs of ports that are tried, from the workdir's own on. Then the kernel chooses, so that no squatter can keep us from starting.
const MAX_PORT_PAIRS: usize = 1_000;
/// The kernel forgets the owner of a socket that is closed a moment before the other end learns of it: how long that may take.
const HANG_UP: Duration = Duration::from_millis(20);
/// Random hex digits in the name of a socket file; with a term of 20 digits the name still fits `Workdir::socket_dir`.
const RANDOM_DIGITS: usize = 6;

/// Which of our sockets a connection came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// Answers calls.
    Router,
    /// Sends events.
    Pub,
}

impl Role {
    /// Returns its name, for people and for the socket's file.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Router => "rpc",
            Self::Pub => "pub",
        }
    }
}

impl From<Role> for SocketType {
    fn from(role: Role) -> Self {
        match role {
            Role::Router => Self::Router,
            Role::Pub => Self::Pub,
        }
    }
}

/// A socket that listens. A Unix socket's file goes when it is dropped.
#[derive(Debug)]
pub(super) enum Listener {
    Unix { listener: UnixListener, _file: SocketFile },
    Tcp(TcpListener, Arc<Owners>),
}

/// Who is at the other end of a connection, as the system says.
#[derive(Debug)]
pub(super) struct Identity {
    pub(super) caller: Caller,
    /// Number of the socket at the other end, by which its process can be found where the door does not name it.
    pub(super) inode: Option<u32>,
}

/// A connection whose peer is not known yet.
#[derive(Debug)]
pub(super) enum Stream {
    Unix(UnixStream),
    Tcp(TcpStream, Arc<Owners>),
}

/// All that is bound.
#[derive(Debug)]
pub(super) struct Doors {
    pub(super) listeners: Vec<(Role, Listener)>,
    pub(super) endpoints: Endpoints,
    pub(super) ports: Option<Ports>,
}

/// The file of a Unix socket of ours. Its name is never used again, so removing it late harms nobody.
#[derive(Debug)]
pub(super) struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.0) {
            tracing::debug!(path = %self.0.display(), %error, "socket file is gone already");
        }
    }
}

/// Binds the native door, and the TCP door when asked for and when the system tells whose connections are.
pub(super) fn bind(options: &BusOptions) -> Result<Doors, BusError> {
    let dir = options.workdir.socket_dir()?;
    remove_stale(&dir);
    let mut doors = Doors { listeners: Vec::new(), endpoints: Endpoints::default(), ports: None };
    let random = Uuid::new_v4().simple().to_string();
    failpoint::hit(Point::BindUnix);
    for role in [Role::Pub, Role::Router] {
        let path = dir.join(format!("{}-{}.{}", options.epoch, &random[..RANDOM_DIGITS], role.name()));
        let listener = UnixListener::bind(&path).map_err(|source| BusError::Socket { path: path.clone(), source })?;
        doors.advertise(role, format!("ipc://{}", path.display()));
        doors.listeners.push((role, Listener::Unix { listener, _file: SocketFile(path) }));
    }
    failpoint::hit(Point::BindTcp);
    let admit_unknown = options.tcp == TcpDoor::Unverified;
    if options.tcp == TcpDoor::OwnUser && !owner::can_be_told() {
        tracing::warn!("the TCP door stays closed: this system does not tell whose a connection is");
    } else if options.tcp != TcpDoor::Closed {
        let (publish, rpc) = bind_pair(ports_for_path(options.workdir.path()))?;
        let ports = Ports { publish: port_of(&publish)?, rpc: port_of(&rpc)? };
        let owners = Arc::new(Owners::new([ports.publish, ports.rpc], admit_unknown));
        for (role, listener, port) in [(Role::Pub, publish, ports.publish), (Role::Router, rpc, ports.rpc)] {
            doors.advertise(role, format!("tcp://{}:{port}", Ipv4Addr::LOCALHOST));
            doors.listeners.push((role, Listener::Tcp(listener, Arc::clone(&owners))));
        }
        doors.ports = Some(ports);
    }
    failpoint::hit(Point::BindDone);
    Ok(doors)
}

impl Doors {
    fn advertise(&mut self, role: Role, endpoint: String) {
        match role {
            Role::Pub => self.endpoints.publish.push(endpoint),
            Role::Router => self.endpoints.rpc.push(endpoint),
        }
    }
}

/// Removes the socket files of former terms: we hold the lock, so nobody listens on them.
fn remove_stale(dir: &Path) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    for entry in entries.flatten() {
        let path = entry.path();
        let ours = path.extension().is_some_and(|extension| extension == "pub" || extension == "rpc");
        if ours && entry.file_type().is_ok_and(|kind| kind.is_socket()) {
            drop(SocketFile(path));
        }
    }
}

/// Binds the first pair of ports that is free, both or none; at last any two that the kernel has.
fn bind_pair(first: Ports) -> Result<(TcpListener, TcpListener), BusError> {
    let mut ports = first;
    for _ in 0..MAX_PORT_PAIRS {
        match bind_both(ports) {
            Err(BusError::Port { port, source }) if source.kind() == io::ErrorKind::AddrInUse => {
                tracing::debug!(port, "port is taken");
                ports = ports.next();
            }
            bound => return bound,
        }
    }
    bind_both(Ports { publish: 0, rpc: 0 })
}

fn bind_both(ports: Ports) -> Result<(TcpListener, TcpListener), BusError> {
    Ok((bind_tcp(ports.publish)?, bind_tcp(ports.rpc)?))
}

fn bind_tcp(port: u16) -> Result<TcpListener, BusError> {
    let bound = || {
        let socket = TcpSocket::new_v4()?;
        // A predecessor's connections may linger; a socket that listens still keeps its port.
        socket.set_reuseaddr(true)?;
        socket.bind(SocketAddr::from((Ipv4Addr::LOCALHOST, port)))?;
        let listener: OwnedFd = socket.listen(BACKLOG)?.into_std()?.into();
        TcpListener::from_std(moved(listener, Place::Port).into())
    };
    bound().map_err(|source| BusError::Port { port, source })
}

fn port_of(listener: &TcpListener) -> Result<u16, BusError> {
    listener.local_addr().map(|address| address.port()).map_err(|source| BusError::Port { port: 0, source })
}

impl Listener {
    /// Waits for a connection. Nothing is lost when the wait is cancelled.
    pub(super) async fn accept(&self) -> io::Result<Stream> {
        Ok(match self {
            Self::Unix { listener, .. } => Stream::Unix(listener.accept().await?.0),
            Self::Tcp(listener, owners) => Stream::Tcp(listener.accept().await?.0, Arc::clone(owners)),
        })
    }
}

impl Stream {
    /// Returns which door it came through.
    pub(super) fn door(&self) -> Door {
        match self {
            Self::Unix(_) => Door::Native,
            Self::Tcp(..) => Door::Tcp,
        }
    }

    /// Takes it into its halves.
    pub(super) fn split(self) -> io::Result<(Input, Output)> {
        match self {
            Self::Unix(stream) => split(stream.into_std()?),
            Self::Tcp(stream, _) => {
                if let Err(error) = stream.set_nodelay(true) {
                    tracing::debug!(%error, "TCP_NODELAY is refused");
                }
                split(stream.into_std()?)
            }
        }
    }

    /// Finds out whose the connection is. Only our own uid comes in; whom the kernel cannot name stays outside, unless
    /// the door was opened to such. `None` when nobody is there any more: a socket that was closed has no owner.
    pub(super) async fn identify(&self, peer: u64) -> Result<Option<Identity>, (Refusal, Offence)> {
        let door = self.door();
        let refuse = |why| (why, Offence::at(door));
        let (uid, pid, inode) = match self {
            Self::Unix(stream) => {
                let credentials = stream.peer_cred().map_err(|_| refuse(Refusal::UnknownUid))?;
                let pid = credentials.pid().and_then(|pid| u32::try_from(pid).ok());
                (Some(credentials.uid()), pid, None)
            }
            Self::Tcp(stream, owners) => {
                let (theirs, ours) = addresses(stream).ok_or_else(|| refuse(Refusal::UnknownUid))?;
                if theirs == ours {
                    return Err(refuse(Refusal::SelfConnect));
                }
                let owner = owners.owner_of(theirs, ours).await;
                if owner.is_none() && !owners.admit_unknown {
                    let gone = timeout(HANG_UP, hung_up(stream)).await.is_ok();
                    return if gone { Ok(None) } else { Err(refuse(Refusal::UnknownUid)) };
                }
                (owner.map(|owner| owner.uid), None, owner.map(|owner| owner.inode))
            }
        };
        if uid.is_some_and(|uid| uid != rustix::process::geteuid().as_raw()) {
            return Err((Refusal::ForeignUid, Offence { uid, pid, ..Offence::at(door) }));
        }
        Ok(Some(Identity { caller: Caller::new(peer, door, uid, pid), inode }))
    }
}

/// Waits until the other end has been closed; what it said before stays unread.
async fn hung_up(stream: &TcpStream) {
    while let Ok(ready) = stream.ready(Interest::READABLE).await
        && !ready.is_read_closed()
    {
        // The readiness that was seen is forgotten, so that the next one is waited for.
        drop(stream.try_io(Interest::READABLE, || Err::<(), _>(io::ErrorKind::WouldBlock.into())));
    }
}

fn addresses(stream: &TcpStream) -> Option<(SocketAddrV4, SocketAddrV4)> {
    match (stream.peer_addr().ok()?, stream.local_addr().ok()?) {
        (SocketAddr::V4(theirs), SocketAddr::V4(ours)) => Some((theirs, ours)),
        _ => None,
    }
}
