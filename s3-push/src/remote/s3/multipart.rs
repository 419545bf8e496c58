//! Multipart uploads: create, upload parts, complete or abort, and find one that can be resumed.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::sync::atomic::Ordering;

use aws_sdk_s3::config::Builder;
use aws_sdk_s3::error::ProvideErrorMetadata as _;
use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{
    ChecksumAlgorithm, CompletedMultipartUpload, CompletedPart, MultipartUpload as ListedUpload, Part,
};
use bytes::Bytes;
use nar_pack::error::{Error, Result};

use super::errors::{element, is_conflict, status};
use super::write::BodySignature;
use super::{Bucket, PutOutcome, RequestKind, Sdk};
use crate::remote::retry::{Backoff, PermanentInternalError};

/// Maximum number of incomplete uploads of an object whose parts are listed, each with a request or more.
const MAX_UPLOADS: usize = 100;
/// Maximum number of pages of uploads that are listed: 1,000 uploads each on AWS.
const MAX_UPLOAD_PAGES: usize = 10;

/// A multipart upload in progress.
#[derive(Debug, Clone)]
pub struct MultipartUpload {
    /// Its key, relative to the prefix.
    pub key: String,
    id: String,
}

/// A part that was uploaded, as the completion of its upload refers to it.
#[derive(Debug, Clone)]
pub struct UploadedPart(CompletedPart);

impl MultipartUpload {
    pub(super) fn id(&self) -> &str {
        &self.id
    }
}

impl UploadedPart {
    pub(super) fn new(part: CompletedPart) -> Self {
        Self(part)
    }

    /// Returns the entity tag that the service gave to the part, without quotes.
    #[must_use]
    pub fn etag(&self) -> Option<&str> {
        self.0.e_tag.as_deref().map(|etag| etag.trim_matches('"'))
    }

    /// Returns the number of the part; the first is 1.
    #[must_use]
    pub fn number(&self) -> Option<i32> {
        self.0.part_number
    }
}

/// An upload that was neither completed nor aborted.
#[derive(Debug, Clone)]
pub struct IncompleteUpload {
    /// The upload.
    pub upload: MultipartUpload,
    /// Its parts by number.
    pub parts: HashMap<i32, RemotePart>,
}

/// A part that an earlier run uploaded.
#[derive(Debug, Clone)]
pub struct RemotePart {
    /// Its size in bytes.
    pub size: u64,
    /// Its entity tag without quotes: the MD5 of its bytes, unless the service encrypts it with a KMS key.
    pub etag: String,
    /// The part itself.
    pub uploaded: UploadedPart,
}

impl Bucket {
    /// Creates a multipart upload.
    ///
    /// # Errors
    /// See [`Bucket::put`].
    pub async fn create_multipart_upload(&self, key: &str, content_type: &str) -> Result<MultipartUpload> {
        let algorithm = self.sends_checksums().then_some(ChecksumAlgorithm::Crc32);
        self.create_upload_with(key, content_type, algorithm).await
    }

    /// Creates a multipart upload whose parts have checksums of this kind.
    pub(super) async fn create_upload_with(
        &self,
        key: &str,
        content_type: &str,
        algorithm: Option<ChecksumAlgorithm>,
    ) -> Result<MultipartUpload> {
        if self.dry_run {
            return Ok(MultipartUpload { key: key.to_owned(), id: String::new() });
        }
        let request = self
            .object_options
            .apply_to_multipart(self.client.create_multipart_upload())
            .bucket(&self.location.bucket)
            .key(self.location.key(key))
            .content_type(content_type)
            .set_checksum_algorithm(algorithm);
        let action = "create a multipart upload of";
        let result = self.send(RequestKind::CreateMultipartUpload, request.send()).await;
        let id = match result {
            Ok(output) => output.upload_id.ok_or_else(|| {
                let url = self.display_url(key);
                Error::failed(format!("cannot {action} {url}: the response contains no upload ID"))
            })?,
            Err(error) => upload_id(&error).ok_or_else(|| self.error(&error, action, key))?,
        };
        Ok(MultipartUpload { key: key.to_owned(), id })
    }

