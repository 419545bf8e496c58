//! `cargo xtask bench pack`: packing, unpacking and describing one tree, each as a ratio to a reference in the same run.

use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::Outcome;
use crate::bench_floor;
use crate::build::{cargo, succeed, target_dir};
use crate::closure::{text, words};
use crate::pipeline::{Running, Stage};
use crate::random::Random;
use crate::session::{self, Temporary, output, processors};

/// A measurement that takes longer hangs.
const LIMIT: Duration = Duration::from_mins(30);

/// The same tree every time.
const SEED: u64 = 7;

/// Sizes of files are log-normal, as those of /usr on a Debian: half below 1.9 kB, one in ten above 23 kB.
const MEDIAN: f64 = 1900.0;
const SPREAD: f64 = 1.95;
const SMALLEST: f64 = 200.0;
const LARGEST: f64 = 4_194_304.0;

/// What the tree is described as.
const PATH: &str = "/nix/store/02dlwc21njky62v7q7ffcb10000n2grx-bench";

/// The level at which both sides compress: the default of narinfo-gen.
const LEVEL: &str = "3";

/// What the command line says.
pub struct Options {
    files: usize,
    runs: usize,
    cases: Vec<Case>,
    json: Option<PathBuf>,
}

impl Options {
    /// Reads the arguments.
    ///
    /// # Errors
    /// A message about usage.
    pub fn parse(args: &[&str]) -> Result<Self, String> {
        let mut options = Self { files: 100_000, runs: 5, cases: Case::ALL.to_vec(), json: None };
        let mut args = args.iter();
        while let Some(&name) = args.next() {
            if name == "--small" {
                options = Self { files: 4_000, runs: 2, ..options };
                continue;
            }
            let value = args.next().ok_or_else(|| format!("bench pack: {name} takes a value"))?;
            let number =
                || value.parse().ok().filter(|&n| n > 0).ok_or_else(|| format!("bench pack: {name} {value:?}"));
            match name {
                "--files" => options.files = number()?,
                "--runs" => options.runs = number()?,
                "--only" => {
                    let names: Vec<&str> = value.split(',').collect();
                    options.cases.retain(|case| names.contains(&case.key()));
                    if options.cases.len() != names.len() {
                        return Err(format!("bench pack: --only {value:?}; cases are {}", keys()));
                    }
                }
                "--json" => options.json = Some(PathBuf::from(value)),
                _ => return Err(format!("bench pack takes no {name:?}")),
            }
        }
        Ok(options)
    }
}

/// What `--only` takes.
fn keys() -> String {
    Case::ALL.map(Case::key).join(", ")
}

/// A command of ours, and the reference that it is compared with.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Case {
    Pack,
    PackCold,
    Unpack,
    Describe,
    DescribeNar,
    Scan,
}

impl Case {
    /// In the order of their measurement: what leaves much to write back, or nothing in memory, comes last.
    const ALL: [Self; 6] = [Self::Pack, Self::DescribeNar, Self::Describe, Self::Scan, Self::Unpack, Self::PackCold];

    /// What the command line calls it.
    fn key(self) -> &'static str {
        match self {
            Self::Pack => "pack",
            Self::PackCold => "pack-cold",
            Self::Unpack => "unpack",
            Self::Describe => "dump-describe",
            Self::DescribeNar => "describe",
            Self::Scan => "scan",
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Pack => "nar-pack TREE, in memory",
            Self::PackCold => "nar-pack TREE, from disk",
            Self::Unpack => "nar-pack --unpack",
            Self::Describe => "nix-store --dump | narinfo-gen --archive",
            Self::DescribeNar => "narinfo-gen --archive < NAR",
            Self::Scan => "scanning for references",
        }
    }

    fn reference(self) -> &'static str {
        match self {
            Self::Pack => "nix-store --dump",
            Self::PackCold => "tar c",
            Self::Unpack => "nix-store --restore",
            Self::Describe => "nix-store --dump | tee >(sha256sum) | zstd -T0",
            Self::DescribeNar => "tee >(sha256sum) | zstd -T0",
            Self::Scan => "sha256sum",
        }
    }

    /// What the ratios of wall-clock and processor time should be at most.
    fn goals(self) -> (f64, Option<f64>) {
        match self {
            Self::Pack | Self::Unpack => (0.38, Some(0.8)),
            Self::PackCold | Self::Scan => (1.0, None),
            // At least 0.9 of the rate.
            Self::Describe | Self::DescribeNar => (1.0 / 0.9, None),
        }
    }
}

