//! Metadata of store paths that is not in their contents: references, deriver, content address and signatures. A
//! [`PathInfoSource`] takes it from `--path-info` or an installed Nix, and otherwise lists the candidates for a scan;
//! the scan itself is left to [`crate::references`]. The format code ([`parse_path_info`]) accepts the output of every
//! version of `nix path-info --json`, so nothing else depends on the version of Nix.

mod document;
mod installed_nix;
mod source;

pub use document::{parse_path_info, parse_path_or_base_name};
pub use source::PathInfoSource;

use crate::store_path::StorePath;

/// Metadata of a store path, as `nix path-info --json` prints it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PathInfo {
    /// References, sorted.
    pub references: Vec<StorePath>,
    /// The derivation that built the path.
    pub deriver: Option<StorePath>,
    /// Hash of the NAR as Nix printed it, in any base.
    pub nar_hash: String,
    /// Size of the NAR in bytes, if given.
    pub nar_size: Option<u64>,
    /// Content address as in a narinfo, if the path has one; its hash is in any base.
    pub ca: Option<String>,
    /// Signatures, each `NAME:BASE64`.
    pub signatures: Vec<String>,
}
