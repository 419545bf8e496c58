//! The documents: what each allows, to whom, and where.
//!
//! Every document is a type whose fields stand in the order in which they are printed, so the same request gives the
//! same bytes. There are two kinds of policy. A [`BucketPolicy`] hangs on the bucket and so says whom it is about; an
//! [`IamPolicy`] hangs on a user or role and cannot name one. What a statement may hold is a type of its own
//! ([`Action`], [`Principal`], [`Place`]): text from the command line becomes part of a document only through one.

use std::fmt;

use nar_pack::stage::{Doing, Failure, Outcome};
use serde::ser::SerializeMap as _;
use serde::{Serialize, Serializer};

/// The version of the policy language; there is no newer one.
const VERSION: &str = "2012-10-17";

/// The longest ARN, in bytes, that IAM takes.
const LONGEST_ARN: usize = 2048;

/// A policy on a bucket: it names those who are allowed.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct BucketPolicy {
    id: &'static str,
    version: &'static str,
    statement: Vec<BucketStatement>,
}

/// One statement of a [`BucketPolicy`].
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct BucketStatement {
    sid: &'static str,
    action: &'static [Action],
    effect: Effect,
    resource: Vec<String>,
    principal: Readers,
}

/// A policy on a user, group or role: it is about whoever has it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct IamPolicy {
    version: &'static str,
    statement: Vec<IamStatement>,
}

/// One statement of an [`IamPolicy`].
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct IamStatement {
    sid: &'static str,
    effect: Effect,
    action: &'static [Action],
    resource: Vec<String>,
}

impl BucketPolicy {
    /// The Nix manual's `DirectReads`: some or all may read the cache, nobody may list it.
    #[must_use]
    pub fn read(place: &Place, readers: Readers) -> Self {
        let statement = BucketStatement {
            sid: "AllowDirectReads",
            action: &[Action::GetObject, Action::GetBucketLocation],
            effect: Effect::Allow,
            resource: place.bucket_and_objects(),
            principal: readers,
        };
        Self { id: "DirectReads", version: VERSION, statement: vec![statement] }
    }
}

impl IamPolicy {
    /// The Nix manual's `UploadToCache`: read, list and write, but not delete.
    #[must_use]
    pub fn upload(place: &Place) -> Self {
        let statement = IamStatement {
            sid: "UploadToCache",
            effect: Effect::Allow,
            action: &[
                Action::AbortMultipartUpload,
                Action::GetBucketLocation,
                Action::GetObject,
                Action::ListBucket,
                Action::ListBucketMultipartUploads,
                Action::ListMultipartUploadParts,
                Action::PutObject,
            ],
            resource: place.bucket_and_objects(),
        };
        Self { version: VERSION, statement: vec![statement] }
    }
}

/// What a statement allows.
#[derive(Debug, Clone, Copy, Serialize)]
enum Action {
    #[serde(rename = "s3:AbortMultipartUpload")]
    AbortMultipartUpload,
    #[serde(rename = "s3:GetBucketLocation")]
    GetBucketLocation,
    #[serde(rename = "s3:GetObject")]
    GetObject,
    #[serde(rename = "s3:ListBucket")]
    ListBucket,
    #[serde(rename = "s3:ListBucketMultipartUploads")]
    ListBucketMultipartUploads,
    #[serde(rename = "s3:ListMultipartUploadParts")]
    ListMultipartUploadParts,
    #[serde(rename = "s3:PutObject")]
    PutObject,
}

#[derive(Debug, Clone, Copy, Serialize)]
enum Effect {
    Allow,
}

/// Who may read: everybody, or those who are named.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Readers(Vec<Principal>);

impl Readers {
    /// These, each once, in this order; everybody when there are none.
    #[must_use]
    pub fn new(mut principals: Vec<Principal>) -> Self {
        let mut seen = Vec::with_capacity(principals.len());
        principals.retain(|principal| {
            let new = !seen.contains(principal);
            seen.extend(new.then(|| principal.clone()));
            new
        });
        Self(principals)
    }
}

/// `"*"`, or `{"AWS": [...]}`.
impl Serialize for Readers {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.0.is_empty() {
            return serializer.serialize_str("*");
        }
        let mut map = serializer.serialize_map(Some(1))?;
        map.serialize_entry("AWS", &self.0)?;
        map.end()
    }
}

/// An account, user or role, as a bucket policy names it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Principal(String);

