//! Draws that a device may still be at.

use std::sync::Arc;

use crate::{Drawn, Error};

/// What some rows drew, or will have drawn once their device gets there.
pub struct Drawing(Vec<Part>);

enum Part {
    Done(Vec<Drawn>),
    UnderWay(Arc<dyn UnderWay>),
}

/// Draws on their way.
pub(crate) trait UnderWay: Send + Sync {
    /// Waits until they are there.
    fn wait(&self) -> Result<(), Error>;
    /// Waits, and gives them.
    fn drawn(&self) -> Result<Vec<Drawn>, Error>;
}

/// Waits for the end of some draws, on whatever thread.
pub struct Waiter(Arc<dyn UnderWay>);

// === impl Drawing ===

impl Drawing {
    /// They are there.
    pub fn done(drawn: Vec<Drawn>) -> Self {
        Self(vec![Part::Done(drawn)])
    }

    pub(crate) fn under_way(draws: Arc<dyn UnderWay>) -> Self {
        Self(vec![Part::UnderWay(draws)])
    }

    /// These, and others that were started after them.
    pub fn and(mut self, later: Self) -> Self {
        self.0.extend(later.0);
        self
    }

    /// What waits for their end, where the device is still at them.
    pub fn waiter(&self) -> Option<Waiter> {
        match self.0.last()? {
            Part::UnderWay(draws) => Some(Waiter(draws.clone())),
            Part::Done(_) => None,
        }
    }

    /// Waits for them. An error is the device's, of this or of work before it.
    pub fn wait(self) -> Result<Vec<Drawn>, Error> {
        let mut all = Vec::new();
        for part in self.0 {
            match part {
                Part::Done(drawn) => all.extend(drawn),
                Part::UnderWay(draws) => all.extend(draws.drawn()?),
            }
        }
        Ok(all)
    }
}

// === impl Waiter ===

impl Waiter {
    /// Returns at their end, and after an error of the device.
    pub fn wait(self) {
        let _ = self.0.wait(); // whoever has the draws hears of it
    }
}
