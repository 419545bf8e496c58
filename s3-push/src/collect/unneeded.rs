//! Deletes the objects that no path needs any more: NARs that no narinfo names, the debuginfo links to them, and the
//! realisations of paths that are not in the cache. The protocol is that of the narinfos: a record dooms them, a push that
//! needs one writes it again, and it is deleted after the grace period if it is still not needed and was not written
//! since.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures_util::{StreamExt, TryStreamExt, stream};
use indicatif::HumanCount;
use nar_pack::error::{Error, Result};
use nar_pack::process;
use nar_pack::store_path::{HashPart, StoreDir};
use narinfo_gen::archive::{DEBUGINFO_PREFIX, NAR_PREFIX, REALISATION_PREFIXES};
use narinfo_gen::extras::{BuildTraceEntry, MAX_LINK_SIZE, debuginfo_target};
use tokio::runtime::Runtime;

use super::cli::DeleteArgs;
use super::flag::SweepFlag;
use super::outcome::{Outcome, OutcomeWriter};
use super::records::{
    DOOM_PERIOD, GcObjects, RECORD_RENEWAL_AGE, Record, RecordWriter, doomed_for, read_doomed_keys, read_recent_nars,
};
use super::require_share;
use crate::TOOL;
use crate::remote::cli::only_url;
use crate::remote::etag::{Md5Tag, md5_tag_of};
use crate::remote::known_texts::KnownTexts;
use crate::remote::listing::list_below;
use crate::remote::liveness::{ListedNarinfo, list_narinfos, read_narinfos, require_readable};
use crate::remote::s3::{Access, Bucket, MAX_DELETED_AT_ONCE};

/// How objects are deleted.
pub struct UnneededOptions {
    /// The store directory of the paths.
    pub store_dir: StoreDir,
    /// How long an object has not been needed before it is deleted, at least [`DOOM_PERIOD`].
    pub grace: Duration,
    /// Maximum share of the objects, in percent.
    pub max_percent: u8,
    /// How long to wait after the flag of another collector was taken over.
    pub takeover_pause: Duration,
    /// Whether only errors are printed.
    pub is_quiet: bool,
    /// Narinfos of an earlier run.
    pub known: Option<Arc<KnownTexts>>,
    /// The paths that a dry run would have deleted before.
    pub deleted: HashSet<HashPart>,
}

impl UnneededOptions {
    /// Checks the options.
    ///
    /// # Errors
    /// Returns a usage error for a grace period that is too short for pushes.
    pub fn require_valid(&self) -> Result {
        if self.grace < DOOM_PERIOD {
            return Err(Error::usage("--grace must be at least 24h, because a push may last that long"));
        }
        Ok(())
    }
}

/// Deletes the objects that no path has needed for the grace period, and prints their keys.
pub fn run(runtime: &Runtime, args: &DeleteArgs) -> Result {
    let store_dir = StoreDir::new(&args.bucket.store_dir)?;
    let url = only_url(&args.targets)?;
    let options = UnneededOptions {
        store_dir,
        grace: args.grace,
        max_percent: args.max_delete,
        takeover_pause: args.takeover.takeover_pause,
        is_quiet: args.bucket.quiet,
        known: None,
        deleted: HashSet::new(),
    };
    options.require_valid()?;
    let mut writer = OutcomeWriter::new(args.json, args.dry_run)?;
    let mut outcome = Outcome::default();
    let result = runtime.block_on(async {
        let bucket = args.bucket.connect(&url, Access::Signed, TOOL).await?.with_dry_run(args.dry_run);
        delete_unneeded(&bucket, &options, &mut outcome).await
    });
    writer.add_objects(&outcome, result)?;
    writer.finish()
}

