//! One path: its narinfo is written after its NAR is complete and after the narinfos of its references are visible. The
//! types enforce the first half: `put_narinfo` takes an [`UploadedObject`], which only an upload or a lookup creates.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use nar_pack::error::{Context, Error, Result};
use nar_pack::store_path::StorePath;
use nar_pack::sync::lock;
use narinfo_gen::archive::Object;
use narinfo_gen::compression::Compression;
use narinfo_gen::content_address::is_content_addressed;
use narinfo_gen::extras::{BuildTraceEntry, MAX_LINK_SIZE, debuginfo_target};
use narinfo_gen::narinfo::NarInfo;
use narinfo_gen::verify_nar::{NarSizeLimit, digest_nar};
use tokio::sync::{Mutex, Semaphore, watch};

use crate::publish::collection::{CollectorWait, Doomed, RECORDS_LIFETIME};
use crate::publish::existing::Existing;
use crate::publish::merge_narinfo::{MAX_MERGE_ATTEMPTS, too_many_conflicts};
use crate::publish::nar_state::{SharedResult, VerifiedNar};
use crate::publish::publisher::PublishOptions;
use crate::publish::upload::{UploadedObject, Uploader, file_hash_in};
use crate::publish::upstream::Upstreams;
use crate::refusals::{PathError, RootCause};
use crate::remote::retry::Backoff;
use crate::remote::s3::{Bucket, PutOutcome};
use crate::report::Status;

/// Age of the records that were read last at which nothing is published any more. They are read every 12 hours.
const MAX_RECORDS_AGE: Duration = Duration::from_secs(RECORDS_LIFETIME.as_secs() * 3 / 2);

/// How far the publishing of a path is.
pub enum PathProgress {
    /// It is not known yet whether the path is refused.
    Pending,
    /// The NAR matches the narinfo, and all references are accepted or published. Only a failed operation, or what the
    /// bucket has already, keeps the path from being published.
    Accepted,
    /// The path is published, or is not.
    Ended(Result<(), Arc<RootCause>>),
}

/// The progress of a path. A channel and not a shared future, because polling a long chain of references would recurse as
/// deep as the chain is long.
pub type PublishedSignal = watch::Receiver<PathProgress>;

/// A reference to another path of this push.
pub struct PendingReference {
    /// The path.
    pub path: StorePath,
    /// How its publishing ends.
    pub published: PublishedSignal,
}

/// What every publishing task needs.
pub struct PublishContext {
    /// Permits of the parts of multipart uploads that wait for a narinfo.
    pub waiting_parts: Arc<Semaphore>,
    /// The uploader to the bucket.
    pub uploader: Arc<Uploader>,
    /// NARs that are read back and decompressed at the same time: each takes the memory of its decoder.
    pub verification_permits: Semaphore,
    /// The narinfos in the bucket.
    pub existing: Existing,
    /// Other caches, whose paths are not published.
    pub upstreams: Upstreams,
    /// The options of the push.
    pub options: PublishOptions,
    /// Waits for collectors.
    pub collector_wait: CollectorWait,
    /// When the records of collectors were read last.
    pub records_read_at: std::sync::Mutex<SystemTime>,
    /// The keys of NARs that a repair has read, and that are as their narinfos say.
    pub intact_nars: Mutex<HashSet<String>>,
}

impl PublishContext {
    /// Returns the bucket.
    pub fn bucket(&self) -> &Bucket {
        &self.uploader.bucket
    }

    /// Returns whether clients find the path already, in this cache or in an upstream one.
    ///
    /// # Errors
    /// Fails when a cache cannot be read.
    pub async fn is_cached(&self, path: &StorePath) -> Result<bool> {
        Ok(self.existing.has(self.bucket(), path.hash_part()).await? || self.upstreams.have(path).await?)
    }

