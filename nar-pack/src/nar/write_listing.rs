//! Writes the listing of a NAR: the JSON of a cache's `.ls` files (Nix's `src/libutil/nar-listing.cc`, version 1). The
//! JSON is written while the NAR is parsed, so memory does not grow with the tree.

use std::io::{BufRead, Write};

use super::{Visitor, parse};
use crate::error::{Error, Result};

/// Reads a NAR, writes its listing as one line of JSON, and returns the size of the NAR in bytes.
///
/// # Errors
/// Refuses a malformed NAR, and a name or link target that is not UTF-8, which JSON cannot represent.
pub fn list(input: &mut impl BufRead, out: &mut impl Write) -> Result<u64> {
    let mut lister = Lister::new(out);
    let size = parse(input, &mut lister)?;
    lister.finish()?.write_all(b"\n")?;
    Ok(size)
}

/// The visitor behind [`list`]. Writes the contents of a `.ls` file, with the keys in the order of Nix. Each `narOffset`
/// is in bytes from the beginning of the NAR.
#[derive(Debug)]
pub struct Lister<W> {
    out: W,
    /// Whether the next entry is the first of its directory.
    is_first_entry: bool,
    has_started: bool,
}

impl<W: Write> Lister<W> {
    /// Creates a visitor that writes the listing to `out`.
    pub fn new(out: W) -> Self {
        Self { out, is_first_entry: true, has_started: false }
    }

    /// Writes the end of the listing and returns the output. To be called at the end of the NAR.
    ///
    /// # Errors
    /// Fails if the output cannot be written.
    pub fn finish(mut self) -> Result<W> {
        self.out.write_all(b",\"version\":1}")?;
        Ok(self.out)
    }

    /// Writes the start of the listing, once: not before the input is known to be a NAR.
    fn start(&mut self) -> Result {
        if !std::mem::replace(&mut self.has_started, true) {
            self.out.write_all(b"{\"root\":")?;
        }
        Ok(())
    }

    fn write_quoted(&mut self, bytes: &[u8]) -> Result {
        let text = str::from_utf8(bytes).map_err(|_| {
            Error::refused(format!("cannot list \"{}\": names in a listing must be UTF-8", bytes.escape_ascii()))
        })?;
        serde_json::to_writer(&mut self.out, text).map_err(|error| std::io::Error::from(error).into())
    }
}

impl<W: Write> Visitor for Lister<W> {
    fn directory(&mut self) -> Result {
        self.start()?;
        self.is_first_entry = true;
        Ok(self.out.write_all(b"{\"entries\":{")?)
    }

    fn directory_end(&mut self) -> Result {
        self.is_first_entry = false;
        Ok(self.out.write_all(b"},\"type\":\"directory\"}")?)
    }

    fn enter(&mut self, name: &[u8]) -> Result {
        if !std::mem::take(&mut self.is_first_entry) {
            self.out.write_all(b",")?;
        }
        self.write_quoted(name)?;
        Ok(self.out.write_all(b":")?)
    }

    fn leave(&mut self) -> Result {
        self.is_first_entry = false;
        Ok(())
    }

    fn file(&mut self, executable: bool, size: u64, offset: u64) -> Result {
        self.start()?;
        let executable = if executable { "\"executable\":true," } else { "" };
        Ok(write!(self.out, "{{{executable}\"narOffset\":{offset},\"size\":{size},\"type\":\"regular\"}}")?)
    }

    fn data(&mut self, _: &[u8]) -> Result {
        Ok(())
    }

    fn file_end(&mut self) -> Result {
        Ok(())
    }

    fn symlink(&mut self, target: &[u8]) -> Result {
        self.start()?;
        self.out.write_all(b"{\"target\":")?;
        self.write_quoted(target)?;
        Ok(self.out.write_all(b",\"type\":\"symlink\"}")?)
    }
}
