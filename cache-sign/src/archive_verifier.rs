//! What passes of a cache archive: narinfos that enough trusted keys signed, and the NARs that these describe.
//!
//! A NAR is kept in the temporary directory, hashed and unpacked, and passes when a narinfo that holds names it: its
//! bytes are then FileHash, FileSize, NarHash and NarSize of that narinfo. It may come before its narinfo or after it.
//! What stays in memory of a member is a few hashes.

use std::collections::{HashMap, HashSet};
use std::io::{BufRead, Write};

use nar_pack::error::{Error, Result};
use nar_pack::nar::Skip;
use nar_pack::process;
use nar_pack::store_path::StoreDir;
use narinfo_gen::archive::{self, Member, Object};
use narinfo_gen::hash::Sha256;
use narinfo_gen::narinfo::NarInfo;
use narinfo_gen::verify_nar::{NarDigests, digest_named_nar};

use crate::spool::{NarSpool, SpooledNar};
use crate::trust::TrustedKeys;
use crate::{TOOL, parse_narinfo, tell};

/// Where the result of `cache-sign verify` goes.
pub enum Results<W: Write> {
    /// What holds, as a cache archive.
    Archive(archive::Writer<W>),
    /// A line of JSON for each path.
    Report(W),
}

/// How many paths held, and what did not.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Summary {
    /// Paths that hold.
    pub passed: u64,
    /// Paths that do not.
    pub refused: u64,
    /// Other members of an archive that were refused.
    pub members: u64,
}

impl Summary {
    /// Counts a path and says why it is refused, if it is.
    pub fn count(&mut self, verdict: &Result) {
        match verdict {
            Ok(()) => self.passed += 1,
            Err(failure) => {
                process::print_message(TOOL, failure);
                self.refused += 1;
            }
        }
    }

    fn refuse_member(&mut self, key: &str, failure: Error) {
        process::print_message(TOOL, failure.context(key));
        self.members += 1;
    }

    /// The end of `cache-sign verify`.
    ///
    /// # Errors
    /// A refusal if anything was refused.
    pub fn verdict(self) -> Result {
        let paths = format!("{} of {} paths are not trusted", self.refused, self.passed + self.refused);
        let members = format!("{} other members of the archive are refused", self.members);
        match (self.refused, self.members) {
            (0, 0) => Ok(()),
            (_, 0) => Err(Error::refused(paths)),
            (0, _) => Err(Error::refused(members)),
            (_, _) => Err(Error::refused(format!("{paths}, and {members}"))),
        }
    }
}

/// What became of a NAR.
enum NarState {
    /// It is well-formed, and no narinfo that holds has named it.
    Waits {
        kept: SpooledNar,
        digests: NarDigests,
        /// Whether one that does not hold has.
        named: bool,
    },
    Passed(NarDigests),
    Refused,
}

/// An archive that is being read.
pub struct ArchiveVerifier<'a, W: Write> {
    trusted: &'a TrustedKeys,
    store_dir: &'a StoreDir,
    results: Results<W>,
    summary: Summary,
    held: NarSpool,
    nars: HashMap<String, NarState>,
    /// Narinfos that have passed before their NAR came, by its key; without what the NAR does not tell.
    expected: HashMap<String, Vec<NarInfo>>,
    /// Keys of NARs that only narinfos have named that do not hold.
    unwelcome: HashSet<String>,
    /// Hashes of the keys of all other members.
    seen: HashSet<Sha256>,
}

impl<'a, W: Write> ArchiveVerifier<'a, W> {
    /// One of which nothing has been read.
    pub fn new(trusted: &'a TrustedKeys, store_dir: &'a StoreDir, results: Results<W>) -> Self {
        Self {
            trusted,
            store_dir,
            results,
            summary: Summary::default(),
            held: NarSpool::default(),
            nars: HashMap::new(),
            expected: HashMap::new(),
            unwelcome: HashSet::new(),
            seen: HashSet::new(),
        }
    }

    /// Reads the archive to its end; gives back what took the results, and the count.
    ///
    /// # Errors
    /// Refuses a malformed or truncated archive; passes on what the output says. What does not hold is no error here.
    pub fn run(mut self, input: impl BufRead) -> Result<(W, Summary)> {
        archive::read(input, |member| self.member(member))?;
        let mut unnamed: Vec<&String> = Vec::new();
        for (key, state) in &self.nars {
            if matches!(state, NarState::Waits { named: false, .. }) {
                unnamed.push(key);
            }
        }
        unnamed.sort_unstable();
        for key in unnamed {
            self.summary.refuse_member(key, Error::refused("no narinfo in the archive names it"));
        }
        let out = match self.results {
            Results::Archive(out) => out.finish()?,
            Results::Report(out) => out,
        };
        Ok((out, self.summary))
    }

