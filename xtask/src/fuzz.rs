//! `cargo xtask fuzz`: runs the fuzz targets with cargo-fuzz, or replays the corpus and mutations of it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::thread;

use crate::Result;
use crate::build::{cargo, repository, run as run_command};
use corpus::entries;

// Shared with the tests instead of copied: the file depends only on the standard library.
#[path = "../../tests/fuzz/src/corpus.rs"]
mod corpus;

/// Memory limit of a target in MiB: 256 MiB for a decoder whose input requests it, the sanitizer's share, and the corpus.
const MEMORY_LIMIT_MIB: u32 = 1024;

/// Command-line options.
#[derive(Debug, PartialEq, Eq)]
pub struct Options {
    /// Duration of each target.
    seconds: u32,
    /// The targets; all of them if empty.
    targets: Vec<String>,
}

impl Options {
    /// Parses the arguments.
    ///
    /// # Errors
    /// A message about usage.
    pub fn parse(args: &[&str]) -> Result<Self> {
        let mut options = Self { seconds: 60, targets: Vec::new() };
        let mut args = args.iter();
        while let Some(&arg) = args.next() {
            match arg {
                "--seconds" => {
                    let seconds = args.next().and_then(|value| value.parse().ok()).filter(|&seconds| seconds > 0);
                    options.seconds = seconds.ok_or("fuzz: --seconds requires a positive number")?;
                }
                flag if flag.starts_with('-') => return Err(format!("fuzz: unexpected argument {flag:?}")),
                target => options.targets.push(target.to_owned()),
            }
        }
        Ok(options)
    }
}

/// Runs the targets, one per processor at a time.
pub fn run(options: &Options) -> Result {
    let all = targets()?;
    if let Some(unknown) = options.targets.iter().find(|target| !all.contains(target)) {
        return Err(format!("unknown target {unknown:?}: use {}", all.join(", ")));
    }
    let selected = if options.targets.is_empty() { &all } else { &options.targets };
    let Some(fuzzer) = Fuzzer::find() else {
        println!(
            "cargo-fuzz is not installed (cargo install --locked cargo-fuzz): replaying the corpus and mutations of it"
        );
        return replay();
    };
    // All are built first, so that no target waits for a build during its time.
    selected.iter().try_for_each(|target| fuzzer.build(target))?;
    let waiting = Mutex::new(selected.iter());
    let next = || waiting.lock().ok()?.next();
    let work = || std::iter::from_fn(next).map(|target| fuzzer.run(target, options.seconds)).filter_map(Result::err);
    let processors = thread::available_parallelism().map_or(1, usize::from);
    // A failure does not stop the other targets.
    let errors: Vec<String> = thread::scope(|scope| {
        let workers: Vec<_> = (0..processors).map(|_| scope.spawn(|| work().collect::<Vec<_>>())).collect();
        let panicked = |_| vec!["a thread panicked".to_owned()];
        workers.into_iter().flat_map(|worker| worker.join().unwrap_or_else(panicked)).collect()
    });
    if errors.is_empty() { Ok(()) } else { Err(errors.join("; ")) }
}

/// Returns the names of all targets: each has a directory in the corpus.
fn targets() -> Result<Vec<String>> {
    let dir = repository().join("tests/fuzz/corpus");
    let failed = |error| format!("cannot read {}: {error}", dir.display());
    let entries: std::result::Result<Vec<_>, _> = fs::read_dir(&dir).map_err(failed)?.collect();
    let names = entries.map_err(failed)?.into_iter().map(|entry| entry.file_name().to_string_lossy().into_owned());
    let mut names: Vec<String> = names.collect();
    names.sort();
    Ok(names)
}

/// Checks the same properties without a fuzzer. Builds with the features of the whole workspace, as all tests do:
/// otherwise the AWS SDK is built twice.
fn replay() -> Result {
    let args = ["test", "--workspace", "--test", "it", "--", "formats::fuzz", "--nocapture"];
    run_command(cargo().args(args), "the replay of the corpus")
}

/// Returns the directory where the targets are built and their findings are kept.
fn artifacts_dir() -> PathBuf {
    repository().join("target/fuzz")
}

