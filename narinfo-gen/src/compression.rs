//! Compressing and decompressing NARs, by the names that narinfos use (Nix's `src/libutil/compression.cc`).

use std::cell::RefCell;
use std::fmt;
use std::io::{self, BufRead, Read, Write};

use nar_pack::error::{Context, Error, Result};
use xz2::stream::{Check, MtStreamBuilder, Stream};

use crate::frames::Frames;
use crate::hash::Sha256;

/// Bytes of NAR in one zstd frame. Frames are compressed apart from each other, so this bounds what a thread holds;
/// it is a constant because the output must not depend on the number of threads.
pub const FRAME: usize = 4 << 20;
/// Bytes of NAR in one xz block, for the same reason; three times the dictionary of level 6, as xz itself chooses.
const XZ_BLOCK: u64 = 24 << 20;
/// Most memory that an xz file may ask for on reading, in bytes; level 9 takes 65 MiB.
const XZ_MEMORY: u64 = 256 << 20;
/// Memory in bytes beyond which the threads that read an xz file become fewer.
pub const XZ_THREADS_MEMORY: u64 = 128 << 20;
/// Largest window of a zstd frame on reading, as a power of two: 128 MiB, as the zstd tool accepts.
const ZSTD_WINDOW_LOG: u32 = 27;

/// How a gzip file begins (RFC 1952, section 2.3.1).
pub(crate) const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];

/// A compression method.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// Not compressed.
    None,
    /// xz.
    Xz,
    /// bzip2, what a narinfo without `Compression` means.
    Bzip2,
    /// gzip.
    Gzip,
    /// zstd.
    Zstd,
    /// brotli.
    Brotli,
    /// lzip; can only be read.
    Lzip,
    /// lz4, in its frame format; can only be read.
    Lz4,
}

impl Compression {
    /// Every method that can be read.
    pub const ALL: [Self; 8] =
        [Self::None, Self::Xz, Self::Bzip2, Self::Gzip, Self::Zstd, Self::Brotli, Self::Lzip, Self::Lz4];

    /// The method of that name in a narinfo.
    ///
    /// # Errors
    /// Refuses a name that is not known.
    pub fn from_name(name: &str) -> Result<Self> {
        Ok(match name {
            "none" => Self::None,
            "xz" => Self::Xz,
            "bzip2" => Self::Bzip2,
            "gzip" => Self::Gzip,
            "zstd" => Self::Zstd,
            "br" => Self::Brotli,
            "lzip" => Self::Lzip,
            "lz4" => Self::Lz4,
            _ => return Err(Error::refused(format!("compression {name:?} is not known"))),
        })
    }

    /// Its name in a narinfo.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Xz => "xz",
            Self::Bzip2 => "bzip2",
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
            Self::Brotli => "br",
            Self::Lzip => "lzip",
            Self::Lz4 => "lz4",
        }
    }

    /// What follows `.nar` in the key of a NAR, as Nix names it (`src/libstore/binary-cache-store.cc`): gzip has
    /// nothing of its own.
    #[must_use]
    pub fn extension(self) -> &'static str {
        match self {
            Self::None | Self::Gzip => "",
            Self::Xz => ".xz",
            Self::Bzip2 => ".bz2",
            Self::Zstd => ".zst",
            Self::Brotli => ".br",
            Self::Lzip => ".lzip",
            Self::Lz4 => ".lz4",
        }
    }

    /// Key of a NAR that is compressed so.
    #[must_use]
    pub fn key_of_nar(self, file_hash: Sha256) -> String {
        format!("nar/{}.nar{}", file_hash.base32(), self.extension())
    }

    /// The method of a NAR with that key that begins with these bytes. What follows `.nar` tells; where nothing does, it
    /// is gzip if it begins like gzip, which no NAR does.
    #[must_use]
    pub fn of_nar(key: &str, start: &[u8]) -> Option<Self> {
        match &key[key.rfind(".nar")? + 4..] {
            "" if start.starts_with(&GZIP_MAGIC) => Some(Self::Gzip),
            ".gz" => Some(Self::Gzip),
            ".lz" => Some(Self::Lzip),
            extension => Self::ALL.into_iter().find(|method| method.extension() == extension),
        }
    }

    /// Whether the key of a NAR is one that tells this method.
    #[must_use]
    pub fn is_told_by(self, key: &str) -> bool {
        [&GZIP_MAGIC[..], &[]].into_iter().any(|start| Self::of_nar(key, start) == Some(self))
    }

    /// The levels that the method has, and the one that is taken when none is asked for.
    fn levels(self) -> (std::ops::RangeInclusive<u32>, u32) {
        match self {
            Self::None | Self::Lzip | Self::Lz4 => (0..=0, 0),
            Self::Xz | Self::Gzip => (0..=9, 6),
            Self::Bzip2 => (1..=9, 9),
            Self::Zstd => (1..=19, 3),
            Self::Brotli => (0..=11, 6),
        }
    }
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A method with its level and number of threads.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// The method.
    pub method: Compression,
    level: u32,
    threads: usize,
}

