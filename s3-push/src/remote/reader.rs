//! [`Remote`]: a binary cache of any kind, for reading.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures_util::future::BoxFuture;
use nar_pack::error::{Context, Error, Result};
use nar_pack::stdio;
use nar_pack::store_path::HashPart;
use narinfo_gen::compression::decode_content;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use crate::remote::chunks::Chunk;
use crate::remote::file::{Directory, OpenFile, send_file};
use crate::remote::hints::is_web_page;
use crate::remote::http::HttpCache;
use crate::remote::listing::list_hash_parts;
use crate::remote::location::Location;
use crate::remote::retry::{Backoff, RequestLimits};
use crate::remote::s3::{Access, Bucket};
use crate::remote::transfer::{
    Body, ByteRange, MAX_RANGES_AHEAD_IN_ALL, MIN_RANGED_SIZE, RANGE_SIZE, Response, Transfer,
};

/// Chunks of a body that wait for its reader.
const MAX_UNREAD_CHUNKS: usize = 8;

/// A binary cache, for reading.
pub struct Remote {
    cache: Cache,
    /// Memory for ranges ahead, a permit for each.
    ranges_ahead: Arc<Semaphore>,
    bytes_received: AtomicU64,
}

enum Cache {
    S3(Arc<Bucket>),
    Http(Box<HttpCache>),
    File(Directory),
}

/// How requests to a remote cache are made.
#[derive(Debug, Clone, Copy)]
pub struct RemoteOptions<'a> {
    /// How requests to S3 are signed.
    pub access: Access,
    /// Timeout, attempts and concurrency.
    pub limits: RequestLimits,
    /// The netrc file for web servers, instead of those at the default paths.
    pub netrc: Option<&'a Path>,
    /// Name of the tool: the prefix of its messages, and the user agent for web servers.
    pub tool: &'static str,
}

/// A small object of UTF-8 text.
#[derive(Debug, Clone)]
pub struct TextObject {
    /// The contents.
    pub text: String,
    /// The entity tag, as sent.
    pub etag: Option<String>,
}

impl Remote {
    /// Opens the cache at an `s3://`, `http://`, `https://` or `file://` URL. Nothing is requested yet.
    ///
    /// # Errors
    /// A usage error for an invalid URL. Fails if a directory does not exist.
    pub async fn open(url: &str, options: RemoteOptions<'_>) -> Result<Self> {
        let RemoteOptions { access, limits, netrc, tool } = options;
        let cache = match url.split_once("://") {
            Some(("s3", _)) => Cache::S3(Arc::new(Bucket::connect(Location::parse(url)?, access, limits, tool).await)),
            Some(("http" | "https", rest)) if !rest.is_empty() => {
                Cache::Http(Box::new(HttpCache::new(url, limits, netrc, tool)?))
            }
            Some(("file", path)) => Cache::File(Directory::open(path)?),
            _ => {
                // What is before an @ may be a password.
                let shown = url.rsplit_once('@').map_or_else(|| url.to_owned(), |(_, host)| format!("…@{host}"));
                let expected = "expected s3://, http://, https:// or file://";
                return Err(Error::usage(format!("invalid cache URL {shown:?}: {expected}")));
            }
        };
        Ok(Self::new(cache))
    }

    /// Returns a reader of a bucket.
    #[must_use]
    pub fn of_bucket(bucket: Arc<Bucket>) -> Self {
        Self::new(Cache::S3(bucket))
    }

    fn new(cache: Cache) -> Self {
        let ranges_ahead = Arc::new(Semaphore::new(MAX_RANGES_AHEAD_IN_ALL.into()));
        Self { cache, ranges_ahead, bytes_received: AtomicU64::new(0) }
    }

    /// Returns the URL or path of an object without passwords, for messages; that of the cache for an empty key.
    #[must_use]
    pub fn display_url(&self, key: &str) -> String {
        match &self.cache {
            Cache::S3(bucket) => bucket.display_url(key),
            Cache::Http(http) => http.display_url(key),
            Cache::File(directory) => directory.display_url(key),
        }
    }

