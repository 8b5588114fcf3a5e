//! The API as a client meets it: requests over the whole app, answered by a scripted engine.

mod answers;
mod document;
mod embeddings;
mod errors;
mod limits;
mod messages;
mod parameters;
mod responses;
mod resume;
mod served;
mod speculation;
mod streams;
mod timeouts;
mod tokenizing;
mod tools;

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{Router, body::Body, extract::Request};
use futures::{StreamExt, stream};
use http::{HeaderMap, Method, StatusCode};
use http_body_util::BodyExt;
use metrics_exporter_prometheus::PrometheusBuilder;
use serde_json::Value;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use volley_proto::v1::ModelCard;

use crate::{
    api::{App, responses::Store},
    config::Config,
    engine::{Deltas, Generate, Model, ModelError, StartError, StreamError},
    fixture,
    generation::{Delta, Finish, Generation, Reason, Token},
    http::{edge, limits::Limiter, peers::Peers},
};

/// What the engine does next for a generation.
#[derive(Clone, Debug)]
pub(super) enum Step {
    /// New output.
    Batch(Vec<Delta>),
    /// Silence.
    Wait(Duration),
    /// Silence until the test says so.
    Until(Arc<Notify>),
    /// The end, in an error.
    Fail(StreamError),
    /// Silence without an end.
    Hang,
}

/// An engine that does as told and notes what it was asked.
pub(super) struct Scripted {
    models: Vec<Arc<Model>>,
    scripts: Mutex<VecDeque<Result<Vec<Step>, StartError>>>,
    asked: Mutex<Vec<Generation>>,
    /// Generations that were dropped before their script's end.
    cancelled: Arc<AtomicUsize>,
}

/// An app and its engine.
pub(super) struct Client {
    routes: Router,
    pub engine: Arc<Scripted>,
    pub closing: CancellationToken,
}

/// An answer, whole.
#[derive(Debug)]
pub(super) struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: String,
}

// === impl Scripted ===

impl Scripted {
    /// `tiny` (a byte a token, ChatML), `plain` (no template), `bos` (with a BOS token; embeds), `loading`, and
    /// `poison`, which panics.
    pub(super) fn new() -> Self {
        let model = |name: &str, template: bool, bos: Option<u32>| {
            let card = ModelCard {
                name: name.into(),
                created: 1_700_000_000,
                has_chat_template: template,
                bos_token: bos,
                pooling: if bos.is_some() { "mean".into() } else { String::new() },
                embedding_width: 4 * u32::from(bos.is_some()),
                ..fixture::card()
            };
            let template = template.then_some(fixture::CHAT_TEMPLATE);
            Arc::new(Model::new(card, &fixture::byte_level(&[]), template).unwrap())
        };
        Self {
            models: vec![
                model("tiny", true, None),
                model("plain", false, None),
                model("bos", true, Some(fixture::WORDS)),
            ],
            scripts: Mutex::default(),
            asked: Mutex::default(),
            cancelled: Arc::default(),
        }
    }

    pub(super) fn will(&self, script: impl Into<Vec<Step>>) {
        self.scripts.lock().unwrap().push_back(Ok(script.into()));
    }

    pub(super) fn will_refuse(&self, error: StartError) {
        self.scripts.lock().unwrap().push_back(Err(error));
    }

    /// The last generation that was asked for.
    pub(super) fn asked(&self) -> Generation {
        self.asked.lock().unwrap().last().cloned().unwrap()
    }

    pub(super) fn cancelled(&self) -> usize {
        self.cancelled.load(Ordering::SeqCst)
    }
}

/// Counts a generation that was dropped before its end.
struct Running(Option<Arc<AtomicUsize>>);

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(cancelled) = self.0.take() {
            cancelled.fetch_add(1, Ordering::SeqCst);
        }
    }
}

impl Generate for Scripted {
    fn models(&self) -> Vec<Arc<ModelCard>> {
        self.models.iter().map(|model| Arc::new(model.card.clone())).collect()
    }

    async fn model(&self, name: &str) -> Result<Arc<Model>, ModelError> {
        assert_ne!(name, "poison", "the engine's own fault");
        if name == "loading" {
            return Err(ModelError::NotReady { retry_after: Duration::from_secs(5) });
        }
        self.models.iter().find(|model| model.card.name == name).cloned().ok_or(ModelError::NotFound)
    }

    async fn start(&self, _: Arc<Model>, generation: Generation) -> Result<Deltas, StartError> {
        self.asked.lock().unwrap().push(generation.clone());
        let script = self.scripts.lock().unwrap().pop_front();
        let script = match script {
            Some(script) => script?,
            // Unless told otherwise: "ok" for every choice.
            None => {
                let choices = generation.prompts.len() as u32 * generation.n;
                vec![Step::Batch((0..choices).map(|choice| done(choice, "ok", Reason::Stop, 2)).collect())]
            }
        };
        let running = Running(Some(self.cancelled.clone()));
        let steps = (VecDeque::from(script), running);
        Ok(Deltas::new(stream::unfold(steps, async |(mut steps, mut running)| {
            loop {
                let step = steps.pop_front();
                if steps.is_empty() && matches!(step, Some(Step::Batch(_) | Step::Fail(_))) {
                    running.0 = None;
                }
                match step {
                    Some(Step::Batch(batch)) => return Some((Ok(batch), (steps, running))),
                    Some(Step::Wait(duration)) => tokio::time::sleep(duration).await,
                    Some(Step::Until(told)) => told.notified().await,
                    Some(Step::Fail(error)) => return Some((Err(error), (steps, running))),
                    Some(Step::Hang) => std::future::pending().await,
                    None => return None,
                }
            }
        })))
    }
}

