//! A model as the router knows it: its card, tokenizer, chat template and generation defaults.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tokio::sync::Semaphore;
use volley_grammar::{Compiler, Grammar};
use volley_proto::v1::ModelCard;

use super::{
    output::{Thinking, Tool},
    template::{Knows, Template, Variables},
    tokenizer::{TextPool, Tokenizer},
};

/// A model's text half, fetched through a scheduler. A request is pinned to `card.hash`.
pub struct Model {
    /// What the schedulers report.
    pub card: ModelCard,
    /// From generation_config.json: what a request that says nothing gets.
    pub defaults: Defaults,
    tokenizer: Arc<Tokenizer>,
    template: Option<Arc<Template>>,
    compiler: Arc<Compiler>,
    /// Grammars that are compiled at a time.
    compiles: Arc<Semaphore>,
    pool: TextPool,
}

/// Sampling defaults that a model brings; `None` where it says nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Defaults {
    /// As in a request.
    pub temperature: Option<f32>,
    /// As in a request.
    pub top_p: Option<f32>,
    /// As in a request.
    pub top_k: Option<u32>,
    /// As in a request.
    pub min_p: Option<f32>,
    /// As in a request.
    pub typical_p: Option<f32>,
}

/// What special-token strings inside a text mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Special {
    /// Text like any other.
    Literal,
    /// The tokens that they name.
    Parse,
}

/// How messages are rendered.
#[derive(Clone, Debug)]
pub struct ChatOptions {
    /// Open the assistant's turn at the end.
    pub add_generation_prompt: bool,
    /// Keep special-token strings inside the messages as text.
    pub safe: bool,
    /// Functions that the model may call.
    pub tools: Vec<Tool>,
    /// Further template variables (`chat_template_kwargs`).
    pub variables: serde_json::Map<String, serde_json::Value>,
}

/// A rendered conversation. Special-token strings that stood in the messages stay marked as text.
#[derive(Clone, Debug, PartialEq)]
pub struct Rendered {
    pub(crate) marked: String,
    pub(crate) guarded: Vec<String>,
}

/// Why text and tokens could not be had.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TextError {
    /// The model has no chat template.
    #[error("the model has no chat template")]
    NoTemplate,
    /// The template refused the messages, in its own words (`raise_exception`). 400.
    #[error("{0}")]
    Refused(String),
    /// The template failed on these messages. 400.
    #[error("the chat template failed: {0}")]
    Template(String),
    /// The tokenizer has no tokens for this text. 400.
    #[error("the text cannot be tokenized: {0}")]
    Encode(String),
    /// Too much text waits for the text threads. 503.
    #[error("too many texts wait to be tokenized")]
    Busy,
}

/// Why a grammar can't be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GrammarError {
    /// It is wrong, or takes too much. 400; or the vocabulary is unusable. 500.
    #[error(transparent)]
    Refused(#[from] volley_grammar::Error),
    /// It was not compiled in time. 400.
    #[error("too complex: not compiled within {} s", COMPILE_TIME.as_secs())]
    Slow,
}

/// The longest that a grammar may take, its wait for a thread included.
const COMPILE_TIME: Duration = Duration::from_secs(5);
/// Grammars that are compiled at a time, for one model.
const COMPILES: usize = 2;

/// A model's files are unusable: says which and why.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{file}: {reason}")]
pub struct BadModel {
    file: String,
    reason: String,
}

// === impl Model ===

impl Model {
    /// What makes its answers: the hash stands for weights, tokenizer and template.
    pub(crate) fn fingerprint(&self) -> String {
        let hash = blake3::hash(format!("{}/{}", self.card.hash, self.card.weights_hash).as_bytes());
        format!("fp_{}", &hash.to_hex()[..10])
    }

    /// Builds a model from its files: `tokenizer.json`, and where it has them `chat_template.jinja`,
    /// `config.json` and `generation_config.json`. Takes CPU time: not for the async threads.
    pub fn from_files(
        card: ModelCard,
        files: &BTreeMap<String, Vec<u8>>,
        pool: TextPool,
    ) -> Result<Self, BadModel> {
        let tokenizer =
            files.get("tokenizer.json").ok_or_else(|| BadModel::new("tokenizer.json", "missing"))?;
        let tokenizer =
            Tokenizer::from_json(tokenizer).map_err(|reason| BadModel::new("tokenizer.json", reason))?;
        let config = json(files, "config.json")?;
        let token = |id: Option<u32>| {
            id.map(|id| String::from_utf8_lossy(tokenizer.vocabulary().bytes(id)).into_owned())
                .unwrap_or_default()
        };
        let variables = Variables {
            bos_token: token(ids(&config["bos_token_id"]).next().or(card.bos_token)),
            eos_token: token(ids(&config["eos_token_id"]).next().or(card.stop_tokens.first().copied())),
        };
        let template = match files.get("chat_template.jinja") {
            None => None,
            Some(source) => {
                let bad = |reason: String| BadModel::new("chat_template.jinja", reason);
                let source = String::from_utf8(source.clone()).map_err(|e| bad(e.to_string()))?;
                Some(Arc::new(Template::new(source, variables).map_err(bad)?))
            }
        };
        let defaults = Defaults::from_json(&json(files, "generation_config.json")?);
        let vocabulary = tokenizer.vocabulary().clone();
        let compiler = Compiler::new(move || Ok(vocabulary.clone()), card.vocab_size, &card.stop_tokens);
        Ok(Self {
            card,
            defaults,
            tokenizer: Arc::new(tokenizer),
            template,
            compiler: Arc::new(compiler),
            compiles: Arc::new(Semaphore::new(COMPILES)),
            pool,
        })
    }

