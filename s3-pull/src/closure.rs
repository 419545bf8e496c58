//! Which paths are to be fetched: narinfos, checked before anything else is looked at.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use cache_sign::trust::TrustedKeys;
use nar_pack::references::references_first;
use nar_pack::stage::{self, Doing, Failure, Outcome};
use nar_pack::store_path::{HashPart, StoreDir, StorePath};
use narinfo_gen::cache_info::{self, CacheInfo};
use narinfo_gen::narinfo::{self, NarInfo};
use tokio::task::JoinSet;

use crate::TOOL;
use crate::source::Source;

/// Caches in the order in which they are asked, and what makes their word good.
pub struct Cache {
    /// Where it is read from; the first has priority.
    pub sources: Vec<Arc<Source>>,
    /// Who must have signed; none when signatures are not checked.
    pub trusted: Option<TrustedKeys>,
    /// The store directory of its paths.
    pub store_dir: StoreDir,
    /// For each source whether something of it could not be read; it is then asked last.
    ailing: Vec<AtomicBool>,
}

/// A narinfo that was checked, and the source that has its NAR.
#[derive(Debug, Clone)]
pub struct Offer {
    /// What it says.
    pub narinfo: NarInfo,
    /// Which of [`Cache::sources`] gave it.
    pub source: usize,
}

/// The offers for one path, source by source, until one turns out to be good.
pub struct Alternatives {
    /// The offer at hand.
    pub offer: Arc<Offer>,
    tried: Vec<usize>,
    first: Option<Failure>,
}

impl Alternatives {
    /// Begins with this offer.
    #[must_use]
    pub fn new(offer: Arc<Offer>) -> Self {
        Self { offer, tried: Vec::new(), first: None }
    }

    /// Goes on to the next source, since this one's offer came to `failure`.
    ///
    /// # Errors
    /// The first source's failure, when there is no other.
    pub async fn next(&mut self, cache: &Cache, failure: Failure) -> Outcome {
        let first = self.first.get_or_insert(failure);
        self.tried.push(self.offer.source);
        let other = cache.other_offer(&self.offer, &self.tried).await.ok_or_else(|| first.clone())?;
        self.offer = Arc::new(other);
        Ok(())
    }
}

/// What is looked up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wanted {
    /// A path, which must be there under exactly this name.
    Path(StorePath),
    /// Whatever path has this hash part, if any.
    Hash(HashPart),
}

/// Narinfos that were fetched and checked, and what could not be.
#[derive(Default)]
pub struct Found {
    /// What is offered, by path.
    pub offers: HashMap<StorePath, Arc<Offer>>,
    /// Why others are not among them.
    pub refusals: Vec<Failure>,
}

impl Cache {
    /// Keeps the sources that answer; a cache of another store directory has nothing for us, and one that says nothing
    /// is taken at its narinfos' word.
    ///
    /// # Errors
    /// The first source's failure, when none is left.
    pub async fn new(sources: Vec<Source>, trusted: Option<TrustedKeys>, store_dir: StoreDir) -> Outcome<Self> {
        let several = sources.len() > 1;
        let limit = usize::try_from(cache_info::MAX_SIZE).unwrap_or(usize::MAX);
        let asked = sources.iter().map(|source| source.text(cache_info::KEY, limit));
        let answers = futures_util::future::join_all(asked).await;
        let (mut kept, mut first) = (Vec::with_capacity(sources.len()), None);
        for (source, answer) in sources.into_iter().zip(answers) {
            let checked = answer.and_then(|text| match text {
                None => Ok(()),
                Some(text) => CacheInfo::parse(&text)
                    .and_then(|info| info.require(&store_dir))
                    .doing(|| source.shown(cache_info::KEY)),
            });
            match checked {
                Ok(()) => kept.push(Arc::new(source)),
                Err(failure) => {
                    if several {
                        stage::say(TOOL, format!("a source is left out: {failure}"));
                    }
                    first.get_or_insert(failure);
                }
            }
        }
        match first {
            Some(failure) if kept.is_empty() => Err(failure),
            _ => {
                let ailing = kept.iter().map(|_| AtomicBool::new(false)).collect();
                Ok(Self { sources: kept, trusted, store_dir, ailing })
            }
        }
    }

