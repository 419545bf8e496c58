//! Errors of S3: which ones mean that an object is missing, which permission a forbidden request requires, and the
//! message for everything else.

use std::error::Error as StdError;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_s3::operation::abort_multipart_upload::AbortMultipartUploadError;
use aws_sdk_s3::operation::complete_multipart_upload::CompleteMultipartUploadError;
use aws_sdk_s3::operation::copy_object::CopyObjectError;
use aws_sdk_s3::operation::create_multipart_upload::CreateMultipartUploadError;
use aws_sdk_s3::operation::delete_object::DeleteObjectError;
use aws_sdk_s3::operation::delete_objects::DeleteObjectsError;
use aws_sdk_s3::operation::get_object::GetObjectError;
use aws_sdk_s3::operation::head_object::HeadObjectError;
use aws_sdk_s3::operation::list_multipart_uploads::ListMultipartUploadsError;
use aws_sdk_s3::operation::list_objects_v2::ListObjectsV2Error;
use aws_sdk_s3::operation::list_parts::ListPartsError;
use aws_sdk_s3::operation::put_object::PutObjectError;
use aws_sdk_s3::operation::upload_part::UploadPartError;
use aws_sdk_s3::operation::upload_part_copy::UploadPartCopyError;
use aws_sdk_s3::primitives::ByteStreamError;
use nar_pack::error::{Error, Result};
use nar_pack::process;
use nar_pack::sync::lock;

use super::credentials::{is_credentials_error, is_credentials_timeout};
use super::{Bucket, Sdk};
use crate::remote::error_chain::{chain, root_cause};
use crate::remote::hints::{
    PROXY_HINT, UNREACHABLE_HINT, expects_tls, is_unreachable, is_web_page, lacks_tls, requires_proxy_login,
};
use crate::remote::liveness::COLLECTOR_PREFIX;
use crate::remote::retry::RequestLimits;

/// The hint for an upload that another process has changed, completed or aborted.
const OTHER_UPLOAD_HINT: &str = "run the same command again: another process has changed the upload";
/// The hint for a request that cannot be signed, or whose signature is refused, if it need not be signed.
const UNSIGNED_HINT: &str = "if the bucket is public, use --no-sign-request";
/// The hint for a host without credentials.
const CREDENTIALS_HINT: &str =
    "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or add profile=NAME to the parameters of the URL";
/// The hint for a provider that does not answer.
const CREDENTIALS_TIMEOUT_HINT: &str =
    "check the credential_process or the role of the AWS profile, or wait longer with --idle-timeout";
/// The hint for a profile of the URL that has no credentials: those of the environment are not used.
const PROFILE_HINT: &str = "add credentials to the profile, or remove profile= from the parameters of the URL";
/// The hint for a bucket that does not exist.
const NO_BUCKET_HINT: &str = "check the name of the bucket in the URL, or create the bucket";
/// The hint for an upload that has taken too long.
const SLOW_UPLOAD_HINT: &str = "if the link is slow, pass --jobs 2, so that fewer parts share it";
/// What the SDK adds to an error of its parser, although the service may be another one than S3.
const SDK_BUG: &str = ". This is likely a bug in the SDK.";

/// The permission that an operation requires, by its error type (Amazon S3 user guide, "Required permissions for Amazon
/// S3 API operations").
pub(super) trait RequiredPermission {
    /// The action, as in a policy.
    const PERMISSION: &'static str;
}

macro_rules! required_permissions {
    ($($error:ty: $permission:literal),* $(,)?) => {
        $(impl RequiredPermission for $error {
            const PERMISSION: &'static str = $permission;
        })*
    };
}

required_permissions! {
    GetObjectError: "s3:GetObject",
    HeadObjectError: "s3:GetObject",
    PutObjectError: "s3:PutObject",
    CopyObjectError: "s3:PutObject",
    CreateMultipartUploadError: "s3:PutObject",
    UploadPartError: "s3:PutObject",
    UploadPartCopyError: "s3:PutObject",
    CompleteMultipartUploadError: "s3:PutObject",
    AbortMultipartUploadError: "s3:AbortMultipartUpload",
    ListObjectsV2Error: "s3:ListBucket",
    ListMultipartUploadsError: "s3:ListBucketMultipartUploads",
    ListPartsError: "s3:ListMultipartUploadParts",
    DeleteObjectError: "s3:DeleteObject",
    DeleteObjectsError: "s3:DeleteObject",
}

