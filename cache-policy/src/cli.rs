//! The command line of `cache-policy`. Contains only clap definitions; `mode` turns them into one typed mode.

#![allow(rustdoc::bare_urls)] // Help texts show URLs as they are typed.

use std::path::PathBuf;

use cache_sign::cli::TrustedKeyArgs;
use clap::{ArgAction, ArgGroup, Parser};
use nar_pack::option_values::parse_number;

use crate::documents::arn::Partition;
use crate::infrastructure::Format;

/// Print the policies of a bucket that serves as a Nix binary cache, and the nix.conf of its clients
///
/// Writes one document to standard output, and changes nothing except with --write and --remove. The same arguments always give the same bytes.
#[derive(Debug, Parser)]
#[command(
    name = "cache-policy", version, max_term_width = 100, after_help = AFTER_HELP, after_long_help = AFTER_LONG_HELP,
    override_usage = "cache-policy <DOCUMENT> [OPTIONS] [BUCKET]",
    disable_help_flag = true, disable_version_flag = true,
    group(ArgGroup::new("document").required(true)
        .args(["read_only", "upload", "admin", "collect", "lifecycle", "cors", "oidc_trust", "nix_conf", "landing_page", "check_url"]))
)]
pub struct Cli {
    /// Bucket, s3://BUCKET[/PREFIX] or a bare name [default: $NIX_S3_CACHE]
    ///
    /// With --nix-conf and --landing-page it can also be the https:// URL of the cache.
    #[arg(value_name = "BUCKET", help_heading = "Input")]
    pub bucket: Option<String>,

    /// Print a policy for reading
    ///
    /// By default it is the bucket policy of the Nix manual, which lets everyone read; with --principal it lets only those principals read. With --identity it is a policy for users and roles.
    #[arg(long, help_heading = "Document (exactly one)")]
    pub read_only: bool,

    /// Print a policy for uploading
    ///
    /// By default it is the identity policy of the Nix manual, for users and roles; with --principal it is a bucket policy.
    #[arg(long, help_heading = "Document (exactly one)")]
    pub upload: bool,

    /// Print a policy for deleting objects and setting lifecycle rules
    ///
    /// By default it is an identity policy for users and roles; with --principal it is a bucket policy.
    #[arg(long, help_heading = "Document (exactly one)")]
    pub admin: bool,

    /// Print a policy for collecting garbage
    ///
    /// It lets a user read, list and delete, and write below gc/ only, as 's3-push collect', 'delete' and 'unpin' do. By default it is an identity policy for users and roles; with --principal it is a bucket policy.
    #[arg(long, help_heading = "Document (exactly one)")]
    pub collect: bool,

