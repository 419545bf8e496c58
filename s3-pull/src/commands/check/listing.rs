//! The listing of a bucket for `s3-pull check`: which objects there are, and those that do not belong there.

use nar_pack::error::{Context as _, Result};
use nar_pack::store_path::{HashPart, StoreDir};
use narinfo_gen::archive::{NAR_PREFIX, Object, listing_key};
use narinfo_gen::cache_info::{self, CacheInfo};
use s3_push::remote::etag::{Md5Tag, md5_tag_of};
use s3_push::remote::listing::{ListItem, TOP_LEVEL, for_each_item};
use s3_push::remote::liveness::{COLLECTOR_PREFIX, ListedNarinfo, sort_narinfos};
use s3_push::remote::pins;
use s3_push::remote::s3::{Bucket, ListDepth, ListedObject};

use super::findings::{Finding, Findings, Reason};

/// The page of `cache-policy --landing-page`.
const LANDING_PAGE: &str = "index.html";

/// What the top level of a bucket contains.
#[derive(Default)]
pub struct TopLevel {
    /// The narinfos, sorted.
    pub narinfos: Vec<ListedNarinfo>,
    /// The hash parts of the listings (`.ls`), sorted.
    pub listings: Vec<HashPart>,
    /// The prefixes of all other objects, sorted.
    pub prefixes: Vec<String>,
}

/// Lists the top level. An empty narinfo or `nix-cache-info` is found by reading it, or here with `note_empty`.
///
/// # Errors
/// Fails if it cannot be listed, or if the time of a narinfo is unknown.
pub async fn list_top_level(bucket: &Bucket, note_empty: bool, findings: &mut Findings) -> Result<TopLevel> {
    let (mut top, mut narinfos) = (TopLevel::default(), Vec::new());
    let (mut has_cache_info, mut others) = (false, ObjectList::default());
    for_each_item(bucket, TOP_LEVEL, |item| match item {
        ListItem::Prefix(prefix) => top.prefixes.push(prefix),
        ListItem::Object(object) => {
            if let Some(narinfo) = ListedNarinfo::of_object(bucket, &object) {
                narinfos.push(narinfo);
                others.add_if_empty(&object, note_empty);
            } else {
                let kind = Object::of_key(&object.key);
                if let Some(Object::Listing(hash)) = kind {
                    top.listings.push(hash);
                }
                has_cache_info |= kind == Some(Object::CacheInfo);
                others.add(&object);
                if note_empty && kind == Some(Object::CacheInfo) && object.size == Some(0) {
                    others.noted.push((object.key, Reason::MalformedCacheInfo, 0));
                }
            }
        }
    })
    .await?;
    top.narinfos = sort_narinfos(narinfos.into_iter().collect::<Result<_>>()?);
    top.listings.sort_unstable();
    top.listings.dedup();
    top.prefixes.sort_unstable();
    top.prefixes.dedup();
    findings.totals.paths = top.narinfos.len();
    findings.totals.others = others.finish(bucket, findings);
    if !has_cache_info {
        let key = cache_info::KEY;
        let message = format!("{}: there is no {key}", bucket.display_url(""));
        findings.add(Finding { path: None, key: key.to_owned(), reason: Reason::NoCacheInfo, message, size: 0 });
    }
    Ok(top)
}

/// Reads the `nix-cache-info`, if there is one.
///
/// # Errors
/// Fails if it cannot be read.
pub async fn check_cache_info(bucket: &Bucket, store_dir: &StoreDir, findings: &mut Findings) -> Result {
    let read = async {
        let text = bucket.get_text(cache_info::KEY, cache_info::MAX_SIZE).await?.map(|object| object.text);
        text.map(|text| CacheInfo::parse(&text)).transpose().context(|| bucket.display_url(cache_info::KEY))
    };
    let (reason, error) = match read.await {
        Ok(info) => match info.map_or(Ok(()), |info| info.require(store_dir)) {
            Ok(()) => return Ok(()),
            Err(error) => (Reason::OtherStoreDir, error.context(bucket.display_url(cache_info::KEY))),
        },
        Err(error) if error.is_refusal() => (Reason::MalformedCacheInfo, error),
        Err(error) => return Err(error),
    };
    let (key, message) = (cache_info::KEY.to_owned(), error.message().to_owned());
    findings.add(Finding { path: None, key, reason, message, size: 0 });
    Ok(())
}

