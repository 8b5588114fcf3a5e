//! What a launcher needs of a device: memory, kernels by name, graphs and timing, in one order of execution.

use std::{sync::Arc, time::Duration};

use crate::{DeviceMemory, Error};

/// A place in a device's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address(pub u64);

/// What decides how an operation is cut up.
#[derive(Clone, Debug, PartialEq)]
pub struct Properties {
    /// The device's name for people.
    pub name: String,
    /// Compute capability: 80, 89, 90, 100.
    pub arch: u32,
    /// Streaming multiprocessors.
    pub processors: u32,
    /// Bytes of L2 cache.
    pub l2_bytes: usize,
    /// Most bytes of dynamic shared memory a block can have.
    pub shared_bytes: usize,
}

/// One argument of a kernel.
#[derive(Clone, Copy, Debug)]
pub enum Argument {
    /// A pointer; null is `Address(0)`.
    Address(Address),
    /// `int`
    I32(i32),
    /// `unsigned`
    U32(u32),
    /// `int64_t`
    I64(i64),
    /// `uint64_t`
    U64(u64),
    /// `float`
    F32(f32),
    /// `TMAP_PARAM`
    Tiles(TensorMap),
}

/// A kernel, its grid and its arguments.
#[derive(Clone, Debug)]
pub struct Launch<'a> {
    /// The name of its entry.
    pub kernel: &'static str,
    /// Blocks.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub block: [u32; 3],
    /// Bytes of dynamic shared memory.
    pub shared: usize,
    /// In the kernel's order.
    pub arguments: &'a [Argument],
}

/// The element of a matrix that tiles are copied from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ElementType {
    /// 16-bit brain float.
    Bf16,
    /// IEEE half.
    F16,
    /// A byte: int8, fp8, packed values.
    U8,
}

/// A row-major matrix of which the tensor memory accelerator copies boxes.
#[derive(Clone, Copy, Debug)]
pub struct Tile {
    /// Its first element, at a multiple of 16 bytes.
    pub base: Address,
    /// What it holds.
    pub element: ElementType,
    /// Rows; what lies past them reads as zero.
    pub rows: usize,
    /// Columns; likewise.
    pub columns: usize,
    /// Bytes from row to row: a multiple of 16.
    pub pitch: usize,
    /// Rows of a box: at most 256.
    pub box_rows: usize,
    /// Columns of a box.
    pub box_columns: usize,
    /// Swizzle in bytes: 0, 32, 64 or 128, at least the bytes of a box's row.
    pub swizzle: usize,
}

/// A [`Tile`] as the hardware (or the twin) reads it.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(128))]
pub struct TensorMap(pub [u64; 16]);

/// A device whose work runs in the order in which it was given.
pub trait Device: Send + Sync {
    /// What it is.
    fn properties(&self) -> &Properties;

    /// Memory of unspecified content, at a multiple of 16 bytes (on a GPU 256).
    fn allocate(&self, bytes: usize) -> Result<Address, Error>;

    /// Gives memory back once the work so far is done.
    ///
    /// # Safety
    /// `address` came from [`allocate`](Self::allocate), and nothing uses it from here on.
    unsafe fn free(&self, address: Address);

    /// Copies to the device, after the work so far.
    ///
    /// # Safety
    /// `bytes.len()` bytes at `to` lie in one allocation.
    unsafe fn write(&self, to: Address, bytes: &[u8]) -> Result<(), Error>;

    /// Memory of this machine that copies go to and from without a detour, zeroed: as [`Pinned`](super::Pinned).
    fn allocate_host(&self, bytes: usize) -> Result<*mut u8, Error>;

    /// Gives such memory back.
    ///
    /// # Safety
    /// `pointer` came from [`allocate_host`](Self::allocate_host), and neither this machine nor a copy that is under
    /// way uses it from here on.
    unsafe fn free_host(&self, pointer: *mut u8);

    /// Starts to copy to the device, after the work so far, and doesn't wait for it.
    ///
    /// # Safety
    /// As for [`write`](Self::write); and `bytes` lie in memory from [`allocate_host`](Self::allocate_host), and are
    /// neither changed nor given back until the copy is done.
    unsafe fn upload(&self, to: Address, bytes: &[u8]) -> Result<(), Error>;

    /// How much memory there is, and is free.
    fn memory(&self) -> Result<DeviceMemory, Error>;

    /// Copies from the device, once the work so far is done; errors of that work are reported here.
    ///
    /// # Safety
    /// `bytes.len()` bytes at `from` lie in one allocation.
    unsafe fn read(&self, from: Address, bytes: &mut [u8]) -> Result<(), Error>;

    /// Copies within the device, after the work so far.
    ///
    /// # Safety
    /// `bytes` at both places lie in an allocation each, and don't overlap.
    unsafe fn copy(&self, to: Address, from: Address, bytes: usize) -> Result<(), Error>;

