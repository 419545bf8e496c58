//! The options of commands on one bucket; shared with `s3-pull`.

use std::time::Duration;

use clap::Args;
use nar_pack::error::{Error, Result};
use nar_pack::option_values::parse_number;

use crate::remote::location::{Location, url_from_environment};
use crate::remote::option_values::parse_timeout;
pub use crate::remote::progress::ProgressArgs;
use crate::remote::retry::{DEFAULT_MAX_ATTEMPTS, RequestLimits};
use crate::remote::s3::{Access, Bucket};

/// How long requests may take, and how often they are tried.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Network")]
pub struct RequestArgs {
    /// Abort and retry a request after DURATION without progress
    ///
    /// A number without a unit means seconds: 30, 30s and 1m are accepted. The duration of a whole transfer is not limited. The response to an upload of 1 MiB or more must begin within DURATION too; where that is too short, it is doubled up to three times. AWS credentials must be found within DURATION too.
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = parse_timeout, hide_short_help = true)]
    pub idle_timeout: Duration,

    /// Abort and retry a request whose connection is not established within DURATION
    ///
    /// Accepts the same durations as --idle-timeout. While a server does not respond, a note after 3 seconds names it; the request fails after all attempts (see --attempts).
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = parse_timeout, hide_short_help = true)]
    pub connect_timeout: Duration,

    /// Maximum attempts per request, with exponential backoff and jitter between them
    #[arg(
        long, value_name = "N", env = "AWS_MAX_ATTEMPTS", hide_env_values = true, default_value_t = DEFAULT_MAX_ATTEMPTS,
        value_parser = parse_number(1_u32..=100), hide_short_help = true,
    )]
    pub attempts: u32,
}

impl RequestArgs {
    /// Returns the limits of the requests, of which `max_in_flight` are made at the same time.
    #[must_use]
    pub fn limits(&self, max_in_flight: u16, is_quiet: bool) -> RequestLimits {
        RequestLimits {
            idle_timeout: self.idle_timeout,
            connect_timeout: self.connect_timeout,
            max_attempts: self.attempts,
            max_in_flight,
            is_quiet,
        }
    }
}

/// How a bucket is accessed, and what is printed.
#[derive(Debug, Clone, Args)]
pub struct BucketArgs {
    /// Set the store directory of the paths
    #[arg(
        long,
        value_name = "DIR",
        env = "NIX_STORE_DIR",
        default_value = "/nix/store",
        hide_env_values = true,
        help_heading = "Common",
        hide_short_help = true
    )]
    pub store_dir: String,

    /// How long requests may take, and how often they are tried
    #[command(flatten)]
    pub request_args: RequestArgs,

    /// Maximum concurrent requests
    ///
    /// Reduced automatically while the server throttles (429, 503).
    #[arg(
        short, long, value_name = "N", default_value_t = 64, value_parser = parse_number(1_u16..=1024),
        help_heading = "Performance",
    )]
    pub jobs: u16,

    /// Print only errors
    #[arg(short, long, help_heading = "Logging")]
    pub quiet: bool,

    /// How progress is shown
    #[command(flatten)]
    pub progress: ProgressArgs,
}

impl BucketArgs {
    /// Connects to the bucket with this URL, for the tool `tool`, whose progress is shown from now on.
    ///
    /// # Errors
    /// Returns a usage error if the URL is not that of a bucket: only a bucket can be listed with its times.
    pub async fn connect(&self, url: &str, access: Access, tool: &'static str) -> Result<Bucket> {
        self.progress.apply(tool, self.quiet);
        Bucket::connect(Location::parse(url)?, access, self.limits(), tool).await
    }

    /// Returns the limits of the requests.
    #[must_use]
    pub fn limits(&self) -> RequestLimits {
        self.request_args.limits(self.jobs, self.quiet)
    }
}

/// Splits positional arguments into the URL of the bucket, which may come from the environment instead, and the others.
///
/// # Errors
/// Returns a usage error if there is no URL.
pub fn split_url(targets: &[String]) -> Result<(String, &[String])> {
    match targets.split_first() {
        Some((url, rest)) if url.contains("://") => Ok((url.clone(), rest)),
        _ => Ok((url_from_environment("")?, targets)),
    }
}

/// Returns the URL of the bucket, for commands without other positional arguments.
///
/// # Errors
/// Returns a usage error if there is no URL, or another argument.
pub fn only_url(targets: &[String]) -> Result<String> {
    match split_url(targets)? {
        (url, []) => Ok(url),
        (_, [argument, ..]) => Err(unexpected_argument(argument)),
    }
}

/// Returns the error of a positional argument that is not accepted.
#[must_use]
pub fn unexpected_argument(argument: &str) -> Error {
    Error::usage(format!("unexpected argument {argument}"))
}
