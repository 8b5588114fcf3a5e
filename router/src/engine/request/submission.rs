//! What is asked of a generation, in the wire's terms.

use volley_proto::v1::{self, Kind, ScoreRange, Submission};

use crate::{
    generation::{Generation, Task},
    text::{model::Model, stop::Stops},
};

/// All but the prompt, and what changes from attempt to attempt.
pub(super) fn header(
    model: &Model,
    generation: &Generation,
    stops: &Stops,
    prompt_tokens: usize,
    echo_from: usize,
) -> Submission {
    let card = &model.card;
    let end_tokens = if generation.ignore_eos { &[] } else { card.stop_tokens.as_slice() };
    // The prompt's first token has no log-probability.
    let from = echo_from.max(1);
    let alternatives = generation.logprobs.filter(|_| generation.echo > 0 && from < prompt_tokens);
    Submission {
        request_id: generation.id.clone(),
        model_hash: card.hash.clone(),
        kind: match generation.task {
            Task::Embed => Kind::Embed,
            Task::Generate if generation.max_tokens == 0 => Kind::Score,
            Task::Generate => Kind::Generate,
        }
        .into(),
        sampling: Some(sampling(generation)),
        max_tokens: generation.max_tokens,
        min_tokens: generation.min_tokens,
        stop_tokens: end_tokens.iter().chain(stops.tokens()).copied().collect(),
        score: alternatives.map(|alternatives| ScoreRange { from: from as u32, alternatives }),
        tenant: generation.tenant.clone(),
        priority: generation.priority,
        session: generation.session,
        cache_salt: generation.cache_salt.clone(),
        max_cached_tokens: generation.max_cached_tokens,
        traceparent: generation.traceparent.clone(),
        prediction: generation.prediction.clone(),
        grammar: generation.grammar.as_ref().map(|grammar| grammar.text().to_owned()),
        ..Submission::default()
    }
}

fn sampling(generation: &Generation) -> v1::Sampling {
    let sampling = &generation.sampling;
    let (bias_tokens, bias_values) = sampling.bias.iter().copied().unzip();
    v1::Sampling {
        temperature: sampling.temperature,
        top_p: (sampling.top_p < 1.0).then_some(sampling.top_p),
        top_k: (sampling.top_k > 0).then_some(sampling.top_k),
        min_p: (sampling.min_p > 0.0).then_some(sampling.min_p),
        typical_p: (sampling.typical_p < 1.0).then_some(sampling.typical_p),
        frequency_penalty: sampling.frequency_penalty,
        presence_penalty: sampling.presence_penalty,
        repetition_penalty: (sampling.repetition_penalty != 1.0).then_some(sampling.repetition_penalty),
        bias_tokens,
        bias_values,
        mirostat_target: sampling.mirostat.map(|mirostat| mirostat.target),
        mirostat_rate: sampling.mirostat.map(|mirostat| mirostat.rate),
        seed: sampling.seed,
        logprobs: generation.logprobs,
    }
}
