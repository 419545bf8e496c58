//! The command lines of the commands of `s3-pull`.

use std::path::PathBuf;

use cache_sign::cli::TrustArgs;
use clap::{Args, Subcommand};
use narinfo_gen::cli::DecompressionArgs;
use s3_push::remote::cli::BucketArgs;
use s3_push::remote::liveness::cli::RootArgs;

use super::check::share::{ReadShare, parse_share};

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// List the pins of a bucket, or the paths of one
    #[command(after_long_help = AFTER_LONG_HELP_PINS)]
    Pins(PinsArgs),
    /// List the narinfos of the paths that nothing keeps, as narinfo text
    ///
    /// A path is kept if a pin or --roots names it, if it is younger than --older-than, or if a path that is kept references it. Reads only: this is the dry run of the deletion. Nothing is written if anything cannot be read.
    #[command(after_long_help = AFTER_LONG_HELP_DEAD)]
    Dead(DeadArgs),
    /// List the store paths of a bucket that clients cannot use
    ///
    /// Reads all narinfos: each must be valid, describe the path of its key and be signed by a trusted key, the paths that it references must be in the cache, and its NAR must be there with its FileSize. NARs are read only with --nars or --read-nars. Objects that nothing needs are notes on standard error. Reads only.
    #[command(after_long_help = AFTER_LONG_HELP_CHECK)]
    Check(CheckArgs),
    /// Print the paths and sizes in a bucket, by month, compression, signer, closure and pin
    ///
    /// Reads all narinfos and pins, and no NARs. Nothing is written if anything cannot be read.
    #[command(after_long_help = AFTER_LONG_HELP_STATS)]
    Stats(StatsArgs),
}

/// Arguments of `s3-pull pins`.
#[derive(Debug, Args)]
pub struct PinsArgs {
    /// Bucket [default: $NIX_S3_CACHE], and the name of a pin
    #[arg(value_name = "s3://BUCKET[/PREFIX][?PARAMETERS]] [NAME", num_args = 0..=2)]
    pub targets: Vec<String>,

    /// Print one JSON object per line: one per pin or path
    ///
    /// An error is one JSON object on standard error.
    #[arg(long, help_heading = "Output", hide_short_help = true)]
    pub json: bool,

    /// How the bucket is accessed
    #[command(flatten)]
    pub bucket: BucketArgs,
}

/// Arguments of `s3-pull dead`.
#[derive(Debug, Args)]
pub struct DeadArgs {
    /// Bucket [default: $NIX_S3_CACHE]
    #[arg(value_name = "s3://BUCKET[/PREFIX][?PARAMETERS]", num_args = 0..=1)]
    pub targets: Vec<String>,

    /// Which paths are kept
    #[command(flatten)]
    pub roots: RootArgs,

    /// Print one JSON object per line: the contents of each narinfo, and a summary
    ///
    /// An error is one JSON object on standard error.
    #[arg(long, help_heading = "Output", hide_short_help = true)]
    pub json: bool,

    /// How the bucket is accessed
    #[command(flatten)]
    pub bucket: BucketArgs,
}

/// Arguments of `s3-pull check`.
#[derive(Debug, Args)]
pub struct CheckArgs {
    /// Bucket [default: $NIX_S3_CACHE]
    #[arg(value_name = "s3://BUCKET[/PREFIX][?PARAMETERS]", num_args = 0..=1)]
    pub targets: Vec<String>,

    /// Check only the listing of the bucket: foreign and empty objects, incomplete uploads, totals
    #[arg(
        long, help_heading = "Input",
        conflicts_with_all = ["nars", "read_nars", "upstream", "allow_missing_references", "have"],
    )]
    pub list_only: bool,

    /// Read all NARs too, and verify them
    #[arg(long, conflicts_with = "read_nars", help_heading = "Input")]
    pub nars: bool,

    /// Read the NARs of today's share: 5%, 1/7 or 10GiB
    ///
    /// The share depends on the keys of the NARs and on the day (UTC), so it is the same on every host. If the check runs every day, each NAR is read once per cycle of shares. If it runs every N days, this holds if N and the denominator have no common divisor. For a size, the number of shares is rounded up to a power of two.
    #[arg(long, value_name = "SHARE", value_parser = parse_share, help_heading = "Input")]
    pub read_nars: Option<ReadShare>,

    /// Accept references that another cache has; can be repeated
    #[arg(long, value_name = "URL", conflicts_with = "allow_missing_references", help_heading = "Input")]
    pub upstream: Vec<String>,

    /// Accept references that are missing
    #[arg(long, help_heading = "Input")]
    pub allow_missing_references: bool,

    /// Do not read narinfos whose text is in FILE, narinfo text of an earlier run
    ///
    /// A text is used if its MD5 hash is the entity tag of the narinfo in the listing.
    #[arg(long, value_name = "FILE", help_heading = "Input")]
    pub have: Option<PathBuf>,

    /// Write one JSON object per finding, and a summary
    #[arg(long, help_heading = "Output")]
    pub json: bool,

    /// The keys to trust
    #[command(flatten, next_help_heading = "Trust")]
    pub trust: TrustArgs,

    /// Do not verify signatures
    #[arg(long, help_heading = "Trust")]
    pub no_verify_signatures: bool,

    /// Options of decompression
    #[command(flatten)]
    pub decompression_args: DecompressionArgs,

    /// How the bucket is accessed
    #[command(flatten)]
    pub bucket: BucketArgs,
}

