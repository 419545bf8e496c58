//! Deleting objects, many in one request where the service can.

use std::sync::atomic::Ordering;

use aws_sdk_s3::error::ProvideErrorMetadata;
use aws_sdk_s3::types::{Delete, ObjectIdentifier};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD as BASE64;
use futures_util::{StreamExt, TryStreamExt, stream};
use md5::{Digest, Md5};
use nar_pack::error::{Error, Result};

use super::errors::status;
use super::{Bucket, RequestKind};

/// Maximum number of keys in one request (`DeleteObjects` in the Amazon S3 API reference).
pub const MAX_DELETED_AT_ONCE: usize = 1000;

impl Bucket {
    /// Deletes objects, in an arbitrary order. One that does not exist counts as deleted.
    ///
    /// # Errors
    /// Fails if the service or the network does, or if deleting is forbidden; some of the objects may be deleted then.
    pub async fn delete(&self, keys: &[String]) -> Result {
        if self.dry_run {
            return Ok(());
        }
        for keys in keys.chunks(MAX_DELETED_AT_ONCE) {
            let deletes_many = keys.len() > 1 && self.supports_delete_objects.load(Ordering::Relaxed);
            if !deletes_many || !self.delete_in_one_request(keys).await? {
                let deletions = stream::iter(keys).map(|key| self.delete_one(key));
                deletions.buffer_unordered(self.max_in_flight().into()).try_collect::<()>().await?;
            }
        }
        Ok(())
    }

    async fn delete_one(&self, key: &str) -> Result {
        let request = self.client.delete_object().bucket(&self.location.bucket).key(self.location.key(key));
        match self.send(RequestKind::Delete, request.send()).await {
            Ok(_) => Ok(()),
            Err(error) if status(&error) == Some(404) && error.code() != Some("NoSuchBucket") => Ok(()),
            Err(error) => Err(self.error(&error, "delete", key)),
        }
    }

    /// Returns false if the service does not support such requests. `Content-MD5` is sent because some services demand
    /// it and none refuses it. The SDK adds a CRC-32, which Backblaze B2 and S3Proxy refuse: only AWS gets it.
    async fn delete_in_one_request(&self, keys: &[String]) -> Result<bool> {
        let first = keys.first().map_or("", String::as_str);
        let object = |key: &String| ObjectIdentifier::builder().key(self.location.key(key)).build();
        let invalid = |error| Error::failed(format!("internal error: cannot delete {first}: {error}"));
        let objects = keys.iter().map(object).collect::<Result<Vec<_>, _>>().map_err(invalid)?;
        let delete = Delete::builder().set_objects(Some(objects)).quiet(true).build().map_err(invalid)?;
        let request = self.client.delete_objects().bucket(&self.location.bucket).delete(delete).customize();
        let sends_checksums = self.sends_checksums();
        let request = request.mutate_request(move |request| {
            if let Some(body) = request.body().bytes() {
                let digest = BASE64.encode(Md5::digest(body));
                request.headers_mut().insert("content-md5", digest);
            }
            if !sends_checksums {
                request.headers_mut().remove("x-amz-checksum-crc32");
                request.headers_mut().remove("x-amz-sdk-checksum-algorithm");
            }
        });
        let output = match self.send(RequestKind::Delete, request.send()).await {
            Ok(output) => output,
            Err(error) if matches!(status(&error), Some(405 | 501)) || error.code() == Some("NotImplemented") => {
                self.supports_delete_objects.store(false, Ordering::Relaxed);
                return Ok(false);
            }
            Err(error) => return Err(self.error(&error, "delete", first)),
        };
        match output.errors().iter().find(|error| error.code() != Some("NoSuchKey")) {
            None => Ok(true),
            Some(error) => {
                let key = error.key().and_then(|key| key.strip_prefix(&self.location.prefix)).unwrap_or(first);
                let cause = error.message().or(error.code()).unwrap_or("the service gives no reason");
                Err(Error::failed(format!("cannot delete {}: {cause}", self.display_url(key))))
            }
        }
    }
}
