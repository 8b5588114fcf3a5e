//! Loads a running router with streams whose tokens come from a scheduler that only pretends, and prints what the
//! router's process spent on them. Run by `tests/bench/router`.
//!
//! ```text
//!  clients here ══HTTP══▶ volley router (its own process, measured) ══gRPC══▶ the pretending scheduler here
//! ```
//!
//! `simulated MODE --etcd URL --router HOST:PORT --pid PID --streams N [--steps N] [--h2 true]`, with MODE one of
//!
//! - `tokens`: N streams get a token each per step, the next step when every client has its text, as a worker's
//!   steps do; prints CPU µs a token.
//! - `requests`: N connections ask again and again for one token, by token ids, so that nothing is tokenized;
//!   prints CPU µs a request.
//! - `chats`: the same with a message of 32 words, rendered and tokenized, and streamed.
//! - `open`: opens N streams and leaves them open; prints the memory that each takes.
//! - `fuzz`: N connections send almost good bodies for `--seconds`; fails at a 5xx, a hang or a broken connection.

#![allow(missing_docs, clippy::unwrap_used)]

mod client;
mod fuzz;
mod scheduler;
#[path = "../../src/fixture.rs"]
#[allow(dead_code)]
mod tokenizer;

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use volley_membership::{Etcd, Member, Membership, Role};

use self::{
    client::{Clients, Progress},
    scheduler::{Answer, Pretender},
};

/// Requests, or steps of all streams, before anything is measured.
const WARM_UP: u64 = 200;

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let mut arguments = std::env::args().skip(1);
    let mode = arguments.next().unwrap();
    let mut options = HashMap::new();
    while let (Some(name), Some(value)) = (arguments.next(), arguments.next()) {
        options.insert(name, value);
    }
    let number = |name: &str, default: u64| options.get(name).map_or(default, |text| text.parse().unwrap());
    let load = Load {
        router: Process(number("--pid", 0)),
        clients: Clients { address: options["--router"].clone(), h2: options.contains_key("--h2") },
        streams: number("--streams", 64),
        steps: number("--steps", 2000),
    };

    let (pretender, address) = Pretender::listen().await;
    let etcd = Etcd::connect(&[options["--etcd"].clone()], volley_membership::DEFAULT_PREFIX).await.unwrap();
    let id = format!("pretender-{}", std::process::id());
    let member = Member { id, address, model: String::new() };
    let registration = etcd.register(Role::Scheduler, member).await.unwrap();
    pretender.answer(Answer::Last);
    pretender.linked().await;
    load.clients.until_served("completions", &by_tokens()).await;

    let figures = match mode.as_str() {
        "tokens" => load.tokens(&pretender).await,
        "requests" => load.requests(&pretender, "completions", by_tokens()).await,
        "chats" => load.requests(&pretender, "chat/completions", chat(1)).await,
        "open" => load.open(&pretender).await,
        "fuzz" => {
            load.fuzz(&pretender, Duration::from_secs(number("--seconds", 10)), number("--seed", 1)).await
        }
        other => panic!("no mode {other}"),
    };
    println!("{figures}");
    registration.revoke().await;
}

/// What is asked of which router.
struct Load {
    router: Process,
    clients: Clients,
    streams: u64,
    steps: u64,
}

/// A process to read figures of.
struct Process(u64);

/// Three stop strings are watched for, and none is ever found.
fn chat(max_tokens: u64) -> Value {
    let words = "The quick brown fox, once more. ".repeat(5);
    json!({"model": "tiny", "messages": [{"role": "user", "content": words}], "max_tokens": max_tokens,
        "stream": true, "stop": ["\n\n\n", "User:", "###"]})
}

fn by_tokens() -> Value {
    json!({"model": "tiny", "prompt": ([84, 104, 101, 32].repeat(8)), "max_tokens": 1})
}

// === impl Load ===

