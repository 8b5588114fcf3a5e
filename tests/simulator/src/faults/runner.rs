//! A scheduler's connection to a worker: the real planner behind a simulated wire. What `runner.rs` of the scheduler
//! does with tasks and channels, with events.

use std::collections::VecDeque;

use volley_scheduler::core::{
    placement::Facts,
    planner::{Limits, Planner},
    sequence::{Output, Sequence},
    types::{Millis, SequenceKey},
};

use super::net::{End, Message, Micros, Net};
use crate::model::{self, CONTEXT};

/// What the front tells a runner.
#[derive(Debug)]
pub(super) enum Command {
    Run(Vec<Sequence>),
    Cancel(Vec<SequenceKey>),
    /// What waits is to be given back.
    Recall,
}

/// A connection, from its claim on.
pub(super) struct Runner {
    pub(super) worker: usize,
    pub(super) end: End,
    /// Once the worker has said hello.
    pub(super) planner: Option<Planner>,
    /// Said by the front, not yet heard.
    pub(super) commands: VecDeque<Command>,
    /// Since when a step, or the hello, is awaited.
    busy_since: Micros,
    /// A check of the deadline is under way.
    pub(super) watched: bool,
    /// Another scheduler is to have it: what runs may still end here.
    pub(super) drains: bool,
}

/// Why a worker is lost.
#[derive(Debug)]
pub(super) enum Lost {
    /// What it ran may be the reason.
    Death(String),
    /// Another scheduler has it, or is to have it.
    Taken,
}

pub(super) fn facts(limits: &Limits) -> Facts {
    let kv_tokens = limits.blocks.iter().min().map_or(0, |&blocks| blocks as usize) * limits.block_tokens;
    Facts {
        model_hash: model::model().card.hash.clone(),
        numerics_class: model::model().card.numerics_class.clone(),
        kv_tokens,
        context: CONTEXT,
        block_tokens: limits.block_tokens,
    }
}

// === impl Runner ===

impl Runner {
    pub(super) fn new(worker: usize, end: End, now: Micros) -> Self {
        let commands = VecDeque::new();
        Self { worker, end, planner: None, commands, busy_since: now, watched: false, drains: false }
    }

    /// A result has come.
    pub(super) fn hear(&mut self, message: Message, out: &mut Vec<Output>, now: Micros) -> Result<(), Lost> {
        let (Message::Result(result), Some(planner)) = (message, &mut self.planner) else {
            return Err(Lost::Death("it speaks out of turn".into()));
        };
        self.busy_since = now;
        planner.at(Millis(now / 1000));
        planner.complete(result, out).map_err(|error| Lost::Death(error.to_string()))
    }

    /// Does what the front has said so far, and sends what can run. Gives back what was recalled.
    pub(super) fn go_on(&mut self, out: &mut Vec<Output>, net: &mut Net) -> Vec<Vec<Sequence>> {
        let mut returned = Vec::new();
        while let Some(command) = self.commands.pop_front() {
            returned.extend(self.obey(command, out));
        }
        let Some(planner) = &mut self.planner else { return returned };
        planner.at(Millis(net.now / 1000));
        if planner.in_flight() == 0 {
            self.busy_since = net.now;
        }
        while let Some(plan) = planner.plan() {
            net.send(self.end, Message::Plan(plan));
        }
        returned
    }

    /// Gives back what was recalled.
    fn obey(&mut self, command: Command, out: &mut Vec<Output>) -> Option<Vec<Sequence>> {
        let planner = self.planner.as_mut()?;
        match command {
            Command::Run(sequences) => planner.submit(sequences, out),
            Command::Cancel(keys) => keys.iter().for_each(|key| planner.cancel(key)),
            Command::Recall => return Some(planner.let_waiting_go()),
        }
        None
    }

    /// How long it may stay silent; `None` when nothing is awaited.
    pub(super) fn patience(&self, deadline: Micros, now: Micros) -> Option<Micros> {
        let awaits = self.planner.as_ref().is_none_or(|planner| planner.in_flight() > 0);
        awaits.then(|| (self.busy_since + deadline).saturating_sub(now))
    }

    /// Whether it is drained: nothing runs any more.
    pub(super) fn drained(&self) -> bool {
        self.drains && self.planner.as_ref().is_none_or(Planner::is_idle)
    }

    /// Everything that isn't over, what has only just been said included. What ran may be the reason of a `death`.
    pub(super) fn leave(mut self, death: bool) -> Vec<Sequence> {
        let mut late = Vec::new();
        while let Some(command) = self.commands.pop_front() {
            match (command, &mut self.planner) {
                (Command::Run(sequences), _) => late.extend(sequences),
                (Command::Cancel(keys), Some(planner)) => keys.iter().for_each(|key| planner.cancel(key)),
                (Command::Cancel(_), None) | (Command::Recall, _) => {}
            }
        }
        let mut sequences = match self.planner {
            Some(planner) if death => planner.lost(),
            Some(planner) => planner.let_go(),
            None => Vec::new(),
        };
        sequences.extend(late);
        sequences
    }
}
