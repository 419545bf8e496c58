//! Sending bodies: whole where they are small, in parts where they are large, under one budget of memory.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use md5::{Digest, Md5};
use nar_pack::error::{Error, Result};
use tokio::sync::{OwnedSemaphorePermit, RwLock, Semaphore, mpsc};
use tokio::task::JoinSet;

use crate::remote::s3::{Bucket, MultipartUpload, PutOutcome, RemotePart, UploadedPart};

/// Least size of a part that S3 takes, in bytes.
pub const MIN_PART_SIZE: u64 = 5 << 20;
/// Most parts of an upload; S3 takes 10,000, the rest is reserve.
const MAX_PARTS: u64 = 9000;
/// Parts of one size before it doubles, where the size of the body is not known: 9,000 parts hold 4 TiB.
const PARTS_OF_A_SIZE: u64 = 1000;
/// The unit in which memory is counted; a semaphore has no more than 2^29 of them here.
const UNIT: u64 = 4096;

/// A piece of a body, with its share of the memory budget. Cheap to clone; the share is given back with the last clone.
#[derive(Debug, Clone)]
pub struct Part {
    /// The bytes.
    pub bytes: Bytes,
    _share: Arc<OwnedSemaphorePermit>,
}

/// A body that arrives in parts, each but the last of the size that [`PartSizes`] says.
#[derive(Debug)]
pub struct Body {
    /// The parts.
    pub parts: mpsc::Receiver<Part>,
    /// How many there will be.
    pub form: BodyLength,
}

/// How many parts a body has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BodyLength {
    /// One, or none when it is empty.
    Whole,
    /// Several, of `part` bytes each but the last, and of `size` together.
    Large {
        /// Bytes of all parts.
        size: u64,
        /// Bytes of one part.
        part: u64,
    },
    /// Nobody knows yet.
    Unknown,
}

/// Where a body goes.
#[derive(Debug, Clone, Copy)]
pub struct ObjectTarget<'a> {
    /// The key.
    pub key: &'a str,
    /// The content type.
    pub content_type: &'a str,
    /// Whether an object with that key may be replaced.
    pub replace: Overwrite,
}

/// Whether an object may take the place of another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Overwrite {
    /// As NARs: what is there stays.
    Never,
    /// As logs.
    Allowed,
}

/// Proof that an object is complete in the bucket: made here and nowhere else.
#[derive(Debug, Clone, Copy)]
pub struct UploadedObject {
    /// It was there before; only its size has been looked at.
    existed: bool,
}

impl UploadedObject {
    /// Whether somebody else wrote it.
    #[must_use]
    pub fn existed(self) -> bool {
        self.existed
    }
}

/// The memory that bodies may take up together.
#[derive(Debug, Clone)]
pub struct ByteBudget {
    budget: Arc<Semaphore>,
    units: u64,
}

impl ByteBudget {
    /// A budget of so many bytes.
    #[must_use]
    pub fn new(bytes: u64) -> Self {
        let units = (bytes / UNIT).clamp(1, u64::from(u32::MAX >> 3));
        Self { budget: Arc::new(Semaphore::new(usize::try_from(units).unwrap_or(1))), units }
    }

    fn units_of(&self, size: usize) -> u32 {
        u32::try_from((size as u64).div_ceil(UNIT).clamp(1, self.units)).unwrap_or(u32::MAX)
    }

    /// RequiredPermission a share now, if there is one.
    #[must_use]
    pub fn try_take(&self, size: usize) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.budget).try_acquire_many_owned(self.units_of(size)).ok()
    }

    /// Waits for a share. A body larger than the whole budget takes all of it.
    ///
    /// # Errors
    /// Fails when the push is given up.
    pub async fn take(&self, size: usize) -> Result<OwnedSemaphorePermit> {
        let share = Arc::clone(&self.budget).acquire_many_owned(self.units_of(size)).await;
        share.map_err(|_| Error::failed("the push was given up"))
    }
}

impl Part {
    /// A piece with its share.
    #[must_use]
    pub fn new(bytes: Bytes, share: OwnedSemaphorePermit) -> Self {
        Self { bytes, _share: Arc::new(share) }
    }
}

impl AsRef<Bytes> for Part {
    fn as_ref(&self) -> &Bytes {
        &self.bytes
    }
}

