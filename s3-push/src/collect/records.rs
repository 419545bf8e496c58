//! The objects below `gc/`. A record, `gc/<time>.narinfo`, is the narinfo text of the paths that a collector has doomed:
//! pushers treat them as missing, and the text is the undo log. Another kind, `gc/<time>.keys`, lists the keys of NARs and
//! other objects that no path needs any more. Ages are differences between times of the service, so the
//! clock of the host does not matter.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use nar_pack::error::{Context, Error, Result};
use nar_pack::process;
use nar_pack::store_path::{HashPart, StoreDir};

use crate::TOOL;
use crate::remote::etag::{Md5Tag, md5_tag_of};
use crate::remote::listing::list_below;
use crate::remote::liveness::COLLECTOR_PREFIX;
use crate::remote::s3::{Bucket, ListDepth, ListFrom, ListedObject};

/// The object that exists while a collector deletes.
pub const FLAG_KEY: &str = "gc/sweeping";
/// The object whose time tells what time it is for the service.
const CLOCK_KEY: &str = "gc/clock";
/// How often the clock is written: another collector may delete it before it is listed.
const MAX_CLOCK_ATTEMPTS: u32 = 3;
/// Suffix of a record of narinfos.
const NARINFO_SUFFIX: &str = ".narinfo";
/// Suffix of a record of the keys of other objects.
const KEYS_SUFFIX: &str = ".keys";
/// How long a path is doomed before it is deleted. A push ends or reads the records again within this time.
pub const DOOM_PERIOD: Duration = Duration::from_hours(24);
/// Age of a record from which on what it names is recorded again before it is deleted. A record is kept for the grace period
/// of NARs and this time, so that it is there for as long as the NARs of its paths.
pub const RECORD_RENEWAL_AGE: Duration = DOOM_PERIOD.saturating_mul(2);
/// Size at which a record is complete and the next one begins, in bytes.
const MAX_RECORD_SIZE: usize = 16 << 20;
/// Maximum size of a record that is read: the last narinfo may exceed the size by its own.
const MAX_READ_SIZE: usize = MAX_RECORD_SIZE + (2 << 20);

/// The objects below `gc/`.
#[derive(Debug, Default)]
pub struct GcObjects {
    /// The records of narinfos, oldest first.
    pub records: Vec<Record>,
    /// The records of other objects, oldest first.
    pub key_records: Vec<Record>,
    /// When the flag was written, if there is one.
    pub flag_time: Option<SystemTime>,
    /// When the clock was written, if there is one.
    clock_time: Option<SystemTime>,
}

/// A record in a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// The key.
    pub key: String,
    /// When it was written.
    pub time: SystemTime,
}

impl GcObjects {
    /// Lists the objects below `gc/`.
    ///
    /// # Errors
    /// Fails if they cannot be listed, or if the time of one is unknown.
    pub async fn list(bucket: &Bucket) -> Result<Self> {
        Self::from_listing(bucket, list_below(bucket, COLLECTOR_PREFIX).await?)
    }

    /// Lists the objects below `gc/`. Returns none if listing is forbidden.
    ///
    /// # Errors
    /// See [`GcObjects::list`].
    pub async fn list_if_allowed(bucket: &Bucket) -> Result<Option<Self>> {
        match bucket.list_to_depth(COLLECTOR_PREFIX, ListDepth::All, ListFrom::Beginning).await? {
            None => Ok(None),
            Some(page) if page.next.is_none() => Self::from_listing(bucket, page.entries).map(Some),
            Some(_) => Self::list(bucket).await.map(Some),
        }
    }

    /// Returns the records of both kinds.
    fn all_records(&self) -> impl Iterator<Item = &Record> {
        self.records.iter().chain(&self.key_records)
    }

    /// Returns whether the bucket still has every record, and prints that nothing is deleted if not. A push that starts after
    /// one was removed does not know what it doomed. Only a collector that holds the flag removes records, so the answer
    /// stays the same while this one holds it.
    ///
    /// # Errors
    /// See [`GcObjects::list`].
    pub async fn has_all_records(&self, bucket: &Bucket, is_quiet: bool) -> Result<bool> {
        let present = Self::list(bucket).await?;
        let present: HashSet<&str> = present.all_records().map(|record| record.key.as_str()).collect();
        let has_all = self.all_records().all(|record| present.contains(record.key.as_str()));
        if !has_all && !is_quiet {
            process::print_message(TOOL, "nothing is deleted, because another collector removed records meanwhile");
        }
        Ok(has_all)
    }

