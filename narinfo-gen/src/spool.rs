//! The spool: bytes that must be complete before they are used are kept in memory up to a limit, and beyond it in an
//! unlinked temporary file. A compressed NAR needs it because its key is its own hash. [`create_spool_file`] and
//! [`spool_write_error`] also serve other kinds of spools, so that all of them use the same directory and report a
//! full disk with the same message.

use std::env;
use std::fs::File;
use std::io::{self, Read, Seek, Write};

use nar_pack::error::{Error, Result};
use tempfile::SpooledTempFile;

/// Collects bytes; see [`Spool::into_reader`].
#[derive(Debug)]
pub struct Spool {
    file: SpooledTempFile,
    size: u64,
}

impl Spool {
    /// Creates an empty spool that keeps up to `max_in_memory` bytes in memory. The temporary file is created by the
    /// write that exceeds the limit.
    #[must_use]
    pub fn new(max_in_memory: usize) -> Self {
        Self { file: SpooledTempFile::new(max_in_memory), size: 0 }
    }

    /// Returns the number of bytes written so far.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Returns a reader of everything that was written, from the first byte.
    ///
    /// # Errors
    /// Fails if the temporary file cannot be read.
    pub fn into_reader(mut self) -> Result<SpoolReader> {
        self.file.rewind().map_err(read_error)?;
        Ok(SpoolReader { file: self.file, size: self.size })
    }
}

/// The errors contain an [`Error`] with the directory of the spool file and a hint.
impl Write for Spool {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let n = self.file.write(buf).map_err(|error| unless_interrupted(error, spool_write_error))?;
        self.size += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Reads what was written to a [`Spool`].
#[derive(Debug)]
pub struct SpoolReader {
    file: SpooledTempFile,
    size: u64,
}

impl SpoolReader {
    /// Returns the number of bytes in the spool, whatever was read of them.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }
}

impl Read for SpoolReader {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.file.read(buf).map_err(|error| unless_interrupted(error, read_error))
    }
}

/// Creates an unlinked temporary file in the directory for temporary files (`$TMPDIR`, else `/tmp`).
///
/// # Errors
/// Fails if the directory does not exist, is not writable or is full.
pub fn create_spool_file() -> Result<File> {
    tempfile::tempfile().map_err(spool_write_error)
}

/// Returns the error of a write to a file of [`create_spool_file`].
#[must_use]
#[allow(clippy::needless_pass_by_value)] // for `map_err`
pub fn spool_write_error(error: io::Error) -> Error {
    let error = Error::failed(format!("cannot write to the spool file in {}: {error}", env::temp_dir().display()));
    error.with_hint("set TMPDIR to a writable directory with enough free space")
}

/// Leaves an interrupted call as it is, because the standard library repeats it.
fn unless_interrupted(error: io::Error, describe: impl FnOnce(io::Error) -> Error) -> io::Error {
    if error.kind() == io::ErrorKind::Interrupted { error } else { describe(error).into() }
}

#[allow(clippy::needless_pass_by_value)] // for `map_err`
fn read_error(error: io::Error) -> Error {
    Error::failed(format!("cannot read the spool file in {}: {error}", env::temp_dir().display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_read_back_from_memory_and_from_the_file() {
        for size in [0, 1, 1000, 1001, 5000] {
            let mut spool = Spool::new(1000);
            let bytes: Vec<u8> = (0..=250).cycle().take(size).collect();
            for chunk in bytes.chunks(300) {
                spool.write_all(chunk).unwrap();
            }
            assert_eq!(spool.size(), size as u64);
            let mut reader = spool.into_reader().unwrap();
            let mut read_back = Vec::new();
            reader.read_to_end(&mut read_back).unwrap();
            assert!(read_back == bytes && reader.size() == size as u64, "{size} bytes");
        }
    }

    #[test]
    fn a_write_error_names_the_directory_and_has_a_hint() {
        let error = Error::from(io::Error::from(spool_write_error(io::ErrorKind::StorageFull.into())));
        assert!(error.message().starts_with("cannot write to the spool file in /"), "{error}");
        assert!(!error.is_refusal() && error.hint().is_some_and(|hint| hint.contains("TMPDIR")));
    }
}
