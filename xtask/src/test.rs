//! `cargo xtask test`: runs all tests and prints one line with the result.

use std::env;
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use crate::build::{cargo, run as run_command};
use crate::{Result, minio};

/// The results of all test binaries together.
#[derive(Debug, Default, PartialEq, Eq)]
struct Totals {
    passed: u64,
    failed: u64,
}

/// Builds and runs the tests; `args` are passed to `cargo test`.
pub fn run(args: &[&str]) -> Result {
    let requirements = Requirements::find_or_install()?;
    requirements.print_missing();
    // The tests run the tools as programs, which `cargo test` alone does not build. One command builds the tests too, so
    // that both have the same features of dependencies and nothing is built twice.
    run_command(cargo().args(["build", "--workspace", "--all-targets"]), "cargo build")?;
    let (totals, result) = cargo_test(&requirements, args)?;
    requirements.print_missing();
    // A test binary that was killed prints no result.
    let failed = if result.is_err() { totals.failed.max(1) } else { totals.failed };
    println!("{} passed, {failed} failed", totals.passed);
    match totals {
        Totals { failed: 0, passed: 0 } => Err("no test ran".to_owned()),
        Totals { failed: 0, .. } => result,
        Totals { .. } => Err("some tests failed".to_owned()),
    }
}

/// The programs that the end-to-end tests run.
struct Requirements {
    minio: Option<minio::Minio>,
    versitygw: Option<PathBuf>,
    /// What is missing, and how to get it.
    missing: Vec<String>,
}

impl Requirements {
    /// Finds the programs or builds them; in CI, none may be missing.
    fn find_or_install() -> Result<Self> {
        let mut missing = Vec::new();
        if !has_nix() {
            missing.push("the tests with a real Nix (Nix is not installed: `apt-get install nix-bin`)".to_owned());
        }
        let minio = minio::find_or_install();
        if let Err(error) = &minio {
            missing.push(format!("the tests with a real S3 server (no MinIO: {error}; needs Go, or $MINIO and $MC)"));
        }
        let versitygw = minio::find_or_install_versitygw();
        if let Err(error) = &versitygw {
            missing.push(format!("the policies on a second server (no versitygw: {error}; needs Go, or $VERSITYGW)"));
        }
        if !missing.is_empty() && env::var_os("CI").is_some_and(|value| value == "true") {
            return Err(format!("CI=true, but these tests cannot run: {}", missing.join("; ")));
        }
        Ok(Self { minio: minio.ok(), versitygw: versitygw.ok(), missing })
    }

    /// Prints one line with all tests that do not run.
    fn print_missing(&self) {
        if !self.missing.is_empty() {
            println!("!!! NOT RUN: {}", self.missing.join("; "));
        }
    }
}

fn has_nix() -> bool {
    let output = Command::new("nix-store").arg("--version").stdin(Stdio::null()).output();
    output.is_ok_and(|output| output.status.success())
}

/// Runs `cargo test`, passes on its output, and adds up the results.
fn cargo_test(requirements: &Requirements, args: &[&str]) -> Result<(Totals, Result)> {
    let mut command = cargo();
    command.args(["test", "--no-fail-fast"]);
    if !selects_packages(args) {
        command.arg("--workspace");
    }
    command.args(args).stdin(Stdio::null()).stdout(Stdio::piped());
    if let Some(minio) = &requirements.minio {
        minio.set_env(&mut command);
    }
    if let Some(versitygw) = &requirements.versitygw {
        command.env("VERSITYGW", versitygw);
    }
    let mut child = command.spawn().map_err(|error| format!("cannot run cargo test: {error}"))?;
    let totals = pass_on(&mut child).map_err(|error| format!("cannot pass on the output of cargo test: {error}"))?;
    let status = child.wait().map_err(|error| format!("cannot wait for cargo test: {error}"))?;
    let result = if status.success() { Ok(()) } else { Err(format!("cargo test failed: {status}")) };
    Ok((totals, result))
}

/// Returns whether the arguments select packages; what comes after `--` is for the tests.
fn selects_packages(args: &[&str]) -> bool {
    let mut own = args.iter().take_while(|&&arg| arg != "--");
    own.any(|arg| arg.starts_with("-p") || arg.starts_with("--package"))
}

fn pass_on(child: &mut Child) -> io::Result<Totals> {
    let mut totals = Totals::default();
    let Some(stdout) = child.stdout.take() else { return Ok(totals) };
    let mut reader = BufReader::new(stdout);
    let mut line = Vec::new();
    let mut out = io::stdout().lock();
    while reader.read_until(b'\n', &mut line)? > 0 {
        out.write_all(&line)?;
        out.flush()?;
        totals.add(&String::from_utf8_lossy(&line));
        line.clear();
    }
    Ok(totals)
}

impl Totals {
    /// Adds the numbers of a line like `test result: ok. 3 passed; 0 failed; …`; ignores other lines.
    fn add(&mut self, line: &str) {
        let Some(result) = line.strip_prefix("test result: ") else { return };
        let count = |word: &str| {
            let parts = result.split(['.', ';']).map(str::trim);
            parts.filter_map(|part| part.strip_suffix(word)).find_map(|number| number.trim().parse::<u64>().ok())
        };
        self.passed += count("passed").unwrap_or(0);
        self.failed += count("failed").unwrap_or(0);
    }
}

#[cfg(test)]
mod tests {
    use super::{Totals, selects_packages};

    #[test]
    fn results_of_test_binaries_are_added_up() {
        let mut totals = Totals::default();
        totals.add("test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.40s\n");
        totals
            .add("test result: FAILED. 3 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.00s\n");
        totals.add("test tool::says_99_passed ... ok\n");
        assert_eq!(totals, Totals { passed: 15, failed: 2 });
    }

    #[test]
    fn packages_are_selected_before_the_dashes() {
        assert!(selects_packages(&["-p", "tests"]) && selects_packages(&["--package=tests"]));
        assert!(!selects_packages(&["--", "-p"]) && !selects_packages(&["--test", "tidy"]));
    }
}
