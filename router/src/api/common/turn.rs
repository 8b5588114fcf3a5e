//! The next turn of a conversation, whichever API it came by: what is asked of the model, and, for the APIs that
//! have exactly one answer, all of that answer.

use std::sync::Arc;

use futures::TryStreamExt;
use serde_json::Value;

use super::{
    conversation::{Conversation, Prompt},
    generate::Ask,
    listen::{Hearing, Listener, Saying},
    parameters::Settings,
    tools::Tools,
    usage::Tally,
};
use crate::{
    api::App,
    config::Config,
    engine::{ChatOptions, Deltas, Generate, Model},
    generation::Finish,
    http::{error::ApiError, exchange::Exchange},
    text::output::{Format, Part, Thinking},
};

/// A conversation to go on with.
pub(crate) struct Turn {
    pub settings: Settings,
    /// As templates take them.
    pub messages: Vec<Value>,
    pub tools: Tools,
    /// Whether special-token strings inside messages stay text.
    pub safe: bool,
    pub limit: Limit,
    /// The field that the messages came from.
    pub param: &'static str,
}

/// How long the conversation may be before its oldest turns are left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Limit {
    /// Nothing is left out.
    None,
    /// Tokens.
    Tokens(usize),
    /// So long that the answer has room in the context window.
    Window,
}

/// What the model answered.
pub(crate) struct Whole {
    pub saying: Saying,
    pub finish: Finish,
}

// === impl App ===

impl<E: Generate> App<E> {
    /// What is asked of the model.
    pub(crate) async fn ask(&self, turn: Turn) -> Result<Ask, ApiError> {
        let Turn { settings, mut messages, tools, safe, limit, param } = turn;
        if let (true, Some((_, form))) = (tools.forced(), &settings.grammar) {
            let message = format!("{form} and a tool_choice that forces a call exclude each other");
            return Err(ApiError::value(*form, message));
        }
        self.check_choices(1, settings.best_of)?;
        let model = self.model(&settings.model).await?;
        settings.reasoning.check_model(model.knows())?;
        settings.reasoning.forget(&mut messages);
        let options = ChatOptions {
            safe,
            tools: tools.told(),
            variables: settings.reasoning.variables(settings.grammar.is_some()),
            ..ChatOptions::default()
        };
        let limit = limit.tokens(&settings, &model, &self.config);
        let conversation = Conversation { model: &model, messages, options };
        let prompt = match limit {
            Some(limit) => conversation.fitting(limit).await,
            None => conversation.all().await,
        };
        let prompt = prompt.map_err(|error| ApiError::text(error, param))?;
        ask(settings, model, prompt, &tools, &self.config, param)
    }
}

fn ask(
    settings: Settings,
    model: Arc<Model>,
    Prompt { tokens, thinking }: Prompt,
    tools: &Tools,
    config: &Config,
    param: &'static str,
) -> Result<Ask, ApiError> {
    let known = model.knows().and_then(|knows| knows.tools);
    let format = config.tool_format.or(known).unwrap_or(Format::Hermes);
    let grammar = match tools.forced() {
        true => Some((tools.grammar(format, &model)?, "tools")),
        false => settings.grammar.clone(),
    };
    // Where the prompt has begun to reason, the form is that of the answer behind it.
    let grammar = grammar.map(|(grammar, param)| match thinking {
        Thinking::Open => (grammar.after_reasoning(model.tokenizer().vocabulary()), param),
        Thinking::Never | Thinking::Tagged => (grammar, param),
    });
    // An echoed prompt is part of the text, and nothing that was said.
    let hearing = match settings.echo {
        0 => tools.hearing(format, thinking),
        _ => Hearing::default(),
    };
    let default_max_tokens = config.chat_max_tokens;
    Ok(Ask { settings, model, prompts: vec![tokens], param, default_max_tokens, grammar, hearing })
}

/// Waits for all of the one answer.
pub(crate) async fn whole(
    deltas: Deltas,
    hearing: &Hearing,
    tally: &mut Tally,
    exchange: &Exchange,
) -> Result<Whole, ApiError> {
    let mut saying = Saying::default();
    let hear = |parts, listener: &Listener| saying.extend(parts, listener);
    let finish = until_over(deltas, hearing, tally, exchange, hear).await?;
    Ok(Whole { saying, finish })
}

/// Hears the one answer to its end.
pub(crate) async fn until_over(
    mut deltas: Deltas,
    hearing: &Hearing,
    tally: &mut Tally,
    exchange: &Exchange,
    mut hear: impl FnMut(Vec<Part>, &Listener),
) -> Result<Finish, ApiError> {
    let mut listener = Listener::new(hearing);
    while let Some(batch) = deltas.try_next().await? {
        for mut delta in batch {
            let parts = listener.hear(&mut delta);
            hear(parts, &listener);
            tally.guess(&delta.guessed);
            if let Some(finish) = delta.finish {
                exchange.generated(finish.completion_tokens.into());
                tally.close(finish, listener.reasoning_tokens());
                return Ok(finish);
            }
        }
    }
    Err(ApiError::Internal("the output ended early".into()))
}

// === impl Limit ===

impl Limit {
    fn tokens(self, settings: &Settings, model: &Model, config: &Config) -> Option<usize> {
        let window = model.card.context_length as usize;
        match self {
            Self::None => None,
            Self::Tokens(tokens) => Some(tokens),
            Self::Window => {
                let wanted = settings.max_tokens.unwrap_or(config.chat_max_tokens.into());
                let answer = usize::try_from(wanted).unwrap_or(window).clamp(1, (window / 2).max(1));
                Some(window.saturating_sub(answer))
            }
        }
    }
}
