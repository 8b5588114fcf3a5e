//! Who goes first of the sequences that wait for a place on a worker.
//!
//! In order: priority; what had a place before and lost it; then tenants by the service that they have had,
//! least first; a tenant's own sequences by rank. Service is counted as in *virtual token counters* (Sheng et
//! al., "Fairness in Serving Large Language Models", OSDI 2024): a computed prompt token costs
//! [`PROMPT_COST`], a generated one [`GENERATED_COST`], both divided by the tenant's weight. Whoever comes
//! back to the queue is lifted to the least served of those that wait, so nobody saves up.
//!
//! Two bounds follow, and `tests/fairness.rs` holds it to them. While two tenants both have sequences waiting
//! (at one priority), what they are given for their weight differs by at most what one sequence's prompt and
//! all running sequences of one tenant can cost. And nobody starves: of [`PATIENCE`] + 1 admissions in a row
//! that a lower priority waits at, one is from below.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use super::{
    sequence::{Sequence, Spec},
    types::{Rank, TokenCount},
};

/// Service of a prompt's token.
pub const PROMPT_COST: u64 = 1;
/// Service of a generated token: it needs a step of its own, where a prompt's share one.
pub const GENERATED_COST: u64 = 2;
/// Admissions in a row that pass over those that wait at a lower priority.
pub const PATIENCE: u32 = 16;
/// What a unit of service is divided into, so that weights divide it finely.
const SCALE: u64 = 1 << 16;

/// Tenants' weights, by name: one of weight 2 is given twice as much as one of weight 1, the default.
pub type Weights = Arc<HashMap<String, u32>>;

/// The sequences that wait.
#[derive(Debug, Default)]
pub struct Queue {
    weights: Weights,
    /// By priority, the highest first. One that nobody waits at isn't kept, so counters start anew.
    classes: BTreeMap<Reverse<i32>, Class>,
    len: usize,
    tokens: TokenCount,
    /// Admissions in a row that passed over lower priorities.
    passed_over: u32,
}

/// Those of one priority.
#[derive(Debug, Default)]
struct Class {
    /// They had a place, and have paid for it.
    begun: BTreeMap<Rank, Sequence>,
    tenants: HashMap<String, Tenant>,
}

#[derive(Debug, Default)]
struct Tenant {
    /// Scaled, and divided by the weight.
    service: u64,
    waiting: BTreeMap<Rank, Sequence>,
}

// === impl Queue ===

impl Queue {
    /// An empty queue.
    pub fn new(weights: Weights) -> Self {
        Self { weights, ..Self::default() }
    }

    /// Sequences that wait.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nobody waits.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Their tokens.
    pub fn tokens(&self) -> TokenCount {
        self.tokens
    }

    /// All that wait, in no particular order.
    pub fn iter(&self) -> impl Iterator<Item = &Sequence> {
        self.classes.values().flat_map(|class| {
            let own = class.tenants.values().flat_map(|tenant| tenant.waiting.values());
            class.begun.values().chain(own)
        })
    }

    /// One more waits. What has generated something goes on before anything new of its priority begins: it
    /// was its turn already, here or elsewhere. Not so what gave its place up for another tenant.
    pub fn push(&mut self, sequence: Sequence) {
        let had_a_place = sequence.generated() > 0 && !sequence.lines_up;
        if had_a_place { self.put_back(sequence) } else { self.line_up(sequence) }
    }

    /// A sequence that gave its blocks to another waits to go on.
    pub fn put_back(&mut self, sequence: Sequence) {
        self.count(&sequence);
        let class = self.classes.entry(Reverse(sequence.spec.priority)).or_default();
        class.begun.insert(sequence.rank(), sequence);
    }

    /// A sequence waits for its turn among its tenant's.
    pub fn line_up(&mut self, sequence: Sequence) {
        self.count(&sequence);
        let class = self.classes.entry(Reverse(sequence.spec.priority)).or_default();
        let floor = class.least_served().map(|(_, tenant)| tenant.service);
        let tenant = class.tenants.entry(sequence.spec.tenant.clone()).or_default();
        if tenant.waiting.is_empty() {
            tenant.service = tenant.service.max(floor.unwrap_or(0));
        }
        tenant.waiting.insert(sequence.rank(), sequence);
    }

    /// Whose turn it is.
    pub fn first(&self) -> Option<&Sequence> {
        self.turn()?.1.first()
    }

