//! Parses a NAR into calls of a [`Visitor`]. Strings are read into fixed buffers and contents are passed on as they arrive,
//! so memory does not depend on the sizes that a NAR claims.

use std::io::{self, BufRead, Read};

use super::{FIRST_BYTES, MAX_DEPTH, MAX_FILE_NAME, MAX_TARGET, Visitor, padding};
use crate::error::{Error, Result};

/// Maximum length of a tag in bytes; the longest one is shorter.
const MAX_TAG: usize = 16;

/// Parses one NAR, reads nothing after it, and returns its size in bytes.
///
/// # Errors
/// Refuses whatever Nix's parser refuses, and any form that is not canonical: `malformed NAR at byte N: …`. Returns the
/// errors of the visitor.
pub fn parse(input: &mut impl BufRead, visitor: &mut impl Visitor) -> Result<u64> {
    let mut parser = Parser { input, visitor, offset: 0 };
    parser.expect_first_bytes()?;
    parser.node(0)?;
    Ok(parser.offset)
}

/// Checks that the input ends after a NAR.
///
/// # Errors
/// Refuses further data. Returns the errors of the input.
pub fn require_end(input: &mut impl BufRead) -> Result {
    if input.fill_buf()?.is_empty() { Ok(()) } else { Err(Error::refused("unexpected data after the end of the NAR")) }
}

struct Parser<'a, R, V> {
    input: &'a mut R,
    visitor: &'a mut V,
    /// Number of bytes read so far.
    offset: u64,
}

