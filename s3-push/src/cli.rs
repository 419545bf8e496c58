//! The command line of `s3-push`. Contains only clap definitions; `mode` turns them into one typed mode.

use std::time::Duration;

use clap::{ArgAction, Args, Parser, ValueEnum};
use nar_pack::cli::PathInfoArgs;
use nar_pack::option_values::{parse_number, parse_path_name};
use narinfo_gen::cli::{CompressionArgs, DecompressionArgs};

use crate::collect::cli::Command;
use crate::publish::intake::NarCheck;
use crate::remote::cli::RequestArgs;
use crate::remote::option_values::{parse_age, parse_byte_size};
use crate::remote::progress::ProgressArgs;

/// Upload NARs and narinfos to an S3 bucket that serves as a Nix binary cache
///
/// Reads a cache archive, an export stream, a NAR (whose store path is STORE-PATH) or narinfo text from standard input and detects which one it is. A narinfo is published only after its NAR is complete and after the narinfos of its references, so the cache is valid at all times. Run the same command again to complete an interrupted push.
///
/// Prints the published store paths, one per line.
#[derive(Debug, Parser)]
#[command(
    name = "s3-push", version, max_term_width = 100, after_help = AFTER_HELP, after_long_help = AFTER_LONG_HELP,
    args_conflicts_with_subcommands = true, disable_help_flag = true,
    disable_version_flag = true,
    mut_arg("candidates", |arg| arg.hide_short_help(true)), mut_arg("level", |arg| arg.hide_short_help(true)),
    mut_arg("threads", |arg| arg.hide_short_help(true)), mut_arg("path_info", |arg| arg.hide_short_help(true)),
    mut_arg("compression", |arg| arg.hide_short_help(true)), mut_arg("no_nix", |arg| arg.hide_short_help(true)),
    mut_arg("store_dir", |arg| arg.hide_short_help(true)),
)]
pub struct Cli {
    /// The command to run instead of publishing
    #[command(subcommand)]
    pub command: Option<Command>,

    /// Bucket [default: $NIX_S3_CACHE], and the store path of a NAR on standard input
    #[arg(value_name = "s3://BUCKET[/PREFIX][?PARAMETERS]] [STORE-PATH", num_args = 0..=2)]
    pub targets: Vec<String>,

    /// Print the paths of a path list that the cache lacks; upload nothing
    ///
    /// Reads store paths from standard input, one per line, and prints those of which neither the bucket nor an --upstream cache has a narinfo.
    #[arg(long, conflicts_with = "key", help_heading = "Input")]
    pub missing: bool,

    /// With --missing, also print paths that KEY has not signed; can be repeated
    ///
    /// KEY is a public key (NAME:BASE64), whose signature is verified, or only the name of a key. Push these paths again through cache-sign to sign them: the cache keeps the other signatures.
    #[arg(long, value_name = "KEY", requires = "missing", help_heading = "Input", hide_short_help = true)]
    pub signed_by: Vec<String>,

    /// With --missing, also print paths whose NAR is missing or has another size
    #[arg(long, requires = "missing", help_heading = "Input", hide_short_help = true)]
    pub deep: bool,

