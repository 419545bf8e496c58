//! NARs in, compressed NARs with their hashes out, in one pass.
//!
//! One thread reads, a pool compresses, and one thread takes the results in their order: a NAR of one piece is hashed,
//! scanned and compressed as one piece of work beside others; of a larger one the frames are, and its hash is taken on a
//! thread beside. What is under way is bounded in bytes.

use std::io::{self, BufRead, Seek, Write};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;

use nar_pack::error::{Context, Error, Result};
use nar_pack::nar::{Tee, Visitor, parse};
use nar_pack::references::Scanner;
use nar_pack::store_path::StorePath;
use rayon::ThreadPool;
use tempfile::SpooledTempFile;

use crate::compression::{Compression, Encoder, FRAME, Settings};
use crate::hash::{Hasher, Sha256};

/// Compressed bytes that are kept in memory; what is larger goes to an unlinked temporary file.
pub const IN_MEMORY: usize = 16 << 20;

/// NARs that may be under way at once; small ones are bounded by this, large ones by their bytes.
const UNDER_WAY: usize = 256;
/// Pieces that may be under way beside those that are being compressed, one per thread.
const PIECES_BESIDE: usize = 3;

/// A compressed NAR, kept until it is sent: its key is its own hash, which is known only at its end.
pub struct CompressedNar {
    /// The compressed bytes, at their beginning.
    pub body: SpooledTempFile,
    /// Hash of the compressed bytes.
    pub file_hash: Sha256,
    /// How many they are.
    pub file_size: u64,
    /// Hash of the NAR.
    pub nar_hash: Sha256,
    /// Size of the NAR in bytes.
    pub nar_size: u64,
    /// The candidates that the NAR mentions, if it was scanned.
    pub references: Option<Vec<StorePath>>,
}

impl CompressedNar {
    /// Key of the NAR in its cache.
    #[must_use]
    pub fn key(&self, settings: &Settings) -> String {
        settings.method.key_of_nar(self.file_hash)
    }
}

/// Packs NARs: `read` takes them from a stream and says something of each ([`NarCompressor::nar`], [`NarCompressor::described`]);
/// `done` gets each in their order, with what was said. The bytes do not depend on the number of threads.
///
/// # Errors
/// What `done` says, which ends reading too; else what `read` says.
pub fn compress_each<D: Send>(
    settings: &Settings,
    read: impl FnOnce(&mut NarCompressor<D>) -> Result,
    done: impl FnMut(CompressedNar, D) -> Result + Send,
) -> Result {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(settings.threads()).build();
    let pool = pool.map_err(|error| Error::failed(format!("starting threads: {error}")))?;
    let room = Arc::new(Room::new((settings.threads() + PIECES_BESIDE) * FRAME));
    let (steps, queue) = sync_channel(UNDER_WAY);
    std::thread::scope(|scope| {
        let taking = {
            let room = Arc::clone(&room);
            scope.spawn(move || {
                let taken = take_each(settings, &queue, &room, done);
                // What is still being read has nowhere to go.
                room.close();
                taken
            })
        };
        let mut compressor = NarCompressor { settings, pool, room, steps };
        let read = read(&mut compressor);
        drop(compressor);
        let taken = taking.join().unwrap_or_else(|_| Err(Error::failed("the packing thread died")));
        taken.and(read)
    })
}

/// Takes NARs from a stream.
pub struct NarCompressor<'a, D> {
    settings: &'a Settings,
    pool: ThreadPool,
    room: Arc<Room>,
    steps: SyncSender<Step<D>>,
}

enum Step<D> {
    Nar(Pending),
    Described(D),
}

/// A NAR on its way through the pool.
enum Pending {
    Small(Receiver<Result<Packed>>),
    Large { pieces: Receiver<Piece>, reading: JoinHandle<Reading> },
}

/// A piece of a large NAR, after or before compression.
enum Piece {
    /// A zstd frame to be.
    Frame(Receiver<io::Result<Vec<u8>>>, usize),
    /// For an encoder that takes one piece after the other.
    Raw(Arc<Vec<u8>>),
}

/// A small NAR, compressed.
struct Packed {
    compressed: Vec<u8>,
    reading: Reading,
    /// Its share of the room.
    room: usize,
}

