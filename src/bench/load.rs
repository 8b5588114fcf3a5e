//! One load: `concurrency` clients, each with one request open at a time, until all bodies are sent and answered.

use std::{
    cell::RefCell,
    rc::Rc,
    time::{Duration, Instant},
};

use futures::future;
use hyper::body::Bytes;

use super::answer::{self, Answer};
use crate::{cli::BenchEndpoint, client::Server};

/// How often `--health` asks.
const HEALTH_PERIOD: Duration = Duration::from_millis(50);

/// What to send.
pub(super) struct Load {
    /// Beyond the first: where a stream goes on that broke off. Requests begin at them in turn.
    pub(super) servers: Vec<Server>,
    pub(super) endpoint: BenchEndpoint,
    pub(super) bodies: Vec<Bytes>,
    pub(super) concurrency: usize,
    pub(super) timeout: Duration,
    pub(super) poll_health: bool,
}

/// What was seen.
#[derive(Debug, Default)]
pub(super) struct Seen {
    pub(super) concurrency: usize,
    pub(super) requests: usize,
    /// From the first send to the last byte of the last answer.
    pub(super) wall: Duration,
    pub(super) answers: Vec<Answer>,
    pub(super) errors: Vec<String>,
    /// Latencies of /health under this load.
    pub(super) health: Vec<Duration>,
    pub(super) health_errors: usize,
}

/// Runs a load on the current thread.
pub(super) async fn run(load: Load) -> Seen {
    let seen = Rc::new(RefCell::new(Seen {
        concurrency: load.concurrency,
        requests: load.bodies.len(),
        ..Seen::default()
    }));
    let bodies = RefCell::new(load.bodies.into_iter().enumerate());
    let path = match load.endpoint {
        BenchEndpoint::Completions => "completions",
        BenchEndpoint::Chat => "chat/completions",
    };
    let start = Instant::now();
    let client = || async {
        loop {
            let Some((number, body)) = bodies.borrow_mut().next() else { break };
            let answer = answer::hear(&load.servers, number, path, body);
            let answer = tokio::time::timeout(load.timeout, answer).await;
            let mut seen = seen.borrow_mut();
            match answer {
                Ok(Ok(answer)) => {
                    seen.wall = start.elapsed();
                    seen.answers.push(answer);
                }
                Ok(Err(e)) => seen.errors.push(e.to_string()),
                Err(_) => seen.errors.push(format!("no end within {} s", load.timeout.as_secs())),
            }
        }
    };
    let clients = future::join_all((0..load.concurrency).map(|_| client()));
    if let Some(server) = load.servers.first().filter(|_| load.poll_health) {
        tokio::select! {
            _ = clients => {}
            () = poll_health(server, &seen) => {}
        }
    } else {
        clients.await;
    }
    Rc::try_unwrap(seen).map(RefCell::into_inner).unwrap_or_default()
}

/// Asks for /health over and over; does not end.
async fn poll_health(server: &Server, seen: &RefCell<Seen>) {
    let mut period = tokio::time::interval(HEALTH_PERIOD);
    period.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        period.tick().await;
        let start = Instant::now();
        let answer = server.get("/health").await;
        let mut seen = seen.borrow_mut();
        match answer {
            Ok(_) => seen.health.push(start.elapsed()),
            Err(_) => seen.health_errors += 1,
        }
    }
}
