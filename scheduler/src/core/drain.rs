//! How fast a queue drains, and so when it is worth coming back to it.
//!
//! The places that become free are counted over the time that the worker is full, both with a half-life of
//! [`HALF_LIFE`]: when it isn't, they say only how much came. Whoever is turned away is told to come back when those before it have been let in, those
//! turned away before it included: so they come back one after another, and find a place.

use std::time::Duration;

use super::types::{Millis, TokenCount};

/// Over which the rates are taken.
const HALF_LIFE: Duration = Duration::from_secs(10);
/// What a client can be told: less is hammering, and of more no one knows.
const WAIT: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// Better to come a little late than to be turned away again.
const MARGIN: f64 = 1.25;

/// The measure of one queue.
#[derive(Debug, Default)]
pub struct Drain {
    now: Millis,
    full: bool,
    /// Time that it was, in seconds, decayed as the counts are.
    span: f64,
    freed: Amount,
    /// Turned away, and not yet expected back.
    away: Amount,
}

/// So many sequences, and their tokens.
#[derive(Clone, Copy, Debug, Default)]
struct Amount {
    sequences: f64,
    tokens: f64,
}

// === impl Drain ===

impl Drain {
    /// It is `now`, and the worker is `full` or has places.
    pub fn at(&mut self, now: Millis, full: bool) {
        let seconds = now.0.saturating_sub(self.now.0) as f64 / 1e3;
        let first = self.now == Millis::default();
        self.now = self.now.max(now);
        let full = std::mem::replace(&mut self.full, full);
        if first || seconds == 0.0 {
            return;
        }
        if !full {
            self.away = Amount::default();
            return;
        }
        let rate = self.rate(0.0);
        self.away.sequences = (self.away.sequences - seconds * rate.sequences).max(0.0);
        self.away.tokens = (self.away.tokens - seconds * rate.tokens).max(0.0);
        let kept = 0.5f64.powf(seconds / HALF_LIFE.as_secs_f64());
        self.span = self.span * kept + seconds;
        self.freed.sequences *= kept;
        self.freed.tokens *= kept;
    }

    /// A sequence with a prompt of so many tokens is over, and its place free.
    pub fn frees(&mut self, tokens: TokenCount) {
        if self.full {
            self.freed.sequences += 1.0;
            self.freed.tokens += tokens as f64;
        }
    }

    /// Turns `sequences` sequences of together `tokens` tokens away, who are so many too many; when to come
    /// back.
    pub fn turn_away(
        &mut self,
        (sequences, tokens): (usize, TokenCount),
        (excess_sequences, excess_tokens): (usize, TokenCount),
    ) -> Duration {
        let rate = self.rate(tokens as f64);
        let places = (excess_sequences as f64 + self.away.sequences) / rate.sequences;
        let room =
            if rate.tokens > 0.0 { (excess_tokens as f64 + self.away.tokens) / rate.tokens } else { 0.0 };
        self.away.sequences += sequences as f64;
        self.away.tokens += tokens as f64;
        Duration::from_secs_f64((MARGIN * places.max(room)).clamp(WAIT.0.as_secs_f64(), WAIT.1.as_secs_f64()))
    }

    /// What becomes free in a second. One place more than has been seen, or at least `tokens`, is taken for
    /// granted, so that a worker that nobody has left yet is given as long again as it has been watched.
    fn rate(&self, tokens: f64) -> Amount {
        let span = self.span.max(1.0);
        Amount {
            sequences: (self.freed.sequences + 1.0) / span,
            tokens: self.freed.tokens.max(tokens) / span,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(s: f64) -> Millis {
        Millis((s * 1e3) as u64 + 1)
    }

    /// A worker that is left every `every` seconds, for `count` times.
    fn watched(every: f64, count: u32) -> Drain {
        let mut drain = Drain::default();
        drain.at(seconds(0.0), true);
        for n in 1..=count {
            drain.at(seconds(f64::from(n) * every), true);
            drain.frees(100);
        }
        drain
    }

    #[test]
    fn those_turned_away_are_told_to_come_back_one_after_another() {
        let mut drain = watched(3.0, 20);
        let told: Vec<_> = (0..5).map(|_| drain.turn_away((1, 100), (1, 0)).as_secs_f64()).collect();
        for (n, told) in told.iter().enumerate() {
            let honest = MARGIN * 3.0 * (n + 1) as f64;
            assert!((told / honest - 1.0).abs() < 0.25, "{told} s, not {honest}");
        }
        // Two of them are let in, and two more come.
        for n in 21..=22 {
            drain.at(seconds(f64::from(n) * 3.0), true);
            drain.frees(100);
        }
        let next = drain.turn_away((1, 100), (1, 0)).as_secs_f64();
        assert!(
            (next / (MARGIN * 12.0) - 1.0).abs() < 0.25,
            "behind the three that are still to come: {next}"
        );
    }

    #[test]
    fn a_wait_is_never_shorter_than_a_second_nor_longer_than_a_minute() {
        assert!(Drain::default().turn_away((1, 10), (1, 0)) >= WAIT.0);
        assert_eq!(watched(0.01, 500).turn_away((1, 10), (1, 0)), WAIT.0);
        assert_eq!(watched(500.0, 3).turn_away((1, 10), (1, 0)), WAIT.1);
    }

    #[test]
    fn a_worker_that_nobody_leaves_is_given_as_long_again() {
        let mut drain = Drain::default();
        drain.at(seconds(0.0), true);
        drain.at(seconds(8.0), true);
        assert_eq!(drain.turn_away((1, 10), (1, 0)), Duration::from_secs(10));
    }

    #[test]
    fn tokens_count_where_they_are_the_bound() {
        let mut drain = watched(1.0, 60);
        let wait = drain.turn_away((1, 1000), (0, 1000)).as_secs_f64();
        assert!((9.0..14.0).contains(&wait), "a hundred tokens leave in a second: {wait}");
    }

    #[test]
    fn when_there_are_places_again_everyone_may_come_back() {
        let mut drain = watched(3.0, 20);
        (0..10).for_each(|_| _ = drain.turn_away((1, 100), (1, 0)));
        drain.at(seconds(61.0), false);
        drain.at(seconds(62.0), false);
        assert!(drain.turn_away((1, 100), (1, 0)) < Duration::from_secs(4));
    }
}