    /// A model from a tokenizer and a template alone.
    pub fn new(card: ModelCard, tokenizer_json: &[u8], template: Option<&str>) -> Result<Self, BadModel> {
        let mut files = BTreeMap::from([("tokenizer.json".to_owned(), tokenizer_json.to_vec())]);
        files.extend(template.map(|text| ("chat_template.jinja".to_owned(), text.as_bytes().to_vec())));
        Self::from_files(card, &files, TextPool::default())
    }

    /// The tokens of a text, as they are: no BOS is added.
    pub async fn encode(&self, text: String, special: Special) -> Result<Vec<u32>, TextError> {
        let tokenizer = self.tokenizer.clone();
        self.pool.run(text.len(), move || tokenizer.encode(&text, special)).await
    }

    /// The tokens of a raw prompt: specials parsed, and BOS first where the model wants it. May be empty.
    pub async fn encode_prompt(&self, text: String) -> Result<Vec<u32>, TextError> {
        let mut tokens = self.encode(text, Special::Parse).await?;
        self.begin(&mut tokens);
        Ok(tokens)
    }

    /// Puts BOS first where the model wants it and it isn't there.
    pub fn begin(&self, tokens: &mut Vec<u32>) {
        if let Some(bos) = self.card.bos_token
            && tokens.first() != Some(&bos)
        {
            tokens.insert(0, bos);
        }
    }

    /// Renders a conversation: OpenAI messages, content parts already joined to strings.
    pub async fn render_chat(
        &self,
        messages: Vec<serde_json::Value>,
        options: ChatOptions,
    ) -> Result<Rendered, TextError> {
        let template = self.template.clone().ok_or(TextError::NoTemplate)?;
        let tokenizer = self.tokenizer.clone();
        let size = messages.len() * 64;
        self.pool.run(size, move || template.render(&tokenizer, messages, &options)).await
    }

    /// The tokens of a rendered conversation: the template's specials are parsed, those that stood in the
    /// messages stay text. No BOS is added, templates bring their own.
    pub async fn encode_chat(&self, rendered: Rendered) -> Result<Vec<u32>, TextError> {
        let tokenizer = self.tokenizer.clone();
        self.pool.run(rendered.marked.len(), move || tokenizer.encode_rendered(&rendered)).await
    }

    /// What the chat template makes use of; nothing where there is none.
    pub(crate) fn knows(&self) -> Option<Knows> {
        self.template.as_ref().map(|template| template.knows())
    }

    /// Whether an answer to that conversation begins with reasoning.
    pub(crate) fn thinking(&self, rendered: &Rendered) -> Thinking {
        if !self.knows().is_some_and(|knows| knows.reasoning) {
            return Thinking::Never;
        }
        match rendered.marked.trim_end().ends_with("<think>") {
            true => Thinking::Open,
            false => Thinking::Tagged,
        }
    }

    /// Compiles a grammar, to know that workers can. Compiled ones are kept.
    pub(crate) async fn check_grammar(&self, grammar: &Grammar) -> Result<(), GrammarError> {
        if self.compiler.compiled(grammar).is_some() {
            return Ok(());
        }
        let (compiler, compiles) = (self.compiler.clone(), self.compiles.clone());
        let compile = async move {
            let permit = compiles.acquire_owned().await;
            let grammar = grammar.clone();
            let compiled = tokio::task::spawn_blocking(move || {
                let _permit = permit; // held even when nobody waits any more: the thread is busy until the end
                compiler.compile(&grammar).map(|_| ())
            });
            let broken =
                |panic: tokio::task::JoinError| Err(volley_grammar::Error::Broken(panic.to_string()));
            compiled.await.unwrap_or_else(broken)
        };
        match tokio::time::timeout(COMPILE_TIME, compile).await {
            Ok(compiled) => Ok(compiled?),
            Err(_) => Err(GrammarError::Slow),
        }
    }

    /// The bytes of a token: may be part of a character; a special token's are its name. Empty if unknown.
    pub fn token_bytes(&self, id: u32) -> &[u8] {
        self.tokenizer.vocabulary().bytes(id)
    }