    /// Returns the number of attempts at one request, including the first.
    #[must_use]
    pub fn max_attempts(&self) -> u32 {
        match &self.cache {
            Cache::S3(bucket) => bucket.max_attempts(),
            Cache::Http(http) => http.max_attempts(),
            Cache::File(_) => 1,
        }
    }

    /// Returns whether a read from a bucket was forbidden and treated as if the object were missing.
    #[must_use]
    pub fn was_forbidden(&self) -> bool {
        matches!(&self.cache, Cache::S3(bucket) if bucket.was_forbidden())
    }

    /// Returns how many bytes of bodies have arrived.
    #[must_use]
    pub fn bytes_received(&self) -> u64 {
        self.bytes_received.load(Ordering::Relaxed)
    }

    pub(super) fn count_received(&self, bytes: usize) {
        self.bytes_received.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Reserves the memory for a range ahead, if there is any left.
    pub(super) fn reserve_range(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.ranges_ahead).try_acquire_owned().ok()
    }

    /// Starts to read an object as it is stored. Returns none if it does not exist. `expected_size` decides whether it
    /// is requested in ranges.
    ///
    /// # Errors
    /// Fails if the network, the server or the file system does.
    pub async fn get(self: &Arc<Self>, key: &str, expected_size: Option<u64>) -> Result<Option<Body>> {
        if let Cache::File(directory) = &self.cache {
            let whole = ByteRange { start: 0, end: None };
            let opened = directory.open_object(key, whole).await?;
            return Ok(opened.map(|(file, size)| self.file_body(key, (file, size), Some(size))));
        }
        let response = match expected_size {
            Some(size) if size >= MIN_RANGED_SIZE => {
                let first = ByteRange { start: 0, end: Some(RANGE_SIZE) };
                match self.request(key, Some(first), None).await? {
                    // The object is empty, and no range of it exists.
                    Response::Changed => self.request(key, None, None).await?,
                    response => response,
                }
            }
            _ => self.request(key, None, None).await?,
        };
        let Response::Object(object) = response else { return Ok(None) };
        if object.start != 0 {
            let url = self.display_url(key);
            return Err(Error::failed(format!(
                "cannot read {url}: the server sent another range than the requested one"
            )));
        }
        let size = object.size;
        let transfer = Transfer { remote: Arc::clone(self), key: key.to_owned() };
        Ok(Some(spawn_transfer(size, async move |chunks| transfer.send(object, &chunks).await)))
    }

    /// Starts to read a range of an object. Returns none if the object does not exist or is too short, or if the server
    /// does not support ranges.
    ///
    /// # Errors
    /// See [`Remote::get`].
    pub async fn get_range(self: &Arc<Self>, key: &str, range: ByteRange) -> Result<Option<Body>> {
        let size = range.end.map(|end| end - range.start);
        if let Cache::File(directory) = &self.cache {
            let opened = directory.open_object(key, range).await?;
            return Ok(opened.map(|file| self.file_body(key, file, size)));
        }
        let Response::Object(object) = self.request(key, Some(range), None).await? else { return Ok(None) };
        if !object.partial || object.start != range.start {
            return Ok(None);
        }
        let transfer = Transfer { remote: Arc::clone(self), key: key.to_owned() };
        Ok(Some(spawn_transfer(size, async move |chunks| transfer.send_range(object, range, &chunks).await)))
    }

    fn file_body(self: &Arc<Self>, key: &str, (file, _): OpenFile, size: Option<u64>) -> Body {
        let (sender, chunks) = mpsc::channel(MAX_UNREAD_CHUNKS);
        let (remote, path) = (Arc::clone(self), self.display_url(key));
        tokio::task::spawn_blocking(move || send_file(file, &path, &sender, |length| remote.count_received(length)));
        Body { size, chunks, broken: Arc::default() }
    }

    /// Reads an object of UTF-8 text of at most `max_size` bytes, decoding its `Content-Encoding`. Returns none if it
    /// does not exist.
    ///
    /// # Errors
    /// See [`Remote::get`]; refuses a larger object and one that is not text.
    pub async fn text(&self, key: &str, max_size: usize) -> Result<Option<String>> {
        let object = match &self.cache {
            Cache::S3(bucket) => bucket.get_text(key, max_size).await?,
            Cache::Http(http) => http.get_text(key, max_size).await?,
            Cache::File(directory) => {
                let url = directory.display_url(key);
                let bytes = directory.read(key, max_size).await?;
                bytes.map(|bytes| decode_text(&url, bytes, None, None, max_size)).transpose()?
            }
        };
        Ok(object.map(|object| object.text))
    }

