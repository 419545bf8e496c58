//! The writing side: takes compressed NARs in the order of the input, spools and hashes their bytes, and passes them on.

use std::io::{self, Write};
use std::sync::mpsc::Receiver;

use nar_pack::error::{Context, Error, Result};
use nar_pack::references::Scanner;

use super::byte_budget::BlockingByteBudget;
use super::{CompressedChunk, CompressedNar, MAX_NAR_IN_MEMORY, NarAnalyzer, PendingNar, Step};
use crate::compression::{Compression, Encoder, Settings};
use crate::hash::Hasher;
use crate::spool::{Spool, SpoolFile, SpoolReader};

/// Calls `done` for each NAR of the queue with its metadata. Ends when the reading side does. A truncated NAR has no
/// metadata and is dropped.
pub fn collect<M>(
    settings: &Settings,
    queue: &Receiver<Step<M>>,
    budget: &BlockingByteBudget,
    mut done: impl FnMut(CompressedNar, M) -> Result,
) -> Result {
    let (mut nar, file) = (None, SpoolFile::default());
    for step in queue {
        match step {
            Step::Nar(pending) => nar = Some(pending.finish(settings, budget, &file)?),
            Step::Metadata(metadata) => {
                if let Some(nar) = nar.take() {
                    done(nar, metadata)?;
                }
            }
        }
    }
    Ok(())
}

impl PendingNar {
    /// Waits for the compressed bytes and spools them, in `file` if there are too many for the memory.
    fn finish(self, settings: &Settings, budget: &BlockingByteBudget, file: &SpoolFile) -> Result<CompressedNar> {
        match self {
            Self::Small(nar) => {
                let nar = nar.recv().map_err(|_| Error::panicked("compression thread"))??;
                let hasher = file_hasher(settings.method).map(|mut hasher| {
                    hasher.update(&nar.compressed);
                    hasher
                });
                budget.release(nar.chunk_size);
                Ok(nar.analyzer.describe(nar.compressed.into(), hasher))
            }
            Self::Large { chunks, analysis } => {
                let spool = HashingSpool::new(settings.method, file.clone());
                let spool = match settings.method {
                    Compression::Zstd => write_frames(&chunks, budget, spool)?,
                    _ => encode(&chunks, settings, budget, spool)?,
                };
                let analyzer = analysis.join().map_err(|_| Error::panicked("hashing thread"))?;
                spool.finish(analyzer)
            }
        }
    }
}

fn write_frames(
    chunks: &Receiver<CompressedChunk>,
    budget: &BlockingByteBudget,
    mut spool: HashingSpool,
) -> Result<HashingSpool> {
    for chunk in chunks {
        if let CompressedChunk::ZstdFrame { frame, chunk_size } = chunk {
            let frame = frame.recv().map_err(|_| Error::panicked("compression thread"))?;
            spool.write_all(&frame.context(|| "cannot compress the NAR")?)?;
            budget.release(chunk_size);
        }
    }
    Ok(spool)
}

fn encode(
    chunks: &Receiver<CompressedChunk>,
    settings: &Settings,
    budget: &BlockingByteBudget,
    spool: HashingSpool,
) -> Result<HashingSpool> {
    let mut encoder = Encoder::new(settings, spool)?;
    for chunk in chunks {
        if let CompressedChunk::Uncompressed(chunk) = chunk {
            encoder.push(&chunk).context(|| "cannot compress the NAR")?;
            budget.release(chunk.len());
        }
    }
    encoder.finish().context(|| "cannot compress the NAR")
}

/// Returns a hasher of the compressed bytes, or none without compression: then they are the NAR, which is hashed already.
fn file_hasher(method: Compression) -> Option<Hasher> {
    (method != Compression::None).then(Hasher::default)
}

impl NarAnalyzer {
    /// Describes the NAR, which is compressed in `body`. `file_hasher` has hashed that.
    fn describe(self, body: SpoolReader, file_hasher: Option<Hasher>) -> CompressedNar {
        let (nar_hash, nar_size) = self.hasher.finish();
        let (file_hash, file_size) = file_hasher.map_or((nar_hash, nar_size), Hasher::finish);
        let references = self.scanner.map(Scanner::finish);
        CompressedNar { body, file_hash, file_size, nar_hash, nar_size, references }
    }
}

/// Spools and hashes the compressed bytes.
struct HashingSpool {
    spool: Spool,
    hasher: Option<Hasher>,
    /// The first error. Some encoders drop the errors of their output while they write the end of the file.
    error: Option<Error>,
}

impl HashingSpool {
    fn new(method: Compression, file: SpoolFile) -> Self {
        Self { spool: Spool::with_file(MAX_NAR_IN_MEMORY, file), hasher: file_hasher(method), error: None }
    }

    fn finish(self, analyzer: NarAnalyzer) -> Result<CompressedNar> {
        self.error.map_or(Ok(()), Err)?;
        Ok(analyzer.describe(self.spool.into_reader()?, self.hasher))
    }
}

impl Write for HashingSpool {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.write_all(buf)?;
        Ok(buf.len())
    }

    fn write_all(&mut self, buf: &[u8]) -> io::Result<()> {
        if let Some(hasher) = &mut self.hasher {
            hasher.update(buf);
        }
        self.spool.write_all(buf).map_err(|error| self.error.get_or_insert(error.into()).clone().into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
