//! Object options (storage class, encryption, tags, retention, caching) from the command line.

use std::time::{Duration, SystemTime};

use nar_pack::error::{Error, Result};

use crate::cli::{LockMode, ObjectOptionArgs, Sse};
use crate::remote::s3::{Encryption, ObjectLockRetention, ObjectOptions, RetentionMode};

/// Seconds per day.
const SECONDS_PER_DAY: u64 = 24 * 60 * 60;
/// Maximum number of tags of an object (Amazon S3 user guide, "Object tags").
const MAX_TAGS: usize = 10;

/// Returns the options that the flags select.
///
/// # Errors
/// Returns a usage error for invalid tags.
pub fn object_options(args: &ObjectOptionArgs) -> Result<ObjectOptions> {
    let tags = args.tag.iter().map(|tag| parse_tag(tag)).collect::<Result<Vec<_>>>()?;
    if tags.len() > MAX_TAGS {
        return Err(Error::usage(format!("{} tags given: an object can have at most {MAX_TAGS}", tags.len())));
    }
    let retention = args.object_lock_days.map(|days| ObjectLockRetention {
        mode: match args.object_lock_mode {
            LockMode::Governance => RetentionMode::Governance,
            LockMode::Compliance => RetentionMode::Compliance,
        },
        until: SystemTime::now() + Duration::from_secs(u64::from(days) * SECONDS_PER_DAY),
    });
    let encryption = match (&args.sse_kms_key_id, args.sse) {
        (None, None) => None,
        (None, Some(Sse::Aes256)) => Some(Encryption::Aes256),
        (key_id, _) => Some(Encryption::Kms { key_id: key_id.clone() }),
    };
    let (storage_class, cache_control) = (args.storage_class.clone(), args.cache_control.clone());
    Ok(ObjectOptions { storage_class, encryption, tags, retention, cache_control })
}

/// Parses `KEY=VALUE`.
fn parse_tag(tag: &str) -> Result<(String, String)> {
    tag.split_once('=')
        .filter(|(key, value)| !key.is_empty() && key.len() <= 128 && value.len() <= 256)
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .ok_or_else(|| Error::usage(format!("invalid tag {tag:?}: expected KEY=VALUE")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn invalid_tags_are_usage_errors() {
        assert_eq!(parse_tag("team=build farm&co").unwrap(), ("team".to_owned(), "build farm&co".to_owned()));
        assert_eq!(parse_tag("empty=").unwrap(), ("empty".to_owned(), String::new()));
        for tag in ["", "x", "=x", &format!("x={}", "y".repeat(257))] {
            assert!(parse_tag(tag).unwrap_err().is_usage(), "{tag}");
        }
    }
}
