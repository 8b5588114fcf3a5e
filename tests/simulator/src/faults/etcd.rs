//! etcd: who is there, and who owns which worker. Changes reach processes by watch, in their own time; while it is
//! away, or a process is cut off from it, views stay as they are and nothing can be claimed.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    Event,
    net::{MILLI, Micros, Net, Process, SECOND},
};

/// How long a lease outlives its process.
pub(super) const LEASE: Micros = 3 * SECOND;

/// What a process sees of the cluster.
#[derive(Clone, Debug, Default)]
pub(super) struct View {
    pub(super) members: BTreeSet<Process>,
    /// Worker → scheduler, and the claim's revision.
    pub(super) claims: BTreeMap<usize, Claim>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Claim {
    pub(super) scheduler: usize,
    pub(super) revision: u64,
}

#[derive(Default)]
pub(super) struct Etcd {
    view: View,
    revision: u64,
    away_until: Micros,
    cut_off: BTreeMap<Process, Micros>,
}

// === impl View ===

impl View {
    pub(super) fn schedulers(&self) -> impl Iterator<Item = usize> + '_ {
        self.members.iter().filter_map(|member| match member {
            Process::Scheduler(number) => Some(*number),
            _ => None,
        })
    }

    pub(super) fn workers(&self) -> impl Iterator<Item = usize> + '_ {
        self.members.iter().filter_map(|member| match member {
            Process::Worker(number) => Some(*number),
            _ => None,
        })
    }
}

// === impl Etcd ===

impl Etcd {
    /// How long a process has to wait for it; 0: it answers.
    pub(super) fn away(&self, process: Process, now: Micros) -> Micros {
        let cut_off = self.cut_off.get(&process).copied().unwrap_or(0);
        self.away_until.max(cut_off).saturating_sub(now)
    }

    pub(super) fn view(&self) -> &View {
        &self.view
    }

    /// Announces a process, as soon as it can.
    pub(super) fn register(&mut self, process: Process, net: &mut Net) {
        match self.away(process, net.now) {
            0 if !self.view.members.contains(&process) => {
                self.view.members.insert(process);
                self.changed(net);
            }
            0 => {}
            wait => net.after(wait + MILLI, process, Event::Register),
        }
    }

    /// A lease that nobody renewed ends: with it the member, and its claims.
    pub(super) fn expire(&mut self, process: Process, net: &mut Net) {
        let away = self.away_until.saturating_sub(net.now);
        if away > 0 {
            return net.after(away + LEASE, Process::World, Event::Expire(process));
        }
        if !net.is_dead(process) && self.away(process, net.now) == 0 {
            return; // back in time
        }
        net.say(|| format!("the lease of {process:?} ends"));
        self.view.members.remove(&process);
        self.view.claims.retain(|_, claim| Process::Scheduler(claim.scheduler) != process);
        self.changed(net);
    }

    /// Claims a worker. `None`: it has an owner or is gone. An error: how long etcd is away.
    pub(super) fn claim(
        &mut self,
        worker: usize,
        scheduler: usize,
        net: &mut Net,
    ) -> Result<Option<Claim>, Micros> {
        let process = Process::Scheduler(scheduler);
        let away = self.away(process, net.now);
        if away > 0 {
            return Err(away);
        }
        let there = self.view.members.contains(&Process::Worker(worker));
        if !there || !self.view.members.contains(&process) || self.view.claims.contains_key(&worker) {
            return Ok(None);
        }
        self.revision += 1;
        let claim = Claim { scheduler, revision: self.revision };
        self.view.claims.insert(worker, claim);
        self.changed(net);
        Ok(Some(claim))
    }

    /// Gives a worker up, if the claim still holds. False: etcd doesn't answer.
    pub(super) fn release(&mut self, worker: usize, claim: Claim, net: &mut Net) -> bool {
        let answers = self.away(Process::Scheduler(claim.scheduler), net.now) == 0;
        if answers && self.view.claims.get(&worker) == Some(&claim) {
            self.view.claims.remove(&worker);
            self.changed(net);
        }
        answers
    }

    /// It is away for everybody.
    pub(super) fn leave(&mut self, time: Micros, net: &Net) {
        self.away_until = self.away_until.max(net.now + time);
    }

    /// It is away for one process. Its lease ends if that takes too long; then it registers again.
    pub(super) fn cut_off(&mut self, process: Process, time: Micros, net: &mut Net) {
        let until = self.cut_off.entry(process).or_default();
        *until = (*until).max(net.now + time);
        if time > LEASE {
            net.after(LEASE, Process::World, Event::Expire(process));
        }
        net.after(time + MILLI, process, Event::Register);
    }

    /// Tells everybody, each in its own time.
    fn changed(&mut self, net: &mut Net) {
        self.revision += 1;
        for &member in &self.view.members {
            let wait = net.random.between(MILLI, 50 * MILLI);
            net.after(wait, member, Event::Watch);
        }
    }
}
