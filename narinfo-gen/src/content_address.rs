//! Content addresses: which paths can be verified from their NAR alone, the path of a NAR that is added under a name, and
//! the form in which narinfos have content addresses.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use nar_pack::error::Result;
use nar_pack::store_path::{HASH_PART, StoreDir, StorePath};

use crate::hash::Sha256;
use crate::narinfo::NarInfo;

/// Returns whether the store path follows from NarHash, so that it needs no signature: the path has the content address
/// `fixed:r:sha256:` of its NAR and does not refer to itself (Nix's `StoreDirConfig::makeFixedOutputPath`).
///
/// Other content addresses (`text:`, flat files, other algorithms) are hashes of data that a narinfo does not contain, so
/// their paths need a signature.
#[must_use]
pub fn is_content_addressed(narinfo: &NarInfo) -> bool {
    let Some(hash) = narinfo.ca.as_deref().and_then(|ca| ca.strip_prefix("fixed:r:")) else { return false };
    Sha256::parse(hash).is_ok_and(|hash| hash == narinfo.nar_hash)
        && !narinfo.references.contains(&narinfo.path)
        && source_hash_part(&narinfo.store_dir, &narinfo.references, narinfo.nar_hash, name_of(&narinfo.path))
            == narinfo.path.hash_part().as_str()
}

/// Returns the store path that `nix-store --add` and `nix store add-path` compute for a NAR and a name: content-addressed,
/// without references.
///
/// # Errors
/// Refuses a name that Nix does not accept.
pub fn added_path(store_dir: &StoreDir, nar_hash: Sha256, name: &str) -> Result<StorePath> {
    StorePath::from_base_name(&format!("{}-{name}", source_hash_part(store_dir, &[], nar_hash, name)))
}

/// Returns the content address of a path that was added as a NAR, as narinfos have it.
#[must_use]
pub fn of_added_path(nar_hash: Sha256) -> String {
    format!("fixed:r:{nar_hash}")
}

/// Returns the hash part of a path that has this NAR as its content address.
fn source_hash_part(store_dir: &StoreDir, references: &[StorePath], nar_hash: Sha256, name: &str) -> String {
    let mut text = String::from("source");
    for reference in references {
        text.push(':');
        text.push_str(&store_dir.join(reference));
    }
    let nar_hash = hex::encode(nar_hash.as_bytes());
    for field in ["sha256", &nar_hash, store_dir.as_str(), name] {
        text.push(':');
        text.push_str(field);
    }
    let mut folded = [0; 20];
    for (index, byte) in Sha256::of(text.as_bytes()).as_bytes().iter().enumerate() {
        folded[index % 20] ^= byte;
    }
    nix_base32::to_nix_base32(&folded)
}

/// Returns a content address with its hash in Nix's base 32, as Nix writes it in narinfos. The hash may be in any base
/// (versions of `nix path-info --json` differ). Text that is not a content address of a known algorithm is returned as it
/// is.
#[must_use]
pub fn to_base32(ca: &str) -> String {
    let converted = ca.match_indices([':', '-']).map(|(at, _)| at).find_map(|at| {
        let (before, digits) = (&ca[..at], &ca[at + 1..]);
        let size = hash_size(before.rsplit(':').next()?)?;
        Some(format!("{before}:{}", nix_base32::to_nix_base32(&decode(digits, size)?)))
    });
    converted.unwrap_or_else(|| ca.to_owned())
}

/// Returns whether Nix accepts this as the content address of a narinfo (`ContentAddress::parse` in Nix's
/// `content-address.cc`); otherwise it refuses the narinfo.
#[must_use]
pub fn is_valid(ca: &str) -> bool {
    let parse = || {
        let (method, hash) = ca.split_once(':')?;
        let hash = match method {
            "text" if hash.starts_with("sha256:") => hash,
            "fixed" => hash.strip_prefix("r:").or_else(|| hash.strip_prefix("git:")).unwrap_or(hash),
            _ => return None,
        };
        let (algorithm, digits) = hash.split_once(':')?;
        decode(digits, hash_size(algorithm)?)
    };
    parse().is_some()
}

