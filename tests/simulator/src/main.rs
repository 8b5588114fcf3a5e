//! The simulator's command line.

use clap::{Parser, Subcommand};
use volley_simulator::faults;

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
        /// The first seed.
        #[arg(long, default_value_t = 0)]
        from: u64,
    },
    /// One run, told in full if it breaks a promise.
    Replay {
        /// Which.
        #[arg(long)]
        seed: u64,
    },
}

fn main() -> std::process::ExitCode {
    let arguments = Arguments::parse();
    let result = match arguments.command {
        Command::Faults { seeds, from } => all(from, seeds),
        Command::Replay { seed } => faults::run(seed, true),
    };
    match result {
        Ok(outcome) => {
            println!("{outcome}");
            std::process::ExitCode::SUCCESS
        }
        Err(failure) => {
            println!("{failure}");
            std::process::ExitCode::FAILURE
        }
    }
}

fn all(from: u64, seeds: u64) -> Result<faults::Outcome, Box<faults::Failure>> {
    let mut sum = faults::Outcome::default();
    for seed in from..from + seeds {
        sum.add(&faults::run(seed, false)?);
    }
    println!("seeds {from}..{}", from + seeds);
    Ok(sum)
}
