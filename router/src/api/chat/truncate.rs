//! `prompt_truncate_len`: a conversation cut to a length by leaving out its oldest turns.

use serde_json::Value;

use crate::engine::{ChatOptions, Model, TextError};

/// A conversation, to be rendered whole or in part.
pub(super) struct Turns<'a> {
    pub(super) model: &'a Model,
    pub(super) messages: Vec<Value>,
    pub(super) safe: bool,
}

// === impl Turns ===

impl Turns<'_> {
    /// The tokens of all of it.
    pub(super) async fn all(self) -> Result<Vec<u32>, TextError> {
        render(self.model, self.messages, self.safe).await
    }

    /// The tokens of as many of the last turns as make at most `limit` tokens. A turn goes from a user's message
    /// to before the next, so that templates which insist on an alternation still have one; system messages
    /// stay unless not even the last turn fits beside them. If that alone is too long, it is what there is.
    pub(super) async fn fitting(self, limit: usize) -> Result<Vec<u32>, TextError> {
        let whole = render(self.model, self.messages.clone(), self.safe).await?;
        if whole.len() <= limit {
            return Ok(whole);
        }
        // Each later start gives a shorter prompt: the first that fits is found by halving.
        let starts: Vec<usize> = self.positions("user").skip(1).collect();
        let (mut low, mut high) = (0, starts.len());
        let mut found = None;
        while low < high {
            let middle = (low + high) / 2;
            let tokens = self.from(starts[middle], true).await?;
            if tokens.len() <= limit {
                (found, high) = (Some(tokens), middle);
            } else {
                low = middle + 1;
            }
        }
        match found {
            Some(tokens) => Ok(tokens),
            None if self.messages.iter().all(|message| message["role"] == "system") => Ok(whole),
            None => self.from(starts.last().copied().unwrap_or(0), false).await,
        }
    }

    async fn from(&self, start: usize, systems: bool) -> Result<Vec<u32>, TextError> {
        let stays = |(at, message): &(usize, &Value)| match message["role"] == "system" {
            true => systems,
            false => *at >= start,
        };
        let messages = self.messages.iter().enumerate().filter(stays).map(|(_, message)| message.clone());
        render(self.model, messages.collect(), self.safe).await
    }

    fn positions(&self, role: &str) -> impl Iterator<Item = usize> {
        let of = move |(_, message): &(usize, &Value)| message["role"] == role;
        self.messages.iter().enumerate().filter(of).map(|(at, _)| at)
    }
}

async fn render(model: &Model, messages: Vec<Value>, safe: bool) -> Result<Vec<u32>, TextError> {
    let rendered = model.render_chat(messages, ChatOptions { safe, ..ChatOptions::default() }).await?;
    model.encode_chat(rendered).await
}
