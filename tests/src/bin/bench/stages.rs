//! `bench stages`: the throughput of each stage alone, with its input in the page cache, as a ratio to what the machine can
//! do at all: hash, compress, decompress and pass bytes through a pipe.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use cache_tests::pipeline::Stage;
use cache_tests::{Minio, cache_url, processors};
use clap::ValueEnum;
use serde_json::{Value, json};

use crate::closure_bench::{Args, ClosureBench};
use crate::measurement::{Measurement, rounded, write_json};

/// The compression level of both sides: the default of narinfo-gen.
const LEVEL: &str = "-3";

/// Command-line arguments.
#[derive(clap::Args)]
pub struct StagesArgs {
    #[command(flatten)]
    common: Args<Case>,
    /// Run each case once more under strace, and print the number of its system calls
    #[arg(long)]
    syscalls: bool,
}

/// What is measured.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Case {
    /// Limit: `cat | cat` of the export stream
    Pipe,
    /// Limit: `cat | cat` of the cache archive
    PipeArchive,
    /// Limit: `openssl dgst -sha256` of the export stream, on one processor
    Hash,
    /// Limit: `openssl dgst -sha256` of the cache archive, on one processor
    HashArchive,
    /// Limit: `zstd -3 -T0`
    Compress,
    /// Limit: `zstd -d`, on one processor
    Decompress,
    /// nar-pack of the closure
    #[value(name = "nar-pack")]
    Pack,
    /// narinfo-gen of an export stream
    #[value(name = "narinfo-gen")]
    Describe,
    /// narinfo-gen without compression
    #[value(name = "narinfo-gen-none")]
    DescribeUncompressed,
    /// cache-sign of a cache archive
    #[value(name = "cache-sign")]
    Sign,
    /// `s3-push --dry-run`: all checks and no upload
    #[value(name = "s3-push")]
    Push,
    /// The same with `--check file`
    #[value(name = "s3-push-check-file")]
    PushCheckFile,
    /// s3-pull of an export stream from a directory
    #[value(name = "s3-pull")]
    PullExport,
    /// s3-pull of a cache archive from a directory
    #[value(name = "s3-pull-archive")]
    PullArchive,
}

impl Case {
    const ALL: [Self; 14] = [
        Self::Pipe,
        Self::PipeArchive,
        Self::Hash,
        Self::HashArchive,
        Self::Compress,
        Self::Decompress,
        Self::Pack,
        Self::Describe,
        Self::DescribeUncompressed,
        Self::Sign,
        Self::Push,
        Self::PushCheckFile,
        Self::PullExport,
        Self::PullArchive,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Pipe => "cat | cat",
            Self::PipeArchive => "cat | cat, archive",
            Self::Hash => "openssl dgst -sha256",
            Self::HashArchive => "openssl dgst -sha256, archive",
            Self::Compress => "zstd -3 -T0",
            Self::Decompress => "zstd -d",
            Self::Pack => "nar-pack",
            Self::Describe => "narinfo-gen",
            Self::DescribeUncompressed => "narinfo-gen --compression none",
            Self::Sign => "cache-sign",
            Self::Push => "s3-push --dry-run",
            Self::PushCheckFile => "s3-push --dry-run --check file",
            Self::PullExport => "s3-pull export file://",
            Self::PullArchive => "s3-pull archive file://",
        }
    }

    /// Returns the limit that is closest to what the stage does; none for a limit itself.
    fn limit(self) -> Option<Self> {
        match self {
            Self::Pipe | Self::PipeArchive | Self::Hash | Self::HashArchive | Self::Compress | Self::Decompress => None,
            Self::Pack => Some(Self::Pipe),
            Self::Sign => Some(Self::PipeArchive),
            Self::Describe => Some(Self::Compress),
            Self::DescribeUncompressed => Some(Self::Hash),
            Self::PushCheckFile => Some(Self::HashArchive),
            Self::Push | Self::PullExport | Self::PullArchive => Some(Self::Decompress),
        }
    }

    /// Returns whether the rate is that of the cache archive, whose NARs are compressed.
    fn reads_archive_only(self) -> bool {
        matches!(self, Self::Sign | Self::PushCheckFile | Self::PipeArchive | Self::HashArchive)
    }

    /// Returns the file that standard input is.
    fn input(self) -> &'static str {
        match self {
            Self::Pipe | Self::Hash | Self::Compress | Self::Describe | Self::DescribeUncompressed => "export",
            Self::Decompress => "export.zst",
            Self::Sign => "unsigned",
            Self::Push | Self::PushCheckFile | Self::PipeArchive | Self::HashArchive => "archive",
            Self::Pack | Self::PullExport | Self::PullArchive => "paths",
        }
    }
}

