//! Paths unpacked below a root, many at once; each appears after those that it references, and only if it is good.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use indicatif::ProgressBar;
use nar_pack::nar::Restorer;
use nar_pack::stage::{self, Failure, Outcome};
use nar_pack::store_path::StorePath;
use narinfo_gen::narinfo::NarInfo;
use s3_push::patience::Tries;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

use crate::TOOL;
use crate::closure::Cache;
use crate::fetch;
use crate::staging::{Placed, Staging, exists};

/// Paths that are under way or wait for their references, for each request in flight.
const TASKS_PER_JOB: usize = 8;

/// How a path ends; a channel, because a long chain of shared futures would be polled as deep as it is long.
type Promise = watch::Receiver<Option<Outcome>>;

/// What was done.
#[derive(Debug, Default, Clone, Copy)]
pub struct Summary {
    /// Paths that are new.
    pub fetched: u64,
    /// Paths that were there.
    pub present: u64,
    /// NAR bytes of the new ones.
    pub bytes: u64,
}

/// Unpacks these paths, given references first, below `root`. Refusals are added to `refusals`; what depends on a
/// refused path is not unpacked, everything else is.
///
/// # Errors
/// The first operation that failed ends it.
pub async fn unpack(
    cache: Arc<Cache>,
    narinfos: Vec<Arc<NarInfo>>,
    root: &Path,
    jobs: usize,
    verbose: bool,
    progress: &ProgressBar,
    refusals: &mut Vec<Failure>,
) -> Outcome<Summary> {
    let store = cache.store_dir.dir_below(Some(root));
    let staging = tokio::task::spawn_blocking(move || Staging::begin(&store)).await;
    let staging = Arc::new(staging.map_err(|_| Failure::failed("a thread died"))??);
    let slots = Arc::new(Semaphore::new(jobs));
    let mut promises: HashMap<StorePath, Promise> = HashMap::with_capacity(narinfos.len());
    let mut tasks = JoinSet::new();
    let mut waiting = narinfos.into_iter();
    let mut summary = Summary::default();
    loop {
        // A path waits only for paths that were started before it.
        while tasks.len() < jobs.saturating_mul(TASKS_PER_JOB)
            && let Some(narinfo) = waiting.next()
        {
            let references = narinfo.references.iter().filter(|path| **path != narinfo.path);
            let references: Vec<Promise> = references.filter_map(|path| promises.get(path).cloned()).collect();
            let (cache, staging, slots) = (Arc::clone(&cache), Arc::clone(&staging), Arc::clone(&slots));
            let told = Arc::clone(&narinfo);
            let path = narinfo.path.clone();
            let (ended, promise) = watch::channel(None);
            promises.insert(path, promise);
            tasks.spawn(async move {
                let placed = place(&cache, narinfo, &staging, &slots, references).await;
                // Nobody may wait for it.
                let _ = ended.send(Some(placed.clone().map(drop)));
                (told, placed)
            });
        }
        let Some(done) = tasks.join_next().await else { break };
        let (narinfo, result) = done.map_err(|_| Failure::failed("a fetching task died"))?;
        progress.inc(1);
        match result {
            Ok(Placed::New) => {
                summary.fetched += 1;
                summary.bytes += narinfo.nar_size;
            }
            Ok(Placed::Existed) => summary.present += 1,
            Err(failure) if failure.is_refusal() => refusals.push(failure),
            Err(failure) => return Err(failure),
        }
        if verbose {
            stage::say(TOOL, format!("{}: done", narinfo.full_path()));
        }
    }
    Ok(summary)
}

async fn place(
    cache: &Arc<Cache>,
    narinfo: Arc<NarInfo>,
    staging: &Arc<Staging>,
    slots: &Arc<Semaphore>,
    references: Vec<Promise>,
) -> Outcome<Placed> {
    if exists(&staging.place(&narinfo.path)) {
        return Ok(Placed::Existed);
    }
    let mut tries = Tries::new(cache.source.attempts());
    loop {
        let slot = Arc::clone(slots).acquire_owned().await;
        let slot = slot.map_err(|_| Failure::failed("the pull was given up"))?;
        match download(cache, &narinfo, staging).await {
            Ok(()) => break,
            Err(failure) if failure.is_refusal() => return Err(failure),
            Err(failure) => {
                drop(slot);
                if !tries.again().await {
                    return Err(failure);
                }
            }
        }
    }
    for mut reference in references {
        let ended = match reference.wait_for(Option::is_some).await {
            Ok(ended) => ended.clone().unwrap_or(Ok(())),
            Err(_) => Err(Failure::failed("the pull was given up")),
        };
        if let Err(failure) = ended {
            let (staging, path) = (Arc::clone(staging), narinfo.path.clone());
            let _ = tokio::task::spawn_blocking(move || nar_pack::nar::remove_tree(&staging.temporary(&path))).await;
            let why = format!("{}: a path that it references could not be fetched", narinfo.full_path());
            return Err(if failure.is_refusal() { Failure::refused(why) } else { failure });
        }
    }
    staging.publish(&narinfo.path)
}

/// Unpacks into the temporary place; what is there afterwards has been checked.
async fn download(cache: &Arc<Cache>, narinfo: &Arc<NarInfo>, staging: &Arc<Staging>) -> Outcome {
    let body = fetch::begin(cache, narinfo).await?;
    let (narinfo, temporary) = (Arc::clone(narinfo), staging.temporary(&narinfo.path));
    let unpacked = tokio::task::spawn_blocking(move || {
        let mut restorer = Restorer::new(&temporary);
        let result = fetch::check(fetch::reader(body), &narinfo, &mut restorer, |_| Ok(()));
        if result.is_err() {
            restorer.undo()?;
        }
        result
    });
    unpacked.await.map_err(|_| Failure::failed("an unpacking thread died"))?
}
