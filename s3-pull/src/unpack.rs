//! Paths unpacked below a root, many at once, while others are still looked up; each appears after those that it
//! references, and only if it is good.

use std::collections::{HashMap, VecDeque};
use std::io::BufWriter;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use nar_pack::nar::{Restorer, dump, remove_tree};
use nar_pack::stage::{Doing, Failure, Outcome};
use nar_pack::store_path::StorePath;
use narinfo_gen::hash::Hasher;
use narinfo_gen::narinfo::NarInfo;
use s3_push::patience::Tries;
use tokio::task::JoinSet;

use crate::body::Body;
use crate::case_hack::CaseHack;
use crate::closure::{Answer, Cache, Discovery, Offer, Wanted};
use crate::fetch;
use crate::report::{Report, Status};
use crate::staging::{Owner, Placed, Staging, exists};

/// How often progress is shown.
const TICK: Duration = Duration::from_millis(200);

/// How paths are unpacked.
#[derive(Debug, Clone, Copy)]
pub struct Manner {
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

/// Unpacks what a discovery finds below `root`. What depends on a refused path is not unpacked, everything else is.
///
/// # Errors
/// The first operation that failed ends it; refusals go into the report.
pub async fn unpack(
    discovery: Discovery,
    cache: &Arc<Cache>,
    root: &Path,
    manner: Manner,
    report: &mut Report,
) -> Outcome {
    let store = cache.store_dir.dir_below(Some(root));
    if manner.dry_run {
        return tell(discovery, cache, &store, report).await;
    }
    let staging = tokio::task::spawn_blocking(move || Staging::begin(&store)).await;
    let staging = Arc::new(staging.map_err(|_| Failure::failed("a thread died"))??);
    let cache = Arc::clone(cache);
    let (queue, states) = (VecDeque::new(), HashMap::new());
    Unpacking { cache, staging, manner, report, queue, states, waiting: HashMap::new() }.run(discovery).await
}

/// A dry run: what would be fetched.
async fn tell(mut discovery: Discovery, cache: &Cache, store: &Path, report: &mut Report) -> Outcome {
    while let Some(answer) = discovery.next().await {
        match answer?.1 {
            Ok(None) => {}
            Ok(Some(offer)) => {
                let there = exists(&store.join(offer.narinfo.path.base_name()));
                report.path(cache, &offer, if there { Status::Present } else { Status::WouldFetch })?;
            }
            Err(failure) => report.refused(None, failure)?,
        }
    }
    Ok(())
}

/// How far a path is.
enum State {
    /// Visible below the root.
    Placed,
    /// Refused; nothing of it is left.
    Refused,
    /// Under way.
    Pending {
        offer: Arc<Offer>,
        /// References that are not yet placed.
        missing: usize,
        /// Whether it lies, checked, in its temporary place.
        unpacked: bool,
    },
}

/// Where a path was found to be.
enum Got {
    /// Below the root, before this run.
    There,
    /// In its temporary place, from this offer.
    Unpacked(Arc<Offer>),
}

struct Unpacking<'a> {
    cache: Arc<Cache>,
    staging: Arc<Staging>,
    manner: Manner,
    report: &'a mut Report,
    queue: VecDeque<StorePath>,
    states: HashMap<StorePath, State>,
    /// Which paths wait for one that is not placed.
    waiting: HashMap<StorePath, Vec<StorePath>>,
}

