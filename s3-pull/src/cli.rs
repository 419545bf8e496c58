//! The command line of `s3-pull`.

use std::path::PathBuf;

use cache_sign::cli::TrustArgs;
use clap::{ArgAction, Parser, ValueEnum};
use nar_pack::option_values::parse_number;
use narinfo_gen::cli::DecompressionArgs;
use s3_push::remote::cli::{ProgressArgs, RequestArgs};

use crate::commands::cli::Command;
use crate::staging::Owner;

/// Fetch store paths from a Nix binary cache, verify them, and unpack them
///
/// A cache is an s3://, http://, https:// or file:// URL. Each narinfo must be signed by a trusted key, and each NAR
/// must match the hashes in its narinfo. A path becomes visible only after all checks have passed.
#[derive(Debug, Parser)]
#[command(
    name = "s3-pull",
    version,
    max_term_width = 100,
    disable_help_flag = true,
    disable_version_flag = true,
    after_help = AFTER_HELP,
    after_long_help = AFTER_LONG_HELP,
    args_conflicts_with_subcommands = true,
    mut_arg("trusted_public_key_files", |arg| arg.hide_short_help(true)),
    mut_arg("nix_conf", |arg| arg.hide_short_help(true)),
    mut_arg("threshold", |arg| arg.hide_short_help(true))
)]
pub struct Cli {
    /// The command to run instead of fetching
    #[command(subcommand)]
    pub command: Option<Command>,

    /// Cache URLs, highest priority first [default: $NIX_S3_CACHE]; store paths
    #[arg(value_name = "URL]... [STORE-PATH")]
    pub targets: Vec<String>,

    /// Fetch the closure: the paths and everything that they reference
    #[arg(short, long, conflicts_with = "all", help_heading = "Input")]
    pub recursive: bool,

    /// Fetch every path of the cache (s3:// and file:// only)
    #[arg(long, help_heading = "Input")]
    pub all: bool,

    /// With --narinfo --all: do not fetch narinfos whose text is in FILE, the output of an earlier run
    ///
    /// A text is used if its MD5 hash is the entity tag of the narinfo in the listing (s3:// only). The output is the same as without the option: the narinfos that the cache has now.
    #[arg(long, value_name = "FILE", requires = "all", help_heading = "Input", hide_short_help = true)]
    pub have: Option<PathBuf>,

    /// Read more store paths from standard input, one per line
    #[arg(long, help_heading = "Input")]
    pub stdin: bool,

