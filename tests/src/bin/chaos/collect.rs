//! The experiment of `--collect`: pushes, pins and collectors at the same time on one bucket, with kills, faults and hours
//! that pass. Time passes by making the objects of the embedded server older, which is all that a collector sees of it.
//!
//! Hours pass between rounds, when nothing runs, and within a round, but never so many that a push would have to read the
//! records again: it does so by its own clock.
//!
//! Nix knows no records, so a path that it found may be deleted before it publishes what refers to it. That window is
//! documented (docs/operations.md) and not what is tested here: Nix pushes before the other processes of a round start.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use cache_tests::fault_proxy::{Fault, FaultProxy, INTERNAL_ERROR, Request, SLOW_DOWN};
use cache_tests::generated_closure::{self, FileContents, GeneratedPath};
use cache_tests::{Credentials, EmbeddedS3, Random, Scratch, nix};
use walkdir::WalkDir;

use crate::actors::{Actor, Outcome, Role, run_all};
use crate::audit::{Audit, audit};

/// Number of paths that are ever published.
const PATHS: usize = 24;
/// Size of all their files.
const BYTES: u64 = 300_000;
/// Every such round uses a service that ignores the conditions of writes.
const UNCONDITIONAL_EVERY: u32 = 4;
/// One request of so many has a fault.
const FAULT_EVERY: usize = 60;
/// Processes start within this time.
const START_WITHIN_MS: usize = 1500;
/// A process that is killed is killed within this time after its start.
const KILL_WITHIN_MS: usize = 900;
/// The same for Nix, which has no proxy in between that delays its requests.
const NIX_KILL_WITHIN_MS: usize = 200;
/// Longest delay of a request in milliseconds.
const MAX_DELAY_MS: usize = 150;
/// Hours that may pass while a push runs: fewer than a path is doomed.
const MAX_HOURS_WITHIN: usize = 20;
/// Hours that pass between two rounds: at least so many that what is doomed in one is deleted in the next.
const MIN_HOURS_BETWEEN: usize = 24;
const MAX_HOURS_BETWEEN: usize = 48;
/// Number of pins that stay from round to round.
const MAX_PINS: usize = 3;
const ROUND_TIMEOUT: Duration = Duration::from_mins(2);

/// The results of all rounds.
#[derive(Default)]
pub struct Totals {
    pushes: Count,
    nix_pushes: Count,
    collectors: Count,
    pins: Count,
    deleted_paths: usize,
    deleted_objects: usize,
    verified_pins: usize,
    /// What must not happen.
    pub problems: Vec<String>,
}

/// How the processes of a kind ended.
#[derive(Default)]
struct Count {
    succeeded: usize,
    failed: usize,
    killed: usize,
}

impl Count {
    fn add(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::Exited(0) => self.succeeded += 1,
            Outcome::Exited(_) => self.failed += 1,
            Outcome::Killed => self.killed += 1,
        }
    }

    fn summary(&self) -> String {
        let Self { succeeded, failed, killed } = self;
        format!("{succeeded} succeeded, {failed} failed, {killed} were killed")
    }
}

impl Totals {
    /// Prints the totals.
    ///
    /// # Errors
    /// If there were problems.
    pub fn report(&self, rounds: u32, seed: u64, faults: usize) -> Result<(), String> {
        println!("chaos: {rounds} rounds, {faults} faults");
        println!("  pushes: {}", self.pushes.summary());
        println!("  pushes by Nix: {}", self.nix_pushes.summary());
        println!("  collectors: {}", self.collectors.summary());
        println!("  pins: {}; {} times a pinned closure was pulled", self.pins.summary(), self.verified_pins);
        println!(
            "  deleted: {} paths, {} NARs; {} problems",
            self.deleted_paths,
            self.deleted_objects,
            self.problems.len()
        );
        match self.problems.len() {
            0 => Ok(()),
            count => Err(format!("{count} problems with --seed {seed}; the first: {}", self.problems[0])),
        }
    }
}

/// A bucket, the proxy in front of it, and its pins.
struct Site {
    s3: EmbeddedS3,
    bucket: String,
    proxy: FaultProxy,
    /// The index of the path of each pin, by the name of the pin.
    pins: BTreeMap<String, usize>,
}

