//! Sending bodies: whole where they are small, in parts where they are large, under one budget of memory.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use nar_pack::stage::{Failure, Outcome};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinSet;

use crate::client::{Bucket, Multipart, Written};

/// Least size of a part that S3 takes, in bytes.
pub const LEAST_PART: u64 = 5 << 20;
/// Most parts of an upload; S3 takes 10,000, the rest is reserve.
const MOST_PARTS: u64 = 9000;
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
    pub form: Form,
}

/// How many parts a body has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// One, or none when it is empty.
    Whole,
    /// Several.
    Large,
    /// Nobody knows yet.
    Unknown,
}

/// Where a body goes.
#[derive(Debug, Clone, Copy)]
pub struct Target<'a> {
    /// The key.
    pub key: &'a str,
    /// The content type.
    pub content_type: &'a str,
    /// Whether an object with that key may be replaced.
    pub replace: Replace,
}

/// Whether an object may take the place of another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Replace {
    /// As NARs: what is there stays.
    Never,
    /// As logs.
    Allowed,
}

/// Proof that an object is complete in the bucket: made here and nowhere else.
#[derive(Debug, Clone, Copy)]
pub struct Complete(());

/// The memory that bodies may take up together.
#[derive(Debug, Clone)]
pub struct Memory {
    budget: Arc<Semaphore>,
    units: u64,
}

impl Memory {
    /// A budget of so many bytes.
    #[must_use]
    pub fn new(bytes: u64) -> Self {
        let units = (bytes / UNIT).clamp(1, u64::from(u32::MAX >> 3));
        Self { budget: Arc::new(Semaphore::new(usize::try_from(units).unwrap_or(1))), units }
    }

    fn units_of(&self, size: usize) -> u32 {
        u32::try_from((size as u64).div_ceil(UNIT).clamp(1, self.units)).unwrap_or(u32::MAX)
    }

    /// Takes a share now, if there is one.
    #[must_use]
    pub fn try_take(&self, size: usize) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.budget).try_acquire_many_owned(self.units_of(size)).ok()
    }

    /// Waits for a share. A body larger than the whole budget takes all of it.
    ///
    /// # Errors
    /// Fails when the push is given up.
    pub async fn take(&self, size: usize) -> Outcome<OwnedSemaphorePermit> {
        let share = Arc::clone(&self.budget).acquire_many_owned(self.units_of(size)).await;
        share.map_err(|_| Failure::failed("the push was given up"))
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
        Self { least: least.max(LEAST_PART), size }
    }

    /// Size in bytes of the part with that index, from 0; the last one is what is left.
    #[must_use]
    pub fn of(&self, index: u64) -> usize {
        let size = match self.size {
            Some(size) => size.div_ceil(MOST_PARTS).max(self.least).min(size.max(1)),
            None => self.least << (index / PARTS_OF_A_SIZE).min(10),
        };
        usize::try_from(size).unwrap_or(usize::MAX)
    }

    /// How many parts the body has.
    #[must_use]
    pub fn form(&self) -> Form {
        match self.size {
            None => Form::Unknown,
            Some(size) if size <= self.of(0) as u64 => Form::Whole,
            Some(_) => Form::Large,
        }
    }
}

/// Sends bodies to a bucket.
pub struct Uploader {
    /// The bucket.
    pub bucket: Arc<Bucket>,
    requests: Arc<Semaphore>,
    /// Multipart uploads under way, to be given up when the push is.
    open: Mutex<HashMap<String, Multipart>>,
    sent: AtomicU64,
}

impl Uploader {
    /// An uploader with at most `jobs` requests in flight.
    #[must_use]
    pub fn new(bucket: Arc<Bucket>, jobs: u16) -> Self {
        let requests = Arc::new(Semaphore::new(usize::from(jobs)));
        Self { bucket, requests, open: Mutex::default(), sent: AtomicU64::new(0) }
    }

    /// Bytes sent so far.
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// A place among the requests in flight.
    ///
    /// # Errors
    /// Fails when the push is given up.
    pub async fn slot(&self) -> Outcome<OwnedSemaphorePermit> {
        let slot = Arc::clone(&self.requests).acquire_owned().await;
        slot.map_err(|_| Failure::failed("the push was given up"))
    }

