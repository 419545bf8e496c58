//! Deletes paths in two runs. The first dooms them: it writes a record, and pushers treat the paths as missing from then
//! on. A run at least a day later deletes those that the stream still holds and that were not written since, while the
//! flag is set. Before anything is deleted, every narinfo that stays is read: what it references stays too.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures_util::{StreamExt, TryStreamExt, stream};
use nar_pack::error::{Error, Result};
use nar_pack::process;
use nar_pack::store_path::{HashPart, StoreDir, StorePath};
use narinfo_gen::archive::{listing_key, narinfo_key};
use tokio::runtime::Runtime;

use super::candidates::{Candidates, DeletionCandidate};
use super::cli::DeleteArgs;
use super::flag::SweepFlag;
use super::outcome::{Outcome, OutcomeWriter};
use super::records::{DOOM_PERIOD, GcObjects, RECORD_RENEWAL_AGE, RecordWriter, doomed_for, read_doomed};
use super::{passive_verb, require_share};
use crate::TOOL;
use crate::remote::cli::only_url;
use crate::remote::known_texts::KnownTexts;
use crate::remote::liveness::{
    Graph, ListedNarinfo, find_dead_batches, list_narinfos, read_narinfos, require_readable,
};
use crate::remote::pins::{ListedPin, Retention, list_pins, read_pin, read_pins};
use crate::remote::progress::{count_of, is_or_are};
use crate::remote::s3::{Access, Bucket};

/// What is printed about paths that were doomed.
const DOOMED: &str = "doomed: run the command again in 24 hours or later to delete what is doomed";
/// Narinfos that are deleted between two checks of the flag.
const BATCH_SIZE: usize = 500;

/// How paths are deleted.
pub struct DeleteOptions {
    /// The store directory of the paths.
    pub store_dir: StoreDir,
    /// Whether paths are deleted without having been doomed a day before.
    pub now: bool,
    /// Maximum share of the paths of the cache, in percent.
    pub max_percent: u8,
    /// Which pins keep their paths.
    pub retention: Retention,
    /// Further paths that are kept, with what they reference.
    pub roots: Vec<StorePath>,
    /// How long to wait after the flag of another collector was taken over.
    pub takeover_pause: Duration,
    /// Whether only errors are printed.
    pub is_quiet: bool,
    /// Narinfos of an earlier run.
    pub known: Option<Arc<KnownTexts>>,
}

/// Deletes the paths on standard input.
pub fn run(runtime: &Runtime, args: &DeleteArgs) -> Result {
    let store_dir = StoreDir::new(&args.bucket.store_dir)?;
    let url = only_url(&args.targets)?;
    let candidates = Candidates::read(&store_dir)?;
    let options = DeleteOptions {
        store_dir,
        now: args.now,
        max_percent: args.max_delete,
        retention: Retention { keep_last: args.keep_last, keep_within: args.keep_within },
        roots: Vec::new(),
        takeover_pause: args.takeover.takeover_pause,
        is_quiet: args.bucket.quiet,
        known: None,
    };
    let mut writer = OutcomeWriter::new(args.json, args.dry_run)?;
    let mut outcome = Outcome::default();
    let result = runtime.block_on(async {
        let bucket = args.bucket.connect(&url, Access::Signed, TOOL).await?.with_dry_run(args.dry_run);
        delete_paths(&bucket, candidates, &options, &mut outcome).await
    });
    writer.add_paths(&outcome, result)?;
    writer.finish()
}

