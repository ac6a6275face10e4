//! In which order the kernel lets go of the files of a process that was killed: from the highest descriptor down (`task_work_run`, since Linux 4.3).
//!
//! Each connection that ends wakes whoever is at its other end, and those take the core from the process that is dying. So the lock lies above all connections:
//! under a low descriptor it comes up to 2 ms later. The ports, which the next primary binds, lie above the lock.

use std::os::fd::OwnedFd;

use rustix::io::fcntl_dupfd_cloexec;
use rustix::process::{Resource, getrlimit};

/// Most descriptors that are counted on, the usual limit: the kernel's table is as long as the highest one demands.
const MOST: u64 = 1_024;

/// Where a file lies, counted from the limit on descriptors down.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Place {
    /// Ports go first.
    Port = 16,
    /// The lock goes next.
    Lock = 32,
}

/// Moves a file to its place, or above it where that is taken; where there is no room it stays as it is. No child process inherits it.
pub(crate) fn moved(file: OwnedFd, place: Place) -> OwnedFd {
    let limit = getrlimit(Resource::Nofile).current.map_or(MOST, |limit| limit.min(MOST));
    let lowest = i32::try_from(limit.saturating_sub(place as u64)).unwrap_or(0);
    fcntl_dupfd_cloexec(&file, lowest).unwrap_or(file)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsRawFd;

    use rustix::io::{FdFlags, fcntl_getfd};

    use super::*;

    #[test]
    fn a_port_lies_above_the_lock_and_the_lock_above_the_rest() {
        let open = || OwnedFd::from(File::open("/dev/null").unwrap());
        let (lock, port) = (moved(open(), Place::Lock), moved(open(), Place::Port));
        let connection = open();
        assert!(port.as_raw_fd() > lock.as_raw_fd() && lock.as_raw_fd() > connection.as_raw_fd());
        assert!([&lock, &port].into_iter().all(|file| fcntl_getfd(file).unwrap().contains(FdFlags::CLOEXEC)));
    }
}
