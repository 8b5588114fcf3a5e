//! `volley serve`: everything on one machine, with the very gRPC that a cluster uses.
//!
//! ```text
//! 1 worker    router ══ inproc://scheduler ══▶ scheduler ══ inproc://worker ══▶ worker
//! N workers   router ══ inproc://scheduler ══▶ scheduler ══ TCP ══▶ N child processes
//! ```
//!
//! HTTP answers from the first moment (/ready, and requests, say 503 until the model is loaded), so that a port in
//! use is found before a download, not after.

use std::{ffi::OsString, io::Write, path::PathBuf, sync::Arc, time::Duration};

use metrics_exporter_prometheus::PrometheusHandle;
use tokio::sync::mpsc;
use volley_membership::{Local, Member, Membership, Registration, Role};
use volley_proto::transport::Transport;
use volley_router::engine::{Engine, Generate, ModelError};

use super::{Error, address, banner::Banner, fresh_id, load, parts::Parts, router, scheduler, shutdown};
use crate::{
    cli::{ApiArgs, ServeArgs, TelemetryArgs},
    models::Model,
    progress::Progress,
    supervise::Supervised,
};

const SCHEDULER: &str = "scheduler";
const WORKER: &str = "worker";
/// How often the router is asked whether the model has come up the links.
const READY_POLL: Duration = Duration::from_millis(10);

/// What stands while the service runs.
struct Service {
    parts: Parts,
    membership: Arc<dyn Membership>,
    transport: Transport,
    /// The in-process worker's.
    _registration: Option<Registration>,
}

/// What is to be loaded.
struct Models {
    model: Model,
    draft: Option<PathBuf>,
}

/// Serves until a signal, then lets running answers finish.
pub(crate) async fn run(
    args: ServeArgs,
    telemetry: TelemetryArgs,
    metrics: PrometheusHandle,
) -> Result<(), Error> {
    let ending = shutdown::on_signal()?;
    let config = router::config(&args.api)?;
    let keys = config.keys.required();
    let (listener, listening) = address::bind(&args.listen).await?;

    let membership: Arc<dyn Membership> = Arc::new(Local::default());
    let (transport, mut parts) = (Transport::default(), Parts::default());
    let config = (config, router::engine_config(&args.api));
    let engine = router::start(&mut parts, config, membership.clone(), transport.clone(), listener, metrics);
    let scheduler = scheduler::config(&args.admission, fresh_id(SCHEDULER), format!("inproc://{SCHEDULER}"));
    parts.start("scheduler", |stop| {
        let incoming = transport.listen_inproc(SCHEDULER);
        volley_scheduler::serve(scheduler, membership.clone(), transport.clone(), incoming, stop)
    });
    let mut service = Service { parts, membership, transport, _registration: None };

    let model = tokio::select! {
        model = load::resolve(&args.engine, &ending) => model?,
        failure = service.parts.failure() => return Err(failure),
    };
    let draft = tokio::select! {
        draft = load::resolve_draft(&args.engine, &ending) => draft?,
        failure = service.parts.failure() => return Err(failure),
    };
    let (name, models) = (model.name.clone(), Models { model, draft });
    let started = tokio::select! {
        started = service.start_workers(&args, &telemetry, models) => started,
        () = ending.cancelled() => return Ok(()),
    };
    started?;
    let chat = tokio::select! {
        chat = chat_when_ready(&engine, &name) => chat?,
        failure = service.parts.failure() => return Err(failure),
        () = ending.cancelled() => return Ok(()),
    };
    warn_of_aliases(&args.api, &name);
    let (url, id) = (address::local_url(listening), format!("accounts/{}/models/{name}", args.api.account));
    show(&Banner { url: &url, model: &id, chat, keys });
    tokio::select! {
        failure = service.parts.failure() => return Err(failure),
        () = ending.cancelled() => {}
    }
    service.parts.stop().await;
    Ok(())
}

