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

#[test]
fn a_flood_lets_anothers_first_token_come_within_three_steps() {
    for device in [Device::H100, Device::Cpu] {
        let setup = Setup::new(device, 1, 0);
        let slots = setup.limits.slots as usize;
        let (alone, flooded) =
            (load::flood(&setup, 200, 0).unwrap(), load::flood(&setup, 200, 4 * slots).unwrap());
        // What is in flight when it comes, twice; then its prompt, with nobody's rows beside it.
        let bound = 2 * flooded.step + alone.first.quantile(0.5);
        let (median, late) = (flooded.first.quantile(0.5), flooded.first.quantile(0.99));
        assert!(median <= bound, "{device:?}: {median:?} of {bound:?}");
        assert!(late <= bound + 2 * flooded.step, "{device:?}: {late:?} of {bound:?}");
        let undisturbed = load::flood(&setup, 1, 4 * slots).unwrap();
        assert!(flooded.flood > 0.9 * undisturbed.flood, "the flood's own streams hardly notice");
    }
}
