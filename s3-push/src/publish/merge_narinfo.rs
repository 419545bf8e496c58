//! Updates of narinfos that the bucket already has: signatures and fields are merged, or the narinfo is replaced. Each
//! update is a conditional write, repeated when another process changed the narinfo in between. Where the service ignores
//! conditions, the narinfo is read back instead.

use std::time::Duration;

use nar_pack::error::{Context, Error, Result};
use narinfo_gen::narinfo::{self, NarInfo};

use crate::publish::cache_info::applies_conditions;
use crate::publish::publish_path::{PublishContext, is_signed, narinfo_content_type};
use crate::remote::s3::PutOutcome;
use crate::report::Status;

/// Maximum attempts to update a narinfo that other processes update at the same time.
pub(super) const MAX_MERGE_ATTEMPTS: u32 = 20;

/// How long another process may take between reading a narinfo and writing it. Both are single requests.
const MAX_UPDATE_TIME: Duration = Duration::from_secs(1);

/// A narinfo in the bucket.
pub(super) struct RemoteNarInfo {
    narinfo: NarInfo,
    etag: Option<String>,
}

impl PublishContext {
    /// Returns the status of a path that the cache has, after adding the signatures that it lacks. Returns `None` if the
    /// cache does not have the path.
    ///
    /// # Errors
    /// Fails when the bucket cannot be read or written. Refuses a malformed narinfo in the bucket, except to repair it.
    pub async fn merge_if_cached(&self, narinfo: &NarInfo) -> Result<Option<Status>> {
        let hash = narinfo.path.hash_part();
        if !self.existing.has(self.bucket(), hash).await? {
            return Ok(None);
        }
        if self.existing.has_text(hash, &narinfo.to_string()).await {
            return Ok(Some(Status::Present));
        }
        if self.options.repair && self.is_useless(narinfo).await? {
            return Ok(None);
        }
        self.merge_into_remote(narinfo).await
    }

    /// Adds signatures and fields to the narinfo in the cache. Returns `None` if there is no narinfo.
    ///
    /// # Errors
    /// As [`PublishContext::merge_if_cached`]. Fails after too many conflicts with other processes.
    pub async fn merge_into_remote(&self, narinfo: &NarInfo) -> Result<Option<Status>> {
        for _ in 0..MAX_MERGE_ATTEMPTS {
            let remote = match self.fetch_narinfo(narinfo).await {
                Ok(None) => return Ok(None),
                Ok(Some(remote)) if !self.options.repair || remote.narinfo.path == narinfo.path => remote,
                Err(error) if !self.options.repair || !error.is_refusal() => return Err(error),
                // No client can use it.
                Ok(Some(_)) | Err(_) if self.replace_useless(narinfo).await? => return Ok(Some(Status::Repaired)),
                // Another process has changed it meanwhile.
                Ok(Some(_)) | Err(_) => continue,
            };
            if !remote.narinfo.same_contents(narinfo) {
                return Ok(Some(Status::OtherContents));
            }
            let is_repaired = self.options.repair && self.is_about_another_file(&remote.narinfo, narinfo).await?;
            let merged = if is_repaired {
                // The NAR that arrived with this narinfo is in the bucket. Signatures do not cover the compressed file.
                narinfo.clone().merged_with(&remote.narinfo)
            } else {
                remote.narinfo.clone().merged_with(narinfo)
            };
            if merged == remote.narinfo {
                return Ok(Some(Status::Present));
            }
            if self.replace_narinfo(&merged, remote.etag.as_deref()).await? {
                return Ok(Some(if is_repaired { Status::Repaired } else { Status::Signed }));
            }
        }
        Err(too_many_conflicts())
    }

    /// Returns whether a narinfo in the bucket describes a compressed file that is not there, while the NAR of `narinfo` is: it
    /// is missing or damaged, or it is the same NAR with another compression, size or hash.
    async fn is_about_another_file(&self, remote: &NarInfo, narinfo: &NarInfo) -> Result<bool> {
        let is_right =
            if remote.url == narinfo.url { is_same_file(remote, narinfo) } else { self.is_intact(remote).await? };
        if !is_right {
            // It may have arrived without its NAR.
            self.verify_remote_nar(narinfo).await?;
        }
        Ok(!is_right)
    }

