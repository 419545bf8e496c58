//! A body that arrives in chunks on an async task and is read by a thread that may block.

use std::io::{self, Read};

use bytes::{Buf, Bytes};
use nar_pack::error::{Error, Result};
use tokio::sync::mpsc;

/// The next piece of a body.
#[derive(Debug)]
pub enum Chunk<T = Plain> {
    /// Some bytes.
    Data(T),
    /// The end: the body is complete. A channel that closes without it carried a truncated body.
    End,
}

/// Plain bytes as a chunk.
#[derive(Debug, Clone)]
pub struct Plain(pub Bytes);

impl AsRef<Bytes> for Plain {
    fn as_ref(&self) -> &Bytes {
        &self.0
    }
}

/// Reads a body from a channel; for threads that may block.
#[derive(Debug)]
pub struct ChunkReader<T = Plain> {
    chunks: mpsc::Receiver<Result<Chunk<T>>>,
    unread: Bytes,
    /// The chunk that `unread` belongs to, kept for what it holds besides the bytes, such as a memory permit.
    current: Option<T>,
    ended: bool,
}

impl<T: AsRef<Bytes>> ChunkReader<T> {
    /// Creates a reader of the chunks that are sent into the channel.
    #[must_use]
    pub fn new(chunks: mpsc::Receiver<Result<Chunk<T>>>) -> Self {
        Self { chunks, unread: Bytes::new(), current: None, ended: false }
    }

    /// Waits until there are unread bytes, or the body has ended.
    fn fill(&mut self) -> io::Result<()> {
        while self.unread.is_empty() && !self.ended {
            // Before the permit: the memory of the chunk must be free when it is returned.
            self.unread = Bytes::new();
            self.current = None;
            match self.chunks.blocking_recv() {
                Some(Ok(Chunk::Data(data))) => {
                    self.unread = data.as_ref().clone();
                    self.current = Some(data);
                }
                Some(Ok(Chunk::End)) => self.ended = true,
                Some(Err(error)) => return Err(error.into()),
                None => return Err(Error::refused("the NAR is truncated").into()),
            }
        }
        Ok(())
    }
}

impl ChunkReader {
    /// Returns the next bytes without copying them; none at the end of the body.
    ///
    /// # Errors
    /// As reading does.
    pub fn next_bytes(&mut self) -> io::Result<Bytes> {
        self.fill()?;
        Ok(std::mem::take(&mut self.unread))
    }
}

impl<T: AsRef<Bytes>> Read for ChunkReader<T> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.fill()?;
        let n = self.unread.len().min(buf.len());
        self.unread.copy_to_slice(&mut buf[..n]);
        Ok(n)
    }
}
