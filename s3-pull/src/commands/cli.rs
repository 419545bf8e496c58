//! The command lines of the commands of `s3-pull`.

use clap::{Args, Subcommand};
use s3_push::remote::cli::BucketArgs;
use s3_push::remote::liveness::cli::RootArgs;

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
}

/// Arguments of `s3-pull pins`.
#[derive(Debug, Args)]
pub struct PinsArgs {
    /// Bucket [default: $NIX_S3_CACHE], and the name of a pin
    #[arg(value_name = "s3://BUCKET[/PREFIX][?PARAMETERS]] [NAME", num_args = 0..=2)]
    pub targets: Vec<String>,

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

    /// How the bucket is accessed
    #[command(flatten)]
    pub bucket: BucketArgs,
}

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
  nix-store -qR /run/current-system | s3-pull dead --older-than 30d --roots - s3://my-cache > dead.narinfo

Memory: about 100 bytes per path and 4 bytes per reference. The texts of old narinfos are kept in an unlinked file in $TMPDIR.

Exit status: 0 success; 2 usage error, or something could not be read, listed or parsed; nothing is written then; 141 standard output was closed.";
