//! Paths unpacked below a root, many at once, while others are still looked up; each appears after those that it
//! references, and only if it is good.

use std::collections::{HashMap, VecDeque};
use std::io::{self, BufWriter, Read};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nar_pack::error::{Context, Error, Result};
use nar_pack::nar::{Restorer, dump, remove_tree};
use nar_pack::store_path::StorePath;
use narinfo_gen::hash::Hasher;
use narinfo_gen::narinfo::NarInfo;
use s3_push::remote::retry::Backoff;
use s3_push::remote::transfer::Body;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::closure::{Alternatives, Answer, Cache, Candidate, ClosureWalk, RequestedPath, ResolvedClosure};
use crate::fetch;
use crate::report::{Report, Status};
use crate::staging::{Owner, Placed, Staging, exists};
use nar_pack::nar::CaseHack;

/// Operations that may fail one after the other, times two, before the pull is given up; as many as are in flight, at
/// least.
const MAX_FAILURES: usize = 8;
/// Time for threads to give up what they unpack.
const PARTING: Duration = Duration::from_secs(5);
/// How often progress is shown.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(200);

/// How paths are unpacked.
#[derive(Debug, Clone, Copy)]
pub struct UnpackOptions {
    /// NARs in flight at once.
    pub jobs: usize,
    /// Whether a path without its references is refused.
    pub closed: bool,
    /// Whether what is there already is compared with its NarHash.
    pub verify_existing: bool,
    /// Whether names that differ in case only are told apart.
    pub case_hack: bool,
    /// Whom the files belong to, if not to who runs this.
    pub owner: Option<Owner>,
    /// Whether nothing is fetched.
    pub dry_run: bool,
}

/// Unpacks what a walk finds below `root`. What depends on a refused path is not unpacked, everything else is.
///
/// # Errors
/// What cannot be written ends it, and one operation that fails after the other; refusals go into the report.
pub async fn unpack(
    walk: ClosureWalk,
    cache: &Arc<Cache>,
    root: &Path,
    options: UnpackOptions,
    report: &mut Report,
) -> Result {
    let store = cache.store_dir.dir_below(Some(root));
    if options.dry_run {
        return tell(walk, cache, &store, options.closed, report).await;
    }
    let staging = tokio::task::spawn_blocking(move || Staging::begin(&store)).await;
    let staging = staging.map_err(|_| Error::failed("a thread died"))??;
    let (alive, mut ended) = mpsc::channel(1);
    let work =
        Arc::new(Work { cache: Arc::clone(cache), staging, options, stop: AtomicBool::new(false), _alive: alive });
    let (queue, states, waiting) = (VecDeque::new(), HashMap::new(), HashMap::new());
    let result = Unpacking { work: Arc::clone(&work), report, queue, states, waiting, failures: 0 }.run(walk).await;
    // Threads that still unpack something give it up; then nothing is left of it.
    work.stop.store(true, Ordering::Relaxed);
    drop(work);
    let _ = tokio::time::timeout(PARTING, ended.recv()).await;
    result
}

/// A dry run: what would be fetched.
async fn tell(mut walk: ClosureWalk, cache: &Cache, store: &Path, closed: bool, report: &mut Report) -> Result {
    let mut found = ResolvedClosure::default();
    while let Some(answer) = walk.next().await {
        match answer? {
            (_, Ok(None)) => {}
            (_, Ok(Some(candidate))) => drop(found.candidates.insert(candidate.narinfo.path.clone(), candidate)),
            (RequestedPath::Path(path), Err(failure)) => report.refused(Some(&cache.store_dir.join(&path)), failure)?,
            (RequestedPath::Hash(_), Err(failure)) => report.refused(None, failure)?,
        }
    }
    for candidate in found.in_order(closed)? {
        let there = exists(&store.join(candidate.narinfo.path.base_name()));
        report.path(cache, &candidate, if there { Status::Present } else { Status::WouldFetch })?;
    }
    found.refusals.into_iter().try_for_each(|refusal| report.refused(None, refusal))
}

/// How far a path is.
enum State {
    /// Visible below the root.
    Placed,
    /// Refused; nothing of it is left.
    Refused,
    /// Under way.
    Pending {
        candidate: Arc<Candidate>,
        /// References that are not yet placed.
        missing: usize,
        /// Whether it lies, checked, in its temporary place.
        unpacked: bool,
    },
}

