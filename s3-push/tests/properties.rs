//! Properties of the readers of what users and services write: URLs, names of pins and entity tags.

#![allow(clippy::unwrap_used)] // a test fails by panicking

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use proptest::collection::vec;
use proptest::prelude::*;
use s3_push::remote::etag::{EtagComparison, md5_hex, md5_tag, md5_tag_of};
use s3_push::remote::location::Location;
use s3_push::remote::pins::{ListedPin, PinName, Retention};

/// Text that resembles a URL of a bucket.
fn urls() -> impl Strategy<Value = String> {
    let parameter =
        prop_oneof!["region", "endpoint", "scheme", "profile", "addressing-style", "priority", "[ -~]{0,9}"];
    let query = vec((parameter, "[ -~]{0,9}").prop_map(|(name, value)| format!("{name}={value}")), 0..4);
    ("[a-z0-9.@-]{0,9}", "(/[ -~]{0,9})?", query).prop_map(|(bucket, prefix, query)| {
        let query = if query.is_empty() { String::new() } else { format!("?{}", query.join("&")) };
        format!("s3://{bucket}{prefix}{query}")
    })
}

fn pins() -> impl Strategy<Value = Vec<ListedPin>> {
    let pin = ("(a|b)/[a-z]{1,2}|[a-z]", 0_u64..5).prop_map(|(name, days)| ListedPin {
        name: PinName::parse(&name).unwrap(),
        last_modified: SystemTime::UNIX_EPOCH + Duration::from_hours(24 * days),
    });
    vec(pin, 0..12).prop_map(|mut pins| {
        pins.sort_by(|a, b| a.name.cmp(&b.name));
        pins.dedup_by(|a, b| a.name == b.name);
        pins
    })
}

proptest! {
    /// No URL is a panic, and no message is more than one line or reveals a password before an @.
    #[test]
    fn a_url_is_a_bucket_or_a_usage_error(url in urls(), other in ".{0,30}") {
        for text in [url, other] {
            match Location::parse(&text) {
                Ok(location) => {
                    prop_assert!((3..=63).contains(&location.bucket.len()), "{}", location.bucket);
                    prop_assert!(location.prefix.is_empty() || location.prefix.ends_with('/'));
                    prop_assert!(location.key("x").ends_with('x'));
                }
                Err(error) => {
                    prop_assert!(error.is_usage() && !error.to_string().contains(char::is_control), "{error}");
                    let password = text.split('?').next().unwrap_or_default().rsplit_once('@');
                    let password = password.map(|(before, _)| before.trim_start_matches("s3://"));
                    let is_revealed = password.is_some_and(|secret| secret.len() > 3 && error.message().contains(secret));
                    prop_assert!(!is_revealed, "{error}");
                }
            }
        }
    }

    #[test]
    fn an_accepted_pin_name_is_its_key(name in "[a-zA-Z0-9._+@=/-]{0,20}|.{0,20}") {
        if let Ok(pin) = PinName::parse(&name) {
            prop_assert_eq!(pin.as_str(), &name);
            prop_assert_eq!(pin.key(), format!("pins/{name}"));
            prop_assert!(!name.contains("//") && !name.split('/').any(|part| part == ".."));
        }
    }

    #[test]
    fn entity_tags_are_read_in_any_form(text in "[0-9a-fA-F\"-]{0,36}|.{0,36}", contents: Vec<u8>) {
        let _ = md5_tag(&text);
        prop_assert_eq!(md5_tag(&format!("\"{}\"", md5_hex(&contents))), Some(md5_tag_of(&contents)));
    }

    /// The tag of a multipart upload is that of the tags of its parts.
    #[test]
    fn a_body_is_compared_as_s3_computes_its_tag(body in vec(any::<u8>(), 1..200), part_size in 1_usize..60, changed: bool) {
        let tags: Vec<u8> = body.chunks(part_size).flat_map(md5_tag_of).collect();
        let count = body.chunks(part_size).count();
        for etag in [md5_hex(&body), format!("{}-{count}", md5_hex(&tags))] {
            let Some(mut comparison) = EtagComparison::new(&etag, body.len() as u64, part_size as u64) else {
                return Err(TestCaseError::fail(format!("{etag} cannot be compared")));
            };
            let mut stored = body.clone();
            stored[0] ^= u8::from(changed);
            stored.chunks(part_size).for_each(|part| comparison.add_part(part));
            prop_assert_eq!(comparison.matches(), !changed);
        }
        let other_count = format!("{}-{}", md5_hex(&tags), count + 1);
        prop_assert!(EtagComparison::new(&other_count, body.len() as u64, part_size as u64).is_none());
    }

    /// Each pin counts or not; a newer pin of another group changes nothing, and one of the same group removes at most one.
    #[test]
    fn a_pin_affects_only_its_group(pins in pins(), keep_last in proptest::option::of(0_usize..4), within: Option<u8>) {
        let keep_within = within.map(|days| Duration::from_hours(24 * u64::from(days % 6)));
        let retention = Retention { keep_last, keep_within };
        let now = SystemTime::UNIX_EPOCH + Duration::from_hours(24 * 5);
        let names = |pins: &[ListedPin]| pins.iter().map(|pin| pin.name.clone()).collect::<BTreeSet<_>>();
        let (kept, expired) = retention.split(pins.clone(), now);
        prop_assert_eq!(kept.len() + expired.len(), pins.len());
        prop_assert!(names(&kept).is_disjoint(&names(&expired)));
        for (name, max_lost) in [("c/new", 0), ("new", 0), ("a/new", 1)] {
            let new = ListedPin { name: PinName::parse(name).unwrap(), last_modified: now };
            let (kept_with_new, _) = retention.split([pins.clone(), vec![new]].concat(), now);
            let lost: Vec<_> = names(&kept).difference(&names(&kept_with_new)).cloned().collect();
            prop_assert!(lost.len() <= max_lost && lost.iter().all(|name| name.as_str().starts_with("a/")), "{lost:?}");
        }
    }
}
