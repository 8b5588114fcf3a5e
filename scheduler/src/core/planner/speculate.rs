//! How many tokens each sequence may guess in a step.
//!
//! A draft is a row more, and a token more if it is right. Both are measured: what rows cost on this worker,
//! and how often the guesses of a sequence are right. A guess is worth its row as long as it brings more tokens
//! for the time than the step has without it; the more sequences share a step, the less so. Where guesses
//! don't pay, a sequence tries again after a while, each time after longer.
//!
//! A worker that has nothing to guess from runs no rows for it: that a sequence may guess costs nothing. So a
//! try lasts until a guess is made.

use crate::core::types::TokenCount;

/// What a step counts for against those before it.
const FORGET: f64 = 1.0 / 64.0;
/// The same, for the guesses of a sequence.
const FADE: f64 = 0.8;
/// What is known of all sequences counts as so many guesses of each.
const PRIOR: f64 = 2.0;
/// Assumed of guesses before any were made.
const LIKELY: f64 = 0.6;
/// What a row costs of an average one, before that is measured, and at least.
const ROW: f64 = 0.25;
const LEAST_ROW: f64 = 0.02;
/// Gains must exceed costs by this: both are estimates.
const MARGIN: f64 = 1.1;
/// A try has so many guesses, and comes after so many steps without.
const TRY: TokenCount = 2;
const PAUSE: (u32, u32) = (4, 64);

/// What guesses cost and bring on one worker.
#[derive(Debug)]
pub(super) struct Speculation {
    /// A sequence's guesses in a step at most; 0: none.
    most: TokenCount,
    costs: Costs,
    /// How often guesses are right.
    usual: f64,
}

/// How guesses went for a sequence.
#[derive(Clone, Debug)]
pub(super) struct Record {
    guessed: f64,
    right: f64,
    /// Steps since it last guessed in which that didn't seem to pay, and how many there are to be.
    idle: u32,
    pause: u32,
}

/// Sums over steps that only decode: microseconds by rows.
#[derive(Debug, Default)]
struct Costs {
    weight: f64,
    rows: f64,
    micros: f64,
    rows_rows: f64,
    rows_micros: f64,
}

// === impl Speculation ===

impl Speculation {
    pub(super) fn new(most: TokenCount) -> Self {
        Self { most, costs: Costs::default(), usual: LIKELY }
    }

    /// A step that only decoded took `micros` for so many rows.
    pub(super) fn measure(&mut self, rows: TokenCount, micros: u64) {
        if self.most > 0 && rows > 0 && micros > 0 {
            self.costs.add(rows as f64, micros as f64);
        }
    }

    /// Of `guessed` tokens, the first `right` were.
    pub(super) fn learn(&mut self, record: &mut Record, guessed: TokenCount, right: TokenCount) {
        // Those behind the first that is wrong say nothing.
        let told = guessed.min(right + 1) as f64;
        if told == 0.0 {
            return;
        }
        record.guessed = record.guessed * FADE + told;
        record.right = record.right * FADE + right as f64;
        record.idle = 0;
        record.pause = if right > 0 { PAUSE.0 } else { (2 * record.pause).min(PAUSE.1) };
        self.usual += FORGET * told * (right as f64 / told - self.usual);
    }

    /// Guesses for each of the sequences that decode, `rows` of them together at most; none for those that can't.
    pub(super) fn choose<'a>(
        &self,
        records: impl ExactSizeIterator<Item = Option<&'a mut Record>>,
        mut rows: TokenCount,
    ) -> Vec<TokenCount> {
        let decodes = records.len() as f64;
        let row = self.costs.row();
        let (mut tokens, mut micros) = (decodes, self.costs.step(decodes, row));
        let mut choose = |record: &mut Record| {
            let likely = record.likely(self.usual);
            let (mut guesses, mut gain) = (0, likely);
            while guesses < self.most.min(rows) && gain * micros > MARGIN * row * tokens {
                (guesses, tokens, micros) = (guesses + 1, tokens + gain, micros + row);
                gain *= likely;
            }
            if guesses == 0 && record.tries() {
                guesses = TRY.min(self.most).min(rows);
            }
            rows -= guesses;
            guesses
        };
        records.map(|record| record.map_or(0, &mut choose)).collect()
    }
}

// === impl Record ===

impl Default for Record {
    fn default() -> Self {
        Self { guessed: 0.0, right: 0.0, idle: 0, pause: PAUSE.0 }
    }
}

impl Record {
    /// How likely a guess is right, if the one before it is.
    fn likely(&self, usual: f64) -> f64 {
        (self.right + PRIOR * usual) / (self.guessed + PRIOR)
    }

    /// Guesses don't pay. Now and then some are made all the same.
    fn tries(&mut self) -> bool {
        self.idle += 1;
        self.idle > self.pause
    }
}

// === impl Costs ===