impl Site {
    fn new(s3: EmbeddedS3, seed: u64) -> Self {
        let random = Mutex::new(Random::new(seed));
        let proxy = FaultProxy::start(&s3.endpoint(), move |request| {
            let (fault, delay) = choose_fault(&mut random.lock().unwrap_or_else(PoisonError::into_inner), request);
            thread::sleep(delay);
            fault
        });
        let bucket = s3.make_bucket();
        Self { s3, bucket, proxy, pins: BTreeMap::new() }
    }

    fn url(&self) -> String {
        self.s3.cache_url(&self.bucket).replace(&self.s3.endpoint(), self.proxy.endpoint())
    }

    fn dir(&self) -> PathBuf {
        self.s3.path(&self.bucket, "")
    }

    fn keys_below(&self, prefix: &str) -> Vec<String> {
        self.s3.objects(&self.bucket).into_iter().filter(|key| key.starts_with(prefix)).collect()
    }

    /// Makes objects older. The flag of a collector gets older only when no collector runs: one that runs renews it.
    fn pass(&self, hours: usize, is_idle: bool) {
        for key in self.s3.objects(&self.bucket) {
            if key == "gc/clock" || (key == "gc/sweeping" && !is_idle) {
                continue;
            }
            // It may be deleted or replaced at the same time.
            let Ok(file) = File::options().write(true).open(self.s3.path(&self.bucket, &key)) else { continue };
            if let Ok(modified) = file.metadata().and_then(|metadata| metadata.modified()) {
                drop(file.set_modified(modified - Duration::from_hours(hours as u64)));
            }
        }
    }
}

/// Chooses the fault of a request, and how long it is delayed.
fn choose_fault(random: &mut Random, request: &Request) -> (Fault, Duration) {
    let writes = request.method != "GET" && request.method != "HEAD";
    let limit = if writes { MAX_DELAY_MS } else { MAX_DELAY_MS / 10 };
    let delay = Duration::from_millis(random.below(limit) as u64);
    let fault = match random.below(FAULT_EVERY * 6) {
        0 => SLOW_DOWN,
        1 => INTERNAL_ERROR,
        2 => Fault::Reset,
        3 => Fault::LoseResponse,
        4 => Fault::TruncateRequest,
        5 => Fault::TruncateResponse(40),
        _ => Fault::Pass,
    };
    (fault, delay)
}

/// The paths, their archives, and the two buckets.
pub struct Experiment {
    sites: [Site; 2],
    paths: Vec<GeneratedPath>,
    random: Random,
    scratch: Scratch,
    /// Whether Nix is installed.
    has_nix: bool,
}

impl Experiment {
    /// Generates the paths and a key, and starts the servers.
    pub fn prepare(seed: u64) -> Result<Self, String> {
        let mut random = Random::new(seed);
        let mut scratch = Scratch::removed_on_interrupt();
        let paths = generated_closure::for_bench(seed, PATHS, BYTES);
        generated_closure::write(&paths, &scratch.dir("root"), FileContents::Random, seed);
        let sites = [EmbeddedS3::start(), EmbeddedS3::start_ignoring_conditions()];
        let mut seeds = || random.next();
        let sites = sites.map(|s3| Site::new(s3, seeds()));
        scratch.sh("cache-sign keygen chaos-1 key.sec key.pub").succeed()?;
        scratch.env("KEY", fs::read_to_string(scratch.path().join("key.pub")).unwrap_or_default().trim());
        let has_nix = nix::available();
        let mut experiment = Self { sites, paths, random, scratch, has_nix };
        for target in 0..PATHS {
            let list: String = experiment.closure(target).map(|path| path.path.clone() + "\n").collect();
            experiment.scratch.write(&format!("paths-{target}"), list);
            let archive = format!("{} > archive-{target}", pack(&format!("< paths-{target}")));
            experiment.scratch.sh(&archive).succeed()?;
        }
        experiment.fill()?;
        Ok(experiment)
    }

