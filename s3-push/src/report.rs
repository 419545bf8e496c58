//! What a push tells: store paths or JSON on standard output, everything else on standard error.

use std::io::Write;

use indicatif::ProgressBar;
use nar_pack::error::{Error, Result};
use nar_pack::process;
use nar_pack::stdio::Output;
use serde_json::json;

use crate::TOOL;
use crate::publish::upload::Uploader;
use crate::remote::progress::Verbosity;

/// What became of a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// It is new in the cache; `bytes` is the size of its compressed NAR.
    Sent {
        /// Size of the compressed NAR.
        bytes: u64,
        /// Whether clients will trust it.
        signed: bool,
    },
    /// The cache had it; nothing was written.
    Present,
    /// The cache had it, and got signatures.
    Signed,
    /// Another cache serves it; nothing was written.
    Upstream,
    /// The cache has other contents under this path, which were kept.
    Other,
}

impl Status {
    fn word(self) -> &'static str {
        match self {
            Self::Sent { .. } => "sent",
            Self::Present => "present",
            Self::Signed => "signed",
            Self::Upstream => "upstream",
            Self::Other => "other-contents-kept",
        }
    }
}

/// Gathers and tells.
pub struct Report {
    out: Output,
    json: bool,
    talk: Verbosity,
    sent: u64,
    present: u64,
    signed: u64,
    upstream: u64,
    bytes: u64,
    refusals: Vec<Error>,
    bar: ProgressBar,
}

impl Report {
    /// A report on `out`.
    #[must_use]
    pub fn new(out: Output, json: bool, talk: Verbosity) -> Self {
        let bar = talk.progress_bar();
        Self { out, json, talk, sent: 0, present: 0, signed: 0, upstream: 0, bytes: 0, refusals: Vec::new(), bar }
    }

    /// Shows how far the push is, on a terminal.
    pub fn progress(&self, moved: u64) {
        self.bar.set_message(format!(
            "{} of {} paths sent,",
            self.sent,
            self.sent + self.present + self.signed + self.upstream
        ));
        self.bar.set_position(moved);
    }

    /// A line on standard error, above the bar if there is one.
    fn say(&self, message: impl std::fmt::Display) {
        self.bar.suspend(|| process::print_message(TOOL, message));
    }

    /// Tells of a path.
    ///
    /// # Errors
    /// What standard output says.
    pub fn path(&mut self, path: &str, status: Status) -> Result {
        match status {
            Status::Sent { bytes, signed } => {
                self.sent += 1;
                self.bytes += bytes;
                if !signed && self.talk != Verbosity::Quiet {
                    process::print_message(
                        TOOL,
                        format!("{path}: published unsigned; clients that check signatures will not take it"),
                    );
                }
            }
            Status::Present => self.present += 1,
            Status::Signed => self.signed += 1,
            Status::Upstream => self.upstream += 1,
            Status::Other => {
                self.present += 1;
                if self.talk != Verbosity::Quiet {
                    self.say(format!("{path}: the cache has other contents under this path; they were kept"));
                }
            }
        }
        if self.talk == Verbosity::Verbose {
            self.say(format!("{path}: {}", status.word()));
        }
        if self.json {
            let bytes = if let Status::Sent { bytes, .. } = status { bytes } else { 0 };
            writeln!(self.out, "{}", json!({ "path": path, "status": status.word(), "fileSize": bytes }))?;
        } else if matches!(status, Status::Sent { .. } | Status::Signed) {
            writeln!(self.out, "{path}")?;
        }
        Ok(self.out.flush()?)
    }

    /// Notes a refusal; a failed operation is not one, and ends the push.
    ///
    /// # Errors
    /// The failure itself, if it is no refusal.
    pub fn refused(&mut self, what: &str, failure: Error) -> Result {
        if !failure.is_refusal() {
            return Err(failure.context(what));
        }
        if self.json {
            writeln!(self.out, "{}", json!({ "path": what, "status": "refused", "why": failure.message() }))?;
        }
        let named = failure.message().contains(what);
        self.refusals.push(if named { failure } else { failure.context(what) });
        Ok(())
    }

    /// Tells what was refused before the push itself failed.
    pub fn abandon(self) {
        self.bar.finish_and_clear();
        for refusal in &self.refusals {
            self.say(refusal);
        }
    }

    /// Ends the report.
    ///
    /// # Errors
    /// The refusal, when there was one; when there were several each is told, and how many there were.
    pub fn finish(mut self, uploader: &Uploader) -> Result {
        let (requests, retries) = (uploader.bucket.request_counts(), uploader.bucket.retries());
        let total: u64 = requests.iter().map(|(_, count)| count).sum();
        if self.json {
            let summary = json!({ "summary": {
                "sent": self.sent, "present": self.present, "signed": self.signed, "upstream": self.upstream,
                "skipped": self.present + self.upstream, "refused": self.refusals.len(),
                "bytes": uploader.sent(), "partsContinued": uploader.continued(), "retries": retries,
                "requests": requests.into_iter().collect::<std::collections::BTreeMap<_, _>>(),
            }});
            writeln!(self.out, "{summary}")?;
        }
        self.bar.finish_and_clear();
        self.out.finish()?;
        match self.refusals.as_slice() {
            [] => {}
            [refusal] => return Err(refusal.clone()),
            several => {
                for refusal in several {
                    process::print_message(TOOL, refusal);
                }
                return Err(Error::refused(format!("{} paths were refused", several.len())));
            }
        }
        if self.talk != Verbosity::Quiet {
            let again = if retries > 0 { format!(", {retries} repeated") } else { String::new() };
            let signed = if self.signed > 0 { format!(", {} signed anew", self.signed) } else { String::new() };
            process::print_message(
                TOOL,
                format!(
                    "{} sent ({}), {} there already{signed}, {total} requests{again}",
                    self.sent,
                    indicatif::HumanBytes(self.bytes),
                    self.present
                ),
            );
        }
        Ok(())
    }
}
