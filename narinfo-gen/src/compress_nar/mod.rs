//! Compresses a stream of NARs in one pass. The calling thread reads, a thread pool compresses, and a collector thread
//! spools and passes on the results in the order of the input. A NAR of one chunk is hashed, scanned and compressed by one
//! task of the pool, next to other small NARs. The chunks of a larger NAR are compressed in parallel, and a thread of its
//! own hashes it. The number of bytes in flight is limited.

mod byte_budget;
mod chunker;
mod collector;

use std::io::{self, BufRead};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{self, JoinHandle};

use nar_pack::error::{Error, Result};
use nar_pack::nar::{CallbackTee, Visitor, parse};
use nar_pack::process::thread_error;
use nar_pack::references::Scanner;
use nar_pack::store_path::StorePath;
use rayon::ThreadPool;

use crate::compression::{FRAME_SIZE, Settings};
use crate::hash::{Hasher, Sha256};
use crate::spool::SpoolReader;
use byte_budget::BlockingByteBudget;
use chunker::Chunker;

/// Maximum bytes of a compressed NAR in memory. A larger one is spooled to a temporary file.
const MAX_NAR_IN_MEMORY: usize = 16 << 20;
/// Maximum number of NARs in flight. It limits small NARs; the byte budget limits large ones.
const MAX_QUEUED_NARS: usize = 256;
/// Maximum number of chunks in flight besides those that are being compressed, one per thread.
const MAX_QUEUED_CHUNKS: usize = 3;

/// A compressed NAR. It is spooled until it can be sent, because its key is its own hash.
pub struct CompressedNar {
    /// The compressed bytes.
    pub body: SpoolReader,
    /// Hash of the compressed bytes.
    pub file_hash: Sha256,
    /// Number of compressed bytes.
    pub file_size: u64,
    /// Hash of the NAR.
    pub nar_hash: Sha256,
    /// Size of the NAR in bytes.
    pub nar_size: u64,
    /// The candidates that the NAR refers to, if it was scanned.
    pub references: Option<Vec<StorePath>>,
}

impl CompressedNar {
    /// Returns the key of the NAR in a cache.
    #[must_use]
    pub fn key(&self, settings: &Settings) -> String {
        settings.method.key_of_nar(self.file_hash)
    }
}

/// Compresses NARs. `read` reads each with [`NarCompressor::read_nar`], then attaches metadata with
/// [`NarCompressor::finish_nar`]. `done` is called on another thread for each NAR with its metadata, in the same order.
/// The compressed bytes do not depend on the number of threads.
///
/// # Errors
/// Returns the error of `done`, which also aborts `read`, else the error of `read`.
pub fn compress_each<M: Send>(
    settings: &Settings,
    read: impl FnOnce(&mut NarCompressor<M>) -> Result,
    done: impl FnMut(CompressedNar, M) -> Result + Send,
) -> Result {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(settings.threads()).build();
    let pool = pool.map_err(|error| Error::failed(format!("cannot start compression threads: {error}")))?;
    let budget = Arc::new(BlockingByteBudget::new((settings.threads() + MAX_QUEUED_CHUNKS) * FRAME_SIZE));
    let (steps, queue) = sync_channel(MAX_QUEUED_NARS);
    thread::scope(|scope| {
        let collector = {
            let budget = Arc::clone(&budget);
            let collect = move || {
                let collected = collector::collect(settings, &queue, &budget, done);
                // Unblocks the reading side.
                budget.close();
                collected
            };
            thread::Builder::new().spawn_scoped(scope, collect).map_err(thread_error)?
        };
        let mut compressor = NarCompressor { settings, pool, budget, steps };
        let read = read(&mut compressor);
        // Ends the collector.
        drop(compressor);
        let panicked = |_| Err(Error::panicked("thread that collects compressed NARs"));
        collector.join().unwrap_or_else(panicked).and(read)
    })
}

/// The reading side of [`compress_each`].
pub struct NarCompressor<'a, M> {
    settings: &'a Settings,
    pool: ThreadPool,
    budget: Arc<BlockingByteBudget>,
    steps: SyncSender<Step<M>>,
}

impl<M> NarCompressor<'_, M> {
    /// Reads one NAR from `input`, and nothing after it. It is hashed, and searched for references if there is a `scanner`.
    /// Its tree is passed to `visitor`.
    ///
    /// # Errors
    /// Refuses a malformed or truncated NAR.
    pub fn read_nar(
        &mut self,
        input: &mut impl BufRead,
        scanner: Option<Scanner>,
        visitor: &mut impl Visitor,
    ) -> Result {
        let mut chunker = Chunker::new(self, NarAnalyzer::new(scanner));
        parse(&mut CallbackTee::new(&mut *input, |bytes| chunker.add(bytes)), visitor)?;
        chunker.finish()
    }

    /// Completes the NAR that was read last, and attaches metadata to it. Without this call, the NAR is dropped.
    ///
    /// # Errors
    /// Fails if compression was aborted.
    pub fn finish_nar(&mut self, metadata: M) -> Result {
        self.send(Step::Metadata(metadata))
    }

    fn send(&self, step: Step<M>) -> Result {
        self.steps.send(step).map_err(|_| aborted())
    }

    fn acquire(&self, bytes: usize) -> Result {
        self.budget.acquire(bytes).map_err(|_| aborted())
    }
}

/// The error of the reading side after the collector failed. It is not reported, because that of the collector is.
fn aborted() -> Error {
    Error::failed("compression was aborted")
}

