//! GPU kernels on the CPU: a [`Device`] that runs the sources of `kernels/cuda` themselves.
//!
//! For tests. Each CUDA thread is a fiber; a [`Schedule`] says in which order threads run and when asynchronous copies
//! land, so that a kernel with a barrier or a wait too few goes wrong under one of [`Schedule::ALL`]. What the twin
//! models and what it can't see stands in `runtime/twin.h`.
//!
//! A kernel that reads or writes outside its memory ends the process with a message that names the thread, as a fault
//! on a GPU ends its context; every other mistake that the twin notices is an error of the launch.

#![allow(unsafe_code)] // calls into the C++ runtime

mod ffi;

use std::{
    collections::{BTreeSet, HashMap},
    ffi::{CStr, c_void},
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::{Duration, Instant},
};

use volley_kernels::{
    Error,
    cuda::{Address, Argument, Device, Graph, Launch, Properties, TensorMap, Tile},
};

/// The order in which a block's threads (and a grid's blocks) run, and when asynchronous copies land.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Schedule {
    /// Who is next.
    pub order: Order,
    /// Copies land when they are issued, not when they are waited for.
    pub early: bool,
}

/// Who is next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Each warp runs as far as it can, from the first on.
    Forward,
    /// The same from the last.
    Reverse,
    /// Warps interleave closely, at random.
    Shuffled(u8),
}

/// A GPU that is none.
pub struct Twin {
    properties: Properties,
    schedule: Schedule,
    recording: Mutex<Option<Vec<Recorded>>>,
    launched: Mutex<BTreeSet<&'static str>>,
}

/// A launch or a copy in a graph.
enum Recorded {
    Launch { kernel: &'static str, grid: [u32; 3], block: [u32; 3], shared: usize, arguments: Vec<Argument> },
    Copy { to: Address, from: Address, bytes: usize },
}

struct TwinGraph {
    schedule: Schedule,
    recorded: Vec<Recorded>,
}

// === impl Schedule ===

impl Schedule {
    /// Those under which every kernel is tested.
    pub const ALL: [Self; 8] = {
        let orders = [Order::Forward, Order::Reverse, Order::Shuffled(0), Order::Shuffled(1)];
        let mut all = [Self { order: Order::Forward, early: false }; 8];
        let mut i = 0;
        while i < 8 {
            all[i] = Self { order: orders[i / 2], early: i % 2 == 1 };
            i += 1;
        }
        all
    };

    fn number(self) -> i32 {
        match self.order {
            Order::Forward => 0,
            Order::Reverse => 1,
            Order::Shuffled(key) => 2 + i32::from(key),
        }
    }
}

// === impl Twin ===

impl Twin {
    /// A twin of a Hopper GPU.
    pub fn new(schedule: Schedule) -> Self {
        Self::with_arch(schedule, 90)
    }

    /// A twin of a GPU of another compute capability (80, 89): launchers then choose the kernels for that.
    pub fn with_arch(schedule: Schedule, arch: u32) -> Self {
        let properties = Properties {
            name: "twin on the CPU".into(),
            arch,
            processors: 4, // few, so that small shapes are split as large ones are on a GPU
            l2_bytes: 1 << 20,
            shared_bytes: 227 << 10,
        };
        Self { properties, schedule, recording: Mutex::new(None), launched: Mutex::default() }
    }

    /// As the trait's object, to allocate on.
    pub fn device(schedule: Schedule) -> Arc<dyn Device> {
        Arc::new(Self::new(schedule))
    }

    /// The names of all kernels.
    pub fn kernels() -> Vec<&'static str> {
        let mut names: Vec<_> = entries().keys().copied().collect();
        names.sort_unstable();
        names
    }

    /// The names of the kernels that this twin was asked to launch.
    pub fn launched(&self) -> BTreeSet<&'static str> {
        self.launched.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Adds to the graph being recorded, if one is.
    fn record(&self, what: impl FnOnce() -> Recorded) -> bool {
        let mut recording = self.recording.lock().unwrap_or_else(PoisonError::into_inner);
        recording.as_mut().map(|recorded| recorded.push(what())).is_some()
    }
}

/// The kernels that were linked in, by name.
fn entries() -> &'static HashMap<&'static str, ffi::Entry> {
    static ENTRIES: OnceLock<HashMap<&'static str, ffi::Entry>> = OnceLock::new();
    ENTRIES.get_or_init(|| {
        let mut entries = HashMap::new();
        // SAFETY: a list of constants that the runtime's constructors linked up before `main`.
        unsafe {
            let mut next = ffi::twin_entries();
            while let Some(entry) = next.as_ref() {
                let name = CStr::from_ptr(entry.name).to_str().unwrap_or("?");
                let again = entries.insert(name, *entry);
                assert!(again.is_none(), "two kernels are called {name}");
                next = entry.next;
            }
        }
        entries
    })
}

/// One letter for each argument, as the runtime's signatures have them.
fn signature(arguments: &[Argument]) -> String {
    let letter = |argument: &Argument| match argument {
        Argument::Address(_) => 'p',
        Argument::I32(_) | Argument::U32(_) => 'i',
        Argument::I64(_) | Argument::U64(_) => 'l',
        Argument::F32(_) => 'f',
        Argument::Tiles(_) => 't',
    };
    arguments.iter().map(letter).collect()
}

