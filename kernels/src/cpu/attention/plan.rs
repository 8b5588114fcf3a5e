//! Divides a step's attention into tasks of similar size.

use std::ops::Range;

use super::kernel::part_len;
use super::tile::TILE;
use crate::{Heads, Sequence};

/// Rows of a task, where there are enough: they share a tile's conversion and its way from memory.
const TASK_ROWS: usize = 96;
/// Fewest rows of a task that a prompt is cut into.
const LEAST_ROWS: usize = 24;
/// Sequences of at most so many rows are cut by tiles instead of positions.
const FEW_ROWS: usize = 16;
/// Fewest tiles of a task.
const LEAST_TILES: usize = 4;
/// Tasks per thread, which even out their different lengths.
const TASKS_PER_THREAD: usize = 4;

/// The tasks of a call, those of prompts first.
#[derive(Debug, Default)]
pub(super) struct Plan {
    pub(super) tasks: Vec<Task>,
    pub(super) splits: Vec<Split>,
    /// Numbers of all parts.
    pub(super) parts_len: usize,
}

/// Some rows of a sequence over some tiles, for some KV heads.
#[derive(Debug)]
pub(super) struct Task {
    pub(super) sequence: usize,
    pub(super) kv_heads: Range<usize>,
    /// Rows of the sequence.
    pub(super) rows: Range<usize>,
    pub(super) tiles: Range<usize>,
    /// Where the parts of the first KV head begin, if the tiles are not all.
    pub(super) parts: Option<usize>,
}

/// A KV head of a sequence that is computed in parts.
#[derive(Debug)]
pub(super) struct Split {
    pub(super) sequence: usize,
    pub(super) kv_head: usize,
    /// Where its parts begin: `[rows × group][tiles][part_len]`, after those of the KV heads before.
    pub(super) parts: usize,
}

/// Tiles that the rows of a sequence see.
pub(super) fn tiles(sequence: &Sequence) -> usize {
    (sequence.position + sequence.rows).div_ceil(TILE)
}

/// The first tile that a row at this position sees.
pub(super) fn first_tile(position: usize, heads: Heads) -> usize {
    heads.window.map_or(0, |window| (position + 1).saturating_sub(window) / TILE)
}

// === impl Plan ===

impl Plan {
    pub(super) fn new(sequences: &[Sequence], heads: Heads, threads: usize) -> Self {
        let group = heads.heads / heads.kv_heads;
        let enough = threads * TASKS_PER_THREAD;
        let few = |sequence: &Sequence| sequence.rows * group <= FEW_ROWS;
        let positions = positions(sequences, heads, enough);
        let tiles = |sequence: &Sequence| {
            tiles(sequence).saturating_sub(first_tile(sequence.position, heads)) // an empty sequence sees none
        };
        let all_tiles: usize = sequences.iter().filter(|s| few(s)).map(tiles).sum::<usize>() * heads.kv_heads;
        let most_tiles = all_tiles.div_ceil(enough).max(LEAST_TILES);

        // A task of all heads reads a block's at one go, where there are enough such tasks.
        let together = if sequences.len() >= enough { heads.kv_heads } else { 1 };

        let mut plan = Self::default();
        for (i, sequence) in sequences.iter().enumerate() {
            if !few(sequence) {
                plan.cut_rows(i, sequence, heads, positions, 1);
            }
        }
        for (i, sequence) in sequences.iter().enumerate() {
            // One thread would only read its own parts again.
            if few(sequence) && sequence.rows > 0 && tiles(sequence) > most_tiles && threads > 1 {
                plan.cut_tiles(i, sequence, heads, most_tiles);
            } else if few(sequence) {
                plan.cut_rows(i, sequence, heads, sequence.rows.max(1), together);
            }
        }
        plan
    }

    /// Cuts a sequence by positions. The last see the most, so they go first.
    fn cut_rows(&mut self, i: usize, sequence: &Sequence, heads: Heads, positions: usize, together: usize) {
        for start in (0..sequence.rows).step_by(positions).rev() {
            let rows = start..(start + positions).min(sequence.rows);
            let first = first_tile(sequence.position + rows.start, heads);
            let tiles = first..(sequence.position + rows.end).div_ceil(TILE);
            for head in (0..heads.kv_heads).step_by(together) {
                let kv_heads = head..(head + together).min(heads.kv_heads);
                let (rows, tiles) = (rows.clone(), tiles.clone());
                self.tasks.push(Task { sequence: i, kv_heads, rows, tiles, parts: None });
            }
        }
    }

