//! `bench pull`: how long a closure takes from a bucket to an empty root, with `s3-pull` and with Nix, as a ratio to a
//! plain download of the same files with decompression.

use std::cmp::Reverse;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use cache_tests::pipeline::{FinishedStage, Stage};
use cache_tests::{Minio, cache_url, mc_target, processors};
use clap::ValueEnum;

use crate::closure_bench::{Args, ClosureBench, Work, endpoint_of, is_installed, tree_size};
use crate::measurement::{Comparison, Measurement, medians};

/// Command-line arguments.
#[derive(clap::Args)]
pub struct PullArgs {
    #[command(flatten)]
    common: Args<Case>,
    /// Measure only this compression
    #[arg(long)]
    compression: Option<Compression>,
}

/// A compression of the cache.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Compression {
    /// Level 3
    Zstd,
    /// Level 6
    Xz,
}

impl Compression {
    const ALL: [Self; 2] = [Self::Zstd, Self::Xz];

    fn name(self) -> &'static str {
        match self {
            Self::Zstd => "zstd",
            Self::Xz => "xz",
        }
    }

    fn extension(self) -> &'static str {
        match self {
            Self::Zstd => "zst",
            Self::Xz => "xz",
        }
    }
}

/// What is measured.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Case {
    /// Download by MinIO's client and decompression on every processor: the baseline
    Mc,
    /// The same with rclone
    Rclone,
    /// `s3-pull` over S3
    S3,
    /// `s3-pull` over plain HTTP
    Http,
    /// `s3-pull --export` over S3, to a pipe
    Export,
    /// `s3-pull --archive` over S3, to a pipe
    Archive,
    /// `nix copy` over plain HTTP, the only way in which every Nix can read from MinIO
    Nix,
}

impl Case {
    const ALL: [Self; 7] = [Self::Mc, Self::Rclone, Self::S3, Self::Http, Self::Export, Self::Archive, Self::Nix];

    fn name(self, compression: Compression) -> String {
        let compression = compression.name();
        match self {
            Self::Mc => format!("mc cp -r, then {compression} -d"),
            Self::Rclone => format!("rclone copy --transfers 16, then {compression} -d"),
            Self::S3 => format!("s3-pull s3://, {compression}"),
            Self::Http => format!("s3-pull http://, {compression}"),
            Self::Export => format!("s3-pull --export | wc -c, {compression}"),
            Self::Archive => format!("s3-pull --archive | wc -c, {compression}"),
            Self::Nix => format!("nix copy --from http://, {compression}"),
        }
    }

    /// Returns whether the case only copies and decompresses files.
    fn is_plain_download(self) -> bool {
        matches!(self, Self::Mc | Self::Rclone)
    }

    /// Returns what the case does with every byte; none for a plain download.
    fn work(self) -> Option<Work> {
        let decompressing = Work { compressions: 0, decompressions: 1, nar_hashes: 1, file_hashes: 0 };
        match self {
            Self::Mc | Self::Rclone => None,
            Self::Nix => Some(decompressing),
            Self::S3 | Self::Http | Self::Export | Self::Archive => Some(Work { file_hashes: 1, ..decompressing }),
        }
    }

    /// Returns whether the case writes a stream.
    fn is_stream(self) -> bool {
        matches!(self, Self::Export | Self::Archive)
    }
}

