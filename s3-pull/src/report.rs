//! The report of a pull into a root: JSON on standard output on request, everything else on standard error. Counts the
//! paths by their status and draws the progress.

use std::time::{Duration, Instant};

use indicatif::HumanBytes;
use nar_pack::error::{Error, Result};
use nar_pack::json_lines::write_object;
use nar_pack::process;
use nar_pack::stdio::Output;
use nar_pack::store_path::StorePath;
use narinfo_gen::narinfo::NarInfo;
use s3_push::remote::interrupts;
use s3_push::remote::progress::{Progress, Verbosity, transfer_summary};
use serde_json::json;

use crate::TOOL;
use crate::refusals::Refusals;
use crate::sources::{Candidate, RequestedPath, Sources};

/// The status of a path that was not refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// It was fetched by this run.
    Fetched,
    /// It was already present.
    Present,
    /// It would be fetched without `--dry-run`.
    WouldFetch,
}

impl Status {
    fn name(self) -> &'static str {
        match self {
            Self::Fetched => "fetched",
            Self::Present => "present",
            Self::WouldFetch => "would-fetch",
        }
    }
}

/// Counts and reports paths.
pub struct Report {
    json: Option<Output>,
    verbosity: Verbosity,
    counts: Counts,
    refusals: Refusals,
    progress: Progress,
    start: Instant,
}

#[derive(Default)]
struct Counts {
    found: u64,
    fetched: u64,
    present: u64,
    would_fetch: u64,
    /// FileSize of the paths that were found, and of those that were present.
    found_bytes: u64,
    present_bytes: u64,
    /// NarSize of the paths that were or would be fetched.
    nar_bytes: u64,
    /// FileSize of the same paths.
    file_bytes: u64,
}

impl Report {
    /// Creates a report that also writes JSON to `json`, if given.
    #[must_use]
    pub fn new(json: Option<Output>, verbosity: Verbosity) -> Self {
        Self {
            json,
            verbosity,
            counts: Counts::default(),
            refusals: Refusals::new("unpacked"),
            progress: Progress::of_bytes(progress_message(0, 0)),
            start: Instant::now(),
        }
    }

    /// Counts a path that is to be fetched.
    pub fn found(&mut self, narinfo: &NarInfo) {
        self.counts.found += 1;
        self.counts.found_bytes += narinfo.file_size.unwrap_or(0);
    }

    /// Updates the progress; `received` is the number of bytes received so far. The total is known once `has_found_all`.
    pub fn progress(&self, received: u64, has_found_all: bool) {
        let Counts { found, fetched, present, found_bytes, present_bytes, .. } = self.counts;
        self.progress.set_message(progress_message(fetched + present, found));
        self.progress.set_position(received);
        if has_found_all {
            self.progress.set_total(found_bytes.saturating_sub(present_bytes));
        }
    }

    /// Reports the status of a path.
    ///
    /// # Errors
    /// Fails when standard output cannot be written.
    pub fn path(&mut self, sources: &Sources, candidate: &Candidate, status: Status) -> Result {
        let narinfo = &candidate.narinfo;
        match status {
            Status::Fetched => self.counts.fetched += 1,
            Status::WouldFetch => self.counts.would_fetch += 1,
            Status::Present => {
                self.counts.present += 1;
                self.counts.present_bytes += narinfo.file_size.unwrap_or(0);
            }
        }
        if status != Status::Present {
            self.counts.nar_bytes += narinfo.nar_size;
            self.counts.file_bytes += narinfo.file_size.unwrap_or(0);
        }
        let source = sources.remote(candidate).display_url("");
        if self.verbosity == Verbosity::Verbose {
            let from = if status == Status::Present { String::new() } else { format!(", {source}") };
            let message = format!("{}: {}{from}", narinfo.full_path(), status.name());
            process::print_message(TOOL, message);
        }
        if let Some(out) = &mut self.json {
            let line = json!({
                "path": narinfo.full_path(), "status": status.name(), "source": source,
                "narSize": narinfo.nar_size, "fileSize": narinfo.file_size,
            });
            write_object(out, line)?;
        }
        Ok(())
    }

