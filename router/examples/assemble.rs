//! What a token costs the router, in CPU time: 64 streams over one link, in step.
//!
//! `cargo run --release -p volley-router --example assemble`. A scheduler in a thread of its own sends a token
//! per stream and step, and the next step when every client has its text. Counted is the CPU time of the
//! router's threads: gRPC, link, text, channels, clients. Everything of HTTP/1 and JSON is beside this.

#![allow(missing_docs, clippy::unwrap_used)]

#[path = "../src/fixture.rs"]
#[allow(dead_code)]
mod fixture;

use std::{collections::HashMap, fs, sync::Arc, thread, time::Instant};

use futures::StreamExt;
use tokio::sync::{Mutex, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};
use volley_membership::{Local, Member, Membership, Role};
use volley_proto::{
    transport::Transport,
    v1::{
        FetchModelRequest, FileChunk, FinishReason, ModelCard, Models, RouterMessage, SchedulerHello,
        SchedulerMessage, SequenceOutput, StepOutput,
        router_message::Message as Up,
        scheduler_message::Message as Down,
        scheduler_server::{Scheduler, SchedulerServer},
    },
};
use volley_router::{
    assembler::{Assembler, Rules, Step},
    engine::{Engine, EngineConfig, Generate, Model},
    generation::{Generation, Prompt, Sampling, Task},
    stop::Stops,
    tokenizer::Tokenizer,
};

const STREAMS: usize = 64;
const STEPS: usize = 3000;

fn main() {
    let stop: Vec<String> = ["\n\n\n", "User:", "###"].map(String::from).to_vec();
    println!("assembler alone: {:.2} µs a token", assembler_alone(&stop));
    let transport = Transport::default();
    let (steps, done) = mpsc::channel(1);
    spawn_scheduler(transport.clone(), done);
    let mut router = tokio::runtime::Builder::new_multi_thread();
    let router = router.worker_threads(1).thread_name("router").enable_all().build().unwrap();
    let cpu = router.block_on(async { tokio::spawn(serve(transport, steps, stop)).await.unwrap() });
    let tokens = (STREAMS * STEPS) as f64;
    for (name, nanoseconds) in &cpu {
        println!("{name:12} {:.2} µs a token", *nanoseconds as f64 / tokens / 1e3);
    }
    println!("router in all: {:.2} µs a token", cpu.values().sum::<u64>() as f64 / tokens / 1e3);
}

fn words(step: usize) -> u32 {
    b"The quick brown fox, once more. "[step % 32].into()
}

fn assembler_alone(stop: &[String]) -> f64 {
    let tokenizer = Arc::new(Tokenizer::from_json(&fixture::byte_level(&[])).unwrap());
    let stops = Stops::new(stop, &tokenizer);
    let rules =
        Arc::new(Rules { tokenizer, stops, include_stop: true, shown: Vec::new(), max_tokens: u32::MAX });
    let mut choices: Vec<_> = (0..STREAMS as u32).map(|i| Assembler::new(i, rules.clone())).collect();
    let started = Instant::now();
    for step in 0..STEPS {
        for choice in &mut choices {
            std::hint::black_box(choice.push(Step { tokens: &[words(step)], ..Step::default() }));
        }
    }
    started.elapsed().as_secs_f64() * 1e6 / (STREAMS * STEPS) as f64
}

/// Runs all streams; gives the CPU nanoseconds of the router's threads by name.
async fn serve(transport: Transport, steps: mpsc::Sender<()>, stop: Vec<String>) -> HashMap<String, u64> {
    let members = Local::default();
    let member = Member { id: "s".into(), address: "inproc://s".into(), model: String::new() };
    let _registration = members.register(Role::Scheduler, member).await.unwrap();
    let engine =
        Engine::connect(EngineConfig::default(), Arc::new(members), transport, CancellationToken::new());
    while engine.models().is_empty() {
        tokio::task::yield_now().await;
    }
    let model = Arc::new(Model::new(fixture::card(), &fixture::byte_level(&[]), None).unwrap());
    let (received, mut batches) = mpsc::channel(STREAMS);
    for _ in 0..STREAMS {
        let (engine, model, received) = (engine.clone(), model.clone(), received.clone());
        let generation = generation(stop.clone());
        tokio::spawn(async move {
            let mut deltas = engine.start(model, generation).await.unwrap();
            while let Some(batch) = deltas.next().await {
                std::hint::black_box(batch.unwrap());
                received.send(()).await.unwrap();
            }
        });
    }
    drop(received);
    let mut before = HashMap::new();
    for step in 0..STEPS {
        for _ in 0..STREAMS {
            batches.recv().await.unwrap();
        }
        if step == 0 {
            before = cpu_time();
        }
        let _ = steps.send(()).await;
    }
    let mut cpu = cpu_time();
    cpu.retain(|name, _| name == "router" || name == "volley-text");
    cpu.iter_mut().for_each(|(name, time)| *time -= before.get(name).copied().unwrap_or(0));
    cpu
}

