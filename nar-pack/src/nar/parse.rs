//! A NAR to calls on a [`Visitor`].

use std::io::{self, BufRead};

use super::{MAX_DEPTH, MAX_NAME, MAX_TARGET, padding};
use crate::error::{Error, Result};

/// What a NAR is read into. Calls come in the archive's order; `enter` and `leave` enclose an entry of a directory.
///
/// Names have been checked: not empty, `.` or `..`, no slash, no NUL byte, in strictly ascending order.
pub trait Visitor {
    /// The node at hand is a directory.
    fn directory(&mut self) -> Result;
    /// All entries of the directory have been seen.
    fn directory_end(&mut self) -> Result;
    /// What follows until `leave` is the entry `name` of the directory at hand.
    fn enter(&mut self, name: &[u8]) -> Result;
    /// The entry ends.
    fn leave(&mut self) -> Result;
    /// The node at hand is a file of `size` bytes, which begin `offset` bytes into the NAR.
    fn file(&mut self, executable: bool, size: u64, offset: u64) -> Result;
    /// The next bytes of the file.
    fn data(&mut self, bytes: &[u8]) -> Result;
    /// The file is complete.
    fn file_end(&mut self) -> Result;
    /// The node at hand is a symbolic link.
    fn symlink(&mut self, target: &[u8]) -> Result;
}

/// A visitor that looks at nothing: parsing checks the NAR and finds its end.
#[derive(Debug, Clone, Copy, Default)]
pub struct Skip;

impl Visitor for Skip {
    fn directory(&mut self) -> Result {
        Ok(())
    }
    fn directory_end(&mut self) -> Result {
        Ok(())
    }
    fn enter(&mut self, _: &[u8]) -> Result {
        Ok(())
    }
    fn leave(&mut self) -> Result {
        Ok(())
    }
    fn file(&mut self, _: bool, _: u64, _: u64) -> Result {
        Ok(())
    }
    fn data(&mut self, _: &[u8]) -> Result {
        Ok(())
    }
    fn file_end(&mut self) -> Result {
        Ok(())
    }
    fn symlink(&mut self, _: &[u8]) -> Result {
        Ok(())
    }
}

/// Passes every byte that is consumed through it to a function, so that a NAR can be hashed while it is parsed.
#[derive(Debug)]
pub struct Tee<R, F> {
    inner: R,
    sink: F,
    failed: Option<Error>,
}

impl<R: BufRead, F: FnMut(&[u8]) -> Result> Tee<R, F> {
    /// A reader of `inner` that gives `sink` what is consumed.
    pub fn new(inner: R, sink: F) -> Self {
        Self { inner, sink, failed: None }
    }
}

impl<R: BufRead, F: FnMut(&[u8]) -> Result> io::Read for Tee<R, F> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let available = self.fill_buf()?;
        let n = available.len().min(buf.len());
        buf[..n].copy_from_slice(&available[..n]);
        self.consume(n);
        Ok(n)
    }
}

impl<R: BufRead, F: FnMut(&[u8]) -> Result> BufRead for Tee<R, F> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        match self.failed.take() {
            Some(failure) => Err(failure.into()),
            None => self.inner.fill_buf(),
        }
    }

    fn consume(&mut self, amount: usize) {
        // `consume` cannot fail; what the sink says is told at the next read.
        if let Ok(available) = self.inner.fill_buf()
            && let Err(failure) = (self.sink)(&available[..amount])
        {
            self.failed = Some(failure);
        }
        self.inner.consume(amount);
    }
}

/// Reads one NAR and nothing after it; returns its size in bytes.
///
/// # Errors
/// Refuses whatever Nix's reader refuses, and anything that is not canonical: `malformed NAR at byte N: …`. What the
/// visitor returns is passed on.
pub fn parse(input: &mut impl BufRead, visitor: &mut impl Visitor) -> Result<u64> {
    let mut parser = Parser { input, visitor, offset: 0 };
    if let Err(failure) = parser.expect(super::MAGIC) {
        let not_one = failure.is_refusal() && parser.offset <= super::FIRST_BYTES.len() as u64;
        return Err(if not_one { Error::refused("not a NAR: it does not begin with nix-archive-1") } else { failure });
    }
    parser.node(0)?;
    Ok(parser.offset)
}

struct Parser<'a, R, V> {
    input: &'a mut R,
    visitor: &'a mut V,
    /// Bytes read so far.
    offset: u64,
}

/// Tags are short; anything longer is no tag.
const MAX_TAG: usize = 16;

