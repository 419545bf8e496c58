//! `bench collect`: what it costs to read the narinfos of a large cache, to find its dead paths and to check it, on a
//! server that makes up its listing and its narinfos, or on MinIO.

use std::path::PathBuf;
use std::time::Duration;

use cache_sign::keys::SecretKey;
use cache_tests::pipeline::{Pipeline, Stage};
use cache_tests::synthetic_bucket::{self, Options, RequestCounts, SyntheticBucket};
use cache_tests::{Credentials, DelayProxy, Minio, Scratch, cache_url, mc_target, processors};
use serde_json::{Value, json};

use crate::closure_bench::endpoint_of;
use crate::measurement::{Measurement, rounded, write_json};

/// Time limit of a measurement.
const TIMEOUT: Duration = Duration::from_hours(1);

/// The name of the key that signs the narinfos.
const KEY_NAME: &str = "synthetic-1";

/// Size of a NAR on MinIO in bytes.
const NAR_SIZE: usize = 100;

/// The narinfo text that the first command writes, for `--have`.
const HAVE: &str = "all.narinfo";

/// The measured commands: options, and whether they read the narinfos or take them from [`HAVE`].
const COMMANDS: [(&str, bool); 5] = [
    ("narinfo --all", true),
    ("dead --older-than 1s", true),
    ("dead --older-than 1s --have", false),
    ("check", true),
    ("check --have", false),
];

/// Command-line arguments.
#[derive(clap::Args)]
pub struct Args {
    /// Number of store paths, each with 31 references on average [default: 100000; with --small: 2000]
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u64).range(1..=30_000_000))]
    paths: Option<u64>,
    /// Keys on a page of a listing
    #[arg(long, value_name = "COUNT", default_value_t = 1000, value_parser = parse_page_size)]
    page_size: usize,
    /// Upload the cache to MinIO and measure there, with NARs of 100 bytes; it has pages of 1000 keys
    #[arg(long, conflicts_with = "page_size")]
    minio: bool,
    /// Milliseconds until a response, separated by commas [default: 0,50; with --small: 0]
    #[arg(long, value_name = "MS", value_delimiter = ',')]
    latency: Vec<u32>,
    /// Concurrent requests
    #[arg(long, short, value_name = "COUNT", default_value_t = 128)]
    jobs: u16,
    /// Write the results to FILE as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Measure a small cache without latency
    #[arg(long)]
    small: bool,
}

fn parse_page_size(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|size| (1..=1000).contains(size)).ok_or_else(|| "expected 1 to 1000".to_owned())
}

/// The measurement of one command at one latency.
struct Row {
    command: &'static str,
    latency_ms: u32,
    measurement: Measurement,
    counts: RequestCounts,
}

/// Measures, prints a table, and writes the JSON file if there is to be one.
///
/// # Errors
/// If a command fails, or has sent more requests than it needs.
pub fn run(args: &Args) -> Result<(), String> {
    let paths = args.paths.unwrap_or(if args.small { 2000 } else { 100_000 });
    let latencies = match args.latency.as_slice() {
        [] if args.small => vec![0],
        [] => vec![0, 50],
        latencies => latencies.to_vec(),
    };
    let mut scratch = Scratch::removed_on_interrupt();
    let server = args.minio.then(|| upload(&scratch, paths)).transpose()?;
    server.as_ref().map_or_else(Credentials::random, |server| server.minio.root()).apply(&mut scratch);
    let mut rows = Vec::new();
    println!(
        "{paths} paths, {} keys on a page, -j {}, {} processors\n\n{:32} {:>7} {:>9} {:>9} {:>9} {:>7} {:>9} {:>7}",
        args.page_size,
        args.jobs,
        processors(),
        "",
        "latency",
        "wall",
        "CPU",
        "peak",
        "pages",
        "narinfos",
        if args.minio { "requests" } else { "others" }
    );
    for &latency_ms in &latencies {
        let cache = Cache::start(server.as_ref(), args, paths, latency_ms)?;
        for (command, reads_narinfos) in COMMANDS {
            let row = cache.measure(command, reads_narinfos, args, &scratch)?;
            print(&row);
            rows.push(row);
        }
    }
    let server = if args.minio { "MinIO is on" } else { "The server, which computes each response, is on" };
    println!("\nlatency: until each response. {server} the same machine.");
    let Some(file) = &args.json else { return Ok(()) };
    let rows: Value = rows.iter().map(to_json).collect();
    let (page_size, jobs, processors) = (args.page_size, args.jobs, processors());
    let server = if args.minio { "MinIO" } else { "synthetic" };
    let report = json!({ "server": server, "paths": paths, "pageSize": page_size, "jobs": jobs, "processors": processors, "rows": rows });
    write_json(file, &report)
}

fn print(row: &Row) {
    let Row { command, latency_ms, measurement, counts } = row;
    println!(
        "{command:32} {latency_ms:4} ms {:7.2} s {:7.2} s {:5} MiB {:>7} {:>9} {:>7}",
        measurement.elapsed.as_secs_f64(),
        measurement.cpu.as_secs_f64(),
        measurement.peak_kib / 1024,
        counts.pages,
        counts.narinfos,
        counts.others
    );
}

/// MinIO with a cache.
struct Uploaded {
    minio: Minio,
    bucket: String,
    public_key: String,
}