    /// Starts a kernel after the work so far.
    ///
    /// # Safety
    /// The arguments are those of the kernel, and every place it reads or writes lies in an allocation that outlives it.
    unsafe fn launch(&self, launch: &Launch<'_>) -> Result<(), Error>;

    /// Starts a kernel that waits by itself for the one before it (`dependency_wait` in the source), so that it may start
    /// before that one's end.
    ///
    /// # Safety
    /// As for [`launch`](Self::launch); and every thread of the kernel waits before it touches what the launch before
    /// this one writes.
    unsafe fn launch_dependent(&self, launch: &Launch<'_>) -> Result<(), Error>;

    /// Starts copying to this machine's memory after the work so far, beside what is started later; the event is its end.
    ///
    /// # Safety
    /// As many bytes from `from` on lie in an allocation, and both places outlive the copy. Nobody reads or writes `to`
    /// before somebody has waited for the event, or for all work.
    unsafe fn download(&self, to: &mut [u8], from: Address) -> Result<Arc<dyn Event>, Error>;

    /// The end of the work so far.
    fn mark(&self) -> Result<Arc<dyn Event>, Error>;

    /// Describes a matrix for kernels that copy tiles of it.
    fn tensor_map(&self, tile: &Tile) -> Result<TensorMap, Error>;

    /// Waits for the work so far; its errors are reported here.
    fn synchronize(&self) -> Result<(), Error>;

    /// Records what `work` launches and copies within the device, without running it.
    fn capture(&self, work: &mut dyn FnMut() -> Result<(), Error>) -> Result<Box<dyn Graph>, Error>;

    /// The time that the device takes for `work`.
    fn time(&self, work: &mut dyn FnMut() -> Result<(), Error>) -> Result<Duration, Error>;
}

/// A point in a device's work.
pub trait Event: Send + Sync {
    /// Waits until the device gets there; errors of the work before it are reported here.
    fn wait(&self) -> Result<(), Error>;

    /// What is started from here on waits for it.
    fn hold(&self) -> Result<(), Error>;
}

/// Work that is launched as one.
pub trait Graph: Send {
    /// Starts all of it after the work so far.
    ///
    /// # Safety
    /// All memory that the recorded work uses still exists.
    unsafe fn launch(&self) -> Result<(), Error>;
}

// === impl Argument ===

impl Argument {
    /// Where the value lies, as `cuLaunchKernel` takes it.
    pub fn pointer(&self) -> *mut std::ffi::c_void {
        let pointer: *const std::ffi::c_void = match self {
            Self::Address(v) => (&raw const v.0).cast(),
            Self::I32(v) => (&raw const *v).cast(),
            Self::U32(v) => (&raw const *v).cast(),
            Self::I64(v) => (&raw const *v).cast(),
            Self::U64(v) => (&raw const *v).cast(),
            Self::F32(v) => (&raw const *v).cast(),
            Self::Tiles(v) => (&raw const *v).cast(),
        };
        pointer.cast_mut()
    }
}

impl From<Address> for Argument {
    fn from(value: Address) -> Self {
        Self::Address(value)
    }
}

impl From<i32> for Argument {
    fn from(value: i32) -> Self {
        Self::I32(value)
    }
}

impl From<u32> for Argument {
    fn from(value: u32) -> Self {
        Self::U32(value)
    }
}

impl From<i64> for Argument {
    fn from(value: i64) -> Self {
        Self::I64(value)
    }
}

impl From<u64> for Argument {
    fn from(value: u64) -> Self {
        Self::U64(value)
    }
}

impl From<f32> for Argument {
    fn from(value: f32) -> Self {
        Self::F32(value)
    }
}

impl From<TensorMap> for Argument {
    fn from(value: TensorMap) -> Self {
        Self::Tiles(value)
    }
}

// === impl ElementType ===

impl ElementType {
    /// Bytes of an element.
    pub fn bytes(self) -> usize {
        match self {
            Self::Bf16 | Self::F16 => 2,
            Self::U8 => 1,
        }
    }
}

// === impl Tile ===

impl Tile {
    /// What the tensor memory accelerator asks of a matrix and its boxes.
    pub fn check(&self) -> Result<(), Error> {
        let row = self.box_columns * self.element.bytes();
        let problem = if !self.base.0.is_multiple_of(16) || !self.pitch.is_multiple_of(16) {
            "its start and pitch must be multiples of 16 bytes"
        } else if self.pitch < self.columns * self.element.bytes() {
            "its rows overlap"
        } else if self.rows == 0 || self.columns == 0 || self.box_rows == 0 || self.box_columns == 0 {
            "it is empty"
        } else if self.box_rows > 256 || self.box_columns > 256 {
            "a box has at most 256 rows and 256 columns"
        } else if !row.is_multiple_of(16) || (self.swizzle > 0 && row > self.swizzle) {
            "a box's row must be a multiple of 16 bytes, and no wider than the swizzle"
        } else if ![0, 32, 64, 128].contains(&self.swizzle) {
            "the swizzle must be 0, 32, 64 or 128 bytes"
        } else {
            return Ok(());
        };
        Err(Error::Arguments { operation: "tensor map", problem: format!("{problem}: {self:?}") })
    }
}
