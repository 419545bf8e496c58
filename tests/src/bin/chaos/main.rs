//! `chaos`: kills the stages of the publishing pipeline at random moments and checks that the cache stays closed.
//!
//! Needs MinIO and its client; `cargo xtask chaos` installs them and builds everything.

// Its report goes to standard output.
#![allow(clippy::print_stdout)]

mod audit;
mod experiment;

use std::process::ExitCode;

use cache_tests::{Minio, Random, random_seed};
use clap::Parser;

use crate::experiment::{Experiment, Fault, Totals};

/// Push a closure to MinIO many times, kill a stage of the pipeline at a random moment each time, check that the
/// cache is closed, and run the pipeline again
#[derive(Parser)]
#[command(name = "cargo xtask chaos")]
struct Cli {
    /// Number of rounds, each with one kill
    #[arg(long, value_name = "COUNT", default_value_t = 20)]
    kills: u32,
    /// Seed of the random choices; the same seed repeats them [default: random]
    #[arg(long, value_name = "NUMBER")]
    seed: Option<u64>,
}

fn main() -> ExitCode {
    match run(&Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("chaos: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: &Cli) -> Result<(), String> {
    let (kills, seed) = (cli.kills, cli.seed.unwrap_or_else(|| random_seed() >> 32));
    let minio = Minio::start().ok_or("MinIO is required")?;
    let experiment = Experiment::prepare(minio, seed)?;
    let usual = experiment.run_undisturbed()?;
    println!(
        "chaos: {kills} kills, seed {seed}; {}; an undisturbed run takes {} ms; * means that the stage had exited",
        experiment.shape(),
        usual.as_millis()
    );
    let mut random = Random::new(seed);
    let mut totals = Totals::default();
    for round in 1..=kills {
        let fault = Fault::choose(&mut random, round);
        let moment = usual.mul_f64(1.2 * random.fraction());
        let before = totals.problems.len();
        if let Err(problem) = experiment.run_round(round, fault, moment, &mut random, &mut totals) {
            totals.problems.push(format!("round {round}: {problem}"));
        }
        for problem in &totals.problems[before..] {
            println!("FAILED {problem}");
        }
    }
    totals.report(kills, seed)
}
