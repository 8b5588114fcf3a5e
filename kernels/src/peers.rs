//! A tensor-parallel group: ranks that compute each step together. A rank is a thread with a device and its part of
//! the weights; what ranks tell each other goes through this machine's memory.
//!
//! All ranks exchange in the same order, and read what the others left in the order of ranks. So sums have the same
//! bits on every rank and in every run, whoever comes first. A rank that fails or ends takes the group along: nobody
//! waits for it for ever.

use std::{
    hint,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock,
        atomic::{AtomicU64, AtomicUsize, Ordering::*},
    },
    time::{Duration, Instant},
};

use crate::Error;

/// How long a rank spins before it sleeps: ranks with equal parts come at about the same time.
const SPIN: Duration = Duration::from_micros(50);

/// One rank's end of a group.
pub struct Peers {
    rank: usize,
    /// Exchanges so far.
    turn: AtomicUsize,
    shared: Arc<Shared>,
}

/// What the ranks have in common.
struct Shared {
    meeting: Meeting,
    /// What each rank left: in this exchange, and in the one before, which others may still be reading.
    left: Vec<[RwLock<Vec<f32>>; 2]>,
    /// What each rank counts.
    counts: Vec<AtomicU64>,
}

/// Where all ranks wait for the last.
struct Meeting {
    ranks: usize,
    /// Meetings so far, and one more once the group has failed: what changes when nobody must wait any longer.
    news: AtomicUsize,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    arrived: usize,
    meetings: usize,
    /// The first rank that failed, and why.
    failed: Option<(usize, String)>,
}

// === impl Peers ===

impl Peers {
    /// The ends of a group of so many ranks.
    pub fn group(ranks: usize) -> Vec<Self> {
        let meeting =
            Meeting { ranks, news: AtomicUsize::new(0), state: Mutex::default(), changed: Condvar::new() };
        let shared = Arc::new(Shared {
            meeting,
            left: (0..ranks).map(|_| Default::default()).collect(),
            counts: (0..ranks).map(|_| AtomicU64::new(0)).collect(),
        });
        let rank = |rank| Self { rank, turn: AtomicUsize::new(0), shared: shared.clone() };
        (0..ranks).map(rank).collect()
    }

    /// Which rank this is. The first draws.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// How many there are.
    pub fn ranks(&self) -> usize {
        self.shared.meeting.ranks
    }

    /// Leaves `len` numbers, which `leave` writes, for all ranks, and takes what each left, in the order of ranks.
    ///
    /// # Errors
    /// That of `leave`; or that of the rank that failed.
    pub fn exchange<T>(
        &self,
        len: usize,
        leave: impl FnOnce(&mut [f32]) -> Result<(), Error>,
        take: impl FnOnce(&[&[f32]]) -> T,
    ) -> Result<T, Error> {
        self.check()?;
        let turn = self.turn.fetch_add(1, Relaxed) % 2;
        {
            let mut mine = self.shared.left[self.rank][turn].write().unwrap_or_else(PoisonError::into_inner);
            mine.resize(len, 0.0);
            leave(&mut mine)?;
        }
        self.meet()?;
        let left = self.shared.left.iter();
        let left: Vec<_> =
            left.map(|left| left[turn].read().unwrap_or_else(PoisonError::into_inner)).collect();
        Ok(take(&left.iter().map(|left| &left[..]).collect::<Vec<_>>()))
    }

    /// The least of what the ranks say.
    ///
    /// # Errors
    /// That of the rank that failed.
    pub fn least(&self, count: u64) -> Result<u64, Error> {
        self.shared.counts[self.rank].store(count, Relaxed);
        self.meet()?;
        let least = self.shared.counts.iter().map(|count| count.load(Relaxed)).min();
        self.meet()?; // all have read, before anyone says something else
        Ok(least.unwrap_or(count))
    }

    /// Says that this rank can go on no more: all others get this error.
    pub fn fail(&self, reason: &str) {
        self.shared.meeting.fail(self.rank, reason);
    }

    /// Whether all ranks can go on.
    ///
    /// # Errors
    /// That of the rank that failed.
    pub fn check(&self) -> Result<(), Error> {
        self.shared.meeting.state().check()
    }

    fn meet(&self) -> Result<(), Error> {
        self.shared.meeting.wait()
    }
}

