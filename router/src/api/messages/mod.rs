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
pub use self::request::MessagesRequest;
use super::{
    App,
    common::{
        fields::Integer,
        generate::{self, Ask, Begun, Caller},
        parse,
        turn::{self, Limit, Turn},
    },
};
use crate::{
    engine::Generate,
    http::{body, error::ApiError, sse::EventStream},
};

#[derive(Serialize)]
pub(crate) struct Count {
    input_tokens: usize,
}

/// What chats call by other names.
const NAMES: [(&str, &str); 4] = [
    ("response_format", "output_config.format"),
    ("reasoning_effort", "output_config.effort"),
    (".function.parameters", ".input_schema"),
    (".function.", "."),
];

pub(crate) async fn create<E: Generate>(
    State(app): State<Arc<App<E>>>,
    request: Request,
) -> Result<Response, ApiError> {
    let answer = async {
        let caller = Caller::of(&request)?;
        let body = body::read(request, &app.config).await?;
        let request: MessagesRequest = parse::only(body, app.config.unknown_fields).await?;
        let streamed = request.stream.unwrap_or(false);
        let ask = app.understand(request).await?;
        let id = format!("msg_{}", uuid::Uuid::new_v4().simple());
        let (model, stops) = (ask.settings.model.clone(), ask.settings.stop.clone());
        let (head, hearing) = (Head { id: id.clone(), model, stops }, ask.hearing.clone());
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
    };
    answer.await.map_err(|error: ApiError| error.renamed(&NAMES))
}

/// What the same request would give the model, but for `max_tokens`, which may be absent here.
pub(crate) async fn count_tokens<E: Generate>(
    State(app): State<Arc<App<E>>>,
    request: Request,
) -> Result<Json<Count>, ApiError> {
    let body = body::read(request, &app.config).await?;
    let mut request: MessagesRequest = parse::only(body, app.config.unknown_fields).await?;
    request.max_tokens.get_or_insert(Integer(1));
    let ask = app.understand(request).await.map_err(|error| error.renamed(&NAMES))?;
    Ok(Json(Count { input_tokens: ask.prompts.iter().map(Vec::len).sum() }))
}

// === impl App ===

impl<E: Generate> App<E> {
    async fn understand(&self, mut request: MessagesRequest) -> Result<Ask, ApiError> {
        let settings = request.parameters()?.check(&self.config)?;
        let tools = request.tools()?;
        let messages = request.conversation().template()?;
        let turn = Turn { settings, messages, tools, safe: true, limit: Limit::None, param: "messages" };
        self.ask(turn).await
    }
}
