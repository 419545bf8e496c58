//! Verification of a compressed NAR from another program: decompresses and parses it, and computes the values that its
//! narinfo must have. The work is limited by NarSize, because a few KiB may decompress to any size.

use std::io::{self, BufRead, BufReader, Cursor, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use nar_pack::error::{Context, Error, Result};
use nar_pack::nar::{CallbackTee, Visitor, parse, require_end};

use crate::compression::{Compression, GZIP_MAGIC, MAX_XZ_THREADING_MEMORY, decoder, decoder_error, parallel_decoder};
use crate::hash::{Hasher, Sha256};
use crate::narinfo::NarInfo;

/// Size of the buffer before the decoder, in bytes.
const BUFFER_SIZE: usize = 128 * 1024;
/// The maximum number of compressed bytes that a decoder on one thread may read before it returns anything.
const MAX_READ_AHEAD: u64 = 4 << 20;
/// The maximum number of bytes by which compression may make a NAR larger, in addition to a quarter of its size.
const MAX_COMPRESSION_OVERHEAD: u64 = 1 << 20;

/// What a narinfo must state about a compressed NAR.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NarDigests {
    /// The compression method.
    pub method: Compression,
    /// Hash of the compressed bytes.
    pub file_hash: Sha256,
    /// Number of compressed bytes.
    pub file_size: u64,
    /// Hash and size in bytes of the NAR; none if the file was hashed without decompressing it.
    pub nar: Option<(Sha256, u64)>,
}

impl NarDigests {
    /// Checks that a narinfo describes this NAR. If it was not decompressed, its FileHash must match, and NarHash and NarSize
    /// are not checked.
    ///
    /// # Errors
    /// Refuses the narinfo, with the first field that differs, its value and the correct one. Refuses one without FileHash
    /// if the NAR was not decompressed.
    pub fn require(&self, narinfo: &NarInfo) -> Result {
        let mismatch = |field: &str, stated: String, actual: String| Err(mismatch(narinfo, field, &stated, &actual));
        if narinfo.compression != self.method.name() {
            return mismatch("Compression", narinfo.compression.clone(), self.method.to_string());
        }
        require_file(narinfo, self.file_hash, self.file_size)?;
        let Some((nar_hash, nar_size)) = self.nar else {
            let missing = || Error::refused(format!("{}: the narinfo has no FileHash", narinfo.full_path()));
            return narinfo.file_hash.map(drop).ok_or_else(missing);
        };
        if narinfo.nar_hash != nar_hash {
            return mismatch("NarHash", narinfo.nar_hash.to_string(), nar_hash.to_string());
        }
        if narinfo.nar_size != nar_size {
            return mismatch("NarSize", narinfo.nar_size.to_string(), nar_size.to_string());
        }
        Ok(())
    }
}

/// Checks that a narinfo states the hash and the size of this file, if it states them. Needs no decompression.
///
/// # Errors
/// Refuses the narinfo, with the first field that differs, its value and the correct one.
pub fn require_file(narinfo: &NarInfo, file_hash: Sha256, file_size: u64) -> Result {
    if let Some(hash) = narinfo.file_hash.filter(|hash| *hash != file_hash) {
        return Err(mismatch(narinfo, "FileHash", &hash.to_string(), &file_hash.to_string()));
    }
    if let Some(size) = narinfo.file_size.filter(|size| *size != file_size) {
        return Err(mismatch(narinfo, "FileSize", &size.to_string(), &file_size.to_string()));
    }
    Ok(())
}

fn mismatch(narinfo: &NarInfo, field: &str, stated: &str, actual: &str) -> Error {
    let path = narinfo.full_path();
    Error::refused(format!("{path}: {field} is {stated} in the narinfo, but the NAR has {actual}"))
}

/// The maximum size of a NAR that is being verified, in bytes. Clones share the limit, so it can be set while another
/// thread verifies the NAR: in a cache archive a NAR comes before the narinfo that states its NarSize.
#[derive(Debug, Clone)]
pub struct NarSizeLimit(Arc<AtomicU64>);

impl NarSizeLimit {
    /// A limit of `nar_size` bytes.
    #[must_use]
    pub fn new(nar_size: u64) -> Self {
        Self(Arc::new(AtomicU64::new(nar_size)))
    }

