//! The Nix archive (NAR): packing and restoring trees, parsing, listing, and extracting one file.
//!
//! Every reader is a [`Visitor`] of one parser ([`parse()`]), which accepts exactly the canonical form, so that a NAR it
//! accepts is the same bytes when packed again. Hashes and compression are left to `narinfo-gen`.
//!
//! The format is that of Nix's `src/libutil/archive.cc`: a sequence of strings, each a 64-bit little-endian length, the
//! bytes, and zeros up to a multiple of 8.

mod case_hack;
mod cat;
mod dump;
mod open_dir;
mod parse;
mod read_listing;
mod restore;
mod tee;
mod visitor;
mod write_listing;

pub use case_hack::CaseHack;
pub use cat::{Cat, cat};
pub use dump::{dump, dump_in, dump_undoing_case_hack_in};
pub use parse::{parse, require_end};
pub use read_listing::{Listing, ListingEntry};
pub use restore::{Restorer, remove_tree, remove_tree_in, restore};
pub use tee::CallbackTee;
pub use visitor::{Skip, Visitor};
pub use write_listing::{Lister, list};

/// The first string of a NAR.
pub const MAGIC: &[u8] = b"nix-archive-1";
/// The first 24 bytes of every NAR: [`MAGIC`] with its length and padding.
pub const FIRST_BYTES: &[u8; 24] = b"\x0d\0\0\0\0\0\0\0nix-archive-1\0\0\0";
/// Maximum length of a directory entry's name in bytes (`NAME_MAX`).
pub const MAX_FILE_NAME: usize = 255;
/// Maximum length of a symbolic link's target in bytes (`PATH_MAX` without its terminator).
pub const MAX_TARGET: usize = 4095;
/// Maximum nesting of directories; the innermost one must be empty (Nix's `narMaxDepth` counts every node).
pub const MAX_DEPTH: usize = 64;
/// The suffix that Nix appends to names on case-insensitive file systems, before a number; Lix refuses a NAR with such a
/// name.
pub const CASE_HACK: &[u8] = b"~nix~case~hack~";

/// Splits a path within a NAR into names. Empty names and `.` are skipped, so `/` is the root of the NAR.
fn split_path(path: &[u8]) -> Vec<&[u8]> {
    path.split(|&byte| byte == b'/').filter(|name| !matches!(*name, b"" | b".")).collect()
}

/// Returns the number of zeros after a string of `length` bytes.
#[must_use]
pub fn padding(length: u64) -> usize {
    ((8 - length % 8) % 8) as usize
}

/// Appends a string in the encoding of a NAR.
pub fn push_string(out: &mut Vec<u8>, string: &[u8]) {
    out.extend_from_slice(&(string.len() as u64).to_le_bytes());
    out.extend_from_slice(string);
    out.resize(out.len() + padding(string.len() as u64), 0);
}
