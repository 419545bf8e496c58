//! Multipart uploads: create, upload parts, complete or abort, and find one that can be resumed.

use std::collections::HashMap;
use std::sync::atomic::Ordering;

use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{ChecksumAlgorithm, CompletedMultipartUpload, CompletedPart, Part};
use bytes::Bytes;
use nar_pack::error::{Error, Result};

use super::errors::{element, is_conflict, status};
use super::{Bucket, PutOutcome, RequestKind, Sdk};

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
        if self.dry_run {
            return Ok(MultipartUpload { key: key.to_owned(), id: String::new() });
        }
        let request = self
            .object_options
            .apply_to_multipart(self.client.create_multipart_upload())
            .bucket(&self.location.bucket)
            .key(self.location.key(key))
            .content_type(content_type)
            .set_checksum_algorithm(self.sends_checksums().then_some(ChecksumAlgorithm::Crc32));
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
        let request = self
            .client
            .upload_part()
            .bucket(&self.location.bucket)
            .key(self.location.key(&upload.key))
            .upload_id(&upload.id)
            .part_number(number)
            .set_checksum_crc32(checksum.clone())
            .body(ByteStream::from(body));
        let result = self.send(RequestKind::UploadPart, request.send()).await;
        let action = || format!("upload part {number} of");
        let output = result.map_err(|error| self.error(&error, &action(), &upload.key))?;
        Ok(UploadedPart(part.set_e_tag(output.e_tag).set_checksum_crc32(checksum).build()))
    }

    /// Makes an object of the parts, given in any order; with `only_new` unless an object with that key exists, and then
    /// the upload is aborted.
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
                Err(error) if is_conditional && status(&error) == Some(412) => {
                    self.abort_multipart_upload(upload).await;
                    return Ok(PutOutcome::Existed);
                }
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

    /// Finds the newest incomplete upload of an object, with its parts by number. Returns none if there is none or if the
    /// service does not list uploads or does not allow it.
    pub async fn find_resumable_upload(&self, key: &str) -> Option<(MultipartUpload, HashMap<i32, RemotePart>)> {
        // Options are fixed when an upload is created, and the service does not return them.
        if self.dry_run || !self.object_options.is_default() {
            return None;
        }
        let full_key = self.location.key(key);
        let request = self.client.list_multipart_uploads().bucket(&self.location.bucket).prefix(&full_key);
        let result = self.send(RequestKind::ListMultipartUploads, request.send()).await;
        let uploads = self.optional(result, "find incomplete uploads of", key)?.uploads.unwrap_or_default();
        let of_key = uploads.into_iter().filter(|upload| upload.key.as_ref() == Some(&full_key));
        let newest = of_key.max_by_key(|upload| upload.initiated)?;
        let upload = MultipartUpload { key: key.to_owned(), id: newest.upload_id? };
        let parts = self.list_parts(&upload).await?;
        Some((upload, parts))
    }

    async fn list_parts(&self, upload: &MultipartUpload) -> Option<HashMap<i32, RemotePart>> {
        let mut parts = HashMap::new();
        let mut marker = None;
        loop {
            let request = self
                .client
                .list_parts()
                .bucket(&self.location.bucket)
                .key(self.location.key(&upload.key))
                .upload_id(&upload.id)
                .set_part_number_marker(marker);
            let result = self.send(RequestKind::ListParts, request.send()).await;
            let page = self.optional(result, "list the parts of", &upload.key)?;
            parts.extend(page.parts.unwrap_or_default().into_iter().filter_map(remote_part));
            marker = page.next_part_number_marker.filter(|_| page.is_truncated == Some(true));
            if marker.is_none() {
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
