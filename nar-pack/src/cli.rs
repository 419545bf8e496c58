//! The command line of `nar-pack`. Only clap, so that help, man pages and completions can be generated without the tool;
//! [`crate::run()`] turns it into a mode.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Parser};

/// Pack a file tree as a NAR, exactly as `nix-store --dump` does.
///
/// Also writes export streams of several store paths, and unpacks, lists and reads NARs.
#[derive(Debug, Parser)]
#[command(name = "nar-pack", version, max_term_width = 100, after_help = AFTER_HELP, after_long_help = AFTER_LONG_HELP)]
pub struct Cli {
    /// File tree to pack; with --export, store paths; otherwise the NAR to read [default: standard input]
    #[arg(value_name = "PATH")]
    pub paths: Vec<PathBuf>,

    /// Read the store paths to export from standard input, one per line
    #[arg(long, requires = "export", help_heading = "Input")]
    pub stdin: bool,

    /// Export the closure of the store paths
    ///
    /// The closure is taken from --path-info, or from the installed Nix. Requires --export.
    #[arg(short, long, requires = "export", help_heading = "Input")]
    pub recursive: bool,

    /// Read store paths from below DIR
    ///
    /// The store path /nix/store/x is read from DIR/nix/store/x.
    #[arg(long, value_name = "DIR", help_heading = "Input")]
    pub root: Option<PathBuf>,

    /// Write an export stream, as `nix-store --export` does
    ///
    /// The stream contains the NAR of each store path, followed by its name, references and deriver. A path is written after its references.
    #[arg(short, long, conflicts_with_all = ["unpack", "list", "cat"], help_heading = "Output")]
    pub export: bool,

    /// Unpack a NAR to DIR, which must not exist
    #[arg(short, long, value_name = "DIR", conflicts_with_all = ["list", "cat"], help_heading = "Output")]
    pub unpack: Option<PathBuf>,

    /// Append ~nix~case~hack~N to names that differ only in case
    ///
    /// Needed to unpack such names on a case-insensitive file system. The names are those that Nix uses on macOS. Requires --unpack.
    #[arg(long, requires = "unpack", help_heading = "Output")]
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
}

/// The sources of path info and the store directory, shared by every tool that describes store paths.
#[derive(Debug, Clone, Args)]
pub struct PathInfoArgs {
    /// Read the metadata of store paths from FILE
    ///
    /// FILE is the output of `nix path-info --json`. References, deriver, content address and signatures are used.
    #[arg(long, value_name = "FILE", help_heading = "Input")]
    pub path_info: Option<PathBuf>,

    /// Scan for references to the store paths listed in FILE [default: all in the store directory]
    ///
    /// Only paths without path info are scanned. FILE has one store path per line.
    #[arg(long, value_name = "FILE", help_heading = "Input")]
    pub candidates: Option<PathBuf>,

    /// Do not query the installed Nix about store paths
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
  nar-pack ./result > hello.nar
  nar-pack --unpack ./tree < hello.nar
  nar-pack --export -r ./result | ssh host nix-store --import";

const AFTER_LONG_HELP: &str = "\
With --export, references are taken from --path-info, else from the installed Nix, else from a scan of the contents for the hash parts of candidate paths, as Nix does after a build.

Examples:
  nar-pack ./result > hello.nar
  nar-pack --export -r ./result | narinfo-gen --archive | cache-sign -k key.sec \\
    | s3-push s3://my-cache
  nix-store -qR ./result | nar-pack --export --stdin | ssh host nix-store --import
  nar-pack --unpack ./tree < hello.nar
  nar-pack --list < hello.nar
  nar-pack --cat share/doc/README hello.nar

Memory: 12 MiB plus the names of the largest directory, for a tree of any size; with --export, about 300 bytes per store path more.

Exit status:
  0    success
  1    data was refused: a malformed NAR, or not a store path
  2    wrong usage, or an operation failed
  141  standard output was closed by its reader";
