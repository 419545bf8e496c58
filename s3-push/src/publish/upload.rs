//! Uploads of object bodies: small bodies in one request, large ones as multipart uploads (`multipart`). An object
//! becomes visible only after its body has been verified, which is why every upload takes a future of the verdict.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use nar_pack::error::{Error, Result};
use nar_pack::process;
use narinfo_gen::archive::Object;
use narinfo_gen::hash::{Hasher, Sha256};
use tokio::sync::Semaphore;

use crate::TOOL;
use crate::publish::body::{Body, BodyLength, Part};
use crate::publish::collection::DoomedObjects;
use crate::publish::multipart::OpenUploads;
use crate::remote::Remote;
use crate::remote::etag::{EtagComparison, has_etag};
use crate::remote::s3::{Bucket, PutOutcome};

/// The object that a body becomes.
#[derive(Debug, Clone, Copy)]
pub struct ObjectTarget<'a> {
    /// The key, below the prefix.
    pub key: &'a str,
    /// The content type.
    pub content_type: &'a str,
    /// Whether an existing object with that key may be replaced.
    pub overwrite: Overwrite,
}

/// Whether an upload may replace an existing object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Overwrite {
    /// The existing object stays; for NARs, whose key is the hash of their bytes.
    Never,
    /// The existing object is replaced, because it was found to have other bytes than a NAR of its key.
    Damaged,
    /// The existing object is replaced; for logs.
    Allowed,
}

/// Proof that an object is complete in the bucket. Only [`Uploader`] creates it.
#[derive(Debug, Clone, Copy)]
pub struct UploadedObject {
    existed: bool,
}

impl UploadedObject {
    /// An object that existed before.
    const EXISTING: Self = Self { existed: true };

    /// Returns whether the object existed before. Then only its size has been checked, and its entity tag if that
    /// identifies the bytes.
    #[must_use]
    pub fn existed(self) -> bool {
        self.existed
    }
}

/// How an existing NAR is compared with the one that is pushed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExistingCheck {
    /// By its entity tag, or by its size if the tag does not identify the bytes.
    EntityTag,
    /// By its entity tag; if that does not identify the bytes, the object is read.
    ReadIfUnknown,
    /// The object is read: an entity tag describes what was uploaded, not what the service has now.
    Read,
}

/// What is under the key of a NAR.
#[derive(Debug, Clone)]
pub enum ExistingNar {
    /// Nothing.
    Missing,
    /// An object that is not this NAR.
    Damaged,
    /// The NAR, as far as it was checked.
    Present(PresentNar),
    /// An object of another size, and the key has no hash: it may be another NAR. With the refusal of a path that needs this
    /// one.
    Taken(Error),
}

/// An object of the right size under the key of a NAR.
#[derive(Debug, Clone)]
pub struct PresentNar {
    object: UploadedObject,
    /// Its entity tag, to be compared with the bytes of the NAR.
    md5_etag: Option<String>,
    size: u64,
}

/// Uploads bodies to a bucket.
pub struct Uploader {
    /// The bucket.
    pub bucket: Arc<Bucket>,
    /// The bucket, for reading NARs. All readers of a push share its limit of ranges in memory.
    pub reader: Arc<Remote>,
    /// The objects that a collector has doomed. One of them counts as missing until this push has written it.
    pub doomed: DoomedObjects,
    pub(super) open_uploads: OpenUploads,
    /// Parts that are sent, and uploads that are created, at the same time. Without this limit every part that has
    /// arrived would wait in memory for a permit of the bucket, and a part would only be read later if memory is short.
    pub(super) part_permits: Arc<Semaphore>,
    existing_check: ExistingCheck,
    uploaded_bytes: AtomicU64,
    pub(super) reused_parts: AtomicU64,
    pub(super) processed_bytes: AtomicU64,
}

