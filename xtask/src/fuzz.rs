//! `cargo xtask fuzz`: every reader against hostile bytes, by cargo-fuzz where it is installed, else by replaying the
//! corpus and mutations of it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::thread;

use crate::Outcome;
use crate::build::{cargo, repository, succeed};
use crate::session::processors;
use corpus::entries;

// Not a copy: the file knows nothing but the standard library, and both of us need it.
#[path = "../../tests/fuzz/src/corpus.rs"]
mod corpus;

/// A bound on the memory of a target, in MiB: its own 256 MiB for a decoder that a file asks for, the sanitizer's
/// share, and the corpus.
const MEMORY: u32 = 1024;

/// What the command line says.
#[derive(Debug, PartialEq, Eq)]
pub struct Options {
    /// For each target.
    seconds: u32,
    /// All where there is none.
    targets: Vec<String>,
    /// Whether a cargo-fuzz that is absent is no reason to replay.
    only_real: bool,
}

impl Options {
    /// Reads the arguments.
    ///
    /// # Errors
    /// A message about usage.
    pub fn parse(args: &[&str]) -> Result<Self, String> {
        let mut options = Self { seconds: 60, targets: Vec::new(), only_real: false };
        let mut args = args.iter();
        while let Some(&arg) = args.next() {
            match arg {
                "--if-installed" => options.only_real = true,
                "--seconds" => {
                    let seconds = args.next().and_then(|value| value.parse().ok()).filter(|&seconds| seconds > 0);
                    options.seconds = seconds.ok_or("fuzz: --seconds takes a number")?;
                }
                flag if flag.starts_with('-') => return Err(format!("fuzz takes no {flag:?}")),
                target => options.targets.push(target.to_owned()),
            }
        }
        Ok(options)
    }
}

pub fn run(options: &Options) -> Outcome {
    let all = targets()?;
    if let Some(unknown) = options.targets.iter().find(|target| !all.contains(target)) {
        return Err(format!("there is no target {unknown:?}; try {}", all.join(", ")));
    }
    let chosen = if options.targets.is_empty() { &all } else { &options.targets };
    let Some(fuzzer) = Fuzzer::find() else {
        println!("cargo-fuzz is not installed (cargo install --locked cargo-fuzz)");
        return if options.only_real { Ok(()) } else { replay() };
    };
    // So that none waits for the build of another while its time runs.
    chosen.iter().try_for_each(|target| fuzzer.build(target))?;
    let waiting = Mutex::new(chosen.iter());
    let next = || waiting.lock().ok()?.next();
    let work = || std::iter::from_fn(next).map(|target| fuzzer.run(target, options.seconds)).filter_map(Result::err);
    // As many at once as there are processors. A failure of one stops none of the others.
    let failures: Vec<String> = thread::scope(|scope| {
        let workers: Vec<_> = (0..processors()).map(|_| scope.spawn(|| work().collect::<Vec<_>>())).collect();
        let died = |_| vec!["a thread died".to_owned()];
        workers.into_iter().flat_map(|worker| worker.join().unwrap_or_else(died)).collect()
    });
    if failures.is_empty() { Ok(()) } else { Err(failures.join("; ")) }
}

/// The names of all targets: each has a folder of the corpus.
fn targets() -> Result<Vec<String>, String> {
    let folder = repository().join("tests/fuzz/corpus");
    let failed = |error| format!("cannot read {}: {error}", folder.display());
    let entries: Result<Vec<_>, _> = fs::read_dir(&folder).map_err(failed)?.collect();
    let names = entries.map_err(failed)?.into_iter().map(|entry| entry.file_name().to_string_lossy().into_owned());
    let mut names: Vec<String> = names.collect();
    names.sort();
    Ok(names)
}

/// The same properties without a fuzzer.
fn replay() -> Outcome {
    succeed(cargo().args(["test", "-p", "tests", "--test", "fuzz", "--", "--nocapture"]), "the replay of the corpus")
}

/// Where the targets are built, and what they find is kept.
fn artifacts() -> PathBuf {
    repository().join("target/fuzz")
}