/// A cargo-fuzz that works, and the compiler that it uses.
enum Fuzzer {
    Nightly,
    /// The stable compiler with unstable features enabled.
    Bootstrap,
}

impl Fuzzer {
    fn find() -> Option<Self> {
        let works = |fuzzer: Self| {
            let output = fuzzer.cargo().args(["fuzz", "--version"]).output();
            output.is_ok_and(|output| output.status.success()).then_some(fuzzer)
        };
        works(Self::Nightly).or_else(|| works(Self::Bootstrap))
    }

    fn cargo(&self) -> Command {
        let mut command = match self {
            // Only the proxy of rustup accepts a toolchain, not the toolchain's own cargo.
            Self::Nightly => {
                let mut command = Command::new("cargo");
                command.arg("+nightly").current_dir(repository());
                command
            }
            Self::Bootstrap => cargo(),
        };
        // Set by the cargo that runs this program; they would select its toolchain.
        for name in ["RUSTUP_TOOLCHAIN", "CARGO", "RUSTC", "RUSTDOC"] {
            command.env_remove(name);
        }
        if let Self::Bootstrap = self {
            command.env("RUSTC_BOOTSTRAP", "1");
        }
        command
    }

    fn build(&self, target: &str) -> Result {
        run_command(&mut self.subcommand("build", target), &format!("cargo fuzz build {target}"))
    }

    /// Returns the command `cargo fuzz NAME TARGET`, to which arguments of the target can be added.
    fn subcommand(&self, name: &str, target: &str) -> Command {
        let mut command = self.cargo();
        command.args(["fuzz", name, "--fuzz-dir", "tests/fuzz", "--target-dir"]).arg(artifacts_dir()).arg(target);
        command
    }

    fn run(&self, target: &str, seconds: u32) -> Result {
        let dir = artifacts_dir();
        let mut command = self.subcommand("run", target);
        command
            .arg(write_corpus(target, &dir)?)
            .arg("--")
            .arg(format!("-max_total_time={seconds}"))
            .arg(format!("-rss_limit_mb={MEMORY_LIMIT_MIB}"));
        command.args(["-timeout=20", "-max_len=65536", "-print_final_stats=1", "-verbosity=0"]);
        command.arg(format!("-artifact_prefix={}/", dir.display()));
        let output = command.output().map_err(|error| format!("cannot run cargo fuzz: {error}"))?;
        let stderr = String::from_utf8_lossy(&output.stderr);
        if !output.status.success() {
            eprintln!("{stderr}");
            return Err(format!("fuzzing {target} failed: {}", output.status));
        }
        let figure =
            |name: &str| stderr.lines().find_map(|line| line.strip_prefix(name)).unwrap_or("?").trim().to_owned();
        println!(
            "{target}: {seconds} s, {} executions, {} new inputs, {} MiB peak memory, no failures",
            figure("stat::number_of_executed_units:"),
            figure("stat::new_units_added:"),
            figure("stat::peak_rss_mb:"),
        );
        Ok(())
    }
}

/// Writes the corpus of a target as bytes next to the inputs that earlier runs found; returns the directory.
fn write_corpus(target: &str, dir: &Path) -> Result<PathBuf> {
    let corpus = dir.join("corpus").join(target);
    fs::create_dir_all(&corpus).map_err(|error| format!("cannot create {}: {error}", corpus.display()))?;
    for (name, bytes) in entries(&repository().join("tests/fuzz/corpus").join(target))? {
        let file = corpus.join(name);
        fs::write(&file, bytes).map_err(|error| format!("cannot write {}: {error}", file.display()))?;
    }
    Ok(corpus)
}

#[cfg(test)]
mod tests {
    use super::{Options, targets};

    #[test]
    fn arguments_are_seconds_and_targets() {
        let expected = Options { seconds: 5, targets: vec!["nar".to_owned()] };
        assert_eq!(Options::parse(&["--seconds", "5", "nar"]), Ok(expected));
        assert!(Options::parse(&["--seconds", "0"]).is_err() && Options::parse(&["--what"]).is_err());
        assert!(targets().is_ok_and(|targets| targets.contains(&"nar".to_owned())));
    }
}
