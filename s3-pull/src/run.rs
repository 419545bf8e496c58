//! `s3-pull` itself: from the command line to a pull.

use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use cache_sign::trust::TrustedKeys;
use futures_util::StreamExt;
use nar_pack::error::{Error, Result};
use nar_pack::stdio;
use nar_pack::store_path::{StoreDir, StorePath, read_path_list};
use narinfo_gen::narinfo::TextWriter;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use s3_push::remote::location::VARIABLE;
use s3_push::remote::progress::Verbosity;
use s3_push::remote::retry::RequestLimits;
use s3_push::remote::s3::Access;
use s3_push::remote::{Remote, RemoteOptions};
use tokio::runtime::Runtime;

use crate::TOOL;
use crate::cli::Cli;
use crate::closure::{Cache, ClosureWalk, RequestedPath, ResolvedClosure};
use crate::report::{Report, summarize};
use crate::streams;
use crate::unpack::{UnpackOptions, unpack};

/// Runs `s3-pull`.
///
/// # Errors
/// See the exit codes in [`nar_pack::error`].
pub fn run(cli: &Cli) -> Result {
    allow_open_files();
    let store_dir = StoreDir::new(&cli.store_dir)?;
    let targets = split_targets(cli, &store_dir)?;
    let trusted = if cli.no_verify_signatures { None } else { Some(TrustedKeys::from_cli(&cli.trust)?) };
    let runtime = Runtime::new().map_err(|error| Error::failed(format!("starting threads: {error}")))?;
    let result = (|| {
        let cache = Arc::new(runtime.block_on(open(cli, &targets.urls, trusted, store_dir))?);
        if cli.all && (cli.narinfo || cli.list) {
            return runtime.block_on(emit_all(cli, &cache));
        }
        pull(&runtime, cli, &cache, targets)
    })();
    runtime.shutdown_background();
    result
}

/// Each NAR that is unpacked has some dozens of files open. The lower of the two limits is there for programs that use
/// `select`; where it cannot be raised, it may do.
fn allow_open_files() {
    let limit = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
}

async fn open(cli: &Cli, urls: &[String], trusted: Option<TrustedKeys>, store_dir: StoreDir) -> Result<Cache> {
    let access = if cli.no_sign_request { Access::Anonymous } else { Access::SignedIfPossible };
    let mut sources = Vec::with_capacity(urls.len());
    let limits = RequestLimits {
        idle_timeout: Duration::from_secs(cli.idle_timeout.into()),
        max_attempts: cli.attempts,
        // As many narinfos and, at the same time, as many NARs.
        max_in_flight: 2 * cli.jobs,
    };
    let netrc =
        cli.netrc_file.clone().or_else(|| std::env::var_os("NETRC").filter(|file| !file.is_empty()).map(Into::into));
    let options = RemoteOptions { access, limits, netrc: netrc.as_deref(), tool: TOOL };
    for url in urls {
        sources.push(Remote::open(url, options).await?);
    }
    Cache::new(sources, trusted, store_dir).await
}

/// What the command line is about.
struct Targets {
    /// The caches.
    urls: Vec<String>,
    /// The store paths.
    paths: Vec<StorePath>,
    /// The file of the one path that is wanted, with `--cat`.
    inside: String,
}

/// The caches, which may be left out, and the store paths.
fn split_targets(cli: &Cli, store_dir: &StoreDir) -> Result<Targets> {
    if cli.root.is_none() && !(cli.nar || cli.cat || cli.export || cli.narinfo || cli.archive || cli.list) {
        let made = "--root DIR, or --nar, --cat, --export, --narinfo, --archive, --list";
        return Err(Error::failed(format!("say what to make: {made}")));
    }
    let is_url =
        |(number, target): &(usize, &String)| !target.starts_with('/') && (*number == 0 || target.contains("://"));
    let urls = cli.targets.iter().enumerate().take_while(is_url).count();
    let (urls, rest) = cli.targets.split_at(urls);
    if rest.iter().any(|target| target.contains("://")) {
        return Err(Error::failed("caches come before store paths"));
    }
    let mut urls = urls.to_vec();
    if urls.is_empty() {
        let variable = std::env::var(VARIABLE).unwrap_or_default();
        urls.extend(variable.split_whitespace().map(str::to_owned));
    }
    if urls.is_empty() {
        return Err(Error::failed(format!("say which cache: a URL, or set ${VARIABLE}")));
    }
    let mut inside = String::new();
    let mut paths = Vec::with_capacity(rest.len());
    for path in rest {
        let (path, file) = if cli.cat { split_inside(path, store_dir) } else { (path.as_str(), "") };
        paths.push(store_dir.parse(path)?);
        file.clone_into(&mut inside);
    }
    if cli.stdin {
        paths.extend(read_path_list(stdio::stdin("a path list")?, store_dir)?);
    } else if paths.is_empty() != cli.all {
        return Err(Error::failed("expected store paths, or --all, or --stdin"));
    }
    if cli.nar && paths.len() != 1 {
        return Err(Error::failed("--nar takes one store path; --export takes several"));
    }
    if cli.cat && paths.len() != 1 {
        return Err(Error::failed("--cat takes one file of one store path"));
    }
    let mut seen = std::collections::HashSet::new();
    paths.retain(|path| seen.insert(path.clone()));
    Ok(Targets { urls, paths, inside })
}

