//! How much memory is free, for the size of the KV cache.

use std::fs::read_to_string;

/// Assumed where the system doesn't say.
const UNKNOWN: u64 = 4 << 30;

/// Bytes that this process could still take: of the machine, and of its control group if that has a limit.
pub fn available() -> u64 {
    let machine = read_to_string("/proc/meminfo").ok().and_then(|text| meminfo(&text)).unwrap_or(UNKNOWN);
    let read = |name: &str| read_to_string(format!("/sys/fs/cgroup/{name}")).ok()?.trim().parse::<u64>().ok();
    let group = read("memory.max").map(|max| max.saturating_sub(read("memory.current").unwrap_or(0)));
    group.map_or(machine, |group| group.min(machine))
}

fn meminfo(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn available_memory_is_read_in_bytes() {
        assert_eq!(meminfo("MemTotal:  10 kB\nMemAvailable:    2048 kB\n"), Some(2 << 20));
        assert_eq!(meminfo("MemTotal:  10 kB\n"), None);
    }
}
