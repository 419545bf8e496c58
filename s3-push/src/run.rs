//! `s3-push` itself: from the command line to a push.

use std::io::{Read, Write};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use nar_pack::error::{Context, Error, Result};
use nar_pack::path_info::PathInfoSource;
use nar_pack::process;
use nar_pack::stdio;
use nar_pack::store_path::{StoreDir, StorePath, read_path_list};
use narinfo_gen::archive::Object;
use narinfo_gen::hash::{Hasher, Sha256};
use narinfo_gen::narinfo_builder::require_path;
use narinfo_gen::stream::{Kind, Sniffed, sniff};
use tokio::runtime::{Handle, Runtime};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Semaphore, mpsc};

use crate::TOOL;
use crate::cli::Cli;
use crate::publish::existing::Existing;
use crate::publish::intake::Intake;
use crate::publish::object_options::object_options;
use crate::publish::publisher::{Options, Publisher};
use crate::publish::upload::{Body, BodyLength, ByteBudget, ObjectTarget, Overwrite, Part, PartSizes, Uploader};
use crate::publish::upstream::Upstreams;
use crate::remote::location::{Location, VARIABLE};
use crate::remote::progress::Verbosity;
use crate::remote::retry::RequestLimits;
use crate::remote::s3::{Access, Bucket};
use crate::report::Report;

const WANTED: &str = "a cache archive, an export stream, a NAR or narinfo text";
/// Events that may wait to be handled.
const EVENTS: usize = 64;
/// Time for giving up what cannot be continued.
const LAST_WORDS: Duration = Duration::from_secs(10);
/// Paths that are asked about at once.
const MAX_CONCURRENT_LOOKUPS: usize = 64;

/// Runs `s3-push`.
///
/// # Errors
/// See the exit codes in [`nar_pack::error`].
pub fn run(cli: &Cli) -> Result {
    let store_dir = StoreDir::new(&cli.path_info_args.store_dir)?;
    let (url, path) = split_targets(&cli.targets)?;
    let location = Location::parse(&url)?;
    if cli.memory < 2 * cli.part_size {
        return Err(Error::failed("--memory must be at least twice --part-size"));
    }
    let path = path.map(|path| store_dir.parse(&path)).transpose()?;
    let runtime = Runtime::new().map_err(|error| Error::failed(format!("starting threads: {error}")))?;
    let result = if cli.missing {
        no_path(path.as_ref())?;
        let paths = read_path_list(stdio::stdin("a path list")?, &store_dir)?;
        runtime.block_on(missing(location, cli, &store_dir, &paths))
    } else if let Some(key) = &cli.key {
        no_path(path.as_ref())?;
        push_bytes(&runtime, cli, location, key)
    } else {
        push(&runtime, cli, location, store_dir, path)
    };
    // Threads that still read or hash have nothing to say any more.
    runtime.shutdown_background();
    result
}

/// The bucket and a store path, in this order, each of which may be left out.
fn split_targets(targets: &[String]) -> Result<(String, Option<String>)> {
    let bucket = || {
        std::env::var(VARIABLE)
            .ok()
            .filter(|url| !url.is_empty())
            .ok_or_else(|| Error::failed(format!("say which bucket: s3://BUCKET, or set ${VARIABLE}")))
    };
    match targets {
        [] => Ok((bucket()?, None)),
        [path] if path.starts_with('/') => Ok((bucket()?, Some(path.clone()))),
        [url] => Ok((url.clone(), None)),
        [url, path] => Ok((url.clone(), Some(path.clone()))),
        _ => Err(Error::failed("expected a bucket and at most one store path")),
    }
}

fn no_path(path: Option<&StorePath>) -> Result {
    path.map_or(Ok(()), |path| Err(Error::failed(format!("{path}: no store path is expected here"))))
}

