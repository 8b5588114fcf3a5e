//! Compiling grammars for a vocabulary, each once.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, OnceLock, PoisonError},
};

use llguidance::{
    ParserFactory,
    api::{ParserLimits, TopLevelGrammar},
    toktrie::{ApproximateTokEnv, InferenceCapabilities, TokEnv, TokRxInfo, TokTrie},
};

use crate::{Error, Grammar, Matcher, Vocabulary};

/// Compiled grammars that are kept. A large schema's tables take megabytes.
const KEPT: usize = 128;

/// Compiles grammars for one vocabulary.
pub struct Compiler {
    /// Asked for with the first grammar.
    vocabulary: Source,
    /// Tokens that logits tell apart: no fewer than the vocabulary has.
    size: u32,
    stop: Vec<u32>,
    /// Made for the first grammar: it takes a while, and most models never see one.
    factory: OnceLock<Result<ParserFactory, Error>>,
    kept: Mutex<Kept>,
}

type Source = Box<dyn Fn() -> Result<Arc<Vocabulary>, Error> + Send + Sync>;

/// Compiled grammars, least recently used first.
#[derive(Default)]
struct Kept {
    matchers: HashMap<Grammar, Matcher>,
    order: VecDeque<Grammar>,
}

// === impl Compiler ===

impl Compiler {
    /// For a vocabulary whose model gives `size` logits; each of `stop` ends a text that the grammar allows to
    /// end.
    pub fn new(
        vocabulary: impl Fn() -> Result<Arc<Vocabulary>, Error> + Send + Sync + 'static,
        size: u32,
        stop: &[u32],
    ) -> Self {
        let stop = stop.iter().copied().filter(|token| *token < size).collect();
        let vocabulary = Box::new(vocabulary);
        Self { vocabulary, size, stop, factory: OnceLock::new(), kept: Mutex::default() }
    }

    /// A matcher at the start of a grammar that is compiled already.
    pub fn compiled(&self, grammar: &Grammar) -> Option<Matcher> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).get(grammar)
    }

    /// A matcher at the start of a grammar. Takes up to seconds: not for the async threads.
    pub fn compile(&self, grammar: &Grammar) -> Result<Matcher, Error> {
        if let Some(matcher) = self.compiled(grammar) {
            return Ok(matcher);
        }
        let factory = self.factory.get_or_init(|| self.factory()).as_ref().map_err(Clone::clone)?;
        let lark = TopLevelGrammar::from_lark(grammar.text().to_owned());
        let mut matcher = Matcher::new(factory.create_parser(lark))?;
        // The first mask tells whether there is anything at all that the grammar allows.
        matcher.mask().map_err(|error| match error {
            Error::Broken(reason) => Error::Invalid(format!("the grammar allows no text: {reason}")),
            error => error,
        })?;
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).put(grammar, &matcher);
        Ok(matcher)
    }

    fn factory(&self) -> Result<ParserFactory, Error> {
        let broken = |error: &dyn std::fmt::Display| Error::Broken(format!("the vocabulary: {error}"));
        if self.stop.is_empty() {
            return Err(broken(&"it has no token that ends a text"));
        }
        let vocabulary = (self.vocabulary)()?;
        let words: Vec<Vec<u8>> = (0..self.size).map(|token| word(&vocabulary, token)).collect();
        let trie =
            TokTrie::from(&TokRxInfo::new(self.size, self.stop[0]), &words).with_eos_tokens(&self.stop);
        let environment: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
        let slices = llguidance::earley::SlicedBiasComputer::general_slices();
        let mut factory = ParserFactory::new(&environment, InferenceCapabilities::default(), &slices)
            .map_err(|error| broken(&error))?;
        factory.quiet();
        *factory.limits_mut() = ParserLimits { verbose_errors: false, ..ParserLimits::default() };
        Ok(factory)
    }
}

/// What a token says. Special ones say nothing: they are marked, so that no text matches them.
fn word(vocabulary: &Vocabulary, token: u32) -> Vec<u8> {
    let bytes = vocabulary.bytes(token);
    match vocabulary.is_special(token) {
        true => [&[TokTrie::SPECIAL_TOKEN_MARKER], bytes].concat(),
        false => bytes.to_vec(),
    }
}

// === impl Kept ===

impl Kept {
    fn get(&mut self, grammar: &Grammar) -> Option<Matcher> {
        let matcher = self.matchers.get(grammar)?.clone();
        self.order.retain(|kept| kept != grammar);
        self.order.push_back(grammar.clone());
        Some(matcher)
    }

    fn put(&mut self, grammar: &Grammar, matcher: &Matcher) {
        if self.matchers.insert(grammar.clone(), matcher.clone()).is_none() {
            self.order.push_back(grammar.clone());
        }
        while self.order.len() > KEPT
            && let Some(oldest) = self.order.pop_front()
        {
            self.matchers.remove(&oldest);
        }
    }
}
