//! From checked settings and prompts to an answer: what all text endpoints do alike.

use std::{
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use axum::{body::Body, extract::Request, response::Response};
use futures::TryStreamExt;
use http::{HeaderMap, HeaderName, HeaderValue, header};
use serde::Serialize;

use super::{
    parameters::{Parameters, Settings},
    reply::{Answer, Chunks, Head, Shape},
    usage::Tally,
};
use crate::{
    api::App,
    engine::{Deltas, Generate, Model},
    generation::{Generation, Prompt, Sampling, Task},
    http::{
        auth::Tenant,
        edge::PathModel,
        error::ApiError,
        exchange::{Exchange, traceparent},
        sse::EventStream,
    },
};

/// Who asks: what a request's headers and path say, kept while its body is read.
pub(crate) struct Caller {
    pub exchange: Arc<Exchange>,
    pub tenant: Tenant,
    pub traceparent: String,
    /// The path's model.
    pub path_model: Option<PathModel>,
}

/// Everything that a generation needs.
pub(crate) struct Ask {
    pub settings: Settings,
    pub model: Arc<Model>,
    pub prompts: Vec<Vec<u32>>,
    /// The field that the prompts came from.
    pub param: &'static str,
    /// `max_tokens` of a request that does not say.
    pub default_max_tokens: u32,
}

/// A generation that was admitted.
pub(crate) struct Begun {
    pub deltas: Deltas,
    pub tally: Tally,
    /// How long that took, since the request came.
    pub first_token: Duration,
    pub options: Option<HeaderValue>,
}

/// What `fireworks-sampling-options` tells.
#[derive(Serialize)]
struct SamplingOptions {
    temperature: f32,
    top_p: f32,
    top_k: u32,
    min_p: f32,
    seed: u64,
    max_tokens: u32,
    n: u32,
}

// === impl Caller ===

impl Caller {
    pub(crate) fn of(request: &Request) -> Result<Self, ApiError> {
        let extensions = request.extensions();
        let absent = || ApiError::Internal("a request came past the edge".into());
        Ok(Self {
            exchange: extensions.get::<Arc<Exchange>>().cloned().ok_or_else(absent)?,
            tenant: extensions.get::<Tenant>().cloned().ok_or_else(absent)?,
            traceparent: traceparent(request.headers()),
            path_model: extensions.get::<PathModel>().cloned(),
        })
    }

    /// Where the body names no model, the path's is meant.
    pub(crate) fn name_model(&self, parameters: &mut Parameters) {
        parameters.model = self.named(parameters.model.take());
    }

    /// The model that the body names, else the path's.
    pub(crate) fn named(&self, model: Option<String>) -> Option<String> {
        model.or_else(|| self.path_model.clone().map(|PathModel(name)| name))
    }
}

// === impl App ===

impl<E: Generate> App<E> {
    /// Bounds a request before anything is done for it.
    pub(crate) fn check_choices(&self, prompts: usize, n: u32) -> Result<(), ApiError> {
        let max = self.config.choices_max;
        if prompts.saturating_mul(n as usize) > max {
            return Err(ApiError::value("n", format!("prompts × n may be at most {max}")));
        }
        Ok(())
    }

    /// Generates and answers, in the shapes of one endpoint.
    pub(crate) async fn generate<S: Shape>(&self, caller: Caller, ask: Ask) -> Result<Response, ApiError> {
        let id = format!("{}{}", S::ID, uuid::Uuid::new_v4());
        let head = Head {
            id: id.clone(),
            created: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()),
            model: ask.settings.model.clone(),
            fingerprint: fingerprint(&ask.model),
            logprobs: ask.settings.logprobs.map(|logprobs| logprobs.format),
        };
        let stream = ask.settings.stream;
        let begun = self.begin(&caller, ask, id).await?;
        let Begun { deltas, tally, first_token, options } = begun;
        let mut response = match stream {
            Some(usage_at) => {
                let chunks = Chunks::<S>::new(head, usage_at, tally.clone());
                let exchange = caller.exchange;
                EventStream::new(chunks, deltas, self.closing.clone(), exchange).into_response()
            }
            None => collect::<S>(&head, tally.clone(), deltas, &caller.exchange, first_token).await?,
        };
        tell(response.headers_mut(), &tally, options);
        Ok(response)
    }

    /// Starts a generation under the name `id`.
    pub(crate) async fn begin(&self, caller: &Caller, ask: Ask, id: String) -> Result<Begun, ApiError> {
        let lengths: Vec<usize> = ask.prompts.iter().map(Vec::len).collect();
        let tally = Tally::new(&lengths, ask.settings.n);
        let model = ask.model.clone();
        let generation = ask.generation(id, &lengths, caller.tenant.clone(), caller.traceparent.clone())?;
        let options = sampling_options(&generation);
        let deltas = self.engine.start(model, generation).await?;
        let first_token = caller.exchange.first_token();
        Ok(Begun { deltas, tally, first_token, options })
    }
}

