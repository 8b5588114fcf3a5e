//! A pool of kernel threads: one section of independent tasks at a time, claimed one by one.
//!
//! A decode step is some 150 sections of 10–100 µs each, so a section must begin and end within a microsecond
//! or two: idle threads spin for a while before they sleep. Nobody waits for a thread that has not claimed a
//! task; on a busy machine a thread that lost its core therefore costs little. Kernel threads lower their own
//! priority, so that an async thread which becomes ready takes the core at once.

use std::any::Any;
use std::cell::UnsafeCell;
use std::panic::{self, AssertUnwindSafe};
use std::sync::atomic::{AtomicBool, AtomicIsize, AtomicUsize, Ordering::*};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, TryLockError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::scratch::lock;
use crate::Error;

/// How long an idle thread spins before it sleeps: longer than the serial stretches within a step,
/// shorter than the gap between steps.
const SPIN: Duration = Duration::from_micros(40);

/// Niceness of kernel threads.
const NICE: i32 = 5;

/// Threads that run sections of tasks together with the thread that asks for it.
pub struct Pool {
    shared: Arc<Shared>,
    /// Held for the time of a section.
    running: Mutex<()>,
    workers: Vec<JoinHandle<()>>,
}

struct Shared {
    /// Tasks nobody has claimed yet; below zero after a vain claim.
    unclaimed: AtomicIsize,
    /// Tasks that have not finished.
    unfinished: AtomicUsize,
    /// The section's tasks. Written while nothing is unfinished, read by holders of a claim.
    section: UnsafeCell<Section>,
    /// The first panic of the section.
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    /// Workers that sleep or are about to.
    sleepers: AtomicUsize,
    /// Whether the caller sleeps or is about to.
    caller_sleeps: AtomicBool,
    stopping: AtomicBool,
    sleep: Mutex<()>,
    work: Condvar,
    done: Condvar,
}

#[derive(Clone, Copy)]
struct Section {
    tasks: usize,
    /// Borrowed from the caller, who stays in `run` until the section is finished.
    run: *const (dyn Fn(usize) + Sync),
}

// SAFETY: `section` is the only part that isn't `Sync`; see its comment for who may touch it when.
unsafe impl Sync for Shared {}
// SAFETY: the closure behind the section's pointer is `Sync`, so another thread may call it.
unsafe impl Send for Shared {}

// === impl Pool ===

impl Pool {
    /// Starts `threads - 1` workers: the caller of [`run`](Self::run) is the remaining thread.
    pub fn new(threads: usize) -> Result<Self, Error> {
        let shared = Arc::new(Shared {
            unclaimed: AtomicIsize::new(0),
            unfinished: AtomicUsize::new(0),
            section: UnsafeCell::new(Section { tasks: 0, run: &|_| () }),
            panic: Mutex::new(None),
            sleepers: AtomicUsize::new(0),
            caller_sleeps: AtomicBool::new(false),
            stopping: AtomicBool::new(false),
            sleep: Mutex::new(()),
            work: Condvar::new(),
            done: Condvar::new(),
        });
        // Workers join `pool` one by one, so that a failure stops those that have started.
        let mut pool = Self { shared, running: Mutex::new(()), workers: Vec::new() };
        for i in 1..threads {
            let shared = pool.shared.clone();
            let worker = thread::Builder::new().name(format!("kernel-{i}")).spawn(move || {
                lower_priority();
                shared.work();
            });
            let problem = |e| Error::Unsupported(format!("cannot start kernel thread {i}: {e}"));
            pool.workers.push(worker.map_err(problem)?);
        }
        Ok(pool)
    }