/// Dooms or deletes objects. `outcome` says what was done, also after an error.
///
/// # Errors
/// Refuses more objects than the maximum share. Fails if anything cannot be read, listed, written or deleted, or if
/// another collector is deleting.
pub async fn delete_unneeded(bucket: &Bucket, options: &UnneededOptions, outcome: &mut Outcome) -> Result {
    let (gc, now) = GcObjects::list_with_time(bucket).await?;
    let mut needs = Needs::default();
    needs.update(bucket, options).await?;
    let objects = needs.list_objects(bucket, &options.store_dir).await?;
    let unneeded: Vec<(&String, SystemTime)> = objects
        .iter()
        .filter(|(_, object)| !needs.contain(object))
        .map(|(key, object)| (key, object.written))
        .collect();
    let plan = Plan::new(bucket, unneeded, &gc, now, options).await?;
    // Those that wait for the end of their grace period were counted by the run that doomed them.
    for count in [plan.to_doom.len(), plan.ready.len()] {
        require_share(bucket, "NARs and other objects", count, objects.len(), options.max_percent)?;
    }
    plan.doom(bucket, now).await?;
    (outcome.doomed, outcome.waiting) = (plan.to_doom.len(), plan.waiting);
    let is_older = |record: &&Record, age: Duration| now.duration_since(record.time).unwrap_or_default() >= age;
    let records = gc.records.iter().filter(|record| is_older(record, options.grace.saturating_add(RECORD_RENEWAL_AGE)));
    let key_records = gc.key_records.iter().filter(|record| is_older(record, options.grace));
    let old_records: Vec<String> = records.chain(key_records).map(|record| record.key.clone()).collect();
    if plan.ready.is_empty() && old_records.is_empty() {
        SweepFlag::remove_abandoned(bucket, &gc, now, options.takeover_pause).await?;
    } else {
        SweepFlag::hold(bucket, &gc, now, options.takeover_pause, async |flag| {
            if !gc.has_all_records(bucket, options.is_quiet).await? {
                return Ok(());
            }
            sweep(bucket, flag, &mut needs, &plan.ready, options, &mut outcome.deleted).await?;
            if !old_records.is_empty() {
                flag.require_owned().await?;
            }
            // What they doomed and is still there must be doomed anew before it is deleted.
            bucket.delete(&old_records).await
        })
        .await?;
    }
    plan.print(bucket, outcome.deleted.len(), options);
    outcome.kept = plan.ready.len() - outcome.deleted.len();
    Ok(())
}

/// What becomes of the objects that are not needed.
#[derive(Default)]
struct Plan {
    /// The keys of those that this run dooms.
    to_doom: Vec<String>,
    /// Doomed by an earlier run, but not for long enough.
    waiting: usize,
    /// Deleted by this run, unless they are needed by then. With the times at which they were written.
    ready: HashMap<String, SystemTime>,
}

impl Plan {
    async fn new(
        bucket: &Bucket,
        unneeded: Vec<(&String, SystemTime)>,
        gc: &GcObjects,
        now: SystemTime,
        options: &UnneededOptions,
    ) -> Result<Self> {
        let doomed = read_doomed_keys(bucket, &gc.key_records).await?;
        let mut plan = Self::default();
        for (key, written) in unneeded {
            match doomed_for(doomed.get(key).map(Vec::as_slice), written, now) {
                Some(age) if age >= options.grace => {
                    plan.ready.insert(key.clone(), written);
                }
                Some(_) => plan.waiting += 1,
                None => plan.to_doom.push(key.clone()),
            }
        }
        if !plan.ready.is_empty() {
            // They may have been needed again after they were doomed, by a narinfo that was doomed itself since.
            let recent = read_recent_nars(bucket, &gc.records, now, options.grace).await?;
            plan.waiting += plan.ready.extract_if(|key, _| recent.contains(&md5_tag_of(key.as_bytes()))).count();
        }
        Ok(plan)
    }

    /// Writes the record of what this run dooms.
    async fn doom(&self, bucket: &Bucket, now: SystemTime) -> Result {
        let mut writer = RecordWriter::of_keys(bucket, now);
        for key in &self.to_doom {
            writer.add_key(key).await?;
        }
        writer.flush().await
    }

    fn print(&self, bucket: &Bucket, deleted: usize, options: &UnneededOptions) {
        if options.is_quiet {
            return;
        }
        let [deleted, doomed, waiting] =
            [deleted, self.to_doom.len(), self.waiting].map(|count| HumanCount(count as u64));
        let would_be = if bucket.is_dry_run() { "would be " } else { "" };
        let message = format!(
            "NARs and other objects that no path needs: {deleted} {would_be}deleted, {doomed} {would_be}doomed, {waiting} \
             within the grace period"
        );
        process::print_message(TOOL, message);
    }
}

