//! Finds the paths of a path list that the cache lacks, for `--missing`.

use std::str::FromStr;

use cache_sign::keys::{PublicKey, key_name};
use futures_util::{StreamExt, TryStreamExt, stream};
use nar_pack::error::{Context, Error, Result};
use nar_pack::process;
use nar_pack::store_path::{StoreDir, StorePath};
use narinfo_gen::archive::narinfo_key;
use narinfo_gen::narinfo::{MAX_SIZE, NarInfo};

use crate::TOOL;
use crate::publish::collection::Doomed;
use crate::publish::existing::Existing;
use crate::publish::upstream::Upstreams;
use crate::remote::progress::Progress;
use crate::remote::s3::Bucket;

/// Maximum number of concurrent lookups.
const MAX_CONCURRENT_LOOKUPS: usize = 64;

/// Who must have signed a path, as the value of `--signed-by`.
#[derive(Debug, Clone)]
pub enum Signer {
    /// A key of this name. Its signature is not verified, because the key is not known.
    Name(String),
    /// This public key. Its signature is verified.
    Key(PublicKey),
}

impl FromStr for Signer {
    type Err = Error;

    /// Parses the name of a key, or a public key `NAME:BASE64`.
    fn from_str(text: &str) -> Result<Self> {
        if text.contains(':') {
            return PublicKey::parse(text).map(Self::Key);
        }
        if text.trim().is_empty() {
            return Err(Error::usage("expected the name of a key or a public key, found nothing"));
        }
        Ok(Self::Name(text.to_owned()))
    }
}

impl Signer {
    fn has_signed(&self, narinfo: &NarInfo) -> bool {
        let mut signatures = narinfo.signatures.iter();
        match self {
            Self::Name(name) => signatures.any(|signature| key_name(signature) == name),
            Self::Key(key) => {
                let fingerprint = narinfo.fingerprint();
                signatures.any(|signature| key.verifies(&fingerprint, signature))
            }
        }
    }
}

/// What a path in the bucket must have so that it does not count as missing, besides a narinfo.
#[derive(Debug, Clone)]
pub struct Requirements {
    /// The store directory of every path.
    pub store_dir: StoreDir,
    /// All of these must have signed the path.
    pub signers: Vec<Signer>,
    /// Whether the NAR must be in the bucket, with the size that the narinfo states.
    pub requires_nar: bool,
}

impl Requirements {
    /// Returns whether the narinfo must be read.
    fn need_narinfo(&self) -> bool {
        self.requires_nar || !self.signers.is_empty()
    }

    /// Returns whether a path whose narinfo is in the bucket meets the requirements.
    async fn are_met(&self, bucket: &Bucket, path: &StorePath) -> Result<bool> {
        if !self.need_narinfo() {
            return Ok(true);
        }
        let key = narinfo_key(path.hash_part());
        let parse = |text: &str| NarInfo::parse(text, &self.store_dir).context(|| bucket.display_url(&key));
        let read = bucket.get_text(&key, MAX_SIZE).await;
        let narinfo = match read.and_then(|object| object.map(|object| parse(&object.text)).transpose()) {
            Ok(Some(narinfo)) if narinfo.path == *path => narinfo,
            Ok(_) => return Ok(false),
            // No client can use it.
            Err(error) if error.is_refusal() => {
                process::print_message(TOOL, format!("warning: {error}; 's3-push repair' replaces it"));
                return Ok(false);
            }
            Err(error) => return Err(error),
        };
        if !self.signers.iter().all(|signer| signer.has_signed(&narinfo)) {
            return Ok(false);
        }
        if !self.requires_nar {
            return Ok(true);
        }
        has_nar(bucket, &narinfo).await
    }
}

/// Returns whether the bucket has the NAR of a narinfo, with the size that it states if it states one.
///
/// # Errors
/// Fails when the lookup does.
pub async fn has_nar(bucket: &Bucket, narinfo: &NarInfo) -> Result<bool> {
    let size = bucket.size(&narinfo.url).await?;
    Ok(size.is_some_and(|size| narinfo.file_size.is_none_or(|expected| expected == size)))
}

/// Returns the paths that neither the bucket, as far as `requirements` are met, nor an upstream cache has, in their order.
///
/// # Errors
/// Fails when a lookup does: a failed lookup never counts as missing.
pub async fn find_missing_paths<'a>(
    bucket: &Bucket,
    upstreams: &Upstreams,
    requirements: &Requirements,
    paths: &'a [StorePath],
) -> Result<Vec<&'a StorePath>> {
    // Before the listing, as for a push: a path that is not doomed now is not deleted for a day.
    let doomed = Doomed::read(bucket, &requirements.store_dir).await?;
    let existing = Existing::open(bucket).await?;
    existing.set_doomed(doomed.paths).await;
    existing.expect_lookups(bucket, paths.len() as u64).await?;
    let progress = Progress::of_objects("paths", paths.len());
    let lookups = stream::iter(paths.iter().map(async |path| {
        let is_in_bucket = existing.has(bucket, path.hash_part()).await? && requirements.are_met(bucket, path).await?;
        let is_cached = is_in_bucket || upstreams.have(path).await?;
        progress.increment();
        Ok::<_, Error>(is_cached)
    }));
    let are_cached: Vec<bool> = lookups.buffered(MAX_CONCURRENT_LOOKUPS).try_collect().await?;
    Ok(paths.iter().zip(are_cached).filter(|(_, is_cached)| !is_cached).map(|(path, _)| path).collect())
}
