//! The listing of a NAR as a cache has it, which may be anybody's: what is under a path of the NAR, and where.

use std::fmt;

use serde::Deserialize;
use serde::de::{DeserializeSeed, Error as _, IgnoredAny, MapAccess, Visitor};

use super::{MAX_DEPTH, MAX_NAME, MAX_TARGET, names};
use crate::error::{Error, Result};

/// Bytes before the contents of the first file that a NAR can have.
const FIRST_OFFSET: u64 = 96;
/// Characters of a message about what is wrong; a hostile listing has a say in it.
const MOST_SAID: usize = 200;

/// The bytes of a `.ls` file (Nix's `src/libutil/nar-listing.cc`, version 1), which are known to be a listing.
///
/// Nothing but these bytes is kept: looking for a path reads them again, so memory does not grow with the tree.
#[derive(Debug, Clone, Copy)]
pub struct Listing<'a>(&'a [u8]);

/// What a listing says of a path. None of it is signed: what is read by it has to be checked against the NAR.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Listed {
    /// A directory.
    Directory,
    /// A regular file.
    File {
        /// Whether it is executable.
        executable: bool,
        /// Bytes of its contents.
        size: u64,
        /// Where in the NAR they begin, in bytes; listings of old tools do not say.
        nar_offset: Option<u64>,
    },
    /// A symbolic link.
    Symlink {
        /// Where it points to.
        target: String,
    },
}

impl<'a> Listing<'a> {
    /// Takes `json`, of at most `limit` bytes, as a listing. All of it is checked: types, names, depth, offsets.
    ///
    /// # Errors
    /// Refuses what is larger, what is no listing, and one of another version.
    pub fn parse(json: &'a [u8], limit: usize) -> Result<Self> {
        if json.len() > limit {
            return Err(Error::refused(format!("a listing of {} bytes, more than {limit}", json.len())));
        }
        read(json, &[], false)?;
        Ok(Self(json))
    }

    /// What is under `path` of the NAR: names between slashes, where empty ones and `.` do not count, so that `/` is the
    /// NAR itself. No link is followed.
    ///
    /// # Errors
    /// Refuses a listing that has the path twice.
    pub fn find(&self, path: &[u8]) -> Result<Option<Listed>> {
        read(self.0, &names(path), true)
    }
}

fn read(json: &[u8], path: &[&[u8]], wanted: bool) -> Result<Option<Listed>> {
    let mut json = serde_json::Deserializer::from_slice(json);
    // What is read here nests no deeper than a NAR may, which is a little more than the default allows.
    json.disable_recursion_limit();
    let found = Document(Node { path, wanted, depth: 0 }).deserialize(&mut json);
    found.and_then(|found| json.end().map(|()| found)).map_err(|error| {
        let why: String = error.to_string().chars().take(MOST_SAID).collect();
        Error::refused(format!("not the listing of a NAR: {why}"))
    })
}

/// Puts a value into its place, which has to be empty.
fn once<T, E: serde::de::Error>(place: &mut Option<T>, value: T, key: &'static str) -> Result<(), E> {
    if place.replace(value).is_some() { Err(E::duplicate_field(key)) } else { Ok(()) }
}

#[derive(Deserialize)]
#[serde(field_identifier, rename_all = "camelCase")]
enum DocumentKey {
    Root,
    Version,
    #[serde(other)]
    Other,
}

struct Document<'p>(Node<'p>);