    fn from_listing(bucket: &Bucket, entries: Vec<ListedObject>) -> Result<Self> {
        let mut objects = Self::default();
        for entry in entries {
            let time = entry.time_written(bucket)?;
            let key = entry.key;
            match key.as_str() {
                FLAG_KEY => objects.flag_time = Some(time),
                CLOCK_KEY => objects.clock_time = Some(time),
                _ if key.ends_with(NARINFO_SUFFIX) => objects.records.push(Record { key, time }),
                _ if key.ends_with(KEYS_SUFFIX) => objects.key_records.push(Record { key, time }),
                _ => {}
            }
        }
        for records in [&mut objects.records, &mut objects.key_records] {
            records.sort_unstable_by(|a, b| (a.time, &a.key).cmp(&(b.time, &b.key)));
            records.dedup();
        }
        Ok(objects)
    }

    /// Asks the service for its time, and lists the objects below `gc/`. Writes and deletes an object for that, so a user
    /// who may not delete learns it before anything is doomed. A dry run uses the clock of the host instead.
    ///
    /// # Errors
    /// Fails if the clock object cannot be written or deleted, or the objects cannot be listed.
    pub async fn list_with_time(bucket: &Bucket) -> Result<(Self, SystemTime)> {
        if bucket.is_dry_run() {
            return Ok((Self::list(bucket).await?, SystemTime::now()));
        }
        for _ in 0..MAX_CLOCK_ATTEMPTS {
            bucket.put(CLOCK_KEY, "text/plain", Bytes::from_static(b"the time of the service\n")).await?;
            let objects = Self::list(bucket).await?;
            bucket.delete(&[CLOCK_KEY.to_owned()]).await?;
            if let Some(time) = objects.clock_time {
                return Ok((objects, time));
            }
        }
        Err(Error::failed(format!("{}: not listed after it was written", bucket.display_url(CLOCK_KEY))))
    }
}

/// Reads a record. Returns none if it was removed meanwhile.
///
/// # Errors
/// Fails if it cannot be read, also if that is forbidden: it would be as if nothing were doomed.
async fn read_text(bucket: &Bucket, record: &Record) -> Result<Option<String>> {
    let object = bucket.get_text(&record.key, MAX_READ_SIZE).await?;
    if object.is_none() && bucket.was_forbidden() {
        let url = bucket.display_url(&record.key);
        let error = Error::failed(format!("cannot read {url}: access denied (HTTP 403); requires s3:GetObject"));
        return Err(error.with_hint("allow reading gc/: what a collector has doomed must be pushed again"));
    }
    Ok(object.map(|object| object.text))
}

/// Reads which NARs the records name that are younger than `age`: the narinfos that were doomed or deleted then.
///
/// # Errors
/// Fails if a record cannot be read.
pub async fn read_recent_nars(
    bucket: &Bucket,
    records: &[Record],
    now: SystemTime,
    age: Duration,
) -> Result<HashSet<Md5Tag>> {
    let mut nars = HashSet::new();
    for record in records.iter().filter(|record| now.duration_since(record.time).unwrap_or_default() < age) {
        let text = read_text(bucket, record).await?.unwrap_or_default();
        nars.extend(text.lines().filter_map(|line| line.strip_prefix("URL: ")).map(|url| md5_tag_of(url.as_bytes())));
    }
    Ok(nars)
}

/// Reads the hash parts of a record. Returns none if it was removed meanwhile.
///
/// # Errors
/// Fails if it cannot be read or is malformed.
async fn read_record(bucket: &Bucket, store_dir: &StoreDir, record: &Record) -> Result<Option<Vec<HashPart>>> {
    let Some(text) = read_text(bucket, record).await? else { return Ok(None) };
    let paths = text.lines().filter_map(|line| line.strip_prefix("StorePath: "));
    let hashes: Result<Vec<HashPart>> = paths.map(|path| Ok(store_dir.parse(path)?.hash_part())).collect();
    let hashes = hashes.context(|| bucket.display_url(&record.key));
    hashes.map(Some).map_err(|error| Error::failed(error.message()))
}

