//! One sequence in its slot.

use tracing::Span;
use volley_kernels::{BLOCK_TOKENS, BlockId, Draw, Drawn};
use volley_proto::v1::{Kind, NewSequence, Sampling};

use super::{
    Limits,
    guide::{Guide, Guides},
    shaping::{Shaping, cannot_shape},
    trace,
};

/// Everything that the worker keeps about a sequence between steps.
pub(super) struct Sequence {
    kind: Kind,
    /// Known: the prompt, and what was generated.
    tokens: Vec<u32>,
    /// Of these, in the KV cache.
    computed: usize,
    prompt_tokens: usize,
    sampling: Sampling,
    shaping: Shaping,
    choice: u32,
    /// First position to score, and how many alternatives to report.
    score: Option<(usize, u32)>,
    banned: Vec<u32>,
    min_tokens: usize,
    /// Says what may be drawn.
    pub(super) guide: Option<Guide>,
    pub(super) blocks: Vec<BlockId>,
    /// Why it can't run: each run answers with this until the slot is released.
    failure: Option<String>,
    /// Open as long as the slot is taken.
    _span: Span,
}

/// What one run of a sequence asks of the step.
pub(super) struct Run {
    /// Position of the first row.
    pub(super) position: usize,
    pub(super) tokens: Vec<u32>,
    /// Scores of known tokens: row (counted from the run's first) and what to score.
    pub(super) scores: Vec<(usize, Draw)>,
    /// The draw of a new token, from the run's last row.
    pub(super) sample: Option<Draw>,
}

// === impl Sequence ===

impl Sequence {
    /// Takes a sequence in. The error is a plan that contradicts itself; what this worker can't do for a
    /// sequence is the sequence's own failure.
    pub(super) fn admit(mut new: NewSequence, limits: &Limits, guides: &Guides) -> Result<Self, String> {
        let (slot, known) = (new.slot, new.tokens.len());
        let (computed, prompt_tokens) = (new.computed as usize, new.prompt_tokens as usize);
        if computed >= known {
            return Err(format!("slot {slot}: {computed} tokens computed of {known} known; expected fewer"));
        }
        if !(1..=known).contains(&prompt_tokens) {
            return Err(format!(
                "slot {slot}: {prompt_tokens} prompt tokens of {known} known; expected 1 to {known}"
            ));
        }
        let failure = cannot_run(&new, limits);
        let span = trace::sequence(&new);
        let kind = new.kind();
        let grammar = new.grammar.take().filter(|_| kind == Kind::Generate && failure.is_none());
        // Where it stands in its grammar follows from what was generated, here or elsewhere.
        let guide = grammar.map(|grammar| guides.guide(grammar, new.tokens[prompt_tokens..].to_vec()));
        let sampling = new.sampling.take().unwrap_or_default();
        Ok(Self {
            kind,
            shaping: Shaping::new(&new, &sampling),
            tokens: new.tokens,
            computed,
            prompt_tokens,
            sampling,
            choice: new.choice,
            score: new.score.map(|score| (score.from.max(1) as usize, score.alternatives)),
            banned: new.banned,
            min_tokens: new.min_tokens as usize,
            guide,
            blocks: Vec::new(),
            failure,
            _span: span,
        })
    }

    /// Why the sequence can't run, if it can't.
    pub(super) fn failure(&self) -> Option<&str> {
        self.failure.as_deref()
    }

    /// Computes the next `rows` tokens. The error is a plan that contradicts itself.
    pub(super) fn run(&mut self, slot: u32, rows: usize, limits: &Limits) -> Result<Run, String> {
        let known = self.tokens.len();
        let (position, end) = (self.computed, self.computed + rows);
        if rows == 0 || end > known {
            return Err(format!(
                "slot {slot}: run of {rows} tokens at {position}; expected 1 to {}",
                known - position
            ));
        }
        if end > limits.context {
            return Err(format!("slot {slot}: run to token {end} of a context of {}", limits.context));
        }
        if end > self.blocks.len() * BLOCK_TOKENS {
            let have = self.blocks.len();
            return Err(format!(
                "slot {slot}: {have} blocks of {BLOCK_TOKENS} tokens cannot hold {end} tokens"
            ));
        }
        self.computed = end;
        let (first, alternatives) = self.score.unwrap_or((usize::MAX, 0));
        let scores = (position + 1..end + 1)
            .filter(|scored| (first..self.prompt_tokens).contains(scored))
            .map(|scored| {
                (scored - 1 - position, self.score_at(scored, alternatives.min(limits.vocab as u32)))
            })
            .collect();
        let sample = (self.kind == Kind::Generate && end == known).then(|| self.draw_at_end(limits));
        Ok(Run { position, tokens: self.tokens[position..end].to_vec(), scores, sample })
    }

    /// Keeps a drawn token: the next run may start with it.
    pub(super) fn push(&mut self, drawn: &Drawn) {
        self.tokens.push(drawn.token);
        self.shaping.push(drawn);
        if let Some(guide) = &mut self.guide {
            guide.push(drawn.token);
        }
    }

    /// Takes back the last row, from which nothing could be drawn: the next run starts with it.
    pub(super) fn defer(&mut self) {
        self.computed -= 1;
    }

    /// From now on it can't run.
    pub(super) fn fail(&mut self, problem: String) {
        self.failure = Some(problem);
    }

    fn draw_at_end(&self, limits: &Limits) -> Draw {
        let generated = self.tokens.len() - self.prompt_tokens;
        let sampling = &self.sampling;
        self.shaping.shape(Draw {
            temperature: sampling.temperature,
            top_p: sampling.top_p.unwrap_or(1.0),
            top_k: sampling.top_k.unwrap_or(0),
            min_p: sampling.min_p.unwrap_or(0.0),
            typical_p: sampling.typical_p.unwrap_or(1.0),
            seed: sampling.seed,
            choice: self.choice,
            position: self.tokens.len() as u32,
            banned: if generated < self.min_tokens { self.banned.clone() } else { Vec::new() },
            logprobs: sampling.logprobs.map(|alternatives| alternatives.min(limits.vocab as u32)),
            ..Draw::default()
        })
    }

    fn score_at(&self, position: usize, alternatives: u32) -> Draw {
        Draw {
            choice: self.choice,
            position: position as u32,
            given: Some(self.tokens[position]),
            logprobs: Some(alternatives),
            ..Draw::default()
        }
    }
}

/// What a sequence asks that this worker can't give.
fn cannot_run(new: &NewSequence, limits: &Limits) -> Option<String> {
    let outside = |tokens: &[u32]| tokens.iter().copied().find(|token| *token as usize >= limits.vocab);
    if let Some(token) = outside(&new.tokens).or_else(|| outside(&new.banned)) {
        return Some(format!("token {token} is outside the vocabulary of {}", limits.vocab));
    }
    match new.kind() {
        Kind::Generate | Kind::Score => {}
        Kind::Embed => return Some("this worker computes no embeddings".to_owned()),
        Kind::Unspecified => return Some("the kind of the sequence is not known to this worker".to_owned()),
    }
    if !new.adapter.is_empty() {
        return Some(format!("this worker has no adapter {:?}", new.adapter));
    }
    let sampling = new.sampling.as_ref()?;
    if !(sampling.temperature >= 0.0 && sampling.temperature.is_finite()) {
        return Some(format!("temperature {}; expected a number from 0", sampling.temperature));
    }
    cannot_shape(sampling, limits)
}
