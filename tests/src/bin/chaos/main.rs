//! `chaos`: kills the stages of the publishing pipeline at random moments and checks that the cache stays closed. With
//! `--collect`, pushes, pins and collectors run at the same time.
//!
//! Without `--collect` it needs MinIO and its client; `cargo xtask chaos` installs them and builds everything.

// Its report goes to standard output.
#![allow(clippy::print_stdout)]

mod actors;
mod audit;
mod collect;
mod experiment;

use std::process::ExitCode;

use cache_tests::{Minio, Random, random_seed};
use clap::Parser;

use crate::experiment::{Experiment, Fault, Totals};

/// Push a closure to MinIO many times, kill a stage of the pipeline at a random moment each time, check that the
/// cache is closed, and run the pipeline again; or, with --collect, push, pin and collect at the same time
#[derive(Parser)]
#[command(name = "cargo xtask chaos")]
struct Cli {
    /// Number of rounds, each with one kill
    #[arg(long, value_name = "COUNT", default_value_t = 20, conflicts_with = "collect")]
    kills: u32,
    /// Run pushes, pins and collectors at the same time on the embedded server, let hours pass, and check after each round
    /// that the cache is closed and that pinned closures are complete
    #[arg(long)]
    collect: bool,
    /// Number of rounds of --collect
    #[arg(long, value_name = "COUNT", default_value_t = 20, requires = "collect")]
    rounds: u32,
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
    if cli.collect {
        return run_collect(cli);
    }
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

/// Runs the experiment of --collect.
fn run_collect(cli: &Cli) -> Result<(), String> {
    let (rounds, seed) = (cli.rounds, cli.seed.unwrap_or_else(|| random_seed() >> 32));
    let mut experiment = collect::Experiment::prepare(seed)?;
    println!(
        "chaos: {rounds} rounds of pushes, pins and collectors, seed {seed}; !: killed; =N: exit status N; *: a service that \
         ignores the conditions of writes"
    );
    let mut totals = collect::Totals::default();
    for round in 1..=rounds {
        let before = totals.problems.len();
        if let Err(problem) = experiment.run_round(round, &mut totals) {
            totals.problems.push(format!("round {round}: {problem}"));
        }
        for problem in &totals.problems[before..] {
            println!("FAILED {problem}");
        }
    }
    totals.report(rounds, seed, experiment.faults())
}
