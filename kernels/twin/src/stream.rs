//! The twin's work in its order: what was started, when it is done, and how a kernel is run.

use std::{
    collections::{BTreeMap, HashMap},
    ffi::{CStr, c_int, c_void},
    sync::{
        Arc, Condvar, Mutex, Once, OnceLock,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use volley_kernels::{
    Error,
    cuda::{Address, Argument, Event, Graph, Launch},
};

use crate::{Schedule, ffi, lock};

/// Work in its order.
pub(crate) struct Stream {
    pub(crate) schedule: Schedule,
    pub(crate) queue: Mutex<Queue>,
    /// Whoever works has it.
    pub(crate) turn: Mutex<()>,
    pub(crate) broken: AtomicBool,
    pub(crate) hung: Mutex<bool>,
    /// Told when more was started.
    pub(crate) news: Condvar,
    /// Told when it goes on after it hung.
    pub(crate) goes_on: Condvar,
}

/// What is yet to be done.
#[derive(Default)]
pub(crate) struct Queue {
    pub(crate) work: Vec<Recorded>,
    /// How often each kernel was started.
    pub(crate) started: BTreeMap<&'static str, usize>,
    /// How many graphs were.
    pub(crate) graphs: usize,
    /// Copies out of the device's memory, of which nobody has waited for the end.
    pub(crate) downloads: Vec<Arc<Download>>,
    /// What went wrong.
    pub(crate) failed: Option<String>,
}

/// A launch or a copy that is yet to be done.
#[derive(Clone)]
pub(crate) enum Recorded {
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
pub(crate) struct Download {
    pub(crate) to: Address,
    pub(crate) from: Address,
    pub(crate) bytes: usize,
    /// How long it takes.
    pub(crate) step: Duration,
    pub(crate) done: Once,
}

#[derive(Clone)]
pub(crate) struct Started {
    pub(crate) kernel: &'static str,
    pub(crate) grid: [u32; 3],
    pub(crate) block: [u32; 3],
    pub(crate) shared: usize,
    pub(crate) arguments: Vec<Argument>,
    pub(crate) dependent: bool,
}

pub(crate) struct TwinGraph {
    pub(crate) stream: Arc<Stream>,
    pub(crate) recorded: Vec<Recorded>,
}

pub(crate) struct TwinEvent {
    pub(crate) stream: Arc<Stream>,
    pub(crate) download: Option<Arc<Download>>,
}

// === impl Stream ===

impl Stream {
    pub(crate) fn new(schedule: Schedule) -> Self {
        Self {
            schedule,
            queue: Mutex::default(),
            turn: Mutex::default(),
            broken: AtomicBool::new(false),
            hung: Mutex::default(),
            news: Condvar::new(),
            goes_on: Condvar::new(),
        }
    }

    /// # Safety
    /// As for [`Device::launch`] and [`Device::copy`].
    pub(crate) unsafe fn start(&self, what: Recorded) -> Result<(), Error> {
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

    pub(crate) fn works(&self) -> Result<(), Error> {
        match self.broken.load(Relaxed) {
            true => Err(Error::Device("the twin has broken down".into())),
            false => Ok(()),
        }
    }

    /// Does all that was put off.
    pub(crate) fn finish(&self) -> Result<(), Error> {
        self.run()?;
        let downloads = lock(&self.queue).downloads.clone();
        downloads.iter().for_each(|download| self.copy(download));
        Ok(())
    }

    /// Copies, or waits until another thread has: nobody forgets a copy before it is done.
    pub(crate) fn copy(&self, download: &Arc<Download>) {
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

/// The kernels that were linked in, by name.
pub(crate) fn entries() -> &'static HashMap<&'static str, ffi::Entry> {
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
    pub(crate) fn launch(launch: &Launch<'_>, dependent: bool) -> Self {
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
