//! The narinfos that the bucket has: found by listing if that needs fewer requests, else by one lookup per path.

use std::collections::{HashMap, HashSet};

use md5::{Digest, Md5};
use nar_pack::error::Result;
use nar_pack::store_path::HashPart;
use narinfo_gen::archive::Object;
use tokio::sync::Mutex;

use crate::remote::listing::{estimate_pages_after, list_after};
use crate::remote::s3::{Bucket, ListFrom, ListedObject};

/// Maximum number of pages that are listed: the narinfos found, 50 bytes each, must fit into memory.
const MAX_LISTED_PAGES: u64 = 500;

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
                add_narinfos(&mut found, page.entries);
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
        let pages = estimate_pages_after(last);
        if state.expected_lookups < pages || pages > MAX_LISTED_PAGES {
            return Ok(());
        }
        let entries = list_after(bucket, last).await?;
        add_narinfos(&mut state.found, entries);
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
        let is_present = bucket.size(&key).await?.is_some();
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

fn add_narinfos(found: &mut HashMap<HashPart, Option<Md5Tag>>, entries: Vec<ListedObject>) {
    for entry in entries {
        if let Some(Object::Narinfo(hash)) = Object::of_key(&entry.key) {
            found.insert(hash, md5_tag(&entry.etag));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entity_tags_that_are_not_md5_hashes_are_ignored() {
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