    /// Publishes a path, or finds that the cache has it. Reports on `progress` that the path is accepted.
    ///
    /// # Errors
    /// Refuses a path whose NAR does not match its narinfo or is missing, or that references a refused path. Fails when
    /// the bucket cannot be read or written.
    pub async fn publish(
        &self,
        narinfo: NarInfo,
        nar: Option<SharedResult<VerifiedNar>>,
        mut references: Vec<PendingReference>,
        progress: &watch::Sender<PathProgress>,
    ) -> Result<Status, PathError> {
        if self.options.is_narinfo_only {
            if self.options.exact && narinfo.signatures.is_empty() {
                let message = format!("{}: --exact would drop every signature", narinfo.full_path());
                return Err(Error::refused(message).with_hint("sign the narinfo first, with cache-sign").into());
            }
            self.await_published(&mut references).await?;
            self.require_recent_records()?;
            return Ok(self.publish_narinfo_alone(&narinfo).await?);
        }
        let nar = match nar {
            Some(nar) => Some(nar.await.map_err(|error| PathError::shared(&narinfo.url, error))?),
            None => None,
        };
        if let Some(nar) = &nar {
            nar.digests.require(&narinfo).map_err(|error| match (nar.digests.nar, narinfo.file_hash) {
                (None, None) => error.with_hint("run the same command without --check file"),
                _ => error,
            })?;
        }
        if let Some(status) = self.find_published(&narinfo, nar.as_ref()).await? {
            self.require_recent_records()?;
            return Ok(status);
        }
        let object = match &nar {
            Some(nar) => {
                self.await_accepted(&mut references).await?;
                progress.send_replace(PathProgress::Accepted);
                self.ensure_nar_object(&narinfo, nar).await?
            }
            // An earlier push uploaded it.
            None => self.verify_remote_nar(&narinfo).await?,
        };
        self.await_published(&mut references).await?;
        self.require_recent_records()?;
        Ok(self.put_narinfo(&narinfo, object).await?)
    }

    /// Returns the status of a path that this cache or an upstream one has, after adding the signatures that it lacks and
    /// repairing its NAR on request.
    async fn find_published(&self, narinfo: &NarInfo, nar: Option<&VerifiedNar>) -> Result<Option<Status>> {
        let hash = narinfo.path.hash_part();
        let mut is_repaired = false;
        if let Some(nar) = nar
            && self.options.repair
            && self.existing.has(self.bucket(), hash).await?
            && !self.has_other_intact_nar(narinfo).await?
        {
            is_repaired = self.object_of(nar).await?.is_some_and(|object| !object.existed());
        }
        if let Some(status) = self.merge_if_cached(narinfo).await? {
            // A cache that has exactly this narinfo has its NAR.
            if let Some(nar) = nar
                && self.existing.has_text(hash, &narinfo.to_string()).await
            {
                self.free_memory(nar).await;
            }
            let is_repaired = is_repaired && status == Status::Present;
            return Ok(Some(if is_repaired { Status::Repaired } else { status }));
        }
        Ok(self.upstreams.have(&narinfo.path).await?.then_some(Status::Upstream))
    }

    /// Returns the proof that the NAR is in the bucket, uploading or verifying it if necessary.
    async fn ensure_nar_object(&self, narinfo: &NarInfo, nar: &VerifiedNar) -> Result<UploadedObject, PathError> {
        let object = self.object_of(nar).await.map_err(|error| PathError::shared(&narinfo.url, error))?;
        match object {
            // The size alone does not prove an object whose key contains no hash.
            Some(object) if object.existed() && file_hash_in(&narinfo.url).is_none() => {
                Ok(self.verify_remote_nar(narinfo).await?)
            }
            Some(object) => Ok(object),
            None => Ok(self.verify_remote_nar(narinfo).await?),
        }
    }

    /// Waits until all references are accepted: the NAR of a path whose reference is refused is not uploaded.
    async fn await_accepted(&self, references: &mut [PendingReference]) -> Result<(), PathError> {
        self.await_progress(references, |progress| !matches!(progress, PathProgress::Pending)).await
    }

    /// Waits until all references are published.
    async fn await_published(&self, references: &mut [PendingReference]) -> Result<(), PathError> {
        self.await_progress(references, |progress| matches!(progress, PathProgress::Ended(_))).await
    }

