//! The streams on standard output: NAR, export stream, cache archive. Everything here blocks.
//!
//! A NAR is verified while it is written. Its last bytes are written only after that, so a reader never receives a
//! complete NAR that does not match its narinfo.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::sync::Arc;

use bytes::Bytes;
use nar_pack::error::{Context, Error, Result};
use nar_pack::export::{self, Trailer};
use nar_pack::nar::{Skip, Visitor};
use nar_pack::stdio::Output;
use narinfo_gen::archive::{self, Object};
use narinfo_gen::cache_info::{self, CacheInfo};
use narinfo_gen::compression::Compression;
use narinfo_gen::narinfo::NarInfo;
use s3_push::remote::chunks::{Chunk, ChunkReader, Plain};
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::extras::{ExtraKinds, ExtrasWriter};
use crate::fetch;
use crate::sources::{Candidate, Sources};
use s3_push::remote::transfer::Body;

/// The number of bytes at the end of a NAR that are written only after it has been verified.
const WITHHELD_BYTES: usize = 64;
/// The number of NARs whose download has started, including the one that is being written, whatever their size.
const MIN_OPEN_NARS: usize = 4;
/// The maximum number of NARs whose download has started.
const MAX_OPEN_NARS: usize = 64;
/// The maximum number of bytes of NARs that wait for the one that is being written, if there are more than
/// [`MIN_OPEN_NARS`].
const MAX_WAITING_BYTES: u64 = 32 << 20;
/// About the maximum number of bytes of a NAR that arrive while nothing reads it: its channel holds no more.
const MAX_UNREAD_BYTES: u64 = 4 << 20;
/// The maximum number of chunks that wait for the verification of an archive member.
const MAX_PENDING_CHUNKS: usize = 8;

/// Writes the NAR of a path.
///
/// # Errors
/// Refuses a bad NAR, whose end is then missing from the output.
pub fn nar(runtime: &Handle, sources: &Sources, candidate: &Arc<Candidate>, out: &mut impl Write) -> Result {
    let (body, candidate) = runtime.block_on(fetch::open_nar_anywhere(sources, candidate))?;
    write_nar(body, &candidate.narinfo, out)
}

fn write_nar(body: Body, narinfo: &NarInfo, out: &mut impl Write) -> Result {
    let mut tail = Vec::with_capacity(2 * WITHHELD_BYTES);
    fetch::verify_nar(body.into_reader(), narinfo, &mut Skip, |bytes| {
        tail.extend_from_slice(bytes);
        let writable = tail.len().saturating_sub(WITHHELD_BYTES);
        out.write_all(&tail[..writable])?;
        tail.drain(..writable);
        Ok(())
    })?;
    Ok(out.write_all(&tail)?)
}

/// Writes an export stream of paths that are ordered references first.
///
/// # Errors
/// As [`nar`]. The stream is then truncated.
pub fn export(runtime: &Handle, sources: &Arc<Sources>, candidates: &[Arc<Candidate>], out: Output) -> Result {
    let mut writer = export::Writer::new(out);
    let mut nars = NarQueue::new(runtime, sources, candidates);
    for _ in candidates {
        let (body, candidate) = nars.next()?;
        let narinfo = &candidate.narinfo;
        let trailer = Trailer {
            path: narinfo.path.clone(),
            references: narinfo.references.clone(),
            deriver: narinfo.deriver.clone(),
        };
        writer.write_path(&sources.store_dir, &trailer, |out| write_nar(body, narinfo, out))?;
    }
    writer.finish()?.finish()
}

/// Writes a cache archive of paths that are ordered references first. NARs stay compressed as they are; each is
/// verified before its narinfo is written. `kinds` are the other objects that the archive contains.
///
/// # Errors
/// As [`nar`]. The archive is then truncated. After a complete archive, refuses the other objects that were left out.
pub fn archive(
    runtime: &Handle,
    sources: &Arc<Sources>,
    candidates: &[Arc<Candidate>],
    kinds: ExtraKinds,
    out: Output,
) -> Result {
    let mut writer = archive::Writer::new(out);
    let info = if kinds == ExtraKinds::ALL { runtime.block_on(sources.cache_info())? } else { None };
    let info = info.unwrap_or_else(|| CacheInfo::new(sources.store_dir.clone()));
    writer.text(cache_info::KEY, &info.to_string())?;
    let mut nars = NarQueue::new(runtime, sources, candidates);
    let mut extras = ExtrasWriter::new(runtime, sources, kinds);
    for _ in candidates {
        let (body, candidate) = nars.next()?;
        let mut narinfo = candidate.narinfo.clone();
        narinfo.url = archive_key(&narinfo)?;
        let visitor = write_archived_nar(&mut writer, body, &narinfo, extras.nar_visitor())?;
        extras.write_path(&mut writer, &candidate, &narinfo.url, visitor)?;
        writer.narinfo(&narinfo)?;
    }
    extras.write_build_trace(&mut writer, candidates)?;
    writer.finish()?.finish()?;
    extras.finish()
}

