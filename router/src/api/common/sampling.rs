//! How tokens are drawn: what a request may say of it, and what that comes to with a model.

use serde_json::{Map, Value};

use super::{
    fields::{Integer, Number},
    parameters::{Parameters, between, integer},
};
use crate::{
    generation::{Mirostat, Sampling},
    http::error::ApiError,
    text::model::Model,
};

/// The most entries of `logit_bias`.
const BIASES: usize = 1024;
/// Below this a temperature only overflows: greedy is its limit.
const GREEDY: f64 = 1e-6;
/// Mirostat's learning rate where none is asked for: usual among servers.
const MIROSTAT_RATE: f32 = 0.1;

/// What a request says, checked; what it doesn't is still open.
#[derive(Clone, Debug)]
pub(crate) struct Draws {
    temperature: Option<f64>,
    top_p: Option<f64>,
    top_k: Option<u32>,
    min_p: Option<f64>,
    typical_p: Option<f64>,
    mirostat: Option<Mirostat>,
    frequency_penalty: f64,
    presence_penalty: f64,
    repetition_penalty: f32,
    /// Sorted, each token once.
    bias: Vec<(u32, f32)>,
    seed: Option<u64>,
}

// === impl Draws ===

impl Draws {
    /// Checks everything that needs no model.
    pub(crate) fn check(parameters: &Parameters, top_k_max: u32) -> Result<Self, ApiError> {
        let target = positive("mirostat_target", parameters.mirostat_target)?;
        let rate = positive("mirostat_lr", parameters.mirostat_lr)?.unwrap_or(MIROSTAT_RATE);
        Ok(Self {
            temperature: between("temperature", parameters.temperature, 0.0, 2.0)?,
            top_p: between("top_p", parameters.top_p, 0.0, 1.0)?,
            top_k: top_k(parameters.top_k, top_k_max)?,
            min_p: between("min_p", parameters.min_p, 0.0, 1.0)?,
            typical_p: between("typical_p", parameters.typical_p, 0.0, 1.0)?,
            mirostat: target.map(|target| Mirostat { target, rate }),
            frequency_penalty: penalty("frequency_penalty", parameters.frequency_penalty)?,
            presence_penalty: penalty("presence_penalty", parameters.presence_penalty)?,
            repetition_penalty: repetition_penalty(parameters.repetition_penalty)?,
            bias: parameters.logit_bias.as_ref().map_or(Ok(Vec::new()), bias)?,
            seed: parameters.seed.map(|seed| seed.0 as u64),
        })
    }

    /// The request's seed, or a new one.
    pub(crate) fn seed(&self) -> u64 {
        self.seed.unwrap_or_else(random)
    }

    /// Settles the seed.
    pub(crate) fn set_seed(&mut self, seed: u64) {
        self.seed = Some(seed);
    }

    /// What the request says, else the model, else plain sampling.
    pub(crate) fn with(&self, model: &Model) -> Result<Sampling, ApiError> {
        let size = model.card.vocab_size;
        if let Some((token, _)) = self.bias.iter().find(|(token, _)| *token >= size) {
            let message =
                format!("logit_bias: token id {token} is not in the vocabulary (0 to {})", size - 1);
            return Err(ApiError::value("logit_bias", message));
        }
        let defaults = &model.defaults;
        let or = |given: Option<f64>, default: Option<f32>| given.or(default.map(f64::from));
        let temperature = or(self.temperature, defaults.temperature).unwrap_or(1.0);
        let top_p = or(self.top_p, defaults.top_p).unwrap_or(1.0);
        // An empty nucleus still has its best token.
        let greedy = temperature < GREEDY || top_p == 0.0;
        Ok(Sampling {
            temperature: if greedy { 0.0 } else { temperature as f32 },
            top_p: if greedy { 1.0 } else { top_p as f32 },
            top_k: self.top_k.or(defaults.top_k).unwrap_or(0),
            min_p: or(self.min_p, defaults.min_p).unwrap_or(0.0) as f32,
            typical_p: or(self.typical_p, defaults.typical_p).unwrap_or(1.0) as f32,
            mirostat: self.mirostat,
            frequency_penalty: self.frequency_penalty as f32,
            presence_penalty: self.presence_penalty as f32,
            repetition_penalty: self.repetition_penalty,
            bias: self.bias.as_slice().into(),
            seed: self.seed(),
        })
    }
}

fn top_k(given: Option<Integer>, max: u32) -> Result<Option<u32>, ApiError> {
    match given {
        Some(Integer(-1)) => Ok(Some(0)),
        Some(k) => integer("top_k", k, 0, i64::from(max)).map(|k| Some(k as u32)),
        None => Ok(None),
    }
}

fn penalty(name: &str, given: Option<Number>) -> Result<f64, ApiError> {
    between(name, given, -2.0, 2.0).map(|penalty| penalty.unwrap_or(0.0))
}

/// Logits are divided by it, so 0 is out although the documents' range has it.
fn repetition_penalty(given: Option<Number>) -> Result<f32, ApiError> {
    const NAME: &str = "repetition_penalty";
    let penalty = between(NAME, given, 0.0, 2.0)?.map_or(1.0, |penalty| penalty as f32);
    if penalty > 0.0 { Ok(penalty) } else { Err(ApiError::value(NAME, format!("{NAME} must be above 0"))) }
}

fn positive(name: &str, given: Option<Number>) -> Result<Option<f32>, ApiError> {
    let value = given.map(|Number(value)| value as f32);
    match value {
        Some(value) if !(value > 0.0 && value.is_finite()) => {
            Err(ApiError::value(name, format!("{name} must be above 0")))
        }
        value => Ok(value),
    }
}

/// `{"token id": bias}`: JSON's keys are strings.
fn bias(map: &Map<String, Value>) -> Result<Vec<(u32, f32)>, ApiError> {
    let wrong = |message: String| Err(ApiError::value("logit_bias", message));
    if map.len() > BIASES {
        return wrong(format!("logit_bias may have at most {BIASES} entries: {}", map.len()));
    }
    let mut biases = Vec::with_capacity(map.len());
    for (key, value) in map {
        let shown = crate::http::json::split(key, 32).0;
        let Ok(token) = key.parse::<u32>() else {
            return wrong(format!("logit_bias: {shown:?} is not a token id"));
        };
        match value.as_f64() {
            Some(bias) if (-100.0..=100.0).contains(&bias) => biases.push((token, bias as f32)),
            Some(bias) => return wrong(format!("logit_bias must be between -100 and 100: {bias}")),
            None => return wrong(format!("logit_bias: the value of {shown:?} is not a number")),
        }
    }
    // "7" and "07" are one token.
    biases.sort_by_key(|(token, _)| *token);
    biases.dedup_by_key(|(token, _)| *token);
    Ok(biases)
}

/// 64 random bits.
fn random() -> u64 {
    // A v4 UUID's halves have a few fixed bits each, at different places.
    let (high, low) = uuid::Uuid::new_v4().as_u64_pair();
    high ^ low
}
