//! The accounting of KV blocks and the index of who has which, against models that are too simple to be wrong.
#![allow(clippy::unwrap_used)] // helpers of a test are part of it

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use volley_scheduler::core::{
    blocks::{Blocks, Change, Table},
    holders::Holders,
    prefix::{BlockHash, Chain, salt},
    types::TokenId,
};

const BLOCK: usize = 2;

#[derive(Clone, Debug)]
enum Event {
    /// A sequence begins with what is there of its tokens, up to so many blocks, and gets room for the rest.
    Admit(Vec<bool>, usize),
    /// Its next tokens get room.
    Grow(usize, Vec<bool>),
    /// Its next block has been filled.
    Fill(usize),
    Release(usize),
}

/// Whole blocks of tokens: what a block holds is all of them up to its end.
type Prefix = Vec<u32>;

/// One group, in the plainest terms.
struct Naive {
    total: usize,
    touched: usize,
    /// In the order in which they became free.
    free: Vec<usize>,
    findable: BTreeMap<Prefix, usize>,
    evictions: u64,
}

struct Sequence {
    tokens: Prefix,
    table: Table,
    /// The tables that the model expects, by group.
    expected: Vec<Vec<usize>>,
    filled: usize,
}

impl Naive {
    fn take(&mut self) -> usize {
        let named = |block: &usize| self.findable.values().any(|named| named == block);
        if let Some(blank) = self.free.iter().rposition(|block| !named(block)) {
            return self.free.remove(blank);
        }
        if self.touched < self.total {
            self.touched += 1;
            return self.touched - 1;
        }
        let oldest = self.free.remove(0);
        self.findable.retain(|_, block| *block != oldest);
        self.evictions += 1;
        oldest
    }
}

/// The `n`-th block's content.
fn prefix(tokens: &[u32], n: usize) -> Prefix {
    tokens[..(n + 1) * BLOCK].to_vec()
}

fn hashes(tokens: &[u32]) -> Vec<BlockHash> {
    let tokens: Vec<_> = tokens.iter().copied().map(TokenId).collect();
    Chain::new(salt(&[]), BLOCK).roll(&tokens).to_vec()
}

fn tokens(bits: &[bool]) -> Prefix {
    // Few different blocks, so that many sequences begin alike.
    bits.iter().flat_map(|&bit| [u32::from(bit); BLOCK]).collect()
}

struct World {
    blocks: Blocks,
    groups: Vec<Naive>,
    live: Vec<Sequence>,
    told: BTreeSet<BlockHash>,
}

impl World {
    fn new(sizes: &[u32]) -> Self {
        let naive = |&total: &u32| Naive {
            total: total as usize,
            touched: 0,
            free: Vec::new(),
            findable: BTreeMap::new(),
            evictions: 0,
        };
        Self {
            blocks: Blocks::new(BLOCK, sizes),
            groups: sizes.iter().map(naive).collect(),
            live: Vec::new(),
            told: BTreeSet::new(),
        }
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Admit(bits, limit) => self.admit(tokens(&bits), limit),
            Event::Grow(nth, bits) => {
                if !self.live.is_empty() {
                    let nth = nth % self.live.len();
                    self.live[nth].tokens.extend(tokens(&bits));
                    self.grow(nth);
                }
            }
            Event::Fill(nth) => {
                if !self.live.is_empty() {
                    let nth = nth % self.live.len();
                    self.fill(nth);
                }
            }
            Event::Release(nth) => {
                if !self.live.is_empty() {
                    let sequence = self.live.remove(nth % self.live.len());
                    self.blocks.release(sequence.table);
                    for (group, table) in sequence.expected.iter().enumerate() {
                        let free =
                            table.iter().copied().rev().filter(|&block| self.holders(group, block) == 0);
                        let free: Vec<_> = free.collect();
                        self.groups[group].free.extend(free);
                    }
                }
            }
        }
        self.check();
    }

    fn holders(&self, group: usize, block: usize) -> usize {
        self.live.iter().filter(|s| s.expected[group].contains(&block)).count()
    }

    fn admit(&mut self, tokens: Prefix, limit: usize) {
        let all = hashes(&tokens);
        let wanted = limit.min(all.len());
        let has = |n: &usize| self.groups.iter().all(|g| g.findable.contains_key(&prefix(&tokens, *n)));
        let found = (0..wanted).take_while(has).count();
        let held = |n: &usize| {
            (0..self.groups.len()).all(|g| self.holders(g, self.groups[g].findable[&prefix(&tokens, *n)]) > 0)
        };
        let held = (0..found).filter(held).count();
        let answer = self.blocks.find(&all[..wanted]);
        assert_eq!((answer.blocks, answer.held), (found, held));
        let mut table = self.blocks.table();
        assert_eq!(self.blocks.share(&mut table, &all[..wanted]), found);
        let expected = self.groups.iter_mut().map(|group| {
            let shared = (0..found).map(|n| group.findable[&prefix(&tokens, n)]).collect::<Vec<_>>();
            group.free.retain(|block| !shared.contains(block));
            shared
        });
        let expected = expected.collect();
        self.live.push(Sequence { tokens, table, expected, filled: found });
        self.grow(self.live.len() - 1);
    }

    fn grow(&mut self, nth: usize) {
        let sequence = &mut self.live[nth];
        let missing = sequence.tokens.len() / BLOCK - sequence.table.len();
        let missing = missing.min(self.blocks.free());
        self.blocks.grow(&mut sequence.table, missing);
        for (group, table) in self.groups.iter_mut().zip(&mut sequence.expected) {
            table.extend((0..missing).map(|_| group.take()));
        }
        let room = sequence.table.len() * BLOCK;
        sequence.tokens.truncate(room);
    }

    fn fill(&mut self, nth: usize) {
        let sequence = &mut self.live[nth];
        let filled = sequence.filled;
        if filled == sequence.table.len() {
            return;
        }
        sequence.filled += 1;
        self.blocks.publish(&sequence.table, filled, hashes(&sequence.tokens)[filled]);
        for (group, table) in self.groups.iter_mut().zip(&sequence.expected) {
            group.findable.entry(prefix(&sequence.tokens, filled)).or_insert(table[filled]);
        }
    }

    fn check(&mut self) {
        for sequence in &self.live {
            for (table, expected) in sequence.table.from(0).zip(&sequence.expected) {
                let table: Vec<_> = table.iter().map(|block| block.0 as usize).collect();
                assert_eq!(&table, expected, "the blocks that are expected, none twice");
                assert_eq!(table.iter().collect::<BTreeSet<_>>().len(), table.len());
            }
        }
        let mut free = Vec::new();
        for (nth, group) in self.groups.iter().enumerate() {
            let mut holders: BTreeMap<usize, BTreeSet<Prefix>> = BTreeMap::new();
            for sequence in &self.live {
                for (at, &block) in sequence.expected[nth].iter().enumerate() {
                    holders.entry(block).or_default().insert(prefix(&sequence.tokens, at));
                }
            }
            assert!(holders.values().all(|contents| contents.len() == 1), "only equal content is shared");
            free.push(group.total - holders.len());
        }
        assert_eq!(self.blocks.free(), free.into_iter().min().unwrap());
        assert_eq!(self.blocks.evictions(), self.groups.iter().map(|group| group.evictions).sum::<u64>());
        for change in self.blocks.take_changes() {
            match change {
                Change::Added(hash) => drop(self.told.insert(hash)),
                Change::Removed(hash) => drop(self.told.remove(&hash)),
            }
        }
        if let [group] = &self.groups[..] {
            let findable: BTreeSet<_> =
                group.findable.keys().map(|prefix| *hashes(prefix).last().unwrap()).collect();
            assert_eq!(self.told, findable, "changes tell what can be found");
        }
    }
}

