//! The caches of one pull: the order in which they are tried, and the lookup of a narinfo in them. A narinfo leaves
//! this module only after its store directory, hash part, name and signatures have been checked. A cache from which
//! something could not be read is tried last from then on.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use cache_sign::keys::key_name;
use cache_sign::trust::{SignatureStatus, TrustedKeys};
use nar_pack::error::{Context, Error, Result};
use nar_pack::process;
use nar_pack::store_path::{HashPart, StoreDir, StorePath};
use narinfo_gen::archive::narinfo_key;
use narinfo_gen::cache_info::CacheInfo;
use narinfo_gen::extras::BuildTraceEntry;
use narinfo_gen::narinfo::{self, NarInfo};

use crate::TOOL;
use s3_push::remote::etag::Md5Tag;
use s3_push::remote::known_texts::KnownTexts;
use s3_push::remote::pins::{self, PinName, parse_pin};
use s3_push::remote::{Remote, RemoteOptions};

/// The caches in the order in which they are tried, and the checks that a narinfo must pass.
pub struct Sources {
    remotes: Vec<Arc<Remote>>,
    /// The error of the first cache that was skipped.
    skipped: Option<Error>,
    /// The keys that must have signed a narinfo; none when signatures are not verified.
    trusted: Option<TrustedKeys>,
    /// The store directory of all paths.
    pub store_dir: StoreDir,
    /// The hint for a path without a signature.
    unsigned_path_hint: Option<&'static str>,
    /// Whether something could not be read from each remote.
    failing: Vec<AtomicBool>,
    /// Narinfos of an earlier run.
    known: Option<KnownTexts>,
    /// The MD5 hashes of the narinfos of each remote, sorted by hash part. Only after [`Sources::list`] with known texts.
    tags: Vec<OnceLock<Vec<(HashPart, Md5Tag)>>>,
}

/// A verified narinfo, and the cache that has its NAR.
#[derive(Debug, Clone)]
pub struct Candidate {
    /// The narinfo.
    pub narinfo: NarInfo,
    /// The number of the cache that sent it.
    source: usize,
}

/// A path to look up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RequestedPath {
    /// A path, which must have exactly this name in the cache.
    Path(StorePath),
    /// Any path with this hash part, if there is one.
    Hash(HashPart),
}

impl RequestedPath {
    /// Returns the hash part.
    #[must_use]
    pub fn hash_part(&self) -> HashPart {
        match self {
            Self::Path(path) => path.hash_part(),
            Self::Hash(hash) => *hash,
        }
    }
}

impl Sources {
    /// Opens the caches and keeps those that respond and have the right store directory. A cache without
    /// `nix-cache-info` is kept.
    ///
    /// # Errors
    /// Returns a usage error for a malformed URL, and the error of the first cache when none is left.
    pub async fn open(
        urls: &[String],
        options: RemoteOptions<'_>,
        trusted: Option<TrustedKeys>,
        store_dir: StoreDir,
    ) -> Result<Self> {
        let mut opened = Vec::with_capacity(urls.len());
        for url in urls {
            match Remote::open(url, options).await {
                Err(error) if error.is_usage() => return Err(error),
                remote => opened.push(remote),
            }
        }
        let check = async |remote: Result<Remote>| {
            let remote = remote?;
            remote.cache_info(&store_dir).await.map(|_| remote)
        };
        let checked = futures_util::future::join_all(opened.into_iter().map(check)).await;
        let (mut remotes, mut first_error) = (Vec::with_capacity(checked.len()), None);
        for remote in checked {
            match remote {
                Ok(remote) => remotes.push(Arc::new(remote)),
                Err(error) => {
                    if urls.len() > 1 {
                        process::print_message(TOOL, format!("warning: skipping a cache: {error}"));
                    }
                    first_error.get_or_insert(error);
                }
            }
        }
        match first_error {
            Some(error) if remotes.is_empty() => Err(error),
            first_error => {
                let failing = remotes.iter().map(|_| AtomicBool::new(false)).collect();
                let tags = remotes.iter().map(|_| OnceLock::new()).collect();
                Ok(Self {
                    remotes,
                    skipped: first_error,
                    trusted,
                    store_dir,
                    unsigned_path_hint: None,
                    failing,
                    known: None,
                    tags,
                })
            }
        }
    }

