//! The export stream of `nix-store --export`: NARs, each followed by its store path, references and deriver. This module
//! reads and writes what surrounds the NARs; [`crate::nar`] handles the NARs themselves, and the caller their order.
//!
//! Layout from Nix's `src/libstore/export-import.cc`: for each path the number 1, the NAR, the number 0x4558494e, the
//! store path, the references, the deriver (empty when unknown) and the number 0; at the end the number 0.

use std::io::{BufRead, Read, Write};

use crate::error::{Context, Error, Result};
use crate::nar::{padding, push_string};
use crate::store_path::{StoreDir, StorePath};

/// The number that follows a NAR.
const MAGIC: u64 = 0x4558_494e;
/// Maximum size of the references of a path, in bytes: as they are in a narinfo, which has at most 1 MiB.
const MAX_REFERENCES_SIZE: usize = 1 << 20;
/// Maximum length of a string after a NAR, in bytes.
const MAX_STRING_LENGTH: u64 = 8192;

/// The metadata that follows the NAR of a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trailer {
    /// The store path.
    pub path: StorePath,
    /// References, sorted.
    pub references: Vec<StorePath>,
    /// The derivation that built the path.
    pub deriver: Option<StorePath>,
}

/// Writes an export stream, path by path. The stream is complete after [`Writer::finish`].
#[derive(Debug)]
pub struct Writer<W> {
    out: W,
}

impl<W: Write> Writer<W> {
    /// Creates a writer of a stream to `out`.
    pub fn new(out: W) -> Self {
        Self { out }
    }

    /// Writes one path; `write_nar` writes its NAR.
    ///
    /// # Errors
    /// Fails if `write_nar` does or the output cannot be written.
    pub fn write_path(
        &mut self,
        store_dir: &StoreDir,
        trailer: &Trailer,
        write_nar: impl FnOnce(&mut W) -> Result,
    ) -> Result {
        self.out.write_all(&1_u64.to_le_bytes())?;
        write_nar(&mut self.out)?;
        let mut fields = MAGIC.to_le_bytes().to_vec();
        push_string(&mut fields, store_dir.join(&trailer.path).as_bytes());
        fields.extend_from_slice(&(trailer.references.len() as u64).to_le_bytes());
        for reference in &trailer.references {
            push_string(&mut fields, store_dir.join(reference).as_bytes());
        }
        let deriver = trailer.deriver.as_ref().map_or_else(String::new, |deriver| store_dir.join(deriver));
        push_string(&mut fields, deriver.as_bytes());
        fields.extend_from_slice(&0_u64.to_le_bytes());
        Ok(self.out.write_all(&fields)?)
    }

    /// Writes the end of the stream and returns the output.
    ///
    /// # Errors
    /// Fails if the output cannot be written.
    pub fn finish(mut self) -> Result<W> {
        self.out.write_all(&0_u64.to_le_bytes())?;
        Ok(self.out)
    }
}

/// Reads the number before each NAR and returns whether a NAR follows; otherwise the stream has ended.
///
/// # Errors
/// Refuses a malformed or truncated stream, and data after its end.
pub fn read_marker(input: &mut impl BufRead) -> Result<bool> {
    match read_number(input)? {
        1 => Ok(true),
        0 if input.fill_buf()?.is_empty() => Ok(false),
        0 => Err(malformed("unexpected data after the end of the stream")),
        other => Err(malformed(format_args!("expected 0 or 1 before a NAR, found {other}"))),
    }
}

/// Reads the metadata after a NAR.
///
/// # Errors
/// Refuses a malformed or truncated stream, and paths that are not in `store_dir`.
pub fn read_trailer(input: &mut impl BufRead, store_dir: &StoreDir) -> Result<Trailer> {
    if read_number(input)? != MAGIC {
        return Err(malformed("expected a store path after the NAR"));
    }
    let path = store_dir.parse(&read_string(input)?).context(|| "export stream")?;
    let count = read_number(input)?;
    let (mut references, mut size) = (Vec::new(), 0);
    for _ in 0..count {
        let reference = read_string(input)?;
        let reference = store_dir.parse(&reference).context(|| format!("export stream: references of {path}"))?;
        size += reference.base_name().len() + 1;
        if size > MAX_REFERENCES_SIZE {
            return Err(malformed(format_args!("{path} has {count} references, which do not fit in a narinfo")));
        }
        references.push(reference);
    }
    references.sort_unstable();
    references.dedup();
    let deriver = match read_string(input)?.as_str() {
        "" => None,
        deriver => Some(store_dir.parse(deriver).context(|| format!("export stream: deriver of {path}"))?),
    };
    match read_number(input)? {
        0 => {}
        // A signature by Nix before 1.12; Nix ignores it too.
        1 => drop(read_string(input)?),
        other => return Err(malformed(format_args!("expected 0 or 1 after {path}, found {other}"))),
    }
    Ok(Trailer { path, references, deriver })
}

fn malformed(reason: impl std::fmt::Display) -> Error {
    Error::refused(format!("malformed export stream: {reason}"))
}

fn read_exact(input: &mut impl BufRead, buf: &mut [u8]) -> Result {
    input.read_exact(buf).map_err(|error| match Error::from(error) {
        error if error.is_refusal() => Error::refused("truncated export stream"),
        error => error,
    })
}

fn read_number(input: &mut impl BufRead) -> Result<u64> {
    let mut bytes = [0; 8];
    read_exact(input, &mut bytes)?;
    Ok(u64::from_le_bytes(bytes))
}

fn read_string(input: &mut impl BufRead) -> Result<String> {
    let length = read_number(input)?;
    if length > MAX_STRING_LENGTH {
        return Err(malformed(format_args!("string of {length} bytes, the maximum is {MAX_STRING_LENGTH}")));
    }
    let mut bytes = Vec::new();
    input.take(length).read_to_end(&mut bytes)?;
    let mut zeros = [0; 8];
    read_exact(input, &mut zeros[..padding(length)])?;
    if bytes.len() as u64 != length {
        return Err(Error::refused("truncated export stream"));
    }
    if zeros != [0; 8] {
        return Err(malformed("padding must be zero"));
    }
    String::from_utf8(bytes).map_err(|_| malformed("string is not valid UTF-8"))
}
