//! `cargo xtask chaos`: kills the stages of the pipeline at random moments, and looks whether the cache is ever broken.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use crate::Outcome;
use crate::audit::{Audit, audit};
use crate::build::{Profile, tools};
use crate::closure::{self, Contents, Entry};
use crate::json::summary_field;
use crate::minio;
use crate::pipeline::{Ended, Running, Stage};
use crate::random::Random;
use crate::server::{self, Server, target};
use crate::session::{self, Temporary, output, random_hex};

/// The least part that S3 takes, so that uploads in parts happen early.
const PART: u64 = 5 << 20;

/// A pipeline that takes longer hangs.
const LIMIT: Duration = Duration::from_mins(2);

/// The stages, in order.
const STAGES: [&str; 5] = ["s3-push --missing", "nar-pack", "narinfo-gen", "cache-sign", "s3-push"];

/// The stage that publishes.
const PUSH: usize = 4;

/// Every so many rounds s3-push gets SIGTERM instead.
const TERM_EVERY: u32 = 4;

/// How many paths of a cache are fetched to check their NarHash.
const SAMPLE: usize = 3;

/// What the command line says.
pub struct Options {
    kills: u32,
    seed: u64,
}

impl Options {
    /// Reads the arguments.
    ///
    /// # Errors
    /// A message about usage.
    pub fn parse(args: &[&str]) -> Result<Self, String> {
        let mut options = Self { kills: 20, seed: u64::from_str_radix(&random_hex()?[..8], 16).unwrap_or(1) };
        let mut args = args.iter();
        while let Some(&name) = args.next() {
            let value = args.next().ok_or_else(|| format!("chaos: {name} takes a number"))?;
            let number = value.parse::<u64>().map_err(|_| format!("chaos: {name} {value:?} is not a number"))?;
            match name {
                "--kills" => options.kills = u32::try_from(number).map_err(|_| format!("chaos: {value} kills"))?,
                "--seed" => options.seed = number,
                _ => return Err(format!("chaos takes no {name:?}")),
            }
        }
        Ok(options)
    }
}

/// What happens to a pipeline.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Accident {
    /// This stage, or the next one that is still at work: the first ones soon have nothing left to do.
    Kill(usize),
    KillAll,
    Terminate,
}

impl Accident {
    fn choose(random: &mut Random, round: u32) -> Self {
        let stage = random.index(STAGES.len() + 1);
        match stage {
            _ if round.is_multiple_of(TERM_EVERY) => Self::Terminate,
            5 => Self::KillAll,
            _ => Self::Kill(stage),
        }
    }
}

impl fmt::Display for Accident {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kill(stage) => f.pad(&format!("SIGKILL {}", STAGES[*stage])),
            Self::KillAll => f.pad("SIGKILL all"),
            Self::Terminate => f.pad("SIGTERM s3-push"),
        }
    }
}

/// Where it all happens.
struct Chaos {
    bin: PathBuf,
    server: Server,
    entries: Vec<Entry>,
    /// Removed last.
    dir: Temporary,
}

/// What the rounds found.
#[derive(Default)]
struct Tally {
    /// Accidents that hit a stage which was still at work.
    hits: u32,
    /// Accidents after which some, but not all, paths were published.
    partial: u32,
    /// Terminated pushes that said so.
    gave_up: u32,
    /// Parts of dead uploads that the next run had not to send again.
    continued: u64,
    broken: Vec<String>,
}

pub fn run(options: &Options) -> Outcome {
    let bin = tools(Profile::Debug)?;
    let chaos = Chaos::prepare(bin, options.seed)?;
    let usual = chaos.undisturbed()?;
    let (kills, seed) = (options.kills, options.seed);
    let bytes: u64 = chaos.entries.iter().map(|entry| entry.size).sum();
    println!(
        "chaos: {kills} kills, seed {seed}; {} paths, {} MB; an undisturbed run takes {} ms; * came too late",
        chaos.entries.len(),
        bytes / 1_000_000,
        usual.as_millis()
    );
    let mut random = Random::new(seed);
    let mut tally = Tally::default();
    for round in 1..=kills {
        let accident = Accident::choose(&mut random, round);
        let moment = usual.mul_f64(1.2 * random.fraction());
        let before = tally.broken.len();
        if let Err(problem) = chaos.round(round, accident, moment, &mut random, &mut tally) {
            tally.broken.push(format!("round {round}: {problem}"));
        }
        for problem in &tally.broken[before..] {
            println!("BROKEN {problem}");
        }
    }
    tally.sum_up(kills, seed)
}

impl Tally {
    fn sum_up(&self, kills: u32, seed: u64) -> Outcome {
        println!(
            "chaos: {kills} kills, of which {} hit a stage at work and {} left part of the closure; {} pushes gave up \
             as told; {} parts were continued; {} problems",
            self.hits,
            self.partial,
            self.gave_up,
            self.continued,
            self.broken.len()
        );
        match self.broken.len() {
            0 => Ok(()),
            count => Err(format!("{count} problems with --seed {seed}; the first: {}", self.broken[0])),
        }
    }
}

