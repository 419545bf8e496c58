//! Stores the NARs of an archive in one unlinked temporary file, created by [`narinfo_gen::spool`], until they are
//! verified. Unlike [`narinfo_gen::spool::Spool`] it holds many NARs, and the space of a released NAR is given back to
//! the file system at once.

use std::fs::File;
use std::io::{self, BufRead, Read, Seek as _, SeekFrom, Write};

use nar_pack::error::{Context, Error, Result};
use nar_pack::stdio::copy_buffered;
use narinfo_gen::hash::{Hasher, Sha256};
use narinfo_gen::spool::{create_spool_file, spool_write_error};
use rustix::fs::{FallocateFlags, fallocate};

/// Alignment of the NARs in bytes. A file system gives back only whole blocks, so no block may belong to two NARs; no
/// common file system has larger blocks.
const ALIGNMENT: u64 = 64 << 10;

/// A temporary file of NARs. It is created when the first NAR is stored.
#[derive(Debug, Default)]
pub struct NarSpool {
    file: Option<File>,
    /// Offset of the next NAR.
    end: u64,
    /// The number of stored NARs.
    stored: usize,
}

/// A NAR in a [`NarSpool`]. It takes space until it is passed to [`NarSpool::release`].
#[derive(Debug)]
pub struct SpooledNar {
    start: u64,
    /// Size in bytes.
    pub size: u64,
    /// Hash of the stored bytes, the FileHash of the NAR.
    pub file_hash: Sha256,
}

impl NarSpool {
    /// Stores the `size` bytes of `body`.
    ///
    /// # Errors
    /// The errors of `body`; fails if the spool file cannot be written.
    pub fn store(&mut self, size: u64, body: &mut impl BufRead) -> Result<SpooledNar> {
        let file = match &mut self.file {
            Some(file) => file,
            none => none.insert(create_spool_file()?),
        };
        file.seek(SeekFrom::Start(self.end)).map_err(spool_write_error)?;
        let mut writer = SpoolWriter { file, hasher: Hasher::default() };
        copy_buffered(body, &mut writer)?;
        let (file_hash, _) = writer.hasher.finish();
        let nar = SpooledNar { start: self.end, size, file_hash };
        self.end += size.next_multiple_of(ALIGNMENT);
        self.stored += 1;
        Ok(nar)
    }

    /// Reads a stored NAR from its first byte. Only one NAR can be read at a time.
    ///
    /// # Errors
    /// Fails if the spool file cannot be read.
    pub fn read(&self, nar: &SpooledNar) -> Result<impl Read + Send + '_> {
        let mut file = self.file.as_ref().ok_or_else(|| Error::failed("internal error: the spool file is missing"))?;
        file.seek(SeekFrom::Start(nar.start)).map_err(Error::from).context(|| "cannot read the spool file")?;
        Ok(file.take(nar.size))
    }

    /// Removes a NAR and gives its space back.
    ///
    /// # Errors
    /// Fails if the spool file cannot be truncated.
    #[allow(clippy::needless_pass_by_value)] // a released NAR must not be read again
    pub fn release(&mut self, nar: SpooledNar) -> Result {
        let Some(file) = &self.file else { return Ok(()) };
        self.stored -= 1;
        let SpooledNar { start, size, .. } = nar;
        let size = size.next_multiple_of(ALIGNMENT);
        if self.stored == 0 || start + size == self.end {
            self.end = if self.stored == 0 { 0 } else { start };
            file.set_len(self.end).map_err(spool_write_error)?;
        } else if size > 0 {
            // A file system without hole punching gives the space back when the last NAR is released.
            let _ = fallocate(file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, start, size);
        }
        Ok(())
    }
}

/// Hashes what is written to the spool file, and distinguishes the errors of writing it from those of reading the body.
struct SpoolWriter<'a> {
    file: &'a mut File,
    hasher: Hasher,
}

impl Write for SpoolWriter<'_> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let n = self.file.write(buf).map_err(spool_write_error)?;
        self.hasher.update(&buf[..n]);
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    const SIZE: u64 = 100_000;

    fn store(spool: &mut NarSpool, byte: u8) -> SpooledNar {
        spool.store(SIZE, &mut io::BufReader::new(io::repeat(byte)).take(SIZE)).unwrap()
    }

    fn assert_contains(spool: &NarSpool, nar: &SpooledNar, byte: u8) {
        let mut bytes = Vec::new();
        spool.read(nar).unwrap().read_to_end(&mut bytes).unwrap();
        assert!(bytes.len() as u64 == SIZE && bytes.iter().all(|&found| found == byte), "{byte}");
    }

    /// The disk space of the file and its length, in bytes.
    fn space_and_length(spool: &NarSpool) -> (u64, u64) {
        let metadata = spool.file.as_ref().unwrap().metadata().unwrap();
        (metadata.blocks() * 512, metadata.len())
    }

    #[test]
    fn sequential_nars_take_the_space_of_one() {
        let mut spool = NarSpool::default();
        for byte in 0..100 {
            let nar = store(&mut spool, byte);
            assert_contains(&spool, &nar, byte);
            assert_eq!(space_and_length(&spool).1, SIZE);
            spool.release(nar).unwrap();
            assert_eq!(space_and_length(&spool), (0, 0));
        }
    }

    #[test]
    fn interleaved_nars_take_the_space_of_those_stored() {
        let mut spool = NarSpool::default();
        // The first NAR stays to the end; each of the others is released after the next one is stored.
        let first = store(&mut spool, 255);
        let mut previous = store(&mut spool, 0);
        for byte in 1..100 {
            let nar = store(&mut spool, byte);
            assert_contains(&spool, &previous, byte - 1);
            spool.release(previous).unwrap();
            assert_contains(&spool, &nar, byte);
            assert!(space_and_length(&spool).0 < 5 * SIZE, "{:?} after {byte}", space_and_length(&spool));
            previous = nar;
        }
        assert_contains(&spool, &first, 255);
        spool.release(first).unwrap();
        spool.release(previous).unwrap();
        assert_eq!((space_and_length(&spool), spool.end), ((0, 0), 0));
    }
}
