//! The objects of an archive besides NARs and narinfos: listings, build logs, debug information links and build trace
//! entries. Each is checked as far as it can be. An object that is refused is left out with a warning, because the path
//! is complete without it, and makes the result of the archive a refusal.

use std::collections::{BTreeSet, HashSet};
use std::io::{Read, Write};
use std::sync::Arc;

use futures_util::{StreamExt, TryStreamExt, stream};
use nar_pack::error::{Error, Result};
use nar_pack::process;
use nar_pack::store_path::StorePath;
use narinfo_gen::archive::{REALISATION_PREFIXES, Writer, listing_key, log_key};
use narinfo_gen::extras::{BuildTraceEntry, ExtraObject, Extras, MAX_EXTRA_SIZE, MAX_LINK_SIZE, NarExtras};
use narinfo_gen::narinfo::NarInfo;
use s3_push::remote::Remote;
use serde_json::Value;
use tokio::runtime::Handle;

use crate::TOOL;
use crate::sources::{Candidate, Sources};

/// The maximum size of a listing that is compared by its meaning if its bytes differ: parsed JSON takes about ten times
/// its size in memory.
const MAX_PARSED_LISTING_SIZE: usize = 16 << 20;
/// The maximum number of concurrent requests for small objects.
const MAX_CONCURRENT_REQUESTS: usize = 16;

/// The kinds of objects that an archive contains.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ExtraKinds {
    /// Listings (`.ls`).
    pub listings: bool,
    /// Build logs.
    pub logs: bool,
    /// Debug information links.
    pub debug_info: bool,
    /// Build trace entries.
    pub build_trace: bool,
}

impl ExtraKinds {
    /// All kinds: a mirror of everything, which also keeps the settings in `nix-cache-info`.
    pub const ALL: Self = Self { listings: true, logs: true, debug_info: true, build_trace: true };
}

/// Writes the extras of an archive.
pub struct ExtrasWriter<'a> {
    runtime: &'a Handle,
    sources: &'a Sources,
    kinds: ExtraKinds,
    /// The keys of logs and links that the archive has.
    written: HashSet<String>,
    /// The keys of links that name the NAR of another path.
    foreign_links: BTreeSet<String>,
    refused: usize,
}

impl<'a> ExtrasWriter<'a> {
    /// Prepares to write objects of these kinds.
    #[must_use]
    pub fn new(runtime: &'a Handle, sources: &'a Sources, kinds: ExtraKinds) -> Self {
        Self { runtime, sources, kinds, written: HashSet::new(), foreign_links: BTreeSet::new(), refused: 0 }
    }

    /// Returns the visitor that learns from a NAR what its extras must be.
    #[must_use]
    pub fn nar_visitor(&self) -> NarExtras {
        let ExtraKinds { listings, debug_info, .. } = self.kinds;
        NarExtras::new(&Extras { listing: listings, debug_info, ..Extras::default() })
    }

    /// Writes the listing, the links and the log of a path whose NAR has been verified, and is `nar_key` in the archive.
    /// `visitor` has visited the NAR.
    ///
    /// # Errors
    /// Fails when the cache cannot be read or the archive cannot be written.
    pub fn write_path(
        &mut self,
        archive: &mut Writer<impl Write>,
        candidate: &Candidate,
        nar_key: &str,
        visitor: NarExtras,
    ) -> Result {
        let narinfo = &candidate.narinfo;
        let remote = self.sources.remote(candidate);
        let (expected, no_listing) = visitor.into_objects(&narinfo.path, &narinfo.url)?;
        let listing_key = listing_key(narinfo.path.hash_part());
        let mut links = Vec::new();
        for object in expected {
            if object.key == listing_key {
                self.write_listing(archive, remote, &listing_key, Ok(object))?;
            } else {
                links.push(object);
            }
        }
        if let Some(reason) = no_listing {
            self.write_listing(archive, remote, &listing_key, Err(reason))?;
        }
        self.write_links(archive, remote, narinfo, nar_key, links)?;
        match &narinfo.deriver {
            Some(deriver) if self.kinds.logs => self.write_log(archive, remote, deriver),
            _ => Ok(()),
        }
    }

