//! SHA-256 hashes as Nix writes them.

use std::fmt;
use std::io::{self, Write};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use nar_pack::error::{Error, Result};
use sha2::Digest;

/// Number of digits of a SHA-256 hash in Nix's base 32.
pub const BASE32_DIGITS: usize = 52;
/// Number of digits of a SHA-256 hash in base 16.
const BASE16_DIGITS: usize = 64;

/// A SHA-256 hash; displayed as `sha256:` and 52 digits of Nix's base 32.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Sha256([u8; 32]);

impl Sha256 {
    /// Computes the hash of `bytes`.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self(sha2::Sha256::digest(bytes).into())
    }

    /// Parses `sha256:` followed by base 16, Nix's base 32 or base 64, or the SRI form `sha256-` and base 64
    /// (Nix's `Hash::parseAnyPrefixed`).
    ///
    /// # Errors
    /// Refuses other algorithms and malformed digits.
    pub fn parse(text: &str) -> Result<Self> {
        let invalid = || Error::refused(format!("{text:?} is not a SHA-256 hash"));
        if let Some(sri) = text.strip_prefix("sha256-") {
            return decode_base64(sri).ok_or_else(invalid);
        }
        let digits = text.strip_prefix("sha256:").ok_or_else(invalid)?;
        let hash = match digits.len() {
            BASE32_DIGITS => Self::from_base32(digits),
            BASE16_DIGITS => decode_base16(digits),
            _ => decode_base64(digits),
        };
        hash.ok_or_else(invalid)
    }

    /// Parses 52 digits of Nix's base 32.
    #[must_use]
    pub fn from_base32(digits: &str) -> Option<Self> {
        // The length is checked first, because nix-base32 panics on fewer than two digits.
        if digits.len() != BASE32_DIGITS || !digits.bytes().all(nar_pack::store_path::is_base32) {
            return None;
        }
        let hash = Self(nix_base32::from_nix_base32(digits)?.try_into().ok()?);
        // 52 digits have 260 bits; the four unused ones must be zero.
        (hash.base32() == digits).then_some(hash)
    }

    /// Returns the hash as 52 digits of Nix's base 32.
    #[must_use]
    pub fn base32(&self) -> String {
        nix_base32::to_nix_base32(&self.0)
    }

    /// Returns the hash in the SRI form (`sha256-` and base 64), as Nix prints it in JSON.
    #[must_use]
    pub fn sri(&self) -> String {
        format!("sha256-{}", BASE64_STANDARD.encode(self.0))
    }

    /// Returns the 32 bytes of the hash.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

fn decode_base64(text: &str) -> Option<Sha256> {
    Some(Sha256(BASE64_STANDARD.decode(text).ok()?.try_into().ok()?))
}

fn decode_base16(text: &str) -> Option<Sha256> {
    let mut bytes = [0; 32];
    hex::decode_to_slice(text, &mut bytes).ok()?;
    Some(Sha256(bytes))
}

impl fmt::Display for Sha256 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.base32())
    }
}

impl fmt::Debug for Sha256 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Hashes and counts bytes.
#[derive(Debug, Clone, Default)]
pub struct Hasher {
    state: sha2::Sha256,
    size: u64,
}

impl Hasher {
    /// Adds bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.state.update(bytes);
        self.size += bytes.len() as u64;
    }

    /// Returns the hash and the number of all bytes.
    #[must_use]
    pub fn finish(self) -> (Sha256, u64) {
        (Sha256(self.state.finalize().into()), self.size)
    }

    /// Returns the number of bytes so far.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }
}

impl Write for Hasher {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.update(buf);
        Ok(buf.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The hash of the empty string in each base, from `nix-hash --type sha256`.
    const EMPTY: [&str; 4] = [
        "sha256:0mdqa9w1p6cmli6976v4wi0sw9r4p5prkj7lzfd1877wk11c9c73",
        "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        "sha256:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=",
        "sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=",
    ];

    #[test]
    fn hashes_are_parsed_in_any_base_and_written_in_base_32() {
        for text in EMPTY {
            assert_eq!(Sha256::parse(text).unwrap(), Sha256::of(b""), "{text}");
        }
        assert_eq!(Sha256::of(b"").to_string(), EMPTY[0]);
    }

    #[test]
    fn text_that_is_not_a_hash_is_refused() {
        let overflow = format!("sha256:z{}", &EMPTY[0][8..]);
        for text in
            ["", "sha256:", "sha256:0", "sha256-", "sha512:x", "md5:abc", &EMPTY[0][7..], &EMPTY[0][..58], &overflow]
        {
            assert!(Sha256::parse(text).unwrap_err().is_refusal(), "{text}");
        }
    }
}