    /// Publishes all paths to both buckets, so that there is something to delete from the second round on, and imports
    /// them into a store of Nix, if that is installed.
    fn fill(&mut self) -> Result<(), String> {
        let list: String = self.paths.iter().map(|path| path.path.clone() + "\n").collect();
        self.scratch.write("paths", list);
        self.scratch.sh(&format!("{} > archive", pack("< paths"))).succeed()?;
        for site in &self.sites {
            let Credentials { access_key, secret_key } = site.s3.credentials();
            self.scratch.env("AWS_ACCESS_KEY_ID", access_key).env("AWS_SECRET_ACCESS_KEY", secret_key);
            self.scratch.sh(&format!("s3-push -q '{}' < archive", site.s3.cache_url(&site.bucket))).succeed()?;
        }
        if self.has_nix {
            let export = "nar-pack --root root --no-nix --export --stdin < paths";
            self.scratch.sh(&format!("{export} | nix-store --store \"$PWD/nix\" --import")).succeed()?;
        }
        Ok(())
    }

    /// Returns the number of faults so far.
    pub fn faults(&self) -> usize {
        self.sites.iter().map(|site| site.proxy.faults()).sum()
    }

    /// Returns the closure of a path, references first.
    fn closure(&self, target: usize) -> impl Iterator<Item = &GeneratedPath> {
        let mut members = vec![false; self.paths.len()];
        members[target] = true;
        // References are to earlier paths.
        for index in (0..=target).rev() {
            if members[index] {
                self.paths[index].references.iter().for_each(|&reference| members[reference] = true);
            }
        }
        self.paths.iter().zip(members).filter(|(_, is_member)| *is_member).map(|(path, _)| path)
    }

    /// Runs a round, and checks the cache after it.
    pub fn run_round(&mut self, round: u32, totals: &mut Totals) -> Result<(), String> {
        let index = usize::from(round.is_multiple_of(UNCONDITIONAL_EVERY));
        let hours = MIN_HOURS_BETWEEN + self.random.below(MAX_HOURS_BETWEEN - MIN_HOURS_BETWEEN);
        self.sites[index].pass(hours, true);
        let nix = self.push_with_nix(index, round)?;
        let mut actors = self.cast(index, round)?;
        let [first, second] = [0; 2].map(|_| self.random.below(MAX_HOURS_WITHIN / 2));
        let moments = [0; 2].map(|_| Duration::from_millis(self.random.below(2 * START_WITHIN_MS) as u64));
        let site = &self.sites[index];
        let (pass_first, pass_second) = (|| site.pass(first, false), || site.pass(second, false));
        run_all(&mut actors, &[(moments[0], &pass_first), (moments[1], &pass_second)], ROUND_TIMEOUT)?;
        // A request of a killed process may still be at the proxy.
        thread::sleep(Duration::from_millis(2 * MAX_DELAY_MS as u64));
        actors.extend(nix);
        let audit = audit(&site.dir())?;
        let mut problems = audit.problems.clone();
        let deleted = self.count(&actors, &audit, totals, &mut problems);
        let mut unconfirmed = Vec::new();
        for actor in &actors {
            if let Role::Pin(target) = actor.role {
                let name = pin_name(round, target);
                match actor.outcome {
                    Outcome::Exited(0) => drop(self.sites[index].pins.insert(name, target)),
                    _ => unconfirmed.push(name),
                }
            }
        }
        problems.extend(self.verify_pins(index, totals));
        self.thin_pins(index, unconfirmed);
        self.print(round, index, &actors, audit.paths.len(), deleted, &problems);
        totals.problems.extend(problems.into_iter().map(|problem| format!("round {round}: {problem}")));
        Ok(())
    }

