//! Other caches, whose clients have their paths already: what one of them serves need not be pushed.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use nar_pack::error::{Context, Error, Result};
use nar_pack::store_path::{HashPart, StoreDir, StorePath};
use narinfo_gen::cache_info::{self, CacheInfo};

use crate::remote::retry::RequestLimits;
use crate::remote::s3::Access;
use crate::remote::{Remote, RemoteOptions};

/// The caches that are asked, and what they answered.
pub struct Upstreams {
    caches: Vec<Remote>,
    answers: Mutex<HashMap<HashPart, bool>>,
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
            let options = RemoteOptions { access: Access::Signed, limits, netrc: None, tool };
            let cache = Remote::open(url, options).await.context(|| "--upstream")?;
            require_cache(&cache, store_dir).await.context(|| format!("--upstream {}", cache.display_url("")))?;
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
            there = cache.exists(&format!("{hash}.narinfo")).await?;
            if there {
                break;
            }
        }
        self.answers.lock().unwrap_or_else(PoisonError::into_inner).insert(hash, there);
        Ok(there)
    }
}

/// Checks that this is a cache at all: every path would be missing from a mistyped URL, and be pushed.
async fn require_cache(cache: &Remote, store_dir: &StoreDir) -> Result {
    let max_size = usize::try_from(cache_info::MAX_SIZE).unwrap_or(usize::MAX);
    let text = cache.text(cache_info::KEY, max_size).await?;
    let text = text.ok_or_else(|| Error::failed("not a binary cache, there is no nix-cache-info"))?;
    CacheInfo::parse(&text)?.require(store_dir)
}
