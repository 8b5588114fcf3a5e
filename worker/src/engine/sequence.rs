//! One sequence in its slot.

use tracing::Span;
use volley_kernels::{BLOCK_TOKENS, BlockId, Draw, Drawn};
use volley_proto::v1::{Kind, NewSequence, Sampling};

use super::{
    Limits,
    draft::{Drafter, Guess},
    guide::{Guide, Guides},
    pool::Pool,
    shaping::{Shaping, cannot_shape},
    trace,
};
use crate::config::Pooling;

/// Everything that the worker keeps about a sequence between steps.
pub(super) struct Sequence {
    /// No other sequence of the worker ever had this number.
    pub(super) number: u64,
    kind: Kind,
    /// Known: the prompt, and what was generated. The last ones may be [`expected`](Self::expect) only, and are 0.
    tokens: Vec<u32>,
    /// The draw of the last step that gives the last token, where that is under way.
    expected: Option<usize>,
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
    drafter: Drafter,
    /// Tokens that a draft model has in its own KV cache, if it has looked; those it guessed among them.
    pub(super) mirrored: Option<usize>,
    /// Says what may be drawn.
    pub(super) guide: Option<Guide>,
    pub(super) blocks: Vec<BlockId>,
    /// Why it can't run: each run answers with this until the slot is released.
    failure: Option<String>,
    /// Of one that is to be embedded.
    pub(super) pool: Option<Pool>,
    /// Open as long as the slot is taken.
    _span: Span,
}

/// What one run of a sequence asks of the step.
pub(super) struct Run {
    /// Position of the first row.
    pub(super) position: usize,
    pub(super) tokens: Vec<u32>,
    /// The draw that gives the last of them, where that is under way.
    pub(super) expected: Option<usize>,
    /// Scores of known tokens: row (counted from the run's first) and what to score.
    pub(super) scores: Vec<(usize, Draw)>,
    /// The draw of a new token, if all that is known has run; with a guess, those of the rows after it.
    pub(super) samples: Vec<(usize, Draw)>,
    /// Tokens that were guessed: the last rows.
    pub(super) guess: Option<Guess>,
    /// How many of the last rows go into its embedding.
    pub(super) pooled: usize,
    /// Whether all that is known has run.
    pub(super) ends: bool,
}

// === impl Sequence ===

impl Sequence {
    /// Takes a sequence in. The error is a plan that contradicts itself; what this worker can't do for a
    /// sequence is the sequence's own failure.
    pub(super) fn admit(
        number: u64,
        mut new: NewSequence,
        limits: &Limits,
        guides: &Guides,
    ) -> Result<Self, String> {
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
        let prediction = new.prediction.iter().copied().take_while(|&token| (token as usize) < limits.vocab);
        Ok(Self {
            number,
            drafter: Drafter::new(prediction.collect()),
            kind,
            shaping: Shaping::new(&new, &sampling),
            tokens: new.tokens,
            expected: None,
            computed,
            prompt_tokens,
            sampling,
            choice: new.choice,
            mirrored: None,
            score: new.score.map(|score| (score.from.max(1) as usize, score.alternatives)),
            banned: new.banned,
            min_tokens: new.min_tokens as usize,
            guide,
            blocks: Vec::new(),
            failure,
            pool: limits.pooling.filter(|_| kind == Kind::Embed).map(Pool::new),
            _span: span,
        })
    }

    /// Why the sequence can't run, if it can't.
    pub(super) fn failure(&self) -> Option<&str> {
        self.failure.as_deref()
    }

    /// All that is known.
    pub(super) fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Of it, what is in the KV cache.
    pub(super) fn computed(&self) -> usize {
        self.computed
    }

    /// The blocks that a run of so many rows writes.
    pub(super) fn touched(&self, rows: usize) -> &[BlockId] {
        let end = (self.computed + rows).div_ceil(BLOCK_TOKENS).min(self.blocks.len());
        self.blocks.get(self.computed / BLOCK_TOKENS..end).unwrap_or_default()
    }

    /// Whether what a run of `rows` tokens draws can be guessed on from. Not where a draw depends on more than the
    /// tokens before it: on a mask that is computed from the last one, or on how surprising that was.
    pub(super) fn is_guessable(&self, rows: usize) -> bool {
        let draws = self.kind == Kind::Generate && self.computed + rows == self.tokens.len();
        let exact = self.guide.is_none() && self.sampling.mirostat_target.is_none();
        draws && exact && self.failure.is_none()
    }

    /// Up to `most` tokens that may come after a run of `rows` tokens.
    pub(super) fn guess(&mut self, rows: usize, most: usize) -> Option<Guess> {
        match most > 0 && self.is_guessable(rows) {
            true => self.drafter.guess(&self.tokens, self.prompt_tokens, most),
            false => None,
        }
    }

