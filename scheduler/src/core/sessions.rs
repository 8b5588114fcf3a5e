//! Where each session's last request went. Bounded: what wasn't heard of for long is forgotten.

use std::collections::HashMap;

use super::types::WorkerId;

/// Sessions that are remembered at least; about twice as many at most. At 24 bytes each, a few MB.
const REMEMBERED: usize = 1 << 16;

/// The last worker of each session.
#[derive(Debug, Default)]
pub struct Sessions {
    recent: HashMap<u64, WorkerId>,
    /// As `recent` was when it was full.
    older: HashMap<u64, WorkerId>,
}

// === impl Sessions ===

impl Sessions {
    /// A request of the session goes to this worker.
    pub fn went(&mut self, session: u64, worker: WorkerId) {
        if self.recent.len() >= REMEMBERED {
            self.older = std::mem::take(&mut self.recent);
        }
        self.recent.insert(session, worker);
    }

    /// Where its last one went, unless that is forgotten; the worker may be gone.
    pub fn last(&self, session: u64) -> Option<WorkerId> {
        self.recent.get(&session).or_else(|| self.older.get(&session)).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_sessions_are_remembered_and_their_number_is_bounded() {
        let mut sessions = Sessions::default();
        for session in 0..5 * REMEMBERED as u64 {
            sessions.went(session, WorkerId(session));
            assert_eq!(sessions.last(session), Some(WorkerId(session)));
            assert!(sessions.recent.len() + sessions.older.len() <= 2 * REMEMBERED);
        }
        let last = 5 * REMEMBERED as u64 - 1;
        assert!(sessions.last(last - REMEMBERED as u64 + 1).is_some());
        assert_eq!(sessions.last(0), None);
        sessions.went(last, WorkerId(1));
        assert_eq!(sessions.last(last), Some(WorkerId(1)), "the last one counts");
    }
}
