//! Listings of a bucket. One that is long is read in several ranges in parallel: hash parts are evenly distributed, so
//! the last key of the first page shows how many pages follow and where to split them.

use std::cell::RefCell;

use futures_util::{StreamExt, TryStreamExt, stream};
use nar_pack::error::{Error, Result};
use nar_pack::store_path::HashPart;
use narinfo_gen::archive::{NAR_PREFIX, Object};

use crate::remote::etag::{Md5Tag, md5_tag};
use crate::remote::progress::Progress;
use crate::remote::s3::{Bucket, ListDepth, ListFrom, ListedObject, Page};

/// Digits of Nix's base 32, in the order of their bytes.
const DIGITS: &str = "0123456789abcdfghijklmnpqrsvwxyz";
/// Listing requests in parallel.
const MAX_PARALLEL: usize = 8;
/// Pages of a range. The last page of each range is partly wasted.
const PAGES_PER_RANGE: u64 = 4;
/// Ranges that a listing is split into.
const MAX_RANGES: u64 = 32;

/// What a listing consists of.
#[derive(Debug, Clone)]
pub enum ListItem {
    /// An object.
    Object(ListedObject),
    /// The prefix of keys that are too deep for the listing.
    Prefix(String),
}

/// Lists the hash parts of all narinfos in a bucket, sorted, with the MD5 hashes of their texts as far as their entity
/// tags are such.
///
/// # Errors
/// Fails if the bucket cannot be listed.
pub async fn list_hash_parts(bucket: &Bucket) -> Result<Vec<(HashPart, Option<Md5Tag>)>> {
    let narinfo = |item: ListItem| match item {
        ListItem::Object(entry) => match Object::of_key(&entry.key) {
            Some(Object::Narinfo(hash)) => Some((hash, md5_tag(&entry.etag))),
            _ => None,
        },
        ListItem::Prefix(_) => None,
    };
    let mut hashes = list_items(bucket, TOP_LEVEL, narinfo).await?;
    hashes.sort_unstable();
    hashes.dedup_by_key(|(hash, _)| *hash);
    Ok(hashes)
}

/// Lists the objects at the top level for which `keep` returns something, each of them at least once, in parallel if
/// there are many.
///
/// # Errors
/// Fails if the bucket cannot be listed.
pub async fn list_top_level<T>(bucket: &Bucket, keep: impl Fn(ListedObject) -> Option<T> + Copy) -> Result<Vec<T>> {
    let keep_object = |item: ListItem| match item {
        ListItem::Object(entry) => keep(entry),
        ListItem::Prefix(_) => None,
    };
    list_items(bucket, TOP_LEVEL, keep_object).await
}

/// Lists what is below a prefix, as [`list_top_level`] does. With [`ListDepth::One`], that includes longer prefixes.
///
/// # Errors
/// Fails if the bucket cannot be listed.
async fn list_items<T>(
    bucket: &Bucket,
    scope: (&str, ListDepth),
    keep: impl Fn(ListItem) -> Option<T> + Copy,
) -> Result<Vec<T>> {
    let (prefix, depth) = scope;
    let page =
        bucket.list_to_depth(prefix, depth, ListFrom::Beginning).await?.ok_or_else(|| bucket.listing_forbidden())?;
    let is_sorted = page.entries.is_sorted_by(|a, b| a.key < b.key);
    let last = page.entries.last().map(|entry| entry.key.clone()).unwrap_or_default();
    let next = page.next.clone();
    let mut kept: Vec<T> = items(page).filter_map(keep).collect();
    let Some(token) = next else { return Ok(kept) };
    let progress = Progress::of_objects("objects listed", 0);
    let keep = |item| {
        progress.increment();
        keep(item)
    };
    if !is_sorted || last.is_empty() {
        // As in S3 directory buckets: a listing without an order cannot be split.
        kept.extend(list_range(bucket, scope, ListFrom::Page(token), None, &keep).await?);
        return Ok(kept);
    }
    let ranges = ranges_after(prefix, &last).into_iter();
    let ranges = ranges.map(|(after, until)| list_range(bucket, scope, ListFrom::After(after), until, &keep));
    let mut ranges = stream::iter(ranges).buffer_unordered(MAX_PARALLEL);
    while let Some(range) = ranges.try_next().await? {
        kept.extend(range);
    }
    Ok(kept)
}

