//! A scheduler for tests: runs sequences through a step thread.

use std::{collections::HashMap, thread::JoinHandle};

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tonic::Status;
use volley_kernels::{
    BLOCK_TOKENS, Backend,
    cpu::{CpuBackend, CpuOptions},
};
use volley_proto::v1::{
    BlockAppend, Kind, Logprobs, NewSequence, ResultMessage, SlotRun, StepPlan, WorkerHello,
    result_message::Message,
};

use crate::{
    Activations, Error,
    config::Pooling,
    decoder::Capacity,
    engine::{DraftModel, Engine, Epoch, Guides, Job, Jobs, Limits, WAITING_RESULTS, Watch},
    model::Model,
    testing,
    worker::compiler,
};

pub(super) type Received = mpsc::Receiver<Result<ResultMessage, Status>>;

/// A step thread over a tiny model.
pub(super) struct Driver {
    pub(super) jobs: mpsc::Sender<Job>,
    thread: JoinHandle<Result<(), Error>>,
    connections: u64,
    limits: Limits,
    pub(super) watch: Watch,
    /// Reads each result before it sends the next plan.
    pub(super) patient: bool,
}

/// A sequence to run, and how.
#[derive(Clone)]
pub(super) struct Request {
    pub(super) sequence: NewSequence,
    /// Tokens to generate.
    pub(super) generate: usize,
    /// Rows of a prompt in one step at most.
    pub(super) chunk: usize,
    /// The step in which it arrives.
    pub(super) arrival: usize,
    /// How many tokens may be guessed in a step.
    pub(super) drafts: usize,
}

/// What came back of a sequence.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Output {
    pub(super) tokens: Vec<u32>,
    pub(super) logprobs: Vec<Logprobs>,
    /// The sampler's state after each token, where it has one.
    pub(super) mirostat: Vec<f32>,
    pub(super) scored: Vec<Logprobs>,
    pub(super) embedding: Vec<f32>,
    /// Guesses, and those that were right. Not part of what is equal.
    pub(super) drafted: Count,
}

/// How often something happened, which makes no two outputs unequal.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Count(pub(super) u32, pub(super) u32);

impl PartialEq for Count {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

/// A request in its slot.
struct Live {
    request: usize,
    slot: u32,
    blocks: Vec<u32>,
    /// Tokens that plans have run.
    planned: usize,
}

// === impl Driver ===

impl Driver {
    pub(super) fn start(model: &str, sequences: usize, rows: usize) -> Self {
        Self::with(model, sequences, rows, None, None)
    }

    /// With a draft model.
    pub(super) fn drafting(model: &str, draft: &str, sequences: usize, rows: usize) -> Self {
        Self::with(model, sequences, rows, None, Some(draft))
    }

    pub(super) fn embedding(model: &str, sequences: usize, rows: usize, pooling: Option<Pooling>) -> Self {
        Self::with(model, sequences, rows, pooling, None)
    }

    fn with(
        model: &str,
        sequences: usize,
        rows: usize,
        pooling: Option<Pooling>,
        draft: Option<&str>,
    ) -> Self {
        let model = testing::fixture(model).model;
        let draft = draft.map(|draft| testing::fixture(draft).model);
        let backend =
            || CpuBackend::new(CpuOptions { threads: 2, activations: Activations::Int8, isa: None }).unwrap();
        let draft = draft.as_ref().map(|draft| (backend(), draft));
        Self::over((backend(), &model), draft, sequences, rows, pooling)
    }

    pub(super) fn over<B: Backend>(
        (backend, model): (B, &Model),
        draft: Option<(B, &Model)>,
        sequences: usize,
        rows: usize,
        pooling: Option<Pooling>,
    ) -> Self {
        Self::of((vec![backend], model), draft, sequences, rows, pooling)
    }

    /// Over the devices of all ranks.
    pub(super) fn of<B: Backend>(
        (ranks, model): (Vec<B>, &Model),
        draft: Option<(B, &Model)>,
        sequences: usize,
        rows: usize,
        pooling: Option<Pooling>,
    ) -> Self {
        let (context, vocab) = (model.description.context, model.description.vocab);
        let limits = Limits { sequences, rows, blocks: sequences * 12, context, vocab, pooling };
        let (capacity, blocks) = (Capacity { rows, sequences }, limits.blocks);
        let draft = draft.map(|(backend, draft)| {
            DraftModel::new(testing::decoder(backend, draft, capacity, blocks), rows, blocks)
        });
        let decoder = testing::group(ranks, model, capacity, blocks);
        let guides = Guides::start(compiler(&model.text, vocab)).unwrap();
        let (jobs, waiting) = Jobs::queue();
        let watch = Watch::default();
        let engine = Engine::new(decoder, draft, limits, guides).watched(watch.clone());
        let thread = std::thread::spawn(move || engine.run(waiting));
        Self { jobs, thread, connections: 0, limits, watch, patient: false }
    }

    /// Ends the step thread.
    pub(super) fn stop(self) {
        self.end().unwrap();
    }

    /// What the step thread says at its end.
    pub(super) fn end(self) -> Result<(), Error> {
        drop(self.jobs);
        self.thread.join().unwrap()
    }

    /// Claims the thread with an epoch.
    pub(super) fn claim(&self, epoch: Epoch) -> (Received, CancellationToken) {
        let (results, received) = mpsc::channel(WAITING_RESULTS);
        let ended = CancellationToken::new();
        let alive = ended.clone().drop_guard();
        let hello = Box::new(WorkerHello { worker_id: "test".into(), ..Default::default() });
        self.jobs.blocking_send(Job::Claim { epoch, hello, results, alive }).unwrap();
        (received, ended)
    }