    /// Requires that no cache was skipped: what is not found may be there.
    ///
    /// # Errors
    /// Returns the error of the first cache that was skipped.
    pub fn require_all(&self) -> Result {
        self.skipped.clone().map_or(Ok(()), Err)
    }

    /// Returns the error for something that no cache has. It may be in a cache that could not be read.
    fn missing(&self, refusal: Error) -> Error {
        match &self.skipped {
            Some(skipped) if !skipped.is_refusal() => {
                Error::failed(format!("{}, but one was skipped: {}", refusal.message(), skipped.message()))
            }
            _ => refusal,
        }
    }

    /// Sets the hint of the error for a path without a signature.
    #[must_use]
    pub fn with_unsigned_path_hint(mut self, hint: Option<&'static str>) -> Self {
        self.unsigned_path_hint = hint;
        self
    }

    /// Sets the narinfos of an earlier run, which are not read again if they are listed unchanged.
    #[must_use]
    pub fn with_known(mut self, known: Option<KnownTexts>) -> Self {
        self.known = known;
        self
    }

    /// Returns the paths of a pin, from the first cache that has it.
    ///
    /// # Errors
    /// Refuses a pin that no cache has, or that is not a path list. Fails if it cannot be read.
    pub async fn read_pin(&self, name: &PinName) -> Result<Vec<StorePath>> {
        let key = name.key();
        let mut first_error: Option<Error> = None;
        for (source, remote) in self.remotes.iter().enumerate() {
            let read = async {
                let text = remote.text(&key, pins::MAX_SIZE).await?;
                text.map(|text| parse_pin(&text, &self.store_dir).context(|| remote.display_url(&key))).transpose()
            };
            match read.await {
                Ok(Some(paths)) => return Ok(paths),
                Ok(None) => {}
                Err(error) => {
                    if error.is_refusal() && source + 1 < self.remotes.len() {
                        process::print_message(TOOL, format!("warning: {error}; the next cache is tried"));
                    }
                    first_error = Some(self.note_error(source, first_error, error));
                }
            }
        }
        let url = self.remotes.first().map_or_else(String::new, |remote| remote.display_url(&key));
        let missing =
            || Error::refused(format!("{url}: there is no such pin")).with_hint("'s3-pull pins' lists the pins");
        Err(first_error.unwrap_or_else(|| self.missing(missing())))
    }

    /// Returns the cache that has the NAR of a candidate.
    #[must_use]
    pub fn remote(&self, candidate: &Candidate) -> &Arc<Remote> {
        &self.remotes[candidate.source]
    }

    /// Returns all caches, in order of priority.
    #[must_use]
    pub fn remotes(&self) -> &[Arc<Remote>] {
        &self.remotes
    }

    /// Returns the `nix-cache-info` of the first cache, if it has one.
    ///
    /// # Errors
    /// Fails when it cannot be read.
    pub async fn cache_info(&self) -> Result<Option<CacheInfo>> {
        match self.remotes.first() {
            Some(remote) => remote.cache_info(&self.store_dir).await,
            None => Ok(None),
        }
    }

    /// Requires that the signatures of a build trace entry by trusted keys are valid. Nix accepts an entry without
    /// signatures, since it trusts its path by itself.
    ///
    /// # Errors
    /// Refuses an entry with a wrong signature.
    pub fn check_build_trace(&self, entry: &BuildTraceEntry) -> Result {
        let Some(trusted) = &self.trusted else { return Ok(()) };
        let is_wrong = |signature: &&String| trusted.status_of(&entry.fingerprint, signature) == SignatureStatus::Wrong;
        match entry.signatures.iter().find(is_wrong) {
            Some(signature) => Err(Error::refused(format!("wrong signature by {}", key_name(signature)))),
            None => Ok(()),
        }
    }

