//! Copies an object onto itself, which renews its modification time without transferring its bytes.

use std::ops::Range;

use aws_sdk_s3::types::{CompletedPart, MetadataDirective};
use futures_util::{StreamExt, TryStreamExt, stream};
use nar_pack::error::{Error, Result};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use super::multipart::{MultipartUpload, UploadedPart};
use super::{Bucket, RequestKind};

/// What is escaped in the source of a copy.
const COPY_SOURCE_ESCAPES: &AsciiSet =
    &NON_ALPHANUMERIC.remove(b'/').remove(b'-').remove(b'.').remove(b'_').remove(b'~');
/// Maximum size of an object that one request copies, in bytes (`CopyObject` in the Amazon S3 API reference).
const MAX_COPY_SIZE: u64 = 5 << 30;
/// Size of the parts in which a larger object is copied, in bytes. An object of 5 TiB has 5,120 of them.
const PART_SIZE: u64 = 1 << 30;

impl Bucket {
    /// Writes an object of `size` bytes with the bytes that it has already, which the service copies: its age begins anew.
    ///
    /// # Errors
    /// See [`Bucket::put`]. Fails if there is no such object.
    pub async fn copy_onto_itself(&self, key: &str, content_type: &str, size: u64) -> Result {
        if self.is_dry_run() {
            return Ok(());
        }
        if size > MAX_COPY_SIZE {
            return self.copy_in_parts(key, content_type, size).await;
        }
        let request = self
            .object_options
            .apply_to_copy(self.client.copy_object())
            .bucket(&self.location.bucket)
            .key(self.location.key(key))
            .copy_source(self.copy_source(key))
            // A copy onto itself must change something.
            .metadata_directive(MetadataDirective::Replace)
            .content_type(content_type);
        match self.send(RequestKind::Copy, request.send()).await {
            Ok(_) => Ok(()),
            Err(error) => Err(self.error(&error, "copy", key)),
        }
    }

    fn copy_source(&self, key: &str) -> String {
        let source = format!("{}/{}", self.location.bucket, self.location.key(key));
        utf8_percent_encode(&source, COPY_SOURCE_ESCAPES).to_string()
    }

    async fn copy_in_parts(&self, key: &str, content_type: &str, size: u64) -> Result {
        // MinIO computes no checksums of copied parts, and then requires them.
        let upload = &self.create_upload_with(key, content_type, None).await?;
        let copies = stream::iter((1..).zip(ranges(size)).map(|(number, range)| self.copy_part(upload, number, range)));
        let result = async {
            let parts = copies.buffer_unordered(self.max_in_flight().into()).try_collect().await?;
            // Not conditional: it replaces the object.
            self.complete_multipart_upload(upload, parts, false).await.map(drop)
        };
        let result: Result = result.await;
        if result.is_err() {
            self.abort_multipart_upload(upload).await;
        }
        result
    }

    async fn copy_part(&self, upload: &MultipartUpload, number: i32, range: Range<u64>) -> Result<UploadedPart> {
        let request = self
            .client
            .upload_part_copy()
            .bucket(&self.location.bucket)
            .key(self.location.key(&upload.key))
            .upload_id(upload.id())
            .part_number(number)
            .copy_source(self.copy_source(&upload.key))
            .copy_source_range(format!("bytes={}-{}", range.start, range.end - 1));
        let result = self.send(RequestKind::Copy, request.send()).await;
        let action = format!("copy part {number} of");
        let output = result.map_err(|error| self.error(&error, &action, &upload.key))?;
        let etag = output.copy_part_result.and_then(|copied| copied.e_tag).ok_or_else(|| {
            let url = self.display_url(&upload.key);
            Error::failed(format!("cannot {action} {url}: the response contains no ETag"))
        })?;
        Ok(UploadedPart::new(CompletedPart::builder().part_number(number).e_tag(etag).build()))
    }
}

/// Returns the ranges of the parts of an object that is not empty.
fn ranges(size: u64) -> impl Iterator<Item = Range<u64>> {
    (0..size.div_ceil(PART_SIZE)).map(move |part| part * PART_SIZE..((part + 1) * PART_SIZE).min(size))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parts_are_the_whole_object() {
        for size in [1, PART_SIZE - 1, PART_SIZE, PART_SIZE + 1, MAX_COPY_SIZE + 1, 5 << 40] {
            let ranges: Vec<_> = ranges(size).collect();
            assert_eq!((ranges[0].start, ranges[ranges.len() - 1].end), (0, size));
            assert!(ranges.windows(2).all(|pair| pair[0].end == pair[1].start) && ranges.len() <= 10_000, "{size}");
            assert!(ranges.iter().all(|range| !range.is_empty()), "{size}");
        }
    }
}