/// How a body is cut into parts.
#[derive(Debug, Clone, Copy)]
pub struct PartSizes {
    least: u64,
    size: Option<u64>,
}

impl PartSizes {
    /// For a body of `size` bytes, if known, with parts of at least `least` bytes.
    #[must_use]
    pub fn new(least: u64, size: Option<u64>) -> Self {
        Self { least: least.max(MIN_PART_SIZE), size }
    }

    /// Size in bytes of the part with that index, from 0; the last one is what is left.
    #[must_use]
    pub fn of(&self, index: u64) -> usize {
        let size = match self.size {
            Some(size) => size.div_ceil(MAX_PARTS).max(self.least).min(size.max(1)),
            None => self.least << (index / PARTS_OF_A_SIZE).min(10),
        };
        usize::try_from(size).unwrap_or(usize::MAX)
    }

    /// How many parts the body has.
    #[must_use]
    pub fn form(&self) -> BodyLength {
        match self.size {
            None => BodyLength::Unknown,
            Some(size) if size <= self.of(0) as u64 => BodyLength::Whole,
            Some(size) => BodyLength::Large { size, part: self.of(0) as u64 },
        }
    }
}

/// Sends bodies to a bucket.
pub struct Uploader {
    /// The bucket.
    pub bucket: Arc<Bucket>,
    /// MultipartUpload uploads under way, to be given up when the push is.
    open: Mutex<HashMap<String, Open>>,
    /// Held by each request that begins one, until it is noted.
    beginning: Arc<RwLock<()>>,
    sent: AtomicU64,
    continued: AtomicU64,
    moved: AtomicU64,
}

/// A multipart upload under way.
#[derive(Debug, Clone)]
struct Open {
    upload: MultipartUpload,
    /// Whether a later run continues it, so that its parts stay.
    continues: bool,
}

/// A multipart upload while its parts are sent.
struct Sending<'a> {
    upload: &'a MultipartUpload,
    replace: Overwrite,
    form: BodyLength,
    /// Parts that an earlier run sent.
    there: HashMap<i32, RemotePart>,
    /// Bytes that came in.
    received: u64,
}

impl Uploader {
    /// An uploader to that bucket.
    #[must_use]
    pub fn new(bucket: Arc<Bucket>) -> Self {
        Self {
            bucket,
            open: Mutex::default(),
            beginning: Arc::default(),
            sent: AtomicU64::new(0),
            continued: AtomicU64::new(0),
            moved: AtomicU64::new(0),
        }
    }

    /// Bytes sent so far.
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Bytes of bodies that have left so far, also of uploads that are not complete.
    pub fn moved(&self) -> u64 {
        self.moved.load(Ordering::Relaxed)
    }

    /// Parts of earlier runs that did not have to be sent again.
    pub fn continued(&self) -> u64 {
        self.continued.load(Ordering::Relaxed)
    }

    /// Sends a body under `key`. It becomes visible only after `verdict` has passed. With [`Overwrite::Never`] it never
    /// takes the place of another object, unless the service has no conditional writes.
    ///
    /// # Errors
    /// What `verdict` says, or the service; then nothing is visible.
    pub async fn send<V>(
        self: &Arc<Self>,
        target: &ObjectTarget<'_>,
        mut body: Body,
        verdict: impl Future<Output = Result<V>>,
    ) -> Result<(V, UploadedObject)> {
        let ObjectTarget { key, content_type, replace } = *target;
        // Only a body of unknown size needs a look ahead; a large part must not wait for memory that the first one has.
        let mut early = Vec::new();
        if !matches!(body.form, BodyLength::Large { .. }) {
            early.extend(body.parts.recv().await);
            if matches!(body.form, BodyLength::Unknown) && !early.is_empty() {
                early.extend(body.parts.recv().await);
            }
        }
        if early.len() < 2 && !matches!(body.form, BodyLength::Large { .. }) {
            // The verdict first: a body that was cut off has no parts either.
            let value = verdict.await?;
            let bytes = early.first().map(|part| part.bytes.clone()).unwrap_or_default();
            let written = match replace {
                Overwrite::Never => self.bucket.put_new(key, content_type, bytes.clone()).await?,
                Overwrite::Allowed => {
                    self.bucket.put(key, content_type, bytes.clone()).await.map(|()| PutOutcome::Created)?
                }
            };
            self.moved.fetch_add(bytes.len() as u64, Ordering::Relaxed);
            return self.settle(key, written, bytes.len() as u64).await.map(|complete| (value, complete));
        }
        let (upload, there) = self.begin(target, body.form).await?;
        let mut sending = Sending { upload: &upload, replace, form: body.form, there, received: 0 };
        let result = self.send_large(&mut sending, early, &mut body.parts, verdict).await;
        // Parts that are good are left for the next run to continue; what was refused as a whole is not.
        let refused_whole = result.as_ref().is_err_and(Error::is_refusal)
            && matches!(body.form, BodyLength::Large { size, .. } if size == sending.received);
        if refused_whole || (result.is_err() && !continues(replace, body.form)) {
            self.bucket.abort_multipart_upload(&upload).await;
        }
        self.note(key, None);
        result
    }

