//! Preparation shared by `bench push` and `bench pull`: a generated closure, a key, and pipelines that run on them.

use std::cmp::Reverse;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf, absolute};
use std::process::Command;
use std::time::Duration;

use bytesize::ByteSize;
use cache_tests::generated_closure::{self, FileContents, GeneratedPath};
use cache_tests::pipeline::{FinishedStage, Pipeline, Stage};
use cache_tests::{Credentials, DelayProxy, Minio, Scratch, processors};
use clap::ValueEnum;
use serde_json::{Value, json};
use walkdir::WalkDir;

use crate::measurement::{self, Row, run};

/// Time limit of a measurement.
const MEASUREMENT_TIMEOUT: Duration = Duration::from_hours(1);

/// The closure is the same in every run.
const SEED: u64 = 4;

/// Command-line arguments; `C` is a case to measure.
#[derive(clap::Args)]
pub struct Args<C: ValueEnum + Send + Sync + 'static> {
    /// Number of store paths [default: 300; with --small: 40]
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..))]
    paths: Option<u32>,
    /// Total size of their files [default: 1500MB; with --small: 30MB]
    #[arg(long, value_name = "BYTES")]
    size: Option<ByteSize>,
    /// Milliseconds to add to a round trip, separated by commas [default: 0,50; with --small: 0]
    #[arg(long, value_name = "MS", value_delimiter = ',')]
    latency: Vec<u32>,
    /// Limit the link to MBIT megabits per second in each direction
    #[arg(long, value_name = "MBIT", value_parser = clap::value_parser!(u32).range(1..))]
    rate: Option<u32>,
    /// Number of runs of each command [default: 3; with --small: 1]
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..))]
    runs: Option<u32>,
    /// Measure only these cases, separated by commas [default: all]
    #[arg(long, value_name = "CASE", value_delimiter = ',')]
    only: Vec<C>,
    /// The program that runs as nix
    #[arg(long, value_name = "PATH", default_value = "nix")]
    nix: PathBuf,
    /// Write the results to FILE as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Use the proxy that adds the latency also where there is none, so that its own time counts in both
    #[arg(long)]
    pub through_proxy: bool,
    /// Measure a small closure once, without latency
    #[arg(long)]
    small: bool,
}

impl<C: ValueEnum + Send + Sync + PartialEq + 'static> Args<C> {
    fn paths(&self) -> usize {
        self.paths.unwrap_or(if self.small { 40 } else { 300 }) as usize
    }

    fn bytes(&self) -> u64 {
        self.size.map_or(if self.small { 30_000_000 } else { 1_500_000_000 }, |size| size.as_u64())
    }

    /// Returns the latencies to measure in milliseconds.
    pub fn latencies(&self) -> Vec<u32> {
        match self.latency.as_slice() {
            [] if self.small => vec![0],
            [] => vec![0, 50],
            latencies => latencies.to_vec(),
        }
    }

    /// Starts a proxy for the server that adds the latency and limits the rate, unless there is nothing to do for it.
    pub fn proxy(&self, server: &str, latency_ms: u32) -> Option<DelayProxy> {
        let is_needed = latency_ms > 0 || self.rate.is_some() || self.through_proxy;
        is_needed.then(|| DelayProxy::start_with(server, latency_ms, self.rate))
    }

    /// Returns the share of the link that a transfer of `bytes` in `elapsed` uses; none if the rate is not limited.
    #[allow(clippy::cast_precision_loss)]
    pub fn link_share(&self, bytes: u64, elapsed: Duration) -> Option<f64> {
        let rate = f64::from(self.rate?) * 1e6;
        Some(bytes as f64 * 8.0 / elapsed.as_secs_f64() / rate)
    }

    /// Returns the number of runs of each command.
    pub fn runs(&self) -> u32 {
        self.runs.unwrap_or(if self.small { 1 } else { 3 })
    }

    /// Returns whether a case is to be measured.
    pub fn selects(&self, case: &C) -> bool {
        self.only.is_empty() || self.only.contains(case)
    }

    /// Returns where the results are written as JSON.
    pub fn json_file(&self) -> Option<&Path> {
        self.json.as_deref()
    }

    /// Prints the table, and writes the JSON file if there is to be one.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn report(&self, rows: &[Row], bench: &ClosureBench, compression: &str, note: &str) -> Result<(), String> {
        let total: u64 = bench.paths.iter().map(|path| path.size).sum();
        let heading = format!(
            "{} paths, {} MB in files, {compression}, {} run(s), {} processors, {}{}",
            bench.paths.len(),
            total / 1_000_000,
            self.runs(),
            processors(),
            bench.nix_version.as_deref().unwrap_or("without Nix"),
            self.rate.map_or_else(String::new, |rate| format!(", a link of {rate} Mbit/s"))
        );
        measurement::print_table(rows, &heading, note);
        let Some(file) = &self.json else { return Ok(()) };
        let report = json!({
            "paths": self.paths(),
            "bytes": self.bytes(),
            "runs": self.runs(),
            "processors": processors(),
            "nix": bench.nix_version,
            "megabitsPerSecond": self.rate,
            "rows": measurement::to_json(rows),
        });
        measurement::write_json(file, &report)
    }
}

