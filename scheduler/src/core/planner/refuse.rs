//! Who isn't taken in: what makes no sense, what can never fit, and what comes while too much waits.

use volley_proto::v1::{self, Kind, failure::Reason};

use super::Planner;
use crate::core::{
    sequence::{Sequence, failure},
    types::TokenCount,
};

// === impl Planner ===

impl Planner {
    /// Why a request is not taken in, if so.
    pub(super) fn refuse(&mut self, request: &[Sequence]) -> Option<v1::Failure> {
        let context = self.limits.context;
        if request.iter().any(|s| s.prompt_tokens == 0 || s.tokens.len() < s.prompt_tokens) {
            return Some(failure(Reason::Internal, "a prompt has at least one token"));
        }
        if request.iter().any(|s| s.spec.kind == Kind::Unspecified) {
            return Some(failure(Reason::Internal, "the request has no kind"));
        }
        if let Some(long) = request.iter().map(|s| s.prompt_tokens).find(|&tokens| tokens > context) {
            let message = format!("the prompt has {long} tokens; the context window has {context}");
            return Some(failure(Reason::TooLarge, message));
        }
        let largest = request.iter().map(|s| s.kv_tokens(context)).max()?;
        let room = self.blocks.capacity(self.blocks.total());
        if largest > room {
            let message = format!("the request may need {largest} tokens of KV cache; there are {room}");
            return Some(failure(Reason::TooLarge, message));
        }
        if request.iter().all(|sequence| sequence.moved) {
            return None;
        }
        let tokens: TokenCount = request.iter().map(|s| s.tokens.len()).sum();
        let waiting = (self.waiting.len() + request.len()).saturating_sub(self.free_slots.len());
        let too_many = waiting.saturating_sub(self.limits.max_waiting);
        let too_long = match self.waiting.is_empty() {
            true => 0,
            false => (self.waiting.tokens() + tokens).saturating_sub(self.limits.max_waiting_tokens),
        };
        if (too_many, too_long) == (0, 0) {
            return None;
        }
        let wait = self.drain.turn_away((request.len(), tokens), (too_many, too_long));
        Some(v1::Failure {
            retry_after_ms: u64::try_from(wait.as_millis()).ok(),
            ..failure(Reason::Overloaded, format!("{} sequences are waiting already", self.waiting.len()))
        })
    }
}
