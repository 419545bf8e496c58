//! Paths that prove themselves: content addresses that follow from the NAR alone.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use nar_pack::store_path::StorePath;

use crate::hash::Sha256;
use crate::narinfo::NarInfo;

/// Whether the path needs no signature because its name follows from its NarHash: it is addressed by the SHA-256 of
/// its NAR (`fixed:r:sha256:`) and does not refer to itself (Nix's `StoreDirConfig::makeFixedOutputPath`).
///
/// Other content addresses (`text:`, flat files, other algorithms) hash something that a narinfo does not tell, so
/// such paths need a signature like any other.
#[must_use]
pub fn proves_itself(narinfo: &NarInfo) -> bool {
    let Some(hash) = narinfo.ca.as_deref().and_then(|ca| ca.strip_prefix("fixed:r:")) else { return false };
    Sha256::parse(hash).is_ok_and(|hash| hash == narinfo.nar_hash)
        && !narinfo.references.contains(&narinfo.path)
        && source_path_digits(narinfo) == narinfo.path.hash_part().as_str()
}

/// The hash part that Nix gives such a path.
fn source_path_digits(narinfo: &NarInfo) -> String {
    use std::fmt::Write;
    let mut text = String::from("source");
    for reference in &narinfo.references {
        text.push(':');
        text.push_str(&narinfo.store_dir.join(reference));
    }
    text.push_str(":sha256:");
    for byte in narinfo.nar_hash.as_bytes() {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
    }
    let _ = write!(text, ":{}:{}", narinfo.store_dir, name_of(&narinfo.path));
    let mut folded = [0; 20];
    for (index, byte) in Sha256::of(text.as_bytes()).as_bytes().iter().enumerate() {
        folded[index % 20] ^= byte;
    }
    nix_base32::to_nix_base32(&folded)
}

/// A content address with its hash in Nix's base 32, as Nix writes it in narinfos, whatever base it comes in
/// (`nix path-info --json` has used several). What is no content address of a known algorithm stays as it is.
#[must_use]
pub fn in_base32(ca: &str) -> String {
    let at = ca.match_indices([':', '-']).map(|(at, _)| at).find_map(|at| {
        let (before, digits) = (&ca[..at], &ca[at + 1..]);
        let algorithm = before.rsplit(':').next()?;
        let size = match algorithm {
            "md5" => 16,
            "sha1" => 20,
            "sha256" | "blake3" => 32,
            "sha512" => 64,
            _ => return None,
        };
        Some(format!("{before}:{}", nix_base32::to_nix_base32(&decode(digits, size)?)))
    });
    at.unwrap_or_else(|| ca.to_owned())
}

/// Digits in base 16, Nix's base 32 or base 64, told from how many there are.
fn decode(digits: &str, size: usize) -> Option<Vec<u8>> {
    let bytes = if digits.len() == 2 * size {
        let pair = |pair: &[u8]| u8::from_str_radix(str::from_utf8(pair).ok()?, 16).ok();
        digits.as_bytes().chunks(2).map(pair).collect::<Option<Vec<u8>>>()?
    } else if digits.len() == (8 * size).div_ceil(5) {
        let valid = digits.bytes().all(nar_pack::store_path::is_base32);
        nix_base32::from_nix_base32(digits).filter(|_| valid)?
    } else {
        BASE64_STANDARD.decode(digits).ok()?
    };
    (bytes.len() == size).then_some(bytes)
}

fn name_of(path: &StorePath) -> &str {
    &path.base_name()[nar_pack::store_path::HASH_PART + 1..]
}

#[cfg(test)]
mod tests {
    use super::*;
    use nar_pack::store_path::StoreDir;

    /// Made by `nix-store --add` of a file `x` that holds "hello\n".
    const TEXT: &str = "\
StorePath: /nix/store/@PATH@
URL: nar/x.nar
Compression: none
NarHash: @HASH@
NarSize: 120
References: 
CA: fixed:r:@HASH@
";

    fn narinfo(path: &str, hash: &str) -> NarInfo {
        let text = TEXT.replace("@PATH@", path).replace("@HASH@", hash);
        NarInfo::parse(&text, &StoreDir::new("/nix/store").unwrap()).unwrap()
    }

    #[test]
    fn what_nix_store_add_made_proves_itself_and_another_name_does_not() {
        let good = narinfo(
            "m5zd3qj7c4bs4g5d8hqvs5pc5xicclfg-x",
            "sha256:04zwf782yjwnh3q6hz5izfd6jyip8kgw6g6yj43fiqhbyhdd0dqw",
        );
        assert!(proves_itself(&good));
        let mut bad = good.clone();
        bad.path = StorePath::from_base_name(&good.path.base_name().replace("-x", "-y")).unwrap();
        assert!(!proves_itself(&bad));
        let mut bad = good.clone();
        bad.nar_hash = Sha256::of(b"");
        assert!(!proves_itself(&bad));
    }

    #[test]
    fn content_addresses_come_in_every_base_and_leave_in_one() {
        let written = format!("fixed:r:{}", Sha256::of(b""));
        for hash in [
            "sha256:0mdqa9w1p6cmli6976v4wi0sw9r4p5prkj7lzfd1877wk11c9c73",
            "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
            "sha256:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=",
            "sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=",
        ] {
            assert_eq!(in_base32(&format!("fixed:r:{hash}")), written);
        }
        // As `nix-hash --type sha1 --to-base32` has it.
        assert_eq!(
            in_base32("fixed:git:sha1:e4fd8ba5f7bbeaea5ace89fe10255536cd60dab6"),
            "fixed:git:sha1:nvd61k9nalji1zl9rrdfmsmvyyjqpzg4"
        );
        for strange in ["", "x", "fixed:r:sha256:", "fixed:r:sha256:zz", "fixed:r:sha3:00", "text:sha256:e", "--::-"] {
            assert_eq!(in_base32(strange), strange);
        }
    }
}
