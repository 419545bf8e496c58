//! What a pull tells: JSON on standard output when asked for, everything else on standard error.

use std::io::Write;

use indicatif::{HumanBytes, ProgressBar};
use nar_pack::error::{Error, Result};
use nar_pack::process;
use nar_pack::stdio::Output;
use s3_push::remote::progress::Verbosity;
use serde_json::json;

use crate::TOOL;
use crate::closure::{Cache, Candidate};

/// What became of a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// It is new below the root.
    Fetched,
    /// It was there.
    Present,
    /// It would be fetched, were this not a dry run.
    WouldFetch,
}

impl Status {
    fn word(self) -> &'static str {
        match self {
            Self::Fetched => "fetched",
            Self::Present => "present",
            Self::WouldFetch => "would-fetch",
        }
    }
}

/// Gathers and tells.
pub struct Report {
    json: Option<Output>,
    talk: Verbosity,
    found: u64,
    fetched: u64,
    present: u64,
    would_fetch: u64,
    /// Bytes of the NARs that are new or would be.
    nar_bytes: u64,
    /// Bytes of the same, compressed, as the narinfos say.
    file_bytes: u64,
    refusals: Vec<Error>,
    bar: ProgressBar,
}

impl Report {
    /// A report; on `json` too, if that is given.
    #[must_use]
    pub fn new(json: Option<Output>, talk: Verbosity) -> Self {
        let bar = talk.progress_bar();
        let refusals = Vec::new();
        Self {
            json,
            talk,
            found: 0,
            fetched: 0,
            present: 0,
            would_fetch: 0,
            nar_bytes: 0,
            file_bytes: 0,
            refusals,
            bar,
        }
    }

    /// Notes that there is one path more to look after.
    pub fn found(&mut self) {
        self.found += 1;
    }

    /// Shows how far the pull is, on a terminal; `moved` bytes have come.
    pub fn progress(&self, moved: u64) {
        self.bar.set_message(format!("{} of {} paths,", self.fetched + self.present, self.found));
        self.bar.set_position(moved);
    }

    fn say(&self, message: impl std::fmt::Display) {
        self.bar.suspend(|| process::print_message(TOOL, message));
    }

    /// Tells of a path.
    ///
    /// # Errors
    /// What standard output says.
    pub fn path(&mut self, cache: &Cache, candidate: &Candidate, status: Status) -> Result {
        let narinfo = &candidate.narinfo;
        match status {
            Status::Fetched => self.fetched += 1,
            Status::WouldFetch => self.would_fetch += 1,
            Status::Present => self.present += 1,
        }
        if status != Status::Present {
            self.nar_bytes += narinfo.nar_size;
            self.file_bytes += narinfo.file_size.unwrap_or(0);
        }
        let source = cache.source(candidate).display_url("");
        if self.talk == Verbosity::Verbose {
            let from = if status == Status::Present { String::new() } else { format!(", {source}") };
            self.say(format!("{}: {}{from}", narinfo.full_path(), status.word()));
        }
        if let Some(out) = &mut self.json {
            let line = json!({
                "path": narinfo.full_path(), "status": status.word(), "source": source,
                "narSize": narinfo.nar_size, "fileSize": narinfo.file_size,
            });
            writeln!(out, "{line}")?;
            out.flush()?;
        }
        Ok(())
    }

    /// Notes that a path was refused, or could not be read.
    ///
    /// # Errors
    /// What standard output says.
    pub fn refused(&mut self, path: Option<&str>, failure: Error) -> Result {
        if let Some(out) = &mut self.json {
            let status = if failure.is_refusal() { "refused" } else { "failed" };
            writeln!(out, "{}", json!({ "path": path, "status": status, "why": failure.message() }))?;
            out.flush()?;
        }
        self.refusals.push(failure);
        Ok(())
    }

    /// Tells what was refused before the pull itself failed.
    pub fn abandon(self) {
        self.bar.finish_and_clear();
        self.refusals.iter().for_each(|refusal| process::print_message(TOOL, refusal));
    }

    /// Ends the report; `moved` bytes have come.
    ///
    /// # Errors
    /// The refusal, when there was one; when there were several each is told, and how many there were.
    pub fn finish(mut self, moved: u64) -> Result {
        self.bar.finish_and_clear();
        if let Some(mut out) = self.json.take() {
            let summary = json!({ "summary": {
                "fetched": self.fetched, "present": self.present, "wouldFetch": self.would_fetch,
                "refused": self.refusals.len(), "narSize": self.nar_bytes, "fileSize": self.file_bytes,
                "bytesMoved": moved,
            }});
            writeln!(out, "{summary}")?;
            out.finish()?;
        }
        if self.talk != Verbosity::Quiet && self.refusals.is_empty() {
            let unpacked = HumanBytes(self.nar_bytes);
            process::print_message(
                TOOL,
                match self.would_fetch {
                    0 => format!("{} fetched ({unpacked} unpacked), {} there already", self.fetched, self.present),
                    many => format!(
                        "{many} would be fetched ({} to download, {unpacked} unpacked), {} there already",
                        HumanBytes(self.file_bytes),
                        self.present
                    ),
                },
            );
        }
        summarize(&self.refusals)
    }
}

/// One refusal is the failure; several are told one by one.
///
/// # Errors
/// When there is any.
pub fn summarize(refusals: &[Error]) -> Result {
    match refusals {
        [] => Ok(()),
        [refusal] => Err(refusal.clone()),
        several => {
            for refusal in several {
                process::print_message(TOOL, refusal);
            }
            let failed = several.iter().filter(|failure| !failure.is_refusal()).count();
            match (failed, several.len() - failed) {
                (0, refused) => Err(Error::refused(format!("{refused} paths were refused"))),
                (failed, 0) => Err(Error::failed(format!("{failed} paths could not be read"))),
                (failed, refused) => {
                    Err(Error::failed(format!("{failed} paths could not be read, and {refused} were refused")))
                }
            }
        }
    }
}
