//! Multipart uploads: parts are sent concurrently, and an upload of a NAR that an earlier run left incomplete is
//! continued. This is safe because the key of a NAR is the hash of its bytes: parts found under it belong to the same
//! bytes, no matter who uploaded them.

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

use nar_pack::error::{Error, Result};
use nar_pack::sync::lock;
use tokio::sync::{OwnedSemaphorePermit, RwLock, mpsc};
use tokio::task::{JoinError, JoinSet};

use crate::publish::body::{Body, BodyLength, Part};
use crate::publish::upload::{ObjectTarget, Overwrite, UploadedObject, Uploader};
use crate::remote::etag::{have_etag, md5_hex};
use crate::remote::s3::{IncompleteUpload, MultipartUpload, PutOutcome, RemotePart, UploadedPart};

/// The multipart uploads in progress, which are aborted when the push fails.
#[derive(Debug, Default)]
pub struct OpenUploads {
    by_key: Mutex<HashMap<String, OpenUpload>>,
    /// Read-locked by each request that creates an upload, until the upload is recorded in `by_key`.
    creating: Arc<RwLock<()>>,
    /// Read-locked by each request that sends a part, which may go on after its upload was canceled.
    sending: Arc<RwLock<()>>,
}

/// A multipart upload in progress.
#[derive(Debug, Clone)]
struct OpenUpload {
    upload: MultipartUpload,
    /// Whether a later run can continue it, in which case its parts are kept.
    is_resumable: bool,
}

impl OpenUploads {
    fn add(&self, upload: &MultipartUpload, is_resumable: bool) {
        lock(&self.by_key).insert(upload.key.clone(), OpenUpload { upload: upload.clone(), is_resumable });
    }

    fn remove(&self, key: &str) {
        lock(&self.by_key).remove(key);
    }
}

/// A multipart upload whose whole body was verified, and which is not completed: its object does not exist yet.
#[derive(Debug)]
pub struct SentUpload {
    state: MultipartState,
    /// The parts. After a failure the whole body has been verified nevertheless, because another process that continued the
    /// same upload has completed it.
    parts: Result<Vec<UploadedPart>>,
}

impl SentUpload {
    /// Returns the number of parts.
    pub fn part_count(&self) -> usize {
        self.parts.as_ref().map_or(0, Vec::len)
    }
}

/// The state of one multipart upload while its parts are sent.
#[derive(Debug)]
struct MultipartState {
    upload: MultipartUpload,
    /// Whether another process created the upload. It may still be sending parts.
    is_continued: bool,
    overwrite: Overwrite,
    length: BodyLength,
    /// Parts that an earlier run uploaded, by number.
    existing_parts: HashMap<i32, RemotePart>,
    received_bytes: u64,
}

impl MultipartState {
    /// Returns whether the whole body has arrived.
    fn is_fully_received(&self) -> bool {
        matches!(self.length, BodyLength::Multipart { size, .. } if size == self.received_bytes)
    }
}

/// The parts of one upload: those that were sent, and those in flight.
struct SentParts {
    in_flight: JoinSet<Result<UploadedPart>>,
    sent: Vec<UploadedPart>,
    /// The first failure.
    error: Option<Error>,
    is_resumable: bool,
}

impl SentParts {
    fn add(&mut self, result: Result<Result<UploadedPart>, JoinError>) {
        match result.map_err(task_panicked).flatten() {
            Ok(part) => self.sent.push(part),
            Err(error) => {
                self.error.get_or_insert(error);
            }
        }
    }

    /// Waits for the parts in flight.
    async fn finish(mut self) -> Result<Vec<UploadedPart>> {
        while let Some(result) = self.in_flight.join_next().await {
            self.add(result);
        }
        self.error.take().map_or_else(|| Ok(std::mem::take(&mut self.sent)), Err)
    }
}

impl Drop for SentParts {
    /// If the upload is canceled, the parts in flight go on, so that the next run finds them; unless it cannot continue the
    /// upload.
    fn drop(&mut self) {
        if self.is_resumable {
            self.in_flight.detach_all();
        }
    }
}

