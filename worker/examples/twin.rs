//! A worker of a cluster whose GPU is the twin: the CUDA backend and its kernels, run on the CPU. The end-to-end tests
//! start it (`tests/e2e/test_twin.py`).
//!
//! `twin --etcd URL --model FOLDER [--deterministic true] [--step-limit SECONDS] [--schedule 0…7] [--max-sequences N]
//! [--paper true]`; at SIGUSR1 its device hangs, at SIGUSR2 it breaks down. On paper it runs no kernel, and what it says
//! is nonsense: that is to measure the host (`tests/bench/host`).

#![allow(missing_docs, clippy::unwrap_used)]

use std::{collections::HashMap, process::ExitCode, sync::Arc, time::Duration};

use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
};
use tokio_util::sync::CancellationToken;
use volley_kernels::cuda::{CudaBackend, CudaOptions};
use volley_membership::{DEFAULT_PREFIX, Etcd, Member, Membership, Role};
use volley_proto::transport::Transport;
use volley_twin::{Schedule, Twin};
use volley_worker::{Config, Worker};

#[tokio::main]
async fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let mut options = HashMap::new();
    while let (Some(name), Some(value)) = (arguments.next(), arguments.next()) {
        options.insert(name, value);
    }
    let number = |name: &str| options.get(name).map(|text| text.parse::<u64>().unwrap());

    let twin = Twin::new(Schedule::ALL[number("--schedule").unwrap_or(0) as usize]);
    let twin = Arc::new(if options.contains_key("--paper") { twin.on_paper() } else { twin });
    let max_sequences = number("--max-sequences").unwrap_or(16) as u32;
    let deterministic = options.contains_key("--deterministic");
    let gpu =
        CudaBackend::new(twin.clone(), CudaOptions { deterministic, staging: 1 << 14, ..Default::default() });
    let id = format!("twin-{}", std::process::id());
    let config = Config {
        id: id.clone(),
        deterministic,
        step_limit: number("--step-limit").map(Duration::from_secs),
        max_batch_tokens: Some(4 * max_sequences),
        max_sequences: Some(max_sequences),
        ..Config::new(&options["--model"], "twin")
    };
    let worker = Worker::load_on_gpu(gpu, config, |_, _| ()).unwrap();

    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let shutdown = CancellationToken::new();
    let serving = tokio::spawn(worker.serve(Transport::listen_tcp(listener), shutdown.clone()));
    let etcd = Etcd::connect(&[options["--etcd"].clone()], DEFAULT_PREFIX).await.unwrap();
    let member = Member { id, address, model: "twin".to_owned() };
    let registration = etcd.register(Role::Worker, member).await.unwrap();

    let [mut end, mut hang, mut fail] =
        [SignalKind::terminate(), SignalKind::user_defined1(), SignalKind::user_defined2()]
            .map(|kind| signal(kind).unwrap());
    tokio::pin!(serving);
    loop {
        tokio::select! {
            served = &mut serving => {
                if let Err(error) = served.unwrap() {
                    eprintln!("error: {error}");
                    volley_worker::end_process(1);
                }
                return ExitCode::SUCCESS;
            }
            _ = hang.recv() => twin.hang(),
            _ = fail.recv() => twin.break_down(),
            _ = end.recv() => break,
        }
    }
    shutdown.cancel();
    registration.revoke().await;
    serving.await.unwrap().unwrap();
    ExitCode::SUCCESS
}
