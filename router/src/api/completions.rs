//! `POST /completions`: text that goes on from a prompt, which is not modified in any way.

use std::sync::Arc;

use axum::{
    extract::{Request, State},
    response::Response,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    App,
    common::{
        fields::PromptField,
        generate::{Ask, Caller},
        listen::Hearing,
        parse, prompts,
        reply::{Piece, Said, Shape},
    },
};
use crate::{
    engine::Generate,
    http::{body, error::ApiError},
};

/// What completions take beside the shared parameters.
#[derive(Debug, Deserialize, JsonSchema)]
pub struct CompletionRequest {
    /// Text or tokens, one or several.
    pub prompt: Option<PromptField>,
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
    let body = body::read(request, &app.config).await?;
    let mut parsed = parse::request::<CompletionRequest>(body, app.config.unknown_fields).await?;
    caller.name_model(&mut parsed.parameters);
    let settings = parsed.parameters.check(&app.config)?;
    let sources = prompts::sources(parsed.own.prompt.ok_or_else(|| ApiError::missing("prompt"))?, "prompt")?;
    app.check_choices(sources.len(), settings.best_of)?;
    let model = app.model(&settings.model).await?;
    let mut prompts = Vec::with_capacity(sources.len());
    for source in sources {
        prompts.push(source.tokens(&model, "prompt").await?);
    }
    let default_max_tokens = app.config.completion_max_tokens;
    let grammar = settings.grammar.clone();
    let hearing = Hearing::default();
    let ask = Ask { settings, model, prompts, param: "prompt", default_max_tokens, grammar, hearing };
    app.generate::<Completions>(caller, ask).await
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
