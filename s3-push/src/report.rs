//! The report of a push: store paths or JSON on standard output, messages on standard error.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::io::Write;
use std::time::Instant;

use indicatif::HumanBytes;
use nar_pack::error::{Error, Result};
use nar_pack::json_lines::write_object;
use nar_pack::process;
use nar_pack::stdio::Output;
use serde_json::json;

use crate::TOOL;
use crate::publish::upload::Uploader;
use crate::refusals::{PathError, Refusals};
use crate::remote::progress::{Progress, Verbosity, transfer_summary};

/// The result of publishing a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// The path is new in the cache.
    Sent {
        /// Size of the compressed NAR in bytes.
        bytes: u64,
        /// Whether clients that verify signatures accept the path.
        signed: bool,
    },
    /// The cache had the path; nothing was written.
    Present,
    /// The cache had the path, and signatures or fields were added to its narinfo.
    Signed,
    /// The cache had the path, but its NAR was missing or damaged, and was put again.
    Repaired,
    /// An upstream cache has the path; nothing was written.
    Upstream,
    /// The cache has different contents under this path, which were kept.
    OtherContents,
}

impl Status {
    /// Returns its name in JSON and in messages. In a dry run, it names what would be done.
    fn name(self, is_dry_run: bool) -> &'static str {
        match self {
            Self::Sent { .. } if is_dry_run => "would-send",
            Self::Sent { .. } => "sent",
            Self::Present => "present",
            Self::Signed if is_dry_run => "would-sign",
            Self::Signed => "signed",
            Self::Repaired if is_dry_run => "would-repair",
            Self::Repaired => "repaired",
            Self::Upstream => "upstream",
            Self::OtherContents => "other-contents-kept",
        }
    }
}

/// Collects the results of all paths, and prints them.
pub struct Report {
    out: Output,
    is_json: bool,
    is_dry_run: bool,
    /// Whether paths that the cache had are printed on standard output too.
    prints_present: bool,
    /// Whether other contents in the cache are an error.
    is_repair: bool,
    verbosity: Verbosity,
    sent: u64,
    present: u64,
    signed: u64,
    repaired: u64,
    upstream: u64,
    nar_bytes: u64,
    /// Paths that were published without a signature.
    unsigned: CountedPaths,
    /// Paths of which the cache has different contents, which were kept.
    other_contents: CountedPaths,
    refusals: Refusals,
    progress: Progress,
    start: Instant,
}

/// Paths with the same warning, which is printed once.
#[derive(Default)]
struct CountedPaths {
    first: Option<String>,
    count: u64,
}

impl CountedPaths {
    fn add(&mut self, path: &str) {
        self.count += 1;
        self.first.get_or_insert_with(|| path.to_owned());
    }

    /// Returns the subject of a sentence about the paths and its verb, if there are any paths.
    fn subject(&self, singular_verb: &str, plural_verb: &str) -> Option<String> {
        let first = self.first.as_ref()?;
        Some(match self.count {
            1 => format!("{first} {singular_verb}"),
            count => format!("{count} paths, among them {first}, {plural_verb}"),
        })
    }
}

impl Report {
    /// Creates a report that prints results on `out`. That of a dry run says what would be done.
    #[must_use]
    pub fn new(out: Output, is_json: bool, is_dry_run: bool, verbosity: Verbosity) -> Self {
        Self {
            out,
            is_json,
            is_dry_run,
            prints_present: false,
            is_repair: false,
            verbosity,
            sent: 0,
            present: 0,
            signed: 0,
            repaired: 0,
            upstream: 0,
            nar_bytes: 0,
            unsigned: CountedPaths::default(),
            other_contents: CountedPaths::default(),
            refusals: Refusals::default(),
            progress: Progress::of_bytes(progress_message(0, 0)),
            start: Instant::now(),
        }
    }

    /// Prints paths that the cache or an upstream cache had, too: their names are new to the user.
    #[must_use]
    pub fn with_present(self, prints_present: bool) -> Self {
        Self { prints_present, ..self }
    }

    /// Ends with an error if the cache has other contents of a path, which a repair must not hide.
    #[must_use]
    pub fn with_repair(self, is_repair: bool) -> Self {
        Self { is_repair, ..self }
    }

    /// Updates the progress.
    pub fn progress(&self, processed_bytes: u64) {
        let total = self.sent + self.present + self.signed + self.repaired + self.upstream;
        self.progress.set_message(progress_message(self.sent, total));
        self.progress.set_position(processed_bytes);
    }

    fn is_quiet(&self) -> bool {
        self.verbosity == Verbosity::Quiet
    }

    /// Reports the result of a path.
    ///
    /// # Errors
    /// Fails when standard output cannot be written.
    pub fn add_result(&mut self, path: &str, status: Status) -> Result {
        let mut bytes = 0;
        match status {
            Status::Sent { bytes: nar_bytes, signed } => {
                bytes = nar_bytes;
                self.sent += 1;
                self.nar_bytes += nar_bytes;
                if !signed {
                    self.unsigned.add(path);
                }
            }
            Status::Present => self.present += 1,
            Status::Signed => self.signed += 1,
            Status::Repaired => self.repaired += 1,
            Status::Upstream => self.upstream += 1,
            Status::OtherContents => {
                self.present += 1;
                self.other_contents.add(path);
            }
        }
        let name = status.name(self.is_dry_run);
        if self.verbosity == Verbosity::Verbose {
            let unsigned = matches!(status, Status::Sent { signed: false, .. });
            print(format!("{path}: {name}{}", if unsigned { ", without a signature" } else { "" }));
        }
        if self.is_json {
            write_object(&mut self.out, json!({ "path": path, "status": name, "fileSize": bytes }))?;
        } else if matches!(status, Status::Sent { .. } | Status::Signed | Status::Repaired)
            || (self.prints_present && matches!(status, Status::Present | Status::Upstream))
        {
            writeln!(self.out, "{path}")?;
        }
        Ok(self.out.flush()?)
    }

