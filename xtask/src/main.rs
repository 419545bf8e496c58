//! `cargo xtask`: runs the demo, the tests, the chaos experiment, the benchmarks, the compatibility matrix and the
//! fuzzers, and makes the packages. It has no dependencies and builds in a second; code that needs dependencies is in
//! binaries of the `tests` package.

// Its output goes to standard output.
#![allow(clippy::print_stdout)]

mod build;
mod dist;
mod fuzz;
#[path = "../../tests/src/installed_program.rs"]
mod installed_program;
mod minio;
mod test;
mod test_binary;

use std::env;
use std::process::ExitCode;

use build::Profile;

const HELP: &str = "\
Usage: cargo xtask COMMAND

Commands:
  demo [--release]  Pack, sign, push, list, pull and verify a small closure against an S3 server in a temporary directory;
                    requires no Nix, network or account. --release takes longer to build and runs faster
  test [ARGS]       Run all tests and end with the line `N passed, N failed`; ARGS are passed to `cargo test`
  chaos [--kills COUNT] [--seed NUMBER]
                    Push a closure to MinIO COUNT times (default 20), kill a stage of the pipeline at a random moment
                    each time, check that the cache is closed, and push again
  chaos --collect [--rounds COUNT] [--seed NUMBER]
                    Push, pin and collect at the same time for COUNT rounds (default 20) of some hours each, with kills
                    and faults, and check after each round that the cache is closed and that pinned closures are complete
  bench push [OPTIONS]
                    Measure our pipeline, mc, rclone and nix copy with the same closure; print ratios to a plain upload
  bench pull [OPTIONS]
                    Measure s3-pull and nix copy; print ratios to a plain download with decompression
  bench pack [OPTIONS]
                    Measure nar-pack and narinfo-gen against nix-store, tar and zstd; print ratios and goals
  bench stages [OPTIONS]
                    Measure each stage alone; print its throughput as a share of what the machine can do
  bench collect [OPTIONS]
                    Measure s3-pull narinfo, dead and check on a cache of any size that a server makes up; print time,
                    requests and memory
  matrix [--server NAME]… [--client CLIENT]… [--quick] [--json FILE] [--html FILE]
                    Install S3 servers from package registries, and run our tools and Nix with each. A run with all
                    servers and rows writes docs/compatibility.md and docs/compatibility.json
  fuzz [--seconds 60] [TARGET…]
                    Run the fuzz targets with cargo-fuzz for --seconds each, one per processor at a time. Without
                    cargo-fuzz, replay the corpus in tests/fuzz and mutations of it
  dist [--target TRIPLE] [--out DIR]
                    Build static programs and package them, with man pages, completions and systemd units: a .tar.gz,
                    a .deb, and SHA256SUMS in DIR (default: target/dist). The default target is that of musl if it is
                    installed, else glibc linked statically
  minio             Install MinIO, its client and versitygw, which the end-to-end tests need, and print their paths

`cargo xtask chaos --help`, `cargo xtask bench push --help` and `cargo xtask matrix --help` print all options.

Environment:
  NIX_S3_CACHE_BIN  demo, chaos, bench, matrix, dist: directory of the built tools and of the programs `demo`, `chaos`,
                    `bench`, `matrix` and `examples/command-line-docs`; nothing is built
  MINIO, MC, VERSITYGW
                    test, chaos, bench, matrix, minio: the programs, instead of those on PATH or built with `go install`
  CI                test: if `true`, a missing MinIO, versitygw or Nix is an error

Exit status: 0 success; 1 a step or a test failed; 2 usage error.";

/// The result of a command; the error is a message of one line.
type Result<T = ()> = std::result::Result<T, String>;

fn main() -> ExitCode {
    let args: Vec<String> = env::args_os().skip(1).map(|arg| arg.to_string_lossy().into_owned()).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let success = |()| ExitCode::SUCCESS;
    let result = match args.as_slice() {
        ["-h" | "--help" | "help", ..] | ["bench", "-h" | "--help", ..] => Ok(print_help()),
        ["demo" | "dist" | "minio" | "fuzz" | "test", args @ ..] if test_binary::asks_for_help(args) => {
            Ok(print_help())
        }
        ["demo"] => test_binary::demo(Profile::Demo),
        ["demo", "--release"] => test_binary::demo(Profile::Release),
        ["test", args @ ..] => test::run(args).map(success),
        ["chaos", args @ ..] => match test_binary::check_chaos_args(args) {
            Ok(()) => test_binary::chaos(args),
            Err(message) => return usage_error(&message),
        },
        ["matrix", args @ ..] => test_binary::matrix(args),
        ["bench", "pack", args @ ..] => test_binary::bench_pack(args),
        ["bench", "collect", args @ ..] => test_binary::bench_collect(args),
        ["bench", args @ ..] => test_binary::bench(args),
        ["fuzz", args @ ..] => match fuzz::Options::parse(args) {
            Ok(options) => fuzz::run(&options).map(success),
            Err(message) => return usage_error(&message),
        },
        ["dist", args @ ..] => match dist::Options::parse(args) {
            Ok(options) => dist::run(&options).map(success),
            Err(message) => return usage_error(&message),
        },
        ["minio"] => minio::run().map(success),
        [] => return usage_error("no command given: use demo, test, chaos, bench, matrix, fuzz, dist or minio"),
        [command @ ("demo" | "minio"), argument, ..] => {
            return usage_error(&format!("{command}: unexpected argument {argument:?}"));
        }
        [other, ..] => {
            return usage_error(&format!(
                "unknown command {other:?}: use demo, test, chaos, bench, matrix, fuzz, dist or minio"
            ));
        }
    };
    result.unwrap_or_else(|error| {
        eprintln!("xtask: {error}");
        ExitCode::FAILURE
    })
}

fn print_help() -> ExitCode {
    println!("{HELP}");
    ExitCode::SUCCESS
}

fn usage_error(message: &str) -> ExitCode {
    eprintln!("xtask: {message}\nhint: run 'cargo xtask --help' for usage");
    ExitCode::from(2)
}
