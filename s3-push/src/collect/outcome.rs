//! What a deletion has done, as lines of text or as JSON.

use std::io::Write as _;

use nar_pack::error::Result;
use nar_pack::json_lines::write_object;
use nar_pack::stdio::{self, Output};
use serde_json::{Map, Value, json};

/// What a deletion of paths or of objects has done.
#[derive(Debug, Default)]
pub struct Outcome {
    /// The paths or keys that were deleted.
    pub deleted: Vec<String>,
    /// Doomed by this run.
    pub doomed: usize,
    /// Doomed by an earlier run, but not for long enough.
    pub waiting: usize,
    /// Could have been deleted, but are pinned, referenced or written since.
    pub kept: usize,
    /// Changed in the bucket since the input was made.
    pub changed: usize,
    /// Not in the bucket.
    pub absent: usize,
}

/// Writes what was deleted to standard output: paths, then the keys of other objects. JSON ends with a summary.
pub struct OutcomeWriter {
    out: Output,
    is_json: bool,
    is_dry_run: bool,
    summary: Map<String, Value>,
}

impl OutcomeWriter {
    /// Starts the output.
    ///
    /// # Errors
    /// Fails if standard output cannot be used.
    pub fn new(is_json: bool, is_dry_run: bool) -> Result<Self> {
        Ok(Self { out: stdio::stdout(None)?, is_json, is_dry_run, summary: Map::new() })
    }

    /// Writes which paths were deleted, also if the deletion failed afterwards.
    ///
    /// # Errors
    /// The error of the deletion, else that of standard output.
    pub fn add_paths(&mut self, outcome: &Outcome, result: Result) -> Result {
        let written = self.add(outcome, "path", "paths");
        result.and(written)
    }

    /// Writes which other objects were deleted, also if the deletion failed afterwards.
    ///
    /// # Errors
    /// The error of the deletion, else that of standard output.
    pub fn add_objects(&mut self, outcome: &Outcome, result: Result) -> Result {
        let written = self.add(outcome, "key", "objects");
        result.and(written)
    }

    fn add(&mut self, outcome: &Outcome, field: &str, kind: &str) -> Result {
        let status = if self.is_dry_run { "would-delete" } else { "deleted" };
        for name in &outcome.deleted {
            if self.is_json {
                write_object(&mut self.out, json!({ field: name, "status": status }))?;
            } else {
                writeln!(self.out, "{name}")?;
            }
        }
        self.summary.insert(kind.to_owned(), outcome.counts());
        Ok(self.out.flush()?)
    }

    /// Ends the output.
    ///
    /// # Errors
    /// Fails if standard output cannot be written.
    pub fn finish(mut self) -> Result {
        if self.is_json {
            self.summary.insert("dryRun".to_owned(), self.is_dry_run.into());
            write_object(&mut self.out, json!({ "summary": self.summary }))?;
        }
        self.out.finish()
    }
}

impl Outcome {
    fn counts(&self) -> Value {
        let Self { deleted, doomed, waiting, kept, changed, absent } = self;
        json!({
            "deleted": deleted.len(), "doomed": doomed, "waiting": waiting, "kept": kept, "changed": changed,
            "absent": absent,
        })
    }
}
