//! Which process holds a socket: the kernel tells by the descriptors of each process, for our own user's.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

/// Returns the process that holds each of these sockets, where one of ours does. Reads the descriptors of every process
/// that we may look into, so it takes milliseconds: it is for people who ask, not for each connection.
pub(in crate::bus) fn holders(inodes: &[u32]) -> HashMap<u32, u32> {
    let mut found = HashMap::new();
    if inodes.is_empty() {
        return found;
    }
    let Ok(processes) = fs::read_dir("/proc") else { return found };
    for process in processes.flatten() {
        let Some(pid) = process.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let Ok(descriptors) = fs::read_dir(process.path().join("fd")) else { continue };
        for inode in descriptors.flatten().filter_map(|descriptor| socket(&descriptor.path())) {
            if inodes.contains(&inode) {
                // A child may have inherited it; the lower number is the older process.
                let holder = found.entry(inode).or_insert(pid);
                *holder = pid.min(*holder);
            }
        }
    }
    found
}

/// Reads the link `socket:[4711]`.
fn socket(descriptor: &Path) -> Option<u32> {
    let target = fs::read_link(descriptor).ok()?;
    target.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
}