/// # Safety
/// As for [`Device::launch`].
unsafe fn run(schedule: Schedule, launch: &Launch<'_>) -> Result<(), Error> {
    let entry = entries()
        .get(launch.kernel)
        .ok_or_else(|| Error::Unsupported(format!("there is no kernel {}", launch.kernel)))?;
    // SAFETY: a constant string of the entry's.
    let wanted = unsafe { CStr::from_ptr(entry.signature) }.to_string_lossy();
    let given = signature(launch.arguments);
    if wanted != given {
        return Err(Error::Device(format!("kernel {} takes arguments {wanted}, not {given}", launch.kernel)));
    }
    let mut pointers: Vec<*mut c_void> = launch.arguments.iter().map(Argument::pointer).collect();
    let mut message = [0u8; 512];
    // SAFETY: the arguments have the kernel's types; that they point to memory is the caller's promise.
    let failed = unsafe {
        ffi::twin_launch(
            entry.itself,
            launch.grid.as_ptr(),
            launch.block.as_ptr(),
            launch.shared,
            pointers.as_mut_ptr(),
            schedule.number(),
            schedule.early.into(),
            message.as_mut_ptr().cast(),
            message.len(),
        )
    };
    if failed == 0 {
        return Ok(());
    }
    let message = CStr::from_bytes_until_nul(&message).unwrap_or_default().to_string_lossy();
    Err(Error::Device(format!("{message} ({schedule:?})")))
}

impl Device for Twin {
    fn properties(&self) -> &Properties {
        &self.properties
    }

    fn allocate(&self, bytes: usize) -> Result<Address, Error> {
        // SAFETY: always safe; null when there is no memory.
        let address = unsafe { ffi::twin_alloc(bytes) };
        if address.is_null() {
            return Err(Error::Memory { bytes, what: "the twin's memory" });
        }
        Ok(Address(address as u64))
    }

    unsafe fn free(&self, address: Address) {
        // SAFETY: the caller's promise.
        let result = unsafe { ffi::twin_free(address.0 as *mut c_void) };
        // Never while a test already fails: a second panic would hide the first.
        assert!(result == 0 || std::thread::panicking(), "a kernel wrote just outside an allocation");
    }

    unsafe fn write(&self, to: Address, bytes: &[u8]) -> Result<(), Error> {
        // SAFETY: the caller's promise.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to.0 as *mut u8, bytes.len()) };
        Ok(())
    }

    unsafe fn read(&self, from: Address, bytes: &mut [u8]) -> Result<(), Error> {
        // SAFETY: the caller's promise.
        unsafe { std::ptr::copy_nonoverlapping(from.0 as *const u8, bytes.as_mut_ptr(), bytes.len()) };
        Ok(())
    }

    unsafe fn copy(&self, to: Address, from: Address, bytes: usize) -> Result<(), Error> {
        if !self.record(|| Recorded::Copy { to, from, bytes }) {
            // SAFETY: the caller's promise.
            unsafe { std::ptr::copy_nonoverlapping(from.0 as *const u8, to.0 as *mut u8, bytes) };
        }
        Ok(())
    }

    unsafe fn launch(&self, launch: &Launch<'_>) -> Result<(), Error> {
        self.launched.lock().unwrap_or_else(PoisonError::into_inner).insert(launch.kernel);
        let recorded = self.record(|| Recorded::Launch {
            kernel: launch.kernel,
            grid: launch.grid,
            block: launch.block,
            shared: launch.shared,
            arguments: launch.arguments.to_vec(),
        });
        // SAFETY: the caller's promise.
        if recorded { Ok(()) } else { unsafe { run(self.schedule, launch) } }
    }

    fn tensor_map(&self, tile: &Tile) -> Result<TensorMap, Error> {
        tile.check()?;
        let mut map = TensorMap([0; 16]);
        let fields = ffi::TileMap {
            base: tile.base.0,
            element: tile.element.bytes() as u32,
            swizzle: tile.swizzle as u32,
            extent: [tile.columns as u64, tile.rows as u64],
            pitch: tile.pitch as u64,
            shape: [tile.box_columns as u32, tile.box_rows as u32],
        };
        const { assert!(size_of::<ffi::TileMap>() <= size_of::<TensorMap>()) };
        // SAFETY: plain numbers, and the map is larger and more strictly aligned.
        unsafe { std::ptr::write((&raw mut map).cast(), fields) };
        Ok(map)
    }

    fn synchronize(&self) -> Result<(), Error> {
        Ok(())
    }

    fn capture(&self, work: &mut dyn FnMut() -> Result<(), Error>) -> Result<Box<dyn Graph>, Error> {
        let set = |value| {
            let mut recording = self.recording.lock().unwrap_or_else(PoisonError::into_inner);
            std::mem::replace(&mut *recording, value)
        };
        set(Some(Vec::new()));
        let worked = work();
        let recorded = set(None).unwrap_or_default();
        worked?;
        Ok(Box::new(TwinGraph { schedule: self.schedule, recorded }))
    }

    fn time(&self, work: &mut dyn FnMut() -> Result<(), Error>) -> Result<Duration, Error> {
        let start = Instant::now();
        work()?;
        Ok(start.elapsed())
    }
}

// === impl TwinGraph ===

impl Graph for TwinGraph {
    unsafe fn launch(&self) -> Result<(), Error> {
        for recorded in &self.recorded {
            match recorded {
                Recorded::Launch { kernel, grid, block, shared, arguments } => {
                    let launch = Launch { kernel, grid: *grid, block: *block, shared: *shared, arguments };
                    // SAFETY: the caller's promise.
                    unsafe { run(self.schedule, &launch)? };
                }
                Recorded::Copy { to, from, bytes } => {
                    // SAFETY: the caller's promise.
                    unsafe { std::ptr::copy_nonoverlapping(from.0 as *const u8, to.0 as *mut u8, *bytes) };
                }
            }
        }
        Ok(())
    }
}
