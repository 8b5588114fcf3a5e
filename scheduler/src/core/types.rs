//! What the core counts and names things with.

/// A number of tokens (rows of a step, positions of a sequence).
pub type TokenCount = usize;

/// A token of the vocabulary.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct TokenId(pub u32);

/// A place in a worker's batch. A sequence keeps its slot while it runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SlotId(pub u32);

/// A KV block, within its group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BlockId(pub u32);

/// A point in time: milliseconds on the shell's clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Millis(pub u64);

/// One router's stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LinkId(pub u64);

/// One connection to a worker: a worker that is connected again has another.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WorkerId(pub u64);

/// Which sequence: one choice of one attempt at a request, and the link that its output goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SequenceKey {
    /// Where the output goes.
    pub link: LinkId,
    /// The router's number for the request.
    pub request: u64,
    /// The router's count of its attempts.
    pub attempt: u32,
    /// Which of the request's choices.
    pub choice: u32,
}

/// Who goes first: higher priority, then earlier arrival. Unique, and kept for the sequence's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Rank {
    priority: std::cmp::Reverse<i32>,
    arrival: u64,
}

// === impl Millis ===

impl Millis {
    /// This much later.
    pub fn after(self, wait: std::time::Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(wait.as_millis()).unwrap_or(u64::MAX)))
    }
}

// === impl Rank ===

impl Rank {
    /// The rank of the `arrival`-th sequence with this priority.
    pub fn new(priority: i32, arrival: u64) -> Self {
        Self { priority: std::cmp::Reverse(priority), arrival }
    }

    /// Higher runs first.
    pub fn priority(self) -> i32 {
        self.priority.0
    }

    /// Grows with time.
    pub fn arrival(self) -> u64 {
        self.arrival
    }
}
