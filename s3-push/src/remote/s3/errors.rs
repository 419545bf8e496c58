//! Errors of S3: which ones mean that an object is missing, which permission a forbidden request requires, and the
//! message for everything else.

use std::error::Error as StdError;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_s3::operation::abort_multipart_upload::AbortMultipartUploadError;
use aws_sdk_s3::operation::complete_multipart_upload::CompleteMultipartUploadError;
use aws_sdk_s3::operation::create_multipart_upload::CreateMultipartUploadError;
use aws_sdk_s3::operation::get_object::GetObjectError;
use aws_sdk_s3::operation::head_object::HeadObjectError;
use aws_sdk_s3::operation::list_multipart_uploads::ListMultipartUploadsError;
use aws_sdk_s3::operation::list_objects_v2::ListObjectsV2Error;
use aws_sdk_s3::operation::list_parts::ListPartsError;
use aws_sdk_s3::operation::put_object::PutObjectError;
use aws_sdk_s3::operation::upload_part::UploadPartError;
use aws_sdk_s3::primitives::ByteStreamError;
use nar_pack::error::{Error, Result};
use nar_pack::process;

use super::{Bucket, Sdk};
use crate::remote::error_chain::{chain, root_cause};
use crate::remote::retry::RequestLimits;

const NO_CREDENTIALS: &str =
    "no AWS credentials found in the environment, profile, SSO, web identity, container or instance";

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
    CreateMultipartUploadError: "s3:PutObject",
    UploadPartError: "s3:PutObject",
    CompleteMultipartUploadError: "s3:PutObject",
    AbortMultipartUploadError: "s3:AbortMultipartUpload",
    ListObjectsV2Error: "s3:ListBucket",
    ListMultipartUploadsError: "s3:ListBucketMultipartUploads",
    ListPartsError: "s3:ListMultipartUploadParts",
}

/// The error of an S3 operation.
pub(super) trait OperationError: ProvideErrorMetadata + RequiredPermission + StdError + 'static {}

impl<E: ProvideErrorMetadata + RequiredPermission + StdError + 'static> OperationError for E {}

impl Bucket {
    /// Returns `Ok` if the error means that the object does not exist.
    pub(super) fn missing<E: OperationError>(&self, error: &Sdk<E>, action: &str, key: &str) -> Result {
        match status(error) {
            Some(404) if error.code() != Some("NoSuchBucket") => Ok(()),
            // In a public bucket, nix-cache-info would have been read by now.
            Some(403) if self.lacks_credentials && !self.is_readable.load(Ordering::Relaxed) => {
                let url = self.display_url(key);
                let error = format!("{action} {url}: {NO_CREDENTIALS}, and the bucket is not public (HTTP 403)");
                Err(Error::failed(error))
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

    /// Returns the error of an operation, such as `writing` (the action) an object.
    pub(super) fn error<E: OperationError>(&self, error: &Sdk<E>, action: &str, key: &str) -> Error {
        let cause = self.cause(error);
        if is_forbidden(error) {
            return self.forbidden(action, key, &cause, E::PERMISSION);
        }
        Error::failed(format!("{action} {}: {cause}", self.display_url(key)))
    }

    /// Returns the error of a listing that is forbidden.
    pub(in crate::remote) fn listing_forbidden(&self) -> Error {
        self.forbidden("listing", "", "access denied (HTTP 403)", ListObjectsV2Error::PERMISSION)
    }

    fn forbidden(&self, action: &str, key: &str, cause: &str, permission: &str) -> Error {
        let unsigned = if self.lacks_credentials { format!("; {NO_CREDENTIALS}") } else { String::new() };
        let error = format!("{action} {}: {cause}; requires {permission}{unsigned}", self.display_url(key));
        let policy = match permission {
            _ if permission == GetObjectError::PERMISSION => "--read-only",
            _ if permission == ListObjectsV2Error::PERMISSION => "--read-only --allow-list",
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
        let mut reported = self.reported_permissions.lock().unwrap_or_else(PoisonError::into_inner);
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
            (None, _, Some(status)) if error.as_service_error().is_some() => Some(format!("HTTP {status}")),
            _ => None,
        };
        let text = chain(error);
        match (response, error) {
            (Some(response), _) => response,
            // The SDK's message continues with the messages of a dozen providers.
            (None, _) if text.contains("no credentials found in chain") || text.contains("no providers in chain") => {
                match &self.location.profile {
                    Some(profile) => format!("the AWS profile {profile:?} has no credentials"),
                    None => NO_CREDENTIALS.to_owned(),
                }
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
        Error::failed(format!("reading {url}: {cause}"))
    }

    fn service(&self) -> String {
        self.location.endpoint_url().unwrap_or_else(|| "AWS".to_owned())
    }
}

/// Returns whether the request was authenticated and is not allowed. A wrong key or signature is another error.
pub(super) fn is_forbidden<E: ProvideErrorMetadata>(error: &Sdk<E>) -> bool {
    status(error) == Some(403) && matches!(error.code(), None | Some("" | "AccessDenied" | "Forbidden"))
}

/// Returns whether another client writes the same key at the same time; a retry decides between them.
pub(super) fn is_conflict<E: ProvideErrorMetadata>(error: &Sdk<E>) -> bool {
    error.code() == Some("ConditionalRequestConflict")
}

/// Returns the status of the response, if there was one.
pub(super) fn status<E>(error: &Sdk<E>) -> Option<u16> {
    error.raw_response().map(|response| response.status().as_u16())
}