/// Arguments of `s3-pull stats`.
#[derive(Debug, Args)]
pub struct StatsArgs {
    /// Bucket [default: $NIX_S3_CACHE]
    #[arg(value_name = "s3://BUCKET[/PREFIX][?PARAMETERS]", num_args = 0..=1)]
    pub targets: Vec<String>,

    /// Do not read narinfos whose text is in FILE, narinfo text of an earlier run
    ///
    /// A text is used if its MD5 hash is the entity tag of the narinfo in the listing.
    #[arg(long, value_name = "FILE", help_heading = "Input")]
    pub have: Option<PathBuf>,

    /// Write one JSON object
    #[arg(long, conflicts_with = "html", help_heading = "Output")]
    pub json: bool,

    /// Write a web page, in one file
    ///
    /// It has charts and tables, and no script, and loads nothing from elsewhere.
    #[arg(long, help_heading = "Output")]
    pub html: bool,

    /// How the bucket is accessed
    #[command(flatten)]
    pub bucket: BucketArgs,
}

const AFTER_LONG_HELP_STATS: &str = "\
Output: tables, or with --json an object with the fields version (1), paths, narSize, fileSize, byMonth, byCompression, bySigner (the key is null for paths without signature), largestPaths, largestClosures, pins and unpinned. narSize is the size of unpacked NARs in bytes, fileSize that of compressed ones. In the totals, a NAR that several paths share counts once.

A path counts for the month (UTC) in which its narinfo was last written. The size of a pin counts the paths that only this pin keeps.

Closures: those of pinned paths and of paths that no other path references are examined, since all others are parts of these. Pinned paths come first, and the examination ends after 100 million references. With --json, closuresExamined and closuresTotal are their numbers.

Examples:
  s3-pull stats s3://my-cache
  s3-pull stats --html s3://my-cache > report.html
  s3-pull stats --json s3://my-cache | jq '.pins | sort_by(.narSize) | reverse'

Memory: about 200 bytes per path and 4 bytes per reference.

Exit status: 0 success; 2 usage error, or something could not be read, listed or parsed; nothing is written then; 141 standard output was closed.";

const AFTER_LONG_HELP_CHECK: &str = "\
Output: the store paths that are broken, one per line, sorted: the input of 's3-pull archive --stdin'. A narinfo whose path is unknown is reported on standard error only. With --json, one object per line, then a summary:
  {\"path\":\"/nix/store/…\",\"key\":\"nar/…\",\"reason\":\"missing-nar\",\"broken\":true,\"message\":\"…\",\"command\":\"…\"}
The reasons are malformed-narinfo, missing-narinfo, missing-pinned, malformed-pin, untrusted, missing-nar, nar-size, damaged-nar, empty-object, no-cache-info, malformed-cache-info and other-store-dir, and for notes (broken is false) unneeded-nar, unneeded-listing, foreign-object and incomplete-upload. The command repairs it, where there is one; $A is a cache that has the path.

Requests: one per 1,000 objects and one per narinfo. What seems to be broken is looked up again before it is reported.

Examples:
  s3-pull check s3://my-cache > broken
  s3-pull archive --stdin https://mirror.example.org < broken | s3-push repair s3://my-cache
  s3-pull check --read-nars 1/30 --upstream https://cache.nixos.org s3://my-cache > broken

Memory: about 200 bytes per path. With --nars or --read-nars, in addition the memory of a decoder per processor, at most --decoder-memory each.

Exit status: 0 nothing is broken; 1 something is broken; 2 usage error, or something could not be listed or read; nothing is written then; 141 standard output was closed.";

const AFTER_LONG_HELP_PINS: &str = "\
Output: one name per line, sorted; with a name, one store path per line.

Examples:
  s3-pull pins s3://my-cache
  s3-pull pins s3://my-cache main/2026-11-24 | s3-pull -r --root /mnt --stdin s3://my-cache

Exit status: 0 success; 1 there is no such pin, or it is malformed; 2 usage error or failed operation; 141 standard output was closed.";

const AFTER_LONG_HELP_DEAD: &str = "\
Output: narinfo text in which each narinfo comes after those that reference it. It is the input of 's3-push delete', and of 's3-push' to undo the deletion.

Examples:
  s3-pull dead --older-than 30d s3://my-cache > dead.narinfo
  s3-pull dead --older-than 30d --keep-last 10 --keep-within 90d s3://my-cache > dead.narinfo
  nix-store -qR /run/current-system > roots
  s3-pull dead --older-than 30d --roots roots s3://my-cache > dead.narinfo

Memory: about 100 bytes per path and 4 bytes per reference. The texts of old narinfos are kept in an unlinked file in $TMPDIR.

Exit status: 0 success; 2 usage error, or something could not be read, listed or parsed; nothing is written then; 141 standard output was closed.";