/// A cargo-fuzz that works, and the compiler that it takes.
enum Fuzzer {
    Nightly,
    /// The stable compiler with nightly's switches.
    Bootstrap,
}

impl Fuzzer {
    fn find() -> Option<Self> {
        let works = |fuzzer: Self| {
            fuzzer
                .cargo()
                .args(["fuzz", "--version"])
                .output()
                .is_ok_and(|output| output.status.success())
                .then_some(fuzzer)
        };
        works(Self::Nightly).or_else(|| works(Self::Bootstrap))
    }

    fn cargo(&self) -> Command {
        // What cargo tells its own children would reach the other toolchain's.
        let mut command = match self {
            // The proxy of rustup, not the toolchain's own cargo, takes a toolchain.
            Self::Nightly => {
                let mut command = Command::new("cargo");
                command.arg("+nightly").current_dir(repository());
                command
            }
            Self::Bootstrap => cargo(),
        };
        for name in ["RUSTUP_TOOLCHAIN", "CARGO", "RUSTC", "RUSTDOC"] {
            command.env_remove(name);
        }
        if let Self::Bootstrap = self {
            command.env("RUSTC_BOOTSTRAP", "1");
        }
        command
    }

    fn build(&self, target: &str) -> Outcome {
        succeed(&mut self.subcommand("build", target), &format!("cargo fuzz build {target}"))
    }

    /// `cargo fuzz NAME TARGET`; the arguments of the target are to follow.
    fn subcommand(&self, name: &str, target: &str) -> Command {
        let mut command = self.cargo();
        command.args(["fuzz", name, "--fuzz-dir", "tests/fuzz", "--target-dir"]).arg(artifacts()).arg(target);
        command
    }

    fn run(&self, target: &str, seconds: u32) -> Outcome {
        let dir = artifacts();
        let mut command = self.subcommand("run", target);
        command
            .arg(corpus_of(target, &dir)?)
            .arg("--")
            .arg(format!("-max_total_time={seconds}"))
            .arg(format!("-rss_limit_mb={MEMORY}"));
        command.args(["-timeout=20", "-max_len=65536", "-print_final_stats=1", "-verbosity=0"]);
        command.arg(format!("-artifact_prefix={}/", dir.display()));
        let output = command.output().map_err(|error| format!("cannot run cargo fuzz: {error}"))?;
        let said = String::from_utf8_lossy(&output.stderr);
        if !output.status.success() {
            eprintln!("{said}");
            return Err(format!("fuzzing {target} failed: {}", output.status));
        }
        let figure =
            |name: &str| said.lines().find_map(|line| line.strip_prefix(name)).unwrap_or("?").trim().to_owned();
        println!(
            "{target}: {seconds} s, {} executions, {} inputs of interest found, {} MiB at most, nothing wrong",
            figure("stat::number_of_executed_units:"),
            figure("stat::new_units_added:"),
            figure("stat::peak_rss_mb:"),
        );
        Ok(())
    }
}

/// The corpus of a target as bytes, with what earlier runs have found of interest.
fn corpus_of(target: &str, dir: &Path) -> Result<PathBuf, String> {
    let folder = dir.join("corpus").join(target);
    fs::create_dir_all(&folder).map_err(|error| format!("cannot make {}: {error}", folder.display()))?;
    for (name, bytes) in entries(&repository().join("tests/fuzz/corpus").join(target))? {
        let file = folder.join(name);
        fs::write(&file, bytes).map_err(|error| format!("cannot write {}: {error}", file.display()))?;
    }
    Ok(folder)
}

#[cfg(test)]
mod tests {
    use super::{Options, targets};

    #[test]
    fn arguments_are_seconds_and_targets() {
        let expected = Options { seconds: 5, targets: vec!["nar".to_owned()], only_real: false };
        assert_eq!(Options::parse(&["--seconds", "5", "nar"]), Ok(expected));
        assert!(Options::parse(&["--seconds", "0"]).is_err() && Options::parse(&["--what"]).is_err());
        assert!(targets().is_ok_and(|targets| targets.contains(&"nar".to_owned())));
    }
}
