//! `POST /embeddings`: texts as vectors, by a model that was loaded to embed.

use std::sync::Arc;

use axum::{
    body::Body,
    extract::{Request, State},
    response::Response,
};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use futures::{StreamExt, TryStreamExt, stream};
use http::{HeaderValue, header};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    App,
    common::{
        fields::{Integer, PromptField},
        generate::Caller,
        parse, prompts,
    },
};
use crate::{
    engine::{Generate, Model},
    generation::{Generation, Prompt, Sampling, Task},
    http::{body, error::ApiError},
};

/// The most inputs of a request.
const INPUTS: usize = 2048;
/// Inputs of one request that are under way at a time, so that a large one leaves room in the queue for others.
const AT_A_TIME: usize = 32;

/// What is to be embedded.
#[derive(Debug, Deserialize, JsonSchema)]
pub struct EmbeddingRequest {
    /// Which model.
    pub model: Option<String>,
    /// Text or tokens, one or several: at most 2048.
    pub input: Option<PromptField>,
    /// How numbers are written.
    pub encoding_format: Option<Encoding>,
    /// Only so many first numbers.
    pub dimensions: Option<Integer>,
    /// Whether embeddings have length 1 (the default).
    pub normalize: Option<bool>,
    /// An end user's name: accepted.
    pub user: Option<String>,
    /// Not supported.
    pub prompt_template: Option<serde_json::Value>,
    /// Not supported.
    pub return_logits: Option<serde_json::Value>,
    /// Not supported.
    pub fanout_size: Option<serde_json::Value>,
}

/// How an embedding's numbers are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Encoding {
    /// A list of numbers.
    #[default]
    Float,
    /// Little-endian f32 in base64: what the SDKs ask for.
    Base64,
}

/// What becomes of a model's numbers.
#[derive(Clone, Copy)]
struct Form {
    encoding: Encoding,
    /// Numbers that are kept.
    dimensions: usize,
    normalize: bool,
}

#[derive(Serialize)]
struct List<'a> {
    object: &'static str,
    data: Vec<Entry>,
    model: &'a str,
    usage: Usage,
}

