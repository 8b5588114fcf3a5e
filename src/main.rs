//! `volley`: the one binary. Roles are subcommands; the logic is in their crates.
#![forbid(unsafe_code)]

mod bench;
mod chat;
mod cli;
mod client;
mod doctor;
mod models;
mod progress;
mod roles;
mod supervise;
mod telemetry;

use std::process::ExitCode;

use clap::{Parser, error::ContextKind};
use cli::{Cli, Command, ModelsArgs, ModelsCommand, TelemetryArgs};
use indicatif::DecimalBytes;
use models::{CATALOGUE, Cache, Model, Sources};
use tokio::runtime::{Builder, Runtime};
use tokio_util::sync::CancellationToken;

fn main() -> ExitCode {
    let cli = Cli::try_parse().unwrap_or_else(|error| {
        let wrong = error.get(ContextKind::InvalidArg).map(ToString::to_string).unwrap_or_default();
        if ["--port", "--host"].contains(&wrong.as_str()) {
            let _ = error.print(); // as exit() does
            eprintln!("\n  tip: use --listen HOST:PORT");
            std::process::exit(error.exit_code());
        }
        error.exit()
    });
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}"); // our messages name their causes
            volley_worker::end_process(1)
        }
    }
}

fn run(cli: Cli) -> anyhow::Result<()> {
    match cli.command {
        Command::Bench(args) => Ok(light_runtime()?.block_on(bench::run(&args))?),
        Command::Chat(args) => finish(light_runtime()?, |runtime| Ok(runtime.block_on(chat::run(args))?)),
        Command::Models(args) => list_or_pull(args),
        Command::Doctor => {
            print!("{}", doctor::report(&volley_worker::Machine::look()));
            Ok(())
        }
        role => run_role(role, &cli.telemetry),
    }
}

/// Takes all the file descriptors that the system grants: each client is one, and the usual soft limit is 1024.
fn allow_open_files() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    let _ = setrlimit(Resource::Nofile, limit); // what there is must do
}

fn run_role(role: Command, telemetry: &TelemetryArgs) -> anyhow::Result<()> {
    let (service, level) = match &role {
        Command::Serve(_) => ("volley-serve", "warn"),
        Command::Router(_) => ("volley-router", "info"),
        Command::Scheduler(_) => ("volley-scheduler", "info"),
        _ => ("volley-worker", "info"),
    };
    allow_open_files();
    finish(role_runtime()?, |runtime| {
        let _entered = runtime.enter();
        let running = telemetry::start(telemetry, service, level)?;
        let metrics = telemetry::metrics()?;
        let result = runtime.block_on(async {
            match role {
                Command::Serve(args) => roles::serve(args, telemetry.clone(), metrics).await,
                Command::Router(args) => roles::router(args, metrics).await,
                Command::Scheduler(args) => roles::scheduler(args, metrics).await,
                Command::Worker(args) => roles::worker(args, metrics).await,
                Command::Bench(_) | Command::Chat(_) | Command::Models(_) | Command::Doctor => Ok(()), // not roles
            }
        });
        running.shut_down();
        // What the user interrupted has ended as asked.
        match result {
            Err(roles::Error::Model(models::Error::Interrupted)) => Ok(()),
            other => Ok(other?),
        }
    })
}

/// The async threads of a role. They do little: kernels and tokenizers have threads of their own. But never one
/// alone, or a long poll would hold up /health.
fn role_runtime() -> std::io::Result<Runtime> {
    let cores = std::thread::available_parallelism().map_or(2, usize::from);
    Builder::new_multi_thread().worker_threads(cores.clamp(2, 8)).enable_all().build()
}

/// One thread: a client that shares its cores with the server must not spread over them.
fn light_runtime() -> std::io::Result<Runtime> {
    Builder::new_current_thread().enable_all().build()
}

/// Ends without waiting for a blocked read of stdin or of the network.
fn finish<T>(runtime: Runtime, body: impl FnOnce(&Runtime) -> anyhow::Result<T>) -> anyhow::Result<T> {
    let result = body(&runtime);
    runtime.shutdown_background();
    result
}

fn list_or_pull(args: ModelsArgs) -> anyhow::Result<()> {
    let cache = Cache::new(args.home);
    match args.command {
        Some(ModelsCommand::Pull { name, hub_token }) => {
            let sources = Sources { hub_token, ..Sources::default() };
            let model = light_runtime()?.block_on(pull(name, cache, sources))?;
            println!("{}", model.path.display());
        }
        None => {
            let cached = cache.list();
            println!("Catalogue (for --model):");
            for entry in CATALOGUE {
                println!(
                    "  {:<24} {:>9}  {}",
                    entry.name,
                    DecimalBytes(entry.bytes).to_string(),
                    entry.about
                );
            }
            println!("Here:");
            for model in &cached {
                println!(
                    "  {:<24} {:>9}  {}",
                    model.name,
                    DecimalBytes(model.bytes).to_string(),
                    model.path.display()
                );
            }
            if cached.is_empty() {
                println!("  nothing yet");
            }
        }
    }
    Ok(())
}

/// Obtains a model; Ctrl-C leaves nothing behind.
async fn pull(name: String, cache: Cache, sources: Sources) -> anyhow::Result<Model> {
    let cancel = CancellationToken::new();
    let watched = cancel.clone();
    let mut pulling = tokio::task::spawn_blocking(move || models::resolve(&name, &cache, &sources, &watched));
    let pulled = tokio::select! {
        pulled = &mut pulling => pulled,
        _ = tokio::signal::ctrl_c() => {
            cancel.cancel();
            pulling.await // cleans up first
        }
    };
    Ok(pulled??)
}
