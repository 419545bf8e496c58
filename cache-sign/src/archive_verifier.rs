//! Verifies a cache archive: passes on the trusted narinfos and the NARs that they describe. A NAR is stored in a spool
//! file, hashed and unpacked, and passes when a trusted narinfo refers to it: FileHash, FileSize, NarHash and NarSize of
//! the narinfo then match its bytes. It may come before or after its narinfo. Memory holds only a few hashes per member.

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

use crate::input::parse_narinfo;
use crate::report::write_report_line;
use crate::run::TOOL;
use crate::spool::{NarSpool, SpooledNar};
use crate::trust::TrustedKeys;

/// The output of `cache-sign verify` for an archive.
pub enum VerifyOutput<W: Write> {
    /// A cache archive of the members that pass.
    Archive(archive::Writer<W>),
    /// A line of JSON per path.
    Report(W),
}

/// Counts what was verified.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Summary {
    /// Trusted paths.
    pub trusted_paths: u64,
    /// Paths that are not trusted.
    pub refused_paths: u64,
    /// Other members of an archive that were refused.
    pub refused_members: u64,
}

impl Summary {
    /// Counts a path, prints why it is refused if it is, and returns whether it is trusted.
    pub fn count_path(&mut self, result: &Result) -> bool {
        match result {
            Ok(()) => self.trusted_paths += 1,
            Err(error) => {
                process::print_message(TOOL, error);
                self.refused_paths += 1;
            }
        }
        result.is_ok()
    }

    fn refuse_member(&mut self, key: &str, error: Error) {
        process::print_message(TOOL, error.context(key));
        self.refused_members += 1;
    }

    /// Returns the result of the whole verification.
    ///
    /// # Errors
    /// A refusal if anything was refused.
    pub fn into_result(self) -> Result {
        let count = self.trusted_paths + self.refused_paths;
        let paths = match (self.refused_paths, count) {
            (1, 1) => "the path is not trusted".to_owned(),
            (1, count) => format!("1 of {count} paths is not trusted"),
            (refused, count) => format!("{refused} of {count} paths are not trusted"),
        };
        let members = match self.refused_members {
            1 => "1 other archive member was refused".to_owned(),
            n => format!("{n} other archive members were refused"),
        };
        match (self.refused_paths, self.refused_members) {
            (0, 0) => Ok(()),
            (_, 0) => Err(Error::refused(paths)),
            (0, _) => Err(Error::refused(members)),
            (_, _) => Err(Error::refused(format!("{paths}, and {members}"))),
        }
    }
}

/// The state of a NAR of the archive.
enum NarState {
    /// It is a valid NAR, but no trusted narinfo refers to it so far.
    Pending {
        nar: SpooledNar,
        digests: NarDigests,
        /// Whether a refused narinfo refers to it.
        is_referenced: bool,
    },
    Passed(NarDigests),
    Refused,
}

/// Verifies one archive.
pub struct ArchiveVerifier<'a, W: Write> {
    trusted: &'a TrustedKeys,
    store_dir: &'a StoreDir,
    output: VerifyOutput<W>,
    summary: Summary,
    spool: NarSpool,
    nars: HashMap<String, NarState>,
    /// Trusted narinfos that came before their NAR, by the key of the NAR; reduced to what the NAR is compared with.
    expected: HashMap<String, Vec<NarInfo>>,
    /// Keys of NARs that have not arrived yet and to which only refused narinfos refer.
    refused_references: HashSet<String>,
    /// Hashes of the keys of all members that are not NARs.
    seen: HashSet<Sha256>,
}

impl<'a, W: Write> ArchiveVerifier<'a, W> {
    /// Creates a verifier that writes to `output`.
    pub fn new(trusted: &'a TrustedKeys, store_dir: &'a StoreDir, output: VerifyOutput<W>) -> Self {
        Self {
            trusted,
            store_dir,
            output,
            summary: Summary::default(),
            spool: NarSpool::default(),
            nars: HashMap::new(),
            expected: HashMap::new(),
            refused_references: HashSet::new(),
            seen: HashSet::new(),
        }
    }

    /// Verifies the archive `input` to its end and returns the writer of the output and the counts. A member that is
    /// refused is counted and is not an error.
    ///
    /// # Errors
    /// Refuses a malformed or truncated archive; fails if the output or the spool file cannot be written.
    pub fn run(mut self, input: impl BufRead) -> Result<(W, Summary)> {
        archive::read(input, |member| self.verify_member(member))?;
        self.refuse_unreferenced_nars();
        let out = match self.output {
            VerifyOutput::Archive(out) => out.finish()?,
            VerifyOutput::Report(out) => out,
        };
        Ok((out, self.summary))
    }

    fn verify_member(&mut self, mut member: Member<'_>) -> Result {
        if matches!(member.object, Object::Nar(_)) {
            return self.verify_nar(&mut member);
        }
        if !self.seen.insert(Sha256::of(member.key.as_bytes())) {
            self.summary.refuse_member(&member.key, Error::refused("duplicate archive member"));
            return Ok(());
        }
        match (&mut self.output, member.object) {
            (_, Object::Narinfo(_)) => {
                let narinfo = parse_narinfo(&mut member, self.store_dir)?;
                self.verify_narinfo(&narinfo)
            }
            (VerifyOutput::Archive(out), _) => out.member(&member.key, member.size, member.body),
            (VerifyOutput::Report(_), _) => Ok(()),
        }
    }

