//! Runs one invocation: opens the caches, resolves the requested paths, and writes the requested output.

use std::collections::HashSet;
use std::io::{self, IsTerminal as _};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use futures_util::StreamExt;
use nar_pack::error::{Error, Result};
use nar_pack::process;
use nar_pack::stdio;
use nar_pack::store_path::StorePath;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use s3_push::remote::interrupts::Interrupts;
use s3_push::remote::progress::{Progress, Verbosity, count_of, transfer_summary};
use s3_push::remote::{RemoteOptions, start_runtime};
use tokio::runtime::Handle;

use crate::TOOL;
use crate::cat;
use crate::cli::Cli;
use crate::closure::{ClosureWalk, ResolvedClosure};
use crate::commands;
use crate::mode::{Format, Mode, PathFormat, Request, Selection};
use crate::path_writer::PathWriter;
use crate::refusals::Refusals;
use crate::report::Report;
use crate::sources::{Candidate, RequestedPath, Sources};
use crate::streams;
use crate::unpack::{UnpackOptions, unpack};

/// Runs `s3-pull`.
///
/// # Errors
/// See the exit statuses in [`nar_pack::error`].
pub fn run(cli: &Cli) -> Result {
    if let Some(command) = &cli.command {
        return commands::run(command);
    }
    raise_open_file_limit();
    let request = Request::from_cli(cli)?;
    cli.decompression_args.apply();
    cli.progress_args.apply(TOOL, cli.quiet);
    let runtime = start_runtime()?;
    let result = execute(runtime.handle(), request);
    runtime.shutdown_background();
    result
}

/// Raises the soft limit of open files to the hard limit: a dozen or more files are open for each NAR that is unpacked.
/// The soft limit exists for programs that use `select`. If it cannot be raised it may still suffice.
fn raise_open_file_limit() {
    let limit = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
}

fn execute(runtime: &Handle, request: Request) -> Result {
    let Request { mode, mut selection, pin, urls, remote, trusted, store_dir, jobs, lookups, verbosity, known } =
        request;
    let options =
        RemoteOptions { access: remote.access, limits: remote.limits, netrc: remote.netrc.as_deref(), tool: TOOL };
    let sources = runtime.block_on(Sources::open(&urls, options, trusted, store_dir))?;
    if let (Some(pin), Selection::Paths { paths, .. }) = (pin, &mut selection) {
        let pinned = runtime.block_on(sources.read_pin(&pin))?;
        let mut seen: HashSet<StorePath> = paths.iter().cloned().collect();
        paths.extend(pinned.into_iter().filter(|path| seen.insert(path.clone())));
    }
    let sources = Arc::new(sources.with_unsigned_path_hint(mode.unsigned_path_hint()).with_known(known));
    if let (Selection::All, Mode::Write(Format::Paths(format))) = (&selection, &mode) {
        return runtime.block_on(write_all(&sources, *format, jobs, verbosity));
    }
    let is_closed = selection.is_closed();
    let walk = runtime.block_on(start_walk(&sources, selection, lookups))?;
    match mode {
        Mode::Unpack { root, options, json } => {
            runtime.block_on(unpack_under(&root, options, json, verbosity, walk, &sources))
        }
        Mode::Write(format) => {
            runtime.spawn(exit_when_interrupted());
            write(runtime, &sources, &format, walk, is_closed, verbosity)
        }
    }
}

/// Ends the process after a signal, without the end of the output.
async fn exit_when_interrupted() {
    if let Ok(mut interrupts) = Interrupts::listen() {
        let signal = interrupts.next().await;
        let error = Error::failed(format!("{signal}: the output is truncated"));
        process::print_error(TOOL, &error.with_hint("run the same command again"));
        std::process::exit(2);
    }
}

/// Writes the paths of a walk to standard output. A stream must be complete, so it does not start when a path is
/// missing.
fn write(
    runtime: &Handle,
    sources: &Arc<Sources>,
    format: &Format,
    walk: ClosureWalk,
    is_closed: bool,
    verbosity: Verbosity,
) -> Result {
    let start = Instant::now();
    let mut refusals = Refusals::new("written");
    let closure = runtime.block_on(ResolvedClosure::collect(walk, &mut refusals))?;
    let candidates = closure.in_order(is_closed, |candidate, reference| {
        refusals.add_dependent(&candidate.narinfo, reference);
        Ok(())
    })?;
    refusals.into_result(verbosity)?;
    if matches!(format, Format::Paths(_)) {
        return write_candidates(runtime, sources, format, &candidates);
    }
    // A bar would erase the last line of a file if that has no end.
    let is_text_on_terminal = matches!(format, Format::Cat { .. }) && io::stdout().is_terminal();
    let progress = (!is_text_on_terminal).then(|| transfer_progress(sources, &candidates));
    write_candidates(runtime, sources, format, &candidates)?;
    drop(progress);
    if verbosity != Verbosity::Quiet && !matches!(format, Format::Cat { .. }) {
        let count = count_of(candidates.len(), "path");
        let received = transfer_summary(sources.received(), start.elapsed());
        process::print_message(TOOL, format!("{count} written; received {received}"));
    }
    Ok(())
}

