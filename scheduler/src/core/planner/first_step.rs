//! A newcomer's first step, where another tenant has most of the places.
//!
//! A worker that is full of one tenant's sequences takes long steps, in which their prompts and decodes come first.
//! Somebody else's newcomer would wait for some of these and then share one. So its prompt gets the next
//! step that is written to itself, a short one: its first token comes soon after the steps in flight. Those
//! that it passes lose that short step, and never two in a row: at least every other step is everybody's.

use std::collections::HashMap;

use super::{
    Planner, Running,
    plan::{Draft, PROMPT_SHARE_BESIDE_DECODES},
};
use crate::core::{sequence::Spec, types::Rank};

/// Of the places, one tenant has so many times as many as the newcomer's: it is outnumbered.
const OUTNUMBERED: usize = 4;

/// How many places each tenant has, at a priority.
pub(super) struct Places<'a>(HashMap<(&'a str, i32), usize>);

// === impl Planner ===

impl Planner {
    /// Runs the prompts of outnumbered newcomers, and nothing else. Whether there are any.
    pub(super) fn run_newcomers(&mut self, draft: &mut Draft) -> bool {
        if std::mem::take(&mut self.newcomers_ran) || self.of_one_tenant() {
            return false;
        }
        while self.waiting.first().is_some_and(|first| {
            first.generated() == 0 && !first.suspected() && self.places().outnumber(&first.spec, 1)
        }) {
            self.give_way();
            if self.admit().is_none() {
                break;
            }
        }
        let share = (self.limits.batch_tokens / PROMPT_SHARE_BESIDE_DECODES).max(1);
        let new =
            |r: &Running| !r.begun && r.runs() && r.sequence.generated() == 0 && !r.sequence.suspected();
        let mut newcomers: Vec<Rank> = Vec::new();
        if self.running.values().any(new) {
            let places = self.places();
            let running = self.running.iter().filter(|(_, r)| new(r));
            newcomers.extend(
                running.filter(|(_, r)| places.outnumber(&r.sequence.spec, 0)).map(|(&rank, _)| rank),
            );
        }
        for rank in newcomers {
            self.run(rank, share - draft.rows, 0, draft);
        }
        self.newcomers_ran = draft.rows > 0;
        self.newcomers_ran
    }

    /// Whether all that run are of one tenant, and so is who is next: as it mostly is.
    pub(super) fn of_one_tenant(&self) -> bool {
        let mut tenants = self.running.values().map(|r| r.sequence.spec.tenant.as_str());
        let first = self.waiting.first().map(|first| first.spec.tenant.as_str());
        first.or_else(|| tenants.next()).is_none_or(|one| tenants.all(|tenant| tenant == one))
    }

    /// Who has how many places.
    pub(super) fn places(&self) -> Places<'_> {
        let mut places = HashMap::new();
        for running in self.running.values().filter(|r| r.state == super::State::Running) {
            let spec = &running.sequence.spec;
            *places.entry((spec.tenant.as_str(), spec.priority)).or_default() += 1;
        }
        Places(places)
    }
}

// === impl Places ===

impl Places<'_> {
    /// The places of a tenant at a priority.
    pub(super) fn of(&self, spec: &Spec) -> usize {
        self.0.get(&(spec.tenant.as_str(), spec.priority)).copied().unwrap_or(0)
    }

    /// Whether another tenant has many times the places that `spec`'s has with `more`, at no higher priority.
    fn outnumber(&self, spec: &Spec, more: usize) -> bool {
        let few = (self.of(spec) + more).max(1);
        let others = self
            .0
            .iter()
            .filter(|((tenant, priority), _)| *tenant != spec.tenant && *priority <= spec.priority);
        others.map(|(_, &places)| places).max().is_some_and(|most| most >= OUTNUMBERED * few)
    }
}
