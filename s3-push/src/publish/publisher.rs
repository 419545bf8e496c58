//! The event loop of a push: starts a task (`publish_path`) for each path whose NAR and references have arrived, and
//! defers the others until the end of the input. Tasks never wait for input that has not been read, so the loop may
//! pause reading while many tasks run.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use futures_util::future::BoxFuture;
use futures_util::{FutureExt, StreamExt, TryStreamExt, stream};
use nar_pack::error::{Error, Result};
use nar_pack::references::references_first;
use nar_pack::store_path::{HashPart, StoreDir, StorePath};
use narinfo_gen::archive::Object;
use narinfo_gen::extras::debuginfo_target;
use narinfo_gen::narinfo::NarInfo;
use tokio::sync::{Mutex, Semaphore, mpsc, watch};
use tokio::task::{JoinError, JoinSet};
use tokio::time::Interval;

use crate::publish::body::Part;
use crate::publish::cache_info::CacheInfoState;
use crate::publish::collection::{CollectorWait, Doomed, RECORDS_LIFETIME};
use crate::publish::existing::Existing;
use crate::publish::intake::{Event, ReceivedNar};
use crate::publish::nar_state::{MAX_WAITING_PARTS, PendingNar, SharedResult, VerifiedNar};
use crate::publish::nars::Nars;
use crate::publish::publish_path::{PathProgress, PendingReference, PublishContext, PublishedSignal};
use crate::publish::upload::Uploader;
use crate::publish::upstream::Upstreams;
use crate::refusals::PathError;
use crate::remote::s3::Bucket;
use crate::report::{Report, Status};

/// The options of publishing.
#[derive(Debug, Clone)]
pub struct PublishOptions {
    /// The store directory of every path.
    pub store_dir: StoreDir,
    /// Whether paths with missing references are published.
    pub allow_missing_references: bool,
    /// Priority of a new `nix-cache-info`.
    pub priority: Option<u32>,
    /// `WantMassQuery` of a new `nix-cache-info`.
    pub want_mass_query: Option<bool>,
    /// Whether the input is narinfo text, without NARs.
    pub is_narinfo_only: bool,
    /// Whether narinfo text replaces the narinfos in the cache instead of being merged with them.
    pub exact: bool,
    /// Maximum time to wait for a collector that deletes.
    pub collector_timeout: Duration,
    /// Whether NARs of paths that the cache has are put again where they are missing or damaged.
    pub repair: bool,
}

/// Maximum number of publishing tasks; reading pauses while there are as many.
const MAX_TASKS: usize = 256;
/// Maximum number of concurrent lookups of the references of a path.
const MAX_CONCURRENT_LOOKUPS: usize = 16;
/// Time for which the state of the bucket that was read before the first byte of the input is used. It may be up to half
/// of the time that a path is doomed; a shorter one finds more of what others have published meanwhile.
const MAX_STATE_AGE: Duration = Duration::from_mins(1);
/// Time between two updates of the progress bar.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(200);

/// The result of a task.
enum TaskOutcome {
    Nar(String, Result),
    /// With the key of its NAR.
    Path(StorePath, String, Result<Status, PathError>),
    Object(String, Result),
}

/// Publishes the objects of one push.
pub struct Publisher {
    context: Arc<PublishContext>,
    report: Report,
    nars: Nars,
    paths: HashMap<HashPart, PublishedSignal>,
    /// Narinfos whose NAR or references have not arrived yet.
    deferred: Vec<NarInfo>,
    /// Refused NARs that no path refers to so far.
    refused_nars: BTreeMap<String, Error>,
    /// Keys of NARs that a path refers to.
    claimed_nars: HashSet<String>,
    /// Keys of NARs that a debug information link of the input names.
    linked_nars: HashSet<String>,
    /// Whether a narinfo was malformed, so that no path of the uploads that wait can be published.
    is_narinfo_refused: bool,
    tasks: JoinSet<TaskOutcome>,
    cache_info: CacheInfoState,
}

