//! Months as numbers.

/// Returns the number of months from the year 0 to a month such as `2026-11`.
pub fn month_number(text: &str) -> Option<u32> {
    let (year, month) = text.split_once('-')?;
    let month: u32 = month.parse().ok().filter(|month| (1..=12).contains(month))?;
    year.parse::<u32>().ok()?.checked_mul(12)?.checked_add(month - 1)
}

/// Returns a month as text, such as `2026-11`.
pub fn format_month(number: u32) -> String {
    format!("{:04}-{:02}", number / 12, number % 12 + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn months_are_numbered() {
        for month in ["1970-01", "2026-11", "2026-12", "9999-12"] {
            assert_eq!(month_number(month).map(format_month).as_deref(), Some(month));
        }
        assert_eq!(month_number("2027-01"), month_number("2026-12").map(|number| number + 1));
        for text in ["", "2026", "2026-13", "2026-00", "x-01", "4294967295-01"] {
            assert_eq!(month_number(text), None, "{text}");
        }
    }
}