impl Drop for Peers {
    fn drop(&mut self) {
        self.fail("it has ended");
    }
}

// === impl Meeting ===

impl Meeting {
    /// Waits for all ranks, or for one that fails.
    fn wait(&self) -> Result<(), Error> {
        let mut state = self.state();
        state.check()?;
        state.arrived += 1;
        if state.arrived == self.ranks {
            state.arrived = 0;
            state.meetings += 1;
            self.tell(state);
            return Ok(());
        }
        let (meetings, news) = (state.meetings, self.news.load(Acquire));
        drop(state);
        self.spin(news);
        let mut state = self.state();
        // All came, whatever has become of some since.
        while state.meetings == meetings {
            state.check()?;
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        Ok(())
    }

    fn spin(&self, news: usize) {
        let start = Instant::now();
        while start.elapsed() < SPIN {
            for _ in 0..32 {
                if self.news.load(Acquire) != news {
                    return;
                }
                hint::spin_loop();
            }
        }
    }

    fn fail(&self, rank: usize, reason: &str) {
        let mut state = self.state();
        if state.failed.is_none() {
            state.failed = Some((rank, reason.to_owned()));
            self.tell(state);
        }
    }

    fn tell(&self, state: MutexGuard<'_, State>) {
        self.news.fetch_add(1, Release);
        drop(state);
        self.changed.notify_all();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl State ===

impl State {
    fn check(&self) -> Result<(), Error> {
        match &self.failed {
            None => Ok(()),
            Some((rank, reason)) => Err(Error::Peer { rank: *rank, reason: reason.clone() }),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    /// What each rank of a group gives.
    fn run<T: Send>(ranks: usize, rank: impl Fn(Peers) -> T + Sync) -> Vec<T> {
        thread::scope(|scope| {
            let ranks: Vec<_> =
                Peers::group(ranks).into_iter().map(|peers| scope.spawn(|| rank(peers))).collect();
            ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
        })
    }

    #[test]
    fn every_rank_takes_what_all_left_in_the_order_of_ranks() {
        let taken = run(4, |peers| {
            let all = (0..500).map(|turn| {
                let leave = |mine: &mut [f32]| {
                    mine.fill((turn * 10 + peers.rank()) as f32);
                    Ok(())
                };
                // Ranks may leave different amounts: of each as many as its number says.
                peers.exchange(peers.rank(), leave, |all| all.concat()).unwrap()
            });
            all.collect::<Vec<_>>()
        });
        let expected: Vec<Vec<f32>> = (0..500)
            .map(|turn| [1, 2, 2, 3, 3, 3].iter().map(|rank| (turn * 10 + rank) as f32).collect())
            .collect();
        assert_eq!(taken, vec![expected; 4]);
    }

    #[test]
    fn ranks_agree_on_the_least_of_what_they_say() {
        let agreed = run(3, |peers| {
            let rank = peers.rank() as u64;
            [peers.least(1 << (40 + rank)).unwrap(), peers.least(7 - rank).unwrap()]
        });
        assert_eq!(agreed, [[1 << 40, 5]; 3]);
    }

    #[test]
    fn a_rank_that_fails_or_ends_leaves_nobody_waiting() {
        for (fails, expected) in [(true, "rank 1: out of order"), (false, "rank 1: it has ended")] {
            let errors = run(3, |peers| {
                if peers.rank() == 1 {
                    if fails {
                        peers.fail("out of order");
                    }
                    return None;
                }
                let waited = peers.exchange(1, |_| Ok(()), |_| ());
                assert_eq!(waited.is_err(), peers.check().is_err());
                waited.err().map(|error| error.to_string())
            });
            // The third may have ended for the same reason before the first looks; the first failure counts.
            assert_eq!(errors, [Some(expected.to_owned()), None, Some(expected.to_owned())]);
        }
    }

    #[test]
    fn what_all_came_for_is_had_though_one_ends_right_after() {
        for _ in 0..200 {
            let taken = run(2, |peers| {
                let rank = peers.rank() as f32;
                let leave = |mine: &mut [f32]| {
                    mine.fill(rank);
                    Ok(())
                };
                peers.exchange(1, leave, |all| all.concat()).unwrap()
            });
            assert_eq!(taken, [[0.0, 1.0], [0.0, 1.0]]);
        }
    }
}
