//! The command line of `narinfo-gen`. Contains only clap definitions; `run` turns them into typed options.

use std::path::PathBuf;

use clap::{ArgAction, Args, Parser, ValueEnum};
use nar_pack::cli::PathInfoArgs;
use nar_pack::option_values::{parse_number, parse_path_name};

use crate::compression::{Compression, DEFAULT_DECODER_MEMORY, parse_byte_size, set_decoder_memory};

/// Hash and compress NARs, and write the narinfos that describe them
///
/// Reads a NAR (whose store path is STORE-PATH) or an export stream from standard input and detects which one it is. Writes narinfo text or, with --archive, a cache archive: a tar whose members are the objects of a binary cache.
#[derive(Debug, Parser)]
#[command(
    name = "narinfo-gen", version, max_term_width = 100, after_help = AFTER_HELP, after_long_help = AFTER_LONG_HELP,
    disable_help_flag = true, disable_version_flag = true
)]
pub struct Cli {
    /// Store path of the NAR on standard input; not for an export stream
    ///
    /// An export stream contains the store path of each NAR.
    #[arg(value_name = "STORE-PATH")]
    pub store_path: Option<String>,

    /// Describe the NAR as the content-addressed path with this name
    ///
    /// The path is the one that `nix-store --add` computes. It has no references and needs no signature: its hash part is computed from the NAR and the name.
    #[arg(
        long, value_name = "NAME", value_parser = parse_path_name, conflicts_with = "store_path", help_heading = "Input",
    )]
    pub name: Option<String>,

    /// Accept a NAR that contains hash parts of store paths; only with --name
    ///
    /// A path that is added under a name has no references, so a NAR that contains the hash part of a candidate path is refused by default.
    #[arg(long, requires = "name", help_heading = "Input", hide_short_help = true)]
    pub no_references: bool,

    /// Set the derivation that built STORE-PATH
    ///
    /// By default, the deriver comes from --path-info or from the installed Nix, if they know the path.
    #[arg(long, value_name = "STORE-PATH", requires = "store_path", help_heading = "Input")]
    pub deriver: Option<String>,

    /// Write a cache archive instead of narinfo text
    ///
    /// The archive is a tar: each NAR precedes its narinfo, and each narinfo those that refer to it.
    #[arg(short, long, help_heading = "Output")]
    pub archive: bool,

    /// Add the listing of each NAR
    ///
    /// Its key is `<hash>.ls`. Nix does the same with the store setting `write-nar-listing`.
    #[arg(long, requires = "archive", help_heading = "Output")]
    pub listing: bool,

    /// Add links to the debug information in each NAR
    ///
    /// Their keys are `debuginfo/<build-id>.debug`. Nix does the same with the store setting `index-debug-info`.
    #[arg(long, requires = "archive", help_heading = "Output")]
    pub debug_info: bool,

    /// Add the build log of each path's deriver
    ///
    /// Its key is `log/<derivation>`. A derivation without a log in --log-dir is skipped.
    #[arg(long, requires = "archive", help_heading = "Output")]
    pub log: bool,

    /// Read build logs from DIR [default: $NIX_LOG_DIR, else /nix/var/log/nix]
    #[arg(long, value_name = "DIR", requires = "log", help_heading = "Output", hide_short_help = true)]
    pub log_dir: Option<PathBuf>,

    /// Add the realisations of content-addressed derivations
    ///
    /// Asks the installed Nix which of the paths are outputs of such derivations. The keys are `realisations/…` or, with Nix 2.35 and later, `build-trace-v2/…`.
    #[arg(long, requires = "archive", help_heading = "Output")]
    pub realisations: bool,

    /// Options of compression
    #[command(flatten)]
    pub compression_args: CompressionArgs,

    /// Sources of information about store paths
    #[command(flatten)]
    pub path_info_args: PathInfoArgs,

    /// Print help: a summary with -h, all of it with --help
    #[arg(short, long, action = ArgAction::Help, help_heading = "Common")]
    help: Option<bool>,

    /// Print the version
    #[arg(short = 'V', long, action = ArgAction::Version, help_heading = "Common")]
    version: Option<bool>,
}

/// Options of compression, shared with `s3-push`.
#[derive(Debug, Clone, Args)]
pub struct CompressionArgs {
    /// Compress NARs with METHOD
    #[arg(short, long, value_name = "METHOD", value_enum, default_value_t = Method::Zstd, help_heading = "Output")]
    pub compression: Method,

    /// Set the compression level [default: 3 for zstd]
    ///
    /// Range and default: zstd 1-19 (3), xz 0-9 (6), gzip 0-9 (6), bzip2 1-9 (9), br 0-11 (6).
    // The widest range, that of zstd. `Settings` checks that of the method.
    #[arg(long, value_name = "N", value_parser = parse_number(0_u32..=19), help_heading = "Output")]
    pub level: Option<u32>,

    /// Compress with N threads [default: one per processor]
    ///
    /// The output does not depend on the number of threads.
    #[arg(
        long, value_name = "N", value_parser = parse_number(1_u16..=256), help_heading = "Performance"
    )]
    pub threads: Option<u16>,
}

/// Options of decompression, shared by the tools that decompress NARs.
#[derive(Debug, Clone, Copy, Args)]
pub struct DecompressionArgs {
    /// Refuse files whose decompression requires more memory [default: 256MiB]
    ///
    /// The default allows all levels of every method. Files with a larger window, such as those of 'zstd --long=30' or of xz with a dictionary of 512 MiB, require more. Each NAR that is decompressed at the same time may use this much.
    #[arg(
        long, value_name = "SIZE", value_parser = parse_byte_size, default_value_t = DEFAULT_DECODER_MEMORY,
        hide_default_value = true, help_heading = "Performance", hide_short_help = true
    )]
    pub decoder_memory: u64,
}

impl DecompressionArgs {
    /// Applies the options to all decoders that are created afterwards.
    pub fn apply(self) {
        set_decoder_memory(self.decoder_memory);
    }
}

/// The compression methods that can be written, as they are named on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[allow(missing_docs)] // a doc comment on a variant would be printed in the help
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
Examples:
  nar-pack \"$P\" | narinfo-gen \"$P\"
  nar-pack --export -r ./result | narinfo-gen --archive > cache.tar

Run 'narinfo-gen --help' for all options, more examples and the exit status.";

const AFTER_LONG_HELP: &str = "\
References and derivers come from the export stream or, for a single NAR, from --path-info or the installed Nix; if neither knows the path, its references are found by scanning the NAR for the hash parts of candidate paths. Content addresses and existing signatures come from --path-info or the installed Nix.

Examples:
  nar-pack \"$P\" | narinfo-gen \"$P\"
  nar-pack --export -r ./result | narinfo-gen --archive > cache.tar
  nix-store --export $(nix-store -qR ./result) | narinfo-gen --archive -c xz \\
    | cache-sign -k key.sec | s3-push s3://my-cache
  nar-pack --export -r ./result | narinfo-gen --archive --listing --log \\
    | cache-sign -k key.sec | s3-push s3://my-cache
  narinfo-gen --archive < closure.export | tar x -C /srv/cache    # a file:// cache

Memory: 16 MiB and about 40 MiB per thread (zstd level 3; with xz level 6, 300 MiB per thread), independent of the size of the NARs, and about 200 bytes per path. A compressed NAR above 16 MiB is spooled to an unlinked temporary file in $TMPDIR until its hash is known.

Exit status:
  0    success
  1    refused: a malformed or truncated stream
  2    usage error, or an operation failed
  141  the reader of standard output closed the pipe";