impl Unpacking<'_> {
    async fn run(mut self, mut discovery: Discovery) -> Outcome {
        let mut downloads: JoinSet<(StorePath, Outcome<Got>)> = JoinSet::new();
        let mut tick = tokio::time::interval(TICK);
        let mut discovering = true;
        loop {
            while downloads.len() < self.manner.jobs
                && let Some(path) = self.queue.pop_front()
            {
                if let Some(State::Pending { offer, .. }) = self.states.get(&path) {
                    let (cache, staging, offer) =
                        (Arc::clone(&self.cache), Arc::clone(&self.staging), Arc::clone(offer));
                    let manner = self.manner;
                    downloads.spawn(async move { (path, get(&cache, &staging, offer, manner).await) });
                }
            }
            tokio::select! {
                answer = discovery.next(), if discovering => match answer {
                    Some(answer) => self.found(answer?, &discovery)?,
                    None => discovering = false,
                },
                Some(done) = downloads.join_next(), if !downloads.is_empty() => {
                    let (path, got) = done.map_err(|_| Failure::failed("a fetching task died"))?;
                    self.got(&path, got)?;
                }
                _ = tick.tick(), if discovering || !downloads.is_empty() => {
                    self.report.progress(self.cache.sources.iter().map(|source| source.moved()).sum());
                }
                else => break,
            }
        }
        self.refuse_the_rest()
    }

    fn found(&mut self, (wanted, answer): Answer, discovery: &Discovery) -> Outcome {
        let offer = match (wanted, answer) {
            (_, Ok(Some(offer))) => offer,
            (Wanted::Path(path), Err(failure)) => return self.refuse(&path, failure),
            (_, Err(failure)) => return self.report.refused(None, failure),
            (_, Ok(None)) => return Ok(()),
        };
        let path = offer.narinfo.path.clone();
        if self.states.contains_key(&path) {
            return Ok(());
        }
        self.report.found();
        let mut missing = 0;
        for reference in offer.narinfo.references.iter().filter(|reference| **reference != path) {
            if !self.manner.closed && !discovery.wants(reference) {
                continue;
            }
            match self.states.get(reference) {
                Some(State::Placed) => {}
                Some(State::Refused) => {
                    self.states
                        .insert(path.clone(), State::Pending { offer: Arc::clone(&offer), missing, unpacked: false });
                    return self.refuse(&path, lacks(&offer.narinfo, reference));
                }
                Some(State::Pending { .. }) | None => {
                    missing += 1;
                    self.waiting.entry(reference.clone()).or_default().push(path.clone());
                }
            }
        }
        self.states.insert(path.clone(), State::Pending { offer, missing, unpacked: false });
        self.queue.push_back(path);
        Ok(())
    }

    fn got(&mut self, path: &StorePath, got: Outcome<Got>) -> Outcome {
        let Some(State::Pending { offer, missing, unpacked }) = self.states.get_mut(path) else {
            // What it references was refused meanwhile.
            return remove_tree(&self.staging.temporary(path));
        };
        match got {
            Ok(Got::There) => {
                let offer = Arc::clone(offer);
                self.report.path(&self.cache, &offer, Status::Present)?;
                self.placed(path)
            }
            Ok(Got::Unpacked(from)) => {
                (*offer, *unpacked) = (from, true);
                if *missing == 0 { self.publish(path.clone()) } else { Ok(()) }
            }
            Err(failure) => self.refuse(path, failure),
        }
    }

    fn publish(&mut self, path: StorePath) -> Outcome {
        if let Some(State::Pending { offer, .. }) = self.states.get(&path) {
            let offer = Arc::clone(offer);
            let status = match self.staging.publish(&path)? {
                Placed::New => Status::Fetched,
                Placed::Existed => Status::Present,
            };
            self.report.path(&self.cache, &offer, status)?;
        }
        self.placed(&path)
    }

    /// Tells those that wait for a path that it is there, and places those that waited for nothing else.
    fn placed(&mut self, path: &StorePath) -> Outcome {
        let mut placed = vec![path.clone()];
        while let Some(path) = placed.pop() {
            self.states.insert(path.clone(), State::Placed);
            for waiting in self.waiting.remove(&path).unwrap_or_default() {
                let Some(State::Pending { offer, missing, unpacked }) = self.states.get_mut(&waiting) else { continue };
                *missing -= 1;
                if *missing > 0 || !*unpacked {
                    continue;
                }
                let offer = Arc::clone(offer);
                let status = match self.staging.publish(&waiting)? {
                    Placed::New => Status::Fetched,
                    Placed::Existed => Status::Present,
                };
                self.report.path(&self.cache, &offer, status)?;
                placed.push(waiting);
            }
        }
        Ok(())
    }

    /// Refuses a path, and with it all that wait for it.
    fn refuse(&mut self, path: &StorePath, failure: Failure) -> Outcome {
        let mut refused = vec![(path.clone(), failure)];
        while let Some((path, failure)) = refused.pop() {
            let before = self.states.insert(path.clone(), State::Refused);
            if matches!(before, Some(State::Refused)) {
                continue;
            }
            if let Some(State::Pending { unpacked: true, .. }) = before {
                remove_tree(&self.staging.temporary(&path))?;
            }
            self.report.refused(Some(&self.cache.store_dir.join(&path)), failure)?;
            for waiting in self.waiting.remove(&path).unwrap_or_default() {
                if let Some(State::Pending { offer, .. }) = self.states.get(&waiting) {
                    let why = lacks(&offer.narinfo, &path);
                    refused.push((waiting, why));
                }
            }
        }
        Ok(())
    }

    /// What still waits when nothing is under way waits for itself, or for what was never found.
    fn refuse_the_rest(&mut self) -> Outcome {
        let mut left: Vec<(StorePath, Arc<Offer>)> = Vec::new();
        for (path, state) in &self.states {
            if let State::Pending { offer, .. } = state {
                left.push((path.clone(), Arc::clone(offer)));
            }
        }
        left.sort_unstable_by(|a, b| a.0.cmp(&b.0));
        for (path, offer) in left {
            let absent = offer.narinfo.references.iter().find(|reference| !self.states.contains_key(*reference));
            let failure = match absent {
                Some(reference) => lacks(&offer.narinfo, reference),
                None => Failure::refused(format!("{}: its references form a cycle", offer.narinfo.full_path())),
            };
            self.refuse(&path, failure)?;
        }
        Ok(())
    }
}

