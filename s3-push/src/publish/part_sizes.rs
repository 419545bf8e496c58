//! Part sizes of multipart uploads, within the limits of S3 (10,000 parts of 5 MiB to 5 GiB).

use crate::publish::body::BodyLength;

/// Minimum part size of S3, in bytes.
pub const MIN_PART_SIZE: u64 = 5 << 20;
/// Maximum number of parts of an upload: the limit of S3 is 10,000; the rest is a reserve.
const MAX_PARTS: u64 = 9000;
/// Number of parts of the same size before the size doubles, if the length is unknown: 9,000 parts hold 4 TiB.
const PARTS_PER_SIZE: u64 = 1000;
/// Maximum number of times that the part size doubles.
const MAX_DOUBLINGS: u64 = 10;

/// The sizes of the parts into which a body is split.
#[derive(Debug, Clone, Copy)]
pub struct PartSizes {
    min_part_size: u64,
    body_size: Option<u64>,
}

impl PartSizes {
    /// Creates the sizes for a body of `body_size` bytes, if known, with parts of at least `min_part_size` bytes.
    #[must_use]
    pub fn new(min_part_size: u64, body_size: Option<u64>) -> Self {
        Self { min_part_size: min_part_size.max(MIN_PART_SIZE), body_size }
    }

    /// Returns the size in bytes of the part with that index, from 0. The last part has the rest of the body.
    #[must_use]
    pub fn size_of(&self, index: u64) -> usize {
        let size = match self.body_size {
            Some(size) => size.div_ceil(MAX_PARTS).max(self.min_part_size).min(size.max(1)),
            None => self.min_part_size << (index / PARTS_PER_SIZE).min(MAX_DOUBLINGS),
        };
        usize::try_from(size).unwrap_or(usize::MAX)
    }

    /// Returns what is known about the length of the body.
    #[must_use]
    pub fn body_length(&self) -> BodyLength {
        let part_size = self.size_of(0) as u64;
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
            assert_eq!(sizes.size_of(0), part);
            assert!(size.div_ceil(sizes.size_of(0) as u64) <= MAX_PARTS);
        }
        assert_eq!(PartSizes::new(8 << 20, Some(8 << 20)).body_length(), BodyLength::SinglePart);
        assert_eq!(
            PartSizes::new(8 << 20, Some((8 << 20) + 1)).body_length(),
            BodyLength::Multipart { size: (8 << 20) + 1, part_size: 8 << 20 }
        );
    }

    #[test]
    fn parts_of_a_body_of_unknown_length_grow_to_hold_five_tebibytes() {
        let sizes = PartSizes::new(8 << 20, None);
        let total: u64 = (0..10_000).map(|index| sizes.size_of(index) as u64).sum();
        assert!(total > 5 << 40);
        assert_eq!((sizes.size_of(999), sizes.size_of(1000)), (8 << 20, 16 << 20));
    }
}
