//! zstd files of many frames, decompressed on every core.
//!
//! `narinfo-gen` writes frames of [`crate::compression::FRAME`] bytes, each of which says how large it is; other writers
//! often make one frame of unknown size, which goes through one thread as ever.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io::{self, BufRead, Read};
use std::sync::mpsc::{Receiver, sync_channel};

use zstd::zstd_safe;

use crate::compression::{FRAME, stream_decoder};

/// Largest frame that is decompressed apart, in bytes of contents.
const MAX_CONTENTS: u64 = 2 * FRAME as u64;
/// Bytes in which such a frame must end; one that is larger than its contents by more than this is odd.
const MAX_FRAME: usize = 2 * FRAME + (1 << 20);
/// Contents that are not worth another thread.
const SMALL: u64 = 64 << 10;
/// Most frames under way: with more cores than this, the hashes are what takes the time.
const MOST: usize = 8;
/// Bytes that are read before it is looked again whether a frame is complete.
const STEP: usize = 128 << 10;

/// Reads the contents of a zstd file.
pub struct Frames<'a, R> {
    /// None once the rest goes through one thread.
    input: Option<R>,
    rest: Option<Box<dyn Read + Send + 'a>>,
    /// What was read and is not yet taken: from here on the next frame.
    begun: Begun,
    /// Frames under way, in their order.
    under_way: VecDeque<Frame>,
    most: usize,
    current: io::Cursor<Vec<u8>>,
}

/// Bytes of the input from `start` on.
#[derive(Default)]
struct Begun {
    bytes: Vec<u8>,
    start: usize,
}

/// A frame's contents.
enum Frame {
    Here(Vec<u8>),
    Coming(Receiver<io::Result<Vec<u8>>>),
}

/// What comes next in the input.
enum Next {
    Frame(Vec<u8>, usize),
    /// One that is not worth another thread, decompressed.
    Small(Vec<u8>),
    /// Something that is not for several threads: one large frame, or a malformed one.
    Other,
    End,
}

impl<'a, R: BufRead + Send + 'a> Frames<'a, R> {
    /// Reads from `input`; one frame more than there are threads is held.
    pub fn new(input: R) -> Self {
        Self {
            input: Some(input),
            rest: None,
            begun: Begun::default(),
            under_way: VecDeque::new(),
            most: rayon::current_num_threads().min(MOST) + 1,
            current: io::Cursor::default(),
        }
    }

    /// Begins to decompress as many frames as may be held.
    fn begin(&mut self) -> io::Result<()> {
        while self.under_way.len() < self.most
            && let Some(input) = &mut self.input
        {
            match next(input, &mut self.begun)? {
                Next::Frame(frame, contents) => {
                    let (done, result) = sync_channel(1);
                    // Whom it was for may be gone.
                    rayon::spawn(move || drop(done.send(decompress(&frame, contents))));
                    self.under_way.push_back(Frame::Coming(result));
                }
                Next::Small(contents) if contents.is_empty() => {}
                Next::Small(contents) => self.under_way.push_back(Frame::Here(contents)),
                Next::End => self.input = None,
                Next::Other => {
                    let Begun { bytes, start } = std::mem::take(&mut self.begun);
                    let mut begun = io::Cursor::new(bytes);
                    begun.set_position(start as u64);
                    self.rest = self.input.take().map(|input| stream_decoder(begun.chain(input))).transpose()?;
                }
            }
        }
        Ok(())
    }
}

impl<'a, R: BufRead + Send + 'a> Read for Frames<'a, R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        loop {
            let n = self.current.read(buf)?;
            if n > 0 || buf.is_empty() {
                return Ok(n);
            }
            self.begin()?;
            match (self.under_way.pop_front(), &mut self.rest) {
                (Some(Frame::Here(contents)), _) => self.current = io::Cursor::new(contents),
                (Some(Frame::Coming(frame)), _) => {
                    let frame = frame.recv().map_err(|_| io::Error::other("a decompressing thread died"))?;
                    self.current = io::Cursor::new(frame?);
                }
                (None, Some(rest)) => return rest.read(buf),
                (None, None) => return Ok(0),
            }
        }
    }
}

