//! Decompression of a whole file. Several streams or frames in one file are decompressed as one, as Nix does.

use std::io::{BufRead, Read};

use nar_pack::error::{Error, Result};

use super::Compression;
use super::lz4::Lz4Decoder;
use super::xz::{self, ParallelXzDecoder};
use super::zstd::{self, ParallelZstdDecoder};

/// Size of the buffer of the brotli decoder, in bytes.
const BROTLI_BUFFER_SIZE: usize = 1 << 16;

/// Returns a reader that decompresses `input` on the calling thread.
///
/// # Errors
/// Fails if the library cannot be initialized.
pub fn decoder<'a>(method: Compression, input: impl BufRead + Send + 'a) -> Result<Box<dyn Read + Send + 'a>> {
    Ok(match method {
        Compression::None => Box::new(input),
        Compression::Xz => xz::xz_decoder(input)?,
        Compression::Lzip => xz::lzip_decoder(input)?,
        Compression::Bzip2 => Box::new(bzip2::bufread::MultiBzDecoder::new(input)),
        Compression::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(input)),
        Compression::Lz4 => Box::new(Lz4Decoder::new(input)),
        Compression::Brotli => Box::new(brotli::Decompressor::new(input, BROTLI_BUFFER_SIZE)),
        Compression::Zstd => zstd::stream_decoder(input)?,
    })
}

/// Returns a reader that decompresses `input` on all processors where the file allows it: zstd with many frames, xz with
/// many blocks. Needs up to [`MAX_XZ_THREADING_MEMORY`](super::MAX_XZ_THREADING_MEMORY) bytes more than [`decoder`].
///
/// # Errors
/// Fails if the library cannot be initialized.
pub fn parallel_decoder<'a>(method: Compression, input: impl BufRead + Send + 'a) -> Result<Box<dyn Read + Send + 'a>> {
    match method {
        Compression::Zstd => Ok(Box::new(ParallelZstdDecoder::new(input))),
        Compression::Xz => Ok(Box::new(ParallelXzDecoder::new(input)?)),
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
    let mut decoded = Vec::new();
    decoder(Compression::from_name(name)?, bytes.as_slice())?
        .take(limit as u64 + 1)
        .read_to_end(&mut decoded)
        .map_err(|error| Error::refused(format!("cannot decompress as {name}: {error}")))?;
    if decoded.len() > limit { Err(Error::refused(format!("larger than {limit} bytes"))) } else { Ok(decoded) }
}
