//! Standard input and output: raw descriptors behind large buffers, never a terminal for binary data.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, IsTerminal, Read, Write};
use std::os::fd::AsFd;

use crate::error::{Context as _, Error, Result};

/// Size of the buffers on standard input and output, in bytes. Large, because a NAR is many small fields.
pub const BUFFER_SIZE: usize = 256 * 1024;

/// Bytes that are written at once: while a pipe takes them, its reader waits.
const PIECE: usize = 128 * 1024;

/// Standard input: buffered, unlocked, and never a terminal.
pub type Input = BufReader<File>;

/// Standard input, which must not be a terminal: `wanted` says what to pipe in.
pub fn stdin(wanted: &str) -> Result<Input> {
    let stdin = io::stdin();
    if stdin.is_terminal() {
        return Err(Error::failed(format!("standard input is a terminal; pipe in {wanted}")));
    }
    let fd = stdin.as_fd().try_clone_to_owned().map_err(Error::from).context(|| "reading standard input")?;
    widen_pipe(&fd);
    Ok(BufReader::with_capacity(BUFFER_SIZE, File::from(fd)))
}

/// Buffered standard output on the raw descriptor; binary data is not for a terminal.
pub fn stdout(binary: Option<&str>) -> Result<Output> {
    let stdout = io::stdout();
    if let Some(what) = binary.filter(|_| stdout.is_terminal()) {
        return Err(Error::failed(format!("standard output is a terminal; redirect {what} to a file or a pipe")));
    }
    let fd = stdout.as_fd().try_clone_to_owned().map_err(Error::from).context(|| "writing standard output")?;
    widen_pipe(&fd);
    Ok(Output { inner: BufWriter::with_capacity(BUFFER_SIZE, Raw(File::from(fd))) })
}

/// A pipe of 1 MiB lets two stages work at the same time; where the system refuses, the default size works too.
fn widen_pipe(fd: &impl AsFd) {
    let _ = rustix::pipe::fcntl_setpipe_size(fd, 1 << 20);
}

/// Standard output. Errors are only sure to be seen by [`Output::finish`], which a stage calls when its stream is whole.
#[derive(Debug)]
pub struct Output {
    inner: BufWriter<Raw>,
}

impl Output {
    /// Writes out what is buffered.
    pub fn finish(mut self) -> Result {
        self.inner.flush()?;
        Ok(())
    }
}

impl Write for Output {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.inner.write(buf)
    }

    fn write_all(&mut self, buf: &[u8]) -> io::Result<()> {
        self.inner.write_all(buf)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// The descriptor itself; names the error when the reader went away.
#[derive(Debug)]
struct Raw(File);

impl Write for Raw {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.0.write(&buf[..buf.len().min(PIECE)]).map_err(|error| match error.kind() {
            io::ErrorKind::BrokenPipe => Error::broken_pipe().into(),
            io::ErrorKind::Interrupted => error,
            _ => Error::failed(format!("writing standard output: {error}")).into(),
        })
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Reads text of at most `limit` bytes to its end; `what` names it in errors.
pub fn read_text(input: &mut impl Read, limit: u64, what: &str) -> Result<String> {
    let mut text = Vec::new();
    input.take(limit + 1).read_to_end(&mut text).map_err(Error::from).context(|| format!("reading {what}"))?;
    if text.len() as u64 > limit {
        return Err(Error::refused(format!("{what} is larger than {limit} bytes")));
    }
    utf8(text).context(|| what.to_owned())
}

/// Text out of bytes.
///
/// # Errors
/// Refuses what is not UTF-8, and says in which line.
pub fn utf8(bytes: Vec<u8>) -> Result<String> {
    String::from_utf8(bytes).map_err(|error| {
        let before = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        let line = before.split(|&byte| byte == b'\n').count();
        Error::refused(format!("line {line}: not UTF-8 text"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_text_is_refused_with_its_line() {
        assert_eq!(utf8(b"a: b\nc: d\xff\n".to_vec()).unwrap_err().message(), "line 2: not UTF-8 text");
        assert_eq!(utf8(b"a\n".to_vec()).unwrap(), "a\n");
    }
}
