//! Runs a mode: connects to the bucket, connects the intake to the publisher, and handles signals.

use std::ffi::OsString;
use std::io::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};

use indicatif::HumanBytes;
use nar_pack::error::{Error, Result};
use nar_pack::json_lines::{print_object, write_object};
use nar_pack::path_info::PathInfoSource;
use nar_pack::process;
use nar_pack::stdio;
use nar_pack::store_path::{StoreDir, read_path_list};
use narinfo_gen::buffer_pool::BufferPool;
use narinfo_gen::cache_info::KEY;
use narinfo_gen::compression::Settings;
use narinfo_gen::narinfo_builder::{NarPath, require_path};
use narinfo_gen::stream::{Kind, Sniffed, sniff};
use serde_json::json;
use tokio::runtime::{Handle, Runtime};
use tokio::sync::{Semaphore, mpsc};

use crate::TOOL;
use crate::cli::Cli;
use crate::collect;
use crate::mode::{
    BucketOptions, FLAG_COMMANDS, MissingOptions, Mode, PULL_COMMANDS, PushOptions, PutKeyOptions, SetCacheInfoOptions,
    UploadOptions,
};
use crate::publish::byte_budget::ByteBudget;
use crate::publish::cache_info::change_cache_info;
use crate::publish::intake::{Event, Intake, NarCheck, NarSizes};
use crate::publish::missing::find_missing_paths;
use crate::publish::part_sizes::{MAX_OBJECT_SIZE, PartSizes};
use crate::publish::publisher::{BucketState, PublishOptions, Publisher};
use crate::publish::put_key::put_key;
use crate::publish::upload::{ExistingCheck, Uploader};
use crate::publish::upstream::Upstreams;
use crate::remote::interrupts::{HINT, Interrupts};
use crate::remote::progress::{Progress, Verbosity, transfer_summary};
use crate::remote::s3::{Access, Bucket};
use crate::remote::start_runtime;
use crate::report::Report;

/// The accepted formats of standard input, for messages.
const INPUT_FORMATS: &str = "a cache archive, an export stream, a NAR or narinfo text";
/// Maximum number of events that wait for the publisher.
const EVENT_CHANNEL_CAPACITY: usize = 64;
/// Maximum number of buffers of a part that are kept while they are not in use.
const MAX_IDLE_PARTS: usize = 4;
/// Maximum time for aborting uploads after a failure or a signal.
const ABORT_TIMEOUT: Duration = Duration::from_secs(10);

/// Replaces a command that stands for a flag by the flag: `s3-push repair …` is `s3-push --repair …`.
pub fn expand_command(args: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    process::expand_flag_command(args, &FLAG_COMMANDS, &PULL_COMMANDS)
}

/// Runs `s3-push`.
///
/// # Errors
/// See the exit statuses in [`nar_pack::error`].
pub fn run(cli: &Cli) -> Result {
    if let Some(command) = &cli.command {
        return collect::run(command);
    }
    let mode = Mode::from_cli(cli)?;
    cli.decompression_args.apply();
    cli.progress_args.apply(TOOL, cli.quiet);
    let runtime = start_runtime()?;
    let result = match mode {
        Mode::Push(options) => push(&runtime, *options),
        Mode::Missing(options) => print_missing(&runtime, *options),
        Mode::PutKey(options) => upload_key(&runtime, *options),
        Mode::SetCacheInfo(options) => set_cache_info(&runtime, *options),
    };
    // Threads that still read or hash are not waited for.
    runtime.shutdown_background();
    result
}

async fn connect(options: BucketOptions) -> Result<Bucket> {
    let bucket = Bucket::connect(options.location, Access::Signed, options.limits, TOOL).await?;
    if options.verbosity == Verbosity::Verbose {
        let (url, provider) = (bucket.display_url(""), bucket.credential_source().await);
        process::print_message(TOOL, format!("{url}: credentials from {provider}"));
    }
    Ok(bucket)
}

async fn connect_uploader(
    bucket: BucketOptions,
    options: UploadOptions,
    check: ExistingCheck,
) -> Result<Arc<Uploader>> {
    let bucket = connect(bucket).await?.with_object_options(options.object_options).with_dry_run(options.is_dry_run);
    Ok(Arc::new(Uploader::new(Arc::new(bucket)).with_existing_check(check)))
}

/// Prints the paths on standard input that the cache lacks. Prints nothing if a lookup fails.
fn print_missing(runtime: &Runtime, options: MissingOptions) -> Result {
    let MissingOptions { bucket, requirements, upstreams, is_json } = options;
    let store_dir = &requirements.store_dir;
    let paths = read_path_list(stdio::stdin("a path list")?, store_dir)?;
    let limits = bucket.limits;
    let missing = runtime.block_on(async {
        let bucket = connect(bucket).await?;
        let upstreams = Upstreams::open(&upstreams, store_dir, limits, TOOL).await?;
        find_missing_paths(&bucket, &upstreams, &requirements, &paths).await
    })?;
    let mut out = stdio::stdout(None)?;
    for path in &missing {
        if is_json {
            write_object(&mut out, json!({ "path": store_dir.join(path), "status": "missing" }))?;
        } else {
            writeln!(out, "{}", store_dir.join(path))?;
        }
    }
    if is_json {
        write_object(&mut out, json!({ "summary": { "paths": paths.len(), "missing": missing.len() } }))?;
    }
    out.finish()
}

