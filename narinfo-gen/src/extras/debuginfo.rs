//! `debuginfo/<build ID>.debug`: links from build IDs to the NARs with their debug information, which Nix writes with the
//! store setting `index-debug-info`.

use nar_pack::error::{Error, Result};
use serde_json::{Value, json};

use super::ExtraObject;
use crate::archive::DEBUGINFO_PREFIX;

/// The directory of debug information in a store path.
const BUILD_ID_DIR: [&[u8]; 3] = [b"lib", b"debug", b".build-id"];
/// Digits of a build ID after the two that name its directory.
const BUILD_ID_FILE_DIGITS: usize = 38;
/// Maximum number of build IDs of one path. They are kept in memory until the key of its NAR is known.
const MAX_BUILD_IDS: usize = 100_000;

/// Finds the files `lib/debug/.build-id/xx/….debug` of a NAR.
#[derive(Debug, Default)]
pub struct BuildIdFinder {
    depth: usize,
    /// Number of leading components of the current path that match the pattern.
    matched: usize,
    directory: String,
    name: String,
    /// Build IDs, with the suffix `.debug`.
    found: Vec<String>,
}

impl BuildIdFinder {
    pub fn enter(&mut self, name: &[u8]) {
        if self.matched == self.depth {
            let matches = match self.depth {
                0..3 => BUILD_ID_DIR[self.depth] == name,
                3 => name.len() == 2 && set_if_hex(&mut self.directory, name),
                4 => match name.strip_suffix(b".debug") {
                    Some(digits) => digits.len() == BUILD_ID_FILE_DIGITS && set_if_hex(&mut self.name, digits),
                    None => false,
                },
                _ => false,
            };
            self.matched += usize::from(matches);
        }
        self.depth += 1;
    }

    pub fn leave(&mut self) {
        self.depth -= 1;
        self.matched = self.matched.min(self.depth);
    }

    /// Adds the current path if it is that of debug information.
    ///
    /// # Errors
    /// Refuses more than [`MAX_BUILD_IDS`].
    pub fn file(&mut self) -> Result {
        if (self.depth, self.matched) == (5, 5) {
            if self.found.len() == MAX_BUILD_IDS {
                return Err(Error::refused(format!("more than {MAX_BUILD_IDS} build IDs in one path")));
            }
            self.found.push(format!("{}{}.debug", self.directory, self.name));
        }
        Ok(())
    }

    /// Returns the links to the NAR with the key `nar_key`.
    pub fn into_objects(self, nar_key: &str) -> impl Iterator<Item = ExtraObject> {
        self.found.into_iter().map(move |id| {
            let member = format!("lib/debug/.build-id/{}/{}", &id[..2], &id[2..]);
            let link = json!({"archive": format!("../{nar_key}"), "member": member});
            ExtraObject::from_bytes(format!("{DEBUGINFO_PREFIX}{id}"), link.to_string().into_bytes())
        })
    }
}

/// Returns the key of the NAR that a link of `debuginfo/` refers to, or none if it is malformed.
#[must_use]
pub fn debuginfo_target(json: &[u8]) -> Option<String> {
    let link: Value = serde_json::from_slice(json).ok()?;
    Some(link["archive"].as_str()?.strip_prefix("../")?.to_owned())
}

/// Sets `target` to `text` if that consists of lowercase hexadecimal digits, the only ones that Nix accepts in build IDs.
fn set_if_hex(target: &mut String, text: &[u8]) -> bool {
    let is_hex = text.iter().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    if is_hex {
        target.clear();
        target.extend(text.iter().map(|&byte| char::from(byte)));
    }
    is_hex
}