    /// Writes the listing of a NAR, if the cache has it. `expected` is the real listing, or the reason why there cannot
    /// be one.
    fn write_listing(
        &mut self,
        archive: &mut Writer<impl Write>,
        remote: &Remote,
        key: &str,
        expected: Result<ExtraObject>,
    ) -> Result {
        let Some(bytes) = self.fetch(remote, key, MAX_EXTRA_SIZE)? else { return Ok(()) };
        let checked = expected.and_then(|mut expected| {
            let mut text = Vec::new();
            expected.body.read_to_end(&mut text)?;
            check_listing(&bytes, &text)
        });
        if self.accept(remote, key, checked)? {
            archive.member(key, bytes.len() as u64, bytes.as_slice())?;
        }
        Ok(())
    }

    /// Writes the links to the debug information in a NAR that the cache has.
    fn write_links(
        &mut self,
        archive: &mut Writer<impl Write>,
        remote: &Arc<Remote>,
        narinfo: &NarInfo,
        nar_key: &str,
        expected: Vec<ExtraObject>,
    ) -> Result {
        let keys = expected.into_iter().filter(|link| !self.written.contains(&link.key));
        let requests = keys.map(|link| async move {
            let result = remote.bytes(&link.key, MAX_LINK_SIZE).await;
            Ok::<_, Error>((link, result))
        });
        let requests = stream::iter(requests).buffered(MAX_CONCURRENT_REQUESTS);
        let links: Vec<_> = self.runtime.block_on(requests.try_collect())?;
        for (mut link, result) in links {
            let Some(found) = self.unless_refused(remote, &link.key, result)?.flatten() else { continue };
            let mut text = Vec::new();
            link.body.read_to_end(&mut text)?;
            let expected: Value = serde_json::from_slice(&text).map_err(|error| Error::failed(error.to_string()))?;
            let checked = match serde_json::from_slice::<Value>(&found) {
                Ok(found) if found == expected => Ok(()),
                // Another path has a file with the same build ID.
                Ok(found) if found["member"] == expected["member"] && found["archive"].is_string() => {
                    self.foreign_links.insert(link.key);
                    continue;
                }
                _ => Err(Error::refused("it does not name a file of the NAR of its path")),
            };
            if !self.accept(remote, &link.key, checked)? {
                continue;
            }
            let bytes = if nar_key == narinfo.url { found } else { relinked(&expected, nar_key) };
            archive.member(&link.key, bytes.len() as u64, bytes.as_slice())?;
            self.foreign_links.remove(&link.key);
            self.written.insert(link.key);
        }
        Ok(())
    }

    /// Writes the build log of a derivation, once. Nothing in a log can be checked.
    fn write_log(&mut self, archive: &mut Writer<impl Write>, remote: &Remote, deriver: &StorePath) -> Result {
        let key = log_key(deriver);
        if !self.written.insert(key.clone()) {
            return Ok(());
        }
        match self.fetch(remote, &key, MAX_EXTRA_SIZE)? {
            Some(bytes) => archive.member(&key, bytes.len() as u64, bytes.as_slice()),
            None => Ok(()),
        }
    }

