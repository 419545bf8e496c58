//! Narinfo text: a stream of narinfos with one blank line between two. A blank line means that another narinfo follows,
//! so text that ends with one is truncated.

use std::io::{BufRead, Read, Write};

use nar_pack::error::{Context, Error, Result};
use nar_pack::stdio::utf8;
use nar_pack::store_path::StoreDir;

use super::{MAX_SIZE, NarInfo};

/// Reads narinfo text. Calls `each` for every narinfo as soon as it is complete, with whether another one follows.
///
/// # Errors
/// Refuses empty, malformed or truncated text, with the number of the narinfo. Passes on the errors of `each`.
pub fn read_text(
    mut input: impl BufRead,
    store_dir: &StoreDir,
    mut each: impl FnMut(NarInfo, bool) -> Result,
) -> Result {
    for count in 1_u64.. {
        let mut text = Vec::new();
        let position = || format!("narinfo {count} of the stream");
        let more = read_block(&mut input, &mut text).context(position)?;
        let narinfo = utf8(text).context(position)?;
        each(NarInfo::parse(&narinfo, store_dir).context(position)?, more)?;
        if !more {
            break;
        }
    }
    Ok(())
}

/// Appends the next narinfo to `text`; returns whether another one follows.
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
                return Ok(true);
            }
            _ => {}
        }
    }
}

/// Writes narinfo text.
#[derive(Debug)]
pub struct TextWriter<W> {
    out: W,
    separator: Separator,
}

/// State of the blank line before the next narinfo.
#[derive(Debug, PartialEq)]
enum Separator {
    NotNeeded,
    Needed,
    Written,
}

impl<W: Write> TextWriter<W> {
    /// Starts narinfo text on `out`.
    pub fn new(out: W) -> Self {
        Self { out, separator: Separator::NotNeeded }
    }

    /// Writes a narinfo and flushes the output. If `more` is set, another one must follow, and the blank line between
    /// them is written immediately.
    ///
    /// # Errors
    /// Passes on the errors of the output and of [`NarInfo::to_text`].
    pub fn write(&mut self, narinfo: &NarInfo, more: bool) -> Result {
        let text = narinfo.to_text()?;
        let before = if self.separator == Separator::Needed { "\n" } else { "" };
        write!(self.out, "{before}{text}{}", if more { "\n" } else { "" })?;
        self.separator = if more { Separator::Written } else { Separator::Needed };
        Ok(self.out.flush()?)
    }

    /// Writes the blank line that marks the text as truncated, because the next narinfo could not be produced.
    pub fn mark_truncated(&mut self) {
        if self.separator == Separator::Needed {
            // The caller reports the error that it has; this one adds nothing.
            let _ = self.out.write_all(b"\n").and_then(|()| self.out.flush());
            self.separator = Separator::Written;
        }
    }

    /// Returns the output.
    pub fn into_inner(self) -> W {
        self.out
    }
}