/// What a push reads from the bucket before it begins.
pub struct BucketState {
    cache_info: CacheInfoState,
    existing: Existing,
    /// The keys of NARs and other objects that a collector has doomed.
    doomed_keys: HashSet<String>,
    read_at: SystemTime,
}

impl BucketState {
    /// Reads `nix-cache-info`, the records of the collector, and the beginning of the list of narinfos.
    ///
    /// # Errors
    /// Fails when the bucket cannot be read. Refuses a bucket of another store directory.
    pub async fn read(bucket: &Bucket, store_dir: &StoreDir) -> Result<Self> {
        let read_at = SystemTime::now();
        // Before the listing: a path that is not doomed now is not deleted for a day.
        let (cache_info, doomed) =
            tokio::try_join!(CacheInfoState::read(bucket, store_dir), Doomed::read(bucket, store_dir))?;
        let existing = Existing::open(bucket).await?;
        existing.set_doomed(doomed.paths).await;
        Ok(Self { cache_info, existing, doomed_keys: doomed.keys, read_at })
    }

    /// Returns what was read while the input was awaited, or none if it should be read again: because it is old, or because
    /// reading failed before the input began: the error was not reported, and its cause may be gone.
    #[must_use]
    pub fn read_early(read: Result<Self>, read_ended: Instant, input_began: Instant) -> Option<Result<Self>> {
        match &read {
            Ok(state) if state.is_old() => None,
            Err(_) if read_ended < input_began => None,
            _ => Some(read),
        }
    }

    /// By the clock, because a monotonic one stands still while the machine sleeps.
    fn is_old(&self) -> bool {
        self.read_at.elapsed().map_or(true, |age| age > MAX_STATE_AGE)
    }
}

impl Publisher {
    /// Creates a publisher to a bucket in this state.
    #[must_use]
    pub fn new(
        uploader: Arc<Uploader>,
        state: BucketState,
        options: PublishOptions,
        upstreams: Upstreams,
        report: Report,
    ) -> Self {
        let BucketState { cache_info, existing, doomed_keys, read_at } = state;
        uploader.doomed.set(doomed_keys);
        let collector_wait = CollectorWait::new(options.collector_timeout);
        let waiting_parts = Arc::new(Semaphore::new(MAX_WAITING_PARTS));
        let verification_permits = Semaphore::new(uploader.bucket.max_in_flight().into());
        let context = PublishContext {
            waiting_parts,
            uploader,
            verification_permits,
            existing,
            upstreams,
            options,
            collector_wait,
            records_read_at: std::sync::Mutex::new(read_at),
            intact_nars: Mutex::default(),
        };
        Self {
            context: Arc::new(context),
            report,
            nars: Nars::default(),
            paths: HashMap::new(),
            deferred: Vec::new(),
            refused_nars: BTreeMap::new(),
            claimed_nars: HashSet::new(),
            linked_nars: HashSet::new(),
            is_narinfo_refused: false,
            tasks: JoinSet::new(),
            cache_info,
        }
    }

    /// Publishes everything that `events` brings. `intake` returns whether the input was read to its end; only then are
    /// deferred narinfos published.
    ///
    /// # Errors
    /// The first failed operation ends the push. Refusals are collected, and everything else is published.
    pub async fn run(mut self, events: mpsc::Receiver<Event>, intake: impl Future<Output = Result>) -> Result<Report> {
        match self.publish_all(events, intake).await {
            Ok(()) => Ok(self.report),
            Err(error) => {
                self.report.abort();
                Err(error)
            }
        }
    }

