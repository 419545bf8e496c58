//! Large buffers that are used again. Large memory that is freed goes back to the system, and when it is allocated anew, each
//! page of 4 KiB costs a page fault.

use std::io::{self, Read};
use std::ops::Deref;
use std::sync::{Arc, Mutex};

use nar_pack::stdio::read_full;
use nar_pack::sync::lock;

/// Buffers of one size. Clones share them.
#[derive(Debug, Clone)]
pub struct BufferPool(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    buffer_size: usize,
    max_idle: usize,
    idle: Mutex<Vec<Box<[u8]>>>,
}

impl BufferPool {
    /// Creates a pool of buffers with a capacity of `buffer_size` bytes, which keeps at most `max_idle` of them while they are
    /// not in use.
    #[must_use]
    pub fn new(buffer_size: usize, max_idle: usize) -> Self {
        Self(Arc::new(Shared { buffer_size, max_idle, idle: Mutex::default() }))
    }

    /// Returns an empty buffer.
    #[must_use]
    pub fn take(&self) -> Buffer {
        let idle = lock(&self.0.idle).pop();
        let bytes = idle.unwrap_or_else(|| vec![0; self.0.buffer_size].into_boxed_slice());
        Buffer { bytes, length: 0, pool: Some(self.clone()) }
    }

    /// Returns the number of bytes of the idle buffers.
    #[must_use]
    pub fn idle_bytes(&self) -> usize {
        lock(&self.0.idle).len() * self.0.buffer_size
    }

    /// Frees the idle buffers.
    pub fn clear(&self) {
        lock(&self.0.idle).clear();
    }
}

/// Bytes in a buffer that returns to its pool when it is dropped.
#[derive(Debug, Default)]
pub struct Buffer {
    bytes: Box<[u8]>,
    length: usize,
    /// None for a buffer of its own.
    pool: Option<BufferPool>,
}

impl Buffer {
    /// Creates an empty buffer that belongs to no pool.
    #[must_use]
    pub fn with_capacity(capacity: usize) -> Self {
        Self { bytes: vec![0; capacity].into_boxed_slice(), length: 0, pool: None }
    }

    /// Appends what `write` writes to the unused part; `write` returns the number of bytes.
    ///
    /// # Errors
    /// Those of `write`.
    pub fn append_with(&mut self, write: impl FnOnce(&mut [u8]) -> io::Result<usize>) -> io::Result<()> {
        let count = write(&mut self.bytes[self.length..])?;
        self.length = self.bytes.len().min(self.length + count);
        Ok(())
    }

    /// Appends bytes of the input until the buffer is full or the input ends.
    ///
    /// # Errors
    /// Those of the input.
    pub fn append_from(&mut self, input: &mut impl Read) -> io::Result<()> {
        self.append_with(|unused| read_full(input, unused))
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let Some(BufferPool(pool)) = self.pool.take() else { return };
        let mut idle = lock(&pool.idle);
        if idle.len() < pool.max_idle {
            idle.push(std::mem::take(&mut self.bytes));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dropped_buffer_is_used_again_and_is_empty() {
        let pool = BufferPool::new(8, 1);
        let mut first = pool.take();
        first.append_from(&mut &b"0123456789"[..]).unwrap();
        assert_eq!(&*first, b"01234567");
        let address = first.as_ptr();
        let second = pool.take();
        drop(first);
        drop(second);
        let third = pool.take();
        assert_eq!((third.as_ptr(), third.len()), (address, 0));
        drop(third);
        assert_eq!(pool.idle_bytes(), 8);
        pool.clear();
        assert_eq!(pool.idle_bytes(), 0);
    }

    #[test]
    fn a_buffer_takes_what_is_written_and_read() {
        let mut buffer = Buffer::with_capacity(6);
        buffer.append_with(|unused| (&b"ab"[..]).read(unused)).unwrap();
        buffer.append_from(&mut &b"cd"[..]).unwrap();
        assert_eq!(&*buffer, b"abcd");
        buffer.append_from(&mut &b"efgh"[..]).unwrap();
        assert_eq!(&*buffer, b"abcdef");
        // A writer that claims more than there is room for.
        buffer.append_with(|_| Ok(10)).unwrap();
        assert_eq!(buffer.len(), 6);
    }
}