/// One run of one side.
#[derive(Clone, Copy)]
struct Measured {
    wall: Duration,
    /// User and system time of what is measured, without the reader at the end of the pipe.
    cpu: Duration,
    /// System time alone.
    kernel: Duration,
    /// Peak of the resident memory of its largest process, in KiB.
    peak: u64,
}

/// The medians of a case.
struct Row {
    case: Case,
    ours: Measured,
    reference: Measured,
}

impl Row {
    fn wall(&self) -> f64 {
        self.ours.wall.as_secs_f64() / self.reference.wall.as_secs_f64()
    }

    fn cpu(&self) -> f64 {
        self.ours.cpu.as_secs_f64() / self.reference.cpu.as_secs_f64().max(0.01)
    }
}

struct Bench {
    bin: PathBuf,
    dir: Temporary,
    nar_size: u64,
    tree: Tree,
    cold: bool,
}

pub fn run(options: &Options) -> Outcome {
    let bench = Bench::prepare(options)?;
    let mut runs: Vec<(Case, [Measured; 2])> = Vec::new();
    let mut floors = Vec::new();
    for &case in options.cases.iter().filter(|&&case| bench.can(case)) {
        for number in 1..=options.runs {
            eprintln!("{}: run {number} of {}", case.name(), options.runs);
            // Taking turns, so that neither side always has what the other one leaves behind.
            let ours_first = number % 2 == 1;
            let first = bench.measure(case, !ours_first, number)?;
            let second = bench.measure(case, ours_first, number)?;
            runs.push((case, if ours_first { [first, second] } else { [second, first] }));
            if case == Case::Unpack {
                floors.push(bench.floor(number)?);
            }
        }
    }
    let rows: Vec<Row> = Case::ALL.into_iter().filter_map(|case| medians(case, &runs)).collect();
    floors.sort_unstable();
    let floor = floors.get(floors.len() / 2).copied();
    bench.print_table(&rows, floor, options);
    match &options.json {
        Some(file) => fs::write(file, bench.to_json(&rows, floor, options))
            .map_err(|error| format!("cannot write {}: {error}", file.display())),
        None => Ok(()),
    }
}

impl Bench {
    fn prepare(options: &Options) -> Result<Self, String> {
        output(session::command("nix-store").arg("--version"))
            .map_err(|error| format!("Nix is what bench pack compares with: {error}"))?;
        let bin = tools()?;
        let dir = Temporary::new("bench-pack")?;
        eprintln!("Making a tree of {} files", options.files);
        let tree = make_tree(&dir.path.join("tree"), options.files)
            .map_err(|error| format!("cannot make the tree: {error}"))?;
        dir.dir("logs")?;
        // A small set of candidates, as a closure has; the tree mentions none of them.
        let candidates = format!("{PATH}\n");
        fs::write(dir.path.join("candidates"), candidates).map_err(|error| format!("cannot write: {error}"))?;
        let mut bench = Self { bin, dir, nar_size: 0, tree, cold: false };
        bench.cold = drop_caches().is_ok();
        if !bench.cold {
            eprintln!("xtask: not measured, since only root may empty the caches: {}", Case::PackCold.name());
        }
        bench.run(vec![bench.tool("nar-pack", &["tree"])], "/dev/null", "nar")?;
        let nar = fs::metadata(bench.dir.path.join("nar")).map_err(|error| format!("no NAR was made: {error}"))?;
        bench.nar_size = nar.len();
        let mut compare = session::command("bash");
        compare.args(["-c", "nix-store --dump tree | cmp - nar"]).current_dir(&bench.dir.path);
        output(&mut compare).map_err(|error| format!("the NAR is not the one of nix-store --dump: {error}"))?;
        Ok(bench)
    }

    fn can(&self, case: Case) -> bool {
        case != Case::PackCold || self.cold
    }