#[derive(Serialize)]
struct Entry {
    object: &'static str,
    index: usize,
    embedding: Written,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Written {
    Numbers(Vec<f32>),
    Base64(String),
}

#[derive(Serialize)]
struct Usage {
    prompt_tokens: u64,
    total_tokens: u64,
}

pub(crate) async fn create<E: Generate>(
    State(app): State<Arc<App<E>>>,
    request: Request,
) -> Result<Response, ApiError> {
    let caller = Caller::of(&request)?;
    let body = body::read(request, &app.config).await?;
    let mut request: EmbeddingRequest = parse::only(body, app.config.unknown_fields).await?;
    let name = caller.named(request.model.take()).filter(|name| !name.is_empty());
    let name = name.ok_or_else(|| ApiError::missing("model"))?;
    let input = request.input.take().ok_or_else(|| ApiError::missing("input"))?;
    let sources = prompts::sources(input, "input")?;
    if sources.len() > INPUTS {
        let message = format!("input may have at most {INPUTS} entries: {}", sources.len());
        return Err(ApiError::value("input", message));
    }
    let model = app.model(&name).await?;
    let form = request.form(&model)?;
    let mut inputs = Vec::with_capacity(sources.len());
    for (index, source) in sources.into_iter().enumerate() {
        let tokens = source.tokens(&model, "input").await?;
        check_length(tokens.len(), index, model.card.context_length)?;
        inputs.push(tokens);
    }
    let prompt_tokens = inputs.iter().map(|tokens| tokens.len() as u64).sum();

    caller.exchange.asks(&model.card.name, prompt_tokens);
    let embed = |(index, tokens)| {
        let (app, model, caller) = (&app, model.clone(), &caller);
        async move { app.embed(model, caller, tokens).await.map(|numbers| form.entry(index, numbers)) }
    };
    let data =
        stream::iter(inputs.into_iter().enumerate()).map(embed).buffered(AT_A_TIME).try_collect().await?;
    metrics::counter!("volley_prompt_tokens_total").increment(prompt_tokens);
    let usage = Usage { prompt_tokens, total_tokens: prompt_tokens };
    let list = List { object: "list", data, model: &name, usage };
    let mut response = Response::new(Body::from(crate::http::json::line(&list)));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert("fireworks-prompt-tokens", HeaderValue::from(prompt_tokens));
    Ok(response)
}

fn check_length(tokens: usize, index: usize, window: u32) -> Result<(), ApiError> {
    if tokens <= window as usize {
        return Ok(());
    }
    let message = format!(
        "The prompt is too long: {tokens}, model maximum context length: {window}. This model's maximum context \
         length is {window} tokens. However, your input[{index}] resulted in {tokens} tokens."
    );
    Err(ApiError::with_code("context_length_exceeded", "input", message))
}

// === impl App ===

impl<E: Generate> App<E> {
    /// The embedding of one prompt, as the model gives it.
    async fn embed(
        &self,
        model: Arc<Model>,
        caller: &Caller,
        tokens: Vec<u32>,
    ) -> Result<Vec<f32>, ApiError> {
        let generation = Generation {
            id: format!("embd-{}", uuid::Uuid::new_v4()),
            task: Task::Embed,
            prompts: vec![Prompt { tokens }],
            n: 1,
            max_tokens: 0,
            min_tokens: 0,
            stop: Vec::new(),
            include_stop: false,
            ignore_eos: false,
            echo: 0,
            logprobs: None,
            grammar: None,
            prediction: Vec::new(),
            shown: Vec::new(),
            sampling: Sampling::default(),
            tenant: caller.tenant.0.clone(),
            priority: 0,
            session: None,
            cache_salt: String::new(),
            // Cached positions have no final states to pool.
            max_cached_tokens: Some(0),
            traceparent: caller.traceparent.clone(),
            deadline: caller.deadline,
        };
        let prompt_tokens = generation.prompts.iter().map(|prompt| prompt.tokens.len() as u64).sum();
        let deltas = self.engine.start(model, generation).await?;
        let mut deltas = self.limiter.meter(&caller.tenant, prompt_tokens, deltas);
        let mut numbers = Vec::new();
        while let Some(batch) = deltas.try_next().await? {
            batch.into_iter().for_each(|delta| numbers.extend(delta.embedding));
        }
        if numbers.is_empty() {
            return Err(ApiError::Internal("the worker gave no embedding".into()));
        }
        Ok(numbers)
    }
}

// === impl EmbeddingRequest ===

impl EmbeddingRequest {
    fn form(&self, model: &Model) -> Result<Form, ApiError> {
        for (name, field) in [
            ("prompt_template", &self.prompt_template),
            ("return_logits", &self.return_logits),
            ("fanout_size", &self.fanout_size),
        ] {
            if field.is_some() {
                return Err(ApiError::unsupported(name));
            }
        }
        if model.card.pooling.is_empty() {
            let message = "This model serves no embeddings; its worker was started without --pooling";
            return Err(ApiError::value("model", message));
        }
        let width = model.card.embedding_width as usize;
        let given = self.dimensions.map(|Integer(given)| {
            let fits = usize::try_from(given).ok().filter(|given| (1..=width).contains(given));
            let message = || format!("dimensions must be between 1 and {width}: {given}");
            fits.ok_or_else(|| ApiError::value("dimensions", message()))
        });
        Ok(Form {
            encoding: self.encoding_format.unwrap_or_default(),
            dimensions: given.transpose()?.unwrap_or(width),
            normalize: self.normalize.unwrap_or(true),
        })
    }
}

// === impl Form ===

impl Form {
    fn entry(self, index: usize, mut numbers: Vec<f32>) -> Entry {
        numbers.truncate(self.dimensions);
        if self.normalize {
            normalize(&mut numbers);
        }
        let embedding = match self.encoding {
            Encoding::Float => Written::Numbers(numbers),
            Encoding::Base64 => {
                let bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
                Written::Base64(BASE64_STANDARD.encode(bytes))
            }
        };
        Entry { object: "embedding", index, embedding }
    }
}

/// To length 1; zeros stay.
fn normalize(numbers: &mut [f32]) {
    let squares: f64 = numbers.iter().map(|number| f64::from(*number).powi(2)).sum();
    if squares > 0.0 {
        let scale = 1.0 / squares.sqrt();
        numbers.iter_mut().for_each(|number| *number = (f64::from(*number) * scale) as f32);
    }
}
