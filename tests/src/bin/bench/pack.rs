//! `bench pack`: packing, unpacking and describing one tree, each as a ratio to a reference in the same run.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use cache_tests::pipeline::{Pipeline, Stage};
use cache_tests::{Scratch, processors};
use clap::ValueEnum;
use serde_json::{Value, json};

use crate::measurement::{rounded, run as run_command, write_json};
use crate::packed_tree::{self, PackedTree};
use crate::write_floor;

/// Time limit of a measurement.
const MEASUREMENT_TIMEOUT: Duration = Duration::from_mins(30);

/// The store path that the tree is described as.
const STORE_PATH: &str = "/nix/store/02dlwc21njky62v7q7ffcb10000n2grx-bench";

/// The compression level of both sides: the default of narinfo-gen.
const LEVEL: &str = "3";

/// Command-line arguments.
#[derive(clap::Args)]
pub struct Args {
    /// Number of files in the tree [default: 100000; with --small: 4000]
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..))]
    files: Option<u32>,
    /// Number of runs of each command [default: 5; with --small: 2]
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..))]
    runs: Option<u32>,
    /// Measure only these cases, separated by commas [default: all]
    #[arg(long, value_name = "CASE", value_delimiter = ',')]
    only: Vec<Case>,
    /// Write the results to FILE as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Measure a small tree twice
    #[arg(long)]
    small: bool,
}

impl Args {
    fn files(&self) -> usize {
        self.files.unwrap_or(if self.small { 4_000 } else { 100_000 }) as usize
    }

    fn runs(&self) -> u32 {
        self.runs.unwrap_or(if self.small { 2 } else { 5 })
    }

    fn cases(&self) -> Vec<Case> {
        Case::ALL.into_iter().filter(|case| self.only.is_empty() || self.only.contains(case)).collect()
    }
}

/// A command of ours, and the reference that it is compared with.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Case {
    /// nar-pack of a tree in memory
    Pack,
    /// narinfo-gen of a NAR
    #[value(name = "describe")]
    DescribeNar,
    /// nix-store --dump piped to narinfo-gen
    #[value(name = "dump-describe")]
    DumpAndDescribe,
    /// Scanning for references
    Scan,
    /// nar-pack --unpack
    Unpack,
    /// nar-pack of a tree on disk
    PackCold,
}

impl Case {
    /// In the order of measurement: cases that leave much to write back, or that empty the page cache, come last.
    const ALL: [Self; 6] =
        [Self::Pack, Self::DescribeNar, Self::DumpAndDescribe, Self::Scan, Self::Unpack, Self::PackCold];

    fn name(self) -> &'static str {
        match self {
            Self::Pack => "nar-pack TREE, in memory",
            Self::PackCold => "nar-pack TREE, from disk",
            Self::Unpack => "nar-pack --unpack",
            Self::DumpAndDescribe => "nix-store --dump | narinfo-gen --archive",
            Self::DescribeNar => "narinfo-gen --archive < NAR",
            Self::Scan => "scanning for references",
        }
    }

    fn reference(self) -> &'static str {
        match self {
            Self::Pack => "nix-store --dump",
            Self::PackCold => "tar c",
            Self::Unpack => "nix-store --restore",
            Self::DumpAndDescribe => "nix-store --dump | tee >(sha256sum) | zstd -T0",
            Self::DescribeNar => "tee >(sha256sum) | zstd -T0",
            Self::Scan => "sha256sum",
        }
    }

    /// Returns the maximum ratios of wall-clock and processor time that are the goals.
    fn goals(self) -> (f64, Option<f64>) {
        match self {
            Self::Pack | Self::Unpack => (0.38, Some(0.8)),
            Self::PackCold | Self::Scan => (1.0, None),
            // At least 0.9 of the throughput.
            Self::DumpAndDescribe | Self::DescribeNar => (1.0 / 0.9, None),
        }
    }
}

/// One run of one side.
#[derive(Clone, Copy)]
struct Measurement {
    elapsed: Duration,
    /// User and system time, without the process that reads the end of the pipe.
    cpu: Duration,
    /// System time alone.
    system: Duration,
    /// Peak of the resident memory of its largest process, in KiB.
    peak_kib: u64,
}

/// The medians of a case.
struct Row {
    case: Case,
    ours: Measurement,
    reference: Measurement,
}

