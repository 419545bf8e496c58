//! Publishing: a narinfo becomes visible after its NAR is complete and after its references are visible.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::{BoxFuture, Shared};
use futures_util::{FutureExt, StreamExt, TryStreamExt, future, stream};
use nar_pack::error::{Context, Error, Result};
use nar_pack::references::references_first;
use nar_pack::store_path::{HashPart, StoreDir, StorePath};
use narinfo_gen::archive::Object;
use narinfo_gen::cache_info::{self, CacheInfo};
use narinfo_gen::compression::Compression;
use narinfo_gen::content_address::is_content_addressed;
use narinfo_gen::narinfo::{self, NarInfo};
use narinfo_gen::verify_nar::{NarDigests, digest_nar};
use tokio::sync::{Mutex as AsyncMutex, mpsc, watch};
use tokio::task::JoinSet;

use crate::publish::existing::Existing;
use crate::publish::intake::{Event, Nar, verified};
use crate::publish::upload::{Body, BodyLength, ObjectTarget, Overwrite, UploadedObject, Uploader};
use crate::publish::upstream::Upstreams;
use crate::remote::Remote;
use crate::remote::s3::{Bucket, PutOutcome};
use crate::report::{Report, Status};

/// What the command line says about publishing.
#[derive(Debug, Clone)]
pub struct Options {
    /// The store directory of every path.
    pub store_dir: StoreDir,
    /// Publish paths of which references are nowhere.
    pub allow_missing_references: bool,
    /// For a new `nix-cache-info`.
    pub priority: Option<u32>,
    /// For a new `nix-cache-info`.
    pub want_mass_query: Option<bool>,
    /// Whether narinfos come without NARs, to replace those in the cache.
    pub narinfos_alone: bool,
    /// Whether such narinfos drop what those in the cache have beyond them.
    pub exact: bool,
}

/// NARs and narinfos under way at once; beyond that, reading waits.
const MAX_TASKS: usize = 256;
/// Paths that are asked about at once.
const MAX_CONCURRENT_LOOKUPS: usize = 16;
/// AttemptObserver at changing a narinfo that others change too.
const MAX_MERGE_ATTEMPTS: u32 = 20;
/// How often progress is shown.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(200);

type SharedResult<T> = Shared<BoxFuture<'static, Result<T>>>;

/// How a path ends. A channel and not a shared future: a long chain of references would be polled as deep as it is long.
type PublishedSignal = watch::Receiver<Option<Result>>;

/// What became of a NAR.
#[derive(Clone)]
enum NarState {
    /// It is in the bucket.
    There(NarDigests, UploadedObject),
    /// It is what it should be, but was not needed: the path it came for is in the cache. Another path may need it.
    NotNeeded(NarDigests, Arc<AsyncMutex<Option<Body>>>),
}

/// Bodies of NARs that were not needed, kept as long as memory is not short: two paths may have the same contents, of
/// which the cache has one under another compression.
#[derive(Default)]
struct UnclaimedNars {
    /// ByteBudget was short once; since then none is kept.
    closed: bool,
    bodies: Vec<UnclaimedNar>,
}

/// A body that was not needed, and what it is.
struct UnclaimedNar {
    key: String,
    digests: NarDigests,
    body: Arc<AsyncMutex<Option<Body>>>,
}

enum PendingNar {
    /// TextObject, in memory, until the narinfo tells whether it is needed.
    Held(Nar),
    Promised(SharedResult<NarState>),
}

enum TaskOutcome {
    Nar(String, Result),
    Path(StorePath, Result<Status>),
    Object(String, Result),
}

/// Everything that a task needs.
struct PublishContext {
    unclaimed_nars: Mutex<UnclaimedNars>,
    uploader: Arc<Uploader>,
    /// Reads NARs back from the bucket.
    reader: Arc<Remote>,
    existing: Existing,
    upstreams: Upstreams,
    options: Options,
}

/// The publishing side.
pub struct Publisher {
    shop: Arc<PublishContext>,
    report: Report,
    nars: HashMap<String, PendingNar>,
    paths: HashMap<HashPart, PublishedSignal>,
    /// Narinfos of which the NAR or a reference has not come yet, and may still come.
    deferred: Vec<NarInfo>,
    /// NARs that were refused and that no path has claimed.
    refused_nars: HashMap<String, Error>,
    /// Keys of NARs that a path tells about.
    claimed: HashSet<String>,
    tasks: JoinSet<TaskOutcome>,
    cache_info: CacheInfoState,
}