    async fn begin(
        self: &Arc<Self>,
        target: &ObjectTarget<'_>,
        form: BodyLength,
    ) -> Result<(MultipartUpload, HashMap<i32, RemotePart>)> {
        let ObjectTarget { key, content_type, replace } = *target;
        // Only under a NAR's key is it certain that somebody else's parts are parts of the same bytes.
        if replace == Overwrite::Never
            && let BodyLength::Large { part, .. } = form
            && let Some(found) = self.bucket.find_resumable_upload(key).await
            && agree(&found.1, part)
        {
            self.note(key, Some(Open { upload: found.0.clone(), continues: true }));
            return Ok(found);
        }
        // On a task of its own: a signal must not come between the request and the note of what it began.
        let (uploader, key, content_type) = (Arc::clone(self), key.to_owned(), content_type.to_owned());
        let beginning = Arc::clone(&self.beginning).read_owned().await;
        let begun = tokio::spawn(async move {
            let upload = uploader.bucket.create_multipart_upload(&key, &content_type).await?;
            uploader.note(&key, Some(Open { upload: upload.clone(), continues: continues(replace, form) }));
            drop(beginning);
            Ok((upload, HashMap::new()))
        });
        begun.await.map_err(|_| Error::failed("an upload task died"))?
    }

    async fn send_large<V>(
        self: &Arc<Self>,
        sending: &mut Sending<'_>,
        early: Vec<Part>,
        parts: &mut mpsc::Receiver<Part>,
        verdict: impl Future<Output = Result<V>>,
    ) -> Result<(V, UploadedObject)> {
        let sent = self.send_parts(sending, early, parts).await;
        if let Err(failure) = &sent {
            // Another pusher that continued the same upload may have completed it; then the rest is only to be verified.
            if self.find_sent(sending).await.is_none() {
                return Err(failure.clone());
            }
            while parts.recv().await.is_some() {}
        }
        let value = verdict.await?;
        let only_new = sending.replace == Overwrite::Never;
        let written = match sent {
            Ok(completed) => self.bucket.complete_multipart_upload(sending.upload, completed, only_new).await,
            Err(failure) => Err(failure),
        };
        match written {
            Ok(written) => Ok((value, self.settle(&sending.upload.key, written, sending.received).await?)),
            Err(failure) => Ok((value, self.find_sent(sending).await.ok_or(failure)?)),
        }
    }

    /// Whether the object that is being sent is there after all.
    async fn find_sent(&self, sending: &Sending<'_>) -> Option<UploadedObject> {
        match (sending.replace, sending.form) {
            (Overwrite::Never, BodyLength::Large { size, .. }) => {
                self.find(&sending.upload.key, Some(size)).await.ok().flatten()
            }
            _ => None,
        }
    }

    async fn send_parts(
        self: &Arc<Self>,
        sending: &mut Sending<'_>,
        early: Vec<Part>,
        parts: &mut mpsc::Receiver<Part>,
    ) -> Result<Vec<UploadedPart>> {
        let mut tasks = JoinSet::new();
        let mut completed = Vec::new();
        let mut early = early.into_iter();
        for number in 1.. {
            let part = match early.next() {
                Some(part) => part,
                None => match parts.recv().await {
                    Some(part) => part,
                    None => break,
                },
            };
            let size = part.bytes.len() as u64;
            sending.received += size;
            let there = sending.there.remove(&number).filter(|there| there.size == size);
            let (uploader, upload) = (Arc::clone(self), sending.upload.clone());
            tasks.spawn(async move {
                let done = match there.filter(|there| there.etag == md5_hex(&part.bytes)) {
                    Some(there) => {
                        uploader.continued.fetch_add(1, Ordering::Relaxed);
                        Ok(there.uploaded)
                    }
                    None => uploader.bucket.upload_part(&upload, number, part.bytes.clone()).await,
                };
                uploader.moved.fetch_add(size, Ordering::Relaxed);
                drop(part);
                done
            });
            while let Some(done) = tasks.try_join_next() {
                completed.push(done.map_err(|_| Error::failed("an upload task died"))??);
            }
        }
        while let Some(done) = tasks.join_next().await {
            completed.push(done.map_err(|_| Error::failed("an upload task died"))??);
        }
        Ok(completed)
    }

