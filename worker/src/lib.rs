//! Placeholder.

mod decoder;
mod engine;
mod error;
mod format;
mod model;
#[cfg(test)]
mod naive;
mod service;
#[cfg(test)]
mod testing;
mod text;

pub use error::Error;
