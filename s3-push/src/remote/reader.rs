//! [`Remote`]: a binary cache of any kind, for reading.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use futures_util::future::BoxFuture;
use nar_pack::error::{Context, Error, Result};
use nar_pack::stdio;
use nar_pack::store_path::{HashPart, StoreDir};
use narinfo_gen::cache_info::{self, CacheInfo};
use narinfo_gen::compression::decode_content;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use crate::remote::chunks::Chunk;
use crate::remote::etag::Md5Tag;
use crate::remote::file::{Directory, OpenFile, send_file};
use crate::remote::hints::is_web_page;
use crate::remote::http::HttpCache;
use crate::remote::listing::{list_hash_parts, list_keys};
use crate::remote::location::Location;
use crate::remote::retry::{Backoff, RequestLimits};
use crate::remote::s3::{Access, Bucket};
use crate::remote::transfer::{
    Body, ByteRange, MAX_RANGES_AHEAD, MIN_RANGED_SIZE, RANGE_SIZE, Response, ResumePoint, Transfer,
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
            Some(("s3", _)) => Cache::S3(Arc::new(Bucket::connect(Location::parse(url)?, access, limits, tool).await?)),
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
        let ranges_ahead = Arc::new(Semaphore::new(MAX_RANGES_AHEAD.into()));
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
        let (size, etag) = (object.size, object.strong_etag());
        let transfer = Transfer { remote: Arc::clone(self), key: key.to_owned() };
        Ok(Some(spawn_transfer(size, etag, async move |chunks| transfer.send(object, &chunks).await)))
    }

    /// Continues to read an object as it is stored, if it still has the entity tag that it had. Otherwise, and if the
    /// cache does not support that, returns none.
    ///
    /// # Errors
    /// See [`Remote::get`].
    pub async fn get_from(self: &Arc<Self>, key: &str, from: &ResumePoint) -> Result<Option<Body>> {
        if matches!(self.cache, Cache::File(_)) {
            return Ok(None);
        }
        let range = ByteRange { start: from.position, end: Some(from.position + RANGE_SIZE) };
        let Response::Object(object) = self.request(key, Some(range), Some(&from.etag)).await? else { return Ok(None) };
        let etag = object.strong_etag().filter(|etag| *etag == from.etag);
        match (object.size, etag) {
            (Some(size), Some(etag)) if object.partial && object.start == from.position => {
                let transfer = Transfer { remote: Arc::clone(self), key: key.to_owned() };
                let tag = etag.clone();
                let send = async move |chunks| transfer.send_rest(object, size, tag, &chunks).await;
                Ok(Some(spawn_transfer(Some(size), Some(etag), send)))
            }
            _ => Ok(None),
        }
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
        Ok(Some(spawn_transfer(size, None, async move |chunks| transfer.send_range(object, range, &chunks).await)))
    }

    fn file_body(self: &Arc<Self>, key: &str, (file, _): OpenFile, size: Option<u64>) -> Body {
        let (sender, chunks) = mpsc::channel(MAX_UNREAD_CHUNKS);
        let (remote, path) = (Arc::clone(self), self.display_url(key));
        tokio::task::spawn_blocking(move || send_file(file, &path, &sender, |length| remote.count_received(length)));
        Body { size, etag: None, chunks, broken: Arc::default(), task: None }
    }

    /// Reads an object of UTF-8 text of at most `max_size` bytes, decoding its `Content-Encoding`. Returns none if it
    /// does not exist.
    ///
    /// # Errors
    /// See [`Remote::get`]; refuses a larger object and one that is not text.
    pub async fn text(&self, key: &str, max_size: usize) -> Result<Option<String>> {
        let bytes = self.bytes(key, max_size).await?;
        bytes.map(|bytes| to_text(bytes, &self.display_url(key))).transpose()
    }

    /// Reads `nix-cache-info`, if there is one, and requires the store directory.
    ///
    /// # Errors
    /// See [`Remote::text`]; refuses a malformed one, and one of another store directory.
    pub async fn cache_info(&self, store_dir: &StoreDir) -> Result<Option<CacheInfo>> {
        let Some(text) = self.text(cache_info::KEY, cache_info::MAX_SIZE).await? else { return Ok(None) };
        let info = CacheInfo::parse(&text).and_then(|info| info.require(store_dir).map(|()| info));
        info.context(|| self.display_url(cache_info::KEY)).map(Some)
    }

    /// Reads an object of at most `max_size` bytes, decoding its `Content-Encoding`. Returns none if it does not exist.
    ///
    /// # Errors
    /// See [`Remote::get`]; refuses a larger object.
    pub async fn bytes(&self, key: &str, max_size: usize) -> Result<Option<Vec<u8>>> {
        let object = match &self.cache {
            Cache::S3(bucket) => bucket.get_small(key, max_size).await?,
            Cache::Http(http) => http.get_small(key, max_size).await?,
            Cache::File(directory) => {
                let url = directory.display_url(key);
                let bytes = directory.read(key, max_size).await?;
                bytes.map(|bytes| decode_small(&url, bytes, None, None, max_size)).transpose()?
            }
        };
        Ok(object.map(|object| object.bytes))
    }

    /// Returns the hash parts of all store paths in the cache, sorted, with the MD5 hashes of their narinfos as far as a
    /// listing contains them.
    ///
    /// # Errors
    /// Fails if the cache cannot be listed, as over HTTP.
    pub async fn list_hash_parts(&self) -> Result<Vec<(HashPart, Option<Md5Tag>)>> {
        match &self.cache {
            Cache::S3(bucket) => list_hash_parts(bucket).await,
            Cache::Http(http) => Err(not_listable(http)),
            Cache::File(directory) => {
                Ok(directory.list_hash_parts().await?.into_iter().map(|hash| (hash, None)).collect())
            }
        }
    }

    /// Returns all keys that begin with `prefix`, which ends with a slash; sorted.
    ///
    /// # Errors
    /// Fails if the cache cannot be listed, as over HTTP.
    pub async fn list_keys(&self, prefix: &str) -> Result<Vec<String>> {
        match &self.cache {
            Cache::S3(bucket) => list_keys(bucket, prefix).await,
            Cache::Http(http) => Err(not_listable(http)),
            Cache::File(directory) => directory.list_keys(prefix).await,
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

fn not_listable(http: &HttpCache) -> Error {
    let url = http.display_url("");
    let error = format!("{}: a cache cannot be listed over HTTP", url.trim_end_matches('/'));
    Error::failed(error).with_hint("use the s3:// URL of its bucket")
}

/// Returns the body that `transfer` sends into a channel.
fn spawn_transfer<F>(
    size: Option<u64>,
    etag: Option<String>,
    transfer: impl FnOnce(mpsc::Sender<Result<Chunk>>) -> F,
) -> Body
where
    F: Future<Output = Result> + Send + 'static,
{
    let (sender, chunks) = mpsc::channel(MAX_UNREAD_CHUNKS);
    let broken = Arc::default();
    let set_broken: Arc<AtomicBool> = Arc::clone(&broken);
    let sending = transfer(sender.clone());
    let task = tokio::spawn(async move {
        let result = sending.await;
        set_broken.store(result.is_err(), Ordering::Release);
        // The reader may be gone.
        let _ = sender.send(result.map(|()| Chunk::End)).await;
    });
    Body { size, etag, chunks, broken, task: Some(task.abort_handle()) }
}

/// A small object, decoded.
pub(super) struct SmallObject {
    pub bytes: Vec<u8>,
    /// The entity tag, as sent.
    pub etag: Option<String>,
}

impl SmallObject {
    /// Converts the object to text.
    pub fn into_text(self, display_url: &str) -> Result<TextObject> {
        Ok(TextObject { text: to_text(self.bytes, display_url)?, etag: self.etag })
    }
}

/// Refuses bytes that are not UTF-8, and the web pages that consoles and other web sites send for any path.
fn to_text(bytes: Vec<u8>, display_url: &str) -> Result<String> {
    let text = stdio::utf8(bytes).context(|| display_url)?;
    if is_web_page(&text) {
        let error = Error::refused(format!("{display_url}: a web page, not an object of a cache"));
        return Err(error.with_hint("the URL is that of a web site or a console, not of a cache"));
    }
    Ok(text)
}

/// Reads a small object into memory, and starts again if its body is truncated. Returns none if it does not exist.
pub(super) async fn read_small<'a>(
    request: impl Fn() -> BoxFuture<'a, Result<Response>>,
    display_url: &str,
    max_attempts: u32,
    max_size: usize,
) -> Result<Option<SmallObject>> {
    let mut backoff = Backoff::new(max_attempts);
    loop {
        let Response::Object(mut object) = request().await? else { return Ok(None) };
        let (etag, encoding) = (object.etag.take(), object.content_encoding.take());
        match object.collect(max_size).await {
            Ok(bytes) => return decode_small(display_url, bytes, encoding.as_deref(), etag, max_size).map(Some),
            Err(error) => {
                if !backoff.next_attempt().await {
                    return Err(error);
                }
            }
        }
    }
}

fn decode_small(
    display_url: &str,
    bytes: Vec<u8>,
    encoding: Option<&str>,
    etag: Option<String>,
    max_size: usize,
) -> Result<SmallObject> {
    if bytes.len() > max_size {
        return Err(Error::refused(format!("{display_url}: larger than {max_size} bytes")));
    }
    let bytes = decode_content(bytes, encoding, max_size).context(|| display_url)?;
    Ok(SmallObject { bytes, etag })
}
