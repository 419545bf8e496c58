//! Listing and reading all narinfos of a bucket.

use std::time::SystemTime;

use futures_util::{StreamExt, stream};
use nar_pack::error::{Context, Error, Result};
use nar_pack::store_path::{HashPart, StoreDir};
use narinfo_gen::archive::Object;
use narinfo_gen::narinfo::{self, NarInfo};

use super::{describes, fail};
use crate::remote::etag::{Md5Tag, md5_tag};
use crate::remote::listing::list_top_level;
use crate::remote::s3::{Bucket, ListedObject};

/// A narinfo in a listing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ListedNarinfo {
    /// The hash part of its path.
    pub hash: HashPart,
    /// The MD5 hash of its text, if its entity tag is one.
    pub md5: Option<Md5Tag>,
    /// When it was written.
    pub last_modified: SystemTime,
}

impl ListedNarinfo {
    /// Returns the key.
    #[must_use]
    pub fn key(&self) -> String {
        format!("{}.narinfo", self.hash)
    }
}

/// Lists the narinfos of a bucket, sorted by hash part.
///
/// # Errors
/// Fails if the bucket cannot be listed, or if the time of a narinfo is unknown.
pub async fn list_narinfos(bucket: &Bucket) -> Result<Vec<ListedNarinfo>> {
    let narinfo = |entry: ListedObject| {
        let Some(Object::Narinfo(hash)) = Object::of_key(&entry.key) else { return None };
        let narinfo =
            entry.last_modified.map(|last_modified| ListedNarinfo { hash, md5: md5_tag(&entry.etag), last_modified });
        Some(narinfo.ok_or(hash))
    };
    let listed = list_top_level(bucket, narinfo).await?;
    let unknown = |hash: HashPart| Error::failed(format!("{}: its time is unknown", bucket.display_url(hash.as_str())));
    let mut listed = listed.into_iter().collect::<Result<Vec<_>, _>>().map_err(unknown)?;
    listed.sort_unstable_by_key(|narinfo| narinfo.hash);
    // Where two pages overlap, the later answer counts no more than the earlier one: the younger is kept.
    listed.dedup_by(|later, earlier| {
        let is_same = later.hash == earlier.hash;
        if is_same && later.last_modified > earlier.last_modified {
            *earlier = *later;
        }
        is_same
    });
    Ok(listed)
}

/// Reads narinfos, and passes the index of each with its contents and text to `each`, in any order; none if it was
/// deleted since it was listed.
///
/// # Errors
/// Fails if a narinfo cannot be read or parsed or describes another path. Passes on the errors of `each`.
pub async fn read_narinfos(
    bucket: &Bucket,
    store_dir: &StoreDir,
    listed: &[ListedNarinfo],
    mut each: impl FnMut(usize, Option<(&NarInfo, &str)>) -> Result,
) -> Result {
    let reads = listed.iter().enumerate().map(|(index, narinfo)| async move {
        let object = bucket.get_text(&narinfo.key(), narinfo::MAX_SIZE).await;
        (index, object)
    });
    let mut reads = stream::iter(reads).buffer_unordered(bucket.max_in_flight().into());
    while let Some((index, object)) = reads.next().await {
        let url = || bucket.display_url(&listed[index].key());
        let Some(object) = object.map_err(fail)? else {
            require_readable(bucket)?;
            each(index, None)?;
            continue;
        };
        let narinfo = NarInfo::parse(&object.text, store_dir).context(url).map_err(fail)?;
        if !describes(&narinfo, listed[index].hash) {
            return Err(Error::failed(format!("{}: it describes another path, {}", url(), narinfo.path)));
        }
        each(index, Some((&narinfo, &object.text)))?;
    }
    require_readable(bucket)
}

/// Fails if a read was forbidden: it looks like a missing object.
///
/// # Errors
/// See above.
pub fn require_readable(bucket: &Bucket) -> Result {
    if bucket.was_forbidden() {
        let error = format!("{}: some objects may not be read (HTTP 403)", bucket.display_url(""));
        return Err(Error::failed(error)
            .with_hint("'cache-policy --read-only --allow-list' prints a policy with the permissions"));
    }
    Ok(())
}
