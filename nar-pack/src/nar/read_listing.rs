//! Reads the listing of a NAR from a cache (a `.ls` file). Nothing in a listing is signed, so the parser treats it as
//! hostile, and the contents it points to have to be verified against the NAR by the caller.

use std::fmt;

use serde::Deserialize;
use serde::de::{DeserializeSeed, Error as _, IgnoredAny, MapAccess, Visitor};

use super::{MAX_DEPTH, MAX_FILE_NAME, MAX_TARGET, split_path};
use crate::error::{Error, Result};

/// Smallest offset of the contents of a file in a NAR, in bytes.
const MIN_NAR_OFFSET: u64 = 96;
/// Characters of the JSON parser's message that are printed; the message may quote the listing.
const MAX_MESSAGE_CHARS: usize = 200;

/// The bytes of a valid `.ls` file (Nix's `src/libutil/nar-listing.cc`, version 1).
///
/// Only these bytes are kept. A lookup parses them again, so memory does not grow with the tree.
#[derive(Debug, Clone, Copy)]
pub struct Listing<'a>(&'a [u8]);

/// The entry of a path in a listing. It is not signed: contents read with it must be verified against the NAR.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ListingEntry {
    /// A directory.
    Directory,
    /// A regular file.
    File {
        /// Whether the file is executable.
        executable: bool,
        /// Size of the contents in bytes.
        size: u64,
        /// Offset of the contents in the NAR, in bytes; absent in listings of old tools.
        nar_offset: Option<u64>,
    },
    /// A symbolic link.
    Symlink {
        /// The target of the link.
        target: String,
    },
}

impl<'a> Listing<'a> {
    /// Parses a listing of at most `limit` bytes. Checks types, names, depth and offsets of all entries.
    ///
    /// # Errors
    /// Refuses a larger or malformed listing, and other versions of the format.
    pub fn parse(json: &'a [u8], limit: usize) -> Result<Self> {
        if json.len() > limit {
            return Err(Error::refused(format!("the listing has {} bytes, the maximum is {limit}", json.len())));
        }
        read(json, &[], false)?;
        Ok(Self(json))
    }

    /// Looks up a path of the NAR. Empty names and `.` are skipped, so `/` is the root of the NAR. Follows no symbolic link.
    ///
    /// # Errors
    /// Refuses a listing that contains the path twice.
    pub fn find(&self, path: &[u8]) -> Result<Option<ListingEntry>> {
        read(self.0, &split_path(path), true)
    }
}

/// Parses a listing; returns the entry at `path` if `is_match`.
fn read(json: &[u8], path: &[&[u8]], is_match: bool) -> Result<Option<ListingEntry>> {
    let mut json = serde_json::Deserializer::from_slice(json);
    // The parser below limits the depth to that of a NAR, which is slightly more than the default limit.
    json.disable_recursion_limit();
    let found = Document(Node { path, is_match, depth: 0 }).deserialize(&mut json);
    found.and_then(|found| json.end().map(|()| found)).map_err(|error| {
        let reason: String = error.to_string().chars().take(MAX_MESSAGE_CHARS).collect();
        Error::refused(format!("invalid NAR listing: {reason}"))
    })
}

/// Sets a field, which must not have been set before.
fn set_once<T, E: serde::de::Error>(field: &mut Option<T>, value: T, key: &'static str) -> Result<(), E> {
    if field.replace(value).is_some() { Err(E::duplicate_field(key)) } else { Ok(()) }
}

#[derive(Deserialize)]
#[serde(field_identifier, rename_all = "camelCase")]
enum DocumentKey {
    Root,
    Version,
    #[serde(other)]
    Other,
}

/// Parses the whole document.
struct Document<'p>(Node<'p>);

impl<'de> DeserializeSeed<'de> for Document<'_> {
    type Value = Option<ListingEntry>;

    fn deserialize<D: serde::Deserializer<'de>>(self, json: D) -> Result<Self::Value, D::Error> {
        json.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Document<'_> {
    type Value = Option<ListingEntry>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with root and version")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let (mut found, mut version) = (None, None);
        while let Some(key) = map.next_key()? {
            match key {
                DocumentKey::Root => set_once(&mut found, map.next_value_seed(Node { ..self.0 })?, "root")?,
                DocumentKey::Version => set_once(&mut version, map.next_value::<u64>()?, "version")?,
                DocumentKey::Other => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        match version {
            Some(1) => found.ok_or_else(|| A::Error::missing_field("root")),
            Some(other) => Err(A::Error::custom(format_args!("version is {other}, expected 1"))),
            None => Err(A::Error::missing_field("version")),
        }
    }
}

#[derive(Deserialize)]
#[serde(field_identifier, rename_all = "camelCase")]
enum NodeKey {
    Entries,
    Executable,
    NarOffset,
    Size,
    Target,
    Type,
    #[serde(other)]
    Other,
}

