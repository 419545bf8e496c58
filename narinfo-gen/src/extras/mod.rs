//! The objects that a cache may have for a path besides its NAR and narinfo. The formats are those of Nix's
//! `src/libstore/binary-cache-store.cc`.
//!
//! | key | content | module |
//! | --- | --- | --- |
//! | `<hash part>.ls` | listing of the NAR | `listing` |
//! | `debuginfo/<build ID>.debug` | link to debug information in a NAR | `debuginfo` |
//! | `log/<derivation>` | build log | `log` |
//! | `realisations/…`, `build-trace-v2/…` | output path of a content-addressed derivation | `build_trace` |

mod build_trace;
mod debuginfo;
mod listing;
mod log;

use std::path::PathBuf;

use nar_pack::error::{Error, Result};
use nar_pack::nar::{Listing, Visitor};
use nar_pack::store_path::{StoreDir, StorePath};

use crate::archive::Object;
use crate::spool::{Spool, SpoolReader};
use debuginfo::BuildIdFinder;
use listing::ListingBuilder;

pub use build_trace::{BuildTraceEntry, build_trace_entries};
pub use debuginfo::debuginfo_target;
pub use log::BuildLogs;

/// Maximum size of an object that is neither a NAR nor a narinfo, such as a build log or a listing, in bytes.
pub const MAX_EXTRA_SIZE: usize = 64 << 20;
/// Maximum size of a debug information link or a build trace entry, in bytes.
pub const MAX_LINK_SIZE: usize = 64 << 10;
/// Maximum bytes of a listing or log in memory. A larger one is spooled to a temporary file.
const MAX_IN_MEMORY: usize = 1 << 20;

/// Selects the objects to write besides NARs and narinfos.
#[derive(Debug, Clone, Default)]
pub struct Extras {
    /// Listings.
    pub listing: bool,
    /// Links to debug information.
    pub debug_info: bool,
    /// Build logs, from this log directory of Nix.
    pub log_dir: Option<PathBuf>,
    /// Build trace entries.
    pub realisations: bool,
}

/// An object that belongs to a path.
pub struct ExtraObject {
    /// Its key.
    pub key: String,
    /// Its bytes.
    pub body: SpoolReader,
}

impl ExtraObject {
    /// Returns an object with this content.
    #[must_use]
    pub fn from_bytes(key: String, bytes: Vec<u8>) -> Self {
        Self { key, body: bytes.into() }
    }

    fn from_spool(key: String, spool: Spool) -> Result<Self> {
        Ok(Self { key, body: spool.into_reader()? })
    }
}

/// Checks the format of an object with this key, as far as that is possible without the NAR: readers of a cache fail on a
/// malformed one.
///
/// # Errors
/// Refuses a malformed listing, link to debug information or build trace entry.
pub fn check_format(object: Object, key: &str, bytes: &[u8], store_dir: &StoreDir) -> Result {
    match object {
        Object::Listing(_) => Listing::parse(bytes, bytes.len()).map(|_| ()),
        Object::DebugInfo => match debuginfo_target(bytes) {
            Some(_) => Ok(()),
            None => Err(Error::refused("not a valid debug information link")),
        },
        Object::Realisation => BuildTraceEntry::parse(key, bytes, store_dir).map(|_| ()),
        Object::CacheInfo | Object::Narinfo(_) | Object::Nar(_) | Object::Log => Ok(()),
    }
}

/// Collects what the extras need to know about the contents of a NAR, while it is read.
#[derive(Debug, Default)]
pub struct NarExtras {
    listing: Option<ListingBuilder>,
    build_ids: Option<BuildIdFinder>,
}

impl NarExtras {
    /// Collects what the selected extras need.
    #[must_use]
    pub fn new(extras: &Extras) -> Self {
        Self {
            listing: extras.listing.then(ListingBuilder::new),
            build_ids: extras.debug_info.then(BuildIdFinder::default),
        }
    }

    /// Returns the objects of `path`, whose NAR has the key `nar_key`, and the reason if the listing is missing because the
    /// NAR cannot have one.
    ///
    /// # Errors
    /// Fails if an object cannot be spooled.
    pub fn into_objects(self, path: &StorePath, nar_key: &str) -> Result<(Vec<ExtraObject>, Option<Error>)> {
        let mut objects = Vec::new();
        let mut no_listing = None;
        match self.listing.map(|listing| listing.finish(path)).transpose()? {
            None => {}
            Some(Ok(listing)) => objects.push(listing),
            Some(Err(reason)) => no_listing = Some(reason),
        }
        objects.extend(self.build_ids.unwrap_or_default().into_objects(nar_key));
        Ok((objects, no_listing))
    }
}

impl Visitor for NarExtras {
    fn directory(&mut self) -> Result {
        self.listing.as_mut().map_or(Ok(()), |listing| listing.visit(Visitor::directory))
    }