    /// Cuts a sequence by tiles.
    fn cut_tiles(&mut self, i: usize, sequence: &Sequence, heads: Heads, most: usize) {
        let (all, first) = (tiles(sequence), first_tile(sequence.position, heads));
        let size = (all - first).div_ceil((all - first).div_ceil(most));
        for kv_head in 0..heads.kv_heads {
            let parts = self.parts_len;
            self.parts_len += sequence.rows * heads.heads / heads.kv_heads * all * part_len(heads.dim);
            self.splits.push(Split { sequence: i, kv_head, parts });
            for start in (first..all).step_by(size) {
                let tiles = start..(start + size).min(all);
                let rows = 0..sequence.rows;
                let kv_heads = kv_head..kv_head + 1;
                self.tasks.push(Task { sequence: i, kv_heads, rows, tiles, parts: Some(parts) });
            }
        }
    }
}

/// Positions of a task that a prompt is cut into: fewer where that is what it takes to have `enough` tasks.
fn positions(sequences: &[Sequence], heads: Heads, enough: usize) -> usize {
    let group = heads.heads / heads.kv_heads;
    let least = LEAST_ROWS.div_ceil(group);
    let mut positions = TASK_ROWS.div_ceil(group);
    let tasks = |positions: usize| -> usize {
        sequences.iter().map(|s| s.rows.div_ceil(positions)).sum::<usize>() * heads.kv_heads
    };
    while positions / 2 >= least && tasks(positions) < enough {
        positions /= 2;
    }
    positions
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::BlockId;

    fn sequence() -> impl Strategy<Value = Sequence> {
        let position = prop_oneof![Just(0), 0usize..200, 0usize..9000];
        let rows = prop_oneof![Just(1usize), 0usize..20, 0usize..700];
        (position, rows).prop_map(|(position, rows)| Sequence {
            first_row: 0,
            rows,
            position,
            blocks: vec![BlockId(0); (position + rows).div_ceil(16)],
        })
    }

    proptest! {
        #[test]
        fn each_row_sees_each_of_its_tiles_once(
            sequences in proptest::collection::vec(sequence(), 0..5),
            kv_heads in 1usize..4,
            group in 1usize..9,
            window in proptest::option::of(1usize..2000),
            threads in 1usize..9,
        ) {
            let heads = Heads { heads: group * kv_heads, kv_heads, dim: 8, scale: 1.0, window, softcap: None };
            let plan = Plan::new(&sequences, heads, threads);
            for (i, sequence) in sequences.iter().enumerate() {
                for kv_head in 0..kv_heads {
                    let mut seen = vec![Vec::new(); sequence.rows];
                    for task in plan.tasks.iter().filter(|t| t.sequence == i && t.kv_heads.contains(&kv_head)) {
                        let split = plan.splits.iter().find(|s| s.sequence == i && s.kv_head == kv_head);
                        prop_assert_eq!(task.parts, split.map(|s| s.parts));
                        for row in task.rows.clone() {
                            let end = (sequence.position + row) / TILE + 1;
                            let first = first_tile(sequence.position + row, heads);
                            seen[row].extend(task.tiles.clone().filter(|tile| (first..end).contains(tile)));
                        }
                    }
                    for (row, seen) in seen.into_iter().enumerate() {
                        let end = (sequence.position + row) / TILE + 1;
                        let first = first_tile(sequence.position + row, heads);
                        prop_assert_eq!(seen, (first..end).collect::<Vec<_>>());
                    }
                }
            }
        }
    }

    #[test]
    fn a_long_decode_is_shared_by_all_threads() {
        let heads = Heads { heads: 9, kv_heads: 3, dim: 64, scale: 1.0, window: None, softcap: None };
        let blocks = vec![BlockId(0); 512];
        let long = Sequence { first_row: 0, rows: 1, position: 8191, blocks };
        assert!(Plan::new(&[long], heads, 16).tasks.len() >= 64);
    }
}
