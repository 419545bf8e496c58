//! Which paths are to be fetched: narinfos, checked before anything else is looked at.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use cache_sign::trust::TrustedKeys;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use nar_pack::stage::{Doing, Failure, Outcome};
use nar_pack::store_path::{HashPart, StoreDir, StorePath};
use narinfo_gen::narinfo::{self, NarInfo};

use crate::source::Source;

/// A cache, and what makes its word good.
pub struct Cache {
    /// Where it is read from.
    pub source: Source,
    /// Who must have signed; none when signatures are not checked.
    pub trusted: Option<TrustedKeys>,
    /// The store directory of its paths.
    pub store_dir: StoreDir,
}

/// Narinfos that were fetched and checked, and what could not be.
#[derive(Default)]
pub struct Found {
    /// The narinfos, by path.
    pub narinfos: HashMap<StorePath, Arc<NarInfo>>,
    /// Why others are not among them.
    pub refusals: Vec<Failure>,
}

impl Cache {
    /// Fetches the narinfo with that hash part and checks it: store directory, hash part, signatures.
    ///
    /// # Errors
    /// Refuses one that is malformed, of another path, or not trusted; fails where the source does.
    pub async fn narinfo(&self, hash: HashPart) -> Outcome<Option<NarInfo>> {
        let key = format!("{hash}.narinfo");
        let Some(text) = self.source.text(&key, narinfo::MAX_SIZE).await? else { return Ok(None) };
        let narinfo = NarInfo::parse(&text, &self.store_dir).doing(|| self.source.shown(&key))?;
        if narinfo.path.hash_part() != hash {
            return Err(Failure::refused(format!(
                "{}: it describes another path, {}",
                self.source.shown(&key),
                narinfo.path
            )));
        }
        if let Some(trusted) = &self.trusted {
            trusted.require(&narinfo)?;
        }
        Ok(Some(narinfo))
    }

    /// As [`Cache::narinfo`] for a path that must be there, under exactly this name.
    async fn narinfo_of(&self, path: StorePath) -> Outcome<NarInfo> {
        match self.narinfo(path.hash_part()).await? {
            Some(narinfo) if narinfo.path == path => Ok(narinfo),
            Some(narinfo) => {
                Err(Failure::refused(format!("{path}: the cache has another name under this hash, {}", narinfo.path)))
            }
            None => Err(Failure::refused(format!("{}: the cache does not have it", self.store_dir.join(&path)))),
        }
    }

    /// Fetches the narinfos of these paths, and if `recursive` of all that they reference; `jobs` at once.
    ///
    /// # Errors
    /// Fails where the source does; what is missing or refused is in [`Found::refusals`].
    pub async fn discover(&self, paths: Vec<StorePath>, recursive: bool, jobs: usize) -> Outcome<Found> {
        let mut found = Found::default();
        let mut seen: HashSet<StorePath> = paths.iter().cloned().collect();
        let mut waiting: Vec<StorePath> = paths;
        waiting.reverse();
        let mut asked = FuturesUnordered::new();
        loop {
            while asked.len() < jobs
                && let Some(path) = waiting.pop()
            {
                asked.push(self.narinfo_of(path));
            }
            match asked.next().await {
                None => return Ok(found),
                Some(Ok(narinfo)) => {
                    if recursive {
                        waiting.extend(narinfo.references.iter().filter(|path| seen.insert((*path).clone())).cloned());
                    }
                    found.narinfos.insert(narinfo.path.clone(), Arc::new(narinfo));
                }
                Some(Err(failure)) if failure.is_refusal() => found.refusals.push(failure),
                Some(Err(failure)) => return Err(failure),
            }
        }
    }
}
