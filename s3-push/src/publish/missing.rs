//! Finds the paths of a path list that the cache lacks, for `--missing`.

use futures_util::{StreamExt, TryStreamExt, stream};
use nar_pack::error::{Error, Result};
use nar_pack::store_path::StorePath;

use crate::publish::existing::Existing;
use crate::publish::upstream::Upstreams;
use crate::remote::s3::Bucket;

/// Maximum number of concurrent lookups.
const MAX_CONCURRENT_LOOKUPS: usize = 64;

/// Returns the paths of which neither the bucket nor an upstream cache has a narinfo, in their order.
///
/// # Errors
/// Fails when a lookup does: a failed lookup never counts as missing.
pub async fn find_missing_paths<'a>(
    bucket: &Bucket,
    upstreams: &Upstreams,
    paths: &'a [StorePath],
) -> Result<Vec<&'a StorePath>> {
    let existing = Existing::open(bucket).await?;
    existing.expect_lookups(bucket, paths.len() as u64).await?;
    let lookups = stream::iter(paths.iter().map(async |path| {
        Ok::<_, Error>(existing.has(bucket, path.hash_part()).await? || upstreams.have(path).await?)
    }));
    let are_cached: Vec<bool> = lookups.buffered(MAX_CONCURRENT_LOOKUPS).try_collect().await?;
    Ok(paths.iter().zip(are_cached).filter(|(_, is_cached)| !is_cached).map(|(path, _)| path).collect())
}
