//! Measurements of commands, their medians, and how they are reported.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use cache_tests::pipeline::FinishedStage;
use serde_json::{Value, json};

/// One run of one command.
#[derive(Clone)]
pub struct Measurement {
    /// Wall-clock time.
    pub elapsed: Duration,
    /// User and system time of all its processes.
    pub cpu: Duration,
    /// User time alone.
    pub user: Duration,
    /// User and system time of the S3 server, which is on the same machine.
    pub server_cpu: Option<Duration>,
    /// User and system time of each process, with its name.
    pub stages: Vec<(&'static str, Duration)>,
    /// Peak of the resident memory of its largest process, in KiB.
    pub peak_kib: u64,
    /// Requests that the server answered.
    pub requests: Option<u64>,
    /// The same by kind, if the command reports it.
    pub requests_by_kind: Vec<(String, u64)>,
    /// Bytes that arrived.
    pub bytes: u64,
    /// The share of the link that was used, if its rate is limited.
    pub link_share: Option<f64>,
}

impl Measurement {
    /// Sums up the stages of a pipeline.
    pub fn new(elapsed: Duration, stages: &[FinishedStage], requests: Option<u64>, bytes: u64) -> Self {
        let cpu: Duration = stages.iter().map(|stage| stage.cpu).sum();
        let system: Duration = stages.iter().map(|stage| stage.system).sum();
        let peak_kib = stages.iter().map(|stage| stage.peak_kib).max().unwrap_or(0);
        let stages = stages.iter().map(|stage| (stage.name, stage.cpu)).collect();
        Self {
            elapsed,
            cpu,
            user: cpu.saturating_sub(system),
            server_cpu: None,
            stages,
            peak_kib,
            requests,
            requests_by_kind: Vec::new(),
            bytes,
            link_share: None,
        }
    }

    /// Returns what the command took divided by what another one took: wall-clock, processor and user time.
    fn ratios_to(&self, other: &Self) -> [f64; 3] {
        let ratio = |time: fn(&Self) -> Duration| time(self).as_secs_f64() / time(other).as_secs_f64().max(0.001);
        [ratio(|run| run.elapsed), ratio(|run| run.cpu), ratio(|run| run.user)]
    }
}

/// The median of the runs of one command at one latency.
pub struct Row {
    name: String,
    latency_ms: u32,
    median: Measurement,
    /// Wall-clock time divided by that of the plain copy by mc, and by rclone.
    ratios: [Option<f64>; 2],
    /// Wall-clock, processor and user time divided by those of Nix.
    ratios_to_nix: Option<[f64; 3]>,
    /// The user time that the command needs at least.
    limit: Option<Duration>,
}

/// What the rows are compared with.
pub struct Comparison<'a, N, L> {
    /// The names of the plain copies.
    pub baselines: [&'a str; 2],
    /// Returns the name of the command of Nix that does the same as another one.
    pub nix: N,
    /// Returns the user time that a command needs at least, if that is known.
    pub limit: L,
}

/// Returns the medians of all commands at one latency, in the order in which they ran first.
pub fn medians(
    runs: &[(String, Measurement)],
    latency_ms: u32,
    comparison: &Comparison<'_, impl Fn(&str) -> String, impl Fn(&str) -> Option<Duration>>,
) -> Vec<Row> {
    let Comparison { baselines, nix, limit } = comparison;
    let mut names: Vec<&str> = Vec::new();
    for (name, _) in runs {
        if !names.contains(&name.as_str()) {
            names.push(name);
        }
    }
    let median_of = |name: &str| {
        let mut own: Vec<&Measurement> = runs.iter().filter(|run| run.0 == name).map(|run| &run.1).collect();
        own.sort_unstable_by_key(|measurement| measurement.elapsed);
        own.get(own.len() / 2).copied().cloned()
    };
    let baselines = baselines.map(|name| median_of(name).map(|baseline| baseline.elapsed.as_secs_f64()));
    let row = |name: &str| {
        let median = median_of(name)?;
        let ratios = baselines.map(|baseline| baseline.map(|baseline| median.elapsed.as_secs_f64() / baseline));
        let ratios_to_nix = median_of(&nix(name)).map(|nix| median.ratios_to(&nix));
        Some(Row { name: name.to_owned(), latency_ms, median, ratios, ratios_to_nix, limit: limit(name) })
    };
    names.into_iter().filter_map(row).collect()
}

impl Row {
    /// Returns processor time and user time, divided by the limit.
    fn ratios_to_limit(&self) -> Option<[f64; 2]> {
        let limit = self.limit?.as_secs_f64().max(0.001);
        Some([self.median.cpu, self.median.user].map(|time| time.as_secs_f64() / limit))
    }
}

/// Prints the rows below a heading.
pub fn print_table(rows: &[Row], heading: &str, note: &str) {
    println!("{heading}\n");
    println!(
        "{:42} {:>7} {:>8} {:>8} {:>9} {:>9} {:>9} {:>6} {:>6}   {:>6} {:>4} {:>4}   {:>6} {:>4}",
        "",
        "latency",
        "wall",
        "CPU",
        "peak",
        "requests",
        "bytes",
        "/ mc",
        "/ rcl.",
        "/ Nix:",
        "CPU",
        "user",
        "/ lim:",
        "user"
    );
    for row in rows {
        let Row { name, latency_ms, median, ratios, ratios_to_nix, limit } = row;
        let requests = median.requests.map_or_else(|| "-".to_owned(), |requests| requests.to_string());
        let [mc, rclone] = ratios.map(ratio_text);
        let [wall, cpu, user] = ratios_to_nix.map_or([None; 3], |ratios| ratios.map(Some)).map(ratio_text);
        let [cpu_to_limit, user_to_limit] =
            row.ratios_to_limit().map_or([None; 2], |ratios| ratios.map(Some)).map(ratio_text);
        println!(
            "{name:42} {latency_ms:4} ms {:6.2} s {:6.2} s {:5} MiB {requests:>9} {:6} MB {mc:>6} {rclone:>6}   {wall:>6} \
             {cpu:>4} {user:>4}   {cpu_to_limit:>6} {user_to_limit:>4}",
            median.elapsed.as_secs_f64(),
            median.cpu.as_secs_f64(),
            median.peak_kib / 1024,
            median.bytes.div_ceil(1_000_000),
        );
        if let Some(share) = median.link_share {
            println!("    {:.0} % of the link", 100.0 * share);
        }
        let stages = median.stages.iter().filter(|_| median.stages.len() > 1).copied();
        let processes = stages.chain(median.server_cpu.map(|cpu| ("server", cpu)));
        let limit = limit.map(|limit| ("limit", limit));
        let cpu: Vec<_> =
            processes.chain(limit).map(|(name, cpu)| format!("{name} {:.2} s", cpu.as_secs_f64())).collect();
        if !cpu.is_empty() {
            println!("    CPU: {}", cpu.join(", "));
        }
        if !median.requests_by_kind.is_empty() {
            let kinds = median.requests_by_kind.iter().map(|(kind, count)| format!("{count} {kind}"));
            println!("    requests: {}", kinds.collect::<Vec<_>>().join(", "));
        }
    }
    println!(
        "\nlatency: added to a round trip. / Nix: time divided by that of nix copy: wall-clock, CPU and user.\n\
         / lim: CPU and user time divided by the limit: the user time of zstd and openssl dgst -sha256 for what the\n\
         command compresses, decompresses and hashes.\n{note}"
    );
}

fn ratio_text(ratio: Option<f64>) -> String {
    ratio.map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.2}"))
}

