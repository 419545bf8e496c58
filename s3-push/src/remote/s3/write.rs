//! Writing whole objects to a bucket, also conditionally.

use std::sync::atomic::Ordering;

use aws_runtime::auth::PayloadSigningOverride;
use aws_sdk_s3::config::interceptors::BeforeTransmitInterceptorContextMut;
use aws_sdk_s3::config::{ConfigBag, Intercept, RuntimeComponents};
use aws_sdk_s3::error::{BoxError, ProvideErrorMetadata};
use aws_sdk_s3::primitives::ByteStream;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD as BASE64;
use bytes::Bytes;
use nar_pack::error::{Error, Result};
use narinfo_gen::hash::Sha256;

use super::errors::{is_conflict, status};
use super::{Bucket, RequestKind, Sdk};

/// The outcome of a conditional write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PutOutcome {
    /// The object was written.
    Created,
    /// The condition did not hold, and nothing was written.
    Existed,
}

/// The condition on which an object is written.
#[derive(Debug, Clone, Copy)]
enum Precondition<'a> {
    None,
    /// No object has that key.
    Absent,
    /// The object has that entity tag.
    Unchanged(&'a str),
}

/// What the signature of a request covers of its body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BodySignature {
    /// A SHA-256 hash that the SDK computes.
    ComputedHash,
    /// This hash.
    KnownHash(Sha256),
    /// Nothing.
    None,
}

impl Intercept for BodySignature {
    fn name(&self) -> &'static str {
        "BodySignature"
    }

    fn modify_before_signing(
        &self,
        _: &mut BeforeTransmitInterceptorContextMut<'_>,
        _: &RuntimeComponents,
        config: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let signed = match self {
            Self::ComputedHash => return Ok(()),
            Self::KnownHash(hash) => PayloadSigningOverride::Precomputed(hex::encode(hash.as_bytes())),
            Self::None => PayloadSigningOverride::UnsignedPayload,
        };
        config.interceptor_state().store_put(signed);
        Ok(())
    }
}

impl Bucket {
    /// Writes an object.
    ///
    /// # Errors
    /// Fails if the service or the network does, or if writing is forbidden.
    pub async fn put(&self, key: &str, content_type: &str, body: Bytes) -> Result {
        self.put_if(key, content_type, body, BodySignature::ComputedHash, Precondition::None).await.map(drop)
    }

    /// Writes an object unless one with that key exists. A service without conditional writes overwrites it.
    ///
    /// # Errors
    /// See [`Bucket::put`].
    pub async fn put_new(&self, key: &str, content_type: &str, body: Bytes) -> Result<PutOutcome> {
        self.put_if(key, content_type, body, BodySignature::ComputedHash, Precondition::Absent).await
    }

    /// Overwrites the object with the entity tag `etag`. Returns [`PutOutcome::Existed`] if it has been changed or deleted
    /// meanwhile.
    ///
    /// # Errors
    /// See [`Bucket::put`]. Fails without an entity tag: what another process has written would be lost.
    pub async fn put_if_unchanged(
        &self,
        key: &str,
        content_type: &str,
        body: Bytes,
        etag: Option<&str>,
    ) -> Result<PutOutcome> {
        let missing = || Error::failed(format!("{}: the service sends no entity tag for it", self.display_url(key)));
        let precondition = Precondition::Unchanged(etag.ok_or_else(missing)?);
        self.put_if(key, content_type, body, BodySignature::ComputedHash, precondition).await
    }

    /// Writes a NAR; if `is_new_only`, only if no object with that key exists. `sha256` is the hash of its bytes if that is
    /// known, and then the signature does not compute it again. The service refuses a body with another hash.
    ///
    /// # Errors
    /// See [`Bucket::put`].
    pub async fn put_nar(
        &self,
        key: &str,
        content_type: &str,
        body: Bytes,
        sha256: Option<Sha256>,
        is_new_only: bool,
    ) -> Result<PutOutcome> {
        let precondition = if is_new_only { Precondition::Absent } else { Precondition::None };
        let signature = sha256.map_or(BodySignature::ComputedHash, BodySignature::KnownHash);
        self.put_if(key, content_type, body, signature, precondition).await
    }

    async fn put_if(
        &self,
        key: &str,
        content_type: &str,
        body: Bytes,
        signature: BodySignature,
        precondition: Precondition<'_>,
    ) -> Result<PutOutcome> {
        if self.dry_run {
            return Ok(PutOutcome::Created);
        }
        let mut conflicts = self.backoff();
        loop {
            let supported = self.supports_conditional_writes.load(Ordering::Relaxed);
            let (if_none_match, if_match) = match precondition {
                Precondition::Absent if supported => (Some("*".to_owned()), None),
                Precondition::Unchanged(etag) if supported => (None, Some(etag.to_owned())),
                _ => (None, None),
            };
            let (is_conditional, is_overwrite) = (if_none_match.is_some() || if_match.is_some(), if_match.is_some());
            let request = self
                .object_options
                .apply_to_put(self.client.put_object())
                .bucket(&self.location.bucket)
                .key(self.location.key(key))
                .content_type(content_type)
                .set_checksum_crc32(self.checksum(&body))
                .set_if_none_match(if_none_match)
                .set_if_match(if_match)
                .body(ByteStream::from(body.clone()))
                .customize()
                .interceptor(self.upload_timeouts.of_body(body.len()))
                .interceptor(signature);
            match self.send(RequestKind::Put, request.send()).await {
                Ok(_) => return Ok(PutOutcome::Created),
                Err(error) if is_conditional && status(&error) == Some(412) => return Ok(PutOutcome::Existed),
                // S3 and MinIO report so that there is no object any more whose entity tag could match.
                Err(error) if is_overwrite && error.code() == Some("NoSuchKey") => return Ok(PutOutcome::Existed),
                Err(error) if is_conditional && self.lacks_conditional_writes(&error) => {}
                Err(error) if is_conditional && is_conflict(&error) && conflicts.next_attempt().await => {}
                Err(error) => return Err(self.error(&error, "write", key)),
            }
        }
    }

    /// Returns whether the error means that the service does not support conditional writes, and remembers it.
    pub(super) fn lacks_conditional_writes<E: ProvideErrorMetadata>(&self, error: &Sdk<E>) -> bool {
        let lacks = status(error) == Some(501) || error.code() == Some("NotImplemented");
        if lacks {
            self.supports_conditional_writes.store(false, Ordering::Relaxed);
        }
        lacks
    }

    /// Returns whether bodies are sent with a checksum in a header: to AWS, and where object lock requires one.
    pub(super) fn sends_checksums(&self) -> bool {
        self.location.is_aws() || self.object_options.requires_checksum()
    }

    /// Returns what is signed of a part, whose hash is not known. With TLS and a checksum in a signed header, the part itself
    /// is not signed: to hash it takes as long as to send it.
    pub(super) fn part_signature(&self) -> BodySignature {
        let is_protected = self.sends_checksums() && !self.location.plain_http;
        if is_protected && !self.must_sign_parts.load(Ordering::Relaxed) {
            BodySignature::None
        } else {
            BodySignature::ComputedHash
        }
    }

    /// Returns the checksum header of a body, if one is sent. By default, the SDK names the algorithm but omits the
    /// checksum where none is required, and services reject a request without the checksum that it announces.
    pub(super) fn checksum(&self, body: &Bytes) -> Option<String> {
        self.sends_checksums().then(|| BASE64.encode(crc32fast::hash(body).to_be_bytes()))
    }
}
