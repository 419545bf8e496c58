//! The commands: those that stand for a flag, and those that read a bucket as its operator does.

mod check;
pub mod cli;
mod dead;
mod pins;
mod stats;

use std::ffi::OsString;

use clap::CommandFactory as _;
use nar_pack::error::Result;
use nar_pack::process;
use s3_push::remote::cli::BucketArgs;
use s3_push::remote::s3::{Access, Bucket};
use s3_push::remote::start_runtime;

use crate::TOOL;
use crate::cli::Cli;
use crate::mode::PUSH_COMMANDS;
use cli::Command;

/// Commands that are the same as the flag of that name.
const FLAG_COMMANDS: [&str; 6] = ["nar", "cat", "export", "narinfo", "archive", "list"];

/// Replaces a command that stands for a flag by the flag: `s3-pull narinfo …` is `s3-pull --narinfo …`.
pub fn expand_command(args: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    process::expand_flag_command(args, &FLAG_COMMANDS, &PUSH_COMMANDS)
}

/// Returns whether a word is a command.
pub fn is_command(word: &str) -> bool {
    FLAG_COMMANDS.contains(&word) || Cli::command().find_subcommand(word).is_some()
}

/// Runs a command.
///
/// # Errors
/// See the exit statuses in [`nar_pack::error`].
pub fn run(command: &Command) -> Result {
    let runtime = start_runtime()?;
    let result = match command {
        Command::Pins(args) => pins::run(&runtime, args),
        Command::Dead(args) => dead::run(&runtime, args),
        Command::Check(args) => check::run(&runtime, args),
        Command::Stats(args) => stats::run(&runtime, args),
    };
    runtime.shutdown_background();
    result
}

/// Connects to a bucket to read from it.
async fn connect(url: &str, args: &BucketArgs) -> Result<Bucket> {
    args.connect(url, Access::SignedIfPossible { has_opt_out: false }, TOOL).await
}
