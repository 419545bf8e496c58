//! The narinfos that the bucket has: found by listing if that needs fewer requests, else by one lookup per path.

use std::collections::{HashMap, HashSet};

use futures_util::{StreamExt, TryStreamExt, stream};
use md5::{Digest, Md5};
use nar_pack::error::{Error, Result};
use nar_pack::store_path::HashPart;
use narinfo_gen::archive::Object;
use tokio::sync::Mutex;

use crate::remote::s3::{Bucket, ListFrom, Listed};

/// Digits of Nix's base 32, in the order of their bytes.
const DIGITS: &str = "0123456789abcdfghijklmnpqrsvwxyz";
/// Listings under way at once.
const PARALLEL: usize = 8;
/// Pages that one of several listings is to have: each ends with a page of which a part is for nothing.
const PAGES_OF_A_RANGE: u64 = 4;
/// Most listings that a cache is split into.
const MOST_RANGES: u64 = 32;
/// Pages above which a cache is not listed: what is known of its paths, 50 bytes each, must fit into memory.
const MOST_PAGES: u64 = 500;
/// In how many digits of a hash part positions are told.
const POSITION_DIGITS: u32 = 4;
/// How many positions there are.
const POSITIONS: u64 = 32_u64.pow(POSITION_DIGITS);

/// The narinfos in the bucket, as far as they are known. Nothing is cached between runs.
pub struct Existing {
    state: Mutex<State>,
}

struct State {
    /// Narinfos found by listings and lookups, with their entity tags if known.
    found: HashMap<HashPart, Option<Md5Tag>>,
    /// Paths that a lookup did not find. If another process publishes one later, the conditional write finds it.
    absent: HashSet<HashPart>,
    listing: Listing,
    /// Number of lookups expected so far.
    expected_lookups: u64,
}

/// How much of the bucket has been listed.
enum Listing {
    Complete,
    /// All keys up to this one.
    UpTo(String),
    /// Listing is forbidden, or not in the order of the keys (as in S3 directory buckets).
    Unusable,
}

impl Existing {
    /// Lists the first page, which is the whole of a small cache. If listing is forbidden, each path is looked up.
    ///
    /// # Errors
    /// Fails when the service does.
    pub async fn open(bucket: &Bucket) -> Result<Self> {
        let mut found = HashMap::new();
        let listing = match bucket.list("", ListFrom::Beginning).await? {
            Some(page) if page.entries.is_sorted_by(|a, b| a.key < b.key) => {
                let last = page.entries.last().map(|entry| entry.key.clone()).unwrap_or_default();
                note(&mut found, page.entries);
                if page.next.is_none() { Listing::Complete } else { Listing::UpTo(last) }
            }
            Some(_) | None => Listing::Unusable,
        };
        Ok(Self { state: Mutex::new(State { found, absent: HashSet::new(), listing, expected_lookups: 0 }) })
    }

    /// Announces `count` lookups, and lists the whole cache if that needs fewer requests.
    ///
    /// # Errors
    /// Fails when the listing does: a failed listing never counts as missing.
    pub async fn expect_lookups(&self, bucket: &Bucket, count: u64) -> Result {
        let mut state = self.state.lock().await;
        state.expected_lookups += count;
        let Listing::UpTo(last) = &state.listing else { return Ok(()) };
        let pages = pages_after(last);
        if state.expected_lookups < pages || pages > MOST_PAGES {
            return Ok(());
        }
        let ranges = ranges_after(last).into_iter().map(|(after, until)| list_range(bucket, after, until));
        let pages: Vec<Vec<Listed>> = stream::iter(ranges).buffer_unordered(PARALLEL).try_collect().await?;
        for entries in pages {
            note(&mut state.found, entries);
        }
        state.listing = Listing::Complete;
        Ok(())
    }

    /// Returns whether the bucket has the narinfo of that path.
    ///
    /// # Errors
    /// Fails when the lookup does.
    pub async fn has(&self, bucket: &Bucket, hash: HashPart) -> Result<bool> {
        let key = format!("{hash}.narinfo");
        {
            let state = self.state.lock().await;
            let is_listed = match &state.listing {
                Listing::Complete => true,
                Listing::UpTo(last) => key <= *last,
                Listing::Unusable => false,
            };
            if is_listed || state.found.contains_key(&hash) || state.absent.contains(&hash) {
                return Ok(state.found.contains_key(&hash));
            }
        }
        let is_present = {
            let _slot = bucket.slot().await?;
            bucket.size(&key).await?.is_some()
        };
        let mut state = self.state.lock().await;
        if is_present {
            state.found.entry(hash).or_default();
        } else {
            state.absent.insert(hash);
        }
        Ok(is_present)
    }

    /// Returns whether the narinfo of that path in the bucket is exactly this text, according to its entity tag.
    pub async fn has_text(&self, hash: HashPart, text: &str) -> bool {
        let state = self.state.lock().await;
        state.found.get(&hash).is_some_and(|tag| *tag == Some(Md5::digest(text).into()))
    }

    /// Records that the bucket has the path now.
    pub async fn add(&self, hash: HashPart) {
        let mut state = self.state.lock().await;
        state.absent.remove(&hash);
        state.found.insert(hash, None);
    }
}

/// An entity tag that is an MD5 hash: that of an object uploaded in one request without encryption by KMS keys.
type Md5Tag = [u8; 16];

fn md5_tag(etag: &str) -> Option<Md5Tag> {
    let mut tag = Md5Tag::default();
    hex::decode_to_slice(etag, &mut tag).ok()?;
    Some(tag)
}

