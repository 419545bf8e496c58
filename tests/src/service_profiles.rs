//! Services that the tests cannot reach, as profiles for the proxy in `fault_proxy`: each refuses what the service
//! refuses, and answers what the service answers, according to its documentation and to issue reports.
//! docs/compatibility.md, which the matrix generates, lists the sources.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Mutex, PoisonError};

use crate::fault_proxy::{ErrorResponse, Fault, Request, RequestKind};
use crate::quirks::Quirk;

/// A service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Service {
    /// Refuses x-amz-checksum-* and x-amz-sdk-checksum-algorithm.
    BackblazeB2,
    /// Requires parts of one size, except the last one, which must not be larger.
    CloudflareR2,
    /// Cannot read bodies in the encoding aws-chunked.
    Hetzner,
    /// Refuses aws-chunked and trailers; does not take a CRC-32 in place of Content-MD5.
    OracleCloud,
    /// Refuses trailers and x-amz-sdk-checksum-algorithm.
    Ovhcloud,
    /// To 1.0.0-beta.1: 500 for ListParts of an upload without parts.
    RustFs,
    /// To 4.44: 412 instead of 404 for a conditional read of a missing key.
    SeaweedFs,
    /// Refuses parts with a checksum that was not announced for the upload.
    Wasabi,
}

impl Service {
    /// All services.
    pub const ALL: [Self; 8] = [
        Self::BackblazeB2,
        Self::CloudflareR2,
        Self::Hetzner,
        Self::OracleCloud,
        Self::Ovhcloud,
        Self::RustFs,
        Self::SeaweedFs,
        Self::Wasabi,
    ];

    /// Returns its name in docs/compatibility.md.
    pub fn name(self) -> &'static str {
        match self {
            Self::BackblazeB2 => "Backblaze B2",
            Self::CloudflareR2 => "Cloudflare R2",
            Self::Hetzner => "Hetzner Object Storage",
            Self::OracleCloud => "Oracle Cloud Object Storage",
            Self::Ovhcloud => "OVHcloud",
            Self::RustFs => "RustFS",
            Self::SeaweedFs => "SeaweedFS",
            Self::Wasabi => "Wasabi",
        }
    }

    /// Returns the plan of a proxy that makes an S3 server behave as this service.
    pub fn plan(self) -> impl Fn(&Request) -> Fault + Send + Sync + 'static {
        let uploads = Uploads::default();
        move |request| self.fault(request, &uploads)
    }

    fn fault(self, request: &Request, uploads: &Uploads) -> Fault {
        match self {
            Self::BackblazeB2 if has_checksum(request) => respond(400, "InvalidArgument"),
            Self::CloudflareR2 if !uploads.have_equal_parts(request) => respond(400, "InvalidPart"),
            Self::Hetzner if is_chunked(request) => respond(400, "XAmzContentSHA256Mismatch"),
            Self::OracleCloud if is_chunked(request) => respond(501, "NotImplemented"),
            Self::OracleCloud if request.kind() == RequestKind::DeleteObjects && !has_accepted_digest(request) => {
                respond(400, "InvalidRequest")
            }
            Self::Ovhcloud if has_trailer(request) || request.header("x-amz-sdk-checksum-algorithm").is_some() => {
                respond(501, "NotImplemented")
            }
            Self::RustFs => Fault::Quirk(Quirk::RustFs),
            Self::SeaweedFs => Fault::Quirk(Quirk::SeaweedFs),
            Self::Wasabi if !uploads.have_announced_checksums(request) => respond(400, "InvalidRequest"),
            _ => Fault::Pass,
        }
    }
}

impl fmt::Display for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

fn respond(status: u16, code: &'static str) -> Fault {
    Fault::Respond(ErrorResponse { status, code, retry_after: None })
}

/// Returns whether the body is in the encoding aws-chunked, with or without a trailer.
fn is_chunked(request: &Request) -> bool {
    let has = |name, text| request.header(name).is_some_and(|value| value.contains(text));
    has("content-encoding", "aws-chunked") || has("x-amz-content-sha256", "STREAMING-") || has_trailer(request)
}

fn has_trailer(request: &Request) -> bool {
    let hash = request.header("x-amz-content-sha256").unwrap_or_default();
    hash.ends_with("-TRAILER") || request.header("x-amz-trailer").is_some()
}

fn has_checksum(request: &Request) -> bool {
    let is_checksum = |name: &str| name.starts_with("x-amz-checksum-") && name != "x-amz-checksum-mode";
    request.headers.iter().any(|(name, _)| is_checksum(name) || name == "x-amz-sdk-checksum-algorithm")
}

fn has_accepted_digest(request: &Request) -> bool {
    let names = ["content-md5", "x-amz-checksum-sha256", "x-amz-checksum-crc32c"];
    names.iter().any(|name| request.header(name).is_some())
}