impl<R: BufRead, V: Visitor> Parser<'_, R, V> {
    fn malformed(&self, why: impl std::fmt::Display) -> Error {
        Error::refused(format!("malformed NAR at byte {}: {why}", self.offset))
    }

    /// An error of the stream itself; its end in the middle is a truncated NAR.
    fn stream_error(&self, error: io::Error) -> Error {
        if error.kind() == io::ErrorKind::UnexpectedEof && error.get_ref().is_none_or(|e| !e.is::<Error>()) {
            Error::refused(format!("truncated NAR: it ends after {} bytes", self.offset))
        } else {
            error.into()
        }
    }

    fn exact(&mut self, buf: &mut [u8]) -> Result {
        let mut filled = 0;
        while filled < buf.len() {
            match self.input.read(&mut buf[filled..]) {
                Ok(0) => return Err(self.stream_error(io::ErrorKind::UnexpectedEof.into())),
                Ok(n) => {
                    filled += n;
                    self.offset += n as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.stream_error(error)),
            }
        }
        Ok(())
    }

    fn number(&mut self) -> Result<u64> {
        let mut bytes = [0; 8];
        self.exact(&mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    fn zeros(&mut self, count: usize) -> Result {
        let mut bytes = [0; 8];
        self.exact(&mut bytes[..count])?;
        if bytes == [0; 8] { Ok(()) } else { Err(self.malformed("padding that is not zero")) }
    }

    /// A string of at most `limit` bytes into `buf`, which `what` names in errors.
    fn string<'b>(&mut self, buf: &'b mut [u8], what: &str) -> Result<&'b [u8]> {
        let length = self.number()?;
        let Some(buf) = usize::try_from(length).ok().and_then(|n| buf.get_mut(..n)) else {
            return Err(self.malformed(format_args!("a {what} of {length} bytes")));
        };
        self.exact(buf)?;
        self.zeros(padding(length))?;
        Ok(buf)
    }

    fn expect(&mut self, tag: &[u8]) -> Result {
        let mut buf = [0; MAX_TAG];
        let found = self.string(&mut buf, "tag")?;
        if found == tag { Ok(()) } else { Err(self.unexpected(found, &tag.escape_ascii().to_string())) }
    }

    fn unexpected(&self, found: &[u8], wanted: &str) -> Error {
        self.malformed(format_args!("expected {wanted}, found \"{}\"", found.escape_ascii()))
    }

    /// `depth` counts the directories around the node. As in Nix, the innermost of 64 has no entries, not even files.
    fn node(&mut self, depth: usize) -> Result {
        if depth == MAX_DEPTH {
            return Err(self.malformed(format_args!("nested deeper than {MAX_DEPTH} levels of directories")));
        }
        self.expect(b"(")?;
        self.expect(b"type")?;
        let mut buf = [0; MAX_TAG];
        match self.string(&mut buf, "node type")? {
            b"regular" => self.regular(),
            b"symlink" => self.symlink(),
            b"directory" => self.directory(depth + 1),
            other => Err(self.unexpected(other, "regular, directory or symlink")),
        }
    }

    fn regular(&mut self) -> Result {
        let mut buf = [0; MAX_TAG];
        let executable = match self.string(&mut buf, "tag")? {
            b"contents" => false,
            b"executable" => {
                self.expect(b"")?;
                self.expect(b"contents")?;
                true
            }
            other => return Err(self.unexpected(other, "executable or contents")),
        };
        let size = self.number()?;
        self.visitor.file(executable, size, self.offset)?;
        self.contents(size)?;
        self.visitor.file_end()?;
        self.zeros(padding(size))?;
        self.expect(b")")
    }

    fn contents(&mut self, size: u64) -> Result {
        let mut left = size;
        while left > 0 {
            let available = match self.input.fill_buf() {
                Ok([]) => return Err(self.stream_error(io::ErrorKind::UnexpectedEof.into())),
                Ok(available) => available,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(self.stream_error(error)),
            };
            let n = available.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            self.visitor.data(&available[..n])?;
            self.input.consume(n);
            self.offset += n as u64;
            left -= n as u64;
        }
        Ok(())
    }

    fn symlink(&mut self) -> Result {
        self.expect(b"target")?;
        let mut buf = [0; MAX_TARGET];
        let target = self.string(&mut buf, "link target")?;
        if target.is_empty() || target.contains(&0) {
            return Err(self.malformed("a link target that is empty or contains a NUL byte"));
        }
        self.visitor.symlink(target)?;
        self.expect(b")")
    }

    fn directory(&mut self, depth: usize) -> Result {
        self.visitor.directory()?;
        let mut previous: Vec<u8> = Vec::new();
        loop {
            let mut buf = [0; MAX_TAG];
            match self.string(&mut buf, "tag")? {
                b")" => return self.visitor.directory_end(),
                b"entry" => {}
                other => return Err(self.unexpected(other, "entry or )")),
            }
            self.expect(b"(")?;
            self.expect(b"name")?;
            self.name(&mut previous)?;
            self.visitor.enter(&previous)?;
            self.expect(b"node")?;
            self.node(depth)?;
            self.visitor.leave()?;
            self.expect(b")")?;
        }
    }

    /// Reads an entry's name in place of the previous one.
    fn name(&mut self, previous: &mut Vec<u8>) -> Result {
        let mut buf = [0; MAX_NAME];
        let name = self.string(&mut buf, "file name")?;
        let shown = name.escape_ascii();
        if matches!(name, b"" | b"." | b"..") || name.contains(&b'/') || name.contains(&0) {
            return Err(self.malformed(format_args!("invalid file name \"{shown}\"")));
        }
        if name <= previous.as_slice() {
            let why = if name == previous { "twice" } else { "out of order" };
            return Err(self.malformed(format_args!("file name \"{shown}\" {why}")));
        }
        previous.clear();
        previous.extend_from_slice(name);
        Ok(())
    }
}