    fn measure(&self, case: Case, reference: bool, run: usize) -> Result<Measured, String> {
        if case == Case::PackCold {
            drop_caches()?;
        } else {
            self.warm(case)?;
        }
        let input = match case {
            Case::Pack | Case::PackCold | Case::Describe => "/dev/null",
            Case::Unpack | Case::DescribeNar | Case::Scan => "nar",
        };
        // What is unpacked stays until the end: for minutes after a removal ext4 looks for inodes that have not been
        // used lately, which makes whoever comes next slower by a multiple.
        let unpacked = format!("unpacked-{}-{run}", if reference { "theirs" } else { "ours" });
        let stages = if reference { self.reference(case, &unpacked) } else { self.ours(case, &unpacked) };
        self.run(stages, input, "/dev/null")
    }

    /// Has what was written written back, and what is going to be read in memory.
    fn warm(&self, case: Case) -> Outcome {
        self.write_back()?;
        let reader = match case {
            Case::Pack | Case::Describe => self.other("tar", &["c", "tree"]),
            _ => self.other("cat", &["nar"]),
        };
        // Through a pipe, because tar reads nothing for /dev/null.
        self.run(vec![reader, self.other("cat", &[])], "/dev/null", "/dev/null").map(drop)
    }

    fn write_back(&self) -> Outcome {
        output(session::command("sync").arg("-f").arg(&self.dir.path)).map(drop)
    }

    /// The time of the system calls alone that `--unpack` cannot do without.
    fn floor(&self, run: usize) -> Result<Duration, String> {
        self.write_back()?;
        let place = self.dir.path.join(format!("unpacked-floor-{run}"));
        bench_floor::measure(&self.dir.path.join("tree"), &place)
            .map_err(|error| format!("cannot make the files of the tree again: {error}"))
    }

    fn ours(&self, case: Case, unpacked: &str) -> Vec<Stage> {
        let describe = ["--no-nix", "--candidates", "candidates", "--level", LEVEL, "--archive", PATH];
        match case {
            Case::Pack | Case::PackCold => vec![self.tool("nar-pack", &["tree"]), self.other("cat", &[])],
            Case::Unpack => vec![self.tool("nar-pack", &["--unpack", unpacked])],
            Case::Describe => {
                vec![self.other("nix-store", &["--dump", "tree"]), self.tool("narinfo-gen", &describe)]
            }
            Case::DescribeNar => vec![self.tool("narinfo-gen", &describe)],
            Case::Scan => vec![self.tool("examples/scan", &["candidates"])],
        }
    }

    fn reference(&self, case: Case, unpacked: &str) -> Vec<Stage> {
        let hashing = "tee >(sha256sum >/dev/null) | zstd -q -T0 -3";
        match case {
            Case::Pack => vec![self.other("nix-store", &["--dump", "tree"]), self.other("cat", &[])],
            Case::PackCold => vec![self.other("tar", &["c", "tree"]), self.other("cat", &[])],
            Case::Unpack => vec![self.other("nix-store", &["--restore", unpacked])],
            Case::Describe => vec![self.other("nix-store", &["--dump", "tree"]), self.other("bash", &["-c", hashing])],
            Case::DescribeNar => vec![self.other("bash", &["-c", hashing])],
            Case::Scan => vec![self.other("sha256sum", &[])],
        }
    }

    fn tool(&self, name: &'static str, args: &[&str]) -> Stage {
        self.stage(name.rsplit('/').next().unwrap_or(name), &self.bin.join(name), args)
    }

    fn other(&self, name: &'static str, args: &[&str]) -> Stage {
        self.stage(name, Path::new(name), args)
    }

    fn stage(&self, name: &'static str, program: &Path, args: &[&str]) -> Stage {
        let mut command: Command = session::command(program);
        command.args(args).current_dir(&self.dir.path);
        Stage { name, command }
    }

    /// Runs a pipeline and demands success.
    fn run(&self, stages: Vec<Stage>, input: &str, output: &str) -> Result<Measured, String> {
        let dir = &self.dir.path;
        let running = Running::start(stages, &dir.join(input), &dir.join(output), &dir.join("logs"))?;
        let (wall, ended) = running.finish(LIMIT)?;
        if let Some(stage) = ended.iter().find(|stage| !stage.status.success()) {
            return Err(stage.tell());
        }
        let own = ended.iter().filter(|stage| stage.name != "cat");
        let cpu = own.clone().map(|stage| stage.cpu).sum();
        let kernel = own.clone().map(|stage| stage.kernel).sum();
        Ok(Measured { wall, cpu, kernel, peak: own.map(|stage| stage.peak).max().unwrap_or(0) })
    }

