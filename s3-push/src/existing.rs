//! What the cache has: learnt by listing where that is cheaper, else by asking for each path.

use std::collections::HashMap;

use futures_util::{StreamExt, TryStreamExt, stream};
use nar_pack::stage::{Failure, Outcome};
use nar_pack::store_path::HashPart;
use narinfo_gen::archive::Object;
use tokio::sync::Mutex;

use crate::client::{Bucket, Listed};

/// Digits of Nix's base 32, in the order of their bytes: listings are split by the first one.
const DIGITS: &str = "0123456789abcdfghijklmnpqrsvwxyz";
/// Listings under way at once.
const PARALLEL: usize = 8;

/// The narinfos of a cache, as far as they are known. Nothing is remembered from one run to the next.
pub struct Existing {
    state: Mutex<State>,
}

struct State {
    /// Narinfos seen in listings or by asking, with their entity tags where known.
    found: HashMap<HashPart, String>,
    /// Everything up to this hash part has been listed; all of it when none.
    listed: Listing,
    /// Paths asked about so far.
    asked: u64,
}

enum Listing {
    Complete,
    /// Up to a key, with the number of pages that the rest is thought to have.
    UpTo {
        key: String,
        pages: u64,
    },
    /// Listing is not allowed.
    Forbidden,
}

impl Existing {
    /// Lists the first page, which is all there is in a small cache. Where listing is forbidden, each path is asked for.
    ///
    /// # Errors
    /// Fails when the service does.
    pub async fn look(bucket: &Bucket) -> Outcome<Self> {
        let mut found = HashMap::new();
        let listed = match bucket.list("", None).await? {
            Some(page) => {
                let last = page.entries.last().map(|entry| entry.key.clone()).unwrap_or_default();
                note(&mut found, page.entries);
                match page.next {
                    None => Listing::Complete,
                    Some(_) => Listing::UpTo { pages: pages_after(&last), key: last },
                }
            }
            None => Listing::Forbidden,
        };
        Ok(Self { state: Mutex::new(State { found, listed, asked: 0 }) })
    }

    /// Says that `count` paths will be asked about, and lists the whole cache if that is cheaper than asking for each.
    ///
    /// # Errors
    /// Fails when the listing does; a failed check is never "missing".
    pub async fn expect(&self, bucket: &Bucket, count: u64) -> Outcome {
        let mut state = self.state.lock().await;
        state.asked += count;
        let Listing::UpTo { pages, .. } = state.listed else { return Ok(()) };
        if state.asked < pages {
            return Ok(());
        }
        let starts = DIGITS.chars().map(|digit| list_all(bucket, digit.to_string()));
        let pages: Vec<Vec<Listed>> = stream::iter(starts).buffer_unordered(PARALLEL).try_collect().await?;
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
    pub async fn has(&self, bucket: &Bucket, hash: HashPart) -> Outcome<bool> {
        let key = format!("{hash}.narinfo");
        {
            let state = self.state.lock().await;
            let listed = match &state.listed {
                Listing::Complete => true,
                Listing::UpTo { key: last, .. } => key <= *last,
                Listing::Forbidden => false,
            };
            if listed || state.found.contains_key(&hash) {
                return Ok(state.found.contains_key(&hash));
            }
        }
        let there = bucket.size(&key).await?.is_some();
        if there {
            self.add(hash).await;
        }
        Ok(there)
    }

    /// The entity tag that a listing told for the narinfo of that path.
    pub async fn etag(&self, hash: HashPart) -> Option<String> {
        self.state.lock().await.found.get(&hash).filter(|etag| !etag.is_empty()).cloned()
    }

    /// Notes that the cache has the path now.
    pub async fn add(&self, hash: HashPart) {
        self.state.lock().await.found.insert(hash, String::new());
    }
}

fn note(found: &mut HashMap<HashPart, String>, entries: Vec<Listed>) {
    for entry in entries {
        if let Some(Object::Narinfo(hash)) = Object::of_key(&entry.key) {
            found.insert(hash, entry.etag);
        }
    }
}

/// The hash parts of all narinfos in the cache, in their order.
///
/// # Errors
/// Fails when listing does or is forbidden.
pub async fn list_hash_parts(bucket: &Bucket) -> Outcome<Vec<HashPart>> {
    let mut found = HashMap::new();
    note(&mut found, list_all(bucket, String::new()).await?);
    let mut hashes: Vec<HashPart> = found.into_keys().collect();
    hashes.sort_unstable();
    Ok(hashes)
}

/// Every narinfo that begins with `start`.
///
/// # Errors
/// Fails when the service does.
async fn list_all(bucket: &Bucket, start: String) -> Outcome<Vec<Listed>> {
    let mut entries = Vec::new();
    let mut token = None;
    loop {
        let Some(page) = bucket.list(&start, token).await? else {
            return Err(Failure::failed(format!(
                "listing {}: access denied (HTTP 403); it takes s3:ListBucket",
                bucket.location().shown(&start)
            )));
        };
        entries.extend(page.entries);
        token = page.next;
        if token.is_none() {
            return Ok(entries);
        }
    }
}

/// How many pages a cache has when its first page ends at `last`: hash parts are evenly spread.
fn pages_after(last: &str) -> u64 {
    let digits = last.bytes().take(4).map(|byte| DIGITS.bytes().position(|digit| digit == byte).unwrap_or(0) as u64);
    let position = digits.fold(0, |sum, digit| sum * 32 + digit) + 1;
    let whole = 32_u64.pow(4);
    // Each of the 32 listings has a last page that is not full.
    (whole / position).max(1) + DIGITS.len() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_page_tells_how_large_the_cache_is() {
        let pages = |last: &str| pages_after(last) - 32;
        assert_eq!(pages("zzzz"), 1);
        assert_eq!(pages("fzzz"), 2);
        assert_eq!(pages("00zz"), 1024);
    }
}
