//! Which paths are to be fetched: narinfos, checked before anything else is looked at.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use cache_sign::trust::TrustedKeys;
use nar_pack::error::{Context, Error, Result};
use nar_pack::process;
use nar_pack::references::references_first;
use nar_pack::store_path::{HashPart, StoreDir, StorePath};
use narinfo_gen::cache_info::{self, CacheInfo};
use narinfo_gen::narinfo::{self, NarInfo};
use s3_push::remote::Remote;
use tokio::task::JoinSet;

use crate::TOOL;

/// Caches in the order in which they are asked, and what makes their word good.
pub struct Cache {
    /// Where it is read from; the first has priority.
    pub sources: Vec<Arc<Remote>>,
    /// Who must have signed; none when signatures are not checked.
    pub trusted: Option<TrustedKeys>,
    /// The store directory of its paths.
    pub store_dir: StoreDir,
    /// For each source whether something of it could not be read; it is then asked last.
    ailing: Vec<AtomicBool>,
}

/// A narinfo that was checked, and the source that has its NAR.
#[derive(Debug, Clone)]
pub struct Candidate {
    /// What it says.
    pub narinfo: NarInfo,
    /// Which of [`Cache::sources`] gave it.
    pub source: usize,
}

/// The candidates for one path, source by source, until one turns out to be good.
pub struct Alternatives {
    /// The candidate at hand.
    pub candidate: Arc<Candidate>,
    tried: Vec<usize>,
    first: Option<Error>,
}

impl Alternatives {
    /// Begins with this candidate.
    #[must_use]
    pub fn new(candidate: Arc<Candidate>) -> Self {
        Self { candidate, tried: Vec::new(), first: None }
    }

    /// Goes on to the next source, since this one's candidate came to `failure`.
    ///
    /// # Errors
    /// The first source's failure, when there is no other.
    pub async fn next(&mut self, cache: &Cache, failure: Error) -> Result {
        let first = self.first.get_or_insert(failure);
        self.tried.push(self.candidate.source);
        let other = cache.other_offer(&self.candidate, &self.tried).await.ok_or_else(|| first.clone())?;
        self.candidate = Arc::new(other);
        Ok(())
    }
}

/// What is looked up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RequestedPath {
    /// A path, which must be there under exactly this name.
    Path(StorePath),
    /// Whatever path has this hash part, if any.
    Hash(HashPart),
}

/// Narinfos that were fetched and checked, and what could not be.
#[derive(Default)]
pub struct ResolvedClosure {
    /// What is offered, by path.
    pub candidates: HashMap<StorePath, Arc<Candidate>>,
    /// Why others are not among them.
    pub refusals: Vec<Error>,
}