    fn shape(&self, options: &Options) -> String {
        format!(
            "{} files in {} directories, {} MB; NAR {} MB; zstd level {LEVEL}; {} run(s), {} processors",
            self.tree.files,
            self.tree.directories,
            self.tree.bytes / 1_000_000,
            self.nar_size / 1_000_000,
            options.runs,
            processors()
        )
    }

    #[allow(clippy::cast_precision_loss)] // a rate needs no digit 16
    fn rate(&self, measured: Measured) -> f64 {
        self.nar_size as f64 / 1e9 / measured.wall.as_secs_f64()
    }

    fn print_table(&self, rows: &[Row], floor: Option<Duration>, options: &Options) {
        println!("{}\n", self.shape(options));
        println!(
            "{:42} {:>8} {:>8} {:>7} {:>9} {:>9} {:>14} {:>13}",
            "", "wall", "CPU", "kernel", "memory", "rate", "wall / goal", "CPU / goal"
        );
        for row in rows {
            self.print_side(row.case.name(), row.ours);
            let (wall, cpu) = row.case.goals();
            let cpu = cpu.map_or_else(|| format!("{:.2}", row.cpu()), |goal| format!("{:.2} / {goal:.2}", row.cpu()));
            println!("    {:>8} / {wall:.2} {cpu:>13}", format!("{:.2}", row.wall()));
            self.print_side(&format!("  {}", row.case.reference()), row.reference);
            println!();
            if let Some(floor) = floor.filter(|_| row.case == Case::Unpack) {
                let ratio = floor.as_secs_f64() / row.reference.wall.as_secs_f64();
                let wall = floor.as_secs_f64();
                println!(
                    "{:42} {wall:6.2} s {:>50} / {:.2}",
                    "  its files alone: open, write, close",
                    format!("{ratio:.2}"),
                    row.case.goals().0
                );
            }
        }
        println!(
            "\nwall, CPU: ours divided by the reference below it, and the most it should be. kernel: its share of the CPU.\n\
             CPU and memory are without the reader at the end of a pipe; of the references with a shell, only what it\n\
             waited for counts. The files alone: made again from memory by one thread, filled by another; about the least\n\
             on two processors."
        );
    }

    fn print_side(&self, name: &str, measured: Measured) {
        print!(
            "{name:42} {:6.2} s {:6.2} s {:5.0} % {:5.1} MiB {:4.2} GB/s",
            measured.wall.as_secs_f64(),
            measured.cpu.as_secs_f64(),
            100.0 * measured.kernel.as_secs_f64() / measured.cpu.as_secs_f64().max(0.01),
            f64::from(u32::try_from(measured.peak).unwrap_or(u32::MAX)) / 1024.0,
            self.rate(measured),
        );
    }

    fn to_json(&self, rows: &[Row], floor: Option<Duration>, options: &Options) -> String {
        let side = |measured: Measured| {
            format!(
                "{{\"wallSeconds\":{:.3},\"cpuSeconds\":{:.3},\"kernelSeconds\":{:.3},\"peakKiB\":{},\
                 \"gigabytesPerSecond\":{:.3}}}",
                measured.wall.as_secs_f64(),
                measured.cpu.as_secs_f64(),
                measured.kernel.as_secs_f64(),
                measured.peak,
                self.rate(measured)
            )
        };
        let row = |row: &Row| {
            let (wall, cpu) = row.case.goals();
            format!(
                "{{\"name\":\"{}\",\"reference\":\"{}\",\"wallRatio\":{:.3},\"wallGoal\":{wall:.3},\"cpuRatio\":{:.3},\
                 \"cpuGoal\":{},\"ours\":{},\"theirs\":{}}}",
                row.case.name(),
                row.case.reference(),
                row.wall(),
                row.cpu(),
                cpu.map_or_else(|| "null".to_owned(), |goal| format!("{goal:.3}")),
                side(row.ours),
                side(row.reference)
            )
        };
        let rows: Vec<_> = rows.iter().map(row).collect();
        format!(
            "{{\"files\":{},\"bytes\":{},\"narSize\":{},\"runs\":{},\"processors\":{},\"unpackFloorSeconds\":{},\"rows\":[\n{}\n]}}\n",
            self.tree.files,
            self.tree.bytes,
            self.nar_size,
            options.runs,
            processors(),
            floor.map_or_else(|| "null".to_owned(), |floor| format!("{:.3}", floor.as_secs_f64())),
            rows.join(",\n")
        )
    }
}