    async fn publish_all(&mut self, mut events: mpsc::Receiver<Event>, intake: impl Future<Output = Result>) -> Result {
        let mut is_open = true;
        let mut tick = tokio::time::interval(PROGRESS_INTERVAL);
        let mut records_expired =
            tokio::time::interval_at(tokio::time::Instant::now() + RECORDS_LIFETIME, RECORDS_LIFETIME);
        while is_open || !self.tasks.is_empty() {
            tokio::select! {
                event = events.recv(), if is_open && self.tasks.len() < MAX_TASKS => match event {
                    Some(event) => self.handle_event(event).await?,
                    None => is_open = false,
                },
                _ = records_expired.tick() => self.context.read_doomed_again().await?,
                _ = tick.tick() => self.report.progress(self.context.uploader.processed_bytes()),
                Some(outcome) = self.tasks.join_next() => self.handle_outcome(outcome)?,
            }
        }
        let end_of_input = intake.await;
        if end_of_input.is_ok() {
            self.publish_deferred().await?;
            self.upload_unnamed_nars();
            self.join_tasks(&mut records_expired).await?;
        }
        if end_of_input.is_ok() || self.is_narinfo_refused {
            self.end_waiting_uploads();
            self.join_tasks(&mut records_expired).await?;
        }
        for (key, error) in std::mem::take(&mut self.refused_nars) {
            self.report.add_refusal(&key, &error.into())?;
        }
        end_of_input?;
        self.ensure_cache_info().await
    }

    async fn join_tasks(&mut self, records_expired: &mut Interval) -> Result {
        while !self.tasks.is_empty() {
            tokio::select! {
                _ = records_expired.tick() => self.context.read_doomed_again().await?,
                Some(outcome) = self.tasks.join_next() => self.handle_outcome(outcome)?,
            }
        }
        Ok(())
    }

    async fn handle_event(&mut self, event: Event) -> Result {
        match event {
            Event::CacheInfo(info) => {
                let PublishContext { uploader, options, .. } = &*self.context;
                info.require(&options.store_dir)?;
                self.cache_info.ensure(&uploader.bucket, options, Some(info)).await?;
            }
            Event::MemoryFull => {
                for nar in self.nars.set_memory_short() {
                    self.release_nar(nar);
                }
                self.upload_held_nars();
            }
            Event::NarinfoRefused => self.is_narinfo_refused = true,
            Event::Nar(nar) => self.add_nar(nar),
            Event::Object { key, object, body } => self.upload_object(key, object, body),
            Event::Narinfo(narinfo) => {
                self.ensure_cache_info().await?;
                self.add_narinfo(*narinfo).await?;
            }
        }
        Ok(())
    }

    async fn ensure_cache_info(&mut self) -> Result {
        let PublishContext { uploader, options, .. } = &*self.context;
        self.cache_info.ensure(&uploader.bucket, options, None).await
    }

    fn handle_outcome(&mut self, outcome: Result<TaskOutcome, JoinError>) -> Result {
        self.nars.drop_replaced();
        match outcome.map_err(|_| Error::panicked("publishing task"))? {
            TaskOutcome::Nar(_, Ok(())) | TaskOutcome::Object(_, Ok(())) => Ok(()),
            // A path that refers to the NAR reports its refusal. If there is none, it is reported at the end.
            TaskOutcome::Nar(key, Err(error)) if error.is_refusal() => {
                if !self.claimed_nars.contains(&key) {
                    self.refused_nars.insert(key, error);
                }
                Ok(())
            }
            TaskOutcome::Nar(_, Err(error)) => Err(error),
            TaskOutcome::Object(key, Err(error)) => self.report.add_refusal(&key, &error.into()),
            TaskOutcome::Path(path, nar_key, result) => {
                if result.is_err() {
                    self.nars.refuse(&nar_key);
                }
                if let Some(nar) = self.nars.remove_need(&nar_key) {
                    self.release_nar(nar);
                }
                let path = self.context.options.store_dir.join(&path);
                match result {
                    Ok(status) => self.report.add_result(&path, status),
                    Err(error) => self.report.add_refusal(&path, &error),
                }
            }
        }
    }

