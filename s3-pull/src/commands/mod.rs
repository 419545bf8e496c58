//! The commands: those that stand for a flag, and those that read a bucket as its operator does.

pub mod cli;
mod dead;
mod pins;

use std::ffi::OsString;

use nar_pack::error::{Error, Result};
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
    let mut args: Vec<OsString> = args.into_iter().collect();
    if let Some(command) = args.get_mut(1)
        && FLAG_COMMANDS.iter().any(|name| command == name)
    {
        *command = format!("--{}", command.to_string_lossy()).into();
    }
    args
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
    };
    runtime.shutdown_background();
    result
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_first_argument_is_a_command() {
        let expand = |args: &str| {
            let args = expand_command(args.split(' ').map(OsString::from));
            args.join(std::ffi::OsStr::new(" ")).into_string().unwrap()
        };
        assert_eq!(expand("s3-pull narinfo --all x"), "s3-pull --narinfo --all x");
        assert_eq!(expand("s3-pull archive --stdin x"), "s3-pull --archive --stdin x");
        for unchanged in ["s3-pull", "s3-pull dead x", "s3-pull x narinfo", "s3-pull --list x"] {
            assert_eq!(expand(unchanged), unchanged);
        }
    }
}
