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
mod stream;

use std::{
    collections::{BTreeSet, HashMap},
    ffi::c_void,
    sync::{Arc, Mutex, MutexGuard, Once, PoisonError, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};

use volley_kernels::{
    DeviceMemory, Error,
    cuda::{Address, Device, Event, Graph, Launch, Properties, TensorMap, Tile},
};

use stream::{Download, Queue, Recorded, Stream, TwinEvent, TwinGraph};

/// The order in which a block's threads (and a grid's blocks) run, and when asynchronous work is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Schedule {
    /// Who is next.
    pub order: Order,
    /// Copies land when they are issued, the tensor cores multiply as late as they may, and a dependent launch starts
    /// before the one before it. Otherwise all of it the other way around: nothing is done before somebody waits, and then
    /// all that was started, copies beside it last.
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
    recording: Mutex<Option<Vec<Recorded>>>,
    makes_graphs: bool,
    on_paper: Option<Duration>,
    stream: Arc<Stream>,
    memory: Mutex<Room>,
}

/// The twin's memory.
struct Room {
    total: usize,
    /// Bytes of each allocation, by its address.
    taken: HashMap<u64, usize>,
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
            recording: Mutex::default(),
            makes_graphs: true,
            on_paper: None,
            stream: Arc::new(Stream::new(schedule)),
            memory: Mutex::new(Room { total: 80 << 30, taken: HashMap::new() }),
        }
    }

    /// From now on nothing works, as after a fault on a GPU.
    pub fn break_down(&self) {
        self.stream.broken.store(true, Relaxed);
    }

    /// From now on nothing ends, as behind a kernel that waits for what never comes.
    pub fn hang(&self) {
        *lock(&self.stream.hung) = true;
    }

    /// What it waited for has come.
    pub fn go_on(&self) {
        *lock(&self.stream.hung) = false;
        self.stream.goes_on.notify_all();
    }

    /// Waits, a minute at most, until a kernel was started so often, be it done or not.
    pub fn has_started(&self, kernel: &str, times: usize) -> bool {
        let fewer = |queue: &mut Queue| queue.started.get(kernel).is_none_or(|started| *started < times);
        let (queue, minute) = (lock(&self.stream.queue), Duration::from_secs(60));
        self.stream.news.wait_timeout_while(queue, minute, fewer).is_ok_and(|(_, late)| !late.timed_out())
    }

    /// Graphs that were launched.
    pub fn graphs(&self) -> usize {
        lock(&self.stream.queue).graphs
    }

    /// Which fails to make a graph of what it has recorded.
    pub fn without_graphs(self) -> Self {
        Self { makes_graphs: false, ..self }
    }

    /// Which runs no kernel, and is done with all it has when a thread has slept for so long: what is left is what the
    /// host does. Its memory is all 0.
    pub fn on_paper(self, step: Duration) -> Self {
        Self { on_paper: Some(step), ..self }
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
        let mut names: Vec<_> = stream::entries().keys().copied().collect();
        names.sort_unstable();
        names
    }

    /// The names of the kernels that this twin was asked to launch.
    pub fn launched(&self) -> BTreeSet<&'static str> {
        lock(&self.stream.queue).started.keys().copied().collect()
    }

    /// Adds to the graph being recorded, if one is; else to the work.
    ///
    /// # Safety
    /// As for [`Device::launch`] and [`Device::copy`].
    unsafe fn start(&self, what: Recorded) -> Result<(), Error> {
        if let Some(recording) = lock(&self.recording).as_mut() {
            recording.push(what);
            return Ok(());
        }
        if self.on_paper.is_some() && matches!(what, Recorded::Launch(_)) {
            return Ok(());
        }
        // SAFETY: the caller's promise.
        unsafe { self.stream.start(what) }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
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
        if self.on_paper.is_some() {
            // SAFETY: so many bytes were allocated.
            unsafe { address.cast::<u8>().write_bytes(0, bytes) };
        }
        lock(&self.memory).taken.insert(address as u64, bytes);
        Ok(Address(address as u64))
    }

    unsafe fn free(&self, address: Address) {
        let finished = self.stream.finish();
        assert!(finished.is_ok() || std::thread::panicking(), "{finished:?}");
        lock(&self.memory).taken.remove(&address.0);
        // SAFETY: the caller's promise.
        let result = unsafe { ffi::twin_free(address.0 as *mut c_void) };
        // Never while a test already fails: a second panic would hide the first.
        assert!(result == 0 || std::thread::panicking(), "a kernel wrote just outside an allocation");
    }

    unsafe fn write(&self, to: Address, bytes: &[u8]) -> Result<(), Error> {
        self.stream.finish()?;
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
        unsafe { self.start(Recorded::Copy { to, from, bytes: bytes.len() }) }
    }

    unsafe fn download(&self, to: &mut [u8], from: Address) -> Result<Arc<dyn Event>, Error> {
        self.stream.works()?;
        let step = self.on_paper.unwrap_or_default();
        let to_address = Address(to.as_mut_ptr() as u64);
        let download = Arc::new(Download { to: to_address, from, bytes: to.len(), step, done: Once::new() });
        lock(&self.stream.queue).downloads.push(download.clone());
        if self.stream.schedule.early {
            self.stream.finish()?;
        }
        Ok(Arc::new(TwinEvent { stream: self.stream.clone(), download: Some(download) }))
    }

    fn mark(&self) -> Result<Arc<dyn Event>, Error> {
        self.stream.works()?;
        Ok(Arc::new(TwinEvent { stream: self.stream.clone(), download: None }))
    }

    fn memory(&self) -> Result<DeviceMemory, Error> {
        let room = lock(&self.memory);
        let taken: usize = room.taken.values().sum();
        Ok(DeviceMemory { free: room.total.saturating_sub(taken), total: room.total })
    }

    unsafe fn read(&self, from: Address, bytes: &mut [u8]) -> Result<(), Error> {
        self.stream.finish()?;
        // SAFETY: the caller's promise.
        unsafe { std::ptr::copy_nonoverlapping(from.0 as *const u8, bytes.as_mut_ptr(), bytes.len()) };
        Ok(())
    }

    unsafe fn copy(&self, to: Address, from: Address, bytes: usize) -> Result<(), Error> {
        // SAFETY: the caller's promise.
        unsafe { self.start(Recorded::Copy { to, from, bytes }) }
    }

    unsafe fn launch(&self, launch: &Launch<'_>) -> Result<(), Error> {
        // SAFETY: the caller's promise.
        unsafe { self.start(Recorded::launch(launch, false)) }
    }

    unsafe fn launch_dependent(&self, launch: &Launch<'_>) -> Result<(), Error> {
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
        self.stream.finish()
    }

    fn capture(&self, work: &mut dyn FnMut() -> Result<(), Error>) -> Result<Box<dyn Graph>, Error> {
        let set = |value| std::mem::replace(&mut *lock(&self.recording), value);
        set(Some(Vec::new()));
        let worked = work();
        let recorded = set(None).unwrap_or_default();
        worked?;
        if !self.makes_graphs {
            return Err(Error::Memory { bytes: recorded.len(), what: "graphs" });
        }
        let recorded = if self.on_paper.is_some() { Vec::new() } else { recorded };
        Ok(Box::new(TwinGraph { stream: self.stream.clone(), recorded }))
    }

    fn time(&self, work: &mut dyn FnMut() -> Result<(), Error>) -> Result<Duration, Error> {
        self.stream.finish()?;
        let start = Instant::now();
        work()?;
        self.stream.finish()?;
        Ok(start.elapsed())
    }
}
