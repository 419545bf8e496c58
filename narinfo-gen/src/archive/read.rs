//! Reading of cache archives: any tar that `tar` or [`super::Writer`] produces, with bounded memory and without
//! trusting its sizes and names. The `tar` crate parses the headers. Its iterator is not used, because it hides the
//! input, from which `cache-sign` takes NARs without reading them.

use std::io::{self, Read};

use nar_pack::error::{Context, Error, Result};
use tar::{EntryType, Header};

use super::{ExactSize, Object};
use crate::input_error::is_input_error;
use crate::{cache_info, narinfo};

/// Maximum length of a key in bytes (the limit of S3).
pub const MAX_KEY_LENGTH: usize = 1024;
/// Maximum size of an extended header of a tar, in bytes.
const MAX_EXTENDED_HEADER_SIZE: u64 = 64 * 1024;
/// Size of a tar block, in bytes.
pub(super) const BLOCK_SIZE: usize = 512;

/// A member of a cache archive that is being read from an `R`.
pub struct Member<'a, R> {
    /// The key of the object.
    pub key: String,
    /// The kind of the object.
    pub object: Object,
    /// Size in bytes.
    pub size: u64,
    /// The bytes; returns an error if they end before `size`.
    pub body: &'a mut ExactSize<R>,
}

impl<R: Read> Member<'_, R> {
    /// Reads the whole member as text of at most `limit` bytes.
    ///
    /// # Errors
    /// Refuses a member that is larger or not UTF-8. [`read`] adds the key.
    pub fn text(&mut self, limit: u64) -> Result<String> {
        nar_pack::stdio::read_text(&mut self.body, limit)
    }

    /// Returns the maximum size of a text member of this kind, in bytes.
    #[must_use]
    pub fn text_limit(&self) -> u64 {
        let max_size = match self.object {
            Object::CacheInfo => cache_info::MAX_SIZE,
            _ => narinfo::MAX_SIZE,
        };
        max_size as u64
    }
}

