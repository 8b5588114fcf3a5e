//! How the HTTP side behaves: plain data, read once by the command line and passed down.

use std::time::Duration;

use crate::{
    http::{auth::Keys, limits::Limits},
    text::output::Format,
};

/// Everything that the HTTP side can be told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The account in `accounts/<account>/models/<name>`.
    pub account: String,
    /// Other names for models: what a request may say, and what it means.
    pub aliases: Vec<(String, String)>,
    /// Who may ask.
    pub keys: Keys,
    /// What each key may use per minute.
    pub limits: Limits,
    /// Whether the output keeps the stop string; a request's `include_stop_str_in_output` wins.
    pub stop_word: StopWord,
    /// What a field that no version of the API knows does.
    pub unknown_fields: UnknownFields,
    /// The largest request body, bytes.
    pub body_limit: usize,
    /// The longest silence in the middle of a request.
    pub client_timeout: Duration,
    /// The most alternatives that `top_logprobs` may ask for. Fireworks stops at 5, OpenAI at 20.
    pub top_logprobs_max: u32,
    /// The largest `top_k`.
    pub top_k_max: u32,
    /// The most choices of one request: prompts × `n`.
    pub choices_max: usize,
    /// `max_tokens` of a chat that does not say; clipped to the context window.
    pub chat_max_tokens: u32,
    /// `max_tokens` of a completion that does not say; clipped to the context window.
    pub completion_max_tokens: u32,
    /// What kept responses may take, bytes.
    pub responses_bytes: usize,
    /// How long a response is kept.
    pub responses_age: Duration,
    /// How models write tool calls; none: as each one's template tells.
    pub tool_format: Option<Format>,
    /// How long running requests may go on after a shutdown began.
    pub grace: Duration,
}

/// Whether the text keeps the stop string that ended it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum StopWord {
    /// As Fireworks does: the text ends with the stop string.
    #[default]
    Include,
    /// As OpenAI does.
    Exclude,
}

/// What happens to a request with a field that nobody knows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum UnknownFields {
    /// 400, as Fireworks answers.
    #[default]
    Error,
    /// Served, with a line in the log.
    Warn,
    /// Served.
    Ignore,
}

// === impl Config ===

impl Config {
    /// The account of a server that is not told one: ids written for Fireworks mean the models served here.
    pub const ACCOUNT: &str = "fireworks";
}

impl Default for Config {
    fn default() -> Self {
        Self {
            account: Self::ACCOUNT.into(),
            aliases: Vec::new(),
            keys: Keys::none(),
            limits: Limits::default(),
            stop_word: StopWord::default(),
            unknown_fields: UnknownFields::default(),
            body_limit: 10 << 20,
            client_timeout: Duration::from_secs(30),
            top_logprobs_max: 20,
            top_k_max: 100,
            choices_max: 256,
            chat_max_tokens: 2048,
            completion_max_tokens: 16,
            responses_bytes: 64 << 20,
            responses_age: Duration::from_secs(3600),
            tool_format: None,
            grace: Duration::from_secs(30),
        }
    }
}
