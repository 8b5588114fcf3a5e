//! Notices a step that does not end: a kernel that hangs can be ended with its process only.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::{MissedTickBehavior, interval};
use volley_proto::v1::StepPlan;

use super::Epoch;

/// A step is looked at so often before it counts as hung. So the time in which the whole process stood still, which is
/// one look, does not count.
const LOOKS: u32 = 8;

/// A step that is under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Running {
    pub(crate) epoch: Epoch,
    pub(crate) step_id: u64,
    /// Tokens it was to run.
    pub(crate) rows: u32,
    pub(crate) sequences: usize,
}

/// What the step thread is at, for whoever watches it.
#[derive(Clone, Default)]
pub(crate) struct Watch(Arc<Mutex<Option<Running>>>);

/// How long one and the same step has been under way.
#[derive(Default)]
struct Patience {
    seen: Option<Running>,
    looks: u32,
}

// === impl Running ===

impl Running {
    /// The step of that plan.
    pub(crate) fn of(epoch: Epoch, plan: &StepPlan) -> Self {
        let rows = plan.run.iter().map(|run| run.tokens + run.drafts).sum();
        Self { epoch, step_id: plan.step_id, rows, sequences: plan.run.len() }
    }
}

// === impl Watch ===

impl Watch {
    /// A step begins.
    pub(crate) fn begin(&self, step: Running) {
        *self.running() = Some(step);
    }

    /// It has ended.
    pub(crate) fn end(&self) {
        *self.running() = None;
    }

    /// Resolves to a step that has been under way for `limit`.
    pub(crate) async fn hung(&self, limit: Duration) -> Running {
        let mut ticks = interval((limit / LOOKS).max(Duration::from_millis(1)));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut patience = Patience::default();
        loop {
            ticks.tick().await;
            let running = *self.running();
            if let Some(hung) = patience.look(running) {
                return hung;
            }
        }
    }

    fn running(&self) -> MutexGuard<'_, Option<Running>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Patience ===

impl Patience {
    /// The step, if it is the one of all the looks before.
    fn look(&mut self, running: Option<Running>) -> Option<Running> {
        if running != self.seen {
            *self = Self { seen: running, looks: 0 };
            return None;
        }
        self.looks += 1;
        running.filter(|_| self.looks >= LOOKS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(connection: u64, step_id: u64) -> Option<Running> {
        Some(Running { epoch: Epoch { claim: 1, connection }, step_id, rows: 3, sequences: 1 })
    }

    #[test]
    fn only_one_and_the_same_step_at_every_look_is_hung() {
        let mut patience = Patience::default();
        // Idle for as long as it likes, then steps, one seen more than once, and as many of another connection.
        for look in (0..20).map(|_| None).chain((0..40).map(|i| step(1, i / 5))).chain([step(2, 7)]) {
            assert_eq!(patience.look(look), None);
        }
        for _ in 1..LOOKS {
            assert_eq!(patience.look(step(2, 7)), None);
        }
        assert_eq!(patience.look(step(2, 7)), step(2, 7));
    }

    #[tokio::test(start_paused = true)]
    async fn a_step_is_hung_when_it_is_under_way_for_the_whole_limit() {
        let (watch, start) = (Watch::default(), tokio::time::Instant::now());
        watch.begin(step(1, 1).unwrap());
        assert_eq!(Some(watch.hung(Duration::from_secs(8)).await), step(1, 1));
        assert_eq!(start.elapsed(), Duration::from_secs(8));
        watch.end();
        let idle = tokio::time::timeout(Duration::from_secs(3600), watch.hung(Duration::from_secs(8))).await;
        assert!(idle.is_err());
    }
}
