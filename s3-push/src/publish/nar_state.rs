//! The state of a NAR from its arrival to its upload, and the decision whether it is uploaded at all.

use std::future;
use std::sync::Arc;

use futures_util::future::{BoxFuture, Shared};
use nar_pack::error::Result;
use narinfo_gen::archive::Object;
use narinfo_gen::narinfo::NarInfo;
use narinfo_gen::verify_nar::NarDigests;

use crate::publish::body::Body;
use crate::publish::intake::{ReceivedNar, await_digests};
use crate::publish::publish_path::PublishContext;
use crate::publish::unclaimed::UnclaimedNar;
use crate::publish::upload::{ExistingNar, ObjectTarget, Overwrite, UploadedObject};

/// A result that several tasks wait for.
pub type SharedResult<T> = Shared<BoxFuture<'static, Result<T>>>;

/// A NAR that has arrived, or is arriving.
pub enum PendingNar {
    /// A small NAR in memory. Its narinfo, which comes later, decides whether it is uploaded.
    Held(ReceivedNar),
    /// A NAR whose task is running or has ended.
    Started(SharedResult<NarState>),
}

/// The state of a NAR after its task has ended.
#[derive(Clone)]
pub enum NarState {
    /// Verified, and in the bucket.
    Uploaded(NarDigests, UploadedObject),
    /// Verified, but the path it arrived with is already cached; kept because another path may refer to the same contents.
    Unclaimed(UnclaimedNar),
}

impl NarState {
    /// Returns the verified digests.
    pub fn digests(&self) -> &NarDigests {
        match self {
            Self::Uploaded(digests, _) => digests,
            Self::Unclaimed(nar) => &nar.digests,
        }
    }
}

impl PublishContext {
    /// Uploads a NAR while it is verified.
    pub async fn upload_nar(self: Arc<Self>, nar: ReceivedNar) -> Result<NarState> {
        let digests = await_digests(&nar.key, nar.digests);
        let (digests, object) = self.upload_nar_body(&nar.key, nar.body, digests, Overwrite::Never).await?;
        Ok(NarState::Uploaded(digests, object))
    }

    /// Uploads a NAR of several parts unless the bucket has it. It is verified in any case.
    pub async fn upload_large_nar(self: Arc<Self>, nar: ReceivedNar) -> Result<NarState> {
        match self.uploader.find_large_nar(&nar.key, nar.size).await? {
            ExistingNar::Missing => self.upload_nar(nar).await,
            ExistingNar::Damaged => {
                let digests = await_digests(&nar.key, nar.digests);
                let (digests, object) = self.upload_nar_body(&nar.key, nar.body, digests, Overwrite::Damaged).await?;
                self.uploader.report_replaced(&nar.key);
                Ok(NarState::Uploaded(digests, object))
            }
            ExistingNar::Present(present) => {
                let digests = await_digests(&nar.key, nar.digests);
                let (digests, object) = self.uploader.compare_large_nar(&nar.key, present, nar.body, digests).await?;
                Ok(NarState::Uploaded(digests, object))
            }
        }
    }

    /// Uploads a small NAR unless the path of its narinfo is cached and nothing is repaired. It is verified in any case.
    pub async fn upload_nar_if_needed(self: Arc<Self>, nar: ReceivedNar, narinfo: NarInfo) -> Result<NarState> {
        if self.options.repair || !self.is_cached(&narinfo.path).await? {
            return self.upload_nar(nar).await;
        }
        let digests = await_digests(&nar.key, nar.digests).await?;
        // A cache that has exactly this narinfo has its NAR.
        if self.existing.has_text(narinfo.path.hash_part(), &narinfo.to_string()).await {
            return Ok(NarState::Unclaimed(UnclaimedNar::new(nar.key, digests, None)));
        }
        let unclaimed = UnclaimedNar::new(nar.key, digests, Some(nar.body));
        if let Some(unclaimed) = self.unclaimed_nars.keep(unclaimed.clone()) {
            self.upload_unclaimed_nar(&unclaimed).await?;
        }
        Ok(NarState::Unclaimed(unclaimed))
    }

    /// Uploads an unclaimed NAR to free its memory, unless a path has claimed it or the bucket has it.
    pub async fn upload_unclaimed_nar(&self, nar: &UnclaimedNar) -> Result {
        let mut body = nar.body.lock().await;
        let Some(body) = body.take() else { return Ok(()) };
        let is_needed = self.uploader.doomed.contains(&nar.key);
        if !is_needed && self.uploader.find_object(&nar.key, Some(nar.digests.file_size)).await?.is_some() {
            return Ok(());
        }
        self.upload_nar_body(&nar.key, body, future::ready(Ok(nar.digests)), Overwrite::Never).await.map(drop)
    }

    /// Uploads an unclaimed NAR for a path that needs it. Returns `None` if its body is gone.
    pub async fn claim_nar(&self, nar: &UnclaimedNar) -> Result<Option<UploadedObject>> {
        let mut body = nar.body.lock().await;
        let Some(body) = body.take() else { return Ok(None) };
        let (_, object) =
            self.upload_nar_body(&nar.key, body, future::ready(Ok(nar.digests)), Overwrite::Never).await?;
        Ok(Some(object))
    }

    async fn upload_nar_body(
        &self,
        key: &str,
        body: Body,
        digests: impl Future<Output = Result<NarDigests>>,
        overwrite: Overwrite,
    ) -> Result<(NarDigests, UploadedObject)> {
        let target = ObjectTarget { key, content_type: Object::Nar(None).content_type(), overwrite };
        self.uploader.upload(&target, body, digests).await
    }
}
