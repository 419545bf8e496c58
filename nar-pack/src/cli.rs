//! The command line of `nar-pack`. Only clap, so that help, man pages and completions can be generated without the tool;
//! [`crate::run()`] turns it into a mode.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{ArgAction, Args, Parser};

/// Pack a file tree as a NAR, exactly as `nix-store --dump` does
///
/// Also writes export streams of store paths, and unpacks, lists and reads NARs.
#[derive(Debug, Parser)]
#[command(
    name = "nar-pack", version, max_term_width = 100, after_help = AFTER_HELP, after_long_help = AFTER_LONG_HELP,
    disable_help_flag = true, disable_version_flag = true
)]
pub struct Cli {
    /// File tree to pack; with --export: store paths; with --unpack, --list or --cat: NAR to read [default: standard input]
    ///
    /// A store path may be a full path, HASH-NAME, a file within it, or a symbolic link to it such as ./result.
    #[arg(value_name = "PATH")]
    pub paths: Vec<PathBuf>,

    /// With --export: read store paths from standard input, one per line
    #[arg(long, requires = "export", help_heading = "Input")]
    pub stdin: bool,

    /// With --export: export the closure of the store paths
    ///
    /// The closure is taken from --path-info or from the installed Nix.
    #[arg(short, long, requires = "export", help_heading = "Input")]
    pub recursive: bool,

    /// Read store paths below the file system root DIR
    ///
    /// The store path /nix/store/x is read from DIR/nix/store/x. Symbolic links at DIR/nix and DIR/nix/store are resolved as after chroot to DIR, so nothing outside of DIR is read.
    #[arg(long, value_name = "DIR", help_heading = "Input")]
    pub root: Option<PathBuf>,

    /// Write an export stream, as `nix-store --export` does
    ///
    /// The stream contains the NAR of each store path, followed by the path, its references and its deriver. Each path is written after its references.
    #[arg(short, long, conflicts_with_all = ["unpack", "list", "cat"], help_heading = "Output")]
    pub export: bool,

    /// Unpack a NAR to DIR, which must not exist
    ///
    /// As in a Nix store, files and directories are read-only, and their modification time is 1970-01-01 00:00:01 UTC. An incomplete tree is removed, unless a signal ends nar-pack.
    #[arg(short, long, value_name = "DIR", conflicts_with_all = ["list", "cat"], help_heading = "Output")]
    pub unpack: Option<PathBuf>,

    /// With --unpack: rename files whose names differ only in case, as Nix does on macOS
    ///
    /// Appends ~nix~case~hack~N to the second and each further name.
    // clap does not enforce `requires` if an argument conflicts with the required one.
    #[arg(long, requires = "unpack", conflicts_with_all = ["export", "list", "cat"], help_heading = "Output")]
    pub case_hack: bool,

    /// Print the listing of a NAR as JSON
    ///
    /// The format is that of the `.ls` files in a binary cache.
    #[arg(short, long, conflicts_with = "cat", help_heading = "Output")]
    pub list: bool,

    /// Print the contents of one file in a NAR
    ///
    /// FILE is the path of the file within the NAR. The root is `/`.
    #[arg(short, long, value_name = "FILE", help_heading = "Output")]
    pub cat: Option<OsString>,

    /// The sources of path info and the store directory.
    #[command(flatten)]
    pub path_info_args: PathInfoArgs,

    /// Print help: a summary with -h, all of it with --help
    #[arg(short, long, action = ArgAction::Help, help_heading = "Common")]
    help: Option<bool>,

    /// Print the version
    #[arg(short = 'V', long, action = ArgAction::Version, help_heading = "Common")]
    version: Option<bool>,
}

/// The sources of path info and the store directory, shared by every tool that describes store paths.
#[derive(Debug, Clone, Args)]
pub struct PathInfoArgs {
    /// Read the metadata of store paths from FILE
    ///
    /// FILE is the output of `nix path-info --json`. References, deriver, content address and signatures are used. A NAR with another NarHash is refused, and one of another size by nar-pack --export.
    #[arg(long, value_name = "FILE", help_heading = "Input")]
    pub path_info: Option<PathBuf>,

    /// Scan for references to the store paths listed in FILE [default: those in the store directory]
    ///
    /// Only paths whose references are not known otherwise are scanned. FILE contains one store path per line.
    #[arg(long, value_name = "FILE", help_heading = "Input")]
    pub candidates: Option<PathBuf>,

    /// Do not query the installed Nix
    #[arg(long, help_heading = "Input")]
    pub no_nix: bool,

    /// Set the store directory
    #[arg(
        long,
        value_name = "DIR",
        env = "NIX_STORE_DIR",
        default_value = "/nix/store",
        hide_env_values = true,
        help_heading = "Common"
    )]
    pub store_dir: String,
}

const AFTER_HELP: &str = "\
Examples:
  nar-pack ./result/ > hello.nar
  nar-pack --unpack ./tree < hello.nar
  nar-pack --export -r ./result | ssh host nix-store --import

Run 'nar-pack --help' for more examples and the exit status.";

const AFTER_LONG_HELP: &str = "\
With --export, references are taken from --path-info, else from the installed Nix, else from a scan of the contents for the hash parts of candidate paths, as Nix does after a build.

Examples:
  nar-pack ./result/ > hello.nar
  nar-pack --export -r ./result | narinfo-gen --archive | cache-sign -k key.sec \\
    | s3-push s3://my-cache
  nix-store -qR ./result | nar-pack --export --stdin | ssh host nix-store --import
  nar-pack --unpack ./tree < hello.nar
  nar-pack --list < hello.nar
  nar-pack --cat share/doc/README hello.nar

Memory: 12 MiB plus the names of the largest directory, for a tree of any size; with --export, about 300 bytes per store path more.

Exit status:
  0    success
  1    refused: a malformed NAR, or not a store path in a path list
  2    usage error, or an operation failed
  141  the reader of standard output closed the pipe";
