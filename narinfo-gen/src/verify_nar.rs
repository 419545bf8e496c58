//! Checking a compressed NAR that came from elsewhere.

use std::io::{self, BufReader, Cursor, Read};

use nar_pack::error::{Error, Result};
use nar_pack::nar::{Tee, Visitor, parse};

use crate::archive::is_of_input;
use crate::compression::{Compression, GZIP_MAGIC, decoder, parallel_decoder};
use crate::hash::{Hasher, Sha256};
use crate::narinfo::NarInfo;

const BUFFER: usize = 128 * 1024;

/// What a compressed NAR turned out to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NarDigests {
    /// How it is compressed.
    pub method: Compression,
    /// Hash of the compressed bytes.
    pub file_hash: Sha256,
    /// How many they are.
    pub file_size: u64,
    /// Hash of the NAR.
    pub nar_hash: Sha256,
    /// Size of the NAR in bytes.
    pub nar_size: u64,
}

impl NarDigests {
    /// Refuses a narinfo that says something else of its NAR.
    ///
    /// # Errors
    /// Names the field, what it says and what is true.
    pub fn require(&self, narinfo: &NarInfo) -> Result {
        let differs = |field: &str, says: String, is: String| {
            Err(Error::refused(format!("{}: {field} is {says} in the narinfo, but {is} in truth", narinfo.full_path())))
        };
        if narinfo.compression != self.method.name() {
            return differs("Compression", narinfo.compression.clone(), self.method.to_string());
        }
        if let Some(hash) = narinfo.file_hash.filter(|hash| *hash != self.file_hash) {
            return differs("FileHash", hash.to_string(), self.file_hash.to_string());
        }
        if let Some(size) = narinfo.file_size.filter(|size| *size != self.file_size) {
            return differs("FileSize", size.to_string(), self.file_size.to_string());
        }
        if narinfo.nar_hash != self.nar_hash {
            return differs("NarHash", narinfo.nar_hash.to_string(), self.nar_hash.to_string());
        }
        if narinfo.nar_size != self.nar_size {
            return differs("NarSize", narinfo.nar_size.to_string(), self.nar_size.to_string());
        }
        Ok(())
    }
}

/// How many threads decompress a NAR.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Threads {
    /// One.
    One,
    /// As many as there are cores, where the file allows.
    All,
}

/// Reads a compressed NAR to its end, gives its tree to `visitor`, and says what it was. Stops as soon as the NAR is
/// larger than `max_size` bytes, whatever the file claims to unpack to.
///
/// # Errors
/// Refuses what cannot be decompressed, is no NAR, has something after it, or is too large.
pub fn digest_nar(
    input: impl Read + Send,
    method: Compression,
    max_size: Option<u64>,
    visitor: &mut impl Visitor,
) -> Result<NarDigests> {
    digest_nar_with(input, method, Threads::One, max_size, visitor, |_| Ok(()))
}

/// As [`examine`], of a NAR whose method is told by its key and its first bytes.
///
/// # Errors
/// As [`examine`]; refuses a key that does not tell the method.
pub fn digest_named_nar(mut input: impl Read + Send, key: &str, visitor: &mut impl Visitor) -> Result<NarDigests> {
    let mut start = Vec::new();
    input.by_ref().take(GZIP_MAGIC.len() as u64).read_to_end(&mut start)?;
    let method = Compression::of_nar(key, &start)
        .ok_or_else(|| Error::refused("its name does not tell how it is compressed"))?;
    digest_nar(Cursor::new(start).chain(input), method, None, visitor)
}

/// As [`examine`], and gives `tap` the bytes of the NAR. They are not yet checked, nor is it certain that they end.
///
/// # Errors
/// As [`examine`]; passes on what `tap` says.
pub fn digest_nar_with(
    input: impl Read + Send,
    method: Compression,
    threads: Threads,
    max_size: Option<u64>,
    visitor: &mut impl Visitor,
    mut tap: impl FnMut(&[u8]) -> Result,
) -> Result<NarDigests> {
    let mut file = Counted { inner: input, hasher: Hasher::default() };
    let (nar_hash, nar_size) = {
        let packed = BufReader::with_capacity(BUFFER, &mut file);
        let unpacked = match threads {
            Threads::One => decoder(method, packed)?,
            Threads::All => parallel_decoder(method, packed)?,
        };
        let mut nar = Hasher::default();
        let mut stream = BufReader::with_capacity(BUFFER, Decompressed { inner: unpacked, method });
        parse(
            &mut Tee::new(&mut stream, |bytes| {
                nar.update(bytes);
                match max_size {
                    Some(max) if nar.size() > max => {
                        Err(Error::refused(format!("the NAR is larger than its NarSize, {max} bytes")))
                    }
                    _ => tap(bytes),
                }
            }),
            visitor,
        )?;
        // Only at its end does a decoder check the file's own checksum.
        let mut rest = [0; 1];
        if stream.read(&mut rest)? != 0 {
            return Err(Error::refused("something follows the end of the NAR"));
        }
        nar.finish()
    };
    // Nix's writers put nothing after the compressed stream, but what is there belongs to the file's hash.
    io::copy(&mut file, &mut io::sink())?;
    let (file_hash, file_size) = file.hasher.finish();
    Ok(NarDigests { method, file_hash, file_size, nar_hash, nar_size })
}

struct Counted<R> {
    inner: R,
    hasher: Hasher,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buf)?;
        self.hasher.update(&buf[..n]);
        Ok(n)
    }
}

/// Turns what a decoder says of its data into a refusal; an error of the input itself passes through.
struct Decompressed<R> {
    inner: R,
    method: Compression,
}

impl<R: Read> Read for Decompressed<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.inner.read(buf).map_err(|error| {
            if is_of_input(&error) {
                return error;
            }
            Error::refused(format!("the file does not unpack as {}: {error}", self.method)).into()
        })
    }
}
