//! The simulator's command line.

use std::process::ExitCode;

use clap::{Parser, Subcommand, ValueEnum};
use volley_simulator::{
    faults,
    load::{self, Device, Figures, Kind, Policy, Setup},
};

/// Clusters of Volley's real decisions in virtual time.
#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Runs with faults, one a seed; ends at the first that breaks a promise.
    Faults {
        /// How many.
        #[arg(long, default_value_t = 1000)]
        seeds: u64,
        /// The first.
        #[arg(long, default_value_t = 0)]
        from: u64,
    },
    /// One run with faults, told in full if it breaks a promise.
    Replay {
        /// Which.
        #[arg(long)]
        seed: u64,
    },
    /// One tenant floods a worker: what it does to another's first tokens.
    Flood {
        #[arg(long, default_value = "h100")]
        device: DeviceName,
        /// The other's requests, which are measured.
        #[arg(long, default_value_t = 500)]
        requests: usize,
        #[arg(long, default_value_t = 0)]
        seed: u64,
    },
    /// The same traffic for each policy; one line of figures each.
    Load {
        #[arg(long, default_value_t = 1_000_000)]
        requests: usize,
        #[arg(long, default_value_t = 1000)]
        workers: usize,
        /// One kind, instead of all of them mixed.
        #[arg(long)]
        traffic: Option<TrafficName>,
        /// One policy, instead of all.
        #[arg(long)]
        policy: Option<PolicyName>,
        #[arg(long, default_value = "h100")]
        device: DeviceName,
        /// What arrives, as a part of what the workers could do without a prefix cache, 64 sequences at a time.
        /// More fit side by side: at 2 they have little to spare.
        #[arg(long, default_value_t = 2.0)]
        load: f64,
        #[arg(long, default_value_t = 0)]
        seed: u64,
    },
}

#[derive(Clone, Copy, ValueEnum)]
enum TrafficName {
    Shared,
    Turns,
    Mixed,
    Bursts,
}

#[derive(Clone, Copy, ValueEnum)]
enum PolicyName {
    Volley,
    RoundRobin,
    LeastLoaded,
}

#[derive(Clone, Copy, ValueEnum)]
enum DeviceName {
    H100,
    Cpu,
}

fn main() -> ExitCode {
    let done = match Arguments::parse().command {
        Command::Faults { seeds, from } => all(from, seeds),
        Command::Replay { seed } => faults::run(seed, true).map(|outcome| println!("{outcome}")),
        Command::Flood { device, requests, seed } => {
            return flood(&Setup { seed, ..Setup::new(device.into(), 1, 0) }, requests);
        }
        Command::Load { requests, workers, traffic, policy, device, load, seed } => {
            let device = device.into();
            let kinds = traffic.map_or(Kind::ALL.to_vec(), |traffic| vec![traffic.into()]);
            let policies = policy.map_or(Policy::ALL.to_vec(), |policy| vec![policy.into()]);
            return compare(&Setup { kinds, load, seed, ..Setup::new(device, workers, requests) }, &policies);
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            println!("{failure}");
            ExitCode::FAILURE
        }
    }
}

fn all(from: u64, seeds: u64) -> Result<(), Box<faults::Failure>> {
    let mut sum = faults::Outcome::default();
    for seed in from..from + seeds {
        sum.add(&faults::run(seed, false)?);
    }
    println!("seeds {from}..{}, every promise kept\n{sum}", from + seeds);
    Ok(())
}

fn compare(setup: &Setup, policies: &[Policy]) -> ExitCode {
    let Setup { workers, requests, kinds, load, seed, .. } = setup;
    println!("{workers} workers, {requests} requests of {kinds:?}, load {load}, seed {seed}; times in ms");
    println!("{}", Figures::head());
    for &policy in policies {
        let start = std::time::Instant::now();
        match load::run(setup, policy) {
            Ok(figures) => println!("{}   ({:.0?})", figures.row(policy.name()), start.elapsed()),
            Err(violation) => {
                println!("{}: {violation:?}", policy.name());
                return ExitCode::FAILURE;
            }
        }
    }
    ExitCode::SUCCESS
}

fn flood(setup: &Setup, requests: usize) -> ExitCode {
    println!(
        "{requests} requests of one tenant; times in ms\nthe other's   TTFT p50     p99   in steps   average step   its tokens/s"
    );
    let slots = setup.limits.slots as usize;
    for others in [0, slots / 2, slots, 4 * slots] {
        match load::flood(setup, requests, others) {
            Ok(seen) => {
                let millis = |time: std::time::Duration| time.as_secs_f64() * 1e3;
                let (first, step) = (&seen.first, millis(seen.step));
                let (p50, p99) = (millis(first.quantile(0.5)), millis(first.quantile(0.99)));
                println!(
                    "{others:>11} {p50:>10.1} {p99:>7.1} {:>10} {step:>14.1} {:>14.0}",
                    seen.steps, seen.flood
                );
            }
            Err(violation) => {
                println!("{violation:?}");
                return ExitCode::FAILURE;
            }
        }
    }
    ExitCode::SUCCESS
}

// === impl From ===

impl From<DeviceName> for Device {
    fn from(name: DeviceName) -> Self {
        match name {
            DeviceName::H100 => Self::H100,
            DeviceName::Cpu => Self::Cpu,
        }
    }
}

impl From<TrafficName> for Kind {
    fn from(name: TrafficName) -> Self {
        match name {
            TrafficName::Shared => Self::Shared,
            TrafficName::Turns => Self::Turns,
            TrafficName::Mixed => Self::Mixed,
            TrafficName::Bursts => Self::Bursts,
        }
    }
}

impl From<PolicyName> for Policy {
    fn from(name: PolicyName) -> Self {
        match name {
            PolicyName::Volley => Self::Volley,
            PolicyName::RoundRobin => Self::RoundRobin,
            PolicyName::LeastLoaded => Self::LeastLoaded,
        }
    }
}
