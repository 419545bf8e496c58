//! `cargo xtask bench push`: how long a closure takes to a bucket, by our pipeline and by others, as a ratio to a plain
//! upload of the same finished files.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::Outcome;
use crate::build::{Profile, tools};
use crate::closure::{self, Contents, Entry};
use crate::json::number_field;
use crate::minio::{self, Minio};
use crate::pipeline::{Ended, Running, Stage};
use crate::server::{Server, target, url};
use crate::session::{self, Temporary, output};

const BUCKET: &str = "bench";

/// A measurement that takes longer hangs.
pub const LIMIT: Duration = Duration::from_hours(1);

/// The same closure every time.
const SEED: u64 = 4;

/// What the command line says.
pub struct Options {
    paths: usize,
    bytes: u64,
    /// Milliseconds added to a round trip.
    pub latencies: Vec<u32>,
    pub runs: usize,
    /// What is measured, by the names that the benchmark gives; everything when empty.
    only: Vec<String>,
    json: Option<PathBuf>,
}

impl Options {
    /// Reads the arguments of the benchmark `what`, which can measure `keys`.
    ///
    /// # Errors
    /// A message about usage.
    pub fn parse(what: &str, keys: &[&str], args: &[&str]) -> Result<Self, String> {
        let mut options =
            Self { paths: 300, bytes: 1_500_000_000, latencies: vec![0, 50], runs: 3, only: vec![], json: None };
        let mut args = args.iter();
        while let Some(&name) = args.next() {
            if name == "--small" {
                options = Self { paths: 40, bytes: 30_000_000, latencies: vec![0], runs: 1, ..options };
                continue;
            }
            let value = args.next().ok_or_else(|| format!("bench {what}: {name} takes a value"))?;
            let wrong = || format!("bench {what}: {name} {value:?}");
            match name {
                "--paths" => options.paths = value.parse().ok().filter(|&paths| paths > 0).ok_or_else(wrong)?,
                "--size" => options.bytes = bytes(value).ok_or_else(wrong)?,
                "--runs" => options.runs = value.parse().ok().filter(|&runs| runs > 0).ok_or_else(wrong)?,
                "--latency" => {
                    let latencies: Result<_, _> = value.split(',').map(str::parse).collect();
                    options.latencies = latencies.map_err(|_| wrong())?;
                }
                "--only" => {
                    options.only = value.split(',').map(str::to_owned).collect();
                    if !options.only.iter().all(|key| keys.contains(&key.as_str())) {
                        return Err(format!("bench {what}: --only {value:?}; there are {}", keys.join(", ")));
                    }
                }
                "--json" => options.json = Some(PathBuf::from(value)),
                _ => return Err(format!("bench {what} takes no {name:?}")),
            }
        }
        Ok(options)
    }

    /// Whether what has that name is to be measured.
    pub fn wants(&self, key: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|only| only == key)
    }

    /// Prints the table and writes the file that was asked for.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn report(&self, rows: &[Row], shape: &str, note: &str) -> Outcome {
        print_table(rows, shape, note);
        match &self.json {
            Some(file) => fs::write(file, to_json(rows, self))
                .map_err(|error| format!("cannot write {}: {error}", file.display())),
            None => Ok(()),
        }
    }
}

/// What `--only` can name.
pub fn keys() -> Vec<&'static str> {
    Case::ALL.map(Case::key).to_vec()
}

