//! How many tokens each sequence may guess in a step.
//!
//! A draft is a row more, and a token more if it is right. Both are measured: what rows cost on this worker,
//! and how often the guesses of a sequence are right. A guess is worth its row as long as it brings more tokens
//! for the time than the step has without it; the more sequences share a step, the less so. Where guesses
//! don't pay, a sequence tries again after a while, each time after longer.
//!
//! Now and then a step has no guesses at all, so that what they cost is seen beside what a step costs without.
//!
//! A worker that has nothing to guess from runs no rows for it: that a sequence may guess costs nothing. So a
//! try lasts until a guess is made.

use crate::core::types::TokenCount;

/// One step of so many has no guesses.
const PLAIN: u32 = 24;
/// What a step counts for against those before it.
const FORGET: f64 = 1.0 / 128.0;
/// The same, for the guesses of a sequence.
const FADE: f64 = 0.8;
/// What is known of all sequences counts as so many guesses of each.
const PRIOR: f64 = 2.0;
/// Assumed of guesses before any were made.
const LIKELY: f64 = 0.6;
/// What a row costs of an average one, before that is measured, and at least.
const ROW: f64 = 0.25;
const LEAST_ROW: f64 = 0.02;
/// Gains must exceed costs by this: both are estimates. With 1.2, guesses that were all right made 16 streams slower.
const MARGIN: f64 = 1.5;
/// A sequence begins with so many guesses at most; each that was right allows two more.
const BEGIN: TokenCount = 2;
/// A try has one guess, and comes after so many steps without.
const PAUSE: (u32, u32) = (4, 64);

