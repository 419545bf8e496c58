//! Bodies of remote objects. A large object is requested in ranges, several at a time, all pinned to the entity tag of
//! the first; an interrupted body is resumed under the same condition. So bytes of two objects are never mixed.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use nar_pack::error::{Error, Result};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::task::{AbortHandle, JoinHandle};

use crate::remote::Remote;
use crate::remote::chunks::{Chunk, ChunkReader, Plain};
use crate::remote::concurrency::Permit;
use crate::remote::retry::Backoff;

/// Objects of at least this many bytes are requested in ranges.
pub const MIN_RANGED_SIZE: u64 = 16 << 20;
/// Bytes of a range.
pub(super) const RANGE_SIZE: u64 = 4 << 20;
/// Ranges of all objects of a remote cache that are requested, or buffered, ahead of those that are being read; bounds the
/// memory. One object may have all of them, but only once it is being read: in a stream, the others wait for that one.
pub const MAX_RANGES_AHEAD: u16 = 8;
/// Largest chunk that a buffered range is passed on in, in bytes.
const MAX_CHUNK_SIZE: usize = 256 << 10;
/// Bytes after which a resumed body may be interrupted as often as a new one. With less progress than this, a server
/// could make the transfer endless.
const MIN_PROGRESS: u64 = 64 << 10;

/// The body of an object, while it arrives.
pub struct Body {
    /// The size in bytes, if known.
    pub size: Option<u64>,
    /// The strong entity tag, if the cache sent one.
    pub etag: Option<String>,
    pub(super) chunks: mpsc::Receiver<Result<Chunk>>,
    /// Set if the body could not be read to its end.
    pub broken: Arc<AtomicBool>,
    /// The task that receives the body; none for a file.
    pub(super) task: Option<AbortHandle>,
}

/// Aborts a transfer when it is dropped, so that a thread that waits for it returns.
pub struct AbortOnDrop(Option<AbortHandle>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        if let Some(task) = &self.0 {
            task.abort();
        }
    }
}

impl Body {
    /// Returns what aborts the transfer when it is dropped.
    #[must_use]
    pub fn abort_on_drop(&self) -> AbortOnDrop {
        AbortOnDrop(self.task.clone())
    }

    /// Receives the body into memory. If it has more than `max_size` bytes, it ends somewhere after these.
    pub async fn buffered(mut self, max_size: u64) -> Self {
        let mut bytes = BytesMut::new();
        let end = loop {
            match self.chunks.recv().await {
                Some(Ok(Chunk::Data(Plain(data)))) if bytes.len() as u64 <= max_size => bytes.extend_from_slice(&data),
                Some(Ok(Chunk::Data(_) | Chunk::End)) => break Some(Ok(Chunk::End)),
                Some(Err(error)) => break Some(Err(error)),
                None => break None,
            }
        };
        let (sender, chunks) = mpsc::channel(2);
        // There is room for both.
        let _ = sender.try_send(Ok(Chunk::Data(Plain(bytes.freeze()))));
        let _ = end.map(|end| sender.try_send(end));
        Self { chunks, ..self }
    }

    /// Returns a reader for a thread that may block.
    #[must_use]
    pub fn into_reader(self) -> ChunkReader {
        ChunkReader::new(self.chunks)
    }
}

/// Where to continue with an object of which the first bytes were received before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResumePoint {
    /// The number of bytes that were received.
    pub position: u64,
    /// The strong entity tag that the object had then.
    pub etag: String,
}

/// The bytes of an object from `start` to before `end`, or to the end of the object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ByteRange {
    /// Offset of the first byte.
    pub start: u64,
    /// Offset after the last byte.
    pub end: Option<u64>,
}

impl ByteRange {
    /// Returns the value of the `Range` header.
    pub(super) fn header(self) -> String {
        match self.end {
            Some(end) => format!("bytes={}-{}", self.start, end.saturating_sub(1)),
            None => format!("bytes={}-", self.start),
        }
    }
}

/// The response to a request for an object or a range of it.
pub(super) enum Response {
    /// The object exists; its bytes follow.
    Object(ObjectStream),
    /// The object does not exist.
    Missing,
    /// The object does not have the entity tag that the request names, or is too short for the range.
    Changed,
}

/// An object or a range of it, while its bytes arrive.
pub(super) struct ObjectStream {
    /// Offset of the first byte.
    pub start: u64,
    /// Whether the response is a range of the object.
    pub partial: bool,
    /// Size of the whole object in bytes.
    pub size: Option<u64>,
    /// The entity tag, as sent.
    pub etag: Option<String>,
    /// `Content-Encoding`.
    pub content_encoding: Option<String>,
    /// The bytes.
    pub bytes: BoxStream<'static, Result<Bytes>>,
    /// Held until the body has ended, or until its reader falls behind (see [`Sink::write`]).
    pub permit: Permit,
}

impl ObjectStream {
    /// Returns the entity tag if equal tags promise equal bytes.
    pub(super) fn strong_etag(&self) -> Option<String> {
        self.etag.clone().filter(|etag| !etag.starts_with("W/"))
    }

