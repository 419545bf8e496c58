//! The download of one NAR and its verification: FileHash, FileSize, NarHash and NarSize. A NAR is verified while it is
//! read, so its consumer must not publish anything before [`verify_nar`] has returned.

use std::io::{self, Read};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use nar_pack::error::{Context, Error, Result};
use nar_pack::nar::Visitor;
use narinfo_gen::compression::{Compression, MAX_XZ_THREADING_MEMORY};
use narinfo_gen::narinfo::NarInfo;
use narinfo_gen::verify_nar::{Threads, digest_nar_with};

use crate::sources::{Alternatives, Candidate, Sources};
use s3_push::remote::transfer::{Body, ResumePoint};

/// The minimum size in bytes of a NAR that is decompressed on several threads.
const MIN_PARALLEL_NAR_SIZE: u64 = 32 << 20;
/// The maximum number of compressed bytes that a decoder on one thread may read before it returns anything.
const MAX_READ_AHEAD: u64 = 4 << 20;
/// The maximum number of bytes by which compression may make a NAR larger, in addition to a quarter of its size.
const MAX_COMPRESSION_OVERHEAD: u64 = 1 << 20;
/// Locked while a NAR is decompressed on all cores. One at a time keeps the cores busy and limits the memory.
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

/// Reads a compressed NAR to its end and verifies it; blocks. `visitor` receives its tree and `tap` its bytes while
/// they are still unverified.
///
/// # Errors
/// Refuses a NAR that does not match its narinfo.
pub fn verify_nar(
    input: impl Read + Send,
    narinfo: &NarInfo,
    visitor: &mut impl Visitor,
    mut tap: impl FnMut(&[u8]) -> Result,
) -> Result {
    let method = Compression::from_name(&narinfo.compression).context(|| narinfo.full_path())?;
    let decompressed = AtomicU64::new(0);
    let tap = |bytes: &[u8]| {
        decompressed.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        tap(bytes)
    };
    let parallel = if narinfo.nar_size >= MIN_PARALLEL_NAR_SIZE { PARALLEL_DECODER.try_lock().ok() } else { None };
    let (threads, max_read_ahead) =
        if parallel.is_some() { (Threads::All, MAX_XZ_THREADING_MEMORY) } else { (Threads::One, MAX_READ_AHEAD) };
    let max_size = max_compressed_size(narinfo.nar_size).saturating_add(MAX_COMPRESSION_OVERHEAD);
    let max_size = narinfo.file_size.unwrap_or(max_size).min(max_size);
    let input = LimitedReader { inner: input, read: 0, max_size, decompressed: &decompressed, max_read_ahead };
    let digests = digest_nar_with(input, method, threads, Some(narinfo.nar_size), visitor, tap)
        .context(|| narinfo.full_path())?;
    digests.require(narinfo)
}

/// Returns the maximum size of `size` bytes after compression, without constant overhead.
fn max_compressed_size(size: u64) -> u64 {
    size.saturating_add(size / 4)
}

/// Refuses a compressed NAR that is larger than it can be, and one from which a decoder produces almost no output: a
/// decoder may need a second per MiB for empty frames.
struct LimitedReader<'a, R> {
    inner: R,
    read: u64,
    max_size: u64,
    decompressed: &'a AtomicU64,
    max_read_ahead: u64,
}

impl<R: Read> Read for LimitedReader<'_, R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let expected = max_compressed_size(self.decompressed.load(Ordering::Relaxed));
        if self.read > expected.saturating_add(self.max_read_ahead) {
            return Err(Error::refused("the compressed NAR is larger than its decompressed contents").into());
        }
        let n = self.inner.read(buf)?;
        self.read += n as u64;
        if self.read > self.max_size {
            let message = format!("the compressed NAR is larger than expected: more than {} bytes", self.max_size);
            return Err(Error::refused(message).into());
        }
        Ok(n)
    }
}
