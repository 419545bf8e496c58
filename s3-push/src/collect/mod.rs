//! Pins, and the deletion of dead paths.
//!
//! | module | responsibility |
//! | --- | --- |
//! | `cli` | the command lines |
//! | `pin` | writes and removes pins |
//! | `candidates`, `delete` | the paths to delete, and their deletion in two runs |
//! | `unneeded` | the deletion of NARs and other objects that no path needs |
//! | `outcome` | what a deletion has done, as text and as JSON |
//! | `run` | `collect`: finds the dead paths and does both |
//! | `records`, `flag` | the objects below `gc/` that tell pushers what is about to be deleted |

mod candidates;
pub mod cli;
mod delete;
pub mod flag;
mod outcome;
mod pin;
pub mod records;
mod run;
mod unneeded;

use nar_pack::error::{Error, Result};

use crate::collect::cli::Command;
use crate::remote::progress::is_or_are;
use crate::remote::s3::Bucket;
use crate::remote::start_runtime;

/// Runs a command.
///
/// # Errors
/// See the exit statuses in [`nar_pack::error`].
pub fn run(command: &Command) -> Result {
    let runtime = start_runtime()?;
    let result = match command {
        Command::Pin(args) => pin::pin(&runtime, args),
        Command::Unpin(args) => pin::unpin(&runtime, args),
        Command::Delete(args) if args.nars => unneeded::run(&runtime, args),
        Command::Delete(args) => delete::run(&runtime, args),
        Command::Collect(args) => run::run(&runtime, args),
    };
    runtime.shutdown_background();
    result
}

/// Returns the verb of a message about `count` objects that were, or in a dry run would be, changed.
fn passive_verb(bucket: &Bucket, count: usize) -> &'static str {
    if bucket.is_dry_run() { "would be" } else { is_or_are(count) }
}

/// Refuses to doom or delete more than this share of the objects of a kind.
fn require_share(bucket: &Bucket, kind: &str, count: usize, total: usize, max_percent: u8) -> Result {
    if count * 100 <= total * usize::from(max_percent) {
        return Ok(());
    }
    let percent = count * 100 / total.max(1);
    let url = bucket.display_url("");
    let error = format!(
        "{url}: {count} of {total} {kind} ({percent}%) would be deleted, more than --max-delete {max_percent}%"
    );
    Err(Error::refused(error).with_hint("check the pins and the roots, or pass a larger --max-delete"))
}
