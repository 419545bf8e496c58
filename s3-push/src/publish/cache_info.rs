//! The `nix-cache-info` of the bucket: checked before a push, and written before the first narinfo.

use nar_pack::error::{Context, Error, Result};
use nar_pack::store_path::StoreDir;
use narinfo_gen::archive::Object;
use narinfo_gen::cache_info::{CacheInfo, Changes, KEY, MAX_SIZE};

use crate::publish::publisher::PublishOptions;
use crate::remote::s3::{Bucket, PutOutcome};

/// Whether the bucket has a `nix-cache-info`, and where its values come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CacheInfoState {
    /// There is none yet.
    Missing,
    /// This push wrote one with default values. One from the input replaces it.
    Default,
    /// The bucket had one, or this push wrote the one from the input.
    Present,
}

impl CacheInfoState {
    /// Reads the `nix-cache-info` of the bucket.
    ///
    /// # Errors
    /// Fails when it cannot be read. Refuses one of another store directory.
    pub async fn read(bucket: &Bucket, store_dir: &StoreDir) -> Result<Self> {
        match bucket.get_text(KEY, MAX_SIZE).await? {
            None => Ok(Self::Missing),
            Some(object) => {
                let info = CacheInfo::parse(&object.text).with_hint(|| REWRITE_HINT);
                info.and_then(|info| info.require(store_dir)).context(|| bucket.display_url(KEY))?;
                Ok(Self::Present)
            }
        }
    }

    /// Writes a `nix-cache-info` if there is none, with the values of `given` if there is one. In a tar of any order
    /// `given` may arrive after the first narinfo; it then replaces the default.
    ///
    /// # Errors
    /// Fails when it cannot be written.
    pub async fn ensure(&mut self, bucket: &Bucket, options: &PublishOptions, given: Option<CacheInfo>) -> Result {
        match (*self, &given) {
            (Self::Missing, _) | (Self::Default, Some(_)) => {}
            _ => return Ok(()),
        }
        let replaces_default = *self == Self::Default;
        *self = if given.is_some() { Self::Present } else { Self::Default };
        let info = given.map_or_else(|| default_info(options), |given| with_options(given, options));
        let (content_type, text) = (Object::CacheInfo.content_type(), info.to_string());
        if replaces_default {
            // Only the one that this push wrote: another process may have changed it.
            return match bucket.get_text(KEY, MAX_SIZE).await? {
                Some(written) if written.text == default_info(options).to_string() => {
                    bucket.put_if_unchanged(KEY, content_type, text.into(), written.etag.as_deref()).await.map(drop)
                }
                Some(_) => Ok(()),
                None if bucket.cannot_read() => bucket.put(KEY, content_type, text.into()).await,
                None => bucket.put_new(KEY, content_type, text.into()).await.map(drop),
            };
        }
        if bucket.put_new(KEY, content_type, text.into()).await? == PutOutcome::Existed {
            Self::read(bucket, &options.store_dir).await?;
            *self = Self::Present;
        }
        Ok(())
    }
}

fn default_info(options: &PublishOptions) -> CacheInfo {
    with_options(CacheInfo::new(options.store_dir.clone()), options)
}

fn with_options(mut info: CacheInfo, options: &PublishOptions) -> CacheInfo {
    info.priority = options.priority.or(info.priority);
    info.want_mass_query = options.want_mass_query.or(info.want_mass_query);
    info
}

/// The hint for a malformed `nix-cache-info`.
const REWRITE_HINT: &str = "write it again with 's3-push --set-cache-info'";
/// Maximum attempts to change a `nix-cache-info` that other processes change at the same time.
const MAX_CHANGE_ATTEMPTS: u32 = 5;

/// Changes the `nix-cache-info` of an existing cache, and completes one that lacks a valid store directory. Returns whether
/// it differs from before.
///
/// # Errors
/// Refuses a bucket without a `nix-cache-info`, and one of another store directory. Fails when it cannot be read or written.
pub async fn change_cache_info(bucket: &Bucket, changes: &Changes, store_dir: &StoreDir) -> Result<bool> {
    let url = || bucket.display_url(KEY);
    for _ in 0..MAX_CHANGE_ATTEMPTS {
        let (found, etag) = match bucket.get_text(KEY, MAX_SIZE).await {
            Ok(Some(object)) => (object.text, object.etag),
            Ok(None) => {
                let error = Error::refused(format!("{}: not found", url()));
                return Err(error
                    .with_hint("the first push to a bucket writes it: pass --priority and --want-mass-query there"));
            }
            // Nothing of what is too large or not text is kept. It is read again after its entity tag, so that it is that.
            Err(error) if error.is_refusal() => match bucket.head(KEY).await? {
                Some(head) if bucket.get_text(KEY, MAX_SIZE).await.is_err_and(|error| error.is_refusal()) => {
                    (String::new(), head.etag)
                }
                _ => continue,
            },
            Err(error) => return Err(error),
        };
        if let Ok(info) = CacheInfo::parse(&found) {
            info.require(store_dir).context(url)?;
        }
        let text = changes.apply(&found, store_dir);
        if text == found {
            return Ok(false);
        }
        let content_type = Object::CacheInfo.content_type();
        let outcome = bucket.put_if_unchanged(KEY, content_type, text.into(), etag.as_deref()).await?;
        if outcome == PutOutcome::Created {
            return Ok(true);
        }
    }
    Err(Error::failed(format!("{}: changed by other processes {MAX_CHANGE_ATTEMPTS} times in a row", url()))
        .with_hint("run the same command again"))
}

/// Returns whether the service applies the conditions of writes, which the first call tries with the `nix-cache-info`.
///
/// # Errors
/// Fails when it cannot be read or written.
pub async fn applies_conditions(bucket: &Bucket) -> Result<bool> {
    bucket.applies_conditions(KEY, Object::CacheInfo.content_type(), MAX_SIZE).await
}
