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
fn a_load_brings_the_rate_that_it_promises() {
    let setup = setup(vec![Kind::Turns]);
    let steady = load::run(&Setup { requests: 8000, ..setup.clone() }, Policy::LeastLoaded).unwrap().steady;
    let answered = steady.answered as f64 / steady.time.as_secs_f64();
    assert!((answered / setup.rate() - 1.0).abs() < 0.25, "{answered} of {} a second", setup.rate());
}
