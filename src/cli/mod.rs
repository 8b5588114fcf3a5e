//! The command line: every flag, its environment variable, its default, and why that default.
//!
//! Parsed flags are plain data. What they turn into is made once, by the role that runs ([`crate::roles`]).
//! `volley <command> --help` prints this page.

mod engine;
mod values;

use std::{net::SocketAddr, path::PathBuf};

use clap::{Args, Parser, Subcommand};

use self::values::{alias, positive, url, weight};
pub(crate) use self::{
    engine::EngineArgs,
    values::{
        Activations, BenchEndpoint, BenchMode, Device, LogFormat, Pooling, Quantization, Speculation,
        StopWord, Switch, ToolParser, UnknownFields,
    },
};

/// An open, Fireworks.ai-compatible LLM serving cluster in one binary.
#[derive(Debug, Parser)]
#[command(name = "volley", version)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
    #[command(flatten)]
    pub(crate) telemetry: TelemetryArgs,
}

/// What to run.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Serve a model on this machine: router, scheduler and worker(s) together, no etcd
    Serve(ServeArgs),
    /// Part of a cluster: the HTTP API
    Router(RouterArgs),
    /// Part of a cluster: plans the steps of the workers it claims
    Scheduler(SchedulerArgs),
    /// Part of a cluster: runs a model
    Worker(WorkerArgs),
    /// Benchmark any OpenAI-compatible server: closed loop, streaming
    Bench(BenchArgs),
    /// Talk to a server in the terminal
    Chat(ChatArgs),
    /// Show the catalogue and what is in the cache; `pull` obtains a model without serving it
    Models(ModelsArgs),
    /// Show what this machine has to compute with, and what `--device auto` takes
    Doctor,
}

/// Logs and traces, for every command.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Logs and traces")]
pub(crate) struct TelemetryArgs {
    /// What to log: a level, or targets with levels such as `info,volley_scheduler=debug`.
    ///
    /// Warnings by default for `serve`, whose output is for a person, and `info` for the roles of a cluster.
    #[arg(long, env = "VOLLEY_LOG", global = true, value_name = "FILTER")]
    pub(crate) log: Option<String>,
    /// Lines for people or for machines. Always on stderr: stdout is for results.
    #[arg(long, env = "VOLLEY_LOG_FORMAT", global = true, default_value = "text")]
    pub(crate) log_format: LogFormat,
    /// Send traces over OTLP/gRPC to this collector, such as http://127.0.0.1:4317; https takes public certificates.
    ///
    /// Off by default. The standard OTEL_EXPORTER_OTLP_ENDPOINT (or …_TRACES_ENDPOINT) switches it on as well.
    #[arg(long, env = "VOLLEY_OTLP_ENDPOINT", global = true, value_name = "URL", value_parser = url)]
    pub(crate) otlp_endpoint: Option<String>,
}

// --- roles ------------------------------------------------------------------------------------------------

/// `volley serve`.
#[derive(Clone, Debug, Args)]
pub(crate) struct ServeArgs {
    /// Where the HTTP API listens. The loopback by default: a model is not offered to the network unasked.
    #[arg(long, env = "VOLLEY_LISTEN", default_value = "127.0.0.1:8000", value_name = "HOST:PORT")]
    pub(crate) listen: String,
    /// Worker processes, started again when they die. With several GPUs they take turns at them.
    ///
    /// By default one for each GPU. On a CPU one, inside this process: with all cores it is faster than several that
    /// share them.
    #[arg(long, env = "VOLLEY_WORKERS", value_name = "N", value_parser = clap::value_parser!(u16).range(1..=64))]
    pub(crate) workers: Option<u16>,
    #[command(flatten)]
    pub(crate) engine: EngineArgs,
    #[command(flatten)]
    pub(crate) api: ApiArgs,
    #[command(flatten)]
    pub(crate) admission: AdmissionArgs,
}

