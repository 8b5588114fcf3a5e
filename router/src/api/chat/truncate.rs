//! `prompt_truncate_len`: a conversation cut to a length by leaving out its oldest turns.

use serde_json::Value;

use crate::{
    engine::{ChatOptions, Model, TextError},
    text::output::Thinking,
};

/// A conversation, to be rendered whole or in part.
pub(super) struct Turns<'a> {
    pub(super) model: &'a Model,
    pub(super) messages: Vec<Value>,
    pub(super) options: ChatOptions,
}

/// A conversation as the model gets it.
pub(super) struct Prompt {
    pub(super) tokens: Vec<u32>,
    /// How the answer begins.
    pub(super) thinking: Thinking,
}

// === impl Turns ===

impl Turns<'_> {
    /// All of it.
    pub(super) async fn all(self) -> Result<Prompt, TextError> {
        self.render(self.messages.clone()).await
    }

    /// As many of the last turns as make at most `limit` tokens. A turn goes from a user's message
    /// to before the next, so that templates which insist on an alternation still have one; system messages
    /// stay unless not even the last turn fits beside them. If that alone is too long, it is what there is.
    pub(super) async fn fitting(self, limit: usize) -> Result<Prompt, TextError> {
        let whole = self.render(self.messages.clone()).await?;
        if whole.tokens.len() <= limit {
            return Ok(whole);
        }
        // Each later start gives a shorter prompt: the first that fits is found by halving.
        let starts: Vec<usize> = self.positions("user").skip(1).collect();
        let (mut low, mut high) = (0, starts.len());
        let mut found = None;
        while low < high {
            let middle = (low + high) / 2;
            let prompt = self.from(starts[middle], true).await?;
            if prompt.tokens.len() <= limit {
                (found, high) = (Some(prompt), middle);
            } else {
                low = middle + 1;
            }
        }
        match found {
            Some(prompt) => Ok(prompt),
            None if self.messages.iter().all(|message| message["role"] == "system") => Ok(whole),
            None => self.from(starts.last().copied().unwrap_or(0), false).await,
        }
    }

    async fn from(&self, start: usize, systems: bool) -> Result<Prompt, TextError> {
        let stays = |(at, message): &(usize, &Value)| match message["role"] == "system" {
            true => systems,
            false => *at >= start,
        };
        let messages = self.messages.iter().enumerate().filter(stays).map(|(_, message)| message.clone());
        self.render(messages.collect()).await
    }

    fn positions(&self, role: &str) -> impl Iterator<Item = usize> {
        let of = move |(_, message): &(usize, &Value)| message["role"] == role;
        self.messages.iter().enumerate().filter(of).map(|(at, _)| at)
    }

    async fn render(&self, messages: Vec<Value>) -> Result<Prompt, TextError> {
        let rendered = self.model.render_chat(messages, self.options.clone()).await?;
        let thinking = self.model.thinking(&rendered);
        Ok(Prompt { tokens: self.model.encode_chat(rendered).await?, thinking })
    }
}
