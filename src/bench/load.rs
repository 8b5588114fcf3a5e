//! One load: `concurrency` clients, each with one request open at a time, until all bodies are sent and answered.

use std::{
    cell::RefCell,
    rc::Rc,
    time::{Duration, Instant},
};

use futures::future;
use hyper::body::Bytes;

use crate::{
    cli::BenchEndpoint,
    client::{Error, Server, Usage},
};

/// How often `--health` asks.
const HEALTH_PERIOD: Duration = Duration::from_millis(50);

/// What to send.
pub(super) struct Load {
    pub(super) server: Server,
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

/// One finished request.
#[derive(Debug)]
pub(super) struct Answer {
    /// To the first chunk with text, or to the end when there was none.
    pub(super) first: Duration,
    /// Between chunks with text.
    pub(super) gaps: Vec<Duration>,
    pub(super) whole: Duration,
    /// Chunks with text.
    pub(super) chunks: u64,
    pub(super) usage: Option<Usage>,
}

/// Runs a load on the current thread.
pub(super) async fn run(load: Load) -> Seen {
    let seen = Rc::new(RefCell::new(Seen {
        concurrency: load.concurrency,
        requests: load.bodies.len(),
        ..Seen::default()
    }));
    let bodies = RefCell::new(load.bodies.into_iter());
    let path = match load.endpoint {
        BenchEndpoint::Completions => "completions",
        BenchEndpoint::Chat => "chat/completions",
    };
    let start = Instant::now();
    let client = || async {
        loop {
            let Some(body) = bodies.borrow_mut().next() else { break };
            let answer = tokio::time::timeout(load.timeout, one(&load.server, path, body)).await;
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
    if load.poll_health {
        tokio::select! {
            _ = clients => {}
            () = poll_health(&load.server, &seen) => {}
        }
    } else {
        clients.await;
    }
    Rc::try_unwrap(seen).map(RefCell::into_inner).unwrap_or_default()
}

/// Sends one request and reads its answer to the end.
async fn one(server: &Server, path: &str, body: Bytes) -> Result<Answer, Error> {
    let start = Instant::now();
    let mut stream = server.stream(path, body).await?;
    let (mut first, mut last, mut gaps, mut chunks, mut usage) = (None, start, Vec::new(), 0, None);
    while let Some((has_text, new_usage)) = stream.next(|c| (!c.text().is_empty(), c.usage)).await? {
        usage = new_usage.or(usage);
        if !has_text {
            continue;
        }
        let now = Instant::now();
        match first {
            None => first = Some(now - start),
            Some(_) => gaps.push(now - last),
        }
        last = now;
        chunks += 1;
    }
    let whole = start.elapsed();
    Ok(Answer { first: first.unwrap_or(whole), gaps, whole, chunks, usage })
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
