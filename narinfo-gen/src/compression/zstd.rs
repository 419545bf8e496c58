//! zstd: compression to independent frames, decompression of one stream, and decompression of files with many frames on
//! up to eight processors. `narinfo-gen` writes frames of [`FRAME_SIZE`] bytes that state their size. Other programs often write
//! one frame of unknown size, which is decompressed by one thread.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io::{self, BufRead, BufReader, Read};
use std::sync::LazyLock;
use std::sync::mpsc::{Receiver, sync_channel};

use nar_pack::error::Error;
use nar_pack::stdio::read_full;
use zstd::bulk;
use zstd::stream::read::Decoder;
use zstd::zstd_safe;

use super::FRAME_SIZE;
use super::decode::decoder_memory;
use crate::buffer_pool::{Buffer, BufferPool};

/// The windows of zstd frames, as powers of two: ZSTD_WINDOWLOG_ABSOLUTEMIN and ZSTD_WINDOWLOG_MAX_64.
const WINDOW_LOGS: (u32, u32) = (10, 31);
/// The names that libzstd gives to its errors (`lib/common/error_private.c`); the crate has no codes for them.
const WINDOW_TOO_LARGE: &str = "Frame requires too much memory for decoding";
const OUT_OF_MEMORY: &str = "Allocation error : not enough memory";
/// Maximum content size in bytes of a frame that is decompressed on its own.
const MAX_CONTENT_SIZE: u64 = 2 * FRAME_SIZE as u64;
/// Maximum compressed size in bytes of such a frame: incompressible content, and 1 MiB for headers.
const MAX_COMPRESSED_SIZE: usize = 2 * FRAME_SIZE + (1 << 20);
/// Maximum content size in bytes of a frame that is decompressed at once, because another thread would cost more.
const MAX_INLINE_SIZE: u64 = 64 << 10;
/// Maximum number of frames that are decompressed at once. With more processors than this, hashing is the bottleneck.
const MAX_THREADS: usize = 8;
/// Bytes to read before checking again whether a frame is complete.
const READ_SIZE: usize = 128 << 10;
/// Bytes by which the buffer of the input grows.
const GROWTH: usize = 8 * READ_SIZE;

/// Compresses `content` to one frame with a checksum. Every thread keeps its compressor, whose buffers are expensive.
pub fn compress_frame(content: &[u8], level: u32) -> io::Result<Vec<u8>> {
    type Cached = Option<(i32, bulk::Compressor<'static>)>;
    thread_local!(static COMPRESSOR: RefCell<Cached> = const { RefCell::new(None) });
    let level = i32::try_from(level).unwrap_or(i32::MAX);
    COMPRESSOR.with_borrow_mut(|cached| {
        let (_, compressor) = match cached.take().filter(|(of, _)| *of == level) {
            Some(of_this_level) => cached.insert(of_this_level),
            None => cached.insert((level, frame_compressor(level)?)),
        };
        compressor.compress(content)
    })
}

fn frame_compressor(level: i32) -> io::Result<bulk::Compressor<'static>> {
    let mut compressor = bulk::Compressor::new(level)?;
    compressor.include_checksum(true)?;
    Ok(compressor)
}

/// Decompresses any zstd file with one thread, and with less memory than [`ParallelZstdDecoder`].
pub fn stream_decoder<'a>(input: impl BufRead + Send + 'a) -> io::Result<Box<dyn BufRead + Send + 'a>> {
    let mut decoder = Decoder::with_buffer(input)?;
    decoder.window_log_max(max_window_log(decoder_memory()))?;
    Ok(Box::new(BufReader::with_capacity(READ_SIZE, decoder)))
}

/// Returns the largest window that fits into `memory` bytes together with the buffers: 128 MiB for 256 MiB.
fn max_window_log(memory: u64) -> u32 {
    let (min, max) = WINDOW_LOGS;
    memory.saturating_sub(1).max(1).ilog2().clamp(min, max)
}

/// Returns whether a frame requires more than [`decoder_memory`].
pub fn is_memory_limit(error: &io::Error) -> bool {
    error.to_string() == WINDOW_TOO_LARGE
}

/// Returns whether a decoder could not allocate its memory.
pub fn is_out_of_memory(error: &io::Error) -> bool {
    error.to_string() == OUT_OF_MEMORY
}

/// Decompresses a zstd file, several frames at a time.
pub struct ParallelZstdDecoder<'a, R> {
    /// None at the end of the input, or after the stream decoder took it.
    input: Option<R>,
    /// Decompresses from the first frame that is not suitable for parallel decompression to the end of the file.
    stream: Option<Box<dyn BufRead + Send + 'a>>,
    /// Input that was read and is not yet part of a frame.
    buffer: InputBuffer,
    /// Frames being decompressed, in their order.
    pending: VecDeque<PendingFrame>,
    max_pending: usize,
    /// The frame that is being read.
    current: Buffer,
    /// Bytes of `current` that were read.
    position: usize,
}

