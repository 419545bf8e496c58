//! Parsing of one narinfo, as strict as Nix or stricter. Every error names the line.

use std::num::NonZeroU64;

use nar_pack::error::{Context, Error, Result};
use nar_pack::store_path::{StoreDir, StorePath};

use super::{MAX_SIZE, NarInfo, require_no_control_characters};
use crate::archive::MAX_KEY_LENGTH;
use crate::content_address;
use crate::hash::Sha256;

/// Parses `text`; see [`NarInfo::parse`].
pub fn parse(text: &str, store_dir: &StoreDir) -> Result<NarInfo> {
    if text.len() > MAX_SIZE {
        return Err(Error::refused(format!("larger than {MAX_SIZE} bytes")));
    }
    if !text.is_empty() && !text.ends_with('\n') {
        return Err(Error::refused("truncated: the last line does not end with a newline"));
    }
    let mut fields = Fields::default();
    // Not `lines`: Nix keeps a carriage return as part of the value.
    for (index, line) in text.split_terminator('\n').enumerate() {
        fields.line(line, store_dir).context(|| format!("line {}", index + 1))?;
    }
    fields.finish(store_dir)
}

#[derive(Default)]
struct Fields {
    path: Option<StorePath>,
    url: Option<String>,
    compression: Option<String>,
    file_hash: Option<Sha256>,
    file_size: Option<u64>,
    nar_hash: Option<Sha256>,
    nar_size: Option<NonZeroU64>,
    references: Option<Vec<StorePath>>,
    deriver: Option<StorePath>,
    signatures: Vec<String>,
    ca: Option<String>,
    unknown: Vec<(String, String)>,
}

impl Fields {
    fn line(&mut self, line: &str, store_dir: &StoreDir) -> Result {
        let (key, value) = line.split_once(':').ok_or_else(|| Error::refused("expected KEY: VALUE"))?;
        let value = match value.strip_prefix(' ') {
            Some(value) => value,
            None if value.is_empty() => value,
            None => return Err(Error::refused(format!("expected a space after {key}:"))),
        };
        require_no_control_characters(key, value)?;
        self.field(key, value, store_dir)
    }

    fn field(&mut self, key: &str, value: &str, store_dir: &StoreDir) -> Result {
        let invalid = || key.to_owned();
        let is_new = match key {
            "StorePath" => set(&mut self.path, store_dir.parse(value).context(invalid)?),
            "URL" => set(&mut self.url, parse_url(value).context(invalid)?),
            "Compression" => set(&mut self.compression, value.to_owned()),
            "FileHash" => set(&mut self.file_hash, Sha256::parse(value).context(invalid)?),
            "FileSize" => set(&mut self.file_size, parse_size(value).context(invalid)?),
            "NarHash" => set(&mut self.nar_hash, Sha256::parse(value).context(invalid)?),
            "NarSize" => {
                let size = NonZeroU64::new(parse_size(value).context(invalid)?);
                set(&mut self.nar_size, size.ok_or_else(|| Error::refused("NarSize must not be 0"))?)
            }
            "References" => set(&mut self.references, parse_references(value).context(invalid)?),
            "Deriver" if value == "unknown-deriver" || value.is_empty() => true,
            "Deriver" => set(&mut self.deriver, StorePath::from_base_name(value).context(invalid)?),
            "Sig" | "CA" if value.is_empty() => true,
            "Sig" if !is_signature(value) => {
                return Err(Error::refused(format!("Sig: {value:?} is not a signature (NAME:BASE64)")));
            }
            "Sig" => {
                if !self.signatures.iter().any(|sig| sig == value) {
                    self.signatures.push(value.to_owned());
                }
                true
            }
            "CA" if !content_address::is_valid(value) => {
                return Err(Error::refused(format!("CA: {value:?} is not a content address")));
            }
            "CA" => set(&mut self.ca, value.to_owned()),
            _ if key.is_empty() => return Err(Error::refused("expected a field name before the colon")),
            _ => {
                self.unknown.push((key.to_owned(), value.to_owned()));
                true
            }
        };
        if is_new { Ok(()) } else { Err(Error::refused(format!("duplicate field {key:?}"))) }
    }

    fn finish(self, store_dir: &StoreDir) -> Result<NarInfo> {
        let missing = |key: &str| Error::refused(format!("missing field {key:?}"));
        let compression = self.compression.filter(|name| !name.is_empty());
        Ok(NarInfo {
            store_dir: store_dir.clone(),
            path: self.path.ok_or_else(|| missing("StorePath"))?,
            url: self.url.ok_or_else(|| missing("URL"))?,
            compression: compression.unwrap_or_else(|| "bzip2".to_owned()),
            file_hash: self.file_hash,
            file_size: self.file_size,
            nar_hash: self.nar_hash.ok_or_else(|| missing("NarHash"))?,
            nar_size: self.nar_size.ok_or_else(|| missing("NarSize"))?.get(),
            // Nix accepts a narinfo without this field, but always writes it; without it, the narinfo is truncated.
            references: self.references.ok_or_else(|| missing("References"))?,
            deriver: self.deriver,
            signatures: self.signatures,
            ca: self.ca,
            unknown: self.unknown,
        })
    }
}

/// Sets a field; returns whether it was not set before.
fn set<T>(field: &mut Option<T>, value: T) -> bool {
    field.replace(value).is_none()
}

fn parse_size(text: &str) -> Result<u64> {
    let is_decimal = !text.is_empty() && text.bytes().all(|c| c.is_ascii_digit());
    let size = text.parse().ok().filter(|_| is_decimal);
    size.ok_or_else(|| Error::refused(format!("{text:?} is not a number of bytes")))
}

/// Returns whether Nix can read this as a signature (`Signature::parse`); otherwise it refuses the narinfo. Whether it is
/// valid is another question.
pub(crate) fn is_signature(text: &str) -> bool {
    let Some((name, base64)) = text.split_once(':') else { return false };
    let digits = base64.trim_end_matches('=');
    !name.is_empty()
        && !digits.is_empty()
        && digits.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'+' || c == b'/')
}

fn parse_references(value: &str) -> Result<Vec<StorePath>> {
    let names = value.split(' ').filter(|name| !name.is_empty());
    let mut paths = names.map(StorePath::from_base_name).collect::<Result<Vec<_>>>()?;
    paths.sort_unstable();
    paths.dedup();
    Ok(paths)
}

/// Parses a URL, which must be a key relative to the root of the cache.
fn parse_url(value: &str) -> Result<String> {
    let lower = value.to_ascii_lowercase();
    // Servers decode percent-encoded characters.
    let is_encoded = ["%2e", "%2f", "%5c", "%00"].iter().any(|code| lower.contains(code));
    if value.len() > MAX_KEY_LENGTH {
        return Err(Error::refused(format!("longer than {MAX_KEY_LENGTH} bytes")));
    }
    let is_inside = !is_encoded
        && !value.is_empty()
        && !value.starts_with('/')
        && !value.contains("://")
        && value.split(['/', '\\']).all(|part| part != ".." && part != ".")
        && !value.contains(|c: char| c.is_control() || c == ' ');
    if is_inside { Ok(value.to_owned()) } else { Err(Error::refused(format!("{value:?} is outside the cache"))) }
}
