//! HTTP itself, whatever the API: sockets, the path, keys, bodies, events, errors. Knows no endpoint's fields.
//!
//! ```text
//!  socket ─ server ─ stall ─▶ edge: path, CORS, id ─▶ auth, limits ─▶ api ─ body (decode)
//!         ◀─ edge: headers, error envelope ◀─ sse (events) or json ◀─ api
//! ```

pub mod auth;
pub(crate) mod body;
mod decode;
pub(crate) mod edge;
pub mod error;
pub(crate) mod exchange;
pub(crate) mod json;
pub mod limits;
pub(crate) mod path;
pub mod server;
pub(crate) mod sse;
mod stall;