/// The bytes from `start` to `end` are those of the next frame.
#[derive(Default)]
struct InputBuffer {
    bytes: Vec<u8>,
    start: usize,
    end: usize,
}

impl InputBuffer {
    /// Reads [`READ_SIZE`] bytes, or fewer at the end of the input, into the memory after `end`. Returns their number. Not
    /// once: looking for the end of a frame starts at its first byte, and an input may arrive byte by byte.
    fn fill(&mut self, input: &mut impl Read) -> io::Result<usize> {
        self.bytes.copy_within(self.start..self.end, 0);
        self.end -= std::mem::take(&mut self.start);
        if self.bytes.len() < self.end + READ_SIZE {
            // Not to twice the size: the frames of one file are often equally large.
            self.bytes.reserve_exact(GROWTH);
            self.bytes.resize(self.bytes.len() + GROWTH, 0);
        }
        let start = self.end;
        let unused = &mut self.bytes[start..start + READ_SIZE];
        self.end += read_full(input, unused)?;
        Ok(self.end - start)
    }
}

/// The content of a frame.
enum PendingFrame {
    Decompressed(Buffer),
    InProgress(Receiver<io::Result<Buffer>>),
}

/// What the input continues with.
enum NextFrame {
    /// A complete compressed frame and the size of its content.
    Compressed(Vec<u8>, usize),
    /// A small frame, already decompressed.
    Decompressed(Buffer),
    /// One that only the stream decoder handles: large, of unknown size, or malformed.
    Unsuitable,
    EndOfInput,
}

impl<'a, R: BufRead + Send + 'a> ParallelZstdDecoder<'a, R> {
    /// Decompresses `input`. Holds one frame more than there are threads.
    pub fn new(input: R) -> Self {
        Self {
            input: Some(input),
            stream: None,
            buffer: InputBuffer::default(),
            pending: VecDeque::new(),
            max_pending: rayon::current_num_threads().min(MAX_THREADS) + 1,
            current: Buffer::default(),
            position: 0,
        }
    }

    /// Starts to decompress as many frames as may be pending.
    fn start_frames(&mut self) -> io::Result<()> {
        while self.pending.len() < self.max_pending
            && let Some(input) = &mut self.input
        {
            match next_frame(input, &mut self.buffer)? {
                NextFrame::Compressed(frame, content_size) => {
                    let (sender, receiver) = sync_channel(1);
                    // Sending fails if this decoder was dropped.
                    rayon::spawn(move || drop(sender.send(decompress_frame(&frame, content_size))));
                    self.pending.push_back(PendingFrame::InProgress(receiver));
                }
                NextFrame::Decompressed(content) if content.is_empty() => {}
                NextFrame::Decompressed(content) => self.pending.push_back(PendingFrame::Decompressed(content)),
                NextFrame::EndOfInput => self.input = None,
                NextFrame::Unsuitable => {
                    let InputBuffer { mut bytes, start, end } = std::mem::take(&mut self.buffer);
                    bytes.truncate(end);
                    let mut buffered = io::Cursor::new(bytes);
                    buffered.set_position(start as u64);
                    self.stream = self.input.take().map(|input| stream_decoder(buffered.chain(input))).transpose()?;
                }
            }
        }
        Ok(())
    }
}

impl<'a, R: BufRead + Send + 'a> BufRead for ParallelZstdDecoder<'a, R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.position == self.current.len() {
            // The buffer can be used for the next frame.
            self.current = Buffer::default();
            self.position = 0;
            self.start_frames()?;
            match self.pending.pop_front() {
                Some(PendingFrame::Decompressed(content)) => self.current = content,
                Some(PendingFrame::InProgress(receiver)) => {
                    let panicked = |_| io::Error::from(Error::panicked("decompression thread"));
                    self.current = receiver.recv().map_err(panicked)??;
                }
                None => return self.stream.as_mut().map_or(Ok(&[]), BufRead::fill_buf),
            }
        }
        Ok(&self.current[self.position..])
    }

    fn consume(&mut self, amount: usize) {
        match &mut self.stream {
            Some(stream) if self.current.is_empty() => stream.consume(amount),
            _ => self.position += amount,
        }
    }
}

impl<'a, R: BufRead + Send + 'a> Read for ParallelZstdDecoder<'a, R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let count = self.fill_buf()?.read(buf)?;
        self.consume(count);
        Ok(count)
    }
}

