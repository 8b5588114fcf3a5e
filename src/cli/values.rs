//! The values that flags take: how they are written, what is refused.

use clap::ValueEnum;

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Where a model runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Device {
    /// The best there is.
    Auto,
    /// The CPU.
    Cpu,
    /// The GPU of this index; without one the first, and of `serve` all.
    Cuda(Option<usize>),
}

/// How activations are represented in matrix products.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Activations {
    /// 8 bits, a scale per 32.
    Int8,
    /// float32 throughout.
    F32,
}

/// What plain weights are made when they are loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Quantization {
    /// They stay as they are.
    Auto,
    /// 8-bit integers.
    Int8,
    /// 8-bit floats.
    Fp8,
}

/// How prompts become embeddings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Pooling {
    /// They don't.
    None,
    /// By the mean of the tokens' final states.
    Mean,
    /// By the last token's final state.
    Last,
}

/// Something that can be switched off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Switch {
    /// It is used.
    On,
    /// It isn't.
    Off,
}

/// Whether tokens are guessed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Speculation {
    /// Where it pays.
    Auto,
    /// Wherever there is something to guess from.
    Always,
    /// Never.
    Off,
}

/// Whether text keeps the stop word that ended it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum StopWord {
    /// The text ends with it.
    Include,
    /// The text ends before it.
    Exclude,
}

/// What an unknown request field does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum UnknownFields {
    /// 400.
    Error,
    /// A line in the log.
    Warn,
    /// Nothing.
    Ignore,
}

/// How models write tool calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ToolParser {
    /// As each model's template tells.
    Auto,
    /// `<tool_call>{…}</tool_call>`.
    Hermes,
    /// `{"name": …, "parameters": …}`.
    Llama3,
    /// `[f(a=1)]`.
    Pythonic,
    /// `[TOOL_CALLS][…]`.
    Mistral,
}

/// What the prompts of a benchmark have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum BenchMode {
    /// Short prompts that have nothing in common.
    Short,
    /// Prompts of some 512 words that have nothing in common.
    Long,
    /// Prompts that share a prefix of 512 words.
    Prefix,
}

/// Where a benchmark's requests go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum BenchEndpoint {
    /// /completions.
    Completions,
    /// /chat/completions.
    Chat,
}

pub(super) fn alias(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((alias, name)) if !alias.is_empty() && !name.is_empty() => Ok((alias.into(), name.into())),
        _ => Err("expected ALIAS=NAME".into()),
    }
}

pub(super) fn weight(text: &str) -> Result<(String, u32), String> {
    let expected = || "expected TENANT=WEIGHT, a whole number from 1 to 1000".to_owned();
    let (tenant, weight) = text.split_once('=').ok_or_else(expected)?;
    let weight = weight.parse().ok().filter(|weight| (1..=1000).contains(weight)).ok_or_else(expected)?;
    // As routers write it: any other name is nobody's.
    if tenant.len() != 16 || !tenant.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        let recipe = r#"printf %s "$KEY" | b3sum --length 8"#;
        return Err(format!(
            "TENANT is the first 16 hex digits of an API key's BLAKE3 hash, as of `{recipe}`"
        ));
    }
    Ok((tenant.to_ascii_lowercase(), weight))
}

pub(super) fn device(text: &str) -> Result<Device, String> {
    let expected = || "expected auto, cpu, cuda or cuda:INDEX".to_owned();
    match text {
        "auto" => Ok(Device::Auto),
        "cpu" => Ok(Device::Cpu),
        "cuda" => Ok(Device::Cuda(None)),
        _ => {
            let index = text.strip_prefix("cuda:").and_then(|index| index.parse().ok());
            index.map(|index| Device::Cuda(Some(index))).ok_or_else(expected)
        }
    }
}

pub(super) fn url(text: &str) -> Result<String, String> {
    let uri = text.parse::<hyper::Uri>().ok();
    let usable = uri.filter(|uri| matches!(uri.scheme_str(), Some("http" | "https")) && uri.host().is_some());
    usable.map(|_| text.to_owned()).ok_or_else(|| "expected a URL, such as http://127.0.0.1:4317".into())
}

pub(super) fn positive(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|n| *n > 0).ok_or_else(|| "expected a number, 1 or more".into())
}

pub(super) fn gigabytes(text: &str) -> Result<f64, String> {
    let usable = |gb: &f64| gb.is_finite() && *gb > 0.0;
    text.parse().ok().filter(usable).ok_or_else(|| "expected gigabytes, such as 0.5".into())
}

pub(super) fn fraction(text: &str) -> Result<f64, String> {
    let usable = |part: &f64| (0.01..=1.0).contains(part);
    text.parse().ok().filter(usable).ok_or_else(|| "expected a part of all, such as 0.9".into())
}

impl std::fmt::Display for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(None) => f.write_str("cuda"),
            Self::Cuda(Some(index)) => write!(f, "cuda:{index}"),
        }
    }
}

macro_rules! displayed_as_on_the_command_line {
    ($($kind:ty),*) => {$(
        impl std::fmt::Display for $kind {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.to_possible_value().as_ref().map_or("", |value| value.get_name()))
            }
        }
    )*};
}

displayed_as_on_the_command_line!(BenchMode, BenchEndpoint, Activations, LogFormat, Pooling, Quantization);

#[cfg(test)]
mod tests {
    use clap::Parser;

    use crate::cli::{Cli, Command};

    #[test]
    fn values_that_make_no_sense_are_refused() {
        let fails = |flags: &[&str]| Cli::try_parse_from(["volley", "serve"].iter().chain(flags)).is_err();
        assert!(!fails(&["--device", "cuda:1", "--kv-cache-gb", "0.5", "--threads", "1"]));
        for flags in [
            ["--device", "gpu"],
            ["--kv-cache-gb", "-1"],
            ["--threads", "0"],
            ["--gpu-memory-fraction", "90"],
            ["--workers", "0"],
            ["--max-batch-tokens", "1"],
            ["--otlp-endpoint", "bogus"],
            ["--otlp-endpoint", "ftp://host"],
        ] {
            assert!(fails(&flags), "{flags:?}");
        }
        assert!(!fails(&["--otlp-endpoint", "https://collector:4317"]));
    }

    #[test]
    fn a_weight_is_for_the_hash_of_a_key() {
        let parse = |value: &str| Cli::try_parse_from(["volley", "serve", "--tenant-weight", value]);
        let Command::Serve(args) = parse("00112233445566FF=2,8899aabbccddeeff=1000").unwrap().command else {
            panic!()
        };
        let weights = [("00112233445566ff".into(), 2), ("8899aabbccddeeff".into(), 1000)];
        assert_eq!(args.admission.tenant_weight, weights);
        for value in ["alice=2", "sk-0123456789abc=2", "=2", "00112233445566ff00=2", "anonymous=2"] {
            let error = parse(value).unwrap_err().to_string();
            assert!(error.contains("b3sum"), "{value}: {error}");
        }
        for value in ["00112233445566ff", "00112233445566ff=0", "00112233445566ff=1001"] {
            let error = parse(value).unwrap_err().to_string();
            assert!(error.contains("from 1 to 1000"), "{value}: {error}");
        }
    }

    #[test]
    fn aliases_are_pairs() {
        let parse = |value: &str| Cli::try_parse_from(["volley", "serve", "--alias", value]);
        let Command::Serve(args) = parse("accounts/a/models/b=c,d=e").unwrap().command else { panic!() };
        assert_eq!(args.api.alias, [("accounts/a/models/b".into(), "c".into()), ("d".into(), "e".into())]);
        assert!(parse("nonsense").is_err());
    }
}
