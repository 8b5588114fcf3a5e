//! `volley serve`: everything on one machine, with the very gRPC that a cluster uses.
//!
//! ```text
//! 1 worker on the CPU    router ══ inproc://scheduler ══▶ scheduler ══ inproc://worker ══▶ worker
//! GPUs, or N workers     router ══ inproc://scheduler ══▶ scheduler ══ TCP ══▶ child processes
//! ```
//!
//! HTTP answers from the first moment (/ready, and requests, say 503 until the model is loaded), so that a port in
//! use is found before a download, not after.

use std::{io::Write, sync::Arc, time::Duration};

use metrics_exporter_prometheus::PrometheusHandle;
use tokio::sync::mpsc;
use volley_membership::{Local, Member, Membership, Registration, Role};
use volley_proto::transport::Transport;
use volley_router::engine::{Engine, Generate, ModelError};

use super::{
    Error, address,
    banner::Banner,
    children::{self, Child, Machine, Models},
    fresh_id, load,
    parts::Parts,
    router, scheduler, shutdown,
};
use crate::{
    cli::{ApiArgs, ServeArgs, TelemetryArgs},
    progress::Progress,
    supervise::{News, Supervised},
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
    let children = children::share(&args, machine(&args)?);

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
        started = service.start_workers(&args, &telemetry, models, &children) => started,
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

/// What there is for workers. A GPU that isn't there is said before a model is obtained.
fn machine(args: &ServeArgs) -> Result<Machine, Error> {
    Ok(Machine {
        gpus: volley_worker::gpus(load::device(&args.engine))?,
        cores: std::thread::available_parallelism().map_or(1, usize::from),
        memory: volley_worker::available_memory(),
    })
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
        children: &[Child],
    ) -> Result<(), Error> {
        match children {
            [] => self.start_in_process(args, models).await,
            _ => self.start_children(args, telemetry, &models, children).await,
        }
    }

    async fn start_in_process(&mut self, args: &ServeArgs, models: Models) -> Result<(), Error> {
        let id = fresh_id(WORKER);
        let progress = Progress::new(format!("loading {}", models.model.name));
        let worker = tokio::select! {
            worker = load::load(&args.engine, models.model, models.draft, id.clone(), progress) => worker?,
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
        children: &[Child],
    ) -> Result<(), Error> {
        let (news, mut heard) = mpsc::unbounded_channel();
        for (number, child) in children.iter().enumerate() {
            let command = child.command(&args.engine, telemetry, models)?;
            let (membership, news) = (self.membership.clone(), news.clone());
            self.parts.start("worker process", |shutdown| {
                Supervised { number, command, membership, news, shutdown }.run()
            });
        }
        let mut label = format!("loading {}", models.model.name);
        if children.len() > 1 {
            label += &format!(" in {} processes", children.len());
        }
        let mut progress = Progress::new(label);
        let mut loaded = vec![(0, 0); children.len()];
        let mut waiting = children.len();
        while waiting > 0 {
            tokio::select! {
                Some((number, news)) = heard.recv() => match news {
                    News::Ready => waiting -= 1,
                    News::Loading { done, total } => {
                        loaded[number] = (done, total);
                        let (done, total) = loaded.iter().fold((0, 0), |all, one| (all.0 + one.0, all.1 + one.1));
                        progress.update(done, total);
                    }
                },
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

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::{Cli, Command};

    #[test]
    fn an_alias_of_a_model_that_is_not_served_is_noticed() {
        let aliases = "a=M,b=accounts/fireworks/models/m,c=fireworks/m,d=other";
        let cli = Cli::parse_from(["volley", "serve", "--alias", aliases]);
        let Command::Serve(args) = cli.command else { panic!() };
        assert_eq!(misdirected(&args.api, "m"), [&("d".to_owned(), "other".to_owned())]);
    }
}