    /// The source of an offer.
    #[must_use]
    pub fn source(&self, offer: &Offer) -> &Arc<Source> {
        &self.sources[offer.source]
    }

    /// Notes that something of a source could not be read: where there are others, it is asked last from now on.
    pub fn ails(&self, source: usize, failure: &Failure) {
        if self.sources.len() > 1 && !self.ailing[source].swap(true, Ordering::Relaxed) {
            stage::say(TOOL, format!("{failure}; this source is asked last from now on"));
        }
    }

    /// The same offer, or one of another source where this one's fails.
    pub async fn healthy(&self, offer: Arc<Offer>) -> Arc<Offer> {
        if !self.ailing[offer.source].load(Ordering::Relaxed) {
            return offer;
        }
        self.other_offer(&offer, &[offer.source]).await.map_or(offer, Arc::new)
    }

    /// Sources that are not among `tried`, in the order in which they are asked.
    fn to_ask(&self, tried: &[usize]) -> Vec<usize> {
        let (last, first): (Vec<usize>, Vec<usize>) = (0..self.sources.len())
            .filter(|number| !tried.contains(number))
            .partition(|number| self.ailing[*number].load(Ordering::Relaxed));
        [first, last].concat()
    }

    /// What another source than those in `tried` offers for the same path, with the same references.
    async fn other_offer(&self, offer: &Offer, tried: &[usize]) -> Option<Offer> {
        let wanted = Wanted::Path(offer.narinfo.path.clone());
        let other = self.offer(&wanted, tried).await.ok()??;
        // Other references would have to be waited for anew.
        (other.narinfo.references == offer.narinfo.references).then_some(other)
    }

    /// What the first source that has it, and is not among `tried`, says of a path; its narinfo has been checked: store
    /// directory, hash part, name, signatures.
    ///
    /// # Errors
    /// The first refusal or failure when no source has a good one; a failure goes before a refusal.
    pub async fn offer(&self, wanted: &Wanted, tried: &[usize]) -> Outcome<Option<Offer>> {
        let mut why: Option<Failure> = None;
        for number in self.to_ask(tried) {
            match self.narinfo(&self.sources[number], wanted).await {
                Ok(Some(narinfo)) => return Ok(Some(Offer { narinfo, source: number })),
                Ok(None) => {}
                Err(failure) => {
                    if !failure.is_refusal() {
                        self.ails(number, &failure);
                    }
                    if why.as_ref().is_none_or(|why| why.is_refusal() && !failure.is_refusal()) {
                        why = Some(failure);
                    }
                }
            }
        }
        match (why, wanted) {
            (Some(failure), _) => Err(failure),
            (None, Wanted::Path(path)) => {
                let who = if self.sources.len() > 1 { "no source has it" } else { "the cache does not have it" };
                Err(Failure::refused(format!("{}: {who}", self.store_dir.join(path))))
            }
            // It was in the listing: whom a bucket lets list, it tells what is missing.
            (None, Wanted::Hash(hash)) if self.sources.iter().any(|source| source.was_forbidden()) => {
                Err(Failure::failed(format!("{hash}.narinfo: listed, but reading it is forbidden (s3:GetObject)")))
            }
            // Removed since it was listed.
            (None, Wanted::Hash(_)) => Ok(None),
        }
    }

    async fn narinfo(&self, source: &Source, wanted: &Wanted) -> Outcome<Option<NarInfo>> {
        let hash = match wanted {
            Wanted::Path(path) => path.hash_part(),
            Wanted::Hash(hash) => *hash,
        };
        let key = format!("{hash}.narinfo");
        let Some(text) = source.text(&key, narinfo::MAX_SIZE).await? else { return Ok(None) };
        let narinfo = NarInfo::parse(&text, &self.store_dir).doing(|| source.shown(&key))?;
        if narinfo.path.hash_part() != hash {
            let why = format!("{}: it describes another path, {}", source.shown(&key), narinfo.path);
            return Err(Failure::refused(why));
        }
        if let Wanted::Path(path) = wanted
            && narinfo.path != *path
        {
            let why = format!("{path}: the cache has another name under this hash, {}", narinfo.path);
            return Err(Failure::refused(why));
        }
        if let Some(trusted) = &self.trusted {
            trusted.require(&narinfo)?;
        }
        Ok(Some(narinfo))
    }

