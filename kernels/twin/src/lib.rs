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
    ffi::{CStr, c_int, c_void},
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use volley_kernels::{
    DeviceMemory, Error,
    cuda::{Address, Argument, Device, Graph, Launch, Properties, TensorMap, Tile},
};

/// The order in which a block's threads (and a grid's blocks) run, and when asynchronous work is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Schedule {
    /// Who is next.
    pub order: Order,
    /// Copies land when they are issued, the tensor cores multiply as late as they may, and a dependent launch starts
    /// before the one before it. Otherwise all of it the other way around.
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
    /// A launch and the dependent ones behind it, put off until it is known that no more of them come.
    chain: Arc<Mutex<Vec<Recorded>>>,
    launched: Mutex<BTreeSet<&'static str>>,
    memory: Mutex<Room>,
    broken: AtomicBool,
    hung: AtomicBool,
}

/// The twin's memory.
struct Room {
    total: usize,
    /// Bytes of each allocation, by its address.
    taken: HashMap<u64, usize>,
}

/// A launch or a copy that is yet to be done.
enum Recorded {
    Launch(Started),
    Copy { to: Address, from: Address, bytes: usize },
    Upload { to: Address, from: Address, bytes: usize },
}

struct Started {
    kernel: &'static str,
    grid: [u32; 3],
    block: [u32; 3],
    shared: usize,
    arguments: Vec<Argument>,
    dependent: bool,
}

struct TwinGraph {
    schedule: Schedule,
    chain: Arc<Mutex<Vec<Recorded>>>,
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
        Self {
            properties,
            schedule,
            recording: Mutex::default(),
            chain: Arc::default(),
            launched: Mutex::default(),
            memory: Mutex::new(Room { total: 80 << 30, taken: HashMap::new() }),
            broken: AtomicBool::new(false),
            hung: AtomicBool::new(false),
        }
    }

    /// From now on nothing works, as after a fault on a GPU.
    pub fn break_down(&self) {
        self.broken.store(true, Relaxed);
    }

    /// From now on nothing ends, as behind a kernel that waits for what never comes.
    pub fn hang(&self) {
        self.hung.store(true, Relaxed);
    }

    /// With so many bytes of memory, to see what happens when it is full.
    pub fn with_memory(self, total: usize) -> Self {
        lock(&self.memory).total = total;
        self
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

    /// Adds to the graph being recorded, if one is; else it is done, or a launch put off.
    ///
    /// # Safety
    /// As for [`Device::launch`] and [`Device::copy`].
    unsafe fn start(&self, what: Recorded) -> Result<(), Error> {
        if self.broken.load(Relaxed) {
            return Err(Error::Device("the twin has broken down".into()));
        }
        if let Some(recording) = lock(&self.recording).as_mut() {
            recording.push(what);
            return Ok(());
        }
        // Only launches are overtaken. Uploads may be late, and then see what the host did in the meantime.
        let is_upload = |what: &Recorded| matches!(what, Recorded::Upload { .. });
        let waits_too = is_upload(&what) && lock(&self.chain).iter().all(is_upload);
        if !what.is_dependent() && !waits_too {
            self.finish()?;
        }
        let now = match what {
            Recorded::Launch(_) => false,
            Recorded::Copy { .. } => true,
            Recorded::Upload { .. } => self.schedule.early,
        };
        lock(&self.chain).push(what);
        if now { self.finish() } else { Ok(()) }
    }

    fn finish(&self) -> Result<(), Error> {
        while self.hung.load(Relaxed) {
            std::thread::park();
        }
        finish(self.schedule, &self.chain)
    }
}

