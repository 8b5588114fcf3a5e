//! Codes in words of 32 bits, as rows of two codes a byte.

use bytes::Bytes;
use volley_kernels::threads;

/// Rows that a thread makes at once from words along columns: as many as a cache line of such words has.
const ROWS: usize = 16;

/// Little-endian words, eight 4-bit codes in each.
pub(super) struct Words(pub(super) Bytes);

// === impl Words ===

impl Words {
    pub(super) fn word(&self, i: usize) -> u32 {
        let at = 4 * i;
        u32::from_le_bytes([self.0[at], self.0[at + 1], self.0[at + 2], self.0[at + 3]])
    }

    /// A code of a word, from its lower end.
    pub(super) fn code(&self, word: usize, place: usize) -> u8 {
        (self.word(word) >> (4 * place) & 15) as u8
    }

    /// From GPTQ's order: words of eight inputs, those of all outputs one after another.
    pub(super) fn transposed(&self, rows: usize) -> Bytes {
        let words = self.0.len() / 4 / rows.max(1);
        let mut out = vec![0; self.0.len()];
        threads::share(out.chunks_mut((ROWS * words * 4).max(1)).enumerate(), |(part, out)| {
            for word in 0..words {
                for (row, out) in out.chunks_mut(words * 4).enumerate() {
                    let code = self.word(word * rows + part * ROWS + row);
                    out[4 * word..][..4].copy_from_slice(&code.to_le_bytes());
                }
            }
        });
        out.into()
    }

    /// From AWQ's order: words of eight outputs, those of an input one after another.
    pub(super) fn awq_rows(&self, rows: usize) -> Bytes {
        let (words, row_bytes) = (rows / 8, self.0.len() / rows.max(1));
        let mut out = vec![0; self.0.len()];
        // Eight inputs of a word are eight words of an input each.
        threads::share(out.chunks_mut((ROWS * 8 * row_bytes).max(1)).enumerate(), |(part, out)| {
            for eighth in 0..row_bytes / 4 {
                for (word, out) in out.chunks_mut(8 * row_bytes).enumerate() {
                    let codes: [u32; 8] =
                        std::array::from_fn(|i| self.word((eighth * 8 + i) * words + part * ROWS + word));
                    for (row, out) in out.chunks_mut(row_bytes).enumerate() {
                        let shift = 4 * awq_place(row);
                        let code = (0..8).fold(0, |all, i| all | (codes[i] >> shift & 15) << (4 * i));
                        out[4 * eighth..][..4].copy_from_slice(&code.to_le_bytes());
                    }
                }
            }
        });
        out.into()
    }
}

/// Where in its word AWQ puts an output: the lower half of a word are those of even numbers.
pub(super) fn awq_place(row: usize) -> usize {
    row % 2 * 4 + row % 8 / 2
}

/// Signed bytes of codes to which half of their range was added.
pub(super) fn less_half(codes: &[u8]) -> Bytes {
    codes.iter().map(|code| code ^ 0x80).collect::<Vec<u8>>().into()
}