impl<D> NarCompressor<'_, D> {
    /// Reads one NAR from `input`, and no further; hashes it and, with a scanner, looks for references. Its tree goes to
    /// `visitor`.
    ///
    /// # Errors
    /// Refuses a malformed or truncated NAR.
    pub fn nar(&mut self, input: &mut impl BufRead, scanner: Option<Scanner>, visitor: &mut impl Visitor) -> Result {
        let reading = Reading { hasher: Hasher::default(), scanner };
        let mut pieces = Pieces { compressor: self, state: State::First(reading), piece: Vec::new() };
        parse(&mut Tee::new(&mut *input, |bytes| pieces.add(bytes)), visitor)?;
        pieces.finish()
    }

    /// Says something of the NAR that was read last, which is complete now.
    ///
    /// # Errors
    /// Fails when nobody takes the results any more.
    pub fn described(&mut self, description: D) -> Result {
        self.send(Step::Described(description))
    }

    fn send(&self, step: Step<D>) -> Result {
        self.steps.send(step).map_err(|_| given_up())
    }
}

/// Of no interest: who takes the results has failed before, and says why.
fn given_up() -> Error {
    Error::failed("packing was given up")
}

/// Gathers a NAR into pieces of [`FRAME`] bytes, and hands each to the pool.
struct Pieces<'p, 'a, D> {
    compressor: &'p mut NarCompressor<'a, D>,
    state: State,
    piece: Vec<u8>,
}

enum State {
    /// Nothing has been handed on.
    First(Reading),
    /// There is more than one piece.
    Large { pieces: SyncSender<Piece>, to_read: SyncSender<Arc<Vec<u8>>> },
}

impl<D> Pieces<'_, '_, D> {
    fn add(&mut self, mut bytes: &[u8]) -> Result {
        while !bytes.is_empty() {
            if self.piece.len() == FRAME {
                self.hand_on()?;
            }
            let room = (FRAME - self.piece.len()).min(bytes.len());
            self.piece.extend_from_slice(&bytes[..room]);
            bytes = &bytes[room..];
        }
        Ok(())
    }

    /// Hands on a piece of a NAR that has more than one.
    fn hand_on(&mut self) -> Result {
        let piece = Arc::new(std::mem::take(&mut self.piece));
        self.piece.reserve_exact(FRAME);
        self.compressor.room.take(piece.len())?;
        if let State::First(reading) = &mut self.state {
            let (to_read, queue) = sync_channel::<Arc<Vec<u8>>>(1);
            let mut reading = std::mem::replace(reading, Reading::nothing());
            let reading = std::thread::spawn(move || {
                for piece in queue {
                    reading.add(&piece);
                }
                reading
            });
            // As many as there is room for.
            let (pieces, queue) = sync_channel(self.compressor.settings.threads() + PIECES_BESIDE);
            self.compressor.send(Step::Nar(Pending::Large { pieces: queue, reading }))?;
            self.state = State::Large { pieces, to_read };
        }
        if let State::Large { pieces, to_read } = &self.state {
            to_read.send(Arc::clone(&piece)).map_err(|_| given_up())?;
            pieces.send(self.compressor.compress(piece)).map_err(|_| given_up())?;
        }
        Ok(())
    }

    fn finish(mut self) -> Result {
        if matches!(self.state, State::Large { .. }) {
            return self.hand_on();
        }
        let State::First(mut reading) = self.state else { return Ok(()) };
        let (piece, settings) = (self.piece, *self.compressor.settings);
        let room = piece.len();
        self.compressor.room.take(room)?;
        let (done, result) = sync_channel(1);
        self.compressor.pool.spawn(move || {
            reading.add(&piece);
            let compressed = Encoder::on_one_thread(&settings, Vec::new()).and_then(|mut encoder| {
                encoder.push(&piece)?;
                encoder.finish()
            });
            // Nobody waits for it when packing was given up.
            let _ =
                done.send(compressed.context(|| "compressing").map(|compressed| Packed { compressed, reading, room }));
        });
        self.compressor.send(Step::Nar(Pending::Small(result)))
    }
}

impl<D> NarCompressor<'_, D> {
    fn compress(&self, piece: Arc<Vec<u8>>) -> Piece {
        if self.settings.method != Compression::Zstd {
            return Piece::Raw(piece);
        }
        let (settings, size) = (*self.settings, piece.len());
        let (done, result) = sync_channel(1);
        self.pool.spawn(move || {
            let _ = done.send(settings.zstd_frame(&piece));
        });
        Piece::Frame(result, size)
    }
}