    /// A limit that is not known yet: nothing is refused until [`NarSizeLimit::set`].
    #[must_use]
    pub fn unknown() -> Self {
        Self::new(u64::MAX)
    }

    /// Sets the limit to `nar_size` bytes. A verification that has decompressed more than that stops.
    pub fn set(&self, nar_size: u64) {
        self.0.store(nar_size, Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    fn require(&self, nar_size: u64) -> Result {
        match self.get() {
            max if nar_size > max => Err(Error::refused(format!("the NAR is larger than its NarSize, {max} bytes"))),
            _ => Ok(()),
        }
    }
}

/// The number of threads that decompress a NAR.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Threads {
    /// The calling thread.
    One,
    /// Several, where the file allows it; see [`parallel_decoder`].
    All,
}

impl Threads {
    /// Returns the maximum number of compressed bytes that the decoder may read before it returns anything.
    fn max_read_ahead(self) -> u64 {
        match self {
            Self::One => MAX_READ_AHEAD,
            Self::All => MAX_XZ_THREADING_MEMORY,
        }
    }
}

/// Reads the compressed NAR of `narinfo` to its end and verifies its compression, FileHash, FileSize, NarHash and
/// NarSize; stops as soon as it is larger than NarSize or FileSize. `visitor` receives its tree and `each_chunk` its
/// bytes while they are still unverified.
///
/// # Errors
/// Refuses a NAR that does not match the narinfo. Passes on the errors of `each_chunk`.
pub fn verify_nar(
    input: impl Read + Send,
    narinfo: &NarInfo,
    threads: Threads,
    visitor: &mut impl Visitor,
    each_chunk: impl FnMut(&[u8]) -> Result,
) -> Result {
    let method = Compression::from_name(&narinfo.compression).context(|| narinfo.full_path())?;
    let input = LimitedFile { inner: input, read: 0, max_size: narinfo.file_size.unwrap_or(u64::MAX) };
    let limit = NarSizeLimit::new(narinfo.nar_size);
    let digests =
        digest_nar_with(input, method, threads, &limit, visitor, each_chunk).context(|| narinfo.full_path())?;
    digests.require(narinfo)
}

/// Reads a compressed NAR to its end, passes its tree to `visitor`, and returns its digests. Stops as soon as the NAR is
/// larger than `limit`, or the file larger than any file of such a NAR.
///
/// # Errors
/// Refuses input that cannot be decompressed, is not a NAR, has data after the NAR, or is too large.
pub fn digest_nar(
    input: impl Read + Send,
    method: Compression,
    limit: &NarSizeLimit,
    visitor: &mut impl Visitor,
) -> Result<NarDigests> {
    digest_nar_with(input, method, Threads::One, limit, visitor, |_| Ok(()))
}

/// As [`digest_nar`], but finds the compression method from the key and the first bytes.
///
/// # Errors
/// As [`digest_nar`]; refuses a key with an unknown extension.
pub fn digest_named_nar(
    input: impl Read + Send,
    key: &str,
    limit: &NarSizeLimit,
    visitor: &mut impl Visitor,
) -> Result<NarDigests> {
    let (method, input) = detect_compression(input, key)?;
    digest_nar(input, method, limit, visitor)
}

/// Reads the file of a NAR to its end and hashes it, without decompressing it. The hash of a file without compression is the
/// one of its NAR.
///
/// # Errors
/// Refuses a key whose extension is not that of a NAR.
pub fn digest_named_file(input: impl Read + Send, key: &str) -> Result<NarDigests> {
    let (method, mut input) = detect_compression(input, key)?;
    let mut hasher = Hasher::default();
    io::copy(&mut input, &mut hasher)?;
    let (file_hash, file_size) = hasher.finish();
    let nar = (method == Compression::None).then_some((file_hash, file_size));
    Ok(NarDigests { method, file_hash, file_size, nar })
}

/// Returns the compression method of the NAR with this key, and its whole input.
fn detect_compression<R: Read + Send>(mut input: R, key: &str) -> Result<(Compression, impl Read + Send + use<R>)> {
    let mut start = Vec::new();
    input.by_ref().take(GZIP_MAGIC.len() as u64).read_to_end(&mut start)?;
    let method = Compression::from_key(key, &start)
        .ok_or_else(|| Error::refused("unknown compression method: expected a key that ends with .nar or .nar.EXT"))?;
    Ok((method, Cursor::new(start).chain(input)))
}

/// As [`digest_nar`], with that many threads. Passes each piece of the NAR to `each_chunk` while it is still unverified.
///
/// # Errors
/// As [`digest_nar`]; passes on the errors of `each_chunk`.
pub fn digest_nar_with(
    input: impl Read + Send,
    method: Compression,
    threads: Threads,
    limit: &NarSizeLimit,
    visitor: &mut impl Visitor,
    mut each_chunk: impl FnMut(&[u8]) -> Result,
) -> Result<NarDigests> {
    let decompressed = AtomicU64::new(0);
    let input = WorkLimit { inner: input, read: 0, limit, decompressed: &decompressed, threads };
    let mut file = HashingReader { inner: input, hasher: Hasher::default() };
    // Without compression, the file is the NAR, and one hash is enough.
    let mut nar = (method != Compression::None).then(Hasher::default);
    let nar_size = {
        let compressed = BufReader::with_capacity(BUFFER_SIZE, &mut file);
        let decoder = match threads {
            Threads::One => decoder(method, compressed)?,
            Threads::All => parallel_decoder(method, compressed)?,
        };
        let mut nar_size = 0;
        let mut stream = DecoderErrors { inner: decoder, method };
        parse(
            &mut CallbackTee::new(&mut stream, |bytes| {
                if let Some(nar) = &mut nar {
                    nar.update(bytes);
                }
                nar_size += bytes.len() as u64;
                decompressed.store(nar_size, Ordering::Relaxed);
                limit.require(nar_size)?;
                each_chunk(bytes)
            }),
            visitor,
        )?;
        // Reading to the end also makes the decoder verify the checksum of the file.
        require_end(&mut stream)?;
        nar_size
    };
    // Data after the compressed stream is part of FileHash.
    io::copy(&mut file, &mut io::sink())?;
    let (file_hash, file_size) = file.hasher.finish();
    let nar_hash = nar.map_or(file_hash, |nar| nar.finish().0);
    Ok(NarDigests { method, file_hash, file_size, nar: Some((nar_hash, nar_size)) })
}

/// Refuses a file that is larger than FileSize.
struct LimitedFile<R> {
    inner: R,
    read: u64,
    max_size: u64,
}

impl<R: Read> Read for LimitedFile<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buf)?;
        self.read += n as u64;
        require_file_size(self.read, self.max_size, "FileSize")?;
        Ok(n)
    }
}

