//! Headers of the objects that are written: storage class, encryption, tags, retention and caching.

use std::time::{Duration, SystemTime};

use aws_sdk_s3::operation::create_multipart_upload::builders::CreateMultipartUploadFluentBuilder;
use aws_sdk_s3::operation::put_object::builders::PutObjectFluentBuilder;
use aws_sdk_s3::primitives::DateTime;
use aws_sdk_s3::types::{ObjectLockMode, ServerSideEncryption, StorageClass};
use nar_pack::error::{Error, Result};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

use crate::cli::ObjectOptionArgs;

/// Seconds per day.
const SECONDS_PER_DAY: u64 = 24 * 60 * 60;
/// Maximum number of tags of an object in S3.
const MAX_TAGS: usize = 10;

/// The headers that every written object gets.
#[derive(Debug, Clone, Default)]
pub struct ObjectOptions {
    storage_class: Option<StorageClass>,
    encryption: Option<ServerSideEncryption>,
    kms_key: Option<String>,
    tags: Option<String>,
    retention: Option<(ObjectLockMode, DateTime)>,
    cache_control: Option<String>,
}

impl ObjectOptions {
    /// Creates the headers from the command line.
    ///
    /// # Errors
    /// Returns a usage error for malformed tags.
    pub fn from_cli(cli: &ObjectOptionArgs) -> Result<Self> {
        let tags = cli.tag.iter().map(|tag| encode_tag(tag)).collect::<Result<Vec<_>>>()?;
        if tags.len() > MAX_TAGS {
            return Err(Error::usage(format!("{} tags given: an object can have at most {MAX_TAGS}", tags.len())));
        }
        let retention = cli.object_lock_days.map(|days| {
            let until = SystemTime::now() + Duration::from_secs(u64::from(days) * SECONDS_PER_DAY);
            (ObjectLockMode::from(cli.object_lock_mode.name()), DateTime::from(until))
        });
        let encryption = match (&cli.sse_kms_key_id, cli.sse) {
            (None, None) => None,
            (Some(_), _) => Some(ServerSideEncryption::AwsKms),
            (None, Some(sse)) => Some(ServerSideEncryption::from(sse.name())),
        };
        Ok(Self {
            storage_class: cli.storage_class.as_deref().map(StorageClass::from),
            encryption,
            kms_key: cli.sse_kms_key_id.clone(),
            tags: (!tags.is_empty()).then(|| tags.join("&")),
            retention,
            cache_control: cli.cache_control.clone(),
        })
    }

    /// Returns whether no header is set. Then an incomplete upload of another process can be continued.
    #[must_use]
    pub fn is_plain(&self) -> bool {
        let Self { storage_class, encryption, kms_key, tags, retention, cache_control } = self;
        storage_class.is_none()
            && encryption.is_none()
            && kms_key.is_none()
            && tags.is_none()
            && retention.is_none()
            && cache_control.is_none()
    }

    /// Returns whether the service requires a checksum of each body, as it does with object lock.
    #[must_use]
    pub fn needs_checksum(&self) -> bool {
        self.retention.is_some()
    }

    /// Adds the headers to a request.
    #[must_use]
    pub fn on_put(&self, request: PutObjectFluentBuilder) -> PutObjectFluentBuilder {
        let (mode, until) = self.retention.clone().unzip();
        request
            .set_storage_class(self.storage_class.clone())
            .set_server_side_encryption(self.encryption.clone())
            .set_ssekms_key_id(self.kms_key.clone())
            .set_tagging(self.tags.clone())
            .set_object_lock_mode(mode)
            .set_object_lock_retain_until_date(until)
            .set_cache_control(self.cache_control.clone())
    }

    /// Adds the headers to a request.
    #[must_use]
    pub fn on_multipart(&self, request: CreateMultipartUploadFluentBuilder) -> CreateMultipartUploadFluentBuilder {
        let (mode, until) = self.retention.clone().unzip();
        request
            .set_storage_class(self.storage_class.clone())
            .set_server_side_encryption(self.encryption.clone())
            .set_ssekms_key_id(self.kms_key.clone())
            .set_tagging(self.tags.clone())
            .set_object_lock_mode(mode)
            .set_object_lock_retain_until_date(until)
            .set_cache_control(self.cache_control.clone())
    }
}

/// Returns a tag in the encoding of the `x-amz-tagging` header.
fn encode_tag(tag: &str) -> Result<String> {
    let (key, value) = tag
        .split_once('=')
        .filter(|(key, value)| !key.is_empty() && key.len() <= 128 && value.len() <= 256)
        .ok_or_else(|| Error::usage(format!("--tag {tag}: expected KEY=VALUE")))?;
    let encode = |text| utf8_percent_encode(text, NON_ALPHANUMERIC).to_string();
    Ok(format!("{}={}", encode(key), encode(value)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_are_encoded_and_malformed_tags_are_usage_errors() {
        assert_eq!(encode_tag("team=build farm&co").unwrap(), "team=build%20farm%26co");
        assert_eq!(encode_tag("empty=").unwrap(), "empty=");
        for tag in ["", "x", "=x", &format!("x={}", "y".repeat(257))] {
            assert_eq!(encode_tag(tag).unwrap_err().exit_code(), 2, "{tag}");
        }
    }
}