    /// Adds the processes to the totals and finds problems in how they ended. Returns the number of deleted paths.
    fn count(&self, actors: &[Actor], audit: &Audit, totals: &mut Totals, problems: &mut Vec<String>) -> usize {
        let mut deleted = 0;
        for actor in actors {
            if actor.log().contains("panicked") {
                problems.push(format!("{:?}: {}", actor.role, actor.log().trim()));
            }
            match actor.role {
                Role::Push(target) => {
                    totals.pushes.add(actor.outcome);
                    let missing = self.closure(target).find(|path| !audit.paths.contains(&path.path));
                    if let Some(path) = missing.filter(|_| actor.outcome == Outcome::Exited(0)) {
                        problems.push(format!("a push succeeded, but {} is not in the cache", path.path));
                    }
                }
                Role::NixPush(_) => {
                    totals.nix_pushes.add(actor.outcome);
                    if !matches!(actor.outcome, Outcome::Exited(0) | Outcome::Killed) {
                        problems.push(format!("nix copy failed: {}", actor.log().trim()));
                    }
                }
                Role::Undo => totals.pushes.add(actor.outcome),
                Role::Pin(_) => totals.pins.add(actor.outcome),
                Role::Collect => {
                    totals.collectors.add(actor.outcome);
                    let output = actor.output();
                    let count = |prefix: &str| output.lines().filter(|line| line.starts_with(prefix)).count();
                    deleted += count("/nix/store/");
                    totals.deleted_objects += count("nar/");
                }
            }
        }
        totals.deleted_paths += deleted;
        deleted
    }

    fn print(&self, round: u32, index: usize, actors: &[Actor], paths: usize, deleted: usize, problems: &[String]) {
        let describe = |actor: &Actor| match (actor.role, actor.outcome) {
            (role, Outcome::Exited(0)) => format!("{role:?}"),
            (role, Outcome::Exited(status)) => format!("{role:?}={status}"),
            (role, Outcome::Killed) => format!("{role:?}!"),
        };
        let actors: Vec<String> = actors.iter().map(describe).collect();
        println!(
            "{round:4}{} {:2} paths, {deleted:2} deleted, {} pins  {}{}",
            if index == 1 { "*" } else { " " },
            paths,
            self.sites[index].pins.len(),
            actors.join(" "),
            if problems.is_empty() { "" } else { "  FAILED" }
        );
    }

    /// Lets Nix push a closure in most rounds, and kills some of these pushes. It writes to the directory that is the bucket.
    fn push_with_nix(&mut self, index: usize, round: u32) -> Result<Option<Actor>, String> {
        let (target, is_left_out) = (self.random.below(PATHS), self.random.below(3) == 0);
        let kill = Duration::from_millis(self.random.below(NIX_KILL_WITHIN_MS) as u64);
        let is_killed = self.random.below(3) == 0;
        if !self.has_nix || is_left_out {
            return Ok(None);
        }
        let bucket = self.sites[index].dir();
        let to = format!("file://{}?compression=zstd&secret-key=key.sec", bucket.display());
        let mut command = self.scratch.command("nix");
        command.args(["copy", "--no-check-sigs", "--option", "narinfo-cache-positive-ttl", "0", "--from"]);
        command.arg(self.scratch.path().join("nix")).args(["--to", &to, &self.paths[target].path]);
        let logs = self.scratch.dir(&format!("logs/{round}"));
        let actor = Actor::new(Role::NixPush(target), command, Duration::ZERO, is_killed.then_some(kill), &logs)?;
        let mut actors = [actor];
        run_all(&mut actors, &[], ROUND_TIMEOUT)?;
        remove_temporary_files(&bucket)?;
        let [actor] = actors;
        Ok(Some(actor))
    }

    /// Chooses the processes of a round.
    fn cast(&mut self, index: usize, round: u32) -> Result<Vec<Actor>, String> {
        let logs = self.scratch.dir(&format!("logs/{round}"));
        let mut roles = vec![Role::Collect];
        let random = &mut self.random;
        let top = |random: &mut Random| PATHS / 3 + random.below(PATHS - PATHS / 3);
        roles.extend((0..=random.below(3)).map(|_| Role::Push(top(random))));
        roles.extend((0..random.below(2)).map(|_| Role::Collect));
        roles.extend((0..random.below(2)).map(|_| Role::Pin(top(random))));
        roles.extend((0..random.below(2)).map(|_| Role::Undo));
        let mut actors = Vec::new();
        for role in roles {
            let Some(command) = self.command(index, role, round) else { continue };
            let start = Duration::from_micros(self.random.below(START_WITHIN_MS * 1000) as u64);
            let kill = Duration::from_millis(self.random.below(KILL_WITHIN_MS) as u64);
            let is_killed = self.random.below(3) == 0;
            actors.push(Actor::new(role, command, start, is_killed.then_some(kill), &logs)?);
        }
        Ok(actors)
    }

