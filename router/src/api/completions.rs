//! `POST /completions`: text that goes on from a prompt, which is not modified in any way.

use std::sync::Arc;

use axum::{
    extract::{Request, State},
    response::Response,
};
use serde::{Deserialize, Serialize};

use super::{
    App,
    common::{
        fields::{PromptField, PromptItem},
        generate::{Ask, Caller},
        listen::Hearing,
        parse,
        reply::{Piece, Said, Shape},
    },
};
use crate::{
    engine::{Generate, Model},
    http::{body, error::ApiError},
};

/// What completions take beside the shared parameters.
#[derive(Debug, Deserialize)]
pub struct CompletionRequest {
    /// Text or tokens, one or several.
    pub prompt: Option<PromptField>,
}

/// One prompt.
#[derive(Debug, PartialEq, Eq)]
enum Source {
    Text(String),
    Tokens(Vec<i64>),
}

/// The shapes of the answer.
struct Completions;

#[derive(Serialize)]
struct Body<'a> {
    text: &'a str,
}

pub(crate) async fn create<E: Generate>(
    State(app): State<Arc<App<E>>>,
    request: Request,
) -> Result<Response, ApiError> {
    let caller = Caller::of(&request)?;
    let body = body::read(request, app.config.body_limit).await?;
    let mut parsed = parse::request::<CompletionRequest>(body, app.config.unknown_fields).await?;
    caller.name_model(&mut parsed.parameters);
    let settings = parsed.parameters.check(&app.config)?;
    let sources = sources(parsed.own.prompt.ok_or_else(|| ApiError::missing("prompt"))?)?;
    app.check_choices(sources.len(), settings.best_of)?;
    let model = app.model(&settings.model).await?;
    let mut prompts = Vec::with_capacity(sources.len());
    for source in sources {
        prompts.push(tokens(&model, source).await?);
    }
    let default_max_tokens = app.config.completion_max_tokens;
    let grammar = settings.grammar.clone();
    let hearing = Hearing::default();
    let ask = Ask { settings, model, prompts, param: "prompt", default_max_tokens, grammar, hearing };
    app.generate::<Completions>(caller, ask).await
}

/// The prompts in any of the four shapes.
fn sources(prompt: PromptField) -> Result<Vec<Source>, ApiError> {
    let items = match prompt {
        PromptField::Text(text) => return Ok(vec![Source::Text(text)]),
        PromptField::List(items) => items,
    };
    let mixed = || ApiError::with_code("invalid_type", "prompt", "prompt must not mix texts and tokens");
    match items.first() {
        None => Err(ApiError::value("prompt", "prompt must not be empty")),
        Some(PromptItem::Token(_)) => {
            let tokens = items.into_iter().map(|item| match item {
                PromptItem::Token(id) => Ok(id),
                _ => Err(mixed()),
            });
            Ok(vec![Source::Tokens(tokens.collect::<Result<_, _>>()?)])
        }
        Some(first) => {
            let of_text = matches!(first, PromptItem::Text(_));
            let sources = items.into_iter().map(|item| match item {
                PromptItem::Text(text) if of_text => Ok(Source::Text(text)),
                PromptItem::Tokens(tokens) if !of_text => Ok(Source::Tokens(tokens)),
                _ => Err(mixed()),
            });
            sources.collect()
        }
    }
}

async fn tokens(model: &Model, source: Source) -> Result<Vec<u32>, ApiError> {
    let tokens = match source {
        Source::Text(text) => {
            model.encode_prompt(text).await.map_err(|error| ApiError::text(error, "prompt"))?
        }
        Source::Tokens(ids) => {
            let size = model.card.vocab_size;
            let known = |id: i64| u32::try_from(id).ok().filter(|id| *id < size);
            let check = |id| {
                known(id).ok_or_else(|| {
                    ApiError::value(
                        "prompt",
                        format!("token id {id} is not in the vocabulary (0 to {})", size - 1),
                    )
                })
            };
            ids.into_iter().map(check).collect::<Result<_, _>>()?
        }
    };
    if tokens.is_empty() {
        return Err(ApiError::value("prompt", "prompt has no tokens"));
    }
    Ok(tokens)
}

// === impl Completions ===

impl Shape for Completions {
    const ID: &'static str = "cmpl-";
    const OBJECT: &'static str = "text_completion";
    const CHUNK: &'static str = "text_completion";
    const OPENS: bool = false;
    const CALLED: &'static str = "stop"; // nothing is read as a call
    type Body<'a> = Body<'a>;

    fn body(said: Said<'_>) -> Body<'_> {
        let text = match said {
            Said::Whole(saying) => saying.content.as_str(),
            Said::More(Piece::Content(text)) => text,
            Said::More(_) | Said::Open | Said::Nothing => "",
        };
        Body { text }
    }
}
