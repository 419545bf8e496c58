//! File trees: snapshots for comparison, and a tree with every kind of entry.

use std::ffi::OsStr;
use std::fmt;
use std::fs::{self, Permissions};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;

use walkdir::{DirEntry, WalkDir};

use crate::Random;

/// One file of a tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// The path relative to the root of the tree, empty for the root itself; bytes that are not ASCII are escaped.
    pub path: String,
    /// The kind of the file.
    pub kind: Kind,
}

/// The properties of a file that a NAR records.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)] // the names say it
pub enum Kind {
    Directory,
    File { executable: bool, contents: Contents },
    Symlink { target: String },
}

/// The bytes of a file, printed as their number and a hash.
#[derive(Clone, PartialEq, Eq)]
pub struct Contents(pub Vec<u8>);

impl fmt::Debug for Contents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut hasher = DefaultHasher::new();
        self.0.hash(&mut hasher);
        write!(f, "{} bytes, hash {:016x}", self.0.len(), hasher.finish())
    }
}

/// Returns the files of the tree at `path`, sorted by path; equal results mean the same store object.
pub fn tree(path: impl AsRef<Path>) -> Vec<Node> {
    let path = path.as_ref();
    let entries = WalkDir::new(path).follow_root_links(false).sort_by_file_name().into_iter();
    entries.map(|entry| node(path, &entry.expect("an entry of the tree"))).collect()
}

fn node(root: &Path, entry: &DirEntry) -> Node {
    let path = entry.path().strip_prefix(root).expect("an entry is below the root");
    let kind = match entry.file_type() {
        kind if kind.is_dir() => Kind::Directory,
        kind if kind.is_symlink() => Kind::Symlink { target: escape(fs::read_link(entry.path()).unwrap().as_os_str()) },
        _ => Kind::File {
            executable: entry.metadata().unwrap().permissions().mode() & 0o100 != 0,
            contents: Contents(fs::read(entry.path()).unwrap()),
        },
    };
    Node { path: escape(path.as_os_str()), kind }
}

fn escape(name: &OsStr) -> String {
    name.as_bytes().escape_ascii().to_string()
}

/// Creates the directory `dir` with every kind of file: an empty one, an executable, nested directories, an empty one,
/// symbolic links (one dangling), names with spaces and bytes that are not UTF-8, and 1 MiB of incompressible bytes.
pub fn make_tree(dir: impl AsRef<Path>, seed: u64) {
    let dir = dir.as_ref();
    let mut random = Random::new(seed);
    fs::create_dir_all(dir.join("share/doc/deep/deeper")).unwrap();
    fs::create_dir(dir.join("bin")).unwrap();
    fs::create_dir(dir.join("empty-directory")).unwrap();
    fs::write(dir.join("empty"), b"").unwrap();
    fs::write(dir.join("bin/hello"), format!("#!/bin/sh\necho hello {seed}\n")).unwrap();
    fs::set_permissions(dir.join("bin/hello"), Permissions::from_mode(0o755)).unwrap();
    fs::write(dir.join("share/doc/deep/deeper/text"), "a line that compresses well\n".repeat(500)).unwrap();
    fs::write(dir.join("share/with some spaces"), b"7 bytes").unwrap();
    fs::write(dir.join(OsStr::from_bytes(b"share/not-utf8-\xff\xfe")), b"x").unwrap();
    // Sorted by bytes, not by locale: upper case first, and `share.txt` before `share/…`.
    fs::write(dir.join("Zebra"), b"8 bytes!").unwrap();
    fs::write(dir.join("share.txt"), format!("{seed}\n")).unwrap();
    fs::write(dir.join("noise"), random.bytes(1 << 20)).unwrap();
    symlink("bin/hello", dir.join("link")).unwrap();
    symlink("/nowhere/at all", dir.join("dangling")).unwrap();
    symlink(OsStr::from_bytes(b"target-\xff"), dir.join("strange link")).unwrap();
}