/// Where a path was found to be.
enum FetchedPath {
    /// Below the root, before this run.
    There,
    /// In its temporary place, from this candidate.
    Unpacked(Arc<Candidate>),
}

/// What all downloads share. When the last is done with it the temporaries are removed.
struct Work {
    cache: Arc<Cache>,
    staging: Staging,
    options: UnpackOptions,
    /// Set when nothing more is wanted.
    stop: AtomicBool,
    /// Closed last.
    _alive: mpsc::Sender<()>,
}

/// Why a path is not placed.
enum UnpackError {
    /// It is not as it should be, or could not be read: others may be.
    OfPath(Error),
    /// It could not be written: nor can others.
    OfAll(Error),
}

struct Unpacking<'a> {
    work: Arc<Work>,
    report: &'a mut Report,
    queue: VecDeque<StorePath>,
    states: HashMap<StorePath, State>,
    /// Which paths wait for one that is not placed.
    waiting: HashMap<StorePath, Vec<StorePath>>,
    /// Operations that failed one after the other.
    failures: usize,
}

impl Unpacking<'_> {
    async fn run(mut self, mut walk: ClosureWalk) -> Result {
        let mut downloads: JoinSet<(StorePath, Result<FetchedPath, UnpackError>)> = JoinSet::new();
        let mut tick = tokio::time::interval(PROGRESS_INTERVAL);
        let mut discovering = true;
        loop {
            while downloads.len() < self.work.options.jobs
                && let Some(path) = self.queue.pop_front()
            {
                if let Some(State::Pending { candidate, .. }) = self.states.get(&path) {
                    let (work, candidate) = (Arc::clone(&self.work), Arc::clone(candidate));
                    downloads.spawn(async move { (path, get(&work, candidate).await) });
                }
            }
            tokio::select! {
                answer = walk.next(), if discovering => match answer {
                    Some(answer) => self.found(answer?, &walk)?,
                    None => discovering = false,
                },
                Some(done) = downloads.join_next(), if !downloads.is_empty() => {
                    let (path, got) = done.map_err(|_| Error::failed("a fetching task died"))?;
                    self.got(&path, got)?;
                }
                _ = tick.tick(), if discovering || !downloads.is_empty() => {
                    self.report.progress(self.work.cache.sources.iter().map(|source| source.bytes_received()).sum());
                }
                else => break,
            }
        }
        self.refuse_the_rest()
    }

    fn found(&mut self, (wanted, answer): Answer, walk: &ClosureWalk) -> Result {
        let candidate = match (wanted, answer) {
            (_, Ok(Some(candidate))) => candidate,
            (RequestedPath::Path(path), Err(failure)) => return self.refuse(&path, failure),
            (RequestedPath::Hash(_), Err(failure)) => {
                self.bear(&failure)?;
                return self.report.refused(None, failure);
            }
            (_, Ok(None)) => return Ok(()),
        };
        let path = candidate.narinfo.path.clone();
        if self.states.contains_key(&path) {
            return Ok(());
        }
        self.report.found();
        self.failures = 0;
        let mut missing = 0;
        for reference in candidate.narinfo.references.iter().filter(|reference| **reference != path) {
            if !self.work.options.closed && !walk.wants(reference) {
                continue;
            }
            match self.states.get(reference) {
                Some(State::Placed) => {}
                Some(State::Refused) => {
                    self.states.insert(
                        path.clone(),
                        State::Pending { candidate: Arc::clone(&candidate), missing, unpacked: false },
                    );
                    return self.refuse(&path, lacks(&candidate.narinfo, reference));
                }
                Some(State::Pending { .. }) | None => {
                    missing += 1;
                    self.waiting.entry(reference.clone()).or_default().push(path.clone());
                }
            }
        }
        self.states.insert(path.clone(), State::Pending { candidate, missing, unpacked: false });
        self.queue.push_back(path);
        Ok(())
    }

    fn got(&mut self, path: &StorePath, got: Result<FetchedPath, UnpackError>) -> Result {
        let Some(State::Pending { candidate, missing, unpacked }) = self.states.get_mut(path) else {
            // What it references was refused meanwhile.
            return remove_tree(&self.work.staging.temporary(path));
        };
        match got {
            Ok(FetchedPath::There) => {
                let candidate = Arc::clone(candidate);
                self.report.path(&self.work.cache, &candidate, Status::Present)?;
                self.placed(path)
            }
            Ok(FetchedPath::Unpacked(from)) => {
                (*candidate, *unpacked) = (Arc::clone(&from), true);
                if *missing > 0 {
                    return Ok(());
                }
                self.publish(path, &from)?;
                self.placed(path)
            }
            Err(UnpackError::OfPath(failure)) => self.refuse(path, failure),
            Err(UnpackError::OfAll(failure)) => Err(failure),
        }
    }

    /// Moves what lies, checked, in its temporary place to the final one, and tells of it.
    fn publish(&mut self, path: &StorePath, candidate: &Candidate) -> Result {
        let status = match self.work.staging.publish(path)? {
            Placed::New => Status::Fetched,
            Placed::Existed => Status::Present,
        };
        self.report.path(&self.work.cache, candidate, status)
    }

    /// Tells those that wait for a path that it is there, and places those that waited for nothing else.
    fn placed(&mut self, path: &StorePath) -> Result {
        let mut placed = vec![path.clone()];
        while let Some(path) = placed.pop() {
            self.states.insert(path.clone(), State::Placed);
            for waiting in self.waiting.remove(&path).unwrap_or_default() {
                let Some(State::Pending { candidate, missing, unpacked }) = self.states.get_mut(&waiting) else {
                    continue;
                };
                *missing -= 1;
                if *missing > 0 || !*unpacked {
                    continue;
                }
                let candidate = Arc::clone(candidate);
                self.publish(&waiting, &candidate)?;
                placed.push(waiting);
            }
        }
        Ok(())
    }

    /// One failed operation after the other, and nothing else: then the rest would fail too, each after its time.
    fn bear(&mut self, failure: &Error) -> Result {
        self.failures = if failure.is_refusal() { 0 } else { self.failures + 1 };
        if self.failures > 2 * self.work.options.jobs.max(MAX_FAILURES) { Err(failure.clone()) } else { Ok(()) }
    }

    /// Refuses a path, and with it all that wait for it.
    fn refuse(&mut self, path: &StorePath, failure: Error) -> Result {
        self.bear(&failure)?;
        let mut refused = vec![(path.clone(), failure)];
        while let Some((path, failure)) = refused.pop() {
            let before = self.states.insert(path.clone(), State::Refused);
            if matches!(before, Some(State::Refused)) {
                continue;
            }
            if let Some(State::Pending { unpacked: true, .. }) = before {
                remove_tree(&self.work.staging.temporary(&path))?;
            }
            self.report.refused(Some(&self.work.cache.store_dir.join(&path)), failure)?;
            for waiting in self.waiting.remove(&path).unwrap_or_default() {
                if let Some(State::Pending { candidate, .. }) = self.states.get(&waiting) {
                    let why = lacks(&candidate.narinfo, &path);
                    refused.push((waiting, why));
                }
            }
        }
        Ok(())
    }

    /// What still waits when nothing is under way waits for itself, or for what was never found.
    fn refuse_the_rest(&mut self) -> Result {
        let mut left: Vec<(StorePath, Arc<Candidate>)> = Vec::new();
        for (path, state) in &self.states {
            if let State::Pending { candidate, .. } = state {
                left.push((path.clone(), Arc::clone(candidate)));
            }
        }
        left.sort_unstable_by(|a, b| a.0.cmp(&b.0));
        for (path, candidate) in left {
            let absent = candidate.narinfo.references.iter().find(|reference| !self.states.contains_key(*reference));
            let failure = match absent {
                Some(reference) => lacks(&candidate.narinfo, reference),
                None => Error::refused(format!("{}: its references form a cycle", candidate.narinfo.full_path())),
            };
            self.refuse(&path, failure)?;
        }
        Ok(())
    }
}