    fn member(&mut self, mut member: Member<'_>) -> Result {
        if matches!(member.object, Object::Nar(_)) {
            return self.nar(&mut member);
        }
        if !self.seen.insert(Sha256::of(member.key.as_bytes())) {
            self.summary.refuse_member(&member.key, Error::refused("it is in the archive twice"));
            return Ok(());
        }
        match (&mut self.results, member.object) {
            (_, Object::Narinfo(_)) => {
                let narinfo = parse_narinfo(&mut member, self.store_dir)?;
                self.narinfo(&narinfo)
            }
            (Results::Archive(out), _) => out.member(&member.key, member.size, member.body),
            (Results::Report(_), _) => Ok(()),
        }
    }

    fn nar(&mut self, member: &mut Member<'_>) -> Result {
        let key = member.key.clone();
        let kept = self.held.keep(member.size, member.body)?;
        let digests = match self.digest_nar(&key, &kept) {
            Ok(digests) => digests,
            Err(failure) if failure.is_refusal() => {
                self.summary.refuse_member(&key, failure);
                self.nars.entry(key).or_insert(NarState::Refused);
                return self.held.release(kept);
            }
            Err(failure) => return Err(failure),
        };
        match self.nars.get(&key) {
            None => {}
            // Paths of the same contents have the same NAR, and narinfo-gen sends it with each.
            Some(NarState::Waits { digests: first, .. } | NarState::Passed(first)) if *first == digests => {
                return self.held.release(kept);
            }
            Some(_) => {
                self.summary.refuse_member(&key, Error::refused("it is in the archive twice, with other bytes"));
                return self.held.release(kept);
            }
        }
        let state = match self.expected.remove(&key) {
            None => NarState::Waits { kept, digests, named: self.unwelcome.remove(&key) },
            Some(narinfos) => {
                let mut is_expected = false;
                for narinfo in &narinfos {
                    let verdict = digests.require(narinfo);
                    is_expected |= verdict.is_ok();
                    if verdict.is_err() {
                        self.summary.passed -= 1;
                        self.summary.count(&verdict);
                    }
                }
                if is_expected {
                    self.pass(&key, kept)?;
                    NarState::Passed(digests)
                } else {
                    self.held.release(kept)?;
                    NarState::Refused
                }
            }
        };
        self.nars.insert(key, state);
        Ok(())
    }

    fn digest_nar(&self, key: &str, kept: &SpooledNar) -> Result<NarDigests> {
        digest_named_nar(self.held.read(kept)?, key, &mut Skip)
    }

    fn pass(&mut self, key: &str, kept: SpooledNar) -> Result {
        if let Results::Archive(out) = &mut self.results {
            out.member(key, kept.size, self.held.read(&kept)?)?;
        }
        self.held.release(kept)
    }

    fn narinfo(&mut self, narinfo: &NarInfo) -> Result {
        let named = require_nar(narinfo);
        let verdict = named.clone().and_then(|()| self.trusted.require(narinfo)).and_then(|()| {
            match self.nars.get(&narinfo.url) {
                None => Ok(()),
                Some(NarState::Waits { digests, .. } | NarState::Passed(digests)) => digests.require(narinfo),
                Some(NarState::Refused) => Err(Error::refused(format!("{}: its NAR is refused", narinfo.full_path()))),
            }
        });
        self.summary.count(&verdict);
        if let Results::Report(out) = &mut self.results {
            tell(out, self.trusted, narinfo, verdict.is_ok())?;
        }
        if named.is_err() {
            return Ok(());
        }
        let url = narinfo.url.clone();
        if verdict.is_err() {
            match self.nars.get_mut(&url) {
                None => drop(self.unwelcome.insert(url)),
                Some(NarState::Waits { named, .. }) => *named = true,
                Some(_) => {}
            }
            return Ok(());
        }
        match self.nars.remove(&url) {
            Some(NarState::Waits { kept, digests, .. }) => {
                self.pass(&url, kept)?;
                self.nars.insert(url, NarState::Passed(digests));
            }
            Some(state) => drop(self.nars.insert(url, state)),
            None => self.expected.entry(url).or_default().push(outline(narinfo)),
        }
        match &mut self.results {
            Results::Archive(out) => out.narinfo(narinfo),
            Results::Report(_) => Ok(()),
        }
    }
}

/// Longest name of a compression in bytes; nobody signs it, and it is kept.
const MAX_COMPRESSION: usize = 32;

/// Refuses a narinfo whose URL is not the key of a NAR: what lies there would pass without being looked at.
fn require_nar(narinfo: &NarInfo) -> Result {
    if matches!(Object::of_key(&narinfo.url), Some(Object::Nar(_))) && narinfo.compression.len() <= MAX_COMPRESSION {
        return Ok(());
    }
    Err(Error::refused(format!("{}: its URL or Compression is not that of a NAR", narinfo.full_path())))
}

/// What a NAR can be compared with, and the path for messages.
fn outline(narinfo: &NarInfo) -> NarInfo {
    NarInfo {
        references: Vec::new(),
        signatures: Vec::new(),
        unknown: Vec::new(),
        deriver: None,
        ca: None,
        ..narinfo.clone()
    }
}