    /// Threads that share a section, the caller's among them.
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Calls `task(i)` once for each `i < tasks`, on any thread, and returns when all have returned.
    ///
    /// A panic in a task goes on here once the others are done. Within a task, or while another thread is in
    /// `run`, the caller does all of the work itself.
    pub fn run(&self, tasks: usize, task: &(dyn Fn(usize) + Sync)) {
        let alone = tasks <= 1 || self.workers.is_empty();
        let guard = if alone { None } else { self.begin() };
        if guard.is_none() {
            (0..tasks).for_each(task);
            return;
        }
        self.shared.publish(tasks, task);
        while self.shared.run_one() {}
        self.shared.wait();
        let panic = lock(&self.shared.panic).take();
        drop(guard);
        if let Some(panic) = panic {
            panic::resume_unwind(panic);
        }
    }

    fn begin(&self) -> Option<MutexGuard<'_, ()>> {
        match self.running.try_lock() {
            Ok(guard) => Some(guard),
            Err(TryLockError::Poisoned(guard)) => Some(guard.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stopping.store(true, SeqCst);
        drop(lock(&self.shared.sleep));
        self.shared.work.notify_all();
        for worker in self.workers.drain(..) {
            // A worker's panics are caught and handed to the caller, so there is none left to report.
            let _ = worker.join();
        }
    }
}

// === impl Shared ===

impl Shared {
    /// Opens a section. The caller holds `running` and stays until `wait` has returned.
    fn publish(&self, tasks: usize, task: &(dyn Fn(usize) + Sync)) {
        type Task<'a> = *const (dyn Fn(usize) + Sync + 'a);
        // SAFETY: only the lifetime changes; the pointer is used by claims alone, which `wait` outlives.
        let run = unsafe { std::mem::transmute::<Task<'_>, Task<'static>>(task) };
        // SAFETY: the last section is finished and `unclaimed` is not above zero: nobody holds a claim.
        unsafe { *self.section.get() = Section { tasks, run } };
        self.unfinished.store(tasks, Relaxed);
        self.unclaimed.store(tasks as isize, SeqCst);
        // Either a worker on its way to sleep sees the tasks, or it is counted here.
        let wake = self.sleepers.load(SeqCst).min(tasks - 1);
        if wake > 0 {
            drop(lock(&self.sleep));
            (0..wake).for_each(|_| self.work.notify_one());
        }
    }

    /// Claims and runs a task; false if none is left.
    fn run_one(&self) -> bool {
        // The look before the claim keeps idle threads off the counter.
        if self.unclaimed.load(Relaxed) <= 0 {
            return false;
        }
        let left = self.unclaimed.fetch_sub(1, Acquire);
        if left <= 0 {
            return false;
        }
        // SAFETY: this thread holds a claim, so the section stays until `unfinished` is counted down below.
        let section = unsafe { *self.section.get() };
        // SAFETY: likewise for the closure, which the caller of `run` keeps borrowed.
        let run = unsafe { &*section.run };
        let index = section.tasks - left as usize;
        if let Err(panic) = panic::catch_unwind(AssertUnwindSafe(|| run(index))) {
            lock(&self.panic).get_or_insert(panic);
        }
        if self.unfinished.fetch_sub(1, SeqCst) == 1 && self.caller_sleeps.load(SeqCst) {
            drop(lock(&self.sleep));
            self.done.notify_one();
        }
        true
    }

    /// Waits until the section's last task has returned.
    fn wait(&self) {
        let finished = || self.unfinished.load(SeqCst) == 0;
        if spin_until(finished) {
            return;
        }
        self.caller_sleeps.store(true, SeqCst);
        let mut guard = lock(&self.sleep);
        while !finished() {
            guard = self.done.wait(guard).unwrap_or_else(PoisonError::into_inner);
        }
        self.caller_sleeps.store(false, SeqCst);
    }

    /// A worker's life.
    fn work(&self) {
        let ready = || self.unclaimed.load(SeqCst) > 0 || self.stopping.load(SeqCst);
        while !self.stopping.load(SeqCst) {
            while self.run_one() {}
            if spin_until(ready) {
                continue;
            }
            self.sleepers.fetch_add(1, SeqCst);
            let mut guard = lock(&self.sleep);
            while !ready() {
                guard = self.work.wait(guard).unwrap_or_else(PoisonError::into_inner);
            }
            drop(guard);
            self.sleepers.fetch_sub(1, SeqCst);
        }
    }
}