impl<'de> DeserializeSeed<'de> for Document<'_> {
    type Value = Option<Listed>;

    fn deserialize<D: serde::Deserializer<'de>>(self, json: D) -> Result<Self::Value, D::Error> {
        json.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Document<'_> {
    type Value = Option<Listed>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with root and version")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let (mut found, mut version) = (None, None);
        while let Some(key) = map.next_key()? {
            match key {
                DocumentKey::Root => once(&mut found, map.next_value_seed(Node { ..self.0 })?, "root")?,
                DocumentKey::Version => once(&mut version, map.next_value::<u64>()?, "version")?,
                DocumentKey::Other => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        match version {
            Some(1) => found.ok_or_else(|| A::Error::missing_field("root")),
            Some(other) => Err(A::Error::custom(format_args!("its version is {other}, not 1"))),
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

/// Reads a node; gives what is under `path` of it, if that is wanted.
#[derive(Clone, Copy)]
struct Node<'p> {
    path: &'p [&'p [u8]],
    wanted: bool,
    /// Directories around it.
    depth: usize,
}

impl<'de> DeserializeSeed<'de> for Node<'_> {
    type Value = Option<Listed>;

    fn deserialize<D: serde::Deserializer<'de>>(self, json: D) -> Result<Self::Value, D::Error> {
        if self.depth == MAX_DEPTH {
            let why = format_args!("nested deeper than {MAX_DEPTH} levels of directories");
            return Err(D::Error::custom(why));
        }
        json.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Node<'_> {
    type Value = Option<Listed>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a file, directory or symbolic link")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let (mut entries, mut executable, mut nar_offset, mut size, mut target, mut kind) =
            (None, None, None, None, None, None);
        while let Some(key) = map.next_key()? {
            match key {
                NodeKey::Entries => once(&mut entries, map.next_value_seed(Entries(self))?, "entries")?,
                NodeKey::Executable => once(&mut executable, map.next_value::<bool>()?, "executable")?,
                NodeKey::NarOffset => once(&mut nar_offset, map.next_value::<u64>()?, "narOffset")?,
                NodeKey::Size => once(&mut size, map.next_value::<u64>()?, "size")?,
                NodeKey::Target => once(&mut target, map.next_value::<String>()?, "target")?,
                NodeKey::Type => once(&mut kind, map.next_value::<Type>()?, "type")?,
                NodeKey::Other => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        let mut found = None;
        let here = match kind.ok_or_else(|| A::Error::missing_field("type"))? {
            Type::Directory => {
                found = entries.take().ok_or_else(|| A::Error::missing_field("entries"))?;
                Listed::Directory
            }
            Type::Regular => {
                let size: u64 = size.ok_or_else(|| A::Error::missing_field("size"))?;
                if nar_offset.is_some_and(|offset| !is_offset(offset, size)) {
                    return Err(A::Error::custom("no file of a NAR begins at that narOffset"));
                }
                Listed::File { executable: executable.unwrap_or(false), size, nar_offset }
            }
            Type::Symlink => {
                let target: String = target.ok_or_else(|| A::Error::missing_field("target"))?;
                if target.is_empty() || target.len() > MAX_TARGET || target.contains('\0') {
                    return Err(A::Error::custom("no symbolic link has such a target"));
                }
                Listed::Symlink { target }
            }
        };
        if entries.is_some() {
            return Err(A::Error::custom("entries of what is no directory"));
        }
        Ok(if self.wanted && self.path.is_empty() { Some(here) } else { found })
    }
}

/// Strings of a NAR begin at multiples of 8, and so do contents.
fn is_offset(offset: u64, size: u64) -> bool {
    offset >= FIRST_OFFSET && offset.is_multiple_of(8) && offset.checked_add(size).is_some()
}

/// Reads the entries of the directory.
struct Entries<'p>(Node<'p>);

