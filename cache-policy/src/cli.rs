//! The command line of `cache-policy`.

use clap::{ArgGroup, Parser};

/// Print the policy documents of a bucket that serves as a Nix binary cache.
///
/// Writes one JSON document to standard output and changes nothing anywhere; the same arguments give the same bytes.
#[derive(Debug, Parser)]
#[command(name = "cache-policy", version, verbatim_doc_comment, after_help = AFTER_HELP,
          group(ArgGroup::new("document").required(true).args(["read_only", "upload"])))]
pub struct Cli {
    /// The bucket: s3://BUCKET[/PREFIX] or the bare name (default: $NIX_S3_CACHE)
    #[arg(value_name = "BUCKET")]
    pub bucket: Option<String>,

    /// Bucket policy that lets everybody read (the Nix manual's DirectReads)
    #[arg(long)]
    pub read_only: bool,

    /// IAM policy for those who upload (the Nix manual's UploadToCache)
    #[arg(long)]
    pub upload: bool,

    /// With --read-only: let only these read (ARN of a user, a role or an account's root, or the 12 digits of an
    /// account); may be given several times
    #[arg(long, value_name = "ARN", requires = "read_only", conflicts_with = "upload")]
    pub principal: Vec<String>,
}

const AFTER_HELP: &str = "\
With a prefix in the URL, s3://BUCKET/PREFIX, the documents cover the objects below BUCKET/PREFIX/
only; what they allow on the bucket itself (to ask for its location and, with --upload, to list it
and its unfinished uploads) stays as it is. The parameters of the URL change nothing.

--read-only does not allow listing the bucket. AWS then answers 403, not 404, for an object that is
not there; s3-pull and Nix take that for missing. --upload does not allow deleting. ARNs of
resources are in the partition (aws, aws-cn or aws-us-gov) of the principals, else in aws.

Examples:
  cache-policy --read-only s3://my-cache > read.json
  aws s3api put-bucket-policy --bucket my-cache --policy file://read.json
  mc anonymous set-json read.json minio/my-cache
  cache-policy --read-only --principal arn:aws:iam::123456789012:role/builders my-cache
  cache-policy --upload my-cache > upload.json
  aws iam create-policy --policy-name cache-upload --policy-document file://upload.json
  mc admin policy create minio cache-upload upload.json

Exit status: 0 done; 1 refused (not the name of a bucket, not a principal, a prefix with *, ? or ${
in it); 2 usage (no bucket, a malformed URL); 141 when the reader of standard output went away.";
