//! Every operation against its reference on the CPU twin: each case under every order of threads and both ways of
//! completing asynchronous work, which must all give the same bits; and shapes of any size, each under one of them.
//!
//! `PROPTEST_RNG_SEED=7 PROPTEST_CASES=500 cargo test …` tries other shapes, and more.

#![allow(clippy::unwrap_used)] // in what the tests share

use std::{collections::BTreeSet, sync::Arc};

use proptest::{
    prelude::{ProptestConfig, TestCaseError, any},
    sample::select,
    test_runner::{RngSeed, TestRunner},
};
use volley_kernel_check::{Case, Random, Size, operations};
use volley_kernels::cuda::Device;
use volley_twin::{Schedule, Twin};

const SEED: u64 = 1;

macro_rules! each_holds {
    ($($name:ident),* $(,)?) => {
        $(mod $name {
            #[test]
            fn holds() {
                super::holds(stringify!($name));
            }

            #[test]
            fn holds_for_any_shape() {
                super::holds_for_any_shape(stringify!($name));
            }
        })*

        #[test]
        fn every_operation_has_its_test() {
            let named = BTreeSet::from([$(stringify!($name)),*]);
            assert_eq!(named, operations().iter().map(|operation| operation.name).collect());
        }
    };
}

each_holds!(
    activate,
    attention,
    attention_sm90,
    copy_blocks,
    dequantize,
    embed,
    gemm,
    gemm_packed,
    layer_norm,
    logits_edit,
    logprobs,
    qkv_store,
    rms_norm,
    sample,
    skinny,
    wrappers,
);

#[test]
fn every_kernel_belongs_to_an_operation() {
    let claimed: BTreeSet<_> = operations().iter().flat_map(|operation| operation.kernels).copied().collect();
    let linked = Twin::kernels().into_iter().filter(|name| !name.starts_with("bug_")).collect();
    assert_eq!(claimed, linked);
}

/// Shapes, of which proptest finds the simplest that fails.
fn holds_for_any_shape(name: &str) {
    let operation = operations().into_iter().find(|operation| operation.name == name).unwrap();
    let config = ProptestConfig::default();
    let given = |variable: &str| std::env::var_os(variable).is_some();
    let config = ProptestConfig {
        cases: if given("PROPTEST_CASES") { config.cases } else { 24 },
        rng_seed: if given("PROPTEST_RNG_SEED") { config.rng_seed } else { RngSeed::Fixed(SEED) },
        failure_persistence: None, // the shrunk shape is printed; make it a case if it is worth keeping
        ..config
    };
    let draws = proptest::collection::vec(any::<u32>(), 24);
    let what = (draws, any::<u64>(), select(&Schedule::ALL), any::<proptest::sample::Index>());
    let ran = TestRunner::new(config).run(&what, |(draws, seed, schedule, arch)| {
        let case = (operation.any)(&mut Random::drawn(seed, draws));
        let arch = *arch.get(case.archs);
        println!("{}, sm_{arch}, {schedule:?}", case.label); // the last one, where an access out of bounds ends it all
        let device: Arc<dyn Device> = Arc::new(Twin::with_arch(schedule, arch));
        let outcome = case.trial(seed).run(&device);
        outcome.map(drop).map_err(|problem| {
            TestCaseError::fail(format!("{}, sm_{arch}, {schedule:?}: {problem}", case.label))
        })
    });
    if let Err(failure) = ran {
        panic!("{name}: {failure}");
    }
}

/// All cases of an operation hold, and reach all its kernels.
fn holds(name: &str) {
    let operation = operations().into_iter().find(|operation| operation.name == name).unwrap();
    let mut launched = BTreeSet::new();
    let mut failures = Vec::new();
    for (i, case) in (operation.cases)(&mut Random::new(SEED)).iter().enumerate() {
        if case.size == Size::Large {
            continue;
        }
        if let Err(failure) = case_holds(case, SEED + i as u64, &mut launched) {
            failures.push(format!("{name}, {}: {failure}", case.label));
        }
    }
    assert!(failures.is_empty(), "\n{}", failures.join("\n"));
    let idle: Vec<_> = operation.kernels.iter().filter(|kernel| !launched.contains(*kernel)).collect();
    assert!(idle.is_empty(), "no case reaches {idle:?}");
}

fn case_holds(case: &Case, seed: u64, launched: &mut BTreeSet<&'static str>) -> Result<(), String> {
    println!("{}", case.label); // as above
    let trial = case.trial(seed);
    for &arch in case.archs {
        let mut first = None;
        for schedule in Schedule::ALL {
            let twin = Arc::new(Twin::with_arch(schedule, arch));
            let device: Arc<dyn Device> = twin.clone();
            let outcome =
                trial.run(&device).map_err(|problem| format!("sm_{arch}, {schedule:?}: {problem}"))?;
            launched.extend(twin.launched());
            if !first.get_or_insert_with(|| outcome.clone()).same_bits(&outcome) {
                return Err(format!("sm_{arch}, {schedule:?}: not the bits that another schedule gave"));
            }
        }
    }
    Ok(())
}