/// `volley router`.
#[derive(Clone, Debug, Args)]
pub(crate) struct RouterArgs {
    /// Where the HTTP API listens; /health, /ready and /metrics too.
    #[arg(long, env = "VOLLEY_LISTEN", default_value = "127.0.0.1:8000", value_name = "HOST:PORT")]
    pub(crate) listen: String,
    /// The address at which the other routers reach this one: what it keeps of the Responses API, they ask for there.
    ///
    /// By default the one it listens at; the host's name where that is every address (0.0.0.0).
    #[arg(long, env = "VOLLEY_ADVERTISE", value_name = "HOST:PORT")]
    pub(crate) advertise: Option<String>,
    #[command(flatten)]
    pub(crate) cluster: ClusterArgs,
    #[command(flatten)]
    pub(crate) api: ApiArgs,
}

/// `volley scheduler`.
#[derive(Clone, Debug, Args)]
pub(crate) struct SchedulerArgs {
    /// Where the gRPC for routers listens.
    #[arg(long, env = "VOLLEY_LISTEN", default_value = "127.0.0.1:9001", value_name = "HOST:PORT")]
    pub(crate) listen: String,
    #[command(flatten)]
    pub(crate) member: MemberArgs,
    #[command(flatten)]
    pub(crate) cluster: ClusterArgs,
    #[command(flatten)]
    pub(crate) admission: AdmissionArgs,
}

/// `volley worker`.
#[derive(Clone, Debug, Args)]
pub(crate) struct WorkerArgs {
    /// Where the gRPC for the scheduler listens. Port 0 by default: several workers share a machine, and they are
    /// found through etcd, not by their port.
    #[arg(long, env = "VOLLEY_LISTEN", default_value = "127.0.0.1:0", value_name = "HOST:PORT")]
    pub(crate) listen: String,
    #[command(flatten)]
    pub(crate) member: MemberArgs,
    #[command(flatten)]
    pub(crate) cluster: ClusterArgs,
    #[command(flatten)]
    pub(crate) engine: EngineArgs,
    /// Set by `volley serve` for its children: no etcd; a line with the address on stdout; ends with stdin.
    #[arg(long, hide = true)]
    pub(crate) supervised: bool,
}

/// Finding the cluster.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Cluster")]
pub(crate) struct ClusterArgs {
    /// The etcd endpoints. The address of a local etcd by default: it is etcd's own.
    #[arg(
        long,
        env = "VOLLEY_ETCD",
        default_value = "http://127.0.0.1:2379",
        value_delimiter = ',',
        value_name = "URL[,URL…]"
    )]
    pub(crate) etcd: Vec<String>,
    /// Where the cluster's keys stand in etcd: one etcd can hold several clusters.
    #[arg(long, env = "VOLLEY_ETCD_PREFIX", default_value = volley_membership::DEFAULT_PREFIX, value_name = "PREFIX")]
    pub(crate) etcd_prefix: String,
}

/// Being found in the cluster.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Cluster")]
pub(crate) struct MemberArgs {
    /// The address that others use for this process.
    ///
    /// By default the one it listens at; the host's name where that is every address (0.0.0.0).
    #[arg(long, env = "VOLLEY_ADVERTISE", value_name = "HOST:PORT")]
    pub(crate) advertise: Option<String>,
    /// Serve /health, /ready and /metrics over HTTP here. Off by default: a port more is the operator's choice.
    #[arg(long, env = "VOLLEY_ADMIN_LISTEN", value_name = "HOST:PORT")]
    pub(crate) admin_listen: Option<SocketAddr>,
}

