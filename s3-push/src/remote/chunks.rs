//! A body that arrives on one thread, read on another.

use std::io::{self, Read};

use bytes::{Buf, Bytes};
use futures_util::{Stream, StreamExt};
use nar_pack::error::{Error, Result};
use tokio::sync::mpsc;

/// The next piece of a body.
#[derive(Debug)]
pub enum Chunk<T = Plain> {
    /// Some bytes.
    Data(T),
    /// The body is complete. A channel that closes without this was cut off.
    End,
}

/// Reads a body from a channel; for threads that may block.
#[derive(Debug)]
pub struct ChunkReader<T = Plain> {
    chunks: mpsc::Receiver<Result<Chunk<T>>>,
    current: Bytes,
    /// Keeps alive what the current bytes belong to.
    held: Option<T>,
    ended: bool,
}

impl<T: AsRef<Bytes>> ChunkReader<T> {
    /// A reader of what is sent into `chunks`.
    #[must_use]
    pub fn new(chunks: mpsc::Receiver<Result<Chunk<T>>>) -> Self {
        Self { chunks, current: Bytes::new(), held: None, ended: false }
    }
}

impl<T: AsRef<Bytes>> Read for ChunkReader<T> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() && !self.ended {
            self.held = None;
            match self.chunks.blocking_recv() {
                Some(Ok(Chunk::Data(data))) => {
                    self.current = data.as_ref().clone();
                    self.held = Some(data);
                }
                Some(Ok(Chunk::End)) => self.ended = true,
                Some(Err(failure)) => return Err(failure.into()),
                None => return Err(Error::refused("the NAR is cut off").into()),
            }
        }
        let n = self.current.len().min(buf.len());
        self.current.copy_to_slice(&mut buf[..n]);
        Ok(n)
    }
}

/// Sends the chunks of a body, and its end or its error; stops when nobody reads any more.
pub async fn forward(to: mpsc::Sender<Result<Chunk>>, body: impl Stream<Item = Result<Bytes>> + Send) {
    let mut body = std::pin::pin!(body);
    loop {
        let chunk = match body.next().await {
            Some(bytes) => bytes.map(|bytes| Chunk::Data(Plain(bytes))),
            None => Ok(Chunk::End),
        };
        let last = !matches!(chunk, Ok(Chunk::Data(_)));
        if to.send(chunk).await.is_err() || last {
            return;
        }
    }
}

/// Plain bytes as a chunk.
#[derive(Debug, Clone)]
pub struct Plain(pub Bytes);

impl AsRef<Bytes> for Plain {
    fn as_ref(&self) -> &Bytes {
        &self.0
    }
}