/// What a service knows about its multipart uploads.
#[derive(Default)]
struct Uploads {
    /// The sizes of the parts by their numbers, by the upload ID.
    parts: Mutex<BTreeMap<String, BTreeMap<u32, u64>>>,
    /// The keys of uploads that were created with a checksum algorithm.
    announced: Mutex<Vec<String>>,
}

impl Uploads {
    /// Remembers the parts. Returns false for the completion of an upload with parts of several sizes.
    fn have_equal_parts(&self, request: &Request) -> bool {
        let mut uploads = self.parts.lock().unwrap_or_else(PoisonError::into_inner);
        let parts = uploads.entry(parameter(request, "uploadId")).or_default();
        match request.kind() {
            RequestKind::UploadPart => {
                let size = request.header("content-length").and_then(|length| length.parse().ok());
                let number = parameter(request, "partNumber").parse().unwrap_or_default();
                parts.insert(number, size.unwrap_or_default());
                true
            }
            RequestKind::CompleteMultipartUpload => {
                let mut sizes: Vec<u64> = parts.values().copied().collect();
                let last = sizes.pop().unwrap_or_default();
                sizes.iter().all(|size| *size == sizes[0] && last <= *size)
            }
            _ => true,
        }
    }

    /// Remembers uploads with a checksum algorithm. Returns false for a part with a checksum of another upload.
    fn have_announced_checksums(&self, request: &Request) -> bool {
        let mut announced = self.announced.lock().unwrap_or_else(PoisonError::into_inner);
        match request.kind() {
            RequestKind::CreateMultipartUpload if request.header("x-amz-checksum-algorithm").is_some() => {
                announced.push(request.path.clone());
                true
            }
            RequestKind::UploadPart => !has_checksum(request) || announced.contains(&request.path),
            _ => true,
        }
    }
}

/// Returns the value of a parameter of the query; empty without it.
fn parameter(request: &Request, name: &str) -> String {
    let pairs = request.query.split('&').filter_map(|pair| pair.split_once('='));
    pairs.filter(|(found, _)| *found == name).map(|(_, value)| value.to_owned()).next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the status of the response of the service to the last of the requests, or none if it is the server's.
    fn status(service: Service, requests: &[&str]) -> Option<u16> {
        let plan = service.plan();
        let faults = requests.iter().map(|head| plan(&Request::parse(head.as_bytes().to_vec()).unwrap()));
        match faults.last() {
            Some(Fault::Respond(error)) => Some(error.status),
            _ => None,
        }
    }

    #[test]
    fn r2_requires_parts_of_one_size() {
        let status_of = |sizes: [u32; 3]| {
            let part = |(index, size)| {
                format!("PUT /b/k?partNumber={}&uploadId=1 HTTP/1.1\r\nContent-Length: {size}\r\n\r\n", index + 1)
            };
            let mut requests: Vec<String> = sizes.into_iter().enumerate().map(part).collect();
            requests.push("POST /b/k?uploadId=1 HTTP/1.1\r\n\r\n".to_owned());
            status(Service::CloudflareR2, &requests.iter().map(String::as_str).collect::<Vec<_>>())
        };
        assert_eq!(status_of([5, 5, 5]), None);
        assert_eq!(status_of([5, 5, 1]), None);
        assert_eq!(status_of([5, 6, 1]), Some(400));
        assert_eq!(status_of([5, 5, 6]), Some(400));
    }

    #[test]
    fn services_refuse_what_they_do_not_support() {
        let put = |headers: &str| format!("PUT /b/k HTTP/1.1\r\nContent-Length: 1\r\n{headers}\r\n\r\n");
        let delete = |headers: &str| format!("POST /b/?delete HTTP/1.1\r\nContent-Length: 1\r\n{headers}\r\n\r\n");
        let trailer = put("x-amz-content-sha256: STREAMING-UNSIGNED-PAYLOAD-TRAILER");
        let chunked = put("Content-Encoding: aws-chunked");
        let checksum = put("x-amz-checksum-crc32: AAAAAA==");
        let part = "PUT /b/k?partNumber=1&uploadId=1 HTTP/1.1\r\nx-amz-checksum-crc32: AAAAAA==\r\n\r\n";
        for (service, refused, accepted) in [
            (Service::BackblazeB2, checksum.as_str(), put("Content-MD5: x")),
            (Service::Hetzner, &chunked, checksum.clone()),
            (Service::Hetzner, &trailer, put("x-amz-content-sha256: 00")),
            (Service::OracleCloud, &chunked, checksum.clone()),
            (Service::OracleCloud, &delete("x-amz-checksum-crc32: AAAAAA=="), delete("Content-MD5: x")),
            (Service::Ovhcloud, &trailer, checksum.clone()),
            (Service::Wasabi, part, checksum.clone()),
        ] {
            assert!(status(service, &[refused]).is_some(), "{service}: {refused}");
            assert_eq!(status(service, &[&accepted]), None, "{service}: {accepted}");
        }
    }
}