/// Deletes those of the objects that are still not needed and have not been written, now that the flag is set, and adds them
/// to `deleted`.
async fn sweep(
    bucket: &Bucket,
    flag: &mut SweepFlag<'_>,
    needs: &mut Needs,
    ready: &HashMap<String, SystemTime>,
    options: &UnneededOptions,
    deleted: &mut Vec<String>,
) -> Result {
    if ready.is_empty() {
        return Ok(());
    }
    needs.update(bucket, options).await?;
    let present = needs.list_objects(bucket, &options.store_dir).await?;
    let is_dead =
        |(key, object): &(&String, &UnneededObject)| ready.get(*key) == Some(&object.written) && !needs.contain(object);
    let dead: Vec<String> = present.iter().filter(is_dead).map(|(key, _)| key.clone()).collect();
    for keys in dead.chunks(MAX_DELETED_AT_ONCE) {
        flag.require_owned().await?;
        bucket.delete(keys).await?;
        deleted.extend_from_slice(keys);
    }
    Ok(())
}

/// An object that may not be needed.
struct UnneededObject {
    written: SystemTime,
    needed_by: NeededBy,
}

/// When an object is needed.
enum NeededBy {
    /// While a narinfo names this NAR. Keys are compared by their MD5 hashes, which takes less memory.
    Nar(Md5Tag),
    /// While the cache has the path.
    Path(HashPart),
    /// Always: its text is not understood.
    Always,
}

/// What the narinfos of the cache need.
#[derive(Default)]
struct Needs {
    nars: HashSet<Md5Tag>,
    listed: HashMap<HashPart, ListedNarinfo>,
}

impl Needs {
    /// Reads the narinfos that were written since the last call. NARs that a deleted one named stay until the next run.
    async fn update(&mut self, bucket: &Bucket, options: &UnneededOptions) -> Result {
        let mut listed = list_narinfos(bucket).await?;
        listed.retain(|narinfo| !options.deleted.contains(&narinfo.hash));
        let new: Vec<ListedNarinfo> =
            listed.iter().filter(|narinfo| self.listed.get(&narinfo.hash) != Some(narinfo)).copied().collect();
        let nars = &mut self.nars;
        read_narinfos(bucket, &options.store_dir, &new, options.known.as_deref(), |_, found| {
            nars.extend(found.map(|(narinfo, _)| md5_tag_of(narinfo.url.as_bytes())));
            Ok(())
        })
        .await?;
        self.listed.extend(new.into_iter().map(|narinfo| (narinfo.hash, narinfo)));
        Ok(())
    }

    fn contain(&self, object: &UnneededObject) -> bool {
        match &object.needed_by {
            NeededBy::Nar(nar) => self.nars.contains(nar),
            NeededBy::Path(hash) => self.listed.contains_key(hash),
            NeededBy::Always => true,
        }
    }

    /// Lists the objects that may not be needed.
    async fn list_objects(&self, bucket: &Bucket, store_dir: &StoreDir) -> Result<HashMap<String, UnneededObject>> {
        let mut objects = HashMap::new();
        for entry in list_below(bucket, NAR_PREFIX).await? {
            let needed_by = NeededBy::Nar(md5_tag_of(entry.key.as_bytes()));
            let written = entry.time_written(bucket)?;
            objects.insert(entry.key, UnneededObject { written, needed_by });
        }
        for prefix in [DEBUGINFO_PREFIX].iter().chain(&REALISATION_PREFIXES) {
            let entries = list_below(bucket, prefix).await?;
            let reads = stream::iter(entries.into_iter().map(async |entry| {
                let needed_by = read_needed_by(bucket, store_dir, &entry.key).await?;
                let written = entry.time_written(bucket)?;
                Ok::<_, Error>((entry.key, UnneededObject { written, needed_by }))
            }));
            let read: Vec<_> = reads.buffer_unordered(bucket.max_in_flight().into()).try_collect().await?;
            objects.extend(read);
        }
        require_readable(bucket)?;
        Ok(objects)
    }
}

/// Reads what a debuginfo link or a realisation refers to.
async fn read_needed_by(bucket: &Bucket, store_dir: &StoreDir, key: &str) -> Result<NeededBy> {
    let object = match bucket.get_text(key, MAX_LINK_SIZE).await {
        Ok(object) => object,
        // A larger object stays.
        Err(error) if error.is_refusal() => return Ok(NeededBy::Always),
        Err(error) => return Err(error),
    };
    let Some(object) = object else { return Ok(NeededBy::Always) };
    let condition = if key.starts_with(DEBUGINFO_PREFIX) {
        debuginfo_target(object.text.as_bytes()).map(|nar| NeededBy::Nar(md5_tag_of(nar.as_bytes())))
    } else {
        let entry = BuildTraceEntry::parse(key, object.text.as_bytes(), store_dir).ok();
        entry.map(|entry| NeededBy::Path(entry.out_path.hash_part()))
    };
    Ok(condition.unwrap_or(NeededBy::Always))
}