    async fn await_progress(
        &self,
        references: &mut [PendingReference],
        mut is_reached: impl FnMut(&PathProgress) -> bool,
    ) -> Result<(), PathError> {
        for PendingReference { path, published } in references {
            let result = match published.wait_for(&mut is_reached).await.as_deref() {
                Ok(PathProgress::Ended(result)) => result.clone(),
                Ok(_) => Ok(()),
                Err(_) => return Err(Error::canceled().into()),
            };
            if let (Err(root_cause), false) = (result, self.options.allow_missing_references) {
                return Err(PathError::depends_on(&self.options.store_dir.join(path), root_cause));
            }
        }
        Ok(())
    }

    /// Writes a narinfo, which makes the path visible. `UploadedObject` is the proof that its NAR is complete.
    async fn put_narinfo(&self, narinfo: &NarInfo, _: UploadedObject) -> Result<Status> {
        self.confirm_nar(narinfo).await?;
        let bytes = narinfo.file_size.unwrap_or(0);
        if self.existing.is_doomed(narinfo.path.hash_part()).await {
            return Ok(Status::Sent { bytes, signed: self.put_doomed_narinfo(narinfo).await? });
        }
        for _ in 0..MAX_MERGE_ATTEMPTS {
            if self.write_over(narinfo, None).await? {
                self.existing.add_new(narinfo.path.hash_part()).await;
                return Ok(Status::Sent { bytes, signed: is_signed(narinfo) });
            }
            let status = self.merge_into_remote(narinfo).await?;
            // None if it was deleted meanwhile, or may not be read: then its contents are unknown, and stay.
            let unreadable = self.bucket().cannot_read().then_some(Status::Present);
            if let Some(status) = status.or(unreadable) {
                self.existing.add(narinfo.path.hash_part()).await;
                return Ok(status);
            }
        }
        Err(too_many_conflicts())
    }

    /// Writes an object beside a path. An existing object is kept, because another path may need it, unless it is doomed
    /// or dangling, or the push repairs. A build log is always replaced.
    ///
    /// # Errors
    /// Fails when the bucket cannot be read or written.
    pub async fn put_object(&self, key: &str, object: Object, body: Bytes) -> Result {
        let (bucket, content_type) = (self.bucket(), object.content_type());
        let is_doomed = self.uploader.doomed.contains(key);
        let is_replaced = match object {
            // So that it is young, and the collector does not delete it.
            _ if self.options.repair || is_doomed => true,
            Object::Listing(hash) => !self.existing.had(bucket, hash).await?,
            Object::Log => true,
            _ => false,
        };
        if is_replaced {
            bucket.put(key, content_type, body).await?;
            self.uploader.doomed.set_written(key);
            return Ok(());
        }
        let outcome = bucket.put_new(key, content_type, body.clone()).await?;
        if outcome == PutOutcome::Existed && self.is_dangling(key, object).await? {
            bucket.put(key, content_type, body).await?;
        }
        Ok(())
    }

    /// Returns whether a debug information link or a build trace entry in the bucket is malformed, or names a NAR or a path
    /// that is not there.
    async fn is_dangling(&self, key: &str, object: Object) -> Result<bool> {
        let found = match self.bucket().get_text(key, MAX_LINK_SIZE).await {
            Ok(Some(found)) => found.text,
            Ok(None) => return Ok(false),
            Err(error) if error.is_refusal() => return Ok(true),
            Err(error) => return Err(error),
        };
        match object {
            Object::DebugInfo => match debuginfo_target(found.as_bytes()) {
                Some(nar) if matches!(Object::of_key(&nar), Some(Object::Nar(_))) => {
                    Ok(self.bucket().size(&nar).await?.is_none() && !self.bucket().cannot_read())
                }
                _ => Ok(true),
            },
            Object::Realisation => match BuildTraceEntry::parse(key, found.as_bytes(), &self.options.store_dir) {
                Ok(entry) => Ok(!self.existing.had(self.bucket(), entry.out_path.hash_part()).await?),
                Err(_) => Ok(true),
            },
            _ => Ok(false),
        }
    }

