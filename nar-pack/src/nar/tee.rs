//! A reader that copies what is read through it.

use std::io::{self, BufRead};

use crate::error::{Error, Result};

/// A reader that passes every byte read through it to a function, for example to hash a NAR while it is parsed.
#[derive(Debug)]
pub struct CallbackTee<R, F> {
    inner: R,
    sink: F,
    /// An error of the function, to be returned by the next read.
    error: Option<Error>,
}

impl<R: BufRead, F: FnMut(&[u8]) -> Result> CallbackTee<R, F> {
    /// Creates a reader of `inner` that copies what is read to `sink`.
    pub fn new(inner: R, sink: F) -> Self {
        Self { inner, sink, error: None }
    }
}

impl<R: BufRead, F: FnMut(&[u8]) -> Result> io::Read for CallbackTee<R, F> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let available = self.fill_buf()?;
        let n = available.len().min(buf.len());
        buf[..n].copy_from_slice(&available[..n]);
        self.consume(n);
        Ok(n)
    }
}

impl<R: BufRead, F: FnMut(&[u8]) -> Result> BufRead for CallbackTee<R, F> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        match self.error.take() {
            Some(error) => Err(error.into()),
            None => self.inner.fill_buf(),
        }
    }

    fn consume(&mut self, amount: usize) {
        // `consume` cannot fail, so the next read returns the error of the sink.
        if let Ok(available) = self.inner.fill_buf()
            && let Err(error) = (self.sink)(&available[..amount])
        {
            self.error = Some(error);
        }
        self.inner.consume(amount);
    }
}
