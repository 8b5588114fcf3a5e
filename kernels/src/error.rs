/// Why a kernel or its inputs can't be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The tensor's shape or type is not what the operation takes.
    #[error("tensor {name}: {problem}")]
    Tensor {
        /// The tensor's name in the model file.
        name: String,
        /// What is wrong and what was expected.
        problem: String,
    },
    /// Memory could not be had.
    #[error("cannot allocate {bytes} bytes for {what}")]
    Memory {
        /// Size asked for.
        bytes: usize,
        /// What for.
        what: &'static str,
    },
    /// The shapes or sizes given to an operation don't fit together.
    #[error("{operation}: {problem}")]
    Arguments {
        /// The operation.
        operation: &'static str,
        /// What is wrong and what was expected.
        problem: String,
    },
    /// A device is absent, failed, or refused what was asked of it.
    #[error("{0}")]
    Device(String),
    /// Another rank of the group failed, so that nothing more comes of this one.
    #[error("rank {rank}: {reason}")]
    Peer {
        /// Which.
        rank: usize,
        /// What it said.
        reason: String,
    },
    /// This machine or build can't run the backend as asked.
    #[error("{0}")]
    Unsupported(String),
}
