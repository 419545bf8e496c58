//! The body of an object: it arrives in parts, each of which holds its share of the memory budget.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::mpsc;

use crate::publish::byte_budget::BytePermit;

/// A part of a body with its memory permit. Cheap to clone; the permit is returned when the last clone is dropped.
#[derive(Debug, Clone)]
pub struct Part {
    /// The bytes.
    pub bytes: Bytes,
    _permit: Arc<BytePermit>,
}

impl Part {
    /// Creates a part that holds `permit`.
    #[must_use]
    pub fn new(bytes: Bytes, permit: BytePermit) -> Self {
        Self { bytes, _permit: Arc::new(permit) }
    }
}

impl AsRef<Bytes> for Part {
    fn as_ref(&self) -> &Bytes {
        &self.bytes
    }
}

/// A body that arrives in parts, each except the last of the size that [`PartSizes`] returns.
///
/// [`PartSizes`]: crate::publish::part_sizes::PartSizes
#[derive(Debug)]
pub struct Body {
    /// The parts, in order.
    pub parts: mpsc::Receiver<Part>,
    /// What is known about its length.
    pub length: BodyLength,
}

/// What is known about the length of a body before it arrives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BodyLength {
    /// At most one part; none if the body is empty. Uploaded in one request.
    SinglePart,
    /// Several parts. Uploaded as a multipart upload.
    Multipart {
        /// Size of the body in bytes.
        size: u64,
        /// Size of each part except the last, in bytes.
        part_size: u64,
    },
    /// The length is not known.
    Unknown,
}

impl BodyLength {
    /// Returns whether the body is known to have several parts.
    #[must_use]
    pub fn is_multipart(self) -> bool {
        matches!(self, Self::Multipart { .. })
    }
}
