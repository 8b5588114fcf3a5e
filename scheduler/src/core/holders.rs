//! Which workers have which blocks in their prefix caches, as their planners said last.
//!
//! A set of workers for each block, as bits. A block is in few caches (then the one or two are written down) or
//! in many (a system prompt: then there are few such blocks), so this takes some 40 bytes for each block of
//! content in the cluster.

use super::{
    blocks::Change,
    prefix::{BlockHash, BlockMap},
};

/// A worker's number here. It is given to another when the worker has left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place(usize);

/// Who has what.
#[derive(Debug, Default)]
pub struct Holders {
    blocks: BlockMap<Set>,
    /// The places that are taken, 64 to a word.
    taken: Vec<u64>,
    /// How many blocks of what was looked up last each place has.
    found: Vec<usize>,
}

/// Places, as numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
enum Set {
    #[default]
    Empty,
    One(usize),
    /// 64 to a word.
    Many(Vec<u64>),
}

// === impl Holders ===

impl Holders {
    /// A place that has nothing.
    pub fn join(&mut self) -> Place {
        let full = self.taken.iter().take_while(|&&word| word == u64::MAX).count();
        let place = full * 64 + self.taken.get(full).map_or(0, |word| word.trailing_ones() as usize);
        set_bit(&mut self.taken, place);
        Place(place)
    }

    /// Forgets what a place has. Goes through all blocks: a worker is lost less often than a request comes.
    pub fn leave(&mut self, Place(place): Place) {
        self.taken[place / 64] &= !bit(place);
        self.blocks.retain(|_, set| {
            set.remove(place);
            !set.is_empty()
        });
    }

    /// Takes in what a place has, or has no longer.
    pub fn change(&mut self, Place(place): Place, changes: &[Change]) {
        for change in changes {
            match change {
                Change::Added(hash) => self.blocks.entry(*hash).or_default().insert(place),
                Change::Removed(hash) => {
                    let Some(set) = self.blocks.get_mut(hash) else { continue };
                    set.remove(place);
                    if set.is_empty() {
                        self.blocks.remove(hash);
                    }
                }
            }
        }
    }

    /// Looks up how many of `hashes`, from the first on, each place has.
    pub fn find(&mut self, hashes: &[BlockHash]) {
        self.found.clear();
        let mut having = self.taken.clone();
        self.found.resize(having.len() * 64, 0);
        for (nth, hash) in hashes.iter().enumerate() {
            let set = self.blocks.get(hash);
            let mut left = 0;
            for (at, word) in having.iter_mut().enumerate() {
                let still = *word & set.map_or(0, |set| set.word(at));
                let mut gone = *word & !still;
                while gone != 0 {
                    self.found[at * 64 + gone.trailing_zeros() as usize] = nth;
                    gone &= gone - 1;
                }
                *word = still;
                left |= still;
            }
            if left == 0 {
                return;
            }
        }
        for (place, found) in self.found.iter_mut().enumerate() {
            if having[place / 64] & bit(place) != 0 {
                *found = hashes.len();
            }
        }
    }

    /// What the last look-up found at a place.
    pub fn found(&self, Place(place): Place) -> usize {
        self.found.get(place).copied().unwrap_or(0)
    }
}

// === impl Set ===

impl Set {
    fn insert(&mut self, place: usize) {
        match self {
            Self::Empty => *self = Self::One(place),
            Self::One(one) if *one == place => {}
            Self::One(one) => {
                let mut words = Vec::new();
                set_bit(&mut words, *one);
                set_bit(&mut words, place);
                *self = Self::Many(words);
            }
            Self::Many(words) => set_bit(words, place),
        }
    }

    fn remove(&mut self, place: usize) {
        match self {
            Self::One(one) if *one == place => *self = Self::Empty,
            Self::Many(words) => {
                if let Some(word) = words.get_mut(place / 64) {
                    *word &= !bit(place);
                }
                if words.iter().all(|&word| word == 0) {
                    *self = Self::Empty;
                }
            }
            Self::Empty | Self::One(_) => {}
        }
    }

    fn is_empty(&self) -> bool {
        *self == Self::Empty
    }

    fn word(&self, at: usize) -> u64 {
        match self {
            Self::Empty => 0,
            Self::One(one) => {
                if one / 64 == at {
                    bit(*one)
                } else {
                    0
                }
            }
            Self::Many(words) => words.get(at).copied().unwrap_or(0),
        }
    }
}

fn bit(place: usize) -> u64 {
    1 << (place % 64)
}

fn set_bit(words: &mut Vec<u64>, place: usize) {
    if words.len() <= place / 64 {
        words.resize(place / 64 + 1, 0);
    }
    words[place / 64] |= bit(place);
}
