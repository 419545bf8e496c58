//! Ways in which services differ from S3, as profiles for the proxy in `fault_proxy`.

use std::time::{Duration, SystemTime};

use crate::fault_proxy::{ErrorResponse, Request, RequestKind};

/// How a service differs from S3.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Quirk {
    /// `rclone serve s3`: the root element of the response to CreateMultipartUpload is `InitiateMultipartUpload`,
    /// without `Result`.
    Rclone,
    /// RustFS to 1.0.0-beta.1: 500 for ListParts of an upload without parts.
    RustFs,
    /// SeaweedFS to 4.44: 412 instead of 404 for a conditional read of a missing key.
    SeaweedFs,
    /// The times in listings have no fraction of a second.
    WholeSeconds,
    /// The clock of the service is an hour behind that of the host.
    HourBehind,
    /// The clock of the service is an hour ahead of that of the host.
    HourAhead,
    /// All objects were written a year earlier, and those of a collector two days earlier, except those that it writes
    /// to know the time and to lock.
    OldObjects,
}

/// The length of a time in a listing, with milliseconds, as S3 writes it.
const TIME_LENGTH: usize = "2026-01-02T03:04:05.000Z".len();
const HOUR: Duration = Duration::from_hours(1);
const YEAR: Duration = Duration::from_hours(365 * 24);

impl Quirk {
    /// Returns the error that replaces a response, if any.
    pub(crate) fn error(self, request: &Request, status: &str, body: &[u8]) -> Option<ErrorResponse> {
        let is_conditional =
            ["if-match", "if-none-match", "if-unmodified-since"].iter().any(|name| request.header(name).is_some());
        let reads = matches!(request.kind(), RequestKind::GetObject(_) | RequestKind::HeadObject(_));
        let (status, code) = match self {
            Self::SeaweedFs if status == "404" && is_conditional && reads => (412, "PreconditionFailed"),
            Self::RustFs if request.kind() == RequestKind::ListParts && starts_of(body, b"<Part>").is_empty() => {
                (500, "InternalError")
            }
            _ => return None,
        };
        Some(ErrorResponse { status, code, retry_after: None })
    }

    /// Changes the body of a response to a request of that kind. Its length stays the same, and so does its framing.
    pub(crate) fn apply(self, kind: RequestKind, body: &mut [u8]) {
        match self {
            Self::Rclone if kind == RequestKind::CreateMultipartUpload => {
                replace(body, b"InitiateMultipartUploadResult", b"InitiateMultipartUpload      ");
            }
            Self::Rclone | Self::RustFs | Self::SeaweedFs => {}
            _ if kind == RequestKind::ListObjects => change_times(body, |key, time| self.change_time(key, time)),
            _ => {}
        }
    }

    fn change_time(self, key: &str, time: SystemTime) -> SystemTime {
        match self {
            Self::Rclone | Self::RustFs | Self::SeaweedFs => time,
            Self::WholeSeconds => {
                let since_epoch = time.duration_since(SystemTime::UNIX_EPOCH).expect("a time after 1970");
                SystemTime::UNIX_EPOCH + Duration::from_secs(since_epoch.as_secs())
            }
            Self::HourBehind => time - HOUR,
            Self::HourAhead => time + HOUR,
            Self::OldObjects if key.ends_with("gc/clock") || key.ends_with("gc/sweeping") => time,
            Self::OldObjects if key.starts_with("gc/") || key.contains("/gc/") => time - HOUR * 48,
            Self::OldObjects => time - YEAR,
        }
    }
}

/// Changes the time of each object in a listing.
fn change_times(body: &mut [u8], change: impl Fn(&str, SystemTime) -> SystemTime) {
    const KEY: &[u8] = b"<Key>";
    const TIME: &[u8] = b"<LastModified>";
    for start in starts_of(body, TIME) {
        let at = start + TIME.len();
        let key = starts_of(&body[..start], KEY).last().map_or(&[][..], |key| &body[key + KEY.len()..start]);
        let key = String::from_utf8_lossy(key.split(|&byte| byte == b'<').next().unwrap_or_default()).into_owned();
        let text = str::from_utf8(&body[at..at + TIME_LENGTH]).expect("a time is text");
        let time = humantime::parse_rfc3339(text).expect("a time with milliseconds");
        let changed = humantime::format_rfc3339_millis(change(&key, time)).to_string();
        body[at..at + TIME_LENGTH].copy_from_slice(changed.as_bytes());
    }
}

/// Replaces each occurrence of `from` by `to`, which has the same length.
fn replace(body: &mut [u8], from: &[u8], to: &[u8]) {
    for start in starts_of(body, from) {
        body[start..start + to.len()].copy_from_slice(to);
    }
}

/// Returns where the text occurs.
fn starts_of(body: &[u8], text: &[u8]) -> Vec<usize> {
    body.windows(text.len()).enumerate().filter(|(_, bytes)| *bytes == text).map(|(start, _)| start).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_of_a_listing_are_changed_in_place() {
        let listing = |time: &str, clock: &str| {
            format!(
                "<Contents><Key>a/x.narinfo</Key><LastModified>{time}</LastModified></Contents><Contents><Key>a/gc/clock\
                 </Key><LastModified>{clock}</LastModified></Contents>"
            )
        };
        let change = |quirk: Quirk| {
            let mut body = listing("2026-03-02T03:04:05.678Z", "2026-03-02T03:04:06.000Z").into_bytes();
            quirk.apply(RequestKind::ListObjects, &mut body);
            String::from_utf8(body).unwrap()
        };
        let expected = [
            (Quirk::WholeSeconds, listing("2026-03-02T03:04:05.000Z", "2026-03-02T03:04:06.000Z")),
            (Quirk::HourBehind, listing("2026-03-02T02:04:05.678Z", "2026-03-02T02:04:06.000Z")),
            (Quirk::HourAhead, listing("2026-03-02T04:04:05.678Z", "2026-03-02T04:04:06.000Z")),
            (Quirk::OldObjects, listing("2025-03-02T03:04:05.678Z", "2026-03-02T03:04:06.000Z")),
        ];
        for (quirk, expected) in expected {
            assert_eq!(change(quirk), expected, "{quirk:?}");
        }
    }
}