    /// Sends a body under `key`. It becomes visible only after `verdict` has passed. With [`Replace::Never`] it never
    /// takes the place of another object, unless the service has no conditional writes.
    ///
    /// # Errors
    /// What `verdict` says, or the service; then nothing is visible.
    pub async fn send<V>(
        self: &Arc<Self>,
        target: &Target<'_>,
        mut body: Body,
        verdict: impl Future<Output = Outcome<V>>,
    ) -> Outcome<(V, Complete)> {
        let Target { key, content_type, replace } = *target;
        // Only a body of unknown size needs a look ahead; a large part must not wait for memory that the first one has.
        let mut early = Vec::new();
        if !matches!(body.form, Form::Large) {
            early.extend(body.parts.recv().await);
            if matches!(body.form, Form::Unknown) && !early.is_empty() {
                early.extend(body.parts.recv().await);
            }
        }
        if early.len() < 2 && !matches!(body.form, Form::Large) {
            // The verdict first: a body that was cut off has no parts either.
            let value = verdict.await?;
            let bytes = early.first().map(|part| part.bytes.clone()).unwrap_or_default();
            let _slot = self.slot().await?;
            let written = match replace {
                Replace::Never => self.bucket.put_new(key, content_type, bytes.clone()).await?,
                Replace::Allowed => {
                    self.bucket.put(key, content_type, bytes.clone()).await.map(|()| Written::Created)?
                }
            };
            if written == Written::Created {
                self.sent.fetch_add(bytes.len() as u64, Ordering::Relaxed);
            }
            return Ok((value, Complete(())));
        }
        let upload = {
            let _slot = self.slot().await?;
            self.bucket.begin(key, content_type).await?
        };
        self.note(key, Some(upload.clone()));
        let result = self.send_parts(&upload, replace, early, &mut body.parts, verdict).await;
        if result.is_err() {
            self.bucket.abort(&upload).await;
        }
        self.note(key, None);
        result
    }

    async fn send_parts<V>(
        self: &Arc<Self>,
        upload: &Multipart,
        replace: Replace,
        early: Vec<Part>,
        parts: &mut mpsc::Receiver<Part>,
        verdict: impl Future<Output = Outcome<V>>,
    ) -> Outcome<(V, Complete)> {
        let mut tasks = JoinSet::new();
        let mut completed = Vec::new();
        let mut early = early.into_iter();
        let mut number = 0;
        loop {
            let part = match early.next() {
                Some(part) => part,
                None => match parts.recv().await {
                    Some(part) => part,
                    None => break,
                },
            };
            number += 1;
            let slot = self.slot().await?;
            let (uploader, upload) = (Arc::clone(self), upload.clone());
            tasks.spawn(async move {
                let size = part.bytes.len() as u64;
                let done = uploader.bucket.part(&upload, number, part.bytes.clone()).await;
                uploader.sent.fetch_add(size, Ordering::Relaxed);
                drop((part, slot));
                done
            });
            while let Some(done) = tasks.try_join_next() {
                completed.push(done.map_err(|_| Failure::failed("an upload task died"))??);
            }
        }
        while let Some(done) = tasks.join_next().await {
            completed.push(done.map_err(|_| Failure::failed("an upload task died"))??);
        }
        completed.sort_by_key(|part| part.part_number);
        let value = verdict.await?;
        let _slot = self.slot().await?;
        self.bucket.complete(upload, completed, replace == Replace::Never).await?;
        Ok((value, Complete(())))
    }

    /// Whether an object with that key and size is there; the proof of it if so.
    ///
    /// # Errors
    /// Fails when it cannot be told.
    pub async fn find(&self, key: &str, size: Option<u64>) -> Outcome<Option<Complete>> {
        let _slot = self.slot().await?;
        let found = self.bucket.size(key).await?;
        Ok(found.filter(|found| size.is_none_or(|size| size == *found)).map(|_| Complete(())))
    }

    fn note(&self, key: &str, upload: Option<Multipart>) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        match upload {
            Some(upload) => open.insert(key.to_owned(), upload),
            None => open.remove(key),
        };
    }

    /// Gives up what is under way.
    pub async fn abort_all(&self) {
        let open: Vec<Multipart> =
            self.open.lock().unwrap_or_else(PoisonError::into_inner).drain().map(|(_, upload)| upload).collect();
        for upload in open {
            self.bucket.abort(&upload).await;
        }
    }
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
            assert!(size.div_ceil(sizes.of(0) as u64) <= MOST_PARTS);
        }
        assert_eq!(PartSizes::new(8 << 20, Some(8 << 20)).form(), Form::Whole);
        assert_eq!(PartSizes::new(8 << 20, Some((8 << 20) + 1)).form(), Form::Large);
    }

    #[test]
    fn parts_of_an_unknown_body_grow_to_hold_five_tebibytes() {
        let sizes = PartSizes::new(8 << 20, None);
        let total: u64 = (0..10_000).map(|index| sizes.of(index) as u64).sum();
        assert!(total > 5 << 40);
        assert_eq!((sizes.of(999), sizes.of(1000)), (8 << 20, 16 << 20));
    }
}
