//! Memory for packed weights and activation scratch: zeroed, 64-byte aligned, in huge pages where the system has
//! them (a third more read bandwidth than 4 KiB pages gave), and the release of a source file's pages.

use std::sync::{Arc, Mutex, PoisonError};

use crate::Error;

/// A huge page.
const HUGE: usize = 2 << 20;
/// Weights share maps of this size, so that small matrices fill huge pages together.
const CHUNK: usize = 32 << 20;

/// Hands out regions of large maps. A map is returned to the system when its last region is dropped.
#[derive(Default)]
pub(super) struct Arena {
    /// The map that isn't full, and its bytes in use.
    open: Mutex<Option<(Arc<Map>, usize)>>,
}

/// Zeroed bytes, aligned to a cache line; touched only when written.
pub(super) struct Region {
    map: Arc<Map>,
    offset: usize,
    len: usize,
}

/// An anonymous map.
struct Map {
    start: *mut u8,
    len: usize,
}

// SAFETY: a map is plain memory that it owns; who may read or write which part of it is for its users to keep.
unsafe impl Send for Map {}
// SAFETY: as above: nothing is read or written through a shared map but by way of raw pointers.
unsafe impl Sync for Map {}

// === impl Arena ===

impl Arena {
    /// `bytes` of zeroed memory for `what`.
    pub(super) fn region(&self, bytes: usize, what: &'static str) -> Result<Region, Error> {
        let len = bytes.max(1).next_multiple_of(64);
        if len >= CHUNK {
            return Region::alone(len, what);
        }
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let (map, offset) = match open.take() {
            Some((map, used)) if used + len <= map.len => (map, used),
            _ => (Arc::new(Map::new(CHUNK, what)?), 0),
        };
        *open = Some((map.clone(), offset + len));
        Ok(Region { map, offset, len })
    }
}

// === impl Region ===

impl Region {
    /// A region with a map of its own.
    pub(super) fn alone(bytes: usize, what: &'static str) -> Result<Self, Error> {
        let map = Arc::new(Map::new(bytes.max(1), what)?);
        Ok(Self { map, offset: 0, len: bytes })
    }

    /// The first byte. Writing needs the caller's own proof that nobody else is there.
    pub(super) fn pointer(&self) -> *mut u8 {
        // SAFETY: `offset + len` is within the map.
        unsafe { self.map.start.add(self.offset) }
    }

    /// Length in bytes.
    pub(super) fn len(&self) -> usize {
        self.len
    }
}

// === impl Map ===