impl Settings {
    /// Settings for writing; the output depends on the method and the level only.
    ///
    /// # Errors
    /// A usage failure for a level that the method does not have.
    pub fn new(method: Compression, level: Option<u32>, threads: Option<u16>) -> Result<Self> {
        let (levels, default) = method.levels();
        let level = level.unwrap_or(default);
        if !levels.contains(&level) {
            let (least, most) = levels.into_inner();
            return Err(Error::failed(format!("{method} has levels {least} to {most}, not {level}")));
        }
        let threads = match threads {
            Some(threads) => usize::from(threads.max(1)),
            None => std::thread::available_parallelism().map_or(1, usize::from),
        };
        Ok(Self { method, level, threads })
    }

    /// Threads to compress with.
    #[must_use]
    pub fn threads(&self) -> usize {
        self.threads
    }

    /// A piece as a zstd frame of its own.
    ///
    /// # Errors
    /// What the library says.
    pub fn zstd_frame(&self, piece: &[u8]) -> io::Result<Vec<u8>> {
        // What a compressor holds is worth keeping from frame to frame.
        thread_local!(static COMPRESSOR: RefCell<Option<(i32, zstd::bulk::Compressor<'static>)>> = const { RefCell::new(None) });
        let level = i32::try_from(self.level).unwrap_or(i32::MAX);
        COMPRESSOR.with_borrow_mut(|kept| {
            let (_, compressor) = match kept.take().filter(|(of, _)| *of == level) {
                Some(ready) => kept.insert(ready),
                None => kept.insert((level, frame_compressor(level)?)),
            };
            compressor.compress(piece)
        })
    }
}

/// Compresses what is pushed into it, and writes the result to `W`.
pub struct Encoder<W: Write + 'static>(Kind<W>);

enum Kind<W: Write + 'static> {
    Plain(W),
    Frames(Settings, W),
    Xz(Box<xz2::write::XzEncoder<W>>),
    Gzip(Box<flate2::write::GzEncoder<W>>),
    Bzip2(Box<bzip2::write::BzEncoder<W>>),
    Brotli(Box<brotli::CompressorWriter<W>>),
}

impl<W: Write + 'static> Encoder<W> {
    /// An encoder onto `out`; that of xz has threads of its own.
    ///
    /// # Errors
    /// Fails where the library refuses the settings, and for methods that can only be read.
    pub fn new(settings: &Settings, out: W) -> Result<Self> {
        Ok(Self(match settings.method {
            Compression::None => Kind::Plain(out),
            Compression::Zstd => Kind::Frames(*settings, out),
            Compression::Xz => Kind::Xz(Box::new(xz2::write::XzEncoder::new_stream(out, xz_stream(settings)?))),
            Compression::Gzip => {
                Kind::Gzip(Box::new(flate2::write::GzEncoder::new(out, flate2::Compression::new(settings.level))))
            }
            Compression::Bzip2 => {
                Kind::Bzip2(Box::new(bzip2::write::BzEncoder::new(out, bzip2::Compression::new(settings.level))))
            }
            Compression::Brotli => {
                Kind::Brotli(Box::new(brotli::CompressorWriter::new(out, 1 << 16, settings.level, 22)))
            }
            method @ (Compression::Lzip | Compression::Lz4) => {
                return Err(Error::failed(format!("{method} can be read but not written")));
            }
        }))
    }

