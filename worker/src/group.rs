//! A tensor-parallel group as the step thread sees it: one decoder.
//!
//! ```text
//! step thread: first rank's decoder ── Command, bounded ──▶ a thread for each other rank: its decoder
//!                      ▲                                                  ▲
//!                      └──────── parts of sums, logits: kernels' Peers ───┘
//! ```
//!
//! A rank alone is a group too, with nobody to tell. The others do what the first does, but draw nothing. What goes
//! wrong with one of them comes back from the first rank's next `draw` or `finish`.

#[cfg(test)]
mod tests;

use std::{
    ops::Range,
    sync::mpsc::{Receiver, SyncSender, sync_channel},
    thread::{self, JoinHandle},
};

use volley_kernels::{self as kernels, Backend, Batch, BlockId, Draw, Drawing};

use crate::{Error, decoder::Decoder};

/// Commands that may wait for a rank: those of a step, and of the next.
const WAITING_COMMANDS: usize = 8;

/// The decoders of all ranks.
pub(crate) struct Group<B: Backend> {
    /// Ends before the others, who notice.
    first: Decoder<B>,
    others: Vec<Other>,
}

/// A rank on its own thread.
struct Other {
    /// None once there are no more.
    commands: Option<SyncSender<Command>>,
    thread: Option<JoinHandle<()>>,
}

/// What a rank does beside the first.
#[derive(Clone)]
enum Command {
    Copy(Vec<(BlockId, BlockId)>),
    Forward(Batch),
    /// Its part of the logits of these rows.
    Logits(Vec<usize>),
    Finish,
}

// === impl Group ===

impl<B: Backend> Group<B> {
    /// Loads the first rank's part here, and each other's on a thread of its own.
    pub(crate) fn load<T>(
        first: impl FnOnce() -> Result<(Decoder<B>, T), Error>,
        others: Vec<B>,
        other: impl Fn(B) -> Result<Decoder<B>, Error> + Sync,
    ) -> Result<(Self, T), Error> {
        let (first, others) = thread::scope(|scope| {
            let load = |backend| {
                let other = &other;
                scope.spawn(move || other(backend))
            };
            let others: Vec<_> = others.into_iter().map(load).collect();
            let first = first();
            let died = |_| Err(Error::StepThread("of a rank died while it loaded".to_owned()));
            let others = others.into_iter().map(|thread| thread.join().unwrap_or_else(died));
            (first, others.collect::<Vec<_>>())
        });
        let mut errors = Vec::new();
        let mut keep = |error| errors.push(error);
        let first = first.map_err(&mut keep).ok();
        let others: Vec<_> = others.into_iter().filter_map(|other| other.map_err(&mut keep).ok()).collect();
        // A rank may only say that another has failed; that one says why.
        errors.sort_by_key(|error| matches!(error, Error::Kernel(kernels::Error::Peer { .. })));
        match (first, errors.into_iter().next()) {
            (Some((first, more)), None) => {
                let others = (1..).zip(others).map(|(rank, decoder)| Other::start(rank, decoder));
                Ok((Self { first, others: others.collect::<Result<_, _>>()? }, more))
            }
            (_, error) => Err(error.unwrap_or_else(|| Error::StepThread("of a rank died".to_owned()))),
        }
    }

    /// The first rank's device.
    pub(crate) fn backend(&self) -> &B {
        self.first.backend()
    }

    /// As [`Decoder::copy_blocks`].
    pub(crate) fn copy_blocks(&mut self, copies: &[(BlockId, BlockId)]) {
        self.tell(|| Command::Copy(copies.to_vec()));
        self.first.copy_blocks(copies);
    }

    /// As [`Decoder::forward`].
    pub(crate) fn forward(&mut self, batch: Batch) {
        self.tell(|| Command::Forward(batch.clone()));
        self.first.forward(batch);
    }

    /// As [`Decoder::draw`], but several ranks end their step first.
    pub(crate) fn draw(&mut self, rows: &[usize], draws: &[Draw]) -> Result<Drawing, Error> {
        if self.others.is_empty() {
            return self.first.draw(rows, draws);
        }
        self.tell(|| Command::Logits(rows.to_vec()));
        let drawn = self.first.draw(rows, draws)?.wait()?;
        self.finish()?;
        Ok(Drawing::done(drawn))
    }

    /// As [`Decoder::draws_at_once`].
    pub(crate) fn draws_at_once(&self) -> usize {
        self.first.draws_at_once()
    }

    /// As [`Decoder::hidden`]: every rank has the whole residual stream.
    pub(crate) fn hidden(&self, ranges: Vec<Range<usize>>) -> Result<Vec<Vec<f32>>, Error> {
        self.first.hidden(ranges)
    }

    /// As [`Decoder::finish`].
    pub(crate) fn finish(&mut self) -> Result<(), Error> {
        self.tell(|| Command::Finish);
        self.first.finish()
    }

    fn tell(&self, command: impl Fn() -> Command) {
        for commands in self.others.iter().filter_map(|other| other.commands.as_ref()) {
            let _ = commands.send(command()); // whoever is gone has failed, and the first rank hears of it
        }
    }
}

#[cfg(test)]
impl<B: Backend> Group<B> {
    /// Logits of rows of the last forward pass.
    pub(crate) fn logits(&mut self, rows: &[usize]) -> Vec<f32> {
        self.tell(|| Command::Logits(rows.to_vec()));
        self.first.logits(rows)
    }
}

impl<B: Backend> From<Decoder<B>> for Group<B> {
    fn from(first: Decoder<B>) -> Self {
        Self { first, others: Vec::new() }
    }
}

// === impl Other ===

impl Other {
    fn start<B: Backend>(rank: usize, mut decoder: Decoder<B>) -> Result<Self, Error> {
        let (commands, waiting) = sync_channel(WAITING_COMMANDS);
        let work = move || {
            kernels::cpu::lower_priority();
            let _ = follow(&mut decoder, &waiting); // of an error the device has told the group
        };
        let thread = thread::Builder::new().name(format!("volley-rank-{rank}")).spawn(work);
        let thread = thread.map_err(|e| Error::StepThread(format!("of rank {rank} could not start: {e}")))?;
        Ok(Self { commands: Some(commands), thread: Some(thread) })
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        self.commands = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join(); // what it died of, the group has heard
        }
    }
}

/// Does what the first rank does, until there is no more of it.
fn follow<B: Backend>(decoder: &mut Decoder<B>, commands: &Receiver<Command>) -> Result<(), Error> {
    for command in commands {
        match command {
            Command::Copy(copies) => decoder.copy_blocks(&copies),
            Command::Forward(batch) => decoder.forward(batch),
            Command::Logits(rows) => decoder.join_logits(&rows),
            Command::Finish => decoder.finish()?,
        }
    }
    Ok(())
}