/// Dooms or deletes paths. `outcome` says what was done, also after an error.
///
/// # Errors
/// Refuses more paths than the maximum share. Fails if anything cannot be read, listed, written or deleted, or if another
/// collector is deleting.
pub async fn delete_paths(
    bucket: &Bucket,
    candidates: Candidates,
    options: &DeleteOptions,
    outcome: &mut Outcome,
) -> Result {
    let (objects, now) = GcObjects::list_with_time(bucket).await?;
    if candidates.paths.is_empty() {
        if !options.is_quiet {
            process::print_message(TOOL, "no dead paths");
        }
        return SweepFlag::remove_abandoned(bucket, &objects, now, options.takeover_pause).await;
    }
    let listed = list_narinfos(bucket).await?;
    let plan = Plan::new(bucket, &candidates, &listed, &objects, now, options).await?;
    let count = plan.to_doom.len() + plan.waiting + plan.ready.len();
    require_share(bucket, "paths", count, listed.len(), options.max_percent)?;
    let mut writer = RecordWriter::of_narinfos(bucket, now);
    for &index in &plan.to_doom {
        writer.add_narinfo(&candidates.text(index)?).await?;
    }
    writer.flush().await?;
    plan.print(bucket, options);
    *outcome = plan.outcome();
    if plan.ready.is_empty() {
        return SweepFlag::remove_abandoned(bucket, &objects, now, options.takeover_pause).await;
    }
    let mut sweep = Sweep::prepare(bucket, &candidates, &plan.ready, listed, now, options).await?;
    SweepFlag::hold(bucket, &objects, now, options.takeover_pause, async |flag| {
        if options.now || objects.has_all_records(bucket, options.is_quiet).await? {
            sweep.run(flag, &mut outcome.deleted).await?;
        }
        Ok(())
    })
    .await?;
    outcome.kept = plan.ready.len() - outcome.deleted.len();
    Ok(())
}

/// A path that may be deleted.
#[derive(Clone, Copy)]
struct Ready {
    /// Its index in the candidates.
    index: usize,
    /// Whether a record is written before it is deleted: there is none, or an old one.
    needs_record: bool,
}

/// What becomes of each path.
#[derive(Default)]
struct Plan {
    /// Doomed by this run.
    to_doom: Vec<usize>,
    /// Doomed by an earlier run, but not for long enough; the time left of the last one.
    waiting: usize,
    longest_wait: Duration,
    /// Deleted by this run.
    ready: Vec<Ready>,
    /// Changed in the bucket since the stream was made.
    changed: usize,
    /// Not in the bucket any more.
    absent: usize,
}

impl Plan {
    async fn new(
        bucket: &Bucket,
        candidates: &Candidates,
        listed: &[ListedNarinfo],
        objects: &GcObjects,
        now: SystemTime,
        options: &DeleteOptions,
    ) -> Result<Self> {
        let doomed = read_doomed(bucket, &options.store_dir, &objects.records).await?;
        let find = |candidate: &DeletionCandidate| {
            let found = listed.binary_search_by_key(&candidate.path.hash_part(), |narinfo| narinfo.hash);
            found.ok().map(|index| listed[index])
        };
        let checks = stream::iter(candidates.paths.iter().map(async |candidate| match find(candidate) {
            None => Ok::<_, Error>((None, false)),
            Some(listed) => Ok((Some(listed), candidate.is_unchanged(bucket, &listed).await?)),
        }));
        let mut checks = checks.buffered(bucket.max_in_flight().into()).enumerate();
        let mut plan = Self::default();
        while let Some((index, check)) = checks.next().await {
            let listed = match check? {
                (None, _) => {
                    plan.absent += 1;
                    continue;
                }
                (Some(_), false) => {
                    plan.changed += 1;
                    continue;
                }
                (Some(listed), true) => listed,
            };
            let records = doomed.get(&listed.hash).map(Vec::as_slice);
            match doomed_for(records, listed.last_modified, now) {
                _ if options.now => plan.ready.push(Ready { index, needs_record: true }),
                Some(age) if age >= DOOM_PERIOD => {
                    let newest = records.and_then(<[SystemTime]>::last).copied().unwrap_or(now);
                    let needs_record = now.duration_since(newest).unwrap_or_default() >= RECORD_RENEWAL_AGE;
                    plan.ready.push(Ready { index, needs_record });
                }
                Some(age) => {
                    plan.waiting += 1;
                    plan.longest_wait = plan.longest_wait.max(DOOM_PERIOD.saturating_sub(age));
                }
                None => plan.to_doom.push(index),
            }
        }
        require_readable(bucket)?;
        Ok(plan)
    }

    /// Returns what is done before anything is deleted.
    fn outcome(&self) -> Outcome {
        Outcome {
            doomed: self.to_doom.len(),
            waiting: self.waiting,
            changed: self.changed,
            absent: self.absent,
            ..Outcome::default()
        }
    }

