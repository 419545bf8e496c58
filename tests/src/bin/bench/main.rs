//! `bench`: measures the tools against others that are installed, in the same run and on the same data.
//!
//! `cargo xtask bench` builds the tools in release mode and runs it.

// Its report goes to standard output.
#![allow(clippy::print_stdout)]

mod closure_bench;
mod collect;
mod measurement;
mod pack;
mod packed_tree;
mod pull;
mod push;
mod stages;
mod write_floor;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Measure the tools against others that are installed
#[derive(Parser)]
#[command(name = "cargo xtask bench", max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Push a closure with our pipeline, mc, rclone and nix copy; print medians and ratios to a plain upload
    Push(closure_bench::Args<push::Case>),
    /// Pull a closure with s3-pull and nix copy; print medians and ratios to a plain download with decompression
    Pull(pull::PullArgs),
    /// Pack, unpack and describe a tree with our tools and with nix-store, tar and zstd; print ratios and goals
    Pack(pack::Args),
    /// Measure each stage alone; print its throughput as a share of what the machine can hash, compress and copy
    Stages(stages::StagesArgs),
    /// Read, collect and check a large cache that a server makes up; print time, requests and memory
    Collect(collect::Args),
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Push(args) => push::run(&args),
        Command::Pull(args) => pull::run(&args),
        Command::Pack(args) => pack::run(&args),
        Command::Stages(args) => stages::run(&args),
        Command::Collect(args) => collect::run(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error}");
            ExitCode::FAILURE
        }
    }
}