/// Lists everything below a prefix of the top level other than that of NARs.
///
/// # Errors
/// Fails if it cannot be listed.
pub async fn list_others(bucket: &Bucket, prefix: &str, findings: &mut Findings) -> Result {
    let (count, bytes) = list_prefix(bucket, prefix, findings).await?;
    findings.totals.others.0 += count;
    findings.totals.others.1 += bytes;
    Ok(())
}

/// Lists the NARs, and notes those that are empty.
///
/// # Errors
/// Fails if they cannot be listed.
pub async fn count_nars(bucket: &Bucket, findings: &mut Findings) -> Result {
    findings.totals.nars = list_prefix(bucket, NAR_PREFIX, findings).await?;
    Ok(())
}

async fn list_prefix(bucket: &Bucket, prefix: &str, findings: &mut Findings) -> Result<(usize, u64)> {
    let mut list = ObjectList::default();
    for_each_item(bucket, (prefix, ListDepth::All), |item| {
        if let ListItem::Object(object) = item {
            list.add(&object);
        }
    })
    .await?;
    Ok(list.finish(bucket, findings))
}

/// Adds the listings of paths that the cache does not have.
pub fn find_unneeded_listings(bucket: &Bucket, top: &TopLevel, findings: &mut Findings) {
    let is_needed = |hash: &&HashPart| top.narinfos.binary_search_by_key(*hash, |narinfo| narinfo.hash).is_ok();
    findings.extend(top.listings.iter().filter(|hash| !is_needed(hash)).map(|hash| {
        let key = listing_key(*hash);
        let message = format!("{}: the listing of a path that the cache does not have", bucket.display_url(&key));
        Finding { path: None, key, reason: Reason::UnneededListing, message, size: 0 }
    }));
}

/// Adds the multipart uploads that were neither completed nor aborted.
pub async fn find_incomplete_uploads(bucket: &Bucket, findings: &mut Findings) {
    let uploads = bucket.list_incomplete_uploads().await.unwrap_or_default();
    findings.extend(uploads.into_iter().map(|key| {
        let message = format!(
            "{}: an incomplete upload; the rule of 'cache-policy --lifecycle' aborts it",
            bucket.display_url(&key)
        );
        Finding { path: None, key, reason: Reason::IncompleteUpload, message, size: 0 }
    }));
}

/// Objects, of which a listing in several ranges may contain some twice.
#[derive(Default)]
pub struct ObjectList {
    objects: Vec<(Md5Tag, u64)>,
    noted: Vec<(String, Reason, u64)>,
}

impl ObjectList {
    /// Adds an object. One that does not belong to a cache, or is empty and must not be, is noted.
    pub fn add(&mut self, object: &ListedObject) {
        let size = object.size.unwrap_or_default();
        self.objects.push((md5_tag_of(object.key.as_bytes()), size));
        let kind = Object::of_key(&object.key);
        let is_known = kind.is_some()
            || object.key.starts_with(pins::PREFIX)
            || object.key.starts_with(COLLECTOR_PREFIX)
            || object.key == LANDING_PAGE;
        if !is_known {
            self.noted.push((object.key.clone(), Reason::ForeignObject, size));
        }
        self.add_if_empty(object, matches!(kind, Some(Object::Nar(_))));
    }

    fn add_if_empty(&mut self, object: &ListedObject, must_have_contents: bool) {
        if must_have_contents && object.size == Some(0) {
            self.noted.push((object.key.clone(), Reason::EmptyObject, 0));
        }
    }

    /// Adds the findings, and returns the number of objects and their bytes.
    pub fn finish(mut self, bucket: &Bucket, findings: &mut Findings) -> (usize, u64) {
        self.objects.sort_unstable();
        self.objects.dedup_by_key(|(key, _)| *key);
        self.noted.sort_unstable();
        self.noted.dedup();
        findings.extend(self.noted.into_iter().map(|(key, reason, size)| {
            let what = match reason {
                Reason::EmptyObject | Reason::MalformedCacheInfo => "it is empty",
                _ => "not an object of a binary cache",
            };
            let message = format!("{}: {what}", bucket.display_url(&key));
            Finding { path: None, key, reason, message, size }
        }));
        (self.objects.len(), self.objects.iter().map(|(_, size)| size).sum())
    }
}
