//! Decompression of a whole file. Several streams or frames in one file are decompressed as one, as Nix does.

use std::io::{self, BufRead, BufReader, Read};
use std::sync::atomic::{AtomicU64, Ordering};

use bytesize::ByteSize;
use nar_pack::error::{Error, Result};

use super::lz4::Lz4Decoder;
use super::xz::{self, ParallelXzDecoder};
use super::zstd::{self, ParallelZstdDecoder};
use super::{BROTLI_BUFFER_SIZE, Compression};
use crate::input_error::is_input_error;

/// Size of the buffer after a decoder, in bytes.
const BUFFER_SIZE: usize = 128 << 10;

/// A reader of decompressed bytes.
pub type Decoder<'a> = Box<dyn BufRead + Send + 'a>;

/// Default maximum of the memory that a file may require for decompression, in bytes. Level 9 of xz requires 65 MiB, and
/// level 22 of zstd 128 MiB, which is also the limit of the zstd tool.
pub const DEFAULT_DECODER_MEMORY: u64 = 256 << 20;

static DECODER_MEMORY: AtomicU64 = AtomicU64::new(DEFAULT_DECODER_MEMORY);

/// Sets the maximum memory that each file may require for decompression, in bytes. It applies to all decoders that are
/// created afterwards, like a resource limit of the process: `--decoder-memory` sets it once.
pub fn set_decoder_memory(bytes: u64) {
    DECODER_MEMORY.store(bytes, Ordering::Relaxed);
}

/// Returns the maximum memory that a file may require for decompression, in bytes.
pub(super) fn decoder_memory() -> u64 {
    DECODER_MEMORY.load(Ordering::Relaxed)
}

/// Returns the error for data that a decoder cannot decompress. Errors of the decoder's input are passed on.
#[must_use]
pub fn decoder_error(method: Compression, error: io::Error) -> Error {
    if is_input_error(&error) {
        return error.into();
    }
    let cause = format!("cannot decompress as {method}");
    if xz::is_memory_limit(&error) || zstd::is_memory_limit(&error) {
        let limit = ByteSize(decoder_memory());
        return Error::refused(format!("{cause}: it requires more memory than the limit, {limit}"))
            .with_hint("raise the limit with --decoder-memory SIZE");
    }
    if xz::is_out_of_memory(&error) || zstd::is_out_of_memory(&error) {
        return Error::failed(format!("{cause}: cannot allocate memory"));
    }
    Error::refused(format!("{cause}: {error}"))
}

/// Returns a reader that decompresses `input` on the calling thread.
///
/// # Errors
/// Fails if the library cannot be initialized.
pub fn decoder<'a>(method: Compression, input: impl BufRead + Send + 'a) -> Result<Decoder<'a>> {
    Ok(match method {
        Compression::None => Box::new(input),
        Compression::Xz => buffered(xz::xz_decoder(input)?),
        Compression::Lzip => buffered(xz::lzip_decoder(input)?),
        Compression::Bzip2 => buffered(bzip2::bufread::MultiBzDecoder::new(input)),
        Compression::Gzip => buffered(flate2::bufread::MultiGzDecoder::new(input)),
        Compression::Lz4 => buffered(Lz4Decoder::new(input)),
        Compression::Brotli => buffered(brotli::Decompressor::new(input, BROTLI_BUFFER_SIZE)),
        Compression::Zstd => zstd::stream_decoder(input)?,
    })
}

fn buffered<'a>(decoder: impl Read + Send + 'a) -> Decoder<'a> {
    Box::new(BufReader::with_capacity(BUFFER_SIZE, decoder))
}

/// Returns a reader that decompresses `input` on several threads where the file allows it: one per processor, each with
/// a frame of zstd (at most 8 threads) or a block of xz. Needs up to
/// [`MAX_XZ_THREADING_MEMORY`](super::MAX_XZ_THREADING_MEMORY) bytes more than [`decoder`].
///
/// # Errors
/// Fails if the library cannot be initialized.
pub fn parallel_decoder<'a>(method: Compression, input: impl BufRead + Send + 'a) -> Result<Decoder<'a>> {
    match method {
        Compression::Zstd => Ok(Box::new(ParallelZstdDecoder::new(input))),
        Compression::Xz => Ok(buffered(ParallelXzDecoder::new(input)?)),
        _ => decoder(method, input),
    }
}

/// Decodes a `Content-Encoding`, which caches set on narinfos, listings and logs. The result has at most `limit` bytes.
///
/// # Errors
/// Refuses an unknown encoding, malformed data, and data that decompresses to more than `limit` bytes.
pub fn decode_content(bytes: Vec<u8>, encoding: Option<&str>, limit: usize) -> Result<Vec<u8>> {
    let name = match encoding.map(str::trim) {
        None | Some("" | "identity") => return Ok(bytes),
        Some("x-gzip") => "gzip",
        Some(name) => name,
    };
    let method = Compression::from_name(name)?;
    let mut decoded = Vec::new();
    decoder(method, bytes.as_slice())?
        .take(limit as u64 + 1)
        .read_to_end(&mut decoded)
        .map_err(|error| decoder_error(method, error))?;
    if decoded.len() > limit { Err(Error::refused(format!("larger than {limit} bytes"))) } else { Ok(decoded) }
}
