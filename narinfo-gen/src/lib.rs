//! Hashes, narinfos, compression and cache archives; the library behind `narinfo-gen`.
//!
//! | module | owns |
//! | --- | --- |
//! | [`hash`] | SHA-256 as Nix writes it |
//! | [`narinfo`] | reading and writing narinfos |
//! | [`cache_info`] | `nix-cache-info` |
//! | [`compression`] | the methods that narinfos name |
//! | [`content_address`] | paths that prove themselves |
//! | [`compress_nar`] | a NAR in, a compressed NAR with its hashes out |
//! | [`verify_nar`] | the way back: what a compressed NAR from elsewhere really is |
//! | [`extras`] | listings, links to debug information, build logs, realisations |
//! | [`narinfo_builder`] | narinfos from a NAR or an export stream |
//! | [`archive`] | the cache archive, and what the keys of a cache mean |
//! | [`stream`] | telling streams from their first bytes |

pub mod archive;
pub mod cache_info;
pub mod cli;
pub mod compress_nar;
pub mod compression;
pub mod content_address;
pub mod extras;
mod frames;
pub mod hash;
pub mod narinfo;
pub mod narinfo_builder;
pub mod stream;
pub mod verify_nar;

use cache_info::CacheInfo;
use cli::{Cli, CompressionArgs};
use compress_nar::CompressedNar;
use compression::Settings;
use extras::{Extras, Object};
use nar_pack::error::{Context, Error, Result};
use nar_pack::path_info::PathInfoSource;
use nar_pack::process;
use nar_pack::stdio::{self, Output};
use narinfo::{NarInfo, TextWriter};
use narinfo_builder::{NarInfoBuilder, Sink, require_path};
use stream::{Kind, sniff};

const TOOL: &str = "narinfo-gen";
const WANTED: &str = "a NAR or an export stream";

impl Cli {
    fn extras(&self) -> Extras {
        Extras {
            listing: self.listing,
            debug_info: self.debug_info,
            logs: self.log.then(|| self.log_dir.clone()),
            realisations: self.realisations,
        }
    }
}

impl CompressionArgs {
    /// The settings that the command line asks for.
    ///
    /// # Errors
    /// A usage failure for a level that the method does not have.
    pub fn settings(&self) -> Result<Settings> {
        Settings::new(self.compression.into(), self.level, self.threads)
    }
}

/// Runs `narinfo-gen`.
///
/// # Errors
/// See the exit codes in [`nar_pack::error`].
pub fn run(cli: &Cli) -> Result {
    let settings = cli.compression_args.settings()?;
    let mut registry = PathInfoSource::open(&cli.path_info_args, None)?;
    let path = cli.store_path.as_deref().map(|path| registry.store_dir.parse(path)).transpose()?;
    let deriver = cli.deriver.as_deref().map(|path| registry.store_dir.parse(path)).transpose()?;
    let (kind, mut input) = sniff(stdio::stdin(WANTED)?, WANTED)?;
    if !matches!(kind, Kind::Nar | Kind::Export) {
        return Err(Error::refused(format!("standard input is {}; expected {WANTED}", kind.name())));
    }
    let path = require_path(kind, path)?;
    let sink = if cli.archive {
        let mut archive = archive::Writer::new(stdio::stdout(Some("the cache archive"))?);
        archive.text(cache_info::KEY, &CacheInfo::new(registry.store_dir.clone()).to_string())?;
        Out::Archive(archive)
    } else {
        Out::Text(TextWriter::new(stdio::stdout(None)?))
    };
    let extras = cli.extras();
    let warn = |warning: &str| process::print_message(TOOL, warning);
    let mut builder = NarInfoBuilder { settings, registry: &mut registry, extras, sink, warn };
    let result = match path {
        Some(path) => builder.nar(&mut input, &path, deriver.as_ref()).context(|| path.to_string()),
        None => builder.export(&mut input),
    };
    match builder.sink {
        Out::Archive(archive) => result.and_then(|()| archive.finish()?.finish()),
        Out::Text(mut text) => {
            result.inspect_err(|_| text.cut_off())?;
            text.into_inner().finish()
        }
    }
}

enum Out {
    Text(TextWriter<Output>),
    Archive(archive::Writer<Output>),
}

impl Sink for Out {
    fn nar(&mut self, key: &str, nar: CompressedNar) -> Result {
        match self {
            Self::Text(_) => Ok(()),
            Self::Archive(archive) => archive.member(key, nar.file_size, nar.body),
        }
    }

    fn object(&mut self, object: Object) -> Result {
        match self {
            Self::Text(_) => Ok(()),
            Self::Archive(archive) => archive.member(&object.key, object.size, object.body),
        }
    }

    fn narinfo(&mut self, narinfo: NarInfo, more: bool) -> Result {
        match self {
            Self::Text(text) => text.write(&narinfo, more),
            Self::Archive(archive) => archive.narinfo(&narinfo),
        }
    }
}