    /// An encoder of the same bytes that leaves the other processors to others.
    ///
    /// # Errors
    /// As [`Encoder::new`].
    pub fn on_one_thread(settings: &Settings, out: W) -> Result<Self> {
        Self::new(&Settings { threads: 1, ..*settings }, out)
    }

    /// Adds at most [`FRAME`] bytes; every piece but the last has exactly that many.
    ///
    /// # Errors
    /// What the library or the output says.
    pub fn push(&mut self, piece: &[u8]) -> Result {
        match &mut self.0 {
            Kind::Plain(out) => out.write_all(piece)?,
            Kind::Frames(settings, out) => out.write_all(&settings.zstd_frame(piece)?)?,
            Kind::Xz(encoder) => encoder.write_all(piece)?,
            Kind::Gzip(encoder) => encoder.write_all(piece)?,
            Kind::Bzip2(encoder) => encoder.write_all(piece)?,
            Kind::Brotli(encoder) => encoder.write_all(piece)?,
        }
        Ok(())
    }

    /// Writes what is left and gives the output back.
    ///
    /// # Errors
    /// What the library or the output says.
    pub fn finish(self) -> Result<W> {
        match self.0 {
            Kind::Plain(out) | Kind::Frames(_, out) => Ok(out),
            Kind::Xz(encoder) => Ok(encoder.finish()?),
            Kind::Gzip(encoder) => Ok(encoder.finish()?),
            Kind::Bzip2(encoder) => Ok(encoder.finish()?),
            Kind::Brotli(encoder) => Ok(encoder.into_inner()),
        }
    }
}

fn xz_stream(settings: &Settings) -> Result<Stream> {
    let threads = u32::try_from(settings.threads).unwrap_or(1);
    // The threaded encoder for one thread too: it alone cuts the stream into blocks, which other hosts decode in parallel.
    MtStreamBuilder::new()
        .threads(threads)
        .block_size(XZ_BLOCK)
        .preset(settings.level)
        .check(Check::Crc64)
        .encoder()
        .map_err(io::Error::from)
        .context(|| "setting up xz")
}

fn frame_compressor(level: i32) -> io::Result<zstd::bulk::Compressor<'static>> {
    let mut compressor = zstd::bulk::Compressor::new(level)?;
    compressor.include_checksum(true)?;
    Ok(compressor)
}

/// Decompresses `input`; several streams or frames one after another are one, as Nix reads them.
///
/// # Errors
/// Fails where the library cannot be set up.
pub fn decoder<'a>(method: Compression, input: impl BufRead + Send + 'a) -> Result<Box<dyn Read + Send + 'a>> {
    Ok(match method {
        Compression::None => Box::new(input),
        Compression::Xz => decoder_of_xz(input)?,
        Compression::Lzip => {
            let stream = Stream::new_lzip_decoder(XZ_MEMORY, xz2::stream::CONCATENATED).map_err(io::Error::from)?;
            Box::new(xz2::bufread::XzDecoder::new_stream(input, stream))
        }
        Compression::Bzip2 => Box::new(bzip2::bufread::MultiBzDecoder::new(input)),
        Compression::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(input)),
        Compression::Lz4 => Box::new(Lz4Frames::new(input)),
        Compression::Brotli => Box::new(brotli::Decompressor::new(input, 1 << 16)),
        Compression::Zstd => stream_decoder(input)?,
    })
}

/// As [`decoder`], on every core where the file allows: zstd in many frames, xz in many blocks. It holds up to
/// [`XZ_THREADS_MEMORY`] bytes more.
///
/// # Errors
/// Fails where the library cannot be set up.
pub fn parallel_decoder<'a>(method: Compression, input: impl BufRead + Send + 'a) -> Result<Box<dyn Read + Send + 'a>> {
    match method {
        Compression::Zstd => Ok(Box::new(Frames::new(input))),
        Compression::Xz => Ok(Box::new(XzStreams::new(input)?)),
        _ => decoder(method, input),
    }
}

/// A zstd decoder that has one thread and takes every file.
///
/// # Errors
/// Fails where the library cannot be set up.
pub(crate) fn stream_decoder<'a>(input: impl BufRead + Send + 'a) -> io::Result<Box<dyn Read + Send + 'a>> {
    let mut decoder = zstd::stream::read::Decoder::with_buffer(input)?;
    decoder.window_log_max(ZSTD_WINDOW_LOG)?;
    Ok(Box::new(decoder))
}

