//! `bench push`: how long a closure takes to a bucket, with our pipeline and with other tools, as a ratio to a plain
//! upload of the same finished files.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use cache_tests::pipeline::Stage;
use cache_tests::{DelayProxy, Minio, cache_url, mc_target};
use clap::ValueEnum;

use crate::closure_bench::{Args, ClosureBench, Work, WorkTimes, endpoint_of, tree_size};
use crate::measurement::{Comparison, Measurement, medians};

/// The end of the name of a command that is run again.
const NOTHING_TO_DO: &str = ", nothing to do";

/// What is measured.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Case {
    /// The finished files by MinIO's client: the baseline
    Mc,
    /// The finished files by rclone
    Rclone,
    /// `s3-push` with the finished cache archive
    #[value(name = "s3-push")]
    PushOnly,
    /// Our pipeline into an empty bucket, and once more when nothing is left to do
    Ours,
    /// Our pipeline with `s3-push --check file`
    #[value(name = "check-file")]
    OursCheckFile,
    /// `nix copy` over HTTP, the only way in which every Nix can write to MinIO
    #[value(name = "nix")]
    NixHttp,
    /// Our pipeline into a directory
    OursFile,
    /// `nix copy` into a directory
    NixFile,
}

impl Case {
    const ALL: [Self; 8] = [
        Self::Mc,
        Self::Rclone,
        Self::PushOnly,
        Self::Ours,
        Self::OursCheckFile,
        Self::NixHttp,
        Self::OursFile,
        Self::NixFile,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Ours => "our pipeline, cold",
            Self::OursCheckFile => "our pipeline, cold, --check file",
            Self::PushOnly => "s3-push, finished archive",
            Self::Mc => "mc cp -r, finished files",
            Self::Rclone => "rclone copy --transfers 16, finished files",
            Self::NixHttp => "nix copy --to http://",
            Self::OursFile => "our pipeline | tar x",
            Self::NixFile => "nix copy --to file://",
        }
    }

    /// Returns the name of the same command run again, if that is measured too.
    fn name_of_repetition(self) -> Option<&'static str> {
        match self {
            Self::Ours => Some("our pipeline with --missing, nothing to do"),
            Self::Mc => Some("mc mirror, nothing to do"),
            Self::Rclone => Some("rclone copy, nothing to do"),
            Self::NixHttp => Some("nix copy --to http://, nothing to do"),
            Self::NixFile => Some("nix copy --to file://, nothing to do"),
            Self::PushOnly | Self::OursCheckFile | Self::OursFile => None,
        }
    }

    /// Returns the name of the command of Nix that does the same as the one of this name.
    fn nix_name(name: &str) -> String {
        let is_file = [Self::OursFile, Self::NixFile].iter().any(|case| name.starts_with(case.name()));
        let nix = if is_file { Self::NixFile } else { Self::NixHttp };
        let again = if name.ends_with(NOTHING_TO_DO) { NOTHING_TO_DO } else { "" };
        format!("{}{again}", nix.name())
    }

    /// Returns what the case does with every byte, if it compresses the closure.
    fn work(self) -> Option<Work> {
        let describing = Work { compressions: 1, decompressions: 0, nar_hashes: 1, file_hashes: 1 };
        match self {
            Self::Mc | Self::Rclone | Self::PushOnly => None,
            Self::NixHttp | Self::NixFile | Self::OursFile => Some(describing),
            // FileHash is verified, and signs the request.
            Self::OursCheckFile => Some(Work { file_hashes: 2, ..describing }),
            Self::Ours => Some(Work { decompressions: 1, nar_hashes: 2, file_hashes: 2, ..describing }),
        }
    }

    /// Returns whether the case sends files or an archive finished before.
    fn sends_finished_cache(self) -> bool {
        matches!(self, Self::PushOnly | Self::Mc | Self::Rclone)
    }

    fn is_nix(self) -> bool {
        matches!(self, Self::NixHttp | Self::NixFile)
    }

    /// Returns whether the case talks to the server, so that latency matters.
    fn is_remote(self) -> bool {
        !matches!(self, Self::OursFile | Self::NixFile)
    }
}

