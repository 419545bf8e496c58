//! The experiment: one fault per round, and the checks before and after the pipeline runs again.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use cache_tests::generated_closure::{self, FileContents, GeneratedPath};
use cache_tests::pipeline::{FinishedStage, Pipeline, Stage};
use cache_tests::{Minio, Random, Scratch, mc_target};
use serde_json::Value;
use walkdir::WalkDir;

use crate::audit::{Audit, audit};

/// The smallest part that S3 accepts, so that small NARs are uploaded in parts.
const PART_SIZE: u64 = 5 << 20;

/// Time limit of a pipeline.
const PIPELINE_TIMEOUT: Duration = Duration::from_mins(2);

/// The stages, in order.
const STAGES: [&str; 5] = ["s3-push --missing", "nar-pack", "narinfo-gen", "cache-sign", "s3-push"];

/// The stage that publishes.
const PUSH: usize = 4;

/// In every fourth round, s3-push receives SIGTERM.
const TERMINATE_EVERY: u32 = 4;

/// Number of paths of a cache that are fetched to verify their NarHash.
const SAMPLE_SIZE: usize = 3;

/// A signal to a pipeline.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// SIGKILL to this stage, or to the next one that is still running: the first ones exit early.
    Kill(usize),
    /// SIGKILL to all stages.
    KillAll,
    /// SIGTERM to s3-push.
    Terminate,
}

impl Fault {
    /// Chooses the fault of a round.
    pub fn choose(random: &mut Random, round: u32) -> Self {
        let stage = random.below(STAGES.len() + 1);
        match stage {
            _ if round.is_multiple_of(TERMINATE_EVERY) => Self::Terminate,
            5 => Self::KillAll,
            _ => Self::Kill(stage),
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kill(stage) => f.pad(&format!("SIGKILL {}", STAGES[*stage])),
            Self::KillAll => f.pad("SIGKILL all"),
            Self::Terminate => f.pad("SIGTERM s3-push"),
        }
    }
}

/// The results of all rounds.
#[derive(Default)]
pub struct Totals {
    /// Faults that hit a running stage.
    hits: u32,
    /// Faults after which some, but not all, paths were published.
    partial: u32,
    /// Pushes that reported that they were terminated.
    terminated: u32,
    /// Parts of interrupted uploads that the next run did not send again.
    resumed_parts: u64,
    /// What must not happen.
    pub problems: Vec<String>,
}

impl Totals {
    /// Prints the totals.
    ///
    /// # Errors
    /// If there were problems.
    pub fn report(&self, kills: u32, seed: u64) -> Result<(), String> {
        println!(
            "chaos: {kills} kills, of which {} hit a running stage and {} left part of the closure; {} pushes reported \
             that they were terminated; {} parts were resumed; {} problems",
            self.hits,
            self.partial,
            self.terminated,
            self.resumed_parts,
            self.problems.len()
        );
        match self.problems.len() {
            0 => Ok(()),
            count => Err(format!("{count} problems with --seed {seed}; the first: {}", self.problems[0])),
        }
    }
}

/// A closure to publish, and a MinIO to publish it to.
pub struct Experiment {
    minio: Minio,
    paths: Vec<GeneratedPath>,
    /// Removed last.
    scratch: Scratch,
}

impl Experiment {
    /// Generates the closure and a key.
    pub fn prepare(minio: Minio, seed: u64) -> Result<Self, String> {
        let mut scratch = Scratch::removed_on_interrupt();
        minio.root().apply(&mut scratch);
        let paths = generated_closure::for_chaos(seed, PART_SIZE);
        generated_closure::write(&paths, &scratch.dir("root"), FileContents::Random, seed);
        scratch.write("paths", generated_closure::path_list(&paths));
        scratch.dir("logs");
        scratch.sh("cache-sign keygen chaos-1 key.sec key.pub").succeed()?;
        Ok(Self { minio, paths, scratch })
    }

    /// Returns the number of paths and their size, for the report.
    pub fn shape(&self) -> String {
        let bytes: u64 = self.paths.iter().map(|path| path.size).sum();
        format!("{} paths, {} MB", self.paths.len(), bytes / 1_000_000)
    }

    /// Runs the pipeline twice without a fault; returns how long the second run takes, when files are cached.
    pub fn run_undisturbed(&self) -> Result<Duration, String> {
        let mut usual = Duration::ZERO;
        for _ in 0..2 {
            let bucket = self.minio.make_bucket();
            usual = self.complete(&bucket)?;
            let audit = self.audit(&bucket, &bucket)?;
            if let Some(problem) = audit.problems.first() {
                return Err(format!("without a fault: {problem}"));
            }
        }
        Ok(usual)
    }