#[derive(Deserialize, Clone, Copy)]
#[serde(rename_all = "lowercase")]
enum Type {
    Directory,
    Regular,
    Symlink,
}

/// Parses a node; returns the entry at `path` below it if `is_match`.
#[derive(Clone, Copy)]
struct Node<'p> {
    /// The rest of the path that is looked up.
    path: &'p [&'p [u8]],
    /// Whether the names from the root to this node match the beginning of the path.
    is_match: bool,
    /// Number of directories that contain the node.
    depth: usize,
}

impl<'de> DeserializeSeed<'de> for Node<'_> {
    type Value = Option<ListingEntry>;

    fn deserialize<D: serde::Deserializer<'de>>(self, json: D) -> Result<Self::Value, D::Error> {
        if self.depth == MAX_DEPTH {
            let reason = format_args!("nested deeper than {MAX_DEPTH} directories");
            return Err(D::Error::custom(reason));
        }
        json.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Node<'_> {
    type Value = Option<ListingEntry>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a file, directory or symbolic link")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let (mut entries, mut executable, mut nar_offset, mut size, mut target, mut kind) =
            (None, None, None, None, None, None);
        while let Some(key) = map.next_key()? {
            match key {
                NodeKey::Entries => set_once(&mut entries, map.next_value_seed(Entries(self))?, "entries")?,
                NodeKey::Executable => set_once(&mut executable, map.next_value::<bool>()?, "executable")?,
                NodeKey::NarOffset => set_once(&mut nar_offset, map.next_value::<u64>()?, "narOffset")?,
                NodeKey::Size => set_once(&mut size, map.next_value::<u64>()?, "size")?,
                NodeKey::Target => set_once(&mut target, map.next_value::<String>()?, "target")?,
                NodeKey::Type => set_once(&mut kind, map.next_value::<Type>()?, "type")?,
                NodeKey::Other => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        let mut found = None;
        let entry = match kind.ok_or_else(|| A::Error::missing_field("type"))? {
            Type::Directory => {
                found = entries.take().ok_or_else(|| A::Error::missing_field("entries"))?;
                ListingEntry::Directory
            }
            Type::Regular => {
                let size: u64 = size.ok_or_else(|| A::Error::missing_field("size"))?;
                if nar_offset.is_some_and(|offset| !is_valid_offset(offset, size)) {
                    return Err(A::Error::custom("invalid narOffset"));
                }
                ListingEntry::File { executable: executable.unwrap_or(false), size, nar_offset }
            }
            Type::Symlink => {
                let target: String = target.ok_or_else(|| A::Error::missing_field("target"))?;
                if target.is_empty() || target.len() > MAX_TARGET || target.contains('\0') {
                    return Err(A::Error::custom("invalid symbolic link target"));
                }
                ListingEntry::Symlink { target }
            }
        };
        if entries.is_some() {
            return Err(A::Error::custom("only a directory can have entries"));
        }
        Ok(if self.is_match && self.path.is_empty() { Some(entry) } else { found })
    }
}

/// Returns whether the contents of a file can be at this offset: all strings of a NAR begin at multiples of 8.
fn is_valid_offset(offset: u64, size: u64) -> bool {
    offset >= MIN_NAR_OFFSET && offset.is_multiple_of(8) && offset.checked_add(size).is_some()
}

/// Parses the entries of a directory.
struct Entries<'p>(Node<'p>);

