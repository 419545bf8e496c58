//! Streams on standard output: NAR, export stream, cache archive. For a thread that may block.
//!
//! What is written is checked while it passes. The end of a NAR is held back until the check is done, so that a reader
//! never gets a whole NAR that is not what it should be.

use std::collections::VecDeque;
use std::io::{self, Read, Seek, Write};
use std::sync::Arc;

use bytes::Bytes;
use nar_pack::error::{Context, Error, Result};
use nar_pack::export::{self, Trailer};
use nar_pack::nar::{Cat, Listed, Listing, Skip};
use nar_pack::stdio::Output;
use narinfo_gen::archive::{self, Object};
use narinfo_gen::cache_info;
use narinfo_gen::compression::Compression;
use narinfo_gen::narinfo::NarInfo;
use s3_push::remote::chunks::{Chunk, ChunkReader, Plain};
use s3_push::remote::transfer::{Body, ByteRange};
use tempfile::SpooledTempFile;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::closure::{Alternatives, Cache, Candidate};
use crate::fetch;

/// Bytes at the end of a NAR that are written only when it is good.
const HELD_BACK: usize = 64;

/// Writes the NAR of a path.
///
/// # Errors
/// Refuses a bad NAR, of which the end is then missing.
pub fn nar(runtime: &Handle, cache: &Cache, candidate: &Arc<Candidate>, out: &mut impl Write) -> Result {
    let (body, candidate) = runtime.block_on(fetch::begin_anywhere(cache, candidate))?;
    pass(body, &candidate.narinfo, out)
}

fn pass(body: Body, narinfo: &NarInfo, out: &mut impl Write) -> Result {
    let mut tail = Vec::with_capacity(2 * HELD_BACK);
    fetch::check(fetch::reader(body), narinfo, &mut Skip, |bytes| {
        tail.extend_from_slice(bytes);
        let good = tail.len().saturating_sub(HELD_BACK);
        out.write_all(&tail[..good])?;
        tail.drain(..good);
        Ok(())
    })?;
    Ok(out.write_all(&tail)?)
}

/// Largest listing that is read, in bytes.
const MAX_LISTING: usize = 64 << 20;
/// Bytes of a file that are held in memory until they are known to be good; more go to a temporary file.
const HELD: usize = 8 << 20;

/// Writes one file of a path, once the whole NAR was read and is good: it has one hash, and a file of it has none.
///
/// # Errors
/// Refuses a bad NAR, and one without that file; nothing is written then.
pub fn cat(runtime: &Handle, cache: &Cache, candidate: &Arc<Candidate>, inside: &[u8], mut out: Output) -> Result {
    let mut from = Alternatives::new(Arc::clone(candidate));
    let mut held = loop {
        match read_file(runtime, cache, &from.candidate, inside) {
            Ok(held) => break held,
            Err(failure) => runtime.block_on(from.next(cache, failure))?,
        }
    };
    held.rewind()?;
    io::copy(&mut held, &mut out)?;
    out.finish()
}

/// A file of a path, read to its end and good.
fn read_file(runtime: &Handle, cache: &Cache, candidate: &Candidate, inside: &[u8]) -> Result<SpooledTempFile> {
    let body = runtime.block_on(fetch::begin(cache, candidate))?;
    let mut held = tempfile::spooled_tempfile(HELD);
    let mut visitor = Cat::new(inside, &mut held);
    fetch::check(fetch::reader(body), &candidate.narinfo, &mut visitor, |_| Ok(()))?;
    visitor.finish().context(|| candidate.narinfo.full_path())?;
    Ok(held)
}

/// Bytes in front of a file's contents in a NAR: their length.
const LENGTH: usize = 8;

/// Writes one file of a path by the cache's word: where the listing says it is, if the NAR is stored as it is. Nothing of
/// it is verified. Whether that could be done; if not, nothing was written.
///
/// # Errors
/// Refuses a listing without that file, and one that does not fit the NAR; fails where the source does.
pub fn cat_unverified(
    runtime: &Handle,
    cache: &Cache,
    candidate: &Candidate,
    inside: &[u8],
    out: &mut Output,
) -> Result<bool> {
    let (narinfo, source) = (&candidate.narinfo, cache.source(candidate));
    if Compression::from_name(&narinfo.compression)? != Compression::None {
        return Ok(false);
    }
    let key = format!("{}.ls", narinfo.path.hash_part());
    let Some(listing) = runtime.block_on(source.text(&key, MAX_LISTING))? else { return Ok(false) };
    let listed = Listing::parse(listing.as_bytes(), MAX_LISTING).and_then(|listing| listing.find(inside));
    let refused = |why: &str| {
        Err(Error::refused(format!("{}: {}/{} {why}", source.display_url(&key), narinfo.path, inside.escape_ascii())))
    };
    let (size, offset) = match listed.context(|| source.display_url(&key))? {
        Some(Listed::File { size, nar_offset: Some(offset), .. }) => (size, offset),
        Some(Listed::File { .. }) => return Ok(false),
        Some(Listed::Directory) => return refused("is a directory, not a file"),
        Some(Listed::Symlink { target }) => {
            return refused(&format!("is a symbolic link, not a file; its target is {}", target.escape_debug()));
        }
        None => return refused("is not in the listing"),
    };
    let Some(end) = offset.checked_add(size).filter(|end| *end <= narinfo.nar_size && offset >= LENGTH as u64) else {
        return refused("is not within the NAR, says the listing");
    };
    let range = ByteRange { start: offset - LENGTH as u64, end: Some(end) };
    let Some(body) = runtime.block_on(source.get_range(&narinfo.url, range))? else { return Ok(false) };
    let mut body = fetch::reader(body);
    let mut length = [0; LENGTH];
    body.read_exact(&mut length)?;
    if u64::from_le_bytes(length) != size {
        return refused("is not where the listing says");
    }
    io::copy(&mut body, out)?;
    Ok(true)
}

