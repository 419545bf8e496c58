//! A NAR to its listing, the JSON of a cache's `.ls` files (Nix's `src/libutil/nar-listing.cc`, version 1).

use std::io::{BufRead, Write};

use super::{Visitor, parse};
use crate::error::{Error, Result};

/// Reads a NAR and writes its listing as one line of JSON, while it reads: memory does not grow with the tree.
///
/// # Errors
/// Refuses a malformed NAR, and a name or target that is not UTF-8, which JSON cannot hold.
pub fn list(input: &mut impl BufRead, out: &mut impl Write) -> Result<u64> {
    let mut lister = Lister::new(out);
    let size = parse(input, &mut lister)?;
    lister.finish()?.write_all(b"\n")?;
    Ok(size)
}

/// The visitor behind [`list`]. Writes what a `.ls` file holds: keys in the order in which Nix writes them, and
/// `narOffset`s that count bytes from the beginning of the NAR.
#[derive(Debug)]
pub struct Lister<W> {
    out: W,
    /// Whether the next entry is the first of its directory.
    first: bool,
    begun: bool,
}

impl<W: Write> Lister<W> {
    /// Writes the listing to `out`.
    pub fn new(out: W) -> Self {
        Self { out, first: true, begun: false }
    }

    /// Writes the end of the listing, after the NAR was read to its end, and gives the output back.
    ///
    /// # Errors
    /// What the output says.
    pub fn finish(mut self) -> Result<W> {
        self.out.write_all(b",\"version\":1}")?;
        Ok(self.out)
    }

    /// Nothing is written before the input is known to be a NAR.
    fn begin(&mut self) -> Result {
        if !std::mem::replace(&mut self.begun, true) {
            self.out.write_all(b"{\"root\":")?;
        }
        Ok(())
    }

    fn quoted(&mut self, bytes: &[u8]) -> Result {
        let text = str::from_utf8(bytes).map_err(|_| {
            Error::refused(format!("a listing cannot hold the name \"{}\": it is not UTF-8", bytes.escape_ascii()))
        })?;
        serde_json::to_writer(&mut self.out, text).map_err(|error| std::io::Error::from(error).into())
    }
}

impl<W: Write> Visitor for Lister<W> {
    fn directory(&mut self) -> Result {
        self.begin()?;
        self.first = true;
        Ok(self.out.write_all(b"{\"entries\":{")?)
    }

    fn directory_end(&mut self) -> Result {
        self.first = false;
        Ok(self.out.write_all(b"},\"type\":\"directory\"}")?)
    }

    fn enter(&mut self, name: &[u8]) -> Result {
        if !std::mem::take(&mut self.first) {
            self.out.write_all(b",")?;
        }
        self.quoted(name)?;
        Ok(self.out.write_all(b":")?)
    }

    fn leave(&mut self) -> Result {
        self.first = false;
        Ok(())
    }

    fn file(&mut self, executable: bool, size: u64, offset: u64) -> Result {
        self.begin()?;
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
        self.begin()?;
        self.out.write_all(b"{\"target\":")?;
        self.quoted(target)?;
        Ok(self.out.write_all(b",\"type\":\"symlink\"}")?)
    }
}
