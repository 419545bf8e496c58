//! Store directories, store paths and path lists.
//!
//! Rules from Nix's `src/libstore/path.cc`: a base name is 32 digits of Nix's base 32, a dash, and a name of 1 to 211
//! characters out of `0-9 a-z A-Z + - . _ ? =` that is not `.` or `..` and does not begin with `.-` or `..-`.

use std::fmt;
use std::io::BufRead;
use std::path::{Path, PathBuf};

use crate::error::{Context, Error, Result};

/// Digits in the hash part of a store path.
pub const HASH_PART: usize = 32;
/// Longest name part in bytes.
pub const MAX_NAME: usize = 211;
/// Longest line of a path list in bytes: a store directory, a slash, and a base name.
const MAX_LINE: usize = 4096 + HASH_PART + 1 + MAX_NAME;

/// Whether `byte` is a digit of Nix's base 32 (no e, o, t, u).
#[must_use]
pub const fn is_base32(byte: u8) -> bool {
    matches!(byte, b'0'..=b'9' | b'a'..=b'd' | b'f'..=b'n' | b'p'..=b's' | b'v'..=b'z')
}

/// The 32 digits that begin a store path's base name; they alone identify it within a cache.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HashPart([u8; HASH_PART]);

impl HashPart {
    /// The hash part that `text` is, if it is one.
    #[must_use]
    pub fn parse(text: &[u8]) -> Option<Self> {
        let digits: [u8; HASH_PART] = text.try_into().ok()?;
        digits.iter().copied().all(is_base32).then_some(Self(digits))
    }

    /// The 32 digits.
    #[must_use]
    pub fn as_str(&self) -> &str {
        str::from_utf8(&self.0).unwrap_or_default()
    }

    /// The digits as bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; HASH_PART] {
        &self.0
    }
}

impl fmt::Display for HashPart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for HashPart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A store path without its store directory: `<hash part>-<name>`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StorePath(Box<str>);

impl StorePath {
    /// Checks a base name.
    ///
    /// # Errors
    /// Refuses what Nix would not accept as a store path, and says why.
    pub fn from_base_name(base: &str) -> Result<Self> {
        let wrong = |why: &str| Err(Error::refused(format!("{base:?} is not the name of a store path: {why}")));
        let bytes = base.as_bytes();
        if bytes.len() < HASH_PART + 2 || bytes[HASH_PART] != b'-' {
            return wrong("expected 32 digits, a dash and a name");
        }
        if !bytes[..HASH_PART].iter().copied().all(is_base32) {
            return wrong("its hash part has a character that is not one of Nix's base-32 digits");
        }
        let name = &bytes[HASH_PART + 1..];
        if name.len() > MAX_NAME {
            return wrong("its name is longer than 211 characters");
        }
        if matches!(name, b"." | b"..") || name.starts_with(b".-") || name.starts_with(b"..-") {
            return wrong("its name must not be or begin with a dot segment");
        }
        if !name.iter().all(|c| c.is_ascii_alphanumeric() || b"+-._?=".contains(c)) {
            return wrong("its name has a character other than letters, digits and +-._?=");
        }
        Ok(Self(base.into()))
    }

    /// `<hash part>-<name>`.
    #[must_use]
    pub fn base_name(&self) -> &str {
        &self.0
    }

    /// The hash part.
    #[must_use]
    pub fn hash_part(&self) -> HashPart {
        let mut digits = [0; HASH_PART];
        digits.copy_from_slice(&self.0.as_bytes()[..HASH_PART]);
        HashPart(digits)
    }
}

impl fmt::Display for StorePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for StorePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The directory that store paths begin with, `/nix/store` nearly always.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreDir(String);

impl StoreDir {
    /// Checks a store directory: absolute, without a trailing slash, `.` or `..`.
    ///
    /// # Errors
    /// A usage failure that names the directory.
    pub fn new(dir: &str) -> Result<Self> {
        let trimmed = dir.trim_end_matches('/');
        let clean = trimmed.starts_with('/')
            && trimmed[1..].split('/').all(|part| !matches!(part, "" | "." | ".."))
            // In text, white space at the end of a line is nothing.
            && trimmed.trim_end() == trimmed
            && !trimmed.contains(|c: char| c.is_control());
        if clean {
            Ok(Self(trimmed.to_owned()))
        } else {
            Err(Error::failed(format!("store directory {dir:?}: expected an absolute path without . or ..")))
        }
    }

    /// The directory as written in a narinfo.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The full store path.
    #[must_use]
    pub fn join(&self, path: &StorePath) -> String {
        format!("{}/{path}", self.0)
    }

    /// Parses a full store path.
    ///
    /// # Errors
    /// Refuses what is not directly below this store directory or has no valid base name.
    pub fn parse(&self, text: &str) -> Result<StorePath> {
        match text.strip_prefix(&self.0).and_then(|rest| rest.strip_prefix('/')) {
            Some(base) => StorePath::from_base_name(base),
            None => Err(Error::refused(format!("{text:?} is not a store path below {}", self.0))),
        }
    }