/// Reads which paths are doomed, and the times of the records that doom each, oldest first.
///
/// # Errors
/// Fails if a record cannot be read or is malformed.
pub async fn read_doomed(
    bucket: &Bucket,
    store_dir: &StoreDir,
    records: &[Record],
) -> Result<HashMap<HashPart, Vec<SystemTime>>> {
    let mut doomed: HashMap<HashPart, Vec<SystemTime>> = HashMap::new();
    for record in records {
        for hash in read_record(bucket, store_dir, record).await?.unwrap_or_default() {
            doomed.entry(hash).or_default().push(record.time);
        }
    }
    Ok(doomed)
}

/// Reads which NARs and other objects are doomed, and the times of the records that name each, oldest first.
///
/// # Errors
/// Fails if a record cannot be read.
pub async fn read_doomed_keys(bucket: &Bucket, records: &[Record]) -> Result<HashMap<String, Vec<SystemTime>>> {
    let mut doomed: HashMap<String, Vec<SystemTime>> = HashMap::new();
    for record in records {
        let Some(text) = read_text(bucket, record).await? else { continue };
        for key in text.lines() {
            doomed.entry(key.to_owned()).or_default().push(record.time);
        }
    }
    Ok(doomed)
}

/// Returns for how long an object has been doomed that was written at `written`, or none if it is not doomed. `records` are
/// the times of the records that name it, oldest first. One of the same second does not count: the object may have been
/// written after it.
#[must_use]
pub fn doomed_for(records: Option<&[SystemTime]>, written: SystemTime, now: SystemTime) -> Option<Duration> {
    let since = records?.iter().find(|&&record| record > written)?;
    Some(now.duration_since(*since).unwrap_or_default())
}

/// Writes records.
pub struct RecordWriter<'a> {
    bucket: &'a Bucket,
    time: SystemTime,
    suffix: &'static str,
    content_type: &'static str,
    text: String,
}

impl<'a> RecordWriter<'a> {
    /// Starts records of narinfos that are named by this time.
    #[must_use]
    pub fn of_narinfos(bucket: &'a Bucket, time: SystemTime) -> Self {
        Self { bucket, time, suffix: NARINFO_SUFFIX, content_type: "text/x-nix-narinfo", text: String::new() }
    }

    /// Starts records of keys that are named by this time.
    #[must_use]
    pub fn of_keys(bucket: &'a Bucket, time: SystemTime) -> Self {
        Self { bucket, time, suffix: KEYS_SUFFIX, content_type: "text/plain; charset=UTF-8", text: String::new() }
    }

    /// Adds a narinfo.
    ///
    /// # Errors
    /// Fails if a record cannot be written.
    pub async fn add_narinfo(&mut self, text: &str) -> Result {
        if !self.text.is_empty() {
            self.text.push('\n');
        }
        self.add(text).await
    }

    /// Adds a key.
    ///
    /// # Errors
    /// Fails if a record cannot be written.
    pub async fn add_key(&mut self, key: &str) -> Result {
        self.add(&format!("{key}\n")).await
    }

    async fn add(&mut self, text: &str) -> Result {
        self.text.push_str(text);
        if self.text.len() >= MAX_RECORD_SIZE { self.flush().await } else { Ok(()) }
    }

    /// Writes what was added.
    ///
    /// # Errors
    /// Fails if the record cannot be written.
    pub async fn flush(&mut self) -> Result {
        let text = std::mem::take(&mut self.text);
        if text.is_empty() {
            return Ok(());
        }
        let key = record_key(self.time, fastrand::u32(..), self.suffix);
        self.bucket.put(&key, self.content_type, text.into()).await
    }
}

/// Returns the key of a record. The number distinguishes records of the same second.
fn record_key(time: SystemTime, number: u32, suffix: &str) -> String {
    let time = humantime::format_rfc3339_seconds(time).to_string().replace(['-', ':'], "");
    format!("{COLLECTOR_PREFIX}{time}-{number:08x}{suffix}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_named_by_their_time() {
        let time = SystemTime::UNIX_EPOCH + Duration::from_hours(498_747);
        assert_eq!(record_key(time, 255, NARINFO_SUFFIX), "gc/20261124T030000Z-000000ff.narinfo");
    }
}
