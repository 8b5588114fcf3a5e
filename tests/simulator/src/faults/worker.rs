//! A worker process: its step thread, which takes one job after another, and fencing by epoch, as in the worker's
//! `engine/mod.rs`.

use std::collections::VecDeque;

use volley_proto::v1;

use super::{
    Event,
    net::{End, Epoch, Message, Net, Process},
};
use crate::worker::{Stepped, Violation, Worker};

enum Job {
    Claim(Epoch),
    Step(v1::StepPlan),
    End,
}

pub(super) struct WorkerProcess {
    number: usize,
    machine: Worker,
    /// The highest seen, and its connection.
    epoch: Epoch,
    owner: Option<End>,
    jobs: VecDeque<(End, Job)>,
    /// The answer to the step that runs.
    running: Option<v1::StepResult>,
}

// === impl WorkerProcess ===

impl WorkerProcess {
    pub(super) fn new(number: usize, machine: Worker) -> Self {
        Self { number, machine, epoch: (0, 0), owner: None, jobs: VecDeque::new(), running: None }
    }

    pub(super) fn deliver(&mut self, end: End, message: Message, net: &mut Net) -> Result<(), Violation> {
        let job = match message {
            Message::Claim(epoch) => Job::Claim(epoch),
            Message::Plan(plan) => Job::Step(plan),
            _ => {
                net.shut(end);
                Job::End
            }
        };
        self.jobs.push_back((end, job));
        self.work(net)
    }

    pub(super) fn broken(&mut self, end: End, net: &mut Net) -> Result<(), Violation> {
        if net.shut(end) {
            self.jobs.push_back((end, Job::End));
        }
        self.work(net)
    }

    /// The step is done.
    pub(super) fn done(&mut self, net: &mut Net) -> Result<(), Violation> {
        if let (Some(result), Some(owner)) = (self.running.take(), self.owner) {
            net.send(owner, Message::Result(result));
        }
        self.work(net)
    }

    fn work(&mut self, net: &mut Net) -> Result<(), Violation> {
        while self.running.is_none() {
            let Some((end, job)) = self.jobs.pop_front() else { break };
            match job {
                Job::Claim(epoch) if epoch > self.epoch => {
                    self.disown(net);
                    (self.epoch, self.owner) = (epoch, Some(end));
                    net.send(end, Message::Hello(self.machine.inventory()));
                }
                Job::Claim(_) => net.close(end),
                // Of an older epoch.
                Job::Step(_) | Job::End if self.owner != Some(end) => {}
                Job::End => self.disown(net),
                Job::Step(plan) => {
                    let Stepped { result, took, fatal } = self.machine.step(plan)?;
                    self.running = Some(result);
                    let took = (took.as_micros() as u64).max(1);
                    let process = Process::Worker(self.number);
                    match fatal {
                        true => net.after(took, Process::World, Event::Poisoned(process)),
                        false => net.after(took, process, Event::StepDone),
                    }
                }
            }
        }
        Ok(())
    }

    fn disown(&mut self, net: &mut Net) {
        if let Some(owner) = self.owner.take() {
            net.close(owner);
        }
        self.machine.clear();
    }

    /// What is left when all is over.
    pub(super) fn leaks(&self) -> Option<String> {
        let taken = self.machine.taken();
        (taken > 0).then(|| format!("worker {} has {taken} slots taken", self.number))
    }
}