    /// The text of tokens, special ones by their names; what is no UTF-8 becomes U+FFFD.
    pub fn decode(&self, tokens: &[u32]) -> String {
        self.tokenizer.vocabulary().decode(tokens)
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &Arc<Tokenizer> {
        &self.tokenizer
    }
}

fn json(files: &BTreeMap<String, Vec<u8>>, name: &str) -> Result<serde_json::Value, BadModel> {
    match files.get(name) {
        None => Ok(serde_json::Value::Null),
        Some(data) => serde_json::from_slice(data).map_err(|e| BadModel::new(name, e)),
    }
}

/// One id or a list of them.
fn ids(value: &serde_json::Value) -> impl Iterator<Item = u32> + '_ {
    let list = value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice);
    list.iter().filter_map(|id| id.as_u64().and_then(|id| u32::try_from(id).ok()))
}

// === impl Defaults ===

impl Defaults {
    fn from_json(config: &serde_json::Value) -> Self {
        let number = |key: &str| config[key].as_f64().map(|value| value as f32);
        let mut defaults = Self {
            temperature: number("temperature"),
            top_p: number("top_p"),
            top_k: config["top_k"].as_u64().and_then(|k| u32::try_from(k).ok()),
            min_p: number("min_p"),
            typical_p: number("typical_p"),
        };
        // `do_sample: false` is how a model asks for greedy decoding.
        if config["do_sample"] == serde_json::Value::Bool(false) {
            defaults.temperature = Some(0.0);
        }
        defaults
    }
}

// === impl ChatOptions ===

impl Default for ChatOptions {
    fn default() -> Self {
        let (tools, variables) = (Vec::new(), serde_json::Map::new());
        Self { add_generation_prompt: true, safe: true, tools, variables }
    }
}

// === impl Rendered ===

impl Rendered {
    /// The text that the model sees.
    pub fn text(&self) -> String {
        crate::text::tokenizer::restore(&self.marked, &self.guarded)
    }
}

// === impl BadModel ===

impl BadModel {
    fn new(file: &str, reason: impl ToString) -> Self {
        Self { file: file.to_owned(), reason: reason.to_string() }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::fixture;

    fn model(bos: Option<u32>) -> Model {
        let card = ModelCard { bos_token: bos, ..fixture::card() };
        Model::new(card, &fixture::byte_level(&[]), Some(fixture::CHAT_TEMPLATE)).unwrap()
    }

    #[tokio::test]
    async fn a_raw_prompt_starts_with_bos_once_where_the_model_wants_it() {
        let bos = fixture::WORDS;
        assert_eq!(model(None).encode_prompt("a".into()).await.unwrap(), [97]);
        assert_eq!(model(Some(bos)).encode_prompt("a".into()).await.unwrap(), [bos, 97]);
        assert_eq!(model(Some(bos)).encode_prompt("<|im_start|>a".into()).await.unwrap(), [bos, 97]);
        assert_eq!(model(Some(bos)).encode_prompt(String::new()).await.unwrap(), [bos]);
    }

    #[tokio::test]
    async fn a_conversation_becomes_the_templates_tokens() {
        let model = model(None);
        let messages =
            vec![json!({"role": "system", "content": "a"}), json!({"role": "user", "content": "b"})];
        let rendered = model.render_chat(messages, ChatOptions::default()).await.unwrap();
        let tokens = model.encode_chat(rendered.clone()).await.unwrap();
        let text: Vec<u8> = tokens.iter().flat_map(|id| model.token_bytes(*id)).copied().collect();
        assert_eq!(String::from_utf8(text).unwrap(), rendered.text());
        assert_eq!(tokens.iter().filter(|id| **id == fixture::WORDS).count(), 3);
    }

    #[test]
    fn the_files_of_a_model_say_its_defaults_and_names() {
        let files = BTreeMap::from([
            ("tokenizer.json".to_owned(), fixture::byte_level(&[])),
            ("chat_template.jinja".to_owned(), b"{{ bos_token }}|{{ eos_token }}".to_vec()),
            (
                "config.json".to_owned(),
                json!({"bos_token_id": 256, "eos_token_id": [257, 1]}).to_string().into(),
            ),
            (
                "generation_config.json".to_owned(),
                json!({"temperature": 0.6, "top_k": 20}).to_string().into(),
            ),
        ]);
        let model = Model::from_files(fixture::card(), &files, TextPool::new(1)).unwrap();
        let defaults = Defaults { temperature: Some(0.6), top_k: Some(20), ..Defaults::default() };
        assert_eq!(model.defaults, defaults);
        let template = model.template.unwrap();
        let rendered = template.render(&model.tokenizer, Vec::new(), &ChatOptions::default()).unwrap();
        assert_eq!(rendered.text(), "<|im_start|>|<|im_end|>");
    }

    #[test]
    fn a_bad_file_is_named() {
        let tokenizer = fixture::byte_level(&[]);
        let bad = |result: Result<Model, BadModel>| result.err().unwrap().to_string();
        assert!(bad(Model::new(fixture::card(), b"[]", None)).starts_with("tokenizer.json: "));
        let template = bad(Model::new(fixture::card(), &tokenizer, Some("{% for %}")));
        assert!(template.starts_with("chat_template.jinja: "), "{template}");
        let none = Model::from_files(fixture::card(), &BTreeMap::new(), TextPool::new(1));
        assert_eq!(bad(none), "tokenizer.json: missing");
    }
}
