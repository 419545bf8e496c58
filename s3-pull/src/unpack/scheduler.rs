//! The order of the work: starts a download for each path as soon as it has been looked up, publishes it when it has
//! been unpacked and all of its references are published, and refuses it when one of them is refused.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use nar_pack::error::{Error, Result};
use nar_pack::store_path::StorePath;
use tokio::task::JoinSet;

use super::UnpackContext;
use super::one_path::{FetchedPath, UnpackError, fetch_path};
use crate::closure::{ClosureWalk, Lookup};
use crate::report::{Report, Status};
use crate::sources::{Candidate, RequestedPath};
use crate::staging::Published;

/// The maximum number of consecutive failed operations, or twice the number of jobs if that is more: an outage of a few
/// seconds fails all operations in flight.
const MAX_CONSECUTIVE_FAILURES: usize = 16;
const PROGRESS_INTERVAL: Duration = Duration::from_millis(200);

/// The state of a path.
enum State {
    /// Visible under the root.
    Published,
    /// Refused, or one of its references was. Nothing of it is left.
    Refused,
    /// Being downloaded, or waiting for its references.
    Pending {
        candidate: Arc<Candidate>,
        /// The number of references that are not published yet.
        missing: usize,
        /// Whether it is in its temporary directory, verified.
        unpacked: bool,
    },
}

type Download = (StorePath, Result<FetchedPath, UnpackError>);

pub(super) struct Scheduler<'a> {
    context: Arc<UnpackContext>,
    report: &'a mut Report,
    /// Paths to download.
    queue: VecDeque<StorePath>,
    downloads: JoinSet<Download>,
    states: HashMap<StorePath, State>,
    /// The paths that wait for each path that is not published yet.
    waiting: HashMap<StorePath, Vec<StorePath>>,
    consecutive_failures: usize,
}

impl<'a> Scheduler<'a> {
    pub(super) fn new(context: Arc<UnpackContext>, report: &'a mut Report) -> Self {
        Self {
            context,
            report,
            queue: VecDeque::new(),
            downloads: JoinSet::new(),
            states: HashMap::new(),
            waiting: HashMap::new(),
            consecutive_failures: 0,
        }
    }

    /// Unpacks all paths of the walk.
    pub(super) async fn run(mut self, mut walk: ClosureWalk) -> Result {
        let mut progress = tokio::time::interval(PROGRESS_INTERVAL);
        let mut walking = true;
        loop {
            self.start_downloads();
            tokio::select! {
                lookup = walk.next(), if walking => match lookup {
                    Some(lookup) => self.handle_lookup(lookup?, &walk)?,
                    None => walking = false,
                },
                Some(download) = self.downloads.join_next(), if !self.downloads.is_empty() => {
                    let download = download.map_err(|_| Error::panicked("download task"))?;
                    self.handle_download(download)?;
                }
                _ = progress.tick(), if walking || !self.downloads.is_empty() => {
                    self.report.progress(self.context.sources.received(), !walking);
                }
                else => break,
            }
        }
        self.refuse_remaining()
    }

    fn start_downloads(&mut self) {
        while self.downloads.len() < self.context.options.jobs
            && let Some(path) = self.queue.pop_front()
        {
            if let Some(State::Pending { candidate, .. }) = self.states.get(&path) {
                let (context, candidate) = (Arc::clone(&self.context), Arc::clone(candidate));
                self.downloads.spawn(async move { (path, fetch_path(&context, candidate).await) });
            }
        }
    }

    fn handle_lookup(&mut self, Lookup { requested, result }: Lookup, walk: &ClosureWalk) -> Result {
        match (result, requested) {
            (Ok(Some(candidate)), _) if self.states.contains_key(&candidate.narinfo.path) => Ok(()),
            (Ok(Some(candidate)), _) => self.add(&candidate, walk),
            (Ok(None), _) => Ok(()),
            (Err(error), RequestedPath::Path(path)) => self.refuse(&path, &error),
            (Err(error), requested @ RequestedPath::Hash(_)) => {
                self.count_failure(&error)?;
                self.report.refused(&self.context.sources, &requested, &error)
            }
        }
    }

    /// Queues a path for download, unless one of its references has been refused.
    fn add(&mut self, candidate: &Arc<Candidate>, walk: &ClosureWalk) -> Result {
        let path = candidate.narinfo.path.clone();
        self.report.found(&candidate.narinfo);
        self.consecutive_failures = 0;
        let mut missing = 0;
        let mut refused = None;
        for reference in candidate.narinfo.references.iter().filter(|reference| **reference != path) {
            if !self.context.options.require_references && !walk.includes(reference) {
                continue;
            }
            match self.states.get(reference) {
                Some(State::Published) => {}
                Some(State::Refused) => {
                    refused = Some(reference);
                    break;
                }
                Some(State::Pending { .. }) | None => {
                    missing += 1;
                    self.waiting.entry(reference.clone()).or_default().push(path.clone());
                }
            }
        }
        let pending = State::Pending { candidate: Arc::clone(candidate), missing, unpacked: false };
        self.states.insert(path.clone(), pending);
        if let Some(reference) = refused {
            return self.refuse_with(candidate, reference);
        }
        self.queue.push_back(path);
        Ok(())
    }

