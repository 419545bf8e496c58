//! One file out of a NAR.

use std::io::{BufRead, Write};

use super::{Visitor, names, parse};
use crate::error::{Error, Result};

/// Writes the contents of the file `path` of a NAR, which is read to its end. Names are separated by slashes; empty
/// ones and `.` do not count, so that `/` is the NAR itself.
///
/// # Errors
/// Refuses a malformed NAR, and one that has no file of that name; what it has instead is said.
pub fn cat(input: &mut impl BufRead, path: &[u8], out: &mut impl Write) -> Result<u64> {
    let mut visitor = Cat::new(path, out);
    let size = parse(input, &mut visitor)?;
    visitor.finish().map(|()| size)
}

/// What is found under the path.
enum Node {
    File,
    Directory,
    Symlink(Vec<u8>),
}

/// The visitor behind [`cat`].
pub struct Cat<'a, W> {
    out: &'a mut W,
    path: &'a [u8],
    names: Vec<&'a [u8]>,
    /// Names entered.
    depth: usize,
    /// How many of them, from the first, are those of the path.
    matched: usize,
    found: Option<Node>,
}

impl<'a, W> Cat<'a, W> {
    /// Writes the contents of the file `path` to `out`, as [`cat`] does.
    pub fn new(path: &'a [u8], out: &'a mut W) -> Self {
        Self { out, path, names: names(path), depth: 0, matched: 0, found: None }
    }

    /// Whether there was such a file, after the NAR was read to its end.
    ///
    /// # Errors
    /// Refuses a NAR without it; what it has instead is said.
    pub fn finish(self) -> Result {
        let shown = self.path.escape_ascii();
        match self.found {
            Some(Node::File) => Ok(()),
            Some(Node::Directory) => Err(Error::refused(format!("{shown} is a directory in the NAR, not a file"))),
            Some(Node::Symlink(target)) => Err(Error::refused(format!(
                "{shown} is a symbolic link in the NAR, not a file; its target is {}",
                target.escape_ascii()
            ))),
            None => Err(Error::refused(format!("there is no {shown} in the NAR"))),
        }
    }

    fn is_here(&self) -> bool {
        self.depth == self.names.len() && self.matched == self.depth
    }

    fn find(&mut self, node: impl FnOnce() -> Node) {
        if self.is_here() {
            self.found = Some(node());
        }
    }
}

impl<W: Write> Visitor for Cat<'_, W> {
    fn directory(&mut self) -> Result {
        self.find(|| Node::Directory);
        Ok(())
    }

    fn directory_end(&mut self) -> Result {
        Ok(())
    }

    fn enter(&mut self, name: &[u8]) -> Result {
        if self.matched == self.depth && self.names.get(self.depth) == Some(&name) {
            self.matched += 1;
        }
        self.depth += 1;
        Ok(())
    }

    fn leave(&mut self) -> Result {
        self.depth -= 1;
        self.matched = self.matched.min(self.depth);
        Ok(())
    }

    fn file(&mut self, _: bool, _: u64, _: u64) -> Result {
        self.find(|| Node::File);
        Ok(())
    }

    fn data(&mut self, bytes: &[u8]) -> Result {
        if self.is_here() { Ok(self.out.write_all(bytes)?) } else { Ok(()) }
    }

    fn file_end(&mut self) -> Result {
        Ok(())
    }

    fn symlink(&mut self, target: &[u8]) -> Result {
        self.find(|| Node::Symlink(target.to_vec()));
        Ok(())
    }
}
