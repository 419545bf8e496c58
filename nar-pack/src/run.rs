//! Runs `nar-pack`: turns the command line into one [`Mode`], and runs it. No other module reads flags.
//! [`crate::nar`] and [`crate::export`] handle the formats, [`crate::export_paths`] the choice and order of exported
//! paths.

use std::ffi::OsStr;
use std::io::{self, BufRead, BufWriter, Seek};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::cli::Cli;
use crate::error::{Context as _, Error, Result};
use crate::export_paths::{ExportOptions, export_paths};
use crate::nar::{self, CaseHack, Restorer};
use crate::option_values::reject_inapplicable;
use crate::path_argument::PathArgument;
use crate::root_dir::{LeavingLinks, OpenDir, RootDir};
use crate::stdio::{self, Input};
use crate::store_path::StoreDir;
use crate::{TOOL, process};

/// Size of a listing that is kept in memory until the NAR has been read, in bytes. A larger one is in a temporary file.
const MAX_LISTING_IN_MEMORY: usize = 1 << 20;

/// What an invocation does.
enum Mode<'a> {
    /// Writes a file tree as a NAR.
    Dump { tree: PathBuf },
    /// Writes a store path below another root, or a file within it, as a NAR.
    DumpBelow { root: &'a Path, store_dir: StoreDir, path: PathArgument },
    /// Writes store paths as an export stream.
    Export(ExportOptions<'a>),
    /// Restores a NAR as a file tree.
    Unpack { nar: NarSource<'a>, dir: &'a Path, case_hack: bool },
    /// Prints the listing of a NAR.
    List { nar: NarSource<'a> },
    /// Prints one file of a NAR.
    Cat { nar: NarSource<'a>, file: &'a OsStr },
}

/// Where a NAR is read from.
enum NarSource<'a> {
    Stdin,
    File(&'a Path),
}

/// Runs `nar-pack`.
///
/// # Errors
/// Returns the error to print, with its exit status; see [`crate::error`].
pub fn run(cli: &Cli) -> Result {
    match Mode::new(cli)? {
        Mode::Dump { tree } => dump(|out| nar::dump(&tree, out, &mut print_warning)),
        Mode::DumpBelow { root, store_dir, path } => {
            let (dir, name) = open_below(root, &store_dir, &path)?;
            dump(|out| nar::dump_in(&dir, name, out, &mut print_warning))
        }
        Mode::Export(options) => export_paths(&options),
        Mode::Unpack { nar, dir, case_hack } => unpack(&mut nar.open()?, dir, case_hack),
        Mode::List { nar } => list(&mut nar.open()?),
        Mode::Cat { nar, file } => cat(&mut nar.open()?, file),
    }
}

impl<'a> Mode<'a> {
    fn new(cli: &'a Cli) -> Result<Self> {
        reject_inapplicable_options(cli)?;
        if cli.export {
            if cli.paths.is_empty() && !cli.stdin {
                return Err(Error::usage("no store paths to export: pass store paths or --stdin"));
            }
            return Ok(Self::Export(ExportOptions {
                paths: &cli.paths,
                read_stdin: cli.stdin,
                recursive: cli.recursive,
                root: cli.root.as_deref(),
                path_info: &cli.path_info_args,
            }));
        }
        if let Some(dir) = &cli.unpack {
            return Ok(Self::Unpack { nar: NarSource::new(cli)?, dir, case_hack: cli.case_hack });
        }
        if cli.list {
            return Ok(Self::List { nar: NarSource::new(cli)? });
        }
        if let Some(file) = &cli.cat {
            return Ok(Self::Cat { nar: NarSource::new(cli)?, file });
        }
        match cli.paths.as_slice() {
            [] => Err(Error::usage("no path given: pass the file tree to pack")),
            [path] => match cli.root.as_deref() {
                None => Ok(Self::Dump { tree: locate(cli, path) }),
                Some(root) => {
                    let store_dir = StoreDir::new(&cli.path_info_args.store_dir)?;
                    let path = PathArgument::resolve(path, &store_dir)?;
                    Ok(Self::DumpBelow { root, store_dir, path })
                }
            },
            [_, extra, ..] => Err(unexpected_argument(extra, "use --export to pack several paths")),
        }
    }
}

impl<'a> NarSource<'a> {
    fn new(cli: &'a Cli) -> Result<Self> {
        match cli.paths.as_slice() {
            [] => Ok(Self::Stdin),
            [path] if path.as_os_str() == "-" => Ok(Self::Stdin),
            [path] => Ok(Self::File(path)),
            [_, extra, ..] => Err(unexpected_argument(extra, "run the command once per NAR")),
        }
    }

    fn open(&self) -> Result<Input> {
        match self {
            Self::Stdin => stdio::stdin("a NAR"),
            Self::File(path) => {
                if path.is_dir() {
                    let error = Error::failed(format!("cannot read {}: it is a directory", path.display()));
                    return Err(error.with_hint("pass a NAR, or pack the directory first"));
                }
                stdio::open(path)
            }
        }
    }
}

fn reject_inapplicable_options(cli: &Cli) -> Result {
    let outputs = [("--unpack", cli.unpack.is_some()), ("--list", cli.list), ("--cat", cli.cat.is_some())];
    let Some((output, _)) = outputs.into_iter().find(|(_, is_given)| *is_given) else { return Ok(()) };
    let options: [(&str, bool, &[&str]); 3] = [
        ("--stdin", cli.stdin, &["--export"]),
        ("--recursive", cli.recursive, &["--export"]),
        ("--root", cli.root.is_some(), &["store paths to pack", "--export"]),
    ];
    reject_inapplicable(output, options)
}

fn unexpected_argument(argument: &Path, alternative: &str) -> Error {
    Error::usage(format!("unexpected argument {}: remove it, or {alternative}", argument.display()))
}

/// Returns the location of the tree to pack: a path of the file system, else what it names in the store. As with
/// `nix-store --dump`, a symbolic link is packed as one; there is a warning if it leads to a store path.
fn locate(cli: &Cli, path: &Path) -> PathBuf {
    let resolve = |store_dir: StoreDir| {
        let PathArgument { path, file } = PathArgument::resolve(path, &store_dir).ok()?;
        Some(store_dir.join(&path) + &file)
    };
    let in_store = || StoreDir::new(&cli.path_info_args.store_dir).ok().and_then(resolve);
    match path.symlink_metadata() {
        Err(_) => in_store().map_or_else(|| path.to_owned(), PathBuf::from),
        Ok(metadata) => {
            if let Some(target) = metadata.is_symlink().then(in_store).flatten() {
                let path = path.display();
                print_warning(&format!("{path} is packed as a symbolic link: pass {target} to pack the store path"));
            }
            path.to_owned()
        }
    }
}

/// Opens the directory of a file below another root, and returns the name of the file in it.
fn open_below<'a>(root: &Path, store_dir: &StoreDir, path: &'a PathArgument) -> Result<(Arc<OpenDir>, &'a str)> {
    let Some((parent, name)) = path.file.rsplit_once('/') else {
        return Ok((Arc::new(store_dir.open_existing(Some(root))?), path.path.base_name()));
    };
    let parent = PathBuf::from(store_dir.join(&path.path) + parent);
    let dir = RootDir::open(root)?.open_dir(&parent, LeavingLinks::StayInRoot)?;
    let dir = dir.ok_or_else(|| Error::failed(format!("there is no {} below {}", parent.display(), root.display())))?;
    Ok((Arc::new(dir), name))
}

fn dump(write_nar: impl FnOnce(&mut stdio::Output) -> Result) -> Result {
    let mut out = stdio::stdout(Some("a NAR"))?;
    write_nar(&mut out)?;
    out.finish()
}

pub(crate) fn print_warning(warning: &str) {
    process::print_message(TOOL, format!("warning: {warning}"));
}

fn unpack(input: &mut impl BufRead, dir: &Path, case_hack: bool) -> Result {
    let exists = dir.symlink_metadata().is_ok();
    let mut restorer = Restorer::new(dir)?;
    let parsed =
        if case_hack { nar::parse(input, &mut CaseHack::new(&mut restorer)) } else { nar::parse(input, &mut restorer) };
    let result = parsed.and_then(|_| nar::require_end(input));
    match restorer.abort_on_error(result) {
        Err(error) if exists && !error.is_refusal() => {
            Err(error.with_hint("remove the existing path, or unpack to another one"))
        }
        result => result,
    }
}

/// Prints the listing when the whole NAR has been read: part of a JSON document is of no use.
fn list(input: &mut impl BufRead) -> Result {
    let mut listing = BufWriter::new(tempfile::spooled_tempfile(MAX_LISTING_IN_MEMORY));
    nar::list(input, &mut listing)?;
    nar::require_end(input)?;
    let context = || "cannot write the listing to a temporary file";
    let mut listing = listing.into_inner().map_err(|error| Error::from(error.into_error())).context(context)?;
    listing.rewind().map_err(Error::from).context(context)?;
    let mut out = stdio::stdout(None)?;
    io::copy(&mut listing, &mut out)?;
    out.finish()
}

fn cat(input: &mut impl BufRead, file: &OsStr) -> Result {
    // A terminal is allowed: the user asked for this file.
    let mut out = stdio::stdout(None)?;
    nar::cat(input, file.as_bytes(), &mut out)?;
    nar::require_end(input)?;
    out.finish()
}