/// Lists what is below a prefix, as [`list_items`] does, and passes each item to `each`.
///
/// # Errors
/// Fails if the bucket cannot be listed.
pub async fn for_each_item(bucket: &Bucket, scope: (&str, ListDepth), each: impl FnMut(ListItem)) -> Result {
    // The ranges are read in parallel, but on one thread.
    let each = RefCell::new(each);
    let visit = |item| {
        each.borrow_mut()(item);
        None::<()>
    };
    list_items(bucket, scope, visit).await.map(drop)
}

/// Lists the objects whose key begins with `prefix`, at any depth.
///
/// # Errors
/// Fails if the bucket cannot be listed.
pub async fn list_below(bucket: &Bucket, prefix: &str) -> Result<Vec<ListedObject>> {
    list_range(bucket, (prefix, ListDepth::All), ListFrom::Beginning, None, object).await
}

fn object(item: ListItem) -> Option<ListedObject> {
    match item {
        ListItem::Object(entry) => Some(entry),
        ListItem::Prefix(_) => None,
    }
}

fn items(page: Page) -> impl Iterator<Item = ListItem> {
    page.prefixes.into_iter().map(ListItem::Prefix).chain(page.entries.into_iter().map(ListItem::Object))
}

/// The keys without a slash.
pub const TOP_LEVEL: (&str, ListDepth) = ("", ListDepth::One);

/// Lists all keys that begin with `prefix`, at any depth, sorted.
///
/// # Errors
/// Fails if the bucket cannot be listed; refuses a listing that repeats a page.
pub async fn list_keys(bucket: &Bucket, prefix: &str) -> Result<Vec<String>> {
    let key = |item| object(item).map(|entry| entry.key);
    let mut keys = list_range(bucket, (prefix, ListDepth::All), ListFrom::Beginning, None, key).await?;
    keys.sort_unstable();
    Ok(keys)
}

/// Lists every object after the key `last`, in parallel; `last` is the end of the first page. The order is arbitrary.
///
/// # Errors
/// Fails if the bucket cannot be listed.
pub async fn list_after(bucket: &Bucket, last: &str) -> Result<Vec<ListedObject>> {
    let start = |after: String| if after.is_empty() { ListFrom::Beginning } else { ListFrom::After(after) };
    let ranges = ranges_after("", last).into_iter();
    let ranges = ranges.map(|(after, until)| list_range(bucket, TOP_LEVEL, start(after), until, object));
    let ranges: Vec<Vec<ListedObject>> = stream::iter(ranges).buffer_unordered(MAX_PARALLEL).try_collect().await?;
    Ok(ranges.into_iter().flatten().collect())
}

/// Lists the objects below a prefix from `start` up to the page that reaches `until`, and keeps what `keep` returns.
///
/// # Errors
/// Fails if the bucket cannot be listed; refuses a listing that repeats a page.
async fn list_range<T>(
    bucket: &Bucket,
    (prefix, depth): (&str, ListDepth),
    mut start: ListFrom,
    until: Option<String>,
    keep: impl Fn(ListItem) -> Option<T>,
) -> Result<Vec<T>> {
    let mut kept: Vec<T> = Vec::new();
    let mut previous_first: Option<String> = None;
    let mut previous_token: Option<String> = None;
    loop {
        let page = bucket.list_to_depth(prefix, depth, start).await?.ok_or_else(|| bucket.listing_forbidden())?;
        let first = page.entries.first().map(|entry| entry.key.clone());
        if (first.is_some() && first == previous_first) || (page.next.is_some() && page.next == previous_token) {
            let url = bucket.display_url(prefix);
            return Err(Error::refused(format!("cannot list {url}: the server returned the same page twice")));
        }
        previous_first = first.or(previous_first);
        previous_token.clone_from(&page.next);
        let last = page.entries.last().map(|entry| entry.key.as_str());
        let is_complete = last.zip(until.as_deref()).is_some_and(|(last, until)| last >= until);
        let next = page.next.clone();
        kept.extend(items(page).filter_map(&keep));
        start = match next {
            Some(token) if !is_complete => ListFrom::Page(token),
            _ => return Ok(kept),
        };
    }
}

/// The names below a prefix: digits that are evenly distributed.
#[derive(Debug, Clone, Copy)]
struct NameSpace {
    /// Digits that a position is made of.
    digits: u32,
    /// Number of positions.
    positions: u64,
}

