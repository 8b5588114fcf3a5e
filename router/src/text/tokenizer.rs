//! Text → tokens, and the table of what each token says.
//!
//! Encoding is Hugging Face's, run off the async threads by a [`TextPool`]. Decoding is a table from id to
//! bytes: O(1) a token, never a second look at the tokens before it.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use tokenizers::{
    AddedVocabulary, OffsetType, PreTokenizer, PreTokenizerWrapper, models::ModelWrapper,
    pre_tokenizers::metaspace::PrependScheme,
};
use tokio::sync::Semaphore;

use volley_grammar::Vocabulary;

use super::model::{Rendered, Special, TextError};

/// Private-use characters (planes 15 and 16) that stand for guarded strings while a template runs.
const MARKS: std::ops::RangeInclusive<char> = '\u{F0000}'..='\u{10FFFF}';
/// Bytes of text that may wait for the text threads.
const WAITING_BYTES: usize = 256 << 20;

/// A model's tokenizer.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    /// The added tokens, with special ones read as text.
    literal: AddedVocabulary,
    /// For text that follows a special token, where the pre-tokenizer marks the start of a text.
    continuing: Option<PreTokenizerWrapper>,
    /// The longest first.
    specials: Vec<SpecialToken>,
    /// The bytes that they start with.
    special_starts: [bool; 256],
    vocabulary: Arc<Vocabulary>,
}

/// A special token as it is found in text.
struct SpecialToken {
    content: String,
    id: u32,
    /// Whether it swallows the white space before, after it.
    lstrip: bool,
    rstrip: bool,
}

/// A few blocking threads for work on text, so that a long prompt never holds up the async threads.
#[derive(Clone)]
pub struct TextPool {
    threads: Arc<Semaphore>,
    waiting: Arc<AtomicUsize>,
}

/// The strings that marks stand for: one mark per distinct string.
#[derive(Default)]
pub(crate) struct Marks {
    strings: Vec<String>,
    indices: HashMap<String, u32>,
}

/// A run of a rendered conversation.
#[derive(Debug, PartialEq)]
enum Piece {
    Text(String),
    Special(u32),
}

// === impl Tokenizer ===

impl Tokenizer {
    /// Reads a tokenizer.json.
    pub fn from_json(json: &[u8]) -> Result<Self, String> {
        let mut inner = tokenizers::Tokenizer::from_bytes(json).map_err(|e| e.to_string())?;
        inner.with_truncation(None).map_err(|e| e.to_string())?;
        inner.with_padding(None);
        let mut literal = inner.get_added_vocabulary().clone();
        literal.set_encode_special_tokens(true);
        let mut specials: Vec<_> = inner
            .get_added_tokens_decoder()
            .into_iter()
            .filter(|(_, token)| token.special && !token.content.is_empty())
            .map(|(id, token)| SpecialToken {
                content: token.content,
                id,
                lstrip: token.lstrip,
                rstrip: token.rstrip,
            })
            .collect();
        specials.sort_by_key(|token| std::cmp::Reverse(token.content.len()));
        let mut special_starts = [false; 256];
        specials.iter().for_each(|token| special_starts[usize::from(token.content.as_bytes()[0])] = true);
        let continuing = inner.get_pre_tokenizer().and_then(continuing);
        let vocabulary = Arc::new(Vocabulary::new(&inner));
        Ok(Self { inner, literal, continuing, specials, special_starts, vocabulary })
    }

    /// What each token says.
    pub fn vocabulary(&self) -> &Arc<Vocabulary> {
        &self.vocabulary
    }

    /// The tokens of a text, nothing added.
    pub fn encode(&self, text: &str, special: Special) -> Result<Vec<u32>, TextError> {
        match special {
            Special::Parse => {
                let encoding = self.inner.encode_fast(text, false).map_err(encode_error)?;
                Ok(encoding.get_ids().to_vec())
            }
            Special::Literal => self.encode_literal(text, self.inner.get_pre_tokenizer()),
        }
    }

    /// The tokens of a rendered conversation: special where the template put them, text where a message did.
    pub(crate) fn encode_rendered(&self, rendered: &Rendered) -> Result<Vec<u32>, TextError> {
        if rendered.guarded.is_empty() {
            return self.encode(&rendered.marked, Special::Parse);
        }
        let mut tokens = Vec::new();
        for (i, piece) in self.pieces(rendered).into_iter().enumerate() {
            match piece {
                Piece::Special(id) => tokens.push(id),
                Piece::Text(text) => {
                    let start = self.inner.get_pre_tokenizer();
                    let pre_tokenizer = if i == 0 { start } else { self.continuing.as_ref().or(start) };
                    tokens.extend(self.encode_literal(&text, pre_tokenizer)?);
                }
            }
        }
        Ok(tokens)
    }