/// Prints what the cache lacks, all of it or, after a failure, nothing.
async fn missing(location: Location, cli: &Cli, store_dir: &StoreDir, paths: &[StorePath]) -> Result {
    let bucket = connect(location, cli).await;
    let upstreams = Upstreams::open(&cli.upstream, store_dir, limits(cli), TOOL).await?;
    let existing = Existing::look(&bucket).await?;
    existing.expect(&bucket, paths.len() as u64).await?;
    let asked = stream::iter(paths.iter().map(async |path| {
        Ok::<_, Error>(existing.has(&bucket, path.hash_part()).await? || upstreams.serve(path).await?)
    }));
    let there: Vec<bool> = asked.buffered(MAX_CONCURRENT_LOOKUPS).try_collect().await?;
    let mut out = stdio::stdout(None)?;
    for (path, _) in paths.iter().zip(there).filter(|(_, there)| !there) {
        writeln!(out, "{}", store_dir.join(path))?;
    }
    out.finish()
}

fn limits(cli: &Cli) -> RequestLimits {
    let idle = Duration::from_secs(cli.idle_timeout.into());
    RequestLimits { idle_timeout: idle, max_attempts: cli.attempts, max_in_flight: cli.jobs }
}

async fn connect(location: Location, cli: &Cli) -> Bucket {
    let bucket = Bucket::connect(location, Access::Signed, limits(cli), TOOL).await;
    if cli.verbose {
        process::print_message(
            TOOL,
            format!("{}: credentials from {}", bucket.display_url(""), bucket.credential_source().await),
        );
    }
    bucket
}

fn uploader(cli: &Cli, location: Location, runtime: &Runtime) -> Result<Arc<Uploader>> {
    let options = object_options(&cli.stored)?;
    let bucket = runtime.block_on(connect(location, cli));
    Ok(Arc::new(Uploader::new(Arc::new(bucket.with_object_options(options).with_dry_run(cli.dry_run)))))
}

fn push(runtime: &Runtime, cli: &Cli, location: Location, store_dir: StoreDir, path: Option<StorePath>) -> Result {
    let settings = cli.compression_args.settings()?;
    let mut registry = PathInfoSource::open(&cli.path_info_args, None)?;
    let (kind, input) = sniff(stdio::stdin(WANTED)?, WANTED)?;
    let path = require_path(kind, path)?;
    let report = Report::new(stdio::stdout(None)?, cli.json, Verbosity::new(cli.quiet, cli.verbose));
    let options = Options {
        store_dir: store_dir.clone(),
        allow_missing_references: cli.allow_missing_references,
        priority: cli.priority,
        want_mass_query: cli.want_mass_query,
        narinfos_alone: kind == Kind::Narinfo,
        exact: cli.exact,
    };
    let uploader = uploader(cli, location, runtime)?;
    let (events, arriving) = mpsc::channel(EVENTS);
    let intake = Intake {
        events,
        memory: ByteBudget::new(cli.memory),
        part_size: cli.part_size,
        examiners: Arc::new(Semaphore::new(std::thread::available_parallelism().map_or(1, usize::from) + 1)),
        runtime: runtime.handle().clone(),
    };
    let pushing = async {
        let upstreams = Upstreams::open(&cli.upstream, &options.store_dir, limits(cli), TOOL).await?;
        let publisher = Publisher::open(Arc::clone(&uploader), options, upstreams, report).await?;
        let reading = tokio::task::spawn_blocking(move || {
            read(&intake, kind, input, &store_dir, |intake, input| {
                intake.describe(kind, input, path, settings, &mut registry)
            })
        });
        let read = async { reading.await.unwrap_or_else(|_| Err(Error::failed("the reading thread died"))) };
        publisher.run(arriving, read).await
    };
    let report = runtime.block_on(until_interrupted(&uploader, pushing))?;
    report.finish(&uploader)
}

fn read(
    intake: &Intake,
    kind: Kind,
    input: Sniffed,
    store_dir: &StoreDir,
    describe: impl FnOnce(&Intake, Sniffed) -> Result,
) -> Result {
    match kind {
        Kind::Archive => intake.archive(input, store_dir),
        Kind::Narinfo => intake.text(input, store_dir),
        Kind::Nar | Kind::Export => describe(intake, input),
    }
}

