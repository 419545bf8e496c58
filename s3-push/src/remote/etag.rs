//! Entity tags that S3 computes from the bytes of an object: their MD5 hash, or for a multipart upload the MD5 hash of
//! the MD5 hashes of its parts, followed by a hyphen and the number of parts (Amazon S3 User Guide, "Checking object
//! integrity"). Tags of objects that are encrypted with KMS keys are something else; `ObjectHead` omits them.
//!
//! A tag that differs is a reason to read the object, and not yet the proof of damage: services other than AWS compute
//! tags in their own way.

use md5::{Digest, Md5};

use super::s3::UploadedPart;

/// An entity tag that is an MD5 hash.
pub type Md5Tag = [u8; 16];

/// Parses an entity tag, with or without quotes. Returns none if it is not an MD5 hash.
#[must_use]
pub fn md5_tag(etag: &str) -> Option<Md5Tag> {
    let mut tag = Md5Tag::default();
    hex::decode_to_slice(etag.trim_matches('"'), &mut tag).ok()?;
    Some(tag)
}

/// Returns the entity tag of an object with these contents.
#[must_use]
pub fn md5_tag_of(contents: &[u8]) -> Md5Tag {
    Md5::digest(contents).into()
}

/// Returns the entity tag that S3 gives to bytes uploaded in one request, or in a part.
#[must_use]
pub fn md5_hex(bytes: &[u8]) -> String {
    hex::encode(Md5::digest(bytes))
}

/// What an entity tag was computed from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    /// The bytes.
    Bytes,
    /// The hash of the bytes, which were uploaded in one part.
    OnePart,
    /// The hashes of several parts.
    Parts,
}

/// Compares a body with the entity tag of an object while it passes.
pub struct EtagComparison {
    expected: Md5Tag,
    form: Form,
    hasher: Md5,
}

impl EtagComparison {
    /// Starts the comparison with a body of `size` bytes that is split into parts of `part_size` bytes. Returns none if the
    /// tag cannot be compared: it is not an MD5 hash, or it is that of parts of another size.
    #[must_use]
    pub fn new(etag: &str, size: u64, part_size: u64) -> Option<Self> {
        let (digits, form) = match etag.split_once('-') {
            None => (etag, Form::Bytes),
            Some((digits, "1")) => (digits, Form::OnePart),
            Some((digits, count)) if count.parse::<u64>() == Ok(size.div_ceil(part_size.max(1))) => {
                (digits, Form::Parts)
            }
            Some(_) => return None,
        };
        Some(Self { expected: md5_tag(digits)?, form, hasher: Md5::new() })
    }

    /// Adds the next part of the body.
    pub fn add_part(&mut self, bytes: &[u8]) {
        match self.form {
            Form::Bytes | Form::OnePart => self.hasher.update(bytes),
            Form::Parts => self.hasher.update(Md5::digest(bytes)),
        }
    }

    /// Returns whether S3 gives the tag to the body that was added.
    #[must_use]
    pub fn matches(self) -> bool {
        let hash = self.hasher.finalize();
        let hash = if self.form == Form::OnePart { Md5::digest(hash) } else { hash };
        self.expected == Md5Tag::from(hash)
    }
}

/// Returns whether S3 gives this entity tag to the bytes, uploaded in one request or in one part, or none if the tag
/// cannot be compared: it is not an MD5 hash, or that of several parts.
#[must_use]
pub fn has_etag(bytes: &[u8], etag: &str) -> Option<bool> {
    let size = bytes.len() as u64;
    let mut comparison = EtagComparison::new(etag, size, size)?;
    comparison.add_part(bytes);
    Some(comparison.matches())
}

/// Returns whether S3 gives this entity tag to an object of these parts, or none if the tag cannot be compared:
/// it is not an MD5 hash, or that of another number of parts.
#[must_use]
pub fn have_etag(parts: &[UploadedPart], etag: &str) -> Option<bool> {
    let (digits, count) = etag.split_once('-')?;
    if count.parse::<usize>() != Ok(parts.len()) {
        return None;
    }
    let mut sorted: Vec<&UploadedPart> = parts.iter().collect();
    sorted.sort_by_key(|part| part.number());
    let mut hasher = Md5::new();
    for part in sorted {
        hasher.update(md5_tag(part.etag()?)?);
    }
    Some(md5_tag(digits)? == Md5Tag::from(hasher.finalize()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entity_tags_that_are_not_md5_hashes_are_ignored() {
        let tag = Some([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]);
        assert_eq!(md5_tag("000102030405060708090a0b0c0d0e0f"), tag);
        assert_eq!(md5_tag("\"000102030405060708090a0b0c0d0e0f\""), tag);
        for tag in ["", "d41d8cd98f00b204e9800998ecf8427e-2", "zz0102030405060708090a0b0c0d0e0f", "ééééééééééééééé0"]
        {
            assert_eq!(md5_tag(tag), None);
        }
    }

    #[test]
    fn the_entity_tags_of_one_request_and_of_one_part_are_compared() {
        // `printf '' | md5sum`, and the MD5 of these 16 bytes.
        assert_eq!(has_etag(b"", "d41d8cd98f00b204e9800998ecf8427e"), Some(true));
        assert_eq!(has_etag(b"", "59adb24ef3cdbe0297f05b395827453f-1"), Some(true));
        assert_eq!(has_etag(b"x", "d41d8cd98f00b204e9800998ecf8427e"), Some(false));
        assert_eq!(has_etag(b"x", "59adb24ef3cdbe0297f05b395827453f-1"), Some(false));
        for other in ["59adb24ef3cdbe0297f05b395827453f-2", "", "x", "-1"] {
            assert_eq!(has_etag(b"", other), None);
        }
    }

    #[test]
    fn the_entity_tag_of_parts_is_compared_if_as_many_fit() {
        let tag = hex::encode(Md5::digest([Md5::digest(b"ab"), Md5::digest(b"c")].concat()));
        let (same, other): ([&[u8]; 2], [&[u8]; 2]) = ([b"ab", b"c"], [b"ab", b"d"]);
        let compare = |etag: &str, parts: [&[u8]; 2]| {
            let mut comparison = EtagComparison::new(etag, 3, 2)?;
            for part in parts {
                comparison.add_part(part);
            }
            Some(comparison.matches())
        };
        assert_eq!(compare(&format!("{tag}-2"), same), Some(true));
        assert_eq!(compare(&format!("{tag}-2"), other), Some(false));
        assert_eq!(compare(&md5_hex(b"abc"), same), Some(true));
        let one_part = format!("{}-1", hex::encode(Md5::digest(Md5::digest(b"abc"))));
        assert_eq!(compare(&one_part, same), Some(true));
        for foreign in [format!("{tag}-3"), format!("{tag}-"), format!("{tag}-02x"), format!("{}-2", &tag[1..])] {
            assert_eq!(compare(&foreign, same), None, "{foreign}");
        }
    }
}