    /// Uploads one part; numbers begin at 1.
    ///
    /// # Errors
    /// See [`Bucket::put`].
    pub async fn upload_part(&self, upload: &MultipartUpload, number: i32, body: Bytes) -> Result<UploadedPart> {
        let part = CompletedPart::builder().part_number(number);
        if self.dry_run {
            return Ok(UploadedPart(part.build()));
        }
        let checksum = self.checksum(&body);
        let send = |signature| {
            let request = self
                .client
                .upload_part()
                .bucket(&self.location.bucket)
                .key(self.location.key(&upload.key))
                .upload_id(&upload.id)
                .part_number(number)
                .set_checksum_crc32(checksum.clone())
                .body(ByteStream::from(body.clone()))
                .customize()
                .interceptor(self.upload_timeouts.of_body(body.len()))
                .interceptor(signature);
            self.send(RequestKind::UploadPart, request.send())
        };
        let signature = self.part_signature();
        let mut result = send(signature).await;
        if signature == BodySignature::None
            && let Err(error) = &result
            && error.code() == Some("AccessDenied")
        {
            result = send(BodySignature::ComputedHash).await;
            self.must_sign_parts.fetch_or(result.is_ok(), Ordering::Relaxed);
        }
        let action = || format!("upload part {number} of");
        let output = result.map_err(|error| self.error(&error, &action(), &upload.key))?;
        Ok(UploadedPart(part.set_e_tag(output.e_tag).set_checksum_crc32(checksum).build()))
    }

    /// Makes an object of the parts, given in any order; with `only_new` unless an object with that key exists, and then
    /// the upload stays open.
    ///
    /// # Errors
    /// See [`Bucket::put`].
    pub async fn complete_multipart_upload(
        &self,
        upload: &MultipartUpload,
        parts: Vec<UploadedPart>,
        only_new: bool,
    ) -> Result<PutOutcome> {
        if self.dry_run {
            return Ok(PutOutcome::Created);
        }
        let mut parts: Vec<CompletedPart> = parts.into_iter().map(|UploadedPart(part)| part).collect();
        parts.sort_by_key(|part| part.part_number);
        let parts = CompletedMultipartUpload::builder().set_parts(Some(parts)).build();
        let mut conflicts = self.backoff();
        loop {
            let is_conditional = only_new && self.supports_conditional_writes.load(Ordering::Relaxed);
            let request = self
                .client
                .complete_multipart_upload()
                .bucket(&self.location.bucket)
                .key(self.location.key(&upload.key))
                .upload_id(&upload.id)
                .multipart_upload(parts.clone())
                .set_if_none_match(is_conditional.then(|| "*".to_owned()));
            match self.send(RequestKind::CompleteMultipartUpload, request.send()).await {
                Ok(output) if output.e_tag.is_some() => return Ok(PutOutcome::Created),
                Ok(_) => {
                    let url = self.display_url(&upload.key);
                    return Err(Error::failed(format!("cannot complete {url}: the response contains no ETag")));
                }
                Err(error) if is_conditional && status(&error) == Some(412) => return Ok(PutOutcome::Existed),
                Err(error) if is_conditional && self.lacks_conditional_writes(&error) => {}
                Err(error) if is_conditional && is_conflict(&error) && conflicts.next_attempt().await => {}
                Err(error) => return Err(self.error(&error, "complete", &upload.key)),
            }
        }
    }

    /// Aborts an upload. Errors are ignored, since the bucket's lifecycle rule removes incomplete uploads anyway.
    pub async fn abort_multipart_upload(&self, upload: &MultipartUpload) {
        if self.dry_run {
            return;
        }
        let request = self
            .client
            .abort_multipart_upload()
            .bucket(&self.location.bucket)
            .key(self.location.key(&upload.key))
            .upload_id(&upload.id);
        let result = self.send(RequestKind::AbortMultipartUpload, request.send()).await;
        self.optional(result, "abort the upload of", &upload.key);
    }

    /// Finds the incomplete uploads of an object, newest first, with their parts. Returns none if the service does not list
    /// uploads or does not allow it. Considers at most [`MAX_UPLOADS`] of them.
    pub async fn find_incomplete_uploads(&self, key: &str) -> Vec<IncompleteUpload> {
        // Options are fixed when an upload is created, and the service does not return them.
        if self.dry_run || !self.object_options.is_default() {
            return Vec::new();
        }
        let mut found = self.list_uploads(key).await;
        // Another tool may have begun an upload whose parts need what ours do not send. MinIO lists empty
        // values, and AWS its default for uploads without one.
        let algorithm = self.sends_checksums().then_some(ChecksumAlgorithm::Crc32);
        found.retain(|upload| match upload.checksum_algorithm() {
            None | Some(ChecksumAlgorithm::Crc64Nvme) => true,
            Some(listed) => listed.as_str().is_empty() || Some(listed) == algorithm.as_ref(),
        });
        found.sort_by_key(|upload| Reverse(upload.initiated));
        let ids = found.into_iter().filter_map(|upload| upload.upload_id).take(MAX_UPLOADS);
        let mut uploads = Vec::new();
        for id in ids {
            let upload = MultipartUpload { key: key.to_owned(), id };
            // Another process may have completed or aborted it meanwhile.
            if let Some(parts) = self.list_parts(&upload).await {
                uploads.push(IncompleteUpload { upload, parts });
            }
        }
        uploads
    }

