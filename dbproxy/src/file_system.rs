//! Which file system a database lies on, and whether locks there mean what they say.
//!
//! One writer is as sure as flock(2) is. Between machines it is not: NFS emulates it by other locks, SMB passes it on only lately, and what
//! goes through FUSE depends on a program nobody knows. There two primaries could lead at once, so such a place is refused.

use std::io;
use std::path::Path;

/// What is known of a kind of file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Locks {
    /// One machine; or nothing is known that speaks against it.
    Hold,
    /// Other machines see the same files.
    Shared,
    /// A program of the user serves it.
    Unknown,
}

/// The kinds by the number that statfs(2) tells, from the kernel's `magic.h` and the sources of each.
const KINDS: &[(u64, &str, Locks)] = &[
    (0xEF53, "ext", Locks::Hold),
    (0x5846_5342, "xfs", Locks::Hold),
    (0x9123_683E, "btrfs", Locks::Hold),
    (0x0102_1994, "tmpfs", Locks::Hold),
    (0x794C_7630, "overlay", Locks::Hold),
    (0x2FC1_2FC1, "zfs", Locks::Hold),
    (0xF2F5_2010, "f2fs", Locks::Hold),
    (0xCA45_1A4E, "bcachefs", Locks::Hold),
    (0x6969, "nfs", Locks::Shared),
    (0x517B, "smb", Locks::Shared),
    (0xFF53_4D42, "cifs", Locks::Shared),
    (0xFE53_4D42, "smb2", Locks::Shared),
    (0x0102_1997, "9p", Locks::Shared),
    (0x5346_414F, "afs", Locks::Shared),
    (0x6B41_4653, "kafs", Locks::Shared),
    (0x7375_7245, "coda", Locks::Shared),
    (0x00C3_6400, "ceph", Locks::Shared),
    (0x0BD0_0BD0, "lustre", Locks::Shared),
    (0x0116_1970, "gfs2", Locks::Shared),
    (0x7461_636F, "ocfs2", Locks::Shared),
    (0x4750_4653, "gpfs", Locks::Shared),
    (0x564C, "ncp", Locks::Shared),
    (0x786F_4256, "vboxsf", Locks::Shared),
    (0xBACB_ACBC, "vmhgfs", Locks::Shared),
    (0x6573_5546, "fuse", Locks::Unknown),
];

/// A file system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileSystem {
    /// Its name, or its number where it has no name here.
    pub name: String,
    /// Why no database may lie on it; `None` where one may.
    pub objection: Option<&'static str>,
}

impl FileSystem {
    /// Asks the system on what `path` lies; it must exist.
    #[cfg(target_os = "linux")]
    pub fn of(path: &Path) -> io::Result<Self> {
        let found = rustix::fs::statfs(path)?;
        #[expect(clippy::cast_sign_loss, reason = "the number is a pattern of 32 bits")]
        Ok(Self::from_magic((found.f_type as u64) & 0xFFFF_FFFF))
    }

    /// Takes every path for a local one: this system's numbers are not known here.
    #[cfg(not(target_os = "linux"))]
    pub fn of(path: &Path) -> io::Result<Self> {
        path.metadata().map(|_| Self { name: "unknown".to_owned(), objection: None })
    }

    #[cfg_attr(not(target_os = "linux"), expect(dead_code, reason = "the numbers are Linux's"))]
    fn from_magic(magic: u64) -> Self {
        let kind = KINDS.iter().find(|(number, ..)| *number == magic);
        let (name, locks) =
            kind.map_or((format!("{magic:#x}"), Locks::Hold), |(_, name, locks)| ((*name).to_owned(), *locks));
        let objection = match locks {
            Locks::Hold => None,
            Locks::Shared => Some("other machines see it, too, and its locks do not keep them out"),
            Locks::Unknown => Some("the program that serves it need not pass locks on"),
        };
        Self { name, objection }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn network_file_systems_are_objected_to_and_local_ones_are_not() {
        let objects = |magic| FileSystem::from_magic(magic).objection.is_some();
        for (magic, expected) in
            [(0x6969, true), (0xFF53_4D42, true), (0x6573_5546, true), (0xEF53, false), (0x1234, false)]
        {
            assert_eq!(objects(magic), expected, "{magic:#x}");
        }
        assert_eq!(FileSystem::from_magic(0x6969).name, "nfs");
        assert_eq!(FileSystem::from_magic(0x1234).name, "0x1234");
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn the_system_tells_the_kind() {
        assert_eq!(FileSystem::of(Path::new("/proc")).unwrap(), FileSystem::from_magic(0x9FA0));
        assert!(FileSystem::of(Path::new("/nowhere/at/all")).is_err());
    }
}
