//! Runs under load: small ones, so that what the large ones print can be trusted.

use volley_simulator::load::{self, Device, Kind, Policy, Setup};

fn setup(kinds: Vec<Kind>) -> Setup {
    Setup { kinds, ..Setup::new(Device::H100, 16, 2000) }
}

#[test]
fn every_request_is_answered_whoever_chooses() {
    for kind in Kind::ALL {
        for policy in Policy::ALL {
            let figures = load::run(&setup(vec![kind]), policy).unwrap();
            assert_eq!((figures.answered, figures.refused), (2000, 0), "{kind:?} {policy:?}");
            let first = figures.first_of_all().quantile(0.5);
            assert!(first > figures.next.quantile(0.5) / 2, "{kind:?} {policy:?}: {first:?}");
        }
    }
}

#[test]
fn what_arrives_keeps_the_workers_as_busy_as_was_asked_for() {
    let setup = Setup { requests: 8000, ..setup(vec![Kind::Mixed]) };
    let steady = load::run(&setup, Policy::LeastLoaded).unwrap().steady;
    let busy = steady.busy.as_secs_f64() / steady.time.as_secs_f64() / 16.0;
    // Below 64 side by side a step's weights are shared by fewer: more than 0.7, but not full.
    assert!((0.6..1.0).contains(&busy), "{busy}");
}