    /// Returns whether the bucket has the same path with the same contents in an intact NAR with another name.
    ///
    /// # Errors
    /// Fails when the bucket cannot be read.
    pub async fn has_other_intact_nar(&self, narinfo: &NarInfo) -> Result<bool> {
        if self.existing.has_text(narinfo.path.hash_part(), &narinfo.to_string()).await {
            return Ok(false);
        }
        match self.fetch_narinfo(narinfo).await {
            Ok(Some(RemoteNarInfo { narinfo: remote, .. })) => {
                Ok(remote.url != narinfo.url && remote.same_contents(narinfo) && self.is_intact(&remote).await?)
            }
            Ok(None) => Ok(false),
            Err(error) if error.is_refusal() => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Returns whether the NAR of a narinfo in the bucket is there and matches it.
    async fn is_intact(&self, remote: &NarInfo) -> Result<bool> {
        if self.intact_nars.lock().await.contains(&remote.url) {
            return Ok(true);
        }
        match self.verify_remote_nar(remote).await {
            Ok(_) => {
                self.intact_nars.lock().await.insert(remote.url.clone());
                Ok(true)
            }
            Err(error) if error.is_refusal() => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Publishes a narinfo that arrived without its NAR. It is merged with the one in the cache, which stays if it has other
    /// contents. With `--exact`, and where the cache has none, the narinfo is written as it is. If it names another NAR,
    /// that NAR is read from the bucket and verified.
    ///
    /// # Errors
    /// Fails when the bucket cannot be read or written, and after too many conflicts with other processes. Refuses a
    /// malformed narinfo in the bucket, and a NAR that is missing or does not match.
    pub async fn publish_narinfo_alone(&self, narinfo: &NarInfo) -> Result<Status> {
        let is_doomed = self.existing.is_doomed(narinfo.path.hash_part()).await;
        for _ in 0..MAX_MERGE_ATTEMPTS {
            let remote = self.fetch_narinfo(narinfo).await?;
            let found = remote.as_ref().map(|remote| &remote.narinfo);
            let has_same_contents = found.is_some_and(|found| found.same_contents(narinfo));
            if found.is_some() && !has_same_contents && !is_doomed && !self.options.exact {
                return Ok(Status::OtherContents);
            }
            let merge_with = found.filter(|_| !self.options.exact && has_same_contents);
            let merged = merge_with.map_or_else(|| narinfo.clone(), |found| narinfo.clone().merged_with(found));
            if found == Some(&merged) && !is_doomed {
                return Ok(Status::Present);
            }
            let is_same_nar = found.is_some_and(|found| is_same_file(found, &merged) && found.same_contents(&merged));
            if !is_same_nar {
                self.verify_remote_nar(&merged).await?;
                self.confirm_nar(&merged).await?;
            }
            if self.write_over(&merged, remote.as_ref()).await?
                && (!is_doomed || self.collector_wait.confirm(self.bucket(), &merged.key()).await?)
            {
                return Ok(if is_same_nar {
                    Status::Signed
                } else {
                    Status::Sent { bytes: 0, signed: is_signed(&merged) }
                });
            }
        }
        Err(too_many_conflicts())
    }

    /// Writes the narinfo of a doomed path, so that it is young, and keeps the signatures of the one that is there.
    /// Returns when the collector cannot delete it any more, and whether what was written is signed.
    ///
    /// # Errors
    /// Fails when the bucket cannot be read or written, when a collector does not end, and after too many conflicts
    /// with other processes. Refuses a malformed narinfo in the bucket.
    pub async fn put_doomed_narinfo(&self, narinfo: &NarInfo) -> Result<bool> {
        for _ in 0..MAX_MERGE_ATTEMPTS {
            let remote = self.fetch_narinfo(narinfo).await?;
            let found = remote.as_ref().map(|remote| &remote.narinfo).filter(|found| found.same_contents(narinfo));
            let merged = found.map_or_else(|| narinfo.clone(), |found| narinfo.clone().merged_with(found));
            if self.write_over(&merged, remote.as_ref()).await?
                && self.collector_wait.confirm(self.bucket(), &narinfo.key()).await?
            {
                self.existing.add_new(narinfo.path.hash_part()).await;
                return Ok(is_signed(&merged));
            }
        }
        Err(too_many_conflicts())
    }

    /// Reads the narinfo of the same path from the cache.
    async fn fetch_narinfo(&self, narinfo: &NarInfo) -> Result<Option<RemoteNarInfo>> {
        let Some(found) = self.bucket().get_text(&narinfo.key(), narinfo::MAX_SIZE).await? else { return Ok(None) };
        let url = || self.bucket().display_url(&narinfo.key());
        let narinfo = NarInfo::parse(&found.text, &self.options.store_dir).context(url)?;
        Ok(Some(RemoteNarInfo { narinfo, etag: found.etag }))
    }

    /// Returns whether a narinfo that was just written is still there. If the service ignores conditions, another process
    /// that read the previous one may have overwritten it.
    async fn is_kept(&self, narinfo: &NarInfo) -> Result<bool> {
        if applies_conditions(self.bucket()).await? {
            return Ok(true);
        }
        tokio::time::sleep(MAX_UPDATE_TIME).await;
        let remote = self.fetch_narinfo(narinfo).await?;
        Ok(remote.is_some_and(|remote| remote.narinfo.clone().merged_with(narinfo) == remote.narinfo))
    }

    /// Returns whether the narinfo in the cache is malformed or describes another path, so that no client can use it.
    async fn is_useless(&self, narinfo: &NarInfo) -> Result<bool> {
        match self.fetch_narinfo(narinfo).await {
            Ok(found) => Ok(found.is_some_and(|found| found.narinfo.path != narinfo.path)),
            Err(error) if error.is_refusal() => Ok(true),
            Err(error) => Err(error),
        }
    }

    /// Replaces a narinfo that no client can use. Returns whether there was one.
    async fn replace_useless(&self, narinfo: &NarInfo) -> Result<bool> {
        let Some(head) = self.bucket().head(&narinfo.key()).await? else { return Ok(false) };
        // Read after its entity tag: what is replaced is what was found to be useless.
        Ok(self.is_useless(narinfo).await? && self.replace_narinfo(narinfo, head.etag.as_deref()).await?)
    }

    /// Writes a narinfo where none was found, or over the one that was. Returns false if another process was faster.
    ///
    /// # Errors
    /// Fails when the narinfo cannot be written.
    pub(super) async fn write_over(&self, narinfo: &NarInfo, remote: Option<&RemoteNarInfo>) -> Result<bool> {
        if let Some(remote) = remote {
            return self.replace_narinfo(narinfo, remote.etag.as_deref()).await;
        }
        let body = narinfo.to_text()?.into();
        let outcome = self.bucket().put_new(&narinfo.key(), narinfo_content_type(narinfo), body).await?;
        Ok(outcome == PutOutcome::Created)
    }

    /// Replaces the narinfo that has `etag`. Returns false if another process has changed it.
    async fn replace_narinfo(&self, narinfo: &NarInfo, etag: Option<&str>) -> Result<bool> {
        let body = narinfo.to_text()?.into();
        let outcome = self.bucket().put_if_unchanged(&narinfo.key(), narinfo_content_type(narinfo), body, etag).await?;
        let is_written = outcome == PutOutcome::Created && self.is_kept(narinfo).await?;
        if is_written {
            self.existing.add(narinfo.path.hash_part()).await;
        }
        Ok(is_written)
    }
}

/// Returns whether both describe the same file with the same compression.
fn is_same_file(a: &NarInfo, b: &NarInfo) -> bool {
    (&a.url, &a.compression, a.file_hash, a.file_size) == (&b.url, &b.compression, b.file_hash, b.file_size)
}

pub(super) fn too_many_conflicts() -> Error {
    Error::failed(format!("its narinfo was changed by other processes {MAX_MERGE_ATTEMPTS} times in a row"))
        .with_hint("run the same command again")
}
