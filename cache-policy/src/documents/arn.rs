//! Partitions, and the ARNs of a bucket and of the objects below a prefix.

use std::fmt;

use clap::ValueEnum;
use nar_pack::error::{Error, Result};
use s3_push::remote::location::partition_of;

use super::principal::Principal;

/// A group of AWS regions with accounts of its own. Other S3-compatible services use the name `aws`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Partition {
    /// All regions that are not in another partition
    #[default]
    Aws,
    /// The regions in China
    AwsCn,
    /// AWS GovCloud (US)
    AwsUsGov,
    /// The AWS European Sovereign Cloud
    AwsEusc,
    /// The isolated regions of the US
    AwsIso,
    /// The isolated regions of the US, Secret
    AwsIsoB,
    /// The isolated regions of Europe
    AwsIsoE,
    /// The isolated regions of the US, ISOF
    AwsIsoF,
}

impl Partition {
    /// Returns the partition with this name, if there is one.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::value_variants().iter().copied().find(|partition| partition.name() == name)
    }

    fn name(self) -> &'static str {
        match self {
            Self::Aws => "aws",
            Self::AwsCn => "aws-cn",
            Self::AwsUsGov => "aws-us-gov",
            Self::AwsEusc => "aws-eusc",
            Self::AwsIso => "aws-iso",
            Self::AwsIsoB => "aws-iso-b",
            Self::AwsIsoE => "aws-iso-e",
            Self::AwsIsoF => "aws-iso-f",
        }
    }

    /// Returns the partition of a region.
    #[must_use]
    pub fn of_region(region: &str) -> Self {
        let (name, _) = partition_of(region);
        Self::from_name(name).unwrap_or_default()
    }

    /// Returns the partition of the principals, or none if no principal is an ARN.
    ///
    /// # Errors
    /// A usage error if the principals are in different partitions: permissions cannot cross partitions.
    pub fn of_principals(principals: &[Principal]) -> Result<Option<Self>> {
        let mut partitions = principals.iter().filter_map(Principal::partition);
        let Some(first) = partitions.next() else { return Ok(None) };
        match partitions.find(|&other| other != first) {
            None => Ok(Some(first)),
            Some(other) => Err(Error::usage(format!(
                "the principals are in different partitions, {first} and {other}: permissions cannot cross partitions"
            ))),
        }
    }
}

impl fmt::Display for Partition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A bucket and the objects of the cache in it, as ARNs.
#[derive(Debug, Clone)]
pub struct BucketArns {
    partition: Partition,
    bucket: String,
    prefix: String,
}

impl BucketArns {
    /// Creates the ARNs of a bucket and of the keys below a prefix, which is empty or ends in a slash.
    ///
    /// # Errors
    /// A usage error for a prefix with `*`, `?` or `${`, which are wildcards and variables in a policy.
    pub fn new(partition: Partition, bucket: &str, prefix: &str) -> Result<Self> {
        check_prefix(prefix)?;
        Ok(Self { partition, bucket: bucket.to_owned(), prefix: prefix.to_owned() })
    }

    /// Returns the prefix of the keys.
    pub(super) fn prefix(&self) -> &str {
        &self.prefix
    }

    /// Returns the ARN of the bucket.
    pub(super) fn bucket(&self) -> String {
        format!("arn:{}:s3:::{}", self.partition, self.bucket)
    }

    /// Returns the ARN that matches all objects below the prefix.
    pub(super) fn objects(&self) -> String {
        self.objects_below("")
    }

    /// Returns the ARN that matches all objects in a directory below the prefix. `directory` ends in a slash.
    pub(super) fn objects_below(&self, directory: &str) -> String {
        format!("arn:{}:s3:::{}/{}{directory}*", self.partition, self.bucket, self.prefix)
    }
}

/// Rejects a prefix that has a special meaning in a policy.
pub(super) fn check_prefix(prefix: &str) -> Result {
    if prefix.contains(['*', '?']) || prefix.contains("${") {
        return Err(Error::usage(format!(
            "invalid prefix {prefix:?}: it must not contain *, ? or ${{, which have a special meaning in policies"
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_partition_follows_from_principals_and_region() {
        let of = |texts: &[&str]| {
            Partition::of_principals(&texts.iter().map(|text| Principal::parse(text).unwrap()).collect::<Vec<_>>())
        };
        let user = "arn:aws:iam::123456789012:user/ci/alice";
        let china = "arn:aws-cn:iam::123456789012:role/service-role/nix.cache_+=,@-reader";
        let government = "arn:aws-us-gov:iam::123456789012:root";
        assert_eq!(of(&[]).unwrap(), None);
        assert_eq!(of(&["123456789012"]).unwrap(), None);
        assert_eq!(of(&["123456789012", china, china]).unwrap(), Some(Partition::AwsCn));
        assert_eq!(of(&[government]).unwrap(), Some(Partition::AwsUsGov));
        assert_eq!(Partition::of_region("cn-north-1"), Partition::AwsCn);
        assert_eq!(Partition::of_region("us-gov-west-1"), Partition::AwsUsGov);
        assert_eq!(Partition::of_region("eusc-de-east-1"), Partition::AwsEusc);
        assert_eq!(Partition::of_region("us-iso-east-1"), Partition::AwsIso);
        assert_eq!(Partition::of_region("us-isob-east-1"), Partition::AwsIsoB);
        assert_eq!(Partition::of_region("eu-isoe-west-1"), Partition::AwsIsoE);
        assert_eq!(Partition::of_region("us-isof-south-1"), Partition::AwsIsoF);
        assert_eq!(Partition::of_region("eu-west-2"), Partition::Aws);
        assert_eq!(of(&[user, government]).unwrap_err().exit_status(), 2);
        let arns = BucketArns::new(Partition::AwsCn, "cache", "").unwrap();
        assert_eq!(
            (arns.bucket().as_str(), arns.objects().as_str()),
            ("arn:aws-cn:s3:::cache", "arn:aws-cn:s3:::cache/*")
        );
    }
}
