//! Entity tags that are MD5 hashes: those of objects uploaded in one request without encryption by KMS keys.

use md5::{Digest, Md5};

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
}