    fn add_nar(&mut self, nar: ReceivedNar) {
        // The same NAR may arrive again, for another path. The first one is used, unless its body is gone.
        if self.nars.is_usable(&nar) {
            return;
        }
        if nar.body.length.is_multipart() {
            self.start_nar(nar.key.clone(), Arc::clone(&self.context).send_nar(nar).boxed());
        } else {
            self.nars.insert(nar.key.clone(), PendingNar::Held(nar));
        }
    }

    fn start_nar(&mut self, key: String, work: BoxFuture<'static, Result<VerifiedNar>>) {
        let result = work.shared();
        self.nars.insert(key.clone(), PendingNar::Started(result.clone()));
        self.tasks.spawn(result.map(|result| TaskOutcome::Nar(key, result.map(drop))));
    }

    /// Sends the NARs that wait in memory for their narinfo, or for its references, to free their memory.
    fn upload_held_nars(&mut self) {
        let held = self.nars.take_all_held();
        let held_keys: HashSet<&str> = held.iter().map(|nar| nar.key.as_str()).collect();
        let mut narinfos: HashMap<String, Vec<NarInfo>> = HashMap::new();
        for narinfo in self.deferred.iter().filter(|narinfo| held_keys.contains(narinfo.url.as_str())) {
            narinfos.entry(narinfo.url.clone()).or_default().push(narinfo.clone());
        }
        let works: Vec<_> = held
            .into_iter()
            .map(|nar| {
                let (context, key) = (Arc::clone(&self.context), nar.key.clone());
                let work = match narinfos.remove(key.as_str()) {
                    // Its upload is completed later.
                    _ if self.nars.is_followed_by_narinfo(&key) => context.send_nar(nar).boxed(),
                    None => context.upload_unnamed_nar(nar).boxed(),
                    Some(narinfos) => context.upload_named_nar(nar, narinfos).boxed(),
                };
                (key, work)
            })
            .collect();
        for (key, work) in works {
            self.start_nar(key, work);
        }
    }

    /// Uploads the NARs in memory that no narinfo names, at the end of the input. Those of refused paths are dropped.
    fn upload_unnamed_nars(&mut self) {
        for nar in self.nars.take_all_held() {
            if !self.nars.is_refused(&nar.key) {
                self.start_nar(nar.key.clone(), Arc::clone(&self.context).upload_unnamed_nar(nar).boxed());
            }
        }
    }

    /// Frees the memory of a NAR that no task needs, if memory is short. A path that comes later may need it. One of a
    /// refused path does not become an object. One in parts waits for the end of the input.
    fn release_nar(&mut self, nar: VerifiedNar) {
        if !nar.is_in_memory() || !self.nars.is_memory_short() {
            return;
        }
        if self.nars.is_refused(&nar.key) { self.drop_nar(nar) } else { self.upload_unneeded_nar(nar) }
    }

    /// Ends the uploads that no path has completed. They are aborted if the paths that named them were refused or needed no
    /// NAR, and all after a malformed narinfo. A NAR that only a link names, or nothing, becomes an object.
    fn end_waiting_uploads(&mut self) {
        for nar in self.nars.in_parts() {
            let is_unneeded = self.claimed_nars.contains(&nar.key) && !self.linked_nars.contains(&nar.key);
            if self.is_narinfo_refused || self.nars.is_refused(&nar.key) || is_unneeded {
                self.drop_nar(nar);
            } else {
                self.upload_unneeded_nar(nar);
            }
        }
    }

    fn upload_unneeded_nar(&mut self, nar: VerifiedNar) {
        let context = Arc::clone(&self.context);
        self.tasks.spawn(async move {
            let result = context.upload_unneeded_nar(&nar).await;
            TaskOutcome::Nar(nar.key, result)
        });
    }

    fn drop_nar(&mut self, nar: VerifiedNar) {
        let context = Arc::clone(&self.context);
        self.tasks.spawn(async move {
            context.drop_nar(&nar).await;
            TaskOutcome::Nar(nar.key, Ok(()))
        });
    }