impl Cache {
    /// Keeps the sources that answer; a cache of another store directory has nothing for us, and one that says nothing
    /// is taken at its narinfos' word.
    ///
    /// # Errors
    /// The first source's failure, when none is left.
    pub async fn new(sources: Vec<Remote>, trusted: Option<TrustedKeys>, store_dir: StoreDir) -> Result<Self> {
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
                    .context(|| source.display_url(cache_info::KEY)),
            });
            match checked {
                Ok(()) => kept.push(Arc::new(source)),
                Err(failure) => {
                    if several {
                        process::print_message(TOOL, format!("a source is left out: {failure}"));
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

    /// The source of an candidate.
    #[must_use]
    pub fn source(&self, candidate: &Candidate) -> &Arc<Remote> {
        &self.sources[candidate.source]
    }

    /// Notes that something of a source could not be read: where there are others, it is asked last from now on.
    pub fn ails(&self, source: usize, failure: &Error) {
        if self.sources.len() > 1 && !self.ailing[source].swap(true, Ordering::Relaxed) {
            process::print_message(TOOL, format!("{failure}; this source is asked last from now on"));
        }
    }

    /// The same candidate, or one of another source where this one's fails.
    pub async fn healthy(&self, candidate: Arc<Candidate>) -> Arc<Candidate> {
        if !self.ailing[candidate.source].load(Ordering::Relaxed) {
            return candidate;
        }
        self.other_offer(&candidate, &[candidate.source]).await.map_or(candidate, Arc::new)
    }

    /// Sources that are not among `tried`, in the order in which they are asked.
    fn to_ask(&self, tried: &[usize]) -> Vec<usize> {
        let (last, first): (Vec<usize>, Vec<usize>) = (0..self.sources.len())
            .filter(|number| !tried.contains(number))
            .partition(|number| self.ailing[*number].load(Ordering::Relaxed));
        [first, last].concat()
    }

    /// What another source than those in `tried` candidates for the same path, with the same references.
    async fn other_offer(&self, candidate: &Candidate, tried: &[usize]) -> Option<Candidate> {
        let wanted = RequestedPath::Path(candidate.narinfo.path.clone());
        let other = self.candidate(&wanted, tried).await.ok()??;
        // Other references would have to be waited for anew.
        (other.narinfo.references == candidate.narinfo.references).then_some(other)
    }

    /// What the first source that has it, and is not among `tried`, says of a path; its narinfo has been checked: store
    /// directory, hash part, name, signatures.
    ///
    /// # Errors
    /// The first refusal or failure when no source has a good one; a failure goes before a refusal.
    pub async fn candidate(&self, wanted: &RequestedPath, tried: &[usize]) -> Result<Option<Candidate>> {
        let mut why: Option<Error> = None;
        for number in self.to_ask(tried) {
            match self.narinfo(&self.sources[number], wanted).await {
                Ok(Some(narinfo)) => return Ok(Some(Candidate { narinfo, source: number })),
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
            (None, RequestedPath::Path(path)) => {
                let who = if self.sources.len() > 1 { "no source has it" } else { "the cache does not have it" };
                Err(Error::refused(format!("{}: {who}", self.store_dir.join(path))))
            }
            // It was in the listing: whom a bucket lets list, it tells what is missing.
            (None, RequestedPath::Hash(hash)) if self.sources.iter().any(|source| source.was_forbidden()) => {
                Err(Error::failed(format!("{hash}.narinfo: listed, but reading it is forbidden (s3:GetObject)")))
            }
            // Removed since it was listed.
            (None, RequestedPath::Hash(_)) => Ok(None),
        }
    }

    async fn narinfo(&self, source: &Remote, wanted: &RequestedPath) -> Result<Option<NarInfo>> {
        let hash = match wanted {
            RequestedPath::Path(path) => path.hash_part(),
            RequestedPath::Hash(hash) => *hash,
        };
        let key = format!("{hash}.narinfo");
        let Some(text) = source.text(&key, narinfo::MAX_SIZE).await? else { return Ok(None) };
        let narinfo = NarInfo::parse(&text, &self.store_dir).context(|| source.display_url(&key))?;
        if narinfo.path.hash_part() != hash {
            let why = format!("{}: it describes another path, {}", source.display_url(&key), narinfo.path);
            return Err(Error::refused(why));
        }
        if let RequestedPath::Path(path) = wanted
            && narinfo.path != *path
        {
            let why = format!("{path}: the cache has another name under this hash, {}", narinfo.path);
            return Err(Error::refused(why));
        }
        if let Some(trusted) = &self.trusted {
            trusted.require(&narinfo)?;
        }
        Ok(Some(narinfo))
    }

    /// Everything that a walk finds.
    ///
    /// # Errors
    /// Fails where the sources do; what is missing or refused is in [`ResolvedClosure::refusals`].
    pub async fn discover(
        self: &Arc<Self>,
        goals: Vec<RequestedPath>,
        recursive: bool,
        jobs: usize,
    ) -> Result<ResolvedClosure> {
        let mut walk = ClosureWalk::new(Arc::clone(self), goals, recursive, jobs);
        let mut found = ResolvedClosure::default();
        while let Some(answer) = walk.next().await {
            match answer?.1 {
                Ok(Some(candidate)) => drop(found.candidates.insert(candidate.narinfo.path.clone(), candidate)),
                Ok(None) => {}
                Err(failure) if failure.is_refusal() => found.refusals.push(failure),
                Err(failure) => return Err(failure),
            }
        }
        Ok(found)
    }
}

impl ResolvedClosure {
    /// What is offered, references first. In a closure, a path of which a reference is missing is refused too, and so on.
    ///
    /// # Errors
    /// Refuses references in a circle.
    pub fn in_order(&mut self, closed: bool) -> Result<Vec<Arc<Candidate>>> {
        let mut paths: Vec<StorePath> = self.candidates.keys().cloned().collect();
        paths.sort_unstable();
        let candidates: &HashMap<StorePath, Arc<Candidate>> = &self.candidates;
        let order = references_first(&paths, |path| {
            candidates.get(path).map_or(&[], |candidate| &candidate.narinfo.references)
        })?;
        let mut kept = HashSet::new();
        let mut result = Vec::with_capacity(order.len());
        for path in order {
            let narinfo = &candidates[path].narinfo;
            let missing = narinfo.references.iter().find(|reference| *reference != path && !kept.contains(*reference));
            match missing.filter(|_| closed) {
                None => {
                    kept.insert(path.clone());
                    result.push(Arc::clone(&candidates[path]));
                }
                Some(reference) => self.refusals.push(Error::refused(format!(
                    "{}: it references {reference}, which could not be fetched",
                    narinfo.full_path()
                ))),
            }
        }
        Ok(result)
    }
}

/// What was asked, and what is known of it.
pub type Answer = (RequestedPath, Result<Option<Arc<Candidate>>>);

/// A walk through a closure, breadth first, with many narinfos asked for at once.
pub struct ClosureWalk {
    cache: Arc<Cache>,
    recursive: bool,
    jobs: usize,
    seen: HashSet<StorePath>,
    waiting: VecDeque<RequestedPath>,
    asked: JoinSet<Answer>,
}

impl ClosureWalk {
    /// Begins at `goals`, each of which is there once.
    #[must_use]
    pub fn new(cache: Arc<Cache>, goals: Vec<RequestedPath>, recursive: bool, jobs: usize) -> Self {
        let path =
            |wanted: &RequestedPath| if let RequestedPath::Path(path) = wanted { Some(path.clone()) } else { None };
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
    pub async fn next(&mut self) -> Option<Result<Answer>> {
        while self.asked.len() < self.jobs
            && let Some(wanted) = self.waiting.pop_front()
        {
            let cache = Arc::clone(&self.cache);
            self.asked.spawn(async move {
                let candidate = cache.candidate(&wanted, &[]).await;
                (wanted, candidate.map(|candidate| candidate.map(Arc::new)))
            });
        }
        let Ok(answer) = self.asked.join_next().await? else {
            return Some(Err(Error::failed("a fetching task died")));
        };
        if self.recursive
            && let Ok(Some(candidate)) = &answer.1
        {
            let seen = &mut self.seen;
            let new = candidate.narinfo.references.iter().filter(|path| seen.insert((*path).clone())).cloned();
            self.waiting.extend(new.map(RequestedPath::Path));
        }
        Some(Ok(answer))
    }
}