/// Runs the benchmark.
///
/// # Errors
/// The message of a command that fails.
pub fn run(args: &Args<Case>) -> Result<(), String> {
    let bench = PushBench::prepare(args)?;
    let mut rows = Vec::new();
    for latency in args.latencies() {
        let cases: Vec<_> = Case::ALL.into_iter().filter(|&case| bench.can_measure(case, latency, args)).collect();
        let mut runs: Vec<(String, Measurement)> = Vec::new();
        for number in 1..=args.runs() {
            for &case in &cases {
                eprintln!("{latency} ms, run {number} of {}: {}", args.runs(), case.name());
                runs.extend(bench.measure(case, latency, args)?);
            }
        }
        let limit = |name: &str| {
            let work = Case::ALL.into_iter().find(|case| case.name() == name)?.work()?;
            bench.work_times.as_ref().map(|times| times.limit(work))
        };
        let baselines = [Case::Mc, Case::Rclone].map(Case::name);
        rows.extend(medians(&runs, latency, &Comparison { baselines, nix: Case::nix_name, limit }));
    }
    let note = "/ mc, / rcl.: wall-clock time divided by that of a plain upload of the finished\n\
                files at the same latency. Nothing to do: from a host without local state.";
    args.report(&rows, &bench.closure, "zstd level 3", note)
}

struct PushBench {
    closure: ClosureBench,
    work_times: Option<WorkTimes>,
    /// Whether Nix is installed and has imported the closure into a store of its own.
    has_nix: bool,
}

impl PushBench {
    fn prepare(args: &Args<Case>) -> Result<Self, String> {
        let closure = ClosureBench::prepare(args)?;
        let work_times = closure.work_times()?;
        if Case::ALL.into_iter().any(|case| case.sends_finished_cache() && args.selects(&case)) {
            closure.write_cache("zstd", "cache")?;
        }
        let has_nix = Case::ALL.into_iter().any(|case| case.is_nix() && args.selects(&case))
            && closure.nix_version.is_some()
            && import_into_nix(&closure);
        Ok(Self { closure, work_times, has_nix })
    }

    fn can_measure(&self, case: Case, latency_ms: u32, args: &Args<Case>) -> bool {
        if !args.selects(&case) {
            return false;
        }
        let installed = match case {
            Case::Rclone => self.closure.has_rclone,
            Case::NixHttp | Case::NixFile => self.has_nix,
            _ => true,
        };
        if !installed {
            eprintln!("bench: not measured, because it is not installed: {}", case.name());
        }
        // Latency makes no difference to a directory.
        installed && (case.is_remote() || args.latencies().first() == Some(&latency_ms))
    }

    /// Measures a command, and for some cases the same command again, with a new server.
    fn measure(&self, case: Case, latency_ms: u32, args: &Args<Case>) -> Result<Vec<(String, Measurement)>, String> {
        let destination = Destination::new(&self.closure, latency_ms, args)?;
        let mut measurements = Vec::new();
        let names = [Some(case.name()), case.name_of_repetition()];
        for (again, name) in names.into_iter().enumerate().filter_map(|(index, name)| Some((index > 0, name?))) {
            let before = destination.bytes(case);
            self.closure.sync_and_reset_home()?;
            let input = if case == Case::PushOnly { "archive" } else { "paths" };
            let (requests, server_cpu) = (destination.minio.requests(), destination.minio.processor_time());
            let (elapsed, stages) = self.closure.run(destination.stages(case, again), input, "output")?;
            let requests = destination.minio.requests() - requests;
            let server_cpu = destination.minio.processor_time().saturating_sub(server_cpu);
            let bytes = destination.bytes(case).saturating_sub(before);
            destination.check_complete(case)?;
            let requests = case.is_remote().then_some(requests);
            let mut measurement = Measurement::new(elapsed, &stages, requests, bytes);
            measurement.server_cpu = case.is_remote().then_some(server_cpu);
            measurement.requests_by_kind = self.closure.requests_by_kind();
            measurement.link_share = args.link_share(bytes, elapsed).filter(|_| case.is_remote());
            measurements.push((name.to_owned(), measurement));
        }
        Ok(measurements)
    }
}

/// Imports the closure into a Nix store of its own; returns whether that succeeded.
fn import_into_nix(closure: &ClosureBench) -> bool {
    let mut import = closure.scratch.command("nix-store");
    import.arg("--store").arg(closure.path("nix")).arg("--import");
    let stages = vec![closure.pack(), Stage { name: "nix-store", command: import }];
    let imported: Result<(Duration, _), _> = closure.run(stages, "paths", "imported");
    if let Err(problem) = &imported {
        eprintln!("bench: nix copy is not measured: {problem}");
    }
    imported.is_ok()
}

