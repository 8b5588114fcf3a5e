//! One typed launcher per operation.
//!
//! A launcher checks every shape first and answers [`Error::Arguments`] where one doesn't fit; what it then launches can
//! reach no memory outside the views that it was given.

mod rms_norm;

pub use rms_norm::{RmsNorm, rms_norm};

use crate::Error;

/// Fails with `problem` unless `holds`.
fn require(operation: &'static str, holds: bool, problem: impl FnOnce() -> String) -> Result<(), Error> {
    if holds { Ok(()) } else { Err(Error::Arguments { operation, problem: problem() }) }
}

/// Fails unless a view has the `wanted` elements.
fn require_len(operation: &'static str, what: &str, len: usize, wanted: usize) -> Result<(), Error> {
    require(operation, len == wanted, || format!("{what} has {len} elements, not {wanted}"))
}

/// A size as kernels take it.
fn int(operation: &'static str, what: &str, size: usize) -> Result<i32, Error> {
    i32::try_from(size)
        .map_err(|_| Error::Arguments { operation, problem: format!("{what} is {size}: too large") })
}
