//! From checked settings and prompts to an answer: what all text endpoints do alike.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{body::Body, extract::Request, response::Response};
use futures::TryStreamExt;
use http::{HeaderMap, HeaderName, HeaderValue, header};
use serde::Serialize;

use super::{
    extras::Extras,
    format::Form,
    hints::{self, ServiceTier},
    listen::{Hearing, Listener},
    parameters::{Parameters, Settings},
    ranking,
    reply::{Answer, Chunks, Head, Shape},
    resume::{Origin, Resume},
    speculation, timeout,
    usage::Tally,
};
use crate::{
    api::App,
    engine::{Deltas, Generate, Model},
    generation::{Generation, Mirostat, Prompt, Sampling, Task},
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
    /// The model of the path, or of Fireworks' header for it.
    named_model: Option<String>,
    /// What the headers say of the session and of whose caches are whose.
    session: Option<Vec<u8>>,
    isolation: Option<Vec<u8>>,
    resume: Option<Resume>,
    /// When the client has no use for an answer any more.
    pub deadline: Option<Instant>,
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
    /// What the text must be, and the field that says so.
    pub grammar: Option<Form>,
    /// How the text is read.
    pub hearing: Hearing,
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
    typical_p: f32,
    frequency_penalty: f32,
    presence_penalty: f32,
    repetition_penalty: f32,
    #[serde(skip_serializing_if = "Option::is_none")]
    mirostat_target: Option<f32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    mirostat_lr: Option<f32>,
    seed: u64,
    max_tokens: u32,
    n: u32,
}

// === impl Caller ===

impl Caller {
    pub(crate) fn of(request: &Request) -> Result<Self, ApiError> {
        let (extensions, headers) = (request.extensions(), request.headers());
        let absent = || ApiError::Internal("a request came past the edge".into());
        let header = |name: &str| headers.get(name).map(|value| value.as_bytes().to_vec());
        let path = extensions.get::<PathModel>().map(|PathModel(name)| name.clone());
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
        let exchange = extensions.get::<Arc<Exchange>>().cloned().ok_or_else(absent)?;
        Ok(Self {
            deadline: timeout::deadline(headers, exchange.elapsed())?,
            exchange,
            tenant: extensions.get::<Tenant>().cloned().ok_or_else(absent)?,
            traceparent: traceparent(headers),
            named_model: path.or_else(|| text("fireworks-model")),
            session: header("x-session-affinity").or_else(|| header("x-multi-turn-session-id")),
            isolation: header("x-prompt-cache-isolation-key"),
            resume: Resume::of(headers)?,
        })
    }

    /// Where the body names no model, the path's is meant, or the header's.
    pub(crate) fn name_model(&self, parameters: &mut Parameters) {
        parameters.model = self.named(parameters.model.take());
    }

    /// The model that the body names, else the path's, or the header's.
    pub(crate) fn named(&self, model: Option<String>) -> Option<String> {
        model.or_else(|| self.named_model.clone())
    }

    /// Where the request's like went before: the body's key says it best, then the headers, then who asks.
    fn session(&self, settings: &Settings) -> Option<u64> {
        let key = settings.session.as_deref().map(str::as_bytes).or(self.session.as_deref());
        let key = key.or(settings.user.as_deref().map(str::as_bytes)).filter(|key| !key.is_empty());
        key.map(|key| hints::session(&self.tenant.0, key))
    }

