//! The body of an object: it arrives in parts, each of which holds its share of the memory budget.

use std::io::Read;
use std::sync::Arc;

use bytes::Bytes;
use nar_pack::error::{Error, Result};
use tokio::sync::mpsc;

use crate::publish::byte_budget::BytePermit;

/// Maximum size of the memory that is allocated before any byte of a part has arrived.
pub const MAX_PREALLOCATION: usize = 16 << 20;

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

/// Reads `size` bytes, or the rest of the input. They take no more memory than `size`: a vector that grows as needed would
/// double. Little is allocated before bytes arrive, since the size may come from a wrong header.
///
/// # Errors
/// Fails if the input cannot be read, or if there is no memory.
pub fn read_part(mut input: impl Read, size: usize) -> Result<Vec<u8>> {
    let first = size.min(MAX_PREALLOCATION);
    let mut bytes = Vec::with_capacity(first);
    input.by_ref().take(first as u64).read_to_end(&mut bytes)?;
    if bytes.len() == first && size > first {
        let rest = size - first;
        bytes.try_reserve_exact(rest).map_err(|error| Error::failed(format!("no memory for a part: {error}")))?;
        input.take(rest as u64).read_to_end(&mut bytes)?;
    }
    Ok(bytes)
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
