//! The streams on standard output: NAR, export stream, cache archive. Everything here blocks.
//!
//! A NAR is verified while it is written. Its last bytes are written only after that, so a reader never receives a
//! complete NAR that does not match its narinfo.

use std::collections::VecDeque;
use std::io::{self, BufRead, Read, Write};
use std::sync::Arc;

use bytes::{Buf, Bytes};
use nar_pack::error::{Context, Error, Result};
use nar_pack::export::{self, Trailer};
use nar_pack::nar::{Skip, Visitor};
use nar_pack::process::start_thread;
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
/// The maximum number of NARs whose download has started, including the one that is being written.
const MAX_OPEN_NARS: usize = 64;
/// The maximum number of those that are received only as they are read. A server may close a connection that waits long.
const MAX_STREAMED_NARS: usize = 4;
/// The maximum FileSize of a NAR that is received into memory before it is its turn, in bytes.
const MAX_BUFFERED_NAR: u64 = 4 << 20;
/// The maximum number of bytes of these NARs together.
const MAX_BUFFERED_BYTES: u64 = 32 << 20;
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
    let mut tail = Vec::with_capacity(WITHHELD_BYTES);
    fetch::verify_nar(body.into_reader(), narinfo, &mut Skip, |bytes| {
        let writable = (tail.len() + bytes.len()).saturating_sub(WITHHELD_BYTES);
        let from_tail = writable.min(tail.len());
        out.write_all(&tail[..from_tail])?;
        tail.drain(..from_tail);
        let (written, withheld) = bytes.split_at(writable - from_tail);
        out.write_all(written)?;
        tail.extend_from_slice(withheld);
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
/// As [`nar`]. The archive is then truncated; nothing is written if a NAR has no name. After a complete archive, refuses
/// the other objects that were left out.
pub fn archive(
    runtime: &Handle,
    sources: &Arc<Sources>,
    candidates: &[Arc<Candidate>],
    kinds: ExtraKinds,
    out: Output,
) -> Result {
    // Fails before anything is fetched and written.
    candidates.iter().try_for_each(|candidate| archive_key(&candidate.narinfo).map(|_| ()))?;
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
        start_thread(move || {
            let body = ChunkReader::<Plain>::new(received);
            fetch::verify_nar(body, &narinfo, &mut visitor, |_| Ok(())).map(|()| visitor)
        })?
    };
    let written = {
        let mut tee = ChannelTee { inner: body.into_reader(), chunks, unread: Bytes::new() };
        let written = writer.member(&narinfo.url, size, &mut tee);
        if written.is_ok() {
            let _ = tee.chunks.blocking_send(Ok(Chunk::End));
        }
        written
    };
    let result = verification.join().map_err(|_| Error::panicked("verification thread"))?;
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
    candidates: &'a [Arc<Candidate>],
    open: VecDeque<QueuedNar>,
}

/// A download in the queue.
struct QueuedNar {
    task: JoinHandle<Result<OpenNar>>,
    /// The size in bytes, if it is received into memory.
    buffered: Option<u64>,
}

impl<'a> NarQueue<'a> {
    fn new(runtime: &'a Handle, sources: &'a Arc<Sources>, candidates: &'a [Arc<Candidate>]) -> Self {
        Self { runtime, sources, candidates, open: VecDeque::new() }
    }

    fn next(&mut self) -> Result<OpenNar> {
        while let [candidate, rest @ ..] = self.candidates {
            let buffered = candidate.narinfo.file_size.filter(|size| *size <= MAX_BUFFERED_NAR);
            if !self.may_open(buffered) {
                break;
            }
            self.candidates = rest;
            let (sources, candidate) = (Arc::clone(self.sources), Arc::clone(candidate));
            let task = self.runtime.spawn(async move {
                let (body, candidate) = fetch::open_nar_anywhere(&sources, &candidate).await?;
                let body = match buffered {
                    Some(size) => body.buffered(size).await,
                    None => body,
                };
                Ok((body, candidate))
            });
            self.open.push_back(QueuedNar { task, buffered });
        }
        let panicked = || Error::panicked("download task");
        let next = self.open.pop_front().ok_or_else(panicked)?;
        self.runtime.block_on(next.task).map_err(|_| panicked())?
    }

    /// Returns whether one more NAR may be downloaded in advance.
    fn may_open(&self, buffered: Option<u64>) -> bool {
        let is_in_budget = match buffered {
            Some(size) => self.open.iter().filter_map(|nar| nar.buffered).sum::<u64>() + size <= MAX_BUFFERED_BYTES,
            None => self.open.iter().filter(|nar| nar.buffered.is_none()).count() < MAX_STREAMED_NARS,
        };
        is_in_budget && self.open.len() < MAX_OPEN_NARS
    }
}

/// Passes on the bytes that are read to the verifier.
struct ChannelTee {
    inner: ChunkReader,
    chunks: mpsc::Sender<Result<Chunk>>,
    unread: Bytes,
}

impl BufRead for ChannelTee {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.unread.is_empty() {
            self.unread = self.inner.next_bytes()?;
            if !self.unread.is_empty() {
                // A verifier that has stopped returns its error when it is joined.
                let _ = self.chunks.blocking_send(Ok(Chunk::Data(Plain(self.unread.clone()))));
            }
        }
        Ok(&self.unread)
    }

    fn consume(&mut self, amount: usize) {
        self.unread.advance(amount);
    }
}

impl Read for ChannelTee {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let count = self.fill_buf()?.read(buf)?;
        self.consume(count);
        Ok(count)
    }
}