impl Uploader {
    /// Creates an uploader to `bucket`.
    #[must_use]
    pub fn new(bucket: Arc<Bucket>) -> Self {
        let reader = Arc::new(Remote::of_bucket(Arc::clone(&bucket)));
        let part_permits = Arc::new(Semaphore::new(bucket.max_in_flight().into()));
        Self {
            bucket,
            reader,
            doomed: DoomedObjects::default(),
            part_permits,
            open_uploads: OpenUploads::default(),
            existing_check: ExistingCheck::EntityTag,
            uploaded_bytes: AtomicU64::new(0),
            reused_parts: AtomicU64::new(0),
            processed_bytes: AtomicU64::new(0),
        }
    }

    /// Returns the uploader, with another check of existing NARs.
    #[must_use]
    pub fn with_existing_check(mut self, existing_check: ExistingCheck) -> Self {
        self.existing_check = existing_check;
        self
    }

    /// Returns the bytes of completed uploads.
    pub fn uploaded_bytes(&self) -> u64 {
        self.uploaded_bytes.load(Ordering::Relaxed)
    }

    /// Returns the bytes of bodies processed so far, including those of uploads in progress.
    pub fn processed_bytes(&self) -> u64 {
        self.processed_bytes.load(Ordering::Relaxed)
    }

    /// Returns the number of parts that an earlier run uploaded and that were not sent again.
    pub fn reused_parts(&self) -> u64 {
        self.reused_parts.load(Ordering::Relaxed)
    }

    /// Uploads a body. It becomes visible only after `verification` has succeeded. With [`Overwrite::Never`] an existing
    /// object is never replaced, unless the service does not support conditional writes.
    ///
    /// # Errors
    /// The error of `verification` or of the service; nothing is visible then.
    pub async fn upload<V>(
        self: &Arc<Self>,
        target: &ObjectTarget<'_>,
        mut body: Body,
        verification: impl Future<Output = Result<V>>,
    ) -> Result<(V, UploadedObject)> {
        if body.length.is_multipart() {
            // The next part must not wait here for memory that the first part holds.
            return self.upload_multipart(target, Vec::new(), body, verification).await;
        }
        let mut first_parts: Vec<Part> = Vec::from_iter(body.parts.recv().await);
        if body.length == BodyLength::Unknown && !first_parts.is_empty() {
            first_parts.extend(body.parts.recv().await);
        }
        if first_parts.len() > 1 {
            return self.upload_multipart(target, first_parts, body, verification).await;
        }
        // A truncated body may have no part either, so it is verified first.
        let value = verification.await?;
        let object = self.put_body(target, first_parts.pop()).await?;
        Ok((value, object))
    }

    /// Uploads a body of at most one part in one request.
    async fn put_body(&self, target: &ObjectTarget<'_>, part: Option<Part>) -> Result<UploadedObject> {
        let ObjectTarget { key, content_type, overwrite } = self.replacing_doomed(target);
        let bytes = part.as_ref().map(|part| part.bytes.clone()).unwrap_or_default();
        let size = bytes.len() as u64;
        let put = |is_new_only| self.bucket.put_nar(key, content_type, bytes.clone(), file_hash_in(key), is_new_only);
        let outcome = match overwrite {
            // Some services ignore the condition, and what has no hash in its key may be another NAR.
            Overwrite::Never if file_hash_in(key).is_none() && self.bucket.size(key).await?.is_some() => {
                PutOutcome::Existed
            }
            Overwrite::Never => match put(true).await? {
                PutOutcome::Existed if self.is_damaged(key, size, |etag| has_etag(&bytes, etag)).await? => {
                    let outcome = put(false).await?;
                    self.report_replaced(key);
                    outcome
                }
                outcome => outcome,
            },
            Overwrite::Damaged => put(false).await?,
            Overwrite::Allowed => self.bucket.put(key, content_type, bytes).await.map(|()| PutOutcome::Created)?,
        };
        self.processed_bytes.fetch_add(size, Ordering::Relaxed);
        let object = self.confirm(key, outcome, size).await?;
        self.doomed.set_written(key);
        Ok(object)
    }

