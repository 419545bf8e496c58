//! One invocation as a typed [`Request`]: its mode, its paths and its caches. It is made once from the command line and
//! the environment, and no other module reads a flag.

use std::collections::HashSet;
use std::path::PathBuf;

use cache_sign::trust::TrustedKeys;
use nar_pack::error::{Error, Result};
use nar_pack::stdio;
use nar_pack::store_path::{StoreDir, StorePath, read_path_list};
use s3_push::remote::location::VARIABLE;
use s3_push::remote::progress::Verbosity;
use s3_push::remote::retry::RequestLimits;
use s3_push::remote::s3::Access;
use s3_push::remote::transfer::MAX_RANGES_AHEAD_IN_ALL;

use crate::cli::Cli;
use crate::unpack::UnpackOptions;

// For cli.rs, which imports nothing but clap, other command lines and its own crate.
pub use s3_push::remote::option_values::parse_timeout;
pub use s3_push::remote::retry::DEFAULT_MAX_ATTEMPTS;

/// One invocation.
pub struct Request {
    /// The output.
    pub mode: Mode,
    /// The paths.
    pub selection: Selection,
    /// The URLs of the caches, in order of priority.
    pub urls: Vec<String>,
    /// How the caches are accessed.
    pub remote: RemoteSettings,
    /// The keys that must have signed a path; none when signatures are not verified.
    pub trusted: Option<TrustedKeys>,
    /// The store directory of all paths.
    pub store_dir: StoreDir,
    /// The maximum number of concurrent lookups, and of concurrent downloads.
    pub jobs: usize,
    /// How much is printed.
    pub verbosity: Verbosity,
}

/// The output.
pub enum Mode {
    /// Unpacks the paths under a root directory.
    Unpack {
        /// The root directory.
        root: PathBuf,
        /// How paths are unpacked.
        options: UnpackOptions,
        /// Whether a JSON object per path goes to standard output.
        json: bool,
    },
    /// Writes the paths to standard output.
    Write(Format),
}

/// The format of the data on standard output.
pub enum Format {
    /// A NAR.
    Nar,
    /// One file of a path.
    Cat {
        /// The path of the file within the store path.
        file: String,
        /// Whether to fetch only the file, if possible, without verification.
        unverified: bool,
    },
    /// An export stream.
    Export,
    /// Narinfo text.
    Narinfo,
    /// A cache archive.
    Archive,
    /// A path list.
    List,
}

/// Which paths are fetched.
pub enum Selection {
    /// All paths of the caches.
    All,
    /// These paths.
    Paths {
        /// The paths, without duplicates.
        paths: Vec<StorePath>,
        /// Whether to include everything that they reference.
        recursive: bool,
    },
}

impl Selection {
    /// Returns whether a path without all of its references is refused.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        matches!(self, Self::All | Self::Paths { recursive: true, .. })
    }
}

/// How the caches are accessed.
pub struct RemoteSettings {
    /// How requests to S3 are signed.
    pub access: Access,
    /// Timeouts, retries and concurrency.
    pub limits: RequestLimits,
    /// The file with passwords of HTTP servers, if not at the default paths.
    pub netrc: Option<PathBuf>,
}

impl Request {
    /// Reads the command line, the environment, and the path list on standard input if requested.
    ///
    /// # Errors
    /// Returns a usage error for arguments that contradict each other, and refuses malformed store paths and keys.
    pub fn from_cli(cli: &Cli) -> Result<Self> {
        let store_dir = StoreDir::new(&cli.store_dir)?;
        if !has_output(cli) {
            return Err(Error::usage(
                "no output selected: use one of --root DIR, --nar, --cat, --export, --narinfo, --archive, --list",
            ));
        }
        let (urls, paths) = split_targets(&cli.targets)?;
        let (paths, file) = if cli.cat { split_file(paths, &store_dir) } else { (paths.to_vec(), String::new()) };
        let selection = selection(cli, &paths, &store_dir)?;
        let trusted = if cli.no_verify_signatures { None } else { Some(TrustedKeys::from_cli(&cli.trust)?) };
        Ok(Self {
            mode: mode(cli, selection.is_closed(), file),
            selection,
            urls,
            remote: remote_settings(cli),
            trusted,
            store_dir,
            jobs: cli.jobs.into(),
            verbosity: Verbosity::new(cli.quiet, cli.verbose),
        })
    }
}

fn has_output(cli: &Cli) -> bool {
    cli.root.is_some() || cli.nar || cli.cat || cli.export || cli.narinfo || cli.archive || cli.list
}