    /// Returns the number of bytes received from all caches.
    #[must_use]
    pub fn received(&self) -> u64 {
        self.remotes.iter().map(|remote| remote.bytes_received()).sum()
    }

    /// Lists the paths of all caches, each once.
    ///
    /// # Errors
    /// Fails when a cache cannot be listed, as over HTTP, or was skipped.
    pub async fn list(&self) -> Result<Vec<RequestedPath>> {
        self.require_all()?;
        let mut hashes = Vec::new();
        for (remote, tags) in self.remotes.iter().zip(&self.tags) {
            let listed = Box::pin(remote.list_hash_parts()).await?;
            hashes.extend(listed.iter().map(|(hash, _)| *hash));
            if self.known.is_some() {
                let known = listed.into_iter().filter_map(|(hash, tag)| Some((hash, tag?)));
                // A second listing would be the same but newer; the first one is kept.
                let _ = tags.set(known.collect());
            }
        }
        hashes.sort_unstable();
        hashes.dedup();
        Ok(hashes.into_iter().map(RequestedPath::Hash).collect())
    }

    /// Looks up a path in the caches in their order, and returns the first verified narinfo. Returns none if a path
    /// that was requested by its hash part is in no cache: it was removed after the cache was listed.
    ///
    /// # Errors
    /// Returns the first error when no cache has a good narinfo; a failed operation is preferred to a refusal.
    pub async fn find(&self, requested: &RequestedPath) -> Result<Option<Candidate>> {
        self.find_except(requested, &[]).await
    }

    /// Marks the cache of a candidate as failing. If there are others, it is tried last from now on.
    pub fn mark_failing(&self, candidate: &Candidate, error: &Error) {
        self.mark_source_failing(candidate.source, error);
    }

    /// Returns the candidate, or one from another cache if its cache is failing.
    pub async fn prefer_working(&self, candidate: Arc<Candidate>) -> Arc<Candidate> {
        if !self.failing[candidate.source].load(Ordering::Relaxed) {
            return candidate;
        }
        self.find_alternative(&candidate, &[candidate.source]).await.map_or(candidate, Arc::new)
    }

    fn mark_source_failing(&self, source: usize, error: &Error) {
        if self.remotes.len() > 1 && !self.failing[source].swap(true, Ordering::Relaxed) {
            process::print_message(TOOL, format!("warning: {error}; this cache is tried last from now on"));
        }
    }

    /// Marks a cache as failing if its error is that of an operation. Returns the error to report of those so far: the first
    /// one, but a failed operation rather than a refusal.
    fn note_error(&self, source: usize, first: Option<Error>, error: Error) -> Error {
        if !error.is_refusal() {
            self.mark_source_failing(source, &error);
        }
        match first {
            Some(first) if !first.is_refusal() || error.is_refusal() => first,
            _ => error,
        }
    }

    /// Returns the caches that are not among `tried`, in the order in which they are tried.
    fn untried(&self, tried: &[usize]) -> Vec<usize> {
        let (failing, working): (Vec<usize>, Vec<usize>) = (0..self.remotes.len())
            .filter(|source| !tried.contains(source))
            .partition(|source| self.failing[*source].load(Ordering::Relaxed));
        [working, failing].concat()
    }

    /// Looks up the path of a candidate in the caches that are not among `tried`.
    async fn find_alternative(&self, candidate: &Candidate, tried: &[usize]) -> Option<Candidate> {
        let requested = RequestedPath::Path(candidate.narinfo.path.clone());
        let other = self.find_except(&requested, tried).await.ok()??;
        // The closure was walked along the references of the first narinfo.
        (other.narinfo.references == candidate.narinfo.references).then_some(other)
    }

