//! Which permission a request takes, so that whoever is refused can be told what to ask for.

use std::sync::{Mutex, PoisonError};

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

/// An operation's error, and the permission that the operation takes (Amazon S3 user guide, "Required permissions for
/// Amazon S3 API operations").
pub trait RequiredPermission {
    /// As policies name it.
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

/// Whether nobody has been told of the lack of that permission yet.
pub fn is_news(permission: &'static str) -> bool {
    static TOLD: Mutex<Vec<&str>> = Mutex::new(Vec::new());
    let mut told = TOLD.lock().unwrap_or_else(PoisonError::into_inner);
    let news = !told.contains(&permission);
    told.extend(news.then_some(permission));
    news
}