/// Whether the cache has a `nix-cache-info`, and whose word it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum CacheInfoState {
    Missing,
    /// Made by this push without being told what to say.
    MadeUp,
    There,
}

impl Publisher {
    /// Looks at the cache: what it has, and that it is of the same store directory.
    ///
    /// # Errors
    /// Fails when the bucket cannot be read, refuses one of another store directory.
    pub async fn open(uploader: Arc<Uploader>, options: Options, upstreams: Upstreams, report: Report) -> Result<Self> {
        let bucket = &uploader.bucket;
        let found = bucket.get_text(cache_info::KEY, cache_limit()).await?;
        if let Some(found) = &found {
            require_store_dir(&found.text, &options.store_dir).context(|| bucket.display_url(cache_info::KEY))?;
        }
        let existing = Existing::look(bucket).await?;
        let reader = Arc::new(Remote::of_bucket(Arc::clone(bucket)));
        let unclaimed_nars = Mutex::default();
        let shop = Arc::new(PublishContext { unclaimed_nars, uploader, reader, existing, upstreams, options });
        Ok(Self {
            shop,
            report,
            nars: HashMap::new(),
            paths: HashMap::new(),
            deferred: Vec::new(),
            refused_nars: HashMap::new(),
            claimed: HashSet::new(),
            tasks: JoinSet::new(),
            cache_info: if found.is_some() { CacheInfoState::There } else { CacheInfoState::Missing },
        })
    }

    /// Publishes what comes in, until nothing more comes; then `intake` tells how reading ended.
    ///
    /// # Errors
    /// The first failed operation ends the push; refusals are gathered, and all else is published.
    pub async fn run(
        mut self,
        mut events: mpsc::Receiver<Event>,
        intake: impl Future<Output = Result>,
    ) -> Result<Report> {
        let mut open = true;
        let mut tick = tokio::time::interval(PROGRESS_INTERVAL);
        while open || !self.tasks.is_empty() {
            tokio::select! {
                // What is under way never waits for what is not yet read, so this does not block it.
                event = events.recv(), if open && self.tasks.len() < MAX_TASKS => match event {
                    Some(event) => self.event(event).await?,
                    None => open = false,
                },
                _ = tick.tick() => self.report.progress(self.shop.uploader.moved()),
                Some(done) = self.tasks.join_next() => {
                    self.done(done.map_err(|_| Error::failed("a publishing task died"))?)?;
                }
            }
        }
        let ended = intake.await;
        if ended.is_ok() {
            self.publish_deferred().await?;
            self.start_held();
            while let Some(done) = self.tasks.join_next().await {
                self.done(done.map_err(|_| Error::failed("a publishing task died"))?)?;
            }
        }
        for (key, failure) in std::mem::take(&mut self.refused_nars) {
            self.report.refused(&key, failure)?;
        }
        match ended {
            Ok(()) => {
                self.need_cache_info(None).await?;
                Ok(self.report)
            }
            Err(failure) => {
                self.report.abandon();
                Err(failure)
            }
        }
    }

    async fn event(&mut self, event: Event) -> Result {
        match event {
            Event::CacheInfo(info) => {
                info.require(&self.shop.options.store_dir)?;
                return self.need_cache_info(Some(info)).await;
            }
            Event::Pressure => {
                self.send_spares();
                self.start_held();
            }
            Event::Nar(nar) => self.nar(nar),
            Event::Object { key, object, body } => self.object(key, object, body),
            Event::Narinfo(narinfo) => {
                self.need_cache_info(None).await?;
                self.narinfo(*narinfo).await?;
            }
        }
        Ok(())
    }