impl Load {
    async fn tokens(&self, pretender: &Pretender) -> Value {
        let progress = self.open_all(pretender).await;
        let mut spent = (0, Instant::now());
        for step in 0..WARM_UP + self.steps {
            if step == WARM_UP {
                spent = (self.router.cpu(), Instant::now());
            }
            pretender.step();
            // A role, the first token, and one of each step.
            progress.reach(self.streams * (step + 3)).await;
        }
        let cpu = self.router.cpu() - spent.0;
        let tokens = self.streams * self.steps;
        json!({"streams": self.streams, "tokens": tokens, "cpu_us_a_token": cpu as f64 / tokens as f64 / 1e3,
            "tokens_a_second": tokens as f64 / spent.1.elapsed().as_secs_f64()})
    }

    async fn requests(&self, pretender: &Pretender, path: &str, body: Value) -> Value {
        pretender.answer(Answer::Last);
        self.clients.ask(path, &body, self.streams, WARM_UP).await;
        let spent = (self.router.cpu(), Instant::now());
        self.clients.ask(path, &body, self.streams, self.steps).await;
        let cpu = self.router.cpu() - spent.0;
        json!({"connections": self.streams, "requests": self.steps,
            "cpu_us_a_request": cpu as f64 / self.steps as f64 / 1e3,
            "requests_a_second": self.steps as f64 / spent.1.elapsed().as_secs_f64()})
    }

    /// Memory after every stream has said something.
    async fn open(&self, pretender: &Pretender) -> Value {
        self.clients.ask("chat/completions", &chat(1), 1, 1).await;
        let before = self.router.resident();
        let progress = self.open_all(pretender).await;
        for step in 0..self.steps {
            pretender.step();
            progress.reach(self.streams * (step + 3)).await;
        }
        let resident = self.router.resident();
        json!({"streams": pretender.live(), "h2": self.clients.h2, "resident_mib": resident / 1024,
            "kib_a_stream": (resident - before) as f64 / self.streams as f64})
    }

    async fn fuzz(&self, pretender: &Pretender, length: Duration, seed: u64) -> Value {
        pretender.answer(Answer::Last);
        let (began, before) = (Instant::now(), self.router.resident());
        let askers = (0..self.streams)
            .map(|i| fuzz::ask_until(began + length, &self.clients, fuzz::Random(seed + (i << 32))));
        let all = futures::future::join_all(askers).await;
        let mut statuses = BTreeMap::<u16, u64>::new();
        for (status, count) in all.iter().flat_map(|answers| &answers.statuses) {
            *statuses.entry(*status).or_default() += count;
        }
        let slowest = all.iter().map(|answers| answers.slowest).max().unwrap_or_default();
        json!({"seconds": began.elapsed().as_secs(), "bodies": statuses.values().sum::<u64>(), "statuses": statuses,
            "slowest_ms": slowest.as_millis() as u64, "resident_mib": [before / 1024, self.router.resident() / 1024],
            "peak_mib": self.router.status("VmHWM:") / 1024})
    }

    /// All streams, each with its first token.
    async fn open_all(&self, pretender: &Pretender) -> Progress {
        pretender.answer(Answer::First);
        let progress = Progress::default();
        self.clients.open("chat/completions", &chat(1_000_000), self.streams, &progress).await;
        progress.reach(self.streams * 2).await;
        progress
    }
}

// === impl Process ===

impl Process {
    /// CPU time of all its threads, nanoseconds.
    fn cpu(&self) -> u64 {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.0)).unwrap();
        let times = tasks.filter_map(|task| fs::read_to_string(task.unwrap().path().join("schedstat")).ok());
        times.map(|stat| stat.split_whitespace().next().unwrap().parse::<u64>().unwrap()).sum()
    }

    /// Resident memory, KiB.
    fn resident(&self) -> u64 {
        self.status("VmRSS:")
    }

    fn status(&self, name: &str) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.0)).unwrap();
        let line = status.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }
}