    /// Reads to the end of the body, or until there are more than `max_size` bytes.
    pub async fn collect(mut self, max_size: usize) -> Result<Vec<u8>> {
        let mut collected = Vec::new();
        while let Some(bytes) = self.bytes.next().await {
            collected.extend_from_slice(&bytes?);
            if collected.len() > max_size {
                break;
            }
        }
        Ok(collected)
    }
}

/// Parses `Content-Range: bytes START-END/SIZE`; returns the start and the size.
pub(super) fn parse_content_range(value: &str) -> Option<(u64, u64)> {
    let (range, size) = value.strip_prefix("bytes ")?.split_once('/')?;
    Some((range.split_once('-')?.0.parse().ok()?, size.parse().ok()?))
}

/// A range that is requested before it is needed. Dropping it aborts the request.
struct RangeAhead {
    task: JoinHandle<Result<Bytes>>,
    _memory: OwnedSemaphorePermit,
}

impl Drop for RangeAhead {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Where the bytes of a body go.
enum Sink<'a> {
    Reader(&'a mpsc::Sender<Result<Chunk>>),
    Buffer(&'a mut BytesMut),
}

impl Sink<'_> {
    /// Passes bytes on. Returns false if the reader is gone.
    ///
    /// The request returns its permit as soon as it has to wait for its reader. So a permit is only ever held by a
    /// request that waits for the server, and every wait for a permit ends: the reader of one body may itself wait for
    /// another request of this cache, such as the next range of the NAR that precedes this one in a stream. With a
    /// limit of one, to which throttling may reduce it, that would be a deadlock.
    async fn write(&mut self, bytes: Bytes, permit: &mut Option<Permit>) -> bool {
        match self {
            Self::Reader(reader) => match reader.try_send(Ok(Chunk::Data(Plain(bytes)))) {
                Ok(()) => true,
                Err(TrySendError::Closed(_)) => false,
                Err(TrySendError::Full(chunk)) => {
                    permit.take();
                    reader.send(chunk).await.is_ok()
                }
            },
            Self::Buffer(buffer) => {
                buffer.extend_from_slice(&bytes);
                true
            }
        }
    }
}

/// The transfer of one object.
pub(super) struct Transfer {
    pub remote: Arc<Remote>,
    pub key: String,
}

impl Transfer {
    /// Sends the whole object into `chunks`, given the response to the request for it or for its first range.
    ///
    /// # Errors
    /// Fails if the remote cache does, or if the object changes meanwhile.
    pub async fn send(self, first: ObjectStream, chunks: &mpsc::Sender<Result<Chunk>>) -> Result {
        match (first.partial, first.size, first.strong_etag()) {
            (true, Some(size), Some(etag)) if size > RANGE_SIZE => {
                Arc::new(self).send_ranges(first, size, etag, chunks).await
            }
            // Ranges of an object without a strong entity tag might not belong together.
            (true, Some(size), None) if size > RANGE_SIZE => {
                drop(first);
                match self.remote.request(&self.key, None, None).await? {
                    Response::Object(object) if !object.partial => self.send_whole(object, chunks).await,
                    _ => Err(self.changed()),
                }
            }
            _ => self.send_whole(first, chunks).await,
        }
    }

    /// Sends the rest of an object into `chunks`, given the response to the request for its first range.
    ///
    /// # Errors
    /// See [`Transfer::send`].
    pub async fn send_rest(
        self,
        first: ObjectStream,
        size: u64,
        etag: String,
        chunks: &mpsc::Sender<Result<Chunk>>,
    ) -> Result {
        Arc::new(self).send_ranges(first, size, etag, chunks).await
    }

    /// Sends a range of the object into `chunks`, given the response to the request for it.
    ///
    /// # Errors
    /// See [`Transfer::send`].
    pub async fn send_range(
        &self,
        object: ObjectStream,
        range: ByteRange,
        chunks: &mpsc::Sender<Result<Chunk>>,
    ) -> Result {
        let etag = object.strong_etag();
        self.relay(object, range, etag.as_deref(), &mut Sink::Reader(chunks), || {}).await.map(drop)
    }

    async fn send_whole(&self, object: ObjectStream, chunks: &mpsc::Sender<Result<Chunk>>) -> Result {
        let range = ByteRange { start: 0, end: object.size };
        self.send_range(object, range, chunks).await
    }

    fn changed(&self) -> Error {
        self.error("the object changed while it was read")
    }

    fn error(&self, cause: &str) -> Error {
        Error::failed(format!("cannot read {}: {cause}", self.remote.display_url(&self.key)))
    }