/// A path inside a store path: the store path, and the rest.
fn split_inside<'a>(path: &'a str, store_dir: &StoreDir) -> (&'a str, &'a str) {
    let base = path.strip_prefix(store_dir.as_str()).map_or(0, |rest| path.len() - rest.trim_start_matches('/').len());
    match path[base..].find('/') {
        Some(end) => path.split_at(base + end),
        None => (path, ""),
    }
}

/// Narinfos or store paths of the whole cache, in no order; none of them is kept.
async fn emit_all(cli: &Cli, cache: &Cache) -> Result {
    let hashes = list(cache).await?;
    let mut refusals = Vec::new();
    let mut text = TextWriter::new(stdio::stdout(None)?);
    let mut list = stdio::stdout(None)?;
    let asked =
        futures_util::stream::iter(hashes.into_iter().map(|wanted| async move { cache.candidate(&wanted, &[]).await }));
    let mut answers = asked.buffered(usize::from(cli.jobs));
    while let Some(answer) = answers.next().await {
        match answer {
            Ok(Some(candidate)) if cli.narinfo => text.write(&candidate.narinfo, false)?,
            Ok(Some(candidate)) => writeln!(list, "{}", candidate.narinfo.full_path())?,
            // Removed since it was listed.
            Ok(None) => {}
            Err(failure) if failure.is_refusal() => refusals.push(failure),
            Err(failure) => {
                text.cut_off();
                return Err(failure);
            }
        }
    }
    if !refusals.is_empty() {
        text.cut_off();
    }
    text.into_inner().finish()?;
    list.finish()?;
    summarize(&refusals)
}

/// The paths of all sources, each once.
async fn list(cache: &Cache) -> Result<Vec<RequestedPath>> {
    let mut hashes = Vec::new();
    for source in &cache.sources {
        hashes.extend(source.list_hash_parts().await?);
    }
    hashes.sort_unstable();
    hashes.dedup();
    Ok(hashes.into_iter().map(RequestedPath::Hash).collect())
}

fn pull(runtime: &Runtime, cli: &Cli, cache: &Arc<Cache>, targets: Targets) -> Result {
    let Targets { paths, inside, .. } = targets;
    let goals =
        if cli.all { runtime.block_on(list(cache))? } else { paths.into_iter().map(RequestedPath::Path).collect() };
    if cli.root.is_some() {
        return runtime.block_on(fill_root(cli, cache, goals));
    }
    let found = runtime.block_on(cache.discover(goals, cli.recursive, cli.jobs.into()))?;
    produce(runtime, cli, cache, found, &inside)
}

async fn fill_root(cli: &Cli, cache: &Arc<Cache>, goals: Vec<RequestedPath>) -> Result {
    let out = if cli.json { Some(stdio::stdout(None)?) } else { None };
    let mut report = Report::new(out, Verbosity::new(cli.quiet, cli.verbose));
    let jobs = cli.jobs.into();
    let options = UnpackOptions {
        jobs,
        closed: cli.recursive || cli.all,
        verify_existing: cli.verify_existing,
        case_hack: cli.case_hack,
        owner: cli.owner,
        dry_run: cli.dry_run,
    };
    let walk = ClosureWalk::new(Arc::clone(cache), goals, cli.recursive, jobs);
    let root = cli.root.as_deref().unwrap_or_else(|| Path::new("."));
    match unpack(walk, cache, root, options, &mut report).await {
        Ok(()) => report.finish(cache.sources.iter().map(|source| source.bytes_received()).sum()),
        Err(failure) => {
            report.abandon();
            Err(failure)
        }
    }
}

fn produce(runtime: &Runtime, cli: &Cli, cache: &Arc<Cache>, mut found: ResolvedClosure, inside: &str) -> Result {
    let candidates = found.in_order(cli.recursive || cli.all)?;
    let handle = runtime.handle();
    // A stream is whole or cut off: with a path missing it must not begin.
    summarize(&found.refusals)?;
    if cli.narinfo {
        let mut text = TextWriter::new(stdio::stdout(None)?);
        for (index, candidate) in candidates.iter().enumerate() {
            text.write(&candidate.narinfo, index + 1 < candidates.len())?;
        }
        return text.into_inner().finish();
    }
    if cli.list {
        let mut out = stdio::stdout(None)?;
        for candidate in &candidates {
            writeln!(out, "{}", candidate.narinfo.full_path())?;
        }
        return out.finish();
    }
    if cli.export {
        return streams::export(handle, cache, &candidates, stdio::stdout(Some("the export stream"))?);
    }
    if cli.archive {
        return streams::archive(handle, cache, &candidates, stdio::stdout(Some("the cache archive"))?);
    }
    let Some(candidate) = candidates.first() else { return Ok(()) };
    if cli.cat {
        let mut out = stdio::stdout(None)?;
        if cli.unverified && streams::cat_unverified(handle, cache, candidate, inside.as_bytes(), &mut out)? {
            return out.finish();
        }
        return streams::cat(handle, cache, candidate, inside.as_bytes(), out);
    }
    let mut out = stdio::stdout(Some("the NAR"))?;
    streams::nar(handle, cache, candidate, &mut out)?;
    out.finish()
}