    /// Publish a NAR as the content-addressed path with this name
    ///
    /// The path is the one that `nix-store --add` computes. It has no references and needs no signature: its hash part is computed from the NAR and the name. It is printed even if the cache already has it.
    #[arg(
        long, value_name = "NAME", value_parser = parse_path_name, conflicts_with_all = ["missing", "key"],
        help_heading = "Input",
    )]
    pub name: Option<String>,

    /// Accept a NAR that contains hash parts of store paths; only with --name
    ///
    /// A path that is published under a name has no references, so a NAR that contains the hash part of a candidate path is refused by default.
    #[arg(long, requires = "name", help_heading = "Input", hide_short_help = true)]
    pub no_references: bool,

    /// Upload standard input as it is, as the object KEY below the prefix
    #[arg(long, value_name = "KEY", help_heading = "Input")]
    pub key: Option<String>,

    /// Set the Content-Type of the object; only with --key
    ///
    /// The default is that of the kind of object, such as text/plain for log/NAME, else that of the extension of KEY, such as text/html for index.html, else application/octet-stream.
    #[arg(long, value_name = "TYPE", requires = "key", help_heading = "Input", hide_short_help = true)]
    pub content_type: Option<String>,

    /// Skip paths that another cache has; can be repeated
    ///
    /// Accepts s3://, https://, http:// and file:// URLs. A reference to a path of that cache counts as present. A large NAR is uploaded before its path is known: pass the option to --missing too, so that such paths are not even packed.
    #[arg(long, value_name = "URL", conflicts_with = "key", help_heading = "Input", hide_short_help = true)]
    pub upstream: Vec<String>,

    /// Publish paths even if references are missing
    ///
    /// A reference is missing if it is neither in the cache, nor in an --upstream cache, nor in this push.
    #[arg(long, help_heading = "Output", hide_short_help = true)]
    pub allow_missing_references: bool,

    /// Upload NARs again that are missing or damaged in the bucket
    ///
    /// Without it, a path whose narinfo is in the cache is left alone. Every NAR of the input that the bucket has is read and compared. The narinfo keeps its signatures; one that is malformed or describes another path is replaced. Not for narinfo text.
    #[arg(
        long, conflicts_with_all = ["missing", "key", "exact", "set_cache_info"], help_heading = "Output",
        hide_short_help = true,
    )]
    pub repair: bool,

    /// Read NARs in the bucket whose entity tags cannot show whether they are intact
    ///
    /// An object that was uploaded in one request, or in parts of the same size, is compared by its entity tag. One that was uploaded in other parts or is encrypted with a KMS key is compared by its size only, unless this option is given. A damaged NAR is replaced; a large one only with this option, because its bytes are compared only after the upload has read them.
    #[arg(
        long, conflicts_with_all = ["missing", "key", "set_cache_info"], help_heading = "Output", hide_short_help = true,
    )]
    pub check_existing: bool,

    /// Set how the NARs of a cache archive are checked [default: nar]
    ///
    /// With nar, each NAR is decompressed and hashed. With file, which is faster, NarHash and NarSize of the narinfo are trusted: use it only if narinfo-gen created the archive on the same machine. A NAR with another NarHash is then published, and clients refuse it. A narinfo must have a FileHash. The NARs of other inputs are hashed while they are compressed.
    #[arg(
        long, value_name = "LEVEL", conflicts_with_all = ["missing", "key", "repair", "set_cache_info"],
        help_heading = "Output", hide_short_help = true,
    )]
    pub check: Option<NarCheck>,

    /// Replace each narinfo instead of merging it
    ///
    /// Signatures and fields that are only in the bucket are removed. Only for narinfo text.
    #[arg(long, help_heading = "Output", hide_short_help = true)]
    pub exact: bool,

    /// Check the input and query the bucket, but write nothing
    #[arg(short = 'n', long, help_heading = "Output")]
    pub dry_run: bool,

    /// Print one JSON object per line: one per path, and a summary
    ///
    /// Applies to --missing, --key and --set-cache-info too. An error is one JSON object on standard error.
    #[arg(long, help_heading = "Output")]
    pub json: bool,

    /// Change the nix-cache-info of an existing cache
    ///
    /// Sets the values of --priority and --want-mass-query and keeps everything else. The store directory of a cache cannot be changed. Without these options, it only completes a nix-cache-info that is malformed.
    #[arg(
        long, conflicts_with_all = ["missing", "key", "name", "upstream", "exact"], help_heading = "Output",
        hide_short_help = true,
    )]
    pub set_cache_info: bool,

    /// Set Priority in a new nix-cache-info; clients query caches with a lower one first
    ///
    /// cache.nixos.org has priority 40.
    #[arg(long, value_name = "N", help_heading = "Output", hide_short_help = true)]
    pub priority: Option<u32>,

    /// Set WantMassQuery in a new nix-cache-info: whether clients may query many paths at once
    #[arg(
        long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true",
        help_heading = "Output", hide_short_help = true,
    )]
    pub want_mass_query: Option<bool>,

    /// Options of the objects that are written
    #[command(flatten)]
    pub object_options: ObjectOptionArgs,

    /// How long requests may take, and how often they are tried
    #[command(flatten)]
    pub request_args: RequestArgs,

    /// Maximum time to wait for a collector that is deleting
    ///
    /// Only a push of paths that are about to be deleted waits.
    #[arg(
        long, value_name = "DURATION", default_value = "30m", value_parser = parse_age, help_heading = "Network",
        hide_short_help = true,
    )]
    pub collector_timeout: Duration,

    /// Maximum concurrent requests
    ///
    /// Reduced automatically while the server throttles (429, 503).
    #[arg(
        short, long, value_name = "N", default_value_t = 16, value_parser = parse_number(1_u16..=1024),
        help_heading = "Performance",
    )]
    pub jobs: u16,

    /// Memory for NAR data in flight
    ///
    /// Must be at least twice --part-size, and 10 MiB. Sizes take the units KiB, MiB and GiB (or K, M, G, with the same meaning), and KB, MB and GB as powers of 1000.
    #[arg(
        long, value_name = "SIZE", default_value = "96MiB", value_parser = parse_byte_size, help_heading = "Performance",
        hide_short_help = true,
    )]
    pub memory: u64,

    /// Minimum part size of multipart uploads; a smaller body is uploaded in one request
    ///
    /// S3 accepts parts of 5 MiB (a smaller size counts as that) to 5 GiB, and at most 10000 of them. The parts of a NAR, or of a file given to --key, are larger if needed. The length of a pipe given to --key is unknown, so all its parts have this size, which limits it to 78 GiB by default.
    #[arg(
        long, value_name = "SIZE", default_value = "8MiB", value_parser = parse_byte_size, help_heading = "Performance",
        hide_short_help = true,
    )]
    pub part_size: u64,

    /// Options of decompression, for the NARs of a cache archive
    #[command(flatten)]
    pub decompression_args: DecompressionArgs,

    /// Print only errors
    #[arg(short, long, conflicts_with = "verbose", help_heading = "Logging")]
    pub quiet: bool,

    /// Print the result of each path on standard error
    #[arg(short, long, help_heading = "Logging")]
    pub verbose: bool,

    /// How progress is shown
    #[command(flatten)]
    pub progress_args: ProgressArgs,

    /// Options of compression, for a NAR or an export stream
    #[command(flatten)]
    pub compression_args: CompressionArgs,

    /// Sources of information about store paths
    #[command(flatten)]
    pub path_info_args: PathInfoArgs,

    /// Print help: a summary with -h, all of it with --help
    #[arg(short, long, global = true, action = ArgAction::Help, help_heading = "Common")]
    help: Option<bool>,

    /// Print the version
    #[arg(short = 'V', long, action = ArgAction::Version, help_heading = "Common")]
    version: Option<bool>,
}

