//! Telling what a stream is from its first bytes.

use std::io::{BufRead, Chain, Cursor, Read};

use nar_pack::error::{Context, Error, Result};
use nar_pack::nar;
use nar_pack::stdio::Input;

/// Bytes that tell every kind of stream: the header of a tar member.
const HEAD: usize = 512;

/// The kinds of streams that tools take.
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
    /// Its name in messages.
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

/// A stream whose first bytes were looked at, and will be read again.
pub type Sniffed = Chain<Cursor<Vec<u8>>, Input>;

/// Looks at the first bytes of `input`; `wanted` names what the tool takes, for the message when it is something else.
///
/// # Errors
/// Refuses an empty stream, and one that is nothing that the tools know.
pub fn sniff(mut input: Input, wanted: &str) -> Result<(Kind, Sniffed)> {
    let mut head = Vec::with_capacity(HEAD);
    (&mut input).take(HEAD as u64).read_to_end(&mut head).map_err(Error::from).context(|| "reading standard input")?;
    if head.is_empty() {
        return Err(Error::refused(format!("standard input is empty; expected {wanted}")));
    }
    let kind = kind_of(&head)
        .ok_or_else(|| Error::refused(format!("standard input is not {wanted}, nor anything else that is known")))?;
    Ok((kind, Cursor::new(head).chain(input)))
}

fn kind_of(head: &[u8]) -> Option<Kind> {
    let number = |at: usize| head.get(at..at + 8).map(|bytes| u64::from_le_bytes(bytes.try_into().unwrap_or_default()));
    let nar_at = |at: usize| head.get(at..at + 24).is_some_and(|bytes| bytes == nar::FIRST_BYTES);
    if nar_at(0) {
        Some(Kind::Nar)
    } else if number(0) == Some(1) && nar_at(8) || head == [0; 8] {
        Some(Kind::Export)
    } else if head.len() == HEAD && is_tar_header(head) {
        Some(Kind::Archive)
    } else if is_field(head) {
        Some(Kind::Narinfo)
    } else {
        None
    }
}

/// A header whose checksum is right, or the zeros that end an empty archive.
fn is_tar_header(head: &[u8]) -> bool {
    if head.iter().all(|&byte| byte == 0) {
        return true;
    }
    let header = tar::Header::from_byte_slice(head);
    let sum: u32 =
        head.iter().enumerate().map(|(at, &byte)| if (148..156).contains(&at) { 32 } else { u32::from(byte) }).sum();
    header.cksum().is_ok_and(|stated| stated == sum)
}

/// `Key: ` of printable letters, as every narinfo begins.
fn is_field(head: &[u8]) -> bool {
    let letters = head.iter().take_while(|byte| byte.is_ascii_alphabetic()).count();
    letters > 0 && letters < 64 && head.get(letters) == Some(&b':')
}

/// Refuses what follows the end of a stream.
///
/// # Errors
/// Names the kind of stream.
pub fn require_end(input: &mut impl BufRead, kind: Kind) -> Result {
    if input.fill_buf()?.is_empty() {
        return Ok(());
    }
    Err(Error::refused(format!("something follows the end of {}", kind.name())))
}