/// Takes NARs in their order, each with what was said of it.
fn take_each<D>(
    settings: &Settings,
    queue: &Receiver<Step<D>>,
    room: &Room,
    mut done: impl FnMut(CompressedNar, D) -> Result,
) -> Result {
    let mut ready = None;
    // Ends when reading does; of a NAR that was cut off nothing is said, and so it goes nowhere.
    for step in queue {
        match step {
            Step::Nar(pending) => ready = Some(pending.finish(settings, room)?),
            Step::Described(description) => {
                if let Some(nar) = ready.take() {
                    done(nar, description)?;
                }
            }
        }
    }
    Ok(())
}

impl Pending {
    fn finish(self, settings: &Settings, room: &Room) -> Result<CompressedNar> {
        match self {
            Self::Small(result) => {
                let packed = result.recv().map_err(|_| Error::failed("a compression thread died"))??;
                let mut file = FileSink::default();
                file.write_all(&packed.compressed)?;
                room.give_back(packed.room);
                file.finish(packed.reading)
            }
            Self::Large { pieces, reading } => {
                let file = match settings.method {
                    Compression::Zstd => write_frames(&pieces, room)?,
                    _ => encode(&pieces, settings, room)?,
                };
                let reading = reading.join().map_err(|_| Error::failed("the hashing thread died"))?;
                file.finish(reading)
            }
        }
    }
}

fn write_frames(pieces: &Receiver<Piece>, room: &Room) -> Result<FileSink> {
    let mut file = FileSink::default();
    for piece in pieces {
        if let Piece::Frame(result, size) = piece {
            let frame = result.recv().map_err(|_| Error::failed("a compression thread died"))?;
            file.write_all(&frame.map_err(Error::from).context(|| "compressing with zstd")?)?;
            room.give_back(size);
        }
    }
    Ok(file)
}

fn encode(pieces: &Receiver<Piece>, settings: &Settings, room: &Room) -> Result<FileSink> {
    let mut encoder = Encoder::new(settings, FileSink::default())?;
    for piece in pieces {
        if let Piece::Raw(piece) = piece {
            encoder.push(&piece).context(|| "compressing")?;
            room.give_back(piece.len());
        }
    }
    encoder.finish().context(|| "compressing")
}

/// Where compressed bytes go: hashed and kept.
struct FileSink {
    body: SpooledTempFile,
    hasher: Hasher,
    /// The first failure; not every encoder passes on what happens while it writes its end.
    failed: Option<Error>,
}

impl Default for FileSink {
    fn default() -> Self {
        Self { body: SpooledTempFile::new(IN_MEMORY), hasher: Hasher::default(), failed: None }
    }
}

impl FileSink {
    fn finish(mut self, reading: Reading) -> Result<CompressedNar> {
        self.failed.map_or(Ok(()), Err)?;
        self.body.rewind().map_err(Error::from).context(|| "reading back a compressed NAR")?;
        let (file_hash, file_size) = self.hasher.finish();
        let (nar_hash, nar_size) = reading.hasher.finish();
        let references = reading.scanner.map(Scanner::finish);
        Ok(CompressedNar { body: self.body, file_hash, file_size, nar_hash, nar_size, references })
    }
}