    /// Computes the next `rows` tokens, and those guessed to come after, at most `drafts`. The error is a plan that
    /// contradicts itself.
    pub(super) fn run(
        &mut self,
        slot: u32,
        (rows, drafts): (usize, usize),
        guess: Option<Guess>,
        limits: &Limits,
    ) -> Result<Run, String> {
        let known = self.tokens.len();
        let (position, end) = (self.computed, self.computed + rows);
        if rows == 0 || end > known {
            return Err(format!(
                "slot {slot}: run of {rows} tokens at {position}; expected 1 to {}",
                known - position
            ));
        }
        if end + drafts > limits.context {
            let last = end + drafts;
            return Err(format!("slot {slot}: run to token {last} of a context of {}", limits.context));
        }
        if end + drafts > self.blocks.len() * BLOCK_TOKENS {
            let (have, need) = (self.blocks.len(), end + drafts);
            return Err(format!(
                "slot {slot}: {have} blocks of {BLOCK_TOKENS} tokens cannot hold {need} tokens"
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
        let (ends, mut tokens) = (end == known, self.tokens[position..end].to_vec());
        let samples = self.kind == Kind::Generate && ends;
        let guessed = guess.as_ref().map_or(&[][..], |guess| &guess.tokens);
        tokens.extend(guessed);
        let draws = if samples { 0..guessed.len() + 1 } else { 0..0 };
        let samples = draws.map(|nth| (rows - 1 + nth, self.draw_after(&guessed[..nth], limits))).collect();
        let pooled = self.pool.as_ref().map_or(0, |pool| pool.wants(rows, ends));
        let expected = self.expected.filter(|_| ends);
        Ok(Run { position, tokens, expected, scores, samples, guess, pooled, ends })
    }

    /// Whether it can go on from a draw that is under way: nothing but the device needs to know that token.
    pub(super) fn goes_on_unseen(&self) -> bool {
        self.guide.is_none() && !self.shaping.looks_back()
    }

    /// The next token is what a draw gives, which is under way.
    pub(super) fn expect(&mut self, draw: usize) {
        self.tokens.push(0);
        self.expected = Some(draw);
    }

    /// Whether a draw of its is under way.
    pub(super) fn is_expecting(&self) -> bool {
        self.expected.is_some()
    }

    /// Keeps the token that was drawn for a position, the next or one that was expected: a run may start with it.
    pub(super) fn push(&mut self, position: usize, drawn: &Drawn) {
        match self.tokens.get_mut(position) {
            Some(token) => *token = drawn.token,
            None => self.tokens.push(drawn.token),
        }
        if position + 1 == self.tokens.len() {
            self.expected = None;
        }
        self.shaping.push(drawn);
        if let Some(guide) = &mut self.guide {
            guide.push(drawn.token);
        }
    }

    /// A guess was right: its row counts, and the next draw is the one after it.
    pub(super) fn accept(&mut self) {
        self.computed += 1;
    }

    /// Takes back the last row, from which nothing could be drawn: the next run starts with it.
    pub(super) fn defer(&mut self) {
        self.computed -= 1;
    }

    /// From now on it can't run.
    pub(super) fn fail(&mut self, problem: String) {
        self.failure = Some(problem);
    }

    /// The draw after all that is known and `guess`: what it would be if that were known too.
    pub(super) fn draw_after(&self, guess: &[u32], limits: &Limits) -> Draw {
        let known = self.tokens.len() + guess.len();
        let generated = known - self.prompt_tokens;
        let sampling = &self.sampling;
        let draw = Draw {
            temperature: sampling.temperature,
            top_p: sampling.top_p.unwrap_or(1.0),
            top_k: sampling.top_k.unwrap_or(0),
            min_p: sampling.min_p.unwrap_or(0.0),
            typical_p: sampling.typical_p.unwrap_or(1.0),
            seed: sampling.seed,
            choice: self.choice,
            position: known as u32,
            banned: if generated < self.min_tokens { self.banned.clone() } else { Vec::new() },
            logprobs: sampling.logprobs.map(|alternatives| alternatives.min(limits.vocab as u32)),
            ..Draw::default()
        };
        self.shaping.shape(draw, guess)
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
        Kind::Embed if limits.pooling.is_none() => {
            return Some("this worker computes no embeddings".to_owned());
        }
        Kind::Embed if limits.pooling == Some(Pooling::Mean) && new.computed > 0 => {
            return Some("a mean needs every position of its prompt computed here".to_owned());
        }
        Kind::Embed => {}
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