/// A new server, perhaps behind a proxy that adds latency, and an empty directory.
struct Destination<'a> {
    closure: &'a ClosureBench,
    minio: Minio,
    bucket: String,
    proxy: Option<DelayProxy>,
    out: PathBuf,
}

impl<'a> Destination<'a> {
    fn new(closure: &'a ClosureBench, latency_ms: u32, args: &Args<Case>) -> Result<Self, String> {
        let out = closure.reset_dir("out")?;
        let minio = Minio::start().ok_or("MinIO is required")?;
        let bucket = minio.make_bucket();
        // Nix has no credentials for HTTP.
        minio.make_public(&bucket);
        let proxy = args.proxy(&minio.endpoint(), latency_ms);
        Ok(Self { closure, minio, bucket, proxy, out })
    }

    fn endpoint(&self) -> String {
        endpoint_of(&self.minio, self.proxy.as_ref())
    }

    fn stages(&self, case: Case, again: bool) -> Vec<Stage> {
        let closure = self.closure;
        let (cache, bucket) = (format!("{}/", closure.path("cache").display()), mc_target(&self.bucket));
        match case {
            Case::Ours | Case::OursCheckFile => {
                let mut stages = closure.archive("zstd");
                if again {
                    stages.insert(0, self.push(&["--missing"]));
                }
                let check = if case == Case::OursCheckFile { "file" } else { "nar" };
                stages.push(self.push(&["--json", "--quiet", "--check", check]));
                stages
            }
            Case::PushOnly => vec![self.push(&["--json", "--quiet"])],
            Case::Mc if again => vec![self.mc(&["mirror", &cache, &bucket])],
            Case::Mc => vec![self.mc(&["cp", "--recursive", &cache, &bucket])],
            Case::Rclone => {
                let to = format!("bench:{}", self.bucket);
                vec![closure.rclone(&self.endpoint(), &self.minio.root(), "cache", to)]
            }
            Case::NixHttp => vec![self.nix(&format!("http://{}/{}", self.endpoint(), self.bucket))],
            Case::OursFile => {
                let mut stages = closure.archive("zstd");
                let mut tar = closure.scratch.command("tar");
                tar.arg("x").arg("-C").arg(&self.out);
                stages.push(Stage { name: "tar", command: tar });
                stages
            }
            Case::NixFile => vec![self.nix(&format!("file://{}", self.out.display()))],
        }
    }

    fn push(&self, args: &[&str]) -> Stage {
        let mut stage = self.closure.tool("s3-push", args);
        stage.command.arg(cache_url(&self.endpoint(), &self.bucket));
        self.minio.root().authorize(&mut stage.command);
        stage
    }

    fn mc(&self, args: &[&str]) -> Stage {
        Stage { name: "mc", command: self.minio.mc_command(&self.endpoint(), args) }
    }

    fn nix(&self, url: &str) -> Stage {
        let mut command = self.closure.nix_command();
        command.args(["copy", "--no-check-sigs", "--from"]).arg(self.closure.path("nix"));
        command.arg("--to").arg(format!("{url}?compression=zstd&compression-level=3"));
        command.args(self.closure.paths.iter().map(|path| &path.path));
        Stage { name: "nix", command }
    }

    /// Returns how many bytes have arrived.
    fn bytes(&self, case: Case) -> u64 {
        if case.is_remote() { self.minio.size(&self.bucket) } else { tree_size(&self.out) }
    }

    /// Checks that every path has arrived.
    fn check_complete(&self, case: Case) -> Result<(), String> {
        let arrived = if case.is_remote() {
            self.minio.objects(&self.bucket).iter().filter(|key| key.ends_with(".narinfo")).count()
        } else {
            let entries = fs::read_dir(&self.out).into_iter().flatten().flatten();
            entries.filter(|entry| entry.path().extension().is_some_and(|extension| extension == "narinfo")).count()
        };
        let expected = self.closure.paths.len();
        if arrived == expected {
            return Ok(());
        }
        let output = fs::read_to_string(self.closure.path("output")).unwrap_or_default();
        let last = output.trim().lines().last().unwrap_or("nothing");
        Err(format!("{}: {arrived} of {expected} paths arrived; it printed {last}", case.name()))
    }
}
