//! The C++ runtime's functions, as `runtime/launch.cpp` and `runtime/memory.cpp` define them.

use std::ffi::{c_char, c_int, c_void};

/// `twin::Entry`, which stays where it is: `itself` is its address.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Entry {
    pub(crate) name: *const c_char,
    pub(crate) signature: *const c_char,
    call: *const c_void,
    pub(crate) next: *const Entry,
    pub(crate) itself: *const c_void,
}

/// `twin::TileMap`.
#[repr(C)]
pub(crate) struct TileMap {
    pub(crate) base: u64,
    pub(crate) element: u32,
    pub(crate) swizzle: u32,
    pub(crate) extent: [u64; 2],
    pub(crate) pitch: u64,
    pub(crate) shape: [u32; 2],
}

// SAFETY: constants.
unsafe impl Send for Entry {}
// SAFETY: constants.
unsafe impl Sync for Entry {}

unsafe extern "C" {
    pub(crate) fn twin_entries() -> *const Entry;
    pub(crate) fn twin_alloc(bytes: usize) -> *mut c_void;
    pub(crate) fn twin_free(address: *mut c_void) -> c_int;
    pub(crate) fn twin_launch(
        kernel: *const c_void,
        grid: *const u32,
        extent: *const u32,
        shared_bytes: usize,
        arguments: *mut *mut c_void,
        order: c_int,
        early: c_int,
        dependent: c_int,
        before: Option<unsafe extern "C" fn(*mut c_void) -> c_int>,
        before_argument: *mut c_void,
        error: *mut c_char,
        error_bytes: usize,
    ) -> c_int;
}