    /// What was there already must at least have the right size: an object that somebody cut off is not complete.
    async fn settle(&self, key: &str, written: PutOutcome, size: u64) -> Result<UploadedObject> {
        if written == PutOutcome::Created {
            self.sent.fetch_add(size, Ordering::Relaxed);
            return Ok(UploadedObject { existed: false });
        }
        match self.bucket.size(key).await? {
            Some(there) if there == size => Ok(UploadedObject { existed: true }),
            there => Err(Error::refused(format!(
                "{}: the bucket has an object of {} bytes under this key, not of {size}; remove it, it is damaged",
                self.bucket.display_url(key),
                there.unwrap_or(0)
            ))),
        }
    }

    /// Whether an object with that key and size is there; the proof of it if so.
    ///
    /// # Errors
    /// Fails when it cannot be told.
    pub async fn find(&self, key: &str, size: Option<u64>) -> Result<Option<UploadedObject>> {
        let found = self.bucket.size(key).await?;
        Ok(found.filter(|found| size.is_none_or(|size| size == *found)).map(|_| UploadedObject { existed: true }))
    }

    fn note(&self, key: &str, upload: Option<Open>) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        match upload {
            Some(upload) => open.insert(key.to_owned(), upload),
            None => open.remove(key),
        };
    }

    /// Gives up what is under way and cannot be continued. Parts of NARs stay, for the next run to continue.
    pub async fn abort_all(&self) {
        let _noted = self.beginning.write().await;
        let open: Vec<Open> =
            self.open.lock().unwrap_or_else(PoisonError::into_inner).drain().map(|(_, open)| open).collect();
        for open in open.iter().filter(|open| !open.continues) {
            self.bucket.abort_multipart_upload(&open.upload).await;
        }
    }
}

/// Whether the next run finds the parts of such an upload again: it must know where they begin and end, and that what
/// has the key has these bytes.
fn continues(replace: Overwrite, form: BodyLength) -> bool {
    replace == Overwrite::Never && matches!(form, BodyLength::Large { .. })
}

/// Whether parts were cut as ours are; otherwise two pushers at work would spoil each other's upload.
fn agree(parts: &HashMap<i32, RemotePart>, size: u64) -> bool {
    let last = parts.keys().max();
    parts.iter().all(|(number, part)| part.size == size || (Some(number) == last && part.size < size))
}

/// The entity tag that S3 gives bytes sent in one request.
#[must_use]
pub fn md5_hex(bytes: &[u8]) -> String {
    hex::encode(Md5::digest(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_fit_into_an_upload() {
        let gib = 1 << 30;
        for (size, part) in
            [(1, 1), (8 << 20, 8 << 20), (gib, 8 << 20), (100 * gib, 11_930_465), (5000 * gib, 596_523_236)]
        {
            let sizes = PartSizes::new(8 << 20, Some(size));
            assert_eq!(sizes.of(0), part);
            assert!(size.div_ceil(sizes.of(0) as u64) <= MAX_PARTS);
        }
        assert_eq!(PartSizes::new(8 << 20, Some(8 << 20)).form(), BodyLength::Whole);
        assert_eq!(
            PartSizes::new(8 << 20, Some((8 << 20) + 1)).form(),
            BodyLength::Large { size: (8 << 20) + 1, part: 8 << 20 }
        );
    }

    #[test]
    fn parts_of_an_unknown_body_grow_to_hold_five_tebibytes() {
        let sizes = PartSizes::new(8 << 20, None);
        let total: u64 = (0..10_000).map(|index| sizes.of(index) as u64).sum();
        assert!(total > 5 << 40);
        assert_eq!((sizes.of(999), sizes.of(1000)), (8 << 20, 16 << 20));
    }
}