/// What the HTTP API accepts and how it answers.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "HTTP API")]
pub(crate) struct ApiArgs {
    /// The account in model ids, `accounts/<account>/models/<name>`. `fireworks`, so that ids written for
    /// Fireworks mean the models served here.
    #[arg(long, env = "VOLLEY_ACCOUNT", default_value = volley_router::config::Config::ACCOUNT, value_name = "ACCOUNT")]
    pub(crate) account: String,
    /// Another name for a model, such as `accounts/fireworks/models/llama-v2-7b-chat=smollm2-135m-instruct`. May be
    /// given many times; comma-separated in the environment.
    #[arg(long, env = "VOLLEY_ALIAS", value_delimiter = ',', value_parser = alias, value_name = "ALIAS=NAME")]
    pub(crate) alias: Vec<(String, String)>,
    /// API keys that open the API, comma-separated. Without any, and without a file, everyone may ask.
    ///
    /// Give them by the environment or a file: flags can be read by every user of the machine.
    #[arg(long, env = "VOLLEY_API_KEYS", hide_env_values = true, value_delimiter = ',', value_name = "KEY")]
    pub(crate) api_keys: Vec<String>,
    /// A file with an API key a line (# comments).
    #[arg(long, env = "VOLLEY_API_KEYS_FILE", value_name = "FILE")]
    pub(crate) api_keys_file: Option<PathBuf>,
    /// Requests that each API key may make per minute. Without any of these limits, as many as there is room for.
    #[arg(long, env = "VOLLEY_LIMIT_REQUESTS", value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) limit_requests: Option<u32>,
    /// Prompt tokens per API key and minute.
    #[arg(long, env = "VOLLEY_LIMIT_PROMPT_TOKENS", value_name = "TOKENS",
          value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) limit_prompt_tokens: Option<u32>,
    /// Generated tokens per API key and minute. An answer that exceeds them is served, and the next ones wait.
    #[arg(long, env = "VOLLEY_LIMIT_GENERATED_TOKENS", value_name = "TOKENS",
          value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) limit_generated_tokens: Option<u32>,
    /// The largest `top_k` of a request. 100, as Fireworks documents.
    #[arg(long, env = "VOLLEY_MAX_TOP_K", default_value_t = 100, value_name = "N")]
    pub(crate) max_top_k: u32,
    /// The largest `top_logprobs` of a request. 20, as OpenAI documents; Fireworks has 5.
    #[arg(long, env = "VOLLEY_MAX_TOP_LOGPROBS", default_value_t = 20, value_name = "N")]
    pub(crate) max_top_logprobs: u32,
    /// Whether text keeps the stop word that ended it: `include` as Fireworks documents, `exclude` as OpenAI does. A
    /// request's include_stop_str_in_output wins.
    #[arg(long, env = "VOLLEY_STOP_WORD", default_value = "include")]
    pub(crate) stop_word: StopWord,
    /// A request field that no version of the API knows: `error` answers 400 as Fireworks does, `warn` logs it,
    /// `ignore` does nothing.
    #[arg(long, env = "VOLLEY_UNKNOWN_FIELDS", default_value = "error")]
    pub(crate) unknown_fields: UnknownFields,
    /// How models write tool calls: `auto` goes by each model's template, and one that knows no tools is told to write
    /// `hermes`.
    #[arg(long, env = "VOLLEY_TOOL_PARSER", default_value = "auto")]
    pub(crate) tool_parser: ToolParser,
    /// The largest request body, MiB. 10 holds a million tokens of text.
    #[arg(long, env = "VOLLEY_BODY_LIMIT_MIB", default_value_t = 10, value_name = "MIB")]
    pub(crate) body_limit_mib: usize,
    /// How long a client may be silent in the middle of a request, seconds; for its headers it has 10 at most.
    ///
    /// 30: longer than a phone takes to change networks.
    #[arg(long, env = "VOLLEY_CLIENT_TIMEOUT", default_value_t = 30, value_name = "SECONDS",
          value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) client_timeout: u64,
    /// Steps of a stream that a client may leave unread, beyond what its socket holds, before its sequences pause.
    ///
    /// 256: a client that stops for seconds costs nothing, as pausing means to compute again.
    #[arg(long, env = "VOLLEY_CLIENT_BUFFER", value_name = "STEPS", value_parser = positive,
          default_value_t = volley_router::engine::EngineConfig::CLIENT_BUFFER)]
    pub(crate) client_buffer: usize,
    /// How long running answers may go on after SIGTERM or Ctrl-C, seconds; a second signal ends at once.
    ///
    /// 30: shorter than what supervisors usually wait before they kill.
    #[arg(long, env = "VOLLEY_GRACE", default_value_t = 30, value_name = "SECONDS")]
    pub(crate) grace: u64,
    /// How long a request whose worker died may wait for another, seconds; then it fails: a stream that has begun
    /// ends with an error event, others get 503.
    ///
    /// 30: outlasts the restart of a worker with a model of moderate size.
    #[arg(long, env = "VOLLEY_MOVE_DEADLINE", value_name = "SECONDS",
          default_value_t = volley_router::engine::EngineConfig::MOVE_DEADLINE.as_secs())]
    pub(crate) move_deadline: u64,
}

