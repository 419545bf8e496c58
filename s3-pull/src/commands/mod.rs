//! The commands: those that stand for a flag, and those that read a bucket as its operator does.

mod check;
pub mod cli;
mod dead;
mod pins;
mod stats;

use std::ffi::OsString;

use nar_pack::error::{Error, Result};
use nar_pack::process;
use s3_push::remote::cli::BucketArgs;
use s3_push::remote::location::{Location, VARIABLE};
use s3_push::remote::s3::{Access, Bucket};
use tokio::runtime::Runtime;

use crate::TOOL;
use cli::Command;

/// Commands that are the same as the flag of that name.
const FLAG_COMMANDS: [&str; 6] = ["nar", "cat", "export", "narinfo", "archive", "list"];

/// Replaces a command that stands for a flag by the flag: `s3-pull narinfo …` is `s3-pull --narinfo …`.
pub fn expand_command(args: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    process::expand_flag_command(args, &FLAG_COMMANDS)
}

/// Runs a command.
///
/// # Errors
/// See the exit codes in [`nar_pack::error`].
pub fn run(command: &Command) -> Result {
    let runtime = Runtime::new().map_err(|error| Error::failed(format!("cannot start the async runtime: {error}")))?;
    let result = match command {
        Command::Pins(args) => pins::run(&runtime, args),
        Command::Dead(args) => dead::run(&runtime, args),
        Command::Check(args) => check::run(&runtime, args),
        Command::Stats(args) => stats::run(&runtime, args),
    };
    runtime.shutdown_background();
    result
}

/// Returns the URL of the bucket, which may come from the environment instead.
fn split_only_url(targets: &[String]) -> Result<String> {
    match split_url(targets)? {
        (url, None) => Ok(url),
        (_, Some(argument)) => Err(Error::usage(format!("unexpected argument {argument}"))),
    }
}

/// Returns the URL as an argument of a shell, as it was given.
fn shell_argument(targets: &[String], url: &str) -> String {
    if targets.iter().any(|target| target == url) { format!("'{url}'") } else { format!("\"${VARIABLE}\"") }
}

/// Connects to the bucket with this URL, which must be one of S3: only a bucket can be listed with its times.
async fn connect(url: &str, args: &BucketArgs, access: Access) -> Result<Bucket> {
    let location = Location::parse(url)?;
    Ok(Bucket::connect(location, access, args.limits(), TOOL).await)
}

/// Splits the arguments into the URL of the bucket, which may come from the environment instead, and one more argument.
fn split_url(targets: &[String]) -> Result<(String, Option<&String>)> {
    let (url, rest) = match targets.split_first() {
        Some((url, rest)) if url.contains("://") => (Some(url.clone()), rest),
        _ => (std::env::var(VARIABLE).ok().filter(|url| !url.is_empty()), targets),
    };
    let url = url.ok_or_else(|| Error::usage(format!("no bucket given: pass s3://BUCKET or set {VARIABLE}")))?;
    match rest {
        [] => Ok((url, None)),
        [argument] => Ok((url, Some(argument))),
        [_, argument, ..] => Err(Error::usage(format!("unexpected argument {argument}"))),
    }
}
