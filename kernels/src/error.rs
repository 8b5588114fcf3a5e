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
    /// This machine or build can't run the backend as asked.
    #[error("{0}")]
    Unsupported(String),
}
