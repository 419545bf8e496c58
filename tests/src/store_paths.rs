//! Store paths that need no store: valid names with random hash parts, and independent hashing.

use ring::digest::{SHA256, digest};

use crate::Random;

/// The digits of Nix's base 32, which lacks e, o, t and u.
pub const BASE32_DIGITS: &[u8; 32] = b"0123456789abcdfghijklmnpqrsvwxyz";

/// Returns a valid store path, `/nix/store/<32 digits>-name`, that is the same for the same arguments.
pub fn store_path(name: &str, seed: u64) -> String {
    let mut random = Random::new(seed ^ 0x5170_12e9_a7d1_c3b5);
    for byte in name.bytes() {
        random = Random::new(random.next() ^ u64::from(byte));
    }
    random_store_path(&mut random, name)
}

/// Returns a valid store path with the next random hash part.
pub fn random_store_path(random: &mut Random, name: &str) -> String {
    let hash: String = (0..32).map(|_| char::from(BASE32_DIGITS[random.below(32)])).collect();
    format!("/nix/store/{hash}-{name}")
}

/// Returns the SHA-256 of `bytes` in Nix's base 32, computed by `ring` and not by the crates of the code under test.
pub fn sha256_base32(bytes: &[u8]) -> String {
    base32(digest(&SHA256, bytes).as_ref())
}

/// Encodes bytes in Nix's base 32: five bits per digit, the last digit from the first bits.
fn base32(bytes: &[u8]) -> String {
    let digit = |index: usize| {
        let (byte, bit) = (index * 5 / 8, index * 5 % 8);
        let pair = u16::from(bytes[byte]) | u16::from(bytes.get(byte + 1).copied().unwrap_or(0)) << 8;
        char::from(BASE32_DIGITS[usize::from(pair >> bit) & 31])
    };
    (0..(bytes.len() * 8).div_ceil(5)).rev().map(digit).collect()
}

#[cfg(test)]
mod tests {
    use super::sha256_base32;

    #[test]
    fn hashes_are_encoded_as_nix_does() {
        // nix hash to-base32 --type sha256 $(sha256sum </dev/null)
        assert_eq!(sha256_base32(b""), "0mdqa9w1p6cmli6976v4wi0sw9r4p5prkj7lzfd1877wk11c9c73");
    }
}
