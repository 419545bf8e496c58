//! The download of one NAR and its verification: FileHash, FileSize, NarHash and NarSize. A NAR is verified while it is
//! read, so its consumer must not publish anything before [`verify_nar`] has returned.

use std::io::Read;
use std::sync::{Arc, Mutex};

use nar_pack::error::{Context, Error, Result};
use nar_pack::nar::Visitor;
use narinfo_gen::compression::Compression;
use narinfo_gen::narinfo::NarInfo;
use narinfo_gen::verify_nar::Threads;

use crate::sources::{Alternatives, Candidate, Sources};
use s3_push::remote::transfer::{Body, ResumePoint};

/// The minimum size in bytes of a NAR that is decompressed on several threads.
const MIN_PARALLEL_NAR_SIZE: u64 = 32 << 20;
/// Locked while a NAR is decompressed on several threads. One at a time keeps the cores busy and limits the memory.
static PARALLEL_DECODER: Mutex<()> = Mutex::new(());

/// Starts the download of the NAR of a candidate.
///
/// # Errors
/// Refuses a cache that does not have the NAR, or has one of another size. Fails when the cache cannot be read.
pub async fn open_nar(sources: &Sources, candidate: &Candidate) -> Result<Body> {
    let (narinfo, remote) = (&candidate.narinfo, sources.remote(candidate));
    Compression::from_name(&narinfo.compression).context(|| narinfo.full_path())?;
    let missing = || {
        let url = remote.display_url(&narinfo.url);
        Error::refused(format!("{}: its NAR {url} is not in the cache", narinfo.full_path()))
    };
    let body = remote.get(&narinfo.url, narinfo.file_size).await?.ok_or_else(missing)?;
    match (body.size, narinfo.file_size) {
        (Some(found), Some(expected)) if found != expected => Err(Error::refused(format!(
            "{}: expected a compressed NAR of {expected} bytes (FileSize), found {found} bytes",
            narinfo.full_path()
        ))),
        _ => Ok(body),
    }
}

/// Continues the download of the NAR of a candidate. Returns none if it must start again, because the object is another
/// one now or the cache does not support it, and no body if all bytes were received before.
///
/// # Errors
/// Fails when the cache cannot be read.
#[allow(clippy::option_option)] // the inner one is the body
pub async fn resume_nar(sources: &Sources, candidate: &Candidate, from: &ResumePoint) -> Result<Option<Option<Body>>> {
    let narinfo = &candidate.narinfo;
    match narinfo.file_size {
        Some(size) if size == from.position => Ok(Some(None)),
        Some(size) if size > from.position => {
            let body = sources.remote(candidate).get_from(&narinfo.url, from).await?;
            Ok(body.filter(|body| body.size == Some(size)).map(Some))
        }
        _ => Ok(None),
    }
}

/// Starts the download of a NAR from the first cache that has it, and returns the candidate of that cache too.
///
/// # Errors
/// Returns the error of the first cache when no other has the NAR.
pub async fn open_nar_anywhere(sources: &Sources, candidate: &Arc<Candidate>) -> Result<(Body, Arc<Candidate>)> {
    let mut alternatives = Alternatives::new(Arc::clone(candidate));
    loop {
        match open_nar(sources, &alternatives.candidate).await {
            Ok(body) => return Ok((body, alternatives.candidate)),
            Err(error) => alternatives.next(sources, error).await?,
        }
    }
}

/// Reads a compressed NAR to its end and verifies it; blocks. A NAR of 32 MiB or more is decompressed on several
/// threads, unless another one is. `visitor` receives its tree and `tap` its bytes while they are still unverified.
///
/// # Errors
/// Refuses a NAR that does not match its narinfo.
pub fn verify_nar(
    input: impl Read + Send,
    narinfo: &NarInfo,
    visitor: &mut impl Visitor,
    tap: impl FnMut(&[u8]) -> Result,
) -> Result {
    let parallel = if narinfo.nar_size >= MIN_PARALLEL_NAR_SIZE { PARALLEL_DECODER.try_lock().ok() } else { None };
    let threads = if parallel.is_some() { Threads::All } else { Threads::One };
    narinfo_gen::verify_nar::verify_nar(input, narinfo, threads, visitor, tap)
}
