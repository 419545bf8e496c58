//! The command line of `s3-pull`.

use std::path::PathBuf;

use cache_sign::cli::Trust;
use clap::Parser;
use s3_push::remote::retry::DEFAULT_MAX_ATTEMPTS;

use crate::staging::Owner;

/// Fetch store paths from a Nix binary cache, verify them, and unpack them.
///
/// The cache is an s3://, http://, https:// or file:// URL. Signatures are checked against trusted keys and hashes
/// against the narinfo; what does not hold is never visible under its final name.
#[derive(Debug, Parser)]
#[command(name = "s3-pull", version, verbatim_doc_comment, after_help = AFTER_HELP)]
pub struct Cli {
    /// The caches, the first has priority (default: $NIX_S3_CACHE), then store paths
    #[arg(value_name = "URL]... [STORE-PATH")]
    pub targets: Vec<String>,

    /// Unpack below DIR: /nix/store/x lands at DIR/nix/store/x
    #[arg(long, value_name = "DIR", group = "output")]
    pub root: Option<PathBuf>,

    /// Write the NAR of the one path to standard output
    #[arg(long, group = "output", conflicts_with_all = ["recursive", "all"])]
    pub nar: bool,

    /// Write one file of a path to standard output; the path goes on into it: /nix/store/…-hello/bin/hello
    #[arg(long, group = "output", conflicts_with_all = ["recursive", "all", "stdin"])]
    pub cat: bool,

    /// With --cat: fetch only the file, where the NAR is not compressed and is listed; nothing of it can be verified
    #[arg(long, requires = "cat")]
    pub unverified: bool,

    /// Write an export stream to standard output, for `nix-store --import`
    #[arg(long, group = "output")]
    pub export: bool,

    /// Write narinfo text to standard output
    #[arg(long, group = "output")]
    pub narinfo: bool,

    /// Write a cache archive to standard output, for `s3-push` and `tar`
    #[arg(long, group = "output")]
    pub archive: bool,

    /// Write the store paths to standard output, one per line
    #[arg(long, group = "output")]
    pub list: bool,

    /// Take the closure of the paths
    #[arg(short, long, conflicts_with = "all")]
    pub recursive: bool,

    /// Take every path of the cache (s3:// and file:// only)
    #[arg(long)]
    pub all: bool,

    /// Read more store paths from standard input, one per line
    #[arg(long)]
    pub stdin: bool,

    /// Which keys to trust
    #[command(flatten)]
    pub trust: Trust,

    /// Do not check signatures; hashes are checked all the same
    #[arg(long)]
    pub no_verify_signatures: bool,

    /// With --root: read what is there already and refuse it if its NarHash is another; it is left alone either way
    #[arg(long, requires = "root")]
    pub verify_existing: bool,

    /// With --root: whom the files belong to, in numbers (default: who runs this)
    #[arg(long, value_name = "UID[:GID]", requires = "root")]
    pub owner: Option<Owner>,

    /// With --root: append ~nix~case~hack~N to names that differ from another in case only, as Nix does on macOS
    #[arg(long, requires = "root")]
    pub case_hack: bool,

    /// With --root: look everything up, say what would be fetched, and fetch nothing
    #[arg(long, requires = "root")]
    pub dry_run: bool,

    /// With --root: one JSON object per path on standard output, then a summary
    #[arg(long, requires = "root")]
    pub json: bool,

    /// Do not sign requests to S3, though there are credentials
    #[arg(long)]
    pub no_sign_request: bool,

    /// Where passwords of HTTP servers are (default: $NETRC, else ~/.netrc, else /etc/nix/netrc)
    #[arg(long, value_name = "FILE")]
    pub netrc_file: Option<PathBuf>,

    /// Narinfos asked for at once, and as many NARs in flight
    #[arg(short, long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub jobs: u16,

    /// Give an attempt up when nothing moves for so many seconds; there is no bound on a whole transfer
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u16).range(1..=3600))]
    pub idle_timeout: u16,

    /// Attempts at one request, with growing random waits between them
    #[arg(
        long, value_name = "N", env = "AWS_MAX_ATTEMPTS", hide_env_values = true, default_value_t = DEFAULT_MAX_ATTEMPTS,
        value_parser = clap::value_parser!(u32).range(1..=100),
    )]
    pub attempts: u32,

    /// Say nothing on standard error but errors
    #[arg(short, long, conflicts_with = "verbose")]
    pub quiet: bool,

    /// Name each path on standard error, and the source that served it
    #[arg(short, long)]
    pub verbose: bool,

    /// The store directory that store paths begin with
    #[arg(long, value_name = "DIR", env = "NIX_STORE_DIR", default_value = "/nix/store", hide_env_values = true)]
    pub store_dir: String,
}

const AFTER_HELP: &str = "\
Trusted keys come from --trusted-public-key, else from nix.conf (trusted-public-keys and
extra-trusted-public-keys). A path that is addressed by the SHA-256 of its NAR (CA: fixed:r:sha256)
proves itself; any other needs signatures.

Several caches are asked in their order. Where one does not have a path, does not answer, or has it
damaged or unsigned, the next is asked; -v says who served what.

Without AWS credentials requests to s3:// go unsigned, as a public bucket takes them. User names and
passwords of http(s):// caches come from the URL, else from --netrc-file; they are not sent on to
another host. Proxies come from HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and NO_PROXY.

NARs of 16 MiB or more come in ranges of 4 MiB, up to 4 at once and 8 ahead for a whole cache; all
have one ETag or the NAR is begun anew. A NAR that breaks off is continued where it was.

Limits: narinfo 1 MiB; NAR: name 255 bytes, link target 4095 bytes, 64 directories deep, and never
more than NarSize. Two names that the file system takes for one are an error.

Examples:
  s3-pull -r --root /mnt 's3://my-cache?region=eu-west-2' /nix/store/…-hello      # on a host without Nix
  s3-pull -r --export https://cache.example.org /nix/store/…-hello | nix-store --import
  s3-pull -r --archive s3://a /nix/store/…-hello | s3-push s3://b                 # mirror
  s3-pull --narinfo --all s3://my-cache | cache-sign -k new.sec | s3-push s3://my-cache
  s3-pull --nar file:///srv/cache /nix/store/…-hello | nar-pack --list

Memory: 64 MiB, whatever the size of a NAR; about 1 KiB a path. Beside it, for each NAR in flight
(--jobs), 1 MiB and what its decoder takes: 10 MiB for what narinfo-gen made, at most 128 MiB (zstd) or 256 MiB
(xz) for what others made; and once, for a NAR of 32 MiB or more, 128 MiB for decoding on every core.

Exit status: 0 done; 1 refused (missing path, bad signature, wrong hash, malformed narinfo or NAR);
2 usage, or an operation that failed; 141 when the reader of standard output went away.";
