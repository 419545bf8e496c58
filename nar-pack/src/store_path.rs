//! Store directories, store paths and path lists. The types can only hold valid names, so everything below them can use
//! a name as a file name or an object key without checking it again.
//!
//! Rules from Nix's `src/libstore/path.cc`: a base name is 32 digits of Nix's base 32, a dash, and a name of 1 to 211
//! characters out of `0-9 a-z A-Z + - . _ ? =` that is not `.` or `..` and does not begin with `.-` or `..-`.

use std::fmt;
use std::io::BufRead;
use std::path::{Path, PathBuf};

use crate::error::{Context, Error, Result};
use crate::path_argument::parse_line;
use crate::root_dir::{LeavingLinks, OpenDir, RootDir};

/// Number of digits in the hash part of a store path.
pub const HASH_PART: usize = 32;
/// Maximum length of the name part in bytes.
pub const MAX_PATH_NAME: usize = 211;
/// Maximum length of a line in a path list, in bytes: a store directory, a slash, and a base name.
const MAX_LINE_LENGTH: usize = 4096 + HASH_PART + 1 + MAX_PATH_NAME;

/// Returns whether `byte` is a digit of Nix's base 32 (all digits and letters but e, o, t and u).
#[must_use]
pub const fn is_base32(byte: u8) -> bool {
    matches!(byte, b'0'..=b'9' | b'a'..=b'd' | b'f'..=b'n' | b'p'..=b's' | b'v'..=b'z')
}

/// The 32 digits at the beginning of a store path's base name, which identify the path within a cache.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HashPart([u8; HASH_PART]);

impl HashPart {
    /// Parses a hash part.
    #[must_use]
    pub fn parse(text: &[u8]) -> Option<Self> {
        let digits: [u8; HASH_PART] = text.try_into().ok()?;
        digits.iter().copied().all(is_base32).then_some(Self(digits))
    }

    /// Returns the 32 digits.
    #[must_use]
    pub fn as_str(&self) -> &str {
        str::from_utf8(&self.0).unwrap_or_default()
    }

    /// Returns the digits as bytes.
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
    /// Parses a base name.
    ///
    /// # Errors
    /// Refuses names that Nix does not accept; the error states the rule.
    pub fn from_base_name(base: &str) -> Result<Self> {
        let invalid = |rule: &str| Error::refused(format!("invalid store path name {base:?}: {rule}"));
        let bytes = base.as_bytes();
        if bytes.len() < HASH_PART + 2 || bytes[HASH_PART] != b'-' {
            return Err(invalid("expected 32 digits, a dash and a name"));
        }
        if !bytes[..HASH_PART].iter().copied().all(is_base32) {
            return Err(invalid("the hash part has a character that is not a base-32 digit of Nix"));
        }
        check_name(&bytes[HASH_PART + 1..]).map_err(|rule| invalid(&rule))?;
        Ok(Self(base.into()))
    }

    /// Returns whether the path is a derivation, by its name.
    #[must_use]
    pub fn is_derivation(&self) -> bool {
        self.0.strip_suffix(".drv").is_some()
    }

    /// Returns `<hash part>-<name>`.
    #[must_use]
    pub fn base_name(&self) -> &str {
        &self.0
    }

    /// Returns the hash part.
    #[must_use]
    pub fn hash_part(&self) -> HashPart {
        let mut digits = [0; HASH_PART];
        digits.copy_from_slice(&self.0.as_bytes()[..HASH_PART]);
        HashPart(digits)
    }
}