    fn print(&self, bucket: &Bucket, options: &DeleteOptions) {
        let print_as = |count: usize, verb: &str, what: &str| {
            if count > 0 && !options.is_quiet {
                process::print_message(TOOL, format!("{} {verb} {what}", count_of(count, "path")));
            }
        };
        let print = |count: usize, what: &str| print_as(count, is_or_are(count), what);
        let hours = usize::try_from(self.longest_wait.as_secs().div_ceil(3600)).unwrap_or(usize::MAX);
        let doomed = self.to_doom.len();
        print_as(doomed, passive_verb(bucket, doomed), if bucket.is_dry_run() { "doomed" } else { DOOMED });
        print(self.waiting, &format!("doomed and can be deleted in {}", count_of(hours, "hour")));
        print(self.changed, "skipped: changed since the input was made");
        print(self.absent, "skipped: not in the cache");
        if options.now && !self.ready.is_empty() && !bucket.is_dry_run() {
            process::print_message(
                TOOL,
                "warning: --now: a push that runs at the same time can leave paths without their references",
            );
        }
    }
}

/// The deletion of paths that have been doomed for long enough.
struct Sweep<'a> {
    bucket: &'a Bucket,
    options: &'a DeleteOptions,
    now: SystemTime,
    candidates: &'a Candidates,
    /// The paths that may be deleted, sorted by hash part, and which of them must stay.
    paths: Vec<(HashPart, Ready)>,
    graph: Graph,
    /// The narinfos in the bucket before the flag was set.
    listed: Vec<ListedNarinfo>,
}

impl<'a> Sweep<'a> {
    /// Reads every narinfo that is not to be deleted, and the pins: what they reference stays. This takes long, so it is
    /// done before the flag is set.
    async fn prepare(
        bucket: &'a Bucket,
        candidates: &'a Candidates,
        ready: &[Ready],
        listed: Vec<ListedNarinfo>,
        now: SystemTime,
        options: &'a DeleteOptions,
    ) -> Result<Self> {
        let hash_of = |ready: &Ready| candidates.paths[ready.index].path.hash_part();
        let mut paths: Vec<(HashPart, Ready)> = ready.iter().map(|ready| (hash_of(ready), *ready)).collect();
        paths.sort_unstable_by_key(|(hash, _)| *hash);
        let mut graph = Graph::new(paths.iter().map(|(hash, _)| *hash));
        for (index, (_, ready)) in paths.iter().enumerate() {
            graph.set_references(index, candidates.paths[ready.index].references.iter().copied());
        }
        let mut sweep = Self { bucket, options, now, candidates, paths, graph, listed };
        let staying: Vec<ListedNarinfo> =
            sweep.listed.iter().filter(|narinfo| !sweep.contains(narinfo.hash)).copied().collect();
        sweep.keep_references(&staying).await?;
        sweep.keep_pins().await?;
        Ok(sweep)
    }

    fn contains(&self, hash: HashPart) -> bool {
        self.paths.binary_search_by_key(&hash, |(hash, _)| *hash).is_ok()
    }

    /// Keeps what these narinfos reference.
    async fn keep_references(&mut self, narinfos: &[ListedNarinfo]) -> Result {
        let graph = &mut self.graph;
        let known = self.options.known.as_deref();
        read_narinfos(self.bucket, &self.options.store_dir, narinfos, known, |_, found| {
            for reference in found.iter().flat_map(|(narinfo, _)| &narinfo.references) {
                graph.mark_root(reference.hash_part());
            }
            Ok(())
        })
        .await
    }

    /// Keeps what the pins and roots name. Returns the pins that do not count any more.
    async fn keep_pins(&mut self) -> Result<Vec<ListedPin>> {
        let pins = list_pins(self.bucket).await?;
        let (pins, expired) = self.options.retention.split(pins, self.now);
        let pinned = read_pins(self.bucket, &pins, &self.options.store_dir).await?;
        for path in pinned.iter().chain(&self.options.roots) {
            self.graph.mark_root(path.hash_part());
        }
        require_readable(self.bucket)?;
        Ok(expired)
    }