impl Principal {
    /// Parses `arn:aws:iam::ACCOUNT:root`, `…:user/NAME` or `…:role/NAME`, of any partition, or the 12 digits of an
    /// account.
    ///
    /// # Errors
    /// A refusal, for anything else. A wildcard too: S3 knows none within a principal, and takes `*` for everybody.
    pub fn parse(text: &str) -> Outcome<Self> {
        Self::check(text).doing(|| format!("principal {text:?}"))?;
        Ok(Self(text.to_owned()))
    }

    fn check(text: &str) -> Outcome {
        let refused = |why: &str| Err(Failure::refused(why));
        if text == "*" {
            return refused("without --principal everybody may read");
        }
        if is_account(text) {
            return Ok(());
        }
        let expected = "expected arn:aws:iam::ACCOUNT:user/NAME, …:role/NAME or …:root, or an account of 12 digits";
        let mut parts = text.splitn(6, ':');
        let mut part = || parts.next().unwrap_or_default();
        let (arn, partition, service, region, account, resource) = (part(), part(), part(), part(), part(), part());
        if text.len() > LONGEST_ARN || (arn, service, region) != ("arn", "iam", "") || !is_account(account) {
            return refused(expected);
        }
        if Partition::named(partition).is_none() {
            return refused("the partition is none of aws, aws-cn, aws-us-gov");
        }
        let name = resource.strip_prefix("user/").or_else(|| resource.strip_prefix("role/"));
        let plain = |name: &str| name.chars().all(|c| c.is_ascii_alphanumeric() || "+=,.@_-/".contains(c));
        let whole = |name: &str| plain(name) && name.split('/').all(|segment| !segment.is_empty());
        if resource == "root" || name.is_some_and(whole) { Ok(()) } else { refused(expected) }
    }

    /// The partition of an ARN; an account's number tells none.
    fn partition(&self) -> Option<Partition> {
        Partition::named(self.0.split(':').nth(1)?)
    }
}

fn is_account(text: &str) -> bool {
    text.len() == 12 && text.bytes().all(|b| b.is_ascii_digit())
}

/// A part of AWS that shares no accounts with the others; services that are not AWS use the name of the first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Partition {
    /// All but the two below.
    #[default]
    Aws,
    /// China.
    AwsCn,
    /// The United States' government.
    AwsUsGov,
}

impl Partition {
    fn named(name: &str) -> Option<Self> {
        [Self::Aws, Self::AwsCn, Self::AwsUsGov].into_iter().find(|partition| partition.name() == name)
    }

    fn name(self) -> &'static str {
        match self {
            Self::Aws => "aws",
            Self::AwsCn => "aws-cn",
            Self::AwsUsGov => "aws-us-gov",
        }
    }

    /// The partition that the principals are of, and so the bucket that they read.
    ///
    /// # Errors
    /// A refusal when they are of different ones, between which there are no permissions.
    pub fn of(principals: &[Principal]) -> Outcome<Self> {
        let mut partitions = principals.iter().filter_map(Principal::partition);
        let Some(first) = partitions.next() else { return Ok(Self::default()) };
        match partitions.find(|&other| other != first) {
            None => Ok(first),
            Some(other) => Err(Failure::refused(format!("principals of {first} and of {other} cannot share a bucket"))),
        }
    }
}

impl fmt::Display for Partition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A bucket and the objects of the cache in it.
#[derive(Debug, Clone)]
pub struct Place {
    partition: Partition,
    bucket: String,
    prefix: String,
}

impl Place {
    /// A bucket, and the prefix of its keys: empty, or ending in a slash.
    ///
    /// # Errors
    /// A refusal of a prefix that would mean something else in a policy: `*` and `?` match other keys there, `${…}` is
    /// a variable.
    pub fn new(partition: Partition, bucket: &str, prefix: &str) -> Outcome<Self> {
        if prefix.contains(['*', '?']) || prefix.contains("${") {
            return Err(Failure::refused(format!(
                "prefix {prefix:?}: *, ? and ${{ have a meaning of their own in a policy"
            )));
        }
        Ok(Self { partition, bucket: bucket.to_owned(), prefix: prefix.to_owned() })
    }

