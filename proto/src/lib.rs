//! The wire: generated gRPC types, and the transport that carries them.
//!
//! ```text
//! router ══ Scheduler.Serve ══▶ scheduler ══ Worker.Run ══▶ worker
//! ```
//!
//! Holds no logic: what a message means is the business of the crate that sends or receives it.

/// Generated from `proto/volley/v1/*.proto`, where every message is documented.
#[allow(missing_docs, clippy::all)]
pub mod v1 {
    tonic::include_proto!("volley.v1");
}
pub mod transport;

/// The protocol version in the hellos of both links.
pub const PROTOCOL: u32 = 1;

/// The largest gRPC message, bytes. A 1 M-token prompt is at most 5 MB on the worker link.
pub const MAX_MESSAGE: usize = 64 << 20;

/// What a model card's `hash` is: BLAKE3, hexadecimal, over each of the model's files in the order of their
/// names: name and content, each after its length as 8 bytes, little endian.
pub fn files_hash<'a>(files: impl IntoIterator<Item = (&'a str, &'a [u8])>) -> String {
    let mut hasher = blake3::Hasher::new();
    for (name, content) in files {
        for part in [name.as_bytes(), content] {
            hasher.update(&(part.len() as u64).to_le_bytes()).update(part);
        }
    }
    hasher.finalize().to_hex().to_string()
}