fn lacks(narinfo: &NarInfo, reference: &StorePath) -> Error {
    Error::refused(format!("{}: it references {reference}, which could not be fetched", narinfo.full_path()))
}

/// Unpacks a path into its temporary place unless it is there; goes on to the next source where one is no good.
async fn get(work: &Arc<Work>, candidate: Arc<Candidate>) -> Result<FetchedPath, UnpackError> {
    let place = work.staging.place(&candidate.narinfo.path);
    if exists(&place) {
        if work.options.verify_existing {
            let candidate = Arc::clone(&candidate);
            let checked = tokio::task::spawn_blocking(move || require_same(&place, &candidate.narinfo)).await;
            let died = |_| UnpackError::OfAll(Error::failed("a reading thread died"));
            checked.map_err(died)?.map_err(UnpackError::OfPath)?;
        }
        return Ok(FetchedPath::There);
    }
    let mut from = Alternatives::new(work.cache.healthy(candidate).await);
    loop {
        let failure = match download(work, &from.candidate).await {
            Ok(()) => return Ok(FetchedPath::Unpacked(from.candidate)),
            Err(UnpackError::OfPath(failure)) => failure,
            Err(trouble) => return Err(trouble),
        };
        if !failure.is_refusal() {
            work.cache.ails(from.candidate.source, &failure);
        }
        from.next(&work.cache, failure).await.map_err(UnpackError::OfPath)?;
    }
}

