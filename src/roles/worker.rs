//! `volley worker`: runs a model for whichever scheduler claims it.

use std::io::{self, Write};

use metrics_exporter_prometheus::PrometheusHandle;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use volley_membership::{Member, Registration, Role};
use volley_proto::transport::Transport;

use super::{Error, address, admin, cluster, fresh_id, load, shutdown};
use crate::{
    cli::{self, WorkerArgs},
    progress::Progress,
    supervise::{self, Line, Ready},
};

/// Loads, announces itself, serves; until a signal, or until its parent is gone when it is supervised.
pub(crate) async fn run(args: WorkerArgs, metrics: PrometheusHandle) -> Result<(), Error> {
    let ending = shutdown::on_signal()?;
    if args.supervised {
        let ending = ending.clone();
        tokio::spawn(async move {
            supervise::parent_gone().await;
            ending.cancel();
        });
    }
    let (listener, listening) = address::bind(&args.listen).await?;
    if let cli::Device::Cuda(_) = args.engine.device {
        volley_worker::gpus(load::device(&args.engine))?; // said before a model is obtained
    }
    let (ready, is_ready) = watch::channel(false);
    admin::start(args.member.admin_listen, metrics, is_ready).await?;
    let id = fresh_id("worker");
    let loaded = tokio::select! {
        loaded = load_model(&args, &id, &ending) => loaded?,
        () = ending.cancelled() => return Ok(()),
    };
    let address = address::advertised(args.member.advertise.as_deref(), listening, address::host_name);
    let member = Member { id, address, model: loaded.card().name.clone() };
    let stop = CancellationToken::new();
    let serving = loaded.serve(Transport::listen_tcp(listener), stop.clone());
    tokio::pin!(serving);
    let joined = tokio::select! {
        joined = announce(&args, &member) => joined?,
        ended = &mut serving => return Err(unexpected(ended)),
    };
    tracing::info!(id = member.id, address = member.address, model = member.model, "serving");
    ready.send_replace(true);
    tokio::select! {
        ended = &mut serving => return Err(unexpected(ended)),
        () = ending.cancelled() => {}
    }
    ready.send_replace(false);
    // Out of the membership first: no scheduler claims a worker that is about to go.
    if let Some(registration) = joined {
        registration.revoke().await;
    }
    stop.cancel();
    Ok(serving.await?)
}

async fn load_model(
    args: &WorkerArgs,
    id: &str,
    ending: &CancellationToken,
) -> Result<volley_worker::Worker, Error> {
    let model = load::resolve(&args.engine, ending).await?;
    let draft = load::resolve_draft(&args.engine, ending).await?;
    let progress = match args.supervised {
        true => Progress::told(|done, total| say(&Line::Loading { done, total })),
        false => Progress::new(format!("loading {}", model.name)),
    };
    load::load(&args.engine, model, draft, id.to_owned(), progress).await
}

/// Into etcd; or, for a supervising parent, a line on stdout.
async fn announce(args: &WorkerArgs, member: &Member) -> Result<Option<Registration>, Error> {
    if !args.supervised {
        let cluster = cluster(&args.cluster).await?;
        return Ok(Some(cluster.register(Role::Worker, member.clone()).await?));
    }
    let Member { id, address, model } = member.clone();
    say(&Line::Ready(Ready { id, address, model }))
        .map_err(|source| Error::System { doing: "cannot tell the parent", source })?;
    Ok(None)
}

/// To the supervising parent.
fn say(line: &Line) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{}", serde_json::to_string(line)?)?;
    out.flush()
}

fn unexpected(ended: Result<(), volley_worker::Error>) -> Error {
    Error::Ended { part: "worker", reason: ended.err().map(|e| e.to_string()) }
}