/// An alias can only mean the one model that is served here.
fn warn_of_aliases(args: &ApiArgs, served: &str) {
    for (alias, to) in misdirected(args, served) {
        tracing::warn!("--alias {alias}={to}: there is no model {to} here, only {served}");
    }
}

fn misdirected<'a>(args: &'a ApiArgs, served: &str) -> Vec<&'a (String, String)> {
    let whole = format!("accounts/{}/models/{served}", args.account);
    let short = format!("{}/{served}", args.account);
    let is_served = |to: &str| [served, &whole, &short].iter().any(|id| id.eq_ignore_ascii_case(to));
    args.alias.iter().filter(|(_, to)| !is_served(to)).collect()
}

/// On stdout, if that still leads anywhere.
fn show(banner: &Banner<'_>) {
    let mut out = std::io::stdout().lock();
    let _ = write!(out, "{banner}").and_then(|()| out.flush());
}

// === impl Service ===

impl Service {
    async fn start_workers(
        &mut self,
        args: &ServeArgs,
        telemetry: &TelemetryArgs,
        models: Models,
    ) -> Result<(), Error> {
        match args.workers {
            1 => self.start_in_process(args, models).await,
            _ => self.start_children(args, telemetry, &models).await,
        }
    }

    async fn start_in_process(&mut self, args: &ServeArgs, models: Models) -> Result<(), Error> {
        let id = fresh_id(WORKER);
        let worker = tokio::select! {
            worker = load::load(&args.engine, models.model, models.draft, id.clone(), false) => worker?,
            failure = self.parts.failure() => return Err(failure),
        };
        let member = Member { id, address: format!("inproc://{WORKER}"), model: worker.card().name.clone() };
        let incoming = self.transport.listen_inproc(WORKER);
        self.parts.start("worker", |stop| worker.serve(incoming, stop));
        self._registration = Some(self.membership.register(Role::Worker, member).await?);
        Ok(())
    }

    /// Starts the child processes and waits until each has been ready once.
    async fn start_children(
        &mut self,
        args: &ServeArgs,
        telemetry: &TelemetryArgs,
        models: &Models,
    ) -> Result<(), Error> {
        let command = child_command(args, telemetry, models)?;
        let (ready, mut became_ready) = mpsc::unbounded_channel();
        for _ in 0..args.workers {
            let (command, membership, ready) = (command.clone(), self.membership.clone(), ready.clone());
            self.parts.start("worker process", |shutdown| {
                Supervised { command, membership, ready, shutdown }.run()
            });
        }
        let progress = Progress::new(format!("loading {} in {} processes", models.model.name, args.workers));
        for _ in 0..args.workers {
            tokio::select! {
                Some(()) = became_ready.recv() => {}
                failure = self.parts.failure() => return Err(failure),
            }
        }
        progress.finish();
        Ok(())
    }
}

/// Waits until the router can serve the model, tokenizer and all; whether it can chat.
async fn chat_when_ready(engine: &Engine, name: &str) -> Result<bool, Error> {
    loop {
        match engine.model(name).await {
            Ok(model) => return Ok(model.card.has_chat_template),
            Err(ModelError::Invalid(reason)) => {
                return Err(Error::Unusable { name: name.to_owned(), reason });
            }
            // Not up the links yet; unknown until the scheduler has reported.
            Err(ModelError::NotReady { .. } | ModelError::NotFound) => tokio::time::sleep(READY_POLL).await,
        }
    }
}

