//! `nar-pack --export`: selects the store paths, determines their references and derivers, and writes them in an order in
//! which each path follows its references. A path without path info is packed twice, once to scan it: its references
//! decide its position, so they must be known before anything is written.

use std::cmp::Reverse;
use std::collections::{HashMap, HashSet};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::cli::PathInfoArgs;
use crate::error::{Error, Result};
use crate::export::{self, Trailer};
use crate::path_argument::PathArgument;
use crate::path_info::{PathInfo, PathInfoSource};
use crate::references::{Candidates, Scanner, references_first};
use crate::root_dir::OpenDir;
use crate::run::print_warning;
use crate::store_path::{StorePath, read_path_list};
use crate::{nar, stdio};

/// Which store paths to export, and where their metadata comes from.
pub(crate) struct ExportOptions<'a> {
    pub(crate) paths: &'a [PathBuf],
    /// Whether to read more paths from standard input.
    pub(crate) read_stdin: bool,
    /// Whether to export the closure.
    pub(crate) recursive: bool,
    /// Root of a store that is not at its own location.
    pub(crate) root: Option<&'a Path>,
    pub(crate) path_info: &'a PathInfoArgs,
}

/// Writes an export stream to standard output.
pub(crate) fn export_paths(options: &ExportOptions) -> Result {
    let mut path_info = PathInfoSource::open(options.path_info, options.root)?;
    let requested = requested_paths(options, &path_info)?;
    let out = || stdio::stdout(Some("an export stream"));
    if requested.is_empty() {
        return export::Writer::new(out()?).finish()?.finish();
    }
    let store = Arc::new(path_info.store_dir.open_existing(options.root)?);
    let (mut paths, infos) = if options.recursive {
        let infos = path_info.closure(&requested)?;
        let mut closure: Vec<StorePath> = infos.keys().cloned().collect();
        closure.sort_unstable();
        (closure, infos)
    } else {
        let infos = path_info.query(&requested)?;
        (requested, infos)
    };
    // Large paths first, after their references: the smaller ones then overlap with the compression and upload of these.
    paths.sort_by_key(|path| Reverse(infos.get(path).and_then(|info| info.nar_size)));
    let nar_sizes: HashMap<StorePath, u64> =
        infos.iter().filter_map(|(path, info)| Some((path.clone(), info.nar_size?))).collect();
    let trailers = trailers(&store, &path_info, &paths, infos)?;
    let order = references_first(&paths, |path| trailers.get(path).map_or(&[], |trailer| &trailer.references))?;

    let mut writer = export::Writer::new(out()?);
    for path in order {
        let dump = |out: &mut _| {
            let mut out = CountingWriter { out, count: 0 };
            nar::dump_in(&store, path.base_name(), &mut out, &mut print_warning)?;
            let checked = require_nar_size(path, out.count, nar_sizes.get(path).copied());
            checked.map_err(|error| if path_info.is_from_document(path) { error } else { error.with_hint(VERIFY_HINT) })
        };
        writer.write_path(&path_info.store_dir, &trailers[path], dump)?;
    }
    writer.finish()?.finish()
}

/// The hint for a path that is not as Nix describes it.
const VERIFY_HINT: &str = "'nix-store --verify-path' checks whether the path is damaged";

/// Counts the bytes that are written.
struct CountingWriter<'a, W> {
    out: &'a mut W,
    count: u64,
}

impl<W: Write> Write for CountingWriter<'_, W> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.out.write(buf).inspect(|count| self.count += *count as u64)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// Requires that a NAR has the size that its path info has. The next stage compares its hash, which takes time; Nix writes 0
/// for a size that it does not know.
fn require_nar_size(path: &StorePath, size: u64, expected: Option<u64>) -> Result {
    match expected {
        Some(expected) if expected != 0 && expected != size => {
            let error = format!("{path}: the NAR has {size} bytes, but NarSize of its path info is {expected}");
            Err(Error::refused(error))
        }
        _ => Ok(()),
    }
}

/// Returns the paths from the command line and then those from standard input, without duplicates.
fn requested_paths(options: &ExportOptions, path_info: &PathInfoSource) -> Result<Vec<StorePath>> {
    let store_dir = &path_info.store_dir;
    let mut paths = Vec::new();
    for path in options.paths {
        paths.push(PathArgument::resolve(path, store_dir).map_err(not_exportable)?.path);
    }
    if options.read_stdin {
        paths.extend(read_path_list(stdio::stdin("a path list")?, store_dir)?);
    }
    let mut seen = HashSet::new();
    paths.retain(|path| seen.insert(path.clone()));
    Ok(paths)
}

fn not_exportable(error: Error) -> Error {
    error.with_hint("only store paths can be exported: omit --export to pack another file tree")
}

/// Returns references and deriver of each path, from its path info or a scan.
fn trailers(
    store: &Arc<OpenDir>,
    path_info: &PathInfoSource,
    paths: &[StorePath],
    mut infos: HashMap<StorePath, PathInfo>,
) -> Result<HashMap<StorePath, Trailer>> {
    let mut trailers = HashMap::with_capacity(paths.len());
    // Listed only if a path has to be scanned.
    let mut candidates: Option<Arc<Candidates>> = None;
    for path in paths {
        let (references, deriver) = if let Some(info) = infos.remove(path) {
            (info.references, info.deriver)
        } else {
            path_info.require_scannable(path)?;
            let candidates = match &mut candidates {
                Some(candidates) => candidates,
                none => {
                    none.insert(Arc::new(path_info.candidates()?.into_iter().chain(paths.iter().cloned()).collect()))
                }
            };
            let mut scanner = Scanner::new(Arc::clone(candidates));
            nar::dump_in(store, path.base_name(), &mut scanner, &mut |_| {})?;
            (scanner.finish(), None)
        };
        trailers.insert(path.clone(), Trailer { path: path.clone(), references, deriver });
    }
    Ok(trailers)
}
