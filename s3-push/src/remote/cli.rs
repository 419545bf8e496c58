//! The options of commands on one bucket; shared with `s3-pull`.

use std::time::Duration;

use clap::Args;

use crate::remote::option_values::parse_timeout;
use crate::remote::retry::DEFAULT_MAX_ATTEMPTS;

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

    /// Abort and retry a request after SECONDS without progress
    #[arg(
        long, value_name = "SECONDS", default_value = "30", value_parser = parse_timeout,
        help_heading = "Network", hide_short_help = true,
    )]
    pub idle_timeout: Duration,

    /// Abort and retry a request whose connection is not established within SECONDS
    #[arg(
        long, value_name = "SECONDS", default_value = "10", value_parser = parse_timeout, help_heading = "Network",
        hide_short_help = true,
    )]
    pub connect_timeout: Duration,

    /// Maximum attempts per request, with exponential backoff and jitter
    #[arg(
        long, value_name = "N", env = "AWS_MAX_ATTEMPTS", hide_env_values = true, default_value_t = DEFAULT_MAX_ATTEMPTS,
        value_parser = clap::value_parser!(u32).range(1..=100), help_heading = "Network", hide_short_help = true,
    )]
    pub attempts: u32,

    /// Maximum concurrent requests
    ///
    /// Reduced automatically while the server throttles (429, 503).
    #[arg(
        short, long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..=1024),
        help_heading = "Performance",
    )]
    pub jobs: u16,

    /// Print only errors
    #[arg(short, long, help_heading = "Logging")]
    pub quiet: bool,
}

impl BucketArgs {
    /// Returns the limits of the requests.
    #[must_use]
    pub fn limits(&self) -> crate::remote::retry::RequestLimits {
        crate::remote::retry::RequestLimits {
            idle_timeout: self.idle_timeout,
            connect_timeout: self.connect_timeout,
            is_quiet: self.quiet,
            max_attempts: self.attempts,
            max_in_flight: self.jobs,
        }
    }
}
