//! Runs `narinfo-gen`: turns the command line into typed options, connects standard input to the narinfo builder, and writes
//! its results to standard output.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use nar_pack::error::{Context, Error, Result};
use nar_pack::path_argument::PathArgument;
use nar_pack::path_info::PathInfoSource;
use nar_pack::process;
use nar_pack::stdio::{self, Output};
use nar_pack::store_path::StorePath;

use crate::archive;
use crate::cache_info::{self, CacheInfo};
use crate::cli::Cli;
use crate::compress_nar::CompressedNar;
use crate::compression::Settings;
use crate::extras::{ExtraObject, Extras};
use crate::narinfo::{NarInfo, TextWriter};
use crate::narinfo_builder::{EntryWriter, NarInfoBuilder, NarPath, require_path};
use crate::stream::{Kind, sniff};

const TOOL: &str = "narinfo-gen";
/// Nix's default of the build setting `log-dir`.
const DEFAULT_LOG_DIR: &str = "/nix/var/log/nix";
const EXPECTED_INPUT: &str = "a NAR or an export stream";

/// What to write.
#[derive(Debug)]
enum Mode {
    NarInfoText,
    /// A cache archive with these extras.
    Archive(Extras),
}

/// One invocation of the tool.
#[derive(Debug)]
struct Options {
    mode: Mode,
    settings: Settings,
    path_info: PathInfoSource,
    /// The path of the NAR on standard input.
    path: Option<NarPath>,
    deriver: Option<StorePath>,
}

impl Options {
    fn from_cli(cli: &Cli) -> Result<Self> {
        let settings = cli.compression_args.settings()?;
        let path_info = PathInfoSource::open(&cli.path_info_args, None)?;
        let store_dir = &path_info.store_dir;
        let resolve = |path: &String| PathArgument::resolve(Path::new(path), store_dir);
        let path = cli.store_path.as_ref().map(resolve).transpose()?.map(|path| path.into_path_of_nar(store_dir, TOOL));
        let deriver = cli.deriver.as_ref().map(resolve).transpose()?.map(|deriver| deriver.path);
        let added =
            cli.name.as_ref().map(|name| NarPath::Added { name: name.clone(), no_references: cli.no_references });
        let path = path.map(NarPath::Given).or(added);
        let mode = if cli.archive {
            Mode::Archive(Extras {
                listing: cli.listing,
                debug_info: cli.debug_info,
                log_dir: cli.log.then(|| log_dir(cli)).transpose()?,
                realisations: cli.realisations,
            })
        } else {
            Mode::NarInfoText
        };
        Ok(Self { mode, settings, path_info, path, deriver })
    }
}

/// Runs the tool.
///
/// # Errors
/// See the exit statuses in [`nar_pack::error`].
pub fn run(cli: &Cli) -> Result {
    let Options { mode, settings, mut path_info, path, deriver } = Options::from_cli(cli)?;
    let (kind, mut input) = sniff(stdio::stdin(EXPECTED_INPUT)?, EXPECTED_INPUT)?;
    if !matches!(kind, Kind::Nar | Kind::Export) {
        return Err(Error::refused(format!("standard input is {}, expected {EXPECTED_INPUT}", kind.name())));
    }
    let hint = || "pass its store path as the argument STORE-PATH, or --name NAME to add it as a new path".to_owned();
    let path = require_path(kind, path, hint)?;
    if kind == Kind::Export && cli.path_info_args.candidates.is_some() {
        let error = Error::usage("--candidates cannot be used with an export stream");
        return Err(error.with_hint("remove --candidates: an export stream contains the references of each path"));
    }
    let (writer, extras) = match mode {
        Mode::NarInfoText => (OutputWriter::Text(TextWriter::new(stdio::stdout(None)?)), Extras::default()),
        Mode::Archive(extras) => {
            let mut archive = archive::Writer::new(stdio::stdout(Some("the cache archive"))?);
            archive.text(cache_info::KEY, &CacheInfo::new(path_info.store_dir.clone()).to_string())?;
            (OutputWriter::Archive(archive), extras)
        }
    };
    let warn = |warning: &str| process::print_message(TOOL, warning);
    let mut builder = NarInfoBuilder { settings, path_info: &mut path_info, extras, writer, warn };
    let result = match path {
        Some(NarPath::Given(path)) => builder.nar(&mut input, &path, deriver.as_ref()).context(|| path.to_string()),
        Some(NarPath::Added { name, no_references }) => builder.added_nar(&mut input, &name, no_references),
        None => builder.export(&mut input),
    };
    builder.writer.finish(result)
}

/// Returns where build logs are: as in Nix, `NIX_LOG_DIR` replaces the default. A directory that the user names must exist;
/// a Nix that has built nothing has none.
fn log_dir(cli: &Cli) -> Result<PathBuf> {
    if let Some(dir) = &cli.log_dir {
        fs::read_dir(dir).map_err(Error::from).context(|| format!("cannot read --log-dir {}", dir.display()))?;
        return Ok(dir.clone());
    }
    let configured = env::var_os("NIX_LOG_DIR").filter(|dir| !dir.is_empty()).map(PathBuf::from);
    Ok(configured.unwrap_or_else(|| PathBuf::from(DEFAULT_LOG_DIR)))
}

/// Writes to standard output in the format of the [`Mode`].
enum OutputWriter {
    Text(TextWriter<Output>),
    Archive(archive::Writer<Output>),
}

impl OutputWriter {
    /// Completes the output, or leaves it recognizably truncated if `result` is an error.
    fn finish(self, result: Result) -> Result {
        match self {
            Self::Archive(archive) => result.and_then(|()| archive.finish()?.finish()),
            Self::Text(mut text) => {
                result.inspect_err(|_| text.mark_truncated())?;
                text.into_inner().finish()
            }
        }
    }
}

impl EntryWriter for OutputWriter {
    fn write_nar(&mut self, key: &str, nar: CompressedNar) -> Result {
        match self {
            Self::Text(_) => Ok(()),
            Self::Archive(archive) => archive.spooled(key, nar.body),
        }
    }

    fn write_object(&mut self, object: ExtraObject) -> Result {
        match self {
            Self::Text(_) => Ok(()),
            Self::Archive(archive) => archive.spooled(&object.key, object.body),
        }
    }

    fn write_narinfo(&mut self, narinfo: NarInfo, more: bool) -> Result {
        match self {
            Self::Text(text) => text.write(&narinfo, more),
            Self::Archive(archive) => archive.narinfo(&narinfo),
        }
    }
}