    /// Lists the uploads of an object, without those on a page that cannot be read.
    async fn list_uploads(&self, key: &str) -> Vec<ListedUpload> {
        let full_key = self.location.key(key);
        let (mut uploads, mut key_marker, mut id_marker) = (Vec::new(), None, None);
        for _ in 0..MAX_UPLOAD_PAGES {
            let request = self.client.list_multipart_uploads().bucket(&self.location.bucket).prefix(&full_key);
            let request = request.set_key_marker(key_marker).set_upload_id_marker(id_marker);
            let result = self.send(RequestKind::ListMultipartUploads, request.send()).await;
            let Some(page) = self.optional(result, "find incomplete uploads of", key) else { break };
            let is_of_key = |upload: &ListedUpload| upload.key.as_ref() == Some(&full_key);
            uploads.extend(page.uploads.unwrap_or_default().into_iter().filter(is_of_key));
            // The uploads are sorted by their keys, and this one is the first that begins with itself.
            let is_complete = page.is_truncated != Some(true) || page.next_key_marker.as_ref() != Some(&full_key);
            if is_complete || page.next_upload_id_marker.is_none() {
                break;
            }
            (key_marker, id_marker) = (page.next_key_marker, page.next_upload_id_marker);
        }
        uploads
    }

    /// Lists the keys of the uploads that were neither completed nor aborted. Returns none if the service does not list
    /// uploads or does not allow it.
    pub async fn list_incomplete_uploads(&self) -> Option<Vec<String>> {
        let mut found = Vec::new();
        let mut marker: (Option<String>, Option<String>) = (None, None);
        loop {
            let request = self
                .client
                .list_multipart_uploads()
                .bucket(&self.location.bucket)
                .prefix(&self.location.prefix)
                .set_key_marker(marker.0.clone())
                .set_upload_id_marker(marker.1.clone());
            let result = self.send(RequestKind::ListMultipartUploads, request.send()).await;
            let page = self.optional(result, "list incomplete uploads of", "")?;
            found.extend(
                page.uploads
                    .unwrap_or_default()
                    .into_iter()
                    .filter_map(|upload| Some(upload.key?.strip_prefix(&self.location.prefix)?.to_owned())),
            );
            let next = (page.next_key_marker, page.next_upload_id_marker);
            if page.is_truncated != Some(true) || next == marker || next.0.is_none() {
                return Some(found);
            }
            marker = next;
        }
    }

    async fn list_parts(&self, upload: &MultipartUpload) -> Option<HashMap<i32, RemotePart>> {
        let mut parts = HashMap::new();
        let mut marker: Option<String> = None;
        let mut internal_errors = Backoff::new(2);
        loop {
            let request = self
                .client
                .list_parts()
                .bucket(&self.location.bucket)
                .key(self.location.key(&upload.key))
                .upload_id(&upload.id)
                .set_part_number_marker(marker.clone())
                .customize()
                // RustFS to 1.0.0-beta.1 returns 500 for an upload without parts, however often it is asked.
                .config_override(Builder::new().retry_classifier(PermanentInternalError));
            let result = self.send(RequestKind::ListParts, request.send()).await;
            if let Err(error) = &result
                && status(error) == Some(500)
                && internal_errors.next_attempt().await
            {
                continue;
            }
            let page = self.optional(result, "list the parts of", &upload.key)?;
            let listed = parts.len();
            parts.extend(page.parts.unwrap_or_default().into_iter().filter_map(remote_part));
            marker = page.next_part_number_marker.filter(|_| page.is_truncated == Some(true));
            // A page without a new part would be followed by the same one.
            if marker.is_none() || parts.len() == listed {
                return Some(parts);
            }
        }
    }
}

/// Returns the upload ID in a response of success that the SDK cannot read. `rclone serve s3` calls its root element
/// `InitiateMultipartUpload`, without `Result`.
fn upload_id<E>(error: &Sdk<E>) -> Option<String> {
    let id = element(error, "UploadId").filter(|_| status(error) == Some(200))?;
    let is_plain = !id.is_empty() && !id.contains(['&', '<']) && !id.contains(char::is_control);
    is_plain.then(|| id.to_owned())
}

fn remote_part(part: Part) -> Option<(i32, RemotePart)> {
    let (number, size, etag) = (part.part_number?, u64::try_from(part.size?).ok()?, part.e_tag?);
    let uploaded =
        CompletedPart::builder().part_number(number).e_tag(&etag).set_checksum_crc32(part.checksum_crc32).build();
    let etag = etag.trim_matches('"').to_owned();
    Some((number, RemotePart { size, etag, uploaded: UploadedPart(uploaded) }))
}
