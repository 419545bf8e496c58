//! What passes of a cache archive: narinfos that enough trusted keys signed, and the NARs that these describe.
//!
//! A NAR is kept in the temporary directory, hashed and unpacked, and passes when a narinfo that holds names it: its
//! bytes are then FileHash, FileSize, NarHash and NarSize of that narinfo. It may come before its narinfo or after it.
//! What stays in memory of a member is a few hashes.

use std::collections::{HashMap, HashSet};
use std::io::{BufRead, Write};

use nar_pack::nar::Skip;
use nar_pack::stage::{self, Failure, Outcome};
use nar_pack::store_path::StoreDir;
use narinfo_gen::archive::{self, Member, Object};
use narinfo_gen::examine::{Facts, examine_named};
use narinfo_gen::hash::Sha256;
use narinfo_gen::narinfo::NarInfo;

use crate::held::{Held, Kept};
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
pub struct Tally {
    /// Paths that hold.
    pub passed: u64,
    /// Paths that do not.
    pub refused: u64,
    /// Other members of an archive that were refused.
    pub members: u64,
}

impl Tally {
    /// Counts a path and says why it is refused, if it is.
    pub fn count(&mut self, verdict: &Outcome) {
        match verdict {
            Ok(()) => self.passed += 1,
            Err(failure) => {
                stage::say(TOOL, failure);
                self.refused += 1;
            }
        }
    }

    fn refuse_member(&mut self, key: &str, failure: Failure) {
        stage::say(TOOL, failure.doing(key));
        self.members += 1;
    }

    /// The end of `cache-sign verify`.
    ///
    /// # Errors
    /// A refusal if anything was refused.
    pub fn verdict(self) -> Outcome {
        let paths = format!("{} of {} paths are not trusted", self.refused, self.passed + self.refused);
        let members = format!("{} other members of the archive are refused", self.members);
        match (self.refused, self.members) {
            (0, 0) => Ok(()),
            (_, 0) => Err(Failure::refused(paths)),
            (0, _) => Err(Failure::refused(members)),
            (_, _) => Err(Failure::refused(format!("{paths}, and {members}"))),
        }
    }
}

/// What became of a NAR.
enum NarState {
    /// It is well-formed, and no narinfo that holds has named it.
    Waits {
        kept: Kept,
        facts: Facts,
        /// Whether one that does not hold has.
        named: bool,
    },
    Passed(Facts),
    Refused,
}

/// An archive that is being read.
pub struct Inspection<'a, W: Write> {
    trusted: &'a TrustedKeys,
    store_dir: &'a StoreDir,
    results: Results<W>,
    tally: Tally,
    held: Held,
    nars: HashMap<String, NarState>,
    /// Narinfos that have passed before their NAR came, by its key; without what the NAR does not tell.
    expected: HashMap<String, Vec<NarInfo>>,
    /// Keys of NARs that only narinfos have named that do not hold.
    unwelcome: HashSet<String>,
    /// Hashes of the keys of all other members.
    seen: HashSet<Sha256>,
}

impl<'a, W: Write> Inspection<'a, W> {
    /// One of which nothing has been read.
    pub fn new(trusted: &'a TrustedKeys, store_dir: &'a StoreDir, results: Results<W>) -> Self {
        Self {
            trusted,
            store_dir,
            results,
            tally: Tally::default(),
            held: Held::default(),
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
    pub fn run(mut self, input: impl BufRead) -> Outcome<(W, Tally)> {
        archive::read(input, |member| self.member(member))?;
        let mut unnamed: Vec<&String> = Vec::new();
        for (key, state) in &self.nars {
            if matches!(state, NarState::Waits { named: false, .. }) {
                unnamed.push(key);
            }
        }
        unnamed.sort_unstable();
        for key in unnamed {
            self.tally.refuse_member(key, Failure::refused("no narinfo in the archive names it"));
        }
        let out = match self.results {
            Results::Archive(out) => out.finish()?,
            Results::Report(out) => out,
        };
        Ok((out, self.tally))
    }

    fn member(&mut self, mut member: Member<'_>) -> Outcome {
        if matches!(member.object, Object::Nar(_)) {
            return self.nar(&mut member);
        }
        if !self.seen.insert(Sha256::of(member.key.as_bytes())) {
            self.tally.refuse_member(&member.key, Failure::refused("it is in the archive twice"));
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

    fn nar(&mut self, member: &mut Member<'_>) -> Outcome {
        let key = member.key.clone();
        let kept = self.held.keep(member.size, member.body)?;
        let facts = match self.examine(&key, &kept) {
            Ok(facts) => facts,
            Err(failure) if failure.is_refusal() => {
                self.tally.refuse_member(&key, failure);
                self.nars.entry(key).or_insert(NarState::Refused);
                return self.held.release(kept);
            }
            Err(failure) => return Err(failure),
        };
        match self.nars.get(&key) {
            None => {}
            // Paths of the same contents have the same NAR, and narinfo-gen sends it with each.
            Some(NarState::Waits { facts: first, .. } | NarState::Passed(first)) if *first == facts => {
                return self.held.release(kept);
            }
            Some(_) => {
                self.tally.refuse_member(&key, Failure::refused("it is in the archive twice, with other bytes"));
                return self.held.release(kept);
            }
        }
        let state = match self.expected.remove(&key) {
            None => NarState::Waits { kept, facts, named: self.unwelcome.remove(&key) },
            Some(narinfos) => {
                let mut is_expected = false;
                for narinfo in &narinfos {
                    let verdict = facts.require(narinfo);
                    is_expected |= verdict.is_ok();
                    if verdict.is_err() {
                        self.tally.passed -= 1;
                        self.tally.count(&verdict);
                    }
                }
                if is_expected {
                    self.pass(&key, kept)?;
                    NarState::Passed(facts)
                } else {
                    self.held.release(kept)?;
                    NarState::Refused
                }
            }
        };
        self.nars.insert(key, state);
        Ok(())
    }

    fn examine(&self, key: &str, kept: &Kept) -> Outcome<Facts> {
        examine_named(self.held.read(kept)?, key, &mut Skip)
    }

    fn pass(&mut self, key: &str, kept: Kept) -> Outcome {
        if let Results::Archive(out) = &mut self.results {
            out.member(key, kept.size, self.held.read(&kept)?)?;
        }
        self.held.release(kept)
    }

    fn narinfo(&mut self, narinfo: &NarInfo) -> Outcome {
        let named = require_nar(narinfo);
        let verdict = named.clone().and_then(|()| self.trusted.require(narinfo)).and_then(|()| {
            match self.nars.get(&narinfo.url) {
                None => Ok(()),
                Some(NarState::Waits { facts, .. } | NarState::Passed(facts)) => facts.require(narinfo),
                Some(NarState::Refused) => {
                    Err(Failure::refused(format!("{}: its NAR is refused", narinfo.full_path())))
                }
            }
        });
        self.tally.count(&verdict);
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
            Some(NarState::Waits { kept, facts, .. }) => {
                self.pass(&url, kept)?;
                self.nars.insert(url, NarState::Passed(facts));
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
fn require_nar(narinfo: &NarInfo) -> Outcome {
    if matches!(Object::of_key(&narinfo.url), Some(Object::Nar(_))) && narinfo.compression.len() <= MAX_COMPRESSION {
        return Ok(());
    }
    Err(Failure::refused(format!("{}: its URL or Compression is not that of a NAR", narinfo.full_path())))
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