impl Write for FileSink {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.write_all(buf)?;
        Ok(buf.len())
    }

    fn write_all(&mut self, buf: &[u8]) -> io::Result<()> {
        self.hasher.update(buf);
        self.body.write_all(buf).map_err(|error| {
            let failure = Error::failed(format!("keeping a compressed NAR: {error}"));
            self.failed.get_or_insert(failure).clone().into()
        })
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Hash and references of the NAR itself.
struct Reading {
    hasher: Hasher,
    scanner: Option<Scanner>,
}

impl Reading {
    fn nothing() -> Self {
        Self { hasher: Hasher::default(), scanner: None }
    }

    fn add(&mut self, bytes: &[u8]) {
        self.hasher.update(bytes);
        if let Some(scanner) = &mut self.scanner {
            scanner.feed(bytes);
        }
    }
}

/// Bytes of NAR that may be under way.
struct Room {
    /// None once nobody takes results any more.
    left: Mutex<Option<usize>>,
    freed: Condvar,
}

impl Room {
    fn new(bytes: usize) -> Self {
        Self { left: Mutex::new(Some(bytes)), freed: Condvar::new() }
    }

    fn take(&self, bytes: usize) -> Result {
        let left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        let enough = |left: &mut Option<usize>| left.is_some_and(|left| left < bytes);
        let mut left = self.freed.wait_while(left, enough).unwrap_or_else(PoisonError::into_inner);
        *left = Some(left.ok_or_else(given_up)? - bytes);
        Ok(())
    }

    fn give_back(&self, bytes: usize) {
        let mut left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        *left = left.map(|left| left + bytes);
        self.freed.notify_one();
    }

    fn close(&self) {
        *self.left.lock().unwrap_or_else(PoisonError::into_inner) = None;
        self.freed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use nar_pack::nar::Skip;

    use super::*;

    /// The NAR of one file of so many bytes.
    fn nar(size: usize) -> Vec<u8> {
        let dir = tempfile::tempdir().unwrap();
        let contents: Vec<u8> = (0..size).map(|index| u8::try_from(index / 7 % 251).unwrap()).collect();
        std::fs::write(dir.path().join("file"), contents).unwrap();
        let mut nar = Vec::new();
        nar_pack::nar::dump(&dir.path().join("file"), &mut nar, &mut |_| {}).unwrap();
        nar
    }

    /// What becomes of NARs one after another: number, compressed bytes, hash of the NAR.
    fn packed(nars: &[Vec<u8>], method: Compression, threads: u16) -> Vec<(usize, Vec<u8>, Sha256)> {
        let settings = Settings::new(method, None, Some(threads)).unwrap();
        let mut all = Vec::new();
        let read = |compressor: &mut NarCompressor<usize>| {
            for (number, nar) in nars.iter().enumerate() {
                compressor.nar(&mut nar.as_slice(), None, &mut Skip)?;
                compressor.described(number)?;
            }
            Ok(())
        };
        compress_each(&settings, read, |mut nar, number| {
            let mut body = Vec::new();
            nar.body.read_to_end(&mut body).unwrap();
            assert_eq!((Sha256::of(&body), body.len() as u64), (nar.file_hash, nar.file_size));
            all.push((number, body, nar.nar_hash));
            Ok(())
        })
        .unwrap();
        all
    }

    #[test]
    fn nars_come_out_in_order_and_alike_for_any_number_of_threads() {
        let sizes = [0, 10, FRAME - 112, FRAME - 200, FRAME, 5 * FRAME + 3, 1, 70_000, 2 * FRAME, 12];
        let nars: Vec<Vec<u8>> = sizes.into_iter().map(nar).collect();
        for method in [Compression::Zstd, Compression::Gzip, Compression::None] {
            let one = packed(&nars, method, 1);
            for (number, (nar, (index, body, hash))) in nars.iter().zip(&one).enumerate() {
                assert_eq!((number, Sha256::of(nar)), (*index, *hash));
                let mut unpacked = Vec::new();
                crate::compression::decoder(method, body.as_slice()).unwrap().read_to_end(&mut unpacked).unwrap();
                assert!(unpacked == *nar, "{method}");
            }
            assert_eq!(one.len(), nars.len());
            assert!([2, 5].into_iter().all(|threads| packed(&nars, method, threads) == one), "{method}");
        }
    }

    #[test]
    fn xz_blocks_do_not_depend_on_threads_either() {
        let nars = [nar(1000), nar(FRAME + 1)];
        assert!(packed(&nars, Compression::Xz, 1) == packed(&nars, Compression::Xz, 3));
    }

    #[test]
    fn a_nar_that_is_cut_off_goes_nowhere() {
        let settings = Settings::new(Compression::Zstd, None, Some(2)).unwrap();
        for whole in [nar(1000), nar(3 * FRAME)] {
            let mut taken = 0;
            let read = |compressor: &mut NarCompressor<()>| {
                compressor.nar(&mut whole.as_slice(), None, &mut Skip)?;
                compressor.described(())?;
                compressor.nar(&mut &whole[..whole.len() - 20], None, &mut Skip)?;
                compressor.described(())
            };
            let failure = compress_each(&settings, read, |_, ()| {
                taken += 1;
                Ok(())
            });
            assert!(failure.unwrap_err().message().contains("truncated"));
            assert_eq!(taken, 1);
        }
    }

    #[test]
    fn a_failure_of_the_taker_ends_reading_and_is_the_one_that_is_told() {
        let settings = Settings::new(Compression::None, None, Some(2)).unwrap();
        let whole = nar(3 * FRAME);
        let read = |compressor: &mut NarCompressor<()>| {
            loop {
                compressor.nar(&mut whole.as_slice(), None, &mut Skip)?;
                compressor.described(())?;
            }
        };
        let failure = compress_each(&settings, read, |_, ()| Err(Error::refused("enough")));
        assert_eq!(failure.unwrap_err().message(), "enough");
    }
}
