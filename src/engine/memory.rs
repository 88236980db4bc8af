//! How much memory this process can still have: the system's word and its control group's.

use std::path::{Path, PathBuf};

/// Bytes that can be had without swapping or being killed; `None` where nothing says.
pub(crate) fn available_bytes() -> Option<u64> {
    [system_available(), group_available()].into_iter().flatten().min()
}

/// `MemAvailable` of the machine.
fn system_available() -> Option<u64> {
    let report = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = report.lines().find(|line| line.starts_with("MemAvailable:"))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib.saturating_mul(1024))
}

/// What the process's control group (a container, a service) has left, in version 2 or 1.
fn group_available() -> Option<u64> {
    let root = Path::new("/sys/fs/cgroup");
    let own = own_group().map(|path| root.join(path.trim_start_matches('/')));
    let second = own.into_iter().chain([root.to_path_buf()]);
    let left = |folder: PathBuf, limit: &str, used: &str| {
        let limit = number(&folder.join(limit))?;
        Some(limit.saturating_sub(number(&folder.join(used))?))
    };
    second
        .filter_map(|folder| left(folder, "memory.max", "memory.current"))
        .min()
        .or_else(|| left(root.join("memory"), "memory.limit_in_bytes", "memory.usage_in_bytes"))
}

/// The process's group in version 2: the line `0::/path`.
fn own_group() -> Option<String> {
    let groups = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    groups.lines().find_map(|line| line.strip_prefix("0::")).map(str::to_string)
}

/// A file that holds one number; `max` (no limit) is none.
fn number(path: &Path) -> Option<u64> {
    std::fs::read_to_string(path).ok()?.trim().parse().ok()
}
