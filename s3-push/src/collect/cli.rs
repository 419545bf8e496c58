//! The command lines of the commands of `s3-push`.

use std::time::Duration;

use clap::{Args, Subcommand};

use crate::remote::cli::BucketArgs;
use crate::remote::liveness::cli::RootArgs;
use crate::remote::option_values::{parse_age, parse_percent};

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Pin the paths of a path list: keep them and their closures
    ///
    /// Reads store paths from standard input, one per line, and writes them as the object pins/NAME. A pin of that name is replaced. The cache must have each path.
    #[command(after_long_help = AFTER_LONG_HELP_PIN)]
    Pin(PinArgs),
    /// Remove the pins with these names
    ///
    /// Only the pins are removed, not their paths.
    #[command(after_long_help = AFTER_LONG_HELP_UNPIN)]
    Unpin(UnpinArgs),
    /// Delete the paths of the narinfo text on standard input, in two runs
    ///
    /// The first run dooms the paths: it records them below gc/, so that pushes publish them again instead of relying on them. A run at least 24 hours later deletes the paths that its input still holds and that nobody has written since. NARs are not deleted, so 's3-push' can publish the same text again.
    #[command(after_long_help = AFTER_LONG_HELP_DELETE)]
    Delete(DeleteArgs),
    /// Delete the paths that nothing keeps, and NARs that no path needs
    ///
    /// The same as 's3-pull dead', 's3-push delete' and 's3-push delete --nars'. A path is doomed by the first run that finds it dead, and deleted by a run at least 24 hours later. Its NAR is doomed then, and deleted after the grace period.
    #[command(after_long_help = AFTER_LONG_HELP_COLLECT)]
    Collect(CollectArgs),
}

/// How a collector takes over from another one.
#[derive(Debug, Args)]
pub struct TakeoverArgs {
    /// How long a collector waits after it has taken over the flag of another one
    ///
    /// A deletion that the other one has begun must have ended by then. Shorter than the default only in tests.
    #[arg(long, value_name = "DURATION", default_value = "1m", value_parser = parse_age, hide = true)]
    pub takeover_pause: Duration,
}

/// Arguments of `s3-push pin`.
#[derive(Debug, Args)]
pub struct PinArgs {
    /// Bucket [default: $NIX_S3_CACHE], and the name of the pin, such as main/2026-11-24
    #[arg(value_name = "[s3://BUCKET[/PREFIX][?PARAMETERS]] NAME", num_args = 1..=2, required = true)]
    pub targets: Vec<String>,

    /// Maximum time to wait for a collector that is deleting
    #[arg(
        long, value_name = "DURATION", default_value = "30m", value_parser = parse_age, help_heading = "Network",
        hide_short_help = true,
    )]
    pub collector_timeout: Duration,

    /// Print one JSON object per line: the pin
    ///
    /// An error is one JSON object on standard error.
    #[arg(long, help_heading = "Output", hide_short_help = true)]
    pub json: bool,

    /// How the bucket is accessed
    #[command(flatten)]
    pub bucket: BucketArgs,
}

/// Arguments of `s3-push unpin`.
#[derive(Debug, Args)]
pub struct UnpinArgs {
    /// Bucket [default: $NIX_S3_CACHE], and names or patterns: * stands for any characters, also slashes
    #[arg(value_name = "[s3://BUCKET[/PREFIX][?PARAMETERS]] PATTERN", num_args = 1.., required = true)]
    pub targets: Vec<String>,

    /// Print the pins that would be removed, and remove nothing
    #[arg(short = 'n', long, help_heading = "Output")]
    pub dry_run: bool,

    /// Print one JSON object per line: one per pin
    ///
    /// An error is one JSON object on standard error.
    #[arg(long, help_heading = "Output", hide_short_help = true)]
    pub json: bool,

    /// How the bucket is accessed
    #[command(flatten)]
    pub bucket: BucketArgs,
}

/// Arguments of `s3-push delete`.
#[derive(Debug, Args)]
pub struct DeleteArgs {
    /// Bucket [default: $NIX_S3_CACHE]
    #[arg(value_name = "s3://BUCKET[/PREFIX][?PARAMETERS]", num_args = 0..=1)]
    pub targets: Vec<String>,

    /// Delete at once, in one run; only for a bucket that nobody pushes to
    ///
    /// A push that runs at the same time can publish a path whose references are then deleted.
    #[arg(long, help_heading = "Output")]
    pub now: bool,

    /// Delete NARs that no narinfo names, instead of paths
    ///
    /// Standard input is not read. Links of debuginfo/ to such NARs, and realisations of paths that are not in the cache, are deleted too. The first run dooms the objects; a run after the grace period deletes those that are still not needed and that nobody has written since.
    #[arg(long, conflicts_with_all = ["now", "keep_last", "keep_within"], help_heading = "Output")]
    pub nars: bool,

