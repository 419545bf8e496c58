//! Verifies a cache archive: passes on the trusted narinfos and the NARs that they describe. A NAR is stored in a spool
//! file until a trusted narinfo refers to it, which may come before or after it. Only then is it unpacked, up to NarSize,
//! and passes if FileHash, FileSize, NarHash and NarSize match its bytes. Memory holds only a few hashes per member.

use std::collections::{HashMap, HashSet};
use std::io::{BufRead, BufReader, Write};

use nar_pack::error::{Error, Result};
use nar_pack::nar::Skip;
use nar_pack::process;
use nar_pack::stdio::BUFFER_SIZE;
use nar_pack::store_path::StoreDir;
use narinfo_gen::archive::{self, Member, Object};
use narinfo_gen::hash::Sha256;
use narinfo_gen::narinfo::NarInfo;
use narinfo_gen::verify_nar::{NarDigests, NarSizeLimit, digest_named_nar, require_file};

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
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Summary {
    /// Trusted paths.
    pub trusted_paths: u64,
    /// Paths that are not trusted.
    pub refused_paths: u64,
    /// Other members of an archive that were refused.
    pub refused_members: u64,
    /// The hint of the first refusal that has one.
    hint: Option<String>,
}

impl Summary {
    /// Counts a path, prints why it is refused if it is, and returns whether it is trusted.
    pub fn count_path(&mut self, result: &Result) -> bool {
        match result {
            Ok(()) => self.trusted_paths += 1,
            Err(error) => {
                self.print(error);
                self.refused_paths += 1;
            }
        }
        result.is_ok()
    }

    fn refuse_member(&mut self, key: &str, error: Error) {
        self.print(&error.context(key));
        self.refused_members += 1;
    }

    /// Prints an error and keeps its hint, which is printed once, at the end.
    fn print(&mut self, error: &Error) {
        process::print_message(TOOL, error);
        self.hint = self.hint.take().or_else(|| error.hint().map(str::to_owned));
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
        let error = match (self.refused_paths, self.refused_members) {
            (0, 0) => return Ok(()),
            (_, 0) => Error::refused(paths),
            (0, _) => Error::refused(members),
            (_, _) => Error::refused(format!("{paths}, and {members}")),
        };
        Err(self.hint.into_iter().fold(error, Error::with_hint))
    }
}

/// The state of a NAR of the archive.
enum NarState {
    /// It is stored, and no trusted narinfo that matches it has arrived.
    Pending {
        nar: SpooledNar,
        contents: NarContents,
        /// Whether a refused narinfo refers to it.
        is_referenced: bool,
    },
    /// A trusted narinfo matches it, and it was passed on.
    Passed { file_hash: Sha256, digests: NarDigests },
    /// The trusted narinfos that came before it do not match it.
    Refused,
}