    /// Runs the pipeline with one fault, checks the cache, runs the pipeline again and checks that it is complete.
    pub fn run_round(
        &self,
        round: u32,
        fault: Fault,
        moment: Duration,
        random: &mut Random,
        totals: &mut Totals,
    ) -> Result<(), String> {
        let bucket = self.minio.make_bucket();
        // Every other cache has a prefix.
        let prefix = if round.is_multiple_of(2) { format!("{bucket}/a/prefix") } else { bucket.clone() };
        let uploads = self.minio.upload_dirs();
        let count_new_uploads = || self.minio.upload_dirs().iter().filter(|upload| !uploads.contains(upload)).count();
        let (fault, hit, stages) = self.disturb(&prefix, fault, moment)?;
        let audit = self.audit(&bucket, &prefix)?;
        let visible = audit.paths.len();
        print!(
            "{round:4}  {fault:<27} {:5} ms{}  {visible:2} narinfos, {:2} objects, {} uploads in progress",
            moment.as_millis(),
            if hit { " " } else { "*" },
            audit.objects,
            count_new_uploads()
        );
        totals.hits += u32::from(hit);
        totals.partial += u32::from(visible > 0 && visible < self.paths.len());
        let mut problems = audit.problems.clone();
        problems.extend(self.fetch_sample(&prefix, &audit, random));
        problems.extend(self.check_stages(fault, &stages, visible));
        if fault == Fault::Terminate && reported_termination(&stages) {
            totals.terminated += 1;
            // Uploads of NARs stay for the next run to resume; all others must be aborted.
            let incomplete = self.minio.incomplete_uploads(&bucket);
            let other = incomplete.iter().filter(|key| !format!("/{key}").contains("/nar/"));
            problems.extend(other.map(|key| format!("s3-push was terminated and left a multipart upload of {key}")));
        }
        problems.extend(self.run_again(&bucket, &prefix, random));
        let left = count_new_uploads();
        if left > 0 {
            let incomplete = self.minio.incomplete_uploads(&bucket).join(" ");
            problems.push(format!("second run: complete, but {left} multipart uploads are left ({incomplete})"));
        }
        let resumed = self.resumed_parts();
        totals.resumed_parts += resumed;
        let resumed = if resumed > 0 { format!(" ({resumed} parts resumed)") } else { String::new() };
        println!("; then {}{resumed}", if problems.is_empty() { "complete" } else { "FAILED" });
        totals.problems.extend(problems.into_iter().map(|problem| format!("round {round} ({fault}): {problem}")));
        Ok(())
    }

    /// Runs the pipeline with a fault; returns the fault that happened, whether it hit a running stage, and how
    /// the stages exited.
    fn disturb(
        &self,
        prefix: &str,
        mut fault: Fault,
        moment: Duration,
    ) -> Result<(Fault, bool, Vec<FinishedStage>), String> {
        let mut pipeline = self.start(prefix)?;
        pipeline.run_until(moment)?;
        let hit = match fault {
            Fault::Kill(chosen) => {
                let mut stages = (chosen..STAGES.len()).chain(0..chosen);
                let stage = stages.find(|&stage| pipeline.is_running(stage)).unwrap_or(chosen);
                fault = Fault::Kill(stage);
                pipeline.kill(stage)?
            }
            Fault::Terminate => pipeline.terminate(PUSH)?,
            Fault::KillAll => {
                let mut hit = false;
                for stage in 0..STAGES.len() {
                    hit |= pipeline.kill(stage)?;
                }
                hit
            }
        };
        Ok((fault, hit, pipeline.finish(PIPELINE_TIMEOUT)?.1))
    }

    /// Checks the exit statuses and messages of the stages against what is published.
    fn check_stages(&self, fault: Fault, stages: &[FinishedStage], visible: usize) -> Vec<String> {
        let panicked = stages.iter().filter(|stage| stage.stderr.contains("panicked"));
        let mut problems: Vec<_> = panicked.map(FinishedStage::summary).collect();
        // A truncated path list looks like a shorter one.
        let detectable = fault != Fault::Kill(0);
        if detectable && stages[PUSH].status.success() && visible < self.paths.len() {
            problems.push(format!("s3-push succeeded, but only {visible} paths are published"));
        }
        problems
    }

    /// Runs the pipeline again, without a fault: it must complete the work.
    fn run_again(&self, bucket: &str, prefix: &str, random: &mut Random) -> Vec<String> {
        let completed = self.complete(prefix).and_then(|_| self.audit(bucket, prefix));
        match completed {
            Err(problem) => vec![format!("second run: {problem}")],
            Ok(audit) => {
                let mut problems = audit.problems.clone();
                let missing = self.paths.iter().filter(|path| !audit.paths.contains(&path.path));
                problems.extend(missing.map(|path| format!("{} is still missing", path.path)));
                problems.extend(self.fetch_sample(prefix, &audit, random));
                problems.into_iter().map(|problem| format!("second run: {problem}")).collect()
            }
        }
    }

