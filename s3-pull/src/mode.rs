//! One invocation as a typed [`Request`]: its mode, its paths and its caches. It is made once from the command line and
//! the environment, and no other module reads a flag.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use cache_sign::trust::TrustedKeys;
use nar_pack::error::{Error, Result};
use nar_pack::option_values::reject_inapplicable;
use nar_pack::path_argument::{PathArgument, is_path_argument};
use nar_pack::process::{command_after_option, command_of_other_tool, is_word, unknown_command};
use nar_pack::stdio;
use nar_pack::store_path::{StoreDir, StorePath, read_path_list};
use s3_push::remote::known_texts::KnownTexts;
use s3_push::remote::location::{VARIABLE, urls_from_environment};
use s3_push::remote::pins::PinName;
use s3_push::remote::progress::Verbosity;
use s3_push::remote::retry::RequestLimits;
use s3_push::remote::s3::Access;
use s3_push::remote::transfer::MAX_RANGES_AHEAD;

use crate::TOOL;
use crate::cli::{Cli, ExtraKind};
use crate::commands::is_command;
use crate::extras::ExtraKinds;
use crate::unpack::UnpackOptions;

/// Commands of `s3-push`, which are often passed to `s3-pull` by mistake.
pub const PUSH_COMMANDS: [&str; 5] = ["collect", "delete", "pin", "repair", "unpin"];

/// Narinfo lookups of a closure at the same time for each concurrent download: a lookup takes little but time.
const LOOKUPS_PER_JOB: u16 = 4;
/// Maximum number of these lookups, unless more downloads are allowed.
const MAX_LOOKUPS: u16 = 256;

/// Returns the maximum number of narinfos of a closure that are looked up at the same time.
fn max_lookups(jobs: u16) -> u16 {
    jobs.max(jobs.saturating_mul(LOOKUPS_PER_JOB).min(MAX_LOOKUPS))
}

/// One invocation.
pub struct Request {
    /// The output.
    pub mode: Mode,
    /// The paths.
    pub selection: Selection,
    /// A pin whose paths are fetched too.
    pub pin: Option<PinName>,
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
    /// The maximum number of narinfos of a closure that are looked up at the same time.
    pub lookups: usize,
    /// How much is printed.
    pub verbosity: Verbosity,
    /// Narinfos of an earlier run.
    pub known: Option<KnownTexts>,
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

impl Mode {
    /// Returns the hint for a path without a signature. Only the streams that `cache-sign` signs have one: elsewhere it
    /// would suggest giving up verification.
    #[must_use]
    pub fn unsigned_path_hint(&self) -> Option<&'static str> {
        match self {
            Self::Write(Format::Paths(PathFormat::NarinfoText | PathFormat::JsonNarinfos) | Format::Archive(_)) => {
                Some(
                    "to sign an unsigned cache, pass --no-verify-signatures and pipe the output to cache-sign; \
                 this trusts everyone who can write to the cache",
                )
            }
            _ => None,
        }
    }
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
    /// Narinfos or store paths.
    Paths(PathFormat),
    /// A cache archive, with other objects of these kinds.
    Archive(ExtraKinds),
}

/// The format of narinfos or store paths.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PathFormat {
    /// Narinfo text.
    NarinfoText,
    /// A path list.
    PathList,
    /// The contents of each narinfo as a JSON object.
    JsonNarinfos,
    /// Each path as a JSON object.
    JsonPaths,
}

impl PathFormat {
    fn from_cli(cli: &Cli) -> Self {
        match (cli.narinfo, cli.json) {
            (true, false) => Self::NarinfoText,
            (true, true) => Self::JsonNarinfos,
            (false, false) => Self::PathList,
            (false, true) => Self::JsonPaths,
        }
    }
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
            match cli.targets.first() {
                Some(word) if PUSH_COMMANDS.contains(&word.as_str()) => {
                    return Err(command_of_other_tool(word, TOOL, "s3-push"));
                }
                Some(word) if is_command(word) => return Err(command_after_option(word, TOOL)),
                Some(word)
                    if is_word(word)
                        && cli.targets.get(1).is_some_and(|url| url.contains("://"))
                        && !is_path_argument(word, &store_dir) =>
                {
                    return Err(unknown_command(word, TOOL));
                }
                _ => {}
            }
            return Err(Error::usage(
                "no output selected: use one of --root DIR, --nar, --cat, --export, --narinfo, --archive, --list",
            ));
        }
        reject_inapplicable_options(cli)?;
        let (urls, paths) = split_targets(&cli.targets, &store_dir)?;
        let resolve = |path: &String| PathArgument::resolve(Path::new(path), &store_dir);
        let paths: Vec<PathArgument> = paths.iter().map(resolve).collect::<Result<_>>()?;
        // With --cat, there is only one.
        let file = paths.last().map(|path| path.file.clone()).unwrap_or_default();
        let selection = selection(cli, paths, &store_dir)?;
        let trusted = if cli.no_verify_signatures { None } else { Some(TrustedKeys::from_cli(&cli.trust)?) };
        Ok(Self {
            mode: mode(cli, selection.is_closed(), file),
            selection,
            pin: cli.pin.as_deref().map(PinName::parse).transpose()?,
            urls,
            remote: remote_settings(cli),
            trusted,
            store_dir,
            jobs: cli.jobs.into(),
            lookups: max_lookups(cli.jobs).into(),
            verbosity: Verbosity::new(cli.quiet, cli.verbose),
            known: cli.have.as_deref().map(KnownTexts::open).transpose()?,
        })
    }
}

