//! A small model that guesses what a large one will draw.
//!
//! Its KV cache has as many blocks as the large one's, and sequences use the same ones in both. It runs only what
//! it needs to guess, and only when nothing cheaper has a guess: what it has missed of a sequence, it makes up
//! for then. A block that it doesn't have, or has from somebody else, costs rows or wrong guesses, never a byte.
//!
//! It draws as the large one does, with the same key: where both think alike, they draw alike.

use volley_kernels::{self as kernels, BLOCK_TOKENS, Backend, Batch, Draw};

use super::Guess;
use crate::{
    Error,
    decoder::Decoder,
    engine::slots::{Planned, Slots},
};

/// The model, and what its cache holds.
pub(crate) struct DraftModel<B: Backend> {
    decoder: Decoder<B>,
    /// Rows of a pass.
    rows: usize,
    context: usize,
    /// Blocks of which every position was run here since it was last written by the large model.
    whole: Vec<bool>,
}

/// A sequence that is being guessed.
struct Drafting {
    /// Of the plan's runs.
    run: usize,
    slot: u32,
    most: usize,
    /// Runs next, from `position` on.
    rows: Vec<u32>,
    position: usize,
    guess: Vec<u32>,
}

// === impl DraftModel ===

impl<B: Backend> DraftModel<B> {
    /// `decoder` has room for `rows`, and as many `blocks` as the large model.
    pub(crate) fn new(decoder: Decoder<B>, rows: usize, blocks: usize) -> Self {
        let context = decoder.context();
        Self { decoder, rows, context, whole: vec![false; blocks] }
    }

    /// Guesses for the runs that may guess and have nothing to guess from. The error is the device's.
    pub(crate) fn guess(&mut self, slots: &mut Slots, planned: &mut Planned) -> Result<(), Error> {
        if !planned.copies.is_empty() {
            self.decoder.copy_blocks(&planned.copies);
        }
        self.overwritten(slots, planned);
        let mut drafting = self.begin(slots, planned);
        while !drafting.is_empty() {
            self.pass(slots, &mut drafting)?;
            for done in drafting.extract_if(.., |drafting| drafting.rows.is_empty()) {
                if let Some(sequence) = slots.sequence_mut(done.slot) {
                    sequence.mirrored = Some(done.position);
                }
                let guess = Guess { tokens: done.guess, predicted: false };
                planned.runs[done.run].1 = Some(guess).filter(|guess| !guess.tokens.is_empty());
            }
        }
        Ok(())
    }

    /// Blocks that the step writes aren't whole here any more.
    fn overwritten(&mut self, slots: &mut Slots, planned: &Planned) {
        for (run, _) in &planned.runs {
            let Some(sequence) = slots.sequence_mut(run.slot) else { continue };
            for block in sequence.touched(run.tokens as usize + run.drafts as usize) {
                self.whole[block.0 as usize] = false;
            }
        }
    }

    /// Who guesses, and what each runs first: what it has missed.
    fn begin(&mut self, slots: &mut Slots, planned: &Planned) -> Vec<Drafting> {
        let (mut drafting, mut room) = (Vec::new(), self.rows);
        for (nth, (run, guess)) in planned.runs.iter().enumerate() {
            let most = run.drafts as usize;
            let Some(sequence) = slots.sequence_mut(run.slot) else { continue };
            let (known, computed) = (sequence.tokens().len(), sequence.computed());
            let able = guess.is_none() && most > 0 && sequence.is_guessable(run.tokens as usize);
            let fits = known + most <= self.context.min(sequence.blocks.len() * BLOCK_TOKENS);
            if !able || !fits || room == 0 {
                continue;
            }
            let from = match sequence.mirrored {
                // Rows of guesses that were wrong don't count.
                Some(mirrored) => mirrored.min(computed),
                None => {
                    let whole = |block: &&kernels::BlockId| self.whole[block.0 as usize];
                    let whole = sequence.blocks.iter().take_while(whole).count();
                    (whole * BLOCK_TOKENS).min(computed)
                }
            };
            for block in &sequence.blocks[..from / BLOCK_TOKENS] {
                self.whole[block.0 as usize] = true;
            }
            let rows = sequence.tokens()[from..].iter().copied().take(room).collect::<Vec<_>>();
            room -= rows.len();
            drafting.push(Drafting {
                run: nth,
                slot: run.slot,
                most,
                rows,
                position: from,
                guess: Vec::new(),
            });
        }
        drafting
    }

    /// Runs the next rows of each, and draws where they are the last known.
    fn pass(&mut self, slots: &mut Slots, drafting: &mut [Drafting]) -> Result<(), Error> {
        let (mut batch, mut rows, mut draws) = (Batch::default(), Vec::new(), Vec::new());
        let mut drawing = Vec::new();
        let limits = slots.limits();
        for drafting in drafting {
            let Some(sequence) = slots.sequence_mut(drafting.slot) else { continue };
            let (first_row, new) = (batch.tokens.len(), drafting.rows.len());
            batch.tokens.append(&mut drafting.rows);
            let (position, blocks) = (drafting.position, sequence.blocks.clone());
            batch.sequences.push(kernels::Sequence { first_row, rows: new, position, blocks });
            drafting.position += new;
            if drafting.position == sequence.tokens().len() + drafting.guess.len() {
                rows.push(first_row + new - 1);
                let draw = sequence.draw_after(&drafting.guess, &limits);
                draws.push(Draw { logprobs: None, ..draw });
                drawing.push(drafting);
            }
        }
        self.decoder.forward(batch);
        let drawn = self.decoder.draw(&rows, &draws)?.wait()?;
        for (drafting, drawn) in drawing.into_iter().zip(drawn) {
            drafting.guess.push(drawn.token);
            if drafting.guess.len() < drafting.most {
                drafting.rows.push(drawn.token);
            }
        }
        Ok(())
    }
}
