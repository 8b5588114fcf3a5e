//! A sequence: the tokens known so far, what was asked for, and the rules that end it. It is all that is
//! needed to go on elsewhere, so it is also what moves when a worker is lost.

use std::sync::Arc;

use volley_proto::v1::{self, FinishReason, Kind, failure::Reason};

use super::{
    prefix::{self, BlockHash, Chain},
    types::{Millis, Rank, SequenceKey, TokenCount, TokenId},
};

/// Worker deaths that make a sequence that was present at them a suspect.
pub const SUSPECT: u32 = 2;
/// With a death alone, it is the reason.
pub const GUILTY: u32 = SUSPECT + 1;

/// What the choices of a request share.
#[derive(Clone, Debug, Default)]
pub struct Spec {
    /// The client-visible id, for logs and traces.
    pub request_id: String,
    /// The model, by content.
    pub model_hash: String,
    /// What it is for.
    pub kind: Kind,
    /// How tokens are drawn.
    pub sampling: v1::Sampling,
    /// Tokens to generate at most, from the end of the prompt.
    pub max_tokens: TokenCount,
    /// Stop tokens don't end a choice that has fewer.
    pub min_tokens: TokenCount,
    /// Each ends a choice, and is its last token.
    pub stop_tokens: Vec<TokenId>,
    /// Prompt positions to report log-probabilities of.
    pub score: Option<v1::ScoreRange>,
    /// Higher runs first.
    pub priority: i32,
    /// No use for an answer after this.
    pub deadline: Option<Millis>,
    /// The LoRA adapter; empty for none.
    pub adapter: String,
    /// Who asks: what is shared fairly between. Part of every block hash: tenants share no cache.
    pub tenant: String,
    /// What a choice may say; the worker's to understand.
    pub grammar: Option<String>,
    /// Tokens that it is likely to say; the worker's to use.
    pub prediction: Vec<u32>,
    /// Part of every block hash, beside the tenant.
    pub cache_salt: String,
    /// Tokens that may come from the prefix cache; none: as many as there are.
    pub max_cached: Option<TokenCount>,
    /// Requests of one session are likely to begin alike.
    pub session: Option<u64>,
}

/// One choice of a request.
#[derive(Clone, Debug)]
pub struct Sequence {
    /// Which.
    pub key: SequenceKey,
    /// The scheduler's count of sequences when this one arrived.
    pub arrival: u64,
    /// What was asked for.
    pub spec: Arc<Spec>,
    /// Known so far: the prompt, then what was generated.
    pub tokens: Vec<TokenId>,
    /// Of these, the prompt.
    pub prompt_tokens: TokenCount,
    /// The sampler's state after them, where it has one that they don't tell.
    pub mirostat: Option<f32>,
    /// Prompt positions whose log-probabilities have been reported.
    pub scored: TokenCount,
    /// Whether anything has been reported.
    pub reported: bool,
    /// The hashes of its full blocks, as far as they have been asked for.
    pub chain: Option<Chain>,
    /// Tokens of the prompt that came from the prefix cache when it first ran.
    pub cached: Option<TokenCount>,
    /// Tokens that were computed and given up, to be computed again or found in the cache.
    pub given_up: TokenCount,
    /// Worker deaths that it was present at, and may be the reason of: [`SUSPECT`], [`GUILTY`].
    pub deaths: u32,
    /// Once it has computed so many tokens, it isn't.
    pub suspect_until: TokenCount,
    /// The most tokens that it has had in this worker's KV cache.
    pub reached: TokenCount,
    /// Whether it has given up its place to another tenant, which it does once at most.
    pub yielded: bool,
    /// Whether it has had none since: then it waits for its tenant's turn, wherever that is.
    pub lines_up: bool,
    /// Whether it was admitted before, here or elsewhere; such a sequence isn't refused for load.
    pub moved: bool,
    /// The numerics class that its tokens come from so far; empty if none or unknown.
    pub numerics_class: String,
    /// W3C trace context of the sequence's span.
    pub traceparent: String,
    /// Lasts as long as the sequence.
    pub span: tracing::Span,
}

/// What a sequence has to say after a step, or at its end.
#[derive(Clone, Debug)]
pub struct Output {
    /// Whose.
    pub key: SequenceKey,
    /// The first since it got its place: what was known of it is computed.
    pub begins: bool,
    /// For the router.
    pub message: v1::SequenceOutput,
}

// === impl Spec ===

impl Spec {
    /// Where the hashes of its blocks start from: sequences that differ in any of these share nothing.
    pub fn salt(&self) -> BlockHash {
        prefix::salt(&[&self.model_hash, &self.adapter, &self.tenant, &self.cache_salt])
    }

    /// Whether service is counted in one with another's.
    pub fn pays_as(&self, other: &Self) -> bool {
        (self.priority, &self.tenant) == (other.priority, &other.tenant)
    }

    /// Whether its tokens can be guessed: what may be drawn must not depend on more than the tokens before.
    pub fn guessable(&self) -> bool {
        self.grammar.is_none() && self.sampling.mirostat_target.is_none()
    }
}

// === impl Sequence ===