/// `1500MB`, `64MiB` or a number of bytes.
fn bytes(text: &str) -> Option<u64> {
    let units =
        [("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30), ("kB", 1000), ("MB", 1_000_000), ("GB", 1_000_000_000)];
    let unit = units.iter().find_map(|&(name, factor)| Some((text.strip_suffix(name)?, factor)));
    let (digits, factor) = unit.unwrap_or((text, 1));
    digits.parse::<u64>().ok()?.checked_mul(factor)
}

/// What is measured.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Case {
    /// Our pipeline into an empty bucket, and once more when nothing is left to do.
    Ours,
    /// `s3-push` with the finished cache archive.
    PushOnly,
    /// The finished files by MinIO's client: what all others are compared to.
    Mc,
    /// The finished files by rclone.
    Rclone,
    /// `nix copy` over HTTP, which is how this Nix can write to MinIO.
    NixHttp,
    /// Our pipeline into a directory.
    OursFile,
    /// `nix copy` into a directory.
    NixFile,
}

impl Case {
    const ALL: [Self; 7] =
        [Self::Mc, Self::Rclone, Self::PushOnly, Self::Ours, Self::NixHttp, Self::OursFile, Self::NixFile];

    /// Its name on the command line.
    fn key(self) -> &'static str {
        match self {
            Self::Ours => "ours",
            Self::PushOnly => "s3-push",
            Self::Mc => "mc",
            Self::Rclone => "rclone",
            Self::NixHttp => "nix",
            Self::OursFile => "ours-file",
            Self::NixFile => "nix-file",
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Ours => "our pipeline, cold",
            Self::PushOnly => "s3-push, finished archive",
            Self::Mc => "mc cp -r, finished files",
            Self::Rclone => "rclone copy --transfers 16, finished files",
            Self::NixHttp => "nix copy --to http://",
            Self::OursFile => "our pipeline | tar x",
            Self::NixFile => "nix copy --to file://",
        }
    }

    /// The name of the same command run again, where that is measured too.
    fn again(self) -> Option<&'static str> {
        match self {
            Self::Ours => Some("our pipeline with --missing, nothing to do"),
            Self::Mc => Some("mc mirror, nothing to do"),
            Self::Rclone => Some("rclone copy, nothing to do"),
            Self::NixHttp => Some("nix copy --to http://, nothing to do"),
            Self::NixFile => Some("nix copy --to file://, nothing to do"),
            Self::PushOnly | Self::OursFile => None,
        }
    }

    /// Whether it sends what somebody else has finished.
    fn is_plain(self) -> bool {
        matches!(self, Self::PushOnly | Self::Mc | Self::Rclone)
    }

    /// Whether it is Nix.
    fn is_nix(self) -> bool {
        matches!(self, Self::NixHttp | Self::NixFile)
    }

    /// Whether it talks to the server, so that latency matters.
    fn is_remote(self) -> bool {
        !matches!(self, Self::OursFile | Self::NixFile)
    }
}

/// One run of one command.
#[derive(Clone)]
pub struct Measured {
    pub wall: Duration,
    /// User and system time of all its processes.
    pub cpu: Duration,
    /// Peak of the resident memory of its largest process, in KiB.
    pub peak: u64,
    /// What the server answered.
    pub requests: Option<u64>,
    /// What arrived.
    pub bytes: u64,
}

/// The median of the runs of one command.
pub struct Row {
    name: String,
    latency: u32,
    measured: Measured,
    /// Wall-clock time divided by that of the plain way by mc, and by rclone.
    ratios: [Option<f64>; 2],
}

/// Where it all happens.
pub struct Bench {
    pub bin: PathBuf,
    pub minio: Minio,
    pub entries: Vec<Entry>,
    /// Whether a Nix is there which took the closure in.
    nix: bool,
    pub rclone: bool,
    pub dir: Temporary,
}

pub fn run(options: &Options) -> Outcome {
    let bench = Bench::prepare(tools(Profile::Release)?, options)?;
    let mut rows = Vec::new();
    for &latency in &options.latencies {
        let cases: Vec<_> = Case::ALL.into_iter().filter(|&case| bench.can(case, latency, options)).collect();
        let mut runs: Vec<Vec<(String, Measured)>> = Vec::new();
        for number in 1..=options.runs {
            for &case in &cases {
                eprintln!("{latency} ms, run {number} of {}: {}", options.runs, case.name());
                runs.push(bench.measure(case, latency)?);
            }
        }
        rows.extend(medians(&runs.concat(), latency, [Case::Mc, Case::Rclone].map(Case::name)));
    }
    let note = "/ mc, / rcl.: wall-clock time divided by that of a plain upload of the finished\n\
                files at the same latency. Nothing to do: from a host that remembers nothing.";
    options.report(&rows, &bench.shape("zstd level 3", options), note)
}

impl Bench {
    /// Makes the closure and a key.
    ///
    /// # Errors
    /// What stands in the way.
    pub fn new(bin: PathBuf, options: &Options) -> Result<Self, String> {
        let minio = minio::get()?;
        let dir = Temporary::new("bench")?;
        eprintln!("Making a closure of {} paths, {} MB", options.paths, options.bytes / 1_000_000);
        let entries = closure::for_bench(SEED, options.paths, options.bytes);
        closure::write(&entries, &dir.path.join("root"), Contents::Mixed, SEED)?;
        let written = fs::write(dir.path.join("paths"), closure::path_list(&entries));
        let written = written.and_then(|()| fs::write(dir.path.join("info.json"), path_info(&entries)));
        written.map_err(|error| format!("cannot write what is to be pushed: {error}"))?;
        for name in ["logs", "cache"] {
            dir.dir(name)?;
        }
        let rclone = output(session::command("rclone").arg("version")).is_ok();
        let bench = Self { bin, minio, entries, nix: false, rclone, dir };
        output(&mut bench.tool("cache-sign", &["keygen", "bench-1", "key.sec", "key.pub"]))?;
        Ok(bench)
    }