/// Returns the size in bytes of the hashes of an algorithm.
fn hash_size(algorithm: &str) -> Option<usize> {
    Some(match algorithm {
        "md5" => 16,
        "sha1" => 20,
        "sha256" | "blake3" => 32,
        "sha512" => 64,
        _ => return None,
    })
}

/// Decodes a hash of `size` bytes in base 16, Nix's base 32 or base 64, which differ in the number of digits.
fn decode(digits: &str, size: usize) -> Option<Vec<u8>> {
    let bytes = if digits.len() == 2 * size {
        hex::decode(digits).ok()?
    } else if digits.len() == (8 * size).div_ceil(5) {
        let is_valid = digits.bytes().all(nar_pack::store_path::is_base32);
        nix_base32::from_nix_base32(digits).filter(|_| is_valid)?
    } else {
        BASE64_STANDARD.decode(digits).ok()?
    };
    (bytes.len() == size).then_some(bytes)
}

fn name_of(path: &StorePath) -> &str {
    &path.base_name()[HASH_PART + 1..]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A narinfo of the path that `nix-store --add` creates for a file `x` with the contents "hello\n".
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
    fn a_path_of_nix_store_add_is_content_addressed_unless_its_name_or_hash_changes() {
        let good = narinfo(
            "m5zd3qj7c4bs4g5d8hqvs5pc5xicclfg-x",
            "sha256:04zwf782yjwnh3q6hz5izfd6jyip8kgw6g6yj43fiqhbyhdd0dqw",
        );
        assert!(is_content_addressed(&good));
        assert_eq!(added_path(&good.store_dir, good.nar_hash, "x").unwrap(), good.path);
        assert_eq!(Some(of_added_path(good.nar_hash)), good.ca);
        let mut bad = good.clone();
        bad.path = StorePath::from_base_name(&good.path.base_name().replace("-x", "-y")).unwrap();
        assert!(!is_content_addressed(&bad));
        let mut bad = good.clone();
        bad.nar_hash = Sha256::of(b"");
        assert!(!is_content_addressed(&bad));
    }

    #[test]
    fn content_addresses_in_any_base_are_converted_to_base_32() {
        let expected = format!("fixed:r:{}", Sha256::of(b""));
        for hash in [
            "sha256:0mdqa9w1p6cmli6976v4wi0sw9r4p5prkj7lzfd1877wk11c9c73",
            "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
            "sha256:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=",
            "sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=",
        ] {
            assert_eq!(to_base32(&format!("fixed:r:{hash}")), expected);
        }
        // From `nix-hash --type sha1 --to-base32`.
        assert_eq!(
            to_base32("fixed:git:sha1:e4fd8ba5f7bbeaea5ace89fe10255536cd60dab6"),
            "fixed:git:sha1:nvd61k9nalji1zl9rrdfmsmvyyjqpzg4"
        );
        let digits = "0mdqa9w1p6cmli6976v4wi0sw9r4p5prkj7lzfd1877wk11c9c73";
        let sha1 = "nvd61k9nalji1zl9rrdfmsmvyyjqpzg4";
        for valid in ["text:sha256:", "fixed:r:sha256:", "fixed:sha256:"] {
            assert!(is_valid(&format!("{valid}{digits}")), "{valid}");
        }
        assert!(is_valid(&format!("fixed:git:sha1:{sha1}")));
        for invalid in ["junk", "text:", "text:sha256:", "fixed:r:", "fixed:r:sha256:abc", "other:sha256:@", "sha256:@"]
        {
            assert!(!is_valid(&invalid.replace('@', digits)), "{invalid}");
        }
        assert!(!is_valid(&format!("text:sha1:{sha1}")) && !is_valid(&format!("fixed:x:sha1:{sha1}")));
        for other in ["", "x", "fixed:r:sha256:", "fixed:r:sha256:zz", "fixed:r:sha3:00", "text:sha256:e", "--::-"] {
            assert_eq!(to_base32(other), other);
        }
    }
}