    async fn find_except(&self, requested: &RequestedPath, tried: &[usize]) -> Result<Option<Candidate>> {
        let mut first_error: Option<Error> = None;
        for source in self.untried(tried) {
            match self.fetch_narinfo(source, requested).await {
                Ok(Some(narinfo)) => return Ok(Some(Candidate { narinfo, source })),
                Ok(None) => {}
                Err(error) => {
                    first_error = Some(self.note_error(source, first_error, error));
                }
            }
        }
        match first_error {
            Some(error) => Err(error),
            None => self.not_found(requested),
        }
    }

    fn not_found(&self, requested: &RequestedPath) -> Result<Option<Candidate>> {
        match requested {
            RequestedPath::Path(path) => {
                let several = self.remotes.len() > 1 || self.skipped.is_some();
                let searched = if several { "any of the caches" } else { "the cache" };
                let refusal = Error::refused(format!("{}: not found in {searched}", self.store_dir.join(path)));
                Err(self.missing(refusal))
            }
            // The narinfo was listed. A client that may list a bucket gets 404 for a missing object, so 403 means
            // forbidden.
            RequestedPath::Hash(hash) if self.remotes.iter().any(|remote| remote.was_forbidden()) => {
                Err(Error::failed(format!("{hash}.narinfo: listed, but reading it is forbidden"))
                    .with_hint("reading requires s3:GetObject"))
            }
            RequestedPath::Hash(_) => Ok(None),
        }
    }

    /// Returns the text of a narinfo that is known from an earlier run and listed unchanged.
    fn known_text(&self, source: usize, hash: HashPart) -> Option<String> {
        let (known, tags) = (self.known.as_ref()?, self.tags[source].get()?);
        let found = tags.binary_search_by_key(&hash, |(hash, _)| *hash).ok()?;
        known.get(tags[found].1)
    }

    async fn fetch_narinfo(&self, source: usize, requested: &RequestedPath) -> Result<Option<NarInfo>> {
        let (remote, hash) = (&self.remotes[source], requested.hash_part());
        let key = narinfo_key(hash);
        let text = match self.known_text(source, hash) {
            Some(text) => Some(text),
            None => remote.text(&key, narinfo::MAX_SIZE).await?,
        };
        let Some(text) = text else { return Ok(None) };
        let narinfo = NarInfo::parse_of(hash, &text, &self.store_dir).context(|| remote.display_url(&key))?;
        if let RequestedPath::Path(path) = requested
            && narinfo.path != *path
        {
            let (path, other) = (self.store_dir.join(path), self.store_dir.join(&narinfo.path));
            let message = format!("{path}: the cache has another name for this hash: {other}");
            return Err(Error::refused(message));
        }
        if let Some(trusted) = &self.trusted {
            let hint = self.unsigned_path_hint.filter(|_| narinfo.signatures.is_empty());
            trusted.require(&narinfo).map_err(|error| hint.into_iter().fold(error, Error::with_hint))?;
        }
        Ok(Some(narinfo))
    }
}

/// The candidates for one path, cache by cache, until one of them can be fetched and verified.
pub struct Alternatives {
    /// The current candidate.
    pub candidate: Arc<Candidate>,
    tried: Vec<usize>,
    first_error: Option<Error>,
}

impl Alternatives {
    /// Starts with `candidate`.
    #[must_use]
    pub fn new(candidate: Arc<Candidate>) -> Self {
        Self { candidate, tried: Vec::new(), first_error: None }
    }

    /// Moves on to the next cache after the current candidate failed with `error`.
    ///
    /// # Errors
    /// Returns the error of the first candidate when there is no other cache.
    pub async fn next(&mut self, sources: &Sources, error: Error) -> Result {
        let first_error = self.first_error.get_or_insert(error);
        self.tried.push(self.candidate.source);
        let other = sources.find_alternative(&self.candidate, &self.tried).await.ok_or_else(|| first_error.clone())?;
        self.candidate = Arc::new(other);
        Ok(())
    }
}