impl Row {
    fn median(case: Case, runs: &[(Case, [Measurement; 2])]) -> Option<Self> {
        let median = |side: usize| {
            let mut own: Vec<Measurement> = runs.iter().filter(|run| run.0 == case).map(|run| run.1[side]).collect();
            own.sort_unstable_by_key(|measurement| measurement.elapsed);
            own.get(own.len() / 2).copied()
        };
        Some(Self { case, ours: median(0)?, reference: median(1)? })
    }

    fn elapsed_ratio(&self) -> f64 {
        self.ours.elapsed.as_secs_f64() / self.reference.elapsed.as_secs_f64()
    }

    fn cpu_ratio(&self) -> f64 {
        self.ours.cpu.as_secs_f64() / self.reference.cpu.as_secs_f64().max(0.01)
    }
}

/// Runs the benchmark.
///
/// # Errors
/// The message of a command that fails.
pub fn run(args: &Args) -> Result<(), String> {
    let bench = Bench::prepare(args)?;
    let mut runs: Vec<(Case, [Measurement; 2])> = Vec::new();
    let mut floors = Vec::new();
    for case in args.cases().into_iter().filter(|&case| bench.can_measure(case)) {
        for number in 1..=args.runs() {
            eprintln!("{}: run {number} of {}", case.name(), args.runs());
            // The order alternates, so that neither side always runs in the state that the other leaves behind.
            let ours_first = number % 2 == 1;
            let first = bench.measure(case, !ours_first, number)?;
            let second = bench.measure(case, ours_first, number)?;
            runs.push((case, if ours_first { [first, second] } else { [second, first] }));
            if case == Case::Unpack {
                floors.push(bench.measure_floor(number)?);
            }
        }
    }
    let rows: Vec<Row> = Case::ALL.into_iter().filter_map(|case| Row::median(case, &runs)).collect();
    floors.sort_unstable();
    let report = Report { bench: &bench, rows, floor: floors.get(floors.len() / 2).copied(), runs: args.runs() };
    report.print();
    args.json.as_ref().map_or(Ok(()), |file| write_json(file, &report.to_json()))
}

struct Bench {
    scratch: Scratch,
    nar_size: u64,
    tree: PackedTree,
    /// Whether the page cache can be emptied.
    can_drop_caches: bool,
}

impl Bench {
    fn prepare(args: &Args) -> Result<Self, String> {
        let scratch = Scratch::removed_on_interrupt();
        run_command(scratch.command("nix-store").arg("--version"))
            .map_err(|error| format!("bench pack compares with Nix, which is required: {error}"))?;
        eprintln!("Generating a tree of {} files", args.files());
        let tree = packed_tree::write(&scratch.path().join("tree"), args.files())
            .map_err(|error| format!("cannot write the tree: {error}"))?;
        scratch.dir("logs");
        // A small set of candidates, as a closure has; the tree contains none of them.
        scratch.write("candidates", format!("{STORE_PATH}\n"));
        let mut bench = Self { scratch, nar_size: 0, tree, can_drop_caches: false };
        bench.can_drop_caches = bench.drop_caches().is_ok();
        if !bench.can_drop_caches {
            eprintln!("bench: not measured, because only root can empty the page cache: {}", Case::PackCold.name());
        }
        bench.run(vec![bench.tool("nar-pack", &["tree"])], "/dev/null", "nar")?;
        let nar = fs::metadata(bench.scratch.path().join("nar")).map_err(|error| format!("no NAR: {error}"))?;
        bench.nar_size = nar.len();
        run_command(bench.scratch.command("bash").args(["-c", "nix-store --dump tree | cmp - nar"]))
            .map_err(|error| format!("the NAR is not the one of nix-store --dump: {error}"))?;
        Ok(bench)
    }

    fn can_measure(&self, case: Case) -> bool {
        case != Case::PackCold || self.can_drop_caches
    }

    fn measure(&self, case: Case, reference: bool, run: u32) -> Result<Measurement, String> {
        if case == Case::PackCold {
            self.drop_caches()?;
        } else {
            self.warm_up(case)?;
        }
        let input = match case {
            Case::Pack | Case::PackCold | Case::DumpAndDescribe => "/dev/null",
            Case::Unpack | Case::DescribeNar | Case::Scan => "nar",
        };
        // Unpacked trees stay until the end: for minutes after a removal, ext4 searches for inodes that were not used
        // recently, which slows down the next run by a multiple.
        let unpacked = format!("unpacked-{}-{run}", if reference { "theirs" } else { "ours" });
        let stages = if reference { self.reference(case, &unpacked) } else { self.ours(case, &unpacked) };
        self.run(stages, input, "/dev/null")
    }

