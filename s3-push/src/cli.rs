//! The command line of `s3-push`.

use clap::{Args, Parser, ValueEnum};
use nar_pack::cli::PathInfoArgs;
use narinfo_gen::cli::CompressionArgs;

pub use crate::remote::retry::DEFAULT_MAX_ATTEMPTS;

/// Upload NARs and narinfos to an S3 bucket that serves as a Nix binary cache.
///
/// Reads from standard input a cache archive, an export stream, a NAR (then STORE-PATH says what it is) or narinfo text,
/// and tells them apart by their first bytes. A narinfo is published only after its NAR is complete and after the
/// narinfos that it references, so the cache is valid at every instant; running the same command again completes
/// interrupted work.
///
/// Prints the store paths that it published, one per line.
#[derive(Debug, Parser)]
#[command(name = "s3-push", version, verbatim_doc_comment, after_help = AFTER_HELP)]
pub struct Cli {
    /// The bucket (default: $NIX_S3_CACHE), and for a NAR on standard input its store path
    #[arg(value_name = "s3://BUCKET[/PREFIX][?PARAMETERS]] [STORE-PATH", num_args = 0..=2)]
    pub targets: Vec<String>,

    /// Read a path list from standard input and print those paths that the cache lacks
    #[arg(long, conflicts_with = "key")]
    pub missing: bool,

    /// Upload standard input, whatever it is, under this key (below the prefix)
    #[arg(long, value_name = "KEY")]
    pub key: Option<String>,

    /// With --key: the Content-Type of the object
    #[arg(long, value_name = "TYPE", requires = "key")]
    pub content_type: Option<String>,

    /// Publish a path even if the cache has, and this push brings, no narinfo of a path that it references
    #[arg(long)]
    pub allow_missing_references: bool,

    /// Skip paths that this other cache serves; best given to --missing too
    #[arg(long, value_name = "URL", conflicts_with = "key")]
    pub upstream: Vec<String>,

    /// With narinfo text: drop signatures and fields that a narinfo in the cache has and the text has not
    #[arg(long)]
    pub exact: bool,

    /// Priority in a new nix-cache-info: lower is asked first (cache.nixos.org has 40)
    #[arg(long, value_name = "N")]
    pub priority: Option<u32>,

    /// WantMassQuery in a new nix-cache-info: whether clients may ask for many paths at once
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub want_mass_query: Option<bool>,

    /// Bytes of NAR that may be in memory at once
    #[arg(long, value_name = "SIZE", default_value = "96MiB", value_parser = parse_size)]
    pub memory: u64,

    /// Least size of a part of a multipart upload; a smaller body is sent whole
    #[arg(long, value_name = "SIZE", default_value = "8MiB", value_parser = parse_size)]
    pub part_size: u64,

    /// Requests in flight at once; fewer while the service asks for patience (503, 429)
    #[arg(short, long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub jobs: u16,

    /// Give an attempt up when nothing moves for so many seconds; there is no bound on a whole transfer
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u16).range(1..=3600))]
    pub idle_timeout: u16,

    /// Attempts at one request, with growing random waits between them
    #[arg(
        long, value_name = "N", env = "AWS_MAX_ATTEMPTS", hide_env_values = true, default_value_t = DEFAULT_MAX_ATTEMPTS,
        value_parser = clap::value_parser!(u32).range(1..=100),
    )]
    pub attempts: u32,

    /// Print one JSON object per path and a summary instead of the store paths
    #[arg(long)]
    pub json: bool,

    /// Say nothing on standard error but errors
    #[arg(short, long, conflicts_with = "verbose")]
    pub quiet: bool,

    /// Say on standard error what became of each path
    #[arg(short, long)]
    pub verbose: bool,

    /// Read and check everything, ask the bucket what it has, but write nothing
    #[arg(short = 'n', long)]
    pub dry_run: bool,

    /// What is asked of the objects that are written
    #[command(flatten)]
    pub stored: ObjectOptionArgs,

    /// How to compress a NAR or an export stream
    #[command(flatten)]
    pub compression_args: CompressionArgs,

    /// Where to learn about store paths
    #[command(flatten)]
    pub path_info_args: PathInfoArgs,
}

