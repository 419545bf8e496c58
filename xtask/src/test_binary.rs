//! Builds and runs the binaries of the `tests` package: the demo, the chaos experiment, the benchmarks and the
//! compatibility matrix.

use std::env;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

use crate::build::{Profile, built_dir, cargo, run};
use crate::{Result, minio};

/// Runs the demo.
pub fn demo(profile: Profile) -> Result<ExitCode> {
    execute(Command::new(build(profile, &DEMO_PROGRAMS)?.join("demo")))
}

/// Checks the arguments of the chaos experiment, so that a usage error is reported before anything is built.
///
/// # Errors
/// A message about usage.
pub fn check_chaos_args(args: &[&str]) -> Result {
    if asks_for_help(args) {
        return Ok(());
    }
    let mut args = args.iter().flat_map(|arg| match arg.split_once('=') {
        Some((flag, value)) => vec![flag, value],
        None => vec![*arg],
    });
    while let Some(flag) = args.next() {
        if flag == "--collect" {
            continue;
        }
        if !["--kills", "--rounds", "--seed"].contains(&flag) {
            return Err(format!("chaos: unexpected argument {flag:?}"));
        }
        if args.next().and_then(|value| value.parse::<u64>().ok()).is_none() {
            return Err(format!("chaos: {flag} requires a number"));
        }
    }
    Ok(())
}

/// Runs the chaos experiment, which needs MinIO unless it collects.
pub fn chaos(args: &[&str]) -> Result<ExitCode> {
    let mut command = Command::new(build(Profile::Debug, &ALL_PROGRAMS)?.join("chaos"));
    command.args(args);
    if !asks_for_help(args) && !args.contains(&"--collect") {
        minio::find_or_install()?.set_env(&mut command);
    }
    execute(command)
}

/// Runs the compatibility matrix, which installs its servers itself but for MinIO and versitygw.
pub fn matrix(args: &[&str]) -> Result<ExitCode> {
    let mut command = Command::new(build(Profile::Debug, &ALL_PROGRAMS)?.join("matrix"));
    command.args(args);
    if !asks_for_help(args) {
        minio::find_or_install()?.set_env(&mut command);
        command.env("VERSITYGW", minio::find_or_install_versitygw()?);
    }
    execute(command)
}

/// Runs `bench push`, `bench pull` or `bench stages`, which need MinIO.
pub fn bench(args: &[&str]) -> Result<ExitCode> {
    let is_measurement = matches!(args.first(), Some(&("push" | "pull" | "stages"))) && !asks_for_help(args);
    let profile = if is_measurement { Profile::Release } else { Profile::Debug };
    let mut command = Command::new(build(profile, &ALL_PROGRAMS)?.join("bench"));
    command.args(args);
    if is_measurement {
        minio::find_or_install()?.set_env(&mut command);
    }
    execute(command)
}

/// Runs `bench collect`, which needs no server but its own, unless it is to measure MinIO.
pub fn bench_collect(args: &[&str]) -> Result<ExitCode> {
    let profile = if asks_for_help(args) { Profile::Debug } else { Profile::Release };
    let mut command = Command::new(build(profile, &ALL_PROGRAMS)?.join("bench"));
    command.arg("collect").args(args);
    if args.contains(&"--minio") && !asks_for_help(args) {
        minio::find_or_install()?.set_env(&mut command);
    }
    execute(command)
}

/// Runs `bench pack`. Only the measured tools and the benchmark are built: the other tools depend on the AWS SDK.
pub fn bench_pack(args: &[&str]) -> Result<ExitCode> {
    let dir = if let Some(dir) = prebuilt_dir() {
        dir
    } else {
        let mut command = cargo();
        command.args(["build", "--quiet", "--release", "-p", "nar-pack", "-p", "narinfo-gen", "-p", "tests"]);
        command.args(["--bins", "--example", "scan"]);
        eprintln!("Building nar-pack, narinfo-gen and the benchmark");
        run(&mut command, "cargo build")?;
        built_dir(Profile::Release)?
    };
    let mut command = Command::new(dir.join("bench"));
    command.arg("pack").args(args);
    execute(command)
}

/// The arguments of Cargo for all binaries of the workspace but this one.
const ALL_PROGRAMS: [&str; 4] = ["--workspace", "--exclude", "xtask", "--bins"];

/// The arguments of Cargo for what the demo runs.
const DEMO_PROGRAMS: [&str; 17] = [
    "--workspace",
    "--bin",
    "nar-pack",
    "--bin",
    "narinfo-gen",
    "--bin",
    "cache-sign",
    "--bin",
    "s3-push",
    "--bin",
    "s3-pull",
    "--bin",
    "cache-policy",
    "--bin",
    "demo",
    "--bin",
    "embedded-s3",
];

/// Builds programs and returns their directory.
fn build(profile: Profile, programs: &[&str]) -> Result<PathBuf> {
    if let Some(dir) = prebuilt_dir() {
        return Ok(dir);
    }
    eprintln!("Building the tools; the first build takes a few minutes");
    let mut command = cargo();
    command.args(["build", "--quiet", "--profile", profile.name()]).args(programs);
    run(&mut command, "cargo build")?;
    built_dir(profile)
}

/// Returns `$NIX_S3_CACHE_BIN`, a directory of binaries that are built already.
fn prebuilt_dir() -> Option<PathBuf> {
    env::var_os("NIX_S3_CACHE_BIN").map(PathBuf::from)
}

/// Runs a binary, and passes on its exit status: 1 if it fails, 2 if its arguments are wrong.
fn execute(mut command: Command) -> Result<ExitCode> {
    let name = command.get_program().to_string_lossy().into_owned();
    let status = command.status().map_err(|error| format!("cannot run {name}: {error}"))?;
    Ok(match status.code() {
        Some(0) => ExitCode::SUCCESS,
        Some(2) => ExitCode::from(2),
        _ => ExitCode::FAILURE,
    })
}

/// Returns whether the arguments contain `-h` or `--help`.
pub fn asks_for_help(args: &[&str]) -> bool {
    args.iter().any(|&arg| arg == "-h" || arg == "--help")
}

#[cfg(test)]
mod tests {
    use super::check_chaos_args;

    #[test]
    fn arguments_of_chaos_are_checked_before_anything_is_built() {
        for args in [&["--kills"][..], &["--kills", "many"], &["--what"], &["3"], &["--seed", "1", "--kills"]] {
            assert!(check_chaos_args(args).is_err(), "{args:?}");
        }
        for args in [
            &[][..],
            &["--kills", "3", "--seed=1"],
            &["--kills", "--help"],
            &["--collect", "--rounds", "6"],
            &["--collect"],
        ] {
            assert_eq!(check_chaos_args(args), Ok(()), "{args:?}");
        }
    }
}