fn mode(cli: &Cli, require_references: bool, file: String) -> Mode {
    match &cli.root {
        Some(root) => Mode::Unpack {
            root: root.clone(),
            options: UnpackOptions {
                jobs: cli.jobs.into(),
                require_references,
                verify_existing: cli.verify_existing,
                case_hack: cli.case_hack,
                owner: cli.owner,
                dry_run: cli.dry_run,
            },
            json: cli.json,
        },
        None if cli.nar => Mode::Write(Format::Nar),
        None if cli.cat => Mode::Write(Format::Cat { file, unverified: cli.unverified }),
        None if cli.export => Mode::Write(Format::Export),
        None if cli.narinfo => Mode::Write(Format::Narinfo),
        None if cli.archive => Mode::Write(Format::Archive),
        None => Mode::Write(Format::List),
    }
}

fn remote_settings(cli: &Cli) -> RemoteSettings {
    let netrc = || std::env::var_os("NETRC").filter(|file| !file.is_empty()).map(PathBuf::from);
    RemoteSettings {
        access: if cli.no_sign_request { Access::Anonymous } else { Access::SignedIfPossible { has_opt_out: true } },
        limits: RequestLimits {
            idle_timeout: cli.idle_timeout,
            connect_timeout: cli.connect_timeout,
            max_attempts: cli.attempts,
            is_quiet: cli.quiet,
            // Lookups, downloads and ranges that are requested ahead run at the same time.
            max_in_flight: (2 * cli.jobs).saturating_add(MAX_RANGES_AHEAD_IN_ALL),
        },
        netrc: cli.netrc_file.clone().or_else(netrc),
    }
}

/// Splits the arguments into URLs, which may come from the environment instead, and store paths.
fn split_targets(targets: &[String]) -> Result<(Vec<String>, &[String])> {
    let is_url =
        |(number, target): &(usize, &String)| !target.starts_with('/') && (*number == 0 || target.contains("://"));
    let (urls, paths) = targets.split_at(targets.iter().enumerate().take_while(is_url).count());
    if paths.iter().any(|path| path.contains("://")) {
        return Err(Error::usage("a URL after a store path: pass the URLs of caches before the store paths"));
    }
    let mut urls = urls.to_vec();
    if urls.is_empty() {
        let variable = std::env::var(VARIABLE).unwrap_or_default();
        urls.extend(variable.split_whitespace().map(str::to_owned));
    }
    if urls.is_empty() {
        return Err(Error::usage(format!("no cache given: pass a URL or set {VARIABLE}")));
    }
    Ok((urls, paths))
}

/// Splits `/nix/store/<path>/<file>` arguments into store paths and the file of the last one.
fn split_file(paths: &[String], store_dir: &StoreDir) -> (Vec<String>, String) {
    let mut file = String::new();
    let mut store_paths = Vec::with_capacity(paths.len());
    for path in paths {
        let dir = path.strip_prefix(store_dir.as_str());
        let base_name = dir.map_or(0, |rest| path.len() - rest.trim_start_matches('/').len());
        let end = path[base_name..].find('/').map_or(path.len(), |end| base_name + end);
        path[end..].clone_into(&mut file);
        store_paths.push(path[..end].to_owned());
    }
    (store_paths, file)
}

fn selection(cli: &Cli, arguments: &[String], store_dir: &StoreDir) -> Result<Selection> {
    let mut paths = Vec::with_capacity(arguments.len());
    for path in arguments {
        paths.push(store_dir.parse(path)?);
    }
    if cli.stdin {
        paths.extend(read_path_list(stdio::stdin("a path list")?, store_dir)?);
    } else if cli.all && !paths.is_empty() {
        return Err(Error::usage("--all fetches every path: remove the store paths, or remove --all"));
    } else if !cli.all && paths.is_empty() {
        return Err(Error::usage("no store paths given: pass store paths, --stdin or --all"));
    }
    let count = paths.len();
    if cli.nar && count != 1 {
        return Err(Error::usage(format!("--nar expects one store path, found {count}"))
            .with_hint("use --export to write several paths"));
    }
    if cli.cat && count != 1 {
        return Err(Error::usage(format!("--cat expects one file of one store path, found {count} paths")));
    }
    if cli.all {
        return Ok(Selection::All);
    }
    let mut seen = HashSet::new();
    paths.retain(|path| seen.insert(path.clone()));
    Ok(Selection::Paths { paths, recursive: cli.recursive })
}
