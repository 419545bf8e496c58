//! Options that several tools share: parsers of numbers, byte sizes and names of paths, and the check that no option is
//! given that would be ignored. The format of byte sizes is that of `bytesize`, extended by the suffixes of coreutils.

use std::fmt::Display;
use std::ops::RangeInclusive;
use std::str::FromStr;

use bytesize::ByteSize;

use crate::error::{Error, Result as ToolResult};
use crate::store_path::check_name;

/// Returns a parser of numbers in `range`.
///
/// # Errors
/// The parser returns a message for the user.
pub fn parse_number<T: FromStr + PartialOrd + Display + Clone>(
    range: RangeInclusive<T>,
) -> impl Fn(&str) -> Result<T, String> + Clone {
    move |text| {
        let number = text.parse().ok().filter(|number| range.contains(number));
        number.ok_or_else(|| format!("expected a number from {} to {}", range.start(), range.end()))
    }
}

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

/// Rejects options that would be ignored with `selected`, the flag that determines what the tool does. Each option comes
/// with whether it is given, and with what it can be used. clap does not enforce `requires` if an argument that is given
/// conflicts with the required one.
///
/// # Errors
/// Returns a usage error for the first such option.
pub fn reject_inapplicable<'a>(
    selected: &str,
    options: impl IntoIterator<Item = (&'a str, bool, &'a [&'a str])>,
) -> ToolResult {
    match options.into_iter().find(|(_, is_given, allowed)| *is_given && !allowed.contains(&selected)) {
        Some((option, _, allowed)) => Err(Error::inapplicable(option, selected, &allowed.join(", "))),
        None => Ok(()),
    }
}

/// Parses the name of a store path.
///
/// # Errors
/// Returns a message for the user.
pub fn parse_path_name(text: &str) -> Result<String, String> {
    check_name(text.as_bytes()).map(|()| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_outside_the_range_get_its_bounds() {
        let parse = parse_number(1_u16..=256);
        assert_eq!((parse("1"), parse("256")), (Ok(1), Ok(256)));
        for text in ["", "x", "0", "257", "65536", "-1", "1.5"] {
            assert_eq!(parse(text), Err("expected a number from 1 to 256".to_owned()), "{text}");
        }
    }

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
}
