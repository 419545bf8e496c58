//! The writing side: takes compressed NARs in the order of the input, spools and hashes their bytes, and passes them on.

use std::io::{self, Write};
use std::sync::mpsc::Receiver;

use nar_pack::error::{Context, Error, Result};
use nar_pack::references::Scanner;

use super::byte_budget::BlockingByteBudget;
use super::{CompressedChunk, CompressedNar, MAX_NAR_IN_MEMORY, NarAnalyzer, PendingNar, Step};
use crate::compression::{Compression, Encoder, Settings};
use crate::hash::Hasher;
use crate::spool::Spool;

/// Calls `done` for each NAR of the queue with its metadata. Ends when the reading side does. A truncated NAR has no
/// metadata and is dropped.
pub fn collect<M>(
    settings: &Settings,
    queue: &Receiver<Step<M>>,
    budget: &BlockingByteBudget,
    mut done: impl FnMut(CompressedNar, M) -> Result,
) -> Result {
    let mut nar = None;
    for step in queue {
        match step {
            Step::Nar(pending) => nar = Some(pending.finish(settings, budget)?),
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
    /// Waits for the compressed bytes and spools them.
    fn finish(self, settings: &Settings, budget: &BlockingByteBudget) -> Result<CompressedNar> {
        match self {
            Self::Small(nar) => {
                let nar = nar.recv().map_err(|_| compression_panicked())??;
                let mut file = HashingSpool::new(settings.method);
                file.write_all(&nar.compressed)?;
                budget.release(nar.chunk_size);
                file.finish(nar.analyzer)
            }
            Self::Large { chunks, analysis } => {
                let file = match settings.method {
                    Compression::Zstd => write_frames(&chunks, budget)?,
                    _ => encode(&chunks, settings, budget)?,
                };
                let analyzer = analysis.join().map_err(|_| Error::failed("internal error: hashing thread panicked"))?;
                file.finish(analyzer)
            }
        }
    }
}

fn write_frames(chunks: &Receiver<CompressedChunk>, budget: &BlockingByteBudget) -> Result<HashingSpool> {
    let mut file = HashingSpool::new(Compression::Zstd);
    for chunk in chunks {
        if let CompressedChunk::ZstdFrame { frame, chunk_size } = chunk {
            let frame = frame.recv().map_err(|_| compression_panicked())?;
            file.write_all(&frame.context(|| "cannot compress the NAR")?)?;
            budget.release(chunk_size);
        }
    }
    Ok(file)
}

fn encode(
    chunks: &Receiver<CompressedChunk>,
    settings: &Settings,
    budget: &BlockingByteBudget,
) -> Result<HashingSpool> {
    let mut encoder = Encoder::new(settings, HashingSpool::new(settings.method))?;
    for chunk in chunks {
        if let CompressedChunk::Uncompressed(chunk) = chunk {
            encoder.push(&chunk).context(|| "cannot compress the NAR")?;
            budget.release(chunk.len());
        }
    }
    encoder.finish().context(|| "cannot compress the NAR")
}

fn compression_panicked() -> Error {
    Error::failed("internal error: compression thread panicked")
}

/// Spools and hashes the compressed bytes.
struct HashingSpool {
    spool: Spool,
    /// None without compression: then the file is the NAR, which is hashed already.
    hasher: Option<Hasher>,
    /// The first error. Some encoders drop the errors of their output while they write the end of the file.
    error: Option<Error>,
}

impl HashingSpool {
    fn new(method: Compression) -> Self {
        let hasher = (method != Compression::None).then(Hasher::default);
        Self { spool: Spool::new(MAX_NAR_IN_MEMORY), hasher, error: None }
    }

    fn finish(self, analyzer: NarAnalyzer) -> Result<CompressedNar> {
        self.error.map_or(Ok(()), Err)?;
        let (nar_hash, nar_size) = analyzer.hasher.finish();
        let (file_hash, file_size) = self.hasher.map_or((nar_hash, nar_size), Hasher::finish);
        let references = analyzer.scanner.map(Scanner::finish);
        Ok(CompressedNar { body: self.spool.into_reader()?, file_hash, file_size, nar_hash, nar_size, references })
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
