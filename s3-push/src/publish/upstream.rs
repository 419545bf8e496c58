//! Upstream caches: paths that one of them has are not published, because clients get them from there.

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

/// The upstream caches, and their answers so far.
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
    /// Opens the caches with these URLs (`s3://`, `https://`, `http://`, `file://`).
    ///
    /// # Errors
    /// Returns a usage error for a URL of another kind. Fails when a cache cannot be read. Refuses a cache of another
    /// store directory than `store_dir`.
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

    /// Returns whether one of the caches has the narinfo of that path. Each path is looked up once.
    ///
    /// # Errors
    /// Fails when a lookup does: a failed lookup means neither present nor missing.
    pub async fn have(&self, path: &StorePath) -> Result<bool> {
        let hash = path.hash_part();
        if self.caches.is_empty() {
            return Ok(false);
        }
        if let Some(answer) = self.answers.lock().unwrap_or_else(PoisonError::into_inner).get(&hash) {
            return Ok(*answer);
        }
        let mut is_present = false;
        for cache in &self.caches {
            is_present = cache.has(&format!("{hash}.narinfo")).await?;
            if is_present {
                break;
            }
        }
        self.answers.lock().unwrap_or_else(PoisonError::into_inner).insert(hash, is_present);
        Ok(is_present)
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