    /// Print a rule that aborts uploads incomplete after DAYS [default: 7]
    ///
    /// A value that follows is taken for DAYS: write --lifecycle 7 my-cache, not --lifecycle my-cache.
    #[arg(
        long, value_name = "DAYS", value_parser = parse_number(1_u16..=3650), num_args = 0..=1,
        default_missing_value = "7", help_heading = "Document (exactly one)"
    )]
    pub lifecycle: Option<u16>,

    /// Print a CORS configuration that lets web pages read
    #[arg(long, help_heading = "Document (exactly one)")]
    pub cors: bool,

    /// Print the trust policy of a role for CI jobs
    ///
    /// PROVIDER is the host of the OpenID Connect provider, with the path if it has one, such as token.actions.githubusercontent.com.
    #[arg(
        long, value_name = "PROVIDER", requires_all = ["account", "subject"], help_heading = "Document (exactly one)"
    )]
    pub oidc_trust: Option<String>,

    /// Print the nix.conf lines of a client
    ///
    /// An s3:// URL is written in the form that all versions of Nix and Lix read; see --check-url.
    #[arg(long, help_heading = "Document (exactly one)")]
    pub nix_conf: bool,

    /// Print a web page that tells visitors how to use the cache
    ///
    /// Upload it with 's3-push --key index.html'. It has the lines for nix.conf, NixOS and a flake. It loads nothing from elsewhere, and works without scripts. An s3:// URL is written without parameters that concern only one user, such as profile.
    #[arg(long, help_heading = "Document (exactly one)")]
    pub landing_page: bool,

    /// Print what an s3:// URL means, and whether every client reads it
    ///
    /// Nix 2.33 to 2.35.2 cannot read an endpoint without a scheme (endpoint=HOST:PORT), and later versions deprecate the parameter scheme. Exits with status 1 for such a URL, and prints the form that all versions read.
    #[arg(long, help_heading = "Document (exactly one)")]
    pub check_url: bool,

    /// Print a policy or lifecycle rule as json, tofu or cloudformation [default: json]
    ///
    /// tofu prints a resource of the provider hashicorp/aws for OpenTofu and Terraform, and cloudformation a template with one resource. A bucket policy and lifecycle rules name the bucket, and replace what it has. With cloudformation, the lifecycle rules are part of the bucket itself: the template creates it, or imports it into a stack.
    #[arg(long, value_enum, hide_possible_values = true, help_heading = "Policies")]
    pub format: Option<Format>,

    /// With --lifecycle, add a rule that expires old versions after DAYS
    ///
    /// For a bucket with versioning: a deleted or replaced object can be restored for DAYS. The rule also removes delete markers that hide no version.
    #[arg(
        long, value_name = "DAYS", value_parser = parse_number(1_u16..=3650), requires = "lifecycle",
        help_heading = "Lifecycle", hide_short_help = true
    )]
    pub noncurrent: Option<u16>,

    /// Allow only what these tools need in --read-only and --upload
    ///
    /// The policies of the Nix manual, which are the default, also allow s3:GetBucketLocation, which other clients may call, and have one statement for the bucket and its objects.
    #[arg(long, help_heading = "Policies", hide_short_help = true)]
    pub minimal: bool,

    /// Allow only this user, role or account; can be repeated
    ///
    /// The value is the ARN of a user, of a role or of the root of an account, or the 12 digits of an account ID.
    #[arg(long, value_name = "ARN", help_heading = "Policies")]
    pub principal: Vec<String>,

    /// Allow only the user with this access key ID; can be repeated
    ///
    /// For services that identify users by access key ID, such as versitygw.
    #[arg(long, value_name = "ID", conflicts_with = "principal", help_heading = "Policies", hide_short_help = true)]
    pub principal_key_id: Vec<String>,

    /// Print --read-only as a policy for users and roles
    #[arg(
        long, requires = "read_only", conflicts_with_all = ["principal", "principal_key_id"], help_heading = "Policies",
        hide_short_help = true
    )]
    pub identity: bool,

    /// Allow listing in --read-only
    ///
    /// Readers can then list the keys of everything that was ever published, and a missing object is answered with 404 instead of 403.
    #[arg(long, requires = "read_only", help_heading = "Policies", hide_short_help = true)]
    pub allow_list: bool,

    /// Deny requests without TLS
    ///
    /// Applies to requests for the bucket itself and for objects below the prefix.
    #[arg(long, help_heading = "Policies", hide_short_help = true)]
    pub require_tls: bool,

    /// Allow only requests from this address or CIDR range; can be repeated
    ///
    /// A range is written with its first address, such as 192.0.2.0/24.
    #[arg(long, value_name = "CIDR", help_heading = "Policies", hide_short_help = true)]
    pub source_ip: Vec<String>,

    /// Allow only requests through this VPC endpoint; can be repeated
    #[arg(long, value_name = "ID", conflicts_with = "source_ip", help_heading = "Policies", hide_short_help = true)]
    pub vpc_endpoint: Vec<String>,

    /// Set the AWS partition of the bucket
    ///
    /// The default is the partition of the principals, else that of the region in the URL, else aws.
    #[arg(long, value_enum, help_heading = "Policies", hide_short_help = true)]
    pub partition: Option<Partition>,

    /// Allow only web pages of this origin; can be repeated
    ///
    /// An origin is a scheme and a host, such as https://example.org. The default is all origins.
    #[arg(
        long,
        value_name = "ORIGIN",
        requires = "cors",
        help_heading = "CORS and OIDC trust",
        hide_short_help = true
    )]
    pub origin: Vec<String>,

    /// Set the account ID of the role
    #[arg(
        long,
        value_name = "DIGITS",
        requires = "oidc_trust",
        help_heading = "CORS and OIDC trust",
        hide_short_help = true
    )]
    pub account: Option<String>,

    /// Allow only jobs whose token has this subject; can be repeated
    ///
    /// The section "Subjects" below describes the values.
    #[arg(long, value_name = "SUBJECT", requires = "oidc_trust", help_heading = "CORS and OIDC trust")]
    pub subject: Vec<String>,

    /// Set the audience of the token [default: sts.amazonaws.com]
    #[arg(long, value_name = "AUDIENCE", help_heading = "CORS and OIDC trust", hide_short_help = true)]
    pub audience: Option<String>,

    /// The keys that clients trust
    #[command(flatten)]
    pub keys: TrustedKeyArgs,

    /// Use the https:// URL of the bucket instead of s3://, or that of HOST
    ///
    /// For a bucket that everyone may read. The URL is http:// if that of the bucket says so. HOST is the name of a CDN or proxy that serves the bucket, with a port if needed; a prefix follows it. HOST requires BUCKET: without it, --nix-conf takes the value of --https as the bucket.
    #[arg(long, value_name = "HOST", num_args = 0..=1, help_heading = "nix.conf")]
    pub https: Option<Option<String>>,

    /// Replace all other caches and keys
    ///
    /// Writes substituters and trusted-public-keys instead of the settings with the prefix extra-.
    #[arg(long, requires = "nix_conf", help_heading = "nix.conf", hide_short_help = true)]
    pub only: bool,

    /// Add the setting that a host needs in order to push with Nix
    ///
    /// Sets narinfo-cache-positive-ttl to 0, so that Nix asks the cache whether it has a path instead of its own database, which keeps an answer for 30 days. Without it, Nix does not push a path again that was deleted from the cache.
    #[arg(long, requires = "nix_conf", help_heading = "nix.conf", hide_short_help = true)]
    pub pusher: bool,

    /// Merge the lines into FILE
    #[arg(long, value_name = "FILE", requires = "nix_conf", conflicts_with = "remove", help_heading = "nix.conf")]
    pub write: Option<PathBuf>,

    /// Remove the lines from FILE
    #[arg(long, value_name = "FILE", requires = "nix_conf", help_heading = "nix.conf", hide_short_help = true)]
    pub remove: Option<PathBuf>,

    /// Print help: a summary with -h, all of it with --help
    #[arg(short, long, action = ArgAction::Help, help_heading = "Common")]
    help: Option<bool>,

    /// Print the version
    #[arg(short = 'V', long, action = ArgAction::Version, help_heading = "Common")]
    version: Option<bool>,
}