/// How often a command compresses, decompresses and hashes all bytes of the closure, with zstd at level 3.
#[derive(Clone, Copy)]
pub struct Work {
    pub compressions: u32,
    pub decompressions: u32,
    pub nar_hashes: u32,
    pub file_hashes: u32,
}

/// The user time that each of these takes with `zstd` and `openssl dgst -sha256`.
pub struct WorkTimes {
    compressing: Duration,
    decompressing: Duration,
    hashing_nars: Duration,
    hashing_files: Duration,
}

impl WorkTimes {
    /// Returns the user time that a command needs at least.
    pub fn limit(&self, work: Work) -> Duration {
        self.compressing * work.compressions
            + self.decompressing * work.decompressions
            + self.hashing_nars * work.nar_hashes
            + self.hashing_files * work.file_hashes
    }
}

/// A generated closure in a scratch directory.
pub struct ClosureBench {
    /// Where all commands run.
    pub scratch: Scratch,
    /// The closure, whose trees are below `root/`.
    pub paths: Vec<GeneratedPath>,
    /// Whether rclone is installed.
    pub has_rclone: bool,
    nix: PathBuf,
    /// The version of Nix; none if it is not installed.
    pub nix_version: Option<String>,
}

impl ClosureBench {
    /// Generates the closure, its path list, its references as path-info JSON, and a key.
    ///
    /// # Errors
    /// If the key cannot be generated.
    pub fn prepare<C: ValueEnum + Send + Sync + PartialEq + 'static>(args: &Args<C>) -> Result<Self, String> {
        let mut scratch = Scratch::removed_on_interrupt();
        eprintln!("Generating a closure of {} paths, {} MB", args.paths(), args.bytes() / 1_000_000);
        let paths = generated_closure::for_bench(SEED, args.paths(), args.bytes());
        generated_closure::write(&paths, &scratch.dir("root"), FileContents::Mixed, SEED);
        scratch.write("paths", generated_closure::path_list(&paths));
        scratch.write("info.json", path_info(&paths));
        scratch.dir("logs");
        scratch.env("RCLONE_CONFIG", scratch.path().join("rclone.conf"));
        run(&mut scratch.tool("cache-sign", &["keygen", "bench-1", "key.sec", "key.pub"]))?;
        let has_rclone = run(scratch.command("rclone").arg("version")).is_ok();
        // A path is relative to the directory of the caller; a name is searched for in $PATH.
        let is_name = args.nix.components().count() == 1;
        let nix = if is_name { args.nix.clone() } else { absolute(&args.nix).unwrap_or_else(|_| args.nix.clone()) };
        let nix_version = run(scratch.command(&nix).arg("--version")).ok().map(|version| version.trim().to_owned());
        Ok(Self { scratch, paths, has_rclone, nix, nix_version })
    }

    /// Returns a command of Nix.
    pub fn nix_command(&self) -> Command {
        self.scratch.command(&self.nix)
    }

    /// Returns the path of a file or directory in the scratch directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }

    /// Returns one of our tools as a stage.
    pub fn tool(&self, name: &'static str, args: &[&str]) -> Stage {
        Stage { name, command: self.scratch.tool(name, args) }
    }

    /// Returns the stage that packs the closure. The references are given, as they are where Nix is installed.
    pub fn pack(&self) -> Stage {
        let args = ["--root", "root", "--no-nix", "--path-info", "info.json", "--export", "--stdin"];
        self.tool("nar-pack", &args)
    }

    /// Returns the stages from a path list to a signed cache archive.
    pub fn archive(&self, compression: &str) -> Vec<Stage> {
        let describe = self.tool("narinfo-gen", &["--archive", "--no-nix", "--compression", compression]);
        vec![self.pack(), describe, self.tool("cache-sign", &["-k", "key.sec"])]
    }

    /// Writes the closure as a cache to the directory `dir`, and as a cache archive to the file `archive`.
    ///
    /// # Errors
    /// The message of a stage that fails.
    pub fn write_cache(&self, compression: &str, dir: &str) -> Result<(), String> {
        self.scratch.dir(dir);
        self.run(self.archive(compression), "paths", "archive")?;
        run(self.scratch.command("tar").args(["xf", "archive", "-C", dir])).map(drop)
    }

    /// Measures how long compressing, decompressing and hashing take; returns none if zstd or openssl is not installed.
    ///
    /// # Errors
    /// The message of a command that fails.
    pub fn work_times(&self) -> Result<Option<WorkTimes>, String> {
        if !is_installed("zstd") || run(Command::new("openssl").arg("version")).is_err() {
            return Ok(None);
        }
        let user_time = |name: &'static str, args: &[&str], input: &str, output: &str| {
            let mut command = self.scratch.command(name);
            command.args(args);
            let (_, stages) = self.run(vec![Stage { name, command }], input, output)?;
            Ok::<_, String>(stages.iter().map(|stage| stage.cpu.saturating_sub(stage.system)).sum::<Duration>())
        };
        self.run(vec![self.pack()], "paths", "export")?;
        let compressing = user_time("zstd", &["-q", "-3", "-T1", "-c"], "export", "export.zst")?;
        let decompressing = user_time("zstd", &["-q", "-d", "-c"], "export.zst", "/dev/null")?;
        let hash = |input| user_time("openssl", &["dgst", "-sha256"], input, "/dev/null");
        let (hashing_nars, hashing_files) = (hash("export")?, hash("export.zst")?);
        for file in ["export", "export.zst"] {
            fs::remove_file(self.path(file)).map_err(|error| format!("cannot remove {file}: {error}"))?;
        }
        Ok(Some(WorkTimes { compressing, decompressing, hashing_nars, hashing_files }))
    }

    /// Runs a pipeline from one file to another and requires that it succeeds.
    ///
    /// # Errors
    /// The message of the last stage that fails.
    pub fn run(&self, stages: Vec<Stage>, input: &str, output: &str) -> Result<(Duration, Vec<FinishedStage>), String> {
        let pipeline = Pipeline::start(stages, &self.path(input), &self.path(output), &self.path("logs"))?;
        pipeline.succeed(MEASUREMENT_TIMEOUT)
    }

    /// Returns the requests by kind that the summary of `s3-push --json` in the file `output` contains, if that is one.
    pub fn requests_by_kind(&self) -> Vec<(String, u64)> {
        let output = fs::read_to_string(self.path("output")).unwrap_or_default();
        let last: Option<Value> = output.lines().last().and_then(|line| serde_json::from_str(line).ok());
        let requests = last.as_ref().and_then(|last| last["summary"]["requests"].as_object());
        let mut kinds: Vec<(String, u64)> = requests
            .into_iter()
            .flatten()
            .filter_map(|(kind, count)| Some((kind.clone(), count.as_u64().filter(|count| *count > 0)?)))
            .collect();
        kinds.sort_by_key(|(_, count)| Reverse(*count));
        kinds
    }

    /// Empties a directory. Store paths may be read-only.
    ///
    /// # Errors
    /// If that fails.
    pub fn reset_dir(&self, name: &str) -> Result<PathBuf, String> {
        let script = "[ ! -e \"$1\" ] || { chmod -R u+w -- \"$1\"; rm -rf -- \"$1\"; }; mkdir -p -- \"$1\"";
        run(self.scratch.command("bash").args(["-euc", script, "reset", name]))?;
        Ok(self.path(name))
    }

    /// Flushes dirty pages to disk and removes what tools cache in their home directory, as Nix does about caches.
    ///
    /// # Errors
    /// If that fails.
    pub fn sync_and_reset_home(&self) -> Result<(), String> {
        self.reset_dir("home")?;
        run(&mut self.scratch.command("sync")).map(drop)
    }

    /// Returns a command of rclone that copies one remote or directory to another; `bench:` is the server at `endpoint`.
    pub fn rclone(
        &self,
        endpoint: &str,
        credentials: &Credentials,
        from: impl AsRef<OsStr>,
        to: impl AsRef<OsStr>,
    ) -> Stage {
        let mut command = self.scratch.command("rclone");
        command.args(["copy", "--quiet", "--transfers", "16", "--checkers", "16", "--s3-no-check-bucket"]);
        command.arg(from).arg(to);
        let address = format!("http://{endpoint}");
        for (name, value) in [
            ("TYPE", "s3"),
            ("PROVIDER", "Minio"),
            ("REGION", "us-east-1"),
            ("ACCESS_KEY_ID", &credentials.access_key),
            ("SECRET_ACCESS_KEY", &credentials.secret_key),
            ("ENDPOINT", &address),
        ] {
            command.env(format!("RCLONE_CONFIG_BENCH_{name}"), value);
        }
        Stage { name: "rclone", command }
    }
}

