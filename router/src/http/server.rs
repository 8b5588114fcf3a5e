//! The HTTP server: sockets, their limits, and a drain that lets streams end.
//!
//! ```text
//!  shutdown ─▶ new requests get 503 ─ grace ─▶ streams get their error event ─ a moment ─▶ the rest is cut
//! ```

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use axum::{Router, body::Body};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::{conn::auto, graceful::GracefulShutdown},
};
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::JoinSet,
    time::{Interval, MissedTickBehavior, interval, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{edge, limits::Limiter, peers::Peers, stall::StallGuard};
use crate::{
    api::{App, responses::Store},
    config::Config,
    engine::Generate,
};

/// The most open connections, where there are file descriptors for them; more wait in the listener's backlog.
const CONNECTIONS: usize = 64 << 10;
/// The longest wait for a request's headers; no longer than [`Config::client_timeout`].
const HEADERS: Duration = Duration::from_secs(10);
/// The largest headers, bytes.
const HEADERS_SIZE: usize = 32 << 10;
/// The most headers.
const HEADERS_COUNT: usize = 100;
/// The longest that a client may not read.
const STALL: Duration = Duration::from_secs(60);
/// How long error events have to leave, at the end of a drain.
const PARTING: Duration = Duration::from_secs(1);
/// How often histograms are folded, so that they stay small while nobody reads them.
const UPKEEP: Duration = Duration::from_secs(5);

/// Why the server ended.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The listening socket can't be used.
    #[error("the listening socket failed: {0}")]
    Listener(#[source] io::Error),
}

/// Serves until `shutdown`, then drains: running requests have [`Config::grace`] to end, and new ones are told to
/// come back, so that a load balancer sees /ready fail rather than a port that refuses.
pub async fn serve<E: Generate>(
    config: Config,
    engine: Arc<E>,
    peers: Peers,
    metrics: PrometheusHandle,
    listener: TcpListener,
    shutdown: CancellationToken,
) -> Result<(), Error> {
    crate::telemetry::describe();
    listener.local_addr().map_err(Error::Listener)?;
    let headers = HEADERS.min(config.client_timeout);
    let (grace, closing) = (config.grace, CancellationToken::new());
    let responses = Arc::new(Store::new(config.responses_bytes, config.responses_age));
    let app = Arc::new(App {
        responses: responses.clone(),
        limiter: Limiter::new(config.limits),
        config,
        engine,
        peers,
        metrics: metrics.clone(),
        draining: shutdown.clone(),
        closing: closing.clone(),
    });
    let mut upkeep = interval(UPKEEP);
    upkeep.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut server = Server {
        listener,
        routes: edge::routes(app),
        builder: builder(headers),
        graceful: GracefulShutdown::new(),
        permits: Arc::new(Semaphore::new(CONNECTIONS)),
        connections: JoinSet::new(),
        metrics,
        responses,
        upkeep,
    };
    server.accept_until(shutdown.cancelled()).await;
    // Only what was connected before is waited for: whoever asks /ready again and again never ends.
    let running = std::mem::take(&mut server.graceful);
    server.builder.http1().keep_alive(false);
    let drained = async {
        let drained = running.shutdown();
        tokio::pin!(drained);
        if timeout(grace, &mut drained).await.is_err() {
            tracing::info!("the grace is over, streams are cut");
            closing.cancel();
            let _ = timeout(PARTING, drained).await;
        }
    };
    server.accept_until(drained).await;
    server.connections.shutdown().await;
    Ok(())
}

/// The next connection, once there is room for it.
async fn accept(
    listener: &TcpListener,
    permits: &Arc<Semaphore>,
) -> (TcpStream, Option<tokio::sync::OwnedSemaphorePermit>) {
    // The semaphore is never closed.
    let permit = permits.clone().acquire_owned().await.ok();
    loop {
        match listener.accept().await {
            Ok((stream, _)) => return (stream, permit),
            Err(error) => {
                // Out of file descriptors, or a client that left while it waited: neither ends the server.
                tracing::warn!(%error, "a connection was not accepted");
                sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// The connections, and what serves each.
struct Server {
    listener: TcpListener,
    routes: Router,
    builder: auto::Builder<TokioExecutor>,
    graceful: GracefulShutdown,
    /// As many as there may be connections.
    permits: Arc<Semaphore>,
    connections: JoinSet<()>,
    metrics: PrometheusHandle,
    responses: Arc<Store>,
    upkeep: Interval,
}

// === impl Server ===

impl Server {
    async fn accept_until(&mut self, end: impl Future<Output = ()>) {
        tokio::pin!(end);
        loop {
            tokio::select! {
                biased; // what connects after the end is left to the next phase
                () = &mut end => return,
                _ = self.upkeep.tick() => {
                    self.metrics.run_upkeep();
                    self.responses.expire();
                }
                Some(_) = self.connections.join_next() => {}
                (stream, permit) = accept(&self.listener, &self.permits) => {
                    let connection = self.connection(stream);
                    self.connections.spawn(async move {
                        connection.await;
                        drop(permit);
                    });
                }
            }
        }
    }

    fn connection(&self, stream: TcpStream) -> impl Future<Output = ()> + Send + 'static {
        // Each token is a packet; without this a packet waits for the one before to be acknowledged.
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "TCP_NODELAY");
        }
        let asked = Arc::new(AtomicBool::new(false));
        let (routes, seen) = (self.routes.clone(), asked.clone());
        let service = hyper::service::service_fn(move |request: http::Request<hyper::body::Incoming>| {
            seen.store(true, Ordering::Relaxed);
            edge::serve(routes.clone(), request.map(Body::new))
        });
        let io = TokioIo::new(StallGuard::new(stream, STALL));
        let connection = self.builder.serve_connection(io, service).into_owned();
        let connection = self.graceful.watch(connection);
        async move {
            tokio::pin!(connection);
            // Until it is known which HTTP a client speaks, no protocol's own timeout runs.
            let served = tokio::select! {
                served = &mut connection => served,
                () = sleep(HEADERS) => {
                    if !asked.load(Ordering::Relaxed) {
                        return;
                    }
                    connection.await
                }
            };
            if let Err(error) = served {
                tracing::debug!(error, "a connection ended early");
            }
        }
    }
}

/// HTTP/1.1, and HTTP/2 for clients that begin with it.
fn builder(headers: Duration) -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(headers)
        .max_headers(HEADERS_COUNT)
        .max_buf_size(HEADERS_SIZE);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_header_list_size(HEADERS_SIZE as u32)
        .max_concurrent_streams(256)
        .keep_alive_interval(Duration::from_secs(20));
    builder
}