/// The best run of a case: what disturbs a run only makes it slower.
struct Row {
    case: Case,
    run: Measurement,
    /// Number of system calls, if they were counted.
    syscalls: Option<u64>,
}

impl Row {
    /// Returns the throughput in gigabytes per second: of NARs, or of the cache archive.
    #[allow(clippy::cast_precision_loss)]
    fn throughput(&self) -> f64 {
        self.run.bytes as f64 / 1e9 / self.run.elapsed.as_secs_f64()
    }
}

/// Runs the benchmark.
///
/// # Errors
/// The message of a command that fails.
pub fn run(args: &StagesArgs) -> Result<(), String> {
    let StagesArgs { common: args, syscalls } = args;
    let bench = StagesBench::prepare(args)?;
    let mut rows = Vec::new();
    for case in Case::ALL.into_iter().filter(|case| args.selects(case)) {
        eprintln!("{}", case.name());
        let mut runs = (0..args.runs()).map(|_| bench.measure(case)).collect::<Result<Vec<Row>, String>>()?;
        runs.sort_unstable_by_key(|row| row.run.elapsed);
        if let Some(mut best) = runs.into_iter().next() {
            best.syscalls = syscalls.then(|| bench.count_syscalls(case)).transpose()?;
            rows.push(best);
        }
    }
    bench.print(&rows);
    args.json_file().map_or(Ok(()), |file| write_json(file, &bench.to_json(&rows)))
}

struct StagesBench {
    closure: ClosureBench,
    /// An empty bucket.
    minio: Minio,
    bucket: String,
    cache: PathBuf,
    /// Bytes of the export stream.
    bytes: u64,
    /// Bytes of the cache archive.
    archive_bytes: u64,
}

impl StagesBench {
    fn prepare(args: &Args<Case>) -> Result<Self, String> {
        let closure = ClosureBench::prepare(args)?;
        closure.write_cache("zstd", "cache")?;
        let mut archive = closure.archive("zstd");
        archive.pop();
        closure.run(archive, "paths", "unsigned")?;
        closure.run(vec![closure.pack()], "paths", "export")?;
        let mut compress = closure.scratch.command("zstd");
        compress.args(["-q", LEVEL, "-T0", "-c"]);
        closure.run(vec![Stage { name: "zstd", command: compress }], "export", "export.zst")?;
        let size_of = |name| closure.path(name).metadata().map_or(0, |metadata| metadata.len());
        let (bytes, archive_bytes) = (size_of("export"), size_of("archive"));
        let minio = Minio::start().ok_or("MinIO is required")?;
        let (bucket, cache) = (minio.make_bucket(), closure.path("cache"));
        Ok(Self { closure, minio, bucket, cache, bytes, archive_bytes })
    }

    fn measure(&self, case: Case) -> Result<Row, String> {
        let mut commands = self.stages(case);
        // What reads the end of the pipe; /dev/null alone would take the bytes for nothing.
        let count = commands.len();
        if count == 1 && !matches!(case, Case::Hash | Case::HashArchive | Case::Push | Case::PushCheckFile) {
            commands.push(Stage { name: "cat", command: self.closure.scratch.command("cat") });
        }
        let (elapsed, mut stages) = self.closure.run(commands, case.input(), "/dev/null")?;
        stages.truncate(count);
        let bytes = if case.reads_archive_only() { self.archive_bytes } else { self.bytes };
        Ok(Row { case, run: Measurement::new(elapsed, &stages, None, bytes), syscalls: None })
    }

    /// Runs the first command of a case under strace; returns the number of system calls of all its threads.
    fn count_syscalls(&self, case: Case) -> Result<u64, String> {
        let counts = self.closure.path("syscalls");
        let mut commands = self.stages(case);
        let command = under_strace(&commands.remove(0).command, &counts);
        let strace = Stage { name: "strace", command };
        let reader = Stage { name: "cat", command: self.closure.scratch.command("cat") };
        self.closure.run(vec![strace, reader], case.input(), "/dev/null")?;
        let text = fs::read_to_string(&counts).map_err(|error| format!("cannot read what strace counted: {error}"))?;
        let total = text.lines().rfind(|line| line.ends_with(" total"));
        let calls = total.and_then(|line| line.split_whitespace().nth(3)?.parse().ok());
        calls.ok_or_else(|| "strace counted nothing".to_owned())
    }

