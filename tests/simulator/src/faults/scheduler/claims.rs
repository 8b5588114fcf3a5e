//! Claims and connections, as in the scheduler's `workers.rs`; and what is left when all is over.

use volley_scheduler::core::{planner::Planner, types::WorkerId};

use super::{
    super::{
        Event,
        etcd::{Claim, Etcd},
        net::{MILLI, Message, Net, Process, SECOND},
        runner::Runner,
    },
    Owned, PAUSE, Scheduler,
};

/// Until a claim that etcd didn't answer is tried again.
const CLAIM_AGAIN: u64 = SECOND;

impl Scheduler {
    /// The cluster has changed: claims what may be claimed.
    pub(in crate::faults) fn follow(&mut self, etcd: &mut Etcd, net: &mut Net) {
        match etcd.away(self.process(), net.now) {
            0 => self.view = etcd.view().clone(),
            wait => return net.after(wait + MILLI, self.process(), Event::Watch),
        }
        let schedulers = self.view.schedulers().count().max(1);
        let share = self.view.workers().count().div_ceil(schedulers);
        let owner = |worker: &usize| self.view.claims.get(worker).map(|claim| claim.scheduler);
        let mut mine = self.view.workers().filter(|worker| owner(worker) == Some(self.number)).count();
        let surplus: Vec<_> =
            self.view.workers().filter(|w| owner(w) == Some(self.number)).skip(share).collect();
        let free: Vec<_> = self.view.workers().filter(|w| !self.view.claims.contains_key(w)).collect();
        for worker in free {
            mine += 1;
            if mine > share {
                break;
            }
            match etcd.claim(worker, self.number, net) {
                Ok(Some(claim)) => self.own(worker, claim, net),
                Ok(None) => {}
                Err(_) => return net.after(CLAIM_AGAIN, self.process(), Event::Watch),
            }
        }
        for worker in surplus {
            if let Some(owned) = self.owned.get_mut(&worker).filter(|owned| !owned.drains) {
                owned.drains = true;
                self.drain(worker, net);
            }
        }
        // One may have been given up while etcd couldn't be told.
        self.released.retain(|worker, revision| {
            self.view.claims.get(worker).is_some_and(|claim| claim.revision == *revision)
        });
        let ours =
            self.view.claims.iter().filter(|(worker, claim)| {
                claim.scheduler == self.number && !self.released.contains_key(worker)
            });
        let there = ours.filter(|(worker, _)| self.view.members.contains(&Process::Worker(**worker)));
        let there: Vec<_> = there.map(|(&worker, &claim)| (worker, claim)).collect();
        there.into_iter().for_each(|(worker, claim)| self.own(worker, claim, net));
    }

    fn own(&mut self, worker: usize, claim: Claim, net: &mut Net) {
        if let Some(owned) = self.owned.get_mut(&worker) {
            if owned.claim.revision < claim.revision {
                owned.claim = claim;
            }
            return;
        }
        net.say(|| format!("scheduler {} claims worker {worker}", self.number));
        self.owned.insert(worker, Owned { claim, pause: PAUSE.0, drains: false });
        net.after(0, self.process(), Event::Connect(worker));
    }

    /// Connects to a worker that is registered and ours, or gives it up. What to do at the worker: a claim came.
    pub(in crate::faults) fn connect(&mut self, worker: usize, etcd: &mut Etcd, net: &mut Net) {
        let process = self.process();
        let Some(owned) = self.owned.get_mut(&worker) else { return };
        let revision = owned.claim.revision;
        let superseded = self.view.claims.get(&worker).is_some_and(|claim| claim.revision > revision);
        if superseded || owned.drains || !self.view.members.contains(&Process::Worker(worker)) {
            if let Some(owned) = self.owned.remove(&worker) {
                if etcd.release(worker, owned.claim, net) {
                    self.released.insert(worker, owned.claim.revision);
                }
                net.after(0, process, Event::Watch);
            }
            return;
        }
        let Some(end) = net.connect(process, Process::Worker(worker)) else {
            let pause = owned.pause;
            owned.pause = (pause * 2).min(PAUSE.1);
            return net.after(pause, process, Event::Connect(worker));
        };
        self.connections += 1;
        let id = WorkerId(self.connections);
        self.runners.insert(id, Runner::new(worker, end, net.now));
        net.send(end, Message::Claim((revision, self.connections)));
        self.watch(id, net);
    }

    /// What is left when all is over.
    pub(in crate::faults) fn leaks(&self) -> Vec<String> {
        let mut leaks = Vec::new();
        if self.placement.live() > 0 {
            leaks.push(format!("scheduler {} thinks {} sequences live", self.number, self.placement.live()));
        }
        for runner in self.runners.values() {
            let Some(planner) = &runner.planner else { continue };
            let load = planner.load();
            if load.running + load.waiting + planner.in_flight() > 0 || load.free_blocks != load.total_blocks
            {
                leaks.push(format!("scheduler {} at worker {}: {load:?}", self.number, runner.worker));
            }
        }
        leaks
    }

    /// Rows computed in vain, and preemptions, at the workers that it has.
    pub(in crate::faults) fn totals(&self) -> (u64, u64) {
        let totals = self.runners.values().filter_map(|runner| runner.planner.as_ref().map(Planner::totals));
        totals.fold((0, 0), |(waste, preempted), t| (waste + t.wasted_tokens, preempted + t.preemptions))
    }

    pub(in crate::faults) fn moves(&self) -> u64 {
        self.placement.moves()
    }
}