/// What the reading side sends to the collector.
enum Step<M> {
    Nar(PendingNar),
    /// Completes the NAR before it.
    Metadata(M),
}

/// A NAR that is being compressed.
enum PendingNar {
    /// A NAR of one chunk.
    Small(Receiver<Result<SmallNar>>),
    Large {
        chunks: Receiver<CompressedChunk>,
        analysis: JoinHandle<NarAnalyzer>,
    },
}

/// A compressed NAR of one chunk.
struct SmallNar {
    compressed: Vec<u8>,
    analyzer: NarAnalyzer,
    /// Bytes to release from the budget.
    chunk_size: usize,
}

/// Up to [`FRAME_SIZE`] bytes of a NAR.
type Chunk = Arc<Vec<u8>>;

/// A chunk of a large NAR on its way to the collector.
enum CompressedChunk {
    /// Compressed by the thread pool.
    ZstdFrame {
        frame: Receiver<io::Result<Vec<u8>>>,
        /// Bytes to release from the budget.
        chunk_size: usize,
    },
    /// To be compressed by the collector, because the format does not allow independent chunks.
    Uncompressed(Chunk),
}

/// Computes the hash of a NAR and, with a scanner, its references.
struct NarAnalyzer {
    hasher: Hasher,
    scanner: Option<Scanner>,
}

impl NarAnalyzer {
    fn new(scanner: Option<Scanner>) -> Self {
        Self { hasher: Hasher::default(), scanner }
    }

    fn add(&mut self, bytes: &[u8]) {
        self.hasher.update(bytes);
        if let Some(scanner) = &mut self.scanner {
            scanner.feed(bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use nar_pack::nar::Skip;

    use super::*;
    use crate::compression::{Compression, decoder};

    /// Returns the NAR of a file of `size` bytes.
    fn nar(size: usize) -> Vec<u8> {
        let dir = tempfile::tempdir().unwrap();
        let contents: Vec<u8> = (0..size).map(|index| u8::try_from(index / 7 % 251).unwrap()).collect();
        std::fs::write(dir.path().join("file"), contents).unwrap();
        let mut nar = Vec::new();
        nar_pack::nar::dump(&dir.path().join("file"), &mut nar, &mut |_| {}).unwrap();
        nar
    }

    /// Compresses the NARs; returns the number, the compressed bytes and the NAR hash of each.
    fn compress(nars: &[Vec<u8>], method: Compression, threads: u16) -> Vec<(usize, Vec<u8>, Sha256)> {
        let settings = Settings::new(method, None, Some(threads)).unwrap();
        let mut all = Vec::new();
        let read = |compressor: &mut NarCompressor<usize>| {
            for (number, nar) in nars.iter().enumerate() {
                compressor.read_nar(&mut nar.as_slice(), None, &mut Skip)?;
                compressor.finish_nar(number)?;
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
    fn nars_are_in_order_and_do_not_depend_on_the_number_of_threads() {
        let sizes =
            [0, 10, FRAME_SIZE - 112, FRAME_SIZE - 200, FRAME_SIZE, 5 * FRAME_SIZE + 3, 1, 70_000, 2 * FRAME_SIZE, 12];
        let nars: Vec<Vec<u8>> = sizes.into_iter().map(nar).collect();
        for method in [Compression::Zstd, Compression::Gzip, Compression::None] {
            let one = compress(&nars, method, 1);
            for (number, (nar, (index, body, hash))) in nars.iter().zip(&one).enumerate() {
                assert_eq!((number, Sha256::of(nar)), (*index, *hash));
                let mut decompressed = Vec::new();
                decoder(method, body.as_slice()).unwrap().read_to_end(&mut decompressed).unwrap();
                assert!(decompressed == *nar, "{method}");
            }
            assert_eq!(one.len(), nars.len());
            assert!([2, 5].into_iter().all(|threads| compress(&nars, method, threads) == one), "{method}");
        }
    }

    #[test]
    fn xz_blocks_do_not_depend_on_the_number_of_threads() {
        let nars = [nar(1000), nar(FRAME_SIZE + 1)];
        assert!(compress(&nars, Compression::Xz, 1) == compress(&nars, Compression::Xz, 3));
    }

    #[test]
    fn a_truncated_nar_is_dropped() {
        let settings = Settings::new(Compression::Zstd, None, Some(2)).unwrap();
        for whole in [nar(1000), nar(3 * FRAME_SIZE)] {
            let mut count = 0;
            let read = |compressor: &mut NarCompressor<()>| {
                compressor.read_nar(&mut whole.as_slice(), None, &mut Skip)?;
                compressor.finish_nar(())?;
                compressor.read_nar(&mut &whole[..whole.len() - 20], None, &mut Skip)?;
                compressor.finish_nar(())
            };
            let result = compress_each(&settings, read, |_, ()| {
                count += 1;
                Ok(())
            });
            assert!(result.unwrap_err().message().contains("truncated"));
            assert_eq!(count, 1);
        }
    }

    #[test]
    fn an_error_of_the_collector_aborts_reading_and_is_returned() {
        let settings = Settings::new(Compression::None, None, Some(2)).unwrap();
        let whole = nar(3 * FRAME_SIZE);
        let read = |compressor: &mut NarCompressor<()>| {
            loop {
                compressor.read_nar(&mut whole.as_slice(), None, &mut Skip)?;
                compressor.finish_nar(())?;
            }
        };
        let result = compress_each(&settings, read, |_, ()| Err(Error::refused("enough")));
        assert_eq!(result.unwrap_err().message(), "enough");
    }
}