    fn upload_object(&mut self, key: String, object: Object, body: Part) {
        if object == Object::DebugInfo {
            self.linked_nars.extend(debuginfo_target(body.as_ref()));
        }
        let context = Arc::clone(&self.context);
        self.tasks.spawn(async move {
            let result = context.put_object(&key, object, body.bytes.clone()).await;
            // Here, so that the task holds the memory permit, and not only the bytes.
            drop(body);
            TaskOutcome::Object(key, result)
        });
    }

    async fn add_narinfo(&mut self, narinfo: NarInfo) -> Result {
        let is_narinfo_only = self.context.options.is_narinfo_only;
        if !is_narinfo_only {
            self.context.existing.expect_lookups(self.context.bucket(), 1).await?;
        }
        let has_nar = is_narinfo_only || self.nars.contains(&narinfo.url);
        if has_nar && self.missing_references(&narinfo).await?.is_empty() {
            self.start_path(narinfo);
            return Ok(());
        }
        if has_nar {
            self.nars.await_references(&narinfo.url);
        }
        self.deferred.push(narinfo);
        Ok(())
    }

    /// Returns the references that are neither in this push nor in a cache.
    async fn missing_references(&self, narinfo: &NarInfo) -> Result<Vec<StorePath>> {
        let references = narinfo.references.iter().filter(|path| **path != narinfo.path);
        let unknown: Vec<StorePath> =
            references.filter(|path| !self.paths.contains_key(&path.hash_part())).cloned().collect();
        let lookups = stream::iter(unknown.iter().map(|path| self.context.is_cached(path)));
        let are_cached: Vec<bool> = lookups.buffered(MAX_CONCURRENT_LOOKUPS).try_collect().await?;
        let missing = unknown.into_iter().zip(are_cached).filter(|(_, is_cached)| !is_cached);
        Ok(missing.map(|(path, _)| path).collect())
    }

    /// Publishes the deferred narinfos at the end of the input: no further NAR or narinfo can arrive.
    async fn publish_deferred(&mut self) -> Result {
        let (deferred, others) = merge_duplicates(std::mem::take(&mut self.deferred));
        let needed: HashSet<&str> = deferred.values().map(|narinfo| narinfo.url.as_str()).collect();
        for other in others {
            if !needed.contains(other.url.as_str()) {
                self.nars.refuse(&other.url);
            }
            self.report.add_result(&other.full_path(), Status::OtherContents)?;
        }
        let paths: Vec<StorePath> = deferred.keys().cloned().collect();
        let order = references_first(&paths, |path| deferred.get(path).map_or(&[], |narinfo| &narinfo.references));
        let order = match order {
            Ok(order) => order,
            Err(cycle) => {
                for narinfo in deferred.values() {
                    self.nars.refuse(&narinfo.url);
                }
                return self.report.add_refusal("narinfos", &cycle.into());
            }
        };
        for path in order {
            while self.tasks.len() >= MAX_TASKS
                && let Some(outcome) = self.tasks.join_next().await
            {
                self.handle_outcome(outcome)?;
            }
            let narinfo = &deferred[path];
            let missing = self.missing_references(narinfo).await?;
            match missing.first() {
                Some(missing) if !self.context.options.allow_missing_references => {
                    self.refuse_missing_reference(narinfo, missing)?;
                }
                _ => self.start_path(narinfo.clone()),
            }
        }
        Ok(())
    }

    fn refuse_missing_reference(&mut self, narinfo: &NarInfo, missing: &StorePath) -> Result {
        let (path, missing) = (narinfo.full_path(), self.context.options.store_dir.join(missing));
        let message = format!("it references {missing}, which is neither in the cache nor in this push");
        let hint = "publish the reference too, or pass --allow-missing-references to publish without it";
        let error = PathError::shared(&missing, Error::refused(message).with_hint(hint));
        let signal = watch::channel(PathProgress::Ended(Err(error.root_cause(&path)))).1;
        self.nars.refuse(&narinfo.url);
        self.paths.insert(narinfo.path.hash_part(), signal);
        self.report.add_refusal(&path, &error)
    }

