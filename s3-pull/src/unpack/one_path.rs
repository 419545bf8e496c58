//! The download of one path into its temporary directory. It moves on to the next cache when one has no good copy, and
//! distinguishes errors of the path, after which others can still be unpacked, from errors of the root.

use std::io::{self, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use nar_pack::error::{Error, Result};
use nar_pack::nar::CaseHack;
use narinfo_gen::narinfo::NarInfo;
use s3_push::remote::retry::Backoff;

use super::UnpackContext;
use crate::fetch;
use crate::partial_nar::{PartialNar, PartialReader};
use crate::sources::{Alternatives, Candidate};
use s3_push::remote::transfer::{AbortOnDrop, Body, ResumePoint};

/// The result of a download.
pub(super) enum FetchedPath {
    /// The path was already present under the root.
    Present,
    /// The path is in its temporary directory. The candidate is the one that it was fetched from.
    Unpacked(Arc<Candidate>),
}

/// Why a path was not unpacked.
pub(super) enum UnpackError {
    /// The path is bad or could not be read. Others may be good.
    OfPath(Error),
    /// The path could not be written. Others cannot be written either.
    OfRoot(Error),
}

/// Unpacks a path into its temporary directory, unless it is present. Tries the caches one after the other.
pub(super) async fn fetch_path(
    context: &Arc<UnpackContext>,
    candidate: Arc<Candidate>,
) -> Result<FetchedPath, UnpackError> {
    let narinfo = &candidate.narinfo;
    if context.staging.is_present(&narinfo.path) {
        if context.options.verify_existing {
            let (context, narinfo) = (Arc::clone(context), narinfo.clone());
            let verified = tokio::task::spawn_blocking(move || verify_existing(&context, &narinfo)).await;
            let panicked = |_| UnpackError::OfRoot(Error::panicked("verification task"));
            verified.map_err(panicked)?.map_err(UnpackError::OfPath)?;
        }
        // Another pull has completed what an earlier one began.
        if let Ok(Some(partial)) = context.staging.open_partial(narinfo) {
            partial.remove();
        }
        return Ok(FetchedPath::Present);
    }
    let sources = &context.sources;
    let mut alternatives = Alternatives::new(sources.prefer_working(candidate).await);
    loop {
        let error = match download(context, &alternatives.candidate).await {
            Ok(()) => return Ok(FetchedPath::Unpacked(alternatives.candidate)),
            Err(UnpackError::OfPath(error)) => error,
            Err(error) => return Err(error),
        };
        if !error.is_refusal() {
            sources.mark_failing(&alternatives.candidate, &error);
        }
        alternatives.next(sources, error).await.map_err(UnpackError::OfPath)?;
    }
}

/// Refuses a path that is present with different contents.
fn verify_existing(context: &UnpackContext, narinfo: &NarInfo) -> Result {
    let staging = &context.staging;
    let place = staging.place(&narinfo.path);
    let place = place.display();
    let refused = |message: String| {
        Error::refused(format!("{}: {message}; it was not changed", narinfo.full_path()))
            .with_hint(format!("remove {place} and run s3-pull again to replace it"))
    };
    let found = staging
        .nar_hash(&narinfo.path, context.options.case_hack)
        .map_err(|error| refused(error.message().to_owned()))?;
    let expected = narinfo.nar_hash;
    if found == expected {
        return Ok(());
    }
    Err(refused(format!("{place} has different contents: expected NarHash {expected}, found {found}")))
}

/// Unpacks a path from one cache. An interrupted download is retried, and continued where it stopped if the NAR is
/// large.
async fn download(context: &Arc<UnpackContext>, candidate: &Arc<Candidate>) -> Result<(), UnpackError> {
    let mut backoff = Backoff::new(context.sources.remote(candidate).max_attempts());
    let partial = context.staging.open_partial(&candidate.narinfo).map_err(UnpackError::OfRoot)?;
    loop {
        let from = partial.as_ref().and_then(|partial| partial.resume_point());
        let nar = open(context, candidate, partial.as_ref(), from.as_ref()).await.map_err(|error| {
            // Nothing to continue, or nothing to continue with.
            if let Some(partial) = partial.as_ref().filter(|_| from.is_none() || error.is_refusal()) {
                partial.remove();
            }
            UnpackError::OfPath(error)
        })?;
        // Dropped with this task when the pull is aborted.
        let OpenNar { reader, broken, is_resumed, abort: _abort } = nar;
        let result = unpack_nar(reader, candidate, context).await;
        let is_broken = broken.load(Ordering::Acquire);
        match (&result, &partial) {
            (Err(_), Some(partial))
                if (is_broken || context.canceled.load(Ordering::Relaxed)) && partial.resume_point().is_some() => {}
            // The bytes of the earlier download may be the bad ones.
            (Err(error), Some(partial)) if is_resumed && error.is_refusal() => {
                partial.clear();
                continue;
            }
            (_, Some(partial)) => partial.remove(),
            (_, None) => {}
        }
        let Err(error) = result else { return Ok(()) };
        if is_broken && backoff.next_attempt().await {
            continue;
        }
        return Err(if is_broken || error.is_refusal() {
            UnpackError::OfPath(error)
        } else {
            UnpackError::OfRoot(error)
        });
    }
}

/// A compressed NAR whose download has started.
struct OpenNar {
    reader: Box<dyn Read + Send>,
    /// Set if the download was interrupted.
    broken: Arc<AtomicBool>,
    /// Whether its first bytes are those of an earlier download.
    is_resumed: bool,
    /// Aborts the transfer when it is dropped.
    abort: Option<AbortOnDrop>,
}

/// Starts or continues the download of a NAR.
async fn open(
    context: &UnpackContext,
    candidate: &Candidate,
    partial: Option<&Arc<PartialNar>>,
    from: Option<&ResumePoint>,
) -> Result<OpenNar> {
    if let (Some(partial), Some(from)) = (partial, from)
        && let Some(resumed) = fetch::resume_nar(&context.sources, candidate, from).await?
    {
        let broken = resumed.as_ref().map(|body| Arc::clone(&body.broken)).unwrap_or_default();
        let abort = resumed.as_ref().map(Body::abort_on_drop);
        let reader = PartialReader::resumed(Arc::clone(partial), from, resumed.map(Body::into_reader));
        return Ok(OpenNar { reader: Box::new(reader), broken, is_resumed: true, abort });
    }
    let mut body = fetch::open_nar(&context.sources, candidate).await?;
    let (broken, etag, abort) = (Arc::clone(&body.broken), body.etag.take(), Some(body.abort_on_drop()));
    let reader: Box<dyn Read + Send> = match partial {
        Some(partial) => Box::new(PartialReader::started(Arc::clone(partial), etag.as_deref(), body.into_reader())),
        None => Box::new(body.into_reader()),
    };
    Ok(OpenNar { reader, broken, is_resumed: false, abort })
}

/// Unpacks a NAR into the temporary directory of its path. When this returns the path has been verified, or nothing of
/// it is left.
async fn unpack_nar(reader: Box<dyn Read + Send>, candidate: &Arc<Candidate>, context: &Arc<UnpackContext>) -> Result {
    let path = candidate.narinfo.full_path();
    let (candidate, context) = (Arc::clone(candidate), Arc::clone(context));
    let unpacked = tokio::task::spawn_blocking(move || {
        let (narinfo, options) = (&candidate.narinfo, context.options);
        let mut restorer = context.staging.restorer(&narinfo.path);
        let body = Cancelable { inner: reader, canceled: &context.canceled };
        let result = if options.case_hack {
            fetch::verify_nar(body, narinfo, &mut CaseHack::new(&mut restorer), |_| Ok(()))
        } else {
            fetch::verify_nar(body, narinfo, &mut restorer, |_| Ok(()))
        };
        let result =
            result.and_then(|()| options.owner.map_or(Ok(()), |owner| context.staging.set_owner(&narinfo.path, owner)));
        restorer.abort_on_error(result)
    });
    // A decoder that panics on malicious bytes must not end the pull. Its files are removed with the other temporary
    // ones.
    unpacked
        .await
        .map_err(|_| Error::refused(format!("{path}: cannot decompress its NAR: internal error in the decoder")))?
}

/// A reader that fails when the pull has been aborted.
struct Cancelable<'a, R> {
    inner: R,
    canceled: &'a AtomicBool,
}

impl<R: Read> Read for Cancelable<'_, R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if self.canceled.load(Ordering::Relaxed) {
            return Err(Error::canceled().into());
        }
        self.inner.read(buf)
    }
}
