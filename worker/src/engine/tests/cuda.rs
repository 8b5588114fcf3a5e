//! The step thread over the CUDA backend, on the twin of a GPU.

use std::{sync::Arc, time::Duration};

use tokio_util::sync::CancellationToken;
use volley_kernels::{
    DType,
    cpu::{CpuBackend, CpuOptions},
    cuda::CudaOptions,
};
use volley_proto::v1::{
    BlockAppend, Kind, NewSequence, Sampling, ScoreRange, SlotRun, StepPlan, result_message::Message,
};
use volley_twin::{Schedule, Twin};

use super::{
    driver::{Driver, Received, Request, first_step, next},
    exactness::{alone, continues_from_a_copy, request},
    guided,
};
use crate::{Activations, Error, config::Pooling, engine::Epoch, model::Model, testing};

fn model() -> Model {
    testing::made_up([DType::Q4_0, DType::Q8_0, DType::BF16])
}

fn driver(twin: impl Into<Arc<Twin>>, deterministic: bool, pooling: Option<Pooling>) -> Driver {
    Driver::over((testing::cuda(twin, deterministic), &model()), None, 10, 96, pooling)
}

/// A twin, and a step thread over it that need not be deterministic.
fn fast() -> (Arc<Twin>, Driver) {
    let twin = Arc::new(Twin::new(Schedule::ALL[0]));
    (twin.clone(), driver(twin, false, None))
}

/// Claims a step thread for the first time.
fn claimed(gpu: &Driver) -> (Epoch, Received, CancellationToken) {
    let epoch = Epoch { claim: 1, connection: 1 };
    let (mut received, ended) = gpu.claim(epoch);
    next(&mut received).unwrap();
    (epoch, received, ended)
}

#[test]
fn deterministic_sequences_together_give_what_each_gives_alone_and_after_a_move() {
    let mut gpu = driver(Twin::new(Schedule::ALL[4]), true, None);
    // Scores, penalties, bias, filters, mirostat, bans, log-probabilities; and grammars.
    let requests: Vec<Request> = (0..12)
        .map(request)
        .chain((0..3).map(guided::numbers))
        .map(|request| Request { generate: request.generate.min(14), ..request })
        .collect();
    let together = gpu.run(&requests);
    for (request, together) in requests.iter().zip(&together) {
        assert_eq!(&alone(&mut gpu, request), together);
        assert_eq!(together.tokens.len(), request.generate);
        let half = request.generate / 2;
        if half > 0 && request.sequence.score.is_none() {
            let mut moved = request.clone();
            moved.sequence.tokens.extend(&together.tokens[..half]);
            moved.sequence.mirostat = together.mirostat.get(half - 1).copied();
            moved.generate -= half;
            assert_eq!(alone(&mut gpu, &moved).tokens, together.tokens[half..]);
        }
    }
    gpu.stop();
}

#[test]
fn graphs_and_steps_begun_ahead_change_no_byte() {
    // The second has layers of two windows.
    let gemma = testing::families().into_iter().find(|(name, _)| *name == "tiny-gemma3").unwrap().1;
    let mut models = [model(), gemma];
    models.iter_mut().for_each(|model| model.description.context = 512);
    let short = |request: Request| Request { generate: request.generate.min(16), ..request };
    let mut requests: Vec<Request> = (0..16).map(request).map(short).collect();
    for long in &mut requests[12..14] {
        // Attention over it is cut into parts.
        long.sequence.tokens = (0..400).map(|i| i * 7 % 288).collect();
        long.sequence.prompt_tokens = 400;
        (long.generate, long.chunk, long.arrival) = (16, 90, 0);
    }
    let cases = [(0, 2, 90, true), (0, 6, 80, false), (0, 5, 90, false), (1, 3, 90, false)];
    for (model, schedule, arch, deterministic) in cases {
        let model = &models[model];
        let outputs = |twin: Twin, graphs: bool, patient: bool| {
            let twin = Arc::new(twin);
            let options = CudaOptions { deterministic, graphs, ..CudaOptions::default() };
            let backend = testing::cuda_with(twin.clone(), options);
            let mut gpu = Driver::over((backend, model), None, 10, 96, None);
            gpu.patient = patient;
            let outputs = gpu.run(&requests);
            gpu.stop();
            (outputs, twin.graphs())
        };
        let twin = || Twin::with_arch(Schedule::ALL[schedule], arch);
        let (plain, none) = outputs(twin(), false, true);
        let (ahead, graphs) = outputs(twin(), true, false);
        assert!(none == 0 && graphs > 20, "{graphs} graphs");
        assert_eq!(plain, ahead);
        // One that can't be made is no harm.
        assert_eq!((plain, 0), outputs(twin().without_graphs(), true, false));
    }
}

