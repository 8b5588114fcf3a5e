//! What the scheduler's decisions cost: a step of a planner with 256 running sequences, and a placement over 1,000
//! workers. Prints medians and 99th percentiles in microseconds, and fails where a median is above its bound.
//!
//! ```sh
//! cargo run --release -p volley-scheduler --example planning
//! ```

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use volley_proto::v1::{self, Kind};
use volley_scheduler::core::{
    blocks::Change,
    placement::{Action, Facts, Placement},
    planner::{Limits, Planner},
    sequence::{Sequence, Spec},
    types::{LinkId, SequenceKey, TokenId, WorkerId},
};

const RUNNING: u64 = 256;
const WORKERS: u64 = 1000;
const BLOCK: usize = 16;
/// Bounds on the medians: a worker's step takes milliseconds, and a request comes every so often.
const STEP: Duration = Duration::from_micros(100);
const PLACE: Duration = Duration::from_micros(50);

fn main() {
    let mut failed = false;
    let mut say = |what: &str, mut times: Vec<Duration>, bound: Option<Duration>| {
        times.sort_unstable();
        let (median, late) = (times[times.len() / 2], times[times.len() * 99 / 100]);
        let micros = |time: Duration| time.as_secs_f64() * 1e6;
        println!("{what:58} p50 {:7.1} µs   p99 {:7.1} µs", micros(median), micros(late));
        failed |= bound.is_some_and(|bound| median > bound);
    };
    say("a step of 256 decoding sequences", steps(true, 0), Some(STEP));
    say("the same without a prefix cache", steps(false, 0), Some(STEP));
    say("the same with 256 more that wait", steps(true, RUNNING), Some(STEP));
    say("a placement, 2k-token prompt that nobody has", places(2048, 0), Some(PLACE));
    say("2k tokens, of which all workers have 1k and 100 have all", places(2048, 1024), Some(PLACE));
    say("8k tokens, of which all workers have 1k and 100 have all", places(8192, 1024), Some(PLACE));
    say("its hashes, 8k tokens (once a request, any thread)", hashes(8192), None);
    std::process::exit(i32::from(failed));
}

fn sequence(n: u64, tokens: Vec<TokenId>, max_tokens: usize) -> Sequence {
    let key = SequenceKey { link: LinkId(1), request: n, attempt: 0, choice: 0 };
    let spec = Spec { kind: Kind::Generate, model_hash: "m".repeat(64), max_tokens, ..Spec::default() };
    let prompt = tokens.len();
    Sequence::new(key, n, Arc::new(spec), tokens, prompt)
}

/// A prompt whose first `common` tokens are everybody's.
fn prompt(n: u64, common: usize, tokens: usize) -> Vec<TokenId> {
    (0..tokens).map(|at| TokenId(at as u32 + if at < common { 0 } else { n as u32 * 1000 })).collect()
}

/// Times to take in a step's result and to plan the next, while everybody decodes.
fn steps(prefix_cache: bool, waiting: u64) -> Vec<Duration> {
    let limits = Limits {
        slots: RUNNING as u32,
        batch_tokens: 2048,
        block_tokens: BLOCK,
        blocks: vec![1 << 16],
        context: 8192,
        depth: 2,
        prefix_cache,
        drafts: 8,
        always_guess: false,
        max_waiting: 1 << 20,
        max_waiting_tokens: 1 << 30,
    };
    let mut planner = Planner::new(limits);
    let mut out = Vec::new();
    for n in 0..RUNNING + waiting {
        planner.submit(vec![sequence(n, prompt(n, 512, 600), 4000)], &mut out);
    }
    let (mut times, mut decodes) = (Vec::new(), 0);
    let mut results = Vec::new();
    // Known tokens that have run, by slot: a run that reaches their end draws one more.
    let mut left: HashMap<u32, usize> = HashMap::new();
    while times.len() < 2000 {
        let began = Instant::now();
        let steady = decodes > 2;
        if let Some(result) = (!results.is_empty()).then(|| results.remove(0)) {
            planner.complete(result, &mut out).expect("in step");
        }
        let plan = planner.plan();
        let changes = planner.cache_changes();
        let took = began.elapsed();
        if steady {
            times.push(took);
        }
        drop((std::mem::take(&mut out), changes));
        let Some(plan) = plan else { continue };
        let runs = plan.run.len();
        decodes = if runs == RUNNING as usize && plan.admit.is_empty() { decodes + 1 } else { 0 };
        results.push(answer(plan, &mut left));
    }
    times
}

fn answer(plan: v1::StepPlan, left: &mut HashMap<u32, usize>) -> v1::StepResult {
    for new in plan.admit {
        left.insert(new.slot, new.tokens.len() - new.computed as usize);
    }
    let mut result = v1::StepResult { step_id: plan.step_id, ..Default::default() };
    for run in plan.run {
        let left = left.entry(run.slot).or_default();
        *left -= run.tokens as usize;
        let tokens = if *left == 0 { vec![7] } else { vec![] };
        *left += tokens.len();
        result.slots.push(v1::SlotResult { slot: run.slot, tokens, ..Default::default() });
    }
    result
}

/// Times to place a request whose hashes are known. All workers have the beginning that all prompts share, and
/// each has all of one in ten.
fn places(tokens: usize, common: usize) -> Vec<Duration> {
    let mut placement = Placement::default();
    for id in 0..WORKERS {
        let facts = Facts {
            model_hash: "m".repeat(64),
            numerics_class: "h100".into(),
            kv_tokens: 1 << 20,
            block_tokens: BLOCK,
            context: 1 << 17,
        };
        placement.worker_joined(WorkerId(id), facts, &mut Vec::new());
        let added = |blocks: &[_]| blocks.iter().map(|hash| Change::Added(*hash)).collect::<Vec<_>>();
        let mut whole = sequence(0, prompt(id % 10, common, tokens), 1);
        let hashes = whole.hashes(BLOCK);
        let blocks = if common > 0 { hashes.len() } else { common / BLOCK };
        placement.cache_changed(WorkerId(id), &added(&hashes[..blocks]));
    }
    let mut times = Vec::new();
    for n in 0..2000 {
        let mut request = sequence(n, prompt(n % 10, common, tokens), 256);
        request.hashes(BLOCK);
        let key = request.key;
        let mut actions: Vec<Action> = Vec::new();
        let began = Instant::now();
        placement.submit(vec![request], &mut actions);
        times.push(began.elapsed());
        if n % 4 > 0 {
            placement.ended(&key);
        }
    }
    times
}

fn hashes(tokens: usize) -> Vec<Duration> {
    let run = |n| {
        let mut sequence = sequence(n, prompt(n, 0, tokens), 1);
        let began = Instant::now();
        std::hint::black_box(sequence.hashes(BLOCK));
        began.elapsed()
    };
    (0..500).map(run).collect()
}
