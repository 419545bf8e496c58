//! The command line of `cache-policy`.

use std::path::PathBuf;

use cache_sign::cli::PublicKeys;
use clap::{ArgGroup, Parser};

use crate::documents::Partition;

/// Print the documents that govern a bucket that serves as a Nix binary cache, and the client's nix.conf.
///
/// Writes one document to standard output and changes nothing anywhere, but for --nix-conf --write and --remove; the
/// same arguments give the same bytes.
#[derive(Debug, Parser)]
#[command(name = "cache-policy", version, verbatim_doc_comment, after_help = AFTER_HELP,
          group(ArgGroup::new("document").required(true)
              .args(["read_only", "upload", "admin", "lifecycle", "cors", "oidc_trust", "nix_conf"])))]
pub struct Cli {
    /// The bucket: s3://BUCKET[/PREFIX] or the bare name (default: $NIX_S3_CACHE); with --nix-conf also the https:// URL
    /// of the cache
    #[arg(value_name = "BUCKET")]
    pub bucket: Option<String>,

    /// Bucket policy that lets everybody read, or with --principal some; with --identity a policy for users
    #[arg(long)]
    pub read_only: bool,

    /// Identity policy for those who upload; with --principal a bucket policy
    #[arg(long)]
    pub upload: bool,

    /// Identity policy for those who delete and set lifecycle rules; with --principal a bucket policy
    #[arg(long)]
    pub admin: bool,

    /// Lifecycle configuration: give up multipart uploads that are not complete after DAYS
    #[arg(long, value_name = "DAYS", value_parser = clap::value_parser!(u16).range(1..=3650))]
    pub lifecycle: Option<u16>,

    /// CORS configuration: let web pages read the cache
    #[arg(long)]
    pub cors: bool,

    /// Trust policy of a role that jobs of a CI provider assume: the provider's host, and path if any, as in
    /// token.actions.githubusercontent.com
    #[arg(long, value_name = "PROVIDER", requires_all = ["account", "subject"])]
    pub oidc_trust: Option<String>,

    /// The lines of nix.conf that make a client use the cache
    #[arg(long)]
    pub nix_conf: bool,

    /// Only for these: ARN of a user, a role or an account's root, or the 12 digits of an account; may be given several
    /// times
    #[arg(long, value_name = "ARN")]
    pub principal: Vec<String>,

    /// Only for the user with this access key ID, where a service knows users by it (versitygw); may be given several
    /// times
    #[arg(long, value_name = "ID", conflicts_with = "principal")]
    pub principal_key_id: Vec<String>,

    /// With --read-only: a policy to attach to users and roles instead of to the bucket
    #[arg(long, requires = "read_only", conflicts_with_all = ["principal", "principal_key_id"])]
    pub identity: bool,

    /// With --read-only: allow listing too: what is not there is 404, not 403, and whoever may read sees every key, so all
    /// that was ever built
    #[arg(long, requires = "read_only")]
    pub allow_list: bool,

    /// Deny what does not come over TLS, of requests for the bucket itself and for objects below the prefix
    #[arg(long)]
    pub require_tls: bool,

    /// Allow only requests from these addresses (CIDR, as in 192.0.2.0/24, the first address of the range); may be given
    /// several times
    #[arg(long, value_name = "CIDR")]
    pub source_ip: Vec<String>,

    /// Allow only requests through this VPC endpoint (vpce-…); may be given several times
    #[arg(long, value_name = "ID", conflicts_with = "source_ip")]
    pub vpc_endpoint: Vec<String>,

    /// The partition of the bucket's ARN (default: that of the principals or of the URL's region, else aws)
    #[arg(long, value_enum)]
    pub partition: Option<Partition>,

    /// With --cors: a web page's origin, as in https://example.org; may be given several times (default: all)
    #[arg(long, value_name = "ORIGIN", requires = "cors")]
    pub origin: Vec<String>,

    /// With --oidc-trust: the account of the role
    #[arg(long, value_name = "DIGITS", requires = "oidc_trust")]
    pub account: Option<String>,

    /// With --oidc-trust: which jobs, by the sub of their tokens; see below; may be given several times
    #[arg(long, value_name = "SUBJECT", requires = "oidc_trust")]
    pub subject: Vec<String>,

    /// With --oidc-trust: the audience of the token
    #[arg(long, value_name = "AUDIENCE", requires = "oidc_trust", default_value = "sts.amazonaws.com")]
    pub audience: String,

    /// With --nix-conf: the keys that sign what is in the cache
    #[command(flatten)]
    pub keys: PublicKeys,

    /// With --nix-conf: the bucket's plain https:// URL instead of s3://, for a bucket that everybody may read
    #[arg(long, requires = "nix_conf")]
    pub https: bool,

    /// With --nix-conf: this cache and these keys and no others (substituters and trusted-public-keys instead of their
    /// extra- forms)
    #[arg(long, requires = "nix_conf")]
    pub only: bool,

    /// With --nix-conf: merge the lines into FILE, and touch nothing else in it
    #[arg(long, value_name = "FILE", requires = "nix_conf", conflicts_with = "remove")]
    pub write: Option<PathBuf>,

