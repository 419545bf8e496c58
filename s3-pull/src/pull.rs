//! `s3-pull` itself: from the command line to a pull.

use std::collections::HashMap;
use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use cache_sign::trust::TrustedKeys;
use futures_util::StreamExt;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use nar_pack::references::references_first;
use nar_pack::stage::{self, Doing, Failure, Outcome};
use nar_pack::store_path::{StoreDir, StorePath, read_path_list};
use narinfo_gen::cache_info::{self, CacheInfo};
use narinfo_gen::narinfo::{NarInfo, TextWriter};
use s3_push::client::Access;
use s3_push::location::VARIABLE;
use s3_push::patience::Patience;
use tokio::runtime::Runtime;

use crate::cli::Cli;
use crate::closure::{Cache, Found};
use crate::source::Source;
use crate::{TOOL, emit, unpack};

/// Runs `s3-pull`.
///
/// # Errors
/// See the exit codes in [`stage`].
pub fn run(cli: &Cli) -> Outcome {
    let store_dir = StoreDir::new(&cli.store_dir)?;
    let (url, paths) = split_targets(cli, &store_dir)?;
    let trusted = if cli.no_verify_signatures { None } else { Some(TrustedKeys::from_cli(&cli.trust)?) };
    let runtime = Runtime::new().map_err(|error| Failure::failed(format!("starting threads: {error}")))?;
    let result = (|| {
        let access = if cli.no_sign_request { Access::Anonymous } else { Access::Signed };
        let idle = Duration::from_secs(cli.idle_timeout.into());
        let patience = Patience { idle, attempts: cli.attempts, in_flight: cli.jobs };
        let source = runtime.block_on(Source::open(&url, access, patience))?;
        let cache = Arc::new(Cache { source, trusted, store_dir });
        runtime.block_on(check_cache_info(&cache))?;
        if cli.all && (cli.narinfo || cli.list) {
            return runtime.block_on(emit_all(cli, &cache));
        }
        pull(&runtime, cli, &cache, paths)
    })();
    runtime.shutdown_background();
    result
}

/// The cache and the store paths, of which the cache may be left out.
fn split_targets(cli: &Cli, store_dir: &StoreDir) -> Outcome<(String, Vec<StorePath>)> {
    if cli.root.is_none() && !(cli.nar || cli.export || cli.narinfo || cli.archive || cli.list) {
        return Err(Failure::failed("say what to make: --root DIR, or --nar, --export, --narinfo, --archive, --list"));
    }
    let (url, rest) = match cli.targets.split_first() {
        Some((first, rest)) if !first.starts_with('/') => (Ok(first.clone()), rest),
        _ => (
            std::env::var(VARIABLE)
                .ok()
                .filter(|url| !url.is_empty())
                .ok_or_else(|| Failure::failed(format!("say which cache: a URL, or set ${VARIABLE} (try --help)"))),
            cli.targets.as_slice(),
        ),
    };
    let mut paths = rest.iter().map(|path| store_dir.parse(path)).collect::<Outcome<Vec<_>>>()?;
    let url = url?;
    if cli.stdin {
        paths.extend(read_path_list(stage::stdin("a path list")?, store_dir)?);
    } else if paths.is_empty() != cli.all {
        return Err(Failure::failed("expected store paths, or --all, or --stdin (try --help)"));
    }
    if cli.nar && paths.len() != 1 {
        return Err(Failure::failed("--nar takes one store path; --export takes several"));
    }
    let mut seen = std::collections::HashSet::new();
    paths.retain(|path| seen.insert(path.clone()));
    Ok((url, paths))
}

/// A cache of another store directory has nothing for us; one that says nothing is taken at its narinfos' word.
async fn check_cache_info(cache: &Cache) -> Outcome {
    let limit = usize::try_from(cache_info::MAX_SIZE).unwrap_or(usize::MAX);
    match cache.source.text(cache_info::KEY, limit).await? {
        None => Ok(()),
        Some(text) => CacheInfo::parse(&text)
            .and_then(|info| info.require(&cache.store_dir))
            .doing(|| cache.source.shown(cache_info::KEY)),
    }
}

