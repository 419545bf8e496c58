//! What a push must know of the collector. Paths that are doomed count as missing, and are published again. After that
//! the push waits until no collector deletes and then looks whether the narinfo is still there: only then may another
//! narinfo reference it. A collector that sets its flag later sees that the path is recent.

use std::collections::{HashMap, HashSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use nar_pack::error::{Error, Result};
use nar_pack::process;
use nar_pack::store_path::{HashPart, StoreDir};
use nar_pack::sync::lock;

use crate::TOOL;
use crate::collect::flag::FLAG_LIFETIME;
use crate::collect::records::{DOOM_PERIOD, FLAG_KEY, GcObjects, read_doomed, read_doomed_keys};
use crate::remote::s3::Bucket;

/// Time after which a push reads the records again: half of the time that a path is doomed before it is deleted.
pub const RECORDS_LIFETIME: Duration = Duration::from_secs(DOOM_PERIOD.as_secs() / 2);
/// Time between two looks at the flag.
const POLL_INTERVAL: Duration = Duration::from_secs(1);

/// What a collector has doomed.
#[derive(Debug, Default)]
pub struct Doomed {
    /// The paths, with the time of the last record that names each.
    pub paths: HashMap<HashPart, SystemTime>,
    /// The keys of NARs and other objects.
    pub keys: HashSet<String>,
}

impl Doomed {
    /// Reads what is doomed; nothing where listing is forbidden, as collecting beside such a push is.
    ///
    /// # Errors
    /// Fails if a record cannot be read.
    pub async fn read(bucket: &Bucket, store_dir: &StoreDir) -> Result<Self> {
        let objects = GcObjects::list_if_allowed(bucket).await?.unwrap_or_default();
        let paths = read_doomed(bucket, store_dir, &objects.records).await?;
        let paths = paths.into_iter().filter_map(|(hash, times)| Some((hash, times.into_iter().max()?))).collect();
        let keys = read_doomed_keys(bucket, &objects.key_records).await?.into_keys().collect();
        Ok(Self { paths, keys })
    }
}

/// The objects that a collector has doomed, and those of them that this push has written since.
#[derive(Debug, Default)]
pub struct DoomedObjects(Mutex<HashMap<String, bool>>);

impl DoomedObjects {
    /// Sets which objects are doomed.
    pub fn set(&self, keys: HashSet<String>) {
        let mut objects = lock(&self.0);
        for key in keys {
            objects.entry(key).or_insert(false);
        }
    }

    /// Returns whether the object is doomed and this push has not written it since.
    pub fn contains(&self, key: &str) -> bool {
        lock(&self.0).get(key) == Some(&false)
    }

    /// Records that this push has written an object, if it is doomed.
    pub fn set_written(&self, key: &str) {
        if let Some(is_written) = lock(&self.0).get_mut(key) {
            *is_written = true;
        }
    }

    /// Returns whether the object was doomed when this push began, or later.
    pub fn was_doomed(&self, key: &str) -> bool {
        lock(&self.0).contains_key(key)
    }
}

/// Returns whether a collector deletes. If the flag may not be read, a listing tells; if nothing may be listed either, there
/// is no collector beside this push.
async fn is_flag_set(bucket: &Bucket) -> Result<bool> {
    if bucket.size(FLAG_KEY).await?.is_some() {
        return Ok(true);
    }
    if !bucket.was_forbidden() {
        return Ok(false);
    }
    Ok(GcObjects::list_if_allowed(bucket).await?.is_some_and(|objects| objects.flag_time.is_some()))
}

/// Waits for collectors.
pub struct CollectorWait {
    timeout: Duration,
    has_printed: AtomicBool,
}

impl CollectorWait {
    /// Creates a wait that fails after `timeout`.
    #[must_use]
    pub fn new(timeout: Duration) -> Self {
        Self { timeout, has_printed: AtomicBool::new(false) }
    }

    /// Waits until no collector deletes, then returns whether the object is there. It must have been written before.
    ///
    /// # Errors
    /// Fails after the timeout, or if the service does.
    pub async fn confirm(&self, bucket: &Bucket, key: &str) -> Result<bool> {
        if bucket.is_dry_run() {
            return Ok(true);
        }
        self.wait(bucket).await?;
        Ok(bucket.size(key).await?.is_some())
    }

    /// Waits until no collector deletes.
    ///
    /// # Errors
    /// Fails after the timeout, or if the service does.
    pub async fn wait(&self, bucket: &Bucket) -> Result {
        let started = Instant::now();
        while is_flag_set(bucket).await? {
            let url = bucket.display_url(FLAG_KEY);
            if !self.has_printed.swap(true, Ordering::Relaxed) {
                process::print_message(TOOL, format!("{url}: waiting until the collector has ended"));
            }
            if started.elapsed() >= self.timeout {
                let (seconds, minutes) = (self.timeout.as_secs(), FLAG_LIFETIME.as_secs() / 60);
                return Err(Error::failed(format!("{url}: the collector has not ended after {seconds} seconds"))
                    .with_hint(format!(
                        "if it was killed, run 's3-push collect', which takes over after {minutes} minutes"
                    )));
            }
            tokio::time::sleep(POLL_INTERVAL.min(self.timeout)).await;
        }
        Ok(())
    }
}
