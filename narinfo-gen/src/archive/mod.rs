//! The cache archive: a tar whose members are the objects of a binary cache under their keys. Each NAR precedes its
//! narinfo, and each narinfo those that refer to it. Also the kinds of [`Object`]s that a cache has, by their keys.

mod object;
mod read;
mod write;

use std::io::{self, BufRead, Read};

use nar_pack::error::{Error, Result};

pub use object::{
    BUILD_TRACE_PREFIX, DEBUGINFO_PREFIX, LOG_PREFIX, NAR_PREFIX, Object, REALISATION_PREFIX, REALISATION_PREFIXES,
    listing_key, log_key, narinfo_key,
};
pub(crate) use read::is_header;
pub use read::{MAX_KEY_LENGTH, Member, read};
pub use write::Writer;

/// A reader of the expected number of bytes. It returns an error if the input ends before.
#[derive(Debug)]
pub struct ExactSize<R> {
    inner: R,
    remaining: u64,
}

impl<R> ExactSize<R> {
    /// Lets `take` take bytes from the input itself: at most the given number. It returns how many it has taken.
    ///
    /// # Errors
    /// Those of `take`.
    pub fn take_with(&mut self, take: impl FnOnce(&mut R, u64) -> Result<u64>) -> Result {
        self.remaining -= take(&mut self.inner, self.remaining)?.min(self.remaining);
        Ok(())
    }

    /// Returns how many of `length` bytes belong to the body.
    fn limit(&self, length: usize) -> usize {
        length.min(usize::try_from(self.remaining).unwrap_or(usize::MAX))
    }
}

fn truncated(remaining: u64) -> io::Error {
    Error::refused(format!("truncated: {remaining} bytes are missing")).into()
}

impl<R: Read> Read for ExactSize<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let limit = self.limit(buf.len());
        // A buffered reader would wait for what comes after the end.
        if limit == 0 {
            return Ok(0);
        }
        let n = self.inner.read(&mut buf[..limit])?;
        if n == 0 {
            return Err(truncated(self.remaining));
        }
        self.remaining -= n as u64;
        Ok(n)
    }
}

impl<R: BufRead> BufRead for ExactSize<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.remaining == 0 {
            return Ok(&[]);
        }
        let (remaining, limit) = (self.remaining, self.limit(usize::MAX));
        match self.inner.fill_buf()? {
            [] => Err(truncated(remaining)),
            bytes => Ok(&bytes[..bytes.len().min(limit)]),
        }
    }

    fn consume(&mut self, amount: usize) {
        self.remaining = self.remaining.saturating_sub(amount as u64);
        self.inner.consume(amount);
    }
}

#[cfg(test)]
mod tests {
    use nar_pack::store_path::HashPart;
    use tar::EntryType::{Directory, Link, Regular, Symlink};

    use std::io::BufReader;

    use super::read::BLOCK_SIZE;
    use super::*;
    use crate::hash::Sha256;

    fn sample() -> Vec<u8> {
        let mut writer = Writer::new(Vec::new());
        writer.text("nix-cache-info", "StoreDir: /nix/store\n").unwrap();
        writer.text(&format!("log/{}.drv", "x".repeat(200)), "log").unwrap();
        writer.member("nar/x.nar", 1000, &[7_u8; 1000][..]).unwrap();
        writer.finish().unwrap()
    }

    fn keys(bytes: &[u8]) -> Result<Vec<(String, u64)>> {
        let mut keys = Vec::new();
        read(bytes, |member| {
            keys.push((member.key, member.size));
            Ok(())
        })?;
        Ok(keys)
    }

    #[test]
    fn members_are_read_in_order_with_long_names() {
        let keys = keys(&sample()).unwrap();
        assert_eq!(keys.len(), 3);
        assert_eq!((keys[0].0.as_str(), keys[1].0.len(), keys[2].1), ("nix-cache-info", 208, 1000));
    }

    #[test]
    fn an_archive_truncated_anywhere_is_refused() {
        let bytes = sample();
        let end = bytes.len() - 1024;
        for size in 0..=end {
            assert!(keys(&bytes[..size]).unwrap_err().is_refusal(), "truncated to {size} of {end} bytes");
        }
        assert!(keys(&[bytes, vec![0; 8192]].concat()).is_ok());
    }

    /// The producer may wait for an answer to this member.
    #[test]
    fn a_member_is_complete_without_a_read_after_its_end() {
        let mut writer = Writer::new(Vec::new());
        writer.text("nix-cache-info", &"x".repeat(BLOCK_SIZE)).unwrap();
        let mut bytes = writer.finish().unwrap();
        bytes.truncate(2 * BLOCK_SIZE);
        let mut is_complete = false;
        let result = read(BufReader::new(bytes.as_slice().chain(Closed)), |mut member| {
            is_complete = member.text(1000)?.len() == BLOCK_SIZE;
            Ok(())
        });
        assert!(result.is_err() && is_complete, "{result:?}");
    }

    /// A reader that fails.
    struct Closed;

    impl Read for Closed {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::ErrorKind::UnexpectedEof.into())
        }
    }

    #[test]
    fn a_body_of_another_size_is_refused() {
        for body in [&b"12"[..], b"1234"] {
            let mut writer = Writer::new(Vec::new());
            assert!(writer.member("nar/x.nar", 3, body).unwrap_err().is_refusal());
        }
    }

    #[test]
    fn an_archive_whose_writer_was_dropped_is_truncated() {
        let mut out = Vec::new();
        {
            let mut writer = Writer::new(&mut out);
            writer.text("nix-cache-info", "StoreDir: /nix/store\n").unwrap();
        }
        assert!(keys(&out).unwrap_err().is_refusal());
    }

    #[test]
    fn members_that_are_not_objects_of_a_cache_are_refused() {
        let archive_of = |name: &str, entry_type: tar::EntryType| {
            let mut header = tar::Header::new_ustar();
            header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
            header.set_entry_type(entry_type);
            header.set_size(0);
            header.set_cksum();
            [header.as_bytes().to_vec(), vec![0; 1024]].concat()
        };
        for name in ["../nix-cache-info", "/etc/passwd", "nar/../x", "readme", "x.narinfo"] {
            assert!(keys(&archive_of(name, Regular)).unwrap_err().is_refusal(), "{name}");
        }
        for entry_type in [Link, Symlink] {
            assert!(keys(&archive_of("nix-cache-info", entry_type)).unwrap_err().is_refusal());
        }
        assert_eq!(keys(&archive_of("./", Directory)).unwrap(), []);
        assert_eq!(keys(&archive_of("././nix-cache-info", Regular)).unwrap()[0].0, "nix-cache-info");
    }

    #[test]
    fn the_key_determines_the_kind_of_object() {
        let digits = "0".repeat(32);
        let hash = HashPart::parse(digits.as_bytes()).unwrap();
        assert_eq!(Object::of_key(&format!("{digits}.narinfo")), Some(Object::Narinfo(hash)));
        assert_eq!(
            Object::of_key(&format!("nar/{}.nar.xz", Sha256::of(b"").base32())),
            Some(Object::Nar(Some(Sha256::of(b""))))
        );
        assert_eq!(Object::of_key("nar/x.nar"), Some(Object::Nar(None)));
        assert_eq!(Object::of_key("short.narinfo"), None);
    }
}