/// The scheduler's queue.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Queue")]
pub(crate) struct AdmissionArgs {
    /// Requests that may wait for a place before others are refused with 503 and Retry-After.
    ///
    /// 1024: some minutes of work for a small machine; waiting longer than that helps nobody.
    #[arg(long, env = "VOLLEY_MAX_WAITING", default_value_t = 1024, value_name = "N")]
    pub(crate) max_waiting: usize,
    /// Whether requests that begin alike share what is computed of them. Bytes are the same either way.
    ///
    /// On: a conversation's next turn costs only what is new of it. Off: less memory is touched, and every request
    /// costs its full time, for measuring.
    #[arg(long, env = "VOLLEY_PREFIX_CACHE", default_value = "on", value_name = "SWITCH")]
    pub(crate) prefix_cache: Switch,
    /// Whether steps guess tokens from the text so far, from a request's `prediction`, and with a draft model: `auto`
    /// does where that makes answers faster, by measurement; `always`, even where it doesn't. Bytes are the same.
    #[arg(long, env = "VOLLEY_SPECULATION", default_value = "auto", value_name = "auto|always|off")]
    pub(crate) speculation: Speculation,
    /// What an API key gets of a busy cluster beside others: twice as much with weight 2 as with 1, the default.
    ///
    /// A key is named by the first 16 digits of its BLAKE3 hash, so that schedulers see none:
    /// `printf %s "$KEY" | b3sum --length 8`.
    #[arg(long, env = "VOLLEY_TENANT_WEIGHT", value_delimiter = ',', value_parser = weight,
          value_name = "TENANT=WEIGHT[,…]")]
    pub(crate) tenant_weight: Vec<(String, u32)>,
    /// A worker that has not answered a step for so long is lost, and its streams move, seconds.
    ///
    /// 60: the first step may page in weights from a slow disk. A process that is dead or frozen is noticed sooner.
    #[arg(long, env = "VOLLEY_STEP_DEADLINE", value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..),
          default_value_t = volley_scheduler::Config::STEP_DEADLINE.as_secs())]
    pub(crate) step_deadline: u64,
}

// --- clients ----------------------------------------------------------------------------------------------

/// `volley bench`.
#[derive(Clone, Debug, Args)]
pub(crate) struct BenchArgs {
    /// The server; with a path when its API is not under /v1. Several are routers of one cluster: streams begin at
    /// them in turn, and one that breaks off goes on at the next.
    #[arg(env = "VOLLEY_URL", default_value = "http://127.0.0.1:8000", value_delimiter = ',')]
    pub(crate) url: Vec<String>,
    /// The model's id. By default the first that the server lists.
    #[arg(long)]
    pub(crate) model: Option<String>,
    /// Numbers of streams, one load after the other. From one user to a busy small server by default.
    #[arg(short, long, default_value = "1,4,16,64", value_delimiter = ',', value_name = "N[,N…]", value_parser = positive)]
    pub(crate) concurrency: Vec<usize>,
    /// Requests of each load. By default 3 per stream up to 16 streams, 2 beyond: enough to be steady, and soon over.
    #[arg(short = 'n', long, value_name = "N", value_parser = positive)]
    pub(crate) requests: Option<usize>,
    /// Tokens to generate per request.
    #[arg(long, default_value_t = 128, value_name = "TOKENS")]
    pub(crate) max_tokens: u32,
    /// Words of each prompt that are its own, about a token each. By default 32 (short; 12 for chat, whose template
    /// adds some), 512 (long) or 16 (prefix).
    #[arg(long, value_name = "TOKENS")]
    pub(crate) prompt_tokens: Option<usize>,
    /// What the prompts are.
    #[arg(long, default_value = "short")]
    pub(crate) mode: BenchMode,
    /// Which endpoint.
    #[arg(long, default_value = "completions")]
    pub(crate) endpoint: BenchEndpoint,
    /// The server's API key.
    #[arg(long, env = "VOLLEY_API_KEY", hide_env_values = true, value_name = "KEY")]
    pub(crate) api_key: Option<String>,
    /// Also write the figures as JSON; `-` writes them to stdout in place of the table.
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<String>,
    /// Let answers end at the model's end of sequence. By default ignore_eos is sent, so that all have one length.
    #[arg(long)]
    pub(crate) stop_at_eos: bool,
    /// A JSON object that is merged into every request body.
    #[arg(long, value_name = "JSON")]
    pub(crate) extra: Option<String>,
    /// Also ask for /health every 50 ms and show its latency under load.
    #[arg(long)]
    pub(crate) health: bool,
    /// Makes the prompts repeatable. By default no two runs have a prompt in common, so no cache can help.
    #[arg(long)]
    pub(crate) seed: Option<u64>,
    /// How long one request may take, seconds.
    #[arg(long, default_value_t = 600, value_name = "SECONDS")]
    pub(crate) timeout: u64,
}

