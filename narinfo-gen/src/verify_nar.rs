//! Verification of a compressed NAR from another program: decompresses and parses it, and computes the values that its
//! narinfo must have.

use std::io::{self, BufReader, Cursor, Read};

use nar_pack::error::{Error, Result};
use nar_pack::nar::{Tee, Visitor, parse};

use crate::compression::{Compression, GZIP_MAGIC, decoder, decoder_error, parallel_decoder};
use crate::hash::{Hasher, Sha256};
use crate::narinfo::NarInfo;
use crate::stream::require_end_of_nar;

/// Size of the buffers before and after the decoder, in bytes.
const BUFFER_SIZE: usize = 128 * 1024;

/// What a narinfo must state about a compressed NAR.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NarDigests {
    /// The compression method.
    pub method: Compression,
    /// Hash of the compressed bytes.
    pub file_hash: Sha256,
    /// Number of compressed bytes.
    pub file_size: u64,
    /// Hash of the NAR.
    pub nar_hash: Sha256,
    /// Size of the NAR in bytes.
    pub nar_size: u64,
}

impl NarDigests {
    /// Checks that a narinfo describes this NAR.
    ///
    /// # Errors
    /// Refuses the narinfo, with the first field that differs, its value and the correct one.
    pub fn require(&self, narinfo: &NarInfo) -> Result {
        let mismatch = |field: &str, stated: String, actual: String| {
            let path = narinfo.full_path();
            Err(Error::refused(format!("{path}: {field} is {stated} in the narinfo, but the NAR has {actual}")))
        };
        if narinfo.compression != self.method.name() {
            return mismatch("Compression", narinfo.compression.clone(), self.method.to_string());
        }
        if let Some(hash) = narinfo.file_hash.filter(|hash| *hash != self.file_hash) {
            return mismatch("FileHash", hash.to_string(), self.file_hash.to_string());
        }
        if let Some(size) = narinfo.file_size.filter(|size| *size != self.file_size) {
            return mismatch("FileSize", size.to_string(), self.file_size.to_string());
        }
        if narinfo.nar_hash != self.nar_hash {
            return mismatch("NarHash", narinfo.nar_hash.to_string(), self.nar_hash.to_string());
        }
        if narinfo.nar_size != self.nar_size {
            return mismatch("NarSize", narinfo.nar_size.to_string(), self.nar_size.to_string());
        }
        Ok(())
    }
}

/// The number of threads that decompress a NAR.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Threads {
    /// The calling thread.
    One,
    /// One per processor, where the file allows it.
    All,
}

/// Reads a compressed NAR to its end, passes its tree to `visitor`, and returns its digests. Stops as soon as the NAR is
/// larger than `max_size` bytes.
///
/// # Errors
/// Refuses input that cannot be decompressed, is not a NAR, has data after the NAR, or is too large.
pub fn digest_nar(
    input: impl Read + Send,
    method: Compression,
    max_size: Option<u64>,
    visitor: &mut impl Visitor,
) -> Result<NarDigests> {
    digest_nar_with(input, method, Threads::One, max_size, visitor, |_| Ok(()))
}

/// As [`digest_nar`], but finds the compression method from the key and the first bytes.
///
/// # Errors
/// As [`digest_nar`]; refuses a key with an unknown extension.
pub fn digest_named_nar(mut input: impl Read + Send, key: &str, visitor: &mut impl Visitor) -> Result<NarDigests> {
    let mut start = Vec::new();
    input.by_ref().take(GZIP_MAGIC.len() as u64).read_to_end(&mut start)?;
    let method = Compression::from_key(key, &start)
        .ok_or_else(|| Error::refused("unknown compression method: expected a key that ends with .nar or .nar.EXT"))?;
    digest_nar(Cursor::new(start).chain(input), method, None, visitor)
}

/// As [`digest_nar`], and passes the bytes of the NAR to `each_chunk` before they are verified.
///
/// # Errors
/// As [`digest_nar`]; passes on the errors of `each_chunk`.
pub fn digest_nar_with(
    input: impl Read + Send,
    method: Compression,
    threads: Threads,
    max_size: Option<u64>,
    visitor: &mut impl Visitor,
    mut each_chunk: impl FnMut(&[u8]) -> Result,
) -> Result<NarDigests> {
    let mut file = HashingReader { inner: input, hasher: Hasher::default() };
    let (nar_hash, nar_size) = {
        let compressed = BufReader::with_capacity(BUFFER_SIZE, &mut file);
        let decompressed = match threads {
            Threads::One => decoder(method, compressed)?,
            Threads::All => parallel_decoder(method, compressed)?,
        };
        let mut nar = Hasher::default();
        let mut stream = BufReader::with_capacity(BUFFER_SIZE, DecoderErrors { inner: decompressed, method });
        parse(
            &mut Tee::new(&mut stream, |bytes| {
                nar.update(bytes);
                match max_size {
                    Some(max) if nar.size() > max => {
                        Err(Error::refused(format!("the NAR is larger than its NarSize, {max} bytes")))
                    }
                    _ => each_chunk(bytes),
                }
            }),
            visitor,
        )?;
        // Reading to the end also makes the decoder verify the checksum of the file.
        require_end_of_nar(&mut stream)?;
        nar.finish()
    };
    // Data after the compressed stream is part of FileHash.
    io::copy(&mut file, &mut io::sink())?;
    let (file_hash, file_size) = file.hasher.finish();
    Ok(NarDigests { method, file_hash, file_size, nar_hash, nar_size })
}

/// Hashes the bytes that are read.
struct HashingReader<R> {
    inner: R,
    hasher: Hasher,
}

impl<R: Read> Read for HashingReader<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buf)?;
        self.hasher.update(&buf[..n]);
        Ok(n)
    }
}

/// Turns an error of a decoder about its data into a refusal. Errors of the input are passed on.
struct DecoderErrors<R> {
    inner: R,
    method: Compression,
}

impl<R: Read> Read for DecoderErrors<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.inner.read(buf).map_err(|error| decoder_error(self.method, error).into())
    }
}