/// Checks the name of a store path, which follows the hash part (Nix's `checkName`).
///
/// # Errors
/// Returns the rule that the name breaks.
pub(crate) fn check_name(name: &[u8]) -> Result<(), String> {
    if name.is_empty() {
        return Err("the name must not be empty".to_owned());
    }
    if name.len() > MAX_PATH_NAME {
        return Err(format!("the name is longer than {MAX_PATH_NAME} characters"));
    }
    if matches!(name, b"." | b"..") || name.starts_with(b".-") || name.starts_with(b"..-") {
        return Err("the name must not be \".\" or \"..\" or begin with \".-\" or \"..-\"".to_owned());
    }
    if !name.iter().all(|c| c.is_ascii_alphanumeric() || b"+-._?=".contains(c)) {
        return Err("the name may contain only letters, digits and +-._?=".to_owned());
    }
    Ok(())
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

/// The directory that contains all store paths, usually `/nix/store`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreDir(String);

impl StoreDir {
    /// Parses a store directory. It must be absolute and without `.` and `..`; trailing slashes are removed.
    ///
    /// # Errors
    /// Returns a usage error that names the directory.
    pub fn new(dir: &str) -> Result<Self> {
        let trimmed = dir.trim_end_matches('/');
        let is_valid = trimmed.starts_with('/')
            && trimmed[1..].split('/').all(|part| !matches!(part, "" | "." | ".."))
            // Readers of path lists and narinfos strip white space at the end of a line.
            && trimmed.trim_end() == trimmed
            && !trimmed.contains(|c: char| c.is_control());
        if is_valid {
            Ok(Self(trimmed.to_owned()))
        } else {
            Err(Error::usage(format!(
                "invalid store directory {dir:?}: expected an absolute path without \".\" or \"..\""
            )))
        }
    }

    /// Returns the directory as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns the full store path.
    #[must_use]
    pub fn join(&self, path: &StorePath) -> String {
        format!("{}/{path}", self.0)
    }

    /// Parses a full store path.
    ///
    /// # Errors
    /// Refuses a path that is not directly in this store directory or has no valid base name.
    pub fn parse(&self, text: &str) -> Result<StorePath> {
        match text.strip_prefix(&self.0).and_then(|rest| rest.strip_prefix('/')) {
            Some(base) => StorePath::from_base_name(base),
            None => Err(Error::refused(format!("{text:?} is not a store path in {self}"))),
        }
    }

    /// Opens the store directory for reading; none if it does not exist. If the root of the store is `root`, links are
    /// resolved as after `chroot` to it, so nothing outside of it is read.
    ///
    /// # Errors
    /// Fails if the root does not exist, or if the directory cannot be read.
    pub fn open(&self, root: Option<&Path>) -> Result<Option<OpenDir>> {
        let dir = Path::new(&self.0);
        match root {
            Some(root) => RootDir::open(root)?.open_dir(dir, LeavingLinks::StayInRoot),
            None if dir.exists() => OpenDir::open(dir).map(Some),
            None => Ok(None),
        }
    }

    /// Opens the store directory as [`Self::open`] does. It must exist.
    ///
    /// # Errors
    /// Fails if the directory does not exist or cannot be read.
    pub fn open_existing(&self, root: Option<&Path>) -> Result<OpenDir> {
        self.open(root)?
            .ok_or_else(|| Error::failed(format!("there is no store directory {}", self.real_dir(root).display())))
    }

    /// Returns the location of the store directory in the file system if the root of the store is `root`.
    #[must_use]
    pub fn real_dir(&self, root: Option<&Path>) -> PathBuf {
        root.map_or_else(|| PathBuf::from(&self.0), |root| root.join(self.0.trim_start_matches('/')))
    }
}

impl fmt::Display for StoreDir {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Reads a path list: one store path per line. As in arguments, `HASH-NAME` and a file within a store path name that path;
/// links are not followed. Blank lines are skipped; the last line must end with a line feed, so
/// that a truncated list is noticed.
///
/// # Errors
/// Refuses any other line and a truncated list; the error names the line.
pub fn read_path_list(mut input: impl BufRead, store_dir: &StoreDir) -> Result<Vec<StorePath>> {
    let mut paths = Vec::new();
    let mut line = Vec::new();
    for number in 1_u64.. {
        line.clear();
        let at = || format!("path list, line {number}");
        std::io::Read::take(&mut input, MAX_LINE_LENGTH as u64 + 1).read_until(b'\n', &mut line)?;
        if line.is_empty() {
            break;
        }
        if line.pop() != Some(b'\n') {
            let reason =
                if line.len() >= MAX_LINE_LENGTH { "line too long" } else { "truncated: no line feed at its end" };
            return Err(Error::refused(reason).context(at()));
        }
        let text = str::from_utf8(&line).map_err(|_| Error::refused("not valid UTF-8")).context(at)?.trim_end();
        if !text.is_empty() {
            paths.push(parse_line(text, store_dir).context(at)?);
        }
    }
    Ok(paths)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HASH: &str = "02dlwc21njky62v7q7ffcb10000n2grx";

    #[test]
    fn names_that_nix_accepts_are_parsed() {
        for name in ["a", "hello-2.12.1", "a+b_c.d?e=f", ".gitignore", &"n".repeat(MAX_PATH_NAME)] {
            let base = format!("{HASH}-{name}");
            let path = StorePath::from_base_name(&base).unwrap();
            assert_eq!((path.base_name(), path.hash_part().as_str()), (base.as_str(), HASH));
        }
    }

    #[test]
    fn names_that_nix_refuses_are_refused() {
        let long = format!("{HASH}-{}", "n".repeat(MAX_PATH_NAME + 1));
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
            assert_eq!(StorePath::from_base_name(base).unwrap_err().exit_status(), 1, "{base:?}");
        }
    }

    #[test]
    fn a_store_path_must_be_directly_in_the_store_directory() {
        let dir = StoreDir::new("/nix/store/").unwrap();
        assert_eq!(dir.parse(&format!("/nix/store/{HASH}-x")).unwrap().base_name(), format!("{HASH}-x"));
        for text in ["/nix/storeX/", "/nix/store", "/gnu/store/x", ""] {
            assert!(dir.parse(&format!("{text}{HASH}-x")).is_err(), "{text}");
        }
        assert!(dir.parse(&format!("/nix/store/{HASH}-x/bin")).is_err());
    }

    #[test]
    fn store_directories_must_be_absolute_and_normalized() {
        for dir in ["", "/", "nix/store", "/nix/../store", "/nix//store", "/nix/./store", "/nix/store /"] {
            assert_eq!(StoreDir::new(dir).unwrap_err().exit_status(), 2, "{dir:?}");
        }
    }

    #[test]
    fn a_truncated_path_list_is_refused() {
        let dir = StoreDir::new("/nix/store").unwrap();
        let complete = format!("/nix/store/{HASH}-a\n\n/nix/store/{HASH}-b\n");
        assert_eq!(read_path_list(complete.as_bytes(), &dir).unwrap().len(), 2);
        let truncated = &complete.as_bytes()[..complete.len() - 1];
        assert!(read_path_list(truncated, &dir).unwrap_err().message().contains("line 3"));
        assert!(read_path_list(&b""[..], &dir).unwrap().is_empty());
    }
}
