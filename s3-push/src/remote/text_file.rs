//! Texts in an unlinked temporary file, for what may not fit into memory.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

use nar_pack::error::{Error, Result};
use narinfo_gen::spool::{create_spool_file, spool_write_error};

/// A temporary file of texts.
#[derive(Debug)]
pub struct TextFile {
    file: File,
    /// The size of the file in bytes.
    end: u64,
}

/// Where a text is in a file. The default is an empty text.
#[derive(Debug, Clone, Copy, Default)]
pub struct Span {
    /// Offset of the first byte.
    pub start: u64,
    /// In bytes.
    pub length: u32,
}

impl TextFile {
    /// Creates the file in the directory for temporary files.
    ///
    /// # Errors
    /// Fails if it cannot be created.
    pub fn new() -> Result<Self> {
        Ok(Self { file: create_spool_file()?, end: 0 })
    }

    /// Appends a text.
    ///
    /// # Errors
    /// Fails if the file cannot be written, or if the text has 4 GiB or more.
    pub fn append(&mut self, text: &str) -> Result<Span> {
        let length = u32::try_from(text.len()).map_err(|_| Error::failed("a text of 4 GiB or more"))?;
        let span = Span { start: self.end, length };
        self.file.write_all_at(text.as_bytes(), self.end).map_err(spool_write_error)?;
        self.end += text.len() as u64;
        Ok(span)
    }

    /// Reads a text.
    ///
    /// # Errors
    /// Fails if the file cannot be read.
    pub fn read(&self, span: Span) -> io::Result<String> {
        read_span(&self.file, span)
    }
}

/// Reads a text from a file.
///
/// # Errors
/// Fails if the file cannot be read, is too short, or has other bytes there than UTF-8.
pub fn read_span(file: &File, span: Span) -> io::Result<String> {
    let mut bytes = vec![0; span.length as usize];
    file.read_exact_at(&mut bytes, span.start)?;
    String::from_utf8(bytes).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}
