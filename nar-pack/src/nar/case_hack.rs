//! Renames entries whose names differ only in case, so that a NAR can be restored on a case-insensitive file system. The
//! names are those of Nix with `use-case-hack` (the NAR parser in Nix's `src/libutil/archive.cc`): after `README`, the
//! entry `readme` becomes `readme~nix~case~hack~1`. [`dump_undoing_case_hack_in`](super::dump_undoing_case_hack_in) undoes it.
//!
//! An entry of a NAR that already has such a name is refused, as Lix refuses it always: Nix accepts it, and then packs the
//! tree with another name, or fails because the file exists.

use std::collections::HashMap;

use super::{CASE_HACK, MAX_FILE_NAME, Visitor};
use crate::error::{Error, Result};

/// Returns the name of an entry before it was renamed: the part before the first [`CASE_HACK`], as in Nix.
pub(super) fn original_name(name: &[u8]) -> &[u8] {
    let suffix = name.windows(CASE_HACK.len()).position(|window| window == CASE_HACK);
    &name[..suffix.unwrap_or(name.len())]
}

/// A visitor that renames colliding entries and passes the tree on to another visitor.
pub struct CaseHack<'a, V> {
    inner: &'a mut V,
    /// For each directory from the root to the current one: its names in lower case, and the number of collisions of each.
    directories: Vec<HashMap<Vec<u8>, u32>>,
}

impl<'a, V> CaseHack<'a, V> {
    /// Creates a visitor that passes the renamed tree on to `inner`.
    pub fn new(inner: &'a mut V) -> Self {
        Self { inner, directories: Vec::new() }
    }

    /// Returns the new name for an entry of the current directory.
    fn rename(&mut self, name: &[u8]) -> Result<Vec<u8>> {
        let mut renamed = name.to_vec();
        let Some(names) = self.directories.last_mut() else { return Ok(renamed) };
        if original_name(name).len() < name.len() {
            let name = name.escape_ascii();
            return Err(Error::refused(format!("file name \"{name}\" is reserved for renamed files")));
        }
        if let Some(collisions) = names.get_mut(&name.to_ascii_lowercase()) {
            *collisions += 1;
            renamed.extend_from_slice(CASE_HACK);
            renamed.extend_from_slice(collisions.to_string().as_bytes());
        }
        if renamed.len() > MAX_FILE_NAME {
            let renamed = renamed.escape_ascii();
            return Err(Error::refused(format!("file name \"{renamed}\" is longer than {MAX_FILE_NAME} bytes")));
        }
        if names.insert(renamed.to_ascii_lowercase(), 0).is_some() && renamed.len() > name.len() {
            return Err(Error::refused(format!(
                "cannot rename \"{}\" to \"{}\": the name exists",
                name.escape_ascii(),
                renamed.escape_ascii()
            )));
        }
        Ok(renamed)
    }
}

impl<V: Visitor> Visitor for CaseHack<'_, V> {
    fn directory(&mut self) -> Result {
        self.directories.push(HashMap::new());
        self.inner.directory()
    }

    fn directory_end(&mut self) -> Result {
        self.directories.pop();
        self.inner.directory_end()
    }

    fn enter(&mut self, name: &[u8]) -> Result {
        let renamed = self.rename(name)?;
        self.inner.enter(&renamed)
    }

    fn leave(&mut self) -> Result {
        self.inner.leave()
    }

    fn file(&mut self, executable: bool, size: u64, offset: u64) -> Result {
        self.inner.file(executable, size, offset)
    }

    fn data(&mut self, bytes: &[u8]) -> Result {
        self.inner.data(bytes)
    }

    fn file_end(&mut self) -> Result {
        self.inner.file_end()
    }

    fn symlink(&mut self, target: &[u8]) -> Result {
        self.inner.symlink(target)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the new names of the entries of one directory.
    fn rename(names: &[&str]) -> Result<Vec<String>> {
        let mut skip = crate::nar::Skip;
        let mut hack = CaseHack::new(&mut skip);
        hack.directory().unwrap();
        let rename = |name: &&str| hack.rename(name.as_bytes()).map(|name| String::from_utf8(name).unwrap());
        names.iter().map(rename).collect()
    }

    #[test]
    fn colliding_names_are_renamed_as_nix_does() {
        let expected = ["README", "ReadMe~nix~case~hack~1", "a", "readme~nix~case~hack~2"];
        assert_eq!(rename(&["README", "ReadMe", "a", "readme"]).unwrap(), expected);
        assert_eq!(rename(&["b", "c"]).unwrap(), ["b", "c"]);
    }

    #[test]
    fn a_new_name_that_exists_or_is_too_long_is_refused() {
        for names in [&["X", "X~NIX~case~hack~1", "x"][..], &["X", "X~nix~case~hack~1", "x"]] {
            assert!(rename(names).unwrap_err().is_refusal(), "{names:?}");
        }
        let (long, same) = ("X".repeat(250), "x".repeat(250));
        assert!(rename(&[&long, &same]).unwrap_err().is_refusal());
    }

    #[test]
    fn a_name_that_is_reserved_for_renamed_files_is_refused() {
        for names in [&["Foo", "foo", "foo~nix~case~hack~1"][..], &["foo~nix~case~hack~1"], &["a~nix~case~hack~b"]] {
            let error = rename(names).unwrap_err();
            assert!(error.is_refusal() && error.message().contains("reserved for renamed files"), "{error}");
        }
    }

    #[test]
    fn names_in_different_directories_do_not_collide() {
        let mut skip = crate::nar::Skip;
        let mut hack = CaseHack::new(&mut skip);
        hack.directory().unwrap();
        assert_eq!(hack.rename(b"A").unwrap(), b"A");
        hack.directory().unwrap();
        assert_eq!(hack.rename(b"a").unwrap(), b"a");
        hack.directory_end().unwrap();
        assert_eq!(hack.rename(b"a").unwrap(), b"a~nix~case~hack~1");
    }
}