impl<'de> DeserializeSeed<'de> for Entries<'_> {
    type Value = Option<ListingEntry>;

    fn deserialize<D: serde::Deserializer<'de>>(self, json: D) -> Result<Self::Value, D::Error> {
        json.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Entries<'_> {
    type Value = Option<ListingEntry>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the entries of a directory")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let Self(directory) = self;
        let mut found = None;
        while let Some(name) = map.next_key::<String>()? {
            if matches!(name.as_str(), "" | "." | "..") || name.contains(['/', '\0']) || name.len() > MAX_FILE_NAME {
                return Err(A::Error::custom(format_args!("invalid file name {name:?}")));
            }
            let (first, rest) = match directory.path.split_first() {
                Some((first, rest)) => (Some(*first), rest),
                None => (None, directory.path),
            };
            let is_match = directory.is_match && first == Some(name.as_bytes());
            let entry = map.next_value_seed(Node { path: rest, is_match, depth: directory.depth + 1 })?;
            if is_match {
                set_once(&mut found, entry, "name")?;
            }
        }
        Ok(found.flatten())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(json: &str, path: &str) -> Result<Option<ListingEntry>, String> {
        let listing = Listing::parse(json.as_bytes(), 10_000);
        listing.and_then(|listing| listing.find(path.as_bytes())).map_err(|error| {
            assert!(error.is_refusal());
            error.message().to_owned()
        })
    }

    fn document(root: &str) -> String {
        format!(r#"{{"root":{root},"version":1}}"#)
    }

    fn directory(entries: &str) -> String {
        format!(r#"{{"entries":{{{entries}}},"type":"directory"}}"#)
    }

    const FILE: &str = r#"{"executable":true,"narOffset":288,"size":5,"type":"regular"}"#;
    const LINK: &str = r#"{"target":"a/b","type":"symlink"}"#;

    #[test]
    fn entries_are_found_by_path() {
        let json = document(&directory(&format!(r#""a":{},"l":{LINK}"#, directory(&format!(r#""b\n":{FILE}"#)))));
        let file = ListingEntry::File { executable: true, size: 5, nar_offset: Some(288) };
        for (path, found) in [
            ("/", Some(ListingEntry::Directory)),
            ("", Some(ListingEntry::Directory)),
            ("./a/", Some(ListingEntry::Directory)),
            ("//a/./b\n", Some(file.clone())),
            ("l", Some(ListingEntry::Symlink { target: "a/b".to_owned() })),
            ("l/b", None),
            ("a/b\n/c", None),
            ("b", None),
            ("..", None),
        ] {
            assert_eq!(find(&json, path), Ok(found), "{path:?}");
        }
        assert_eq!(find(&document(FILE), "/"), Ok(Some(file)));
        assert_eq!(find(&document(FILE), "x"), Ok(None));
        assert_eq!(Listing::parse(json.as_bytes(), 9).unwrap_err().exit_status(), 1);
    }

    #[test]
    fn a_listing_without_offsets_or_with_unknown_fields_is_accepted() {
        let old = r#"{"version":1,"root":{"type":"regular","size":3,"more":[[[{}]]]},"x":null}"#;
        assert_eq!(find(old, "/"), Ok(Some(ListingEntry::File { executable: false, size: 3, nar_offset: None })));
    }

    #[test]
    fn entries_that_no_nar_can_have_are_refused() {
        let entries = |entries: &str| document(&directory(entries));
        for (json, reason) in [
            (String::new(), "EOF"),
            ("[]".to_owned(), "root and version"),
            ("{}".to_owned(), "version"),
            (r#"{"version":1}"#.to_owned(), "root"),
            (document(FILE).replace(":1}", ":2}"), "version is 2"),
            (document(FILE) + "x", "trailing"),
            (document(r#"{"type":"fifo"}"#), "fifo"),
            (document(r#"{"size":1}"#), "type"),
            (document(r#"{"type":"regular"}"#), "size"),
            (document(r#"{"type":"directory"}"#), "entries"),
            (document(r#"{"type":"symlink","target":""}"#), "target"),
            (document(r#"{"type":"regular","size":-1}"#), "-1"),
            (document(r#"{"type":"regular","size":1,"size":2}"#), "duplicate"),
            (document(r#"{"type":"regular","size":1,"entries":{}}"#), "only a directory"),
            (document(r#"{"type":"regular","size":1,"narOffset":97}"#), "narOffset"),
            (document(r#"{"type":"regular","size":18446744073709551615,"narOffset":96}"#), "narOffset"),
            (entries(&format!(r#""..":{FILE}"#)), "file name"),
            (entries(&format!(r#""a/b":{FILE}"#)), "file name"),
            (entries(&format!(r#""a\u0000":{FILE}"#)), "file name"),
            (entries(&format!(r#""{}":{FILE}"#, "x".repeat(256))), "file name"),
        ] {
            let message = find(&json, "/").unwrap_err();
            assert!(message.contains(reason) && message.len() < 300, "{json}: {message}");
        }
        // Readers would disagree about the tree: some take the first entry of a name and some the last.
        let duplicate = entries(&format!(r#""a":{FILE},"a":{LINK}"#));
        assert!(find(&duplicate, "a").unwrap_err().contains("duplicate"));
        let long = document(&format!(r#"{{"type":"{}"}}"#, "x".repeat(5000)));
        assert!(find(&long, "/").unwrap_err().len() < 300);
    }

    #[test]
    fn a_listing_may_be_as_deep_as_a_nar() {
        let nested =
            |depth: usize| document(&(0..depth).fold(directory(""), |inner, _| directory(&format!(r#""d":{inner}"#))));
        let path = |depth: usize| "d/".repeat(depth);
        assert_eq!(find(&nested(MAX_DEPTH - 1), &path(MAX_DEPTH - 1)), Ok(Some(ListingEntry::Directory)));
        assert_eq!(find(&nested(MAX_DEPTH - 1), &path(MAX_DEPTH)), Ok(None));
        assert!(find(&nested(MAX_DEPTH), "/").unwrap_err().contains("deeper"));
        let ignored =
            document(FILE).replace("\"size\"", &format!("\"x\":{}1{},\"size\"", "[".repeat(4000), "]".repeat(4000)));
        assert!(find(&ignored, "/").unwrap().is_some());
    }
}
