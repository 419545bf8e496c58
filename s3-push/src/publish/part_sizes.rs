//! Part sizes of multipart uploads, within the limits of S3 (10,000 parts of 5 MiB to 5 GiB). All parts of an upload have
//! one size except the last, which may be smaller: Cloudflare R2 requires that.

use crate::publish::body::BodyLength;

/// Minimum part size of S3, in bytes.
pub const MIN_PART_SIZE: u64 = 5 << 20;
/// Maximum part size of S3, in bytes: 5 GiB.
pub const MAX_PART_SIZE: u64 = 5 << 30;
/// Maximum size of an object in S3, in bytes: 5 TiB.
pub const MAX_OBJECT_SIZE: u64 = 5 << 40;
/// Maximum number of parts of an upload in S3.
pub const MAX_PARTS: u64 = 10_000;
/// Maximum number of parts of a body whose length is known. The rest is a reserve.
const MAX_PLANNED_PARTS: u64 = 9000;

/// The size of the parts into which a body is split.
#[derive(Debug, Clone, Copy)]
pub struct PartSizes {
    part_size: u64,
    body_size: Option<u64>,
}

impl PartSizes {
    /// Chooses the size for a body of `body_size` bytes, if known, with parts of at least `min_part_size` bytes. The limit
    /// on the number of parts is not observed if the length is unknown.
    #[must_use]
    pub fn new(min_part_size: u64, body_size: Option<u64>) -> Self {
        let min_part_size = min_part_size.max(MIN_PART_SIZE);
        let part_size = match body_size {
            Some(size) => size.div_ceil(MAX_PLANNED_PARTS).max(min_part_size).min(size.max(1)),
            None => min_part_size,
        };
        Self { part_size, body_size }
    }

    /// Returns the size in bytes of each part. The last part has the rest of the body.
    #[must_use]
    pub fn part_size(&self) -> usize {
        usize::try_from(self.part_size).unwrap_or(usize::MAX)
    }

    /// Returns what is known about the length of the body.
    #[must_use]
    pub fn body_length(&self) -> BodyLength {
        let part_size = self.part_size;
        match self.body_size {
            None => BodyLength::Unknown,
            Some(size) if size <= part_size => BodyLength::SinglePart,
            Some(size) => BodyLength::Multipart { size, part_size },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_stay_within_the_limit_of_an_upload() {
        let gib = 1 << 30;
        for (size, part) in
            [(1, 1), (8 << 20, 8 << 20), (gib, 8 << 20), (100 * gib, 11_930_465), (5000 * gib, 596_523_236)]
        {
            let sizes = PartSizes::new(8 << 20, Some(size));
            assert_eq!(sizes.part_size(), part);
            assert!(size.div_ceil(sizes.part_size) <= MAX_PARTS);
        }
        assert_eq!(PartSizes::new(8 << 20, Some(8 << 20)).body_length(), BodyLength::SinglePart);
        assert_eq!(
            PartSizes::new(8 << 20, Some((8 << 20) + 1)).body_length(),
            BodyLength::Multipart { size: (8 << 20) + 1, part_size: 8 << 20 }
        );
    }
}
