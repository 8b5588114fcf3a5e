//! What a full KV block holds, as a name: a hash over its tokens and everything before them.
//!
//! Equal hashes mean equal keys and values, so a block can serve every sequence that begins alike. The chain
//! starts from a salt, which keeps apart what must not be shared: models, adapters, tenants, and whoever asks
//! for isolation. BLAKE3 cut to 128 bits: a collision, which would show one tenant another's cache, can't be
//! looked for. The hash is the same in every process.

use std::{
    collections::HashMap,
    hash::{BuildHasherDefault, Hash, Hasher},
};

use super::types::{TokenCount, TokenId};

/// Names the content of a full block.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct BlockHash(u64, u64);

/// A map by block hash.
pub type BlockMap<V> = HashMap<BlockHash, V, BuildHasherDefault<Uniform>>;

/// Takes a block hash's bits as they are: they are uniform already.
#[derive(Clone, Copy, Debug, Default)]
pub struct Uniform(u64);

/// The hashes of a sequence's full blocks: rolled on as tokens become known, never computed twice.
#[derive(Clone, Debug)]
pub struct Chain {
    salt: BlockHash,
    block_tokens: TokenCount,
    hashes: Vec<BlockHash>,
}

/// The salt of sequences that may share blocks: those that agree in all `parts`, in this order.
pub fn salt(parts: &[&str]) -> BlockHash {
    let mut hasher = blake3::Hasher::new();
    for part in parts {
        hasher.update(&(part.len() as u64).to_le_bytes()).update(part.as_bytes());
    }
    BlockHash::cut(hasher.finalize())
}

// === impl Chain ===

impl Chain {
    /// For blocks of `block_tokens` tokens (at least 1).
    pub fn new(salt: BlockHash, block_tokens: TokenCount) -> Self {
        Self { salt, block_tokens, hashes: Vec::new() }
    }

    /// Tokens of a block.
    pub fn block_tokens(&self) -> TokenCount {
        self.block_tokens
    }

    /// The hashes so far.
    pub fn hashes(&self) -> &[BlockHash] {
        &self.hashes
    }

    /// The hashes of the full blocks of `tokens`, which continue what this chain was rolled over before.
    pub fn roll(&mut self, tokens: &[TokenId]) -> &[BlockHash] {
        let done = self.hashes.len() * self.block_tokens;
        let mut bytes = Vec::new();
        for block in tokens.get(done..).unwrap_or_default().chunks_exact(self.block_tokens) {
            let parent = self.hashes.last().unwrap_or(&self.salt);
            bytes.clear();
            bytes.extend(parent.0.to_le_bytes());
            bytes.extend(parent.1.to_le_bytes());
            block.iter().for_each(|token| bytes.extend(token.0.to_le_bytes()));
            self.hashes.push(BlockHash::cut(blake3::hash(&bytes)));
        }
        &self.hashes
    }

    /// The chain of the first `tokens` tokens only.
    pub fn beginning(&self, tokens: TokenCount) -> Self {
        let blocks = (tokens / self.block_tokens).min(self.hashes.len());
        Self { hashes: self.hashes[..blocks].to_vec(), ..*self }
    }
}

// === impl BlockHash ===

impl BlockHash {
    /// As it goes over the wire.
    pub fn to_bytes(self) -> [u8; 16] {
        (u128::from(self.1) << 64 | u128::from(self.0)).to_le_bytes()
    }

    /// As it came over the wire.
    pub fn from_bytes(bytes: [u8; 16]) -> Self {
        let both = u128::from_le_bytes(bytes);
        Self(both as u64, (both >> 64) as u64)
    }

    fn cut(hash: blake3::Hash) -> Self {
        let part =
            |at: usize| hash.as_bytes()[at..at + 8].iter().rev().fold(0, |n, &b| n << 8 | u64::from(b));
        Self(part(0), part(8))
    }
}

impl Hash for BlockHash {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.0);
    }
}

// === impl Uniform ===

impl Hasher for Uniform {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|&byte| self.0 = self.0.rotate_left(8) ^ u64::from(byte));
    }

    fn write_u64(&mut self, value: u64) {
        self.0 = value;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens(tokens: &[u32]) -> Vec<TokenId> {
        tokens.iter().copied().map(TokenId).collect()
    }

    #[test]
    fn a_chain_rolled_on_is_the_chain_of_all_its_tokens() {
        let all = tokens(&(0..23).collect::<Vec<_>>());
        let whole = Chain::new(salt(&["m"]), 4).roll(&all).to_vec();
        assert_eq!(whole.len(), 5);
        let mut chain = Chain::new(salt(&["m"]), 4);
        for known in 0..=all.len() {
            assert_eq!(chain.roll(&all[..known]), &whole[..known / 4]);
        }
        assert_eq!(chain.beginning(11).hashes, whole[..2]);
    }

    #[test]
    fn a_hash_names_all_tokens_up_to_its_block_and_the_salt() {
        let hashes = |salt: BlockHash, list: &[u32]| Chain::new(salt, 2).roll(&tokens(list)).to_vec();
        let plain = hashes(salt(&["m", "a"]), &[1, 2, 3, 4]);
        let other_start = hashes(salt(&["m", "a"]), &[1, 9, 3, 4]);
        assert!(plain[0] != other_start[0] && plain[1] != other_start[1], "equal tokens, another past");
        assert_eq!(plain[0], hashes(salt(&["m", "a"]), &[1, 2, 9, 9])[0]);
        for parts in [["m", "b"], ["ma", ""], ["", "ma"]] {
            assert_ne!(plain[0], hashes(salt(&parts), &[1, 2])[0], "{parts:?}");
        }
    }

    #[test]
    fn hashes_are_the_same_in_every_process_and_version() {
        // Written down: schedulers of two versions share what a worker holds.
        let chain = Chain::new(salt(&["model", "", "tenant", ""]), 2).roll(&tokens(&[1, 2, 3, 4])).to_vec();
        assert_eq!(chain.len(), 2);
        let shown: Vec<_> = chain.iter().map(|hash| format!("{:016x}{:016x}", hash.1, hash.0)).collect();
        assert_eq!(shown, ["ad00ec55245174319222ba78a12457d1", "f35dac5bd517a471b9683548c928d5fb"]);
    }
}