impl<'de> DeserializeSeed<'de> for Entries<'_> {
    type Value = Option<Listed>;

    fn deserialize<D: serde::Deserializer<'de>>(self, json: D) -> Result<Self::Value, D::Error> {
        json.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Entries<'_> {
    type Value = Option<Listed>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the entries of a directory")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let Self(directory) = self;
        let mut found = None;
        while let Some(name) = map.next_key::<String>()? {
            if matches!(name.as_str(), "" | "." | "..") || name.contains(['/', '\0']) || name.len() > MAX_NAME {
                return Err(A::Error::custom(format_args!("invalid file name {name:?}")));
            }
            let (first, rest) = match directory.path.split_first() {
                Some((first, rest)) => (Some(*first), rest),
                None => (None, directory.path),
            };
            let wanted = directory.wanted && first == Some(name.as_bytes());
            let below = map.next_value_seed(Node { path: rest, wanted, depth: directory.depth + 1 })?;
            if wanted {
                once(&mut found, below, "name")?;
            }
        }
        Ok(found.flatten())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(json: &str, path: &str) -> Result<Option<Listed>, String> {
        let listing = Listing::parse(json.as_bytes(), 10_000);
        listing.and_then(|listing| listing.find(path.as_bytes())).map_err(|failure| {
            assert!(failure.is_refusal());
            failure.message().to_owned()
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
    fn entries_are_found_by_their_path() {
        let json = document(&directory(&format!(r#""a":{},"l":{LINK}"#, directory(&format!(r#""b\n":{FILE}"#)))));
        let file = Listed::File { executable: true, size: 5, nar_offset: Some(288) };
        for (path, found) in [
            ("/", Some(Listed::Directory)),
            ("", Some(Listed::Directory)),
            ("./a/", Some(Listed::Directory)),
            ("//a/./b\n", Some(file.clone())),
            ("l", Some(Listed::Symlink { target: "a/b".to_owned() })),
            ("l/b", None),
            ("a/b\n/c", None),
            ("b", None),
            ("..", None),
        ] {
            assert_eq!(find(&json, path), Ok(found), "{path:?}");
        }
        assert_eq!(find(&document(FILE), "/"), Ok(Some(file)));
        assert_eq!(find(&document(FILE), "x"), Ok(None));
        assert_eq!(Listing::parse(json.as_bytes(), 9).unwrap_err().exit_code(), 1);
    }

    #[test]
    fn what_older_and_newer_tools_write_is_read() {
        let old = r#"{"version":1,"root":{"type":"regular","size":3,"more":[[[{}]]]},"x":null}"#;
        assert_eq!(find(old, "/"), Ok(Some(Listed::File { executable: false, size: 3, nar_offset: None })));
    }

    #[test]
    fn what_no_nar_has_is_refused() {
        let entries = |entries: &str| document(&directory(entries));
        for (json, why) in [
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
            (document(r#"{"type":"regular","size":1,"entries":{}}"#), "no directory"),
            (document(r#"{"type":"regular","size":1,"narOffset":97}"#), "narOffset"),
            (document(r#"{"type":"regular","size":18446744073709551615,"narOffset":96}"#), "narOffset"),
            (entries(&format!(r#""..":{FILE}"#)), "file name"),
            (entries(&format!(r#""a/b":{FILE}"#)), "file name"),
            (entries(&format!(r#""a\u0000":{FILE}"#)), "file name"),
            (entries(&format!(r#""{}":{FILE}"#, "x".repeat(256))), "file name"),
        ] {
            let said = find(&json, "/").unwrap_err();
            assert!(said.contains(why) && said.len() < 300, "{json}: {said}");
        }
        // A reader of the first and one of the last would see two trees.
        let twice = entries(&format!(r#""a":{FILE},"a":{LINK}"#));
        assert!(find(&twice, "a").unwrap_err().contains("duplicate"));
        let long = document(&format!(r#"{{"type":"{}"}}"#, "x".repeat(5000)));
        assert!(find(&long, "/").unwrap_err().len() < 300);
    }

    #[test]
    fn a_listing_is_as_deep_as_a_nar() {
        let nested =
            |depth: usize| document(&(0..depth).fold(directory(""), |inner, _| directory(&format!(r#""d":{inner}"#))));
        let path = |depth: usize| "d/".repeat(depth);
        assert_eq!(find(&nested(MAX_DEPTH - 1), &path(MAX_DEPTH - 1)), Ok(Some(Listed::Directory)));
        assert_eq!(find(&nested(MAX_DEPTH - 1), &path(MAX_DEPTH)), Ok(None));
        assert!(find(&nested(MAX_DEPTH), "/").unwrap_err().contains("deeper"));
        let ignored =
            document(FILE).replace("\"size\"", &format!("\"x\":{}1{},\"size\"", "[".repeat(4000), "]".repeat(4000)));
        assert!(find(&ignored, "/").unwrap().is_some());
    }
}
