//! Submissions: put together from their chunks, and made into sequences.

use std::{collections::HashMap, sync::Arc, time::Duration};

use volley_proto::v1;

use crate::{
    MAX_DRAFTS,
    core::{
        sequence::{Sequence, Spec},
        types::{LinkId, Millis, SequenceKey, TokenId},
    },
    telemetry,
};

/// Tokens of submissions that aren't complete yet, per link: far above what a router has under way at a time.
const MAX_PARTIAL_TOKENS: usize = 16 << 20;

/// Tokens that a worker may run beyond those that the router has received: two steps, with what they guess.
const AHEAD: usize = 2 * (1 + MAX_DRAFTS);

/// The submissions of a link that are under way.
#[derive(Default)]
pub struct Assembler {
    partial: HashMap<u64, Submission>,
    tokens: usize,
}

/// A router has more under way than it may.
#[derive(Debug, thiserror::Error)]
#[error("more than {MAX_PARTIAL_TOKENS} tokens of incomplete submissions")]
pub struct TooMuch;

/// A whole submission.
pub struct Submission {
    request: u64,
    attempt: u32,
    header: v1::Submission,
    prompt: Vec<u32>,
}

// === impl Assembler ===

impl Assembler {
    /// Adds a chunk; the submission, if this was its last. A chunk without a beginning is dropped.
    pub fn add(&mut self, chunk: v1::Submit) -> Result<Option<Submission>, TooMuch> {
        let v1::Submit { request, attempt, header, prompt, last } = chunk;
        if let Some(header) = header {
            self.forget(request);
            self.partial.insert(request, Submission { request, attempt, header, prompt: Vec::new() });
        }
        let Some(submission) = self.partial.get_mut(&request).filter(|s| s.attempt == attempt) else {
            return Ok(None);
        };
        self.tokens += prompt.len();
        submission.prompt.extend(prompt);
        match last {
            true => Ok(self.forget(request)),
            false if self.tokens > MAX_PARTIAL_TOKENS => Err(TooMuch),
            false => Ok(None),
        }
    }

    /// Drops the submission of a request that was cancelled on the way.
    pub fn forget(&mut self, request: u64) -> Option<Submission> {
        let submission = self.partial.remove(&request)?;
        self.tokens -= submission.prompt.len();
        Some(submission)
    }
}

// === impl Submission ===

impl Submission {
    /// A sequence per choice, of a submission that came `now`. The front numbers them.
    pub fn sequences(self, link: LinkId, now: Millis) -> Vec<Sequence> {
        let Self { request, attempt, header, prompt } = self;
        let spec = Arc::new(spec(&header, now));
        let choices = header.choices.iter();
        choices
            .map(|choice| {
                let key = SequenceKey { link, request, attempt, choice: choice.index };
                let tokens = prompt.iter().chain(&choice.generated).copied().map(TokenId).collect();
                let mut sequence = Sequence::new(key, 0, spec.clone(), tokens, prompt.len());
                sequence.deaths = header.deaths;
                // The router doesn't know what was in flight: it goes as far as a step ahead can.
                sequence.suspect_until = sequence.tokens.len() + AHEAD;
                sequence.mirostat = choice.mirostat;
                // A scheduler had accepted it already.
                sequence.moved |= attempt > 0;
                (sequence.span, sequence.traceparent) = telemetry::sequence_span(&header, choice.index);
                sequence
            })
            .collect()
    }
}

fn spec(header: &v1::Submission, now: Millis) -> Spec {
    Spec {
        request_id: header.request_id.clone(),
        model_hash: header.model_hash.clone(),
        kind: header.kind(),
        sampling: header.sampling.clone().unwrap_or_default(),
        max_tokens: header.max_tokens as usize,
        min_tokens: header.min_tokens as usize,
        stop_tokens: header.stop_tokens.iter().copied().map(TokenId).collect(),
        score: header.score,
        priority: header.priority,
        deadline: header.timeout_ms.map(|timeout| now.after(Duration::from_millis(timeout))),
        adapter: header.adapter.clone(),
        tenant: header.tenant.clone(),
        grammar: header.grammar.clone(),
        cache_salt: header.cache_salt.clone(),
        max_cached: header.max_cached_tokens.map(|max| max as usize),
        session: header.session,
        prediction: header.prediction.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunk(request: u64, header: bool, prompt: &[u32], last: bool) -> v1::Submit {
        let choices =
            vec![v1::Choice { index: 0, generated: vec![9], mirostat: Some(3.5) }, v1::Choice::default()];
        let header =
            header.then(|| v1::Submission { choices, timeout_ms: Some(request), ..Default::default() });
        v1::Submit { request, attempt: 2, header, prompt: prompt.to_vec(), last }
    }

    #[test]
    fn chunks_of_several_submissions_may_alternate() {
        let mut assembler = Assembler::default();
        assert!(assembler.add(chunk(1, true, &[1, 2], false)).unwrap().is_none());
        assert!(assembler.add(chunk(2, true, &[7], false)).unwrap().is_none());
        assert!(assembler.add(chunk(3, false, &[7], true)).unwrap().is_none(), "it has no beginning");
        let first = assembler.add(chunk(1, false, &[3], true)).unwrap().unwrap();
        let sequences = first.sequences(LinkId(5), Millis(70));
        assert_eq!(sequences[1].spec.deadline, Some(Millis(71)));
        assert_eq!(sequences[0].tokens, [1, 2, 3, 9].map(TokenId));
        assert_eq!((sequences[0].prompt_tokens, sequences[0].moved), (3, true));
        assert_eq!((sequences[0].mirostat, sequences[1].mirostat), (Some(3.5), None));
        assert_eq!((sequences[1].tokens.len(), sequences[1].moved), (3, true), "the third attempt");
        assert_eq!(sequences[0].key.attempt, 2);
        assembler.forget(2);
        assert!(assembler.add(chunk(2, false, &[7], true)).unwrap().is_none(), "it was cancelled");
        assert_eq!(assembler.tokens, 0);
    }

    #[test]
    fn submissions_under_way_are_bounded() {
        let mut assembler = Assembler::default();
        let tokens = vec![0; MAX_PARTIAL_TOKENS / 2];
        assert!(assembler.add(chunk(1, true, &tokens, false)).unwrap().is_none());
        assert!(assembler.add(chunk(2, true, &tokens, false)).unwrap().is_none());
        assert!(assembler.add(chunk(3, true, &[1], false)).is_err());
    }
}