    fn done(&mut self, done: TaskOutcome) -> Result {
        match done {
            TaskOutcome::Nar(_, Ok(())) | TaskOutcome::Object(_, Ok(())) => Ok(()),
            // The path that it belongs to tells of a NAR that was refused; one that belongs to none is told of last.
            TaskOutcome::Nar(key, Err(failure)) if failure.is_refusal() => {
                if !self.claimed.contains(&key) {
                    self.refused_nars.insert(key, failure);
                }
                Ok(())
            }
            TaskOutcome::Nar(_, Err(failure)) => Err(failure),
            TaskOutcome::Object(key, Err(failure)) => self.report.refused(&key, failure),
            TaskOutcome::Path(path, Ok(status)) => self.report.path(&self.shop.options.store_dir.join(&path), status),
            TaskOutcome::Path(path, Err(failure)) => {
                self.report.refused(&self.shop.options.store_dir.join(&path), failure)
            }
        }
    }

    /// Sees to it that there is a `nix-cache-info` before the first narinfo. One that comes later than that, as in a tar
    /// of any order, takes the place of what this push had to make up.
    async fn need_cache_info(&mut self, given: Option<CacheInfo>) -> Result {
        match (self.cache_info, &given) {
            (CacheInfoState::Missing, _) | (CacheInfoState::MadeUp, Some(_)) => {}
            _ => return Ok(()),
        }
        let late = self.cache_info == CacheInfoState::MadeUp;
        self.cache_info = if given.is_some() { CacheInfoState::There } else { CacheInfoState::MadeUp };
        let options = &self.shop.options;
        let mut info = given.unwrap_or_else(|| CacheInfo::new(options.store_dir.clone()));
        info.priority = options.priority.or(info.priority);
        info.want_mass_query = options.want_mass_query.or(info.want_mass_query);
        let (bucket, content_type) = (&self.shop.uploader.bucket, Object::CacheInfo.content_type());
        if late {
            return bucket.put(cache_info::KEY, content_type, info.to_string().into()).await;
        }
        bucket.put_new(cache_info::KEY, content_type, info.to_string().into()).await.map(drop)
    }

    fn nar(&mut self, nar: Nar) {
        // The same NAR once more, for another path: the first one serves, unless its body is gone.
        let serves = match self.nars.get(&nar.key) {
            None => false,
            Some(PendingNar::Held(_)) => true,
            Some(PendingNar::Promised(promise)) => match promise.peek() {
                Some(Ok(NarState::There(..))) => true,
                Some(Err(_)) => false,
                None | Some(Ok(NarState::NotNeeded(..))) => !self.shop.unclaimed_nars().closed,
            },
        };
        if serves {
            return;
        }
        let key = nar.key.clone();
        let known = match nar.body.form {
            BodyLength::Whole => PendingNar::Held(nar),
            _ => PendingNar::Promised(self.start(key.clone(), Arc::clone(&self.shop).send_large(nar).boxed())),
        };
        self.nars.insert(key, known);
    }

    /// Drives a NAR.
    fn start(&mut self, key: String, work: BoxFuture<'static, Result<NarState>>) -> SharedResult<NarState> {
        let promise = work.shared();
        self.tasks.spawn(promise.clone().map(|done| TaskOutcome::Nar(key, done.map(drop))));
        promise
    }

    /// Sends the NAR bodies that wait in memory, needed or not: what they hold is wanted.
    fn start_held(&mut self) {
        let keys: Vec<String> = self
            .nars
            .iter()
            .filter(|(_, known)| matches!(known, PendingNar::Held(_)))
            .map(|(key, _)| key.clone())
            .collect();
        for key in keys {
            if let Some(PendingNar::Held(nar)) = self.nars.remove(&key) {
                let promise = self.start(key.clone(), Arc::clone(&self.shop).send(nar).boxed());
                self.nars.insert(key, PendingNar::Promised(promise));
            }
        }
    }

    /// Lets go of bodies that nobody has needed yet: a path that comes later may need one, so it goes to the bucket.
    fn send_spares(&mut self) {
        for unclaimed in self.shop.close_spares() {
            let (shop, key) = (Arc::clone(&self.shop), unclaimed.key.clone());
            self.tasks.spawn(async move { TaskOutcome::Nar(key, shop.let_go(unclaimed).await) });
        }
    }

    fn object(&mut self, key: String, object: Object, body: crate::publish::upload::Part) {
        let shop = Arc::clone(&self.shop);
        self.tasks.spawn(async move {
            let sent = shop.uploader.bucket.put(&key, object.content_type(), body.bytes.clone()).await;
            TaskOutcome::Object(key, sent)
        });
    }