    /// Returns the command of a role, or none if it has nothing to do.
    fn command(&mut self, index: usize, role: Role, round: u32) -> Option<Command> {
        let site = &self.sites[index];
        let push = "s3-push -q --no-nix --collector-timeout 5s \"$C\"";
        let is_first = self.random.below(2) == 0;
        let script = match role {
            Role::Push(target) if is_first => {
                format!("s3-push --missing \"$C\" < paths-{target} | {} | {push}", pack(""))
            }
            Role::Push(target) => format!("{push} < archive-{target}"),
            // It has run already.
            Role::NixPush(_) => return None,
            Role::Undo => {
                let records = site.keys_below("gc/");
                let record = records.iter().rfind(|key| key.ends_with(".narinfo"))?;
                let text = fs::read(site.s3.path(&site.bucket, record)).ok()?;
                self.scratch.write(&format!("record-{round}"), text);
                format!("s3-push -q --collector-timeout 5s \"$C\" < record-{round}")
            }
            Role::Collect if is_first => {
                "s3-push collect --older-than 1d --grace 1d --no-roots --max-delete 100% --takeover-pause 1s \"$C\""
                    .to_owned()
            }
            Role::Collect => "s3-pull dead -q --older-than 1d --no-roots \"$C\" > dead-$$; \
                 s3-push delete --max-delete 100% --takeover-pause 1s \"$C\" < dead-$$; \
                 s3-push delete --nars --grace 1d --max-delete 100% --takeover-pause 1s \"$C\""
                .to_owned(),
            Role::Pin(target) => {
                let path = &self.paths[target].path;
                format!("echo {path} | s3-push pin -q --collector-timeout 5s \"$C\" {}", pin_name(round, target))
            }
        };
        let mut command = self.scratch.command("bash");
        command.args(["-euo", "pipefail", "-c", &script]).env("C", site.url());
        site.s3.credentials().authorize(&mut command);
        Some(command)
    }

    /// Pulls and verifies each pinned closure.
    fn verify_pins(&self, index: usize, totals: &mut Totals) -> Vec<String> {
        let site = &self.sites[index];
        let mut problems = Vec::new();
        for (name, &target) in &site.pins {
            let path = &self.paths[target].path;
            let url = site.s3.http_url(&site.bucket);
            let script = format!(
                "rm -rf pulled; s3-pull -q -r --root pulled --trusted-public-key \"$KEY\" {url} {path}; \
                 for path in pulled/nix/store/*; do diff -r --no-dereference $path root/${{path#pulled/}}; done"
            );
            let output = self.scratch.sh(&script);
            totals.verified_pins += 1;
            if let Err(problem) = output.succeed() {
                problems.push(format!("pin {name}: {problem}"));
            }
        }
        problems
    }

    /// Removes some pins, and those that `s3-push pin` has not confirmed.
    fn thin_pins(&mut self, index: usize, mut removed: Vec<String>) {
        let site = &mut self.sites[index];
        while site.pins.len() > MAX_PINS {
            removed.extend(site.pins.pop_first().map(|(name, _)| name));
        }
        for name in removed {
            // It is not there if the process was killed early.
            drop(fs::remove_file(site.s3.path(&site.bucket, &format!("pins/{name}"))));
        }
    }
}

/// Removes the temporary files of a Nix that was killed: in a real bucket there are none.
fn remove_temporary_files(dir: &Path) -> Result<(), String> {
    for entry in WalkDir::new(dir) {
        let entry = entry.map_err(|error| error.to_string())?;
        if entry.file_name().to_string_lossy().contains(".tmp.") {
            fs::remove_file(entry.path())
                .map_err(|error| format!("cannot remove {}: {error}", entry.path().display()))?;
        }
    }
    Ok(())
}

fn pin_name(round: u32, target: usize) -> String {
    format!("branch/{round:04}-{target}")
}

/// Returns the pipeline that packs, describes and signs the paths on its standard input.
fn pack(input: &str) -> String {
    format!(
        "nar-pack --root root --no-nix --export --stdin {input} | narinfo-gen --no-nix --archive | cache-sign -k key.sec"
    )
}
