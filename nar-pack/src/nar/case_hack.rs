//! Names that a case-insensitive file system takes for one, told apart as Nix does where `use-case-hack` is set (the
//! NAR parser in Nix's `src/libutil/archive.cc`): the second `README` becomes `readme~nix~case~hack~1`.

use std::collections::HashMap;

use super::{CASE_HACK, MAX_NAME, Visitor};
use crate::error::{Error, Result};

/// Gives a tree to another visitor, with names that collide renamed.
pub struct CaseHack<'a, V> {
    inner: &'a mut V,
    /// For each open directory the names in it, in lower case, and how many collided with each.
    levels: Vec<HashMap<Vec<u8>, u32>>,
}

impl<'a, V> CaseHack<'a, V> {
    /// Renames for `inner`.
    pub fn new(inner: &'a mut V) -> Self {
        Self { inner, levels: Vec::new() }
    }

    /// The name under which an entry of the innermost directory is to be made.
    fn renamed(&mut self, name: &[u8]) -> Result<Vec<u8>> {
        let mut renamed = name.to_vec();
        let Some(names) = self.levels.last_mut() else { return Ok(renamed) };
        if let Some(collisions) = names.get_mut(&name.to_ascii_lowercase()) {
            *collisions += 1;
            renamed.extend_from_slice(CASE_HACK);
            renamed.extend_from_slice(collisions.to_string().as_bytes());
        }
        if renamed.len() > MAX_NAME {
            let shown = name.escape_ascii();
            return Err(Error::refused(format!(
                "{shown} differs from another name in case only, and is too long to be told apart"
            )));
        }
        if names.insert(renamed.to_ascii_lowercase(), 0).is_some() && renamed.len() > name.len() {
            return Err(Error::refused(format!(
                "the name {} is there already, and needed for one that differs in case only",
                renamed.escape_ascii()
            )));
        }
        Ok(renamed)
    }
}

impl<V: Visitor> Visitor for CaseHack<'_, V> {
    fn directory(&mut self) -> Result {
        self.levels.push(HashMap::new());
        self.inner.directory()
    }

    fn directory_end(&mut self) -> Result {
        self.levels.pop();
        self.inner.directory_end()
    }

    fn enter(&mut self, name: &[u8]) -> Result {
        let renamed = self.renamed(name)?;
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

    /// The names that come out of these in one directory.
    fn renamed(names: &[&str]) -> Result<Vec<String>> {
        let mut skip = crate::nar::Skip;
        let mut hack = CaseHack::new(&mut skip);
        hack.directory().unwrap();
        let name = |name: &&str| hack.renamed(name.as_bytes()).map(|name| String::from_utf8(name).unwrap());
        names.iter().map(name).collect()
    }

    #[test]
    fn names_are_those_of_nix() {
        let told_apart = ["README", "ReadMe~nix~case~hack~1", "a", "readme~nix~case~hack~2"];
        assert_eq!(renamed(&["README", "ReadMe", "a", "readme"]).unwrap(), told_apart);
        assert_eq!(renamed(&["b", "c"]).unwrap(), ["b", "c"]);
    }

    #[test]
    fn a_name_that_was_taken_before_is_refused() {
        assert!(renamed(&["X", "X~nix~case~hack~1", "x"]).unwrap_err().is_refusal());
        let (long, same) = ("X".repeat(250), "x".repeat(250));
        assert!(renamed(&[&long, &same]).unwrap_err().is_refusal());
    }

    #[test]
    fn directories_do_not_know_each_other() {
        let mut skip = crate::nar::Skip;
        let mut hack = CaseHack::new(&mut skip);
        hack.directory().unwrap();
        assert_eq!(hack.renamed(b"A").unwrap(), b"A");
        hack.directory().unwrap();
        assert_eq!(hack.renamed(b"a").unwrap(), b"a");
        hack.directory_end().unwrap();
        assert_eq!(hack.renamed(b"a").unwrap(), b"a~nix~case~hack~1");
    }
}
