//! What `s3-pull check` finds: paths that are broken, and notes about other objects. Each has the command that repairs it.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;

use indicatif::{HumanBytes, HumanCount};
use nar_pack::error::{Error, Result};
use nar_pack::json_lines::write_object;
use nar_pack::process;
use nar_pack::stdio;
use s3_push::remote::progress::count_of;
use serde_json::{Value, json};

use crate::TOOL;

/// Maximum number of findings of a kind that are printed on standard error.
const MAX_PRINTED: usize = 20;
/// The hint for broken paths.
const REPAIR_HINT: &str =
    "to repair the paths: s3-pull archive --stdin ANOTHER-CACHE < OUTPUT | s3-push repair THIS-CACHE";
/// The hint if nothing is broken but pins that cannot be read.
const PIN_HINT: &str = "write the pin again with 's3-push pin', or remove it with 's3-push unpin'";
/// The hint if nothing is broken but `nix-cache-info`.
const CACHE_INFO_HINT: &str = "check the URL and --store-dir; a push writes a missing nix-cache-info, and \
                               's3-push --set-cache-info' a malformed one";
/// The hint if nothing is broken but signatures. It does not propose to trust the keys that have signed.
const TRUST_HINT: &str = "pass every key that clients trust with --trusted-public-key";

/// The kind of a finding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// A narinfo is not one, or describes another path.
    MalformedNarinfo,
    /// A path that another one references has no narinfo.
    MissingNarinfo,
    /// A path that a pin names has no narinfo.
    MissingPinned,
    /// A pin is not a path list, or has an invalid name.
    MalformedPin,
    /// Not signed by enough trusted keys.
    Untrusted,
    /// The NAR is not there.
    MissingNar,
    /// The NAR has another size than FileSize.
    NarSize,
    /// The NAR does not match its narinfo.
    DamagedNar,
    /// An object that must not be empty is.
    EmptyObject,
    /// A NAR that no narinfo names.
    UnneededNar,
    /// A listing (`.ls`) of a path that the cache does not have.
    UnneededListing,
    /// An object that is not one of a binary cache.
    ForeignObject,
    /// A multipart upload that was neither completed nor aborted.
    IncompleteUpload,
    /// There is no `nix-cache-info`: Nix does not use the bucket as a cache.
    NoCacheInfo,
    /// The `nix-cache-info` is malformed.
    MalformedCacheInfo,
    /// The `nix-cache-info` is that of another store directory.
    OtherStoreDir,
}

impl Reason {
    /// Returns its name in JSON.
    fn name(self) -> &'static str {
        match self {
            Self::MalformedNarinfo => "malformed-narinfo",
            Self::MissingNarinfo => "missing-narinfo",
            Self::MissingPinned => "missing-pinned",
            Self::MalformedPin => "malformed-pin",
            Self::Untrusted => "untrusted",
            Self::MissingNar => "missing-nar",
            Self::NarSize => "nar-size",
            Self::DamagedNar => "damaged-nar",
            Self::EmptyObject => "empty-object",
            Self::UnneededNar => "unneeded-nar",
            Self::UnneededListing => "unneeded-listing",
            Self::ForeignObject => "foreign-object",
            Self::IncompleteUpload => "incomplete-upload",
            Self::NoCacheInfo => "no-cache-info",
            Self::MalformedCacheInfo => "malformed-cache-info",
            Self::OtherStoreDir => "other-store-dir",
        }
    }

    /// Returns whether clients cannot use a path, or the cache; anything else is a note.
    fn is_broken(self) -> bool {
        match self {
            Self::MalformedNarinfo
            | Self::MissingNarinfo
            | Self::MissingPinned
            | Self::MalformedPin
            | Self::Untrusted
            | Self::MissingNar
            | Self::NarSize
            | Self::DamagedNar
            | Self::EmptyObject
            | Self::NoCacheInfo
            | Self::MalformedCacheInfo
            | Self::OtherStoreDir => true,
            Self::UnneededNar | Self::UnneededListing | Self::ForeignObject | Self::IncompleteUpload => false,
        }
    }

    /// Returns what several of these are called.
    fn plural(self) -> &'static str {
        match self {
            Self::UnneededNar => "NARs that no narinfo names",
            Self::UnneededListing => "listings of paths that the cache does not have",
            Self::ForeignObject => "objects that do not belong to a binary cache",
            Self::IncompleteUpload => "incomplete uploads",
            _ => "others",
        }
    }

    /// Returns the command that repairs it. `bucket` is the URL as an argument of a shell.
    fn command(self, path: Option<&str>, bucket: &str) -> Option<String> {
        match (self, path) {
            (Self::UnneededNar, _) => Some(format!("s3-push delete --nars {bucket}")),
            (Self::MalformedCacheInfo, _) => Some(format!("s3-push --set-cache-info {bucket}")),
            (reason, Some(path)) if reason.is_broken() => {
                Some(format!("echo '{path}' | s3-pull archive --stdin \"$A\" | s3-push repair {bucket}"))
            }
            _ => None,
        }
    }
}

/// One finding.
#[derive(Debug, Clone)]
pub struct Finding {
    /// The full store path, if it is known.
    pub path: Option<String>,
    /// The key of the object.
    pub key: String,
    /// The kind.
    pub reason: Reason,
    /// The text for people, which names the path or the URL of the object.
    pub message: String,
    /// The size of the object in bytes, where that matters.
    pub size: u64,
}