    /// Makes the closure, and the same as a finished cache.
    fn prepare(bin: PathBuf, options: &Options) -> Result<Self, String> {
        let mut bench = Self::new(bin, options)?;
        if Case::ALL.into_iter().any(|case| case.is_plain() && options.wants(case.key())) {
            bench.finish_cache("zstd", "cache")?;
        }
        bench.nix = Case::ALL.into_iter().any(|case| case.is_nix() && options.wants(case.key())) && bench.import();
        Ok(bench)
    }

    /// Makes the closure a finished cache in a directory, and a finished archive beside it.
    ///
    /// # Errors
    /// What a stage says that fails.
    pub fn finish_cache(&self, method: &str, dir: &str) -> Outcome {
        self.dir.dir(dir)?;
        self.run(self.describing(method), "paths", "archive")?;
        let mut untar = session::command("tar");
        output(untar.arg("xf").arg("archive").args(["-C", dir]).current_dir(&self.dir.path)).map(drop)
    }

    /// Gives the closure to a Nix in a store of its own, where there is one.
    fn import(&self) -> bool {
        let mut import = self.command("nix-store");
        import.arg("--store").arg(self.dir.path.join("nix")).arg("--import");
        let stages = vec![self.pack(), Stage { name: "nix-store", command: import }];
        let imported = self.run(stages, "paths", "imported");
        if let Err(problem) = &imported {
            eprintln!("xtask: nix copy is not measured: {problem}");
        }
        imported.is_ok()
    }

    /// Whether something is installed and worth measuring.
    fn can(&self, case: Case, latency: u32, options: &Options) -> bool {
        if !options.wants(case.key()) {
            return false;
        }
        let installed = match case {
            Case::Rclone => self.rclone,
            Case::NixHttp | Case::NixFile => self.nix,
            _ => true,
        };
        if !installed {
            eprintln!("xtask: not measured, since it is not installed: {}", case.name());
        }
        // A directory is as near with latency as without.
        installed && (case.is_remote() || options.latencies.first() == Some(&latency))
    }

    /// Measures one command, and where that says something the same command again, with a fresh server.
    fn measure(&self, case: Case, latency: u32) -> Result<Vec<(String, Measured)>, String> {
        let site = Site::new(self, latency)?;
        let mut measured = Vec::new();
        let names = [Some(case.name()), case.again()];
        for (again, name) in names.into_iter().enumerate().filter_map(|(index, name)| Some((index > 0, name?))) {
            let before = site.bytes(case)?;
            site.settle()?;
            let input = if case == Case::PushOnly { "archive" } else { "paths" };
            let asked = site.server.requests()?;
            let (wall, ended) = self.run(site.stages(case, again), input, "output")?;
            let requests = site.server.requests()? - asked;
            let said = fs::read_to_string(self.dir.path.join("output")).unwrap_or_default();
            let bytes = site.bytes(case)?.saturating_sub(before);
            site.check(case, &said)?;
            measured.push((
                name.to_owned(),
                Measured {
                    wall,
                    cpu: ended.iter().map(|stage| stage.cpu).sum(),
                    peak: ended.iter().map(|stage| stage.peak).max().unwrap_or(0),
                    requests: case.is_remote().then_some(requests),
                    bytes,
                },
            ));
        }
        Ok(measured)
    }

    /// Runs a pipeline from one file to another, and demands success.
    ///
    /// # Errors
    /// What the last stage says that fails.
    pub fn run(&self, stages: Vec<Stage>, input: &str, output: &str) -> Result<(Duration, Vec<Ended>), String> {
        let dir = &self.dir.path;
        let (wall, ended) =
            Running::start(stages, &dir.join(input), &dir.join(output), &dir.join("logs"))?.finish(LIMIT)?;
        match ended.iter().rev().find(|stage| !stage.status.success()) {
            Some(stage) => Err(stage.tell()),
            None => Ok((wall, ended)),
        }
    }