    fn handle_download(&mut self, (path, result): Download) -> Result {
        let Some(State::Pending { candidate, missing, unpacked }) = self.states.get_mut(&path) else {
            // One of its references was refused during the download.
            return self.context.staging.remove_temporary(&path);
        };
        match result {
            Ok(FetchedPath::Present) => {
                let candidate = Arc::clone(candidate);
                self.report.path(&self.context.sources, &candidate, Status::Present)?;
                self.mark_published(&path)
            }
            Ok(FetchedPath::Unpacked(from)) => {
                (*candidate, *unpacked) = (Arc::clone(&from), true);
                if *missing > 0 {
                    return Ok(());
                }
                self.publish(&from)?;
                self.mark_published(&path)
            }
            Err(UnpackError::OfPath(error)) => self.refuse(&path, &error),
            Err(UnpackError::OfRoot(error)) => Err(error),
        }
    }

    /// Moves a verified path from its temporary directory to its final location.
    fn publish(&mut self, candidate: &Candidate) -> Result {
        let status = match self.context.staging.publish(&candidate.narinfo.path)? {
            Published::New => Status::Fetched,
            Published::Existed => Status::Present,
        };
        self.report.path(&self.context.sources, candidate, status)
    }

    /// Marks a path as published, and publishes the paths that waited only for it.
    fn mark_published(&mut self, path: &StorePath) -> Result {
        let mut published = vec![path.clone()];
        while let Some(path) = published.pop() {
            for waiting in self.waiting.remove(&path).unwrap_or_default() {
                let Some(State::Pending { candidate, missing, unpacked }) = self.states.get_mut(&waiting) else {
                    continue;
                };
                *missing -= 1;
                if *missing > 0 || !*unpacked {
                    continue;
                }
                let candidate = Arc::clone(candidate);
                self.publish(&candidate)?;
                published.push(waiting);
            }
            self.states.insert(path, State::Published);
        }
        Ok(())
    }

    /// Counts consecutive failed operations, and fails when there are too many: the others would fail too, each after
    /// its timeout.
    fn count_failure(&mut self, error: &Error) -> Result {
        self.consecutive_failures = if error.is_refusal() { 0 } else { self.consecutive_failures + 1 };
        let max = MAX_CONSECUTIVE_FAILURES.max(2 * self.context.options.jobs);
        if self.consecutive_failures > max { Err(error.clone()) } else { Ok(()) }
    }

    /// Refuses a path, and the paths that wait for it.
    fn refuse(&mut self, path: &StorePath, error: &Error) -> Result {
        self.count_failure(error)?;
        if !self.discard(path)? {
            return Ok(());
        }
        self.report.refused(&self.context.sources, &RequestedPath::Path(path.clone()), error)?;
        self.refuse_waiting(path)
    }

    /// Refuses a path because of one of its references, and the paths that wait for it.
    fn refuse_with(&mut self, candidate: &Candidate, reference: &StorePath) -> Result {
        let path = &candidate.narinfo.path;
        if !self.discard(path)? {
            return Ok(());
        }
        self.report.refused_with(candidate, reference)?;
        self.refuse_waiting(path)
    }

    /// Refuses the paths that wait for a path that was refused, and the paths that wait for those.
    fn refuse_waiting(&mut self, path: &StorePath) -> Result {
        let mut refused = vec![path.clone()];
        while let Some(reference) = refused.pop() {
            for path in self.waiting.remove(&reference).unwrap_or_default() {
                let Some(State::Pending { candidate, .. }) = self.states.get(&path) else { continue };
                let candidate = Arc::clone(candidate);
                self.discard(&path)?;
                self.report.refused_with(&candidate, &reference)?;
                refused.push(path);
            }
        }
        Ok(())
    }

    /// Marks a path as refused and removes its temporary directory. Returns whether it was not refused before.
    fn discard(&mut self, path: &StorePath) -> Result<bool> {
        let before = self.states.insert(path.clone(), State::Refused);
        if let Some(State::Pending { unpacked: true, .. }) = before {
            self.context.staging.remove_temporary(path)?;
        }
        Ok(!matches!(before, Some(State::Refused)))
    }

    /// Refuses the paths that still wait when all downloads have ended: they wait for a path that is not in the cache,
    /// or for a cycle of references.
    fn refuse_remaining(&mut self) -> Result {
        let mut remaining: Vec<Arc<Candidate>> = Vec::new();
        for state in self.states.values() {
            if let State::Pending { candidate, .. } = state {
                remaining.push(Arc::clone(candidate));
            }
        }
        remaining.sort_unstable_by(|a, b| a.narinfo.path.cmp(&b.narinfo.path));
        for candidate in &remaining {
            let references = &candidate.narinfo.references;
            // Only what it waits for: a reference outside of the walk may be missing.
            let is_missing = |path: &StorePath| !self.states.contains_key(path) && self.waiting.contains_key(path);
            if let Some(reference) = references.iter().find(|reference| is_missing(reference)) {
                self.refuse_with(candidate, reference)?;
            }
        }
        for candidate in &remaining {
            while let Some(path) = self.find_cycle(&candidate.narinfo.path) {
                let path_in_store = self.context.sources.store_dir.join(&path);
                self.refuse(&path, &Error::refused(format!("{path_in_store}: its references form a cycle")))?;
            }
        }
        Ok(())
    }

    /// Returns a path of a cycle that `start` depends on, or is part of. Returns none if it does not wait.
    fn find_cycle(&self, start: &StorePath) -> Option<StorePath> {
        let mut seen = HashSet::new();
        let mut path = start;
        while seen.insert(path) {
            let Some(State::Pending { candidate, .. }) = self.states.get(path) else { return None };
            let mut references = candidate.narinfo.references.iter().filter(|reference| *reference != path);
            let is_pending =
                |reference: &&StorePath| matches!(self.states.get(*reference), Some(State::Pending { .. }));
            let Some(next) = references.find(is_pending) else { break };
            path = next;
        }
        Some(path.clone())
    }
}