impl Costs {
    fn add(&mut self, rows: f64, micros: f64) {
        let keep = 1.0 - FORGET;
        self.weight = self.weight * keep + 1.0;
        self.rows = self.rows * keep + rows;
        self.micros = self.micros * keep + micros;
        self.rows_rows = self.rows_rows * keep + rows * rows;
        self.rows_micros = self.rows_micros * keep + rows * micros;
    }

    /// What one row more costs: the slope of a line through the measurements, where they differ in rows.
    fn row(&self) -> f64 {
        if self.weight == 0.0 {
            return ROW;
        }
        let average = self.micros / self.rows;
        let spread = self.weight * self.rows_rows - self.rows * self.rows;
        if spread < 1e-3 * self.rows_rows * self.weight {
            return ROW * average;
        }
        let slope = (self.weight * self.rows_micros - self.rows * self.micros) / spread;
        slope.clamp(LEAST_ROW * average, average)
    }

    /// What a step of so many rows costs, where one more costs `row`.
    fn step(&self, rows: f64, row: f64) -> f64 {
        match self.weight > 0.0 {
            true => ((self.micros + row * (self.weight * rows - self.rows)) / self.weight).max(row * rows),
            false => rows.max(1.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOST: TokenCount = 8;

    /// A worker whose steps take `base` and `row` for each row, as measured.
    fn worker(base: u64, row: u64) -> Speculation {
        let mut worker = Speculation::new(MOST);
        (0..200).for_each(|step| worker.measure(1 + step % 5, base + row * (1 + step as u64 % 5)));
        worker
    }

    /// Lets `sequences` run for `steps` in which each guess is right with `chance` in 8, and gives the guesses
    /// made in a step of a sequence, on average over the last half.
    fn guesses(worker: &mut Speculation, sequences: usize, steps: usize, chance: usize) -> f64 {
        let mut records = vec![Record::default(); sequences];
        let (mut dice, mut made) = (1usize, 0);
        for step in 0..steps {
            let chosen = worker.choose(records.iter_mut().map(Some), 500);
            for (record, guesses) in records.iter_mut().zip(chosen) {
                let right = (0..guesses).take_while(|_| {
                    dice = dice.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                    (dice >> 40) % 8 < chance
                });
                let right = right.count();
                worker.learn(record, guesses, right);
                made += if step >= steps / 2 { guesses } else { 0 };
            }
        }
        made as f64 / (sequences * (steps - steps / 2)) as f64
    }

    #[test]
    fn good_guesses_are_made_and_bad_ones_hardly() {
        assert_eq!(guesses(&mut worker(10_000, 500), 1, 400, 8), MOST as f64);
        let some = guesses(&mut worker(10_000, 500), 1, 400, 5);
        assert!((1.0..7.0).contains(&some), "{some} guesses, of which five in eight are right");
        let few = guesses(&mut worker(10_000, 4_000), 1, 2000, 0);
        assert!(few < 0.05, "{few} guesses, all wrong");
    }

    #[test]
    fn a_step_that_is_full_of_rows_has_no_room_for_guesses() {
        let alone = guesses(&mut worker(10_000, 500), 1, 400, 6);
        let crowded = guesses(&mut worker(10_000, 500), 64, 400, 6);
        assert!(alone > 2.0 && crowded < alone / 3.0, "{alone} guesses alone, {crowded} of each of many");
        let free = guesses(&mut worker(10_000, 1), 64, 400, 6);
        assert!(free > 2.0, "{free} guesses where rows cost nothing");
    }

    #[test]
    fn guesses_stay_within_the_rows_and_none_are_made_where_they_are_off() {
        let mut records = vec![Record::default(); 3];
        let chosen = worker(10_000, 1).choose(records.iter_mut().map(Some), 5);
        assert_eq!(chosen.iter().sum::<usize>(), 5);
        let off = Speculation::new(0).choose(records.iter_mut().map(Some), 500);
        assert_eq!(off, [0, 0, 0]);
        let unable = worker(10_000, 1).choose([None, Some(&mut records[0])].into_iter(), 500);
        assert_eq!((unable[0], unable[1] > 0), (0, true));
    }

    #[test]
    fn a_sequence_whose_guesses_become_right_guesses_again() {
        let mut worker = worker(10_000, 2_000);
        let mut record = Record::default();
        (0..200).for_each(|_| worker.learn(&mut record, 2, 0));
        let mut choose = |worker: &mut Speculation, record: &mut Record| {
            let guesses = worker.choose([Some(&mut *record)].into_iter(), 500)[0];
            worker.learn(record, guesses, guesses);
            guesses
        };
        let first = (0..200).map(|_| choose(&mut worker, &mut record)).position(|guesses| guesses > 0);
        assert!(first.is_some_and(|steps| steps <= PAUSE.1 as usize + 1));
        (0..20).for_each(|_| drop(choose(&mut worker, &mut record)));
        assert!(choose(&mut worker, &mut record) > 2);
    }
}
