//! The front: the task around placement, as in the scheduler's `front.rs`.

use std::collections::{BTreeMap, VecDeque};

use volley_proto::v1;
use volley_scheduler::core::{
    placement::Action,
    sequence::Sequence,
    types::{LinkId, WorkerId},
};

use super::{
    super::{
        Event,
        net::{Message, Net, Process},
        runner::{Command, facts},
    },
    Scheduler, ToFront,
};

impl Scheduler {
    /// The front takes in one thing that it was told.
    pub(in crate::faults) fn front(&mut self, net: &mut Net) {
        let runners_first = net.random.chance(0.5);
        let (first, second) = match runners_first {
            true => (&mut self.from_runners, &mut self.from_links),
            false => (&mut self.from_links, &mut self.from_runners),
        };
        let Some(event) = first.pop_front().or_else(|| second.pop_front()) else { return };
        let mut actions = Vec::new();
        match event {
            ToFront::Up(id) => {
                if let Some(link) = self.links.get(&id) {
                    self.known_links.insert(id, link.end);
                    net.send(link.end, Message::Models(!self.joined.is_empty()));
                }
            }
            ToFront::Submit(mut request) => {
                for sequence in &mut request {
                    self.arrivals += 1;
                    sequence.arrival = self.arrivals;
                }
                request.iter().for_each(|sequence| self.silence.submitted(sequence.key, net.now));
                self.placement.submit(request, &mut actions);
            }
            ToFront::Cancel(link, cancel) => {
                self.silence.cancelled(link, cancel.request, cancel.choice, net.now);
                self.placement.cancel(link, cancel.request, cancel.choice, &mut actions);
            }
            ToFront::Down(id) => {
                self.known_links.remove(&id);
                self.silence.link_lost(id, net.now);
                self.placement.link_lost(id, &mut actions);
            }
            ToFront::Joined(id) => {
                self.placement.worker_joined(id, facts(&self.limits), &mut actions);
                self.joined.insert(id);
                self.models_changed(self.joined.len() == 1, net);
            }
            ToFront::Progress { begun, ended } => {
                begun.iter().for_each(|key| self.placement.begun(key));
                ended.iter().for_each(|key| self.placement.ended(key));
            }
            ToFront::Cache(id, changes) => self.placement.cache_changed(id, &changes),
            ToFront::Drains(id, sequences) => self.worker_left(id, sequences, &mut actions, net),
            ToFront::Returned(id, sequences) => self.placement.returned(id, sequences, &mut actions),
            ToFront::Left(id, sequences) => self.worker_left(id, sequences, &mut actions, net),
        }
        self.act(actions, net);
    }

    fn worker_left(&mut self, id: WorkerId, sequences: Vec<Sequence>, out: &mut Vec<Action>, net: &mut Net) {
        if self.joined.remove(&id) {
            self.models_changed(self.joined.is_empty(), net);
        }
        self.placement.worker_left(id, sequences, out);
    }

    /// Routers learn what is served here, when that changes.
    fn models_changed(&self, changed: bool, net: &mut Net) {
        let serves = !self.joined.is_empty();
        self.known_links.values().filter(|_| changed).for_each(|&end| net.send(end, Message::Models(serves)));
    }

    fn act(&mut self, actions: Vec<Action>, net: &mut Net) {
        let mut todo = VecDeque::from(actions);
        let mut reports: BTreeMap<LinkId, Vec<v1::SequenceOutput>> = BTreeMap::new();
        while let Some(action) = todo.pop_front() {
            match action {
                Action::Report(output) => {
                    reports.entry(output.key.link).or_default().push(output.message);
                }
                Action::Cancel { worker, keys } => self.command(worker, Command::Cancel(keys), net),
                Action::Recall { worker } => self.command(worker, Command::Recall, net),
                Action::Run { worker, sequences } => {
                    let link = sequences.first().map(|sequence| sequence.key.link);
                    let mut more = Vec::new();
                    if !link.is_some_and(|link| self.known_links.contains_key(&link)) {
                        sequences.iter().for_each(|sequence| self.placement.ended(&sequence.key));
                    } else if self.runners.contains_key(&worker) {
                        self.command(worker, Command::Run(sequences), net);
                    } else {
                        self.worker_left(worker, sequences, &mut more, net);
                    }
                    todo.extend(more);
                }
            }
        }
        for (id, sequences) in reports {
            if let Some(link) = self.links.get(&id) {
                net.send(link.end, Message::Output(v1::StepOutput { sequences }));
            }
        }
    }

    fn command(&mut self, worker: WorkerId, command: Command, net: &mut Net) {
        if let Some(runner) = self.runners.get_mut(&worker) {
            runner.commands.push_back(command);
            let wait = net.random.between(0, 100);
            net.after(wait, Process::Scheduler(self.number), Event::Runner(worker));
        }
    }
}
