//! Memory that a thread keeps for its kernels' intermediate results.

use std::cell::RefCell;
use std::sync::{Mutex, PoisonError};

use super::simd::WIDTH;

/// A cache line of f32.
#[repr(align(64))]
#[derive(Clone, Copy)]
pub(crate) struct Line(#[allow(dead_code)] /* read as f32 */ [f32; WIDTH]);

/// Memory that is kept from one use to the next. Its content is whatever the last use left.
#[derive(Default)]
pub(crate) struct Scratch(Vec<Line>);

thread_local! {
    static SCRATCH: RefCell<Scratch> = const { RefCell::new(Scratch(Vec::new())) };
}

// === impl Scratch ===

impl Scratch {
    /// At least `numbers` numbers, on a cache line, of any value.
    pub(crate) fn numbers(&mut self, numbers: usize) -> &mut [f32] {
        let lines = numbers.div_ceil(WIDTH);
        if self.0.len() < lines {
            self.0.resize(lines, Line([0.0; WIDTH]));
        }
        // SAFETY: a line is sixteen f32 without padding.
        unsafe { std::slice::from_raw_parts_mut(self.0.as_mut_ptr().cast(), self.0.len() * WIDTH) }
    }
}

/// Calls `f` with `numbers` numbers of this thread's memory.
pub(crate) fn with<T>(numbers: usize, f: impl FnOnce(&mut [f32]) -> T) -> T {
    SCRATCH.with_borrow_mut(|scratch| f(scratch.numbers(numbers)))
}

/// Locks what is still whole after a panic: memory whose content doesn't outlast its use.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A pointer through which the tasks of a section write to ranges that lie apart.
#[derive(Clone, Copy)]
pub(crate) struct Shared(*mut f32);

// SAFETY: whoever uses the pointer keeps to their own range.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

// === impl Shared ===

impl Shared {
    pub(crate) fn new(numbers: &mut [f32]) -> Self {
        Self(numbers.as_mut_ptr())
    }

    /// The number at `index`.
    ///
    /// # Safety
    /// There is one; what is read or written from there is in nobody else's range.
    pub(crate) unsafe fn at(self, index: usize) -> *mut f32 {
        // SAFETY: as the caller promises.
        unsafe { self.0.add(index) }
    }
}
