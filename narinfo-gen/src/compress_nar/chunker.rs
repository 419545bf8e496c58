//! The reading side: cuts a NAR into chunks of [`FRAME_SIZE`] bytes and submits them for hashing and compression.

use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};

use nar_pack::error::{Context, Result};
use nar_pack::process::start_thread;

use super::{
    Chunk, CompressedChunk, MAX_QUEUED_CHUNKS, NarAnalyzer, NarCompressor, PendingNar, SmallNar, Step, aborted,
};
use crate::compression::{Compression, Encoder, FRAME_SIZE};

/// Cuts one NAR into chunks.
pub struct Chunker<'c, 'a, M> {
    compressor: &'c mut NarCompressor<'a, M>,
    state: State,
    chunk: Vec<u8>,
}

enum State {
    /// No chunk has been submitted; the NAR may be a small one.
    FirstChunk(NarAnalyzer),
    /// The NAR has more than one chunk.
    Large { compressed: SyncSender<CompressedChunk>, to_analyze: SyncSender<Chunk> },
}

impl<'c, 'a, M> Chunker<'c, 'a, M> {
    pub fn new(compressor: &'c mut NarCompressor<'a, M>, analyzer: NarAnalyzer) -> Self {
        Self { compressor, state: State::FirstChunk(analyzer), chunk: Vec::new() }
    }

    pub fn add(&mut self, mut bytes: &[u8]) -> Result {
        while !bytes.is_empty() {
            if self.chunk.len() == FRAME_SIZE {
                self.submit_chunk()?;
            }
            let n = (FRAME_SIZE - self.chunk.len()).min(bytes.len());
            self.chunk.extend_from_slice(&bytes[..n]);
            bytes = &bytes[n..];
        }
        Ok(())
    }

    /// Submits the last chunk.
    pub fn finish(mut self) -> Result {
        if matches!(self.state, State::Large { .. }) {
            return self.submit_chunk();
        }
        let State::FirstChunk(analyzer) = self.state else { return Ok(()) };
        submit_small_nar(self.compressor, analyzer, self.chunk)
    }

    /// Submits a chunk of a NAR that has more than one.
    fn submit_chunk(&mut self) -> Result {
        let chunk = Arc::new(std::mem::take(&mut self.chunk));
        self.chunk.reserve_exact(FRAME_SIZE);
        self.compressor.acquire(chunk.len())?;
        if let State::FirstChunk(analyzer) = &mut self.state {
            let analyzer = std::mem::replace(analyzer, NarAnalyzer::new(None));
            self.state = start_large_nar(self.compressor, analyzer)?;
        }
        if let State::Large { compressed, to_analyze } = &self.state {
            to_analyze.send(Arc::clone(&chunk)).map_err(|_| aborted())?;
            compressed.send(start_compression(self.compressor, chunk)).map_err(|_| aborted())?;
        }
        Ok(())
    }
}

/// Queues a NAR with more than one chunk, and starts the thread that analyzes it.
fn start_large_nar<M>(compressor: &NarCompressor<'_, M>, mut analyzer: NarAnalyzer) -> Result<State> {
    let (to_analyze, chunks) = sync_channel::<Chunk>(1);
    let analysis = start_thread(move || {
        for chunk in chunks {
            analyzer.add(&chunk);
        }
        analyzer
    })?;
    let (compressed, chunks) = sync_channel(compressor.settings.threads() + MAX_QUEUED_CHUNKS);
    compressor.send(Step::Nar(PendingNar::Large { chunks, analysis }))?;
    Ok(State::Large { compressed, to_analyze })
}

/// Starts to compress a chunk, unless the format needs an encoder that processes one chunk after another.
fn start_compression<M>(compressor: &NarCompressor<'_, M>, chunk: Chunk) -> CompressedChunk {
    if compressor.settings.method != Compression::Zstd {
        return CompressedChunk::Uncompressed(chunk);
    }
    let (settings, chunk_size) = (*compressor.settings, chunk.len());
    let (sender, frame) = sync_channel(1);
    compressor.pool.spawn(move || {
        // Sending fails if compression was aborted.
        let _ = sender.send(settings.zstd_frame(&chunk));
    });
    CompressedChunk::ZstdFrame { frame, chunk_size }
}

/// Queues a NAR of one chunk; analyzing and compressing it is one task of the thread pool.
fn submit_small_nar<M>(compressor: &NarCompressor<'_, M>, mut analyzer: NarAnalyzer, chunk: Vec<u8>) -> Result {
    let (settings, chunk_size) = (*compressor.settings, chunk.len());
    compressor.acquire(chunk_size)?;
    let (sender, nar) = sync_channel(1);
    compressor.pool.spawn(move || {
        analyzer.add(&chunk);
        let compressed = Encoder::single_threaded(&settings, Vec::new()).and_then(|mut encoder| {
            encoder.push(&chunk)?;
            encoder.finish()
        });
        let nar = compressed.context(|| "cannot compress the NAR");
        // Sending fails if compression was aborted.
        let _ = sender.send(nar.map(|compressed| SmallNar { compressed, analyzer, chunk_size }));
    });
    compressor.send(Step::Nar(PendingNar::Small(nar)))
}