/// What is asked of the objects that are written.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Objects that are written")]
pub struct ObjectOptionArgs {
    /// ObjectOptions class, such as STANDARD_IA or INTELLIGENT_TIERING
    #[arg(long, value_name = "CLASS")]
    pub storage_class: Option<String>,

    /// Encryption at rest by the service
    #[arg(long, value_enum)]
    pub sse: Option<Sse>,

    /// Encryption at rest with this KMS key
    #[arg(long, value_name = "ID")]
    pub sse_kms_key_id: Option<String>,

    /// Object tag; may be given several times
    #[arg(long, value_name = "KEY=VALUE")]
    pub tag: Vec<String>,

    /// Retain objects for so many days (the bucket must have object lock)
    #[arg(long, value_name = "DAYS", value_parser = clap::value_parser!(u32).range(1..=36500))]
    pub object_lock_days: Option<u32>,

    /// With --object-lock-days: whether someone with the permission may shorten the retention
    #[arg(long, value_enum, default_value_t = LockMode::Governance, requires = "object_lock_days")]
    pub object_lock_mode: LockMode,

    /// Cache-Control of every object, for a CDN in front of the bucket
    #[arg(long, value_name = "VALUE")]
    pub cache_control: Option<String>,
}

/// Encryption at rest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Sse {
    /// Keys of the service (SSE-S3)
    #[value(name = "AES256")]
    Aes256,
    /// The account's default KMS key (SSE-KMS)
    #[value(name = "aws:kms")]
    Kms,
}

/// Object lock modes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LockMode {
    /// With permission it can be shortened
    Governance,
    /// Nobody can shorten it
    Compliance,
}

/// A number of bytes: `10`, `64KiB`, `8MiB`, `1GiB`.
fn parse_size(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let unit: u64 = match text[digits.len()..].trim() {
        "" | "B" => 1,
        "K" | "KiB" => 1 << 10,
        "M" | "MiB" => 1 << 20,
        "G" | "GiB" => 1 << 30,
        other => return Err(format!("unknown unit {other:?}; use KiB, MiB or GiB")),
    };
    let number: u64 = digits.parse().map_err(|_| "expected a number of bytes, such as 64MiB".to_owned())?;
    number.checked_mul(unit).filter(|&size| size > 0).ok_or_else(|| "out of range".to_owned())
}

const AFTER_HELP: &str = "\
The bucket is written as Nix and Lix write it:
  s3://example-nix-cache?profile=cache-upload&region=eu-west-2
  s3://example-nix-cache/prefix?scheme=https&endpoint=minio.example.com:9000
Parameters: region, profile, endpoint, scheme (https, http), addressing-style (auto, path, virtual); others that Nix knows
are accepted. Credentials come from the AWS default chain: environment, profile, SSO, web identity, container, instance.

--upstream takes s3://, https://, http:// and file://, several times too. References to what it serves count as there. A
large NAR has left before its path is known: give the flag to --missing, and such paths are not even packed.

Examples:
  narinfo-gen --archive < closure.export | cache-sign -k key.sec | s3-push s3://my-cache
  nix-store -qR ./result | s3-push --missing s3://my-cache | nar-pack --export --stdin | narinfo-gen --archive \\
    | cache-sign -k key.sec | s3-push s3://my-cache
  nar-pack \"$P\" | s3-push s3://my-cache \"$P\"                  # one path, unsigned: says so
  s3-pull --narinfo --all s3://my-cache | cache-sign -k new.sec | s3-push s3://my-cache
  gzip < build.log | s3-push s3://my-cache --key log/x.drv

Memory: --memory and about 32 MiB, whatever the size of a NAR; about 1 KiB a path. Beside it, for
each NAR of a cache archive that is being checked (one per processor and one more), what its decoder
takes: 10 MiB for what narinfo-gen made, at most 128 MiB (zstd) or 256 MiB (xz) for what others
made. With a NAR or an export stream as input what narinfo-gen says of itself.

Exit status: 0 done; 1 refused (malformed or truncated stream, wrong hash, missing NAR or reference,
bucket of another store directory); 2 usage, or an operation that failed; 141 when the reader of
standard output went away.";