/// Does what was put off.
fn finish(schedule: Schedule, chain: &Mutex<Vec<Recorded>>) -> Result<(), Error> {
    let chain = std::mem::take(&mut *lock(chain));
    // SAFETY: who started it promised that its memory exists, which is not given back before this.
    unsafe { run_chain(schedule, &chain) }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
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

/// Runs something and what depends on it, each on the one before. Under early schedules a dependent launch starts first,
/// and the one before it runs when the dependent one waits for it.
///
/// # Safety
/// As for [`Device::launch`] and [`Device::copy`].
unsafe fn run_chain(schedule: Schedule, chain: &[Recorded]) -> Result<(), Error> {
    let Some((last, before)) = chain.split_last() else { return Ok(()) };
    let mut before = Before { schedule, chain: before, result: Ok(()) };
    if !schedule.early || !last.is_dependent() {
        before.run();
        std::mem::replace(&mut before.result, Ok(()))?;
    }
    let ran = match last {
        // SAFETY: the caller's promise.
        Recorded::Launch(launch) => unsafe { run(schedule, launch, &mut before) },
        Recorded::Copy { to, from, bytes } | Recorded::Upload { to, from, bytes } => {
            // SAFETY: the caller's promise.
            unsafe { std::ptr::copy_nonoverlapping(from.0 as *const u8, to.0 as *mut u8, *bytes) };
            Ok(())
        }
    };
    before.result.and(ran)
}

/// What a dependent launch waits for; empty once it has run.
struct Before<'a> {
    schedule: Schedule,
    chain: &'a [Recorded],
    result: Result<(), Error>,
}

impl Before<'_> {
    fn run(&mut self) {
        let chain = std::mem::take(&mut self.chain);
        // SAFETY: the promise that `run_chain`'s caller gave.
        self.result = unsafe { run_chain(self.schedule, chain) };
    }
}

