//! The narinfos that the bucket has: found by listing if that needs fewer requests, else by one lookup per path.

use std::collections::{HashMap, HashSet};
use std::time::SystemTime;

use nar_pack::error::Result;
use nar_pack::store_path::HashPart;
use narinfo_gen::archive::{Object, narinfo_key};
use tokio::sync::Mutex;

use crate::remote::etag::{Md5Tag, md5_tag, md5_tag_of};
use crate::remote::listing::{estimate_pages_after, list_after};
use crate::remote::s3::{Bucket, ListFrom, ListedObject};

/// Maximum number of pages that are listed: the narinfos found, 50 bytes each, must fit into memory.
const MAX_LISTED_PAGES: u64 = 500;

/// The narinfos in the bucket, as far as they are known. Nothing is cached between runs.
pub struct Existing {
    state: Mutex<State>,
}

struct State {
    /// Narinfos found by listings and lookups.
    found: HashMap<HashPart, FoundNarinfo>,
    /// Paths that a lookup did not find. If another process publishes one later, the conditional write finds it.
    absent: HashSet<HashPart>,
    /// Paths that a collector has doomed, with the time of the last record that names each. They count as missing unless
    /// they were written later.
    doomed: HashMap<HashPart, SystemTime>,
    /// Paths that this push has written, and that are not doomed any more.
    written: HashSet<HashPart>,
    /// Paths that the bucket did not have, or only doomed, before this push published them.
    new: HashSet<HashPart>,
    listing: Listing,
    /// Number of lookups expected so far.
    expected_lookups: u64,
}

/// A narinfo in the bucket.
#[derive(Debug, Clone, Copy, Default)]
struct FoundNarinfo {
    /// Its entity tag, if known.
    tag: Option<Md5Tag>,
    /// When it was written, if known.
    written: Option<SystemTime>,
}

impl State {
    /// Returns whether a collector has doomed the path and it has not been written since. A write in the same
    /// second is not later.
    fn is_doomed(&self, hash: HashPart) -> bool {
        let written = self.found.get(&hash).and_then(|found| found.written);
        self.doomed.get(&hash).is_some_and(|record| written.is_none_or(|written| written <= *record))
    }
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
        let state = State {
            found,
            absent: HashSet::new(),
            doomed: HashMap::new(),
            written: HashSet::new(),
            new: HashSet::new(),
            listing,
            expected_lookups: 0,
        };
        Ok(Self { state: Mutex::new(state) })
    }

    /// Adds paths that a collector has doomed. Those of an earlier call stay doomed: their record may be gone because they were
    /// deleted.
    pub async fn set_doomed(&self, doomed: HashMap<HashPart, SystemTime>) {
        let mut state = self.state.lock().await;
        for (hash, record) in doomed {
            if !state.written.contains(&hash) {
                let newest = state.doomed.entry(hash).or_insert(record);
                *newest = record.max(*newest);
            }
        }
    }

    /// Returns whether a collector has doomed the path, and this process does not know that it was written since.
    pub async fn is_doomed(&self, hash: HashPart) -> bool {
        self.state.lock().await.is_doomed(hash)
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

    /// Returns whether the bucket has the narinfo of that path. One that is doomed counts as missing.
    ///
    /// # Errors
    /// Fails when the lookup does.
    pub async fn has(&self, bucket: &Bucket, hash: HashPart) -> Result<bool> {
        let key = narinfo_key(hash);
        {
            let state = self.state.lock().await;
            if state.is_doomed(hash) {
                return Ok(false);
            }
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

    /// Returns whether the bucket had the narinfo of that path before this push.
    ///
    /// # Errors
    /// Fails when the lookup does.
    pub async fn had(&self, bucket: &Bucket, hash: HashPart) -> Result<bool> {
        Ok(self.has(bucket, hash).await? && !self.state.lock().await.new.contains(&hash))
    }

    /// Returns whether the narinfo of that path in the bucket is exactly this text, according to its entity tag.
    pub async fn has_text(&self, hash: HashPart, text: &str) -> bool {
        let state = self.state.lock().await;
        state.found.get(&hash).is_some_and(|found| found.tag == Some(md5_tag_of(text.as_bytes())))
    }

    /// Records that this push has published a path that the bucket did not have, or only doomed.
    pub async fn add_new(&self, hash: HashPart) {
        self.state.lock().await.new.insert(hash);
        self.add(hash).await;
    }

    /// Records that the bucket has the path now.
    pub async fn add(&self, hash: HashPart) {
        let mut state = self.state.lock().await;
        state.absent.remove(&hash);
        state.doomed.remove(&hash);
        state.written.insert(hash);
        state.found.insert(hash, FoundNarinfo::default());
    }
}

fn add_narinfos(found: &mut HashMap<HashPart, FoundNarinfo>, entries: Vec<ListedObject>) {
    for entry in entries {
        if let Some(Object::Narinfo(hash)) = Object::of_key(&entry.key) {
            found.insert(hash, FoundNarinfo { tag: md5_tag(&entry.etag), written: entry.last_modified });
        }
    }
}