    fn encode_literal(
        &self,
        text: &str,
        pre_tokenizer: Option<&PreTokenizerWrapper>,
    ) -> Result<Vec<u32>, TextError> {
        use tokenizers::Model as _;
        let model: &ModelWrapper = self.inner.get_model();
        let mut split = self.literal.extract_and_normalize(self.inner.get_normalizer(), text);
        if let Some(pre_tokenizer) = pre_tokenizer {
            pre_tokenizer.pre_tokenize(&mut split).map_err(encode_error)?;
        }
        model.tokenize_in_pretokenized(&mut split, None).map_err(encode_error)?;
        let encoding = split.into_encoding(None, 0, OffsetType::None).map_err(encode_error)?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Splits at the template's special tokens, and turns the marks back into what they stand for.
    fn pieces(&self, rendered: &Rendered) -> Vec<Piece> {
        let mut pieces = Vec::new();
        let mut text = String::new();
        let mut rest = rendered.marked.as_str();
        while let Some(next) = rest.chars().next() {
            if let Some(special) = self.special_at(rest) {
                if special.lstrip {
                    text.truncate(text.trim_end().len());
                }
                if !text.is_empty() {
                    pieces.push(Piece::Text(std::mem::take(&mut text)));
                }
                pieces.push(Piece::Special(special.id));
                rest = &rest[special.content.len()..];
                if special.rstrip {
                    rest = rest.trim_start();
                }
            } else {
                push_restored(&mut text, next, &rendered.guarded);
                rest = &rest[next.len_utf8()..];
            }
        }
        if !text.is_empty() {
            pieces.push(Piece::Text(text));
        }
        pieces
    }

    /// The longest special token that `text` starts with.
    fn special_at(&self, text: &str) -> Option<&SpecialToken> {
        let first = *text.as_bytes().first()?;
        if !self.special_starts[usize::from(first)] {
            return None;
        }
        self.specials.iter().find(|special| text.starts_with(&special.content))
    }

    /// Replaces every special-token string in `text` by a mark that no template can mistake for a token.
    /// Characters that look like marks are marked too.
    pub(crate) fn guard(&self, text: &mut String, marks: &mut Marks) -> Result<(), TextError> {
        // Bytes from 0xF3 on start the characters of planes 12 to 16.
        if !text.bytes().any(|byte| byte >= 0xF3 || self.special_starts[usize::from(byte)]) {
            return Ok(());
        }
        let mut marked = String::with_capacity(text.len());
        let mut rest = text.as_str();
        while let Some(next) = rest.chars().next() {
            let found = match self.special_at(rest) {
                Some(special) => Some(special.content.len()),
                None => MARKS.contains(&next).then(|| next.len_utf8()),
            };
            match found {
                Some(len) => marked.push(marks.mark(&rest[..len])?),
                None => marked.push(next),
            }
            rest = &rest[found.unwrap_or(next.len_utf8())..];
        }
        *text = marked;
        Ok(())
    }
}

fn encode_error(error: tokenizers::Error) -> TextError {
    TextError::Encode(error.to_string())
}

/// The pre-tokenizer for text after the first piece, where that differs: SentencePiece marks the first only.
fn continuing(pre_tokenizer: &PreTokenizerWrapper) -> Option<PreTokenizerWrapper> {
    match pre_tokenizer {
        PreTokenizerWrapper::Metaspace(metaspace)
            if metaspace.get_prepend_scheme() == PrependScheme::First =>
        {
            let mut metaspace = metaspace.clone();
            metaspace.set_prepend_scheme(PrependScheme::Never);
            Some(PreTokenizerWrapper::Metaspace(metaspace))
        }
        _ => None,
    }
}

fn push_restored(text: &mut String, c: char, guarded: &[String]) {
    let index = (c as u32).checked_sub(*MARKS.start() as u32).map(|index| index as usize);
    match index.and_then(|index| guarded.get(index)) {
        Some(string) => text.push_str(string),
        None => text.push(c),
    }
}

/// The text with its marks turned back into what they stand for.
pub(crate) fn restore(marked: &str, guarded: &[String]) -> String {
    let mut text = String::with_capacity(marked.len());
    marked.chars().for_each(|c| push_restored(&mut text, c, guarded));
    text
}

// === impl Marks ===

impl Marks {
    fn mark(&mut self, string: &str) -> Result<char, TextError> {
        let index = match self.indices.get(string) {
            Some(index) => *index,
            None => {
                let index = self.strings.len() as u32;
                self.strings.push(string.to_owned());
                self.indices.insert(string.to_owned(), index);
                index
            }
        };
        char::from_u32(*MARKS.start() as u32 + index)
            .ok_or_else(|| TextError::Encode("too many private-use characters in the messages".to_owned()))
    }

    /// In the order of their marks.
    pub(crate) fn into_strings(self) -> Vec<String> {
        self.strings
    }
}

// === impl TextPool ===

impl TextPool {
    /// At most `threads` pieces of work at a time.
    pub fn new(threads: usize) -> Self {
        Self { threads: Arc::new(Semaphore::new(threads.max(1))), waiting: Arc::default() }
    }

    /// Runs `work` on `bytes` of text. [`TextError::Busy`] if too much waits already.
    pub async fn run<T: Send + 'static>(
        &self,
        bytes: usize,
        work: impl FnOnce() -> Result<T, TextError> + Send + 'static,
    ) -> Result<T, TextError> {
        let before = self.waiting.fetch_add(bytes, Ordering::Relaxed);
        let _waiting = Waiting { total: self.waiting.clone(), bytes };
        // One text larger than the bound may pass when nothing else waits.
        if before > 0 && before.saturating_add(bytes) > WAITING_BYTES {
            return Err(TextError::Busy);
        }
        let permit = self.threads.clone().acquire_owned().await.map_err(|_| TextError::Busy)?;
        let done = tokio::task::spawn_blocking(move || {
            let _permit = permit; // held even when the caller has gone: the thread is busy until the end
            work()
        });
        done.await.unwrap_or_else(|panic| Err(TextError::Encode(panic.to_string())))
    }
}

impl Default for TextPool {
    fn default() -> Self {
        Self::new(std::thread::available_parallelism().map_or(1, usize::from).div_ceil(2))
    }
}

struct Waiting {
    total: Arc<AtomicUsize>,
    bytes: usize,
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.total.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests;