    /// Starts the task of a path whose NAR and references are known. If the input has described the path before, the task
    /// waits for that one: where the service ignores the conditions of writes, one of them would be lost.
    fn start_path(&mut self, narinfo: NarInfo) {
        let earlier = self.paths.get(&narinfo.path.hash_part()).cloned();
        let references = narinfo.references.iter().filter(|path| **path != narinfo.path);
        let references = references.filter_map(|path| {
            let published = self.paths.get(&path.hash_part())?.clone();
            Some(PendingReference { path: path.clone(), published })
        });
        let references = references.collect();
        let nar = self.claim_nar(&narinfo);
        let (sender, published) = watch::channel(PathProgress::Pending);
        self.paths.insert(narinfo.path.hash_part(), published);
        let (context, path, nar_key) = (Arc::clone(&self.context), narinfo.path.clone(), narinfo.url.clone());
        self.tasks.spawn(async move {
            let full_path = narinfo.full_path();
            let is_published = match earlier {
                Some(earlier) => is_published(earlier).await,
                None => false,
            };
            let result = context.publish(narinfo, nar, references, &sender).await;
            let signal = match &result {
                Err(error) if !is_published => Err(error.root_cause(&full_path)),
                _ => Ok(()),
            };
            // Fails if no other path waits for it.
            let _ = sender.send(PathProgress::Ended(signal));
            TaskOutcome::Path(path, nar_key, result)
        });
    }

    /// Returns the result of the task of a narinfo's NAR, which is started now if the NAR was held. `None` if it has not arrived.
    fn claim_nar(&mut self, narinfo: &NarInfo) -> Option<SharedResult<VerifiedNar>> {
        self.refused_nars.remove(&narinfo.url);
        self.claimed_nars.insert(narinfo.url.clone());
        self.nars.add_need(&narinfo.url);
        if let Some(nar) = self.nars.take_held(&narinfo.url) {
            self.start_nar(narinfo.url.clone(), Arc::clone(&self.context).verify_nar(nar).boxed());
        }
        self.nars.task_of(&narinfo.url)
    }
}

/// Waits until a path is published or is not; returns which.
async fn is_published(mut path: PublishedSignal) -> bool {
    let ended = path.wait_for(|progress| matches!(progress, PathProgress::Ended(_))).await;
    ended.is_ok_and(|progress| matches!(*progress, PathProgress::Ended(Ok(()))))
}

/// Merges narinfos of the same path. If two describe different contents, the first one is kept, and the other is returned
/// beside.
fn merge_duplicates(narinfos: Vec<NarInfo>) -> (HashMap<StorePath, NarInfo>, Vec<NarInfo>) {
    let (mut merged, mut others): (HashMap<StorePath, NarInfo>, _) = (HashMap::new(), Vec::new());
    for narinfo in narinfos {
        let narinfo = match merged.remove(&narinfo.path) {
            Some(first) if first.same_contents(&narinfo) => first.merged_with(&narinfo),
            Some(first) => {
                others.push(narinfo);
                first
            }
            None => narinfo,
        };
        merged.insert(narinfo.path.clone(), narinfo);
    }
    (merged, others)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_counts_only_if_the_input_was_there() {
        let now = Instant::now();
        let input_began = now + Duration::from_secs(1);
        let read = |read_ended| {
            BucketState::read_early(Err(Error::failed("HTTP 403")), read_ended, input_began).map(|read| read.is_err())
        };
        assert_eq!(read(now), None);
        assert_eq!(read(input_began), Some(true));
        assert_eq!(read(input_began + Duration::from_secs(1)), Some(true));
    }
}
