//! The kinds of objects in a binary cache, by their keys.

use nar_pack::store_path::{HashPart, StorePath};

use crate::cache_info;
use crate::hash::{BASE32_DIGITS, Sha256};

/// The prefix of the keys of NARs.
pub const NAR_PREFIX: &str = "nar/";
/// The prefix of links from build IDs to NARs.
pub const DEBUGINFO_PREFIX: &str = "debuginfo/";
/// The prefix of build logs.
pub const LOG_PREFIX: &str = "log/";
/// The prefix of realisations before Nix 2.35.
pub const REALISATION_PREFIX: &str = "realisations/";
/// The prefix of realisations since Nix 2.35.
pub const BUILD_TRACE_PREFIX: &str = "build-trace-v2/";
/// The prefixes of realisations: before and since Nix 2.35.
pub const REALISATION_PREFIXES: [&str; 2] = [REALISATION_PREFIX, BUILD_TRACE_PREFIX];

/// The kind of an object of a binary cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Object {
    /// `nix-cache-info`.
    CacheInfo,
    /// `<hash part>.narinfo`.
    Narinfo(HashPart),
    /// `nar/<FileHash>.nar…`, or any other `nar/…` without a hash in its name.
    Nar(Option<Sha256>),
    /// `<hash part>.ls`.
    Listing(HashPart),
    /// `log/…`.
    Log,
    /// `debuginfo/…`.
    DebugInfo,
    /// `realisations/…`, or `build-trace-v2/…` since Nix 2.35.
    Realisation,
}

/// Returns the key of the narinfo of the path with this hash part.
#[must_use]
pub fn narinfo_key(hash: HashPart) -> String {
    format!("{hash}.narinfo")
}

/// Returns the key of the listing of the path with this hash part.
#[must_use]
pub fn listing_key(hash: HashPart) -> String {
    format!("{hash}.ls")
}

/// Returns the key of the build log of a derivation.
#[must_use]
pub fn log_key(derivation: &StorePath) -> String {
    format!("{LOG_PREFIX}{derivation}")
}

impl Object {
    /// Returns the kind of the object with this key, if it is a key of a binary cache.
    #[must_use]
    pub fn of_key(key: &str) -> Option<Self> {
        let hash_part = |suffix: &str| key.strip_suffix(suffix).and_then(|stem| HashPart::parse(stem.as_bytes()));
        if key == cache_info::KEY {
            return Some(Self::CacheInfo);
        }
        if let Some(hash) = hash_part(".narinfo") {
            return Some(Self::Narinfo(hash));
        }
        if let Some(hash) = hash_part(".ls") {
            return Some(Self::Listing(hash));
        }
        if let Some(name) = key.strip_prefix(NAR_PREFIX) {
            return Some(Self::Nar(name.get(..BASE32_DIGITS).and_then(Sha256::from_base32)));
        }
        if key.starts_with(LOG_PREFIX) {
            return Some(Self::Log);
        }
        if key.starts_with(DEBUGINFO_PREFIX) {
            return Some(Self::DebugInfo);
        }
        REALISATION_PREFIXES.iter().any(|&prefix| key.starts_with(prefix)).then_some(Self::Realisation)
    }

    /// Returns the `Content-Type` that Nix sets on such objects.
    #[must_use]
    pub fn content_type(self) -> &'static str {
        match self {
            Self::CacheInfo => "text/x-nix-cache-info",
            Self::Narinfo(_) => "text/x-nix-narinfo",
            Self::Nar(_) => "application/x-nix-nar",
            Self::Listing(_) | Self::DebugInfo | Self::Realisation => "application/json",
            // Nix writes it in lower case. Jetty, and so S3Proxy, verifies the signature of this form, whichever is sent.
            Self::Log => "text/plain; charset=UTF-8",
        }
    }
}