/// `volley chat`.
#[derive(Clone, Debug, Args)]
pub(crate) struct ChatArgs {
    /// The server; with a path when its API is not under /v1.
    #[arg(env = "VOLLEY_URL", default_value = "http://127.0.0.1:8000")]
    pub(crate) url: String,
    /// The model's id. By default the first that the server lists.
    #[arg(long)]
    pub(crate) model: Option<String>,
    /// A system message.
    #[arg(long, value_name = "TEXT")]
    pub(crate) system: Option<String>,
    /// The most tokens of an answer. The server's own default without.
    #[arg(long, value_name = "TOKENS")]
    pub(crate) max_tokens: Option<u32>,
    /// How freely to choose words; 0 always takes the likeliest. The server's own default without.
    #[arg(long)]
    pub(crate) temperature: Option<f32>,
    /// The server's API key.
    #[arg(long, env = "VOLLEY_API_KEY", hide_env_values = true, value_name = "KEY")]
    pub(crate) api_key: Option<String>,
}

/// `volley models`.
#[derive(Clone, Debug, Args)]
pub(crate) struct ModelsArgs {
    #[command(subcommand)]
    pub(crate) command: Option<ModelsCommand>,
    /// Where downloaded models are kept. By default `volley` in the user's cache directory.
    #[arg(long, env = "VOLLEY_HOME", global = true, value_name = "DIR")]
    pub(crate) home: Option<PathBuf>,
}

/// `volley models …`.
#[derive(Clone, Debug, Subcommand)]
pub(crate) enum ModelsCommand {
    /// Obtain a model, and print where it is
    Pull {
        /// A catalogue name or a hub id.
        name: String,
        /// Your token for private repositories of the hub.
        #[arg(long, env = "HF_TOKEN", hide_env_values = true, value_name = "TOKEN")]
        hub_token: Option<String>,
    },
}

#[cfg(test)]
impl BenchArgs {
    /// As if typed after `volley bench`.
    pub(crate) fn of(arguments: &[&str]) -> Self {
        let all = ["volley", "bench"].into_iter().chain(arguments.iter().copied());
        match Cli::parse_from(all).command {
            Command::Bench(args) => args,
            other => panic!("{other:?}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_flags_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_flag_of_a_role_has_an_environment_variable() {
        for command in Cli::command().get_subcommands() {
            if !["serve", "router", "scheduler", "worker"].contains(&command.get_name()) {
                continue;
            }
            for flag in command.get_arguments().filter(|a| !a.is_hide_set() && a.get_id() != "help") {
                let variable = flag.get_env().map(|v| v.to_string_lossy().into_owned()).unwrap_or_default();
                let expected = format!("VOLLEY_{}", flag.get_id().as_str().to_uppercase());
                assert!(variable == expected || variable == "HF_TOKEN", "{}: {variable:?}", flag.get_id());
            }
        }
    }
}
