//! Reading of cache archives: any tar that `tar` or [`super::Writer`] produces, with bounded memory and without
//! trusting its sizes and names.

use std::io::{self, BufRead, Read};

use nar_pack::error::{Context, Error, Result};
use tar::EntryType;

use super::{ExactSize, Object};
use crate::input_error::is_input_error;
use crate::{cache_info, narinfo};

/// Maximum length of a key in bytes (the limit of S3).
const MAX_KEY_LENGTH: usize = 1024;
/// Maximum size of an extended header of a tar, in bytes.
const MAX_EXTENDED_HEADER_SIZE: u64 = 64 * 1024;
/// Size of a tar block, in bytes.
const BLOCK_SIZE: u64 = 512;

/// A member of a cache archive that is being read.
pub struct Member<'a> {
    /// The key of the object.
    pub key: String,
    /// The kind of the object.
    pub object: Object,
    /// Size in bytes.
    pub size: u64,
    /// The bytes; returns an error if they end before `size`.
    pub body: &'a mut dyn Read,
}

impl Member<'_> {
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
        match self.object {
            Object::CacheInfo => cache_info::MAX_SIZE,
            _ => narinfo::MAX_SIZE as u64,
        }
    }
}

/// Reads a cache archive and calls `each` for every member. Skips directories, and removes a leading `./` from names.
///
/// # Errors
/// Refuses a malformed or truncated tar, and a member that is not an object of a binary cache. Passes on the errors of
/// `each`.
pub fn read<R: BufRead>(input: R, mut each: impl FnMut(Member<'_>) -> Result) -> Result {
    let mut archive = tar::Archive::new(CountingReader { inner: input, position: 0 });
    let mut end = 0;
    let mut long_name = None;
    // Raw, because the library would read the headers that contain long names to memory, whatever their size.
    for entry in archive.entries().map_err(malformed)?.raw(true) {
        let mut entry = entry.map_err(malformed)?;
        let size = entry.size();
        let data_end =
            entry.raw_file_position().checked_add(size).and_then(|end| end.checked_next_multiple_of(BLOCK_SIZE));
        end = data_end.ok_or_else(|| Error::refused("cache archive: invalid member size"))?;
        let entry_type = entry.header().entry_type();
        match read_extended_header(&mut entry, entry_type, size)? {
            ExtendedHeader::None => {}
            ExtendedHeader::Name(name) => {
                long_name = Some(name);
                continue;
            }
            ExtendedHeader::Ignored => continue,
        }
        let key = match long_name.take() {
            Some(name) => parse_key(&name)?,
            None => parse_key(&entry.path_bytes())?,
        };
        match entry_type {
            EntryType::Directory => continue,
            EntryType::Regular | EntryType::Continuous => {}
            _ => return Err(Error::refused(format!("cache archive: {key} is not a regular file"))),
        }
        let Some(object) = Object::of_key(&key) else {
            return Err(Error::refused(format!("cache archive: {key:?} is not an object of a binary cache")));
        };
        let mut body = ExactSize { inner: &mut entry, remaining: size };
        each(Member { key: key.clone(), object, size, body: &mut body }).context(|| format!("cache archive: {key}"))?;
        io::copy(&mut body, &mut io::sink()).context(|| format!("cache archive: {key}"))?;
    }
    read_end(archive.into_inner(), end)
}

/// Reads what follows the last member, which ends at `end`: at least one block of zeros, and zeros to the end of the
/// input. All of it is read, because the writer of a pipe gets an error otherwise.
fn read_end<R: Read>(mut input: CountingReader<R>, end: u64) -> Result {
    if input.position < end + BLOCK_SIZE {
        return Err(Error::refused("the cache archive is truncated: the end-of-archive marker is missing"));
    }
    let mut buffer = [0; 4096];
    loop {
        match input.read(&mut buffer)? {
            0 => return Ok(()),
            n if buffer[..n].iter().all(|&byte| byte == 0) => {}
            _ => return Err(Error::refused("unexpected data after the end of the cache archive")),
        }
    }
}

fn malformed(error: io::Error) -> Error {
    if is_input_error(&error) {
        error.into()
    } else {
        // The texts of the tar crate quote raw header bytes and are not sentences.
        Error::refused("malformed or truncated cache archive: invalid or incomplete tar entry")
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

fn read_extended_header<R: Read>(
    entry: &mut tar::Entry<'_, R>,
    entry_type: EntryType,
    size: u64,
) -> Result<ExtendedHeader> {
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
    ExactSize { inner: entry, remaining: size }.read_to_end(&mut bytes).map_err(malformed)?;
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

/// Counts the bytes that were read.
struct CountingReader<R> {
    inner: R,
    position: u64,
}

impl<R: Read> Read for CountingReader<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buf)?;
        self.position += n as u64;
        Ok(n)
    }
}