    /// Parses what a person may type: a store path, a path inside one, or a symbolic link to one (as `./result` is).
    ///
    /// # Errors
    /// Refuses what does not lead into the store.
    pub fn find(&self, typed: &Path) -> Result<StorePath> {
        if let Some(found) = self.containing(typed) {
            return found;
        }
        match std::fs::canonicalize(typed) {
            Ok(real) => self.containing(&real).unwrap_or_else(|| {
                Err(Error::refused(format!("{} is not a store path below {}", typed.display(), self.0)))
            }),
            Err(error) => Err(Error::failed(format!("{}: {error}", typed.display()))),
        }
    }

    fn containing(&self, path: &Path) -> Option<Result<StorePath>> {
        let inside = path.strip_prefix(&self.0).ok()?;
        let first = inside.components().next()?;
        Some(StorePath::from_base_name(&first.as_os_str().to_string_lossy()))
    }

    /// Where a store path lies in the file system when the store is below `root`.
    #[must_use]
    pub fn below(&self, root: Option<&Path>, path: &StorePath) -> PathBuf {
        self.dir_below(root).join(path.base_name())
    }

    /// Where the store directory itself lies when it is below `root`.
    #[must_use]
    pub fn dir_below(&self, root: Option<&Path>) -> PathBuf {
        root.map_or_else(|| PathBuf::from(&self.0), |root| root.join(self.0.trim_start_matches('/')))
    }
}

impl fmt::Display for StoreDir {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Reads a path list: one full store path per line; blank lines are skipped, the last line needs its line feed.
///
/// # Errors
/// Refuses a line that is no store path, and a last line that is cut off; names the line's number.
pub fn read_path_list(mut input: impl BufRead, store_dir: &StoreDir) -> Result<Vec<StorePath>> {
    let mut paths = Vec::new();
    let mut line = Vec::new();
    for number in 1_u64.. {
        line.clear();
        let at = || format!("path list, line {number}");
        std::io::Read::take(&mut input, MAX_LINE as u64 + 1).read_until(b'\n', &mut line).context(at)?;
        if line.is_empty() {
            break;
        }
        if line.pop() != Some(b'\n') {
            let why = if line.len() >= MAX_LINE { "the line is too long" } else { "the list is cut off" };
            return Err(Error::refused(why).context(at()));
        }
        let text = str::from_utf8(&line).map_err(|_| Error::refused("not UTF-8 text")).context(at)?.trim_end();
        if !text.is_empty() {
            paths.push(store_dir.parse(text).context(at)?);
        }
    }
    Ok(paths)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HASH: &str = "02dlwc21njky62v7q7ffcb10000n2grx";

    #[test]
    fn accepts_what_nix_accepts() {
        for name in ["a", "hello-2.12.1", "a+b_c.d?e=f", ".gitignore", &"n".repeat(MAX_NAME)] {
            let base = format!("{HASH}-{name}");
            let path = StorePath::from_base_name(&base).unwrap();
            assert_eq!((path.base_name(), path.hash_part().as_str()), (base.as_str(), HASH));
        }
    }

    #[test]
    fn refuses_what_nix_refuses() {
        let long = format!("{HASH}-{}", "n".repeat(MAX_NAME + 1));
        let bad_digit = format!("e{}-x", &HASH[1..]);
        for base in [
            "",
            "-",
            "x",
            HASH,
            &format!("{HASH}-"),
            &format!("{HASH}x"),
            &format!("{HASH}-."),
            &format!("{HASH}-.."),
            &format!("{HASH}-.-x"),
            &format!("{HASH}-..-x"),
            &format!("{HASH}-a/b"),
            &format!("{HASH}-a b"),
            &format!("{HASH}-ä"),
            &long,
            &bad_digit,
        ] {
            assert_eq!(StorePath::from_base_name(base).unwrap_err().exit_code(), 1, "{base:?}");
        }
    }

    #[test]
    fn a_store_path_must_be_directly_below_the_store_directory() {
        let dir = StoreDir::new("/nix/store/").unwrap();
        assert_eq!(dir.parse(&format!("/nix/store/{HASH}-x")).unwrap().base_name(), format!("{HASH}-x"));
        for text in ["/nix/storeX/", "/nix/store", "/gnu/store/x", ""] {
            assert!(dir.parse(&format!("{text}{HASH}-x")).is_err(), "{text}");
        }
        assert!(dir.parse(&format!("/nix/store/{HASH}-x/bin")).is_err());
        assert_eq!(dir.find(Path::new(&format!("/nix/store/{HASH}-x/bin"))).unwrap().base_name(), format!("{HASH}-x"));
    }

    #[test]
    fn store_directories_are_absolute_and_plain() {
        for dir in ["", "/", "nix/store", "/nix/../store", "/nix//store", "/nix/./store", "/nix/store /"] {
            assert_eq!(StoreDir::new(dir).unwrap_err().exit_code(), 2, "{dir:?}");
        }
    }

    #[test]
    fn a_cut_off_path_list_is_refused() {
        let dir = StoreDir::new("/nix/store").unwrap();
        let whole = format!("/nix/store/{HASH}-a\n\n/nix/store/{HASH}-b\n");
        assert_eq!(read_path_list(whole.as_bytes(), &dir).unwrap().len(), 2);
        let cut = &whole.as_bytes()[..whole.len() - 1];
        assert!(read_path_list(cut, &dir).unwrap_err().message().contains("line 3"));
        assert!(read_path_list(&b""[..], &dir).unwrap().is_empty());
    }
}
