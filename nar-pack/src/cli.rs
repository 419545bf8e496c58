//! The command line of `nar-pack`; nothing but clap, so that help text can be read without the tool.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Parser};

/// Serialise a store path to a NAR, exactly as `nix-store --dump` does.
#[derive(Debug, Parser)]
#[command(name = "nar-pack", version, verbatim_doc_comment, after_help = AFTER_HELP)]
pub struct Cli {
    /// The file tree to serialise; with --export store paths; with --list, --cat or --unpack the NAR to read (default: standard input)
    #[arg(value_name = "PATH")]
    pub paths: Vec<PathBuf>,

    /// Write an export stream, as `nix-store --export` does: each NAR followed by its store path, references and deriver
    #[arg(short, long, conflicts_with_all = ["unpack", "list", "cat"])]
    pub export: bool,

    /// With --export: the whole closure of the paths (asks the installed Nix, or --path-info)
    #[arg(short, long, requires = "export")]
    pub recursive: bool,

    /// With --export: read a path list from standard input, one store path per line
    #[arg(long, requires = "export")]
    pub stdin: bool,

    /// Restore a NAR as DIR, which must not exist yet
    #[arg(short, long, value_name = "DIR", conflicts_with_all = ["list", "cat"])]
    pub unpack: Option<PathBuf>,

    /// Print the listing of a NAR as JSON, in the format of a cache's `.ls` files
    #[arg(short, long, conflicts_with = "cat")]
    pub list: bool,

    /// Print the contents of one file of a NAR; FILE is its path within it
    #[arg(short, long, value_name = "FILE")]
    pub cat: Option<OsString>,

    /// Where the store lies in the file system: the store path /nix/store/x is read from DIR/nix/store/x
    #[arg(long, value_name = "DIR")]
    pub root: Option<PathBuf>,

    /// Where to learn about store paths
    #[command(flatten)]
    pub path_info_args: PathInfoArgs,
}

/// What the tools may ask about a store path besides its NAR; shared by every tool that describes paths.
#[derive(Debug, Clone, Args)]
pub struct PathInfoArgs {
    /// The store directory that store paths begin with
    #[arg(long, value_name = "DIR", env = "NIX_STORE_DIR", default_value = "/nix/store", hide_env_values = true)]
    pub store_dir: String,

    /// Take references, deriver, content address and signatures from FILE, the output of `nix path-info --json`
    #[arg(long, value_name = "FILE")]
    pub path_info: Option<PathBuf>,

    /// Path list of what a path may refer to when nothing but its contents tells (default: what is in the store directory)
    #[arg(long, value_name = "FILE")]
    pub candidates: Option<PathBuf>,

    /// Do not ask an installed Nix about the paths
    #[arg(long)]
    pub no_nix: bool,
}

const AFTER_HELP: &str = "\
References come from --path-info, else from the installed Nix, else from scanning the contents for
the hash parts of candidate paths, as Nix does after a build. Paths are written references first.

Examples:
  nar-pack ./result > hello.nar
  nar-pack --export -r ./result | narinfo-gen --archive | cache-sign -k key.sec | s3-push s3://my-cache
  nix-store -qR ./result | nar-pack --export --stdin | ssh host nix-store --import
  nar-pack --unpack ./tree < hello.nar
  nar-pack --list < hello.nar
  nar-pack --cat share/doc/README hello.nar

Memory: 12 MiB beside the names of the largest directory, whatever the size of the tree; with
--export about 300 bytes a path.

Exit status: 0 done; 1 refused (malformed NAR, not a store path); 2 usage, or an operation that
failed; 141 when the reader of standard output went away.";