    /// Everything that a discovery finds.
    ///
    /// # Errors
    /// Fails where the sources do; what is missing or refused is in [`Found::refusals`].
    pub async fn discover(self: &Arc<Self>, goals: Vec<Wanted>, recursive: bool, jobs: usize) -> Outcome<Found> {
        let mut discovery = Discovery::new(Arc::clone(self), goals, recursive, jobs);
        let mut found = Found::default();
        while let Some(answer) = discovery.next().await {
            match answer?.1 {
                Ok(Some(offer)) => drop(found.offers.insert(offer.narinfo.path.clone(), offer)),
                Ok(None) => {}
                Err(failure) if failure.is_refusal() => found.refusals.push(failure),
                Err(failure) => return Err(failure),
            }
        }
        Ok(found)
    }
}

impl Found {
    /// What is offered, references first. In a closure, a path of which a reference is missing is refused too, and so on.
    ///
    /// # Errors
    /// Refuses references in a circle.
    pub fn in_order(&mut self, closed: bool) -> Outcome<Vec<Arc<Offer>>> {
        let mut paths: Vec<StorePath> = self.offers.keys().cloned().collect();
        paths.sort_unstable();
        let offers: &HashMap<StorePath, Arc<Offer>> = &self.offers;
        let order = references_first(&paths, |path| offers.get(path).map_or(&[], |offer| &offer.narinfo.references))?;
        let mut kept = HashSet::new();
        let mut result = Vec::with_capacity(order.len());
        for path in order {
            let narinfo = &offers[path].narinfo;
            let missing = narinfo.references.iter().find(|reference| *reference != path && !kept.contains(*reference));
            match missing.filter(|_| closed) {
                None => {
                    kept.insert(path.clone());
                    result.push(Arc::clone(&offers[path]));
                }
                Some(reference) => self.refusals.push(Failure::refused(format!(
                    "{}: it references {reference}, which could not be fetched",
                    narinfo.full_path()
                ))),
            }
        }
        Ok(result)
    }
}

/// What was asked, and what is known of it.
pub type Answer = (Wanted, Outcome<Option<Arc<Offer>>>);

/// A walk through a closure, breadth first, with many narinfos asked for at once.
pub struct Discovery {
    cache: Arc<Cache>,
    recursive: bool,
    jobs: usize,
    seen: HashSet<StorePath>,
    waiting: VecDeque<Wanted>,
    asked: JoinSet<Answer>,
}

impl Discovery {
    /// Begins at `goals`, each of which is there once.
    #[must_use]
    pub fn new(cache: Arc<Cache>, goals: Vec<Wanted>, recursive: bool, jobs: usize) -> Self {
        let path = |wanted: &Wanted| if let Wanted::Path(path) = wanted { Some(path.clone()) } else { None };
        let seen = goals.iter().filter_map(path).collect();
        Self { cache, recursive, jobs, seen, waiting: goals.into(), asked: JoinSet::new() }
    }

    /// Whether a path is, was or will be asked for.
    #[must_use]
    pub fn wants(&self, path: &StorePath) -> bool {
        self.seen.contains(path)
    }

    /// The next answer, in the order in which they come; none at the end. May be dropped and called again.
    ///
    /// # Errors
    /// Fails when a task died.
    pub async fn next(&mut self) -> Option<Outcome<Answer>> {
        while self.asked.len() < self.jobs
            && let Some(wanted) = self.waiting.pop_front()
        {
            let cache = Arc::clone(&self.cache);
            self.asked.spawn(async move {
                let offer = cache.offer(&wanted, &[]).await;
                (wanted, offer.map(|offer| offer.map(Arc::new)))
            });
        }
        let Ok(answer) = self.asked.join_next().await? else {
            return Some(Err(Failure::failed("a fetching task died")));
        };
        if self.recursive
            && let Ok(Some(offer)) = &answer.1
        {
            let seen = &mut self.seen;
            let new = offer.narinfo.references.iter().filter(|path| seen.insert((*path).clone())).cloned();
            self.waiting.extend(new.map(Wanted::Path));
        }
        Some(Ok(answer))
    }
}
