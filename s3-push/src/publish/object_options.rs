//! What an operator asks of the objects that are written: storage class, encryption, tags, retention, caching.

use std::time::{Duration, SystemTime};

use aws_sdk_s3::operation::create_multipart_upload::builders::CreateMultipartUploadFluentBuilder;
use aws_sdk_s3::operation::put_object::builders::PutObjectFluentBuilder;
use aws_sdk_s3::primitives::DateTime;
use aws_sdk_s3::types::{ObjectLockMode, ServerSideEncryption, StorageClass};
use nar_pack::error::{Error, Result};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

use crate::cli::ObjectOptionArgs;

/// Seconds in a day.
const DAY: u64 = 24 * 60 * 60;
/// Tags that S3 takes on an object.
const MAX_TAGS: usize = 10;

/// Headers that every object written gets.
#[derive(Debug, Clone, Default)]
pub struct ObjectOptions {
    class: Option<StorageClass>,
    encryption: Option<ServerSideEncryption>,
    kms_key: Option<String>,
    tags: Option<String>,
    lock: Option<(ObjectLockMode, DateTime)>,
    cache_control: Option<String>,
}

impl ObjectOptions {
    /// What the command line asks for.
    ///
    /// # Errors
    /// A usage failure for malformed tags.
    pub fn from_cli(cli: &ObjectOptionArgs) -> Result<Self> {
        let tags = cli.tag.iter().map(|tag| encode_tag(tag)).collect::<Result<Vec<_>>>()?;
        if tags.len() > MAX_TAGS {
            return Err(Error::failed(format!("{} tags; an object has at most {MAX_TAGS}", tags.len())));
        }
        let lock = cli.object_lock_days.map(|days| {
            let until = SystemTime::now() + Duration::from_secs(u64::from(days) * DAY);
            (ObjectLockMode::from(cli.object_lock_mode.name()), DateTime::from(until))
        });
        let encryption = match (&cli.sse_kms_key_id, cli.sse) {
            (None, None) => None,
            (Some(_), _) => Some(ServerSideEncryption::AwsKms),
            (None, Some(sse)) => Some(ServerSideEncryption::from(sse.name())),
        };
        Ok(Self {
            class: cli.storage_class.as_deref().map(StorageClass::from),
            encryption,
            kms_key: cli.sse_kms_key_id.clone(),
            tags: (!tags.is_empty()).then(|| tags.join("&")),
            lock,
            cache_control: cli.cache_control.clone(),
        })
    }

    /// Whether nothing is asked for: then an upload that somebody else began is as good as a new one.
    #[must_use]
    pub fn is_plain(&self) -> bool {
        let Self { class, encryption, kms_key, tags, lock, cache_control } = self;
        class.is_none()
            && encryption.is_none()
            && kms_key.is_none()
            && tags.is_none()
            && lock.is_none()
            && cache_control.is_none()
    }

    /// Whether the service wants a checksum with the body: object lock does.
    #[must_use]
    pub fn needs_checksum(&self) -> bool {
        self.lock.is_some()
    }

    /// The request with these headers.
    #[must_use]
    pub fn on_put(&self, request: PutObjectFluentBuilder) -> PutObjectFluentBuilder {
        let (mode, until) = self.lock.clone().unzip();
        request
            .set_storage_class(self.class.clone())
            .set_server_side_encryption(self.encryption.clone())
            .set_ssekms_key_id(self.kms_key.clone())
            .set_tagging(self.tags.clone())
            .set_object_lock_mode(mode)
            .set_object_lock_retain_until_date(until)
            .set_cache_control(self.cache_control.clone())
    }

    /// The request with these headers.
    #[must_use]
    pub fn on_multipart(&self, request: CreateMultipartUploadFluentBuilder) -> CreateMultipartUploadFluentBuilder {
        let (mode, until) = self.lock.clone().unzip();
        request
            .set_storage_class(self.class.clone())
            .set_server_side_encryption(self.encryption.clone())
            .set_ssekms_key_id(self.kms_key.clone())
            .set_tagging(self.tags.clone())
            .set_object_lock_mode(mode)
            .set_object_lock_retain_until_date(until)
            .set_cache_control(self.cache_control.clone())
    }
}

fn encode_tag(tag: &str) -> Result<String> {
    let (key, value) = tag
        .split_once('=')
        .filter(|(key, value)| !key.is_empty() && key.len() <= 128 && value.len() <= 256)
        .ok_or_else(|| Error::failed(format!("--tag {tag}: expected KEY=VALUE")))?;
    let encode = |text| utf8_percent_encode(text, NON_ALPHANUMERIC).to_string();
    Ok(format!("{}={}", encode(key), encode(value)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_are_encoded_and_malformed_ones_refused() {
        assert_eq!(encode_tag("team=build farm&co").unwrap(), "team=build%20farm%26co");
        assert_eq!(encode_tag("empty=").unwrap(), "empty=");
        for tag in ["", "x", "=x", &format!("x={}", "y".repeat(257))] {
            assert_eq!(encode_tag(tag).unwrap_err().exit_code(), 2, "{tag}");
        }
    }
}
