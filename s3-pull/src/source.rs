//! Where a cache is read from: `s3://`, `http://`, `https://` or `file://`.

use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use futures_util::StreamExt;
use nar_pack::error::{Context, Error, Result};
use nar_pack::stdio;
use nar_pack::store_path::HashPart;
use narinfo_gen::archive::Object;
use narinfo_gen::compression::decode_content;
use percent_encoding::percent_decode_str;
use rustix::fs::OFlags;
use s3_push::publish::existing::list_hash_parts;
use s3_push::remote::chunks::{Chunk, Plain};
use s3_push::remote::http::{self, HttpCache, Part, plain};
use s3_push::remote::location::Location;
use s3_push::remote::retry::{Backoff, RequestLimits};
use s3_push::remote::s3::{self, Access, Bucket};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use crate::TOOL;
use crate::body::{AHEAD_IN_ALL, Answer, Asked, Body, LARGE, RANGE, Span, Transfer};

/// Chunks of a body that may wait to be read.
const CHUNKS: usize = 8;
/// Bytes of a file in one chunk.
const CHUNK: usize = 64 << 10;

/// A binary cache to read from.
pub struct Source {
    place: Place,
    ahead: Arc<Semaphore>,
    moved: AtomicU64,
}

enum Place {
    /// A bucket, through the S3 interface.
    S3(Box<Bucket>),
    /// Plain HTTP or HTTPS.
    Http(HttpCache),
    /// A directory.
    File(PathBuf),
}

/// How a source is spoken to.
#[derive(Debug, Clone, Copy)]
pub struct RemoteOptions<'a> {
    /// How requests to S3 are signed.
    pub access: Access,
    /// How long is waited, and how often it is tried again.
    pub limits: RequestLimits,
    /// Where passwords of HTTP servers are, if not in the usual places.
    pub netrc: Option<&'a Path>,
}

impl Source {
    /// The cache that `url` names.
    ///
    /// # Errors
    /// A usage failure for a URL of another kind, or a directory that is not there.
    pub async fn open(url: &str, manners: RemoteOptions<'_>) -> Result<Self> {
        let RemoteOptions { access, limits, netrc } = manners;
        let expected = "expected s3://, http://, https:// or file://";
        let place = match url.split_once("://") {
            Some(("s3", _)) => Place::S3(Box::new(Bucket::connect(Location::parse(url)?, access, limits, TOOL).await)),
            Some(("http" | "https", rest)) if !rest.is_empty() => {
                Place::Http(HttpCache::new(url, limits, netrc, TOOL)?)
            }
            Some(("file", path)) => {
                // Parameters of the store, as Nix takes them, concern a Nix client only.
                let path = path.split('?').next().unwrap_or_default();
                let path = PathBuf::from(percent_decode_str(path).decode_utf8_lossy().into_owned());
                if !path.is_dir() {
                    return Err(Error::failed(format!("{url}: no such directory")));
                }
                Place::File(path)
            }
            Some((scheme, _)) => return Err(Error::failed(format!("{scheme}:// is not a cache: {expected}"))),
            // What is before an @ may be a password.
            None if url.contains('@') => {
                return Err(Error::failed(format!("the first argument is no cache: {expected}")));
            }
            None => return Err(Error::failed(format!("{url:?} is not a cache: {expected}"))),
        };
        Ok(Self { place, ahead: Arc::new(Semaphore::new(AHEAD_IN_ALL)), moved: AtomicU64::new(0) })
    }

    /// An object's place, for messages; that of the cache itself for an empty key.
    #[must_use]
    pub fn shown(&self, key: &str) -> String {
        match &self.place {
            Place::S3(bucket) => bucket.location().shown(key),
            Place::Http(http) => http.shown(key),
            Place::File(dir) => dir.join(key).display().to_string(),
        }
    }

    /// Attempts at one request, the first included.
    #[must_use]
    pub fn attempts(&self) -> u32 {
        match &self.place {
            Place::S3(bucket) => bucket.attempts(),
            Place::Http(http) => http.attempts(),
            Place::File(_) => 1,
        }
    }

