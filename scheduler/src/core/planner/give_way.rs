//! A place for a tenant that has hardly any, while another has all of them.
//!
//! The queue's order alone would let a newcomer wait until a place becomes free, which is as long as the
//! sequences are that a flood has filled the worker with. So a place is given up for one that is new: by a
//! lower priority, or by a tenant that has had more service and holds at least two places more. A sequence
//! gives way once at most, and only if the account affords to compute it again.

use std::{cell::LazyCell, cmp::Ordering};

use super::{Planner, Running, State};
use crate::core::{sequence::Spec, types::Rank};

impl Planner {
    /// Sees to a place for whoever is next, if somebody owes one.
    pub(super) fn give_way(&mut self) {
        let Some(victim) = self.debtor() else { return };
        if let Some(running) = self.running.get_mut(&victim) {
            running.state = State::Yielding;
            (running.sequence.yielded, running.sequence.lines_up) = (true, true);
            self.totals.preemptions += 1;
            self.settle(victim);
        }
    }

    /// Of those that owe a place to the first that waits, the one with the lowest priority that is cheapest to
    /// recompute. Nobody does while blocks are about to become free that it waits for. Never the first in rank.
    fn debtor(&self) -> Option<Rank> {
        let first = self.waiting.first()?;
        let new = first.reached == 0 && first.generated() == 0;
        let coming = |r: &Running| r.state != State::Running;
        let blocks_come = !self.free_slots.is_empty() && self.running.values().any(coming);
        if !new || first.suspected() || self.admissible(first) || blocks_come {
            return None;
        }
        // Who has how many is only asked where there are others.
        let (spec, places) = (&first.spec, LazyCell::new(|| self.places()));
        let unequal = |theirs: &Spec| {
            let more = || theirs.tenant != spec.tenant && places.of(theirs) >= places.of(spec) + 2;
            more() && self.waiting.better_served(theirs, spec)
        };
        let of_one_tenant = self.of_one_tenant();
        let owes = |rank: &Rank, r: &Running| {
            let able = r.state == State::Running && !r.sequence.yielded && self.account.affords(r.scheduled);
            able && match rank.priority().cmp(&spec.priority) {
                Ordering::Less => true,
                Ordering::Equal => !of_one_tenant && unequal(&r.sequence.spec),
                Ordering::Greater => false,
            }
        };
        let running = self.running.iter().skip(1).filter(|(rank, r)| owes(rank, r));
        running.min_by_key(|(rank, r)| (rank.priority(), r.scheduled)).map(|(&rank, _)| rank)
    }
}