    async fn narinfo(&mut self, narinfo: NarInfo) -> Result {
        if !self.shop.options.narinfos_alone {
            self.shop.existing.expect(&self.shop.uploader.bucket, 1).await?;
        }
        let nar_came = self.shop.options.narinfos_alone || self.nars.contains_key(&narinfo.url);
        if nar_came && self.missing_references(&narinfo).await?.is_empty() {
            self.publish(narinfo);
        } else {
            self.deferred.push(narinfo);
        }
        Ok(())
    }

    /// The references that neither came in nor are in the cache.
    async fn missing_references(&mut self, narinfo: &NarInfo) -> Result<Vec<StorePath>> {
        let others = narinfo.references.iter().filter(|path| **path != narinfo.path);
        let unknown: Vec<StorePath> =
            others.filter(|path| !self.paths.contains_key(&path.hash_part())).cloned().collect();
        let asked = stream::iter(unknown.iter().map(|path| self.shop.serves(path)));
        let answers: Vec<bool> = asked.buffered(MAX_CONCURRENT_LOOKUPS).try_collect().await?;
        Ok(unknown.into_iter().zip(answers).filter(|(_, there)| !there).map(|(path, _)| path).collect())
    }

    /// Everything that can come has come: what is still missing is missing.
    async fn publish_deferred(&mut self) -> Result {
        let mut deferred: HashMap<StorePath, NarInfo> = HashMap::new();
        for narinfo in self.deferred.drain(..) {
            let narinfo = match deferred.remove(&narinfo.path) {
                Some(first) if first.same_contents(&narinfo) => first.merged_with(&narinfo),
                Some(first) => first,
                None => narinfo,
            };
            deferred.insert(narinfo.path.clone(), narinfo);
        }
        let paths: Vec<StorePath> = deferred.keys().cloned().collect();
        let order = references_first(&paths, |path| deferred.get(path).map_or(&[], |narinfo| &narinfo.references));
        let order = match order {
            Ok(order) => order,
            Err(cycle) => return self.report.refused("narinfos", cycle),
        };
        for path in order {
            while self.tasks.len() >= MAX_TASKS
                && let Some(done) = self.tasks.join_next().await
            {
                self.done(done.map_err(|_| Error::failed("a publishing task died"))?)?;
            }
            let narinfo = &deferred[path];
            let missing = self.missing_references(narinfo).await?;
            if let (Some(first), false) = (missing.first(), self.shop.options.allow_missing_references) {
                let failure = Error::refused(format!(
                    "it references {}, which is neither in the cache nor in this push",
                    self.shop.options.store_dir.join(first)
                ));
                self.paths.insert(path.hash_part(), watch::channel(Some(Err(failure.clone()))).1);
                self.report.refused(&narinfo.full_path(), failure)?;
            } else {
                self.publish(narinfo.clone());
            }
        }
        Ok(())
    }

    /// Starts the publishing of a narinfo of which everything is known.
    fn publish(&mut self, narinfo: NarInfo) {
        let references = narinfo.references.iter().filter(|path| **path != narinfo.path);
        let references =
            references.filter_map(|path| Some((path.clone(), self.paths.get(&path.hash_part())?.clone()))).collect();
        self.refused_nars.remove(&narinfo.url);
        self.claimed.insert(narinfo.url.clone());
        let (path, hash) = (narinfo.path.clone(), narinfo.path.hash_part());
        let shop = Arc::clone(&self.shop);
        let nar = match self.nars.remove(&narinfo.url) {
            None => None,
            Some(PendingNar::Promised(promise)) => Some(promise),
            Some(PendingNar::Held(nar)) => {
                let work = Arc::clone(&self.shop).send_if_needed(nar, narinfo.clone());
                Some(self.start(narinfo.url.clone(), work.boxed()))
            }
        };
        if let Some(promise) = &nar {
            self.nars.insert(narinfo.url.clone(), PendingNar::Promised(promise.clone()));
        }
        let (ended, visible) = watch::channel(None);
        self.paths.insert(hash, visible);
        self.tasks.spawn(async move {
            let status = shop.publish(narinfo, nar, references).await;
            // Nobody may wait for it.
            let _ = ended.send(Some(status.clone().map(drop)));
            TaskOutcome::Path(path, status)
        });
    }
}

impl PublishContext {
    fn bucket(&self) -> &Bucket {
        &self.uploader.bucket
    }