    fn cache_salt(&self, settings: &Settings) -> String {
        let key = settings.isolation.as_deref().map(str::as_bytes).or(self.isolation.as_deref());
        key.filter(|key| !key.is_empty()).map_or_else(String::new, hints::cache_salt)
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
    pub(crate) async fn generate<S: Shape>(
        &self,
        caller: Caller,
        mut ask: Ask,
    ) -> Result<Response, ApiError> {
        let (origin, marks) = Origin::of(S::ID, &ask, caller.resume.as_ref())?;
        ask.settings.draws.set_seed(origin.seed);
        let settings = ask.settings.clone();
        let told = if settings.report.prompts() { ask.prompts.clone() } else { Vec::new() };
        let model = ask.model.clone();
        let hearing = ask.hearing.clone();
        let Begun { deltas, tally, first_token, options } =
            self.begin(&caller, ask, origin.id.clone()).await?;
        let exchange = caller.exchange;
        let head = Head {
            id: origin.id.clone(),
            created: origin.created,
            fingerprint: model.fingerprint(),
            logprobs: settings.logprobs.map(|logprobs| logprobs.format),
            service_tier: settings.service_tier.map(ServiceTier::served),
            extras: Extras::new(settings.report, told, &model, exchange.clone(), first_token),
            model: settings.model,
        };
        let resumable = marks.is_some();
        let mut response = match settings.stream {
            Some(usage_at) => {
                let chunks = Chunks::<S>::new(head, usage_at, tally.clone(), &hearing, marks);
                EventStream::new(chunks, deltas, self.closing.clone(), exchange).into_response()
            }
            None => {
                let answer = |choice| Answer::new(Listener::of(&hearing, &head.id, choice));
                let answers = (0..tally.choices()).map(answer).collect();
                let (answers, tally) = collect(&head, tally.clone(), answers, deltas, &exchange).await?;
                let answers = ranking::best(answers, settings.best_of, settings.n);
                let body = head.answer::<S>(&answers, &tally);
                complete(body, &tally, first_token, exchange.elapsed())
            }
        };
        tell(response.headers_mut(), &tally, options);
        if resumable {
            origin.tell(response.headers_mut());
        }
        Ok(response)
    }

    /// Starts a generation under the name `id`.
    pub(crate) async fn begin(&self, caller: &Caller, mut ask: Ask, id: String) -> Result<Begun, ApiError> {
        let lengths: Vec<usize> = ask.prompts.iter().map(Vec::len).collect();
        let (model, n) = (ask.model.clone(), ask.settings.n);
        if let Some((grammar, param)) = &ask.grammar {
            let checked = model.check_grammar(grammar).await;
            checked.map_err(|error| ApiError::grammar(error, param))?;
        }
        let prediction = match ask.settings.likely.take() {
            Some(likely) => Some(likely.tokens(&model).await),
            None => None,
        };
        let predicted = prediction.as_ref().map(|tokens| tokens.len() as u64);
        let generation = Generation {
            prediction: prediction.unwrap_or_default(),
            ..ask.generation(id, &lengths, caller)?
        };
        let tally = Tally::new(&lengths, generation.n).predicting(predicted);
        let options = sampling_options(&generation, n);
        caller.exchange.asks(&model.card.name, tally.prompt_tokens());
        let deltas = self.engine.start(model, generation).await?;
        let deltas = self.limiter.meter(&caller.tenant, tally.prompt_tokens(), deltas);
        let first_token = caller.exchange.first_token();
        Ok(Begun { deltas, tally, first_token, options })
    }
}

/// The headers of every answer, streamed or not.
pub(crate) fn tell(headers: &mut HeaderMap, tally: &Tally, options: Option<HeaderValue>) {
    headers.insert("fireworks-prompt-tokens", HeaderValue::from(tally.prompt_tokens()));
    headers.extend(options.map(|options| (HeaderName::from_static("fireworks-sampling-options"), options)));
}

/// Waits until everything is there.
async fn collect(
    head: &Head,
    mut tally: Tally,
    mut answers: Vec<Answer>,
    mut deltas: Deltas,
    exchange: &Exchange,
) -> Result<(Vec<Answer>, Tally), ApiError> {
    let keep = head.tells_tokens() || head.extras.report().keeps_tokens();
    while tally.first_running().is_some() {
        let Some(batch) = deltas.try_next().await? else {
            return Err(ApiError::Internal("the output ended early".into()));
        };
        for delta in batch {
            let choice = delta.choice;
            tally.guess(&delta.guessed);
            let Some(answer) = answers.get_mut(choice as usize) else { continue };
            if let Some(finish) = answer.extend(delta, keep) {
                exchange.generated(finish.completion_tokens.into());
                tally.finish(choice, finish);
            }
        }
    }
    answers.iter().for_each(|answer| tally.reason(answer.reasoning_tokens()));
    tally.record();
    Ok((answers, tally))
}

/// An answer in one piece: its headers tell what was known at its end.
pub(crate) fn complete(body: String, tally: &Tally, first_token: Duration, elapsed: Duration) -> Response {
    let mut response = Response::new(Body::from(body));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert("fireworks-cached-prompt-tokens", HeaderValue::from(tally.cached_tokens()));
    seconds(headers, "fireworks-server-time-to-first-token", first_token);
    seconds(headers, "fireworks-server-processing-time", elapsed);
    let acceptance = speculation::acceptance(tally.guessed());
    if let Some(acceptance) = acceptance.and_then(|told| HeaderValue::try_from(told).ok()) {
        headers.insert("fireworks-speculation-acceptance", acceptance);
    }
    response
}

fn seconds(headers: &mut HeaderMap, name: &'static str, duration: Duration) {
    if let Ok(value) = HeaderValue::from_str(&format!("{:.4}", duration.as_secs_f64())) {
        headers.insert(name, value);
    }
}

fn sampling_options(generation: &Generation, n: u32) -> Option<HeaderValue> {
    let Sampling {
        temperature,
        top_p,
        top_k,
        min_p,
        typical_p,
        mirostat,
        frequency_penalty,
        presence_penalty,
        repetition_penalty,
        bias: _, // a thousand entries are no header
        seed,
    } = generation.sampling;
    let options = SamplingOptions {
        temperature,
        top_p,
        top_k,
        min_p,
        typical_p,
        frequency_penalty,
        presence_penalty,
        repetition_penalty,
        mirostat_target: mirostat.map(|Mirostat { target, .. }| target),
        mirostat_lr: mirostat.map(|Mirostat { rate, .. }| rate),
        seed,
        max_tokens: generation.max_tokens,
        n,
    };
    HeaderValue::from_str(&crate::http::json::line(&options)).ok()
}

// === impl Ask ===

impl Ask {
    fn generation(self, id: String, lengths: &[usize], caller: &Caller) -> Result<Generation, ApiError> {
        let window = self.model.card.context_length as usize;
        let settings = self.settings;
        let max_tokens = settings.clip_max_tokens(self.default_max_tokens, lengths, window, self.param)?;
        let ranked = (settings.best_of > settings.n).then_some(0);
        Ok(Generation {
            id,
            task: Task::Generate,
            prompts: self.prompts.into_iter().map(|tokens| Prompt { tokens }).collect(),
            n: settings.best_of,
            max_tokens,
            include_stop: settings.include_stop,
            // A text that its grammar lets only end must end.
            min_tokens: if self.grammar.is_none() { settings.min_tokens.min(max_tokens) } else { 0 },
            ignore_eos: settings.ignore_eos && self.grammar.is_none(),
            echo: settings.echo,
            logprobs: settings.logprobs.map(|logprobs| logprobs.top).or(ranked),
            grammar: self.grammar.map(|(grammar, _)| grammar),
            prediction: Vec::new(),
            shown: self.hearing.reading.markers(self.model.tokenizer().vocabulary()),
            sampling: settings.draws.with(&self.model)?,
            tenant: caller.tenant.0.clone(),
            priority: settings.service_tier.map_or(0, ServiceTier::priority),
            session: caller.session(&settings),
            cache_salt: caller.cache_salt(&settings),
            max_cached_tokens: settings.max_cached_tokens,
            traceparent: caller.traceparent.clone(),
            deadline: caller.deadline,
            stop: settings.stop,
        })
    }
}