/// The error of an S3 operation.
pub(super) trait OperationError: ProvideErrorMetadata + RequiredPermission + StdError + 'static {}

impl<E: ProvideErrorMetadata + RequiredPermission + StdError + 'static> OperationError for E {}

impl Bucket {
    fn credentials_hint(&self) -> &'static str {
        if self.location.profile.is_some() { PROFILE_HINT } else { CREDENTIALS_HINT }
    }

    /// Returns `Ok` if the error means that the object does not exist.
    pub(super) fn missing<E: OperationError>(&self, error: &Sdk<E>, action: &str, key: &str) -> Result {
        match status(error) {
            Some(404) if error.code() != Some("NoSuchBucket") => Ok(()),
            // In a public bucket, nix-cache-info would have been read by now.
            Some(403) if self.lacks_credentials && !self.is_readable.load(Ordering::Relaxed) => {
                let url = self.display_url(key);
                let none = self.no_credentials();
                let error = format!("cannot {action} {url}: {none}, and the bucket is not public (HTTP 403)");
                Err(Error::failed(error).with_hint(self.credentials_hint()))
            }
            // Without s3:ListBucket, S3 answers 403 instead of 404 for a missing key.
            Some(403) if is_forbidden(error) => {
                if !self.was_forbidden.swap(true, Ordering::Relaxed) {
                    let url = self.display_url(key);
                    let permission = E::PERMISSION;
                    process::print_message(
                        self.tool,
                        format!(
                            "warning: {url}: forbidden (HTTP 403), treated as missing; reading it requires \
                             {permission}, and without s3:ListBucket the server does not reveal which objects exist"
                        ),
                    );
                }
                Ok(())
            }
            _ => Err(self.error(error, action, key)),
        }
    }

    /// Returns the error of an operation, such as to `write` (the action) an object.
    pub(super) fn error<E: OperationError>(&self, error: &Sdk<E>, action: &str, key: &str) -> Error {
        let url = self.display_url(key);
        if let Some(region) = self.other_region(error) {
            let expected = self.region();
            let error = format!("cannot {action} {url}: the bucket is in the region {region:?}, not in {expected:?}");
            return Error::failed(error).with_hint(format!("add region={region} to the parameters of the URL"));
        }
        let cause = self.cause(error);
        if is_forbidden(error) {
            return self.forbidden(action, key, &cause, E::PERMISSION);
        }
        let hint = self.hint(error);
        let error = Error::failed(format!("cannot {action} {url}: {cause}"));
        if let Some(hint) = hint { error.with_hint(hint) } else { error }
    }

    /// Returns what the user can do about an error other than a missing permission.
    fn hint<E: OperationError>(&self, error: &Sdk<E>) -> Option<String> {
        match error.code() {
            Some("RequestTimeTooSkewed") => return Some(clock_hint(error)),
            Some("InvalidAccessKeyId" | "SignatureDoesNotMatch" | "ExpiredToken" | "InvalidToken") => {
                return self.can_opt_out.then(|| UNSIGNED_HINT.to_owned());
            }
            Some("NoSuchBucket") => return Some(NO_BUCKET_HINT.to_owned()),
            Some("InvalidPart" | "InvalidPartOrder" | "NoSuchUpload") => return Some(OTHER_UPLOAD_HINT.to_owned()),
            Some("PermanentRedirect") => {
                return Some("add the region of the bucket to the parameters of the URL: region=REGION".to_owned());
            }
            _ => {}
        }
        if is_credentials_timeout(error) {
            return Some(CREDENTIALS_TIMEOUT_HINT.to_owned());
        }
        if self.upload_timeout(&chain(error)).is_some() {
            return Some(SLOW_UPLOAD_HINT.to_owned());
        }
        if is_credentials_error(error) {
            let is_opt_out = self.can_opt_out && self.location.profile.is_none();
            return Some(if is_opt_out { UNSIGNED_HINT } else { self.credentials_hint() }.to_owned());
        }
        if status(error) == Some(407) || requires_proxy_login(error) {
            return Some(PROXY_HINT.to_owned());
        }
        self.endpoint_hint(error)
    }

    /// Returns the hint for an endpoint that cannot be reached, or has the wrong scheme or port.
    fn endpoint_hint<E: OperationError>(&self, error: &Sdk<E>) -> Option<String> {
        let host = self.location.endpoint.as_deref()?;
        let Some(response) = error.raw_response() else {
            return match self.location.plain_http {
                false if lacks_tls(error) => Some(format!("{host} does not use TLS: write endpoint=http://{host}")),
                true if expects_tls(error) => Some(format!("if {host} uses TLS, write endpoint=https://{host}")),
                _ => is_unreachable(error).then(|| UNREACHABLE_HINT.to_owned()),
            };
        };
        // A service of S3 names the error and the request. The body of a TLS server's response is often lost.
        let is_of_s3 = error.code().is_some() || response.headers().contains_key("x-amz-request-id");
        if self.location.plain_http && response.status().as_u16() == 400 && !is_of_s3 {
            return Some(format!("if {host} uses TLS, write endpoint=https://{host}"));
        }
        // MinIO's console recognizes requests that are meant for the API.
        let is_console = error.message().is_some_and(|message| message.contains("must be made to API port"));
        (is_console || has_web_page(error))
            .then(|| format!("{host} is the port of a console or a web site: the endpoint must be that of the S3 API"))
    }

    /// Returns the error of a listing that is forbidden.
    pub(in crate::remote) fn listing_forbidden(&self) -> Error {
        self.forbidden("list", "", "access denied (HTTP 403)", ListObjectsV2Error::PERMISSION)
    }

    fn forbidden(&self, action: &str, key: &str, cause: &str, permission: &str) -> Error {
        let unsigned = if self.lacks_credentials { format!("; {}", self.no_credentials()) } else { String::new() };
        let error = format!("cannot {action} {}: {cause}; requires {permission}{unsigned}", self.display_url(key));
        let policy = match permission {
            _ if permission == GetObjectError::PERMISSION => "--read-only",
            _ if permission == ListObjectsV2Error::PERMISSION => "--read-only --allow-list",
            _ if permission == DeleteObjectError::PERMISSION || key.starts_with(COLLECTOR_PREFIX) => "--collect",
            _ => "--upload",
        };
        Error::failed(error).with_hint(format!("'cache-policy {policy}' prints a policy with this permission"))
    }

    /// Returns the response to an optional request, or none if it failed. A missing permission is reported once.
    pub(super) fn optional<T, E: OperationError>(
        &self,
        result: Result<T, Sdk<E>>,
        action: &str,
        key: &str,
    ) -> Option<T> {
        let report = |error: &Sdk<E>| {
            if is_forbidden(error) && self.is_first_report(E::PERMISSION) {
                process::print_message(self.tool, format!("warning: {}", self.error(error, action, key)));
            }
        };
        result.inspect_err(report).ok()
    }

    fn is_first_report(&self, permission: &'static str) -> bool {
        let mut reported = lock(&self.reported_permissions);
        let is_first = !reported.contains(&permission);
        reported.extend(is_first.then_some(permission));
        is_first
    }

    /// Returns the server's message if there is one, otherwise the error of the request.
    fn cause<E: OperationError>(&self, error: &Sdk<E>) -> String {
        let response = match (error.code(), error.message(), status(error)) {
            (Some(code), Some(message), Some(status)) => Some(format!("{message} ({code}, HTTP {status})")),
            (Some(code), None, Some(status)) => Some(format!("{code} (HTTP {status})")),
            (None, _, Some(403)) => Some("access denied (HTTP 403)".to_owned()),
            // With a status of success, the body is not what the operation returns.
            (None, _, Some(status)) if error.as_service_error().is_some() && !(200..300).contains(&status) => {
                Some(format!("HTTP {status}"))
            }
            _ => None,
        };
        let text = chain(error);
        match (response, error) {
            (Some(response), _) => response,
            _ if is_credentials_timeout(error) => {
                format!("no AWS credentials within {} seconds", self.limits.idle_timeout.as_secs())
            }
            // The SDK's message continues with the messages of all providers.
            (None, _) if text.contains("no credentials found in chain") || text.contains("no providers in chain") => {
                self.no_credentials()
            }
            (None, SdkError::ServiceError(_) | SdkError::ResponseError(_)) if has_web_page(error) => {
                format!("{} sent a web page", self.service())
            }
            (None, SdkError::ServiceError(_) | SdkError::ResponseError(_)) => {
                let cause = root_cause(error);
                let cause = cause.strip_suffix(SDK_BUG).unwrap_or(&cause);
                format!("cannot read the response of {}: {cause}", self.service())
            }
            (None, SdkError::DispatchFailure(_)) if text.contains("connect timeout") => {
                format!("cannot reach {}: {}", self.service(), self.limits.connect_timeout_message())
            }
            (None, SdkError::DispatchFailure(_)) if text.contains("read timeout") => {
                let message = match self.upload_timeout(&text) {
                    Some(timeout) => format!("timed out after {} seconds", timeout.as_secs()),
                    None => self.limits.timeout_message(),
                };
                format!("{}: {message}", self.service())
            }
            (None, SdkError::DispatchFailure(failure)) if failure.is_io() || failure.is_timeout() => {
                format!("cannot reach {}: {}", self.service(), root_cause(error))
            }
            (None, SdkError::TimeoutError(_)) => format!("{}: {}", self.service(), self.limits.timeout_message()),
            _ => ["dispatch failure: ", "other: ", "client error (SendRequest): "]
                .iter()
                .fold(text.as_str(), |text, prefix| text.strip_prefix(prefix).unwrap_or(text))
                .to_owned(),
        }
    }

    /// Returns the error of a body that could not be read to its end.
    pub(super) fn body_error(url: &str, limits: RequestLimits, error: &ByteStreamError) -> Error {
        let cause = root_cause(error);
        let cause = if cause.contains("minimum throughput") {
            limits.timeout_message()
        } else {
            format!("cannot read the response: {cause}")
        };
        Error::failed(format!("cannot read {url}: {cause}"))
    }

    /// Returns the timeout of a request that was longer because of its body, from the text of the error (`HTTP read timeout
    /// occurred after 60s`).
    fn upload_timeout(&self, text: &str) -> Option<Duration> {
        let (_, duration) = text.split_once("read timeout occurred after ")?;
        let timeout = humantime::parse_duration(duration.split([' ', ':', ',']).next()?).ok()?;
        (timeout > self.limits.idle_timeout).then_some(timeout)
    }

    fn service(&self) -> String {
        self.location.endpoint_url().unwrap_or_else(|| "AWS".to_owned())
    }
}

