//! Virtual time and the wires between processes.
//!
//! A wire is a gRPC stream over TCP: ordered both ways, never duplicated, and breakable. When it breaks, each
//! direction delivers some beginning of what was under way, and each end learns of it in its own time. A frozen
//! process handles nothing until it thaws; a dead one nothing any more.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, BinaryHeap, VecDeque},
    time::Duration,
};

use volley_proto::v1;

use super::Event;
use crate::random::Random;

/// Virtual microseconds since the start.
pub(super) type Micros = u64;

/// A process. Numbers are never used again: one that restarts is another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Process {
    /// Clients, etcd and fate.
    World,
    Router(usize),
    Scheduler(usize),
    Worker(usize),
}

/// A worker's owner: claim revision, connection number.
pub(super) type Epoch = (u64, u64);

#[derive(Clone, Debug)]
#[allow(clippy::large_enum_variant)] // few are under way at a time
pub(super) enum Message {
    Submit(v1::Submit),
    Cancel(v1::Cancel),
    /// Whether the scheduler serves the model.
    Models(bool),
    Output(v1::StepOutput),
    Claim(Epoch),
    /// The answer: what the worker's cache holds.
    Hello(Vec<v1::NamedBlocks>),
    Plan(v1::StepPlan),
    Result(v1::StepResult),
    /// The other end closed the stream.
    Close,
}

/// One end of a wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct End {
    pub(super) wire: usize,
    /// 0 opened it.
    pub(super) side: usize,
}

struct Wire {
    processes: [Process; 2],
    /// Under way to that side.
    inbox: [VecDeque<Message>; 2],
    /// When the last of them arrives.
    last: [Micros; 2],
    open: [bool; 2],
    cut: bool,
}

struct Due {
    at: Micros,
    number: u64,
    target: Process,
    event: Event,
}

pub(super) struct Net {
    pub(super) now: Micros,
    pub(super) random: Random,
    /// What happened, if anybody wants to know.
    pub(super) log: Option<Vec<String>>,
    /// Promises that were broken.
    pub(super) broken: Vec<String>,
    queue: BinaryHeap<Reverse<Due>>,
    numbers: u64,
    wires: Vec<Wire>,
    frozen: BTreeMap<Process, Micros>,
    dead: BTreeSet<Process>,
    /// Pairs that can't reach each other, until then.
    blocked: Vec<(Process, Process, Micros)>,
    /// The part of messages that are slow.
    noise: f64,
}

pub(super) const MILLI: Micros = 1000;
pub(super) const SECOND: Micros = 1000 * MILLI;

// === impl Net ===

impl Net {
    pub(super) fn new(random: Random, noise: f64, log: bool) -> Self {
        Self {
            now: 0,
            random,
            log: log.then(Vec::new),
            broken: Vec::new(),
            queue: BinaryHeap::new(),
            numbers: 0,
            wires: Vec::new(),
            frozen: BTreeMap::new(),
            dead: BTreeSet::new(),
            blocked: Vec::new(),
            noise,
        }
    }

    /// Writes a line of the story.
    pub(super) fn say(&mut self, line: impl FnOnce() -> String) {
        let now = self.now;
        if let Some(log) = &mut self.log {
            log.push(format!("{:>12.6} {}", now as f64 / 1e6, line()));
        }
    }

    /// Lets `target` handle an event later.
    pub(super) fn after(&mut self, wait: Micros, target: Process, event: Event) {
        self.numbers += 1;
        let due = Due { at: self.now + wait, number: self.numbers, target, event };
        self.queue.push(Reverse(due));
    }

    /// The next event, with the time set to it.
    pub(super) fn next(&mut self) -> Option<(Process, Event)> {
        loop {
            let Reverse(due) = self.queue.pop()?;
            self.now = due.at;
            if self.dead.contains(&due.target) {
                continue;
            }
            match self.frozen.get(&due.target) {
                Some(&until) if until > self.now => self.after(until - self.now, due.target, due.event),
                _ => return Some((due.target, due.event)),
            }
        }
    }

    /// Connects two processes, if they can reach each other; the caller's end.
    pub(super) fn connect(&mut self, from: Process, to: Process) -> Option<End> {
        let now = self.now;
        let apart = |&(a, b, until): &(Process, Process, Micros)| {
            until > now && ((a, b) == (from, to) || (a, b) == (to, from))
        };
        if self.dead.contains(&to) || self.blocked.iter().any(apart) {
            return None;
        }
        self.wires.push(Wire {
            processes: [from, to],
            inbox: Default::default(),
            last: [now; 2],
            open: [true; 2],
            cut: false,
        });
        Some(End { wire: self.wires.len() - 1, side: 0 })
    }