#[test]
fn a_step_begins_before_the_one_before_it_ends() {
    let (twin, gpu) = fast();
    let (epoch, mut received, _ended) = claimed(&gpu);
    twin.hang();
    gpu.send(epoch, first_step());
    let run = vec![SlotRun { slot: 0, tokens: 1, drafts: 0 }];
    gpu.send(epoch, StepPlan { step_id: 2, run, ..Default::default() });
    assert!(twin.has_started("sample", 2), "all of the second step was started while the first hung");
    twin.go_on();
    for step in 1..=2 {
        let Ok(Message::Result(result)) = next(&mut received) else { panic!("no result") };
        assert_eq!((result.step_id, result.slots.len()), (step, 1));
    }
    gpu.stop();
}

/// Sends two plans of a hung GPU, then lets it go on; the tokens that each slot result of both has.
fn begun_ahead(gpu: &Driver, twin: &Twin, plans: [StepPlan; 2], rest: Vec<StepPlan>) -> Vec<Vec<Vec<u32>>> {
    let (epoch, mut received, _ended) = claimed(gpu);
    twin.hang();
    plans.into_iter().for_each(|plan| gpu.send(epoch, plan));
    assert!(twin.has_started("embed", 1));
    twin.go_on();
    let mut results = || {
        let Ok(Message::Result(result)) = next(&mut received) else { panic!("no result") };
        result.slots.into_iter().map(|slot| slot.tokens).collect::<Vec<_>>()
    };
    let mut tokens = vec![results(), results()];
    for plan in rest {
        gpu.send(epoch, plan);
        tokens.push(results());
    }
    tokens
}

fn run(slot: u32, tokens: u32, drafts: u32) -> SlotRun {
    SlotRun { slot, tokens, drafts }
}

fn admission(slot: u32, tokens: &[u32]) -> NewSequence {
    let prompt_tokens = tokens.len() as u32;
    NewSequence { slot, tokens: tokens.to_vec(), prompt_tokens, ..first_step().admit.remove(0) }
}

/// What a GPU draws after these tokens, greedily and alone.
fn continued(tokens: &[u32], generate: usize) -> Vec<u32> {
    let sequence = admission(0, tokens);
    let mut gpu = driver(Twin::new(Schedule::ALL[0]), true, None);
    let request = Request { sequence, generate, chunk: usize::MAX, arrival: 0, drafts: 0 };
    let output = alone(&mut gpu, &request);
    gpu.stop();
    output.tokens
}

#[test]
fn a_token_that_comes_after_its_slot_is_another_s_changes_nothing_there() {
    let twin = Arc::new(Twin::new(Schedule::ALL[0]));
    let gpu = driver(twin.clone(), true, None);
    let prompt = [9, 8, 7, 6, 5];
    let next_owner = StepPlan {
        step_id: 2,
        release: vec![0],
        admit: vec![admission(0, &prompt)],
        append: vec![BlockAppend { slot: 0, group: 0, blocks: vec![1] }],
        run: vec![run(0, 2, 0)],
        ..Default::default()
    };
    let its_end = StepPlan { step_id: 3, run: vec![run(0, 3, 0)], ..Default::default() };
    let results = begun_ahead(&gpu, &twin, [first_step(), next_owner], vec![its_end]);
    assert_eq!(results, [[continued(&[1, 2, 3], 1)], [vec![]], [continued(&prompt, 1)]]);
    gpu.stop();
}

#[test]
fn a_copied_block_is_continued_while_its_original_is_under_way() {
    for schedule in Schedule::ALL {
        continues_from_a_copy(driver(Twin::new(schedule), true, None));
    }
}

#[test]
fn a_step_waits_for_what_was_right_of_guesses() {
    let twin = Arc::new(Twin::new(Schedule::ALL[0]));
    let gpu = driver(twin.clone(), true, None);
    let (repeating, other) = ([1, 2, 3, 4, 1, 2, 3, 4, 1, 2, 3], [7, 7]);
    let append = |slot, block| BlockAppend { slot, group: 0, blocks: vec![block] };
    let guessing = StepPlan {
        step_id: 1,
        admit: vec![admission(0, &repeating), admission(1, &other)],
        append: vec![append(0, 0), append(1, 1)],
        run: vec![run(0, 11, 3), run(1, 2, 0)],
        ..Default::default()
    };
    let beside = StepPlan { step_id: 2, run: vec![run(1, 1, 0)], ..Default::default() };
    let after = StepPlan { step_id: 3, run: vec![run(0, 1, 0)], ..Default::default() };
    let results = begun_ahead(&gpu, &twin, [guessing, beside], vec![after]);
    let (guessed, other) = (&results[0][0], [&results[0][1][..], &results[1][0]].concat());
    assert_eq!([&guessed[..], &results[2][0]].concat(), continued(&repeating, guessed.len() + 1));
    assert_eq!(other, continued(&[7, 7], 2));
    gpu.stop();
}

#[test]
fn every_family_s_sequences_together_give_what_each_gives_alone() {
    for (family, model) in testing::families() {
        let backend = testing::cuda(Twin::with_arch(Schedule::ALL[4], 80), true);
        let mut gpu = Driver::over((backend, &model), None, 5, 96, None);
        let requests: Vec<Request> =
            (0..5).map(request).map(|request| Request { generate: 6, ..request }).collect();
        let together = gpu.run(&requests);
        for (request, together) in requests.iter().zip(&together) {
            assert_eq!(&alone(&mut gpu, request), together, "{family}");
        }
        gpu.stop();
    }
}