/// xz streams, one after the other: the blocks of the first on every core, where the threaded decoder stops; more than
/// one is rare, and a thousand small ones are not worth threads.
enum XzStreams<'a, R: BufRead> {
    First(xz2::bufread::XzDecoder<R>),
    Others(Box<dyn Read + Send + 'a>),
    Ended,
}

impl<'a, R: BufRead + Send + 'a> XzStreams<'a, R> {
    fn new(input: R) -> io::Result<Self> {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let stream = MtStreamBuilder::new()
            .threads(u32::try_from(threads).unwrap_or(1))
            .memlimit_threading(XZ_THREADS_MEMORY)
            .memlimit_stop(XZ_MEMORY)
            .decoder()?;
        Ok(Self::First(xz2::bufread::XzDecoder::new_stream(input, stream)))
    }
}

impl<'a, R: BufRead + Send + 'a> Read for XzStreams<'a, R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        loop {
            let n = match self {
                Self::First(decoder) => decoder.read(buf)?,
                Self::Others(decoder) => return decoder.read(buf),
                Self::Ended => return Ok(0),
            };
            if n > 0 || buf.is_empty() {
                return Ok(n);
            }
            let Self::First(decoder) = std::mem::replace(self, Self::Ended) else { return Ok(0) };
            let mut input = decoder.into_inner();
            skip_padding(&mut input)?;
            if !input.fill_buf()?.is_empty() {
                *self = Self::Others(decoder_of_xz(input)?);
            }
        }
    }
}

fn decoder_of_xz<'a>(input: impl BufRead + Send + 'a) -> io::Result<Box<dyn Read + Send + 'a>> {
    let stream = Stream::new_stream_decoder(XZ_MEMORY, xz2::stream::CONCATENATED)?;
    Ok(Box::new(xz2::bufread::XzDecoder::new_stream(input, stream)))
}

/// Zeros between two xz streams, four at a time (the xz file format, "Stream Padding").
fn skip_padding(input: &mut impl BufRead) -> io::Result<()> {
    let mut zeros = 0;
    loop {
        let bytes = input.fill_buf()?;
        let more = bytes.iter().take_while(|byte| **byte == 0).count();
        let ended = more < bytes.len() || bytes.is_empty();
        input.consume(more);
        zeros += more;
        if ended {
            break;
        }
    }
    if zeros % 4 == 0 { Ok(()) } else { Err(io::Error::new(io::ErrorKind::InvalidData, "bad xz padding")) }
}

/// lz4 frames, one after the other: the library stops after each, and what it holds fits one frame only.
struct Lz4Frames<R: Read>(Option<lz4_flex::frame::FrameDecoder<R>>);

impl<R: BufRead> Lz4Frames<R> {
    fn new(input: R) -> Self {
        Self(Some(lz4_flex::frame::FrameDecoder::new(input)))
    }
}

impl<R: BufRead> Read for Lz4Frames<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        while let Some(decoder) = &mut self.0 {
            let n = decoder.read(buf)?;
            if n > 0 || buf.is_empty() {
                return Ok(n);
            }
            let Some(mut input) = self.0.take().map(lz4_flex::frame::FrameDecoder::into_inner) else { return Ok(0) };
            if !input.fill_buf()?.is_empty() {
                *self = Self::new(input);
            }
        }
        Ok(0)
    }
}

