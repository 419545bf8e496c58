//! Paths that prove themselves: content addresses that follow from the NAR alone.

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
}