    /// With --nars: delete an object only after nothing has needed it for AGE, at least 24h
    ///
    /// Clients keep narinfos for 30 days, and may ask for their NARs.
    #[arg(
        long, value_name = "AGE", default_value = "30d", value_parser = parse_age, requires = "nars",
        help_heading = "Output",
    )]
    pub grace: Duration,

    /// Refuse to delete more than this share of the paths, or of the NARs and other objects
    #[arg(long, value_name = "PERCENT", default_value = "20%", value_parser = parse_percent, help_heading = "Output")]
    pub max_delete: u8,

    /// Of the pins of each group, keep only the newest N; as given to 's3-pull dead'
    #[arg(long, value_name = "N", help_heading = "Input")]
    pub keep_last: Option<usize>,

    /// Of the pins of each group, keep only those younger than AGE; as given to 's3-pull dead'
    #[arg(long, value_name = "AGE", value_parser = parse_age, help_heading = "Input")]
    pub keep_within: Option<Duration>,

    /// Print what would be deleted now, and how much would be doomed; write nothing
    #[arg(short = 'n', long, help_heading = "Output")]
    pub dry_run: bool,

    /// How it takes over
    #[command(flatten)]
    pub takeover: TakeoverArgs,

    /// Print one JSON object per line: one per deleted path or object, and a summary
    ///
    /// An error is one JSON object on standard error.
    #[arg(long, help_heading = "Output", hide_short_help = true)]
    pub json: bool,

    /// How the bucket is accessed
    #[command(flatten)]
    pub bucket: BucketArgs,
}

/// Arguments of `s3-push collect`.
#[derive(Debug, Args)]
pub struct CollectArgs {
    /// Bucket [default: $NIX_S3_CACHE]
    #[arg(value_name = "s3://BUCKET[/PREFIX][?PARAMETERS]", num_args = 0..=1)]
    pub targets: Vec<String>,

    /// Which paths are kept
    #[command(flatten)]
    pub roots: RootArgs,

    /// Delete a NAR only after no path has needed it for AGE, at least 24h
    ///
    /// Clients keep narinfos for 30 days, and may ask for their NARs.
    #[arg(long, value_name = "AGE", default_value = "30d", value_parser = parse_age, help_heading = "Output")]
    pub grace: Duration,

    /// Refuse to delete more than this share of the paths, or of the NARs and other objects
    #[arg(long, value_name = "PERCENT", default_value = "20%", value_parser = parse_percent, help_heading = "Output")]
    pub max_delete: u8,

    /// Print what would be deleted now, and how much would be doomed; write nothing
    #[arg(short = 'n', long, help_heading = "Output")]
    pub dry_run: bool,

    /// How it takes over
    #[command(flatten)]
    pub takeover: TakeoverArgs,

    /// Print one JSON object per line: one per deleted path or object, and a summary
    ///
    /// An error is one JSON object on standard error.
    #[arg(long, help_heading = "Output", hide_short_help = true)]
    pub json: bool,

    /// How the bucket is accessed
    #[command(flatten)]
    pub bucket: BucketArgs,
}

const AFTER_LONG_HELP_COLLECT: &str = "\
Output: the deleted store paths, then the keys of the deleted objects, one per line. What was doomed and deleted is counted on standard error, unless --quiet is given.

With --dry-run, the output is what a run would delete now. 's3-pull dead' with the same --older-than, --keep-last, --keep-within and --roots lists all dead paths, also those that are not doomed yet.

Examples:
  s3-push collect --older-than 30d s3://my-cache
  s3-push collect --older-than 30d --keep-last 10 --keep-within 90d s3://my-cache

Memory: about 400 bytes per path of the cache.

Exit status: 0 success; 1 refused: more than --max-delete; 2 usage error or failed operation; 141 standard output was closed.";

const AFTER_LONG_HELP_DELETE: &str = "\
Input: the output of 's3-pull dead'. A path is skipped if its narinfo in the bucket differs from the text. A path that a pin names, or that a path which stays references, is not deleted.

Output: the deleted store paths, one per line; with --nars, the keys of the deleted objects.

Examples:
  s3-pull dead --older-than 30d s3://my-cache > dead.narinfo
  s3-push delete s3://my-cache < dead.narinfo       # dooms; the next day, with a new list, deletes
  s3-push s3://my-cache < dead.narinfo              # undo
  s3-push delete --nars s3://my-cache               # NARs that no narinfo has named for 30 days

Memory: about 200 bytes per path of the cache. The input is kept in an unlinked file in $TMPDIR.

Exit status: 0 success; 1 refused: malformed or truncated input, or more than --max-delete; 2 usage error or failed operation; 141 standard output was closed.";

const AFTER_LONG_HELP_PIN: &str = "\
Names consist of letters, digits and . _ - + @ =, in parts separated by slashes. Retention applies to the pins that differ only after the last slash.

Examples:
  readlink -f result | s3-push pin s3://my-cache main/2026-11-24
  readlink -f result | s3-push pin s3://my-cache pr-17

Exit status: 0 success; 1 the cache lacks a path, or the path list is malformed or truncated; 2 usage error or failed operation.";

const AFTER_LONG_HELP_UNPIN: &str = "\
Output: the names of the removed pins, one per line.

Example:
  s3-push unpin s3://my-cache 'pr-*'

Exit status: 0 success; 1 a pattern matches no pin, and those that the others match are removed; 2 usage error or failed operation; 141 standard output was closed.";