/// Takes the next frame out of `begun`, reading as much more as that takes.
fn next(input: &mut impl BufRead, begun: &mut Begun) -> io::Result<Next> {
    loop {
        let bytes = &begun.bytes[begun.start..];
        match (zstd_safe::get_frame_content_size(bytes), zstd_safe::find_frame_compressed_size(bytes)) {
            (Ok(Some(contents)), Ok(size)) if contents <= MAX_CONTENTS => {
                begun.start += size;
                let (frame, contents) = (&bytes[..size], usize::try_from(contents).unwrap_or(FRAME));
                return if contents as u64 <= SMALL {
                    decompress(frame, contents).map(Next::Small)
                } else {
                    Ok(Next::Frame(frame.to_vec(), contents))
                };
            }
            (_, Ok(_)) => return Ok(Next::Other),
            (Ok(Some(contents)), Err(_)) if contents > MAX_CONTENTS => return Ok(Next::Other),
            _ if bytes.len() > MAX_FRAME => return Ok(Next::Other),
            _ => {}
        }
        begun.bytes.drain(..std::mem::take(&mut begun.start));
        let before = begun.bytes.len();
        input.by_ref().take(STEP as u64).read_to_end(&mut begun.bytes)?;
        if begun.bytes.len() == before {
            return Ok(if before == 0 { Next::End } else { Next::Other });
        }
    }
}

fn decompress(frame: &[u8], contents: usize) -> io::Result<Vec<u8>> {
    thread_local!(static DECOMPRESSOR: RefCell<Option<zstd::bulk::Decompressor<'static>>> = const { RefCell::new(None) });
    DECOMPRESSOR.with_borrow_mut(|kept| {
        let decompressor = match kept {
            Some(ready) => ready,
            None => kept.insert(zstd::bulk::Decompressor::new()?),
        };
        decompressor.decompress(frame, contents)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compression::{Compression, Settings};

    fn unpacked(file: &[u8]) -> io::Result<Vec<u8>> {
        let mut contents = Vec::new();
        Frames::new(file).read_to_end(&mut contents).map(|_| contents)
    }

    fn pieces() -> Vec<Vec<u8>> {
        (0..40_u8).map(|n| (0..=250_u8).cycle().take(usize::from(n) * 6_000).map(|i| i ^ n).collect()).collect()
    }

    fn frames() -> Vec<u8> {
        let settings = Settings::new(Compression::Zstd, None, None).unwrap();
        pieces().iter().flat_map(|piece| settings.zstd_frame(piece).unwrap()).collect()
    }

    #[test]
    fn frames_come_in_their_order() {
        assert!(unpacked(&frames()).unwrap() == pieces().concat());
        assert!(unpacked(&[]).unwrap().is_empty());
    }

    #[test]
    fn a_frame_of_unknown_size_may_come_between() {
        let streamed = zstd::stream::encode_all(&b"streamed"[..], 3).unwrap();
        let skippable = [0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 1, 2, 3];
        let file = [frames(), skippable.to_vec(), streamed, frames()].concat();
        assert!(unpacked(&file).unwrap() == [pieces().concat(), b"streamed".to_vec(), pieces().concat()].concat());
    }

    #[test]
    fn what_is_cut_off_or_damaged_is_an_error() {
        let (good, whole) = (frames(), pieces().concat());
        for length in [1, 5, good.len() / 2, good.len() - 1] {
            assert!(unpacked(&good[..length]).is_err(), "{length}");
        }
        for at in (0..good.len()).step_by(good.len() / 200 + 1) {
            let mut bad = good.clone();
            bad[at] ^= 0x10;
            // Two encodings of the same contents are no damage.
            assert!(unpacked(&bad).map_or(true, |contents| contents == whole), "{at}");
        }
        assert!(unpacked(b"random bytes that are no zstd").is_err());
    }
}