impl Uploader {
    /// Uploads a body in parts. `first_parts` have already been taken from it.
    pub(super) async fn upload_multipart<V>(
        self: &Arc<Self>,
        target: &ObjectTarget<'_>,
        first_parts: Vec<Part>,
        body: Body,
        verification: impl Future<Output = Result<V>>,
    ) -> Result<(V, UploadedObject)> {
        let (value, sent) = self.send_multipart(target, first_parts, body, verification).await?;
        Ok((value, self.complete_multipart(sent).await?))
    }

    /// Sends a body in parts and waits for `verification`, without completing the upload. `first_parts` have already been
    /// taken from it.
    pub(super) async fn send_multipart<V>(
        self: &Arc<Self>,
        target: &ObjectTarget<'_>,
        first_parts: Vec<Part>,
        mut body: Body,
        verification: impl Future<Output = Result<V>>,
    ) -> Result<(V, SentUpload)> {
        let target = &self.replacing_doomed(target);
        let mut state = self.resume_or_create(target, body.length).await?;
        let result = self.send_and_verify(&mut state, first_parts, &mut body.parts, verification).await;
        match result {
            Ok((value, parts)) => Ok((value, SentUpload { state, parts })),
            Err(error) => Err(self.end_failed(&state, error).await),
        }
    }

    /// Completes an upload whose parts were sent and verified.
    ///
    /// # Errors
    /// Those of the parts and of the service.
    pub(super) async fn complete_multipart(&self, sent: SentUpload) -> Result<UploadedObject> {
        let SentUpload { state, parts } = sent;
        let object = match parts {
            Ok(parts) => self.complete(&state, parts).await,
            Err(error) => self.find_completed(&state, &[]).await.ok_or(error),
        };
        match object {
            Ok(object) => {
                self.doomed.set_written(&state.upload.key);
                self.open_uploads.remove(&state.upload.key);
                Ok(object)
            }
            Err(error) => Err(self.end_failed(&state, error).await),
        }
    }

    /// Aborts an upload whose parts were sent, because no path of this push needs its NAR.
    pub(super) async fn abort_multipart(&self, sent: SentUpload) {
        self.abort_own(&sent.state).await;
        self.open_uploads.remove(&sent.state.upload.key);
    }

    /// Aborts an upload, unless another process created it, which may need it.
    async fn abort_own(&self, state: &MultipartState) {
        if !state.is_continued {
            self.bucket.abort_multipart_upload(&state.upload).await;
        }
    }

    /// Ends an upload that failed. Complete parts are kept for the next run, unless the whole body arrived and was refused.
    async fn end_failed(&self, state: &MultipartState, error: Error) -> Error {
        let is_refused_whole = error.is_refusal() && state.is_fully_received();
        if is_refused_whole || !is_resumable(state.overwrite, state.length) {
            self.abort_own(state).await;
        }
        self.open_uploads.remove(&state.upload.key);
        error
    }

    /// Finds an upload to continue, or creates one.
    async fn resume_or_create(
        self: &Arc<Self>,
        target: &ObjectTarget<'_>,
        length: BodyLength,
    ) -> Result<MultipartState> {
        let overwrite = target.overwrite;
        let is_resumable = is_resumable(overwrite, length);
        if is_resumable
            && let BodyLength::Multipart { size, part_size } = length
            && let Some(IncompleteUpload { upload, parts }) =
                choose_upload(self.bucket.find_incomplete_uploads(target.key).await, size, part_size)
        {
            self.open_uploads.add(&upload, is_resumable);
            let (is_continued, existing_parts) = (true, parts);
            return Ok(MultipartState { upload, is_continued, overwrite, length, existing_parts, received_bytes: 0 });
        }
        // On a separate task, because a signal cancels this one, and an upload that was created must be recorded.
        let (uploader, key, content_type) = (Arc::clone(self), target.key.to_owned(), target.content_type.to_owned());
        // Before the task is started, so that a signal cancels those that wait.
        let permit = self.acquire_part_permit().await?;
        let creating = Arc::clone(&self.open_uploads.creating).read_owned().await;
        let created = tokio::spawn(async move {
            let _permit = permit;
            let upload = uploader.bucket.create_multipart_upload(&key, &content_type).await?;
            uploader.open_uploads.add(&upload, is_resumable);
            drop(creating);
            let (is_continued, existing_parts) = (false, HashMap::new());
            Ok(MultipartState { upload, is_continued, overwrite, length, existing_parts, received_bytes: 0 })
        });
        created.await.map_err(task_panicked)?
    }

