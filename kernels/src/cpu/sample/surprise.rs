//! Typical-p (Meister et al., "Locally typical sampling", 2023): the tokens whose surprise is nearest to the
//! expected one, as many as it takes to reach a probability.

use super::Row;

/// A token that has weight.
#[derive(Clone, Copy)]
struct Token {
    id: u32,
    /// How far its surprise is from the expected one, in nats.
    distance: f64,
    weight: f64,
}

// === impl Row ===

impl Row<'_> {
    /// Keeps the fewest tokens nearest to the expected surprise that make up `share` of the weight.
    pub(super) fn typical(&mut self, share: f32) {
        let mut tokens: Vec<Token> = Vec::new();
        for (id, &weight) in self.weights[..self.vocabulary].iter().enumerate().filter(|(_, w)| **w > 0.0) {
            tokens.push(Token { id: id as u32, distance: 0.0, weight: f64::from(weight) });
        }
        let total: f64 = tokens.iter().map(|token| token.weight).sum();
        let surprise = |token: &Token| (total / token.weight).ln();
        let expected = tokens.iter().map(|token| token.weight / total * surprise(token)).sum::<f64>();
        for token in &mut tokens {
            token.distance = (surprise(token) - expected).abs();
        }
        for dropped in beyond(&mut tokens, f64::from(share) * total) {
            self.weights[dropped.id as usize] = 0.0;
        }
        self.keep(false, 0.0); // sums the blocks again
    }
}

/// The tokens beyond the nearest ones that weigh `target`; one is always near enough. Orders only as far as
/// that takes.
fn beyond(tokens: &mut [Token], target: f64) -> &[Token] {
    let (mut low, mut high, mut missing) = (0, tokens.len(), target);
    while high - low > 1 {
        let half = (high - low) / 2;
        let order = |a: &Token, b: &Token| a.distance.total_cmp(&b.distance).then(a.id.cmp(&b.id));
        tokens[low..high].select_nth_unstable_by(half, order);
        let near: f64 = tokens[low..low + half].iter().map(|token| token.weight).sum();
        if near >= missing {
            high = low + half;
        } else {
            missing -= near;
            low += half;
        }
    }
    &tokens[high..]
}
