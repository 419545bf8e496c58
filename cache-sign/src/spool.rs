//! Bodies of a cache archive that wait for a verdict, in an unlinked file.

use std::fs::File;
use std::io::{self, Read, Seek as _, SeekFrom};

use nar_pack::error::{Context, Error, Result};
use rustix::fs::{FallocateFlags, fallocate};

/// Where bodies begin: no block of a file system, of which only whole ones can be given back, has a part of two.
const ALIGNMENT: u64 = 64 << 10;

/// The file, and where it ends. It takes no more room than what waits.
#[derive(Debug, Default)]
pub struct NarSpool {
    file: Option<File>,
    end: u64,
    /// How many bodies wait.
    waiting: usize,
}

/// Where a body is. Whoever has it gives it back to [`NarSpool::release`].
#[derive(Debug)]
pub struct SpooledNar {
    start: u64,
    /// Its size in bytes.
    pub size: u64,
}

impl NarSpool {
    /// Keeps a body of `size` bytes.
    ///
    /// # Errors
    /// What the body or the temporary directory says.
    pub fn keep(&mut self, size: u64, body: &mut dyn Read) -> Result<SpooledNar> {
        let at = || "keeping a NAR in the temporary directory";
        if self.file.is_none() {
            self.file = Some(tempfile::tempfile().map_err(Error::from).context(at)?);
        }
        if let Some(file) = &mut self.file {
            file.seek(SeekFrom::Start(self.end)).map_err(Error::from).context(at)?;
            io::copy(body, file).context(at)?;
        }
        let kept = SpooledNar { start: self.end, size };
        self.end += size.next_multiple_of(ALIGNMENT);
        self.waiting += 1;
        Ok(kept)
    }

    /// The bytes of a body, from its beginning. One is read at a time.
    ///
    /// # Errors
    /// What the temporary directory says.
    pub fn read(&self, kept: &SpooledNar) -> Result<impl Read + Send + '_> {
        let mut file = self.file.as_ref().ok_or_else(|| Error::failed("nothing is kept"))?;
        let at = || "reading a NAR back from the temporary directory";
        file.seek(SeekFrom::Start(kept.start)).map_err(Error::from).context(at)?;
        Ok(file.take(kept.size))
    }

    /// Forgets a body, and gives its room back.
    ///
    /// # Errors
    /// What the temporary directory says.
    #[allow(clippy::needless_pass_by_value)] // whoever released it has it no more
    pub fn release(&mut self, kept: SpooledNar) -> Result {
        let Some(file) = &self.file else { return Ok(()) };
        self.waiting -= 1;
        let SpooledNar { start, size } = kept;
        let size = size.next_multiple_of(ALIGNMENT);
        if self.waiting == 0 || start + size == self.end {
            self.end = if self.waiting == 0 { 0 } else { start };
            file.set_len(self.end).map_err(Error::from).context(|| "shrinking a file in the temporary directory")?;
        } else if size > 0 {
            // Where the file system cannot, the room comes back when nothing waits any more.
            let _ = fallocate(file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, start, size);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    const SIZE: u64 = 100_000;

    fn keep(held: &mut NarSpool, byte: u8) -> SpooledNar {
        held.keep(SIZE, &mut io::repeat(byte).take(SIZE)).unwrap()
    }

    fn assert_is(held: &NarSpool, kept: &SpooledNar, byte: u8) {
        let mut bytes = Vec::new();
        held.read(kept).unwrap().read_to_end(&mut bytes).unwrap();
        assert!(bytes.len() as u64 == SIZE && bytes.iter().all(|&found| found == byte), "{byte}");
    }

    /// Bytes that the file takes, and where it ends.
    fn room(held: &NarSpool) -> (u64, u64) {
        let about = held.file.as_ref().unwrap().metadata().unwrap();
        (about.blocks() * 512, about.len())
    }

    #[test]
    fn one_after_the_other_they_take_the_room_of_one() {
        let mut held = NarSpool::default();
        for byte in 0..100 {
            let kept = keep(&mut held, byte);
            assert_is(&held, &kept, byte);
            assert_eq!(room(&held).1, SIZE);
            held.release(kept).unwrap();
            assert_eq!(room(&held), (0, 0));
        }
    }

    #[test]
    fn interleaved_they_take_the_room_of_what_waits() {
        let mut held = NarSpool::default();
        // One that nobody comes for, and each other that is released after the next has come.
        let first = keep(&mut held, 255);
        let mut before = keep(&mut held, 0);
        for byte in 1..100 {
            let kept = keep(&mut held, byte);
            assert_is(&held, &before, byte - 1);
            held.release(before).unwrap();
            assert_is(&held, &kept, byte);
            assert!(room(&held).0 < 5 * SIZE, "{:?} after {byte}", room(&held));
            before = kept;
        }
        assert_is(&held, &first, 255);
        held.release(first).unwrap();
        held.release(before).unwrap();
        assert_eq!((room(&held), held.end), ((0, 0), 0));
    }
}
