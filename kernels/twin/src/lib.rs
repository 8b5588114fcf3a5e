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
    collections::{BTreeMap, BTreeSet, HashMap},
    ffi::{CStr, c_int, c_void},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, Once, OnceLock, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use volley_kernels::{
    DeviceMemory, Error,
    cuda::{Address, Argument, Device, Event, Graph, Launch, Properties, TensorMap, Tile},
};

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

/// Work in its order.
struct Stream {
    schedule: Schedule,
    queue: Mutex<Queue>,
    /// Whoever works has it.
    turn: Mutex<()>,
    broken: AtomicBool,
    hung: Mutex<bool>,
    /// Told when more was started.
    news: Condvar,
    /// Told when it goes on after it hung.
    goes_on: Condvar,
}

/// What is yet to be done.
#[derive(Default)]
struct Queue {
    work: Vec<Recorded>,
    /// How often each kernel was started.
    started: BTreeMap<&'static str, usize>,
    /// How many graphs were.
    graphs: usize,
    /// Copies out of the device's memory, of which nobody has waited for the end.
    downloads: Vec<Arc<Download>>,
    /// What went wrong.
    failed: Option<String>,
}

/// The twin's memory.
struct Room {
    total: usize,
    /// Bytes of each allocation, by its address.
    taken: HashMap<u64, usize>,
}

/// A launch or a copy that is yet to be done.
#[derive(Clone)]
enum Recorded {
    Launch(Started),
    Copy {
        to: Address,
        from: Address,
        bytes: usize,
    },
    /// Waits for a copy beside the work.
    Hold(Arc<Download>),
}

/// A copy beside the work.
struct Download {
    to: Address,
    from: Address,
    bytes: usize,
    /// How long it takes.
    step: Duration,
    done: Once,
}

#[derive(Clone)]
struct Started {
    kernel: &'static str,
    grid: [u32; 3],
    block: [u32; 3],
    shared: usize,
    arguments: Vec<Argument>,
    dependent: bool,
}

struct TwinGraph {
    stream: Arc<Stream>,
    recorded: Vec<Recorded>,
}

struct TwinEvent {
    stream: Arc<Stream>,
    download: Option<Arc<Download>>,
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
            stream: Arc::new(Stream {
                schedule,
                queue: Mutex::default(),
                turn: Mutex::default(),
                broken: AtomicBool::new(false),
                hung: Mutex::default(),
                news: Condvar::new(),
                goes_on: Condvar::new(),
            }),
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
        let mut names: Vec<_> = entries().keys().copied().collect();
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

// === impl Stream ===

impl Stream {
    /// # Safety
    /// As for [`Device::launch`] and [`Device::copy`].
    unsafe fn start(&self, what: Recorded) -> Result<(), Error> {
        self.works()?;
        let (is_launch, is_dependent) = (matches!(what, Recorded::Launch(_)), what.is_dependent());
        // A launch is put off until it is known that no more that depend on it come.
        if self.schedule.early && !is_dependent {
            self.finish()?;
        }
        {
            let mut queue = lock(&self.queue);
            if let Recorded::Launch(launch) = &what {
                *queue.started.entry(launch.kernel).or_default() += 1;
            }
            queue.work.push(what);
        }
        self.news.notify_all();
        if self.schedule.early && !is_launch { self.finish() } else { Ok(()) }
    }

    fn works(&self) -> Result<(), Error> {
        match self.broken.load(Relaxed) {
            true => Err(Error::Device("the twin has broken down".into())),
            false => Ok(()),
        }
    }

    /// Does all that was put off.
    fn finish(&self) -> Result<(), Error> {
        self.run()?;
        let downloads = lock(&self.queue).downloads.clone();
        downloads.iter().for_each(|download| self.copy(download));
        Ok(())
    }

    /// Copies, or waits until another thread has: nobody forgets a copy before it is done.
    fn copy(&self, download: &Arc<Download>) {
        download.run();
        lock(&self.queue).downloads.retain(|other| !Arc::ptr_eq(other, download));
    }

    /// Does all work.
    fn run(&self) -> Result<(), Error> {
        drop(self.goes_on.wait_while(lock(&self.hung), |hung| *hung));
        let _turn = lock(&self.turn);
        let work = std::mem::take(&mut lock(&self.queue).work);
        let is_one =
            |before: &Recorded, next: &Recorded| next.is_dependent() && matches!(before, Recorded::Launch(_));
        // SAFETY: who started it promised that its memory exists, which is not given back before this.
        let done = work.chunk_by(is_one).try_for_each(|chain| unsafe { run_chain(self.schedule, chain) });
        done.inspect_err(|error| lock(&self.queue).failed = Some(error.to_string()))
    }
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
        Recorded::Copy { to, from, bytes } => {
            // SAFETY: the caller's promise.
            unsafe { std::ptr::copy_nonoverlapping(from.0 as *const u8, to.0 as *mut u8, *bytes) };
            Ok(())
        }
        Recorded::Hold(download) => {
            download.run();
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

// === impl TwinGraph ===

impl Graph for TwinGraph {
    unsafe fn launch(&self) -> Result<(), Error> {
        lock(&self.stream.queue).graphs += 1;
        // SAFETY: the caller's promise.
        self.recorded.iter().try_for_each(|work| unsafe { self.stream.start(work.clone()) })
    }
}

// === impl TwinEvent ===

impl Event for TwinEvent {
    fn wait(&self) -> Result<(), Error> {
        self.stream.run()?;
        self.stream.works()?;
        self.download.iter().for_each(|download| self.stream.copy(download));
        lock(&self.stream.queue).failed.clone().map_or(Ok(()), |failed| Err(Error::Device(failed)))
    }

    fn hold(&self) -> Result<(), Error> {
        match &self.download {
            // SAFETY: nothing but the copy, whose memory exists until somebody has waited for it.
            Some(download) => unsafe { self.stream.start(Recorded::Hold(download.clone())) },
            None => Ok(()), // there is one stream of work
        }
    }
}

// === impl Download ===

impl Download {
    fn run(&self) {
        // SAFETY: both places exist until somebody has waited for this, or for all work.
        self.done.call_once(|| unsafe {
            std::thread::sleep(self.step);
            std::ptr::copy_nonoverlapping(self.from.0 as *const u8, self.to.0 as *mut u8, self.bytes);
        });
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
