//! The cluster's promises, whatever goes wrong. `CONTRIBUTING.md` says how to run one seed again.

use volley_simulator::faults::{self, Outcome};

#[test]
fn every_stream_is_the_undisturbed_one_and_nothing_is_left_behind() {
    let mut sum = Outcome::default();
    for seed in 0..400 {
        match faults::run(seed, false) {
            Ok(outcome) => sum.add(&outcome),
            Err(failure) => panic!("{failure}"),
        }
    }
    println!("{sum}");
    assert!(
        sum.faults > 400 && sum.moved > 50 && sum.resumed > 50 && sum.preempted > 50 && sum.taken_over > 1000,
        "too little happens: {sum}"
    );
    assert!(sum.ended * 50 < sum.whole, "too many streams end at a bound: {sum}");
}

#[test]
fn a_seed_is_a_whole_run() {
    for seed in [3, 31] {
        assert_eq!(faults::run(seed, false).unwrap(), faults::run(seed, true).unwrap());
    }
}
