//! A narinfo as JSON, with the field names of `nix path-info --json`.

use nar_pack::store_path::StorePath;
use serde_json::{Value, json};

use super::NarInfo;
use crate::hash::Sha256;

impl NarInfo {
    /// Returns the JSON object. Hashes have the SRI form, as in Nix.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let full = |path: &StorePath| self.store_dir.join(path);
        json!({
            "path": self.full_path(),
            "url": self.url,
            "compression": self.compression,
            "downloadHash": self.file_hash.as_ref().map(Sha256::sri),
            "downloadSize": self.file_size,
            "narHash": self.nar_hash.sri(),
            "narSize": self.nar_size,
            "references": self.references.iter().map(full).collect::<Vec<_>>(),
            "deriver": self.deriver.as_ref().map(full),
            "signatures": self.signatures,
            "ca": self.ca,
        })
    }
}
