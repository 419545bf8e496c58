//! One file of a path on standard output. A verified file needs the whole NAR; an unverified one needs only its range
//! in an uncompressed NAR.

use std::io::{self, Read};
use std::sync::Arc;

use nar_pack::error::{Context, Error, Result};
use nar_pack::nar::{Cat, Listing, ListingEntry};
use nar_pack::stdio::Output;
use narinfo_gen::archive::listing_key;
use narinfo_gen::compression::Compression;
use narinfo_gen::extras::MAX_EXTRA_SIZE;
use narinfo_gen::spool::{Spool, SpoolReader};
use tokio::runtime::Handle;

use crate::fetch;
use crate::sources::{Alternatives, Candidate, Sources};
use s3_push::remote::transfer::ByteRange;

/// The maximum number of bytes of a file that are kept in memory until it has been verified. A larger file is kept in a
/// temporary file.
const MAX_FILE_IN_MEMORY: usize = 8 << 20;
/// Size of the length field before the contents of a file in a NAR, in bytes.
const LENGTH_FIELD: usize = 8;

/// Writes one file of a path, after the whole NAR has been read and verified: a single file has no hash of its own.
///
/// # Errors
/// Refuses a bad NAR, and one without that file. Nothing is written then.
pub fn cat(runtime: &Handle, sources: &Sources, candidate: &Arc<Candidate>, file: &[u8], mut out: Output) -> Result {
    let mut alternatives = Alternatives::new(Arc::clone(candidate));
    let mut contents = loop {
        match read_file(runtime, sources, &alternatives.candidate, file) {
            Ok(contents) => break contents,
            Err(error) => runtime.block_on(alternatives.next(sources, error))?,
        }
    };
    io::copy(&mut contents, &mut out)?;
    out.finish()
}

/// Reads a file of a path and verifies its NAR.
fn read_file(runtime: &Handle, sources: &Sources, candidate: &Candidate, file: &[u8]) -> Result<SpoolReader> {
    let body = runtime.block_on(fetch::open_nar(sources, candidate))?;
    let mut contents = Spool::new(MAX_FILE_IN_MEMORY);
    let mut visitor = Cat::new(file, &mut contents);
    fetch::verify_nar(body.into_reader(), &candidate.narinfo, &mut visitor, |_| Ok(()))?;
    visitor.finish().context(|| candidate.narinfo.full_path())?;
    contents.into_reader()
}

/// Writes one file of a path without verification: the range of an uncompressed NAR that the cache's listing gives for
/// the file. Returns whether the cache supports that. If not, or if it cannot be read, nothing was written.
///
/// # Errors
/// Refuses a file that the listing does not contain. Fails if the output cannot be written, or if the cache fails after the
/// first byte was read.
pub fn cat_unverified(
    runtime: &Handle,
    sources: &Sources,
    candidate: &Candidate,
    file: &[u8],
    out: &mut Output,
) -> Result<bool> {
    let (narinfo, remote) = (&candidate.narinfo, sources.remote(candidate));
    if Compression::from_name(&narinfo.compression)? != Compression::None {
        return Ok(false);
    }
    let key = listing_key(narinfo.path.hash_part());
    let Ok(Some(listing)) = runtime.block_on(remote.text(&key, MAX_EXTRA_SIZE)) else { return Ok(false) };
    let listing = Listing::parse(listing.as_bytes(), MAX_EXTRA_SIZE);
    let Ok(entry) = listing.and_then(|listing| listing.find(file)) else { return Ok(false) };
    let refused = |message: &str| {
        let file = file.strip_prefix(b"/").unwrap_or(file);
        let (listing, file) = (remote.display_url(&key), file.escape_ascii());
        Err(Error::refused(format!("{listing}: {}/{file} {message}", narinfo.path)))
    };
    let (size, offset) = match entry {
        Some(ListingEntry::File { size, nar_offset: Some(offset), .. }) => (size, offset),
        Some(ListingEntry::File { .. }) => return Ok(false),
        Some(ListingEntry::Directory) => return refused("is a directory, not a file"),
        Some(ListingEntry::Symlink { target }) => {
            return refused(&format!("is a symbolic link, not a file; its target is {}", target.escape_debug()));
        }
        None => return refused("is not in the listing"),
    };
    let Some(end) = offset.checked_add(size).filter(|end| *end <= narinfo.nar_size && offset >= LENGTH_FIELD as u64)
    else {
        return Ok(false);
    };
    let range = ByteRange { start: offset - LENGTH_FIELD as u64, end: Some(end) };
    let Ok(Some(body)) = runtime.block_on(remote.get_range(&narinfo.url, range)) else { return Ok(false) };
    let mut body = body.into_reader();
    let mut length = [0; LENGTH_FIELD];
    if body.read_exact(&mut length).is_err() || u64::from_le_bytes(length) != size {
        return Ok(false);
    }
    io::copy(&mut body, out)?;
    Ok(true)
}
