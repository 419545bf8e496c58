//! Unpacking paths under a root: many at the same time, while the closure is still being walked. A path is published
//! after the paths that it references, and only after it has been verified.
//!
//! [`scheduler`] decides which path is downloaded, published or refused; [`one_path`] downloads one path.

mod one_path;
mod scheduler;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nar_pack::error::{Error, Result};
use nar_pack::root_dir::OpenDir;
use s3_push::remote::interrupts::Interrupts;
use tokio::sync::mpsc;

use crate::closure::{ClosureWalk, Lookup, ResolvedClosure};
use crate::report::{Report, Status};
use crate::sources::Sources;
use crate::staging::{Owner, Staging, is_present, open_existing};
use scheduler::Scheduler;

/// The time that threads get to stop after the pull was aborted, before their temporary directories are left behind.
const CANCEL_TIMEOUT: Duration = Duration::from_secs(5);

/// How paths are unpacked.
#[derive(Debug, Clone, Copy)]
pub struct UnpackOptions {
    /// The maximum number of concurrent downloads.
    pub jobs: usize,
    /// Whether a path is refused when one of its references is not fetched, even one that was not requested.
    pub require_references: bool,
    /// Whether the NarHash of paths that are already present is verified.
    pub verify_existing: bool,
    /// Whether names that differ only in case are renamed.
    pub case_hack: bool,
    /// The owner of the files, if not the current user.
    pub owner: Option<Owner>,
    /// Whether nothing is fetched.
    pub dry_run: bool,
}

/// The state shared by all downloads. The temporary directories are removed when the last download has dropped it.
struct UnpackContext {
    sources: Arc<Sources>,
    staging: Staging,
    options: UnpackOptions,
    /// Set when the pull is aborted.
    canceled: AtomicBool,
    /// Dropped last, so that the receiver learns when everything else is gone.
    _alive: mpsc::Sender<()>,
}

/// Unpacks the paths of a walk below `root`. Paths that depend on a refused path are refused too; all others are
/// unpacked.
///
/// # Errors
/// Fails when a path cannot be written, and after too many consecutive failed reads. Refusals are passed to `report`.
pub async fn unpack(
    walk: ClosureWalk,
    sources: &Arc<Sources>,
    root: &Path,
    options: UnpackOptions,
    report: &mut Report,
) -> Result {
    if options.dry_run {
        let store = open_existing(root, &sources.store_dir)?;
        return dry_run(walk, sources, store.as_ref(), options.require_references, report).await;
    }
    let (root, store_dir) = (root.to_owned(), sources.store_dir.clone());
    let staging = tokio::task::spawn_blocking(move || Staging::begin(&root, &store_dir)).await;
    let staging = staging.map_err(|_| Error::panicked("staging task"))??;
    let (alive, mut all_dropped) = mpsc::channel(1);
    let sources = Arc::clone(sources);
    let context =
        Arc::new(UnpackContext { sources, staging, options, canceled: AtomicBool::new(false), _alive: alive });
    let mut interrupts = Interrupts::listen()?;
    let finished = tokio::select! {
        result = Scheduler::new(Arc::clone(&context), report).run(walk) => Ok(result),
        signal = interrupts.next() => Err(signal),
    };
    let result = finished.unwrap_or_else(|signal| Err(report.interruption(signal)));
    context.canceled.store(true, Ordering::Relaxed);
    drop(context);
    // A second signal ends the wait.
    tokio::select! {
        _ = all_dropped.recv() => {}
        _ = interrupts.next() => {}
        () = tokio::time::sleep(CANCEL_TIMEOUT) => {}
    }
    result
}

/// Reports what would be fetched.
async fn dry_run(
    mut walk: ClosureWalk,
    sources: &Sources,
    store: Option<&OpenDir>,
    require_references: bool,
    report: &mut Report,
) -> Result {
    let mut closure = ResolvedClosure::default();
    while let Some(lookup) = walk.next().await {
        let Lookup { requested, result } = lookup?;
        match result {
            Ok(Some(candidate)) => closure.insert(candidate),
            Ok(None) => {}
            Err(error) => report.refused(sources, &requested, &error)?,
        }
    }
    let candidates =
        closure.in_order(require_references, |candidate, reference| report.refused_with(candidate, reference))?;
    for candidate in candidates {
        let present = store.is_some_and(|store| is_present(store, &candidate.narinfo.path));
        report.path(sources, &candidate, if present { Status::Present } else { Status::WouldFetch })?;
    }
    Ok(())
}
