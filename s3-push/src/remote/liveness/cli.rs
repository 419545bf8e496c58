//! The options that select the paths that are kept; shared by `s3-pull dead` and `s3-push collect`.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use crate::remote::option_values::parse_age;

/// Which paths are kept.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Input")]
pub struct RootArgs {
    /// Keep every path that was written less than AGE ago, and its closure
    ///
    /// A duration with a unit, such as 30d or 12h. It must be longer than a push takes.
    #[arg(long, value_name = "AGE", value_parser = parse_age)]
    pub older_than: Duration,

    /// Of the pins of each group, keep only the newest N
    ///
    /// Pins whose names differ only after the last slash are a group: main/2026-11-24 and main/2026-11-25. A pin without a slash always counts.
    #[arg(long, value_name = "N")]
    pub keep_last: Option<usize>,

    /// Of the pins of each group, keep only those younger than AGE
    ///
    /// With --keep-last, a pin counts if either option keeps it.
    #[arg(long, value_name = "AGE", value_parser = parse_age)]
    pub keep_within: Option<Duration>,

    /// Keep the paths in FILE, one per line, and their closures; - is standard input
    #[arg(long, value_name = "FILE")]
    pub roots: Option<PathBuf>,

    /// Do not read narinfos whose text is in FILE, narinfo text of an earlier run
    ///
    /// A text is used if its MD5 hash is the entity tag of the narinfo in the listing.
    #[arg(long, value_name = "FILE")]
    pub have: Option<PathBuf>,

    /// Accept a cache without pins and --roots: only the age of a path keeps it
    #[arg(long)]
    pub no_roots: bool,
}