/// Uploads standard input under one key.
fn upload_key(runtime: &Runtime, options: PutKeyOptions) -> Result {
    let PutKeyOptions { bucket, upload, target, is_json } = options;
    let input = stdio::stdin("the bytes to upload")?;
    let size = input.get_ref().remaining_size();
    let (verbosity, memory, is_dry_run) = (bucket.verbosity, ByteBudget::new(upload.memory), upload.is_dry_run);
    let part_size = part_size(size, &upload)?;
    let uploader = runtime.block_on(connect_uploader(bucket, upload, ExistingCheck::EntityTag))?;
    let counter = Arc::clone(&uploader);
    let (progress, start) =
        (Progress::of_transfer(size.unwrap_or(0), move || counter.processed_bytes()), Instant::now());
    let uploading = put_key(&uploader, &target, input, memory, part_size);
    let bytes = runtime.block_on(abort_uploads_on_error(&uploader, uploading))?;
    drop(progress);
    if is_json {
        let status = if is_dry_run { "would-send" } else { "sent" };
        print_object(json!({ "key": target.key(), "status": status, "fileSize": bytes }))?;
    }
    if verbosity != Verbosity::Quiet {
        let url = uploader.bucket.display_url(target.key());
        let result = if is_dry_run {
            format!("{} would be sent", HumanBytes(bytes))
        } else {
            transfer_summary(bytes, start.elapsed())
        };
        process::print_message(TOOL, format!("{url}: {result}"));
    }
    Ok(())
}

/// Returns the minimum size of the parts of an object of `size` bytes, if it is known. A small file has the minimum that
/// was asked for, because it may grow while it is read.
///
/// # Errors
/// Refuses a file that S3 cannot store, or that needs larger parts than the memory allows.
fn part_size(size: Option<u64>, upload: &UploadOptions) -> Result<u64> {
    let Some(size) = size.filter(|size| *size > upload.part_size) else { return Ok(upload.part_size) };
    if size > MAX_OBJECT_SIZE {
        return Err(Error::refused(format!("{size} bytes; the maximum object size of S3 is 5 TiB")));
    }
    let part_size = PartSizes::new(upload.part_size, Some(size)).part_size() as u64;
    if 2 * part_size > upload.memory {
        let error = format!("a file of {size} bytes needs parts of {part_size} bytes, and twice as much memory");
        let memory = (2 * part_size).div_ceil(1 << 20);
        return Err(Error::usage(error).with_hint(format!("pass --memory {memory}MiB or more")));
    }
    Ok(part_size)
}

/// Changes the `nix-cache-info` of an existing cache.
fn set_cache_info(runtime: &Runtime, options: SetCacheInfoOptions) -> Result {
    let SetCacheInfoOptions { bucket, upload, changes, store_dir, is_json } = options;
    let (verbosity, is_dry_run) = (bucket.verbosity, upload.is_dry_run);
    let (url, has_changed) = runtime.block_on(async {
        let uploader = connect_uploader(bucket, upload, ExistingCheck::EntityTag).await?;
        let has_changed = change_cache_info(&uploader.bucket, &changes, &store_dir).await?;
        Ok::<_, Error>((uploader.bucket.display_url(KEY), has_changed))
    })?;
    let (status, result) = match (has_changed, is_dry_run) {
        (false, _) => ("unchanged", "unchanged"),
        (true, false) => ("changed", "changed"),
        (true, true) => ("would-change", "would be changed"),
    };
    if is_json {
        print_object(json!({ "key": KEY, "status": status }))?;
    }
    if verbosity != Verbosity::Quiet {
        process::print_message(TOOL, format!("{url}: {result}"));
    }
    Ok(())
}

