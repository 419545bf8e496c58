//! The kinds of streams between the tools, recognized by their first bytes.

use std::io::{Chain, Cursor, Read};

use nar_pack::error::{Error, Result};
use nar_pack::nar;
use nar_pack::stdio::Input;

use crate::archive;

/// Number of bytes that identify every kind of stream: the size of a tar header.
const HEAD_SIZE: usize = 512;

/// The kind of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// One NAR.
    Nar,
    /// An export stream.
    Export,
    /// Narinfo text.
    Narinfo,
    /// A cache archive (tar).
    Archive,
}

impl Kind {
    /// Returns the name of the kind for messages, with its article.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Nar => "a NAR",
            Self::Export => "an export stream",
            Self::Narinfo => "narinfo text",
            Self::Archive => "a cache archive",
        }
    }
}

/// A stream whose first bytes were inspected. They are read again.
pub type Sniffed = Chain<Cursor<Vec<u8>>, Input>;

/// Recognizes the kind of `input`. `expected` names the kinds that the tool accepts, for error messages.
///
/// # Errors
/// Refuses an empty stream, and one of an unknown kind.
pub fn sniff(mut input: Input, expected: &str) -> Result<(Kind, Sniffed)> {
    let mut head = Vec::with_capacity(HEAD_SIZE);
    (&mut input).take(HEAD_SIZE as u64).read_to_end(&mut head)?;
    if head.is_empty() {
        return Err(Error::refused(format!("standard input is empty: expected {expected}")));
    }
    let unknown = || Error::refused(format!("unknown format of standard input: expected {expected}"));
    Ok((kind_of(&head).ok_or_else(unknown)?, Cursor::new(head).chain(input)))
}

fn kind_of(head: &[u8]) -> Option<Kind> {
    let number = |at: usize| head.get(at..at + 8).map(|bytes| u64::from_le_bytes(bytes.try_into().unwrap_or_default()));
    let nar_at = |at: usize| head.get(at..at + 24).is_some_and(|bytes| bytes == nar::FIRST_BYTES);
    if nar_at(0) {
        Some(Kind::Nar)
    } else if number(0) == Some(1) && nar_at(8) || head == [0; 8] {
        Some(Kind::Export)
    } else if archive::is_header(head) {
        Some(Kind::Archive)
    } else if starts_with_field_name(head) {
        Some(Kind::Narinfo)
    } else {
        None
    }
}

/// Returns whether this starts with letters and a colon, as every narinfo does.
fn starts_with_field_name(head: &[u8]) -> bool {
    let letters = head.iter().take_while(|byte| byte.is_ascii_alphabetic()).count();
    letters > 0 && letters < 64 && head.get(letters) == Some(&b':')
}