    /// Runs the pipeline and requires that each stage succeeds.
    fn complete(&self, prefix: &str) -> Result<Duration, String> {
        self.start(prefix)?.succeed(PIPELINE_TIMEOUT).map(|(elapsed, _)| elapsed)
    }

    fn start(&self, prefix: &str) -> Result<Pipeline, String> {
        let url = self.minio.cache_url(prefix);
        let part_size = PART_SIZE.to_string();
        let stage = |name, program: &str, args: &[&str]| Stage { name, command: self.scratch.tool(program, args) };
        let stages = vec![
            stage(STAGES[0], "s3-push", &["--missing", &url]),
            stage(STAGES[1], "nar-pack", &["--root", "root", "--no-nix", "--export", "--stdin"]),
            stage(STAGES[2], "narinfo-gen", &["--archive", "--no-nix"]),
            stage(STAGES[3], "cache-sign", &["-k", "key.sec"]),
            stage(STAGES[4], "s3-push", &["--json", "--part-size", &part_size, &url]),
        ];
        let dir = self.scratch.path();
        Pipeline::start(stages, &dir.join("paths"), &dir.join("report"), &dir.join("logs"))
    }

    /// Reads from the report of the last push how many parts it resumed.
    fn resumed_parts(&self) -> u64 {
        let report = fs::read_to_string(self.scratch.path().join("report")).unwrap_or_default();
        let summary = report.lines().last().and_then(|line| serde_json::from_str::<Value>(line).ok());
        summary.and_then(|line| line["summary"]["partsContinued"].as_u64()).unwrap_or(0)
    }

    /// Copies the bucket with MinIO's client and audits the cache below `prefix`. All objects are taken from the copy: the last
    /// request of a killed push may still be on its way, so that another listing could differ.
    fn audit(&self, bucket: &str, prefix: &str) -> Result<Audit, String> {
        let copy = self.scratch.dir("copy");
        if !self.minio.objects(bucket).is_empty() {
            self.minio.mc(&["cp", "--quiet", "--recursive", &mc_target(bucket), &format!("{}/", copy.display())]);
        }
        let result = audit(&prefix_dir(&copy, bucket, prefix));
        let objects = files_below(&copy);
        fs::remove_dir_all(&copy).map_err(|error| format!("cannot remove {}: {error}", copy.display()))?;
        let result = result?;
        if result.objects == objects.len() {
            return Ok(result);
        }
        let (expected, all) = (result.objects, objects.len());
        Err(format!("{expected} of {all} objects have keys of a cache: {}", objects.join(" ")))
    }

    /// Fetches some paths of a cache, which verifies FileHash, NarHash and NarSize.
    fn fetch_sample(&self, prefix: &str, audit: &Audit, random: &mut Random) -> Vec<String> {
        let paths: Vec<&String> = audit.paths.iter().collect();
        let sample = (0..SAMPLE_SIZE.min(paths.len())).map(|_| paths[random.below(paths.len())].as_str());
        let url = self.minio.cache_url(prefix);
        let fetch = |path: &str| {
            let mut pull: Command = self.scratch.tool("s3-pull", &["--nar", "--no-verify-signatures", &url, path]);
            match pull.stdin(Stdio::null()).stdout(Stdio::null()).output() {
                Ok(output) if output.status.success() => None,
                Ok(output) => Some(format!("s3-pull {path}: {}", String::from_utf8_lossy(&output.stderr).trim())),
                Err(error) => Some(format!("cannot run s3-pull: {error}")),
            }
        };
        sample.filter_map(fetch).collect()
    }
}

/// Returns the paths of all files below a directory, relative to it.
fn files_below(dir: &Path) -> Vec<String> {
    let entries = WalkDir::new(dir).sort_by_file_name().into_iter().flatten();
    let files = entries.filter(|entry| !entry.file_type().is_dir());
    files.filter_map(|file| Some(file.path().strip_prefix(dir).ok()?.display().to_string())).collect()
}

/// Returns the directory of a prefix of the bucket in a copy of the bucket.
fn prefix_dir(copy: &Path, bucket: &str, prefix: &str) -> PathBuf {
    copy.join(prefix.trim_start_matches(bucket).trim_start_matches('/'))
}

/// Returns whether s3-push reported that it was terminated. Before it handles signals, it exits without a message.
fn reported_termination(stages: &[FinishedStage]) -> bool {
    stages[PUSH].status.code().is_some_and(|code| code != 0) && stages[PUSH].stderr.contains("terminated")
}