fn event() -> impl Strategy<Value = Event> {
    let bits = |most| prop::collection::vec(any::<bool>(), 1..most);
    prop_oneof![
        3 => (bits(7), 0..8usize).prop_map(|(bits, limit)| Event::Admit(bits, limit)),
        2 => (any::<usize>(), bits(3)).prop_map(|(nth, bits)| Event::Grow(nth, bits)),
        6 => any::<usize>().prop_map(Event::Fill),
        2 => any::<usize>().prop_map(Event::Release),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn blocks_are_shared_freed_and_evicted_as_a_naive_model_says(
        sizes in prop::collection::vec(1..20u32, 1..3),
        events in prop::collection::vec(event(), 1..100),
    ) {
        let mut world = World::new(&sizes);
        events.into_iter().for_each(|event| world.happen(event));
        while !world.live.is_empty() {
            world.happen(Event::Release(0));
        }
        prop_assert_eq!(world.blocks.free(), world.blocks.total(), "nothing is leaked");
    }

    #[test]
    fn holders_are_found_as_a_naive_model_says(
        events in prop::collection::vec((0..90usize, 0..6u32, 0..8usize, 0..12u8), 1..300),
        wanted in prop::collection::vec((0..6u32, 0..8usize), 1..8),
    ) {
        // Six prompts of up to eight blocks; up to ninety workers, more than fit one word.
        let block = |prompt: u32, nth: usize| hashes(&[prompt; 8 * BLOCK])[nth];
        let mut holders = Holders::default();
        let mut naive: Vec<(_, BTreeSet<BlockHash>)> = Vec::new();
        for (worker, prompt, nth, what) in events {
            match naive.get_mut(worker) {
                None => naive.push((holders.join(), BTreeSet::new())),
                Some(_) if what == 0 => {
                    let (place, _) = naive.swap_remove(worker);
                    holders.leave(place);
                }
                Some((place, has)) if what < 4 => {
                    has.remove(&block(prompt, nth));
                    holders.change(*place, &[Change::Removed(block(prompt, nth))]);
                }
                Some((place, has)) => {
                    let new: Vec<_> = (0..=nth).map(|nth| Change::Added(block(prompt, nth))).collect();
                    has.extend((0..=nth).map(|nth| block(prompt, nth)));
                    holders.change(*place, &new);
                }
            }
        }
        for (prompt, length) in wanted {
            let hashes: Vec<_> = (0..length).map(|nth| block(prompt, nth)).collect();
            holders.find(&hashes);
            for (place, has) in &naive {
                let found = hashes.iter().take_while(|hash| has.contains(hash)).count();
                prop_assert_eq!(holders.found(*place), found);
            }
        }
    }
}
