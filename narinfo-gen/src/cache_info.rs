//! `nix-cache-info`: the object that describes a binary cache as a whole.

use std::fmt;

use nar_pack::error::{Error, Result};
use nar_pack::store_path::StoreDir;

/// The key of `nix-cache-info`.
pub const KEY: &str = "nix-cache-info";
/// Maximum size of `nix-cache-info`, in bytes.
pub const MAX_SIZE: usize = 64 * 1024;

/// The contents of `nix-cache-info` (Nix's `BinaryCacheStore::init`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheInfo {
    /// The store directory of every path in the cache.
    pub store_dir: StoreDir,
    /// Whether clients may query many paths at once.
    pub want_mass_query: Option<bool>,
    /// Clients query caches with a lower number first.
    pub priority: Option<u32>,
}

impl CacheInfo {
    /// Returns the description of a cache of `store_dir`, without the optional fields.
    #[must_use]
    pub fn new(store_dir: StoreDir) -> Self {
        Self { store_dir, want_mass_query: None, priority: None }
    }

    /// Parses the text; skips unknown fields.
    ///
    /// # Errors
    /// Refuses text without a valid store directory.
    pub fn parse(text: &str) -> Result<Self> {
        let value = |key: &str| {
            text.lines().filter_map(|line| line.split_once(':')).find(|(k, _)| *k == key).map(|(_, value)| value.trim())
        };
        let Some(store_dir) = value("StoreDir") else {
            return Err(Error::refused("nix-cache-info has no field \"StoreDir\""));
        };
        let store_dir = StoreDir::new(store_dir)
            .map_err(|error| Error::refused(format!("nix-cache-info: StoreDir: {}", error.message())))?;
        let want_mass_query = value("WantMassQuery").map(|value| value == "1");
        Ok(Self { store_dir, want_mass_query, priority: value("Priority").and_then(|value| value.parse().ok()) })
    }

    /// Checks that the cache is for `store_dir`. Paths of another store directory cannot be used in this one.
    ///
    /// # Errors
    /// Refuses a cache of another store directory.
    pub fn require(&self, store_dir: &StoreDir) -> Result {
        if self.store_dir == *store_dir {
            return Ok(());
        }
        Err(Error::refused(format!("the cache has the store directory {}, expected {store_dir}", self.store_dir)))
    }
}

/// New values for fields of an existing `nix-cache-info`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Changes {
    /// Clients query caches with a lower number first.
    pub priority: Option<u32>,
    /// Whether clients may query many paths at once.
    pub want_mass_query: Option<bool>,
}

impl Changes {
    /// Returns the text with the new values and `store_dir`. Other lines, including fields that are unknown here, stay as
    /// they are.
    #[must_use]
    pub fn apply(&self, text: &str, store_dir: &StoreDir) -> String {
        let values = [
            ("StoreDir", Some(store_dir.to_string())),
            ("WantMassQuery", self.want_mass_query.map(|value| u8::from(value).to_string())),
            ("Priority", self.priority.map(|value| value.to_string())),
        ];
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        for (key, value) in values {
            let Some(value) = value else { continue };
            let line = format!("{key}: {value}");
            let has_key = |line: &&mut String| line.split_once(':').is_some_and(|(found, _)| found == key);
            match lines.iter_mut().find(has_key) {
                Some(existing) if *existing.trim_end() == line => {}
                Some(existing) => *existing = line,
                None => lines.push(line),
            }
        }
        lines.join("\n") + "\n"
    }
}

impl fmt::Display for CacheInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "StoreDir: {}", self.store_dir)?;
        if let Some(want_mass_query) = self.want_mass_query {
            writeln!(f, "WantMassQuery: {}", u8::from(want_mass_query))?;
        }
        if let Some(priority) = self.priority {
            writeln!(f, "Priority: {priority}")?;
        }
        Ok(())
    }
}