impl Map {
    fn new(bytes: usize, what: &'static str) -> Result<Self, Error> {
        let huge = bytes >= HUGE;
        let len = bytes.checked_next_multiple_of(if huge { HUGE } else { 4096 });
        let Some(len) = len.filter(|&len| len <= isize::MAX as usize) else {
            return Err(Error::Memory { bytes, what });
        };
        let (protection, flags) =
            (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // Room to start at a huge page's boundary; what is beside it is never touched.
        let reserved = if huge { len + HUGE } else { len };
        // SAFETY: a fresh anonymous map.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), reserved, protection, flags, -1, 0) };
        if start == libc::MAP_FAILED {
            return Err(Error::Memory { bytes, what });
        }
        let mut start = start.cast::<u8>();
        if huge {
            let skip = start.align_offset(HUGE);
            // SAFETY: both cut-off ends lie within the map just made, and nobody knows of them yet.
            start = unsafe {
                if skip > 0 {
                    libc::munmap(start.cast(), skip);
                }
                let kept = start.add(skip);
                if HUGE > skip {
                    libc::munmap(kept.add(len).cast(), HUGE - skip);
                }
                #[cfg(target_os = "linux")]
                libc::madvise(kept.cast(), len, libc::MADV_HUGEPAGE); // a hint: failure changes nothing
                kept
            };
        }
        Ok(Self { start, len })
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        // SAFETY: the map is this value's own, and the last region that knows of it is gone.
        unsafe { libc::munmap(self.start.cast(), self.len) };
    }
}

/// Drops the pages that lie wholly within `data` from this process, if they are a shared, read-only map of a file:
/// they come back from the file when read again. Best effort; anything else is left alone.
#[cfg(target_os = "linux")]
pub(super) fn release_pages(data: &[&[u8]]) {
    let Ok(maps) = std::fs::read_to_string("/proc/self/maps") else { return };
    // SAFETY: a plain question.
    let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    let Ok(page) = usize::try_from(page) else { return };
    let files: Vec<(usize, usize)> = maps.lines().filter_map(shared_file_map).collect();
    for data in data {
        let start = (data.as_ptr() as usize).next_multiple_of(page);
        let end = (data.as_ptr() as usize + data.len()) / page * page;
        if start < end && files.iter().any(|&(first, last)| first <= start && end <= last) {
            // SAFETY: dropping pages of a shared file map changes no byte that a reader sees.
            unsafe { libc::madvise(start as *mut _, end - start, libc::MADV_DONTNEED) };
        }
    }
}

/// Only Linux tells which maps are of files.
#[cfg(not(target_os = "linux"))]
pub(super) fn release_pages(_data: &[&[u8]]) {}

/// The address range of a line in /proc/self/maps, if it is a shared, read-only map of a file.
#[cfg(target_os = "linux")]
fn shared_file_map(line: &str) -> Option<(usize, usize)> {
    let mut fields = line.split_ascii_whitespace();
    let (start, end) = fields.next()?.split_once('-')?;
    let (permissions, inode) = (fields.next()?, fields.nth(2)?);
    if permissions != "r--s" || inode == "0" {
        return None;
    }
    Some((usize::from_str_radix(start, 16).ok()?, usize::from_str_radix(end, 16).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regions_are_zeroed_aligned_and_apart() {
        let arena = Arena::default();
        let regions: Vec<Region> =
            [1, 64, 100, 3 << 20, CHUNK - 64, CHUNK + 1].map(|n| arena.region(n, "test").unwrap()).into();
        for (i, region) in regions.iter().enumerate() {
            assert_eq!(region.pointer() as usize % 64, 0);
            // SAFETY: the region's own bytes.
            let bytes = unsafe { std::slice::from_raw_parts_mut(region.pointer(), region.len()) };
            assert!(bytes.iter().all(|&b| b == 0), "region {i}");
            bytes.fill(i as u8 + 1);
        }
        for (i, region) in regions.iter().enumerate() {
            // SAFETY: as above.
            let bytes = unsafe { std::slice::from_raw_parts(region.pointer(), region.len()) };
            assert!(bytes.iter().all(|&b| b == i as u8 + 1), "region {i}");
        }
        assert!(arena.region(usize::MAX / 2, "test").is_err());
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn pages_of_a_mapped_file_are_released_and_come_back_while_other_memory_is_left_alone() {
        use std::io::Write;
        use std::os::fd::AsRawFd;

        const LEN: usize = 1 << 20;
        let mut file = std::fs::File::from(memory_file());
        file.write_all(&[7; LEN]).unwrap();
        let flags = [libc::MAP_SHARED, libc::MAP_PRIVATE];
        let map = |flags| {
            // SAFETY: a fresh map of a file that nobody shrinks.
            let p =
                unsafe { libc::mmap(std::ptr::null_mut(), LEN, libc::PROT_READ, flags, file.as_raw_fd(), 0) };
            assert_ne!(p, libc::MAP_FAILED);
            // SAFETY: the map is never undone.
            unsafe { std::slice::from_raw_parts(p.cast::<u8>(), LEN) }
        };
        let [shared, private] = flags.map(map);
        let anonymous = vec![7u8; LEN];
        let all = [shared, private, &anonymous[..]];
        let sum = |data: &[u8]| data.iter().map(|&b| usize::from(b)).sum::<usize>();
        assert!(all.iter().all(|data| sum(data) == 7 * LEN));
        let before = resident(shared);
        release_pages(&[&shared[5000..], private, &anonymous]);
        assert_eq!(before, LEN / 1024);
        // SAFETY: a plain question.
        let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) } as usize;
        let kept = 5000usize.next_multiple_of(page) / 1024;
        assert_eq!(resident(shared), kept, "the first pages hold bytes that were not released");
        assert_eq!(resident(private), LEN / 1024);
        assert!(all.iter().all(|data| sum(data) == 7 * LEN));
    }

    #[cfg(target_os = "linux")]
    fn memory_file() -> std::os::fd::OwnedFd {
        use std::os::fd::FromRawFd;
        // SAFETY: a plain call; the descriptor is new.
        unsafe {
            let fd = libc::memfd_create(c"test".as_ptr(), 0);
            assert!(fd >= 0);
            std::os::fd::OwnedFd::from_raw_fd(fd)
        }
    }

    /// KiB of a map in memory.
    #[cfg(target_os = "linux")]
    fn resident(data: &[u8]) -> usize {
        let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let start = format!("{:x}-", data.as_ptr() as usize);
        let map = maps.lines().skip_while(|l| !l.starts_with(&start));
        let rss = map.clone().find_map(|l| l.strip_prefix("Rss:")).unwrap();
        rss.split_whitespace().next().unwrap().parse().unwrap()
    }
}