    /// Whether a read was forbidden, and taken for a sign that the object is missing.
    #[must_use]
    pub fn was_forbidden(&self) -> bool {
        matches!(&self.place, Place::S3(bucket) if bucket.was_forbidden())
    }

    /// Bytes of bodies that have come so far.
    #[must_use]
    pub fn moved(&self) -> u64 {
        self.moved.load(Ordering::Relaxed)
    }

    /// Notes that so many bytes of a body came.
    pub fn count(&self, bytes: usize) {
        self.moved.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Memory for one more range that is fetched before it is needed, if there is any.
    #[must_use]
    pub fn permit(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.ahead).try_acquire_owned().ok()
    }

    /// Begins to read an object as it is stored; none when it is not there. `expected` is the size that it should have.
    ///
    /// # Errors
    /// Fails where the network, the service or the file system does.
    pub async fn get(self: &Arc<Self>, key: &str, expected: Option<u64>) -> Result<Option<Body>> {
        let (to, chunks) = mpsc::channel(CHUNKS);
        let broken = Arc::default();
        if let Place::File(dir) = &self.place {
            let path = dir.join(key);
            let opened = tokio::task::spawn_blocking(move || open_file(&path)).await;
            let opened = opened.map_err(|_| Error::failed("a reading thread died"))?;
            let Some((file, size)) = opened? else { return Ok(None) };
            let (source, key) = (Arc::clone(self), key.to_owned());
            tokio::task::spawn_blocking(move || read_file(file, &source, &key, &to));
            return Ok(Some(Body { size: Some(size), chunks, broken }));
        }
        let first = Span { from: 0, to: Some(RANGE) };
        let asked = match expected {
            Some(size) if size >= LARGE => match self.ask(key, Some(first), None).await? {
                // The object is shorter than it should be, and nothing of it is in this range.
                Asked::Changed => self.ask(key, None, None).await?,
                asked => asked,
            },
            _ => self.ask(key, None, None).await?,
        };
        let Asked::Answer(answer) = asked else { return Ok(None) };
        if answer.start != 0 {
            return Err(Error::failed(format!("reading {}: the server sent another range", self.shown(key))));
        }
        let size = answer.total;
        let transfer = Transfer { source: Arc::clone(self), key: key.to_owned() };
        let breaks = Arc::clone(&broken);
        tokio::spawn(async move {
            let end = transfer.send(answer, &to).await;
            breaks.store(end.is_err(), Ordering::Release);
            // Nobody may be reading any more.
            let _ = to.send(end.map(|()| Chunk::End)).await;
        });
        Ok(Some(Body { size, chunks, broken }))
    }

    /// Begins to read a part of an object; none when the object is not there or too short, or where parts are not to be
    /// had.
    ///
    /// # Errors
    /// As [`Source::get`].
    pub async fn part(self: &Arc<Self>, key: &str, span: Span) -> Result<Option<Body>> {
        let (to, chunks) = mpsc::channel(CHUNKS);
        let broken = Arc::default();
        let size = span.to.map(|to| to - span.from);
        if let Place::File(dir) = &self.place {
            let path = dir.join(key);
            let opened = tokio::task::spawn_blocking(move || open_part(&path, span)).await;
            let Some(file) = opened.map_err(|_| Error::failed("a reading thread died"))?? else { return Ok(None) };
            let (source, key) = (Arc::clone(self), key.to_owned());
            tokio::task::spawn_blocking(move || read_file(file, &source, &key, &to));
            return Ok(Some(Body { size, chunks, broken }));
        }
        let Asked::Answer(answer) = self.ask(key, Some(span), None).await? else { return Ok(None) };
        if !answer.partial || answer.start != span.from {
            return Ok(None);
        }
        let transfer = Transfer { source: Arc::clone(self), key: key.to_owned() };
        tokio::spawn(async move {
            let end = transfer.send_part(answer, span, &to).await;
            // Nobody may be reading any more.
            let _ = to.send(end.map(|()| Chunk::End)).await;
        });
        Ok(Some(Body { size, chunks, broken }))
    }