    /// With --nix-conf: take the lines out of FILE again
    #[arg(long, value_name = "FILE", requires = "nix_conf")]
    pub remove: Option<PathBuf>,
}

const AFTER_HELP: &str = "\
What each document allows, on the objects below the prefix; everything else stays forbidden:

  document                 GET  HEAD LIST PUT  MULTI PARTS ABORT DELETE LIFECYCLE POLICY
  --read-only              yes  yes  no   no   no    no    no    no     no        no
  --read-only --allow-list yes  yes  yes  no   no    no    no    no     no        no
  --upload                 yes  yes  yes  yes  yes   yes   yes   no     no        no
  --admin                  yes  yes  yes  no   no    yes   yes   yes    yes       no

MULTI is an upload in parts, PARTS the listing of unfinished uploads and their parts, LIFECYCLE the
reading and setting of lifecycle rules, POLICY a change of the bucket policy. With a prefix --admin
leaves LIFECYCLE out: a rule reaches the whole bucket. LIST is then of the prefix only, the listing of
unfinished uploads is not (S3 cannot restrict it).

What needs which permission, and what happens without it:

  s3:GetObject                   reading anything: s3-pull, and s3-push of what the cache has already
  s3:PutObject                   writing anything: s3-push
  s3:ListBucket                  s3-pull --all. Without it s3-push asks for each path, and a service
                                 answers 403, not 404, for what is not there; that is taken for missing
  s3:ListBucketMultipartUploads  continuing an upload that died; without it, it is sent anew
  s3:ListMultipartUploadParts    the same
  s3:AbortMultipartUpload        giving up an upload that was refused; without it, its parts stay
  s3:DeleteObject                whoever removes from the cache; nothing here does
  s3:GetLifecycleConfiguration, s3:PutLifecycleConfiguration
                                 setting what --lifecycle prints

Flags of s3-push need more than --upload allows: --tag s3:PutObjectTagging, --object-lock-days
s3:PutObjectRetention, --sse-kms-key-id kms:GenerateDataKey and kms:Decrypt on the key.

--require-tls is a Deny of its own; --source-ip and --vpc-endpoint narrow what the document allows.
Who may set policies is nobody's but the owner's. Services differ: MinIO looks at bucket policies for
anonymous readers only, so there --read-only --identity is for named readers, and has no lifecycle
rule for unfinished uploads (it removes them itself after a day). versitygw has bucket policies only.
R2 and Garage have neither.

The subject of a token (sub) says which job it is of, each provider in its own way: on GitHub
repo:OWNER/PROJECT:ref:refs/heads/main or repo:OWNER/PROJECT:environment:NAME, on GitLab
project_path:GROUP/PROJECT:ref_type:branch:ref:main. In --subject, * and ? match anything, colons and
slashes too: repo:OWNER/PROJECT:* takes in pull requests and every branch. In what names the project,
before the first slash and up to the second colon, they are refused. The trust policy says who gets the role; what the role may do is --upload.

nix.conf. --write puts the lines at the end of FILE between two comments that name the bucket, and
leaves out what FILE, with all that it includes, says already; a URL that differs in its parameters or
in a slash at its end is the same cache. Again with other keys or flags, it replaces them. FILE is read
as Nix reads it: what it includes lies beside the path as given, and no line goes on after a backslash.
A line that Nix refuses is left as it is, and said. A link is followed; the file is replaced at once or
not at all, with its mode and owner, and two that write wait for each other. --remove leaves a file that
held nothing else empty, which is to Nix as good as none.

Examples:
  cache-policy --read-only s3://my-cache > read.json
  aws s3api put-bucket-policy --bucket my-cache --policy file://read.json
  mc anonymous set-json read.json minio/my-cache
  cache-policy --read-only --principal arn:aws:iam::123456789012:role/builders --require-tls my-cache
  cache-policy --upload my-cache > upload.json
  aws iam create-policy --policy-name cache-upload --policy-document file://upload.json
  mc admin policy create minio cache-upload upload.json
  cache-policy --lifecycle 7 my-cache > lifecycle.json
  aws s3api put-bucket-lifecycle-configuration --bucket my-cache --lifecycle-configuration file://lifecycle.json
  cache-policy --cors > cors.json; aws s3api put-bucket-cors --bucket my-cache --cors-configuration file://cors.json
  cache-policy --oidc-trust token.actions.githubusercontent.com --account 123456789012 \\
    --subject 'repo:example/project:ref:refs/heads/main' > trust.json
  cache-policy --nix-conf --https --trusted-public-key-file key.pub 's3://my-cache?region=eu-west-2'
  cache-policy --nix-conf --trusted-public-key-file key.pub --write /etc/nix/nix.conf https://cache.example.org
  cache-policy --nix-conf --remove /etc/nix/nix.conf https://cache.example.org

Exit status: 0 done; 1 refused (not a public key, a nix.conf that cannot be merged into); 2 usage, such
as what is not the name of a bucket or a principal, or an operation that failed; 141 when the reader of
standard output went away.";
