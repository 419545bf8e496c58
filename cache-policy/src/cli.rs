//! The command line of `cache-policy`.

use clap::{ArgGroup, Parser};

/// Print the policy documents of a bucket that serves as a Nix binary cache.
#[derive(Debug, Parser)]
#[command(name = "cache-policy", version, after_help = AFTER_HELP,
          group(ArgGroup::new("document").required(true).args(["read_only", "upload"])))]
pub struct Cli {
    /// The bucket: s3://BUCKET or the bare name (default: $NIX_S3_CACHE)
    #[arg(value_name = "BUCKET")]
    pub bucket: Option<String>,

    /// Bucket policy that lets everybody read (the Nix manual's DirectReads)
    #[arg(long)]
    pub read_only: bool,

    /// IAM policy for those who upload (the Nix manual's UploadToCache)
    #[arg(long)]
    pub upload: bool,

    /// With --read-only: let only these principals read (ARN of a user, role or account); may be given several times
    #[arg(long, value_name = "ARN", requires = "read_only", conflicts_with = "upload")]
    pub principal: Vec<String>,
}

const AFTER_HELP: &str = "\
Examples:
  cache-policy --read-only s3://my-cache > policy.json
  aws s3api put-bucket-policy --bucket my-cache --policy \"$(cache-policy --read-only my-cache)\"
  cache-policy --read-only my-cache > policy.json && mc anonymous set-json policy.json minio/my-cache
  cache-policy --upload my-cache > upload.json && mc admin policy create minio cache-upload upload.json

Exit status: 0 done; 1 refused (not a bucket name, not an ARN); 2 usage; 141 when the reader of standard output went away.";