/// Writes a cache and uploads it to MinIO.
fn upload(scratch: &Scratch, paths: u64) -> Result<Uploaded, String> {
    let key = generate_key()?;
    let dir = scratch.dir("cache");
    eprintln!("Uploading {paths} paths to MinIO");
    synthetic_bucket::write(&dir, paths, NAR_SIZE, &|fingerprint| key.sign(fingerprint))
        .map_err(|error| format!("cannot write the cache: {error}"))?;
    let minio = Minio::start().ok_or("MinIO is required")?;
    let bucket = minio.make_bucket();
    minio.mc(&["cp", "--quiet", "--recursive", &format!("{}/", dir.display()), &mc_target(&bucket)]);
    Ok(Uploaded { minio, bucket, public_key: key.public().to_string() })
}

fn generate_key() -> Result<SecretKey, String> {
    SecretKey::generate(KEY_NAME).map_err(|error| format!("cannot generate a key: {error}"))
}

/// What serves the cache.
enum Server<'a> {
    Synthetic(SyntheticBucket),
    /// MinIO, perhaps behind a proxy that adds latency.
    Minio(&'a Uploaded, Option<DelayProxy>),
}

/// A bucket, and the key that signs its narinfos.
struct Cache<'a> {
    server: Server<'a>,
    public_key: String,
    paths: u64,
    latency_ms: u32,
}

impl<'a> Cache<'a> {
    fn start(uploaded: Option<&'a Uploaded>, args: &Args, paths: u64, latency_ms: u32) -> Result<Self, String> {
        if let Some(uploaded) = uploaded {
            let proxy = (latency_ms > 0).then(|| DelayProxy::start(&uploaded.minio.endpoint(), latency_ms));
            let public_key = uploaded.public_key.clone();
            return Ok(Self { server: Server::Minio(uploaded, proxy), public_key, paths, latency_ms });
        }
        let key = generate_key()?;
        let public_key = key.public().to_string();
        let bucket = SyntheticBucket::start(Options {
            paths,
            page_size: args.page_size,
            latency: Duration::from_millis(latency_ms.into()),
            sign: Box::new(move |fingerprint| key.sign(fingerprint)),
        });
        Ok(Self { server: Server::Synthetic(bucket), public_key, paths, latency_ms })
    }

    fn url(&self) -> String {
        match &self.server {
            Server::Synthetic(bucket) => bucket.cache_url(),
            Server::Minio(uploaded, proxy) => {
                cache_url(&endpoint_of(&uploaded.minio, proxy.as_ref()), &uploaded.bucket)
            }
        }
    }

    /// Returns the number of requests since the last call, which MinIO counts all together since it started.
    fn requests(&self, before: u64) -> RequestCounts {
        match &self.server {
            Server::Synthetic(bucket) => bucket.take_counts(),
            Server::Minio(uploaded, _) => {
                RequestCounts { others: uploaded.minio.requests() - before, ..RequestCounts::default() }
            }
        }
    }

    fn requests_before(&self) -> u64 {
        match &self.server {
            Server::Synthetic(_) => 0,
            Server::Minio(uploaded, _) => uploaded.minio.requests(),
        }
    }

    /// Runs a command of `s3-pull` once.
    fn measure(
        &self,
        command: &'static str,
        reads_narinfos: bool,
        args: &Args,
        scratch: &Scratch,
    ) -> Result<Row, String> {
        let (url, jobs) = (self.url(), args.jobs.to_string());
        let have = scratch.path().join(HAVE);
        let mut tool_args: Vec<&str> = command.split(' ').collect();
        if !reads_narinfos {
            tool_args.push(have.to_str().ok_or("the scratch directory is not UTF-8")?);
        }
        if !command.starts_with("dead") {
            tool_args.extend(["--trusted-public-key", &self.public_key]);
        }
        tool_args.extend(["-q", "-j", &jobs, &url]);
        let output = if command.starts_with("narinfo") { have.clone() } else { scratch.path().join("output") };
        let stages = vec![Stage { name: command, command: scratch.tool("s3-pull", &tool_args) }];
        scratch.write("empty", "");
        let before = self.requests_before();
        let pipeline = Pipeline::start(stages, &scratch.path().join("empty"), &output, &scratch.dir("logs"))?;
        let (elapsed, stages) = pipeline.succeed(TIMEOUT)?;
        let counts = self.requests(before);
        let bytes = output.metadata().map_or(0, |metadata| metadata.len());
        let requests = counts.pages + counts.narinfos + counts.others;
        let expected = if reads_narinfos { self.paths } else { 0 };
        match &self.server {
            Server::Synthetic(_) if counts.narinfos != expected => {
                return Err(format!("s3-pull {command} has read {} narinfos, not {expected}", counts.narinfos));
            }
            Server::Minio(..) if requests < expected => {
                return Err(format!("s3-pull {command} has sent {requests} requests for {expected} narinfos"));
            }
            _ => {}
        }
        let measurement = Measurement::new(elapsed, &stages, Some(requests), bytes);
        Ok(Row { command, latency_ms: self.latency_ms, measurement, counts })
    }
}

fn to_json(row: &Row) -> Value {
    json!({
        "command": format!("s3-pull {}", row.command),
        "latencyMs": row.latency_ms,
        "wallSeconds": rounded(row.measurement.elapsed.as_secs_f64()),
        "cpuSeconds": rounded(row.measurement.cpu.as_secs_f64()),
        "peakKiB": row.measurement.peak_kib,
        "pages": row.counts.pages,
        "narinfos": row.counts.narinfos,
        "otherRequests": row.counts.others,
        "bytes": row.measurement.bytes,
    })
}