    /// Whether clients get the path already, from this cache or another one.
    async fn serves(&self, path: &StorePath) -> Result<bool> {
        Ok(self.existing.has(self.bucket(), path.hash_part()).await? || self.upstreams.serve(path).await?)
    }

    async fn send(self: Arc<Self>, nar: Nar) -> Result<NarState> {
        let (digests, complete) = self.send_body(&nar.key, nar.body, verified(&nar.key, nar.verdict)).await?;
        Ok(NarState::There(digests, complete))
    }

    /// Sends a NAR, never in the place of another object.
    async fn send_body(
        &self,
        key: &str,
        body: Body,
        verdict: impl Future<Output = Result<NarDigests>>,
    ) -> Result<(NarDigests, UploadedObject)> {
        let target = ObjectTarget { key, content_type: Object::Nar(None).content_type(), replace: Overwrite::Never };
        self.uploader.send(&target, body, verdict).await
    }

    /// A large NAR is asked for first.
    async fn send_large(self: Arc<Self>, nar: Nar) -> Result<NarState> {
        match self.uploader.find(&nar.key, Some(nar.size)).await? {
            None => self.send(nar).await,
            Some(complete) => {
                drop(nar.body);
                Ok(NarState::There(verified(&nar.key, nar.verdict).await?, complete))
            }
        }
    }

    /// A small NAR is not sent when the cache has its path.
    async fn send_if_needed(self: Arc<Self>, nar: Nar, narinfo: NarInfo) -> Result<NarState> {
        if !self.serves(&narinfo.path).await? {
            return self.send(nar).await;
        }
        let digests = verified(&nar.key, nar.verdict).await?;
        // A cache that has this very narinfo has its NAR.
        if self.existing.is(narinfo.path.hash_part(), &narinfo.to_string()).await {
            return Ok(NarState::NotNeeded(digests, Arc::default()));
        }
        let body = Arc::new(AsyncMutex::new(Some(nar.body)));
        let unclaimed = UnclaimedNar { key: nar.key, digests, body: Arc::clone(&body) };
        if let Some(unclaimed) = self.keep_spare(unclaimed) {
            self.let_go(unclaimed).await?;
        }
        Ok(NarState::NotNeeded(digests, body))
    }

    /// Keeps a body, or gives it back when memory is short.
    fn keep_spare(&self, unclaimed: UnclaimedNar) -> Option<UnclaimedNar> {
        let mut unclaimed_nars = self.unclaimed_nars();
        if unclaimed_nars.closed {
            return Some(unclaimed);
        }
        unclaimed_nars.bodies.push(unclaimed);
        None
    }

    fn unclaimed_nars(&self) -> MutexGuard<'_, UnclaimedNars> {
        self.unclaimed_nars.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn close_spares(&self) -> Vec<UnclaimedNar> {
        let mut unclaimed_nars = self.unclaimed_nars();
        unclaimed_nars.closed = true;
        std::mem::take(&mut unclaimed_nars.bodies)
    }

    /// Sees to it that the bucket has a body, unless another path has sent it already.
    async fn let_go(&self, unclaimed: UnclaimedNar) -> Result {
        let mut body = unclaimed.body.lock().await;
        let Some(body) = body.take() else { return Ok(()) };
        if self.uploader.find(&unclaimed.key, Some(unclaimed.digests.file_size)).await?.is_some() {
            return Ok(());
        }
        self.send_body(&unclaimed.key, body, future::ready(Ok(unclaimed.digests))).await.map(drop)
    }

    /// Sends the body that another path did not need, unless it was sent or given up.
    async fn send_spare(
        &self,
        narinfo: &NarInfo,
        digests: NarDigests,
        unclaimed: &AsyncMutex<Option<Body>>,
    ) -> Result<Option<UploadedObject>> {
        let mut unclaimed = unclaimed.lock().await;
        let Some(body) = unclaimed.take() else { return Ok(None) };
        let (_, complete) = self.send_body(&narinfo.url, body, future::ready(Ok(digests))).await?;
        Ok(Some(complete))
    }

