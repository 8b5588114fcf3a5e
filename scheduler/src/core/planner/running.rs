//! A sequence that has a slot, the steps that run it, and what their results say about it.

use volley_proto::v1::{self, FinishReason, failure::Reason};

use super::{Table, speculate::Record};
use crate::core::{
    sequence::{Output, Sequence, failure},
    types::{Rank, SlotId, TokenCount, TokenId},
};

/// A sequence in a slot.
#[derive(Debug)]
pub(super) struct Running {
    pub(super) sequence: Sequence,
    pub(super) slot: SlotId,
    pub(super) table: Table,
    /// Whether the worker has heard of it; and if not, whether it waits for what another computes.
    pub(super) started: bool,
    pub(super) waits: bool,
    /// Tokens that have run, here or for whoever left them in the cache, or are in flight: at most, as long as
    /// there are guesses in flight.
    pub(super) scheduled: TokenCount,
    /// Tokens that have run.
    pub(super) computed: TokenCount,
    /// Blocks of the table that can be found; those up to `claimed` will be.
    pub(super) published: usize,
    pub(super) claimed: usize,
    /// Tokens that steps in flight will draw at most.
    pub(super) ahead: TokenCount,
    /// How its guesses went.
    pub(super) record: Record,
    /// Steps in flight that run it.
    pub(super) in_flight: usize,
    /// Whether it has had anything to say.
    pub(super) begun: bool,
    pub(super) state: State,
    /// Whether its slot is free for others already.
    pub(super) left: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    Running,
    /// Preempted; what is in flight still counts.
    Evicting,
    /// The same, for another tenant's sake: it waits for its tenant's turn.
    Yielding,
    /// Over; what is in flight is waste.
    Ended,
}

/// A step in flight.
#[derive(Debug)]
pub(super) struct Step {
    pub(super) id: u64,
    pub(super) runs: Vec<Run>,
}

/// A sequence's part in it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Run {
    pub(super) rank: Rank,
    pub(super) tokens: TokenCount,
    /// Whether it reaches the end of what is known, and draws the next token.
    pub(super) draws: bool,
    /// Tokens that it may guess then, and run beside.
    pub(super) drafts: TokenCount,
}

// === impl Step ===

impl Step {
    /// Its decodes, and its rows of prompts.
    pub(super) fn rows(&self) -> (usize, TokenCount) {
        let (decodes, prompts): (Vec<&Run>, Vec<&Run>) =
            self.runs.iter().partition(|run| run.draws && run.tokens == 1);
        (decodes.len(), prompts.iter().map(|run| run.tokens).sum())
    }
}

// === impl Running ===

impl Running {
    /// Tokens known once the steps in flight are back.
    pub(super) fn expected(&self) -> TokenCount {
        self.sequence.tokens.len() + self.ahead
    }

    /// Tokens that can run. The last token that a sequence draws never does.
    pub(super) fn pending(&self, context: TokenCount) -> TokenCount {
        self.expected().min(self.sequence.kv_tokens(context)) - self.scheduled
    }

    /// Whether it may run.
    pub(super) fn runs(&self) -> bool {
        self.state == State::Running && !self.waits
    }

    /// Whether it runs the token that it drew last.
    pub(super) fn decodes(&self, context: TokenCount) -> bool {
        self.scheduled > 0 && self.pending(context) <= 1
    }

    /// Takes in what a step says about the sequence; the output, if there is anything to tell.
    pub(super) fn take_in(
        &mut self,
        run: Run,
        mut answer: v1::SlotResult,
        context: TokenCount,
    ) -> Option<Output> {
        let broken = |message: String| Some(self.sequence.fail(failure(Reason::Internal, message)));
        if let Some(message) = answer.failure {
            return broken(message);
        }
        if answer.deferred && run.draws {
            // The last row runs again. What a step in flight runs already is that row.
            self.scheduled -= 1;
            self.computed -= 1;
        }
        let (drawn, expected) = (answer.tokens.len(), usize::from(run.draws && !answer.deferred));
        if !(expected..=expected + run.drafts).contains(&drawn) {
            let most = expected + run.drafts;
            return broken(format!("the worker drew {drawn} tokens, not {expected} to {most}"));
        }
        // Guesses that were right have run; the others, and those that weren't made, take no place.
        let accepted = drawn - expected;
        self.scheduled -= run.drafts - accepted;
        self.computed += accepted;
        let mut output = self.sequence.output();
        let mut finish = None;
        for (nth, &token) in answer.tokens.iter().enumerate() {
            finish = self.sequence.push(TokenId(token), context);
            if finish.is_some() {
                // What was drawn after the end is dropped.
                answer.tokens.truncate(nth + 1);
                answer.logprobs.truncate(nth + 1);
                break;
            }
        }
        if !self.sequence.samples(context) && self.computed == self.sequence.tokens.len() {
            finish = Some(FinishReason::Length);
        }
        self.sequence.scored += answer.scored.len();
        self.sequence.mirostat = answer.mirostat.or(self.sequence.mirostat);
        let message = &mut output.message;
        message.tokens = answer.tokens;
        message.logprobs = answer.logprobs;
        message.scored = answer.scored;
        message.embedding = answer.embedding;
        message.mirostat = answer.mirostat;
        message.drafted = answer.drafted;
        message.set_finish(finish.unwrap_or_default());
        let something = finish.is_some()
            || !(message.tokens.is_empty() && message.scored.is_empty() && message.embedding.is_empty());
        if something && !self.sequence.reported {
            self.sequence.reported = true;
            message.cached_tokens = Some(self.sequence.cached.unwrap_or(0) as u32);
        }
        output.begins = something && !std::mem::replace(&mut self.begun, something);
        something.then_some(output)
    }
}
