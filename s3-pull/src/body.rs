//! Bodies of objects as they arrive. A large one comes in ranges, several at once, all pinned to the entity tag of the
//! first; one that breaks off is continued under the same condition. So bytes of two objects are never mixed.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use nar_pack::error::{Error, Result};
use s3_push::remote::chunks::{Chunk, Plain};
use s3_push::remote::retry::Backoff;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::task::JoinHandle;

use crate::source::Source;

/// Objects of at least so many bytes come in ranges.
pub const LARGE: u64 = 16 << 20;
/// Bytes in a range.
pub const RANGE: u64 = 4 << 20;
/// Ranges of one object that are fetched, or wait to be read, behind the one that is being read.
const AHEAD: usize = 4;
/// The same for all objects of a source.
pub const AHEAD_IN_ALL: usize = 8;
/// Bytes of a range that are passed on at once.
const CHUNK: usize = 256 << 10;
/// Bytes after which a body that broke off has got on: with less, a server could keep us busy for ever.
const HEADWAY: u64 = 64 << 10;

/// The body of an object, arriving.
pub struct Body {
    /// Its size in bytes, where known.
    pub size: Option<u64>,
    /// Its chunks.
    pub chunks: mpsc::Receiver<Result<Chunk>>,
    /// Set when it could not be read to its end.
    pub broken: Arc<AtomicBool>,
}

/// The beginning of an answer to a request for an object or a part of it.
pub struct Answer {
    /// Where in the object its bytes begin.
    pub start: u64,
    /// Whether it is a part only.
    pub partial: bool,
    /// Size of the whole object.
    pub total: Option<u64>,
    /// The entity tag.
    pub etag: Option<String>,
    /// `Content-Encoding`.
    pub encoding: Option<String>,
    /// The bytes.
    pub bytes: BoxStream<'static, Result<Bytes>>,
}

/// What a source says when it is asked for an object or a part of it.
pub enum Asked {
    /// It begins to send it.
    Answer(Answer),
    /// The object is not there.
    Missing,
    /// It is another object than before, or too short for what is asked.
    Changed,
}

/// The part of an object that is wanted: from the first to before the last, or to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// The first byte.
    pub from: u64,
    /// The byte after the last.
    pub to: Option<u64>,
}

impl Span {
    /// The span as HTTP writes it.
    #[must_use]
    pub fn header(self) -> String {
        match self.to {
            Some(to) => format!("bytes={}-{}", self.from, to.saturating_sub(1)),
            None => format!("bytes={}-", self.from),
        }
    }
}

impl Answer {
    /// The entity tag, if it promises the same bytes.
    fn pin(&self) -> Option<String> {
        self.etag.clone().filter(|etag| !etag.starts_with("W/"))
    }
}

/// A range that is fetched before it is needed; given up when nobody needs it any more.
struct Ahead {
    task: JoinHandle<Result<Bytes>>,
    _permit: OwnedSemaphorePermit,
}

impl Drop for Ahead {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Where bytes go.
enum Sink<'a> {
    Reader(&'a mpsc::Sender<Result<Chunk>>),
    Buffer(&'a mut BytesMut),
}

impl Sink<'_> {
    /// Whether somebody wants more.
    async fn take(&mut self, bytes: Bytes) -> bool {
        match self {
            Self::Reader(to) => to.send(Ok(Chunk::Data(Plain(bytes)))).await.is_ok(),
            Self::Buffer(buffer) => {
                buffer.extend_from_slice(&bytes);
                true
            }
        }
    }
}

/// An object of which the bytes are fetched.
pub struct Transfer {
    /// Where it is.
    pub source: Arc<Source>,
    /// Its key.
    pub key: String,
}

impl Transfer {
    /// Passes on an object of which the first bytes were asked for, up to its end.
    ///
    /// # Errors
    /// Fails where the source does, and when the object changes meanwhile.
    pub async fn send(self, answer: Answer, to: &mpsc::Sender<Result<Chunk>>) -> Result {
        match (answer.partial, answer.total, answer.pin()) {
            (true, Some(total), Some(pin)) if total > RANGE => Arc::new(self).ranges(answer, total, pin, to).await,
            // A part that cannot be pinned is given up for the whole.
            (true, Some(total), None) if total > RANGE => match self.source.ask(&self.key, None, None).await? {
                Asked::Answer(whole) if !whole.partial => self.whole(whole, to).await,
                _ => Err(self.changed()),
            },
            _ => self.whole(answer, to).await,
        }
    }

    /// Passes on a part of an object, of which the first bytes were asked for.
    ///
    /// # Errors
    /// As [`Transfer::send`].
    pub async fn send_part(&self, answer: Answer, span: Span, to: &mpsc::Sender<Result<Chunk>>) -> Result {
        let pin = answer.pin();
        self.relay(answer, span, pin.as_deref(), &mut Sink::Reader(to)).await.map(drop)
    }

