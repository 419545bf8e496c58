//! The state of a NAR from its arrival to its upload. A NAR is verified, and a large one sent, when it arrives. It becomes
//! an object only when a path whose narinfo was checked needs it, because an object of a refused path would stay in the
//! bucket: an uploader may not delete objects.

use std::mem;
use std::sync::Arc;

use futures_util::future::{self, BoxFuture, Shared};
use nar_pack::error::{Error, Result};
use narinfo_gen::archive::Object;
use narinfo_gen::narinfo::NarInfo;
use narinfo_gen::verify_nar::NarDigests;
use tokio::sync::{Mutex, OwnedSemaphorePermit};

use crate::publish::body::Body;
use crate::publish::intake::{ReceivedNar, await_digests};
use crate::publish::multipart::SentUpload;
use crate::publish::publish_path::PublishContext;
use crate::publish::upload::{ExistingNar, ObjectTarget, Overwrite, UploadedObject};

/// Maximum number of parts of all multipart uploads that wait for a narinfo, because each takes about 100 bytes of memory.
/// An upload beyond them is completed before its narinfo is known.
pub const MAX_WAITING_PARTS: usize = 10_000;

/// A result that several tasks wait for.
pub type SharedResult<T> = Shared<BoxFuture<'static, Result<T>>>;

/// A NAR that has arrived, or is arriving.
pub enum PendingNar {
    /// A small NAR in memory. No narinfo that can be published refers to it so far.
    Held(ReceivedNar),
    /// A NAR whose task is running or has ended.
    Started(SharedResult<VerifiedNar>),
}

/// A NAR that was verified. Clones share its contents.
#[derive(Clone)]
pub struct VerifiedNar {
    /// Its key.
    pub key: String,
    /// Its digests.
    pub digests: NarDigests,
    /// Locked while it is uploaded, so that other tasks wait for the object.
    contents: Arc<Mutex<Contents>>,
}

/// Where the contents of a verified NAR are.
enum Contents {
    /// In memory.
    Memory(Body),
    /// In the parts of a multipart upload that is not completed.
    Parts(SentUpload, OwnedSemaphorePermit),
    /// In the bucket.
    Object(UploadedObject),
    /// Nowhere: the upload failed.
    Failed(Error),
    /// Nowhere: they were dropped because no path needed them.
    Dropped,
}

impl VerifiedNar {
    fn new(key: String, digests: NarDigests, contents: Contents) -> Self {
        Self { key, digests, contents: Arc::new(Mutex::new(contents)) }
    }

    /// Returns whether the contents are sent, or being sent, to the bucket.
    pub fn is_sent(&self) -> bool {
        self.contents.try_lock().map_or(true, |contents| matches!(*contents, Contents::Parts(..) | Contents::Object(_)))
    }

    /// Returns whether the contents are in memory.
    pub fn is_in_memory(&self) -> bool {
        self.contents.try_lock().is_ok_and(|contents| matches!(*contents, Contents::Memory(_)))
    }

    /// Returns whether the contents are in the parts of an upload that is not completed.
    pub fn is_in_parts(&self) -> bool {
        self.contents.try_lock().is_ok_and(|contents| matches!(*contents, Contents::Parts(..)))
    }
}

impl PublishContext {
    /// Verifies a small NAR, which stays in memory.
    ///
    /// # Errors
    /// Refuses a NAR that is damaged.
    pub async fn verify_nar(self: Arc<Self>, nar: ReceivedNar) -> Result<VerifiedNar> {
        let digests = await_digests(&nar.key, nar.digests).await?;
        Ok(VerifiedNar::new(nar.key, digests, Contents::Memory(nar.body)))
    }

    /// Uploads a NAR that no narinfo of this push has named.
    ///
    /// # Errors
    /// Refuses a NAR that is damaged. Fails when the upload does.
    pub async fn upload_unnamed_nar(self: Arc<Self>, nar: ReceivedNar) -> Result<VerifiedNar> {
        let nar = Arc::clone(&self).verify_nar(nar).await?;
        self.object_of(&nar).await?;
        Ok(nar)
    }

    /// Uploads a small NAR to free its memory, unless no narinfo that names it describes it.
    ///
    /// # Errors
    /// Refuses a NAR that is damaged. Fails when the upload does.
    pub async fn upload_named_nar(self: Arc<Self>, nar: ReceivedNar, narinfos: Vec<NarInfo>) -> Result<VerifiedNar> {
        let nar = Arc::clone(&self).verify_nar(nar).await?;
        if narinfos.iter().any(|narinfo| nar.digests.require(narinfo).is_ok()) {
            self.object_of(&nar).await?;
        } else {
            self.drop_nar(&nar).await;
        }
        Ok(nar)
    }