/// What was counted.
#[derive(Debug, Clone, Default)]
pub struct Totals {
    /// Narinfos.
    pub paths: usize,
    /// NARs, and their bytes.
    pub nars: (usize, u64),
    /// Other objects, and their bytes.
    pub others: (usize, u64),
    /// NARs that were read, and their bytes.
    pub read_nars: (usize, u64),
}

/// All findings.
#[derive(Debug, Default)]
pub struct Findings {
    findings: Vec<Finding>,
    /// What was counted.
    pub totals: Totals,
}

impl Findings {
    /// Adds a finding.
    pub fn add(&mut self, finding: Finding) {
        self.findings.push(finding);
    }

    /// Adds findings.
    pub fn extend(&mut self, findings: impl IntoIterator<Item = Finding>) {
        self.findings.extend(findings);
    }

    /// Prints the findings on standard error.
    pub fn print(&mut self, is_quiet: bool) {
        self.findings.sort_by(|a, b| (a.reason, &a.path, &a.key).cmp(&(b.reason, &b.path, &b.key)));
        let mut by_reason: BTreeMap<Reason, Vec<&Finding>> = BTreeMap::new();
        for finding in &self.findings {
            by_reason.entry(finding.reason).or_default().push(finding);
        }
        for (reason, findings) in by_reason {
            if reason.is_broken() {
                print_broken(&findings);
            } else if !is_quiet {
                print_note(reason, &findings);
            }
        }
    }

    /// Prints the totals of a check that has ended.
    pub fn print_summary(&self, is_quiet: bool) {
        if !is_quiet {
            process::print_message(TOOL, self.summary());
        }
    }

    fn summary(&self) -> String {
        let Totals { paths, nars, others, read_nars } = &self.totals;
        let count =
            |(count, bytes): &(usize, u64), what: &str| format!("{} ({})", count_of(*count, what), HumanBytes(*bytes));
        let read = if read_nars.0 > 0 { format!(", {} read", count(read_nars, "NAR")) } else { String::new() };
        let (nars, others) = (count(nars, "NAR"), count(others, "other object"));
        format!("{}, {nars}, {others}{read}: {} broken", count_of(*paths, "path"), self.broken().count())
    }

    fn broken(&self) -> impl Iterator<Item = &Finding> {
        self.findings.iter().filter(|finding| finding.reason.is_broken())
    }

    /// Writes the paths that are broken as a path list, or everything as JSON. `bucket` is the URL as an argument of a
    /// shell.
    ///
    /// # Errors
    /// Fails if standard output does. Refuses a cache with a broken path.
    pub fn write(self, is_json: bool, bucket: &str) -> Result {
        let mut out = stdio::stdout(None)?;
        let paths: BTreeSet<&str> = self.broken().filter_map(|finding| finding.path.as_deref()).collect();
        if is_json {
            for finding in &self.findings {
                write_object(&mut out, finding.to_json(bucket))?;
            }
            write_object(&mut out, json!({ "summary": self.summary_json() }))?;
        } else {
            for path in paths {
                writeln!(out, "{path}")?;
            }
        }
        out.finish()?;
        match self.broken().count() {
            0 => Ok(()),
            count => {
                let verb = if count == 1 { "1 path or object is" } else { &format!("{count} paths or objects are") };
                Err(Error::refused(format!("{verb} broken")).with_hint(self.hint()))
            }
        }
    }

    fn hint(&self) -> &'static str {
        let all_are = |reasons: &[Reason]| self.broken().all(|finding| reasons.contains(&finding.reason));
        if all_are(&[Reason::Untrusted]) {
            TRUST_HINT
        } else if all_are(&[Reason::MalformedPin]) {
            PIN_HINT
        } else if all_are(&[Reason::NoCacheInfo, Reason::MalformedCacheInfo, Reason::OtherStoreDir]) {
            CACHE_INFO_HINT
        } else {
            REPAIR_HINT
        }
    }

    fn summary_json(&self) -> Value {
        let Totals { paths, nars, others, read_nars } = &self.totals;
        json!({
            "paths": paths, "broken": self.broken().count(), "nars": nars.0, "fileSize": nars.1,
            "otherObjects": others.0, "otherSize": others.1, "readNars": read_nars.0, "readSize": read_nars.1,
        })
    }
}

impl Finding {
    fn to_json(&self, bucket: &str) -> Value {
        json!({
            "path": self.path, "key": self.key, "reason": self.reason.name(), "broken": self.reason.is_broken(),
            "message": self.message, "command": self.reason.command(self.path.as_deref(), bucket),
        })
    }
}

fn print_broken(findings: &[&Finding]) {
    for finding in findings.iter().take(MAX_PRINTED) {
        process::print_message(TOOL, &finding.message);
    }
    if let Some(more) = findings.len().checked_sub(MAX_PRINTED).filter(|more| *more > 0) {
        process::print_message(TOOL, format!("{} more of this kind", HumanCount(more as u64)));
    }
}

fn print_note(reason: Reason, findings: &[&Finding]) {
    match findings {
        [] => {}
        [finding] => process::print_message(TOOL, format!("note: {}", finding.message)),
        [first, ..] => {
            let (count, bytes) = (HumanCount(findings.len() as u64), findings.iter().map(|finding| finding.size).sum());
            let size = if bytes > 0 { format!(" ({})", HumanBytes(bytes)) } else { String::new() };
            process::print_message(TOOL, format!("note: {count} {}{size}, such as {}", reason.plural(), first.key));
        }
    }
}
