//! Where a cache is read from: `s3://`, `http://`, `https://` or `file://`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use nar_pack::stage::{self, Doing, Failure, Outcome};
use nar_pack::store_path::HashPart;
use narinfo_gen::archive::Object;
use narinfo_gen::compression::decode_content;
use percent_encoding::percent_decode_str;
use s3_push::chunks::{Chunk, forward};
use s3_push::client::{Access, Bucket, chain, root_cause};
use s3_push::existing::list_hash_parts;
use s3_push::location::Location;
use std::io::Read;
use tokio::sync::mpsc;

use crate::TOOL;

/// Time in which a connection must be made.
const CONNECT: Duration = Duration::from_secs(10);
/// Attempts at one request, the first included.
const ATTEMPTS: u32 = 5;
/// Wait before the first repetition; it doubles each time.
const BACKOFF: Duration = Duration::from_millis(250);
/// Chunks of a body that may wait to be read.
const CHUNKS: usize = 8;
/// Bytes of a file in one chunk.
const FILE_CHUNK: usize = 256 * 1024;

/// A binary cache to read from.
pub enum Source {
    /// A bucket, through the S3 interface.
    S3(Box<Bucket>),
    /// Plain HTTP or HTTPS.
    Http(Http),
    /// A directory.
    File(PathBuf),
}

/// A cache behind a URL.
pub struct Http {
    client: reqwest::Client,
    base: String,
    /// The base without user name and password, for messages.
    shown: String,
    hinted: std::sync::atomic::AtomicBool,
}

/// The body of an object, arriving.
pub struct Body {
    /// Its size in bytes, where known.
    pub size: Option<u64>,
    /// Its chunks.
    pub chunks: mpsc::Receiver<Outcome<Chunk>>,
}

impl Source {
    /// The cache that `url` names. A transfer must not stall for longer than `idle`.
    ///
    /// # Errors
    /// A usage failure for a URL of another kind, or a directory that is not there.
    pub async fn open(url: &str, access: Access, idle: Duration) -> Outcome<Self> {
        match url.split_once("://") {
            Some(("s3", _)) => Ok(Self::S3(Box::new(Bucket::connect(Location::parse(url)?, access, idle, TOOL).await))),
            Some(("http" | "https", rest)) if !rest.is_empty() => Ok(Self::Http(Http::new(url, idle)?)),
            Some(("file", path)) => {
                // Parameters of the store, as Nix takes them, concern a Nix client only.
                let path = path.split('?').next().unwrap_or_default();
                let path = PathBuf::from(percent_decode_str(path).decode_utf8_lossy().into_owned());
                if path.is_dir() {
                    return Ok(Self::File(path));
                }
                Err(Failure::failed(format!("{url}: no such directory")))
            }
            Some((scheme, _)) => Err(Failure::failed(format!(
                "{scheme}:// is not a cache: expected s3://, http://, https:// or file://"
            ))),
            None => {
                Err(Failure::failed(format!("{url:?} is not a cache: expected s3://, http://, https:// or file://")))
            }
        }
    }

    /// An object's place, for messages.
    #[must_use]
    pub fn shown(&self, key: &str) -> String {
        match self {
            Self::S3(bucket) => bucket.location().shown(key),
            Self::Http(http) => http.shown(key),
            Self::File(dir) => dir.join(key).display().to_string(),
        }
    }

    /// Begins to read an object as it is stored; none when it is not there.
    ///
    /// # Errors
    /// Fails where the network, the service or the file system does.
    pub async fn get(&self, key: &str) -> Outcome<Option<Body>> {
        Ok(self.get_encoded(key).await?.map(|(body, _)| body))
    }

    /// As [`Source::get`], with the `Content-Encoding` that the object has.
    async fn get_encoded(&self, key: &str) -> Outcome<Option<(Body, Option<String>)>> {
        let (to, chunks) = mpsc::channel(CHUNKS);
        match self {
            Self::S3(bucket) => {
                let Some(mut object) = bucket.get(key).await? else { return Ok(None) };
                let (size, encoding, shown) = (object.size, object.encoding.take(), self.shown(key));
                tokio::spawn(forward(to, object.into_stream(shown)));
                Ok(Some((Body { size, chunks }, encoding)))
            }
            Self::Http(http) => {
                let Some(response) = http.get(key).await? else { return Ok(None) };
                let header = response.headers().get("content-encoding");
                let encoding = header.and_then(|value| value.to_str().ok()).map(str::to_owned);
                let (size, shown) = (response.content_length(), self.shown(key));
                let body = response.bytes_stream();
                let failed = move |error| Failure::failed(format!("reading {shown}: {}", plain(error)));
                tokio::spawn(forward(to, body.map(move |bytes| bytes.map_err(&failed))));
                Ok(Some((Body { size, chunks }, encoding)))
            }
            Self::File(dir) => {
                let path = dir.join(key);
                let opened = tokio::task::spawn_blocking(move || open_file(&path)).await;
                let opened = opened.map_err(|_| Failure::failed("a reading thread died"))?;
                let Some((file, size)) = opened? else { return Ok(None) };
                let shown = self.shown(key);
                tokio::task::spawn_blocking(move || read_file(file, &shown, &to));
                Ok(Some((Body { size: Some(size), chunks }, None)))
            }
        }
    }

