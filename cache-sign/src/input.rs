//! Opens standard input as narinfo text or as a cache archive, the two streams that can be signed and verified.

use std::io;

use nar_pack::error::{Error, Result};
use nar_pack::stdio::{self, Output};
use narinfo_gen::archive::{self, Member};
use narinfo_gen::stream::{Kind, Sniffed, sniff};

const EXPECTED: &str = "narinfo text or a cache archive";

/// Standard input, by the format of the stream.
pub enum Input {
    /// Narinfo text.
    Text(Sniffed),
    /// A cache archive.
    Archive(Sniffed),
}

impl Input {
    /// Detects the format of standard input from its first bytes.
    ///
    /// # Errors
    /// Fails if standard input is a terminal; refuses every other stream.
    pub fn open() -> Result<Self> {
        match sniff(stdio::stdin(EXPECTED)?, EXPECTED)? {
            (Kind::Narinfo, input) => Ok(Self::Text(input)),
            (Kind::Archive, input) => Ok(Self::Archive(input)),
            (other, _) => {
                Err(Error::refused(format!("expected {EXPECTED}, found {}", other.name())).context("standard input"))
            }
        }
    }
}

/// Writes a member to the output. One that is larger than the buffer is not read if the input is a pipe.
///
/// # Errors
/// Those of the input and of the output.
pub(crate) fn copy_member(member: &mut Member<'_, Sniffed>, out: &mut archive::Writer<Output>) -> Result {
    out.member_with(&member.key, member.size, |out| {
        member.body.take_with(|input, size| {
            let (head, input) = input.get_mut();
            let has_head = head.position() < head.get_ref().len() as u64;
            if has_head { Ok(0) } else { stdio::splice(input, out, size) }
        })?;
        io::copy(&mut member.body, out)?;
        Ok(())
    })
}