/// What guesses cost and bring on one worker.
#[derive(Debug)]
pub(super) struct Speculation {
    /// A sequence's guesses in a step at most; 0: none.
    most: TokenCount,
    /// Even if it doesn't seem to pay.
    always: bool,
    costs: Costs,
    /// How often guesses are right.
    usual: f64,
    /// Steps since the last without guesses.
    guessing: u32,
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
    pub(super) fn new(most: TokenCount, always: bool) -> Self {
        Self { most, always, costs: Costs::default(), usual: LIKELY, guessing: 0 }
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
        &mut self,
        records: impl ExactSizeIterator<Item = Option<&'a mut Record>>,
        mut rows: TokenCount,
    ) -> Vec<TokenCount> {
        if self.always {
            let mut choose = |_: &mut Record| {
                let guesses = self.most.min(rows);
                rows -= guesses;
                guesses
            };
            return records.map(|record| record.map_or(0, &mut choose)).collect();
        }
        if self.guessing >= PLAIN {
            self.guessing = 0;
            return vec![0; records.len()];
        }
        let decodes = records.len() as f64;
        let row = self.costs.row();
        let (mut tokens, mut micros) = (decodes, self.costs.step(decodes, row));
        let mut choose = |record: &mut Record| {
            let (most, likely) = (self.most.min(rows).min(record.most()), record.likely(self.usual));
            let (mut guesses, mut gain) = (0, likely);
            while guesses < most && gain * micros > MARGIN * row * tokens {
                (guesses, tokens, micros) = (guesses + 1, tokens + gain, micros + row);
                gain *= likely;
            }
            // It is no use to try where not even a guess that is always right would pay.
            if guesses == 0 && micros > MARGIN * row * tokens && record.tries() {
                guesses = most.min(1);
            }
            rows -= guesses;
            guesses
        };
        let chosen: Vec<_> = records.map(|record| record.map_or(0, &mut choose)).collect();
        self.guessing += u32::from(chosen.iter().any(|&guesses| guesses > 0));
        chosen
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

    /// How many guesses may be made, for those that were right.
    fn most(&self) -> TokenCount {
        BEGIN + (2.0 * self.right) as TokenCount
    }

    /// Guesses don't pay. Now and then some are made all the same.
    fn tries(&mut self) -> bool {
        self.idle = self.idle.saturating_add(1);
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

    /// A worker whose steps take `base` and `row` for each row, more or less, and sequences whose guesses are right
    /// with a chance of so many in 8.
    struct World {
        speculation: Speculation,
        base: u64,
        row: u64,
        dice: u64,
    }

    impl World {
        fn new(base: u64, row: u64) -> Self {
            Self { speculation: Speculation::new(MOST, false), base, row, dice: 1 }
        }

        fn below(&mut self, sides: u64) -> u64 {
            self.dice = self.dice.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (self.dice >> 33) % sides
        }

        /// Runs `steps`; the guesses made in a step of a sequence, on average over the last half.
        fn guesses(&mut self, sequences: usize, steps: usize, chance: u64) -> f64 {
            let mut records = vec![Record::default(); sequences];
            let mut made = 0;
            for step in 0..steps {
                let chosen = self.speculation.choose(records.iter_mut().map(Some), 500);
                let rows = sequences + chosen.iter().sum::<usize>();
                let noise = 80 + self.below(40);
                self.speculation.measure(rows, (self.base + self.row * rows as u64) * noise / 100);
                for (record, guesses) in records.iter_mut().zip(chosen) {
                    let right = (0..guesses).take_while(|_| self.below(8) < chance).count();
                    self.speculation.learn(record, guesses, right);
                    made += if step >= steps / 2 { guesses } else { 0 };
                }
            }
            made as f64 / (sequences * (steps - steps / 2)) as f64
        }
    }

    #[test]
    fn good_guesses_are_made_and_bad_ones_hardly() {
        let all = World::new(10_000, 500).guesses(1, 400, 8);
        assert!(all > 0.9 * MOST as f64, "{all} guesses, all right");
        let some = World::new(10_000, 500).guesses(1, 400, 5);
        assert!((1.0..7.0).contains(&some), "{some} guesses, of which five in eight are right");
        let few = World::new(10_000, 4_000).guesses(1, 2000, 0);
        assert!(few < 0.05, "{few} guesses, all wrong");
    }

    #[test]
    fn a_step_that_is_full_of_rows_has_no_room_for_guesses() {
        let (alone, crowded) =
            (World::new(10_000, 500).guesses(1, 400, 6), World::new(10_000, 500).guesses(64, 400, 6));
        assert!(alone > 2.0 && crowded < alone / 3.0, "{alone} guesses alone, {crowded} of each of many");
        let free = World::new(10_000, 1).guesses(64, 400, 6);
        assert!(free > 2.0, "{free} guesses where rows cost nothing");
        // Where a step costs its rows and nothing else, not even guesses that are always right pay.
        let mut world = World::new(10_000, 500);
        assert!(world.guesses(8, 400, 8) > 3.0);
        (world.base, world.row) = (0, 2_000);
        let linear = world.guesses(8, 2000, 8);
        assert!(linear < 0.5, "{linear} guesses, all right, that save nothing");
    }

    #[test]
    fn guesses_stay_within_the_rows_and_none_are_made_where_they_are_off() {
        let mut records = vec![Record::default(); 3];
        let mut eager = Speculation::new(MOST, false);
        records.iter_mut().for_each(|record| eager.learn(record, 8, 8));
        let chosen = eager.choose(records.iter_mut().map(Some), 5);
        assert_eq!(chosen.iter().sum::<usize>(), 5);
        let off = Speculation::new(0, false).choose(records.iter_mut().map(Some), 500);
        assert_eq!(off, [0, 0, 0]);
        let unable = Speculation::new(MOST, false).choose([None, Some(&mut records[0])].into_iter(), 500);
        assert_eq!((unable[0], unable[1] > 0), (0, true));
        let mut always = Speculation::new(MOST, true);
        (0..100).for_each(|_| always.learn(&mut records[0], 8, 0));
        assert_eq!(always.choose(records.iter_mut().map(Some), 20), [8, 8, 4], "whether it pays or not");
    }

    #[test]
    fn a_sequence_whose_guesses_become_right_guesses_again() {
        let mut world = World::new(10_000, 2_000);
        world.guesses(1, 200, 0);
        let (mut worker, mut record) = (world.speculation, Record::default());
        (0..200).for_each(|_| worker.learn(&mut record, 2, 0));
        let choose = |worker: &mut Speculation, record: &mut Record| {
            let guesses = worker.choose([Some(&mut *record)].into_iter(), 500)[0];
            worker.learn(record, guesses, guesses);
            guesses
        };
        let first = (0..200).map(|_| choose(&mut worker, &mut record)).position(|guesses| guesses > 0);
        assert!(first.is_some_and(|steps| steps <= PAUSE.1 as usize + 1));
        let more = (0..20).map(|_| choose(&mut worker, &mut record)).max();
        assert!(more > Some(2), "{more:?}");
    }
}
