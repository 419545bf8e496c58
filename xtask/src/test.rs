//! `cargo xtask test`: everything, and one line that says how it went.

use std::env;
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use crate::build::{cargo, succeed};
use crate::{Outcome, minio};

/// What all test binaries said together.
#[derive(Debug, Default, PartialEq, Eq)]
struct Tally {
    passed: u64,
    failed: u64,
}

pub fn run(args: &[&str]) -> Outcome {
    let surroundings = Surroundings::get()?;
    surroundings.warn();
    // The tests run the tools as programs, which `cargo test` alone does not build. One command with the tests, so that
    // both share the features of their dependencies and nothing is built twice.
    succeed(cargo().args(["build", "--workspace", "--all-targets"]), "cargo build")?;
    let (tally, finished) = cargo_test(&surroundings, args)?;
    surroundings.warn();
    println!("{} passed, {} failed", tally.passed, tally.failed);
    match tally {
        Tally { failed: 0, passed: 0 } => Err("no test ran".to_owned()),
        Tally { failed: 0, .. } => finished,
        Tally { .. } => Err("some tests failed".to_owned()),
    }
}

/// The real things that the end-to-end tests run against.
struct Surroundings {
    minio: Option<minio::Minio>,
    versitygw: Option<PathBuf>,
    /// What is absent, and how to get it.
    absent: Vec<String>,
}

impl Surroundings {
    /// Finds or builds what is needed; in CI all of it must be had.
    fn get() -> Result<Self, String> {
        let mut absent = Vec::new();
        if !has_nix() {
            absent.push("without Nix (`apt-get install nix-bin`), the tests against a real Nix client".to_owned());
        }
        let minio = minio::get();
        if let Err(error) = &minio {
            absent.push(format!(
                "without MinIO ({error}; needs Go, or $MINIO and $MC), the tests against a real S3 server"
            ));
        }
        let versitygw = minio::versitygw();
        if let Err(error) = &versitygw {
            absent
                .push(format!("without versitygw ({error}; needs Go, or $VERSITYGW), the policies on a second server"));
        }
        if !absent.is_empty() && env::var_os("CI").is_some_and(|value| value == "true") {
            return Err(format!("CI=true, but these would not run: {}", absent.join("; ")));
        }
        Ok(Self { minio: minio.ok(), versitygw: versitygw.ok(), absent })
    }

    /// One loud line for all that does not run.
    fn warn(&self) {
        if !self.absent.is_empty() {
            println!("!!! NOT RUN: {}", self.absent.join("; "));
        }
    }
}

fn has_nix() -> bool {
    let output = Command::new("nix-store").arg("--version").stdin(Stdio::null()).output();
    output.is_ok_and(|output| output.status.success())
}

/// Runs `cargo test`, passes on what it says, and counts.
fn cargo_test(surroundings: &Surroundings, args: &[&str]) -> Result<(Tally, Outcome), String> {
    let mut command = cargo();
    command.args(["test", "--no-fail-fast"]);
    if !chooses_packages(args) {
        command.arg("--workspace");
    }
    command.args(args).stdin(Stdio::null()).stdout(Stdio::piped());
    if let Some(minio) = &surroundings.minio {
        command.env("MINIO", &minio.server).env("MC", &minio.client);
    }
    if let Some(versitygw) = &surroundings.versitygw {
        command.env("VERSITYGW", versitygw);
    }
    let mut child = command.spawn().map_err(|error| format!("cannot run cargo test: {error}"))?;
    let tally = pass_on(&mut child).map_err(|error| format!("cannot pass on what cargo test says: {error}"))?;
    let status = child.wait().map_err(|error| format!("cannot wait for cargo test: {error}"))?;
    let finished = if status.success() { Ok(()) } else { Err(format!("cargo test failed: {status}")) };
    Ok((tally, finished))
}

/// Whether the user's arguments say which packages to test; what comes after `--` is for the tests.
fn chooses_packages(args: &[&str]) -> bool {
    let own = args.iter().take_while(|&&arg| arg != "--");
    own.into_iter().any(|arg| arg.starts_with("-p") || arg.starts_with("--package"))
}

fn pass_on(child: &mut Child) -> io::Result<Tally> {
    let mut tally = Tally::default();
    let Some(stdout) = child.stdout.take() else { return Ok(tally) };
    let mut reader = BufReader::new(stdout);
    let mut line = Vec::new();
    let mut out = io::stdout().lock();
    while reader.read_until(b'\n', &mut line)? > 0 {
        out.write_all(&line)?;
        out.flush()?;
        tally.add(&String::from_utf8_lossy(&line));
        line.clear();
    }
    Ok(tally)
}

impl Tally {
    /// Counts a line like `test result: ok. 3 passed; 0 failed; …`; others count nothing.
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
    use super::{Tally, chooses_packages};

    #[test]
    fn results_add_up() {
        let mut tally = Tally::default();
        tally.add("test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.40s\n");
        tally
            .add("test result: FAILED. 3 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.00s\n");
        tally.add("test tool::says_99_passed ... ok\n");
        assert_eq!(tally, Tally { passed: 15, failed: 2 });
    }

    #[test]
    fn packages_are_chosen_before_the_dashes() {
        assert!(chooses_packages(&["-p", "tests"]) && chooses_packages(&["--package=tests"]));
        assert!(!chooses_packages(&["--", "-p"]) && !chooses_packages(&["--test", "tidy"]));
    }
}
