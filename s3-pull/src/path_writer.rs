//! Writes narinfos or store paths to standard output, as text or as JSON.

use std::io::Write as _;

use nar_pack::error::Result;
use nar_pack::json_lines::write_object;
use nar_pack::stdio::{self, Output};
use narinfo_gen::narinfo::{NarInfo, TextWriter};
use serde_json::json;

use crate::mode::PathFormat;

/// Writes narinfos or store paths.
pub struct PathWriter {
    format: PathFormat,
    out: TextWriter<Output>,
    count: u64,
}

impl PathWriter {
    /// Starts the output.
    ///
    /// # Errors
    /// Fails if standard output cannot be opened.
    pub fn new(format: PathFormat) -> Result<Self> {
        Ok(Self { format, out: TextWriter::new(stdio::stdout(None)?), count: 0 })
    }

    /// Writes one path. `more` is true if another one must follow.
    ///
    /// # Errors
    /// Fails if standard output cannot be written.
    pub fn write(&mut self, narinfo: &NarInfo, more: bool) -> Result {
        self.count += 1;
        match self.format {
            PathFormat::NarinfoText => self.out.write(narinfo, more),
            PathFormat::PathList => Ok(writeln!(self.out.get_mut(), "{}", narinfo.full_path())?),
            PathFormat::JsonNarinfos => write_object(self.out.get_mut(), narinfo.to_json()),
            PathFormat::JsonPaths => {
                let (path, nar_size) = (narinfo.full_path(), narinfo.nar_size);
                let object = json!({ "path": path, "narSize": nar_size, "downloadSize": narinfo.file_size });
                write_object(self.out.get_mut(), object)
            }
        }
    }

    /// Ends output that is incomplete, in such a way that its reader sees it.
    ///
    /// # Errors
    /// Fails if standard output cannot be written.
    pub fn finish_truncated(mut self) -> Result {
        if self.format == PathFormat::NarinfoText {
            self.out.mark_truncated();
        }
        self.out.into_inner().finish()
    }

    /// Ends the output. JSON ends with a summary.
    ///
    /// # Errors
    /// Fails if standard output cannot be written.
    pub fn finish(mut self) -> Result {
        if matches!(self.format, PathFormat::JsonNarinfos | PathFormat::JsonPaths) {
            write_object(self.out.get_mut(), json!({ "summary": { "paths": self.count } }))?;
        }
        self.out.into_inner().finish()
    }
}