/// Refuses a compressed NAR that is larger than it can be, and one from which a decoder produces almost no output: a
/// decoder may need a second per MiB for empty frames.
struct WorkLimit<'a, R> {
    inner: R,
    read: u64,
    limit: &'a NarSizeLimit,
    decompressed: &'a AtomicU64,
    threads: Threads,
}

impl<R: Read> Read for WorkLimit<'_, R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let decompressed = self.decompressed.load(Ordering::Relaxed);
        // Also stops a decoder that reads ahead of the parser when the limit is set.
        self.limit.require(decompressed)?;
        let expected = max_compressed_size(decompressed);
        if self.read > expected.saturating_add(self.threads.max_read_ahead()) {
            return Err(Error::refused("the compressed NAR is larger than its decompressed contents").into());
        }
        let n = self.inner.read(buf)?;
        self.read += n as u64;
        let max_size = max_compressed_size(self.limit.get()).saturating_add(MAX_COMPRESSION_OVERHEAD);
        require_file_size(self.read, max_size, "NarSize")?;
        Ok(n)
    }
}

fn require_file_size(size: u64, max_size: u64, field: &str) -> Result {
    if size > max_size {
        let message = format!("the compressed NAR is larger than its {field} allows: more than {max_size} bytes");
        return Err(Error::refused(message));
    }
    Ok(())
}

/// Returns the maximum size of `size` bytes after compression, without constant overhead.
fn max_compressed_size(size: u64) -> u64 {
    size.saturating_add(size / 4)
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

impl<R: BufRead> Read for DecoderErrors<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.inner.read(buf).map_err(|error| decoder_error(self.method, error).into())
    }
}

impl<R: BufRead> BufRead for DecoderErrors<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.inner.fill_buf().map_err(|error| decoder_error(self.method, error).into())
    }

    fn consume(&mut self, amount: usize) {
        self.inner.consume(amount);
    }
}