    /// Reports that a path was refused or could not be read.
    ///
    /// # Errors
    /// Fails when standard output cannot be written.
    pub fn refused(&mut self, sources: &Sources, requested: &RequestedPath, error: &Error) -> Result {
        let path = match requested {
            RequestedPath::Path(path) => Some(sources.store_dir.join(path)),
            RequestedPath::Hash(_) => None,
        };
        self.write_error(path.as_deref(), error)?;
        self.refusals.add(requested.hash_part(), error);
        Ok(())
    }

    /// Reports that a path was refused because `reference` was not fetched.
    ///
    /// # Errors
    /// Fails when standard output cannot be written.
    pub fn refused_with(&mut self, candidate: &Candidate, reference: &StorePath) -> Result {
        if let Some(missing) = self.refusals.add_missing_reference(&candidate.narinfo, reference) {
            self.write_error(Some(&candidate.narinfo.store_dir.join(reference)), &missing)?;
        }
        let error = self.refusals.add_dependent(&candidate.narinfo, reference);
        self.write_error(Some(&candidate.narinfo.full_path()), &error)
    }

    fn write_error(&mut self, path: Option<&str>, error: &Error) -> Result {
        if let Some(out) = &mut self.json {
            let status = if error.is_refusal() { "refused" } else { "failed" };
            write_object(out, json!({ "path": path, "status": status, "why": error.message() }))?;
        }
        Ok(())
    }

    /// Returns the error of a pull that a signal ended: what is complete, and how to continue. `signal` is what the signal
    /// did.
    #[must_use]
    pub fn interruption(&self, signal: &str) -> Error {
        let Counts { found, fetched, present, .. } = self.counts;
        let complete = fetched + present;
        Error::failed(format!(
            "{signal}: {complete} of {found} paths found so far are complete ({fetched} fetched, {present} already present)"
        ))
        .with_hint(interrupts::HINT)
    }

    /// Prints the refusals; for a pull that was aborted by another error.
    pub fn abort(self) {
        self.refusals.print(self.verbosity);
    }

    /// Prints the summary; `received` is the number of bytes received.
    ///
    /// # Errors
    /// Returns the refusals, and fails when standard output cannot be written.
    pub fn finish(mut self, received: u64) -> Result {
        if let Some(mut out) = self.json.take() {
            let Counts { fetched, present, would_fetch, nar_bytes, file_bytes, .. } = self.counts;
            let summary = json!({ "summary": {
                "fetched": fetched, "present": present, "wouldFetch": would_fetch, "refused": self.refusals.count(),
                "narSize": nar_bytes, "fileSize": file_bytes, "bytesMoved": received,
            }});
            write_object(&mut out, summary)?;
            out.finish()?;
        }
        if self.verbosity != Verbosity::Quiet && self.refusals.count() == 0 {
            process::print_message(TOOL, self.counts.summary(received, self.start.elapsed()));
        }
        self.refusals.into_result(self.verbosity)
    }
}

fn progress_message(done: u64, found: u64) -> String {
    format!("{done} of {found} paths")
}

impl Counts {
    fn summary(&self, received: u64, elapsed: Duration) -> String {
        let (unpacked, present) = (HumanBytes(self.nar_bytes), self.present);
        match self.would_fetch {
            0 => {
                let received = transfer_summary(received, elapsed);
                format!(
                    "{} fetched ({unpacked} unpacked), {present} already present; received {received}",
                    self.fetched
                )
            }
            count => {
                let download = HumanBytes(self.file_bytes);
                format!(
                    "{count} would be fetched ({download} to download, {unpacked} unpacked), {present} already present"
                )
            }
        }
    }
}