/// Publishes the paths on standard input.
fn push(runtime: &Runtime, options: PushOptions) -> Result {
    let input = stdio::stdin(INPUT_FORMATS)?;
    let (bucket_argument, limits, verbosity) =
        (options.bucket.argument.clone(), options.bucket.limits, options.bucket.verbosity);
    let (memory, part_size, is_dry_run) = (options.upload.memory, options.upload.part_size, options.upload.is_dry_run);
    let uploader = runtime.block_on(connect_uploader(options.bucket, options.upload, options.existing_check))?;
    // While the first bytes of the input are awaited, the requests that every push begins with are made.
    let (reader, store_dir) = (Arc::clone(&uploader), options.store_dir.clone());
    let state = runtime.spawn(async move { (BucketState::read(&reader.bucket, &store_dir).await, Instant::now()) });
    let (kind, input) = sniff(input, INPUT_FORMATS)?;
    let input_began = Instant::now();
    let path = require_path(kind, options.path, || nar_without_path_hint(&bucket_argument))?;
    let is_added = matches!(path, Some(NarPath::Added { .. }));
    let report = Report::new(stdio::stdout(None)?, options.is_json, is_dry_run, verbosity)
        .with_present(is_added)
        .with_repair(options.repair);
    let publish_options = PublishOptions {
        store_dir: options.store_dir.clone(),
        allow_missing_references: options.allow_missing_references,
        priority: options.priority,
        want_mass_query: options.want_mass_query,
        is_narinfo_only: kind == Kind::Narinfo,
        exact: options.exact,
        collector_timeout: options.collector_timeout,
        repair: options.repair,
    };
    if options.repair && kind == Kind::Narinfo {
        let error = Error::usage("--repair: standard input is narinfo text, which contains no NARs");
        return Err(error.with_hint("pass a cache archive, such as the output of s3-pull --archive"));
    }
    if options.exact && kind != Kind::Narinfo {
        let error = format!("--exact: standard input is {}, not narinfo text, and is merged in any case", kind.name());
        return Err(Error::usage(error).with_hint("run the same command without --exact"));
    }
    if options.nar_check == NarCheck::File && kind != Kind::Archive {
        let error = Error::usage(format!("--check file: standard input is {}, not a cache archive", kind.name()));
        return Err(error.with_hint("run the same command without --check file"));
    }
    let (intake, events) = new_intake(memory, part_size, options.nar_check, runtime.handle().clone());
    let input = Input {
        kind,
        bytes: input,
        path,
        store_dir: options.store_dir,
        compression: options.compression,
        path_info: options.path_info,
    };
    let pushing = async {
        let upstreams = Upstreams::open(&options.upstreams, &input.store_dir, limits, TOOL).await?;
        let (state, read_ended) = state.await.map_err(|_| Error::panicked("the task that reads the bucket"))?;
        let state = match BucketState::read_early(state, read_ended, input_began) {
            Some(state) => state?,
            None => BucketState::read(&uploader.bucket, &input.store_dir).await?,
        };
        let publisher = Publisher::new(Arc::clone(&uploader), state, publish_options, upstreams, report);
        let reader = tokio::task::spawn_blocking(move || input.read(&intake));
        let end_of_input = async { reader.await.unwrap_or_else(|_| Err(Error::panicked("reader thread"))) };
        publisher.run(events, end_of_input).await
    };
    let report = runtime.block_on(abort_uploads_on_error(&uploader, pushing))?;
    report.finish(&uploader)
}

/// Returns the commands for a NAR whose path was not given: unsigned, and signed.
fn nar_without_path_hint(bucket: &str) -> String {
    format!(
        "run `nar-pack STORE-PATH | s3-push {bucket} STORE-PATH`, or to sign it \
         `nar-pack STORE-PATH | narinfo-gen --archive STORE-PATH | cache-sign -k KEYFILE | s3-push {bucket}`, \
         or pass --name NAME to publish any tree as a content-addressed path"
    )
}

fn new_intake(memory: u64, part_size: u64, nar_check: NarCheck, runtime: Handle) -> (Intake, mpsc::Receiver<Event>) {
    let (sender, events) = mpsc::channel(EVENT_CHANNEL_CAPACITY);
    // One verifier more than processors, because a verifier also waits for its input.
    let verifiers = std::thread::available_parallelism().map_or(1, usize::from) + 1;
    let verifiers = Arc::new(Semaphore::new(verifiers));
    let buffers = BufferPool::new(usize::try_from(part_size).unwrap_or(usize::MAX), MAX_IDLE_PARTS);
    let (memory, nar_sizes) = (ByteBudget::new(memory), NarSizes::default());
    (Intake { events: sender, memory, buffers, part_size, nar_check, verifiers, runtime, nar_sizes }, events)
}

/// Standard input and the context to read it.
struct Input {
    kind: Kind,
    bytes: Sniffed,
    path: Option<NarPath>,
    store_dir: StoreDir,
    compression: Settings,
    path_info: PathInfoSource,
}

impl Input {
    fn read(mut self, intake: &Intake) -> Result {
        match self.kind {
            Kind::Archive => intake.read_archive(self.bytes, &self.store_dir),
            Kind::Narinfo => intake.read_text(self.bytes, &self.store_dir),
            Kind::Nar | Kind::Export => intake.read_nars(self.bytes, self.path, self.compression, &mut self.path_info),
        }
    }
}

/// Runs `work`. If it fails, waits for the parts in flight, which the next run reuses. Then, and if a signal interrupts it,
/// aborts the multipart uploads that the next run cannot continue.
async fn abort_uploads_on_error<T>(uploader: &Uploader, work: impl Future<Output = Result<T>>) -> Result<T> {
    let mut interrupts = Interrupts::listen()?;
    let result = tokio::select! {
        result = work => {
            if result.is_err() {
                tokio::select! {
                    () = uploader.finish_parts() => {}
                    _ = interrupts.next() => {}
                }
            }
            result
        }
        signal = interrupts.next() => Err(Error::failed(signal).with_hint(HINT)),
    };
    if result.is_err() {
        // A second signal, or a service that does not answer, ends the wait.
        tokio::select! {
            () = uploader.abort_all() => {}
            _ = interrupts.next() => {}
            () = tokio::time::sleep(ABORT_TIMEOUT) => {}
        }
    }
    result
}