    /// Sends a NAR unless the bucket has it. Its upload is completed when a path needs it. It is verified in any case.
    ///
    /// # Errors
    /// Refuses a NAR that is damaged. Fails when the bucket cannot be read or written.
    pub async fn send_nar(self: Arc<Self>, nar: ReceivedNar) -> Result<VerifiedNar> {
        let existing = self.uploader.find_large_nar(&nar.key, nar.size).await?;
        let ReceivedNar { key, body, digests, .. } = nar;
        let digests = await_digests(&key, digests);
        let (digests, contents) = match existing {
            ExistingNar::Missing => {
                let target = target(&key, Overwrite::Never);
                let (digests, sent) = self.uploader.send_multipart(&target, Vec::new(), body, digests).await?;
                (digests, self.wait_for_narinfo(sent).await?)
            }
            ExistingNar::Damaged => {
                let target = target(&key, Overwrite::Damaged);
                let (digests, object) = self.uploader.upload_multipart(&target, Vec::new(), body, digests).await?;
                self.uploader.report_replaced(&key);
                (digests, Contents::Object(object))
            }
            ExistingNar::Taken(error) => (digests.await?, Contents::Failed(error)),
            ExistingNar::Present(present) => {
                let (digests, object) = self.uploader.compare_nar(&key, present, body, digests).await?;
                (digests, Contents::Object(object))
            }
        };
        Ok(VerifiedNar::new(key, digests, contents))
    }

    /// Leaves an upload incomplete until a path needs it, unless too many wait already.
    async fn wait_for_narinfo(&self, sent: SentUpload) -> Result<Contents> {
        let count = u32::try_from(sent.part_count()).unwrap_or(u32::MAX);
        match Arc::clone(&self.waiting_parts).try_acquire_many_owned(count) {
            Ok(permit) => Ok(Contents::Parts(sent, permit)),
            Err(_) => Ok(Contents::Object(self.uploader.complete_multipart(sent).await?)),
        }
    }

    /// Returns the object of a NAR, uploading it if necessary. Returns `None` if its contents were dropped.
    ///
    /// # Errors
    /// Fails when the upload does.
    pub async fn object_of(&self, nar: &VerifiedNar) -> Result<Option<UploadedObject>> {
        let mut contents = nar.contents.lock().await;
        let uploaded = match mem::replace(&mut *contents, Contents::Dropped) {
            Contents::Memory(body) => {
                let digests = future::ready(Ok(()));
                let target = target(&nar.key, Overwrite::Never);
                self.uploader.upload(&target, body, digests).await.map(|((), object)| object)
            }
            Contents::Parts(sent, _permit) => self.uploader.complete_multipart(sent).await,
            Contents::Object(object) => Ok(object),
            Contents::Failed(error) => Err(error),
            Contents::Dropped => return Ok(None),
        };
        *contents = uploaded.clone().map_or_else(Contents::Failed, Contents::Object);
        uploaded.map(Some)
    }

    /// Uploads a NAR that no path has needed so far, to free its memory, unless the bucket has it.
    ///
    /// # Errors
    /// Fails when the bucket cannot be read or written.
    pub async fn upload_unneeded_nar(&self, nar: &VerifiedNar) -> Result {
        if nar.is_in_memory()
            && let Some(object) = self.uploader.find_object(&nar.key, Some(nar.digests.file_size)).await?
        {
            *nar.contents.lock().await = Contents::Object(object);
            return Ok(());
        }
        self.object_of(nar).await.map(drop)
    }

    /// Drops the contents of a NAR from memory: the bucket has the NAR.
    pub async fn free_memory(&self, nar: &VerifiedNar) {
        let mut contents = nar.contents.lock().await;
        if matches!(*contents, Contents::Memory(_)) {
            *contents = Contents::Dropped;
        }
    }

    /// Drops the contents of a NAR that only refused paths need, and aborts its upload.
    pub async fn drop_nar(&self, nar: &VerifiedNar) {
        let mut contents = nar.contents.lock().await;
        match mem::replace(&mut *contents, Contents::Dropped) {
            Contents::Parts(sent, _permit) => self.uploader.abort_multipart(sent).await,
            kept @ (Contents::Object(_) | Contents::Failed(_)) => *contents = kept,
            Contents::Memory(_) | Contents::Dropped => {}
        }
    }
}

fn target(key: &str, overwrite: Overwrite) -> ObjectTarget<'_> {
    ObjectTarget { key, content_type: Object::Nar(None).content_type(), overwrite }
}
