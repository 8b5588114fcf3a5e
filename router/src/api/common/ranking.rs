//! `best_of`: several candidates for each prompt, of which the best are answered.

use super::reply::Answer;

/// The `n` best of each prompt's `candidates`, best first: by mean log-probability per token, as OpenAI has it. Of
/// equals the first; one without tokens has nothing that speaks for it.
pub(crate) fn best(answers: Vec<Answer>, candidates: u32, n: u32) -> Vec<Answer> {
    if candidates <= n {
        return answers;
    }
    let mut answers = answers.into_iter();
    let mut ranked = Vec::new();
    loop {
        let mut prompt: Vec<Answer> = answers.by_ref().take(candidates as usize).collect();
        if prompt.is_empty() {
            return ranked;
        }
        let score = |answer: &Answer| answer.mean_logprob().unwrap_or(f64::NEG_INFINITY);
        prompt.sort_by(|a, b| score(b).total_cmp(&score(a)));
        prompt.truncate(n as usize);
        ranked.extend(prompt);
    }
}
