//! Decompression of lz4 files with several frames.

use std::io::{self, BufRead, Read};

use lz4_flex::frame::FrameDecoder;

/// Decompresses lz4 frames one after another, each with a decoder of its own: the library stops after a frame, and its
/// buffers have the block size of that frame. None after the last frame.
pub struct Lz4Decoder<R: Read>(Option<FrameDecoder<R>>);

impl<R: BufRead> Lz4Decoder<R> {
    pub fn new(input: R) -> Self {
        Self(Some(FrameDecoder::new(input)))
    }
}

impl<R: BufRead> Read for Lz4Decoder<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        while let Some(decoder) = &mut self.0 {
            let n = decoder.read(buf)?;
            if n > 0 || buf.is_empty() {
                return Ok(n);
            }
            let Some(mut input) = self.0.take().map(FrameDecoder::into_inner) else { return Ok(0) };
            if !input.fill_buf()?.is_empty() {
                *self = Self::new(input);
            }
        }
        Ok(0)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use lz4_flex::frame::{BlockSize, FrameEncoder, FrameInfo};

    use super::*;
    use crate::compression::tests::pseudo_random_bytes;

    #[test]
    fn frames_may_have_different_block_sizes() {
        let data = pseudo_random_bytes(300_000);
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
        let mut decompressed = Vec::new();
        Lz4Decoder::new(file.concat().as_slice()).read_to_end(&mut decompressed).unwrap();
        assert!(decompressed == data);
    }
}
