//! Where a cache is read from: `s3://`, `http://`, `https://` or `file://`.
//!
//! Large objects come in ranges, several at once, all pinned to the entity tag of the first; a body that breaks off is
//! continued under the same condition. So bytes of two objects are never mixed.

use std::collections::VecDeque;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use nar_pack::stage::{self, Doing, Failure, Outcome};
use nar_pack::store_path::HashPart;
use narinfo_gen::archive::Object;
use narinfo_gen::compression::decode_content;
use percent_encoding::percent_decode_str;
use s3_push::chunks::{Chunk, Plain};
use s3_push::client::{Access, Bucket, Reply, chain, root_cause};
use s3_push::existing::list_hash_parts;
use s3_push::location::Location;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinHandle;

use crate::TOOL;
use crate::netrc::{self, Login};

/// Time in which a connection must be made.
const CONNECT: Duration = Duration::from_secs(10);
/// Attempts at one request, the first included.
const ATTEMPTS: u32 = 5;
/// Wait before the first repetition; it doubles each time.
const BACKOFF: Duration = Duration::from_millis(250);
/// Chunks of a body that may wait to be read.
const CHUNKS: usize = 8;
/// Bytes of a file, or of a range, in one chunk.
const CHUNK: usize = 256 * 1024;
/// Objects of at least so many bytes come in ranges.
const LARGE: u64 = 16 << 20;
/// Bytes in a range.
const RANGE: u64 = 4 << 20;
/// Ranges of one object that may be under way or wait to be read.
const AHEAD: usize = 4;
/// The same for all objects of a source; the range that is being read does not count, so nothing waits for ever.
const AHEAD_IN_ALL: usize = 8;
/// How often a body is continued; a server that sends a byte and hangs up must not keep us busy for ever.
const CONTINUATIONS: u32 = 64;

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
    Http(Http),
    /// A directory.
    File(PathBuf),
}

/// A cache behind a URL.
struct Http {
    client: reqwest::Client,
    base: String,
    /// The base without user name and password, for messages.
    shown: String,
    login: Option<Login>,
    hinted: AtomicBool,
}

/// The body of an object, arriving.
pub struct Body {
    /// Its size in bytes, where known.
    pub size: Option<u64>,
    /// Its chunks.
    pub chunks: mpsc::Receiver<Outcome<Chunk>>,
}

/// The beginning of an answer to a request for an object or a part of it.
struct Answer {
    /// Where in the object its bytes begin.
    start: u64,
    /// Whether it is a part only.
    partial: bool,
    /// Size of the whole object.
    total: Option<u64>,
    etag: Option<String>,
    encoding: Option<String>,
    bytes: BoxStream<'static, Outcome<Bytes>>,
}

enum Asked {
    Answer(Answer),
    Missing,
    Changed,
}

impl Answer {
    /// The entity tag, if it promises the same bytes.
    fn pin(&self) -> Option<String> {
        self.etag.clone().filter(|etag| !etag.starts_with("W/"))
    }
}

/// A range that is fetched before it is needed; given up when nobody needs it any more.
struct Ahead {
    task: JoinHandle<Outcome<Bytes>>,
    _permit: Option<OwnedSemaphorePermit>,
}

