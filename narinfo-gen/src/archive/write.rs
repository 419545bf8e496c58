//! Writing of cache archives.

use std::io::{self, BufRead, BufReader, Write};
use std::mem::ManuallyDrop;

use nar_pack::error::{Error, Result};
use nar_pack::stdio::{BUFFER_SIZE, copy_buffered};

use super::ExactSize;
use super::read::BLOCK_SIZE;
use crate::narinfo::NarInfo;
use crate::spool::SpoolReader;

/// Writes a cache archive. It is complete after [`Writer::finish`]; dropped before, the archive is truncated.
pub struct Writer<W: Write> {
    /// Never dropped, because `tar` would write the end of the archive even after an error.
    tar: ManuallyDrop<tar::Builder<W>>,
}

impl<W: Write> Writer<W> {
    /// Starts an archive on `out`.
    pub fn new(out: W) -> Self {
        Self { tar: ManuallyDrop::new(tar::Builder::new(out)) }
    }

    /// Writes a member of `size` bytes.
    ///
    /// # Errors
    /// Passes on the errors of `body` and of the output. Refuses a body of another size; the archive cannot be continued
    /// after that.
    pub fn member(&mut self, key: &str, size: u64, body: impl BufRead) -> Result {
        let mut body = ExactSize { inner: body, remaining: size };
        self.member_with(key, size, |out| copy_buffered(&mut body, out))?;
        match body.inner.fill_buf()? {
            [] => Ok(()),
            _ => Err(Error::refused(format!("{key} is larger than {size} bytes"))),
        }
    }

    /// Writes a member whose `size` bytes `write` writes to the output.
    ///
    /// # Errors
    /// Passes on the errors of `write` and of the output.
    pub fn member_with(&mut self, key: &str, size: u64, write: impl FnOnce(&mut W) -> Result) -> Result {
        let mut header = tar::Header::new_ustar();
        header.set_size(size);
        header.set_mode(0o444);
        header.set_mtime(1);
        header.set_entry_type(tar::EntryType::Regular);
        // Writes the header alone, and one before it for a long key.
        self.tar.append_data(&mut header, key, io::empty())?;
        let out = self.tar.get_mut();
        write(out)?;
        let end = usize::try_from(size % BLOCK_SIZE as u64).unwrap_or_default();
        out.write_all(&[0; BLOCK_SIZE][..(BLOCK_SIZE - end) % BLOCK_SIZE])?;
        Ok(())
    }

    /// Writes a member whose content is all of `body`, of which nothing was read.
    ///
    /// # Errors
    /// Fails if the spool file cannot be read. Passes on the errors of the output.
    pub fn spooled(&mut self, key: &str, body: SpoolReader) -> Result {
        self.member(key, body.size(), BufReader::with_capacity(BUFFER_SIZE, body))
    }

    /// Writes a member whose content is `text`.
    ///
    /// # Errors
    /// Passes on the errors of the output.
    pub fn text(&mut self, key: &str, text: &str) -> Result {
        self.member(key, text.len() as u64, text.as_bytes())
    }

    /// Writes a narinfo and flushes the output, so that the next tool can publish it.
    ///
    /// # Errors
    /// Passes on the errors of the output and of [`NarInfo::to_text`].
    pub fn narinfo(&mut self, narinfo: &NarInfo) -> Result {
        self.text(&narinfo.key(), &narinfo.to_text()?)?;
        self.flush()
    }

    /// Writes the end of the archive and returns the output.
    ///
    /// # Errors
    /// Passes on the errors of the output.
    pub fn finish(self) -> Result<W> {
        Ok(ManuallyDrop::into_inner(self.tar).into_inner()?)
    }

    /// Flushes the output, so that a reader can process this member while the next one is produced.
    ///
    /// # Errors
    /// Passes on the errors of the output.
    pub fn flush(&mut self) -> Result {
        Ok(self.tar.get_mut().flush()?)
    }
}