fn reject_inapplicable_options(cli: &Cli) -> Result {
    let outputs = [
        ("--root", cli.root.is_some()),
        ("--nar", cli.nar),
        ("--cat", cli.cat),
        ("--export", cli.export),
        ("--narinfo", cli.narinfo),
        ("--archive", cli.archive),
        ("--list", cli.list),
    ];
    let Some((output, _)) = outputs.into_iter().find(|(_, is_given)| *is_given) else { return Ok(()) };
    let options: [(&str, bool, &[&str]); 7] = [
        ("--verify-existing", cli.verify_existing, &["--root"]),
        ("--owner", cli.owner.is_some(), &["--root"]),
        ("--case-hack", cli.case_hack, &["--root"]),
        ("--dry-run", cli.dry_run, &["--root"]),
        ("--json", cli.json, &["--root", "--narinfo", "--list"]),
        ("--unverified", cli.unverified, &["--cat"]),
        ("--have", cli.have.is_some(), &["--narinfo"]),
    ];
    reject_inapplicable(output, options)
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
        None if cli.archive => Mode::Write(Format::Archive(extra_kinds(&cli.with))),
        None => Mode::Write(Format::Paths(PathFormat::from_cli(cli))),
    }
}

fn extra_kinds(with: &[ExtraKind]) -> ExtraKinds {
    let has = |kind: ExtraKind| with.contains(&kind) || with.contains(&ExtraKind::All);
    ExtraKinds {
        listings: has(ExtraKind::Ls),
        logs: has(ExtraKind::Log),
        debug_info: has(ExtraKind::Debuginfo),
        build_trace: has(ExtraKind::Realisations),
    }
}

fn remote_settings(cli: &Cli) -> RemoteSettings {
    let netrc = || std::env::var_os("NETRC").filter(|file| !file.is_empty()).map(PathBuf::from);
    RemoteSettings {
        access: if cli.no_sign_request { Access::Anonymous } else { Access::SignedIfPossible { has_opt_out: true } },
        // Lookups, downloads and ranges that are requested ahead run at the same time.
        limits: cli
            .request_args
            .limits(cli.jobs.saturating_add(max_lookups(cli.jobs)).saturating_add(MAX_RANGES_AHEAD), cli.quiet),
        netrc: cli.netrc_file.clone().or_else(netrc),
    }
}

/// Splits the arguments into URLs, which may come from the environment instead, and store paths.
fn split_targets<'a>(targets: &'a [String], store_dir: &StoreDir) -> Result<(Vec<String>, &'a [String])> {
    let is_url = |(number, target): &(usize, &String)| {
        target.contains("://") || *number == 0 && !is_path_argument(target, store_dir)
    };
    let (urls, paths) = targets.split_at(targets.iter().enumerate().take_while(is_url).count());
    if paths.iter().any(|path| path.contains("://")) {
        return Err(Error::usage("a URL after a store path: pass the URLs of caches before the store paths"));
    }
    let mut urls = urls.to_vec();
    if urls.is_empty() {
        urls = urls_from_environment()?;
    }
    if urls.is_empty() {
        return Err(Error::usage(format!("no cache given: pass a URL or set {VARIABLE}")));
    }
    Ok((urls, paths))
}

fn selection(cli: &Cli, arguments: Vec<PathArgument>, store_dir: &StoreDir) -> Result<Selection> {
    let mut paths: Vec<StorePath> = arguments.into_iter().map(|argument| argument.path).collect();
    if cli.stdin {
        paths.extend(read_path_list(stdio::stdin("a path list")?, store_dir)?);
    } else if cli.all && !paths.is_empty() {
        return Err(Error::usage("--all fetches every path: remove the store paths, or remove --all"));
    } else if !cli.all && cli.pin.is_none() && paths.is_empty() {
        let message = if cli.nar {
            "no store path given: pass the path of the NAR"
        } else {
            "no store paths given: pass store paths, --stdin, --pin or --all"
        };
        return Err(Error::usage(message));
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

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[test]
    fn an_option_of_another_output_is_rejected_by_name() {
        for (arguments, option, output) in [
            ("--list --dry-run", "--dry-run", "--list"),
            ("--archive --owner 0", "--owner", "--archive"),
            ("--nar --verify-existing", "--verify-existing", "--nar"),
            ("--export --case-hack", "--case-hack", "--export"),
            ("--export --json", "--json", "--export"),
            ("--root out --unverified", "--unverified", "--root"),
        ] {
            let targets = ["file:///cache", "/nix/store/02dlwc21njky62v7q7ffcb10000n2grx-x"];
            let arguments: Vec<&str> = ["s3-pull"].into_iter().chain(arguments.split(' ')).chain(targets).collect();
            let cli = Cli::try_parse_from(&arguments).unwrap();
            let error = Request::from_cli(&cli).err().unwrap();
            assert_eq!(error.message(), format!("{option} cannot be used with {output}"));
            assert!(error.is_usage(), "{arguments:?}");
        }
    }
}
