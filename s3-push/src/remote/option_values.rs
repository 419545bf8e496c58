//! Parsers of option values: byte sizes and durations. The formats are those of `bytesize` and `humantime`, extended
//! where the flags have always accepted more.

use std::time::Duration;

use bytesize::ByteSize;

/// The range of a timeout.
const MIN_TIMEOUT: Duration = Duration::from_secs(1);
const MAX_TIMEOUT: Duration = Duration::from_hours(1);

/// Parses a byte size greater than 0, such as `64MiB`. `K`, `M` and `G` mean KiB, MiB and GiB, as in coreutils.
///
/// # Errors
/// Returns a message for the user.
pub fn parse_byte_size(text: &str) -> Result<u64, String> {
    let suffix = if text.ends_with(['K', 'M', 'G']) { "iB" } else { "" };
    match format!("{text}{suffix}").parse::<ByteSize>() {
        Ok(ByteSize(0)) => Err("the size must be greater than 0".to_owned()),
        // The parser saturates.
        Ok(ByteSize(u64::MAX)) => Err("the size is too large".to_owned()),
        Ok(ByteSize(size)) => Ok(size),
        Err(_) => Err("expected a size such as 64MiB".to_owned()),
    }
}

/// Parses a timeout of 1 second to 1 hour, such as `30s` or `1m`. A number without a unit means seconds.
///
/// # Errors
/// Returns a message for the user.
pub fn parse_timeout(text: &str) -> Result<Duration, String> {
    let duration = match text.parse() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => {
            humantime::parse_duration(text).map_err(|_| "expected a duration such as 30, 30s or 1m".to_owned())?
        }
    };
    if (MIN_TIMEOUT..=MAX_TIMEOUT).contains(&duration) {
        Ok(duration)
    } else {
        Err("the duration must be between 1s and 1h".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn byte_sizes_accept_binary_and_decimal_units() {
        for (text, size) in [
            ("10", 10),
            ("10B", 10),
            ("64KiB", 64 << 10),
            ("64K", 64 << 10),
            ("8M", 8 << 20),
            ("8 MiB", 8 << 20),
            ("1G", 1 << 30),
            ("1GiB", 1 << 30),
            ("1MB", 1_000_000),
        ] {
            assert_eq!(parse_byte_size(text), Ok(size), "{text}");
        }
        for text in ["", "0", "0MiB", "MiB", "-1", "1X", "99999999999GiB", "1.2.3K"] {
            assert!(parse_byte_size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn timeouts_accept_seconds_and_units() {
        for (text, seconds) in [("30", 30), ("30s", 30), ("1m", 60), ("1m 30s", 90), ("3600", 3600), ("1h", 3600)] {
            assert_eq!(parse_timeout(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        for text in ["", "0", "500ms", "3601", "2h", "x", "-1"] {
            assert!(parse_timeout(text).is_err(), "{text}");
        }
    }
}
