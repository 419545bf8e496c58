//! The interface between the parser of a NAR and its readers.

use crate::error::Result;

/// Receives the nodes of a NAR in its order; `enter` and `leave` enclose an entry of a directory.
///
/// The parser has checked the names: they are not empty, `.` or `..`, contain no slash or NUL byte, and ascend strictly.
///
/// # Errors
/// An error of any method ends the parsing, and the parser returns it.
pub trait Visitor {
    /// Starts a directory.
    fn directory(&mut self) -> Result;
    /// Ends the directory.
    fn directory_end(&mut self) -> Result;
    /// Starts the entry `name` of the current directory.
    fn enter(&mut self, name: &[u8]) -> Result;
    /// Ends the entry.
    fn leave(&mut self) -> Result;
    /// Starts a regular file of `size` bytes, whose contents are at `offset` in the NAR.
    fn file(&mut self, executable: bool, size: u64, offset: u64) -> Result;
    /// Receives the next bytes of the file.
    fn data(&mut self, bytes: &[u8]) -> Result;
    /// Ends the file.
    fn file_end(&mut self) -> Result;
    /// Receives a symbolic link.
    fn symlink(&mut self, target: &[u8]) -> Result;
}

/// A visitor that ignores everything: parsing still checks the NAR and finds its end.
#[derive(Debug, Clone, Copy, Default)]
pub struct Skip;

impl Visitor for Skip {
    fn directory(&mut self) -> Result {
        Ok(())
    }
    fn directory_end(&mut self) -> Result {
        Ok(())
    }
    fn enter(&mut self, _: &[u8]) -> Result {
        Ok(())
    }
    fn leave(&mut self) -> Result {
        Ok(())
    }
    fn file(&mut self, _: bool, _: u64, _: u64) -> Result {
        Ok(())
    }
    fn data(&mut self, _: &[u8]) -> Result {
        Ok(())
    }
    fn file_end(&mut self) -> Result {
        Ok(())
    }
    fn symlink(&mut self, _: &[u8]) -> Result {
        Ok(())
    }
}