    /// Returns the target, or one that replaces the object if a collector has doomed it, so that it counts as recent.
    pub(super) fn replacing_doomed<'a>(&self, target: &ObjectTarget<'a>) -> ObjectTarget<'a> {
        match target.overwrite {
            Overwrite::Never if self.doomed.contains(target.key) => {
                ObjectTarget { overwrite: Overwrite::Damaged, ..*target }
            }
            _ => *target,
        }
    }

    /// Returns whether the object under this key has other bytes than the verified NAR of `size` bytes to be uploaded.
    /// `has_etag` compares the NAR with an entity tag that identifies the bytes: an object with another one is read.
    ///
    /// An object whose key contains no FileHash is never called damaged: it may be another NAR, which a narinfo names.
    pub(super) async fn is_damaged(
        &self,
        key: &str,
        size: u64,
        has_etag: impl FnOnce(&str) -> Option<bool>,
    ) -> Result<bool> {
        let Some(expected) = file_hash_in(key) else { return Ok(false) };
        // A user who may not read gets the same response as for a missing object.
        let Some(head) = self.bucket.head(key).await? else { return Ok(!self.bucket.cannot_read()) };
        if head.size != size {
            return Ok(true);
        }
        match head.md5_etag.as_deref().and_then(has_etag) {
            Some(true) if self.existing_check != ExistingCheck::Read => Ok(false),
            None if self.existing_check == ExistingCheck::EntityTag => Ok(false),
            _ => Ok(self.hash_of_object(key).await? != Some(expected)),
        }
    }

    /// Looks up a NAR that will be uploaded in several parts. Its bytes are not known yet, so an object of the right size
    /// counts as present until [`Uploader::compare_nar`], unless it is to be read and its hash is in the key.
    ///
    /// # Errors
    /// Fails when the service does.
    pub async fn find_large_nar(&self, key: &str, size: u64) -> Result<ExistingNar> {
        if self.doomed.contains(key) {
            return Ok(ExistingNar::Missing);
        }
        let Some(head) = self.bucket.head(key).await? else { return Ok(ExistingNar::Missing) };
        let md5_etag = match file_hash_in(key) {
            Some(_) if head.size != size => return Ok(ExistingNar::Damaged),
            Some(expected) if self.existing_check != ExistingCheck::EntityTag => {
                if self.hash_of_object(key).await? != Some(expected) {
                    return Ok(ExistingNar::Damaged);
                }
                None
            }
            Some(_) => head.md5_etag,
            // Some services ignore the condition of the upload, which would replace another NAR.
            None if head.size != size => {
                return Ok(ExistingNar::Taken(self.unexpected_size(key, size, Some(head.size))));
            }
            None => None,
        };
        Ok(ExistingNar::Present(PresentNar { object: UploadedObject::EXISTING, md5_etag, size }))
    }

    /// Verifies a NAR that the bucket has, and compares it with the entity tag of the object if that identifies the
    /// bytes. An object with another tag is read.
    ///
    /// # Errors
    /// The error of `verification` or of the service. Refuses a large NAR whose object is damaged: its bytes have been read,
    /// so only another push, which compares before, can replace it. A small one is replaced.
    pub async fn compare_nar<V>(
        &self,
        key: &str,
        present: PresentNar,
        mut body: Body,
        verification: impl Future<Output = Result<V>>,
    ) -> Result<(V, UploadedObject)> {
        let PresentNar { object, md5_etag, size } = present;
        let comparison = match (md5_etag, body.length) {
            (Some(etag), BodyLength::Multipart { size, part_size }) => EtagComparison::new(&etag, size, part_size),
            (Some(etag), BodyLength::SinglePart) => EtagComparison::new(&etag, size, size),
            _ => None,
        };
        let Some(mut comparison) = comparison else {
            drop(body);
            return Ok((verification.await?, object));
        };
        let mut only_part = None;
        while let Some(part) = body.parts.recv().await {
            comparison.add_part(&part.bytes);
            only_part = (body.length == BodyLength::SinglePart).then_some(part);
        }
        let value = verification.await?;
        if !comparison.matches() && self.hash_of_object(key).await? != file_hash_in(key) {
            if only_part.is_some() {
                let content_type = Object::Nar(None).content_type();
                let target = ObjectTarget { key, content_type, overwrite: Overwrite::Damaged };
                let object = self.put_body(&target, only_part).await?;
                self.report_replaced(key);
                return Ok((value, object));
            }
            let url = self.bucket.display_url(key);
            let error =
                Error::refused(format!("{url}: the object is damaged: it differs from the NAR that was pushed"));
            return Err(error.with_hint("run the same command again with --check-existing to replace it"));
        }
        Ok((value, object))
    }

    /// Reads an object and returns its hash, or none if it does not exist.
    async fn hash_of_object(&self, key: &str) -> Result<Option<Sha256>> {
        let Some(body) = self.reader.get(key, None).await? else { return Ok(None) };
        let hashing = tokio::task::spawn_blocking(move || {
            let mut hasher = Hasher::default();
            std::io::copy(&mut body.into_reader(), &mut hasher)?;
            Ok::<_, Error>(hasher.finish().0)
        });
        hashing.await.map_err(|_| Error::panicked("hashing task"))?.map(Some)
    }

    pub(super) fn report_replaced(&self, key: &str) {
        let url = self.bucket.display_url(key);
        process::print_message(TOOL, format!("warning: {url}: the object was damaged and has been replaced"));
    }

    /// Checks that an object which existed before has the expected size: a truncated object is not complete.
    pub(super) async fn confirm(&self, key: &str, outcome: PutOutcome, size: u64) -> Result<UploadedObject> {
        if outcome == PutOutcome::Created {
            self.uploaded_bytes.fetch_add(size, Ordering::Relaxed);
            return Ok(UploadedObject { existed: false });
        }
        match self.bucket.size(key).await? {
            Some(found) if found == size => Ok(UploadedObject::EXISTING),
            None if self.bucket.cannot_read() && file_hash_in(key).is_some() => Ok(UploadedObject::EXISTING),
            found => Err(self.unexpected_size(key, size, found)),
        }
    }

    fn unexpected_size(&self, key: &str, size: u64, found: Option<u64>) -> Error {
        let (url, found) = (self.bucket.display_url(key), found.unwrap_or(0));
        let error =
            Error::refused(format!("{url}: expected {size} bytes, found an object of {found} bytes under this key"));
        error.with_hint(match file_hash_in(key) {
            Some(_) => "the object is damaged: delete it and run the same command again",
            None => "another NAR may have this key: give the NAR a key with its hash, as narinfo-gen does",
        })
    }

    /// Writes a doomed NAR of `size` bytes again, which the service copies onto itself, so that it counts as recent.
    ///
    /// # Errors
    /// Fails when the service does.
    pub async fn renew_doomed_nar(&self, key: &str, size: u64) -> Result {
        if self.doomed.contains(key) {
            self.bucket.copy_onto_itself(key, Object::Nar(None).content_type(), size).await?;
            self.doomed.set_written(key);
        }
        Ok(())
    }

    /// Looks up an object with that key, and of that size if given. A doomed one is found too.
    ///
    /// # Errors
    /// Fails when the service does.
    pub async fn find_object(&self, key: &str, size: Option<u64>) -> Result<Option<UploadedObject>> {
        let found = self.bucket.size(key).await?;
        Ok(found.filter(|found| size.is_none_or(|size| size == *found)).map(|_| UploadedObject::EXISTING))
    }
}

/// Returns the FileHash that is part of the key of a NAR.
pub(super) fn file_hash_in(key: &str) -> Option<Sha256> {
    match Object::of_key(key) {
        Some(Object::Nar(hash)) => hash,
        _ => None,
    }
}