/// Writes an export stream of these paths, given references first.
///
/// # Errors
/// As [`nar`]; the stream is then cut off.
pub fn export(runtime: &Handle, cache: &Arc<Cache>, candidates: &[Arc<Candidate>], out: Output) -> Result {
    let mut writer = export::Writer::new(out);
    let mut bodies = Bodies::new(runtime, cache, candidates);
    for _ in candidates {
        let (body, candidate) = bodies.next()?;
        let narinfo = &candidate.narinfo;
        let trailer = Trailer {
            path: narinfo.path.clone(),
            references: narinfo.references.clone(),
            deriver: narinfo.deriver.clone(),
        };
        writer.path(&cache.store_dir, &trailer, |out| pass(body, narinfo, out))?;
    }
    writer.finish()?.finish()
}

/// Writes a cache archive of these paths, given references first: compressed NARs as they are, each checked before its
/// narinfo follows.
///
/// # Errors
/// As [`nar`]; the archive is then cut off.
pub fn archive(runtime: &Handle, cache: &Arc<Cache>, candidates: &[Arc<Candidate>], out: Output) -> Result {
    let mut writer = archive::Writer::new(out);
    let info = cache_info::CacheInfo::new(cache.store_dir.clone());
    writer.text(cache_info::KEY, &info.to_string())?;
    let mut bodies = Bodies::new(runtime, cache, candidates);
    for _ in candidates {
        let (body, candidate) = bodies.next()?;
        let mut narinfo = candidate.narinfo.clone();
        let size = narinfo.file_size.or(body.size);
        let size =
            size.ok_or_else(|| Error::refused(format!("{}: the size of its NAR is unknown", narinfo.full_path())))?;
        let (chunks, examined) = mpsc::channel(8);
        let checking = {
            let narinfo = narinfo.clone();
            std::thread::spawn(move || {
                fetch::check(ChunkReader::<Plain>::new(examined), &narinfo, &mut Skip, |_| Ok(()))
            })
        };
        narinfo.url = key_of(&narinfo)?;
        let written = {
            let mut tee = Tee { inner: fetch::reader(body), chunks };
            let written = writer.member(&narinfo.url, size, &mut tee);
            if written.is_ok() {
                let _ = tee.chunks.blocking_send(Ok(Chunk::End));
            }
            written
        };
        let checked = checking.join().map_err(|_| Error::failed("a checking thread died"))?;
        written.context(|| narinfo.full_path())?;
        checked?;
        writer.narinfo(&narinfo)?;
    }
    writer.finish()?.finish()
}

/// NARs of which the request is made before the one at hand is written.
const BEGUN: usize = 4;

/// A body, and what its source says of it.
type Begun = (Body, Arc<Candidate>);

/// Bodies in the order of their candidates, the next few begun already.
struct Bodies<'a> {
    runtime: &'a Handle,
    cache: &'a Arc<Cache>,
    waiting: std::slice::Iter<'a, Arc<Candidate>>,
    begun: VecDeque<JoinHandle<Result<Begun>>>,
}

impl<'a> Bodies<'a> {
    fn new(runtime: &'a Handle, cache: &'a Arc<Cache>, candidates: &'a [Arc<Candidate>]) -> Self {
        Self { runtime, cache, waiting: candidates.iter(), begun: VecDeque::new() }
    }

    fn next(&mut self) -> Result<Begun> {
        while self.begun.len() < BEGUN
            && let Some(candidate) = self.waiting.next()
        {
            let (cache, candidate) = (Arc::clone(self.cache), Arc::clone(candidate));
            self.begun.push_back(self.runtime.spawn(async move { fetch::begin_anywhere(&cache, &candidate).await }));
        }
        let died = || Error::failed("a fetching task died");
        let begun = self.begun.pop_front().ok_or_else(died)?;
        self.runtime.block_on(begun).map_err(|_| died())?
    }
}

/// The key under which a NAR goes into an archive: its own where that says what it is, else the one that Nix would give.
fn key_of(narinfo: &NarInfo) -> Result<String> {
    let named =
        matches!(Object::of_key(&narinfo.url), Some(Object::Nar(Some(hash))) if Some(hash) == narinfo.file_hash);
    let method = Compression::from_name(&narinfo.compression)?;
    if named && method.is_told_by(&narinfo.url) {
        return Ok(narinfo.url.clone());
    }
    match narinfo.file_hash {
        Some(hash) => Ok(method.key_of_nar(hash)),
        None => Err(Error::refused(format!("{}: its NAR has no FileHash to name it by", narinfo.full_path()))),
    }
}

/// Passes what is read to the examiner too.
struct Tee {
    inner: ChunkReader,
    chunks: mpsc::Sender<Result<Chunk>>,
}

impl Read for Tee {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buf)?;
        if n > 0 {
            // An examiner that has seen enough tells why when it is joined.
            let _ = self.chunks.blocking_send(Ok(Chunk::Data(Plain(Bytes::copy_from_slice(&buf[..n])))));
        }
        Ok(n)
    }
}