/// Returns the hint for a request whose time is too far from the server's.
fn clock_hint<E>(error: &Sdk<E>) -> String {
    let date = error.raw_response().and_then(|response| response.headers().get("date"));
    let difference = date.and_then(|date| httpdate::parse_http_date(date).ok()).map(|server| {
        let (now, direction) = (SystemTime::now(), if server > SystemTime::now() { "behind" } else { "ahead of" });
        let difference = now.duration_since(server).unwrap_or_else(|error| error.duration());
        let minutes = Duration::from_secs(difference.as_secs() / 60 * 60);
        format!(": it is {} {direction} the server's", humantime::format_duration(minutes))
    });
    format!("set the clock of this host{}", difference.unwrap_or_default())
}

/// Returns whether the request was authenticated and is not allowed. A wrong key or signature is another error.
pub(super) fn is_forbidden<E: ProvideErrorMetadata>(error: &Sdk<E>) -> bool {
    status(error) == Some(403) && matches!(error.code(), None | Some("" | "AccessDenied" | "Forbidden"))
}

/// Returns whether another client writes the same key at the same time; a retry decides between them. MinIO sometimes says
/// of an object whose upload another request completes that it is a directory.
pub(super) fn is_conflict<E: ProvideErrorMetadata>(error: &Sdk<E>) -> bool {
    matches!(error.code(), Some("ConditionalRequestConflict" | "XMinioObjectExistsAsDirectory"))
}

/// Returns the text of the first element with that name in the body of the response.
pub(super) fn element<'a, E>(error: &'a Sdk<E>, name: &str) -> Option<&'a str> {
    let body = str::from_utf8(error.raw_response()?.body().bytes()?).ok()?;
    let (_, rest) = body.split_once(&format!("<{name}>"))?;
    rest.split_once(&format!("</{name}>")).map(|(text, _)| text)
}

/// Returns whether the response is a web page, by its type or its body.
fn has_web_page<E>(error: &Sdk<E>) -> bool {
    error.raw_response().is_some_and(|response| {
        let is_html = response.headers().get("content-type").is_some_and(|value| value.starts_with("text/html"));
        is_html || response.body().bytes().is_some_and(|body| is_web_page(&String::from_utf8_lossy(body)))
    })
}

/// Returns the status of the response, if there was one.
pub(super) fn status<E>(error: &Sdk<E>) -> Option<u16> {
    error.raw_response().map(|response| response.status().as_u16())
}
