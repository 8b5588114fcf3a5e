//! `POST /messages` and `POST /messages/count_tokens`: Anthropic's API, over the same turns as chat.
//!
//! ```text
//!  request.rs: blocks ─▶ template messages ─▶ turn ─▶ Deltas ─▶ answer.rs: a message, or its events
//! ```

mod answer;
mod request;

use std::sync::Arc;

use axum::{
    Json,
    extract::{Request, State},
    response::Response,
};
use serde::Serialize;

use self::answer::{Events, Head};
pub use self::request::{CountRequest, MessagesRequest};
use super::{
    App,
    common::{
        conversation::Conversation,
        generate::{self, Begun, Caller},
        parse,
        turn::{self, Limit, Turn},
    },
};
use crate::{
    engine::{ChatOptions, Generate},
    http::{body, error::ApiError, sse::EventStream},
};

#[derive(Serialize)]
pub(crate) struct Count {
    input_tokens: usize,
}

pub(crate) async fn create<E: Generate>(
    State(app): State<Arc<App<E>>>,
    request: Request,
) -> Result<Response, ApiError> {
    let caller = Caller::of(&request)?;
    let body = body::read(request, app.config.body_limit).await?;
    let mut request: MessagesRequest = parse::only(body, app.config.unknown_fields).await?;
    let settings = request.parameters()?.check(&app.config)?;
    let streamed = request.stream.unwrap_or(false);
    let tools = request.tools()?;
    let messages = request.conversation().template()?;
    let id = format!("msg_{}", uuid::Uuid::new_v4().simple());
    let head = Head { id: id.clone(), model: settings.model.clone(), stops: settings.stop.clone() };
    let turn = Turn { settings, messages, tools, safe: true, limit: Limit::None, param: "messages" };
    let ask = app.ask(turn).await?;
    let hearing = ask.hearing.clone();
    let Begun { deltas, mut tally, first_token, options } = app.begin(&caller, ask, id).await?;
    let mut response = if streamed {
        let events = Events::new(head, tally.clone(), &hearing);
        EventStream::new(events, deltas, app.closing.clone(), caller.exchange).into_response()
    } else {
        let whole = turn::whole(deltas, &hearing, &mut tally, &caller.exchange).await?;
        generate::complete(head.message(&whole, &tally), &tally, first_token, caller.exchange.elapsed())
    };
    generate::tell(response.headers_mut(), &tally, options);
    Ok(response)
}

pub(crate) async fn count_tokens<E: Generate>(
    State(app): State<Arc<App<E>>>,
    request: Request,
) -> Result<Json<Count>, ApiError> {
    let body = body::read(request, app.config.body_limit).await?;
    let mut request: CountRequest = parse::only(body, app.config.unknown_fields).await?;
    let name = request.model.take().filter(|name| !name.is_empty());
    let name = name.ok_or_else(|| ApiError::missing("model"))?;
    let options = ChatOptions { tools: request.tools()?.told(), ..ChatOptions::default() };
    let messages = request.conversation().template()?;
    let model = app.model(&name).await?;
    let prompt = Conversation { model: &model, messages, options }.all().await;
    let prompt = prompt.map_err(|error| ApiError::text(error, "messages"))?;
    Ok(Json(Count { input_tokens: prompt.tokens.len() }))
}