    /// Publishes a narinfo after its NAR and its references.
    async fn publish(
        &self,
        narinfo: NarInfo,
        nar: Option<SharedResult<NarState>>,
        references: Vec<(StorePath, PublishedSignal)>,
    ) -> Result<Status> {
        if self.options.narinfos_alone {
            return self.replace(&narinfo, references).await;
        }
        let state = match nar {
            Some(promise) => Some(promise.await?),
            None => None,
        };
        if let Some(NarState::There(digests, _) | NarState::NotNeeded(digests, _)) = &state {
            digests.require(&narinfo)?;
        }
        if let Some(status) = self.present(&narinfo).await? {
            return Ok(status);
        }
        if self.upstreams.serve(&narinfo.path).await? {
            return Ok(Status::Upstream);
        }
        let proof = match state {
            // Its size alone does not prove an object of which the name tells no hash.
            Some(NarState::There(_, complete)) if complete.existed() && !names_hash(&narinfo.url) => {
                self.examine_remote(&narinfo).await?
            }
            Some(NarState::There(_, complete)) => complete,
            Some(NarState::NotNeeded(digests, unclaimed)) => {
                match self.send_spare(&narinfo, digests, &unclaimed).await? {
                    Some(complete) => complete,
                    None => self.examine_remote(&narinfo).await?,
                }
            }
            // An earlier push brought it.
            None => self.examine_remote(&narinfo).await?,
        };
        self.put(&narinfo, proof, references).await
    }

    /// Makes a narinfo visible. The proof that its NAR is complete cannot be had otherwise.
    async fn put(
        &self,
        narinfo: &NarInfo,
        _: UploadedObject,
        references: Vec<(StorePath, PublishedSignal)>,
    ) -> Result<Status> {
        self.await_references(narinfo, references).await?;
        let written = self.bucket().put_new(&narinfo.key(), content_type(), narinfo.to_text()?.into()).await?;
        if written == PutOutcome::Existed
            && let Some(status) = self.complete_present(narinfo).await?
        {
            self.existing.add(narinfo.path.hash_part()).await;
            return Ok(status);
        }
        self.existing.add(narinfo.path.hash_part()).await;
        Ok(Status::Sent { bytes: narinfo.file_size.unwrap_or(0), signed: is_signed(narinfo) })
    }

    async fn await_references(&self, narinfo: &NarInfo, references: Vec<(StorePath, PublishedSignal)>) -> Result {
        for (path, mut visible) in references {
            let ended = match visible.wait_for(Option::is_some).await {
                Ok(ended) => ended.clone().unwrap_or(Ok(())),
                Err(_) => Err(Error::failed("the push was given up")),
            };
            if let (Err(failure), false) = (ended, self.options.allow_missing_references) {
                let path = self.options.store_dir.join(&path);
                let why = format!("{}: it references {path}, which was not published", narinfo.full_path());
                return Err(if failure.is_refusal() { Error::refused(why) } else { failure });
            }
        }
        Ok(())
    }

    /// What is to be done about a path that the cache has: nothing, unless there are signatures to add.
    async fn present(&self, narinfo: &NarInfo) -> Result<Option<Status>> {
        let hash = narinfo.path.hash_part();
        if !self.existing.has(self.bucket(), hash).await? {
            return Ok(None);
        }
        if self.existing.is(hash, &narinfo.to_string()).await {
            return Ok(Some(Status::Present));
        }
        self.complete_present(narinfo).await
    }

    /// Adds to the narinfo in the cache what it lacks; none when there is no narinfo.
    async fn complete_present(&self, narinfo: &NarInfo) -> Result<Option<Status>> {
        for _ in 0..MAX_MERGE_ATTEMPTS {
            let Some((there, etag)) = self.fetch(narinfo).await? else { return Ok(None) };
            if !there.same_contents(narinfo) {
                return Ok(Some(Status::Other));
            }
            let completed = there.clone().merged_with(narinfo);
            if completed == there {
                return Ok(Some(Status::Present));
            }
            if self.put_over(&completed, etag.as_deref()).await? {
                return Ok(Some(Status::Signed));
            }
        }
        Err(busy(narinfo))
    }

    /// The narinfo that the cache has of this path now, with its entity tag.
    async fn fetch(&self, narinfo: &NarInfo) -> Result<Option<(NarInfo, Option<String>)>> {
        let Some(found) = self.bucket().get_text(&narinfo.key(), narinfo::MAX_SIZE).await? else { return Ok(None) };
        let at = || self.bucket().display_url(&narinfo.key());
        let there = NarInfo::parse(&found.text, &self.options.store_dir).context(at)?;
        Ok(Some((there, found.etag)))
    }