    fn stages(&self, case: Case) -> Vec<Stage> {
        let closure = &self.closure;
        let command = |name: &'static str, args: &[&str]| {
            let mut command = closure.scratch.command(name);
            command.args(args);
            Stage { name, command }
        };
        let key = closure.path("key.pub").display().to_string();
        let from = format!("file://{}", self.cache.display());
        let pull =
            |mode| closure.tool("s3-pull", &["-r", "--stdin", "-q", mode, "--trusted-public-key-file", &key, &from]);
        let stage = match case {
            Case::Pipe | Case::PipeArchive => return vec![command("cat", &[]), command("cat", &[])],
            Case::Hash | Case::HashArchive => command("openssl", &["dgst", "-sha256"]),
            Case::Compress => command("zstd", &["-q", LEVEL, "-T0", "-c"]),
            Case::Decompress => command("zstd", &["-q", "-d", "-c"]),
            Case::Pack => closure.pack(),
            Case::Describe => closure.tool("narinfo-gen", &["--archive", "--no-nix"]),
            Case::DescribeUncompressed => {
                closure.tool("narinfo-gen", &["--archive", "--no-nix", "--compression", "none"])
            }
            Case::Sign => closure.tool("cache-sign", &["-k", "key.sec"]),
            Case::Push => self.push("nar"),
            Case::PushCheckFile => self.push("file"),
            Case::PullExport => pull("--export"),
            Case::PullArchive => pull("--archive"),
        };
        vec![stage]
    }

    fn push(&self, check: &str) -> Stage {
        let mut stage = self.closure.tool("s3-push", &["--dry-run", "-q", "--check", check]);
        stage.command.arg(cache_url(&self.minio.endpoint(), &self.bucket));
        self.minio.root().authorize(&mut stage.command);
        stage
    }

    /// Returns the throughput divided by that of the limit, if it was measured.
    fn share_of_limit(row: &Row, rows: &[Row]) -> Option<f64> {
        let limit = rows.iter().find(|other| Some(other.case) == row.case.limit())?;
        Some(row.throughput() / limit.throughput())
    }

    fn print(&self, rows: &[Row]) {
        println!(
            "{} paths, export stream of {} MB, cache archive of {} MB, zstd level 3, {} processors\n\n{:32} {:>9} {:>8} {:>8} {:>9}   {:>5}",
            self.closure.paths.len(),
            self.bytes / 1_000_000,
            self.archive_bytes / 1_000_000,
            processors(),
            "",
            "rate",
            "wall",
            "CPU",
            "peak",
            "of limit"
        );
        for row in rows {
            let limit = row.case.limit().zip(Self::share_of_limit(row, rows));
            println!(
                "{:32} {:4.2} GB/s {:6.2} s {:6.2} s {:5} MiB   {:38} {}",
                row.case.name(),
                row.throughput(),
                row.run.elapsed.as_secs_f64(),
                row.run.cpu.as_secs_f64(),
                row.run.peak_kib / 1024,
                limit.map_or_else(String::new, |(limit, share)| format!("{share:.2} of {}", limit.name())),
                row.syscalls.map_or_else(String::new, |count| format!("{count} system calls")),
            );
        }
        println!(
            "\nrate: bytes of the export stream per second; of the cache archive, for cache-sign, --check file and their limits.\n\
             The best of the runs. CPU: without the reader at the end of the pipe."
        );
    }

    fn to_json(&self, rows: &[Row]) -> Value {
        let row = |row: &Row| {
            json!({
                "name": row.case.name(),
                "gigabytesPerSecond": rounded(row.throughput()),
                "wallSeconds": rounded(row.run.elapsed.as_secs_f64()),
                "cpuSeconds": rounded(row.run.cpu.as_secs_f64()),
                "peakKiB": row.run.peak_kib,
                "syscalls": row.syscalls,
                "limit": row.case.limit().map(Case::name),
                "shareOfLimit": Self::share_of_limit(row, rows).map(rounded),
            })
        };
        json!({ "bytes": self.bytes, "archiveBytes": self.archive_bytes, "processors": processors(), "rows": rows.iter().map(row).collect::<Vec<_>>() })
    }
}

/// Returns the command, run by strace, which writes the number of system calls to `counts`.
fn under_strace(command: &Command, counts: &Path) -> Command {
    let mut strace = Command::new("strace");
    strace.args(["-f", "-c", "-o"]).arg(counts).arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => strace.env(name, value),
            None => strace.env_remove(name),
        };
    }
    if let Some(dir) = command.get_current_dir() {
        strace.current_dir(dir);
    }
    strace
}
