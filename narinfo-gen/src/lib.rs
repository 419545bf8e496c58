//! Hashes, narinfos, compression and cache archives; the library behind `narinfo-gen`.
//!
//! | module | owns |
//! | --- | --- |
//! | [`hash`] | SHA-256 as Nix writes it |
//! | [`narinfo`] | reading and writing narinfos |
//! | [`cache_info`] | `nix-cache-info` |
//! | [`compression`] | the methods that narinfos name |
//! | [`content_address`] | paths that prove themselves |
//! | [`packing`] | a NAR in, a compressed NAR with its hashes out |
//! | [`examine`] | the way back: what a compressed NAR from elsewhere really is |
//! | [`entry`] | listings, links to debug information, build logs, realisations |
//! | [`describe`] | narinfos from a NAR or an export stream |
//! | [`archive`] | the cache archive, and what the keys of a cache mean |
//! | [`stream`] | telling streams from their first bytes |

pub mod archive;
pub mod cache_info;
pub mod cli;
pub mod compression;
pub mod content_address;
pub mod describe;
pub mod entry;
pub mod examine;
mod frames;
pub mod hash;
pub mod narinfo;
pub mod packing;
pub mod stream;

use cache_info::CacheInfo;
use cli::{Cli, Packing};
use compression::Settings;
use describe::{Describer, Sink, require_path};
use entry::{Extras, Object};
use nar_pack::path_info::Registry;
use nar_pack::stage::{self, Doing, Failure, Outcome, Output};
use narinfo::{NarInfo, TextWriter};
use packing::PackedNar;
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

impl Packing {
    /// The settings that the command line asks for.
    ///
    /// # Errors
    /// A usage failure for a level that the method does not have.
    pub fn settings(&self) -> Outcome<Settings> {
        Settings::new(self.compression.into(), self.level, self.threads)
    }
}

/// Runs `narinfo-gen`.
///
/// # Errors
/// See the exit codes in [`stage`].
pub fn run(cli: &Cli) -> Outcome {
    let settings = cli.packing.settings()?;
    let mut registry = Registry::open(&cli.knowledge, None)?;
    let path = cli.store_path.as_deref().map(|path| registry.store_dir.parse(path)).transpose()?;
    let deriver = cli.deriver.as_deref().map(|path| registry.store_dir.parse(path)).transpose()?;
    let (kind, mut input) = sniff(stage::stdin(WANTED)?, WANTED)?;
    if !matches!(kind, Kind::Nar | Kind::Export) {
        return Err(Failure::refused(format!("standard input is {}; expected {WANTED}", kind.name())));
    }
    let path = require_path(kind, path)?;
    let sink = if cli.archive {
        let mut archive = archive::Writer::new(stage::stdout(Some("the cache archive"))?);
        archive.text(cache_info::KEY, &CacheInfo::new(registry.store_dir.clone()).to_string())?;
        Out::Archive(archive)
    } else {
        Out::Text(TextWriter::new(stage::stdout(None)?))
    };
    let extras = cli.extras();
    let warn = |warning: &str| stage::say(TOOL, warning);
    let mut describer = Describer { settings, registry: &mut registry, extras, sink, warn };
    let result = match path {
        Some(path) => describer.nar(&mut input, &path, deriver.as_ref()).doing(|| path.to_string()),
        None => describer.export(&mut input),
    };
    match describer.sink {
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
    fn nar(&mut self, key: &str, nar: PackedNar) -> Outcome {
        match self {
            Self::Text(_) => Ok(()),
            Self::Archive(archive) => archive.member(key, nar.file_size, nar.body),
        }
    }

    fn object(&mut self, object: Object) -> Outcome {
        match self {
            Self::Text(_) => Ok(()),
            Self::Archive(archive) => archive.member(&object.key, object.size, object.body),
        }
    }

    fn narinfo(&mut self, narinfo: NarInfo, more: bool) -> Outcome {
        match self {
            Self::Text(text) => text.write(&narinfo, more),
            Self::Archive(archive) => archive.narinfo(&narinfo),
        }
    }
}