    /// Sends an object whose first range has started to arrive, and requests the next ranges meanwhile.
    async fn send_ranges(
        self: Arc<Self>,
        first: ObjectStream,
        size: u64,
        etag: String,
        chunks: &mpsc::Sender<Result<Chunk>>,
    ) -> Result {
        let range_at = |start: u64| ByteRange { start, end: Some(size.min(start + RANGE_SIZE)) };
        let etag: Arc<str> = etag.into();
        let mut ahead: VecDeque<RangeAhead> = VecDeque::new();
        let mut next = first.start + RANGE_SIZE;
        let range = range_at(first.start);
        let mut current = Some((first, range));
        let mut passed_on: usize = 0;
        loop {
            let mut request_ahead = |next: &mut u64| {
                while *next < size
                    && let Some(memory) = self.remote.reserve_range()
                {
                    let (transfer, etag, range) = (Arc::clone(&self), Arc::clone(&etag), range_at(*next));
                    let task = tokio::spawn(async move { transfer.buffer_range(range, &etag).await });
                    ahead.push_back(RangeAhead { task, _memory: memory });
                    *next += RANGE_SIZE;
                }
            };
            if let Some((object, range)) = current.take() {
                // More chunks than fit into the channel: the reader has begun.
                let passed = || {
                    passed_on += 1;
                    if passed_on > chunks.max_capacity() {
                        request_ahead(&mut next);
                    }
                };
                if !self.relay(object, range, Some(&etag), &mut Sink::Reader(chunks), passed).await? {
                    return Ok(());
                }
                continue;
            }
            request_ahead(&mut next);
            if let Some(mut range) = ahead.pop_front() {
                let panicked = |_| self.error(Error::panicked("download task").message());
                let mut bytes = (&mut range.task).await.map_err(panicked)??;
                while !bytes.is_empty() {
                    let data = bytes.split_to(MAX_CHUNK_SIZE.min(bytes.len()));
                    if chunks.send(Ok(Chunk::Data(Plain(data)))).await.is_err() {
                        return Ok(());
                    }
                }
            } else if next < size {
                // Other objects have all the memory for ranges ahead. One range at a time, passed on as it arrives,
                // needs none.
                current = Some((self.request_pinned(range_at(next), &etag).await?, range_at(next)));
                next += RANGE_SIZE;
            } else {
                return Ok(());
            }
        }
    }

    /// Reads a range into memory.
    async fn buffer_range(&self, range: ByteRange, etag: &str) -> Result<Bytes> {
        let length = range.end.map_or(0, |end| end - range.start);
        let mut bytes = BytesMut::with_capacity(usize::try_from(length).unwrap_or_default());
        let object = self.request_pinned(range, etag).await?;
        self.relay(object, range, Some(etag), &mut Sink::Buffer(&mut bytes), || {}).await?;
        Ok(bytes.freeze())
    }

    /// Requests exactly these bytes of the object with that entity tag.
    async fn request_pinned(&self, range: ByteRange, etag: &str) -> Result<ObjectStream> {
        match self.remote.request(&self.key, Some(range), Some(etag)).await? {
            Response::Object(object) if object.etag.as_deref() != Some(etag) => Err(self.changed()),
            Response::Object(object) if object.partial && object.start == range.start => Ok(object),
            Response::Object(_) => Err(self.error("the server sent another range than the requested one")),
            Response::Missing | Response::Changed => Err(self.changed()),
        }
    }

    /// Passes on the bytes of a range, given the response to the request for it, and resumes an interrupted response.
    /// Calls `passed` after each chunk. Returns false if the reader is gone.
    async fn relay(
        &self,
        object: ObjectStream,
        range: ByteRange,
        etag: Option<&str>,
        sink: &mut Sink<'_>,
        mut passed: impl FnMut(),
    ) -> Result<bool> {
        let ObjectStream { mut bytes, permit, .. } = object;
        let mut permit = Some(permit);
        let mut position = range.start;
        let (mut resumed_at, mut backoff) = (position, Backoff::new(self.remote.max_attempts()));
        loop {
            let error = match bytes.next().await {
                Some(Ok(data)) => {
                    position += data.len() as u64;
                    if range.end.is_some_and(|end| position > end) {
                        return Err(self.error("the server sent more bytes than expected"));
                    }
                    self.remote.count_received(data.len());
                    if !sink.write(data, &mut permit).await {
                        return Ok(false);
                    }
                    passed();
                    continue;
                }
                Some(Err(error)) => error,
                None if range.end.is_some_and(|end| position < end) => self.error("the response is truncated"),
                None => return Ok(true),
            };
            if range.end == Some(position) {
                return Ok(true);
            }
            let Some(etag) = etag else { return Err(error) };
            if position - resumed_at >= MIN_PROGRESS {
                (resumed_at, backoff) = (position, Backoff::new(self.remote.max_attempts()));
            }
            // The new request needs a permit of its own.
            drop((bytes, permit));
            if !backoff.next_attempt().await {
                return Err(error);
            }
            let resumed = self.request_pinned(ByteRange { start: position, ..range }, etag).await?;
            (bytes, permit) = (resumed.bytes, Some(resumed.permit));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_written_and_read_as_http_does() {
        assert_eq!(ByteRange { start: 0, end: Some(100) }.header(), "bytes=0-99");
        assert_eq!(ByteRange { start: 7, end: None }.header(), "bytes=7-");
        assert_eq!(parse_content_range("bytes 7-99/200"), Some((7, 200)));
        for malformed in ["", "bytes 7-99", "bytes 7-99/*", "bytes */200", "7-99/200"] {
            assert_eq!(parse_content_range(malformed), None, "{malformed}");
        }
    }
}
