//! Finding out who kills workers, at the cost of nobody else.
//!
//! A sequence is *present* at a worker's death when a step in flight runs it. What a row computes depends on
//! nothing but the sequence's tokens, so one that kills does so again at the same row: whoever has run past
//! the place where it was when its worker died has not been the reason, and its deaths are forgotten. One that
//! was present at two deaths is suspected, and runs alone until it is past that place: no step in flight has a
//! row of another, while the others keep their slots and blocks. Only a death alone fails it.
//!
//! So a sequence that kills takes two workers and the one that it runs alone on, and the others lose some
//! steps. Every death that is forgotten stands for a token more than before: retries are bounded.

use super::{Draft, Planner, State};
use crate::core::types::Rank;

impl Planner {
    /// Who is to run alone next: it has a place, or would get one at once.
    pub(super) fn suspect(&self) -> Option<Rank> {
        let running = self.running.iter().filter(|(_, r)| r.state == State::Running);
        let running = running.filter(|(_, r)| r.sequence.suspected()).map(|(&rank, _)| rank).next();
        running.or_else(|| {
            let first = self.waiting.first().filter(|first| first.suspected())?;
            self.admissible(first).then(|| first.rank())
        })
    }

    /// Whether a step in flight runs anybody else.
    pub(super) fn others_in_flight(&self, rank: Rank) -> bool {
        self.in_flight.iter().any(|step| step.runs.iter().any(|run| run.rank != rank))
    }

    /// Runs the suspect, and nobody else.
    pub(super) fn run_alone(&mut self, rank: Rank, draft: &mut Draft) {
        if !self.running.contains_key(&rank) {
            self.admit();
        }
        self.run(rank, self.limits.batch_tokens, 0, draft);
    }
}