    /// Sends to the other end, unless this one is closed.
    pub(super) fn send(&mut self, from: End, message: Message) {
        let wait = self.delay();
        let wire = &mut self.wires[from.wire];
        if !wire.open[from.side] || wire.cut {
            return;
        }
        let to = 1 - from.side;
        wire.inbox[to].push_back(message);
        wire.last[to] = wire.last[to].max(self.now + wait);
        let (wait, target) = (wire.last[to] - self.now, wire.processes[to]);
        self.after(wait, target, Event::Deliver(End { wire: from.wire, side: to }));
    }

    /// Takes the message that has arrived; none if this end is closed.
    pub(super) fn receive(&mut self, end: End) -> Option<Message> {
        let wire = &mut self.wires[end.wire];
        let message = wire.inbox[end.side].pop_front()?;
        wire.open[end.side].then_some(message)
    }

    /// Closes this end; the other hears of it after all that was sent.
    pub(super) fn close(&mut self, end: End) {
        self.send(end, Message::Close);
        self.wires[end.wire].open[end.side] = false;
    }

    /// This end is of no more use. False: it was closed already.
    pub(super) fn shut(&mut self, end: End) -> bool {
        std::mem::replace(&mut self.wires[end.wire].open[end.side], false)
    }

    /// Breaks a wire. Each end learns of it within `notice`.
    pub(super) fn cut(&mut self, wire: usize, notice: Micros) {
        if std::mem::replace(&mut self.wires[wire].cut, true) {
            return;
        }
        for side in 0..2 {
            let kept = self.random.below(self.wires[wire].inbox[side].len() + 1);
            let wait = self.random.between(0, notice);
            let cut = &mut self.wires[wire];
            cut.inbox[side].truncate(kept);
            let (at, target) = (cut.last[side].max(self.now) + wait, cut.processes[side]);
            self.after(at - self.now, target, Event::Broken(End { wire, side }));
        }
    }

    /// A process dies. Its peers learn of it within `notice`.
    pub(super) fn kill(&mut self, process: Process, notice: Micros) {
        self.dead.insert(process);
        self.cut_all(process, notice);
    }

    pub(super) fn cut_all(&mut self, process: Process, notice: Micros) {
        for wire in 0..self.wires.len() {
            if self.wires[wire].processes.contains(&process) {
                self.cut(wire, notice);
            }
        }
    }

    /// A process stands still for a while.
    pub(super) fn freeze(&mut self, process: Process, time: Micros) {
        let until = self.frozen.entry(process).or_default();
        *until = (*until).max(self.now + time);
    }

    /// Two processes can't reach each other for a while.
    pub(super) fn part(&mut self, one: Process, other: Process, time: Micros, notice: Micros) {
        self.blocked.push((one, other, self.now + time));
        for wire in 0..self.wires.len() {
            if self.wires[wire].processes.contains(&one) && self.wires[wire].processes.contains(&other) {
                self.cut(wire, notice);
            }
        }
    }

    /// Wires that are in use.
    pub(super) fn live_wires(&self) -> Vec<usize> {
        let live = |wire: &&Wire| !wire.cut && wire.open == [true; 2];
        (0..).zip(&self.wires).filter(|(_, wire)| live(wire)).map(|(number, _)| number).collect()
    }

    /// Who is at the other end.
    pub(super) fn peer(&self, end: End) -> Process {
        self.wires[end.wire].processes[1 - end.side]
    }

    pub(super) fn is_dead(&self, process: Process) -> bool {
        self.dead.contains(&process)
    }

    /// A message's time on its way.
    pub(super) fn delay(&mut self) -> Micros {
        if self.random.chance(self.noise) {
            self.random.between(MILLI, 300 * MILLI)
        } else {
            self.random.between(50, MILLI)
        }
    }

    pub(super) fn time(&self) -> Duration {
        Duration::from_micros(self.now)
    }
}

// === impl End ===

impl End {
    /// The other end.
    pub(super) fn other(self) -> Self {
        Self { wire: self.wire, side: 1 - self.side }
    }
}

// === impl Due ===

impl PartialEq for Due {
    fn eq(&self, other: &Self) -> bool {
        self.number == other.number
    }
}

impl Eq for Due {}

impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Due {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.number).cmp(&(other.at, other.number))
    }
}
