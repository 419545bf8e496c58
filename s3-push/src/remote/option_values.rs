//! Parsers of option values: byte sizes and durations. The format of durations is that of `humantime`, extended where the
//! flags have always accepted more.

use std::time::Duration;

pub use nar_pack::option_values::parse_byte_size;

/// The range of a timeout.
const MIN_TIMEOUT: Duration = Duration::from_secs(1);
const MAX_TIMEOUT: Duration = Duration::from_hours(1);

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

/// Parses an age such as `30d` or `12h`.
///
/// # Errors
/// Returns a message for the user.
pub fn parse_age(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text).map_err(|_| "expected a duration such as 30d or 12h".to_owned())
}

/// Parses a share of 0 to 100 percent, such as `20%`.
///
/// # Errors
/// Returns a message for the user.
pub fn parse_percent(text: &str) -> Result<u8, String> {
    let number = text.strip_suffix('%').unwrap_or(text).parse();
    number.ok().filter(|percent| *percent <= 100).ok_or_else(|| "expected a share such as 20%".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

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