impl Sequence {
    /// One that has just arrived. `tokens` is what is known, `prompt_tokens` of them the prompt.
    pub fn new(
        key: SequenceKey,
        arrival: u64,
        spec: Arc<Spec>,
        tokens: Vec<TokenId>,
        prompt_tokens: TokenCount,
    ) -> Self {
        Self {
            key,
            arrival,
            spec,
            moved: tokens.len() > prompt_tokens,
            tokens,
            prompt_tokens,
            mirostat: None,
            scored: 0,
            reported: false,
            chain: None,
            cached: None,
            given_up: 0,
            deaths: 0,
            suspect_until: 0,
            reached: 0,
            yielded: false,
            lines_up: false,
            numerics_class: String::new(),
            traceparent: String::new(),
            span: tracing::Span::none(),
        }
    }

    /// Its place in every queue.
    pub fn rank(&self) -> Rank {
        Rank::new(self.spec.priority, self.arrival)
    }

    /// Tokens after the prompt.
    pub fn generated(&self) -> TokenCount {
        self.tokens.len() - self.prompt_tokens
    }

    /// The most tokens that it can ever have, in a context window of `context`.
    pub fn limit(&self, context: TokenCount) -> TokenCount {
        (self.prompt_tokens + self.spec.max_tokens).min(context).max(self.prompt_tokens)
    }

    /// Whether it draws tokens.
    pub fn samples(&self, context: TokenCount) -> bool {
        self.spec.kind == Kind::Generate && self.limit(context) > self.prompt_tokens
    }

    /// The most tokens that it can ever have in the KV cache. (The last one drawn never runs.)
    pub fn kv_tokens(&self, context: TokenCount) -> TokenCount {
        (self.limit(context) - 1).max(self.prompt_tokens)
    }

    /// Adds a drawn token; the reason, if that ends the sequence.
    pub fn push(&mut self, token: TokenId, context: TokenCount) -> Option<FinishReason> {
        self.tokens.push(token);
        self.finished(context)
    }

    /// Whether the last token ended it. False for one that has generated nothing.
    pub fn finished(&self, context: TokenCount) -> Option<FinishReason> {
        let generated = self.generated();
        let last = self.tokens.last().filter(|_| generated > 0)?;
        if generated > self.spec.min_tokens && self.spec.stop_tokens.contains(last) {
            Some(FinishReason::Stop)
        } else if self.tokens.len() >= self.limit(context) {
            Some(FinishReason::Length)
        } else {
            None
        }
    }

    /// The hashes of its full blocks of `block_tokens` tokens.
    pub fn hashes(&mut self, block_tokens: TokenCount) -> &[BlockHash] {
        let chain = self.chain.take().filter(|chain| chain.block_tokens() == block_tokens);
        let chain = chain.unwrap_or_else(|| Chain::new(self.spec.salt(), block_tokens));
        self.chain.insert(chain).roll(&self.tokens)
    }

    /// Tokens that needn't be computed where they are cached. The last one always is: what follows it is asked
    /// for. So is whatever comes before a position to score, and all that goes into an embedding.
    pub fn cacheable(&self) -> TokenCount {
        if self.spec.kind == Kind::Embed {
            return 0;
        }
        let unscored = self.score_left().map_or(usize::MAX, |range| range.from as TokenCount);
        let last = self.tokens.len().min(unscored).saturating_sub(1);
        self.spec.max_cached.map_or(last, |max| last.min(max))
    }

    /// Its worker died in a step that ran it, up to `scheduled` tokens, and `alone` or with others.
    pub fn present(&mut self, alone: bool, scheduled: TokenCount) {
        self.deaths = if alone && self.suspected() { GUILTY } else { (self.deaths + 1).min(SUSPECT) };
        self.suspect_until = self.suspect_until.max(scheduled);
    }

    /// Whether it runs alone, to see if it kills its worker.
    pub fn suspected(&self) -> bool {
        self.deaths >= SUSPECT
    }

    /// It has `computed` tokens in the KV cache.
    pub fn reaches(&mut self, computed: TokenCount) {
        self.reached = self.reached.max(computed);
        if computed >= self.suspect_until {
            self.deaths = 0;
        }
    }

    /// It goes to another worker.
    pub fn moves(&mut self) {
        self.moved = true;
        self.reached = 0;
        self.given_up = 0;
    }

    /// The part of the score range that hasn't been reported yet.
    pub fn score_left(&self) -> Option<v1::ScoreRange> {
        let range = self.spec.score.as_ref()?;
        // Position 0 has no log-probability.
        let from = (range.from as TokenCount).max(1) + self.scored;
        let left = v1::ScoreRange { from: u32::try_from(from).ok()?, ..*range };
        (from < self.prompt_tokens).then_some(left)
    }

    /// An output with nothing in it.
    pub fn output(&self) -> Output {
        Output {
            key: self.key,
            begins: false,
            message: v1::SequenceOutput {
                request: self.key.request,
                choice: self.key.choice,
                attempt: self.key.attempt,
                ..Default::default()
            },
        }
    }

    /// The output that ends it with a failure.
    pub fn fail(&self, failure: v1::Failure) -> Output {
        let mut output = self.output();
        output.message.failure = Some(failure);
        output
    }

    /// The output that ends it with nothing more to report.
    pub fn finish(&self, reason: FinishReason) -> Output {
        let mut output = self.output();
        output.message.set_finish(reason);
        output
    }
}

// === impl Output ===

impl Output {
    /// Whether this is its sequence's last.
    pub fn ends(&self) -> bool {
        self.message.failure.is_some() || self.message.finish() != FinishReason::Unspecified
    }
}

/// A failure without a hint when to try again.
pub fn failure(reason: Reason, message: impl Into<String>) -> v1::Failure {
    v1::Failure { reason: reason.into(), message: message.into(), ..Default::default() }
}