    /// Writes the build trace entries of these paths.
    ///
    /// # Errors
    /// Fails when a cache cannot be listed or read, or the archive cannot be written.
    pub fn write_build_trace(&mut self, archive: &mut Writer<impl Write>, candidates: &[Arc<Candidate>]) -> Result {
        if !self.kinds.build_trace {
            return Ok(());
        }
        let paths: HashSet<&StorePath> = candidates.iter().map(|candidate| &candidate.narinfo.path).collect();
        let sources = self.sources;
        for remote in sources.remotes() {
            for prefix in REALISATION_PREFIXES {
                let keys = self.runtime.block_on(remote.list_keys(prefix))?;
                let new = keys.into_iter().filter(|key| !self.written.contains(key)).collect::<Vec<_>>();
                let requests = new.into_iter().map(|key| async move {
                    let result = remote.bytes(&key, MAX_LINK_SIZE).await;
                    (key, result)
                });
                let mut requests = stream::iter(requests).buffered(MAX_CONCURRENT_REQUESTS);
                while let Some((key, result)) = self.runtime.block_on(requests.next()) {
                    let Some(bytes) = self.unless_refused(remote, &key, result)?.flatten() else { continue };
                    let entry = BuildTraceEntry::parse(&key, &bytes, &sources.store_dir);
                    let Some(entry) = self.unless_refused(remote, &key, entry)? else { continue };
                    let checked = sources.check_build_trace(&entry);
                    if paths.contains(&entry.out_path) && self.accept(remote, &key, checked)? {
                        archive.member(&key, bytes.len() as u64, bytes.as_slice())?;
                        self.written.insert(key);
                    }
                }
            }
        }
        Ok(())
    }

    /// Reads an object. Returns none if the cache does not have it, or has one that is refused.
    fn fetch(&mut self, remote: &Remote, key: &str, max_size: usize) -> Result<Option<Vec<u8>>> {
        let result = self.runtime.block_on(remote.bytes(key, max_size));
        Ok(self.unless_refused(remote, key, result)?.flatten())
    }

    /// Counts a refusal, and returns whether the object was accepted.
    fn accept(&mut self, remote: &Remote, key: &str, checked: Result) -> Result<bool> {
        Ok(self.unless_refused(remote, key, checked)?.is_some())
    }

    /// Counts a refusal, prints it and returns none.
    fn unless_refused<T>(&mut self, remote: &Remote, key: &str, result: Result<T>) -> Result<Option<T>> {
        match result {
            Err(error) if error.is_refusal() => {
                self.refused += 1;
                let url = remote.display_url(key);
                let cause = error.message().strip_prefix(&format!("{url}: ")).unwrap_or(error.message());
                process::print_message(TOOL, format!("warning: {url} is left out: {cause}"));
                Ok(None)
            }
            result => result.map(Some),
        }
    }

    /// Reports the objects that were left out.
    ///
    /// # Errors
    /// Refuses the archive if an object was refused.
    pub fn finish(self) -> Result {
        if let Some(first) = self.foreign_links.first() {
            let count = self.foreign_links.len();
            let which = "debug information links name a NAR that is not in the archive, and are left out";
            process::print_message(TOOL, format!("warning: {count} {which}, among them {first}"));
        }
        match self.refused {
            0 => Ok(()),
            1 => Err(Error::refused("1 object was refused and is not in the archive, which is complete otherwise")),
            count => Err(Error::refused(format!(
                "{count} objects were refused and are not in the archive, which is complete otherwise"
            ))),
        }
    }
}

/// Requires that a listing describes the NAR that has the listing `expected`.
fn check_listing(found: &[u8], expected: &[u8]) -> Result {
    if found.trim_ascii() == expected {
        return Ok(());
    }
    let refused = || Error::refused("it does not describe the NAR of its path");
    if found.len() > MAX_PARSED_LISTING_SIZE || expected.len() > MAX_PARSED_LISTING_SIZE {
        return Err(refused());
    }
    // Versions of Nix write the same fields in different orders.
    let parse = |json: &[u8]| serde_json::from_slice::<Value>(json).map_err(|_| refused());
    let (found, expected) = (parse(found)?, parse(expected)?);
    if found == expected { Ok(()) } else { Err(refused()) }
}

/// Returns a link to the same file of a NAR that has another key.
fn relinked(link: &Value, nar_key: &str) -> Vec<u8> {
    let mut link = link.clone();
    link["archive"] = Value::from(format!("../{nar_key}"));
    link.to_string().into_bytes()
}