impl Chaos {
    fn prepare(bin: PathBuf, seed: u64) -> Result<Self, String> {
        let minio = minio::get()?;
        let dir = Temporary::new("chaos")?;
        let entries = closure::for_chaos(seed, PART);
        closure::write(&entries, &dir.path.join("root"), Contents::Random, seed)?;
        let list = closure::path_list(&entries);
        fs::write(dir.path.join("paths"), list).map_err(|error| format!("cannot write the path list: {error}"))?;
        dir.dir("logs")?;
        let server = Server::start(&minio, &dir.path.join("minio"))?;
        let chaos = Self { bin, server, entries, dir };
        let mut keygen = chaos.tool("cache-sign", &["keygen", "chaos-1", "key.sec", "key.pub"]);
        output(keygen.current_dir(&chaos.dir.path))?;
        Ok(chaos)
    }

    /// How long the pipeline takes when nobody disturbs it; the second run counts, when everything is warm.
    fn undisturbed(&self) -> Result<Duration, String> {
        let mut usual = Duration::ZERO;
        for bucket in ["warm-up", "undisturbed"] {
            self.server.make_bucket(bucket)?;
            usual = self.complete(bucket)?;
            let audit = self.audit(bucket, bucket)?;
            if let Some(problem) = audit.problems.first() {
                return Err(format!("without any accident: {problem}"));
            }
        }
        Ok(usual)
    }

    /// One accident, and the same command again.
    fn round(
        &self,
        round: u32,
        accident: Accident,
        moment: Duration,
        random: &mut Random,
        tally: &mut Tally,
    ) -> Outcome {
        let bucket = format!("round-{round}");
        // Every other cache lies below a prefix.
        let place = if round.is_multiple_of(2) { format!("{bucket}/a/prefix") } else { bucket.clone() };
        self.server.make_bucket(&bucket)?;
        let uploads = self.server.uploads();
        let (accident, hit, ended) = self.disturb(&place, accident, moment)?;
        let left = self.server.uploads().iter().filter(|upload| !uploads.contains(upload)).count();
        let found = self.audit(&bucket, &place)?;
        let visible = found.paths.len();
        print!(
            "{round:4}  {accident:<27} {:5} ms{}  {visible:2} narinfos, {:2} objects, {left} uploads under way",
            moment.as_millis(),
            if hit { " " } else { "*" },
            found.objects
        );
        tally.hits += u32::from(hit);
        tally.partial += u32::from(visible > 0 && visible < self.entries.len());
        let mut problems = found.problems.clone();
        problems.extend(self.sample(&place, &found, random));
        problems.extend(self.judge(accident, &ended, visible));
        if accident == Accident::Terminate && gave_up(&ended) {
            tally.gave_up += 1;
            // What belongs to a NAR stays for the next run to continue; all else must be gone.
            let listed = self.server.incomplete(&bucket)?;
            let other = listed.iter().filter(|key| !format!("/{key}").contains("/nar/"));
            problems.extend(other.map(|key| format!("s3-push gave up and left a multipart upload of {key}")));
        }
        problems.extend(self.again(&bucket, &place, random));
        let orphans = self.server.uploads().iter().filter(|upload| !uploads.contains(upload)).count();
        if orphans > 0 {
            let listed = self.server.incomplete(&bucket)?.join(" ");
            problems.push(format!("again: all is complete, but {orphans} multipart uploads are left ({listed})"));
        }
        let continued = fs::read_to_string(self.dir.path.join("published")).unwrap_or_default();
        let continued = summary_field(&continued, "partsContinued").unwrap_or(0);
        tally.continued += continued;
        let continued = if continued > 0 { format!(" ({continued} parts continued)") } else { String::new() };
        println!("; then {}{continued}", if problems.is_empty() { "complete" } else { "BROKEN" });
        tally.broken.extend(problems.into_iter().map(|problem| format!("round {round} ({accident}): {problem}")));
        fs::remove_dir_all(self.dir.path.join("copy")).map_err(|error| format!("cannot remove the copy: {error}"))
    }

    /// Runs the pipeline into a place, with an accident; which it was in the end, whether it hit something at work, and
    /// how the stages ended.
    fn disturb(
        &self,
        place: &str,
        mut accident: Accident,
        moment: Duration,
    ) -> Result<(Accident, bool, Vec<Ended>), String> {
        let mut running = self.start(place)?;
        running.run_until(moment)?;
        let hit = match accident {
            Accident::Kill(chosen) => {
                let mut stages = (chosen..STAGES.len()).chain(0..chosen);
                let stage = stages.find(|&stage| running.is_alive(stage)).unwrap_or(chosen);
                accident = Accident::Kill(stage);
                running.kill(stage)?
            }
            Accident::Terminate => running.terminate(PUSH)?,
            Accident::KillAll => {
                let mut hit = false;
                for stage in 0..STAGES.len() {
                    hit |= running.kill(stage)?;
                }
                hit
            }
        };
        Ok((accident, hit, running.finish(LIMIT)?.1))
    }