    /// Checks that the collector cannot delete the NAR any more, if it was doomed: this push has written it, no collector
    /// deletes, and the NAR is there.
    ///
    /// # Errors
    /// Fails if a collector deletes the NAR, or does not end.
    pub async fn confirm_nar(&self, narinfo: &NarInfo) -> Result {
        let (doomed, key) = (&self.uploader.doomed, narinfo.url.as_str());
        if !doomed.was_doomed(key) || (!doomed.contains(key) && self.collector_wait.confirm(self.bucket(), key).await?)
        {
            return Ok(());
        }
        let error = format!("{}: a collector deletes its NAR, {key}", narinfo.full_path());
        Err(Error::failed(error).with_hint("run the same command again"))
    }

    /// Fails if the records of collectors were not read again in time: the machine was suspended, and what this push found in
    /// the cache may be deleted. By the clock, because a monotonic one stands still while the machine sleeps.
    fn require_recent_records(&self) -> Result {
        let age = lock(&self.records_read_at).elapsed().unwrap_or_default();
        if age < MAX_RECORDS_AGE {
            return Ok(());
        }
        let age = humantime::format_duration(Duration::from_secs(age.as_secs() / 60 * 60));
        let error =
            Error::failed(format!("this push was suspended: it last read what a collector has doomed {age} ago"));
        Err(error.with_hint("run the same command again"))
    }

    /// Reads anew which paths are doomed: a push may last longer than a path is doomed.
    ///
    /// # Errors
    /// Fails when the records cannot be read, or if the push was suspended for too long.
    pub async fn read_doomed_again(&self) -> Result {
        self.require_recent_records()?;
        let read_at = SystemTime::now();
        let doomed = Doomed::read(self.bucket(), &self.options.store_dir).await?;
        self.existing.set_doomed(doomed.paths).await;
        self.uploader.doomed.set(doomed.keys);
        *lock(&self.records_read_at) = read_at;
        Ok(())
    }

    /// Reads the NAR of a narinfo from the bucket and verifies it against the narinfo.
    ///
    /// # Errors
    /// Refuses a NAR that is missing or does not match. Fails when the bucket cannot be read.
    pub async fn verify_remote_nar(&self, narinfo: &NarInfo) -> Result<UploadedObject> {
        let missing =
            || Error::refused(format!("{}: its NAR, {}, is not in the bucket", narinfo.full_path(), narinfo.url));
        let compression = Compression::from_name(&narinfo.compression)?;
        let uploaded = self.uploader.find_object(&narinfo.url, None).await?.ok_or_else(missing)?;
        let _permit = self.verification_permits.acquire().await.map_err(|_| Error::canceled())?;
        let mut backoff = Backoff::new(self.bucket().max_attempts());
        loop {
            let body = self.uploader.reader.get(&narinfo.url, None).await?.ok_or_else(missing)?;
            let (nar_size, broken) = (narinfo.nar_size, Arc::clone(&body.broken));
            let verification = tokio::task::spawn_blocking(move || {
                digest_nar(body.into_reader(), compression, &NarSizeLimit::new(nar_size), &mut nar_pack::nar::Skip)
            });
            let digests = verification.await.map_err(|_| Error::panicked("verification task"))?;
            // A body without a strong entity tag cannot be resumed, so it is read again.
            if digests.is_err() && broken.load(Ordering::Acquire) && backoff.next_attempt().await {
                continue;
            }
            let digests = digests.context(|| self.bucket().display_url(&narinfo.url))?;
            digests.require(narinfo)?;
            self.uploader.renew_doomed_nar(&narinfo.url, digests.file_size).await?;
            return Ok(uploaded);
        }
    }
}

/// Returns the content type of a narinfo.
pub fn narinfo_content_type(narinfo: &NarInfo) -> &'static str {
    Object::Narinfo(narinfo.path.hash_part()).content_type()
}

/// Returns whether clients that verify signatures accept the path.
pub fn is_signed(narinfo: &NarInfo) -> bool {
    !narinfo.signatures.is_empty() || is_content_addressed(narinfo)
}
