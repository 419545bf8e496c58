//! Laws of merging into a nix.conf, for any text.

#![allow(clippy::unwrap_used)] // a test that cannot go on has failed

use std::path::Path;

use cache_policy::nix_conf::Client;
use cache_sign::keys::PublicKey;
use cache_sign::nix_conf::Reading;
use proptest::prelude::*;

const KEY: &str = "a-1:gKkVNqzMzpoNLo6VNl1o+5QLrbnCTwKuuNTTjwwPUk4=";
const URL: &str = "https://cache.example.org";

fn client(only: bool) -> Client {
    Client::new(URL, false, &[PublicKey::parse(KEY).unwrap()], only).unwrap()
}

/// Lines as people write them, and some that they do not. No include: that needs a file.
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
    fn merged_twice_is_merged_once_and_taken_out_is_what_it_was(text in text(), only: bool) {
        let (client, path) = (client(only), Path::new("/nowhere/nix.conf"));
        let merged = client.merge(&text, path).unwrap();
        prop_assert!(merged.starts_with(text.as_slice()));
        prop_assert_eq!(&client.merge(&merged, path).unwrap(), &merged);
        prop_assert_eq!(&client.without(&merged).unwrap(), &text);
        let settings = Reading::of_text(&String::from_utf8_lossy(&merged), path).unwrap().settings;
        prop_assert!(settings.substituters.iter().any(|url| url.trim_end_matches('/') == URL));
        prop_assert!(settings.trusted_public_keys.iter().any(|key| key == KEY));
        prop_assert!(!only || settings.trusted_public_keys.iter().all(|key| key == KEY));
    }

    #[test]
    fn no_text_makes_it_panic(text in proptest::collection::vec(any::<u8>(), 0..200), at in 0_usize..200) {
        let client = client(false);
        let path = Path::new("/nowhere/nix.conf");
        let _ = client.merge(&text, path);
        let whole = client.merge(b"a = b\n", path).unwrap();
        // Whatever is cut off from a merged file is merged into again, or refused.
        let cut = &whole[..at.min(whole.len())];
        if let Ok(again) = client.merge(cut, path) {
            prop_assert_eq!(client.merge(&again, path).unwrap(), again);
        }
    }
}
