//! `volley`: the one binary. Roles are subcommands; the logic is in their crates.
#![forbid(unsafe_code)]

mod models;
mod progress;

fn main() {}
