//! A scheduler: the real placement and planners, and the real assembly of submissions, with simulated tasks between
//! them. The front and each runner hear each other through queues, in their own time, as in the real one.

mod claims;
mod front;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use volley_proto::v1;
use volley_scheduler::{
    core::{
        blocks::Change,
        placement::Placement,
        planner::{Limits, Planner},
        sequence::{Output, Sequence},
        types::{LinkId, Millis, SequenceKey, WorkerId},
    },
    submission::Assembler,
};

use super::{
    Event,
    etcd::{Claim, View},
    net::{End, MILLI, Message, Micros, Net, Process, SECOND},
    runner::{Lost, Runner},
    silence::Silence,
};

/// A worker that hasn't answered for so long is lost.
const DEADLINE: Micros = 5 * SECOND;
/// How long sequences may go on at a worker that another scheduler is to have.
const DRAIN: Micros = SECOND;
/// Between attempts to reach a worker.
const PAUSE: (Micros, Micros) = (100 * MILLI, 2 * SECOND);

enum ToFront {
    Up(LinkId),
    Submit(Vec<Sequence>),
    Cancel(LinkId, v1::Cancel),
    Down(LinkId),
    Joined(WorkerId),
    Progress { begun: Vec<SequenceKey>, ended: Vec<SequenceKey> },
    Cache(WorkerId, Vec<Change>),
    Drains(WorkerId, Vec<Sequence>),
    Returned(WorkerId, Vec<Sequence>),
    Left(WorkerId, Vec<Sequence>),
}

struct Link {
    end: End,
    assembler: Assembler,
}

/// A claimed worker.
struct Owned {
    claim: Claim,
    pause: Micros,
    /// Another scheduler is to have it.
    drains: bool,
}

pub(super) struct Scheduler {
    number: usize,
    limits: Limits,
    placement: Placement,
    /// Open ones.
    links: BTreeMap<LinkId, Link>,
    /// Those that the front knows.
    known_links: BTreeMap<LinkId, End>,
    runners: BTreeMap<WorkerId, Runner>,
    /// Workers that the front has.
    joined: BTreeSet<WorkerId>,
    from_links: VecDeque<ToFront>,
    from_runners: VecDeque<ToFront>,
    view: View,
    owned: BTreeMap<usize, Owned>,
    /// Released claims, which the view may still have.
    released: BTreeMap<usize, u64>,
    next_link: u64,
    connections: u64,
    arrivals: u64,
    /// Blocks that workers had cached when they were claimed.
    pub(super) taken_over: u64,
    silence: Silence,
}

// === impl Scheduler ===

impl Scheduler {
    pub(super) fn new(number: usize, limits: Limits) -> Self {
        Self {
            number,
            limits,
            placement: Placement::default(),
            links: BTreeMap::new(),
            known_links: BTreeMap::new(),
            runners: BTreeMap::new(),
            joined: BTreeSet::new(),
            from_links: VecDeque::new(),
            from_runners: VecDeque::new(),
            view: View::default(),
            owned: BTreeMap::new(),
            released: BTreeMap::new(),
            next_link: 0,
            connections: 0,
            arrivals: 0,
            taken_over: 0,
            silence: Silence::default(),
        }
    }

    fn process(&self) -> Process {
        Process::Scheduler(self.number)
    }

    /// A router has connected: `end` is this side's.
    pub(super) fn link_up(&mut self, end: End, net: &mut Net) {
        self.next_link += 1;
        let id = LinkId(self.next_link);
        self.links.insert(id, Link { end, assembler: Assembler::default() });
        self.tell_from_link(ToFront::Up(id), net);
    }

    /// A message has come over a wire.
    pub(super) fn deliver(&mut self, end: End, message: Message, net: &mut Net) {
        if let Some((&id, _)) = self.links.iter().find(|(_, link)| link.end == end) {
            self.hear_link(id, message, net);
        } else if let Some((&id, _)) = self.runners.iter().find(|(_, runner)| runner.end == end) {
            self.hear_worker(id, message, net);
        }
    }

    /// A wire is broken.
    pub(super) fn broken(&mut self, end: End, net: &mut Net) {
        if let Some((&id, _)) = self.links.iter().find(|(_, link)| link.end == end) {
            self.link_down(id, net);
        } else if let Some((&id, _)) = self.runners.iter().find(|(_, runner)| runner.end == end) {
            self.lose(id, Lost::Death("the connection broke".into()), net);
        }
    }

    fn hear_link(&mut self, id: LinkId, message: Message, net: &mut Net) {
        let Some(link) = self.links.get_mut(&id) else { return };
        match message {
            Message::Submit(chunk) => {
                if let Ok(Some(submission)) = link.assembler.add(chunk) {
                    self.tell_from_link(
                        ToFront::Submit(submission.sequences(id, Millis(net.now / MILLI))),
                        net,
                    );
                }
            }
            Message::Cancel(cancel) => {
                link.assembler.forget(cancel.request);
                self.tell_from_link(ToFront::Cancel(id, cancel), net);
            }
            _ => self.link_down(id, net),
        }
    }

    fn link_down(&mut self, id: LinkId, net: &mut Net) {
        if let Some(link) = self.links.remove(&id) {
            net.close(link.end);
            self.tell_from_link(ToFront::Down(id), net);
        }
    }