/// What is known about the contents of a stored NAR.
#[derive(Clone, Copy)]
enum NarContents {
    /// It is not a valid NAR of this size in bytes or less; 0 if it was not read.
    RefusedUpTo(u64),
    /// It is a valid NAR.
    Valid(NarDigests),
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
    /// Whether a narinfo was refused after it was passed on, because its NAR came later.
    refused_late: bool,
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
            refused_late: false,
        }
    }

    /// Verifies the archive `input` to its end and returns the writer of the output and the counts. A member that is
    /// refused is counted and is not an error. If it is a narinfo that was passed on before its NAR, the output stays
    /// truncated, and no writer is returned.
    ///
    /// # Errors
    /// Refuses a malformed or truncated archive; fails if the output or the spool file cannot be written.
    pub fn run(mut self, input: impl BufRead) -> Result<(Option<W>, Summary)> {
        archive::read(input, |member| self.verify_member(member))?;
        self.refuse_unreferenced_nars();
        let out = match self.output {
            VerifyOutput::Archive(mut out) if self.refused_late => {
                out.flush()?;
                None
            }
            VerifyOutput::Archive(out) => Some(out.finish()?),
            VerifyOutput::Report(out) => Some(out),
        };
        Ok((out, self.summary))
    }

    fn verify_member<R: BufRead>(&mut self, mut member: Member<'_, R>) -> Result {
        if matches!(member.object, Object::Nar(_)) {
            return self.verify_nar(&mut member);
        }
        if !self.seen.insert(Sha256::of(member.key.as_bytes())) {
            self.summary.refuse_member(&member.key, Error::refused("duplicate archive member"));
            return Ok(());
        }
        match (&mut self.output, member.object) {
            (_, Object::Narinfo(hash)) => {
                let narinfo = NarInfo::parse_of(hash, &member.text(member.text_limit())?, self.store_dir)?;
                self.verify_narinfo(&narinfo)
            }
            (VerifyOutput::Archive(out), _) => out.member(&member.key, member.size, member.body),
            (VerifyOutput::Report(_), _) => Ok(()),
        }
    }

    fn verify_nar<R: BufRead>(&mut self, member: &mut Member<'_, R>) -> Result {
        let key = member.key.clone();
        let nar = self.spool.store(member.size, member.body)?;
        match self.nars.get(&key) {
            None => {}
            // Paths with the same contents share a NAR, and narinfo-gen writes it once for each path.
            Some(NarState::Pending { nar: SpooledNar { file_hash, .. }, .. } | NarState::Passed { file_hash, .. })
                if *file_hash == nar.file_hash =>
            {
                return self.spool.release(nar);
            }
            Some(_) => {
                let error = Error::refused("duplicate archive member with different contents");
                self.summary.refuse_member(&key, error);
                return self.spool.release(nar);
            }
        }
        let state = match self.expected.remove(&key) {
            None => NarState::Pending {
                nar,
                contents: NarContents::RefusedUpTo(0),
                is_referenced: self.refused_references.remove(&key),
            },
            Some(narinfos) => self.compare_with_narinfos(&key, nar, &narinfos)?,
        };
        self.nars.insert(key, state);
        Ok(())
    }

    /// Unpacks a stored NAR, at most `nar_size` bytes of it. The outer error is one of the spool file.
    fn digest(&self, key: &str, nar: &SpooledNar, nar_size: u64) -> Result<Result<NarDigests>> {
        match digest_named_nar(self.spool.read(nar)?, key, &NarSizeLimit::new(nar_size), &mut Skip) {
            Err(error) if !error.is_refusal() => Err(error),
            result => Ok(result),
        }
    }

    /// Passes a NAR if one of the trusted narinfos that came before it matches; those that do not are refused after all.
    fn compare_with_narinfos(&mut self, key: &str, nar: SpooledNar, narinfos: &[NarInfo]) -> Result<NarState> {
        let max_size = narinfos.iter().map(|narinfo| narinfo.nar_size).max().unwrap_or_default();
        let digests = self.digest(key, &nar, max_size)?;
        let mut is_expected = false;
        for narinfo in narinfos {
            let result = require_file(narinfo, nar.file_hash, nar.size).and_then(|()| match &digests {
                Ok(digests) => digests.require(narinfo),
                Err(error) => Err(error.clone().context(narinfo.full_path())),
            });
            is_expected |= result.is_ok();
            if result.is_err() {
                self.summary.trusted_paths -= 1;
                self.summary.count_path(&result);
                self.refused_late = true;
            }
        }
        match digests {
            Ok(digests) if is_expected => {
                let file_hash = nar.file_hash;
                self.pass_nar(key, nar)?;
                Ok(NarState::Passed { file_hash, digests })
            }
            _ => {
                self.spool.release(nar)?;
                Ok(NarState::Refused)
            }
        }
    }

    fn pass_nar(&mut self, key: &str, nar: SpooledNar) -> Result {
        if let VerifyOutput::Archive(out) = &mut self.output {
            out.member(key, nar.size, BufReader::with_capacity(BUFFER_SIZE, self.spool.read(&nar)?))?;
        }
        self.spool.release(nar)
    }

    fn verify_narinfo(&mut self, narinfo: &NarInfo) -> Result {
        let nar_reference = require_nar_reference(narinfo);
        let result = match nar_reference.clone().and_then(|()| self.trusted.require(narinfo)) {
            Ok(()) => self.compare_with_nar(narinfo)?,
            refused => refused,
        };
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

    /// Compares a trusted narinfo with its NAR, if the NAR came before it. The outer error is one of the spool file.
    fn compare_with_nar(&mut self, narinfo: &NarInfo) -> Result<Result> {
        let (nar, known) = match self.nars.get(&narinfo.url) {
            None => return Ok(Ok(())),
            Some(NarState::Passed { digests, .. }) => return Ok(digests.require(narinfo)),
            Some(NarState::Refused) => return Ok(Err(nar_refused(narinfo))),
            Some(NarState::Pending { nar, contents, .. }) => (nar, *contents),
        };
        if let Err(error) = require_file(narinfo, nar.file_hash, nar.size) {
            return Ok(Err(error));
        }
        let (learned, result) = match known {
            NarContents::Valid(digests) => (known, digests.require(narinfo)),
            // Unpacking it again would give the same error.
            NarContents::RefusedUpTo(size) if narinfo.nar_size <= size => (known, Err(nar_refused(narinfo))),
            NarContents::RefusedUpTo(_) => match self.digest(&narinfo.url, nar, narinfo.nar_size)? {
                Ok(digests) => (NarContents::Valid(digests), digests.require(narinfo)),
                Err(error) => (NarContents::RefusedUpTo(narinfo.nar_size), Err(error.context(narinfo.full_path()))),
            },
        };
        if let Some(NarState::Pending { contents, .. }) = self.nars.get_mut(&narinfo.url) {
            *contents = learned;
        }
        Ok(result)
    }

    /// Passes on a trusted narinfo, after its NAR if that is pending.
    fn pass_narinfo(&mut self, narinfo: &NarInfo) -> Result {
        let url = narinfo.url.clone();
        match self.nars.remove(&url) {
            Some(NarState::Pending { nar, contents: NarContents::Valid(digests), .. }) => {
                let file_hash = nar.file_hash;
                self.pass_nar(&url, nar)?;
                self.nars.insert(url, NarState::Passed { file_hash, digests });
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

fn nar_refused(narinfo: &NarInfo) -> Error {
    Error::refused(format!("{}: its NAR was refused", narinfo.full_path()))
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
