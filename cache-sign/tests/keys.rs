//! Property tests of the parsers of keys, signatures and nix.conf.

#![allow(clippy::unwrap_used)] // a failed unwrap fails the test

use std::path::Path;

use cache_sign::keys::{PublicKey, SecretKey, key_name};
use cache_sign::nix_conf::ParsedConf;
use proptest::prelude::*;

proptest! {
    #[test]
    fn a_parsed_key_is_written_unchanged(name in "[!\"$-9;-~]{1,20}", text in "\\PC{0,40}") {
        let secret = SecretKey::generate(&name).unwrap();
        let file = secret.to_file_text();
        prop_assert_eq!(&*SecretKey::parse(&file).unwrap().to_file_text(), &*file);
        let public = secret.public();
        prop_assert_eq!(&PublicKey::parse(&public.to_string()).unwrap(), &public);
        let signature = secret.sign(&text);
        prop_assert!(public.verifies(&text, &signature) && key_name(&signature) == name);
        let longer = text + "x";
        prop_assert!(!public.verifies(&longer, &signature));
    }

    #[test]
    fn arbitrary_text_is_refused_without_a_panic(text in "\\PC{0,100}", digits in "[A-Za-z0-9+/=]{0,100}") {
        for text in [text.clone(), format!("k:{digits}"), format!("{text}:{digits}")] {
            if let Ok(key) = PublicKey::parse(&text) {
                prop_assert_eq!(key.to_string(), text.trim());
            }
            if let Err(error) = SecretKey::parse(&text) {
                prop_assert!(digits.len() < 8 || !error.message().contains(&digits));
            }
        }
    }

    #[test]
    fn a_changed_signature_does_not_verify(at in 2_usize..90, with: char) {
        let secret = SecretKey::generate("k").unwrap();
        let good = secret.sign("1;x");
        let mut broken: Vec<char> = good.chars().collect();
        let at = at.min(broken.len() - 1);
        broken[at] = with;
        let broken: String = broken.into_iter().collect();
        prop_assert_eq!(secret.public().verifies("1;x", &broken), broken == good);
    }

    #[test]
    fn settings_are_parsed_with_any_whitespace(
        words in proptest::collection::vec("[a-z:/.]{1,12}", 1..5), join in "[ \t\r]{1,3}", end in "\\\\?\r?",
    ) {
        let text = format!("# x{end}\nsubstituters = a {end}\nsubstituters ={join}{}\n", words.join(&join));
        let parsed = ParsedConf::parse(&text, Path::new("/nowhere/nix.conf")).unwrap();
        prop_assert_eq!(parsed.settings.substituters, words);
    }

    #[test]
    fn no_text_makes_the_nix_conf_parser_panic(text in "(\\PC|[ =#\n\r\t\\\\]|include|!){0,60}") {
        // A missing included file is the only error.
        if let Err(error) = ParsedConf::parse(&text, Path::new("/nowhere/nix.conf")) {
            prop_assert!(error.message().contains("not found"), "{}", error);
        }
    }
}
