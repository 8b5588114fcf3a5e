//! `/responses`: OpenAI's newer API. A response can be kept, and the next one go on from it.
//!
//! ```text
//!  request.rs: items ─▶ template messages ─┐ + the kept conversation   ┌─▶ object.rs: a response
//!                                          └─▶ turn ─▶ Deltas ─────────┴─▶ stream.rs: its events
//!  store.rs   what is kept, here           http/peers.rs   whoever else keeps it answers
//! ```

mod object;
mod output;
mod request;
mod store;
mod stream;

use std::{sync::Arc, time::Duration};

use axum::{
    Json,
    extract::{Path, Request, State},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use futures::{StreamExt, stream as streams};
use serde_json::{Value, json};

pub use self::request::ResponsesRequest;
pub(crate) use self::store::Store;
use self::{
    object::Object,
    output::Output,
    request::Truncation,
    store::{Cancelled, Kept, Running, weight},
    stream::Events,
};
use super::{
    App,
    common::{
        generate::{self, Begun, Caller},
        listen::{Hearing, Listener},
        parse,
        turn::{self, Limit, Turn},
        usage::Tally,
    },
};
use crate::{
    engine::{Deltas, Generate},
    generation::{Delta, Finish, Reason},
    http::{
        auth::Tenant,
        body,
        error::ApiError,
        exchange::Exchange,
        json::line,
        peers::{Forward, Owner, was_passed_on},
        sse::EventStream,
    },
};

/// What ids of responses begin with.
const ID: &str = "resp_";
/// How long another router may take to find what it keeps.
const ELSEWHERE: Duration = Duration::from_secs(10);
/// What chats call by other names.
const NAMES: [(&str, &str); 4] = [
    ("response_format.json_schema", "text.format"),
    ("response_format", "text.format"),
    ("reasoning_effort", "reasoning.effort"),
    (".function.", "."),
];

/// What becomes of a response when it is over.
pub(crate) struct Keeping {
    /// `None`: it is forgotten.
    store: Option<Arc<Store>>,
    tenant: String,
    conversation: Vec<Value>,
}

/// A response in the making.
struct Making {
    object: Object,
    keeping: Keeping,
    hearing: Hearing,
}

/// Who can answer about a response.
enum Known {
    /// This router; by whom it is asked.
    Here(Tenant),
    /// Another has answered.
    Elsewhere(Response),
}

pub(crate) async fn create<E: Generate>(
    State(app): State<Arc<App<E>>>,
    request: Request,
) -> Result<Response, ApiError> {
    app.respond(request).await.map_err(|error| error.renamed(&NAMES))
}

pub(crate) async fn retrieve<E: Generate>(
    State(app): State<Arc<App<E>>>,
    Path(id): Path<String>,
    request: Request,
) -> Result<Response, ApiError> {
    let query = request.uri().query().unwrap_or_default();
    if query.split('&').any(|field| field == "stream=true") {
        body::discard(request);
        return Err(ApiError::unsupported("stream"));
    }
    match app.here(&id, request).await? {
        Known::Elsewhere(answer) => Ok(answer),
        Known::Here(Tenant(tenant)) => {
            let found = app.responses.look(&id, &tenant);
            Ok(Json(found.ok_or_else(|| unknown(&id, "response_id"))?).into_response())
        }
    }
}

pub(crate) async fn delete<E: Generate>(
    State(app): State<Arc<App<E>>>,
    Path(id): Path<String>,
    request: Request,
) -> Result<Response, ApiError> {
    match app.here(&id, request).await? {
        Known::Elsewhere(answer) => Ok(answer),
        Known::Here(Tenant(tenant)) if app.responses.delete(&id, &tenant) => {
            Ok(Json(json!({"id": id, "object": "response", "deleted": true})).into_response())
        }
        Known::Here(_) => Err(unknown(&id, "response_id")),
    }
}

pub(crate) async fn cancel<E: Generate>(
    State(app): State<Arc<App<E>>>,
    Path(id): Path<String>,
    request: Request,
) -> Result<Response, ApiError> {
    let Tenant(tenant) = match app.here(&id, request).await? {
        Known::Elsewhere(answer) => return Ok(answer),
        Known::Here(tenant) => tenant,
    };
    match app.responses.cancel(&id, &tenant) {
        Cancelled::Running(mut object) => {
            object["status"] = "cancelled".into();
            Ok(Json(object).into_response())
        }
        Cancelled::Over => {
            let message = "Only a response that is in progress can be cancelled";
            Err(ApiError::value("response_id", message))
        }
        Cancelled::Unknown => Err(unknown(&id, "response_id")),
    }
}

// === impl App ===

impl<E: Generate> App<E> {
    /// Answers a request for a response.
    async fn respond(&self, request: Request) -> Result<Response, ApiError> {
        let caller = Caller::of(&request)?;
        let forward = forward(&request, &caller);
        let body = body::read(request, &self.config).await?;
        let mut request: ResponsesRequest = parse::only(body.clone(), self.config.unknown_fields).await?;
        let settings = request.parameters()?.check(&self.config)?;
        let tools = request.tools()?;
        let mut messages = request.messages()?;
        if let Some(previous) = &request.previous_response_id {
            if let Some(address) = self.keeper(previous, "previous_response_id", &forward)? {
                return self.peers.pass_on(&address, forward, body).await;
            }
            let kept = self.responses.get(previous, &caller.tenant.0);
            let kept = kept.ok_or_else(|| unknown(previous, "previous_response_id"))?;
            if kept.conversation.iter().map(weight).sum::<usize>() > self.config.body_limit {
                let message =
                    "This conversation is too long to go on from: send the part that matters as input";
                return Err(ApiError::with_code("context_length_exceeded", "previous_response_id", message));
            }
            messages.splice(0..0, kept.conversation.iter().cloned());
        }
        let store = request.store.unwrap_or(true).then(|| self.responses.clone());
        let conversation = if store.is_some() { messages.clone() } else { Vec::new() };
        let keeping = Keeping { store, tenant: caller.tenant.0.clone(), conversation };
        if let Some(instructions) = &request.instructions {
            messages.insert(0, json!({"role": "system", "content": instructions}));
        }
        let streamed = request.stream.unwrap_or(false);
        let limit = match request.truncation {
            Some(Truncation::Auto) => Limit::Window,
            _ => Limit::None,
        };
        let id = self.peers.name(ID);
        let object = Object::new(id.clone(), settings.model.clone(), request);
        let turn = Turn { settings, messages, tools, safe: true, limit, param: "input" };
        let ask = self.ask(turn).await?;
        let hearing = ask.hearing.clone();
        let begun = self.begin(&caller, ask, id).await?;
        let making = Making { object, keeping, hearing };
        self.answer(caller, making, begun, streamed).await
    }

    async fn answer(
        &self,
        caller: Caller,
        Making { mut object, mut keeping, hearing }: Making,
        begun: Begun,
        streamed: bool,
    ) -> Result<Response, ApiError> {
        let Begun { deltas, mut tally, first_token, options } = begun;
        let mut response = if streamed {
            let json = serde_json::to_value(&object).unwrap_or_default();
            let running = self.responses.begin(object.id.clone(), keeping.tenant.clone(), json);
            let deltas = until_cancelled(deltas, &running);
            let events = Events::new(object, &hearing, tally.clone(), keeping, running);
            EventStream::new(events, deltas, self.closing.clone(), caller.exchange).into_response()
        } else {
            let output = whole(deltas, &hearing, &mut tally, &mut object, &caller.exchange).await?;
            keeping.keep(&object, output.template());
            generate::complete(line(&object), &tally, first_token, caller.exchange.elapsed())
        };
        generate::tell(response.headers_mut(), &tally, options);
        Ok(response)
    }

    /// The address of the router that keeps a response, if that isn't this one.
    fn keeper(&self, id: &str, param: &'static str, forward: &Forward) -> Result<Option<String>, ApiError> {
        match self.peers.owner(id, ID) {
            Owner::Here => Ok(None),
            Owner::At(address) if !was_passed_on(&forward.headers) => Ok(Some(address)),
            Owner::At(_) | Owner::Gone => Err(unknown(id, param)),
        }
    }

    /// Whether a response is kept here; if elsewhere, the answer from there.
    async fn here(&self, id: &str, request: Request) -> Result<Known, ApiError> {
        let caller = Caller::of(&request)?;
        let forward = forward(&request, &caller);
        body::discard(request);
        match self.keeper(id, "response_id", &forward)? {
            Some(address) => {
                let answer = self.peers.pass_on(&address, forward, Bytes::new());
                match tokio::time::timeout(ELSEWHERE, answer).await {
                    Ok(answer) => answer.map(Known::Elsewhere),
                    Err(_) => Err(ApiError::Unavailable {
                        message: "the router that keeps this does not answer".into(),
                        retry_after: Duration::from_secs(1),
                    }),
                }
            }
            None => Ok(Known::Here(caller.tenant)),
        }
    }
}

fn forward(request: &Request, caller: &Caller) -> Forward {
    Forward {
        method: request.method().clone(),
        path: request.uri().path().to_owned(),
        headers: request.headers().clone(),
        exchange: caller.exchange.clone(),
    }
}

fn unknown(id: &str, param: &'static str) -> ApiError {
    let id = crate::http::json::split(id, 128).0;
    ApiError::NotFound { param, message: format!("Response with id '{id}' not found") }
}

/// Waits for all of a response.
async fn whole(
    deltas: Deltas,
    hearing: &Hearing,
    tally: &mut Tally,
    object: &mut Object,
    exchange: &Exchange,
) -> Result<Output, ApiError> {
    let (mut output, mut events) = (Output::default(), Vec::new());
    let hear = |parts, listener: &Listener| {
        output.take(parts, listener, &mut events);
        events.clear(); // nobody follows
    };
    let finish = turn::until_over(deltas, hearing, tally, exchange, hear).await?;
    object.finish(finish, tally);
    output.end(object.status.of_items(), &mut events);
    object.output.clone_from(&output.items);
    Ok(output)
}

/// A cancelled response ends where it is.
fn until_cancelled(deltas: Deltas, running: &Running) -> Deltas {
    let finish = Finish { reason: Reason::Stop, completion_tokens: 0, cached_tokens: 0, stop: None };
    let end = Delta { finish: Some(finish), ..Delta::default() };
    let (cancelled, cancel) = (running.cancel.clone().cancelled_owned(), running.cancel.clone());
    let end = streams::once(async move { cancel.is_cancelled().then(|| Ok(vec![end])) });
    Deltas::new(deltas.take_until(cancelled).chain(end.filter_map(std::future::ready)))
}

// === impl Keeping ===

impl Keeping {
    /// Keeps it, with the assistant's part of the conversation.
    fn keep(&mut self, object: &Object, said: Value) {
        let Some(store) = self.store.take() else { return };
        self.conversation.push(said);
        let kept = Kept {
            tenant: std::mem::take(&mut self.tenant),
            object: serde_json::to_value(object).unwrap_or_default(),
            conversation: std::mem::take(&mut self.conversation),
        };
        store.keep(object.id.clone(), kept);
    }
}