/// Runs the benchmark.
///
/// # Errors
/// The message of a command that fails.
pub fn run(args: &PullArgs) -> Result<(), String> {
    let compressions = args.compression.map_or_else(|| Compression::ALL.to_vec(), |compression| vec![compression]);
    let args = &args.common;
    let closure = ClosureBench::prepare(args)?;
    let work_times = closure.work_times()?;
    let source = Source::fill(&closure, &compressions)?;
    let mut rows = Vec::new();
    for latency in args.latencies() {
        let proxy = args.proxy(&source.minio.endpoint(), latency);
        let endpoint = endpoint_of(&source.minio, proxy.as_ref());
        for &compression in &compressions {
            let size = source.minio.size(source.bucket(compression));
            let mut runs = Vec::new();
            for number in 1..=args.runs() {
                let selected = Case::ALL.into_iter().filter(|case| args.selects(case));
                for case in selected.filter(|&case| source.can_measure(case, compression)) {
                    eprintln!("{latency} ms, run {number} of {}: {}", args.runs(), case.name(compression));
                    let mut measurement = source.measure(case, compression, &endpoint)?;
                    let share = args.link_share(size, measurement.elapsed);
                    // The time of a plain download includes the decompression after it.
                    measurement.link_share = share.filter(|_| !case.is_plain_download());
                    runs.push((case.name(compression), measurement));
                }
            }
            let baselines = [Case::Mc, Case::Rclone].map(|case| case.name(compression));
            let nix = Case::Nix.name(compression);
            let baselines = [&*baselines[0], &baselines[1]];
            let limit = |name: &str| {
                let work = Case::ALL.into_iter().find(|case| case.name(compression) == name)?.work()?;
                work_times.as_ref().filter(|_| compression == Compression::Zstd).map(|times| times.limit(work))
            };
            rows.extend(medians(&runs, latency, &Comparison { baselines, nix: |_: &str| nix.clone(), limit }));
        }
    }
    let note = "/ mc, / rcl.: wall-clock time divided by that of a plain download\n\
                with decompression of each file on every processor, at the same latency.";
    let names: Vec<&str> = compressions.iter().map(|compression| compression.name()).collect();
    args.report(&rows, &closure, &names.join(" and "), note)
}

/// A server with the closure in a bucket for each compression.
struct Source<'a> {
    closure: &'a ClosureBench,
    minio: Minio,
    buckets: Vec<(Compression, String)>,
    key: String,
    /// The directory that is pulled into.
    out: PathBuf,
}

impl<'a> Source<'a> {
    fn fill(closure: &'a ClosureBench, compressions: &[Compression]) -> Result<Self, String> {
        let minio = Minio::start().ok_or("MinIO is required")?;
        let mut buckets = Vec::new();
        for &compression in compressions {
            eprintln!("Uploading the closure, compressed with {}", compression.name());
            closure.write_cache(compression.name(), "cache")?;
            let bucket = minio.make_bucket();
            // Neither Nix nor our HTTP client has credentials.
            minio.make_public(&bucket);
            let cache = format!("{}/", closure.path("cache").display());
            minio.mc(&["cp", "--quiet", "--recursive", &cache, &mc_target(&bucket)]);
            closure.reset_dir("cache")?;
            buckets.push((compression, bucket));
        }
        let key = fs::read_to_string(closure.path("key.pub"));
        let key = key.map_err(|error| format!("cannot read the public key: {error}"))?.trim().to_owned();
        Ok(Self { closure, minio, buckets, key, out: closure.path("out") })
    }

    fn bucket(&self, compression: Compression) -> &str {
        let found = self.buckets.iter().find(|(of, _)| *of == compression);
        found.map_or("", |(_, bucket)| bucket)
    }

    fn can_measure(&self, case: Case, compression: Compression) -> bool {
        let installed = match case {
            Case::Mc => is_installed(compression.name()),
            Case::Rclone => self.closure.has_rclone && is_installed(compression.name()),
            Case::S3 | Case::Http | Case::Export | Case::Archive => true,
            Case::Nix => self.closure.nix_version.is_some(),
        };
        if !installed {
            eprintln!("bench: not measured, because it is not installed: {}", case.name(compression));
        }
        installed
    }

    /// Measures one command into an empty directory.
    fn measure(&self, case: Case, compression: Compression, endpoint: &str) -> Result<Measurement, String> {
        self.closure.reset_dir("out")?;
        self.closure.sync_and_reset_home()?;
        let (requests, server_cpu) = (self.minio.requests(), self.minio.processor_time());
        let mut fetch = vec![self.fetch(case, compression, endpoint)];
        if case.is_stream() {
            let mut count = self.closure.scratch.command("wc");
            count.arg("-c");
            fetch.push(Stage { name: "wc", command: count });
        }
        let (mut elapsed, mut stages) = self.closure.run(fetch, "paths", "output")?;
        let requests = self.minio.requests() - requests;
        let server_cpu = self.minio.processor_time().saturating_sub(server_cpu);
        if case.is_plain_download() {
            let (decompressing, more) = self.decompress(compression)?;
            elapsed += decompressing;
            stages.extend(more);
        }
        let bytes = if case.is_stream() {
            stages.truncate(1);
            self.stream_size()?
        } else {
            self.check_complete(case, compression)?;
            tree_size(&self.out)
        };
        let mut measurement = Measurement::new(elapsed, &stages, Some(requests), bytes);
        measurement.server_cpu = Some(server_cpu);
        Ok(measurement)
    }