    /// Takes the first, to give it a place. Its tenant is charged with it by [`Queue::charge`].
    pub fn take(&mut self) -> Option<Sequence> {
        let (&priority, class) = self.turn()?;
        let rank = class.first()?.rank();
        let (top, below) = (self.classes.keys().next(), self.classes.keys().next_back());
        self.passed_over = if Some(&priority) == top && top != below { self.passed_over + 1 } else { 0 };
        self.remove(rank)
    }

    /// Takes the sequence of this rank out, wherever it waits.
    pub fn remove(&mut self, rank: Rank) -> Option<Sequence> {
        let priority = Reverse(rank.priority());
        let class = self.classes.get_mut(&priority)?;
        let own = |class: &mut Class| class.tenants.values_mut().find_map(|t| t.waiting.remove(&rank));
        let sequence = class.begun.remove(&rank).or_else(|| own(class))?;
        if class.begun.is_empty() && class.tenants.values().all(|tenant| tenant.waiting.is_empty()) {
            self.classes.remove(&priority);
        }
        self.len -= 1;
        self.tokens -= sequence.tokens.len();
        Some(sequence)
    }

    /// Takes everything out, in order of rank. What tenants have had counts anew from here.
    pub fn take_all(&mut self) -> Vec<Sequence> {
        let empty = Self::new(self.weights.clone());
        std::mem::replace(self, empty).into_all()
    }

    /// Everything, in order of rank.
    pub fn into_all(self) -> Vec<Sequence> {
        let own = |tenant: Tenant| tenant.waiting.into_values();
        let all = |class: Class| class.begun.into_values().chain(class.tenants.into_values().flat_map(own));
        let mut all: Vec<_> = self.classes.into_values().flat_map(all).collect();
        all.sort_by_key(Sequence::rank);
        all
    }

    /// Counts `tokens` tokens, of `cost` each, as service of a sequence's tenant. Where nobody waits there is
    /// nothing to share, and nothing is counted.
    pub fn charge(&mut self, spec: &Spec, tokens: TokenCount, cost: u64) {
        let Some(class) = self.classes.get_mut(&Reverse(spec.priority)) else { return };
        let weight = self.weights.get(&spec.tenant).map_or(1, |&weight| u64::from(weight.max(1)));
        let service = (tokens as u64).saturating_mul(cost * SCALE) / weight;
        match class.tenants.get_mut(&spec.tenant) {
            Some(tenant) => tenant.service = tenant.service.saturating_add(service),
            None => {
                // It runs while others wait: it counts from where they stand.
                let floor = class.least_served().map_or(0, |(_, tenant)| tenant.service);
                let tenant = Tenant { service: floor.saturating_add(service), ..Tenant::default() };
                class.tenants.insert(spec.tenant.clone(), tenant);
            }
        }
    }

    /// Whether `spec`'s tenant has had more than the tenant of `than` (both at one priority).
    pub fn better_served(&self, spec: &Spec, than: &Spec) -> bool {
        let class = self.classes.get(&Reverse(spec.priority));
        let service = |s: &Spec| class.and_then(|c| c.tenants.get(&s.tenant)).map_or(0, |t| t.service);
        service(spec) > service(than)
    }

    fn count(&mut self, sequence: &Sequence) {
        self.len += 1;
        self.tokens += sequence.tokens.len();
    }

    /// The class whose turn it is: the highest, or by [`PATIENCE`] the one below with the oldest sequence.
    fn turn(&self) -> Option<(&Reverse<i32>, &Class)> {
        let mut classes = self.classes.iter();
        let highest = classes.next()?;
        let below = classes.min_by_key(|(_, class)| class.oldest());
        Some(below.filter(|_| self.passed_over >= PATIENCE).unwrap_or(highest))
    }
}

// === impl Class ===

impl Class {
    fn first(&self) -> Option<&Sequence> {
        let begun = self.begun.values().next();
        begun.or_else(|| self.least_served()?.1.waiting.values().next())
    }

    /// Of the tenants that wait, the one that has had least; of equals, the one that came first.
    fn least_served(&self) -> Option<(&String, &Tenant)> {
        let waiting = self.tenants.iter().filter(|(_, tenant)| !tenant.waiting.is_empty());
        waiting.min_by_key(|(_, tenant)| (tenant.service, tenant.waiting.keys().next()))
    }

    fn oldest(&self) -> Option<u64> {
        let own = self.tenants.values().filter_map(|tenant| tenant.waiting.keys().next());
        self.begun.keys().next().into_iter().chain(own).map(|rank| rank.arrival()).min()
    }
}
