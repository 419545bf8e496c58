//! Fetching one NAR and checking it: FileHash, FileSize, NarHash, NarSize.

use std::io::{self, Read};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use nar_pack::error::{Context, Error, Result};
use nar_pack::nar::Visitor;
use narinfo_gen::compression::{Compression, XZ_THREADS_MEMORY};
use narinfo_gen::narinfo::NarInfo;
use narinfo_gen::verify_nar::{Threads, digest_nar_with};
use s3_push::remote::chunks::ChunkReader;
use s3_push::remote::transfer::Body;

use crate::closure::{Alternatives, Cache, Candidate};

/// NARs of at least so many bytes are worth several threads.
const LARGE: u64 = 32 << 20;
/// Compressed bytes that a decoder may have read before anything comes out of it.
const AHEAD: u64 = 4 << 20;
/// Held while a NAR is decompressed on every core: one at a time bounds the memory, and keeps the cores busy.
static ALONE: Mutex<()> = Mutex::new(());

/// Begins to read the NAR that an candidate names.
///
/// # Errors
/// Refuses a cache that does not have it; fails where the source does.
pub async fn begin(cache: &Cache, candidate: &Candidate) -> Result<Body> {
    let (narinfo, source) = (&candidate.narinfo, cache.source(candidate));
    Compression::from_name(&narinfo.compression).context(|| narinfo.full_path())?;
    let missing = || {
        let key = source.display_url(&narinfo.url);
        Error::refused(format!("{}: its NAR, {key}, is not in the cache", narinfo.full_path()))
    };
    let body = source.get(&narinfo.url, narinfo.file_size).await?.ok_or_else(missing)?;
    match (body.size, narinfo.file_size) {
        (Some(size), Some(stated)) if size != stated => Err(Error::refused(format!(
            "{}: its NAR has {size} bytes, not {stated} as FileSize says",
            narinfo.full_path()
        ))),
        _ => Ok(body),
    }
}

/// As [`begin`], from the first source that has the NAR; with what that one says of it.
///
/// # Errors
/// The first source's, when no other has it either.
pub async fn begin_anywhere(cache: &Cache, candidate: &Arc<Candidate>) -> Result<(Body, Arc<Candidate>)> {
    let mut from = Alternatives::new(Arc::clone(candidate));
    loop {
        match begin(cache, &from.candidate).await {
            Ok(body) => return Ok((body, from.candidate)),
            Err(failure) => from.next(cache, failure).await?,
        }
    }
}

/// Reads a NAR to its end and checks it; for threads that may block. `visitor` gets its tree and `tap` its bytes while
/// nothing is certain yet: only when this returns do they hold.
///
/// # Errors
/// Refuses what is not as the narinfo says.
pub fn check(
    input: impl Read + Send,
    narinfo: &NarInfo,
    visitor: &mut impl Visitor,
    mut tap: impl FnMut(&[u8]) -> Result,
) -> Result {
    let method = Compression::from_name(&narinfo.compression).context(|| narinfo.full_path())?;
    // Compression makes nothing much larger; without this bound a file could go on for ever after the NAR's end.
    let most = narinfo.nar_size.saturating_add(narinfo.nar_size / 4).saturating_add(1 << 20);
    let unpacked = AtomicU64::new(0);
    let tap = |bytes: &[u8]| {
        unpacked.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        tap(bytes)
    };
    let alone = if narinfo.nar_size >= LARGE { ALONE.try_lock().ok() } else { None };
    let (threads, ahead) = if alone.is_some() { (Threads::All, XZ_THREADS_MEMORY) } else { (Threads::One, AHEAD) };
    let left = narinfo.file_size.unwrap_or(most).min(most);
    let input = Limited { inner: input, read: 0, left, unpacked: &unpacked, ahead };
    let digests = digest_nar_with(input, method, threads, Some(narinfo.nar_size), visitor, tap)
        .context(|| narinfo.full_path())?;
    digests.require(narinfo)
}

/// A reader of a body.
#[must_use]
pub fn reader(body: Body) -> ChunkReader {
    body.into_reader()
}

/// Stops a body that does not end, and one of which nothing comes out: a decoder may take a second for a MiB of empty
/// frames.
struct Limited<'a, R> {
    inner: R,
    read: u64,
    left: u64,
    unpacked: &'a AtomicU64,
    ahead: u64,
}

impl<R: Read> Read for Limited<'_, R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let unpacked = self.unpacked.load(Ordering::Relaxed);
        if self.read > unpacked.saturating_add(unpacked / 4).saturating_add(self.ahead) {
            return Err(Error::refused("the compressed NAR is larger than what comes out of it").into());
        }
        let n = self.inner.read(buf)?;
        self.read += n as u64;
        match self.left.checked_sub(n as u64) {
            Some(left) => {
                self.left = left;
                Ok(n)
            }
            None => Err(Error::refused("the compressed NAR is larger than it can be").into()),
        }
    }
}
