//! Who asks for what, and when: seeded traffic of several kinds.

use std::time::Duration;

use volley_scheduler::core::types::TokenId;

use crate::random::{Random, mix};

/// A kind of traffic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Long prompts that begin with one of a tenant's few system prompts.
    Shared,
    /// Conversations: each turn's prompt is all that was said before, and a little more.
    Turns,
    /// Short prompts, and one in ten that is long.
    Mixed,
    /// Short prompts that come in bursts: on for a second, off for two.
    Bursts,
}

/// A request that arrives.
#[derive(Clone, Debug)]
pub struct Ask {
    /// Its prompt.
    pub prompt: Vec<TokenId>,
    /// Tokens that it generates.
    pub output: usize,
    /// Who asks.
    pub tenant: usize,
    /// The conversation, and its turns to come.
    pub turns: Option<(u64, usize)>,
}

/// Traffic of some kinds, each as likely, that arrives at random.
#[derive(Debug)]
pub struct Traffic {
    kinds: Vec<Kind>,
    /// Between two arrivals, on average; without the later turns of conversations, which come by themselves.
    gap: Duration,
    random: Random,
    texts: u64,
}

/// Tenants. The first sends half of everything, the others share the rest.
pub(super) const TENANTS: usize = 8;
/// System prompts of a tenant.
const SYSTEM_PROMPTS: usize = 8;
const SYSTEM_TOKENS: usize = 1536;
/// Turns of a conversation, at most; on average half of it and a half.
const TURNS: usize = 5;
/// Between an answer and the next turn, on average.
const THINKING: Duration = Duration::from_secs(3);

// === impl Kind ===

impl Kind {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Shared, Self::Turns, Self::Mixed, Self::Bursts];

    /// Tokens of an average prompt, and of its answer.
    pub fn mean(self) -> (f64, f64) {
        match self {
            Self::Shared => (1664.0, 72.0),
            Self::Turns => (680.0, 100.0),
            Self::Mixed => (874.0, 72.0),
            Self::Bursts => (320.0, 72.0),
        }
    }
}

// === impl Traffic ===

impl Traffic {
    /// Traffic that brings `rate` requests a second, later turns included.
    pub fn new(kinds: Vec<Kind>, rate: f64, random: Random) -> Self {
        let turns = kinds.iter().filter(|kind| **kind == Kind::Turns).count() as f64 / kinds.len() as f64;
        // A conversation counts as its first turn and the later ones.
        let per_arrival = 1.0 + turns * (TURNS as f64 - 1.0) / 2.0;
        Self { kinds, gap: Duration::from_secs_f64(per_arrival / rate), random, texts: 0 }
    }

    /// How long until the next arrival, `now` being the time since the start.
    pub fn wait(&mut self, now: Duration) -> Duration {
        let bursts = self.kinds == [Kind::Bursts];
        let gap = if bursts { self.gap / 3 } else { self.gap };
        let wait = Duration::from_secs_f64(self.random.exponential(gap.as_secs_f64()));
        let off = (now + wait).as_secs_f64() % 3.0 >= 1.0;
        if bursts && off {
            let rest = 3.0 - (now + wait).as_secs_f64() % 3.0;
            return wait + Duration::from_secs_f64(rest);
        }
        wait
    }

    /// The request that arrives.
    pub fn ask(&mut self) -> Ask {
        let kind = *self.random.pick(&self.kinds);
        let tenant = if self.random.chance(0.5) { 0 } else { 1 + self.random.below(TENANTS - 1) };
        let output = self.random.between(16, 128) as usize;
        self.texts += 1;
        let own = mix(self.texts);
        match kind {
            Kind::Shared => {
                // The first of them is the most popular.
                let nth = self.random.below(SYSTEM_PROMPTS).min(self.random.below(SYSTEM_PROMPTS));
                let mut prompt = text((tenant * SYSTEM_PROMPTS + nth) as u64, SYSTEM_TOKENS);
                prompt.extend(text(own, self.random.between(64, 192) as usize));
                Ask { prompt, output, tenant, turns: None }
            }
            Kind::Turns => {
                let later = self.random.below(TURNS);
                let prompt = text(own, self.random.between(100, 500) as usize);
                let output = self.random.between(50, 150) as usize;
                Ask { prompt, output, tenant, turns: Some((own, later)) }
            }
            Kind::Mixed => {
                let long = self.random.chance(0.1);
                let tokens =
                    if long { self.random.between(4096, 8192) } else { self.random.between(64, 512) };
                Ask { prompt: text(own, tokens as usize), output, tenant, turns: None }
            }
            Kind::Bursts => {
                let prompt = text(own, self.random.between(128, 512) as usize);
                Ask { prompt, output, tenant, turns: None }
            }
        }
    }

    /// The next turn of a conversation, after `said`; and how long until it comes.
    pub fn turn(&mut self, ask: &Ask, said: &[u32]) -> Option<(Duration, Ask)> {
        let (conversation, later) = ask.turns?;
        let later = later.checked_sub(1)?;
        self.texts += 1;
        let mut prompt = ask.prompt.clone();
        prompt.extend(said.iter().copied().map(TokenId));
        prompt.extend(text(mix(self.texts), self.random.between(50, 150) as usize));
        let output = self.random.between(50, 150) as usize;
        let wait = Duration::from_secs_f64(self.random.exponential(THINKING.as_secs_f64()));
        Some((wait, Ask { prompt, output, tenant: ask.tenant, turns: Some((conversation, later)) }))
    }
}

/// The first tokens of a text.
fn text(number: u64, tokens: usize) -> Vec<TokenId> {
    let start = mix(number ^ 0x7e57);
    (0..tokens as u64).map(|at| TokenId((mix(start ^ at) >> 47) as u32)).collect()
}
