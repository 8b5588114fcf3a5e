//! Grammars: what a guided sequence may say.
//!
//! ```text
//! schema.rs      JSON schemas ─┐
//! gbnf.rs        GBNF         ─┼▶ Grammar (one text) ─▶ compiler.rs ─▶ Matcher: tokens in, masks out
//! grammar.rs     regex, choice ┘         on the wire            ▲
//! vocabulary.rs  what each token says ──────────────────────────┘
//! ```
//!
//! Routers compile a grammar to know that it can be, workers to obey it. A matcher's state is a function of the
//! tokens that it was given, so it is never moved: whoever goes on with a sequence gives it the tokens again.
//! The engine is the `llguidance` crate; nothing outside this crate names it.

mod compiler;
mod gbnf;
mod grammar;
mod matcher;
mod schema;
mod vocabulary;

pub use compiler::Compiler;
pub use grammar::Grammar;
pub use matcher::Matcher;
pub use vocabulary::Vocabulary;

/// Why there is no grammar, or none any more.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The grammar is not one, or uses what is not supported: the client's to change.
    #[error("{0}")]
    Invalid(String),
    /// It takes more work than is allowed: the client's to simplify.
    #[error("{0}")]
    TooComplex(String),
    /// A token was drawn that the grammar excludes, or the vocabulary can't be used with grammars.
    #[error("{0}")]
    Broken(String),
}