/// Options of the objects that are written.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Output")]
pub struct ObjectOptionArgs {
    /// Set the storage class of each object, such as STANDARD_IA or INTELLIGENT_TIERING
    #[arg(long, value_name = "CLASS", hide_short_help = true)]
    pub storage_class: Option<String>,

    /// Encrypt each object at rest on the server
    #[arg(long, value_enum, hide_short_help = true)]
    pub sse: Option<Sse>,

    /// Encrypt each object at rest with this KMS key
    #[arg(long, value_name = "ID", hide_short_help = true)]
    pub sse_kms_key_id: Option<String>,

    /// Add a tag to each object; can be repeated
    #[arg(long, value_name = "KEY=VALUE", hide_short_help = true)]
    pub tag: Vec<String>,

    /// Retain each object for DAYS days; the bucket must have object lock enabled
    #[arg(long, value_name = "DAYS", value_parser = parse_number(1_u32..=36500), hide_short_help = true)]
    pub object_lock_days: Option<u32>,

    /// Set the retention mode; only with --object-lock-days
    #[arg(
        long, value_name = "MODE", value_enum, default_value_t = LockMode::Governance, requires = "object_lock_days",
        hide_short_help = true,
    )]
    pub object_lock_mode: LockMode,

    /// Set Cache-Control of each object, for a CDN in front of the bucket
    #[arg(long, value_name = "VALUE", hide_short_help = true)]
    pub cache_control: Option<String>,
}

/// Server-side encryption.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Sse {
    /// Keys managed by S3 (SSE-S3)
    #[value(name = "AES256")]
    Aes256,
    /// The default KMS key of the account (SSE-KMS)
    #[value(name = "aws:kms")]
    Kms,
}

/// Object lock modes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LockMode {
    /// Users with s3:BypassGovernanceRetention can shorten the retention
    Governance,
    /// Nobody can shorten the retention
    Compliance,
}

const AFTER_HELP: &str = "\
Example:
  narinfo-gen --archive < closure.export | cache-sign -k key.sec | s3-push s3://my-cache

Run 's3-push --help' for all options, more examples and the exit status.";

const AFTER_LONG_HELP: &str = "\
The bucket is written as in Nix and Lix:
  s3://example-nix-cache?profile=cache-upload&region=eu-west-2
  s3://example-nix-cache/prefix?endpoint=https://minio.example.com:9000
Parameters: region, profile, endpoint, scheme (https, http), addressing-style (auto, path, virtual). Other parameters of Nix are accepted and ignored. Credentials come from the AWS default chain: environment, profile, SSO, web identity, container, instance.

Examples:
  narinfo-gen --archive < closure.export | cache-sign -k key.sec | s3-push s3://my-cache
  nix-store -qR ./result | s3-push --missing s3://my-cache | nar-pack --export --stdin \\
    | narinfo-gen --archive | cache-sign -k key.sec | s3-push s3://my-cache
  nar-pack \"$P\" | s3-push s3://my-cache \"$P\"                  # one path, unsigned: prints a warning
  nar-pack ./site | s3-push --name site s3://my-cache          # any tree; needs no signature
  s3-pull --narinfo --all s3://my-cache | cache-sign -k new.sec | s3-push s3://my-cache
  s3-push s3://my-cache --key log/x.drv < build.log
  s3-pull archive --stdin s3://mirror < broken | s3-push repair s3://my-cache

The command repair is the same as the flag: 's3-push repair s3://my-cache' is 's3-push --repair s3://my-cache'.

Memory: --memory and about 32 MiB, independent of the size of a NAR, and about 1 KiB per path. In an archive of another order than that of narinfo-gen, a path that waits for its NAR or its references takes about 10 KiB, and 150 bytes per reference. In addition, each NAR of a cache archive that is being verified (at most one per processor and one more) needs the memory of its decoder: 10 MiB for NARs written by narinfo-gen, at most --decoder-memory for others. For a NAR or an export stream, add the memory of narinfo-gen (see its help).

Exit status:
  0    success
  1    refused: a malformed or truncated stream, a wrong hash, a missing NAR or reference, or a
       bucket of another store directory
  2    usage error, or an operation failed
  141  the reader of standard output closed the pipe";