    /// Reports the refusal of a path or object. The message is printed at the end, once for each root cause.
    ///
    /// # Errors
    /// Returns an error that is not a refusal: a failed operation ends the push.
    pub fn add_refusal(&mut self, path: &str, refusal: &PathError) -> Result {
        let error = refusal.error();
        if !error.is_refusal() {
            return Err(error.clone().context(path));
        }
        if self.is_json {
            write_object(&mut self.out, json!({ "path": path, "status": "refused", "why": error.message() }))?;
        }
        if let (Verbosity::Verbose, Some(subject)) = (self.verbosity, refusal.other_subject(path)) {
            print(format!("{path}: not published, because it depends on {subject}"));
        }
        self.refusals.add(path, refusal);
        Ok(())
    }

    /// Ends the report of a push that failed: prints what was refused before.
    pub fn abort(self) {
        self.print_warnings();
        self.refusals.root_causes().for_each(print);
    }

    /// Prints one line for each kind of warning. With `-v`, there is a line per path too; see [`Report::add_result`].
    fn print_warnings(&self) {
        if self.is_quiet() {
            return;
        }
        let (was, were) = if self.is_dry_run { ("would be", "would be") } else { ("was", "were") };
        if let Some(paths) = self.unsigned.subject(was, were) {
            let them = if self.unsigned.count == 1 { "it" } else { "them" };
            print(format!(
                "warning: {paths} published without a signature; clients that verify signatures will reject {them}"
            ));
        }
        let (was, were) = if self.is_dry_run { ("would not be", "would not be") } else { ("was not", "were not") };
        if let Some(paths) = self.other_contents.subject(was, were).filter(|_| !self.is_repair) {
            let these = if self.other_contents.count == 1 { "this path" } else { "these paths" };
            print(format!("warning: {paths} published, because the cache has different contents under {these}"));
        }
    }

    /// Ends the report.
    ///
    /// # Errors
    /// Returns the refusal if there was one. If there were several root causes, prints each and returns their number.
    pub fn finish(mut self, uploader: &Uploader) -> Result {
        if self.is_json {
            self.print_json_summary(uploader)?;
        }
        self.out.flush()?;
        self.print_warnings();
        if self.verbosity == Verbosity::Verbose && uploader.bucket.lacks_conditions() {
            let url = uploader.bucket.display_url("");
            print(format!("{url}: the server does not apply conditions to writes; updated narinfos were read back"));
        }
        self.refusals.to_result(print)?;
        if !self.is_quiet() {
            print(self.summary(uploader));
        }
        match self.other_contents.subject("was not", "were not").filter(|_| self.is_repair) {
            None => Ok(()),
            Some(paths) => Err(Error::refused(format!("{paths} repaired, because the cache has other contents"))
                .with_hint("if the input is right, replace the narinfo: pass narinfo text with --exact")),
        }
    }

    fn print_json_summary(&mut self, uploader: &Uploader) -> Result {
        let requests: BTreeMap<_, _> = uploader.bucket.request_counts().into_iter().collect();
        let summary = json!({ "summary": {
            "dryRun": self.is_dry_run,
            "sent": self.sent, "present": self.present, "signed": self.signed, "repaired": self.repaired, "upstream": self.upstream,
            "skipped": self.present + self.upstream, "refused": self.refusals.count(),
            "bytes": uploader.uploaded_bytes(), "partsContinued": uploader.reused_parts(),
            "retries": uploader.bucket.retries(), "requests": requests,
        }});
        write_object(&mut self.out, summary)
    }

    fn summary(&self, uploader: &Uploader) -> String {
        let requests: u64 = uploader.bucket.request_counts().iter().map(|(_, count)| count).sum();
        let retries = match uploader.bucket.retries() {
            0 => String::new(),
            1 => ", 1 retry".to_owned(),
            count => format!(", {count} retries"),
        };
        let would_be = if self.is_dry_run { "would be " } else { "" };
        let signed = if self.signed > 0 { format!(", {} {would_be}updated", self.signed) } else { String::new() };
        let repaired =
            if self.repaired > 0 { format!(", {} {would_be}repaired", self.repaired) } else { String::new() };
        let other = match self.other_contents.count {
            0 => String::new(),
            count => format!(" ({count} with other contents)"),
        };
        let upstream =
            if self.upstream > 0 { format!(", {} in an upstream cache", self.upstream) } else { String::new() };
        let (sent, bytes, present) = (self.sent, HumanBytes(self.nar_bytes), self.present);
        let transfer = if self.is_dry_run {
            "uploaded nothing".to_owned()
        } else {
            format!("uploaded {}", transfer_summary(uploader.uploaded_bytes(), self.start.elapsed()))
        };
        format!(
            "{sent} {would_be}sent ({bytes}), {present} already present{other}{upstream}{signed}{repaired}; {transfer}, \
             {requests} requests{retries}"
        )
    }
}

fn progress_message(sent: u64, total: u64) -> String {
    format!("{sent} of {total} paths sent")
}

/// Prints a message on standard error.
fn print(message: impl Display) {
    process::print_message(TOOL, message);
}
