//! Properties of the parsers of narinfos, hashes and archives with random and malicious input.

#![allow(clippy::unwrap_used)] // a test fails by panicking

use nar_pack::store_path::{StoreDir, StorePath};
use narinfo_gen::archive;
use narinfo_gen::compression::{Compression, Encoder, FRAME_SIZE, Settings};
use narinfo_gen::hash::Sha256;
use narinfo_gen::narinfo::{NarInfo, read_text};
use narinfo_gen::verify_nar::{NarSizeLimit, digest_nar};
use proptest::collection::vec;
use proptest::prelude::*;
use std::sync::Arc;

fn store_dir() -> StoreDir {
    StoreDir::new("/nix/store").unwrap()
}

fn store_paths() -> impl Strategy<Value = StorePath> {
    "[0-9a-df-np-sv-z]{32}-[a-zA-Z0-9+_?=][a-zA-Z0-9+._?=-]{0,40}"
        .prop_map(|base| StorePath::from_base_name(&base).unwrap())
}

prop_compose! {
    fn narinfos()(
        path in store_paths(),
        mut references in vec(store_paths(), 0..5),
        deriver in proptest::option::of(store_paths()),
        data in vec(any::<u8>(), 0..10),
        file_size in proptest::option::of(any::<u64>()),
        nar_size in 1_u64..,
        signatures in vec("[a-z.]{1,10}-[0-9]:[A-Za-z0-9+/]{20}==", 0..3),
        unknown in vec(("[A-Z][a-zA-Z]{20,25}", "[ -~]{0,20}"), 0..3),
    ) -> NarInfo {
        references.sort();
        references.dedup();
        let mut narinfo = NarInfo {
            store_dir: store_dir(),
            path,
            url: format!("nar/{}.nar.zst", Sha256::of(&data).base32()),
            compression: "zstd".to_owned(),
            file_hash: Some(Sha256::of(&data)),
            file_size,
            nar_hash: Sha256::of(b"nar"),
            nar_size,
            references,
            deriver,
            signatures: Vec::new(),
            ca: None,
            unknown,
        };
        for signature in signatures {
            narinfo.add_signature(signature);
        }
        narinfo
    }
}

proptest! {
    #[test]
    fn a_written_narinfo_is_parsed_back(narinfo in narinfos()) {
        prop_assert_eq!(NarInfo::parse(&narinfo.to_string(), &store_dir()).unwrap(), narinfo);
    }

    #[test]
    fn a_changed_narinfo_is_parsed_or_refused(narinfo in narinfos(), at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let mut bytes = narinfo.to_string().into_bytes();
        let at = at.index(bytes.len());
        bytes[at] = byte;
        if let Err(error) = read_text(bytes.as_slice(), &store_dir(), |_, _| Ok(())) {
            prop_assert!(error.is_refusal(), "{}", error);
        }
    }

    /// Whatever is accepted has no control character in any field, and whatever is written can be read.
    #[test]
    fn a_control_character_in_any_field_is_refused(
        narinfo in narinfos(), at in any::<prop::sample::Index>(), control in "[\\x00-\\x09\\x0b-\\x1f\\x7f-\\u{9f}]",
    ) {
        let mut text = narinfo.to_text().unwrap();
        // Not within the line feeds: an inserted character is always part of a field.
        text.insert_str(at.index(text.len()), &control);
        prop_assert!(NarInfo::parse(&text, &store_dir()).unwrap_err().is_refusal());
        for changed in [
            NarInfo { compression: format!("zstd{control}"), ..narinfo.clone() },
            NarInfo { ca: Some(control.clone()), ..narinfo.clone() },
            NarInfo { signatures: vec![format!("k:{control}")], ..narinfo.clone() },
            NarInfo { unknown: vec![("Key".to_owned(), control.clone())], ..narinfo.clone() },
        ] {
            prop_assert!(changed.to_text().unwrap_err().is_refusal());
        }
    }

    /// Text truncated at the end of a line may lack optional fields; anything else is refused.
    #[test]
    fn a_narinfo_truncated_within_a_line_is_refused(narinfo in narinfos(), at in any::<prop::sample::Index>()) {
        let text = narinfo.to_string();
        let cut = &text[..at.index(text.len())];
        if !cut.ends_with('\n') {
            prop_assert!(read_text(cut.as_bytes(), &store_dir(), |_, _| Ok(())).unwrap_err().is_refusal());
        }
    }

    #[test]
    fn random_text_is_refused(text in "\\PC{0,200}") {
        prop_assert!(NarInfo::parse(&text, &store_dir()).unwrap_err().is_refusal());
        prop_assert!(Sha256::parse(&text).is_err());
        prop_assert!(Sha256::from_base32(&text).is_none());
    }

    #[test]
    fn every_hash_is_parsed_back(data in vec(any::<u8>(), 0..40)) {
        let hash = Sha256::of(&data);
        prop_assert_eq!(Sha256::parse(&hash.to_string()).unwrap(), hash);
        prop_assert_eq!(Sha256::from_base32(&hash.base32()), Some(hash));
    }

    #[test]
    fn random_bytes_are_not_an_archive(bytes in vec(any::<u8>(), 0..2000)) {
        prop_assert!(archive::read(bytes.as_slice(), |_| Ok(())).unwrap_err().is_refusal());
    }

    #[test]
    fn random_bytes_cannot_be_decompressed(bytes in vec(any::<u8>(), 0..500), method in 1..Compression::ALL.len()) {
        let method = Compression::ALL[method];
        let error = digest_nar(bytes.as_slice(), method, &NarSizeLimit::new(1 << 20), &mut nar_pack::nar::Skip).unwrap_err();
        prop_assert!(error.is_refusal(), "{}", error);
    }
}

#[test]
fn decompression_stops_at_the_nar_size() {
    // The beginning of a NAR with a file of 1 TiB: 64 MiB of zeros, which compress a thousandfold.
    let mut nar = Vec::new();
    for field in [b"nix-archive-1".as_slice(), b"(", b"type", b"regular", b"contents"] {
        nar_pack::nar::push_string(&mut nar, field);
    }
    nar.extend_from_slice(&(1_u64 << 40).to_le_bytes());
    nar.resize(64 << 20, 0);
    let mut encoder = Encoder::new(&Settings::new(Compression::Zstd, None, None).unwrap(), Vec::new()).unwrap();
    for chunk in nar.chunks(FRAME_SIZE) {
        encoder.push(&Arc::new(chunk.to_vec())).unwrap();
    }
    let bomb = encoder.finish().unwrap();
    assert!(bomb.len() < 100_000);
    let error = digest_nar(bomb.as_slice(), Compression::Zstd, &NarSizeLimit::new(1 << 20), &mut nar_pack::nar::Skip)
        .unwrap_err();
    assert!(error.message().contains("larger than its NarSize"), "{error}");
}