fn generation(stop: Vec<String>) -> Generation {
    Generation {
        task: Task::Generate,
        id: "cmpl-1".into(),
        prompts: vec![Prompt { tokens: vec![72, 105] }],
        n: 1,
        max_tokens: 1_000_000,
        stop,
        include_stop: true,
        ignore_eos: false,
        min_tokens: 0,
        echo: 0,
        logprobs: None,
        grammar: None,
        shown: Vec::new(),
        sampling: Sampling { seed: 1, ..Sampling::default() },
        tenant: String::new(),
        priority: 0,
        session: None,
        cache_salt: String::new(),
        max_cached_tokens: None,
        traceparent: String::new(),
    }
}

/// Nanoseconds on the CPU by thread name.
fn cpu_time() -> HashMap<String, u64> {
    let mut times = HashMap::new();
    for task in fs::read_dir("/proc/self/task").unwrap() {
        let path = task.unwrap().path();
        let (Ok(name), Ok(stat)) =
            (fs::read_to_string(path.join("comm")), fs::read_to_string(path.join("schedstat")))
        else {
            continue;
        };
        let time: u64 = stat.split_whitespace().next().unwrap().parse().unwrap();
        *times.entry(name.trim().to_owned()).or_default() += time;
    }
    times
}

// === the scheduler ===

struct Service {
    done: Arc<Mutex<mpsc::Receiver<()>>>,
}

fn spawn_scheduler(transport: Transport, done: mpsc::Receiver<()>) {
    let incoming = transport.listen_inproc("s");
    let service = SchedulerServer::new(Service { done: Arc::new(Mutex::new(done)) });
    thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let server = tonic::transport::Server::builder().add_service(service);
        runtime.block_on(server.serve_with_incoming(incoming)).unwrap();
    });
}

#[tonic::async_trait]
impl Scheduler for Service {
    type ServeStream = ReceiverStream<Result<SchedulerMessage, Status>>;
    type FetchModelStream = ReceiverStream<Result<FileChunk, Status>>;

    async fn serve(
        &self,
        request: Request<Streaming<RouterMessage>>,
    ) -> Result<Response<Self::ServeStream>, Status> {
        let (outbound, messages) = mpsc::channel(16);
        tokio::spawn(drive(request.into_inner(), outbound, self.done.clone()));
        Ok(Response::new(ReceiverStream::new(messages)))
    }

    async fn fetch_model(
        &self,
        _: Request<FetchModelRequest>,
    ) -> Result<Response<Self::FetchModelStream>, Status> {
        Err(Status::unimplemented("the model is built in"))
    }
}

/// Collects the submissions, then sends the steps.
async fn drive(
    mut inbound: Streaming<RouterMessage>,
    outbound: mpsc::Sender<Result<SchedulerMessage, Status>>,
    done: Arc<Mutex<mpsc::Receiver<()>>>,
) {
    let send = async |message| outbound.send(Ok(SchedulerMessage { message: Some(message) })).await.unwrap();
    send(Down::Hello(SchedulerHello { protocol: 1, scheduler_id: "s".into() })).await;
    let card: ModelCard = fixture::card();
    send(Down::Models(Models { cards: vec![card] })).await;
    let mut requests = Vec::new();
    while requests.len() < STREAMS {
        if let Some(Up::Submit(submit)) = inbound.message().await.unwrap().unwrap().message {
            requests.push(submit.request);
        }
    }
    let mut done = done.lock().await;
    for step in 0..STEPS {
        let finish = if step + 1 == STEPS { FinishReason::Length } else { FinishReason::Unspecified };
        let output = |request: &u64| SequenceOutput {
            request: *request,
            tokens: vec![words(step)],
            finish: finish.into(),
            ..SequenceOutput::default()
        };
        send(Down::Output(StepOutput { sequences: requests.iter().map(output).collect() })).await;
        done.recv().await;
    }
}
