//! The command line of `narinfo-gen`.

use std::path::PathBuf;

use clap::{Args, Parser, ValueEnum};
use nar_pack::cli::PathInfoArgs;

use crate::compression::Compression;

/// Hash and compress NARs, and write the narinfo that describes each.
///
/// Reads a NAR (then STORE-PATH says what it is) or an export stream from standard input, and tells them apart by
/// their first bytes. Writes narinfo text, or with --archive a tar whose members are the objects of a binary cache.
#[derive(Debug, Parser)]
#[command(name = "narinfo-gen", version, verbatim_doc_comment, after_help = AFTER_HELP)]
pub struct Cli {
    /// The store path whose NAR is on standard input; none for an export stream, which names its paths
    #[arg(value_name = "STORE-PATH")]
    pub store_path: Option<String>,

    /// Write a cache archive (tar): each NAR before its narinfo, each narinfo after those that it references
    #[arg(short, long)]
    pub archive: bool,

    /// Add the listing of each NAR, `<hash>.ls`, as Nix does with `write-nar-listing`
    #[arg(long, requires = "archive")]
    pub listing: bool,

    /// Add links to the debug information in each NAR, `debuginfo/<build-id>.debug`, as Nix does with `index-debug-info`
    #[arg(long, requires = "archive")]
    pub debug_info: bool,

    /// Add the build log of each path's deriver, `log/<derivation>`, where there is one in --log-dir
    #[arg(long, requires = "archive")]
    pub log: bool,

    /// Where Nix keeps build logs
    #[arg(long, value_name = "DIR", env = "NIX_LOG_DIR", default_value = "/nix/var/log/nix", hide_env_values = true)]
    pub log_dir: PathBuf,

    /// Add the realisation of each path that is the output of a content-addressed derivation; asks the installed Nix
    #[arg(long, requires = "archive")]
    pub realisations: bool,

    /// The derivation that built STORE-PATH, where nothing else tells
    #[arg(long, value_name = "STORE-PATH", requires = "store_path")]
    pub deriver: Option<String>,

    /// How to compress
    #[command(flatten)]
    pub compression_args: CompressionArgs,

    /// Where to learn about store paths
    #[command(flatten)]
    pub path_info_args: PathInfoArgs,
}

/// How NARs are compressed; shared with `s3-push`.
#[derive(Debug, Clone, Args)]
pub struct CompressionArgs {
    /// How to compress NARs
    #[arg(short, long, value_enum, default_value_t = Method::Zstd)]
    pub compression: Method,

    /// Compression level; its range depends on the method (zstd 1-19, default 3; xz 0-9, 6; gzip 0-9, 6; bzip2 1-9, 9; br 0-11, 6)
    #[arg(long, value_name = "N")]
    pub level: Option<u32>,

    /// Threads to compress with; the output does not depend on it (default: one per processor)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    pub threads: Option<u16>,
}

/// The compression methods that can be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[allow(missing_docs)] // the variants are the words on the command line
pub enum Method {
    None,
    Zstd,
    Xz,
    Bzip2,
    Gzip,
    Br,
}

impl From<Method> for Compression {
    fn from(method: Method) -> Self {
        match method {
            Method::None => Self::None,
            Method::Zstd => Self::Zstd,
            Method::Xz => Self::Xz,
            Method::Bzip2 => Self::Bzip2,
            Method::Gzip => Self::Gzip,
            Method::Br => Self::Brotli,
        }
    }
}

const AFTER_HELP: &str = "\
References, deriver, content address and existing signatures come from the export stream, else from
--path-info, else from the installed Nix, else references come from scanning the NAR for the hash
parts of candidate paths.

Examples:
  nar-pack \"$P\" | narinfo-gen \"$P\"
  nar-pack --export -r ./result | narinfo-gen --archive > cache.tar
  nix-store --export $(nix-store -qR ./result) | narinfo-gen --archive -c xz | cache-sign -k key.sec | s3-push s3://my-cache
  nar-pack --export -r ./result | narinfo-gen --archive --listing --log | cache-sign -k key.sec | s3-push s3://my-cache
  narinfo-gen --archive < closure.export | tar x -C /srv/cache      # a file:// cache that Nix can use

Memory: 16 MiB and about 40 MiB per thread (zstd level 3; xz level 6 takes 300 MiB per thread),
whatever the size of the NAR; about 200 bytes a path. A compressed NAR above 16 MiB is kept in an
unlinked file in $TMPDIR until its hash is known.

Exit status: 0 done; 1 refused (malformed or truncated stream); 2 usage, or an operation that
failed; 141 when the reader of standard output went away.";