impl NameSpace {
    /// Hash parts of store paths.
    const HASH_PARTS: Self = Self { digits: 4, positions: 32_u64.pow(4) };
    /// SHA-256 hashes, as in the keys of NARs. The first of their 52 digits is 0 or 1.
    const SHA256: Self = Self { digits: 5, positions: 2 * 32_u64.pow(4) };

    /// Returns the names below a prefix. Where they are others, the listing is split less evenly.
    fn below(prefix: &str) -> Self {
        if prefix == NAR_PREFIX { Self::SHA256 } else { Self::HASH_PARTS }
    }

    /// Returns the position of a name.
    fn position(self, name: &str) -> u64 {
        let digits = name.bytes().chain(std::iter::repeat(0)).take(self.digits as usize);
        digits.fold(0, |sum, digit| sum * 32 + DIGITS.bytes().take_while(|&smaller| smaller < digit).count() as u64)
    }

    /// Returns the smallest name at a position.
    fn name_at(self, position: u64) -> String {
        let digit = |place: u32| (position / 32_u64.pow(place) % 32) as usize;
        (0..self.digits).rev().map(|place| &DIGITS[digit(place)..=digit(place)]).collect()
    }

    /// Estimates how many pages follow the first one, which ends with the name `last`.
    fn pages_after(self, last: &str) -> u64 {
        let position = self.position(last) + 1;
        self.positions.saturating_sub(position).div_ceil(position).max(1)
    }
}

/// Estimates how many pages of narinfos follow the first one, which ends with the key `last`.
#[must_use]
pub fn estimate_pages_after(last: &str) -> u64 {
    NameSpace::HASH_PARTS.pages_after(last)
}

/// Splits the keys below `prefix` after `last` into ranges of similar size: the key after which each begins, and the one
/// that ends it.
fn ranges_after(prefix: &str, last: &str) -> Vec<(String, Option<String>)> {
    let (names, name) = (NameSpace::below(prefix), last.strip_prefix(prefix).unwrap_or(last));
    let count = names.pages_after(name).div_ceil(PAGES_PER_RANGE).min(MAX_RANGES);
    let (first, width) = (names.position(name), names.positions.saturating_sub(names.position(name)) / count);
    let bound = |index: u64| format!("{prefix}{}", names.name_at(first + index * width));
    let bounds: Vec<String> = (1..count).map(bound).collect();
    let starts = std::iter::once(last.to_owned()).chain(bounds.iter().cloned());
    starts.zip(bounds.iter().cloned().map(Some).chain([None])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_page_tells_how_large_the_cache_is() {
        assert_eq!(estimate_pages_after("zzzz"), 1);
        assert_eq!(estimate_pages_after("gzzz"), 1);
        assert_eq!(estimate_pages_after("7zzz"), 3);
        assert_eq!(estimate_pages_after("00zz"), 1023);
        assert_eq!(estimate_pages_after(""), 32_u64.pow(4) - 1);
        assert_eq!(NameSpace::SHA256.pages_after("0zzzz"), 1);
        assert_eq!(NameSpace::SHA256.pages_after("00zzz"), 63);
    }

    #[test]
    fn ranges_cover_everything_after_the_first_page() {
        assert_eq!(ranges_after("", "fzzzxx.narinfo"), [("fzzzxx.narinfo".to_owned(), None)]);
        let below = ranges_after("nar/", "nar/0001z");
        let is_hash = |(after, _): &(String, _)| after.starts_with("nar/0") || after.starts_with("nar/1");
        assert!(below.len() == 32 && below.iter().all(is_hash), "{below:?}");
        assert!(below[31].0.starts_with("nar/1y"), "{below:?}");
        assert_eq!(ranges_after("nar/", "nar/x"), [("nar/x".to_owned(), None)]);
        for last in ["00zz", "0abc", "3", "nix-cache-info", "zzzz", "", "~"] {
            let ranges = ranges_after("", last);
            assert_eq!(ranges[0].0, last);
            assert_eq!(ranges[ranges.len() - 1].1, None);
            for pair in ranges.windows(2) {
                assert_eq!(pair[0].1.as_ref(), Some(&pair[1].0));
                assert!(pair[0].0 < pair[1].0, "{ranges:?}");
            }
        }
        assert_eq!(ranges_after("", "00zz").len(), 32);
    }

    #[test]
    fn a_name_is_at_its_position() {
        for names in [NameSpace::HASH_PARTS, NameSpace::SHA256] {
            for at in [0, 1, 31, 32, 12345, names.positions - 1] {
                assert_eq!(names.position(&names.name_at(at)), at);
            }
        }
    }
}
