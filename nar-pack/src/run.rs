//! Runs `nar-pack`: turns the command line into one [`Mode`], and runs it. No other module reads flags.
//! [`crate::nar`] and [`crate::export`] handle the formats, [`crate::export_paths`] the choice and order of exported
//! paths.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

use crate::cli::Cli;
use crate::error::{Context as _, Error, Result};
use crate::export_paths::{ExportOptions, export_paths};
use crate::nar::{self, CaseHack, Restorer};
use crate::stdio::{self, BUFFER_SIZE, Input};
use crate::store_path::StoreDir;
use crate::{TOOL, process};

/// What an invocation does.
enum Mode<'a> {
    /// Writes a file tree as a NAR.
    Dump { tree: PathBuf },
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
/// Returns the error to print, with its exit code; see [`crate::error`].
pub fn run(cli: &Cli) -> Result {
    match Mode::new(cli)? {
        Mode::Dump { tree } => dump(&tree),
        Mode::Export(options) => export_paths(&options),
        Mode::Unpack { nar, dir, case_hack } => unpack(&mut nar.open()?, dir, case_hack),
        Mode::List { nar } => list(&mut nar.open()?),
        Mode::Cat { nar, file } => cat(&mut nar.open()?, file),
    }
}

impl<'a> Mode<'a> {
    fn new(cli: &'a Cli) -> Result<Self> {
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
            [path] => Ok(Self::Dump { tree: locate(cli, path)? }),
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
                let error = |error: std::io::Error| Error::failed(format!("cannot open {}: {error}", path.display()));
                let file = File::open(path).map_err(error)?;
                if file.metadata().map_err(error)?.is_dir() {
                    return Err(error(Errno::ISDIR.into()).with_hint("pass a NAR, or pack the directory first"));
                }
                Ok(BufReader::with_capacity(BUFFER_SIZE, file))
            }
        }
    }
}

fn unexpected_argument(argument: &Path, alternative: &str) -> Error {
    Error::usage(format!("unexpected argument {}: remove it, or {alternative}", argument.display()))
}

/// Returns the location of the tree to pack; with `--root`, `path` is a store path.
fn locate(cli: &Cli, path: &Path) -> Result<PathBuf> {
    match &cli.root {
        None => Ok(path.to_owned()),
        Some(root) => {
            let store_dir = StoreDir::new(&cli.path_info_args.store_dir)?;
            Ok(store_dir.real_path(Some(root), &store_dir.parse(&path.to_string_lossy())?))
        }
    }
}

fn dump(tree: &Path) -> Result {
    let mut out = stdio::stdout(Some("a NAR"))?;
    nar::dump(tree, &mut out, &mut print_warning)?;
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
    let result = parsed.and_then(|_| expect_end(input));
    match restorer.abort_on_error(result) {
        Err(error) if exists && !error.is_refusal() => {
            Err(error.with_hint("remove the existing path, or unpack to another one"))
        }
        result => result,
    }
}

fn list(input: &mut impl BufRead) -> Result {
    let mut out = stdio::stdout(None)?;
    nar::list(input, &mut out)?;
    expect_end(input)?;
    out.finish()
}

fn cat(input: &mut impl BufRead, file: &OsStr) -> Result {
    // A terminal is allowed: the user asked for this file.
    let mut out = stdio::stdout(None)?;
    nar::cat(input, file.as_bytes(), &mut out)?;
    expect_end(input)?;
    out.finish()
}

fn expect_end(input: &mut impl BufRead) -> Result {
    if input.fill_buf().map_err(Error::from).context(|| "cannot read the NAR")?.is_empty() {
        Ok(())
    } else {
        Err(Error::refused("unexpected data after the end of the NAR"))
    }
}
