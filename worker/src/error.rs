use std::{
    path::{Path, PathBuf},
    time::Duration,
};

/// Why a model can't be loaded or served.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file can't be opened or read: check the path and its permissions.
    #[error("{}: {source}", file.display())]
    Read {
        /// Which.
        file: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// A file is damaged, incomplete or not of the format that its place asks for: get it again.
    #[error("{}: {place}: {problem}", file.display())]
    Malformed {
        /// Which.
        file: PathBuf,
        /// The tensor, the key or the part of the file.
        place: String,
        /// What is there, and what was expected.
        problem: String,
    },
    /// A well-formed model that uses something this version has no support for: take another model or format.
    #[error("{}: {place}: {problem}", file.display())]
    Unsupported {
        /// Which file.
        file: PathBuf,
        /// The tensor or the key.
        place: String,
        /// What it asks for, and what is supported.
        problem: String,
    },
    /// The configuration can't work: change it.
    #[error("{0}")]
    Config(String),
    /// The kernels refuse the weights or the device.
    #[error(transparent)]
    Kernel(#[from] volley_kernels::Error),
    /// The gRPC server failed.
    #[error("the worker's server failed: {0}")]
    Server(#[from] tonic::transport::Error),
    /// The thread that runs steps could not start, or died: the process must be replaced.
    #[error("the step thread {0}")]
    StepThread(String),
    /// A step does not end: the process must be replaced, for nothing else ends a kernel that hangs.
    #[error("step {step} ({rows} tokens of {sequences} sequences) has not ended after {} s on {device}", limit.as_secs_f64())]
    Hung {
        /// The step's number on its connection.
        step: u64,
        /// Tokens it was to compute.
        rows: u32,
        /// Sequences it was to compute them of.
        sequences: usize,
        /// Where.
        device: String,
        /// How long it was waited for.
        limit: Duration,
    },
}

// === impl Error ===

impl Error {
    pub(crate) fn read(file: &Path, source: std::io::Error) -> Self {
        Self::Read { file: file.to_owned(), source }
    }

    pub(crate) fn malformed(file: &Path, place: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::Malformed { file: file.to_owned(), place: place.into(), problem: problem.into() }
    }

    pub(crate) fn unsupported(file: &Path, place: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::Unsupported { file: file.to_owned(), place: place.into(), problem: problem.into() }
    }
}

/// What a parser says of JSON, without the names of this program's types.
pub(crate) fn plainly(error: &serde_json::Error) -> String {
    let said = error.to_string();
    match said.split_once(", expected ") {
        Some((found, expected)) if expected.starts_with("struct ") => format!("{found}, expected an object"),
        Some((found, "a map")) => format!("{found}, expected an object"),
        Some((found, "u8" | "u32" | "u64" | "usize")) => format!("{found}, expected a whole number"),
        Some((found, "f32" | "f64")) => format!("{found}, expected a number"),
        _ => said,
    }
}

#[cfg(test)]
mod tests {
    use super::plainly;

    #[test]
    fn what_is_wrong_with_json_is_said_without_names_of_types() {
        #[derive(Debug, serde::Deserialize)]
        struct Inner {
            #[allow(dead_code)]
            bits: u64,
        }
        let said = |json: &str| {
            let value: serde_json::Value = serde_json::from_str(json).unwrap();
            plainly(&serde_json::from_value::<Inner>(value).unwrap_err())
        };
        assert_eq!(said("\"gptq\""), "invalid type: string \"gptq\", expected an object");
        assert_eq!(said("[]"), "invalid length 0, expected an object");
        assert_eq!(said(r#"{"bits": "four"}"#), "invalid type: string \"four\", expected a whole number");
        assert!(said(r#"{"bits": -1}"#).contains("`-1`, expected a whole number"));
        assert!(said("{}").starts_with("missing field `bits`"));
    }
}