    /// One request for an object, or a part of it, if its entity tag is still `etag`.
    ///
    /// # Errors
    /// As [`Source::get`].
    pub async fn ask(&self, key: &str, span: Option<Span>, etag: Option<&str>) -> Result<Asked> {
        let range = span.map(Span::header);
        match &self.place {
            Place::S3(bucket) => match bucket.get_part(key, range, etag).await? {
                s3::Reply::Missing => Ok(Asked::Missing),
                s3::Reply::Changed => Ok(Asked::Changed),
                s3::Reply::Object(object) => self.of_bucket(key, *object).map(Asked::Answer),
            },
            Place::Http(http) => match http.get(key, Part { range: range.as_deref(), etag }).await? {
                http::Reply::Missing => Ok(Asked::Missing),
                http::Reply::Changed => Ok(Asked::Changed),
                http::Reply::Response(response) => self.of_server(key, response).map(Asked::Answer),
            },
            Place::File(_) => Ok(Asked::Missing),
        }
    }

    fn of_bucket(&self, key: &str, mut object: s3::Object) -> Result<Answer> {
        let part = object.range.as_deref().map(|range| self.content_range(key, range)).transpose()?;
        let (etag, encoding) = (object.etag.take(), object.encoding.take());
        Ok(Answer {
            start: part.map_or(0, |(start, _)| start),
            partial: part.is_some(),
            total: part.map_or(object.size, |(_, total)| Some(total)),
            etag,
            encoding,
            bytes: object.into_stream(self.shown(key)).boxed(),
        })
    }

    fn of_server(&self, key: &str, response: reqwest::Response) -> Result<Answer> {
        let header = |name: &str| {
            let value: Option<&reqwest::header::HeaderValue> = response.headers().get(name);
            value.and_then(|value| value.to_str().ok()).map(str::to_owned)
        };
        let partial = response.status().as_u16() == 206;
        let range = header("content-range").unwrap_or_default();
        let part = if partial { Some(self.content_range(key, &range)?) } else { None };
        let shown = self.shown(key);
        let failed = move |error| Error::failed(format!("reading {shown}: {}", plain(error)));
        Ok(Answer {
            start: part.map_or(0, |(start, _)| start),
            partial,
            total: part.map_or(response.content_length(), |(_, total)| Some(total)),
            etag: header("etag"),
            encoding: header("content-encoding"),
            bytes: response.bytes_stream().map(move |bytes| bytes.map_err(&failed)).boxed(),
        })
    }

    /// ListFrom and whole size from `bytes START-END/SIZE`.
    fn content_range(&self, key: &str, text: &str) -> Result<(u64, u64)> {
        let parsed = text.strip_prefix("bytes ").and_then(|rest| {
            let (range, total) = rest.split_once('/')?;
            Some((range.split_once('-')?.0.parse().ok()?, total.parse().ok()?))
        });
        parsed.ok_or_else(|| Error::failed(format!("reading {}: a part of unknown range", self.shown(key))))
    }

    /// Reads an object of at most `limit` bytes of text, undoing its `Content-Encoding`; none when it is not there.
    ///
    /// # Errors
    /// As [`Source::get`]; refuses what is larger or no text.
    pub async fn text(&self, key: &str, limit: usize) -> Result<Option<String>> {
        let refused = |why: String| Error::refused(format!("{}: {why}", self.shown(key)));
        let (bytes, encoding) = if let Place::File(dir) = &self.place {
            let path = dir.join(key);
            let read = tokio::task::spawn_blocking(move || read_small(&path, limit)).await;
            let Some(bytes) = read.map_err(|_| Error::failed("a reading thread died"))?? else { return Ok(None) };
            (bytes, None)
        } else {
            let Some(read) = self.small(key, limit).await? else { return Ok(None) };
            read
        };
        if bytes.len() > limit {
            return Err(refused(format!("larger than {limit} bytes")));
        }
        let bytes = decode_content(bytes, encoding.as_deref(), limit).context(|| self.shown(key))?;
        stdio::utf8(bytes).map(Some).context(|| self.shown(key))
    }

