//! Who a bucket policy applies to. A principal is validated strictly, because S3 has no wildcards within a principal and
//! treats `*` as everyone.

use clap::ValueEnum as _;
use nar_pack::error::{Error, Result};
use serde::ser::SerializeMap as _;
use serde::{Serialize, Serializer};

use super::arn::Partition;
use super::is_account_id;

/// Maximum length of an ARN in IAM, in bytes.
const MAX_ARN_LENGTH: usize = 2048;
/// Maximum length of an access key ID in IAM.
const MAX_KEY_ID_LENGTH: usize = 128;

/// An account, user or role, as a bucket policy names it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Principal(String);

impl Principal {
    /// Parses `arn:aws:iam::ACCOUNT:root`, `…:user/NAME` or `…:role/NAME` of any partition, or the 12 digits of an
    /// account.
    ///
    /// # Errors
    /// A usage error for anything else.
    pub fn parse(text: &str) -> Result<Self> {
        let invalid = |reason: &str| Error::usage(format!("invalid principal {text:?}: {reason}"));
        if text == "*" {
            return Err(invalid("wildcards are not supported").with_hint("omit --principal to let everyone read"));
        }
        if is_account_id(text) || is_iam_arn(text) {
            return Ok(Self(text.to_owned()));
        }
        let partitions: Vec<String> = Partition::value_variants().iter().map(Partition::to_string).collect();
        Err(invalid(&format!(
            "expected arn:PARTITION:iam::ACCOUNT:user/NAME, …:role/NAME or …:root, or an account ID of 12 digits; \
             the partition is one of {}",
            partitions.join(", ")
        )))
    }

    /// A user of a service that identifies users by access key ID (versitygw, `auth/bucket_policy_principals.go`).
    ///
    /// # Errors
    /// A usage error for text that cannot be an access key ID.
    pub fn from_key_id(text: &str) -> Result<Self> {
        if text.len() > MAX_KEY_ID_LENGTH || !is_iam_name(text) {
            return Err(Error::usage(format!("invalid access key ID {text:?}: expected letters and digits")));
        }
        Ok(Self(text.to_owned()))
    }

    /// Returns the partition of an ARN. An account ID does not determine one.
    pub(super) fn partition(&self) -> Option<Partition> {
        Partition::from_name(self.0.split(':').nth(1)?)
    }
}

fn is_iam_arn(text: &str) -> bool {
    let mut parts = text.splitn(6, ':');
    let mut part = || parts.next().unwrap_or_default();
    let (arn, partition, service, region, account, resource) = (part(), part(), part(), part(), part(), part());
    let name = resource.strip_prefix("user/").or_else(|| resource.strip_prefix("role/"));
    text.len() <= MAX_ARN_LENGTH
        && (arn, service, region) == ("arn", "iam", "")
        && Partition::from_name(partition).is_some()
        && is_account_id(account)
        && (resource == "root" || name.is_some_and(|name| name.split('/').all(is_iam_name)))
}

/// Whether `text` consists of the characters that IAM allows in a name.
fn is_iam_name(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || "+=,.@_-".contains(c))
}

/// The principals of a statement: everyone, or a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Principals(Vec<Principal>);

impl Principals {
    /// Creates a list without duplicates, in the order given. An empty list means everyone.
    #[must_use]
    pub fn new(mut principals: Vec<Principal>) -> Self {
        let mut seen = Vec::with_capacity(principals.len());
        principals.retain(|principal| {
            let is_new = !seen.contains(principal);
            seen.extend(is_new.then(|| principal.clone()));
            is_new
        });
        Self(principals)
    }

    /// Everyone, with or without credentials.
    #[must_use]
    pub fn everybody() -> Self {
        Self(Vec::new())
    }
}

/// `"*"`, or `{"AWS": [...]}`.
impl Serialize for Principals {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.0.is_empty() {
            return serializer.serialize_str("*");
        }
        let mut map = serializer.serialize_map(Some(1))?;
        map.serialize_entry("AWS", &self.0)?;
        map.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_malformed_principal_is_refused() {
        for text in [
            "",
            "*",
            "alice",
            "12345678901",
            "1234567890123",
            "12345678901a",
            "١٢٣٤٥٦٧٨٩٠١٢",
            "arn",
            "arn:aws:iam::123456789012",
            "arn:aws:iam::123456789012:",
            "arn:aws:iam::123456789012:*",
            "arn:aws:iam::123456789012:user/",
            "arn:aws:iam::123456789012:user/*",
            "arn:aws:iam::123456789012:user/a//b",
            "arn:aws:iam::123456789012:user/a b",
            "arn:aws:iam::123456789012:user/a\nb",
            "arn:aws:iam::123456789012:user/a\"b",
            "arn:aws:iam::123456789012:user/${aws:username}",
            "arn:aws:iam::123456789012:group/readers",
            "arn:aws:iam::123456789012:root/x",
            "arn:aws:iam:eu-west-2:123456789012:root",
            "arn:aws:iam::*:root",
            "arn:aws:iam:::root",
            "arn:aws:s3:::my-cache",
            "arn:gcp:iam::123456789012:root",
            "ARN:aws:iam::123456789012:root",
            " arn:aws:iam::123456789012:root",
        ] {
            let error = Principal::parse(text).unwrap_err();
            assert_eq!(error.exit_status(), 2, "{text:?}: {error}");
            assert!(!error.to_string().contains(char::is_control), "{text:?}: {error}");
        }
        let long = format!("arn:aws:iam::123456789012:user/{}", "a".repeat(MAX_ARN_LENGTH));
        assert_eq!(Principal::parse(&long).unwrap_err().exit_status(), 2);
    }
}