    fn directory_end(&mut self) -> Result {
        self.listing.as_mut().map_or(Ok(()), |listing| listing.visit(Visitor::directory_end))
    }

    fn enter(&mut self, name: &[u8]) -> Result {
        if let Some(build_ids) = &mut self.build_ids {
            build_ids.enter(name);
        }
        self.listing.as_mut().map_or(Ok(()), |listing| listing.visit(|lister| lister.enter(name)))
    }

    fn leave(&mut self) -> Result {
        if let Some(build_ids) = &mut self.build_ids {
            build_ids.leave();
        }
        self.listing.as_mut().map_or(Ok(()), |listing| listing.visit(Visitor::leave))
    }

    fn file(&mut self, executable: bool, size: u64, offset: u64) -> Result {
        if let Some(build_ids) = &mut self.build_ids {
            build_ids.file()?;
        }
        self.listing.as_mut().map_or(Ok(()), |listing| listing.visit(|lister| lister.file(executable, size, offset)))
    }

    fn data(&mut self, _: &[u8]) -> Result {
        Ok(())
    }

    fn file_end(&mut self) -> Result {
        Ok(())
    }

    fn symlink(&mut self, target: &[u8]) -> Result {
        self.listing.as_mut().map_or(Ok(()), |listing| listing.visit(|lister| lister.symlink(target)))
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Cursor, Read};

    use nar_pack::nar::{parse, push_string};

    use super::*;

    fn path() -> StorePath {
        StorePath::from_base_name(&format!("{}-x", "0".repeat(32))).unwrap()
    }

    /// Returns the NAR of a file in nested directories with these names.
    fn nar(names: &[&[u8]]) -> Vec<u8> {
        let mut out = Vec::new();
        push_string(&mut out, b"nix-archive-1");
        for name in names {
            for field in [b"(".as_slice(), b"type", b"directory", b"entry", b"(", b"name", name, b"node"] {
                push_string(&mut out, field);
            }
        }
        for field in [b"(".as_slice(), b"type", b"regular", b"contents", b"text", b")"] {
            push_string(&mut out, field);
        }
        for _ in names {
            push_string(&mut out, b")");
            push_string(&mut out, b")");
        }
        out
    }

    fn objects(names: &[&[u8]]) -> (Vec<(String, String)>, bool) {
        let extras = Extras { listing: true, debug_info: true, ..Extras::default() };
        let mut nar_extras = NarExtras::new(&extras);
        parse(&mut Cursor::new(nar(names)), &mut nar_extras).unwrap();
        let (objects, no_listing) = nar_extras.into_objects(&path(), "nar/x.nar.zst").unwrap();
        let key_and_text = |mut object: ExtraObject| {
            let mut text = String::new();
            object.body.read_to_string(&mut text).unwrap();
            assert_eq!(text.len() as u64, object.body.size());
            (object.key, text)
        };
        (objects.into_iter().map(key_and_text).collect(), no_listing.is_some())
    }

    #[test]
    fn only_files_in_the_build_id_directory_are_debug_information() {
        let rest = format!("{}.debug", "0a".repeat(19));
        let good: [&[u8]; 5] = [b"lib", b"debug", b".build-id", b"ab", rest.as_bytes()];
        let (found, _) = objects(&good);
        assert_eq!(found.len(), 2);
        assert_eq!(found[1].0, format!("debuginfo/ab{rest}"));
        assert_eq!(
            found[1].1,
            format!("{{\"archive\":\"../nar/x.nar.zst\",\"member\":\"lib/debug/.build-id/ab/{rest}\"}}")
        );
        let short = &rest[1..];
        let upper = rest.to_uppercase();
        for (at, name) in
            [(0, &b"Lib"[..]), (2, b"build-id"), (3, b"abc"), (3, b"zz"), (4, short.as_bytes()), (4, upper.as_bytes())]
        {
            let mut names = good;
            names[at] = name;
            assert_eq!(objects(&names).0.len(), 1, "{}", name.escape_ascii());
        }
        let mut deeper: Vec<&[u8]> = good.to_vec();
        deeper.push(b"x");
        assert_eq!(objects(&deeper).0.len(), 1);
        deeper.rotate_right(1);
        assert_eq!(objects(&deeper).0.len(), 1);
    }

    #[test]
    fn a_name_that_is_not_utf8_only_omits_the_listing() {
        let (found, no_listing) = objects(&[b"\xff"]);
        assert!(found.is_empty() && no_listing);
        let (found, no_listing) = objects(&[b"a\"\n"]);
        assert!(!no_listing);
        let offset = nar(&[b"a\"\n"]).windows(4).position(|window| window == b"text").unwrap();
        let file = format!(r#"{{"narOffset":{offset},"size":4,"type":"regular"}}"#);
        let expected = format!(r#"{{"root":{{"entries":{{"a\"\n":{file}}},"type":"directory"}},"version":1}}"#);
        assert_eq!(found[0].1, expected);
    }
}