/// Writes a compressed NAR, and verifies it on another thread meanwhile. Returns the visitor, which has visited it.
fn write_archived_nar<V: Visitor + Send + 'static>(
    writer: &mut archive::Writer<Output>,
    body: Body,
    narinfo: &NarInfo,
    mut visitor: V,
) -> Result<V> {
    let size = narinfo.file_size.or(body.size);
    let size =
        size.ok_or_else(|| Error::refused(format!("{}: the size of its NAR is unknown", narinfo.full_path())))?;
    let (chunks, received) = mpsc::channel(MAX_PENDING_CHUNKS);
    let verification = {
        let narinfo = narinfo.clone();
        std::thread::spawn(move || {
            let body = ChunkReader::<Plain>::new(received);
            fetch::verify_nar(body, &narinfo, &mut visitor, |_| Ok(())).map(|()| visitor)
        })
    };
    let written = {
        let mut tee = Tee { inner: body.into_reader(), chunks };
        let written = writer.member(&narinfo.url, size, &mut tee);
        if written.is_ok() {
            let _ = tee.chunks.blocking_send(Ok(Chunk::End));
        }
        written
    };
    let result = verification.join().map_err(|_| Error::failed("internal error: verification thread panicked"))?;
    written.context(|| narinfo.full_path())?;
    result
}

/// Returns the key of a NAR in an archive: its URL if that contains the FileHash, otherwise the key that Nix would use.
fn archive_key(narinfo: &NarInfo) -> Result<String> {
    let has_hash =
        matches!(Object::of_key(&narinfo.url), Some(Object::Nar(Some(hash))) if Some(hash) == narinfo.file_hash);
    let method = Compression::from_name(&narinfo.compression)?;
    if has_hash && method.matches_key(&narinfo.url) {
        return Ok(narinfo.url.clone());
    }
    match narinfo.file_hash {
        Some(hash) => Ok(method.key_of_nar(hash)),
        None => Err(Error::refused(format!("{}: cannot name its NAR: FileHash is missing", narinfo.full_path()))),
    }
}

/// A NAR whose download has started, and the candidate of the cache that it comes from.
type OpenNar = (Body, Arc<Candidate>);

/// The NARs of some candidates in their order. The downloads of the next few large ones or many small ones are started in
/// advance, so that latency does not add up.
struct NarQueue<'a> {
    runtime: &'a Handle,
    sources: &'a Arc<Sources>,
    candidates: std::slice::Iter<'a, Arc<Candidate>>,
    /// With the number of bytes that may wait in memory.
    open: VecDeque<(JoinHandle<Result<OpenNar>>, u64)>,
    waiting_bytes: u64,
}

impl<'a> NarQueue<'a> {
    fn new(runtime: &'a Handle, sources: &'a Arc<Sources>, candidates: &'a [Arc<Candidate>]) -> Self {
        Self { runtime, sources, candidates: candidates.iter(), open: VecDeque::new(), waiting_bytes: 0 }
    }

    fn next(&mut self) -> Result<OpenNar> {
        while self.may_open_another()
            && let Some(candidate) = self.candidates.next()
        {
            let bytes = candidate.narinfo.file_size.unwrap_or(u64::MAX).min(MAX_UNREAD_BYTES);
            let (sources, candidate) = (Arc::clone(self.sources), Arc::clone(candidate));
            let task = self.runtime.spawn(async move { fetch::open_nar_anywhere(&sources, &candidate).await });
            self.open.push_back((task, bytes));
            self.waiting_bytes += bytes;
        }
        let panicked = || Error::failed("internal error: download task panicked");
        let (next, bytes) = self.open.pop_front().ok_or_else(panicked)?;
        self.waiting_bytes -= bytes;
        self.runtime.block_on(next).map_err(|_| panicked())?
    }

    fn may_open_another(&self) -> bool {
        self.open.len() < MIN_OPEN_NARS
            || (self.open.len() < MAX_OPEN_NARS && self.waiting_bytes + MAX_UNREAD_BYTES <= MAX_WAITING_BYTES)
    }
}

/// Passes on the bytes that are read to the verifier.
struct Tee {
    inner: ChunkReader,
    chunks: mpsc::Sender<Result<Chunk>>,
}

impl Read for Tee {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buf)?;
        if n > 0 {
            // A verifier that has stopped returns its error when it is joined.
            let _ = self.chunks.blocking_send(Ok(Chunk::Data(Plain(Bytes::copy_from_slice(&buf[..n])))));
        }
        Ok(n)
    }
}
