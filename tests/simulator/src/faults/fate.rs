//! What goes wrong in a run: drawn from its seed, all within the seconds in which clients are served.

use super::net::{MILLI, Micros, SECOND};
use crate::random::Random;

/// Something that goes wrong. Processes are named by a number that is taken modulo those alive.
#[derive(Clone, Copy, Debug)]
pub(super) enum Fault {
    /// Another starts after `back`. Peers learn of it within `notice`.
    KillWorker {
        which: usize,
        back: Micros,
        notice: Micros,
    },
    KillScheduler {
        which: usize,
        back: Micros,
        notice: Micros,
    },
    KillRouter {
        which: usize,
        back: Micros,
        notice: Micros,
    },
    /// A scheduler or a worker is stopped: it says so and goes.
    Stop {
        which: usize,
        back: Micros,
    },
    /// It stands still.
    Hang {
        which: usize,
        time: Micros,
    },
    /// One wire breaks; what is under way is lost from some message on. Each end learns of it within `notice`.
    Cut {
        which: usize,
        notice: Micros,
    },
    /// Two processes can't reach each other.
    Part {
        one: usize,
        other: usize,
        time: Micros,
        notice: Micros,
    },
    /// etcd answers nobody.
    EtcdAway {
        time: Micros,
    },
    /// etcd can't be reached by one process.
    EtcdCutOff {
        which: usize,
        time: Micros,
    },
}

/// The faults of a run, each with its time, which is from `first` to `last`.
pub(super) fn draw(first: Micros, last: Micros, random: &mut Random) -> Vec<(Micros, Fault)> {
    let count = match random.below(10) {
        0 => 0,
        1..5 => 1,
        5..8 => random.between(2, 3),
        _ => random.between(4, 8),
    };
    (0..count).map(|_| (random.between(first, last), fault(random))).collect()
}

fn fault(random: &mut Random) -> Fault {
    let (which, other) = (random.below(1 << 16), random.below(1 << 16));
    let notice = *random.pick(&[MILLI, 10 * MILLI, SECOND, 5 * SECOND]);
    let back = random.between(100 * MILLI, 5 * SECOND);
    let time = *random.pick(&[100 * MILLI, SECOND, 4 * SECOND, 12 * SECOND]);
    match random.below(13) {
        0..3 => Fault::KillWorker { which, back, notice },
        3..5 => Fault::KillScheduler { which, back, notice },
        5 => Fault::KillRouter { which, back, notice },
        6 => Fault::Hang { which, time },
        7 | 8 => Fault::Cut { which, notice },
        9 => Fault::Part { one: which, other, time, notice },
        10 => Fault::Stop { which, back },
        11 => Fault::EtcdAway { time },
        _ => Fault::EtcdCutOff { which, time },
    }
}
