//! Work on the host that is worth several threads, when weights are loaded.

use std::{
    sync::{Mutex, PoisonError},
    thread,
};

/// Threads at most: copies are bound by memory, not by cores.
const MOST: usize = 16;
/// A thread is worth so many parts.
const LEAST: usize = 4;

/// Does `work` on all parts, on as many threads as the machine has and they are worth.
pub fn share<I>(parts: I, work: impl Fn(I::Item) + Sync)
where
    I: Iterator<Item: Send> + Send,
{
    let cores = thread::available_parallelism().map_or(1, |cores| cores.get()).min(MOST);
    let threads = cores.min(parts.size_hint().0.div_ceil(LEAST)).max(1);
    let parts = Mutex::new(parts);
    let take = || parts.lock().unwrap_or_else(PoisonError::into_inner).next();
    let run = || {
        while let Some(part) = take() {
            work(part);
        }
    };
    thread::scope(|scope| {
        for _ in 1..threads {
            scope.spawn(run);
        }
        run();
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_is_done_once() {
        let mut numbers = vec![0usize; 1000];
        share(numbers.chunks_mut(7).enumerate(), |(part, numbers)| {
            numbers.iter_mut().for_each(|number| *number += part + 1);
        });
        assert!(numbers.iter().enumerate().all(|(i, number)| *number == i / 7 + 1));
        share(std::iter::empty::<()>(), |()| panic!("nothing is to be done"));
    }
}