fn lacks(narinfo: &NarInfo, reference: &StorePath) -> Failure {
    Failure::refused(format!("{}: it references {reference}, which could not be fetched", narinfo.full_path()))
}

/// Unpacks a path into its temporary place unless it is there; goes on to the next source where one is no good.
async fn get(cache: &Arc<Cache>, staging: &Arc<Staging>, offer: Arc<Offer>, manner: Manner) -> Outcome<Got> {
    let place = staging.place(&offer.narinfo.path);
    if exists(&place) {
        if manner.verify_existing {
            let offer = Arc::clone(&offer);
            let checked = tokio::task::spawn_blocking(move || require_same(&place, &offer.narinfo)).await;
            checked.map_err(|_| Failure::failed("a reading thread died"))??;
        }
        return Ok(Got::There);
    }
    let mut offer = offer;
    let mut first: Option<Failure> = None;
    loop {
        let failure = match download(cache, &offer, staging, manner).await {
            Ok(()) => return Ok(Got::Unpacked(offer)),
            Err(failure) => failure,
        };
        let first = first.get_or_insert(failure);
        let wanted = Wanted::Path(offer.narinfo.path.clone());
        match cache.offer(&wanted, offer.source + 1).await {
            // Other references would have to be waited for anew.
            Ok(Some(next)) if next.narinfo.references == offer.narinfo.references => offer = Arc::new(next),
            _ => return Err(first.clone()),
        }
    }
}

/// Refuses a path that is there with other contents.
fn require_same(place: &Path, narinfo: &NarInfo) -> Outcome {
    let mut hashed = BufWriter::with_capacity(256 * 1024, Hasher::default());
    dump(place, &mut hashed, &mut |_| {})?;
    let hashed = hashed.into_inner().map_err(|error| Failure::from(error.into_error()))?;
    let (hash, _) = hashed.finish();
    if hash == narinfo.nar_hash {
        return Ok(());
    }
    Err(Failure::refused(format!(
        "{}: {} is there with other contents (its NarHash is {hash}, not {}); it was left alone",
        narinfo.full_path(),
        place.display(),
        narinfo.nar_hash
    )))
}

async fn download(cache: &Arc<Cache>, offer: &Arc<Offer>, staging: &Arc<Staging>, manner: Manner) -> Outcome {
    let mut tries = Tries::new(cache.source(offer).attempts());
    loop {
        let body = fetch::begin(cache, offer).await?;
        let broken = Arc::clone(&body.broken);
        match unpack_body(body, offer, staging, manner).await {
            Err(_) if broken.load(Ordering::Acquire) && tries.again().await => {}
            result => return result,
        }
    }
}

/// Unpacks into the temporary place; what is there afterwards has been checked.
async fn unpack_body(body: Body, offer: &Arc<Offer>, staging: &Arc<Staging>, manner: Manner) -> Outcome {
    let (offer, temporary) = (Arc::clone(offer), staging.temporary(&offer.narinfo.path));
    let unpacked = tokio::task::spawn_blocking(move || {
        let mut restorer = Restorer::new(&temporary);
        let body = fetch::reader(body);
        let result = if manner.case_hack {
            fetch::check(body, &offer.narinfo, &mut CaseHack::new(&mut restorer), |_| Ok(()))
        } else {
            fetch::check(body, &offer.narinfo, &mut restorer, |_| Ok(()))
        };
        let result = result.and_then(|()| manner.owner.map_or(Ok(()), |owner| owner.take(&temporary)));
        if result.is_err() {
            restorer.undo().doing(|| offer.narinfo.full_path())?;
        }
        result
    });
    unpacked.await.map_err(|_| Failure::failed("an unpacking thread died"))?
}
