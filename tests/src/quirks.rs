//! Ways in which services differ from S3, as profiles for the proxy in `fault_proxy`.

use crate::fault_proxy::RequestKind;

/// How a service differs from S3.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Quirk {
    /// `rclone serve s3`: the root element of the response to CreateMultipartUpload is `InitiateMultipartUpload`,
    /// without `Result`.
    Rclone,
}

impl Quirk {
    /// Changes the body of a response to a request of that kind. Its length stays the same, and so does its framing.
    pub(crate) fn apply(self, kind: RequestKind, body: &mut [u8]) {
        match self {
            Self::Rclone if kind == RequestKind::CreateMultipartUpload => {
                replace(body, b"InitiateMultipartUploadResult", b"InitiateMultipartUpload      ");
            }
            Self::Rclone => {}
        }
    }
}

/// Replaces each occurrence of `from` by `to`, which has the same length.
fn replace(body: &mut [u8], from: &[u8], to: &[u8]) {
    let starts: Vec<usize> =
        body.windows(from.len()).enumerate().filter(|(_, bytes)| *bytes == from).map(|(start, _)| start).collect();
    for start in starts {
        body[start..start + to.len()].copy_from_slice(to);
    }
}