/// Returns the endpoint of the proxy in front of MinIO, or that of MinIO if there is none.
pub fn endpoint_of(minio: &Minio, proxy: Option<&DelayProxy>) -> String {
    proxy.map_or_else(|| minio.endpoint(), |proxy| proxy.endpoint().to_owned())
}

/// Returns whether a program is installed.
pub fn is_installed(program: &str) -> bool {
    run(Command::new(program).arg("--version")).is_ok()
}

/// Path info must have a NarHash, but nar-pack reads only the references.
const UNUSED_NAR_HASH: &str = "sha256:0mdqa9w1p6cmli6976v4wi0sw9r4p5prkj7lzfd1877wk11c9c73";

/// Returns what `nix path-info --json` would print for the closure, with another NarHash.
fn path_info(paths: &[GeneratedPath]) -> String {
    let entry = |path: &GeneratedPath| {
        let references: Vec<&str> = path.references.iter().map(|&index| paths[index].path.as_str()).collect();
        json!({ "path": path.path, "narHash": UNUSED_NAR_HASH, "references": references })
    };
    Value::from(paths.iter().map(entry).collect::<Vec<_>>()).to_string()
}

/// Returns the total size of the files below a directory in bytes.
pub fn tree_size(dir: &Path) -> u64 {
    let entries = WalkDir::new(dir).into_iter().flatten().filter(|entry| !entry.file_type().is_dir());
    entries.filter_map(|entry| entry.metadata().ok()).map(|metadata| metadata.len()).sum()
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use crate::push::Case;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        args: super::Args<Case>,
    }

    #[test]
    fn sizes_have_units_and_small_changes_the_defaults() {
        let parse = |args: &[&str]| Cli::try_parse_from([&["bench"], args].concat()).map(|cli| cli.args);
        let bytes = |size: &str| parse(&["--size", size]).map(|args| args.bytes()).ok();
        assert_eq!(bytes("1500MB"), Some(1_500_000_000));
        assert_eq!(bytes("5MiB"), Some(5 << 20));
        assert_eq!(bytes("7"), Some(7));
        assert_eq!(bytes("x7"), None);
        let small = parse(&["--small", "--runs", "2"]).ok();
        assert!(small.is_some_and(|args| (args.paths(), args.runs(), args.latencies()) == (40, 2, vec![0])));
        let only = parse(&["--only", "ours,mc"]).ok();
        assert!(only.is_some_and(|args| args.selects(&Case::Mc) && !args.selects(&Case::NixFile)));
        assert!(parse(&["--runs", "0"]).is_err() && parse(&["--only", "curl"]).is_err());
    }
}