    /// From a path list to a signed cache archive.
    fn describing(&self, method: &str) -> Vec<Stage> {
        let describe = self.tool("narinfo-gen", &["--archive", "--no-nix", "--compression", method]);
        let sign = self.tool("cache-sign", &["-k", "key.sec"]);
        vec![self.pack(), Stage { name: "narinfo-gen", command: describe }, Stage { name: "cache-sign", command: sign }]
    }

    fn pack(&self) -> Stage {
        // The references are known, as they are where there is a Nix.
        let args = ["--root", "root", "--no-nix", "--path-info", "info.json", "--export", "--stdin"];
        Stage { name: "nar-pack", command: self.tool("nar-pack", &args) }
    }

    /// One of our tools in our directory.
    pub fn tool(&self, program: &str, args: &[&str]) -> Command {
        let mut command = self.command(self.bin.join(program));
        command.args(args);
        command
    }

    /// A command in our directory, with a home of its own, so that nobody remembers anything from run to run.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = session::command(program);
        command.current_dir(&self.dir.path).env("HOME", self.dir.path.join("home"));
        for name in ["XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME"] {
            command.env_remove(name);
        }
        command.env("RCLONE_CONFIG", self.dir.path.join("rclone.conf"));
        command.env("NIX_CONFIG", "experimental-features = nix-command\nsubstituters =\nbuild-users-group =\n");
        command
    }

    /// The closure and the machine, in a line.
    pub fn shape(&self, method: &str, options: &Options) -> String {
        let total: u64 = self.entries.iter().map(|entry| entry.size).sum();
        format!(
            "{} paths, {} MB in files, {method}, {} run(s), {} processors",
            self.entries.len(),
            total / 1_000_000,
            options.runs,
            session::processors()
        )
    }
}

/// A fresh server, at some distance, and a fresh directory for one measurement.
struct Site<'a> {
    bench: &'a Bench,
    server: Server,
    proxy: Option<Proxy>,
    out: PathBuf,
}

impl<'a> Site<'a> {
    fn new(bench: &'a Bench, latency: u32) -> Result<Self, String> {
        for name in ["out", "home"] {
            let dir = bench.dir.path.join(name);
            if dir.exists() {
                fs::remove_dir_all(&dir).map_err(|error| format!("cannot remove {}: {error}", dir.display()))?;
            }
        }
        let server = Server::start(&bench.minio, &bench.dir.path.join("minio"))?;
        server.make_bucket(BUCKET)?;
        // Nix has no credentials for HTTP.
        server.run_mc(&["anonymous", "set", "public", &target(BUCKET)])?;
        let proxy = (latency > 0).then(|| Proxy::start(&bench.bin, &server.endpoint, latency)).transpose()?;
        bench.dir.dir("home")?;
        let out = bench.dir.dir("out")?;
        Ok(Self { bench, server, proxy, out })
    }

    fn endpoint(&self) -> &str {
        self.proxy.as_ref().map_or(&self.server.endpoint, |proxy| &proxy.endpoint)
    }

    fn stages(&self, case: Case, again: bool) -> Vec<Stage> {
        let bench = self.bench;
        let one = |name, command| vec![Stage { name, command }];
        let (cache, bucket) = (format!("{}/cache/", bench.dir.path.display()), target(BUCKET));
        match case {
            Case::Ours => {
                let mut stages = bench.describing("zstd");
                if again {
                    stages.insert(0, self.push(&["--missing"]));
                }
                stages.push(self.push(&["--json", "--quiet"]));
                stages
            }
            Case::PushOnly => vec![self.push(&["--json", "--quiet"])],
            Case::Mc if again => one("mc", self.mc(&["mirror", &cache, &bucket])),
            Case::Mc => one("mc", self.mc(&["cp", "--recursive", &cache, &bucket])),
            Case::Rclone => one("rclone", self.rclone()),
            Case::NixHttp => one("nix", self.nix(&format!("http://{}/{BUCKET}", self.endpoint()))),
            Case::OursFile => {
                let mut stages = bench.describing("zstd");
                let mut tar = bench.command("tar");
                tar.arg("x").arg("-C").arg(&self.out);
                stages.push(Stage { name: "tar", command: tar });
                stages
            }
            Case::NixFile => one("nix", self.nix(&format!("file://{}", self.out.display()))),
        }
    }