fn note(found: &mut HashMap<HashPart, Option<Md5Tag>>, entries: Vec<Listed>) {
    for entry in entries {
        if let Some(Object::Narinfo(hash)) = Object::of_key(&entry.key) {
            found.insert(hash, md5_tag(&entry.etag));
        }
    }
}

/// The hash parts of all narinfos in the cache, in their order.
///
/// # Errors
/// Fails when listing does or is forbidden.
pub async fn list_hash_parts(bucket: &Bucket) -> Result<Vec<HashPart>> {
    let mut found = HashMap::new();
    note(&mut found, list_range(bucket, String::new(), None).await?);
    let mut hashes: Vec<HashPart> = found.into_keys().collect();
    hashes.sort_unstable();
    Ok(hashes)
}

/// Every object whose key comes after `after`, and before `until` if there is such a bound.
///
/// # Errors
/// Fails when the service does; refuses a listing that goes in circles.
async fn list_range(bucket: &Bucket, after: String, until: Option<String>) -> Result<Vec<Listed>> {
    let mut entries: Vec<Listed> = Vec::new();
    let mut begin: Option<String> = None;
    let mut token: Option<String> = None;
    let mut start = if after.is_empty() { ListFrom::Beginning } else { ListFrom::After(after) };
    loop {
        let Some(page) = bucket.list("", start).await? else {
            return Err(Error::failed(format!(
                "listing {}: access denied (HTTP 403){}",
                bucket.location().shown(""),
                bucket.takes("s3:ListBucket")
            )));
        };
        let begins = page.entries.first().map(|entry| entry.key.clone());
        if (begins.is_some() && begins == begin) || (page.next.is_some() && page.next == token) {
            return Err(Error::refused(format!(
                "listing {}: the service gives the same page again and again",
                bucket.location().shown("")
            )));
        }
        begin = begins.or(begin);
        token.clone_from(&page.next);
        entries.extend(page.entries);
        let beyond = || until.as_ref().is_some_and(|until| entries.last().is_some_and(|last| last.key >= *until));
        start = match page.next {
            Some(token) if !beyond() => ListFrom::Page(token),
            _ => return Ok(entries),
        };
    }
}

/// Where in the space of hash parts a key lies.
fn position(key: &str) -> u64 {
    let digits = key.bytes().chain(std::iter::repeat(0)).take(POSITION_DIGITS as usize);
    digits.fold(0, |sum, digit| sum * 32 + DIGITS.bytes().take_while(|&smaller| smaller < digit).count() as u64)
}

/// The least key at a position.
fn key_at(position: u64) -> String {
    let digit = |place: u32| (position / 32_u64.pow(place) % 32) as usize;
    (0..POSITION_DIGITS).rev().map(|place| &DIGITS[digit(place)..=digit(place)]).collect()
}

/// How many pages follow on the first one, which ends at `last`: hash parts are evenly spread.
fn pages_after(last: &str) -> u64 {
    let position = position(last) + 1;
    POSITIONS.saturating_sub(position).div_ceil(position).max(1)
}

/// Ranges of about the same size, each as the key after which it begins and the one at which it ends.
fn ranges_after(last: &str) -> Vec<(String, Option<String>)> {
    let count = pages_after(last).div_ceil(PAGES_OF_A_RANGE).min(MOST_RANGES);
    let (first, width) = (position(last), POSITIONS.saturating_sub(position(last)) / count);
    let bounds: Vec<String> = (1..count).map(|index| key_at(first + index * width)).collect();
    let starts = std::iter::once(last.to_owned()).chain(bounds.iter().cloned());
    starts.zip(bounds.iter().cloned().map(Some).chain([None])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_page_tells_how_large_the_cache_is() {
        assert_eq!(pages_after("zzzz"), 1);
        assert_eq!(pages_after("gzzz"), 1);
        assert_eq!(pages_after("7zzz"), 3);
        assert_eq!(pages_after("00zz"), 1023);
        assert_eq!(pages_after(""), POSITIONS - 1);
    }

    #[test]
    fn ranges_cover_everything_after_the_first_page() {
        assert_eq!(ranges_after("fzzzxx.narinfo"), [("fzzzxx.narinfo".to_owned(), None)]);
        for last in ["00zz", "0abc", "3", "nix-cache-info", "zzzz", "", "~"] {
            let ranges = ranges_after(last);
            assert_eq!(ranges[0].0, last);
            assert_eq!(ranges[ranges.len() - 1].1, None);
            for pair in ranges.windows(2) {
                assert_eq!(pair[0].1.as_ref(), Some(&pair[1].0));
                assert!(pair[0].0 < pair[1].0, "{ranges:?}");
            }
        }
        assert_eq!(ranges_after("00zz").len(), 32);
    }

    #[test]
    fn positions_and_keys_agree() {
        for at in [0, 1, 31, 32, 12345, POSITIONS - 1] {
            assert_eq!(position(&key_at(at)), at);
        }
    }

    #[test]
    fn tags_that_are_no_md5_are_none() {
        assert_eq!(
            md5_tag("000102030405060708090a0b0c0d0e0f"),
            Some([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15])
        );
        for tag in ["", "d41d8cd98f00b204e9800998ecf8427e-2", "zz0102030405060708090a0b0c0d0e0f", "ééééééééééééééé0"]
        {
            assert_eq!(md5_tag(tag), None);
        }
    }
}