    /// Puts a narinfo in the place of the one with that entity tag; false when somebody else was faster.
    async fn put_over(&self, narinfo: &NarInfo, etag: Option<&str>) -> Result<bool> {
        let body = narinfo.to_text()?.into();
        let written = self.bucket().put_if_unchanged(&narinfo.key(), content_type(), body, etag).await?;
        self.existing.add(narinfo.path.hash_part()).await;
        Ok(written == PutOutcome::Created)
    }

    /// A narinfo that comes alone takes the place of the one in the cache, of which it keeps what it lacks itself, unless
    /// it is to be exact. If it says something else about its NAR, the NAR is read back and checked.
    async fn replace(&self, narinfo: &NarInfo, references: Vec<(StorePath, PublishedSignal)>) -> Result<Status> {
        if self.options.exact && narinfo.signatures.is_empty() {
            return Err(Error::refused(format!("{}: --exact would drop every signature", narinfo.full_path())));
        }
        self.await_references(narinfo, references).await?;
        for _ in 0..MAX_MERGE_ATTEMPTS {
            let there = self.fetch(narinfo).await?;
            let (there, etag) = there.map_or((None, None), |(there, etag)| (Some(there), etag));
            let kept = there.as_ref().filter(|there| !self.options.exact && there.same_contents(narinfo));
            let narinfo = kept.map_or_else(|| narinfo.clone(), |there| narinfo.clone().merged_with(there));
            if there.as_ref() == Some(&narinfo) {
                return Ok(Status::Present);
            }
            let same_nar = there.is_some_and(|there| same_file(&there, &narinfo) && there.same_contents(&narinfo));
            if !same_nar {
                self.examine_remote(&narinfo).await?;
            }
            if self.put_over(&narinfo, etag.as_deref()).await? {
                return Ok(if same_nar {
                    Status::Signed
                } else {
                    Status::Sent { bytes: 0, signed: is_signed(&narinfo) }
                });
            }
        }
        Err(busy(narinfo))
    }

    /// Reads the NAR of a narinfo back from the bucket, to see that it is there and what the narinfo says.
    async fn examine_remote(&self, narinfo: &NarInfo) -> Result<UploadedObject> {
        let missing =
            || Error::refused(format!("{}: its NAR, {}, is not in the bucket", narinfo.full_path(), narinfo.url));
        let method = Compression::from_name(&narinfo.compression)?;
        let complete = self.uploader.find(&narinfo.url, None).await?.ok_or_else(missing)?;
        let body = self.reader.get(&narinfo.url, None).await?.ok_or_else(missing)?;
        let nar_size = narinfo.nar_size;
        let examined = tokio::task::spawn_blocking(move || {
            digest_nar(body.into_reader(), method, Some(nar_size), &mut nar_pack::nar::Skip)
        });
        let digests = examined.await.map_err(|_| Error::failed("an examining thread died"))?;
        digests.context(|| self.bucket().display_url(&narinfo.url))?.require(narinfo)?;
        Ok(complete)
    }
}

fn names_hash(url: &str) -> bool {
    matches!(Object::of_key(url), Some(Object::Nar(Some(_))))
}

/// Whether both name the same file with the same compression.
fn same_file(a: &NarInfo, b: &NarInfo) -> bool {
    (&a.url, &a.compression, a.file_hash, a.file_size) == (&b.url, &b.compression, b.file_hash, b.file_size)
}

fn busy(narinfo: &NarInfo) -> Error {
    Error::failed(format!("{}: others kept changing its narinfo {MAX_MERGE_ATTEMPTS} times", narinfo.full_path()))
}

fn content_type() -> &'static str {
    "text/x-nix-narinfo"
}

fn cache_limit() -> usize {
    usize::try_from(cache_info::MAX_SIZE).unwrap_or(usize::MAX)
}

fn require_store_dir(text: &str, store_dir: &StoreDir) -> Result {
    CacheInfo::parse(text)?.require(store_dir)
}

fn is_signed(narinfo: &NarInfo) -> bool {
    !narinfo.signatures.is_empty() || is_content_addressed(narinfo)
}