    pub(super) fn send(&self, epoch: Epoch, plan: StepPlan) {
        self.jobs.blocking_send(Job::Step { epoch, plan: Box::new(plan) }).unwrap();
    }

    /// Runs all requests to their end, sending each plan before the last one's result is read.
    pub(super) fn run(&mut self, requests: &[Request]) -> Vec<Output> {
        self.connections += 1;
        let epoch = Epoch { claim: 1, connection: self.connections };
        let (mut received, _ended) = self.claim(epoch);
        assert!(matches!(next(&mut received), Ok(Message::Hello(_))));

        let mut outputs = vec![Output::default(); requests.len()];
        let (mut live, mut in_flight) = (Vec::<Live>::new(), HashMap::new());
        let mut free: Vec<u32> = (0..self.limits.blocks as u32).collect();
        let mut waiting: Vec<usize> = (0..requests.len()).rev().collect();
        let mut step_id = 0;
        // Whether a guided draw is deferred, and what of a guess was right, must be known before the next plan is
        // written.
        let unsure = |request: &Request| request.sequence.grammar.is_some() || request.drafts > 0;
        let patient = self.patient || requests.iter().any(unsure);
        while !(live.is_empty() && waiting.is_empty() && in_flight.is_empty()) {
            let plan = self.plan(requests, step_id, &mut live, &mut waiting, &mut free);
            in_flight.insert(step_id, live.iter().map(|live| (live.slot, live.request)).collect::<Vec<_>>());
            self.send(epoch, plan);
            step_id += 1;
            // One step stays in flight until nothing is left to run.
            while in_flight.len() > usize::from(!live.is_empty() && !patient) {
                let Ok(Message::Result(result)) = next(&mut received) else { panic!("no result") };
                let owners: HashMap<_, _> = in_flight.remove(&result.step_id).unwrap().into_iter().collect();
                for slot in result.slots {
                    assert_eq!(slot.failure, None);
                    let request = owners[&slot.slot];
                    if slot.deferred {
                        live.iter_mut()
                            .filter(|live| live.request == request)
                            .for_each(|live| live.planned -= 1);
                    }
                    let output = &mut outputs[request];
                    if let Some(drafted) = slot.drafted {
                        assert_eq!(slot.tokens.len() as u32, 1 + drafted.accepted);
                        output.drafted.0 += drafted.tokens;
                        output.drafted.1 += drafted.accepted;
                        live.iter_mut()
                            .filter(|live| live.request == request)
                            .for_each(|live| live.planned += drafted.accepted as usize);
                    }
                    output.tokens.extend(slot.tokens);
                    output.logprobs.extend(slot.logprobs);
                    output.mirostat.extend(slot.mirostat);
                    output.scored.extend(slot.scored);
                    output.embedding.extend(slot.embedding);
                }
            }
        }
        outputs
    }

    fn plan(
        &self,
        requests: &[Request],
        step_id: u64,
        live: &mut Vec<Live>,
        waiting: &mut Vec<usize>,
        free: &mut Vec<u32>,
    ) -> StepPlan {
        let mut plan = StepPlan { step_id, ..Default::default() };
        // Of a generating sequence, the last token that it draws is never run.
        let end = |request: &Request| request.sequence.tokens.len() + request.generate.max(1) - 1;
        live.retain(|sequence| {
            let ended = sequence.planned == end(&requests[sequence.request]);
            if ended {
                plan.release.push(sequence.slot);
                free.extend(&sequence.blocks);
            }
            !ended
        });
        while let Some(&request) = waiting.last()
            && requests[request].arrival <= step_id as usize
            && live.len() < self.limits.sequences
        {
            waiting.pop();
            let taken = |slot: &u32| live.iter().any(|live| live.slot == *slot);
            let slot = (0..).find(|slot| !taken(slot)).unwrap();
            plan.admit.push(NewSequence { slot, ..requests[request].sequence.clone() });
            live.push(Live { request, slot, blocks: vec![], planned: 0 });
        }
        let mut rows = self.limits.rows;
        for sequence in live.iter_mut() {
            let request = &requests[sequence.request];
            let prompt = request.sequence.tokens.len();
            let left = if sequence.planned < prompt { prompt - sequence.planned } else { 1 };
            let tokens = left.min(request.chunk).min(rows);
            if tokens == 0 {
                continue;
            }
            sequence.planned += tokens;
            let drafts = match sequence.planned >= prompt && request.generate > 0 {
                true => request.drafts.min(rows - tokens).min(end(request) - sequence.planned),
                false => 0,
            };
            rows -= tokens + drafts;
            let need = (sequence.planned + drafts).div_ceil(BLOCK_TOKENS);
            let need = need.saturating_sub(sequence.blocks.len());
            let blocks = free.split_off(free.len() - need);
            sequence.blocks.extend(&blocks);
            plan.append.push(BlockAppend { slot: sequence.slot, group: 0, blocks });
            let (tokens, drafts) = (tokens as u32, drafts as u32);
            plan.run.push(SlotRun { slot: sequence.slot, tokens, drafts });
        }
        plan
    }
}

/// The next message.
pub(super) fn next(received: &mut Received) -> Result<Message, Status> {
    received.blocking_recv().expect("the connection has ended").map(|message| message.message.unwrap())
}

/// A sequence of three tokens, and its first step.
pub(super) fn first_step() -> StepPlan {
    StepPlan {
        step_id: 1,
        admit: vec![NewSequence {
            kind: Kind::Generate.into(),
            tokens: vec![1, 2, 3],
            prompt_tokens: 3,
            ..Default::default()
        }],
        append: vec![BlockAppend { slot: 0, group: 0, blocks: vec![0] }],
        run: vec![SlotRun { slot: 0, tokens: 3, drafts: 0 }],
        ..Default::default()
    }
}