    /// Sends the parts and waits for `verification`.
    async fn send_and_verify<V>(
        self: &Arc<Self>,
        state: &mut MultipartState,
        first_parts: Vec<Part>,
        parts: &mut mpsc::Receiver<Part>,
        verification: impl Future<Output = Result<V>>,
    ) -> Result<(V, Result<Vec<UploadedPart>>)> {
        let sent = self.send_parts(state, first_parts, parts).await;
        if let Err(error) = &sent {
            // Another process that continued the same upload may have completed it. Then the rest is only verified.
            if self.find_completed(state, &[]).await.is_none() {
                return Err(error.clone());
            }
            while parts.recv().await.is_some() {}
        }
        Ok((verification.await?, sent))
    }

    /// Makes an object of the parts.
    async fn complete(&self, state: &MultipartState, parts: Vec<UploadedPart>) -> Result<UploadedObject> {
        let is_new_only = state.overwrite == Overwrite::Never;
        let outcome = match self.bucket.complete_multipart_upload(&state.upload, parts.clone(), is_new_only).await {
            Ok(PutOutcome::Existed) => self.replace_if_damaged(state, parts).await?,
            Ok(outcome) => outcome,
            Err(error) => return self.find_completed(state, &parts).await.ok_or(error),
        };
        self.confirm(&state.upload.key, outcome, state.received_bytes).await
    }

    /// Replaces the object that exists under the key of the upload if it is damaged, and otherwise aborts the upload.
    async fn replace_if_damaged(&self, state: &MultipartState, parts: Vec<UploadedPart>) -> Result<PutOutcome> {
        let upload = &state.upload;
        if self.is_damaged(&upload.key, state.received_bytes, |etag| have_etag(&parts, etag)).await? {
            let outcome = self.bucket.complete_multipart_upload(upload, parts, false).await?;
            self.report_replaced(&upload.key);
            return Ok(outcome);
        }
        self.bucket.abort_multipart_upload(upload).await;
        Ok(PutOutcome::Existed)
    }

    /// Looks up the object of a NAR, which another process may have completed. An object of another size is not it. If all
    /// `parts` are known, an object with another entity tag is read, because it may consist of other parts.
    async fn find_completed(&self, state: &MultipartState, parts: &[UploadedPart]) -> Option<UploadedObject> {
        // The target of a doomed object is not of this kind, because the object exists.
        let size = match (state.overwrite, state.length) {
            (Overwrite::Never, BodyLength::Multipart { size, .. }) => size,
            (Overwrite::Never, BodyLength::SinglePart) => state.received_bytes,
            _ => return None,
        };
        let key = &state.upload.key;
        let found = self.find_object(key, Some(size)).await.ok().flatten()?;
        let is_damaged =
            !parts.is_empty() && self.is_damaged(key, size, |etag| have_etag(parts, etag)).await.unwrap_or(true);
        (!is_damaged).then_some(found)
    }