    /// Fetch the paths of the pin NAME too
    ///
    /// If the pin lists a whole closure, -r looks up all its paths at once, instead of one level after another.
    #[arg(
        long, value_name = "NAME", conflicts_with_all = ["all", "nar", "cat"], help_heading = "Input",
        hide_short_help = true,
    )]
    pub pin: Option<String>,

    /// Unpack under DIR: /nix/store/x becomes DIR/nix/store/x
    #[arg(long, value_name = "DIR", group = "output", help_heading = "Output")]
    pub root: Option<PathBuf>,

    /// Write the NAR of one path to standard output
    #[arg(long, group = "output", conflicts_with_all = ["recursive", "all"], help_heading = "Output")]
    pub nar: bool,

    /// Write one file to standard output, such as /nix/store/…-hello/bin/hello
    ///
    /// The file is written after the whole NAR has been verified, since a single file has no hash of its own.
    #[arg(long, group = "output", conflicts_with_all = ["recursive", "all", "stdin"], help_heading = "Output")]
    pub cat: bool,

    /// With --cat: fetch only the bytes of the file, without verification
    ///
    /// The NAR must be uncompressed and the cache must have its listing (.ls). Otherwise the whole NAR is fetched and
    /// verified.
    #[arg(long, requires = "cat", help_heading = "Output", hide_short_help = true)]
    pub unverified: bool,

    /// Write an export stream to standard output, for `nix-store --import`
    #[arg(long, group = "output", help_heading = "Output")]
    pub export: bool,

    /// Write narinfo text to standard output
    #[arg(long, group = "output", help_heading = "Output")]
    pub narinfo: bool,

    /// Write a cache archive to standard output, for `s3-push` or `tar`
    #[arg(long, group = "output", help_heading = "Output")]
    pub archive: bool,

    /// With --archive: include other objects of the paths: ls, log, debuginfo, realisations, or all
    ///
    /// Several kinds are separated by commas. A listing (ls) must match the NAR, a debug information link must name a file
    /// in it, and a realisation must name a path of the archive and have no wrong signature by a trusted key. Build logs
    /// cannot be checked. An object that is refused is left out, and the exit status is then 1. Realisations are found by
    /// listing the cache (s3:// and file:// only).
    #[arg(
        long,
        value_name = "KINDS",
        value_enum,
        value_delimiter = ',',
        requires = "archive",
        help_heading = "Output",
        hide_possible_values = true,
        hide_short_help = true
    )]
    pub with: Vec<ExtraKind>,

    /// Write the store paths to standard output, one per line
    #[arg(long, group = "output", help_heading = "Output")]
    pub list: bool,

    /// With --root: verify the NarHash of paths that are already present
    ///
    /// A path with different contents is refused. Paths that are present are never changed. Use it once after a crash of the host: files are not flushed to the disk before a path gets its name.
    #[arg(long, requires = "root", help_heading = "Output", hide_short_help = true)]
    pub verify_existing: bool,

    /// With --root: set the numeric owner of the files [default: the current user]
    #[arg(long, value_name = "UID[:GID]", requires = "root", help_heading = "Output", hide_short_help = true)]
    pub owner: Option<Owner>,

    /// With --root: rename files whose names differ only in case, as Nix does on macOS
    ///
    /// Appends ~nix~case~hack~N to the second and each further name.
    #[arg(long, requires = "root", help_heading = "Output", hide_short_help = true)]
    pub case_hack: bool,

    /// With --root: print what would be fetched, and fetch nothing
    #[arg(long, requires = "root", help_heading = "Output", hide_short_help = true)]
    pub dry_run: bool,

    /// With --root, --narinfo or --list: write a JSON object per path, then a summary
    ///
    /// An error is one JSON object on standard error.
    #[arg(long, help_heading = "Output", hide_short_help = true)]
    pub json: bool,

    /// The keys to trust
    #[command(flatten, next_help_heading = "Trust")]
    pub trust: TrustArgs,

    /// Do not verify signatures; hashes are still verified
    #[arg(long, help_heading = "Trust", hide_short_help = true)]
    pub no_verify_signatures: bool,

    /// Do not sign requests to S3, even if there are credentials
    #[arg(long, help_heading = "Network", hide_short_help = true)]
    pub no_sign_request: bool,

    /// Read user names and passwords of HTTP servers from FILE
    ///
    /// The default is $NETRC, otherwise ~/.netrc, otherwise /etc/nix/netrc.
    #[arg(long, value_name = "FILE", help_heading = "Network", hide_short_help = true)]
    pub netrc_file: Option<PathBuf>,

    /// How long requests may take, and how often they are tried
    #[command(flatten)]
    pub request_args: RequestArgs,

    /// Maximum concurrent NAR downloads
    ///
    /// Up to four times as many narinfos of a closure are looked up at the same time, but at most 256 unless N is larger. With --all, at most N narinfos are looked up at the same time. Both limits are reduced automatically while the server throttles (429, 503).
    #[arg(
        short, long, value_name = "N", default_value_t = 16, value_parser = parse_number(1_u16..=1024),
        help_heading = "Performance", hide_short_help = true
    )]
    pub jobs: u16,

    /// Options of decompression
    #[command(flatten)]
    pub decompression_args: DecompressionArgs,

    /// Print only errors
    #[arg(short, long, conflicts_with = "verbose", help_heading = "Logging")]
    pub quiet: bool,

    /// Print each path, and the cache that it came from
    #[arg(short, long, help_heading = "Logging", hide_short_help = true)]
    pub verbose: bool,

    /// How progress is shown
    #[command(flatten)]
    pub progress_args: ProgressArgs,

    /// Set the store directory of the store paths
    #[arg(
        long,
        value_name = "DIR",
        env = "NIX_STORE_DIR",
        default_value = "/nix/store",
        hide_env_values = true,
        help_heading = "Common",
        hide_short_help = true
    )]
    pub store_dir: String,

    /// Print help: a summary with -h, all of it with --help
    #[arg(short, long, global = true, action = ArgAction::Help, help_heading = "Common")]
    pub help: Option<bool>,

    /// Print the version
    #[arg(short = 'V', long, action = ArgAction::Version, help_heading = "Common")]
    pub version: Option<bool>,
}

