//! xz and lzip streams of liblzma: encoder and decoders with their memory limits, and the decoder that uses all
//! processors for the blocks of an xz stream.

use std::io::{self, BufRead, Read};

use nar_pack::error::{Context, Result};
use xz2::bufread::XzDecoder;
use xz2::stream::{CONCATENATED, Check, MtStreamBuilder, Stream};

use super::Settings;
use super::decode::decoder_memory;

/// NAR bytes in one xz block. It is a constant because the output must not depend on the number of threads: three times
/// the dictionary of level 6, which is also the choice of the xz tool.
const BLOCK_SIZE: u64 = 24 << 20;
/// Memory in bytes beyond which the parallel xz decoder uses fewer threads.
pub const MAX_XZ_THREADING_MEMORY: u64 = 128 << 20;

/// Returns the encoder for these settings. It is the threaded one even for one thread, because only this encoder divides
/// the stream into blocks, which can be decompressed in parallel.
pub fn encoder_stream(settings: &Settings) -> Result<Stream> {
    MtStreamBuilder::new()
        .threads(u32::try_from(settings.threads).unwrap_or(1))
        .block_size(BLOCK_SIZE)
        .preset(settings.level)
        .check(Check::Crc64)
        .encoder()
        .map_err(io::Error::from)
        .context(|| "cannot initialize xz")
}

/// Returns whether a decoder requires more than [`decoder_memory`].
pub fn is_memory_limit(error: &io::Error) -> bool {
    is_error(error, xz2::stream::Error::MemLimit)
}

/// Returns whether a decoder could not allocate its memory.
pub fn is_out_of_memory(error: &io::Error) -> bool {
    is_error(error, xz2::stream::Error::Mem)
}

fn is_error(error: &io::Error, expected: xz2::stream::Error) -> bool {
    error.get_ref().and_then(|inner| inner.downcast_ref()) == Some(&expected)
}

/// Decompresses xz streams one after another with one thread.
pub fn xz_decoder<'a>(input: impl BufRead + Send + 'a) -> io::Result<Box<dyn Read + Send + 'a>> {
    let stream = Stream::new_stream_decoder(decoder_memory(), CONCATENATED)?;
    Ok(Box::new(XzDecoder::new_stream(input, stream)))
}

/// Decompresses lzip members one after another.
pub fn lzip_decoder<'a>(input: impl BufRead + Send + 'a) -> io::Result<Box<dyn Read + Send + 'a>> {
    let stream = Stream::new_lzip_decoder(decoder_memory(), CONCATENATED)?;
    Ok(Box::new(XzDecoder::new_stream(input, stream)))
}

/// Decompresses xz streams one after another. The threaded decoder of liblzma stops after one stream, so only the blocks
/// of the first stream are decompressed in parallel; files with more streams are rare.
pub enum ParallelXzDecoder<'a, R: BufRead> {
    FirstStream(XzDecoder<R>),
    FollowingStreams(Box<dyn Read + Send + 'a>),
    End,
}

impl<'a, R: BufRead + Send + 'a> ParallelXzDecoder<'a, R> {
    pub fn new(input: R) -> io::Result<Self> {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let stream = MtStreamBuilder::new()
            .threads(u32::try_from(threads).unwrap_or(1))
            .memlimit_threading(MAX_XZ_THREADING_MEMORY)
            .memlimit_stop(decoder_memory())
            .decoder()?;
        Ok(Self::FirstStream(XzDecoder::new_stream(input, stream)))
    }
}

impl<'a, R: BufRead + Send + 'a> Read for ParallelXzDecoder<'a, R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        loop {
            let n = match self {
                Self::FirstStream(decoder) => decoder.read(buf)?,
                Self::FollowingStreams(decoder) => return decoder.read(buf),
                Self::End => return Ok(0),
            };
            if n > 0 || buf.is_empty() {
                return Ok(n);
            }
            let Self::FirstStream(decoder) = std::mem::replace(self, Self::End) else { return Ok(0) };
            let mut input = decoder.into_inner();
            skip_stream_padding(&mut input)?;
            if !input.fill_buf()?.is_empty() {
                *self = Self::FollowingStreams(xz_decoder(input)?);
            }
        }
    }
}

/// Skips the zero bytes between two xz streams; their number must be a multiple of four (the .xz file format, section 2.2,
/// "Stream Padding").
fn skip_stream_padding(input: &mut impl BufRead) -> io::Result<()> {
    let mut zeros = 0;
    loop {
        let bytes = input.fill_buf()?;
        let n = bytes.iter().take_while(|byte| **byte == 0).count();
        let at_end = n < bytes.len() || bytes.is_empty();
        input.consume(n);
        zeros += n;
        if at_end {
            break;
        }
    }
    if zeros % 4 == 0 { Ok(()) } else { Err(io::Error::new(io::ErrorKind::InvalidData, "invalid xz stream padding")) }
}