impl Drop for Ahead {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Source {
    /// The cache that `url` names. A transfer must not stall for longer than `idle`.
    ///
    /// # Errors
    /// A usage failure for a URL of another kind, or a directory that is not there.
    pub async fn open(url: &str, access: Access, idle: Duration) -> Outcome<Self> {
        let expected = "expected s3://, http://, https:// or file://";
        let place = match url.split_once("://") {
            Some(("s3", _)) => Place::S3(Box::new(Bucket::connect(Location::parse(url)?, access, idle, TOOL).await)),
            Some(("http" | "https", rest)) if !rest.is_empty() => Place::Http(Http::new(url, idle)?),
            Some(("file", path)) => {
                // Parameters of the store, as Nix takes them, concern a Nix client only.
                let path = path.split('?').next().unwrap_or_default();
                let path = PathBuf::from(percent_decode_str(path).decode_utf8_lossy().into_owned());
                if !path.is_dir() {
                    return Err(Failure::failed(format!("{url}: no such directory")));
                }
                Place::File(path)
            }
            Some((scheme, _)) => return Err(Failure::failed(format!("{scheme}:// is not a cache: {expected}"))),
            None => return Err(Failure::failed(format!("{url:?} is not a cache: {expected}"))),
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

    /// Bytes of bodies that have come so far.
    #[must_use]
    pub fn moved(&self) -> u64 {
        self.moved.load(Ordering::Relaxed)
    }

    /// Begins to read an object as it is stored; none when it is not there. `expected` is the size that it should have.
    ///
    /// # Errors
    /// Fails where the network, the service or the file system does.
    pub async fn get(self: &Arc<Self>, key: &str, expected: Option<u64>) -> Outcome<Option<Body>> {
        let (to, chunks) = mpsc::channel(CHUNKS);
        if let Place::File(dir) = &self.place {
            let path = dir.join(key);
            let opened = tokio::task::spawn_blocking(move || open_file(&path)).await;
            let opened = opened.map_err(|_| Failure::failed("a reading thread died"))?;
            let Some((file, size)) = opened? else { return Ok(None) };
            let source = Arc::clone(self);
            let key = key.to_owned();
            tokio::task::spawn_blocking(move || read_file(file, &source, &key, &to));
            return Ok(Some(Body { size: Some(size), chunks }));
        }
        let range = expected.is_some_and(|size| size >= LARGE).then_some((0, Some(RANGE)));
        let answer = match self.ask(key, range, None).await? {
            Asked::Answer(answer) => answer,
            Asked::Missing | Asked::Changed => return Ok(None),
        };
        if answer.start != 0 {
            return Err(Failure::failed(format!("reading {}: the server sent another range", self.shown(key))));
        }
        let size = answer.total;
        let (source, key) = (Arc::clone(self), key.to_owned());
        tokio::spawn(async move {
            let last = match (answer.partial, answer.total, answer.pin()) {
                (true, Some(total), Some(pin)) if total > RANGE => source.ranges(&key, answer, total, pin, &to).await,
                // A part that cannot be pinned is given up for the whole.
                (true, Some(total), _) if total > RANGE => match source.ask(&key, None, None).await {
                    Ok(Asked::Answer(whole)) if whole.start == 0 => source.relay(&key, whole, &to).await,
                    Ok(_) => Err(source.changed(&key)),
                    Err(failure) => Err(failure),
                },
                _ => source.relay(&key, answer, &to).await,
            };
            // Nobody may be reading any more.
            let _ = to.send(last.map(|()| Chunk::End)).await;
        });
        Ok(Some(Body { size, chunks }))
    }

    fn changed(&self, key: &str) -> Failure {
        Failure::failed(format!("reading {}: it changed while it was read", self.shown(key)))
    }

    /// One request; `range` is where it begins and how long it is.
    async fn ask(&self, key: &str, range: Option<(u64, Option<u64>)>, etag: Option<&str>) -> Outcome<Asked> {
        let range = range.map(|(start, length)| match length {
            Some(length) => format!("bytes={start}-{}", start + length.saturating_sub(1)),
            None => format!("bytes={start}-"),
        });
        match &self.place {
            Place::S3(bucket) => Ok(match bucket.get_part(key, range, etag).await? {
                Reply::Missing => Asked::Missing,
                Reply::Changed => Asked::Changed,
                Reply::Object(mut object) => {
                    let part = object.range.as_deref().map(|range| self.content_range(key, range)).transpose()?;
                    let (etag, encoding) = (object.etag.take(), object.encoding.take());
                    Asked::Answer(Answer {
                        start: part.map_or(0, |(start, _)| start),
                        partial: part.is_some(),
                        total: part.map_or(object.size, |(_, total)| Some(total)),
                        etag,
                        encoding,
                        bytes: object.into_stream(self.shown(key)).boxed(),
                    })
                }
            }),
            Place::Http(http) => {
                let response = match http.get(key, range.as_deref(), etag).await? {
                    HttpReply::Missing => return Ok(Asked::Missing),
                    HttpReply::Changed => return Ok(Asked::Changed),
                    HttpReply::Response(response) => response,
                };
                let header = |name: &str| {
                    let value: Option<&reqwest::header::HeaderValue> = response.headers().get(name);
                    value.and_then(|value| value.to_str().ok()).map(str::to_owned)
                };
                let partial = response.status().as_u16() == 206;
                let part = match header("content-range").filter(|_| partial) {
                    Some(range) => Some(self.content_range(key, &range)?),
                    None if partial => {
                        return Err(Failure::failed(format!("reading {}: a part of unknown range", self.shown(key))));
                    }
                    None => None,
                };
                let shown = self.shown(key);
                let failed = move |error| Failure::failed(format!("reading {shown}: {}", plain(error)));
                Ok(Asked::Answer(Answer {
                    start: part.map_or(0, |(start, _)| start),
                    partial,
                    total: part.map_or(response.content_length(), |(_, total)| Some(total)),
                    etag: header("etag"),
                    encoding: header("content-encoding"),
                    bytes: response.bytes_stream().map(move |bytes| bytes.map_err(&failed)).boxed(),
                }))
            }
            Place::File(_) => Ok(Asked::Missing),
        }
    }

    /// Start and whole size from `bytes START-END/SIZE`.
    fn content_range(&self, key: &str, text: &str) -> Outcome<(u64, u64)> {
        let parsed = text.strip_prefix("bytes ").and_then(|rest| {
            let (range, total) = rest.split_once('/')?;
            Some((range.split_once('-')?.0.parse().ok()?, total.parse().ok()?))
        });
        parsed.ok_or_else(|| Failure::failed(format!("reading {}: a part of unknown range", self.shown(key))))
    }

    fn count(&self, bytes: &Bytes) {
        self.moved.fetch_add(bytes.len() as u64, Ordering::Relaxed);
    }

    /// Passes on one body to its end, and continues it where it broke off.
    async fn relay(&self, key: &str, answer: Answer, to: &mpsc::Sender<Outcome<Chunk>>) -> Outcome {
        let (pin, total) = (answer.pin(), answer.total);
        let (mut at, mut bytes) = (0_u64, answer.bytes);
        for continuation in 0.. {
            let failure = loop {
                match bytes.next().await {
                    Some(Ok(data)) => {
                        at += data.len() as u64;
                        self.count(&data);
                        if to.send(Ok(Chunk::Data(Plain(data)))).await.is_err() {
                            return Ok(());
                        }
                    }
                    Some(Err(failure)) => break failure,
                    None if total.is_some_and(|total| at < total) => {
                        break Failure::failed(format!("reading {}: it is cut off", self.shown(key)));
                    }
                    None => return Ok(()),
                }
            };
            let Some(pin) = pin.as_deref().filter(|_| continuation < CONTINUATIONS) else { return Err(failure) };
            bytes = self.repeat(key, (at, None), pin, failure).await?.bytes;
        }
        Ok(())
    }

    /// The rest of an object after `failure`, as long as it has the same entity tag.
    async fn repeat(&self, key: &str, range: (u64, Option<u64>), pin: &str, failure: Failure) -> Outcome<Answer> {
        let mut wait = BACKOFF;
        for _ in 1..ATTEMPTS {
            tokio::time::sleep(wait).await;
            wait *= 2;
            match self.ask(key, Some(range), Some(pin)).await {
                Ok(Asked::Answer(answer)) if answer.etag.as_deref() != Some(pin) => return Err(self.changed(key)),
                Ok(Asked::Answer(answer)) if answer.partial && answer.start == range.0 => return Ok(answer),
                Ok(Asked::Changed) => return Err(self.changed(key)),
                Ok(_) => return Err(failure),
                Err(_) => {}
            }
        }
        Err(failure)
    }

    /// Passes on an object of which the first range has begun to come; the others are fetched meanwhile.
    async fn ranges(
        self: &Arc<Self>,
        key: &str,
        first: Answer,
        total: u64,
        pin: String,
        to: &mpsc::Sender<Outcome<Chunk>>,
    ) -> Outcome {
        let pin = Arc::new(pin);
        let mut next = RANGE;
        let mut ahead: VecDeque<Ahead> = VecDeque::new();
        let mut current = Some(self.collect(key, first, 0, RANGE, &pin));
        loop {
            while next < total && ahead.len() < AHEAD {
                let permit = Arc::clone(&self.ahead).try_acquire_owned().ok();
                if permit.is_none() && (current.is_some() || !ahead.is_empty()) {
                    break;
                }
                let (source, key, pin, start) = (Arc::clone(self), key.to_owned(), Arc::clone(&pin), next);
                let length = RANGE.min(total - next);
                let task = tokio::spawn(async move { source.range(&key, start, length, &pin).await });
                ahead.push_back(Ahead { task, _permit: permit });
                next += length;
            }
            let (mut bytes, _permit) = match (current.take(), ahead.pop_front()) {
                (Some(first), popped) => {
                    if let Some(popped) = popped {
                        ahead.push_front(popped);
                    }
                    (first.await?, None)
                }
                (None, Some(mut range)) => {
                    let bytes = (&mut range.task).await.map_err(|_| Failure::failed("a fetching task died"))??;
                    (bytes, Some(range))
                }
                (None, None) => return Ok(()),
            };
            while !bytes.is_empty() {
                let data = bytes.split_to(CHUNK.min(bytes.len()));
                if to.send(Ok(Chunk::Data(Plain(data)))).await.is_err() {
                    return Ok(());
                }
            }
        }
    }

    async fn range(&self, key: &str, start: u64, length: u64, pin: &str) -> Outcome<Bytes> {
        let answer = match self.ask(key, Some((start, Some(length))), Some(pin)).await {
            Ok(Asked::Answer(answer)) => answer,
            Ok(Asked::Changed | Asked::Missing) => return Err(self.changed(key)),
            Err(failure) => self.repeat(key, (start, Some(length)), pin, failure).await?,
        };
        self.collect(key, answer, start, length, pin).await
    }

    /// All bytes of a range, of which the answer is the first attempt.
    async fn collect(&self, key: &str, answer: Answer, start: u64, length: u64, pin: &str) -> Outcome<Bytes> {
        let whole = usize::try_from(length).unwrap_or(usize::MAX);
        let mut bytes = BytesMut::with_capacity(whole);
        let mut answer = answer;
        for continuation in 0.. {
            if answer.etag.as_deref() != Some(pin) {
                return Err(self.changed(key));
            }
            let at = start + bytes.len() as u64;
            if !answer.partial || answer.start != at {
                return Err(Failure::failed(format!("reading {}: the server sent another range", self.shown(key))));
            }
            let failure = loop {
                match answer.bytes.next().await {
                    Some(Ok(data)) if bytes.len() + data.len() > whole => {
                        return Err(Failure::failed(format!("reading {}: more came than asked for", self.shown(key))));
                    }
                    Some(Ok(data)) => {
                        self.count(&data);
                        bytes.extend_from_slice(&data);
                    }
                    Some(Err(failure)) => break failure,
                    None if bytes.len() == whole => return Ok(bytes.freeze()),
                    None => break Failure::failed(format!("reading {}: it is cut off", self.shown(key))),
                }
            };
            if continuation == CONTINUATIONS {
                return Err(failure);
            }
            let done = bytes.len() as u64;
            answer = self.repeat(key, (start + done, Some(length - done)), pin, failure).await?;
        }
        Ok(bytes.freeze())
    }

    /// Reads an object of at most `limit` bytes of text, undoing its `Content-Encoding`; none when it is not there.
    ///
    /// # Errors
    /// As [`Source::get`]; refuses what is larger or no text.
    pub async fn text(&self, key: &str, limit: usize) -> Outcome<Option<String>> {
        let refused = |why: String| Failure::refused(format!("{}: {why}", self.shown(key)));
        let (bytes, encoding) = if let Place::File(dir) = &self.place {
            let path = dir.join(key);
            let read = tokio::task::spawn_blocking(move || read_small(&path, limit)).await;
            let Some(bytes) = read.map_err(|_| Failure::failed("a reading thread died"))?? else { return Ok(None) };
            (bytes, None)
        } else {
            let Some(read) = self.small(key, limit).await? else { return Ok(None) };
            read
        };
        if bytes.len() > limit {
            return Err(refused(format!("larger than {limit} bytes")));
        }
        let bytes = decode_content(bytes, encoding.as_deref(), limit).doing(|| self.shown(key))?;
        String::from_utf8(bytes).map(Some).map_err(|_| refused("not UTF-8 text".to_owned()))
    }

    /// At most one chunk more than `limit` bytes; begun anew where it breaks off.
    async fn small(&self, key: &str, limit: usize) -> Outcome<Option<(Vec<u8>, Option<String>)>> {
        let mut wait = BACKOFF;
        let mut attempt = 1;
        loop {
            let Asked::Answer(mut answer) = self.ask(key, None, None).await? else { return Ok(None) };
            let mut bytes = Vec::new();
            let failure = loop {
                match answer.bytes.next().await {
                    Some(Ok(data)) => bytes.extend_from_slice(&data),
                    Some(Err(failure)) => break failure,
                    None => return Ok(Some((bytes, answer.encoding))),
                }
                if bytes.len() > limit {
                    return Ok(Some((bytes, None)));
                }
            };
            if attempt == ATTEMPTS {
                return Err(failure);
            }
            attempt += 1;
            tokio::time::sleep(wait).await;
            wait *= 2;
        }
    }

    /// The hash parts of all paths in the cache.
    ///
    /// # Errors
    /// Fails when the cache cannot be listed, as over HTTP.
    pub async fn list(&self) -> Outcome<Vec<HashPart>> {
        match &self.place {
            Place::S3(bucket) => list_hash_parts(bucket).await,
            Place::Http(http) => {
                Err(Failure::failed(format!("{}: a cache cannot be listed over HTTP; use its s3:// URL", http.shown)))
            }
            Place::File(dir) => list_dir(dir),
        }
    }
}

fn read_small(path: &Path, limit: usize) -> Outcome<Option<Vec<u8>>> {
    let Some((file, _)) = open_file(path)? else { return Ok(None) };
    let mut bytes = Vec::new();
    let read = file.take(limit as u64 + 1).read_to_end(&mut bytes);
    read.map_err(|error| Failure::failed(format!("reading {}: {error}", path.display())))?;
    Ok(Some(bytes))
}

fn list_dir(dir: &Path) -> Outcome<Vec<HashPart>> {
    let entries = std::fs::read_dir(dir).map_err(Failure::from).doing(|| format!("listing {}", dir.display()))?;
    let mut hashes = Vec::new();
    for entry in entries {
        let name = entry.map_err(Failure::from).doing(|| format!("listing {}", dir.display()))?.file_name();
        if let Some(Object::Narinfo(hash)) = name.to_str().and_then(Object::of_key) {
            hashes.push(hash);
        }
    }
    hashes.sort_unstable();
    Ok(hashes)
}

fn open_file(path: &Path) -> Outcome<Option<(std::fs::File, u64)>> {
    match std::fs::File::open(path).and_then(|file| file.metadata().map(|meta| (file, meta))) {
        Ok((file, meta)) if meta.is_file() => Ok(Some((file, meta.len()))),
        Ok(_) => Err(Failure::refused(format!("{}: not a regular file", path.display()))),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Failure::failed(format!("opening {}: {error}", path.display()))),
    }
}

fn read_file(mut file: std::fs::File, source: &Source, key: &str, to: &mpsc::Sender<Outcome<Chunk>>) {
    loop {
        let mut bytes = Vec::with_capacity(CHUNK);
        let chunk = match (&mut file).take(CHUNK as u64).read_to_end(&mut bytes) {
            Ok(0) => Ok(Chunk::End),
            Ok(_) => {
                let bytes = Bytes::from(bytes);
                source.count(&bytes);
                Ok(Chunk::Data(Plain(bytes)))
            }
            Err(error) => Err(Failure::failed(format!("reading {}: {error}", source.shown(key)))),
        };
        let last = !matches!(chunk, Ok(Chunk::Data(_)));
        if to.blocking_send(chunk).is_err() || last {
            return;
        }
    }
}

enum HttpReply {
    Response(reqwest::Response),
    Missing,
    Changed,
}

impl Http {
    fn new(url: &str, idle: Duration) -> Outcome<Self> {
        // Installing it twice is the only way in which this fails.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut base =
            reqwest::Url::parse(url).map_err(|error| Failure::failed(format!("the cache's URL: {error}")))?;
        // Parameters of the store, as Nix takes them, concern a Nix client only.
        base.set_query(None);
        base.set_fragment(None);
        let mut shown = base.clone();
        // Only a URL without a host has no place for these.
        let _ = shown.set_username("").and_then(|()| shown.set_password(None));
        // A user name in the URL says that its owner knows better than the file.
        let login = match base.host_str() {
            Some(host) if base.username().is_empty() => netrc::login(host)?,
            _ => None,
        };
        let trimmed = |url: &reqwest::Url| url.as_str().trim_end_matches('/').to_owned();
        let client = reqwest::Client::builder()
            .user_agent(concat!("s3-pull/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(CONNECT)
            .read_timeout(idle)
            .build()
            .map_err(|error| Failure::failed(format!("setting up HTTP: {}", chain(&error))))?;
        Ok(Self { client, base: trimmed(&base), shown: trimmed(&shown), login, hinted: false.into() })
    }

    fn url(&self, key: &str) -> String {
        format!("{}/{key}", self.base)
    }

    fn shown(&self, key: &str) -> String {
        format!("{}/{key}", self.shown)
    }

    /// One object or a range of it. Of a redirect to another host reqwest keeps the password back.
    async fn get(&self, key: &str, range: Option<&str>, etag: Option<&str>) -> Outcome<HttpReply> {
        let (url, shown) = (self.url(key), self.shown(key));
        let mut wait = BACKOFF;
        for attempt in 1.. {
            let last = attempt == ATTEMPTS;
            let mut request = self.client.get(&url);
            if let Some(login) = &self.login {
                request = request.basic_auth(&login.name, Some(&login.password));
            }
            let headers = [("range", range), ("if-match", etag)];
            for (name, value) in headers.into_iter().filter_map(|(name, value)| Some((name, value?))) {
                request = request.header(name, value);
            }
            let failure = match request.send().await {
                Ok(response) => match response.status().as_u16() {
                    200 => return Ok(HttpReply::Response(response)),
                    206 if range.is_some() => return Ok(HttpReply::Response(response)),
                    404 | 410 => return Ok(HttpReply::Missing),
                    412 if etag.is_some() => return Ok(HttpReply::Changed),
                    401 | 407 => (
                        format!(
                            "HTTP {} (a user name and password are wanted: see netrc in --help)",
                            response.status().as_u16()
                        ),
                        false,
                    ),
                    // What a bucket says of a key that is not there when listing is not allowed.
                    403 => {
                        self.hint(&shown);
                        return Ok(HttpReply::Missing);
                    }
                    code @ (429 | 500 | 502..=504) => (format!("HTTP {code}"), true),
                    code => (format!("HTTP {code}"), false),
                },
                Err(error) => {
                    let again = error.is_connect() || error.is_timeout() || error.is_request();
                    (plain(error), again && !last)
                }
            };
            if last || !failure.1 {
                return Err(Failure::failed(format!("reading {shown}: {}", failure.0)));
            }
            tokio::time::sleep(wait).await;
            wait *= 2;
        }
        Ok(HttpReply::Missing)
    }

    fn hint(&self, url: &str) {
        if !self.hinted.swap(true, Ordering::Relaxed) {
            stage::say(
                TOOL,
                format!(
                    "{url}: forbidden (403), taken for missing; check that the URL is right and that it may be read without (or with these) credentials"
                ),
            );
        }
    }
}

/// The message without the URL, which is said before it.
fn plain(error: reqwest::Error) -> String {
    let error = error.without_url();
    if error.is_connect() { format!("cannot connect: {}", root_cause(&error)) } else { chain(&error) }
}