    /// Returns whether an object exists.
    ///
    /// # Errors
    /// See [`Remote::get`].
    pub async fn exists(&self, key: &str) -> Result<bool> {
        match &self.cache {
            Cache::S3(bucket) => Ok(bucket.size(key).await?.is_some()),
            Cache::Http(http) => http.exists(key).await,
            Cache::File(directory) => directory.exists(key).await,
        }
    }

    /// Returns the hash parts of all store paths in the cache, sorted.
    ///
    /// # Errors
    /// Fails if the cache cannot be listed, as over HTTP.
    pub async fn list_hash_parts(&self) -> Result<Vec<HashPart>> {
        match &self.cache {
            Cache::S3(bucket) => list_hash_parts(bucket).await,
            Cache::Http(http) => {
                let url = http.display_url("");
                let error = format!("{}: a cache cannot be listed over HTTP", url.trim_end_matches('/'));
                Err(Error::failed(error).with_hint("use the s3:// URL of its bucket"))
            }
            Cache::File(directory) => directory.list_hash_parts().await,
        }
    }

    /// Requests an object or a range of it, optionally on condition that its entity tag is still `etag`.
    pub(super) async fn request(&self, key: &str, range: Option<ByteRange>, etag: Option<&str>) -> Result<Response> {
        match &self.cache {
            Cache::S3(bucket) => bucket.get(key, range, etag).await,
            Cache::Http(http) => http.get(key, range, etag).await,
            // Directories are read by `Directory::open_object`.
            Cache::File(_) => Ok(Response::Missing),
        }
    }
}

/// Returns the body that `transfer` sends into a channel.
fn spawn_transfer<F>(size: Option<u64>, transfer: impl FnOnce(mpsc::Sender<Result<Chunk>>) -> F) -> Body
where
    F: Future<Output = Result> + Send + 'static,
{
    let (sender, chunks) = mpsc::channel(MAX_UNREAD_CHUNKS);
    let broken = Arc::default();
    let body = Body { size, chunks, broken: Arc::clone(&broken) };
    let sending = transfer(sender.clone());
    tokio::spawn(async move {
        let result = sending.await;
        broken.store(result.is_err(), Ordering::Release);
        // The reader may be gone.
        let _ = sender.send(result.map(|()| Chunk::End)).await;
    });
    body
}

/// Reads a small object into memory, and starts again if its body is truncated. Returns none if it does not exist.
pub(super) async fn read_text<'a>(
    request: impl Fn() -> BoxFuture<'a, Result<Response>>,
    display_url: &str,
    max_attempts: u32,
    max_size: usize,
) -> Result<Option<TextObject>> {
    let mut backoff = Backoff::new(max_attempts);
    loop {
        let Response::Object(mut object) = request().await? else { return Ok(None) };
        let (etag, encoding) = (object.etag.take(), object.content_encoding.take());
        match object.collect(max_size).await {
            Ok(bytes) => return decode_text(display_url, bytes, encoding.as_deref(), etag, max_size).map(Some),
            Err(error) => {
                if !backoff.next_attempt().await {
                    return Err(error);
                }
            }
        }
    }
}

fn decode_text(
    display_url: &str,
    bytes: Vec<u8>,
    encoding: Option<&str>,
    etag: Option<String>,
    max_size: usize,
) -> Result<TextObject> {
    if bytes.len() > max_size {
        return Err(Error::refused(format!("{display_url}: larger than {max_size} bytes")));
    }
    let bytes = decode_content(bytes, encoding, max_size).context(|| display_url)?;
    let text = stdio::utf8(bytes).context(|| display_url)?;
    if is_web_page(&text) {
        let error = Error::refused(format!("{display_url}: a web page, not an object of a cache"));
        return Err(error.with_hint("the URL is that of a web site or a console, not of a cache"));
    }
    Ok(TextObject { text, etag })
}
