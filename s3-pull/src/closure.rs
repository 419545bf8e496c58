//! The walk through a closure: breadth first along the references, with many concurrent narinfo lookups. [`Sources`]
//! verifies each narinfo; the caller decides what to do with it.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;

use nar_pack::error::{Error, Result};
use nar_pack::references::references_first;
use nar_pack::store_path::StorePath;
use s3_push::remote::progress::Progress;
use tokio::task::JoinSet;

use crate::refusals::Refusals;
use crate::sources::{Candidate, RequestedPath, Sources};

/// The result of one lookup.
pub struct Lookup {
    /// The path that was looked up.
    pub requested: RequestedPath,
    /// Its narinfo; none if a path that was listed no longer exists.
    pub result: Result<Option<Arc<Candidate>>>,
}

/// A walk through a closure.
pub struct ClosureWalk {
    sources: Arc<Sources>,
    recursive: bool,
    max_lookups: usize,
    /// Paths that were requested by name or found as references.
    seen: HashSet<StorePath>,
    pending: VecDeque<RequestedPath>,
    lookups: JoinSet<Lookup>,
}

impl ClosureWalk {
    /// Starts at `requested`, which must not contain duplicates. Follows references if `recursive` is set.
    #[must_use]
    pub fn new(sources: Arc<Sources>, requested: Vec<RequestedPath>, recursive: bool, max_lookups: usize) -> Self {
        let path = |requested: &RequestedPath| match requested {
            RequestedPath::Path(path) => Some(path.clone()),
            RequestedPath::Hash(_) => None,
        };
        let seen = requested.iter().filter_map(path).collect();
        Self { sources, recursive, max_lookups, seen, pending: requested.into(), lookups: JoinSet::new() }
    }

    /// Returns whether a path is part of the walk: it has been looked up or will be.
    #[must_use]
    pub fn includes(&self, path: &StorePath) -> bool {
        self.seen.contains(path)
    }

    /// Returns the next lookup that has completed, or none at the end of the walk. Cancel safe.
    ///
    /// # Errors
    /// Fails when a task panicked.
    pub async fn next(&mut self) -> Option<Result<Lookup>> {
        while self.lookups.len() < self.max_lookups
            && let Some(requested) = self.pending.pop_front()
        {
            let sources = Arc::clone(&self.sources);
            self.lookups.spawn(async move {
                let result = sources.find(&requested).await.map(|candidate| candidate.map(Arc::new));
                Lookup { requested, result }
            });
        }
        let Ok(lookup) = self.lookups.join_next().await? else {
            return Some(Err(Error::panicked("lookup task")));
        };
        if self.recursive
            && let Ok(Some(candidate)) = &lookup.result
        {
            let seen = &mut self.seen;
            let new = candidate.narinfo.references.iter().filter(|path| seen.insert((*path).clone())).cloned();
            self.pending.extend(new.map(RequestedPath::Path));
        }
        Some(Ok(lookup))
    }
}

/// The verified narinfos of a closure.
#[derive(Default)]
pub struct ResolvedClosure {
    candidates: HashMap<StorePath, Arc<Candidate>>,
}

impl ResolvedClosure {
    /// Collects the narinfos of a whole walk. Paths that are missing or refused are recorded in `refusals`.
    ///
    /// # Errors
    /// Fails when a cache cannot be read.
    pub async fn collect(mut walk: ClosureWalk, refusals: &mut Refusals) -> Result<Self> {
        let progress = Progress::of_objects("narinfos", 0);
        let mut closure = Self::default();
        while let Some(lookup) = walk.next().await {
            progress.increment();
            let Lookup { requested, result } = lookup?;
            match result {
                Ok(Some(candidate)) => closure.insert(candidate),
                Ok(None) => {}
                Err(error) if error.is_refusal() => refusals.add(requested.hash_part(), &error),
                Err(error) => return Err(error),
            }
        }
        Ok(closure)
    }

    /// Adds a narinfo.
    pub fn insert(&mut self, candidate: Arc<Candidate>) {
        self.candidates.insert(candidate.narinfo.path.clone(), candidate);
    }

    /// Returns the narinfos in an order in which references come first. If `require_references` is set, a path without
    /// all of its references is passed to `refuse` with the missing reference instead.
    ///
    /// # Errors
    /// Refuses references that form a cycle, and returns errors of `refuse`.
    pub fn in_order(
        &self,
        require_references: bool,
        mut refuse: impl FnMut(&Candidate, &StorePath) -> Result,
    ) -> Result<Vec<Arc<Candidate>>> {
        let mut paths: Vec<StorePath> = self.candidates.keys().cloned().collect();
        paths.sort_unstable();
        let order = references_first(&paths, |path| {
            self.candidates.get(path).map_or(&[], |candidate| &candidate.narinfo.references)
        })?;
        let mut complete = HashSet::new();
        let mut result = Vec::with_capacity(order.len());
        for path in order {
            let candidate = &self.candidates[path];
            let references = &candidate.narinfo.references;
            let missing = references.iter().find(|reference| *reference != path && !complete.contains(*reference));
            if let Some(reference) = missing.filter(|_| require_references) {
                refuse(candidate, reference)?;
            } else {
                complete.insert(path.clone());
                result.push(Arc::clone(candidate));
            }
        }
        Ok(result)
    }
}
