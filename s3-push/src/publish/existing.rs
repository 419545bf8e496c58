//! What the cache has: learnt by listing where that is cheaper, else by asking for each path.

use std::collections::{HashMap, HashSet};

use md5::{Digest, Md5};
use nar_pack::error::Result;
use nar_pack::store_path::HashPart;
use narinfo_gen::archive::Object;
use tokio::sync::Mutex;

use crate::remote::listing::{estimate_pages_after, list_after};
use crate::remote::s3::{Bucket, ListFrom, ListedObject};

/// Pages above which a cache is not listed: what is known of its paths, 50 bytes each, must fit into memory.
const MOST_PAGES: u64 = 500;
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
        let pages = estimate_pages_after(last);
        if state.asked < pages || pages > MOST_PAGES {
            return Ok(());
        }
        let entries = list_after(bucket, last).await?;
        note(&mut state.found, entries);
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
        let there = bucket.size(&key).await?.is_some();
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
    let mut tag = Md5Tag::default();
    hex::decode_to_slice(etag, &mut tag).ok()?;
    Some(tag)
}

fn note(found: &mut HashMap<HashPart, Option<Md5Tag>>, entries: Vec<ListedObject>) {
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
