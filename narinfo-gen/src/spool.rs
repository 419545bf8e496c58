//! The spool: bytes that must be complete before they are used are kept in memory up to a limit, and beyond it in an
//! unlinked temporary file. A compressed NAR needs it because its key is its own hash. [`create_spool_file`] and
//! [`spool_write_error`] also serve other kinds of spools, so that all of them use the same directory and report a
//! full disk with the same message.

use std::env;
use std::fs::File;
use std::io::{self, Cursor, Read, Seek, Take, Write};
use std::sync::{Arc, Mutex};

use nar_pack::error::{Error, Result};
use nar_pack::sync::lock;

/// A temporary file that spools use one after another. To overwrite a file is cheaper than to write a new one, for which the
/// system needs other memory. It keeps its size until the last clone is dropped.
#[derive(Debug, Clone, Default)]
pub struct SpoolFile(Arc<Mutex<Option<Arc<File>>>>);

impl SpoolFile {
    /// Returns the file, at its start, or a new one if another spool uses it.
    fn open(&self) -> io::Result<Arc<File>> {
        let mut shared = lock(&self.0);
        if let Some(file) = shared.as_mut().filter(|file| Arc::strong_count(file) == 1) {
            file.rewind()?;
            return Ok(Arc::clone(file));
        }
        let file = Arc::new(tempfile::tempfile()?);
        *shared = Some(Arc::clone(&file));
        Ok(file)
    }
}

/// Collects bytes; see [`Spool::into_reader`].
#[derive(Debug)]
pub struct Spool {
    contents: Contents,
    max_in_memory: usize,
    file: SpoolFile,
    size: u64,
}

#[derive(Debug)]
enum Contents {
    Memory(Vec<u8>),
    File(Arc<File>),
}

impl Spool {
    /// Creates an empty spool that keeps up to `max_in_memory` bytes in memory. The temporary file is created by the
    /// write that exceeds the limit.
    #[must_use]
    pub fn new(max_in_memory: usize) -> Self {
        Self::with_file(max_in_memory, SpoolFile::default())
    }

    /// Creates an empty spool like [`Spool::new`] that writes to `file`.
    #[must_use]
    pub fn with_file(max_in_memory: usize, file: SpoolFile) -> Self {
        Self { contents: Contents::Memory(Vec::new()), max_in_memory, file, size: 0 }
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
    pub fn into_reader(self) -> Result<SpoolReader> {
        let unread = match self.contents {
            Contents::Memory(bytes) => Unread::Memory(Cursor::new(bytes)),
            Contents::File(mut file) => {
                file.rewind().map_err(read_error)?;
                Unread::File(file.take(self.size))
            }
        };
        Ok(SpoolReader { unread, size: self.size })
    }

    fn write_contents(&mut self, buf: &[u8]) -> io::Result<usize> {
        match &mut self.contents {
            Contents::File(file) => file.write(buf),
            Contents::Memory(memory) if memory.len() + buf.len() <= self.max_in_memory => memory.write(buf),
            Contents::Memory(memory) => {
                let mut file = self.file.open()?;
                file.write_all(memory)?;
                let written = file.write(buf)?;
                self.contents = Contents::File(file);
                Ok(written)
            }
        }
    }
}

/// The errors contain an [`Error`] with the directory of the spool file and a hint.
impl Write for Spool {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let n = self.write_contents(buf).map_err(|error| unless_interrupted(error, spool_write_error))?;
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
    unread: Unread,
    size: u64,
}

#[derive(Debug)]
enum Unread {
    Memory(Cursor<Vec<u8>>),
    /// The file may be longer: a larger spool may have used it before.
    File(Take<Arc<File>>),
}

impl SpoolReader {
    /// Returns the number of bytes in the spool, whatever was read of them.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }
}

impl From<Vec<u8>> for SpoolReader {
    fn from(bytes: Vec<u8>) -> Self {
        Self { size: bytes.len() as u64, unread: Unread::Memory(Cursor::new(bytes)) }
    }
}

impl Read for SpoolReader {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let read = match &mut self.unread {
            Unread::Memory(bytes) => bytes.read(buf),
            Unread::File(file) => file.read(buf),
        };
        read.map_err(|error| unless_interrupted(error, read_error))
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
    fn a_file_is_used_again_by_one_spool_after_another() {
        let file = SpoolFile::default();
        let spooled = |bytes: &[u8]| {
            let mut spool = Spool::with_file(1, file.clone());
            spool.write_all(bytes).unwrap();
            spool
        };
        let text = |reader: SpoolReader| io::read_to_string(reader).unwrap();
        let length = || file.0.lock().unwrap().as_ref().unwrap().metadata().unwrap().len();
        assert_eq!(text(spooled(b"a long text").into_reader().unwrap()), "a long text");
        assert_eq!(text(spooled(b"short").into_reader().unwrap()), "short");
        assert_eq!(length(), 11);
        // Not while another spool or reader uses it.
        let (first, second) = (spooled(b"first"), spooled(b"second"));
        let first = first.into_reader().unwrap();
        assert_eq!(
            (text(spooled(b"third").into_reader().unwrap()), text(second.into_reader().unwrap())),
            ("third".to_owned(), "second".to_owned())
        );
        assert_eq!(text(first), "first");
    }

    #[test]
    fn a_write_error_names_the_directory_and_has_a_hint() {
        let error = Error::from(io::Error::from(spool_write_error(io::ErrorKind::StorageFull.into())));
        assert!(error.message().starts_with("cannot write to the spool file in /"), "{error}");
        assert!(!error.is_refusal() && error.hint().is_some_and(|hint| hint.contains("TMPDIR")));
    }
}