const AFTER_HELP: &str = "Run 'cache-policy --help' for all options, details and examples.";

const AFTER_LONG_HELP: &str = "\
Allowed requests:
Each policy allows these requests, for the objects below the prefix. Everything else is not allowed.

  document                 GET HEAD LIST PUT MULTI PARTS ABORT DELETE LIFECYCLE POLICY LOCATION
  --read-only              yes yes  no   no  no    no    no    no     no        no     yes
  --read-only --allow-list yes yes  yes  no  no    no    no    no     no        no     yes
  --read-only --minimal    yes yes  no   no  no    no    no    no     no        no     no
  --upload                 yes yes  yes  yes yes   yes   yes   no     no        no     yes
  --upload --minimal       yes yes  yes  yes yes   yes   yes   no     no        no     no
  --admin                  yes yes  yes  no  no    yes   yes   yes    yes       no     no
  --collect                yes yes  yes  no  no    no    no    yes    no        no     no

MULTI is a multipart upload, PARTS lists incomplete uploads and their parts, LIFECYCLE gets and sets lifecycle rules, POLICY sets the bucket policy, and LOCATION gets the region of the bucket. With a prefix, LIST is limited to the prefix, but incomplete uploads can be listed in the whole bucket, because S3 cannot limit that, and --admin does not allow LIFECYCLE, because a lifecycle rule applies to the whole bucket. --collect allows PUT and MULTI below gc/ only.

Permissions:
  s3:GetObject                   Read objects. Required by s3-pull, and by s3-push for objects that
                                 are already in the cache.
  s3:PutObject                   Write objects. Required by s3-push.
  s3:ListBucket                  List objects. Required by 's3-pull --all'. Without it, s3-push
                                 looks up each path, and the service answers 403 instead of 404
                                 for a missing object, which the tools treat as missing.
  s3:ListBucketMultipartUploads  Resume an interrupted upload. Without it, s3-push uploads the
                                 object again.
  s3:ListMultipartUploadParts    The same.
  s3:AbortMultipartUpload        Abort a failed upload. Without it, its parts remain stored.
  s3:DeleteObject                Delete objects. Required by 's3-push collect', 'delete' and
                                 'unpin'.
  s3:GetBucketLocation           Get the region of the bucket. Required by some other clients,
                                 but not by these tools, so --minimal does not allow it.
  s3:GetLifecycleConfiguration, s3:PutLifecycleConfiguration
                                 Get and set lifecycle rules, such as that of --lifecycle.