/// Narinfos or store paths of the whole cache, in no order; none of them is kept.
async fn emit_all(cli: &Cli, cache: &Cache) -> Outcome {
    let hashes = cache.source.list().await?;
    let mut refusals = Vec::new();
    let mut text = TextWriter::new(stage::stdout(None)?);
    let mut list = stage::stdout(None)?;
    let asked = futures_util::stream::iter(hashes.into_iter().map(|hash| cache.narinfo(hash)));
    let mut answers = asked.buffered(usize::from(cli.jobs));
    while let Some(answer) = answers.next().await {
        match answer {
            Ok(Some(narinfo)) if cli.narinfo => text.write(&narinfo, false)?,
            Ok(Some(narinfo)) => writeln!(list, "{}", narinfo.full_path())?,
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
    report(&refusals)
}

/// One refusal is the failure; several are told one by one.
fn report(refusals: &[Failure]) -> Outcome {
    match refusals {
        [] => Ok(()),
        [refusal] => Err(refusal.clone()),
        several => {
            for refusal in several {
                stage::say(TOOL, refusal);
            }
            Err(Failure::refused(format!("{} paths were refused", several.len())))
        }
    }
}

fn pull(runtime: &Runtime, cli: &Cli, cache: &Arc<Cache>, paths: Vec<StorePath>) -> Outcome {
    let found = runtime.block_on(async {
        if cli.all {
            all_narinfos(cli, cache, cache.source.list().await?).await
        } else {
            cache.discover(paths, cli.recursive, cli.jobs.into()).await
        }
    })?;
    produce(runtime, cli, cache, found)
}

async fn all_narinfos(cli: &Cli, cache: &Cache, hashes: Vec<nar_pack::store_path::HashPart>) -> Outcome<Found> {
    let mut found = Found::default();
    let asked = futures_util::stream::iter(hashes.into_iter().map(|hash| cache.narinfo(hash)));
    let mut answers = asked.buffer_unordered(usize::from(cli.jobs));
    while let Some(answer) = answers.next().await {
        match answer {
            Ok(Some(narinfo)) => drop(found.narinfos.insert(narinfo.path.clone(), Arc::new(narinfo))),
            Ok(None) => {}
            Err(failure) if failure.is_refusal() => found.refusals.push(failure),
            Err(failure) => return Err(failure),
        }
    }
    Ok(found)
}

fn produce(runtime: &Runtime, cli: &Cli, cache: &Arc<Cache>, mut found: Found) -> Outcome {
    let narinfos = in_order(&mut found, cli.recursive || cli.all)?;
    let handle = runtime.handle();
    if let Some(root) = &cli.root {
        let progress = progress(cli, narinfos.len() as u64);
        let mut refusals = found.refusals;
        let unpacking =
            unpack::unpack(Arc::clone(cache), narinfos, root, cli.jobs.into(), cli.verbose, &progress, &mut refusals);
        let summary = runtime.block_on(unpacking)?;
        progress.finish_and_clear();
        report(&refusals)?;
        if !cli.quiet {
            let bytes = indicatif::HumanBytes(summary.bytes);
            stage::say(
                TOOL,
                format!("{} fetched ({bytes} unpacked), {} there already", summary.fetched, summary.present),
            );
        }
        return Ok(());
    }
    // A stream is whole or cut off: with a path missing it must not begin.
    report(&found.refusals)?;
    if cli.narinfo {
        let mut text = TextWriter::new(stage::stdout(None)?);
        for (index, narinfo) in narinfos.iter().enumerate() {
            text.write(narinfo, index + 1 < narinfos.len())?;
        }
        return text.into_inner().finish();
    }
    if cli.list {
        let mut out = stage::stdout(None)?;
        for narinfo in &narinfos {
            writeln!(out, "{}", narinfo.full_path())?;
        }
        return out.finish();
    }
    if cli.export {
        return emit::export(handle, cache, &narinfos, stage::stdout(Some("the export stream"))?);
    }
    if cli.archive {
        return emit::archive(handle, cache, &narinfos, stage::stdout(Some("the cache archive"))?);
    }
    let mut out = stage::stdout(Some("the NAR"))?;
    for narinfo in &narinfos {
        emit::nar(handle, cache, narinfo, &mut out)?;
    }
    out.finish()
}

/// References first. In a closure, a path of which a reference is missing is refused too, and so on.
fn in_order(found: &mut Found, closed: bool) -> Outcome<Vec<Arc<NarInfo>>> {
    let mut paths: Vec<StorePath> = found.narinfos.keys().cloned().collect();
    paths.sort_unstable();
    let narinfos: &HashMap<StorePath, Arc<NarInfo>> = &found.narinfos;
    let order = references_first(&paths, |path| narinfos.get(path).map_or(&[], |narinfo| &narinfo.references))?;
    let mut kept = std::collections::HashSet::new();
    let mut result = Vec::with_capacity(order.len());
    for path in order {
        let narinfo = &narinfos[path];
        let missing = narinfo.references.iter().find(|reference| *reference != path && !kept.contains(*reference));
        match missing.filter(|_| closed) {
            None => {
                kept.insert(path.clone());
                result.push(Arc::clone(narinfo));
            }
            Some(reference) => found.refusals.push(Failure::refused(format!(
                "{}: it references {reference}, which could not be fetched",
                narinfo.full_path()
            ))),
        }
    }
    Ok(result)
}

/// A bar on a terminal, nothing elsewhere.
fn progress(cli: &Cli, paths: u64) -> ProgressBar {
    let target = if cli.quiet { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() };
    let bar = ProgressBar::with_draw_target(Some(paths), target);
    match ProgressStyle::with_template("{bar:30} {pos}/{len} paths {elapsed}") {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}