    /// At most one chunk more than `limit` bytes; begun anew where it breaks off.
    async fn small(&self, key: &str, limit: usize) -> Result<Option<(Vec<u8>, Option<String>)>> {
        let mut tries = Backoff::new(self.attempts());
        loop {
            let Asked::Answer(answer) = self.ask(key, None, None).await? else { return Ok(None) };
            let (mut stream, mut bytes) = (answer.bytes, Vec::new());
            let failure = loop {
                match stream.next().await {
                    Some(Ok(data)) => bytes.extend_from_slice(&data),
                    Some(Err(failure)) => break failure,
                    None => return Ok(Some((bytes, answer.encoding))),
                }
                if bytes.len() > limit {
                    return Ok(Some((bytes, None)));
                }
            };
            if !tries.again().await {
                return Err(failure);
            }
        }
    }

    /// The hash parts of all paths in the cache.
    ///
    /// # Errors
    /// Fails when the cache cannot be listed, as over HTTP.
    pub async fn list(&self) -> Result<Vec<HashPart>> {
        match &self.place {
            Place::S3(bucket) => list_hash_parts(bucket).await,
            Place::Http(http) => Err(Error::failed(format!(
                "{}: a cache cannot be listed over HTTP; use its s3:// URL",
                http.shown("").trim_end_matches('/')
            ))),
            Place::File(dir) => list_dir(dir),
        }
    }
}

fn read_small(path: &Path, limit: usize) -> Result<Option<Vec<u8>>> {
    let Some((file, _)) = open_file(path)? else { return Ok(None) };
    let mut bytes = Vec::new();
    let read = file.take(limit as u64 + 1).read_to_end(&mut bytes);
    read.map_err(|error| Error::failed(format!("reading {}: {error}", path.display())))?;
    Ok(Some(bytes))
}

fn list_dir(dir: &Path) -> Result<Vec<HashPart>> {
    let entries = std::fs::read_dir(dir).map_err(Error::from).context(|| format!("listing {}", dir.display()))?;
    let mut hashes = Vec::new();
    for entry in entries {
        let name = entry.map_err(Error::from).context(|| format!("listing {}", dir.display()))?.file_name();
        if let Some(Object::Narinfo(hash)) = name.to_str().and_then(Object::of_key) {
            hashes.push(hash);
        }
    }
    hashes.sort_unstable();
    Ok(hashes)
}

fn open_file(path: &Path) -> Result<Option<(std::fs::File, u64)>> {
    // A FIFO would wait for a writer.
    let opened = std::fs::File::options().read(true).custom_flags(OFlags::NONBLOCK.bits().cast_signed()).open(path);
    match opened.and_then(|file| file.metadata().map(|meta| (file, meta))) {
        Ok((file, meta)) if meta.is_file() => Ok(Some((file, meta.len()))),
        Ok(_) => Err(Error::refused(format!("{}: not a regular file", path.display()))),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::failed(format!("opening {}: {error}", path.display()))),
    }
}

fn open_part(path: &Path, span: Span) -> Result<Option<std::io::Take<std::fs::File>>> {
    let Some((mut file, size)) = open_file(path)? else { return Ok(None) };
    let to = span.to.unwrap_or(size);
    if size < to {
        return Ok(None);
    }
    let sought = file.seek(SeekFrom::Start(span.from));
    sought.map_err(|error| Error::failed(format!("reading {}: {error}", path.display())))?;
    Ok(Some(file.take(to - span.from)))
}

fn read_file(mut file: impl Read, source: &Source, key: &str, to: &mpsc::Sender<Result<Chunk>>) {
    loop {
        let mut bytes = Vec::with_capacity(CHUNK);
        let chunk = match (&mut file).take(CHUNK as u64).read_to_end(&mut bytes) {
            Ok(0) => Ok(Chunk::End),
            Ok(_) => {
                let bytes = Bytes::from(bytes);
                source.count(bytes.len());
                Ok(Chunk::Data(Plain(bytes)))
            }
            Err(error) => Err(Error::failed(format!("reading {}: {error}", source.shown(key)))),
        };
        let last = !matches!(chunk, Ok(Chunk::Data(_)));
        if to.blocking_send(chunk).is_err() || last {
            return;
        }
    }
}