    fn hear_worker(&mut self, id: WorkerId, message: Message, net: &mut Net) {
        let Some(runner) = self.runners.get_mut(&id) else { return };
        let mut out = Vec::new();
        let heard = match message {
            Message::Hello(inventory) => {
                match Planner::new(self.limits.clone()).holding(&inventory) {
                    Ok(planner) => runner.planner = Some(planner),
                    Err(bad) => net.broken.push(format!("worker {}: {bad}", runner.worker)),
                }
                self.taken_over += inventory.iter().map(|group| group.blocks.len() as u64).sum::<u64>();
                if let Some(owned) = self.owned.get_mut(&runner.worker) {
                    owned.pause = PAUSE.0;
                }
                self.tell_from_runner(ToFront::Joined(id), net);
                return self.go_on(id, Vec::new(), net);
            }
            Message::Close => Err(Lost::Taken),
            result => runner.hear(result, &mut out, net.now),
        };
        match heard {
            Ok(()) => self.go_on(id, out, net),
            Err(why) => self.lose(id, why, net),
        }
    }

    /// A runner has been told something.
    pub(super) fn runner_wakes(&mut self, id: WorkerId, net: &mut Net) {
        self.go_on(id, Vec::new(), net);
    }

    fn go_on(&mut self, id: WorkerId, mut out: Vec<Output>, net: &mut Net) {
        let Some(runner) = self.runners.get_mut(&id) else { return };
        let returned = runner.go_on(&mut out, net);
        let changes = runner.planner.as_mut().map_or_else(Vec::new, Planner::cache_changes);
        let drained = runner.drained();
        self.watch(id, net);
        self.report(out, net);
        for sequences in returned {
            self.tell_from_runner(ToFront::Returned(id, sequences), net);
        }
        if !changes.is_empty() {
            self.tell_from_runner(ToFront::Cache(id, changes), net);
        }
        if drained {
            self.lose(id, Lost::Taken, net);
        }
    }

    fn watch(&mut self, id: WorkerId, net: &mut Net) {
        let process = self.process();
        let Some(runner) = self.runners.get_mut(&id) else { return };
        if let (false, Some(patience)) = (runner.watched, runner.patience(DEADLINE, net.now)) {
            runner.watched = true;
            net.after(patience, process, Event::Deadline(id));
        }
    }

    /// Whether a worker has been silent for too long.
    pub(super) fn deadline(&mut self, id: WorkerId, net: &mut Net) {
        let Some(runner) = self.runners.get_mut(&id) else { return };
        runner.watched = false;
        match runner.patience(DEADLINE, net.now) {
            Some(0) => self.lose(id, Lost::Death("it said nothing for too long".into()), net),
            Some(_) => self.watch(id, net),
            None => {}
        }
    }

    /// A worker is to go to another scheduler: it takes nothing new, and what waits begins elsewhere.
    fn drain(&mut self, worker: usize, net: &mut Net) {
        let process = self.process();
        let found = self.runners.iter_mut().find(|(_, runner)| runner.worker == worker);
        let Some((&id, runner)) = found else { return };
        runner.drains = true;
        net.say(|| format!("{process:?} drains worker {worker}"));
        net.after(DRAIN, process, Event::Drained(id));
        let waiting = runner.planner.as_mut().map_or_else(Vec::new, Planner::let_waiting_go);
        self.tell_from_runner(ToFront::Drains(id, waiting), net);
        self.go_on(id, Vec::new(), net);
    }

    /// Its sequences had their time.
    pub(super) fn drained(&mut self, id: WorkerId, net: &mut Net) {
        self.lose(id, Lost::Taken, net);
    }

    /// What sequences have to say: a message per link; and to the front, who is done.
    fn report(&mut self, out: Vec<Output>, net: &mut Net) {
        let keys = |of: fn(&Output) -> bool| -> Vec<_> {
            out.iter().filter(|output| of(output)).map(|output| output.key).collect()
        };
        let (begun, ended) = (keys(|output| output.begins), keys(Output::ends));
        let mut by_link: BTreeMap<LinkId, Vec<v1::SequenceOutput>> = BTreeMap::new();
        for output in out {
            net.broken.extend(self.silence.heard(output.key, output.ends(), net.now));
            by_link.entry(output.key.link).or_default().push(output.message);
        }
        for (id, sequences) in by_link {
            if let Some(link) = self.links.get(&id) {
                net.send(link.end, Message::Output(v1::StepOutput { sequences }));
            }
        }
        if !(begun.is_empty() && ended.is_empty()) {
            self.tell_from_runner(ToFront::Progress { begun, ended }, net);
        }
    }

    fn lose(&mut self, id: WorkerId, why: Lost, net: &mut Net) {
        let Some(runner) = self.runners.remove(&id) else { return };
        let said = match &why {
            Lost::Death(how) => how,
            Lost::Taken => "another scheduler has it",
        };
        net.say(|| format!("scheduler {} loses worker {}: {said}", self.number, runner.worker));
        net.close(runner.end);
        let worker = runner.worker;
        if runner.planner.is_some() {
            self.tell_from_runner(ToFront::Left(id, runner.leave(matches!(why, Lost::Death(_)))), net);
        }
        let Some(owned) = self.owned.get_mut(&worker) else { return };
        let pause = owned.pause;
        owned.pause = (pause * 2).min(PAUSE.1);
        net.after(pause, self.process(), Event::Connect(worker));
    }

    fn tell_from_link(&mut self, event: ToFront, net: &mut Net) {
        self.from_links.push_back(event);
        self.wake_front(net);
    }

    fn tell_from_runner(&mut self, event: ToFront, net: &mut Net) {
        self.from_runners.push_back(event);
        self.wake_front(net);
    }

    fn wake_front(&self, net: &mut Net) {
        let wait = if net.random.chance(0.05) {
            net.random.between(0, 20 * MILLI)
        } else {
            net.random.between(0, 100)
        };
        net.after(wait, self.process(), Event::Front);
    }
}
