//! `volley`: the one binary. Roles are subcommands; the logic is in their crates.
fn main() {}
