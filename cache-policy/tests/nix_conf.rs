//! Property tests of merging into a nix.conf.

#![allow(clippy::unwrap_used)] // a failed unwrap fails the test

use std::path::Path;

use cache_policy::nix_conf::{ClientConfig, UrlForm};
use cache_sign::keys::PublicKey;
use cache_sign::nix_conf::ParsedConf;
use proptest::prelude::*;

const KEY: &str = "a-1:gKkVNqzMzpoNLo6VNl1o+5QLrbnCTwKuuNTTjwwPUk4=";
const URL: &str = "https://cache.example.org";

fn config(exclusive: bool) -> ClientConfig {
    ClientConfig::new(URL, &UrlForm::Portable, &[PublicKey::parse(KEY).unwrap()], exclusive).unwrap()
}

/// Valid and invalid lines. No include, because that needs a file.
fn text() -> impl Strategy<Value = Vec<u8>> {
    let line = prop_oneof![
        Just("substituters = https://cache.nixos.org".to_owned()),
        Just(format!("extra-substituters = {URL}/ # ours")),
        Just(format!("trusted-public-keys = {KEY}\\")),
        Just(format!("  extra-trusted-public-keys =\t{KEY}\r")),
        Just("# cache-policy begin s3://other".to_owned()),
        Just("# cache-policy end s3://other".to_owned()),
        Just("!include /no/such/file".to_owned()),
        "[ -~]{0,20}",
        "\\PC{0,10}",
    ];
    let lines = proptest::collection::vec(
        line.prop_filter("an include", |line| !line.trim_start().starts_with("include")),
        0..12,
    );
    (lines, any::<bool>(), proptest::collection::vec(any::<u8>(), 0..4)).prop_map(|(lines, ends, noise)| {
        let mut text = lines.join("\n").into_bytes();
        text.extend(noise.iter().filter(|byte| **byte > 0x7f));
        text.extend(ends.then_some(b'\n'));
        text
    })
}

proptest! {
    #[test]
    fn merging_is_idempotent_and_removing_restores_the_text(text in text(), exclusive: bool) {
        let (config, path) = (config(exclusive), Path::new("/nowhere/nix.conf"));
        let merged = config.merge(&text, path).unwrap();
        prop_assert!(merged.starts_with(text.as_slice()));
        prop_assert_eq!(&config.merge(&merged, path).unwrap(), &merged);
        prop_assert_eq!(&config.without_lines(&merged).unwrap(), &text);
        let settings = ParsedConf::parse(&String::from_utf8_lossy(&merged), path).unwrap().settings;
        prop_assert!(settings.substituters.iter().any(|url| url.trim_end_matches('/') == URL));
        prop_assert!(settings.trusted_public_keys.iter().any(|key| key == KEY));
        prop_assert!(!exclusive || settings.trusted_public_keys.iter().all(|key| key == KEY));
    }

    #[test]
    fn no_text_makes_merging_panic(text in proptest::collection::vec(any::<u8>(), 0..200), at in 0_usize..200) {
        let config = config(false);
        let path = Path::new("/nowhere/nix.conf");
        let _ = config.merge(&text, path);
        let whole = config.merge(b"a = b\n", path).unwrap();
        // A truncated file is merged into again, or refused.
        let cut = &whole[..at.min(whole.len())];
        if let Ok(merged) = config.merge(cut, path) {
            prop_assert_eq!(config.merge(&merged, path).unwrap(), merged);
        }
    }
}
