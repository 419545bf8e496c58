//! `nix-cache-info`, the one object that describes a binary cache as a whole.

use std::fmt;

use nar_pack::error::{Error, Result};
use nar_pack::store_path::StoreDir;

/// Its key.
pub const KEY: &str = "nix-cache-info";
/// Longest one that is accepted, in bytes.
pub const MAX_SIZE: u64 = 64 * 1024;

/// What `nix-cache-info` says (Nix's `BinaryCacheStore::init`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheInfo {
    /// The store directory of every path in the cache.
    pub store_dir: StoreDir,
    /// Whether clients may ask for many paths at once.
    pub want_mass_query: Option<bool>,
    /// Caches with a lower number are asked first.
    pub priority: Option<u32>,
}

impl CacheInfo {
    /// A cache of `store_dir` that says nothing else.
    #[must_use]
    pub fn new(store_dir: StoreDir) -> Self {
        Self { store_dir, want_mass_query: None, priority: None }
    }

    /// Parses the text; keys that are not known are skipped.
    ///
    /// # Errors
    /// Refuses text without a store directory.
    pub fn parse(text: &str) -> Result<Self> {
        let value = |key: &str| {
            text.lines().filter_map(|line| line.split_once(':')).find(|(k, _)| *k == key).map(|(_, value)| value.trim())
        };
        let Some(store_dir) = value("StoreDir") else {
            return Err(Error::refused("nix-cache-info has no StoreDir"));
        };
        let store_dir = StoreDir::new(store_dir).map_err(|failure| Error::refused(failure.message()))?;
        let want_mass_query = value("WantMassQuery").map(|value| value == "1");
        Ok(Self { store_dir, want_mass_query, priority: value("Priority").and_then(|value| value.parse().ok()) })
    }

    /// Refuses a cache of another store directory, for its paths mean nothing in this one.
    ///
    /// # Errors
    /// Names both directories.
    pub fn require(&self, store_dir: &StoreDir) -> Result {
        if self.store_dir == *store_dir {
            return Ok(());
        }
        Err(Error::refused(format!("the cache is for the store directory {}, not {store_dir}", self.store_dir)))
    }
}

impl fmt::Display for CacheInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "StoreDir: {}", self.store_dir)?;
        if let Some(want) = self.want_mass_query {
            writeln!(f, "WantMassQuery: {}", u8::from(want))?;
        }
        if let Some(priority) = self.priority {
            writeln!(f, "Priority: {priority}")?;
        }
        Ok(())
    }
}