    fn push(&self, args: &[&str]) -> Stage {
        let mut command = self.bench.tool("s3-push", args);
        command.arg(url(self.endpoint(), BUCKET));
        self.server.authorise(&mut command);
        Stage { name: "s3-push", command }
    }

    fn mc(&self, args: &[&str]) -> Command {
        self.server.mc(self.endpoint(), args)
    }

    fn rclone(&self) -> Command {
        let mut command = self.bench.command("rclone");
        command.args(["copy", "--quiet", "--transfers", "16", "--checkers", "16", "--s3-no-check-bucket", "cache"]);
        command.arg(format!("bench:{BUCKET}"));
        let settings = [("TYPE", "s3"), ("PROVIDER", "Minio"), ("REGION", "us-east-1")];
        let secrets = [("ACCESS_KEY_ID", &self.server.user), ("SECRET_ACCESS_KEY", &self.server.password)];
        let secrets = secrets.map(|(name, value)| (name, value.as_str()));
        for (name, value) in settings.into_iter().chain(secrets) {
            command.env(format!("RCLONE_CONFIG_BENCH_{name}"), value);
        }
        command.env("RCLONE_CONFIG_BENCH_ENDPOINT", format!("http://{}", self.endpoint()));
        command
    }

    fn nix(&self, url: &str) -> Command {
        let mut command = self.bench.command("nix");
        command.args(["copy", "--no-check-sigs", "--from"]).arg(self.bench.dir.path.join("nix"));
        command.arg("--to").arg(format!("{url}?compression=zstd&compression-level=3"));
        command.args(self.bench.entries.iter().map(|entry| &entry.path));
        command
    }

    /// Makes the machine as if nothing had been before: nothing is left to be written, and nobody remembers what
    /// there is in the cache, as Nix does in its home.
    fn settle(&self) -> Outcome {
        let home = self.bench.dir.path.join("home");
        fs::remove_dir_all(&home).map_err(|error| format!("cannot remove {}: {error}", home.display()))?;
        self.bench.dir.dir("home")?;
        output(&mut session::command("sync")).map(drop)
    }

    /// How many bytes have arrived.
    fn bytes(&self, case: Case) -> Result<u64, String> {
        if !case.is_remote() {
            return Ok(size_of(&self.out));
        }
        let listing = self.server.run_mc(&["ls", "--recursive", "--json", &target(BUCKET)])?;
        Ok(listing.lines().filter_map(|line| number_field(line, "size")).sum())
    }

    /// A measurement of what did not arrive is none.
    fn check(&self, case: Case, said: &str) -> Outcome {
        let there = if case.is_remote() {
            self.server.objects(BUCKET)?.iter().filter(|key| key.ends_with(".narinfo")).count()
        } else {
            let entries = fs::read_dir(&self.out).into_iter().flatten().flatten();
            entries.filter(|entry| entry.path().extension().is_some_and(|extension| extension == "narinfo")).count()
        };
        if there == self.bench.entries.len() {
            return Ok(());
        }
        let said = said.trim().lines().last().unwrap_or("nothing");
        Err(format!("{}: {there} of {} paths arrived; it said {said}", case.name(), self.bench.entries.len()))
    }
}

/// A delaying proxy before a server; it ends when its standard input closes.
pub struct Proxy {
    child: Child,
    pub endpoint: String,
}

impl Proxy {
    /// Adds `latency` milliseconds to a round trip, half of them either way.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start(bin: &Path, target: &str, latency: u32) -> Result<Self, String> {
        let program = bin.join("delay-proxy");
        let mut command = Command::new(&program);
        command.arg(target).arg(latency.div_ceil(2).to_string()).process_group(0);
        let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let mut child = child.map_err(|error| format!("cannot run {}: {error}", program.display()))?;
        let mut line = String::new();
        if let Some(stdout) = child.stdout.take() {
            let read = BufReader::new(stdout).read_line(&mut line);
            read.map_err(|error| format!("cannot read from delay-proxy: {error}"))?;
        }
        let endpoint = line.strip_prefix("ENDPOINT ").map(|endpoint| endpoint.trim().to_owned());
        let proxy = Self { child, endpoint: endpoint.unwrap_or_default() };
        if proxy.endpoint.is_empty() { Err("delay-proxy did not start".to_owned()) } else { Ok(proxy) }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        drop(self.child.wait());
    }
}

