//! The statistics as tables, and as JSON.

use std::io::{self, Write};

use indicatif::{HumanBytes, HumanCount};
use serde_json::{Value, json};

use super::closures::Sizes;

/// Everything that is reported.
pub struct Stats {
    /// All paths. `file_size` counts a NAR that several paths share once.
    pub total: Sizes,
    /// By month.
    pub by_month: Vec<(String, Sizes)>,
    /// By compression method.
    pub by_compression: Vec<(String, Sizes)>,
    /// By the name of the key; none for paths without signature.
    pub by_signer: Vec<(Option<String>, Sizes)>,
    /// Paths, largest first.
    pub largest_paths: Vec<(String, Sizes)>,
    /// Paths and the sizes of their closures, largest first.
    pub largest_closures: Vec<(String, Sizes)>,
    /// How many closures were examined.
    pub closures_examined: usize,
    /// How many closures there are.
    pub closures_total: usize,
    /// By pin, what it keeps alone.
    pub pins: Vec<(String, Sizes)>,
    /// What no pin keeps.
    pub unpinned: Sizes,
}

impl Stats {
    /// Returns the JSON object.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let group = |name: &str, rows: &[(String, Sizes)]| -> Vec<Value> {
            rows.iter().map(|(value, sizes)| with_sizes(name, json!(value), *sizes)).collect()
        };
        let signers = self.by_signer.iter().map(|(key, sizes)| with_sizes("key", json!(key), *sizes));
        let closures = self.largest_closures.iter().map(|(path, sizes)| {
            json!({
                "path": path, "paths": sizes.paths, "closureSize": sizes.nar_size,
                "closureDownloadSize": sizes.file_size,
            })
        });
        let largest = self
            .largest_paths
            .iter()
            .map(|(path, sizes)| json!({ "path": path, "narSize": sizes.nar_size, "fileSize": sizes.file_size }));
        let Sizes { paths, nar_size, file_size } = self.total;
        let unpinned = self.unpinned;
        json!({
            "version": 1, "paths": paths, "narSize": nar_size, "fileSize": file_size,
            "byMonth": group("month", &self.by_month),
            "byCompression": group("compression", &self.by_compression),
            "bySigner": signers.collect::<Vec<_>>(),
            "largestPaths": largest.collect::<Vec<_>>(),
            "largestClosures": closures.collect::<Vec<_>>(),
            "closuresExamined": self.closures_examined, "closuresTotal": self.closures_total,
            "pins": group("name", &self.pins),
            "unpinned": { "paths": unpinned.paths, "narSize": unpinned.nar_size, "fileSize": unpinned.file_size },
        })
    }

    /// Returns the sizes by the name of the key, with a name for paths without signature.
    #[must_use]
    pub fn signers(&self) -> Vec<(String, Sizes)> {
        let name = |key: &Option<String>| key.clone().unwrap_or("(unsigned)".to_owned());
        self.by_signer.iter().map(|(key, sizes)| (name(key), *sizes)).collect()
    }

    /// Writes the tables.
    ///
    /// # Errors
    /// Fails if the output does.
    pub fn write_tables(&self, out: &mut impl Write) -> io::Result<()> {
        let mut pins = self.pins.clone();
        pins.push(("(no pin)".to_owned(), self.unpinned));
        write_table(out, "total", &[("all".to_owned(), self.total)])?;
        write_table(out, "month", &self.by_month)?;
        write_table(out, "compression", &self.by_compression)?;
        write_table(out, "signer", &self.signers())?;
        write_table(out, "path", &self.largest_paths)?;
        write_table(out, "closure", &self.largest_closures)?;
        if self.closures_examined < self.closures_total {
            writeln!(out, "{} of {} closures were examined.\n", self.closures_examined, self.closures_total)?;
        }
        write_table(out, "kept by this pin alone", &pins)
    }
}

fn with_sizes(name: &str, value: Value, sizes: Sizes) -> Value {
    let mut object = json!({ "paths": sizes.paths, "narSize": sizes.nar_size, "fileSize": sizes.file_size });
    object[name] = value;
    object
}

/// Writes a table, and a blank line after it.
fn write_table(out: &mut impl Write, title: &str, rows: &[(String, Sizes)]) -> io::Result<()> {
    let widths = rows.iter().map(|(name, _)| name.chars().count());
    let width = widths.chain([title.len()]).max().unwrap_or_default();
    writeln!(out, "{title:width$}  {:>12}  {:>12}  {:>12}", "paths", "unpacked", "compressed")?;
    for (name, sizes) in rows {
        let (paths, nar_size) = (HumanCount(sizes.paths).to_string(), HumanBytes(sizes.nar_size).to_string());
        let file_size = HumanBytes(sizes.file_size).to_string();
        writeln!(out, "{name:width$}  {paths:>12}  {nar_size:>12}  {file_size:>12}")?;
    }
    writeln!(out)
}
