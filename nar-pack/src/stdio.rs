//! Standard input and output of every tool: raw descriptors behind large buffers, because a NAR consists of many small
//! fields. A terminal is refused where binary data is expected, and a closed reader becomes an error of its own
//! ([`Error::is_broken_pipe`]). Messages on standard error belong to [`crate::process`].

use std::fs::{File, Metadata};
use std::io::{self, BufRead, BufReader, BufWriter, IsTerminal, Read, Seek as _, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::FileTypeExt as _;
use std::path::Path;

use rustix::io::Errno;
use rustix::pipe::SpliceFlags;

use crate::drawn_line::write_above;
use crate::error::{Context as _, Error, Result};

/// Size of the buffers on standard input and output, in bytes. Large, because a NAR consists of many small fields.
pub const BUFFER_SIZE: usize = 256 * 1024;

/// Largest `write` call, in bytes: the reader of a pipe cannot run while the kernel copies data into it.
const MAX_WRITE_SIZE: usize = 128 * 1024;

/// Requested size of the pipes on standard input and output, in bytes: large enough for both sides to run at once.
const PIPE_SIZE: usize = 1 << 20;

/// Standard input, buffered, unlocked and never a terminal; or a file that the user gives instead.
pub type Input = BufReader<InputFile>;

/// Opens standard input, which must not be a terminal. `expected` names the data in the error.
///
/// # Errors
/// Returns a usage error if standard input is a terminal. Fails if its descriptor cannot be duplicated.
pub fn stdin(expected: &str) -> Result<Input> {
    let stdin = io::stdin();
    if stdin.is_terminal() {
        return Err(Error::usage(format!("standard input is a terminal: expected {expected}"))
            .with_hint("redirect standard input from a file or a pipe"));
    }
    let fd = stdin.as_fd().try_clone_to_owned().map_err(Error::from).context(|| "cannot read standard input")?;
    enlarge_pipe(&fd);
    Ok(buffered(File::from(fd), "standard input".to_owned()))
}

/// Opens a file to be read as standard input is.
///
/// # Errors
/// Fails if the file cannot be opened.
pub fn open(path: &Path) -> Result<Input> {
    let name = path.display().to_string();
    match File::open(path) {
        Ok(file) => Ok(buffered(file, name)),
        Err(error) => Err(Error::failed(format!("cannot read {name}: {error}"))),
    }
}

fn buffered(file: File, name: String) -> Input {
    BufReader::with_capacity(BUFFER_SIZE, InputFile { file, name })
}

/// The unbuffered descriptor of an input; its errors name the input.
#[derive(Debug)]
pub struct InputFile {
    file: File,
    name: String,
}

impl InputFile {
    /// Returns the descriptor, whose errors do not name the input.
    #[must_use]
    pub fn into_file(self) -> File {
        self.file
    }

    /// Returns the number of bytes until the end of a regular file; none for a pipe or a device. The file may change.
    #[must_use]
    pub fn remaining_size(&self) -> Option<u64> {
        let metadata = self.file.metadata().ok().filter(Metadata::is_file)?;
        let position = (&self.file).stream_position().ok()?;
        Some(metadata.len().saturating_sub(position))
    }
}

impl Read for InputFile {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.file.read(buf).map_err(|error| match error.kind() {
            io::ErrorKind::Interrupted => error,
            _ => Error::failed(format!("cannot read {}: {error}", self.name)).into(),
        })
    }
}

/// Opens standard output. `binary` names the data if it is binary; then standard output must not be a terminal.
///
/// # Errors
/// Returns a usage error if standard output is a terminal and the data is binary. Fails if its descriptor cannot be
/// duplicated.
pub fn stdout(binary: Option<&str>) -> Result<Output> {
    let stdout = io::stdout();
    if let Some(data) = binary.filter(|_| stdout.is_terminal()) {
        return Err(Error::usage(format!("standard output is a terminal: cannot write {data} to it"))
            .with_hint("redirect standard output to a file or a pipe"));
    }
    let fd = stdout.as_fd().try_clone_to_owned().map_err(Error::from).context(|| "cannot write to standard output")?;
    enlarge_pipe(&fd);
    let is_terminal = stdout.is_terminal();
    let file = StdoutFile { file: File::from(fd), is_terminal };
    Ok(Output { inner: BufWriter::with_capacity(BUFFER_SIZE, file), is_terminal })
}

/// Enlarges a pipe to [`PIPE_SIZE`]. Ignores errors: the default size works too.
fn enlarge_pipe(fd: &impl AsFd) {
    let _ = rustix::pipe::fcntl_setpipe_size(fd, PIPE_SIZE);
}

/// Buffered standard output. An error may not show before [`Output::finish`], which must be called at the end of the
/// data. On a terminal, each line is written at once: a progress bar may be drawn below it.
#[derive(Debug)]
pub struct Output {
    inner: BufWriter<StdoutFile>,
    is_terminal: bool,
}