/// Called from a kernel's thread, on its small stack.
unsafe extern "C" fn run_before(before: *mut c_void) -> c_int {
    // SAFETY: what `run` handed over, borrowed for as long as the launch goes on.
    let before = unsafe { &mut *before.cast::<Before<'_>>() };
    // The runtime's state is the thread's: another launch needs another thread.
    std::thread::scope(|scope| scope.spawn(|| before.run()).join().is_err()).into()
}

/// # Safety
/// As for [`Device::launch`].
unsafe fn run(schedule: Schedule, launch: &Started, before: &mut Before<'_>) -> Result<(), Error> {
    let entry = entries()
        .get(launch.kernel)
        .ok_or_else(|| Error::Unsupported(format!("there is no kernel {}", launch.kernel)))?;
    // SAFETY: a constant string of the entry's.
    let wanted = unsafe { CStr::from_ptr(entry.signature) }.to_string_lossy();
    let given = signature(&launch.arguments);
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
            launch.dependent.into(),
            if before.chain.is_empty() { None } else { Some(run_before) },
            std::ptr::from_mut(before).cast(),
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
        let full = Error::Memory { bytes, what: "the twin's memory" };
        if bytes > self.memory()?.free {
            return Err(full);
        }
        // SAFETY: always safe; null when there is no memory.
        let address = unsafe { ffi::twin_alloc(bytes) };
        if address.is_null() {
            return Err(full);
        }
        lock(&self.memory).taken.insert(address as u64, bytes);
        Ok(Address(address as u64))
    }

    unsafe fn free(&self, address: Address) {
        let finished = self.finish();
        assert!(finished.is_ok() || std::thread::panicking(), "{finished:?}");
        lock(&self.memory).taken.remove(&address.0);
        // SAFETY: the caller's promise.
        let result = unsafe { ffi::twin_free(address.0 as *mut c_void) };
        // Never while a test already fails: a second panic would hide the first.
        assert!(result == 0 || std::thread::panicking(), "a kernel wrote just outside an allocation");
    }

    unsafe fn write(&self, to: Address, bytes: &[u8]) -> Result<(), Error> {
        self.finish()?;
        // SAFETY: the caller's promise.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to.0 as *mut u8, bytes.len()) };
        Ok(())
    }

    fn allocate_host(&self, bytes: usize) -> Result<*mut u8, Error> {
        // SAFETY: always safe; null when there is no memory.
        let pointer: *mut u8 = unsafe { ffi::twin_alloc(bytes) }.cast();
        if pointer.is_null() {
            return Err(Error::Memory { bytes, what: "the twin's host memory" });
        }
        // SAFETY: so many bytes were allocated.
        unsafe { pointer.write_bytes(0, bytes) };
        Ok(pointer)
    }

    unsafe fn free_host(&self, pointer: *mut u8) {
        // SAFETY: the caller's promise.
        let result = unsafe { ffi::twin_free(pointer.cast()) };
        assert!(result == 0 || std::thread::panicking(), "someone wrote just outside of host memory");
    }

    unsafe fn upload(&self, to: Address, bytes: &[u8]) -> Result<(), Error> {
        let from = Address(bytes.as_ptr() as u64);
        // SAFETY: the caller's promise.
        unsafe { self.start(Recorded::Upload { to, from, bytes: bytes.len() }) }
    }

    fn memory(&self) -> Result<DeviceMemory, Error> {
        let room = lock(&self.memory);
        let taken: usize = room.taken.values().sum();
        Ok(DeviceMemory { free: room.total.saturating_sub(taken), total: room.total })
    }

    unsafe fn read(&self, from: Address, bytes: &mut [u8]) -> Result<(), Error> {
        self.finish()?;
        // SAFETY: the caller's promise.
        unsafe { std::ptr::copy_nonoverlapping(from.0 as *const u8, bytes.as_mut_ptr(), bytes.len()) };
        Ok(())
    }

    unsafe fn copy(&self, to: Address, from: Address, bytes: usize) -> Result<(), Error> {
        // SAFETY: the caller's promise.
        unsafe { self.start(Recorded::Copy { to, from, bytes }) }
    }

    unsafe fn launch(&self, launch: &Launch<'_>) -> Result<(), Error> {
        lock(&self.launched).insert(launch.kernel);
        // SAFETY: the caller's promise.
        unsafe { self.start(Recorded::launch(launch, false)) }
    }

    unsafe fn launch_dependent(&self, launch: &Launch<'_>) -> Result<(), Error> {
        lock(&self.launched).insert(launch.kernel);
        // SAFETY: the caller's promise.
        unsafe { self.start(Recorded::launch(launch, true)) }
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
        self.finish()
    }

    fn capture(&self, work: &mut dyn FnMut() -> Result<(), Error>) -> Result<Box<dyn Graph>, Error> {
        self.finish()?;
        let set = |value| std::mem::replace(&mut *lock(&self.recording), value);
        set(Some(Vec::new()));
        let worked = work();
        let recorded = set(None).unwrap_or_default();
        worked?;
        Ok(Box::new(TwinGraph { schedule: self.schedule, chain: self.chain.clone(), recorded }))
    }

    fn time(&self, work: &mut dyn FnMut() -> Result<(), Error>) -> Result<Duration, Error> {
        self.finish()?;
        let start = Instant::now();
        work()?;
        self.finish()?;
        Ok(start.elapsed())
    }
}

// === impl TwinGraph ===

impl Graph for TwinGraph {
    unsafe fn launch(&self) -> Result<(), Error> {
        finish(self.schedule, &self.chain)?;
        let mut chains = self
            .recorded
            .chunk_by(|before, next| next.is_dependent() && matches!(before, Recorded::Launch(_)));
        // SAFETY: the caller's promise.
        chains.try_for_each(|chain| unsafe { run_chain(self.schedule, chain) })
    }
}

// === impl Recorded ===

impl Recorded {
    fn launch(launch: &Launch<'_>, dependent: bool) -> Self {
        Self::Launch(Started {
            kernel: launch.kernel,
            grid: launch.grid,
            block: launch.block,
            shared: launch.shared,
            arguments: launch.arguments.to_vec(),
            dependent,
        })
    }

    fn is_dependent(&self) -> bool {
        matches!(self, Self::Launch(Started { dependent: true, .. }))
    }
}