    /// What the stages said and how they ended must fit what is published.
    fn judge(&self, accident: Accident, ended: &[Ended], visible: usize) -> Vec<String> {
        let panicked = ended.iter().filter(|stage| stage.said.contains("panicked"));
        let mut problems: Vec<_> = panicked.map(Ended::tell).collect();
        // Nobody can tell a path list that was cut off from a shorter one.
        let told = accident != Accident::Kill(0);
        if told && ended[PUSH].status.success() && visible < self.entries.len() {
            problems.push(format!("s3-push said that all is done, but only {visible} paths are there"));
        }
        problems
    }

    /// Runs the pipeline again, without an accident: it must complete the work.
    fn again(&self, bucket: &str, place: &str, random: &mut Random) -> Vec<String> {
        let completed = self.complete(place).and_then(|_| self.audit(bucket, place));
        match completed {
            Err(problem) => vec![format!("again: {problem}")],
            Ok(found) => {
                let mut problems = found.problems.clone();
                let absent = self.entries.iter().filter(|entry| !found.paths.contains(&entry.path));
                problems.extend(absent.map(|entry| format!("{} is still missing", entry.path)));
                problems.extend(self.sample(place, &found, random));
                problems.into_iter().map(|problem| format!("again: {problem}")).collect()
            }
        }
    }

    /// Runs the pipeline, and demands that each stage succeeds.
    fn complete(&self, place: &str) -> Result<Duration, String> {
        let (wall, ended) = self.start(place)?.finish(LIMIT)?;
        match ended.iter().rev().find(|stage| !stage.status.success()) {
            Some(stage) => Err(stage.tell()),
            None => Ok(wall),
        }
    }

    fn start(&self, place: &str) -> Result<Running, String> {
        let url = server::url(&self.server.endpoint, place);
        let root = self.dir.path.join("root").display().to_string();
        let key = self.dir.path.join("key.sec").display().to_string();
        let part = PART.to_string();
        let stage = |name, program: &str, args: &[&str]| Stage { name, command: self.tool(program, args) };
        let stages = vec![
            stage(STAGES[0], "s3-push", &["--missing", &url]),
            stage(STAGES[1], "nar-pack", &["--root", &root, "--no-nix", "--export", "--stdin"]),
            stage(STAGES[2], "narinfo-gen", &["--archive", "--no-nix"]),
            stage(STAGES[3], "cache-sign", &["-k", &key]),
            stage(STAGES[4], "s3-push", &["--json", "--part-size", &part, &url]),
        ];
        let dir = &self.dir.path;
        Running::start(stages, &dir.join("paths"), &dir.join("published"), &dir.join("logs"))
    }

    fn tool(&self, program: &str, args: &[&str]) -> std::process::Command {
        let mut command = session::command(self.bin.join(program));
        self.server.authorise(&mut command);
        command.args(args);
        command
    }

    /// Copies the bucket with MinIO's client and reads the cache at a place in it.
    fn audit(&self, bucket: &str, place: &str) -> Result<Audit, String> {
        let copy = self.dir.path.join("copy");
        if copy.exists() {
            fs::remove_dir_all(&copy).map_err(|error| format!("cannot remove the copy: {error}"))?;
        }
        fs::create_dir(&copy).map_err(|error| format!("cannot make a copy: {error}"))?;
        let objects = self.server.objects(bucket)?;
        if !objects.is_empty() {
            self.server.run_mc(&["cp", "--recursive", &target(bucket), &format!("{}/", copy.display())])?;
        }
        let found = audit(&inside(&copy, bucket, place))?;
        if found.objects == objects.len() {
            return Ok(found);
        }
        let (there, all) = (found.objects, objects.len());
        Err(format!("of {all} objects {there} are where a cache has them: {}", objects.join(" ")))
    }

    /// Fetches some paths of a cache, which checks FileHash, NarHash and NarSize.
    fn sample(&self, place: &str, found: &Audit, random: &mut Random) -> Vec<String> {
        let paths: Vec<&String> = found.paths.iter().collect();
        let chosen = (0..SAMPLE.min(paths.len())).map(|_| paths[random.index(paths.len())].as_str());
        let url = server::url(&self.server.endpoint, place);
        let fetch = |path: &str| {
            let mut pull = self.tool("s3-pull", &["--nar", "--no-verify-signatures", &url, path]);
            let output = pull.stdin(Stdio::null()).stdout(Stdio::null()).output();
            let output = output.map_err(|error| format!("cannot run s3-pull: {error}"));
            match output {
                Ok(output) if output.status.success() => None,
                Ok(output) => Some(format!("s3-pull {path}: {}", String::from_utf8_lossy(&output.stderr).trim())),
                Err(error) => Some(error),
            }
        };
        chosen.filter_map(fetch).collect()
    }
}

/// Where a place of the bucket lies in a copy of the bucket.
fn inside(copy: &Path, bucket: &str, place: &str) -> PathBuf {
    copy.join(place.trim_start_matches(bucket).trim_start_matches('/'))
}

/// Whether s3-push said that it was told to end; one that had not begun yet just dies.
fn gave_up(ended: &[Ended]) -> bool {
    ended[PUSH].status.code().is_some_and(|code| code != 0) && ended[PUSH].said.contains("terminated")
}