/// Makes sure that what was written is on the disk, and that nothing of it is in memory.
fn drop_caches() -> Outcome {
    output(&mut session::command("sync"))?;
    fs::write("/proc/sys/vm/drop_caches", "3").map_err(|error| format!("cannot empty the caches: {error}"))
}

/// Builds the two tools and the scanner by themselves: the others have the AWS SDK to compile.
fn tools() -> Result<PathBuf, String> {
    if let Some(dir) = std::env::var_os("NIX_S3_CACHE_BIN") {
        return Ok(PathBuf::from(dir));
    }
    eprintln!("Building nar-pack and narinfo-gen");
    let packages = ["-p", "nar-pack", "-p", "narinfo-gen"];
    let mut command = cargo();
    command.args(["build", "--quiet", "--release", "--bins", "--examples"]).args(packages);
    succeed(&mut command, "cargo build")?;
    Ok(target_dir()?.join("release"))
}

struct Tree {
    files: usize,
    directories: usize,
    bytes: u64,
}

/// Files of such sizes in directories of one to nineteen; every other one is text, one in ten is executable, and two
/// directories in five have a link.
fn make_tree(root: &Path, files: usize) -> io::Result<Tree> {
    let mut random = Random::new(SEED);
    let words = words(&mut random);
    let prose = text(&mut random, &words, 16 << 20);
    let noise = random.bytes(16 << 20);
    let mut tree = Tree { files: 0, directories: 0, bytes: 0 };
    while tree.files < files {
        let number = tree.directories;
        let dir = root.join(format!("d{:03}", number / 200)).join(format!("d{:03}", number % 200));
        fs::create_dir_all(&dir)?;
        tree.directories += 1;
        for index in 0..=random.index(19) {
            if tree.files == files {
                break;
            }
            let size = size(&mut random);
            let source = if random.below(2) == 0 { &prose } else { &noise };
            let start = random.index(source.len() - size);
            let file = dir.join(format!("file-{index}"));
            fs::write(&file, &source[start..start + size])?;
            if random.below(10) == 0 {
                fs::set_permissions(&file, fs::Permissions::from_mode(0o755))?;
            }
            tree.files += 1;
            tree.bytes += size as u64;
        }
        if random.below(5) < 2 {
            symlink("file-0", dir.join("link"))?;
        }
    }
    Ok(tree)
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // between the smallest and the largest
fn size(random: &mut Random) -> usize {
    (MEDIAN * (SPREAD * random.normal()).exp()).clamp(SMALLEST, LARGEST) as usize
}

fn medians(case: Case, runs: &[(Case, [Measured; 2])]) -> Option<Row> {
    let median = |side: usize| {
        let mut own: Vec<Measured> = runs.iter().filter(|run| run.0 == case).map(|run| run.1[side]).collect();
        own.sort_unstable_by_key(|measured| measured.wall);
        own.get(own.len() / 2).copied()
    };
    Some(Row { case, ours: median(0)?, reference: median(1)? })
}

#[cfg(test)]
mod tests {
    use super::{Options, Random, size};

    #[test]
    fn sizes_are_those_of_a_closure() {
        let mut random = Random::new(1);
        let mut sizes: Vec<usize> = (0..10_000).map(|_| size(&mut random)).collect();
        sizes.sort_unstable();
        assert!((1500..2500).contains(&sizes[5000]), "{}", sizes[5000]);
        assert!((15_000..35_000).contains(&sizes[9000]), "{}", sizes[9000]);
    }

    #[test]
    fn arguments_are_read() {
        let options = Options::parse(&["--small", "--runs", "3", "--only", "pack,scan"]).ok();
        assert!(options.is_some_and(|options| (options.files, options.runs, options.cases.len()) == (4_000, 3, 2)));
        assert!(Options::parse(&["--only", "pack,what"]).is_err());
        assert!(Options::parse(&["--files", "0"]).is_err() && Options::parse(&["--x", "1"]).is_err());
    }
}
