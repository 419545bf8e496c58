//! Store paths, the Nix archive (NAR) and the export stream; the library behind `nar-pack`.
//!
//! | module | owns |
//! | --- | --- |
//! | [`store_path`] | store directories, store paths, path lists |
//! | [`nar`] | writing, reading, restoring and listing NARs |
//! | [`export`] | the stream of `nix-store --export` |
//! | [`references`] | scanning for references, ordering by them |
//! | [`path_info`] | what `nix path-info --json` knows |
//! | [`error`] | the error of every tool, and its exit code |
//! | [`process`] | `main` of every tool, messages on standard error |
//! | [`stdio`] | standard input and output |

pub mod cli;
pub mod error;
pub mod export;
pub mod nar;
pub mod path_info;
pub mod process;
pub mod references;
pub mod stdio;
pub mod store_path;

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use cli::Cli;
use error::{Context, Error, Result};
use export::Trailer;
use path_info::PathInfoSource;
use references::{Candidates, Scanner, references_first};
use stdio::{BUFFER_SIZE, Input};
use store_path::{StorePath, read_path_list};

const TOOL: &str = "nar-pack";

/// Runs `nar-pack`.
///
/// # Errors
/// See the exit codes in [`error`].
pub fn run(cli: &Cli) -> Result {
    if cli.export {
        return export_paths(cli);
    }
    if let Some(dir) = &cli.unpack {
        return unpack(&mut nar_input(&cli.paths)?, dir);
    }
    if cli.list {
        let mut input = nar_input(&cli.paths)?;
        let mut out = stdio::stdout(None)?;
        nar::list(&mut input, &mut out)?;
        nothing_follows(&mut input)?;
        return out.finish();
    }
    if let Some(file) = &cli.cat {
        let mut input = nar_input(&cli.paths)?;
        // Somebody asked for these bytes by name, so they may go to a terminal.
        let mut out = stdio::stdout(None)?;
        nar::cat(&mut input, file.as_bytes(), &mut out)?;
        nothing_follows(&mut input)?;
        return out.finish();
    }
    let [path] = cli.paths.as_slice() else {
        return Err(Error::failed("expected one PATH to pack"));
    };
    let mut out = stdio::stdout(Some("the NAR"))?;
    nar::dump(&below_root(cli, path)?, &mut out, &mut |warning| process::print_message(TOOL, warning))?;
    out.finish()
}

/// With `--root`, a store path is read from where it lies below it.
fn below_root(cli: &Cli, path: &Path) -> Result<PathBuf> {
    match &cli.root {
        None => Ok(path.to_owned()),
        Some(root) => {
            let store_dir = store_path::StoreDir::new(&cli.path_info_args.store_dir)?;
            Ok(store_dir.below(Some(root), &store_dir.parse(&path.to_string_lossy())?))
        }
    }
}

/// The NAR to read: a file, or standard input.
fn nar_input(paths: &[PathBuf]) -> Result<Input> {
    match paths {
        [] => stdio::stdin("a NAR"),
        [path] if path.as_os_str() == "-" => stdio::stdin("a NAR"),
        [path] => {
            let opening = |error| Error::failed(format!("opening {}: {error}", path.display()));
            let file = File::open(path).map_err(opening)?;
            if file.metadata().map_err(opening)?.is_dir() {
                return Err(opening(rustix::io::Errno::ISDIR.into()));
            }
            Ok(BufReader::with_capacity(BUFFER_SIZE, file))
        }
        _ => Err(Error::failed("expected one NAR to read")),
    }
}

fn nothing_follows(input: &mut impl BufRead) -> Result {
    if input.fill_buf()?.is_empty() { Ok(()) } else { Err(Error::refused("something follows the end of the NAR")) }
}

fn unpack(input: &mut impl BufRead, dir: &Path) -> Result {
    nar::restore(input, dir)?;
    nothing_follows(input).inspect_err(|_| drop(nar::remove_tree(dir)))
}

fn export_paths(cli: &Cli) -> Result {
    let mut registry = PathInfoSource::open(&cli.path_info_args, cli.root.as_deref())?;
    let paths = requested_paths(cli, &registry)?;
    let (paths, trailers) = describe(cli, &mut registry, paths)?;
    let order = references_first(&paths, |path| trailers.get(path).map_or(&[], |trailer| &trailer.references))?;

    let mut writer = export::Writer::new(stdio::stdout(Some("the export stream"))?);
    for path in order {
        let source = registry.store_dir.below(cli.root.as_deref(), path);
        writer.path(&registry.store_dir, &trailers[path], |out| {
            nar::dump(&source, out, &mut |warning| process::print_message(TOOL, warning))
        })?;
    }
    writer.finish()?.finish()
}

/// The paths from the command line and the path list, each once, in their order.
fn requested_paths(cli: &Cli, registry: &PathInfoSource) -> Result<Vec<StorePath>> {
    let mut paths = Vec::new();
    for path in &cli.paths {
        paths.push(match cli.root {
            Some(_) => registry.store_dir.parse(&path.to_string_lossy())?,
            None => registry.store_dir.find(path)?,
        });
    }
    if cli.stdin {
        paths.extend(read_path_list(stdio::stdin("a path list")?, &registry.store_dir)?);
    } else if paths.is_empty() {
        return Err(Error::failed("expected store paths to export, or --stdin"));
    }
    let mut seen = std::collections::HashSet::new();
    paths.retain(|path| seen.insert(path.clone()));
    Ok(paths)
}

/// References and deriver of each path to export; the second reading of a scanned path is the price of their order.
fn describe(
    cli: &Cli,
    registry: &mut PathInfoSource,
    paths: Vec<StorePath>,
) -> Result<(Vec<StorePath>, HashMap<StorePath, Trailer>)> {
    let (mut paths, mut infos) = if cli.recursive && !paths.is_empty() {
        let infos = registry.closure(&paths)?;
        let mut all: Vec<StorePath> = infos.keys().cloned().collect();
        all.sort_unstable();
        (all, infos)
    } else {
        let infos = registry.query(&paths)?;
        (paths, infos)
    };
    // The largest first, and what it references: what comes after it fills the time that it takes to send.
    paths.sort_by_key(|path| std::cmp::Reverse(infos.get(path).and_then(|info| info.nar_size)));
    let mut trailers = HashMap::with_capacity(paths.len());
    let mut candidates: Option<Arc<Candidates>> = None;
    for path in &paths {
        let (references, deriver) = if let Some(info) = infos.remove(path) {
            (info.references, info.deriver)
        } else {
            let candidates = match &mut candidates {
                Some(candidates) => candidates,
                none => {
                    let known = registry.candidates()?.into_iter().chain(paths.iter().cloned());
                    none.insert(Arc::new(known.collect()))
                }
            };
            let mut scanner = Scanner::new(Arc::clone(candidates));
            let source = registry.store_dir.below(cli.root.as_deref(), path);
            nar::dump(&source, &mut scanner, &mut |_| {}).context(|| "looking for references")?;
            (scanner.finish(), None)
        };
        trailers.insert(path.clone(), Trailer { path: path.clone(), references, deriver });
    }
    Ok((paths, trailers))
}