    /// The ARN of the bucket, and the one of all objects below the prefix.
    fn bucket_and_objects(&self) -> Vec<String> {
        let Self { partition, bucket, prefix } = self;
        vec![format!("arn:{partition}:s3:::{bucket}"), format!("arn:{partition}:s3:::{bucket}/{prefix}*")]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const USER: &str = "arn:aws:iam::123456789012:user/ci/alice";

    fn text(document: &impl Serialize) -> String {
        serde_json::to_string_pretty(document).unwrap()
    }

    fn at(bucket: &str, prefix: &str) -> Place {
        Place::new(Partition::Aws, bucket, prefix).unwrap()
    }

    fn named(principals: &[&str]) -> Readers {
        Readers::new(principals.iter().map(|text| Principal::parse(text).unwrap()).collect())
    }

    #[test]
    fn direct_reads_is_that_of_the_manual() {
        let golden = r#"{
  "Id": "DirectReads",
  "Version": "2012-10-17",
  "Statement": [
    {
      "Sid": "AllowDirectReads",
      "Action": [
        "s3:GetObject",
        "s3:GetBucketLocation"
      ],
      "Effect": "Allow",
      "Resource": [
        "arn:aws:s3:::example-nix-cache",
        "arn:aws:s3:::example-nix-cache/*"
      ],
      "Principal": "*"
    }
  ]
}"#;
        assert_eq!(text(&BucketPolicy::read(&at("example-nix-cache", ""), named(&[]))), golden);
    }

    #[test]
    fn upload_to_cache_is_that_of_the_manual() {
        let golden = r#"{
  "Version": "2012-10-17",
  "Statement": [
    {
      "Sid": "UploadToCache",
      "Effect": "Allow",
      "Action": [
        "s3:AbortMultipartUpload",
        "s3:GetBucketLocation",
        "s3:GetObject",
        "s3:ListBucket",
        "s3:ListBucketMultipartUploads",
        "s3:ListMultipartUploadParts",
        "s3:PutObject"
      ],
      "Resource": [
        "arn:aws:s3:::example-nix-cache",
        "arn:aws:s3:::example-nix-cache/*"
      ]
    }
  ]
}"#;
        assert_eq!(text(&IamPolicy::upload(&at("example-nix-cache", ""))), golden);
    }

    #[test]
    fn a_prefix_narrows_the_objects_and_not_the_bucket() {
        let expected = ["arn:aws:s3:::cache", "arn:aws:s3:::cache/a/b/*"];
        assert_eq!(at("cache", "a/b/").bucket_and_objects(), expected);
        for hostile in ["*/", "a?/", "${aws:username}/", "a/b*c/"] {
            let failure = Place::new(Partition::Aws, "cache", hostile).unwrap_err();
            assert_eq!(failure.exit_code(), 1, "{hostile}: {failure}");
        }
        assert_eq!(at("cache", "\"quoted$/").bucket_and_objects()[1], "arn:aws:s3:::cache/\"quoted$/*");
    }

    #[test]
    fn readers_are_a_list_each_once_in_their_order() {
        let readers = named(&["999999999999", USER, "999999999999"]);
        let policy: serde_json::Value =
            serde_json::from_str(&text(&BucketPolicy::read(&at("cache", ""), readers))).unwrap();
        assert_eq!(policy["Statement"][0]["Principal"], serde_json::json!({ "AWS": ["999999999999", USER] }));
        assert_eq!(text(&named(&[USER])), format!("{{\n  \"AWS\": [\n    \"{USER}\"\n  ]\n}}"));
    }

    #[test]
    fn principals_of_every_partition() {
        let of = |texts: &[&str]| {
            Partition::of(&texts.iter().map(|text| Principal::parse(text).unwrap()).collect::<Vec<_>>())
        };
        let china = "arn:aws-cn:iam::123456789012:role/service-role/nix.cache_+=,@-reader";
        let government = "arn:aws-us-gov:iam::123456789012:root";
        assert_eq!(of(&[]).unwrap(), Partition::Aws);
        assert_eq!(of(&["123456789012"]).unwrap(), Partition::Aws);
        assert_eq!(of(&["123456789012", china, china]).unwrap(), Partition::AwsCn);
        assert_eq!(of(&[government]).unwrap(), Partition::AwsUsGov);
        assert_eq!(of(&[USER, government]).unwrap_err().exit_code(), 1);
        let place = Place::new(Partition::AwsCn, "cache", "").unwrap();
        assert_eq!(place.bucket_and_objects(), ["arn:aws-cn:s3:::cache", "arn:aws-cn:s3:::cache/*"]);
    }

    #[test]
    fn what_is_no_principal_is_refused() {
        for hostile in [
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
            let failure = Principal::parse(hostile).unwrap_err();
            assert_eq!(failure.exit_code(), 1, "{hostile:?}: {failure}");
            assert!(!failure.to_string().contains(char::is_control), "{hostile:?}: {failure}");
        }
        let long = format!("arn:aws:iam::123456789012:user/{}", "a".repeat(LONGEST_ARN));
        assert_eq!(Principal::parse(&long).unwrap_err().exit_code(), 1);
    }
}
