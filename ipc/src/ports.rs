//! The TCP ports that a workdir's path suggests.

use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// First port of the range.
pub const FIRST_PORT: u16 = 40_000;
/// How many ports the range holds. It lies inside the ephemeral range of most systems, so any socket may sit on one.
pub const PORT_COUNT: u16 = 20_000;

/// A pair of TCP ports: events on the first, calls on the second.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ports {
    /// Port of the PUB socket.
    pub publish: u16,
    /// Port of the ROUTER socket.
    pub rpc: u16,
}

impl Ports {
    /// Returns the next pair to try when this one is taken: two further, wrapping inside the range.
    #[must_use]
    pub fn next(self) -> Self {
        Self::at((self.publish - FIRST_PORT + 2) % PORT_COUNT)
    }

    fn at(offset: u16) -> Self {
        let publish = FIRST_PORT + offset;
        Self { publish, rpc: publish + 1 }
    }
}

/// Hashes bytes with FNV-1a, 32 bits (the `fnv` crate has the 64-bit form only).
///
/// Source: <http://www.isthe.com/chongo/tech/comp/fnv/>, offset basis 2166136261, prime 16777619.
fn fnv1a_32(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193))
}

/// Returns the ports for a workdir: `base = 40000 + fnv1a_32(absolute path bytes) % 20000`, PUB = base, ROUTER = base + 1.
///
/// `path` is taken as it is; hand over the canonical absolute path. The result is a hint: what is bound stands in the lock file.
pub fn ports_for_path(path: &Path) -> Ports {
    let offset = fnv1a_32(path.as_os_str().as_bytes()) % u32::from(PORT_COUNT);
    #[expect(clippy::cast_possible_truncation, reason = "the offset is below PORT_COUNT, a u16")]
    Ports::at(offset as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_follow_the_documented_vectors() {
        for (path, publish) in [
            ("/", 48254),
            ("/home/user/projects/pando", 45337),
            ("/srv/test-workspace", 41476),
            ("/home/user/project-a", 52077),
            ("/home/user/project", 46503),
            ("/srv/é space", 54794),
        ] {
            assert_eq!(ports_for_path(Path::new(path)), Ports { publish, rpc: publish + 1 }, "{path}");
        }
    }

    #[test]
    fn the_next_pair_wraps_inside_the_range() {
        assert_eq!(Ports { publish: 45337, rpc: 45338 }.next(), Ports { publish: 45339, rpc: 45340 });
        assert_eq!(Ports { publish: 59999, rpc: 60000 }.next(), Ports { publish: 40001, rpc: 40002 });
    }
}
