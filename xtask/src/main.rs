//! `cargo xtask`: the demo, the tests, the accidents and the measurements, run as a user would run the tools. Links
//! nothing, so it builds in a second.

// What this program says to standard output is all that it is for.
#![allow(clippy::print_stdout)]

mod audit;
mod bench;
mod bench_floor;
mod bench_pack;
mod bench_pull;
mod build;
mod chaos;
mod closure;
mod demo;
mod fuzz;
mod json;
mod minio;
mod pipeline;
mod random;
mod server;
mod session;
mod test;

use std::env;
use std::process::ExitCode;

const HELP: &str = "\
Usage: cargo xtask COMMAND

Commands:
  demo [--release] Pack, sign, push, list, pull and verify a small closure against an S3 server in a temporary directory;
                   needs neither Nix nor an account. --release builds slower and runs quicker
  test [ARGS]      Run all tests and end with the line `N passed, N failed`; ARGS go to `cargo test`
  chaos [--kills N] [--seed S]
                   Push a closure to a MinIO N times (default 20), kill a stage of the pipeline each time at a random
                   moment, check that the cache is closed, and push again; the seed repeats the choices
  bench push [--paths 300] [--size 1500MB] [--latency 0,50] [--runs 3] [--only WHAT,…] [--json FILE] [--small]
                   Measure our pipeline and the others that are installed (mc, rclone, nix copy) with a closure of that
                   shape and so many milliseconds added to a round trip; prints the medians, and the ratios to a plain
                   upload. --only: ours, s3-push, mc, rclone, nix, ours-file, nix-file. --small: 40 paths, 30 MB, one
                   run, no latency
  bench pull [the same options]
                   Measure s3-pull from a MinIO into a fresh root, nix copy into a fresh store, and a plain download with
                   what unpacks it as the limit; zstd and xz. --only: s3, http, mc, rclone, nix
  bench pack [--files 100000] [--runs 5] [--only CASE,…] [--json FILE] [--small]
                   Measure nar-pack and narinfo-gen on a tree of that many files against nix-store, tar and zstd, in
                   alternating runs; prints ratios and goals. --small: 4,000 files, two runs
  fuzz [--seconds 60] [--if-installed] [TARGET…]
                   Give every reader hostile bytes for so long, as many at once as there are processors, with cargo-fuzz
                   where it is installed; else replay the corpus in tests/fuzz and mutations of it, unless --if-installed
  minio            Get MinIO, its client and versitygw, which the end-to-end tests need, and print where they are

Environment:
  NIX_S3_CACHE_BIN   demo, chaos, bench: directory with the built tools, instead of building them
  MINIO, MC, VERSITYGW
                     test, chaos, bench, minio: the programs, instead of those on PATH or built with `go install`
  CI                 test: if `true`, a MinIO or Nix that cannot be had is a failure

Exit status: 0 done; 1 a step or a test failed; 2 usage.";

/// Why a command did not do what it should, in one line.
type Outcome = Result<(), String>;

fn main() -> ExitCode {
    let args: Vec<String> = env::args_os().skip(1).map(|arg| arg.to_string_lossy().into_owned()).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let outcome = match args.as_slice() {
        ["-h" | "--help" | "help", ..] | ["demo" | "minio" | "chaos" | "bench" | "fuzz", .., "-h" | "--help"] => {
            println!("{HELP}");
            Ok(())
        }
        ["demo"] => demo::run(build::Profile::Debug),
        ["demo", "--release"] => demo::run(build::Profile::Release),
        ["test", args @ ..] => test::run(args),
        ["chaos", args @ ..] => match chaos::Options::parse(args) {
            Ok(options) => chaos::run(&options),
            Err(message) => return usage(&message),
        },
        ["bench", "push", args @ ..] => match bench::Options::parse("push", &bench::keys(), args) {
            Ok(options) => bench::run(&options),
            Err(message) => return usage(&message),
        },
        ["bench", "pull", args @ ..] => match bench::Options::parse("pull", &bench_pull::keys(), args) {
            Ok(options) => bench_pull::run(&options),
            Err(message) => return usage(&message),
        },
        ["bench", "pack", args @ ..] => match bench_pack::Options::parse(args) {
            Ok(options) => bench_pack::run(&options),
            Err(message) => return usage(&message),
        },
        ["bench", ..] => return usage("bench what? push, pull or pack"),
        ["fuzz", args @ ..] => match fuzz::Options::parse(args) {
            Ok(options) => fuzz::run(&options),
            Err(message) => return usage(&message),
        },
        ["minio"] => minio::run(),
        [] => return usage("which command? demo, test, chaos, bench, fuzz or minio"),
        [command @ ("demo" | "minio"), argument, ..] => return usage(&format!("{command} takes no {argument:?}")),
        [other, ..] => return usage(&format!("there is no {other:?}; try demo, test, chaos, bench, fuzz or minio")),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error}");
            ExitCode::FAILURE
        }
    }
}

fn usage(message: &str) -> ExitCode {
    eprintln!("xtask: {message} (`cargo xtask --help`)");
    ExitCode::from(2)
}