    /// Writes back dirty pages, and reads the input into the page cache.
    fn warm_up(&self, case: Case) -> Result<(), String> {
        self.write_back()?;
        let reader = match case {
            Case::Pack | Case::DumpAndDescribe => self.other("tar", &["c", "tree"]),
            _ => self.other("cat", &["nar"]),
        };
        // Through a pipe, because tar does not read files if it writes to /dev/null.
        self.run(vec![reader, self.other("cat", &[])], "/dev/null", "/dev/null").map(drop)
    }

    fn write_back(&self) -> Result<(), String> {
        run_command(self.scratch.command("sync").args(["-f", "."])).map(drop)
    }

    /// Writes everything to the disk and empties the page cache.
    fn drop_caches(&self) -> Result<(), String> {
        run_command(&mut self.scratch.command("sync"))?;
        fs::write("/proc/sys/vm/drop_caches", "3").map_err(|error| format!("cannot empty the page cache: {error}"))
    }

    /// Measures only the system calls that `--unpack` cannot avoid.
    fn measure_floor(&self, run: u32) -> Result<Duration, String> {
        self.write_back()?;
        let destination = self.scratch.path().join(format!("unpacked-floor-{run}"));
        write_floor::measure(&self.scratch.path().join("tree"), &destination)
            .map_err(|error| format!("cannot copy the files of the tree: {error}"))
    }

    fn ours(&self, case: Case, unpacked: &str) -> Vec<Stage> {
        let describe = ["--no-nix", "--candidates", "candidates", "--level", LEVEL, "--archive", STORE_PATH];
        match case {
            Case::Pack | Case::PackCold => vec![self.tool("nar-pack", &["tree"]), self.other("cat", &[])],
            Case::Unpack => vec![self.tool("nar-pack", &["--unpack", unpacked])],
            Case::DumpAndDescribe => {
                vec![self.other("nix-store", &["--dump", "tree"]), self.tool("narinfo-gen", &describe)]
            }
            Case::DescribeNar => vec![self.tool("narinfo-gen", &describe)],
            Case::Scan => vec![self.tool("examples/scan", &["candidates"])],
        }
    }

    fn reference(&self, case: Case, unpacked: &str) -> Vec<Stage> {
        let dump = || self.other("nix-store", &["--dump", "tree"]);
        let compress = || self.other("bash", &["-c", "tee >(sha256sum >/dev/null) | zstd -q -T0 -3"]);
        match case {
            Case::Pack => vec![dump(), self.other("cat", &[])],
            Case::PackCold => vec![self.other("tar", &["c", "tree"]), self.other("cat", &[])],
            Case::Unpack => vec![self.other("nix-store", &["--restore", unpacked])],
            Case::DumpAndDescribe => vec![dump(), compress()],
            Case::DescribeNar => vec![compress()],
            Case::Scan => vec![self.other("sha256sum", &[])],
        }
    }

    fn tool(&self, name: &'static str, args: &[&str]) -> Stage {
        Stage { name: name.rsplit('/').next().unwrap_or(name), command: self.scratch.tool(name, args) }
    }

    fn other(&self, name: &'static str, args: &[&str]) -> Stage {
        let mut command = self.scratch.command(name);
        command.args(args);
        Stage { name, command }
    }

    /// Runs a pipeline and requires that it succeeds.
    fn run(&self, stages: Vec<Stage>, input: &str, output: &str) -> Result<Measurement, String> {
        let dir = self.scratch.path();
        let pipeline = Pipeline::start(stages, &dir.join(input), &dir.join(output), &dir.join("logs"))?;
        let (elapsed, stages) = pipeline.succeed(MEASUREMENT_TIMEOUT)?;
        let own = stages.iter().filter(|stage| stage.name != "cat");
        let cpu = own.clone().map(|stage| stage.cpu).sum();
        let system = own.clone().map(|stage| stage.system).sum();
        Ok(Measurement { elapsed, cpu, system, peak_kib: own.map(|stage| stage.peak_kib).max().unwrap_or(0) })
    }

    /// Returns the throughput in gigabytes of NAR per second.
    #[allow(clippy::cast_precision_loss)] // a rate needs no digit 16
    fn throughput(&self, measurement: Measurement) -> f64 {
        self.nar_size as f64 / 1e9 / measurement.elapsed.as_secs_f64()
    }
}

/// The results.
struct Report<'a> {
    bench: &'a Bench,
    rows: Vec<Row>,
    /// The median time for the files of the tree alone.
    floor: Option<Duration>,
    runs: u32,
}

