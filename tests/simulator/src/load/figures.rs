//! What a run measures, and its table.

use std::time::Duration;

use super::traffic::TENANTS;

/// Durations, counted in buckets that are at most 6 % wide.
#[derive(Clone, Debug)]
pub struct Histogram {
    buckets: Vec<u64>,
    count: u64,
}

/// Buckets of a doubling.
const STEPS: f64 = 12.0;

/// What one run came to.
#[derive(Clone, Debug, Default)]
pub struct Figures {
    /// Requests that were answered.
    pub answered: u64,
    /// Requests that were refused: too many waited.
    pub refused: u64,
    /// Tokens generated.
    pub tokens: u64,
    /// Tokens of prompts.
    pub prompt_tokens: u64,
    /// Of these, found in the prefix cache.
    pub cached_tokens: u64,
    /// Rows computed in vain.
    pub wasted: u64,
    /// Sequences that had to give way.
    pub preempted: u64,
    /// Steps.
    pub steps: u64,
    /// What was done while requests arrived.
    pub steady: Steady,
    /// From a request's arrival to its first token, by tenant.
    pub first: Vec<Histogram>,
    /// Between two tokens.
    pub next: Histogram,
}

/// Work up to the last arrival: what comes after it would blur the rates.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Steady {
    /// Virtual time.
    pub time: Duration,
    /// Requests answered.
    pub answered: u64,
    /// Tokens generated.
    pub tokens: u64,
    /// Steps.
    pub steps: u64,
}

// === impl Histogram ===

impl Default for Histogram {
    fn default() -> Self {
        Self { buckets: vec![0; 40 * STEPS as usize], count: 0 }
    }
}

impl Histogram {
    /// Counts `micros` microseconds.
    pub fn add(&mut self, micros: u64) {
        let bucket = ((micros.max(1) as f64).log2() * STEPS) as usize;
        let last = self.buckets.len() - 1;
        self.buckets[bucket.min(last)] += 1;
        self.count += 1;
    }

    /// The duration that this part of all doesn't exceed.
    pub fn quantile(&self, part: f64) -> Duration {
        let wanted = (self.count as f64 * part) as u64;
        let mut below = 0;
        for (bucket, count) in self.buckets.iter().enumerate() {
            below += count;
            if below > wanted {
                return Duration::from_micros(((bucket as f64 + 0.5) / STEPS).exp2() as u64);
            }
        }
        Duration::ZERO
    }

    /// Both together.
    pub fn merge(&mut self, other: &Self) {
        self.buckets.iter_mut().zip(&other.buckets).for_each(|(mine, more)| *mine += more);
        self.count += other.count;
    }
}

// === impl Figures ===

impl Figures {
    /// Nothing yet.
    pub fn new() -> Self {
        Self { first: vec![Histogram::default(); TENANTS], ..Self::default() }
    }

    /// From arrival to the first token, of all tenants.
    pub fn first_of_all(&self) -> Histogram {
        let mut all = Histogram::default();
        self.first.iter().for_each(|tenant| all.merge(tenant));
        all
    }

    /// The part of prompt tokens that was found in prefix caches.
    pub fn hit_rate(&self) -> f64 {
        self.cached_tokens as f64 / self.prompt_tokens.max(1) as f64
    }

    /// The worst tenant's p99 from arrival to first token, in that of the best.
    pub fn unfairness(&self) -> f64 {
        let p99: Vec<f64> = self.first.iter().map(|tenant| tenant.quantile(0.99).as_secs_f64()).collect();
        let best = p99.iter().copied().fold(f64::INFINITY, f64::min);
        p99.iter().copied().fold(0.0, f64::max) / best
    }

    /// The head of a table of rows.
    pub fn head() -> &'static str {
        "policy       requests/s  tokens/s  tokens/step   TTFT p50     p90     p99   next p50     p99  \
         hits   p99 worst/best tenant  wasted  preempted  refused"
    }

    /// Its row; times in milliseconds.
    pub fn row(&self, policy: &str) -> String {
        let Steady { time, answered, tokens, steps } = self.steady;
        let seconds = time.as_secs_f64();
        let (first, millis) = (self.first_of_all(), |time: Duration| time.as_secs_f64() * 1e3);
        let computed = self.prompt_tokens - self.cached_tokens + self.tokens + self.wasted;
        format!(
            "{policy:<12} {:>10.0} {:>9.0} {:>12.1} {:>10.1} {:>7.1} {:>7.1} {:>10.2} {:>7.2} {:>4.0}% {:>23.2} {:>6.2}% {:>10} {:>8}",
            answered as f64 / seconds,
            tokens as f64 / seconds,
            tokens as f64 / steps.max(1) as f64,
            millis(first.quantile(0.5)),
            millis(first.quantile(0.9)),
            millis(first.quantile(0.99)),
            millis(self.next.quantile(0.5)),
            millis(self.next.quantile(0.99)),
            100.0 * self.hit_rate(),
            self.unfairness(),
            100.0 * self.wasted as f64 / computed.max(1) as f64,
            self.preempted,
            self.refused,
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quantile_is_as_exact_as_a_bucket() {
        let mut histogram = Histogram::default();
        (1..=1000).for_each(|micros| histogram.add(micros));
        for (part, exact) in [(0.5, 500.0), (0.9, 900.0), (0.99, 990.0)] {
            let micros = histogram.quantile(part).as_secs_f64() * 1e6;
            assert!((micros / exact - 1.0).abs() < 0.06, "{micros} at {part}");
        }
    }
}