#[test]
fn deterministic_streams_with_guesses_are_those_without() {
    let (twin, model) = (Arc::new(Twin::new(Schedule::ALL[4])), model());
    let gpu = || (testing::cuda(twin.clone(), true), &model);
    let mut gpu = Driver::over(gpu(), Some(gpu()), 10, 96, None);
    let requests: Vec<Request> =
        (0..5).map(|number| Request { generate: 12, drafts: 4, ..request(number) }).collect();
    let whole: Vec<_> = requests.iter().map(|request| alone(&mut gpu, request)).collect();
    let guessed = gpu.run(&requests);
    assert_eq!(guessed, whole);
    let right: u32 = guessed.iter().map(|output| output.drafted.1).sum();
    assert!(right > 20, "the model is its own draft model: {right}");
    gpu.stop();
}

#[test]
fn every_token_of_a_fast_greedy_stream_is_the_cpu_s_best_or_as_good() {
    let sampling = Sampling { logprobs: Some(1), ..Default::default() };
    let sequence = NewSequence { sampling: Some(sampling), score: None, ..request(4).sequence };
    let mut gpu = driver(Twin::new(Schedule::ALL[3]), false, None);
    let generating = Request { sequence, generate: 24, ..request(4) };
    let beside = (20..24).map(request);
    let generated = gpu.run(&[generating.clone()].into_iter().chain(beside).collect::<Vec<_>>()).remove(0);
    gpu.stop();

    let options = CpuOptions { threads: 1, activations: Activations::F32, isa: None };
    let mut cpu = Driver::over((CpuBackend::new(options).unwrap(), &model()), None, 1, 96, None);
    let from = generating.sequence.tokens.len() as u32;
    let mut scoring = generating;
    scoring.sequence.tokens.extend(&generated.tokens);
    scoring.sequence.prompt_tokens = scoring.sequence.tokens.len() as u32;
    scoring.sequence.kind = Kind::Score.into();
    scoring.sequence.score = Some(ScoreRange { from, alternatives: 6 });
    scoring.generate = 0;
    let scored = cpu.run(&[scoring]).remove(0).scored;
    assert_eq!((scored.len(), generated.logprobs.len()), (24, 24));
    for (scored, generated) in scored.iter().zip(&generated.logprobs) {
        // Banned tokens may stand above it.
        let allowed =
            scored.top_tokens.iter().zip(&scored.top_logprobs).find(|(token, _)| ![2, 3].contains(*token));
        let best = allowed.unwrap().1;
        assert!(scored.logprob >= best - 0.1, "{scored:?}");
        assert!((scored.logprob - generated.logprob).abs() < 0.1, "{scored:?} was {generated:?}");
    }
    cpu.stop();
}

#[test]
fn embeddings_of_a_deterministic_gpu_depend_on_their_prompt_alone() {
    let mut gpu = driver(Twin::new(Schedule::ALL[2]), true, Some(Pooling::Mean));
    let requests: Vec<Request> = (0..4)
        .map(|number| {
            let mut request = request(number + 5);
            (request.generate, request.sequence.kind) = (0, Kind::Embed.into());
            (request.sequence.score, request.sequence.sampling) = (None, None);
            request
        })
        .collect();
    let together = gpu.run(&requests);
    for (request, together) in requests.iter().zip(&together) {
        assert_eq!(alone(&mut gpu, request).embedding, together.embedding);
        assert!(together.embedding.len() == 64 && together.embedding.iter().any(|x| *x != 0.0));
    }
    gpu.stop();
}

#[test]
fn a_device_that_fails_ends_the_step_thread_with_its_error_and_the_connection() {
    let (twin, gpu) = fast();
    let (epoch, mut received, _ended) = claimed(&gpu);
    gpu.send(epoch, first_step());
    next(&mut received).unwrap();
    twin.break_down();
    let run = vec![SlotRun { slot: 0, tokens: 1, drafts: 0 }];
    gpu.send(epoch, StepPlan { step_id: 2, run, ..Default::default() });
    assert!(received.blocking_recv().is_none(), "no result, and no more connection");
    let error = gpu.end().unwrap_err();
    assert!(matches!(error, Error::Kernel(_)) && error.to_string() == "the twin has broken down", "{error}");
}

#[test]
fn a_step_whose_kernel_hangs_is_noticed() {
    let (twin, gpu) = fast();
    let (epoch, _received, _ended) = claimed(&gpu);
    twin.hang();
    gpu.send(epoch, first_step());
    let clock = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    let hung = clock.unwrap().block_on(gpu.watch.hung(Duration::from_secs(30)));
    assert_eq!((hung.epoch, hung.step_id, hung.rows, hung.sequences), (epoch, 1, 3, 1));
}
