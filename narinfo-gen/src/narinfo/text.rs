//! Narinfo text: a stream of narinfos with a blank line between two. Readers accept several blank lines, and blank lines at
//! the end. A writer that knows that another narinfo follows writes its first field name together with the blank line, so
//! that text which ends there is recognizably truncated.

use std::io::{BufRead, ErrorKind, Read, Write};

use nar_pack::error::{Context, Error, Result};
use nar_pack::stdio::utf8;
use nar_pack::store_path::StoreDir;

use super::{MAX_SIZE, NarInfo};

/// The beginning of every narinfo that is written.
const FIRST_FIELD: &str = "StorePath: ";

/// Reads narinfo text. Calls `each` for every narinfo as soon as it is complete, with whether another one follows.
///
/// # Errors
/// Refuses empty, malformed or truncated text, with the number of the narinfo. Passes on the errors of `each`.
pub fn read_text(input: impl BufRead, store_dir: &StoreDir, mut each: impl FnMut(NarInfo, bool) -> Result) -> Result {
    read_verbatim_text(input, store_dir, |narinfo, _, more| each(narinfo, more))
}

/// Reads narinfo text as [`read_text`] does. Passes the exact text of each narinfo to `each` too.
///
/// # Errors
/// See [`read_text`].
pub fn read_verbatim_text(
    mut input: impl BufRead,
    store_dir: &StoreDir,
    mut each: impl FnMut(NarInfo, &str, bool) -> Result,
) -> Result {
    for count in 1_u64.. {
        let mut text = Vec::new();
        let position = || format!("narinfo {count} of the stream");
        let more = read_block(&mut input, &mut text).context(position)?;
        let text = utf8(text).context(position)?;
        each(NarInfo::parse(&text, store_dir).context(position)?, &text, more)?;
        if !more {
            break;
        }
    }
    Ok(())
}

/// Appends the next narinfo to `text`; returns whether another one follows. To know that, it waits for the input after the
/// blank lines.
fn read_block(input: &mut impl BufRead, text: &mut Vec<u8>) -> Result<bool> {
    loop {
        let start = text.len();
        let limit = (MAX_SIZE + 1 - start) as u64;
        Read::take(&mut *input, limit).read_until(b'\n', text)?;
        if text.len() > MAX_SIZE {
            return Err(Error::refused(format!("larger than {MAX_SIZE} bytes")));
        }
        match &text[start..] {
            [] if start == 0 => return Err(Error::refused("expected a narinfo, found the end of the stream")),
            [] => return Ok(false),
            b"\n" if start > 0 => {
                text.pop();
                return skip_blank_lines(input);
            }
            _ => {}
        }
    }
}

/// Skips blank lines; returns whether anything follows them.
fn skip_blank_lines(input: &mut impl BufRead) -> Result<bool> {
    loop {
        let bytes = match input.fill_buf() {
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            bytes => bytes?,
        };
        let blank = bytes.iter().take_while(|&&byte| byte == b'\n').count();
        let (at_end, more) = (bytes.is_empty(), blank < bytes.len());
        input.consume(blank);
        if more || at_end {
            return Ok(more);
        }
    }
}

/// Writes narinfo text.
#[derive(Debug)]
pub struct TextWriter<W> {
    out: W,
    next: Next,
}

/// How the text continues if another narinfo follows.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Next {
    /// With the narinfo: it is the first one.
    Narinfo,
    /// With a blank line.
    BlankLine,
    /// With the rest of the narinfo after [`FIRST_FIELD`].
    Rest,
}

impl<W: Write> TextWriter<W> {
    /// Starts narinfo text on `out`.
    pub fn new(out: W) -> Self {
        Self { out, next: Next::Narinfo }
    }

    /// Writes a narinfo and flushes the output. If `more` is set, another one must follow, and its beginning is written
    /// immediately.
    ///
    /// # Errors
    /// Passes on the errors of the output and of [`NarInfo::to_text`].
    pub fn write(&mut self, narinfo: &NarInfo, more: bool) -> Result {
        let mut text = narinfo.to_text()?;
        match self.next {
            Next::Narinfo => {}
            Next::BlankLine => text.insert(0, '\n'),
            Next::Rest => drop(text.drain(..FIRST_FIELD.len())),
        }
        self.next = Next::BlankLine;
        if more {
            text.push('\n');
            text.push_str(FIRST_FIELD);
            self.next = Next::Rest;
        }
        self.out.write_all(text.as_bytes())?;
        Ok(self.out.flush()?)
    }

    /// Writes the beginning of another narinfo, which marks the text as truncated, because the next narinfo could not be
    /// produced.
    pub fn mark_truncated(&mut self) {
        if self.next == Next::BlankLine {
            // The caller reports the error that it has; this one adds nothing.
            let _ = write!(self.out, "\n{FIRST_FIELD}").and_then(|()| self.out.flush());
            self.next = Next::Rest;
        }
    }

    /// Returns the output, for something else than narinfo text.
    pub fn get_mut(&mut self) -> &mut W {
        &mut self.out
    }

    /// Returns the output.
    pub fn into_inner(self) -> W {
        self.out
    }
}