/// Shows the bytes of the NARs that have been received.
fn transfer_progress(sources: &Arc<Sources>, candidates: &[Arc<Candidate>]) -> Progress {
    let total = candidates.iter().map(|candidate| candidate.narinfo.file_size.unwrap_or(0)).sum();
    let (counter, before) = (Arc::clone(sources), sources.received());
    Progress::of_transfer(total, move || counter.received().saturating_sub(before))
}

async fn start_walk(sources: &Arc<Sources>, selection: Selection, lookups: usize) -> Result<ClosureWalk> {
    let (requested, recursive) = match selection {
        Selection::All => (sources.list().await?, false),
        Selection::Paths { paths, recursive } => (paths.into_iter().map(RequestedPath::Path).collect(), recursive),
    };
    Ok(ClosureWalk::new(Arc::clone(sources), requested, recursive, lookups))
}

async fn unpack_under(
    root: &Path,
    options: UnpackOptions,
    json: bool,
    verbosity: Verbosity,
    walk: ClosureWalk,
    sources: &Arc<Sources>,
) -> Result {
    let json = if json { Some(stdio::stdout(None)?) } else { None };
    let mut report = Report::new(json, verbosity);
    match unpack(walk, sources, root, options, &mut report).await {
        Ok(()) => report.finish(sources.received()),
        Err(error) => {
            report.abort();
            Err(error)
        }
    }
}

/// Writes candidates, ordered references first, to standard output.
fn write_candidates(
    runtime: &Handle,
    sources: &Arc<Sources>,
    format: &Format,
    candidates: &[Arc<Candidate>],
) -> Result {
    match format {
        Format::Paths(format) => {
            let mut writer = PathWriter::new(*format)?;
            for (index, candidate) in candidates.iter().enumerate() {
                writer.write(&candidate.narinfo, index + 1 < candidates.len())?;
            }
            writer.finish()
        }
        Format::Export => streams::export(runtime, sources, candidates, stdio::stdout(Some("the export stream"))?),
        Format::Archive(kinds) => {
            streams::archive(runtime, sources, candidates, *kinds, stdio::stdout(Some("the cache archive"))?)
        }
        Format::Nar => candidates.iter().try_for_each(|candidate| {
            let mut out = stdio::stdout(Some("the NAR"))?;
            streams::nar(runtime, sources, candidate, &mut out)?;
            out.finish()
        }),
        Format::Cat { file, unverified } => candidates.iter().try_for_each(|candidate| {
            let mut out = stdio::stdout(None)?;
            if *unverified && cat::cat_unverified(runtime, sources, candidate, file.as_bytes(), &mut out)? {
                return out.finish();
            }
            cat::cat(runtime, sources, candidate, file.as_bytes(), out)
        }),
    }
}

/// Writes the narinfos or store paths of the whole cache, unordered, without keeping them in memory.
async fn write_all(sources: &Sources, format: PathFormat, jobs: usize, verbosity: Verbosity) -> Result {
    let requested = sources.list().await?;
    let progress = Progress::of_objects("narinfos", requested.len());
    let mut refusals = Refusals::new("written");
    let mut writer = PathWriter::new(format)?;
    let lookups = futures_util::stream::iter(requested).map(|requested| async move {
        let result = sources.find(&requested).await;
        (requested, result)
    });
    let mut lookups = lookups.buffered(jobs);
    while let Some((requested, result)) = lookups.next().await {
        progress.increment();
        match result {
            Ok(Some(candidate)) => writer.write(&candidate.narinfo, false)?,
            // The narinfo was removed after the cache was listed.
            Ok(None) => {}
            Err(error) if error.is_refusal() => refusals.add(requested.hash_part(), &error),
            Err(error) => {
                writer.finish_truncated()?;
                return Err(error);
            }
        }
    }
    drop(progress);
    if refusals.count() > 0 {
        writer.finish_truncated()?;
    } else {
        writer.finish()?;
    }
    refusals.into_result(verbosity)
}