    /// Sends the parts. After a failure no further part is started, but those in flight are completed for the next run.
    async fn send_parts(
        self: &Arc<Self>,
        state: &mut MultipartState,
        first_parts: Vec<Part>,
        parts: &mut mpsc::Receiver<Part>,
    ) -> Result<Vec<UploadedPart>> {
        let is_resumable = is_resumable(state.overwrite, state.length);
        let mut sent = SentParts { in_flight: JoinSet::new(), sent: Vec::new(), error: None, is_resumable };
        let mut first_parts = first_parts.into_iter();
        for number in 1.. {
            let next = match first_parts.next() {
                Some(part) => Some(part),
                None => parts.recv().await,
            };
            let Some(part) = next else { break };
            let size = part.bytes.len() as u64;
            state.received_bytes += size;
            let existing = state.existing_parts.remove(&number).filter(|existing| existing.size == size);
            let (uploader, upload) = (Arc::clone(self), state.upload.clone());
            let permit = self.acquire_part_permit().await?;
            let sending = Arc::clone(&self.open_uploads.sending).read_owned().await;
            sent.in_flight.spawn(async move {
                let _until_sent = (permit, sending);
                uploader.send_part(&upload, number, part, existing).await
            });
            while let Some(result) = sent.in_flight.try_join_next() {
                sent.add(result);
            }
            if sent.error.is_some() {
                break;
            }
        }
        sent.finish().await
    }

    /// Waits for the parts in flight, also those of uploads that were canceled. No other part is started afterwards.
    pub async fn finish_parts(&self) {
        drop(self.open_uploads.sending.write().await);
    }

    async fn acquire_part_permit(&self) -> Result<OwnedSemaphorePermit> {
        Arc::clone(&self.part_permits).acquire_owned().await.map_err(|_| Error::canceled())
    }

    /// Sends a part, unless an earlier run uploaded the same bytes.
    async fn send_part(
        &self,
        upload: &MultipartUpload,
        number: i32,
        part: Part,
        existing: Option<RemotePart>,
    ) -> Result<UploadedPart> {
        let sent = match existing.filter(|existing| existing.etag == md5_hex(&part.bytes)) {
            Some(existing) => {
                self.reused_parts.fetch_add(1, Ordering::Relaxed);
                Ok(existing.uploaded)
            }
            None => self.bucket.upload_part(upload, number, part.bytes.clone()).await,
        };
        self.processed_bytes.fetch_add(part.bytes.len() as u64, Ordering::Relaxed);
        sent
    }

    /// Aborts the uploads in progress that cannot be continued. Parts of NARs are kept for the next run.
    pub async fn abort_all(&self) {
        let _all_recorded = self.open_uploads.creating.write().await;
        let open: Vec<OpenUpload> = lock(&self.open_uploads.by_key).drain().map(|(_, open)| open).collect();
        for open in open.iter().filter(|open| !open.is_resumable) {
            self.bucket.abort_multipart_upload(&open.upload).await;
        }
    }
}

/// Returns whether the next run can continue such an upload: the part boundaries must be known, and the key must
/// determine the bytes.
fn is_resumable(overwrite: Overwrite, length: BodyLength) -> bool {
    overwrite != Overwrite::Allowed && length.is_multipart()
}

/// Returns the upload of a body of `size` bytes of which most parts can be reused, the newest of those. `uploads` are sorted,
/// newest first.
fn choose_upload(uploads: Vec<IncompleteUpload>, size: u64, part_size: u64) -> Option<IncompleteUpload> {
    let usable = uploads.into_iter().filter_map(|found| Some((count_reusable(&found.parts, size, part_size)?, found)));
    usable.rev().max_by_key(|(count, _)| *count).map(|(_, upload)| upload)
}

/// Returns how many parts can be reused, judging by their sizes, or none if the upload has another part size. Then
/// another process may be sending its parts, and the two would overwrite each other's. A part that is too short was
/// truncated.
fn count_reusable(parts: &HashMap<i32, RemotePart>, size: u64, part_size: u64) -> Option<usize> {
    let last = i32::try_from(size.div_ceil(part_size)).ok()?;
    let last_size = size - (size - 1) / part_size * part_size;
    let is_foreign = |(number, part): (&i32, &RemotePart)| *number > last || part.size > part_size;
    if parts.iter().any(is_foreign) {
        return None;
    }
    let size_of = |number: i32| if number == last { last_size } else { part_size };
    let count = parts.iter().filter(|(number, part)| part.size == size_of(**number)).count();
    (count > 0 || parts.is_empty()).then_some(count)
}

fn task_panicked(_: JoinError) -> Error {
    Error::panicked("upload task")
}