    async fn whole(&self, answer: Answer, to: &mpsc::Sender<Result<Chunk>>) -> Result {
        let span = Span { from: 0, to: answer.total };
        self.send_part(answer, span, to).await
    }

    fn changed(&self) -> Error {
        self.failure("it changed while it was read")
    }

    fn failure(&self, why: &str) -> Error {
        Error::failed(format!("reading {}: {why}", self.source.shown(&self.key)))
    }

    /// Passes on an object of which the first range has begun to come; the others are fetched meanwhile.
    async fn ranges(
        self: Arc<Self>,
        first: Answer,
        total: u64,
        pin: String,
        to: &mpsc::Sender<Result<Chunk>>,
    ) -> Result {
        let span_at = |from: u64| Span { from, to: Some(total.min(from + RANGE)) };
        let pin: Arc<str> = pin.into();
        let mut ahead: VecDeque<Ahead> = VecDeque::new();
        let mut current = Some((first, span_at(0)));
        let mut next = RANGE;
        loop {
            while next < total
                && ahead.len() < AHEAD
                && let Some(permit) = self.source.permit()
            {
                let (transfer, pin, span) = (Arc::clone(&self), Arc::clone(&pin), span_at(next));
                let task = tokio::spawn(async move { transfer.collect(span, &pin).await });
                ahead.push_back(Ahead { task, _permit: permit });
                next += RANGE;
            }
            if let Some((answer, span)) = current.take() {
                if !self.relay(answer, span, Some(&pin), &mut Sink::Reader(to)).await? {
                    return Ok(());
                }
            } else if let Some(mut range) = ahead.pop_front() {
                let mut bytes = (&mut range.task).await.map_err(|_| self.failure("a fetching task died"))??;
                while !bytes.is_empty() {
                    let data = bytes.split_to(CHUNK.min(bytes.len()));
                    if to.send(Ok(Chunk::Data(Plain(data)))).await.is_err() {
                        return Ok(());
                    }
                }
            } else if next < total {
                // Others have all the memory; one range after the other, passed on as it comes, takes none.
                current = Some((self.pinned(span_at(next), &pin).await?, span_at(next)));
                next += RANGE;
            } else {
                return Ok(());
            }
        }
    }

    /// A range, whole.
    async fn collect(&self, span: Span, pin: &str) -> Result<Bytes> {
        let length = span.to.map_or(0, |to| to - span.from);
        let mut bytes = BytesMut::with_capacity(usize::try_from(length).unwrap_or_default());
        let answer = self.pinned(span, pin).await?;
        self.relay(answer, span, Some(pin), &mut Sink::Buffer(&mut bytes)).await?;
        Ok(bytes.freeze())
    }

    /// The beginning of exactly these bytes of the object with that entity tag.
    async fn pinned(&self, span: Span, pin: &str) -> Result<Answer> {
        match self.source.ask(&self.key, Some(span), Some(pin)).await? {
            Asked::Answer(answer) if answer.etag.as_deref() != Some(pin) => Err(self.changed()),
            Asked::Answer(answer) if answer.partial && answer.start == span.from => Ok(answer),
            Asked::Answer(_) => Err(self.failure("the server sent another range")),
            Asked::Missing | Asked::Changed => Err(self.changed()),
        }
    }

    /// Passes on the bytes of a span, of which the first answer has come, and goes on where it breaks off. Whether
    /// somebody wants more.
    async fn relay(&self, answer: Answer, span: Span, pin: Option<&str>, sink: &mut Sink<'_>) -> Result<bool> {
        let (mut at, mut bytes) = (span.from, answer.bytes);
        let (mut begun, mut tries) = (at, Backoff::new(self.source.attempts()));
        loop {
            let failure = match bytes.next().await {
                Some(Ok(data)) => {
                    at += data.len() as u64;
                    if span.to.is_some_and(|to| at > to) {
                        return Err(self.failure("more came than was asked for"));
                    }
                    self.source.count(data.len());
                    if !sink.take(data).await {
                        return Ok(false);
                    }
                    continue;
                }
                Some(Err(failure)) => failure,
                None if span.to.is_some_and(|to| at < to) => self.failure("it is cut off"),
                None => return Ok(true),
            };
            if span.to == Some(at) {
                return Ok(true);
            }
            if at - begun >= HEADWAY {
                (begun, tries) = (at, Backoff::new(self.source.attempts()));
            }
            let Some(pin) = pin else { return Err(failure) };
            if !tries.again().await {
                return Err(failure);
            }
            bytes = self.pinned(Span { from: at, ..span }, pin).await?.bytes;
        }
    }
}