    /// Returns the keys of those of the expired pins that name a path which is about to be deleted. One that is no path
    /// list stays, with a warning: it keeps nothing.
    async fn find_pins_of(&self, dead: &HashSet<HashPart>, expired: &[ListedPin]) -> Result<Vec<String>> {
        let reads = stream::iter(expired.iter().map(async |pin| {
            match read_pin(self.bucket, &pin.name, &self.options.store_dir).await {
                Ok(paths) => {
                    let names_dead = paths.iter().flatten().any(|path| dead.contains(&path.hash_part()));
                    Ok(names_dead.then(|| pin.name.key()))
                }
                Err(error) if error.is_refusal() => {
                    process::print_message(TOOL, format!("warning: {error}"));
                    Ok(None)
                }
                Err(error) => Err(error),
            }
        }));
        let keys: Vec<_> = reads.buffered(self.bucket.max_in_flight().into()).try_collect().await?;
        Ok(keys.into_iter().flatten().collect())
    }

    /// Removes the pins that name what is about to be deleted. Each command that reads them would fail on a missing path.
    async fn remove_pins(&self, keys: &[String]) -> Result {
        self.bucket.delete(keys).await?;
        if !keys.is_empty() && !self.options.is_quiet {
            let (count, verb) = (count_of(keys.len(), "pin"), passive_verb(self.bucket, keys.len()));
            process::print_message(TOOL, format!("{count} {verb} removed: not kept by --keep-last or --keep-within"));
        }
        Ok(())
    }

    /// Writes a record of the dead paths that have none, or an old one.
    async fn record(&self, dead: impl Iterator<Item = usize>) -> Result {
        let mut writer = RecordWriter::of_narinfos(self.bucket, self.now);
        for index in dead {
            let (_, ready) = self.paths[index];
            if ready.needs_record {
                writer.add_narinfo(&self.candidates.text(ready.index)?).await?;
            }
        }
        writer.flush().await
    }

    /// Lists again, now that the flag is set: keeps what was written since and what it references.
    /// Returns the pins that do not count any more.
    async fn keep_what_was_written(&mut self) -> Result<Vec<ListedPin>> {
        let listed = list_narinfos(self.bucket).await?;
        let before: HashMap<HashPart, ListedNarinfo> =
            self.listed.iter().map(|narinfo| (narinfo.hash, *narinfo)).collect();
        let written: Vec<ListedNarinfo> =
            listed.iter().filter(|narinfo| before.get(&narinfo.hash) != Some(narinfo)).copied().collect();
        for narinfo in &written {
            self.graph.mark_root(narinfo.hash);
        }
        self.keep_references(&written).await?;
        let present: HashSet<HashPart> = listed.iter().map(|narinfo| narinfo.hash).collect();
        for (index, (hash, _)) in self.paths.iter().enumerate() {
            if !present.contains(hash) {
                self.graph.remove(index);
            }
        }
        self.keep_pins().await
    }

    /// Deletes the paths that nothing keeps, referrers first, and adds them to `deleted`.
    async fn run(&mut self, flag: &mut SweepFlag<'_>, deleted: &mut Vec<String>) -> Result {
        let expired = self.keep_what_was_written().await?;
        let batches = find_dead_batches(&mut self.graph, self.bucket)?;
        let dead = batches.iter().flatten().map(|&index| self.paths[index].0).collect();
        let pins = self.find_pins_of(&dead, &expired).await?;
        self.record(batches.iter().flatten().copied()).await?;
        flag.require_owned().await?;
        self.remove_pins(&pins).await?;
        for batch in batches.iter().flat_map(|batch| batch.chunks(BATCH_SIZE)) {
            flag.require_owned().await?;
            let keys = |key_of: fn(HashPart) -> String| -> Vec<String> {
                batch.iter().map(|&index| key_of(self.paths[index].0)).collect()
            };
            // First, because nothing finds a listing whose narinfo is gone.
            self.bucket.delete(&keys(listing_key)).await?;
            self.bucket.delete(&keys(narinfo_key)).await?;
            let path = |&index: &usize| &self.candidates.paths[self.paths[index].1.index].path;
            deleted.extend(batch.iter().map(|index| self.options.store_dir.join(path(index))));
        }
        self.print(deleted.len());
        Ok(())
    }

    fn print(&self, deleted: usize) {
        if self.options.is_quiet {
            return;
        }
        let verb = passive_verb(self.bucket, deleted);
        process::print_message(TOOL, format!("{} {verb} deleted", count_of(deleted, "path")));
        let kept = self.paths.len() - deleted;
        if kept > 0 {
            let (count, verb) = (count_of(kept, "path"), is_or_are(kept));
            process::print_message(TOOL, format!("{count} {verb} kept: pinned, referenced or written since"));
        }
    }
}
