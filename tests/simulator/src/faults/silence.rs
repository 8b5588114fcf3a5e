//! Who has nothing more to say: sequences that ended or were cancelled, older attempts, links that are gone. One that
//! speaks all the same costs its worker rows that nobody wants, though no client would notice.

use std::collections::{BTreeMap, BTreeSet};

use volley_scheduler::core::types::{LinkId, SequenceKey};

use super::net::{MILLI, Micros};

/// A step's outputs may be on their way to the link when the front learns that nobody wants them.
const GRACE: Micros = MILLI;

/// What a scheduler's sequences have been told.
#[derive(Default)]
pub(super) struct Silence {
    ended: BTreeSet<SequenceKey>,
    /// The first attempt that isn't cancelled, and since when.
    attempts: BTreeMap<(LinkId, u64), (u32, Micros)>,
    choices: BTreeMap<(LinkId, u64, u32), Micros>,
    links: BTreeMap<LinkId, Micros>,
}

// === impl Silence ===

impl Silence {
    /// A request was submitted: older attempts at it are over.
    pub(super) fn submitted(&mut self, key: SequenceKey, now: Micros) {
        self.attempts.insert((key.link, key.request), (key.attempt, now));
        self.choices.retain(|&(link, request, _), _| (link, request) != (key.link, key.request));
    }

    /// It was cancelled, or one choice of it.
    pub(super) fn cancelled(&mut self, link: LinkId, request: u64, choice: Option<u32>, now: Micros) {
        match choice {
            Some(choice) => drop(self.choices.insert((link, request, choice), now)),
            None => drop(self.attempts.insert((link, request), (u32::MAX, now))),
        }
    }

    /// A router is gone.
    pub(super) fn link_lost(&mut self, link: LinkId, now: Micros) {
        self.links.insert(link, now);
    }

    /// A sequence says something, its last if `ends`. Why it shouldn't.
    pub(super) fn heard(&mut self, key: SequenceKey, ends: bool, now: Micros) -> Option<String> {
        let SequenceKey { link, request, attempt, choice } = key;
        let late = |since: Micros| now > since + GRACE;
        let why = if self.ended.contains(&key) {
            "it had ended"
        } else if self.links.get(&link).copied().is_some_and(late) {
            "its link was gone"
        } else if self.choices.get(&(link, request, choice)).copied().is_some_and(late) {
            "its choice was cancelled"
        } else if self.attempts.get(&(link, request)).is_some_and(|&(first, at)| attempt < first && late(at))
        {
            "a newer attempt runs, or none should"
        } else {
            if ends {
                self.ended.insert(key);
            }
            return None;
        };
        Some(format!("{key:?} goes on, but {why}"))
    }
}
