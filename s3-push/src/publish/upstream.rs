//! Other caches, whose clients have their paths already: what one of them serves need not be pushed.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use nar_pack::error::{Context, Error, Result};
use nar_pack::store_path::{HashPart, StoreDir, StorePath};
use narinfo_gen::cache_info::{self, CacheInfo};
use percent_encoding::percent_decode_str;

use crate::remote::http::HttpCache;
use crate::remote::location::Location;
use crate::remote::retry::RequestLimits;
use crate::remote::s3::{Access, Bucket};

/// The caches that are asked, and what they answered.
pub struct Upstreams {
    caches: Vec<Cache>,
    answers: Mutex<HashMap<HashPart, bool>>,
}

enum Cache {
    S3(Box<Bucket>),
    Http(HttpCache),
    File(PathBuf),
}

impl Upstreams {
    /// The caches at these URLs (`s3://`, `https://`, `http://`, `file://`), each of which must be one of `store_dir`.
    ///
    /// # Errors
    /// A usage failure for a URL of another kind; fails when a cache cannot be read, refuses one of another store
    /// directory.
    pub async fn open(
        urls: &[String],
        store_dir: &StoreDir,
        limits: RequestLimits,
        tool: &'static str,
    ) -> Result<Self> {
        let mut caches = Vec::new();
        for url in urls {
            let cache = Cache::open(url, limits, tool).await?;
            cache.require(store_dir).await.context(|| format!("--upstream {}", cache.shown()))?;
            caches.push(cache);
        }
        Ok(Self { caches, answers: Mutex::default() })
    }

    /// Whether one of the caches has the narinfo of that path. Asked once for each path.
    ///
    /// # Errors
    /// Fails when it cannot be told; a failed check is neither "there" nor "missing".
    pub async fn serve(&self, path: &StorePath) -> Result<bool> {
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
    async fn open(url: &str, limits: RequestLimits, tool: &'static str) -> Result<Self> {
        match url.split_once("://") {
            Some(("s3", _)) => {
                let bucket = Bucket::connect(Location::parse(url)?, Access::Signed, limits, tool).await;
                Ok(Self::S3(Box::new(bucket)))
            }
            Some(("http" | "https", rest)) if !rest.is_empty() => {
                Ok(Self::Http(HttpCache::new(url, limits, None, tool)?))
            }
            Some(("file", path)) => {
                // Parameters of the store, as Nix takes them, concern a Nix client only.
                let path = path.split('?').next().unwrap_or_default();
                Ok(Self::File(PathBuf::from(percent_decode_str(path).decode_utf8_lossy().into_owned())))
            }
            _ => Err(Error::failed("--upstream: expected s3://, https://, http:// or file://")),
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
    async fn require(&self, store_dir: &StoreDir) -> Result {
        let limit = usize::try_from(cache_info::MAX_SIZE).unwrap_or(usize::MAX);
        let text = match self {
            Self::S3(bucket) => bucket.get_small(cache_info::KEY, limit).await?.map(|small| small.text),
            Self::Http(http) => http.text(cache_info::KEY, limit).await?,
            Self::File(dir) => std::fs::read_to_string(dir.join(cache_info::KEY)).ok(),
        };
        let text = text.ok_or_else(|| Error::failed("it has no nix-cache-info, so it is no binary cache"))?;
        CacheInfo::parse(&text)?.require(store_dir)
    }

    async fn has(&self, key: &str) -> Result<bool> {
        match self {
            Self::S3(bucket) => {
                let _slot = bucket.slot().await?;
                Ok(bucket.size(key).await?.is_some())
            }
            Self::Http(http) => http.has(key).await,
            Self::File(dir) => {
                let path = dir.join(key);
                path.try_exists().map_err(|error| Error::failed(format!("looking for {}: {error}", path.display())))
            }
        }
    }
}
