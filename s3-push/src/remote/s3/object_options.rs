//! Options of the objects that are written, and the headers that they become.

use std::time::SystemTime;

use aws_sdk_s3::operation::copy_object::builders::CopyObjectFluentBuilder;
use aws_sdk_s3::operation::create_multipart_upload::builders::CreateMultipartUploadFluentBuilder;
use aws_sdk_s3::operation::put_object::builders::PutObjectFluentBuilder;
use aws_sdk_s3::primitives::DateTime;
use aws_sdk_s3::types::{ObjectLockMode, ServerSideEncryption, StorageClass};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

/// Options of every object that is written.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ObjectOptions {
    /// The storage class, as S3 names it.
    pub storage_class: Option<String>,
    /// Encryption at rest.
    pub encryption: Option<Encryption>,
    /// Tags: names and values.
    pub tags: Vec<(String, String)>,
    /// Object lock.
    pub retention: Option<ObjectLockRetention>,
    /// `Cache-Control`.
    pub cache_control: Option<String>,
}

/// Encryption at rest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Encryption {
    /// With keys of the service (SSE-S3).
    Aes256,
    /// With a KMS key (SSE-KMS).
    Kms {
        /// The key; the account's default key if none.
        key_id: Option<String>,
    },
}

/// How long an object is protected by object lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ObjectLockRetention {
    /// Who may shorten it.
    pub mode: RetentionMode,
    /// When it ends.
    pub until: SystemTime,
}

/// Modes of object lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RetentionMode {
    /// Users with a special permission may shorten the retention.
    Governance,
    /// Nobody may shorten the retention.
    Compliance,
}

/// Sets the same headers on both kinds of requests, whose builders share no trait.
macro_rules! apply {
    ($options:expr, $request:expr) => {{
        let (encryption, key_id) = $options.encryption();
        let (mode, until) = $options.lock().unzip();
        $request
            .set_storage_class($options.storage_class.as_deref().map(StorageClass::from))
            .set_server_side_encryption(encryption)
            .set_ssekms_key_id(key_id)
            .set_tagging($options.tagging())
            .set_object_lock_mode(mode)
            .set_object_lock_retain_until_date(until)
            .set_cache_control($options.cache_control.clone())
    }};
}

impl ObjectOptions {
    /// Returns whether no option is set. Only then can an upload that was created by an earlier run be resumed.
    #[must_use]
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// Returns whether the service requires a checksum with the body, as it does for object lock.
    pub(super) fn requires_checksum(&self) -> bool {
        self.retention.is_some()
    }

    pub(super) fn apply_to_put(&self, request: PutObjectFluentBuilder) -> PutObjectFluentBuilder {
        apply!(self, request)
    }

    pub(super) fn apply_to_multipart(
        &self,
        request: CreateMultipartUploadFluentBuilder,
    ) -> CreateMultipartUploadFluentBuilder {
        apply!(self, request)
    }

    pub(super) fn apply_to_copy(&self, request: CopyObjectFluentBuilder) -> CopyObjectFluentBuilder {
        apply!(self, request)
    }

    fn encryption(&self) -> (Option<ServerSideEncryption>, Option<String>) {
        match &self.encryption {
            None => (None, None),
            Some(Encryption::Aes256) => (Some(ServerSideEncryption::Aes256), None),
            Some(Encryption::Kms { key_id }) => (Some(ServerSideEncryption::AwsKms), key_id.clone()),
        }
    }

    fn lock(&self) -> Option<(ObjectLockMode, DateTime)> {
        self.retention.map(|ObjectLockRetention { mode, until }| {
            let mode = match mode {
                RetentionMode::Governance => ObjectLockMode::Governance,
                RetentionMode::Compliance => ObjectLockMode::Compliance,
            };
            (mode, DateTime::from(until))
        })
    }

    /// Returns the tags, encoded as query parameters.
    fn tagging(&self) -> Option<String> {
        let encode = |text: &str| utf8_percent_encode(text, NON_ALPHANUMERIC).to_string();
        let tags: Vec<String> =
            self.tags.iter().map(|(name, value)| format!("{}={}", encode(name), encode(value))).collect();
        (!tags.is_empty()).then(|| tags.join("&"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_are_encoded_as_query_parameters() {
        let tag = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let tags = vec![tag("team", "build farm&co"), tag("empty", "")];
        let options = ObjectOptions { tags, ..ObjectOptions::default() };
        assert_eq!(options.tagging().as_deref(), Some("team=build%20farm%26co&empty="));
        assert_eq!(ObjectOptions::default().tagging(), None);
    }
}
