//! The Nix archive (NAR): writing a tree as one, reading one, restoring a tree, listing, reading
//! a listing, and taking one file out.
//!
//! The format is that of Nix's `src/libutil/archive.cc`: a sequence of strings, each a 64-bit little-endian length, the
//! bytes, and zeros up to a multiple of 8. This reader accepts exactly the canonical form, so that a NAR which it
//! accepts, written again, is the same bytes.

mod case_hack;
mod cat;
mod dir;
mod dump;
mod listing;
mod parse;
mod read_listing;
mod restore;
mod writers;

pub use case_hack::CaseHack;
pub use cat::{Cat, cat};
pub use dump::dump;
pub use listing::{Lister, list};
pub use parse::{Skip, Tee, Visitor, parse};
pub use read_listing::{Listed, Listing};
pub use restore::{Restorer, remove_tree, restore};

/// The string that begins a NAR.
pub const MAGIC: &[u8] = b"nix-archive-1";
/// The first 24 bytes of every NAR: [`MAGIC`] with its length and padding.
pub const FIRST_BYTES: &[u8; 24] = b"\x0d\0\0\0\0\0\0\0nix-archive-1\0\0\0";
/// Longest name of a directory entry in bytes (`NAME_MAX`).
pub const MAX_NAME: usize = 255;
/// Longest target of a symbolic link in bytes (`PATH_MAX` without its terminator).
pub const MAX_TARGET: usize = 4095;
/// Deepest nesting of directories; the innermost one has no entries (Nix's `narMaxDepth` counts every node).
pub const MAX_DEPTH: usize = 64;
/// The suffix that Nix adds on case-insensitive file systems; Lix refuses a NAR with a name that has it.
pub const CASE_HACK: &[u8] = b"~nix~case~hack~";

/// The names of a path within a NAR: empty ones and `.` do not count, so that `/` is the NAR itself.
fn names(path: &[u8]) -> Vec<&[u8]> {
    path.split(|&byte| byte == b'/').filter(|name| !matches!(*name, b"" | b".")).collect()
}

/// Zeros that follow a string of `length` bytes.
#[must_use]
pub fn padding(length: u64) -> usize {
    ((8 - length % 8) % 8) as usize
}

/// Appends a string in the archive's encoding.
pub fn push_string(out: &mut Vec<u8>, string: &[u8]) {
    out.extend_from_slice(&(string.len() as u64).to_le_bytes());
    out.extend_from_slice(string);
    out.resize(out.len() + padding(string.len() as u64), 0);
}
