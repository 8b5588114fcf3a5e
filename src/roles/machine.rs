//! What this machine has to offer: the defaults that depend on it.

/// The share of free memory that the KV cache takes by default: 1 / 4.
const KV_SHARE: u64 = 4;
/// The most it takes by default.
const KV_MOST: u64 = 4 << 30;
/// What it takes where free memory can't be learnt.
const KV_UNKNOWN: u64 = 1 << 30;
/// The least: a few contexts of a small model.
const KV_LEAST: u64 = 64 << 20;

/// Bytes for the KV caches of this machine's workers together.
pub(super) fn kv_cache_bytes(asked_gb: Option<f64>) -> u64 {
    match asked_gb {
        Some(gb) => (gb * 1e9) as u64,
        None => share_of(free_memory()),
    }
}

/// Cores that this process may use.
pub(super) fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

fn share_of(free: Option<u64>) -> u64 {
    free.map_or(KV_UNKNOWN, |free| (free / KV_SHARE).clamp(KV_LEAST, KV_MOST))
}

/// Memory that can be had: the machine's, or the container's if that is less.
fn free_memory() -> Option<u64> {
    let read = |path: &str| std::fs::read_to_string(path).ok();
    let machine = available(&read("/proc/meminfo")?)?;
    let number = |path: &str| read(path)?.trim().parse::<u64>().ok(); // "max" is no number: no limit
    let container = number("/sys/fs/cgroup/memory.max")
        .map(|limit| limit.saturating_sub(number("/sys/fs/cgroup/memory.current").unwrap_or(0)));
    Some(container.map_or(machine, |container| container.min(machine)))
}

/// MemAvailable of /proc/meminfo.
fn available(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kv_cache_takes_a_bounded_share_of_what_is_free() {
        assert_eq!(available("MemTotal: 9 kB\nMemAvailable:    1024 kB\n"), Some(1 << 20));
        assert_eq!(available("nothing"), None);
        assert_eq!(share_of(Some(8 << 30)), 2 << 30);
        assert_eq!(share_of(Some(1 << 40)), KV_MOST);
        assert_eq!(share_of(Some(0)), KV_LEAST);
        assert_eq!(kv_cache_bytes(Some(0.5)), 500_000_000);
    }
}
