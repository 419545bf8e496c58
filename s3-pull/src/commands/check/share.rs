//! Which NARs a run of `s3-pull check` reads: all, or the share of the day. The share depends on the key of a NAR and on
//! the day, so it is the same for everybody, and all NARs are read within as many days as there are shares.

use std::time::{Duration, SystemTime};

use s3_push::remote::etag::Md5Tag;
use s3_push::remote::option_values::parse_byte_size;

/// Maximum number of parts in a fraction.
const MAX_PARTS: u64 = 1_000_000;
const DAY: Duration = Duration::from_hours(24);

/// How much is read on a day.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReadShare {
    /// This many of so many parts.
    Fraction {
        /// The number of parts that are read.
        parts: u64,
        /// The number of all parts.
        of: u64,
    },
    /// About this many bytes, at most in the long run.
    Bytes(u64),
}

impl ReadShare {
    /// Everything.
    pub const ALL: Self = Self::Fraction { parts: 1, of: 1 };

    /// Returns the NARs that are read on the day of `time`, if all NARs have `total` bytes.
    #[must_use]
    pub fn on_day(self, time: SystemTime, total: u64) -> ShareOfDay {
        let day = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs() / DAY.as_secs();
        let (parts, of) = match self {
            Self::Fraction { parts, of } => (parts, of),
            // A power of two rarely changes while the cache grows, so the days continue where they were.
            Self::Bytes(bytes) => (1, total.div_ceil(bytes).max(1).next_power_of_two()),
        };
        ShareOfDay { first: day.wrapping_mul(parts) % of, parts, of }
    }
}

/// The NARs that are read on a day.
#[derive(Debug, Clone, Copy)]
pub struct ShareOfDay {
    first: u64,
    parts: u64,
    of: u64,
}

impl ShareOfDay {
    /// Returns whether the NAR is read whose key has this MD5 hash.
    #[must_use]
    pub fn contains(self, key: Md5Tag) -> bool {
        let [parts, of, first] = [self.parts, self.of, self.first].map(u128::from);
        let part = u128::from_be_bytes(key) % of;
        (part + of - first) % of < parts
    }
}

/// Parses a share: `5%`, `1/7` or `10GiB`.
///
/// # Errors
/// Returns a message for the user.
pub fn parse_share(text: &str) -> Result<ReadShare, String> {
    let fraction = |parts: &str, of: &str| match (parts.parse(), of.parse()) {
        (Ok(parts), Ok(of)) if (1..=of).contains(&parts) && of <= MAX_PARTS => Ok(ReadShare::Fraction { parts, of }),
        _ => Err("expected a share from 1% to 100%, or a fraction such as 1/7".to_owned()),
    };
    if let Some(percent) = text.strip_suffix('%') {
        return fraction(percent, "100");
    }
    if let Some((parts, of)) = text.split_once('/') {
        return fraction(parts, of);
    }
    let bytes = parse_byte_size(text).map_err(|_| "expected a share such as 5%, 1/7 or 10GiB".to_owned())?;
    Ok(ReadShare::Bytes(bytes))
}

#[cfg(test)]
mod tests {
    use s3_push::remote::etag::md5_tag_of;

    use super::*;

    #[test]
    fn shares_are_percentages_fractions_and_sizes() {
        assert_eq!(parse_share("5%"), Ok(ReadShare::Fraction { parts: 5, of: 100 }));
        assert_eq!(parse_share("100%"), Ok(ReadShare::Fraction { parts: 100, of: 100 }));
        assert_eq!(parse_share("1/7"), Ok(ReadShare::Fraction { parts: 1, of: 7 }));
        assert_eq!(parse_share("10GiB"), Ok(ReadShare::Bytes(10 << 30)));
        for text in ["", "0%", "101%", "0.5%", "0/7", "8/7", "1/0", "1/", "/", "-1/7", "1/9999999", "x", "0B", "%"] {
            assert!(parse_share(text).is_err(), "{text}");
        }
    }

    /// The days after which every key has had its turn, and how often it had.
    fn turns(share: ReadShare, total: u64, days: u64) -> Vec<usize> {
        let keys: Vec<Md5Tag> = (0..500_u32).map(|number| md5_tag_of(&number.to_le_bytes())).collect();
        let on_day =
            |day: u64| share.on_day(SystemTime::UNIX_EPOCH + DAY * u32::try_from(20_000 + day).unwrap(), total);
        keys.iter().map(|key| (0..days).filter(|day| on_day(*day).contains(*key)).count()).collect()
    }

    #[test]
    fn each_nar_is_read_once_in_each_round() {
        for (share, total, days) in [("1/7", 0, 7), ("5%", 0, 20), ("100%", 0, 1), ("10GiB", 75 << 30, 8)] {
            let turns = turns(parse_share(share).unwrap(), total, days);
            assert!(turns.iter().all(|count| *count == 1), "{share}");
        }
        // 30% does not divide the whole.
        assert!(turns(parse_share("30%").unwrap(), 0, 4).iter().all(|count| (1..=2).contains(count)));
    }

    #[test]
    fn all_means_all_on_every_day() {
        assert!(turns(ReadShare::ALL, 0, 3).iter().all(|count| *count == 3));
        assert!(turns(ReadShare::Bytes(10), 0, 3).iter().all(|count| *count == 3));
    }
}