impl Report<'_> {
    fn print(&self) {
        let tree = &self.bench.tree;
        println!(
            "{} files in {} directories, {} MB; NAR {} MB; zstd level {LEVEL}; {} run(s), {} processors\n",
            tree.files,
            tree.directories,
            tree.bytes / 1_000_000,
            self.bench.nar_size / 1_000_000,
            self.runs,
            processors()
        );
        println!(
            "{:42} {:>8} {:>8} {:>7} {:>9} {:>9} {:>14} {:>13}",
            "", "wall", "CPU", "system", "memory", "rate", "wall / goal", "CPU / goal"
        );
        for row in &self.rows {
            self.print_row(row);
        }
        println!(
            "\nwall, CPU: ours divided by the reference below it, and the goal. system: its share of the CPU time.\n\
             CPU and memory are without the reader at the end of a pipe; for references with a shell, only processes\n\
             that it waited for count. Files alone: copied from memory by two threads, about the minimum on two\n\
             processors."
        );
    }

    fn print_row(&self, row: &Row) {
        self.print_side(row.case.name(), row.ours);
        let (goal, cpu_goal) = row.case.goals();
        let cpu = row.cpu_ratio();
        let cpu = cpu_goal.map_or_else(|| format!("{cpu:.2}"), |goal| format!("{cpu:.2} / {goal:.2}"));
        println!("    {:>8} / {goal:.2} {cpu:>13}", format!("{:.2}", row.elapsed_ratio()));
        self.print_side(&format!("  {}", row.case.reference()), row.reference);
        println!();
        if let Some(floor) = self.floor.filter(|_| row.case == Case::Unpack) {
            let elapsed = floor.as_secs_f64();
            let ratio = format!("{:.2}", elapsed / row.reference.elapsed.as_secs_f64());
            println!("{:42} {elapsed:6.2} s {ratio:>50} / {goal:.2}", "  its files alone: open, write, close");
        }
    }

    fn print_side(&self, name: &str, measurement: Measurement) {
        print!(
            "{name:42} {:6.2} s {:6.2} s {:5.0} % {:5.1} MiB {:4.2} GB/s",
            measurement.elapsed.as_secs_f64(),
            measurement.cpu.as_secs_f64(),
            100.0 * measurement.system.as_secs_f64() / measurement.cpu.as_secs_f64().max(0.01),
            f64::from(u32::try_from(measurement.peak_kib).unwrap_or(u32::MAX)) / 1024.0,
            self.bench.throughput(measurement),
        );
    }

    fn to_json(&self) -> Value {
        let side = |measurement: Measurement| {
            json!({
                "wallSeconds": rounded(measurement.elapsed.as_secs_f64()),
                "cpuSeconds": rounded(measurement.cpu.as_secs_f64()),
                "kernelSeconds": rounded(measurement.system.as_secs_f64()),
                "peakKiB": measurement.peak_kib,
                "gigabytesPerSecond": rounded(self.bench.throughput(measurement)),
            })
        };
        let row = |row: &Row| {
            let (goal, cpu_goal) = row.case.goals();
            json!({
                "name": row.case.name(),
                "reference": row.case.reference(),
                "wallRatio": rounded(row.elapsed_ratio()),
                "wallGoal": rounded(goal),
                "cpuRatio": rounded(row.cpu_ratio()),
                "cpuGoal": cpu_goal.map(rounded),
                "ours": side(row.ours),
                "theirs": side(row.reference),
            })
        };
        json!({
            "files": self.bench.tree.files,
            "bytes": self.bench.tree.bytes,
            "narSize": self.bench.nar_size,
            "runs": self.runs,
            "processors": processors(),
            "unpackFloorSeconds": self.floor.map(|floor| rounded(floor.as_secs_f64())),
            "rows": self.rows.iter().map(row).collect::<Vec<_>>(),
        })
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        args: super::Args,
    }

    #[test]
    fn arguments_select_cases_and_small_changes_the_defaults() {
        let parse = |args: &[&str]| Cli::try_parse_from([&["bench"], args].concat()).map(|cli| cli.args);
        let args = parse(&["--small", "--runs", "3", "--only", "pack,scan"]).ok();
        assert!(args.is_some_and(|args| (args.files(), args.runs(), args.cases().len()) == (4_000, 3, 2)));
        assert!(parse(&["--only", "pack,what"]).is_err());
        assert!(parse(&["--files", "0"]).is_err() && parse(&["--x", "1"]).is_err());
    }
}
