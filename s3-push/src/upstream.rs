//! Other caches, whose clients have their paths already: what one of them serves need not be pushed.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use nar_pack::stage::{Doing, Failure, Outcome};
use nar_pack::store_path::{HashPart, StoreDir, StorePath};
use narinfo_gen::cache_info::{self, CacheInfo};
use percent_encoding::percent_decode_str;
use reqwest::{Client, Method, Response, Url};

use crate::client::{Access, Bucket, chain, root_cause};
use crate::location::Location;
use crate::patience::{Patience, Tries};

/// Time in which a connection must be made.
const CONNECT: Duration = Duration::from_secs(10);

/// The caches that are asked, and what they answered.
pub struct Upstreams {
    caches: Vec<Cache>,
    answers: Mutex<HashMap<HashPart, bool>>,
}

enum Cache {
    S3(Box<Bucket>),
    Http(Http),
    File(PathBuf),
}

struct Http {
    client: Client,
    base: Url,
    attempts: u32,
}

impl Upstreams {
    /// The caches at these URLs (`s3://`, `https://`, `http://`, `file://`), each of which must be one of `store_dir`.
    ///
    /// # Errors
    /// A usage failure for a URL of another kind; fails when a cache cannot be read, refuses one of another store
    /// directory.
    pub async fn open(urls: &[String], store_dir: &StoreDir, patience: Patience, tool: &'static str) -> Outcome<Self> {
        let mut caches = Vec::new();
        for url in urls {
            let cache = Cache::open(url, patience, tool).await?;
            cache.require(store_dir).await.doing(|| format!("--upstream {}", cache.shown()))?;
            caches.push(cache);
        }
        Ok(Self { caches, answers: Mutex::default() })
    }

    /// Whether one of the caches has the narinfo of that path. Asked once for each path.
    ///
    /// # Errors
    /// Fails when it cannot be told; a failed check is neither "there" nor "missing".
    pub async fn serve(&self, path: &StorePath) -> Outcome<bool> {
        let hash = path.hash_part();
        if self.caches.is_empty() {
            return Ok(false);
        }
        if let Some(answer) = self.answers.lock().unwrap_or_else(PoisonError::into_inner).get(&hash) {
            return Ok(*answer);
        }
        let mut there = false;
        for cache in &self.caches {
            there = cache.has(&format!("{hash}.narinfo")).await?;
            if there {
                break;
            }
        }
        self.answers.lock().unwrap_or_else(PoisonError::into_inner).insert(hash, there);
        Ok(there)
    }
}

impl Cache {
    async fn open(url: &str, patience: Patience, tool: &'static str) -> Outcome<Self> {
        match url.split_once("://") {
            Some(("s3", _)) => {
                let bucket = Bucket::connect(Location::parse(url)?, Access::Signed, patience, tool).await;
                Ok(Self::S3(Box::new(bucket)))
            }
            Some(("http" | "https", rest)) if !rest.is_empty() => Ok(Self::Http(Http::new(url, patience)?)),
            Some(("file", path)) => {
                // Parameters of the store, as Nix takes them, concern a Nix client only.
                let path = path.split('?').next().unwrap_or_default();
                Ok(Self::File(PathBuf::from(percent_decode_str(path).decode_utf8_lossy().into_owned())))
            }
            _ => Err(Failure::failed("--upstream: expected s3://, https://, http:// or file://")),
        }
    }

    fn shown(&self) -> String {
        match self {
            Self::S3(bucket) => bucket.location().shown(""),
            Self::Http(http) => http.shown(""),
            Self::File(dir) => dir.display().to_string(),
        }
    }

    /// Whether this is a cache at all: one that is mistyped has no path, and everything would be pushed.
    async fn require(&self, store_dir: &StoreDir) -> Outcome {
        let limit = usize::try_from(cache_info::MAX_SIZE).unwrap_or(usize::MAX);
        let text = match self {
            Self::S3(bucket) => bucket.get_small(cache_info::KEY, limit).await?.map(|small| small.text),
            Self::Http(http) => http.text(cache_info::KEY, limit).await?,
            Self::File(dir) => std::fs::read_to_string(dir.join(cache_info::KEY)).ok(),
        };
        let text = text.ok_or_else(|| Failure::failed("it has no nix-cache-info, so it is no binary cache"))?;
        CacheInfo::parse(&text)?.require(store_dir)
    }

    async fn has(&self, key: &str) -> Outcome<bool> {
        match self {
            Self::S3(bucket) => {
                let _slot = bucket.slot().await?;
                Ok(bucket.size(key).await?.is_some())
            }
            Self::Http(http) => Ok(http.ask(Method::HEAD, key).await?.is_some()),
            Self::File(dir) => {
                let path = dir.join(key);
                path.try_exists().map_err(|error| Failure::failed(format!("looking for {}: {error}", path.display())))
            }
        }
    }
}

impl Http {
    fn new(url: &str, patience: Patience) -> Outcome<Self> {
        // Installing it twice is the only way in which this fails.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let wrong = |error: String| Failure::failed(format!("--upstream: {error}"));
        let mut base = Url::parse(url).map_err(|error| wrong(error.to_string()))?;
        base.set_query(None);
        base.set_fragment(None);
        let client = Client::builder()
            .user_agent(concat!("s3-push/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(CONNECT)
            .read_timeout(patience.idle)
            .build()
            .map_err(|error| wrong(chain(&error)))?;
        Ok(Self { client, base, attempts: patience.attempts })
    }

    fn url(&self, key: &str) -> String {
        format!("{}/{key}", self.base.as_str().trim_end_matches('/'))
    }

    /// A place without user name and password.
    fn shown(&self, key: &str) -> String {
        let mut base = self.base.clone();
        // Only a URL without a host has no place for these.
        let _ = base.set_username("").and_then(|()| base.set_password(None));
        format!("{}/{key}", base.as_str().trim_end_matches('/'))
    }

    /// The answer; none when the object is not there, which buckets say with 403 where listing is not allowed.
    async fn ask(&self, method: Method, key: &str) -> Outcome<Option<Response>> {
        let mut tries = Tries::new(self.attempts);
        loop {
            let why = match self.client.request(method.clone(), self.url(key)).send().await {
                Ok(response) => match response.status().as_u16() {
                    200 => return Ok(Some(response)),
                    403 | 404 | 410 => return Ok(None),
                    code @ (429 | 500 | 502..=504) => format!("HTTP {code}"),
                    code => return Err(self.failure(key, &format!("HTTP {code}"))),
                },
                Err(error) if error.is_connect() => format!("cannot connect: {}", root_cause(&error.without_url())),
                Err(error) => chain(&error.without_url()),
            };
            if !tries.again().await {
                return Err(self.failure(key, &why));
            }
        }
    }

    async fn text(&self, key: &str, limit: usize) -> Outcome<Option<String>> {
        let Some(mut response) = self.ask(Method::GET, key).await? else { return Ok(None) };
        let mut bytes = Vec::new();
        loop {
            match response.chunk().await {
                Ok(Some(chunk)) if bytes.len() + chunk.len() <= limit => bytes.extend_from_slice(&chunk),
                Ok(Some(_)) => return Err(self.failure(key, "it is too large")),
                Ok(None) => break,
                Err(error) => return Err(self.failure(key, &chain(&error.without_url()))),
            }
        }
        String::from_utf8(bytes).map(Some).map_err(|_| self.failure(key, "not UTF-8 text"))
    }

    fn failure(&self, key: &str, why: &str) -> Failure {
        Failure::failed(format!("asking {}: {why}", self.shown(key)))
    }
}
