//! Listing and reading all narinfos of a bucket.

use std::time::SystemTime;

use futures_util::{StreamExt, stream};
use nar_pack::error::{Context, Error, Result};
use nar_pack::store_path::{HashPart, StoreDir};
use narinfo_gen::archive::{Object, narinfo_key};
use narinfo_gen::narinfo::{self, NarInfo};

use super::fail;
use crate::remote::etag::{Md5Tag, md5_tag};
use crate::remote::known_texts::KnownTexts;
use crate::remote::listing::list_top_level;
use crate::remote::progress::Progress;
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
    /// Returns the narinfo that an object is, if it is one.
    ///
    /// # Errors
    /// Fails if its time is unknown.
    pub fn of_object(bucket: &Bucket, entry: &ListedObject) -> Option<Result<Self>> {
        let Some(Object::Narinfo(hash)) = Object::of_key(&entry.key) else { return None };
        let time = entry.time_written(bucket);
        Some(time.map(|last_modified| Self { hash, md5: md5_tag(&entry.etag), last_modified }))
    }

    /// Returns the key.
    #[must_use]
    pub fn key(&self) -> String {
        narinfo_key(self.hash)
    }
}

/// Lists the narinfos of a bucket, sorted by hash part.
///
/// # Errors
/// Fails if the bucket cannot be listed, or if the time of a narinfo is unknown.
pub async fn list_narinfos(bucket: &Bucket) -> Result<Vec<ListedNarinfo>> {
    let listed = list_top_level(bucket, |entry| ListedNarinfo::of_object(bucket, &entry)).await?;
    Ok(sort_narinfos(listed.into_iter().collect::<Result<_>>()?))
}

/// Sorts the narinfos of a listing by hash part, and removes duplicates.
#[must_use]
pub fn sort_narinfos(mut listed: Vec<ListedNarinfo>) -> Vec<ListedNarinfo> {
    listed.sort_unstable_by_key(|narinfo| narinfo.hash);
    // Where two pages overlap, the later answer counts no more than the earlier one: the more recent time is kept.
    listed.dedup_by(|later, earlier| {
        let is_same = later.hash == earlier.hash;
        if is_same && later.last_modified > earlier.last_modified {
            *earlier = *later;
        }
        is_same
    });
    listed
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
    known: Option<&KnownTexts>,
    mut each: impl FnMut(usize, Option<(&NarInfo, &str)>) -> Result,
) -> Result {
    read_narinfo_texts(bucket, listed, known, |index, text| {
        let Some(text) = text.map_err(fail_if_malformed)? else { return each(index, None) };
        let narinfo = parse_listed(bucket, store_dir, &listed[index], text).map_err(fail_if_malformed)?;
        each(index, Some((&narinfo, text)))
    })
    .await
}

/// Returns the error for a narinfo that cannot be used.
fn fail_if_malformed(error: Error) -> Error {
    let is_malformed = error.is_refusal();
    let error = fail(error);
    if is_malformed { error.with_hint("'s3-pull check' finds all narinfos that are malformed") } else { error }
}

/// Parses a narinfo that was listed.
///
/// # Errors
/// Refuses a malformed narinfo, and one that describes another path.
pub fn parse_listed(bucket: &Bucket, store_dir: &StoreDir, listed: &ListedNarinfo, text: &str) -> Result<NarInfo> {
    NarInfo::parse_of(listed.hash, text, store_dir).context(|| bucket.display_url(&listed.key()))
}

/// Reads the texts of narinfos, and passes the index and text of each to `each`, in any order: none if it was deleted
/// since it was listed, and an error if it is not text or too large. A known text is not read again, and others are added
/// to `known`.
///
/// # Errors
/// Fails if a narinfo cannot be read. Passes on the errors of `each`.
pub async fn read_narinfo_texts(
    bucket: &Bucket,
    listed: &[ListedNarinfo],
    known: Option<&KnownTexts>,
    mut each: impl FnMut(usize, Result<Option<&str>>) -> Result,
) -> Result {
    let progress = Progress::of_objects("narinfos", listed.len());
    let reads = listed.iter().enumerate().map(|(index, narinfo)| async move {
        if let Some(text) = known.zip(narinfo.md5).and_then(|(known, md5)| known.get(md5)) {
            return (index, Ok(Some(text)));
        }
        let object = bucket.get_text(&narinfo.key(), narinfo::MAX_SIZE).await;
        let text = object.map(|object| object.map(|object| object.text));
        if let (Some(known), Some(md5), Ok(Some(text))) = (known, narinfo.md5, &text) {
            known.add(md5, text);
        }
        (index, text)
    });
    let mut reads = stream::iter(reads).buffer_unordered(bucket.max_in_flight().into());
    while let Some((index, text)) = reads.next().await {
        progress.increment();
        match text {
            Ok(None) => {
                require_readable(bucket)?;
                each(index, Ok(None))?;
            }
            Ok(Some(text)) => each(index, Ok(Some(&text)))?,
            Err(error) if error.is_refusal() => each(index, Err(error))?,
            Err(error) => return Err(error),
        }
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