/// Returns the rows as JSON.
pub fn to_json(rows: &[Row]) -> Value {
    let row = |row: &Row| {
        let Row { name, latency_ms, median, ratios: [mc, rclone], ratios_to_nix, limit } = row;
        let stages =
            median.stages.iter().map(|(name, cpu)| json!({ "name": name, "cpuSeconds": rounded(cpu.as_secs_f64()) }));
        let kinds = median.requests_by_kind.iter().map(|(kind, count)| (kind.clone(), Value::from(*count)));
        json!({
            "userSeconds": rounded(median.user.as_secs_f64()),
            "stages": stages.collect::<Vec<_>>(),
            "serverCpuSeconds": median.server_cpu.map(|cpu| rounded(cpu.as_secs_f64())),
            "requestsByKind": kinds.collect::<serde_json::Map<_, _>>(),
            "linkShare": median.link_share.map(rounded),
            "ratiosToNix": ratios_to_nix.map(|[wall, cpu, user]| json!({
                "wall": rounded(wall), "cpu": rounded(cpu), "user": rounded(user)
            })),
            "name": name,
            "latencyMs": latency_ms,
            "wallSeconds": rounded(median.elapsed.as_secs_f64()),
            "cpuSeconds": rounded(median.cpu.as_secs_f64()),
            "peakKiB": median.peak_kib,
            "requests": median.requests,
            "bytes": median.bytes,
            "ratioToMc": mc.map(rounded),
            "ratioToRclone": rclone.map(rounded),
            "limitSeconds": limit.map(|limit| rounded(limit.as_secs_f64())),
            "ratiosToLimit": row.ratios_to_limit().map(|[cpu, user]| json!({
                "cpu": rounded(cpu), "user": rounded(user)
            })),
        })
    };
    rows.iter().map(row).collect()
}

/// Rounds to three decimal places.
pub fn rounded(number: f64) -> f64 {
    (number * 1000.0).round() / 1000.0
}

/// Writes a report.
///
/// # Errors
/// If the file cannot be written.
pub fn write_json(file: &Path, report: &Value) -> Result<(), String> {
    fs::write(file, format!("{report:#}\n")).map_err(|error| format!("cannot write {}: {error}", file.display()))
}

/// Runs a command and returns its standard output.
///
/// # Errors
/// If it cannot be run or fails; the message has the last line of its standard error.
pub fn run(command: &mut Command) -> Result<String, String> {
    let name = Path::new(command.get_program()).file_name().unwrap_or_default().to_string_lossy().into_owned();
    let output = command.stdin(Stdio::null()).output().map_err(|error| format!("cannot run {name}: {error}"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let stderr = String::from_utf8_lossy(&output.stderr);
    Err(format!("{name} failed ({}): {}", output.status, stderr.trim().lines().last().unwrap_or_default()))
}