impl<R: BufRead, V: Visitor> Parser<'_, R, V> {
    fn malformed(&self, reason: impl std::fmt::Display) -> Error {
        Error::refused(format!("malformed NAR at byte {}: {reason}", self.offset))
    }

    /// Converts an error of the input; an unexpected end means that the NAR is truncated.
    fn stream_error(&self, error: io::Error) -> Error {
        if error.kind() == io::ErrorKind::UnexpectedEof && error.get_ref().is_none_or(|e| !e.is::<Error>()) {
            Error::refused(format!("truncated NAR: unexpected end after {} bytes", self.offset))
        } else {
            error.into()
        }
    }

    fn read_exact(&mut self, buf: &mut [u8]) -> Result {
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

    /// Reads the first string, which identifies a NAR. An error of the input, such as one of a decoder, is passed on.
    fn expect_first_bytes(&mut self) -> Result {
        let mut first = Vec::with_capacity(FIRST_BYTES.len());
        let read = Read::take(&mut *self.input, FIRST_BYTES.len() as u64).read_to_end(&mut first);
        self.offset = first.len() as u64;
        read.map_err(|error| self.stream_error(error))?;
        if first == FIRST_BYTES {
            Ok(())
        } else {
            Err(Error::refused("not a NAR: it does not begin with nix-archive-1"))
        }
    }

    fn read_number(&mut self) -> Result<u64> {
        let mut bytes = [0; 8];
        self.read_exact(&mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    fn expect_zeros(&mut self, count: usize) -> Result {
        let mut bytes = [0; 8];
        self.read_exact(&mut bytes[..count])?;
        if bytes == [0; 8] { Ok(()) } else { Err(self.malformed("padding must be zero")) }
    }

    /// Reads a string into `buf`, whose length is the maximum. `kind` names the string in errors.
    fn read_string<'b>(&mut self, buf: &'b mut [u8], kind: &str) -> Result<&'b [u8]> {
        let length = self.read_number()?;
        let max = buf.len();
        let Some(buf) = usize::try_from(length).ok().and_then(|n| buf.get_mut(..n)) else {
            return Err(self.malformed(format_args!("{kind} of {length} bytes, the maximum is {max}")));
        };
        self.read_exact(buf)?;
        self.expect_zeros(padding(length))?;
        Ok(buf)
    }

    /// Reads a string that must be `tag`.
    fn expect(&mut self, tag: &[u8]) -> Result {
        let mut buf = [0; MAX_TAG];
        let found = self.read_string(&mut buf, "tag")?;
        let expected = if tag.is_empty() { "an empty string".to_owned() } else { tag.escape_ascii().to_string() };
        if found == tag { Ok(()) } else { Err(self.unexpected(found, &expected)) }
    }

    fn unexpected(&self, found: &[u8], expected: &str) -> Error {
        self.malformed(format_args!("expected {expected}, found \"{}\"", found.escape_ascii()))
    }

    /// Parses a node within `depth` directories. As in Nix, the innermost of 64 directories must be empty.
    fn node(&mut self, depth: usize) -> Result {
        if depth == MAX_DEPTH {
            return Err(self.malformed(format_args!("nested deeper than {MAX_DEPTH} directories")));
        }
        self.expect(b"(")?;
        self.expect(b"type")?;
        let mut buf = [0; MAX_TAG];
        match self.read_string(&mut buf, "node type")? {
            b"regular" => self.regular(),
            b"symlink" => self.symlink(),
            b"directory" => self.directory(depth + 1),
            other => Err(self.unexpected(other, "regular, directory or symlink")),
        }
    }

    fn regular(&mut self) -> Result {
        let mut buf = [0; MAX_TAG];
        let executable = match self.read_string(&mut buf, "tag")? {
            b"contents" => false,
            b"executable" => {
                self.expect(b"")?;
                self.expect(b"contents")?;
                true
            }
            other => return Err(self.unexpected(other, "executable or contents")),
        };
        let size = self.read_number()?;
        self.visitor.file(executable, size, self.offset)?;
        self.contents(size)?;
        self.visitor.file_end()?;
        self.expect_zeros(padding(size))?;
        self.expect(b")")
    }

    fn contents(&mut self, size: u64) -> Result {
        let mut remaining = size;
        while remaining > 0 {
            let available = match self.input.fill_buf() {
                Ok([]) => return Err(self.stream_error(io::ErrorKind::UnexpectedEof.into())),
                Ok(available) => available,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(self.stream_error(error)),
            };
            let n = available.len().min(usize::try_from(remaining).unwrap_or(usize::MAX));
            self.visitor.data(&available[..n])?;
            self.input.consume(n);
            self.offset += n as u64;
            remaining -= n as u64;
        }
        Ok(())
    }

    fn symlink(&mut self) -> Result {
        self.expect(b"target")?;
        let mut buf = [0; MAX_TARGET];
        let target = self.read_string(&mut buf, "link target")?;
        if target.is_empty() || target.contains(&0) {
            return Err(self.malformed("link target is empty or contains a NUL byte"));
        }
        self.visitor.symlink(target)?;
        self.expect(b")")
    }

    fn directory(&mut self, depth: usize) -> Result {
        self.visitor.directory()?;
        let mut previous: Vec<u8> = Vec::new();
        loop {
            let mut buf = [0; MAX_TAG];
            match self.read_string(&mut buf, "tag")? {
                b")" => return self.visitor.directory_end(),
                b"entry" => {}
                other => return Err(self.unexpected(other, "entry or )")),
            }
            self.expect(b"(")?;
            self.expect(b"name")?;
            self.read_name(&mut previous)?;
            self.visitor.enter(&previous)?;
            self.expect(b"node")?;
            self.node(depth)?;
            self.visitor.leave()?;
            self.expect(b")")?;
        }
    }

    /// Reads the name of an entry and replaces the previous name by it.
    fn read_name(&mut self, previous: &mut Vec<u8>) -> Result {
        let mut buf = [0; MAX_FILE_NAME];
        let name = self.read_string(&mut buf, "file name")?;
        let quoted = name.escape_ascii();
        if matches!(name, b"" | b"." | b"..") || name.contains(&b'/') || name.contains(&0) {
            return Err(self.malformed(format_args!("invalid file name \"{quoted}\"")));
        }
        if name <= previous.as_slice() {
            let problem = if name == previous { "duplicate" } else { "unsorted" };
            return Err(self.malformed(format_args!("{problem} file name \"{quoted}\"")));
        }
        previous.clear();
        previous.extend_from_slice(name);
        Ok(())
    }
}
