//! Compression. The NAR is cut into chunks of [`FRAME_SIZE`](super::FRAME_SIZE) bytes that are compressed independently where the format
//! allows it, so that the output does not depend on the number of threads.

use std::io::{self, Write};

use bzip2::write::BzEncoder;
use flate2::write::GzEncoder;
use nar_pack::error::{Error, Result};
use xz2::write::XzEncoder;

use super::{BROTLI_BUFFER_SIZE, Compression, Settings, xz, zstd};

/// Size of the brotli window as a power of two; the default of the brotli tool.
const BROTLI_WINDOW_LOG: u32 = 22;

/// Compresses the chunks that are pushed to it and writes the result to `W`.
pub struct Encoder<W: Write + 'static>(Kind<W>);

enum Kind<W: Write + 'static> {
    Uncompressed(W),
    ZstdFrames(Settings, W),
    Xz(Box<XzEncoder<W>>),
    Gzip(Box<GzEncoder<W>>),
    Bzip2(Box<BzEncoder<W>>),
    Brotli(Box<brotli::CompressorWriter<W>>),
}

impl<W: Write + 'static> Encoder<W> {
    /// Creates an encoder that writes to `out`. The encoder of xz starts threads of its own.
    ///
    /// # Errors
    /// Fails if the library rejects the settings, and for a method that can only be decompressed.
    pub fn new(settings: &Settings, out: W) -> Result<Self> {
        let level = settings.level;
        Ok(Self(match settings.method {
            Compression::None => Kind::Uncompressed(out),
            Compression::Zstd => Kind::ZstdFrames(*settings, out),
            Compression::Xz => Kind::Xz(Box::new(XzEncoder::new_stream(out, xz::encoder_stream(settings)?))),
            Compression::Gzip => Kind::Gzip(Box::new(GzEncoder::new(out, flate2::Compression::new(level)))),
            Compression::Bzip2 => Kind::Bzip2(Box::new(BzEncoder::new(out, bzip2::Compression::new(level)))),
            Compression::Brotli => {
                let encoder = brotli::CompressorWriter::new(out, BROTLI_BUFFER_SIZE, level, BROTLI_WINDOW_LOG);
                Kind::Brotli(Box::new(encoder))
            }
            method @ (Compression::Lzip | Compression::Lz4) => {
                return Err(Error::failed(format!("compressing with {method} is not supported")));
            }
        }))
    }

    /// Creates an encoder that writes the same bytes with one thread.
    ///
    /// # Errors
    /// As [`Encoder::new`].
    pub fn single_threaded(settings: &Settings, out: W) -> Result<Self> {
        Self::new(&Settings { threads: 1, ..*settings }, out)
    }

    /// Compresses the next chunk. Every chunk but the last must have exactly [`FRAME_SIZE`](super::FRAME_SIZE) bytes.
    ///
    /// # Errors
    /// Passes on the errors of the library and of the output.
    pub fn push(&mut self, chunk: &[u8]) -> Result {
        match &mut self.0 {
            Kind::Uncompressed(out) => out.write_all(chunk)?,
            Kind::ZstdFrames(settings, out) => out.write_all(&settings.zstd_frame(chunk)?)?,
            Kind::Xz(encoder) => encoder.write_all(chunk)?,
            Kind::Gzip(encoder) => encoder.write_all(chunk)?,
            Kind::Bzip2(encoder) => encoder.write_all(chunk)?,
            Kind::Brotli(encoder) => encoder.write_all(chunk)?,
        }
        Ok(())
    }

    /// Writes the end of the compressed data and returns the output.
    ///
    /// # Errors
    /// Passes on the errors of the library and of the output.
    pub fn finish(self) -> Result<W> {
        match self.0 {
            Kind::Uncompressed(out) | Kind::ZstdFrames(_, out) => Ok(out),
            Kind::Xz(encoder) => Ok(encoder.finish()?),
            Kind::Gzip(encoder) => Ok(encoder.finish()?),
            Kind::Bzip2(encoder) => Ok(encoder.finish()?),
            Kind::Brotli(encoder) => Ok(encoder.into_inner()),
        }
    }
}

impl Settings {
    /// Compresses a chunk to a zstd frame of its own.
    ///
    /// # Errors
    /// Passes on the errors of the library.
    pub fn zstd_frame(&self, chunk: &[u8]) -> io::Result<Vec<u8>> {
        zstd::compress_frame(chunk, self.level)
    }
}