/// Refuses a path that is there with other contents.
fn require_same(place: &Path, narinfo: &NarInfo) -> Result {
    let mut hashed = BufWriter::with_capacity(256 * 1024, Hasher::default());
    let alone =
        |failure: Error| Error::refused(format!("{}: {}; it was left alone", narinfo.full_path(), failure.message()));
    dump(place, &mut hashed, &mut |_| {}).map_err(alone)?;
    let hashed = hashed.into_inner().map_err(|error| Error::from(error.into_error()))?;
    let (hash, _) = hashed.finish();
    if hash == narinfo.nar_hash {
        return Ok(());
    }
    Err(Error::refused(format!(
        "{}: {} is there with other contents (its NarHash is {hash}, not {}); it was left alone",
        narinfo.full_path(),
        place.display(),
        narinfo.nar_hash
    )))
}

async fn download(work: &Arc<Work>, candidate: &Arc<Candidate>) -> Result<(), UnpackError> {
    let mut tries = Backoff::new(work.cache.source(candidate).max_attempts());
    loop {
        let body = fetch::begin(&work.cache, candidate).await.map_err(UnpackError::OfPath)?;
        let broken = Arc::clone(&body.broken);
        let Err(failure) = unpack_body(body, candidate, work).await else { return Ok(()) };
        let broke = broken.load(Ordering::Acquire);
        if broke && tries.next_attempt().await {
            continue;
        }
        return Err(if broke || failure.is_refusal() {
            UnpackError::OfPath(failure)
        } else {
            UnpackError::OfAll(failure)
        });
    }
}

/// Unpacks into the temporary place; what is there afterwards has been checked.
async fn unpack_body(body: Body, candidate: &Arc<Candidate>, work: &Arc<Work>) -> Result {
    let (told, work) = (Arc::clone(candidate), Arc::clone(work));
    let unpacked = tokio::task::spawn_blocking(move || {
        let (narinfo, options) = (&told.narinfo, work.options);
        let temporary = work.staging.temporary(&narinfo.path);
        let mut restorer = Restorer::new(&temporary);
        let body = Cancellable { inner: fetch::reader(body), stop: &work.stop };
        let result = if options.case_hack {
            fetch::check(body, narinfo, &mut CaseHack::new(&mut restorer), |_| Ok(()))
        } else {
            fetch::check(body, narinfo, &mut restorer, |_| Ok(()))
        };
        let result = result.and_then(|()| options.owner.map_or(Ok(()), |owner| owner.take(&temporary)));
        if result.is_err() {
            restorer.undo().context(|| narinfo.full_path())?;
        }
        result
    });
    // A decoder that gives up on hostile bytes takes one path with it; what it left goes with the temporaries.
    unpacked
        .await
        .map_err(|_| Error::refused(format!("{}: its NAR broke the decoder", candidate.narinfo.full_path())))?
}

/// A body that ends when nobody wants it any more.
struct Cancellable<'a, R> {
    inner: R,
    stop: &'a AtomicBool,
}

impl<R: Read> Read for Cancellable<'_, R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if self.stop.load(Ordering::Relaxed) {
            return Err(Error::failed("the pull was given up").into());
        }
        self.inner.read(buf)
    }
}