Some options of s3-push require permissions that --upload does not allow: --tag requires s3:PutObjectTagging, --object-lock-days requires s3:PutObjectRetention, and --sse-kms-key-id requires kms:GenerateDataKey and kms:Decrypt on the key.

--require-tls adds a Deny statement. --source-ip and --vpc-endpoint add conditions to the Allow statements. Only the owner of the bucket can set its policy.

Services:
MinIO applies bucket policies only to anonymous readers, so use --read-only --identity for named readers. It removes incomplete uploads after a day and has no lifecycle rule for them. versitygw supports only bucket policies. R2 and Garage support neither kind of policy.

Subjects:
The subject of a token identifies the job. Each provider has its own format: GitHub uses repo:OWNER/PROJECT:ref:refs/heads/main or repo:OWNER/PROJECT:environment:NAME, and GitLab uses project_path:GROUP/PROJECT:ref_type:branch:ref:main. In --subject, * and ? are wildcards that also match colons and slashes: repo:OWNER/PROJECT:* includes pull requests and all branches. Wildcards are not allowed in the part that names the project, which is the text before the first slash and before the second colon. The trust policy only determines who can assume the role; attach the policy of --upload to the role as well.

Editing nix.conf:
--write adds the lines at the end of FILE, between two comments that name the cache. It omits what FILE and the files that it includes already contain; URLs that differ only in parameters or a trailing slash are the same cache. Running it again with other keys or options replaces the lines. FILE is parsed as Nix parses it: includes are relative to the path as given, and a backslash does not continue a line. Lines that Nix rejects are kept, with a warning. Symbolic links are followed. The file is replaced atomically and keeps its mode and owner, and concurrent edits wait for each other. --remove removes the lines; if nothing else is in FILE, it is left empty.

Examples:
  cache-policy --read-only s3://my-cache > read.json
  aws s3api put-bucket-policy --bucket my-cache --policy file://read.json
  mc anonymous set-json read.json minio/my-cache

  cache-policy --read-only --principal arn:aws:iam::123456789012:role/builders --require-tls \\
    my-cache

  cache-policy --upload my-cache > upload.json
  aws iam create-policy --policy-name cache-upload --policy-document file://upload.json
  mc admin policy create minio cache-upload upload.json

  cache-policy --lifecycle 7 my-cache > lifecycle.json
  aws s3api put-bucket-lifecycle-configuration --bucket my-cache \\
    --lifecycle-configuration file://lifecycle.json

  cache-policy --collect my-cache > collect.json
  mc admin policy create minio cache-collect collect.json

  cache-policy --read-only --require-tls --format tofu my-cache > cache-read.tf
  cache-policy --upload --format cloudformation my-cache > cache-upload.json
  aws cloudformation deploy --stack-name cache-upload --template-file cache-upload.json \\
    --capabilities CAPABILITY_IAM

  cache-policy --cors > cors.json
  aws s3api put-bucket-cors --bucket my-cache --cors-configuration file://cors.json

  cache-policy --oidc-trust token.actions.githubusercontent.com --account 123456789012 \\
    --subject 'repo:example/project:ref:refs/heads/main' > trust.json

  cache-policy --nix-conf --https --trusted-public-key-file key.pub 's3://my-cache?region=eu-west-2'
  cache-policy --nix-conf --trusted-public-key-file key.pub --write /etc/nix/nix.conf \\
    https://cache.example.org
  cache-policy --nix-conf --remove /etc/nix/nix.conf https://cache.example.org
  cache-policy --landing-page --trusted-public-key-file key.pub --https cache.example.org \\
    s3://my-cache > index.html
  s3-push --key index.html s3://my-cache < index.html

  cache-policy --check-url 's3://my-cache?endpoint=https://minio.example.org:9000'

Exit status:
  0    success
  1    refused: an invalid public key, a nix.conf that cannot be edited, or a URL that some clients
       cannot read
  2    usage error, or an operation failed
  141  the reader of standard output closed the pipe";
