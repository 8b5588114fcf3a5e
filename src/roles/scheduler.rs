//! `volley scheduler`: claims workers, and plans their steps for the routers that connect.

use std::{sync::Arc, time::Duration};

use metrics_exporter_prometheus::PrometheusHandle;
use tokio::sync::watch;
use volley_proto::transport::Transport;
use volley_scheduler::{Config, MAX_DRAFTS};

use super::{Error, address, admin, cluster, fresh_id, parts::Parts, shutdown};
use crate::cli::{AdmissionArgs, SchedulerArgs, Speculation, Switch};

/// Serves until a signal, then hands its workers over.
pub(crate) async fn run(args: SchedulerArgs, metrics: PrometheusHandle) -> Result<(), Error> {
    let ending = shutdown::on_signal()?;
    let (listener, listening) = address::bind(&args.listen).await?;
    // Ready as soon as it runs: one that waits for its first worker must be found, not restarted.
    let (_ready, is_ready) = watch::channel(true);
    admin::start(args.member.admin_listen, metrics, is_ready).await?;
    let address = address::advertised(args.member.advertise.as_deref(), listening, address::host_name);
    let config = config(&args.admission, fresh_id("scheduler"), address);
    tracing::info!(id = config.id, address = config.address, "serving");
    let (membership, transport) = (cluster(&args.cluster).await?, Transport::default());
    let mut parts = Parts::default();
    parts.start("scheduler", |stop| {
        volley_scheduler::serve(config, membership, transport, Transport::listen_tcp(listener), stop)
    });
    tokio::select! {
        failure = parts.failure() => return Err(failure),
        () = ending.cancelled() => {}
    }
    parts.stop().await;
    Ok(())
}

/// What the scheduler makes of the flags; the rest are its own defaults.
pub(super) fn config(args: &AdmissionArgs, id: String, address: String) -> Config {
    Config {
        max_waiting_sequences: args.max_waiting,
        drafts: if args.speculation == Speculation::Off { 0 } else { MAX_DRAFTS },
        always_guess: args.speculation == Speculation::Always,
        step_deadline: Duration::from_secs(args.step_deadline),
        prefix_cache: args.prefix_cache == Switch::On,
        tenant_weights: Arc::new(args.tenant_weight.iter().cloned().collect()),
        ..Config::new(id, address)
    }
}