/// Gives way to other threads: whichever becomes ready takes the core from this one (Linux; best effort).
///
/// Kernel threads do so by themselves; the thread that calls [`Pool::run`] should too.
pub fn lower_priority() {
    #[cfg(target_os = "linux")]
    // SAFETY: plain system calls. On Linux a priority belongs to a thread, and 0 names the calling one.
    unsafe {
        libc::setpriority(libc::PRIO_PROCESS, 0, NICE);
    }
}

/// Spins for at most [`SPIN`]; whether `condition` came true.
fn spin_until(condition: impl Fn() -> bool) -> bool {
    let start = Instant::now();
    loop {
        for _ in 0..32 {
            if condition() {
                return true;
            }
            std::hint::spin_loop();
        }
        if start.elapsed() > SPIN {
            return false;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::sync::Barrier;

    use super::*;

    #[test]
    fn each_task_runs_once() {
        for threads in [1, 2, 3, 7] {
            let pool = Pool::new(threads).unwrap();
            for tasks in [0, 1, 2, 3, 64, 1000] {
                let runs: Vec<AtomicUsize> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
                pool.run(tasks, &|i| {
                    runs[i].fetch_add(1, Relaxed);
                });
                assert!(runs.iter().all(|n| n.load(Relaxed) == 1), "{threads} threads, {tasks} tasks");
            }
        }
    }

    #[test]
    fn many_tiny_sections_in_a_row_lose_no_task() {
        let pool = Pool::new(3).unwrap();
        let sum = AtomicUsize::new(0);
        for section in 0..100_000 {
            let tasks = section % 7;
            pool.run(tasks, &|i| {
                sum.fetch_add(i + 1, Relaxed);
            });
        }
        let expected: usize = (0..100_000).map(|section| (1..=section % 7).sum::<usize>()).sum();
        assert_eq!(sum.into_inner(), expected);
    }

    #[test]
    fn sleeping_threads_wake_for_a_section() {
        let pool = Pool::new(3).unwrap();
        while pool.shared.sleepers.load(SeqCst) < 2 {
            thread::yield_now();
        }
        // The tasks wait for each other: only three threads can finish them.
        let barrier = Barrier::new(3);
        let threads = Mutex::new(HashSet::new());
        pool.run(3, &|_| {
            barrier.wait();
            lock(&threads).insert(thread::current().id());
        });
        assert_eq!(lock(&threads).len(), 3);
    }

    #[test]
    fn a_panic_reaches_the_caller_after_the_other_tasks() {
        for threads in [2, 4] {
            let pool = Pool::new(threads).unwrap();
            for _ in 0..200 {
                let finished = AtomicUsize::new(0);
                let run = || {
                    pool.run(16, &|i| {
                        if i % 5 == 3 {
                            panic::resume_unwind(Box::new("broken"));
                        }
                        finished.fetch_add(1, Relaxed);
                    });
                };
                let payload = panic::catch_unwind(AssertUnwindSafe(run)).unwrap_err();
                assert_eq!(*payload.downcast::<&str>().unwrap(), "broken");
                assert_eq!(finished.into_inner(), 13);
            }
        }
    }

    #[test]
    fn a_section_within_a_task_or_beside_another_still_runs() {
        let pool = Pool::new(3).unwrap();
        let count = AtomicUsize::new(0);
        let nested = || {
            for _ in 0..100 {
                pool.run(4, &|_| {
                    pool.run(4, &|_| {
                        count.fetch_add(1, Relaxed);
                    });
                });
            }
        };
        thread::scope(|scope| {
            scope.spawn(nested);
            scope.spawn(nested);
        });
        assert_eq!(count.into_inner(), 2 * 100 * 16);
    }
}
