//! What a deletion has done, as lines of text or as JSON.

use std::io::Write as _;

use nar_pack::error::Result;
use nar_pack::json_lines::write_object;
use nar_pack::stdio;
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
///
/// # Errors
/// Fails if standard output cannot be written.
pub fn write(paths: Option<&Outcome>, objects: Option<&Outcome>, is_json: bool) -> Result {
    let mut out = stdio::stdout(None)?;
    let mut summary = Map::new();
    for (outcome, field, kind) in [(paths, "path", "paths"), (objects, "key", "objects")] {
        let Some(outcome) = outcome else { continue };
        for name in &outcome.deleted {
            if is_json {
                write_object(&mut out, json!({ field: name, "status": "deleted" }))?;
            } else {
                writeln!(out, "{name}")?;
            }
        }
        summary.insert(kind.to_owned(), outcome.counts());
    }
    if is_json {
        write_object(&mut out, json!({ "summary": summary }))?;
    }
    out.finish()
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