/// `volley worker …`: all that holds for a child is on its command line.
fn child_command(
    args: &ServeArgs,
    telemetry: &TelemetryArgs,
    models: &Models,
) -> Result<Vec<OsString>, Error> {
    let program = std::env::current_exe()
        .map_err(|source| Error::System { doing: "cannot find this program's own file", source })?;
    let (engine, count) = (&args.engine, usize::from(args.workers));
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = engine.threads.unwrap_or((cores / count).max(1));
    // Together they take what one would. Workers on a GPU share the first one, or the one that is named.
    let kv_cache_gb = match (engine.kv_cache_gb, volley_worker::has_gpu(load::device(engine))) {
        (Some(asked), _) => Some(asked / count as f64),
        (None, true) => None,
        (None, false) => Some(volley_worker::available_memory() as f64 / 4e9 / count as f64),
    };
    let fraction = engine.gpu_memory_fraction / count as f64;
    let mut command: Vec<OsString> = vec![program.into(), "worker".into(), "--supervised".into()];
    let mut flag = |name: &str, value: &dyn AsRef<std::ffi::OsStr>| {
        command.push(name.into());
        command.push(value.as_ref().into());
    };
    flag("--listen", &"127.0.0.1:0");
    flag("--model", &models.model.path);
    flag("--model-name", &models.model.name);
    if let Some(draft) = &models.draft {
        flag("--draft-model", draft);
    }
    flag("--device", &engine.device.to_string());
    flag("--tensor-parallel", &engine.tensor_parallel.to_string());
    flag("--threads", &threads.to_string());
    flag("--gpu-memory-fraction", &fraction.to_string());
    flag("--max-batch-tokens", &engine.max_batch_tokens.to_string());
    flag("--max-sequences", &engine.max_sequences.to_string());
    flag("--activations", &engine.activations.to_string());
    flag("--pooling", &engine.pooling.to_string());
    flag("--log", &telemetry.log.as_deref().unwrap_or("warn"));
    flag("--log-format", &telemetry.log_format.to_string());
    if !engine.test_abort_on_tokens.is_empty() {
        let tokens: Vec<_> = engine.test_abort_on_tokens.iter().map(u32::to_string).collect();
        flag("--test-abort-on-tokens", &tokens.join(","));
    }
    if let Some(kv_cache_gb) = kv_cache_gb {
        flag("--kv-cache-gb", &kv_cache_gb.to_string());
    }
    if let Some(home) = &engine.home {
        flag("--home", home);
    }
    if let Some(endpoint) = &telemetry.otlp_endpoint {
        flag("--otlp-endpoint", endpoint);
    }
    if engine.deterministic {
        command.push("--deterministic".into());
    }
    Ok(command)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::{self, Cli, Command};

    #[test]
    fn an_alias_of_a_model_that_is_not_served_is_noticed() {
        let aliases = "a=M,b=accounts/fireworks/models/m,c=fireworks/m,d=other";
        let cli = Cli::parse_from(["volley", "serve", "--alias", aliases]);
        let Command::Serve(args) = cli.command else { panic!() };
        assert_eq!(misdirected(&args.api, "m"), [&("d".to_owned(), "other".to_owned())]);
    }

    #[test]
    fn the_childrens_command_line_is_understood_and_shares_the_machine_out() {
        let flags = "--workers 4 --kv-cache-gb 2 --threads 3 --home /h --pooling last --deterministic --tensor-parallel 2";
        let cli = Cli::parse_from(["volley", "serve"].into_iter().chain(flags.split(' ')));
        let Command::Serve(args) = cli.command else { panic!() };
        let model = Model { path: "/m.gguf".into(), name: "m".into(), weights_hash: None };
        let models = Models { model, draft: Some("/d.gguf".into()) };
        let command = child_command(&args, &cli.telemetry, &models).unwrap();
        let Command::Worker(worker) = Cli::parse_from(command).command else { panic!() };
        assert!(worker.supervised);
        assert_eq!((worker.engine.model.as_str(), worker.engine.threads), ("/m.gguf", Some(3)));
        assert_eq!((worker.engine.kv_cache_gb, worker.engine.pooling), (Some(0.5), cli::Pooling::Last));
        assert_eq!(worker.engine.draft_model.as_deref(), Some("/d.gguf"));
        assert_eq!((worker.engine.home, worker.engine.tensor_parallel), (Some("/h".into()), 2));
        assert_eq!((worker.engine.gpu_memory_fraction, worker.engine.deterministic), (0.9 / 4.0, true));
    }
}