    fn fetch(&self, case: Case, compression: Compression, endpoint: &str) -> Stage {
        let (closure, bucket) = (self.closure, self.bucket(compression));
        let http = format!("http://{endpoint}/{bucket}");
        let out = self.out.display().to_string();
        match case {
            Case::Mc => {
                let command = self.minio.mc_command(endpoint, &["cp", "--recursive", &mc_target(bucket), &out]);
                Stage { name: "mc", command }
            }
            Case::Rclone => closure.rclone(endpoint, &self.minio.root(), format!("bench:{bucket}"), &out),
            Case::S3 | Case::Http | Case::Export | Case::Archive => {
                let mut stage = closure.tool("s3-pull", &["--recursive", "--stdin", "--quiet"]);
                stage.command.args(["--trusted-public-key", &self.key]);
                match case {
                    Case::Export => stage.command.arg("--export"),
                    Case::Archive => stage.command.arg("--archive"),
                    _ => stage.command.args(["--root", &out]),
                };
                if case == Case::Http {
                    stage.command.arg(http);
                } else {
                    stage.command.arg(cache_url(endpoint, bucket));
                    self.minio.root().authorize(&mut stage.command);
                }
                stage
            }
            Case::Nix => {
                let mut command = closure.nix_command();
                command.args(["--option", "trusted-public-keys", &self.key]);
                command.args(["copy", "--from", &http, "--to", &out]);
                command.args(closure.paths.iter().map(|path| &path.path));
                Stage { name: "nix", command }
            }
        }
    }

    /// Returns the number of bytes of the stream, which `wc` has counted.
    fn stream_size(&self) -> Result<u64, String> {
        let counted = fs::read_to_string(self.closure.path("output"));
        let counted = counted.ok().and_then(|text| text.trim().parse().ok());
        counted.filter(|bytes| *bytes > 0).ok_or_else(|| "the stream is empty".to_owned())
    }

    /// Decompresses the downloaded files, a share of them on each processor.
    fn decompress(&self, compression: Compression) -> Result<(Duration, Vec<FinishedStage>), String> {
        let mut files = self.downloaded(compression.extension())?;
        files.sort_by_key(|(size, _)| Reverse(*size));
        let processes = processors().min(files.len());
        let share = |index| {
            let mut command = self.closure.scratch.command(compression.name());
            command.args(["-d", "-q", "-k", "-f", "--"]);
            command.args(files.iter().skip(index).step_by(processes).map(|(_, file)| file));
            Stage { name: compression.name(), command }
        };
        self.closure.run((0..processes).map(share).collect(), "paths", "output")
    }

    /// Returns the downloaded NARs with that extension, and their sizes.
    fn downloaded(&self, extension: &str) -> Result<Vec<(u64, PathBuf)>, String> {
        let dir = self.out.join("nar");
        let entries = fs::read_dir(&dir).map_err(|error| format!("cannot list {}: {error}", dir.display()))?;
        let files =
            entries.flatten().map(|entry| entry.path()).filter(|path| path.extension().is_some_and(|e| e == extension));
        Ok(files.map(|path| (path.metadata().map_or(0, |meta| meta.len()), path)).collect())
    }

    /// Checks that every path has arrived.
    fn check_complete(&self, case: Case, compression: Compression) -> Result<(), String> {
        let (arrived, expected) = if case.is_plain_download() {
            (self.downloaded("nar")?.len(), self.downloaded(compression.extension())?.len())
        } else {
            let entries = fs::read_dir(self.out.join("nix/store")).into_iter().flatten().flatten();
            let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
            (names.filter(|name| !name.starts_with('.')).count(), self.closure.paths.len())
        };
        if arrived == expected && arrived > 0 {
            return Ok(());
        }
        Err(format!("{}: {arrived} of {expected} arrived", case.name(compression)))
    }
}