/// What `nix path-info --json` would say of the closure.
fn path_info(entries: &[Entry]) -> String {
    let quoted = |index: &usize| format!("\"{}\"", entries[*index].path);
    let object = |entry: &Entry| {
        let references: Vec<_> = entry.references.iter().map(quoted).collect();
        format!("{{\"path\":\"{}\",\"references\":[{}]}}", entry.path, references.join(","))
    };
    let objects: Vec<_> = entries.iter().map(object).collect();
    format!("[{}]\n", objects.join(",\n"))
}

/// Bytes of all files below a directory.
pub fn size_of(dir: &Path) -> u64 {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let sizes = entries.map(|entry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => size_of(&entry.path()),
        Ok(metadata) => metadata.len(),
        Err(_) => 0,
    });
    sizes.sum()
}

/// The medians of all commands at one latency, in the order in which they ran first; `limits` are the names of the
/// plain ways.
pub fn medians(runs: &[(String, Measured)], latency: u32, limits: [&str; 2]) -> Vec<Row> {
    let mut names: Vec<&str> = Vec::new();
    for (name, _) in runs {
        if !names.contains(&name.as_str()) {
            names.push(name);
        }
    }
    let of = |name: &str| {
        let mut own: Vec<&Measured> = runs.iter().filter(|run| run.0 == name).map(|run| &run.1).collect();
        own.sort_unstable_by_key(|measured| measured.wall);
        own.get(own.len() / 2).copied().cloned()
    };
    let limits = limits.map(|name| of(name).map(|limit| limit.wall.as_secs_f64()));
    let row = |name: &str| {
        let measured = of(name)?;
        let ratios = limits.map(|limit| limit.map(|limit| measured.wall.as_secs_f64() / limit));
        Some(Row { name: name.to_owned(), latency, measured, ratios })
    };
    names.into_iter().filter_map(row).collect()
}

fn print_table(rows: &[Row], shape: &str, note: &str) {
    println!("{shape}\n");
    println!(
        "{:42} {:>7} {:>8} {:>8} {:>9} {:>9} {:>9} {:>6} {:>6}",
        "", "latency", "wall", "CPU", "peak", "requests", "bytes", "/ mc", "/ rcl."
    );
    for Row { name, latency, measured, ratios } in rows {
        let requests = measured.requests.map_or_else(|| "-".to_owned(), |requests| requests.to_string());
        let [mc, rclone] = ratios.map(|ratio| ratio.map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.2}")));
        println!(
            "{name:42} {latency:4} ms {:6.2} s {:6.2} s {:5} MiB {requests:>9} {:6} MB {mc:>6} {rclone:>6}",
            measured.wall.as_secs_f64(),
            measured.cpu.as_secs_f64(),
            measured.peak / 1024,
            measured.bytes.div_ceil(1_000_000),
        );
    }
    println!("\nlatency: added to a round trip. {note}");
}

fn to_json(rows: &[Row], options: &Options) -> String {
    let row = |Row { name, latency, measured, ratios: [mc, rclone] }: &Row| {
        let or_null = |text: Option<String>| text.unwrap_or_else(|| "null".to_owned());
        format!(
            "{{\"name\":\"{name}\",\"latencyMs\":{latency},\"wallSeconds\":{:.3},\"cpuSeconds\":{:.3},\"peakKiB\":{},\
             \"requests\":{},\"bytes\":{},\"ratioToMc\":{},\"ratioToRclone\":{}}}",
            measured.wall.as_secs_f64(),
            measured.cpu.as_secs_f64(),
            measured.peak,
            or_null(measured.requests.map(|requests| requests.to_string())),
            measured.bytes,
            or_null(mc.map(|ratio| format!("{ratio:.3}"))),
            or_null(rclone.map(|ratio| format!("{ratio:.3}"))),
        )
    };
    let rows: Vec<_> = rows.iter().map(row).collect();
    format!(
        "{{\"paths\":{},\"bytes\":{},\"runs\":{},\"processors\":{},\"rows\":[\n{}\n]}}\n",
        options.paths,
        options.bytes,
        options.runs,
        session::processors(),
        rows.join(",\n")
    )
}

#[cfg(test)]
mod tests {
    use super::bytes;

    #[test]
    fn sizes_have_units() {
        assert_eq!(bytes("1500MB"), Some(1_500_000_000));
        assert_eq!(bytes("5MiB"), Some(5 << 20));
        assert_eq!(bytes("7"), Some(7));
        assert_eq!(bytes("x7"), None);
    }
}