/// Runs a push; when it fails, or a signal ends it, uploads under way are given up.
async fn until_interrupted<T>(uploader: &Uploader, pushing: impl Future<Output = Result<T>>) -> Result<T> {
    let interrupted =
        |what| Error::failed(format!("{what}; what was complete is published, run the same command again"));
    let listen = |kind| signal(kind).map_err(|error| Error::failed(format!("listening for signals: {error}")));
    let (mut int, mut term) = (listen(SignalKind::interrupt())?, listen(SignalKind::terminate())?);
    let result = tokio::select! {
        result = pushing => result,
        _ = int.recv() => Err(interrupted("interrupted")),
        _ = term.recv() => Err(interrupted("terminated")),
    };
    if result.is_err() {
        // A service that does not answer is not waited for long, and somebody who insists not at all.
        tokio::select! {
            () = uploader.abort_all() => {}
            _ = int.recv() => {}
            _ = term.recv() => {}
            () = tokio::time::sleep(LAST_WORDS) => {}
        }
    }
    result
}

/// Uploads standard input under one key.
fn push_bytes(runtime: &Runtime, cli: &Cli, location: Location, key: &str) -> Result {
    let object = Object::of_key(key);
    let last = key.rsplit('/').next().unwrap_or_default();
    if let Some(Object::Narinfo(_) | Object::CacheInfo) = Object::of_key(last) {
        return Err(Error::failed(format!("{key}: is made by a push without --key, which checks it")));
    }
    let wanted = match object {
        Some(Object::Nar(Some(hash))) => Some(hash),
        Some(Object::Nar(None)) => {
            return Err(Error::failed(format!("{key}: the name of a NAR is its hash, nar/<FileHash>.nar…")));
        }
        _ => None,
    };
    let plain =
        !key.is_empty() && key.len() <= 1024 && !key.starts_with('/') && !key.contains(|c: char| c.is_control());
    if !plain || key.split('/').any(|part| matches!(part, "." | "..")) {
        return Err(Error::failed(format!("{key:?} is not a key")));
    }
    let content_type = cli.content_type.as_deref();
    let content_type = content_type.or(object.map(Object::content_type)).unwrap_or("application/octet-stream");
    let replace = if matches!(object, Some(Object::Nar(_))) { Overwrite::Never } else { Overwrite::Allowed };
    let mut input = stdio::stdin("what to upload")?;
    let uploader = uploader(cli, location, runtime)?;
    let memory = ByteBudget::new(cli.memory);
    let sizes = PartSizes::new(cli.part_size, None);
    let handle = runtime.handle().clone();
    let sending = async {
        let (parts, arriving) = mpsc::channel(2);
        let reading = tokio::task::spawn_blocking(move || read_parts(&mut input, &memory, sizes, &parts, &handle));
        let read = async {
            let (hash, size) = reading.await.unwrap_or_else(|_| Err(Error::failed("the reading thread died")))?;
            match wanted.filter(|wanted| *wanted != hash) {
                Some(_) => {
                    Err(Error::refused(format!("{key}: the hash of the bytes is {hash}, not what the key says")))
                }
                None => Ok(size),
            }
        };
        let target = ObjectTarget { key, content_type, replace };
        uploader.send(&target, Body { parts: arriving, form: BodyLength::Unknown }, read).await
    };
    let (bytes, _) = runtime.block_on(until_interrupted(&uploader, sending))?;
    if !cli.quiet {
        let shown = uploader.bucket.display_url(key);
        process::print_message(TOOL, format!("{shown}: {}", indicatif::HumanBytes(bytes)));
    }
    Ok(())
}

/// Cuts standard input into parts; returns the hash of all bytes, and how many there were.
fn read_parts(
    input: &mut impl Read,
    memory: &ByteBudget,
    sizes: PartSizes,
    parts: &mpsc::Sender<Part>,
    runtime: &Handle,
) -> Result<(Sha256, u64)> {
    let mut hasher = Hasher::default();
    for index in 0.. {
        let want = sizes.of(index);
        let share = runtime.block_on(memory.take(want))?;
        let mut bytes = Vec::new();
        input
            .by_ref()
            .take(want as u64)
            .read_to_end(&mut bytes)
            .map_err(Error::from)
            .context(|| "reading standard input")?;
        hasher.update(&bytes);
        let last = bytes.len() < want;
        if !bytes.is_empty() && parts.blocking_send(Part::new(Bytes::from(bytes), share)).is_err() {
            return Err(Error::failed("the upload was given up"));
        }
        if last {
            break;
        }
    }
    Ok(hasher.finish())
}