    fn verify_nar(&mut self, member: &mut Member<'_>) -> Result {
        let key = member.key.clone();
        let nar = self.spool.store(member.size, member.body)?;
        let result = self.spool.read(&nar).and_then(|reader| digest_named_nar(reader, &key, &mut Skip));
        let digests = match result {
            Ok(digests) => digests,
            Err(error) if error.is_refusal() => {
                self.summary.refuse_member(&key, error);
                self.nars.entry(key).or_insert(NarState::Refused);
                return self.spool.release(nar);
            }
            Err(error) => return Err(error),
        };
        match self.nars.get(&key) {
            None => {}
            // Paths with the same contents share a NAR, and narinfo-gen writes it once for each path.
            Some(NarState::Pending { digests: first, .. } | NarState::Passed(first)) if *first == digests => {
                return self.spool.release(nar);
            }
            Some(_) => {
                let error = Error::refused("duplicate archive member with different contents");
                self.summary.refuse_member(&key, error);
                return self.spool.release(nar);
            }
        }
        let state = match self.expected.remove(&key) {
            None => NarState::Pending { nar, digests, is_referenced: self.refused_references.remove(&key) },
            Some(narinfos) => self.compare_with_narinfos(&key, nar, digests, &narinfos)?,
        };
        self.nars.insert(key, state);
        Ok(())
    }

    /// Passes a NAR if one of the trusted narinfos that came before it matches; those that do not are refused after all.
    fn compare_with_narinfos(
        &mut self,
        key: &str,
        nar: SpooledNar,
        digests: NarDigests,
        narinfos: &[NarInfo],
    ) -> Result<NarState> {
        let mut is_expected = false;
        for narinfo in narinfos {
            let result = digests.require(narinfo);
            is_expected |= result.is_ok();
            if result.is_err() {
                self.summary.trusted_paths -= 1;
                self.summary.count_path(&result);
            }
        }
        if is_expected {
            self.pass_nar(key, nar)?;
            Ok(NarState::Passed(digests))
        } else {
            self.spool.release(nar)?;
            Ok(NarState::Refused)
        }
    }

    fn pass_nar(&mut self, key: &str, nar: SpooledNar) -> Result {
        if let VerifyOutput::Archive(out) = &mut self.output {
            out.member(key, nar.size, self.spool.read(&nar)?)?;
        }
        self.spool.release(nar)
    }

    fn verify_narinfo(&mut self, narinfo: &NarInfo) -> Result {
        let nar_reference = require_nar_reference(narinfo);
        let result = nar_reference
            .clone()
            .and_then(|()| self.trusted.require(narinfo))
            .and_then(|()| self.require_nar_matches(narinfo));
        let is_trusted = self.summary.count_path(&result);
        if let VerifyOutput::Report(out) = &mut self.output {
            write_report_line(out, self.trusted, narinfo, is_trusted)?;
        }
        if is_trusted {
            return self.pass_narinfo(narinfo);
        }
        if nar_reference.is_ok() {
            match self.nars.get_mut(&narinfo.url) {
                None => drop(self.refused_references.insert(narinfo.url.clone())),
                Some(NarState::Pending { is_referenced, .. }) => *is_referenced = true,
                Some(_) => {}
            }
        }
        Ok(())
    }

    /// Compares the narinfo with its NAR, if the NAR came before it.
    fn require_nar_matches(&self, narinfo: &NarInfo) -> Result {
        match self.nars.get(&narinfo.url) {
            None => Ok(()),
            Some(NarState::Pending { digests, .. } | NarState::Passed(digests)) => digests.require(narinfo),
            Some(NarState::Refused) => Err(Error::refused(format!("{}: its NAR was refused", narinfo.full_path()))),
        }
    }

    /// Passes on a trusted narinfo, after its NAR if that is pending.
    fn pass_narinfo(&mut self, narinfo: &NarInfo) -> Result {
        let url = narinfo.url.clone();
        match self.nars.remove(&url) {
            Some(NarState::Pending { nar, digests, .. }) => {
                self.pass_nar(&url, nar)?;
                self.nars.insert(url, NarState::Passed(digests));
            }
            Some(state) => drop(self.nars.insert(url, state)),
            None => self.expected.entry(url).or_default().push(without_unneeded_fields(narinfo)),
        }
        match &mut self.output {
            VerifyOutput::Archive(out) => out.narinfo(narinfo),
            VerifyOutput::Report(_) => Ok(()),
        }
    }

    fn refuse_unreferenced_nars(&mut self) {
        let is_unreferenced = |state: &NarState| matches!(state, NarState::Pending { is_referenced: false, .. });
        let unreferenced = self.nars.iter().filter(|(_, state)| is_unreferenced(state));
        let mut keys: Vec<&String> = unreferenced.map(|(key, _)| key).collect();
        keys.sort_unstable();
        for key in keys {
            self.summary.refuse_member(key, Error::refused("no narinfo in the archive refers to this NAR"));
        }
    }
}

/// Maximum length of the name of a compression in bytes. It is not signed and is kept in memory.
const MAX_COMPRESSION_LENGTH: usize = 32;

/// Refuses a narinfo whose URL is not the key of a NAR: the object there would pass without being verified.
fn require_nar_reference(narinfo: &NarInfo) -> Result {
    let path = narinfo.full_path();
    if !matches!(Object::of_key(&narinfo.url), Some(Object::Nar(_))) {
        return Err(Error::refused(format!("{path}: its URL is not the key of a NAR")));
    }
    if narinfo.compression.len() > MAX_COMPRESSION_LENGTH {
        return Err(Error::refused(format!("{path}: its Compression is longer than {MAX_COMPRESSION_LENGTH} bytes")));
    }
    Ok(())
}

/// The fields that a NAR is compared with, and the path for messages.
fn without_unneeded_fields(narinfo: &NarInfo) -> NarInfo {
    NarInfo {
        references: Vec::new(),
        signatures: Vec::new(),
        unknown: Vec::new(),
        deriver: None,
        ca: None,
        ..narinfo.clone()
    }
}