impl Output {
    /// Writes the buffered data.
    ///
    /// # Errors
    /// Fails if the data cannot be written. Returns the error of a broken pipe if the reader has closed standard
    /// output.
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
        self.inner.write_all(buf)?;
        if self.is_terminal && buf.ends_with(b"\n") { self.inner.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// The unbuffered descriptor; turns its errors into errors of the tool. On a terminal, writes above a progress bar.
#[derive(Debug)]
struct StdoutFile {
    file: File,
    is_terminal: bool,
}

impl Write for StdoutFile {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let buf = &buf[..buf.len().min(MAX_WRITE_SIZE)];
        let written = if self.is_terminal { write_above(|| self.file.write(buf)) } else { self.file.write(buf) };
        written.map_err(|error| match error.kind() {
            io::ErrorKind::BrokenPipe => Error::broken_pipe().into(),
            io::ErrorKind::Interrupted => error,
            _ => Error::failed(format!("cannot write to standard output: {error}")).into(),
        })
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Moves at most `size` bytes from the input to the output without copying them, if the input is a pipe and not all of them
/// are buffered. Returns how many were moved, which may be fewer or none; the rest is still to be read.
///
/// Files are read, because a file that is overwritten would also change what is in a pipe, and sockets, because the reader of
/// a pipe cannot be killed while the kernel waits for one.
///
/// # Errors
/// Those of the output.
pub fn splice(input: &mut Input, output: &mut Output, size: u64) -> Result<u64> {
    let buffered = input.buffer().len();
    let is_pipe = || input.get_ref().file.metadata().is_ok_and(|metadata| metadata.file_type().is_fifo());
    if size <= buffered as u64 || !is_pipe() {
        return Ok(0);
    }
    output.write_all(input.buffer())?;
    input.consume(buffered);
    output.flush()?;
    let mut moved = buffered as u64;
    let (from, to) = (&input.get_ref().file, &output.inner.get_ref().file);
    while moved < size {
        let length = usize::try_from(size - moved).unwrap_or(usize::MAX).min(PIPE_SIZE);
        match rustix::pipe::splice(from, None, to, None, length, SpliceFlags::MOVE) {
            Ok(0) => break,
            Ok(count) => moved += count as u64,
            Err(Errno::INTR) => {}
            Err(Errno::PIPE) => return Err(Error::broken_pipe()),
            // A file that is opened for appending, or an error of the output, which comes again when the bytes are written.
            Err(_) => break,
        }
    }
    Ok(moved)
}

/// Writes the input to the output, to its end, directly from the buffer of the input. `std::io::copy` copies the bytes to a
/// small buffer of its own in between.
///
/// # Errors
/// Those of the input and of the output.
pub fn copy_buffered(input: &mut impl BufRead, output: &mut impl Write) -> Result {
    loop {
        let length = match input.fill_buf() {
            Ok([]) => return Ok(()),
            Ok(bytes) => {
                output.write_all(bytes)?;
                bytes.len()
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error.into()),
        };
        input.consume(length);
    }
}

/// Reads until `buf` is full or the input ends. Returns the number of bytes.
///
/// # Errors
/// Those of the input.
pub fn read_full(input: &mut impl Read, buf: &mut [u8]) -> io::Result<usize> {
    let mut length = 0;
    while length < buf.len() {
        match input.read(&mut buf[length..]) {
            Ok(0) => break,
            Ok(count) => length += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(length)
}

/// Reads to the end of the input.
///
/// # Errors
/// Refuses more than `limit` bytes.
pub fn read_limited(input: &mut impl Read, limit: u64) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    input.take(limit + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        return Err(Error::refused(format!("larger than {limit} bytes")));
    }
    Ok(bytes)
}

/// Reads UTF-8 text to the end of the input. The caller adds the name of the input to errors.
///
/// # Errors
/// Refuses more than `limit` bytes and invalid UTF-8.
pub fn read_text(input: &mut impl Read, limit: u64) -> Result<String> {
    utf8(read_limited(input, limit)?)
}

/// Converts bytes to text.
///
/// # Errors
/// Refuses invalid UTF-8; the error names the line.
pub fn utf8(bytes: Vec<u8>) -> Result<String> {
    String::from_utf8(bytes).map_err(|error| {
        let valid = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        let line = valid.split(|&byte| byte == b'\n').count();
        Error::refused(format!("line {line}: not valid UTF-8"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn invalid_utf8_is_refused_with_its_line_number() {
        assert_eq!(utf8(b"a: b\nc: d\xff\n".to_vec()).unwrap_err().message(), "line 2: not valid UTF-8");
        assert_eq!(utf8(b"a\n".to_vec()).unwrap(), "a\n");
    }
}