/// A kind of objects that an archive may contain besides NARs and narinfos.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ExtraKind {
    /// Listings.
    Ls,
    /// Build logs.
    Log,
    /// Debug information links.
    Debuginfo,
    /// Build trace entries.
    Realisations,
    /// All of them.
    All,
}

const AFTER_HELP: &str = "\
Example: s3-pull -r --root /mnt 's3://my-cache?region=eu-west-2' /nix/store/…-hello";

const AFTER_LONG_HELP: &str = "\
Trusted keys come from --trusted-public-key, --trusted-public-key-file and --nix-conf. Without these options they come \
from the nix.conf files of the system and the user (trusted-public-keys and extra-trusted-public-keys). A path that is \
addressed by the SHA-256 of its NAR (CA: fixed:r:sha256) needs no signature.

Several caches are tried in the given order. The next one is tried when a cache does not have a path, does not \
respond, or has a damaged or unsigned copy. A stream cannot take back the NAR that it has begun to write: there, a damaged \
copy is an error. -v prints which cache each path came from.

Requests to s3:// are unsigned when no AWS credentials are found, which public buckets accept. User names and \
passwords of http:// and https:// caches come from the URL, otherwise from --netrc-file. They are not sent to another \
host after a redirect. Proxies come from HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and NO_PROXY.

NARs of 16 MiB or more are downloaded in ranges of 4 MiB: up to 8 concurrent or buffered ranges of all NARs of a \
cache. All ranges must have the same ETag, otherwise the download starts again. An interrupted download \
continues where it stopped.

Limits: 1 MiB per narinfo. In a NAR: 255 bytes per name, 4095 bytes per symbolic link target, 64 directory levels, and \
NarSize bytes in total. Two names that the file system cannot distinguish are an error.

Examples:
  s3-pull -r --root /mnt 's3://my-cache?region=eu-west-2' /nix/store/…-hello  # without Nix
  s3-pull -r --export https://cache.example.org /nix/store/…-hello | nix-store --import
  s3-pull -r --archive s3://a /nix/store/…-hello | s3-push s3://b                 # mirror
  s3-pull --all --with all --archive s3://a | s3-push s3://b                      # whole cache
  s3-pull --narinfo --all s3://my-cache | cache-sign -k new.sec | s3-push s3://my-cache
  s3-pull --nar file:///srv/cache /nix/store/…-hello | nar-pack --list

The commands nar, cat, export, narinfo, archive and list are the same as the flags of these names: \
's3-pull narinfo --all s3://my-cache' is 's3-pull --narinfo --all s3://my-cache'.

Memory: 64 MiB, independent of the size of a NAR, and about 1 KiB per path. In addition, each concurrent download \
(--jobs) takes 1 MiB and the memory of its decoder: 10 MiB for NARs compressed by narinfo-gen, at most 128 MiB (zstd) \
or 256 MiB (xz) for others. One NAR of 32 MiB or more at a time is decompressed on several cores, which takes 128 MiB. A stream takes 32 MiB more.

Exit status:
  0    success
  1    refused: a missing path, a bad signature, a hash mismatch, or a malformed narinfo or NAR
  2    usage error, or an operation failed
  141  the reader of standard output closed the pipe";