/// Reads a cache archive and calls `each` for every member. Skips directories, and removes a leading `./` from names.
///
/// # Errors
/// Refuses a malformed or truncated tar, and a member that is not an object of a binary cache. Passes on the errors of
/// `each`.
pub fn read<R: Read>(mut input: R, mut each: impl FnMut(Member<'_, R>) -> Result) -> Result {
    let mut long_name = None;
    while let Some(header) = read_header(&mut input)? {
        let size = header.entry_size().map_err(malformed)?;
        let invalid_size = || Error::refused("cache archive: invalid member size");
        let padding = size.checked_next_multiple_of(BLOCK_SIZE as u64).ok_or_else(invalid_size)? - size;
        let extended = read_extended_header(&mut input, header.entry_type(), size)?;
        if !matches!(extended, ExtendedHeader::None) {
            if let ExtendedHeader::Name(name) = extended {
                long_name = Some(name);
            }
            skip_padding(&mut input, padding)?;
            continue;
        }
        let key = match long_name.take() {
            Some(name) => parse_key(&name)?,
            None => parse_key(&header.path_bytes())?,
        };
        let object =
            match header.entry_type() {
                EntryType::Directory => None,
                EntryType::Regular | EntryType::Continuous => Some(Object::of_key(&key).ok_or_else(|| {
                    Error::refused(format!("cache archive: {key:?} is not an object of a binary cache"))
                })?),
                _ => return Err(Error::refused(format!("cache archive: {key} is not a regular file"))),
            };
        let name = if key.is_empty() { "." } else { &key };
        let context = || format!("cache archive: {name}");
        let mut body = ExactSize { inner: input, remaining: size };
        if let Some(object) = object {
            let member = Member { key: key.clone(), object, size, body: &mut body };
            each(member).context(context)?;
        }
        io::copy(&mut body, &mut io::sink()).context(context)?;
        input = body.inner;
        skip_padding(&mut input, padding)?;
    }
    read_end(input)
}

/// Reads the next header; returns none for the block of zeros after the last member.
fn read_header(input: &mut impl Read) -> Result<Option<Header>> {
    let mut header = Header::new_old();
    let mut block = Vec::with_capacity(BLOCK_SIZE);
    input.take(BLOCK_SIZE as u64).read_to_end(&mut block)?;
    if block.is_empty() {
        return Err(Error::refused("the cache archive is truncated: the end-of-archive marker is missing"));
    }
    if !is_header(&block) {
        return Err(not_a_header());
    }
    header.as_mut_bytes().copy_from_slice(&block);
    Ok(block.iter().any(|&byte| byte != 0).then_some(header))
}

/// Returns whether this is a tar header with a valid checksum, or the block of zeros at the end of an archive.
pub(crate) fn is_header(block: &[u8]) -> bool {
    if block.len() != BLOCK_SIZE {
        return false;
    }
    let is_checksum = |at: usize| (148..156).contains(&at);
    let sum: u32 = block.iter().enumerate().map(|(at, &byte)| if is_checksum(at) { 32 } else { u32::from(byte) }).sum();
    let stated = Header::from_byte_slice(block).cksum();
    stated.is_ok_and(|stated| stated == sum) || block.iter().all(|&byte| byte == 0)
}

/// Skips the bytes between a member and the next header.
fn skip_padding(input: &mut impl Read, padding: u64) -> Result {
    let skipped = io::copy(&mut input.take(padding), &mut io::sink()).map_err(malformed)?;
    if skipped == padding { Ok(()) } else { Err(not_a_header()) }
}

/// Reads what follows the first block of zeros: zeros to the end of the input. All of it is read, because the writer of
/// a pipe gets an error otherwise.
fn read_end(mut input: impl Read) -> Result {
    let mut buffer = [0; 4096];
    loop {
        match input.read(&mut buffer)? {
            0 => return Ok(()),
            n if buffer[..n].iter().all(|&byte| byte == 0) => {}
            _ => return Err(Error::refused("unexpected data after the end of the cache archive")),
        }
    }
}

fn not_a_header() -> Error {
    Error::refused("malformed or truncated cache archive: invalid or incomplete tar entry")
}

fn malformed(error: io::Error) -> Error {
    if is_input_error(&error) {
        error.into()
    } else {
        // The texts of the tar crate quote raw header bytes and are not sentences.
        not_a_header()
    }
}

/// A tar entry that describes the next member.
enum ExtendedHeader {
    /// The entry is a member itself.
    None,
    /// The name of the next member.
    Name(Vec<u8>),
    /// Attributes without meaning for a cache archive.
    Ignored,
}

fn read_extended_header(input: &mut impl Read, entry_type: EntryType, size: u64) -> Result<ExtendedHeader> {
    let may_have_name = entry_type.is_gnu_longname() || entry_type.is_pax_local_extensions();
    if !may_have_name && !entry_type.is_gnu_longlink() && !entry_type.is_pax_global_extensions() {
        return Ok(ExtendedHeader::None);
    }
    if size > MAX_EXTENDED_HEADER_SIZE {
        return Err(Error::refused(format!(
            "cache archive: an extended header of {size} bytes is larger than {MAX_EXTENDED_HEADER_SIZE} bytes"
        )));
    }
    let mut bytes = Vec::new();
    ExactSize { inner: input, remaining: size }.read_to_end(&mut bytes).map_err(malformed)?;
    if entry_type.is_gnu_longname() {
        while bytes.last() == Some(&0) {
            bytes.pop();
        }
        return Ok(ExtendedHeader::Name(bytes));
    }
    let mut name = None;
    for record in tar::PaxExtensions::new(&bytes).filter(|_| entry_type.is_pax_local_extensions()) {
        let record = record.map_err(malformed)?;
        match record.key_bytes() {
            b"path" => name = Some(record.value_bytes().to_vec()),
            b"size" => {
                let error = Error::refused("cache archive: a size in an extended header is not supported");
                return Err(error.with_hint("create the archive with tar --format=gnu"));
            }
            _ => {}
        }
    }
    Ok(name.map_or(ExtendedHeader::Ignored, ExtendedHeader::Name))
}

/// Returns the key in a member's name. The name of the root directory gives an empty key or `.`.
fn parse_key(name: &[u8]) -> Result<String> {
    let invalid = || Error::refused(format!("cache archive: invalid member name \"{}\"", name.escape_ascii()));
    let text = str::from_utf8(name).map_err(|_| invalid())?;
    let mut key = text;
    while let Some(rest) = key.strip_prefix("./") {
        key = rest;
    }
    let key = key.trim_end_matches('/');
    let is_valid = key.len() <= MAX_KEY_LENGTH
        && (matches!(key, "" | ".") || key.split('/').all(|part| !matches!(part, "" | "." | "..")))
        && !key.contains(|c: char| c.is_control());
    if is_valid { Ok(key.to_owned()) } else { Err(invalid()) }
}