    /// Reads an object of at most `limit` bytes of text, undoing its `Content-Encoding`; none when it is not there.
    ///
    /// # Errors
    /// As [`Source::get`]; refuses what is larger or no text.
    pub async fn text(&self, key: &str, limit: usize) -> Outcome<Option<String>> {
        let Some((mut body, encoding)) = self.get_encoded(key).await? else { return Ok(None) };
        let refused = |why: String| Failure::refused(format!("{}: {why}", self.shown(key)));
        let mut bytes = Vec::new();
        loop {
            match body.chunks.recv().await {
                Some(Ok(Chunk::Data(data))) if bytes.len() + data.0.len() > limit => {
                    return Err(refused(format!("larger than {limit} bytes")));
                }
                Some(Ok(Chunk::Data(data))) => bytes.extend_from_slice(&data.0),
                Some(Ok(Chunk::End)) => break,
                Some(Err(failure)) => return Err(failure),
                None => return Err(Failure::failed(format!("reading {}: it is cut off", self.shown(key)))),
            }
        }
        let bytes = decode_content(bytes, encoding.as_deref(), limit).doing(|| self.shown(key))?;
        String::from_utf8(bytes).map(Some).map_err(|_| refused("not UTF-8 text".to_owned()))
    }

    /// The hash parts of all paths in the cache.
    ///
    /// # Errors
    /// Fails when the cache cannot be listed, as over HTTP.
    pub async fn list(&self) -> Outcome<Vec<HashPart>> {
        match self {
            Self::S3(bucket) => list_hash_parts(bucket).await,
            Self::Http(http) => {
                Err(Failure::failed(format!("{}: a cache cannot be listed over HTTP; use its s3:// URL", http.shown)))
            }
            Self::File(dir) => list_dir(dir),
        }
    }
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

fn read_file(mut file: std::fs::File, shown: &str, to: &mpsc::Sender<Outcome<Chunk>>) {
    loop {
        let mut bytes = Vec::with_capacity(FILE_CHUNK);
        let chunk = match (&mut file).take(FILE_CHUNK as u64).read_to_end(&mut bytes) {
            Ok(0) => Ok(Chunk::End),
            Ok(_) => Ok(Chunk::Data(s3_push::chunks::Plain(Bytes::from(bytes)))),
            Err(error) => Err(Failure::failed(format!("reading {shown}: {error}"))),
        };
        let last = !matches!(chunk, Ok(Chunk::Data(_)));
        if to.blocking_send(chunk).is_err() || last {
            return;
        }
    }
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
        let trimmed = |url: &reqwest::Url| url.as_str().trim_end_matches('/').to_owned();
        let client = reqwest::Client::builder()
            .user_agent(concat!("s3-pull/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(CONNECT)
            .read_timeout(idle)
            .build()
            .map_err(|error| Failure::failed(format!("setting up HTTP: {}", chain(&error))))?;
        Ok(Self { client, base: trimmed(&base), shown: trimmed(&shown), hinted: false.into() })
    }

    fn url(&self, key: &str) -> String {
        format!("{}/{key}", self.base)
    }

    fn shown(&self, key: &str) -> String {
        format!("{}/{key}", self.shown)
    }

    async fn get(&self, key: &str) -> Outcome<Option<reqwest::Response>> {
        let (url, shown) = (self.url(key), self.shown(key));
        let mut wait = BACKOFF;
        for attempt in 1.. {
            let last = attempt == ATTEMPTS;
            let failure = match self.client.get(&url).send().await {
                Ok(response) => match response.status().as_u16() {
                    200 => return Ok(Some(response)),
                    404 | 410 => return Ok(None),
                    // What a bucket says of a key that is not there when listing is not allowed.
                    403 => {
                        self.hint(&shown);
                        return Ok(None);
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
        Ok(None)
    }

    fn hint(&self, url: &str) {
        if !self.hinted.swap(true, std::sync::atomic::Ordering::Relaxed) {
            stage::say(
                TOOL,
                format!("{url}: forbidden (403), taken for missing; reading it takes s3:GetObject for everybody"),
            );
        }
    }
}

/// The message without the URL, which is said before it.
fn plain(error: reqwest::Error) -> String {
    let error = error.without_url();
    if error.is_connect() { format!("cannot connect: {}", root_cause(&error)) } else { chain(&error) }
}