/// Takes the next frame out of `buffer`, after reading as much of `input` as that requires.
fn next_frame(input: &mut impl BufRead, buffer: &mut InputBuffer) -> io::Result<NextFrame> {
    loop {
        let bytes = &buffer.bytes[buffer.start..buffer.end];
        match (zstd_safe::get_frame_content_size(bytes), zstd_safe::find_frame_compressed_size(bytes)) {
            (Ok(Some(content_size)), Ok(compressed_size)) if content_size <= MAX_CONTENT_SIZE => {
                buffer.start += compressed_size;
                let frame = &bytes[..compressed_size];
                let size = usize::try_from(content_size).unwrap_or(FRAME_SIZE);
                return if content_size <= MAX_INLINE_SIZE {
                    decompress_frame(frame, size).map(NextFrame::Decompressed)
                } else {
                    Ok(NextFrame::Compressed(frame.to_vec(), size))
                };
            }
            (_, Ok(_)) => return Ok(NextFrame::Unsuitable),
            (Ok(Some(content_size)), Err(_)) if content_size > MAX_CONTENT_SIZE => return Ok(NextFrame::Unsuitable),
            _ if bytes.len() > MAX_COMPRESSED_SIZE => return Ok(NextFrame::Unsuitable),
            _ => {}
        }
        if buffer.fill(input)? == 0 {
            return Ok(if buffer.end == 0 { NextFrame::EndOfInput } else { NextFrame::Unsuitable });
        }
    }
}

fn decompress_frame(frame: &[u8], content_size: usize) -> io::Result<Buffer> {
    static CONTENTS: LazyLock<BufferPool> = LazyLock::new(|| BufferPool::new(FRAME_SIZE, MAX_THREADS));
    thread_local!(static DECOMPRESSOR: RefCell<Option<bulk::Decompressor<'static>>> = const { RefCell::new(None) });
    DECOMPRESSOR.with_borrow_mut(|cached| {
        let decompressor = match cached {
            Some(decompressor) => decompressor,
            None => cached.insert(bulk::Decompressor::new()?),
        };
        let is_whole = content_size == FRAME_SIZE;
        let mut content = if is_whole { CONTENTS.take() } else { Buffer::with_capacity(content_size) };
        content.append_with(|unused| decompressor.decompress_to_buffer(frame, unused))?;
        Ok(content)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decompress(file: &[u8]) -> io::Result<Vec<u8>> {
        let mut content = Vec::new();
        ParallelZstdDecoder::new(file).read_to_end(&mut content).map(|_| content)
    }

    fn chunks() -> Vec<Vec<u8>> {
        (0..40_u8).map(|n| (0..=250_u8).cycle().take(usize::from(n) * 6_000).map(|i| i ^ n).collect()).collect()
    }

    fn frames() -> Vec<u8> {
        chunks().iter().flat_map(|chunk| compress_frame(chunk, 3).unwrap()).collect()
    }

    #[test]
    fn frames_are_decompressed_in_order() {
        assert!(decompress(&frames()).unwrap() == chunks().concat());
        assert!(decompress(&[]).unwrap().is_empty());
    }

    #[test]
    fn a_frame_of_unknown_size_may_be_between_others() {
        let streamed = zstd::stream::encode_all(&b"streamed"[..], 3).unwrap();
        let skippable = [0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 1, 2, 3];
        let file = [frames(), skippable.to_vec(), streamed, frames()].concat();
        assert!(decompress(&file).unwrap() == [chunks().concat(), b"streamed".to_vec(), chunks().concat()].concat());
    }

    #[test]
    fn input_that_arrives_byte_by_byte_is_not_searched_for_frames_after_each_byte() {
        struct OneByte<'a>(&'a [u8]);
        impl Read for OneByte<'_> {
            fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
                let limit = buf.len().min(1);
                self.0.read(&mut buf[..limit])
            }
        }
        let file = frames();
        let mut buffer = InputBuffer::default();
        assert_eq!(buffer.fill(&mut OneByte(&file)).unwrap(), READ_SIZE.min(file.len()));
        let mut content = Vec::new();
        let input = BufReader::with_capacity(1, OneByte(&file));
        ParallelZstdDecoder::new(input).read_to_end(&mut content).unwrap();
        assert!(content == chunks().concat());
    }

    #[test]
    fn truncated_and_damaged_files_are_errors() {
        let (good, whole) = (frames(), chunks().concat());
        for length in [1, 5, good.len() / 2, good.len() - 1] {
            assert!(decompress(&good[..length]).is_err(), "{length}");
        }
        for at in (0..good.len()).step_by(good.len() / 200 + 1) {
            let mut bad = good.clone();
            bad[at] ^= 0x10;
            // A flipped bit may give another encoding of the same content.
            assert!(decompress(&bad).map_or(true, |content| content == whole), "{at}");
        }
        assert!(decompress(b"random bytes that are not zstd").is_err());
    }
}
