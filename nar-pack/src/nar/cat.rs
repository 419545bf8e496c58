//! Extracts one file of a NAR. The whole NAR is read all the same, since only then it is known to be well-formed.

use std::io::{BufRead, Write};

use super::{Visitor, parse, split_path};
use crate::error::{Error, Result};

/// Reads a NAR to its end, writes the contents of the file `path` in it, and returns the size of the NAR in bytes. Empty
/// names and `.` in `path` are skipped, so `/` is the root of the NAR.
///
/// # Errors
/// Refuses a malformed NAR, and one without a file at that path; the error states what is there instead.
pub fn cat(input: &mut impl BufRead, path: &[u8], out: &mut impl Write) -> Result<u64> {
    let mut visitor = Cat::new(path, out);
    let size = parse(input, &mut visitor)?;
    visitor.finish().map(|()| size)
}

/// The node at the path.
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
    /// Number of names from the root to the current node.
    depth: usize,
    /// Number of leading names that match those of the path.
    matched: usize,
    found: Option<Node>,
}

impl<'a, W> Cat<'a, W> {
    /// Creates a visitor that writes the contents of the file `path` to `out`.
    pub fn new(path: &'a [u8], out: &'a mut W) -> Self {
        Self { out, path, names: split_path(path), depth: 0, matched: 0, found: None }
    }

    /// Checks that the file was found. To be called at the end of the NAR.
    ///
    /// # Errors
    /// Refuses a NAR without a file at the path; the error states what is there instead.
    pub fn finish(self) -> Result {
        let path = self.path.escape_ascii();
        match self.found {
            Some(Node::File) => Ok(()),
            Some(Node::Directory) => Err(Error::refused(format!("\"{path}\" in the NAR is a directory, not a file"))),
            Some(Node::Symlink(target)) => Err(Error::refused(format!(
                "\"{path}\" in the NAR is a symbolic link to {}, not a file",
                target.escape_ascii()
            ))),
            None => Err(Error::refused(format!("\"{path}\" does not exist in the NAR"))),
        }
    }

    /// Returns whether the current node is the one at the path.
    fn is_at_path(&self) -> bool {
        self.depth == self.names.len() && self.matched == self.depth
    }

    fn record(&mut self, node: impl FnOnce() -> Node) {
        if self.is_at_path() {
            self.found = Some(node());
        }
    }
}

impl<W: Write> Visitor for Cat<'_, W> {
    fn directory(&mut self) -> Result {
        self.record(|| Node::Directory);
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
        self.record(|| Node::File);
        Ok(())
    }

    fn data(&mut self, bytes: &[u8]) -> Result {
        if self.is_at_path() { Ok(self.out.write_all(bytes)?) } else { Ok(()) }
    }

    fn file_end(&mut self) -> Result {
        Ok(())
    }

    fn symlink(&mut self, target: &[u8]) -> Result {
        self.record(|| Node::Symlink(target.to_vec()));
        Ok(())
    }
}
