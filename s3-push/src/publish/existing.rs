//! What the cache has: learnt by listing where that is cheaper, else by asking for each path.

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

/// The narinfos of a cache, as far as they are known. Nothing is remembered from one run to the next.
pub struct Existing {
    state: Mutex<State>,
}

struct State {
    /// Narinfos seen in listings or by asking, with their entity tags where known.
    found: HashMap<HashPart, Option<Md5Tag>>,
    /// Paths that were asked for and are not there. One that somebody else publishes meanwhile is met when it is written.
    absent: HashSet<HashPart>,
    listed: Listing,
    /// Paths asked about so far.
    asked: u64,
}

/// How much of the cache has been listed.
enum Listing {
    Complete,
    /// Up to this key.
    UpTo(String),
    /// Listing is not allowed, or not in the order of the keys (as in S3's directory buckets).
    Useless,
}

impl Existing {
    /// Lists the first page, which is all there is in a small cache. Where listing is forbidden, each path is asked for.
    ///
    /// # Errors
    /// Fails when the service does.
    pub async fn look(bucket: &Bucket) -> Result<Self> {
        let mut found = HashMap::new();
        let listed = match bucket.list("", ListFrom::Beginning).await? {
            Some(page) if page.entries.is_sorted_by(|a, b| a.key < b.key) => {
                let last = page.entries.last().map(|entry| entry.key.clone()).unwrap_or_default();
                note(&mut found, page.entries);
                if page.next.is_none() { Listing::Complete } else { Listing::UpTo(last) }
            }
            Some(_) | None => Listing::Useless,
        };
        Ok(Self { state: Mutex::new(State { found, absent: HashSet::new(), listed, asked: 0 }) })
    }

    /// Says that `count` paths will be asked about, and lists the whole cache if that is cheaper than asking for each.
    ///
    /// # Errors
    /// Fails when the listing does; a failed check is never "missing".
    pub async fn expect(&self, bucket: &Bucket, count: u64) -> Result {
        let mut state = self.state.lock().await;
        state.asked += count;
        let Listing::UpTo(last) = &state.listed else { return Ok(()) };
        let pages = pages_after(last);
        if state.asked < pages || pages > MOST_PAGES {
            return Ok(());
        }
        let ranges = ranges_after(last).into_iter().map(|(after, until)| list_range(bucket, after, until));
        let pages: Vec<Vec<Listed>> = stream::iter(ranges).buffer_unordered(PARALLEL).try_collect().await?;
        for entries in pages {
            note(&mut state.found, entries);
        }
        state.listed = Listing::Complete;
        Ok(())
    }

    /// Whether the cache has the narinfo of that path.
    ///
    /// # Errors
    /// Fails when it cannot be told.
    pub async fn has(&self, bucket: &Bucket, hash: HashPart) -> Result<bool> {
        let key = format!("{hash}.narinfo");
        {
            let state = self.state.lock().await;
            let listed = match &state.listed {
                Listing::Complete => true,
                Listing::UpTo(last) => key <= *last,
                Listing::Useless => false,
            };
            if listed || state.found.contains_key(&hash) || state.absent.contains(&hash) {
                return Ok(state.found.contains_key(&hash));
            }
        }
        let there = {
            let _slot = bucket.slot().await?;
            bucket.size(&key).await?.is_some()
        };
        let mut state = self.state.lock().await;
        if there {
            state.found.entry(hash).or_default();
        } else {
            state.absent.insert(hash);
        }
        Ok(there)
    }

    /// Whether a listing told that the narinfo of that path is this text, which the cache has then to the letter.
    pub async fn is(&self, hash: HashPart, text: &str) -> bool {
        let state = self.state.lock().await;
        state.found.get(&hash).is_some_and(|tag| *tag == Some(Md5::digest(text).into()))
    }

    /// Notes that the cache has the path now.
    pub async fn add(&self, hash: HashPart) {
        let mut state = self.state.lock().await;
        state.absent.remove(&hash);
        state.found.insert(hash, None);
    }
}

/// An entity tag that is an MD5, as it is for what was written in one request, unless keys of KMS encrypt it.
type Md5Tag = [u8; 16];

fn md5_tag(etag: &str) -> Option<Md5Tag> {
    if etag.len() != 32 || !etag.is_ascii() {
        return None;
    }
    let mut tag = Md5Tag::default();
    for (index, byte) in tag.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&etag[2 * index..2 * index + 2], 16).ok()?;
    }
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