/// Undoes a `Content-Encoding`, as caches have it on narinfos, listings and logs; at most `limit` bytes come out.
///
/// # Errors
/// Refuses an encoding that is not known, and what is malformed or larger.
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
        .map_err(|error| Error::refused(format!("does not unpack as {name}: {error}")))?;
    if decoded.len() > limit { Err(Error::refused(format!("larger than {limit} bytes"))) } else { Ok(decoded) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Compression; 6] = [
        Compression::None,
        Compression::Xz,
        Compression::Bzip2,
        Compression::Gzip,
        Compression::Zstd,
        Compression::Brotli,
    ];

    fn compress(method: Compression, threads: u16, data: &[u8]) -> Vec<u8> {
        let level = if method == Compression::Xz { Some(0) } else { None };
        let settings = Settings::new(method, level, Some(threads)).unwrap();
        let mut encoder = Encoder::new(&settings, Vec::new()).unwrap();
        for piece in data.chunks(FRAME) {
            encoder.push(piece).unwrap();
        }
        encoder.finish().unwrap()
    }

    fn data(size: usize) -> Vec<u8> {
        let mut state = 1_u32;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8 & 0x1f
        };
        (0..size).map(|_| next()).collect()
    }

    #[test]
    fn every_method_gives_back_what_it_took() {
        for size in [1, 1000, FRAME, FRAME + 1, 3 * FRAME + 17] {
            let data = data(size);
            for method in ALL {
                let packed = compress(method, 2, &data);
                for make in [decoder, parallel_decoder] {
                    let mut unpacked = Vec::new();
                    make(method, packed.as_slice()).unwrap().read_to_end(&mut unpacked).unwrap();
                    assert!(unpacked == data, "{method}, {size} bytes");
                }
            }
        }
    }

    #[test]
    fn the_output_does_not_depend_on_the_number_of_threads() {
        let data = data(5 * FRAME + 3);
        for method in [Compression::Zstd, Compression::Xz] {
            let one = compress(method, 1, &data);
            assert!([2, 3, 8].into_iter().all(|threads| compress(method, threads, &data) == one), "{method}");
        }
    }

    #[test]
    fn truncated_and_random_input_is_an_error_not_a_panic() {
        let data = data(100_000);
        for method in ALL.into_iter().skip(1) {
            let packed = compress(method, 1, &data);
            for bytes in [&packed[..packed.len() - 1], &packed[..packed.len() / 2], &data[..1000]] {
                for make in [decoder, parallel_decoder] {
                    let mut unpacked = Vec::new();
                    assert!(make(method, bytes).unwrap().read_to_end(&mut unpacked).is_err(), "{method}");
                }
            }
        }
    }

    #[test]
    fn several_files_one_after_the_other_are_one() {
        let data = data(100_000);
        for method in [Compression::Zstd, Compression::Xz] {
            let packed = compress(method, 1, &data);
            let padding = if method == Compression::Xz { vec![0; 8] } else { Vec::new() };
            let file = [&packed[..], &padding, &packed, &padding].concat();
            for make in [decoder, parallel_decoder] {
                let mut unpacked = Vec::new();
                make(method, file.as_slice()).unwrap().read_to_end(&mut unpacked).unwrap();
                assert!(unpacked == [&data[..], &data].concat(), "{method}");
            }
        }
    }

    #[test]
    fn lz4_frames_may_have_blocks_of_different_sizes() {
        use lz4_flex::frame::{BlockSize, FrameEncoder, FrameInfo};
        let data = data(300_000);
        let frame = |size, part: &[u8]| {
            let mut encoder = FrameEncoder::with_frame_info(FrameInfo::new().block_size(size), Vec::new());
            encoder.write_all(part).unwrap();
            encoder.finish().unwrap()
        };
        let file = [
            frame(BlockSize::Max4MB, &data[..200_000]),
            frame(BlockSize::Max64KB, b""),
            frame(BlockSize::Max64KB, &data[200_000..]),
        ];
        let mut unpacked = Vec::new();
        decoder(Compression::Lz4, file.concat().as_slice()).unwrap().read_to_end(&mut unpacked).unwrap();
        assert!(unpacked == data);
    }

    #[test]
    fn the_method_is_told_by_the_name_and_that_of_gzip_by_its_first_bytes() {
        for method in Compression::ALL {
            let key = format!("nar/x.nar{}", method.extension());
            let start: &[u8] = if method == Compression::Gzip { &GZIP_MAGIC } else { b"\x0d\0" };
            assert_eq!(Compression::of_nar(&key, start), Some(method));
            assert!(method.is_told_by(&key) && !method.is_told_by("nar/x.nar.what"));
        }
        assert!(Compression::Gzip.is_told_by("nar/x.nar.gz") && !Compression::Gzip.is_told_by("nar/x.nar.xz"));
        assert_eq!(Compression::of_nar("nar/x", &[]), None);
    }

    #[test]
    fn levels_out_of_range_are_usage_errors() {
        assert_eq!(Settings::new(Compression::Zstd, Some(20), None).unwrap_err().exit_code(), 2);
        assert_eq!(Settings::new(Compression::None, Some(1), None).unwrap_err().exit_code(), 2);
    }
}
