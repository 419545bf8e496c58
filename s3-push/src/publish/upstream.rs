//! Upstream caches: paths that one of them has are not published, because clients get them from there.

use std::collections::HashMap;
use std::sync::Mutex;

use nar_pack::error::{Context, Error, Result};
use nar_pack::store_path::{HashPart, StoreDir, StorePath};
use nar_pack::sync::lock;
use narinfo_gen::archive::narinfo_key;
use narinfo_gen::narinfo::{self, NarInfo};

use crate::remote::retry::RequestLimits;
use crate::remote::s3::Access;
use crate::remote::{Remote, RemoteOptions};

/// The upstream caches, and their answers so far.
pub struct Upstreams {
    caches: Vec<Remote>,
    store_dir: StoreDir,
    answers: Mutex<HashMap<HashPart, bool>>,
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
            let access = Access::SignedIfPossible { has_opt_out: false };
            let options = RemoteOptions { access, limits, netrc: None, tool };
            let cache = Remote::open(url, options).await.context(|| "--upstream")?;
            require_cache(&cache, store_dir).await.context(|| format!("--upstream {}", cache.display_url("")))?;
            caches.push(cache);
        }
        Ok(Self { caches, store_dir: store_dir.clone(), answers: Mutex::default() })
    }

    /// Returns whether one of the caches has a narinfo of that path that clients can use. Each path is looked up once.
    ///
    /// # Errors
    /// Fails when a lookup does: a failed lookup means neither present nor missing.
    pub async fn have(&self, path: &StorePath) -> Result<bool> {
        let hash = path.hash_part();
        if self.caches.is_empty() {
            return Ok(false);
        }
        if let Some(answer) = lock(&self.answers).get(&hash) {
            return Ok(*answer);
        }
        let mut is_present = false;
        for cache in &self.caches {
            is_present = has_narinfo(cache, path, &self.store_dir).await?;
            if is_present {
                break;
            }
        }
        lock(&self.answers).insert(hash, is_present);
        Ok(is_present)
    }
}

/// Returns whether the cache has a valid narinfo of that path. Any other object or response is as if there were none: a
/// client that gets it has the path neither from there nor, if it were not published, from the bucket.
async fn has_narinfo(cache: &Remote, path: &StorePath, store_dir: &StoreDir) -> Result<bool> {
    let text = match cache.text(&narinfo_key(path.hash_part()), narinfo::MAX_SIZE).await {
        Ok(text) => text,
        Err(error) if error.is_refusal() => None,
        Err(error) => return Err(error),
    };
    let narinfo = text.and_then(|text| NarInfo::parse(&text, store_dir).ok());
    Ok(narinfo.is_some_and(|narinfo| narinfo.path == *path))
}

/// Checks that this is a binary cache of `store_dir`. With a mistyped URL every path would count as missing.
async fn require_cache(cache: &Remote, store_dir: &StoreDir) -> Result {
    let info = cache.cache_info(store_dir).await?;
    info.map(drop).ok_or_else(|| Error::failed("not a binary cache: nix-cache-info is missing"))
}