/// More text of a choice.
pub(super) fn text(choice: u32, text: &str) -> Delta {
    Delta { choice, text: text.into(), ..Delta::default() }
}

/// The end of a choice.
pub(super) fn end(choice: u32, reason: Reason, completion_tokens: u32) -> Delta {
    done(choice, "", reason, completion_tokens)
}

/// The rest of a choice's text, and its end.
pub(super) fn done(choice: u32, text: &str, reason: Reason, completion_tokens: u32) -> Delta {
    let finish = Some(Finish { reason, completion_tokens, cached_tokens: 0, stop: None });
    Delta { choice, text: text.into(), finish, ..Delta::default() }
}

/// A token with one alternative, of id 9.
pub(super) fn token(id: u32, bytes: &[u8], text_offset: u32, logprob: Option<f32>) -> Token {
    let top = logprob.map(|logprob| (9, b"z".to_vec(), logprob - 1.0));
    Token { id, bytes: bytes.to_vec(), text_offset, echoed: false, logprob, top: top.into_iter().collect() }
}

// === impl Client ===

impl Client {
    pub(super) fn new() -> Self {
        Self::with(Config::default())
    }

    pub(super) fn with(config: Config) -> Self {
        Self::over(Scripted::new(), config)
    }

    /// Serves these models in place of the usual ones.
    pub(super) fn serving(models: Vec<Model>, config: Config) -> Self {
        let models = models.into_iter().map(Arc::new).collect();
        Self::over(Scripted { models, ..Scripted::new() }, config)
    }

    fn over(engine: Scripted, config: Config) -> Self {
        let (engine, closing) = (Arc::new(engine), CancellationToken::new());
        let app = App {
            responses: Arc::new(Store::new(config.responses_bytes, config.responses_age)),
            peers: Peers::alone(),
            limiter: Limiter::new(config.limits),
            config,
            engine: engine.clone(),
            metrics: PrometheusBuilder::new().build_recorder().handle(),
            draining: CancellationToken::new(),
            closing: closing.clone(),
        };
        Self { routes: edge::routes(Arc::new(app)), engine, closing }
    }

    /// The response, its body unread.
    pub(super) async fn open(&self, request: Request) -> http::Response<Body> {
        edge::serve(self.routes.clone(), request).await.unwrap()
    }

    pub(super) async fn send(&self, request: Request) -> Answer {
        let (parts, body) = self.open(request).await.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        Answer { status: parts.status, headers: parts.headers, body: String::from_utf8(body.into()).unwrap() }
    }

    pub(super) async fn get(&self, path: &str) -> Answer {
        self.send(Request::get(path).body(Body::empty()).unwrap()).await
    }

    /// Posts to `/v1/chat/completions`.
    pub(super) async fn chat(&self, body: impl Into<Body>) -> Answer {
        self.send(post("/v1/chat/completions", body)).await
    }

    /// Posts to `/v1/completions`.
    pub(super) async fn complete(&self, body: impl Into<Body>) -> Answer {
        self.send(post("/v1/completions", body)).await
    }
}

pub(super) fn post(path: &str, body: impl Into<Body>) -> Request {
    let request = Request::builder().method(Method::POST).uri(path);
    request.header("content-type", "application/json").body(body.into()).unwrap()
}

// === impl Answer ===

impl Answer {
    pub(super) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap()
    }

    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }

    /// The body with the id, the time and the fingerprint, which differ from run to run, made short.
    pub(super) fn stable(&self) -> String {
        let mut body = self.body.clone();
        for (start, end, short) in [
            ("\"id\":\"chatcmpl-", "\"", "C"),
            ("\"id\":\"cmpl-", "\"", "P"),
            ("\"created\":", ",", "0"),
            ("\"system_fingerprint\":\"fp_", "\"", "F"),
        ] {
            let mut from = 0;
            while let Some(at) = body[from..].find(start) {
                let at = from + at + start.len();
                let length = body[at..].find(end).unwrap();
                body.replace_range(at..at + length, short);
                from = at;
            }
        }
        body
    }
}

/// The `data:` payloads of a stream, `[DONE]` left out.
pub(super) fn events(body: &str) -> Vec<Value> {
    let payloads = body.split("\n\n").filter_map(|event| event.strip_prefix("data: "));
    payloads.filter(|payload| *payload != "[DONE]").map(|json| serde_json::from_str(json).unwrap()).collect()
}

/// The next event of an open stream.
pub(super) async fn next_event(body: &mut Body) -> Option<String> {
    let frame = body.into_data_stream().next().await?;
    Some(String::from_utf8(frame.ok()?.into()).unwrap())
}