/// The headers of every answer, streamed or not.
pub(crate) fn tell(headers: &mut HeaderMap, tally: &Tally, options: Option<HeaderValue>) {
    headers.insert("fireworks-prompt-tokens", HeaderValue::from(tally.prompt_tokens()));
    headers.extend(options.map(|options| (HeaderName::from_static("fireworks-sampling-options"), options)));
}

/// The whole answer, once everything is there.
async fn collect<S: Shape>(
    head: &Head,
    mut tally: Tally,
    mut deltas: Deltas,
    exchange: &Exchange,
    first_token: Duration,
) -> Result<Response, ApiError> {
    let mut answers: Vec<Answer> = (0..tally.choices()).map(|_| Answer::default()).collect();
    while tally.first_running().is_some() {
        let Some(batch) = deltas.try_next().await? else {
            return Err(ApiError::Internal("the output ended early".into()));
        };
        for delta in batch {
            let choice = delta.choice;
            let Some(answer) = answers.get_mut(choice as usize) else { continue };
            if let Some(finish) = answer.extend(delta, head.logprobs.is_some()) {
                tally.finish(choice, finish);
            }
        }
    }
    tally.record();
    let body = head.answer::<S>(&answers, &tally);
    Ok(complete(body, &tally, first_token, exchange.elapsed()))
}

/// An answer in one piece: its headers tell what was known at its end.
pub(crate) fn complete(body: String, tally: &Tally, first_token: Duration, elapsed: Duration) -> Response {
    let mut response = Response::new(Body::from(body));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert("fireworks-cached-prompt-tokens", HeaderValue::from(tally.cached_tokens()));
    seconds(headers, "fireworks-server-time-to-first-token", first_token);
    seconds(headers, "fireworks-server-processing-time", elapsed);
    response
}

fn seconds(headers: &mut HeaderMap, name: &'static str, duration: Duration) {
    if let Ok(value) = HeaderValue::from_str(&format!("{:.4}", duration.as_secs_f64())) {
        headers.insert(name, value);
    }
}

/// What made the answer: the model's hash stands for weights, tokenizer and template.
fn fingerprint(model: &Model) -> String {
    let hash = blake3::hash(format!("{}/{}", model.card.hash, model.card.weights_hash).as_bytes());
    format!("fp_{}", &hash.to_hex()[..10])
}

fn sampling_options(generation: &Generation) -> Option<HeaderValue> {
    let Sampling { temperature, top_p, top_k, min_p, seed } = generation.sampling;
    let (max_tokens, n) = (generation.max_tokens, generation.n);
    let options = SamplingOptions { temperature, top_p, top_k, min_p, seed, max_tokens, n };
    HeaderValue::from_str(&crate::http::json::line(&options)).ok()
}

// === impl Ask ===

impl Ask {
    fn generation(
        self,
        id: String,
        lengths: &[usize],
        Tenant(tenant): Tenant,
        traceparent: String,
    ) -> Result<Generation, ApiError> {
        let window = self.model.card.context_length as usize;
        let max_tokens =
            self.settings.clip_max_tokens(self.default_max_tokens, lengths, window, self.param)?;
        let sampling = self.settings.sampling(&self.model.defaults);
        Ok(Generation {
            id,
            task: Task::Generate,
            prompts: self.prompts.into_iter().map(|tokens| Prompt { tokens }).collect(),
            n: self.settings.n,
            max_tokens,
            stop: self.settings.stop,
            include_stop: self.settings.include_stop,
            ignore_eos: self.settings.ignore_eos,
            echo: self.settings.echo,
            logprobs: self.settings.logprobs.map(|logprobs| logprobs.top),
            sampling,
            tenant,
            traceparent,
        })
    }
}
