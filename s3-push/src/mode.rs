//! The typed mode of an invocation: the command line is checked and turned into one of the modes here. No other
//! module reads flags.

use std::path::Path;
use std::time::Duration;

use clap::CommandFactory as _;
use nar_pack::error::{Error, Result};
use nar_pack::option_values::reject_inapplicable;
use nar_pack::path_argument::{PathArgument, is_path_argument};
use nar_pack::path_info::PathInfoSource;
use nar_pack::process::{command_after_option, command_of_other_tool, is_word, unknown_command};
use nar_pack::store_path::{StoreDir, StorePath};
use narinfo_gen::cache_info::Changes;
use narinfo_gen::compression::Settings;
use narinfo_gen::narinfo_builder::NarPath;

use crate::TOOL;
use crate::cli::Cli;
use crate::publish::intake::NarCheck;
use crate::publish::missing::{Requirements, Signer};
use crate::publish::object_options::object_options;
use crate::publish::part_sizes::{MAX_PART_SIZE, MIN_PART_SIZE};
use crate::publish::put_key::KeyTarget;
use crate::publish::upload::ExistingCheck;
use crate::remote::location::{Location, shell_argument, url_from_environment};
use crate::remote::progress::Verbosity;
use crate::remote::retry::RequestLimits;
use crate::remote::s3::ObjectOptions;

/// Commands that are the same as the flag of that name.
pub const FLAG_COMMANDS: [&str; 1] = ["repair"];

/// Commands of `s3-pull`, which are often passed to `s3-push` by mistake.
pub const PULL_COMMANDS: [&str; 10] =
    ["archive", "cat", "check", "dead", "export", "list", "nar", "narinfo", "pins", "stats"];

/// What an invocation does.
pub enum Mode {
    /// Publishes the paths on standard input.
    Push(Box<PushOptions>),
    /// Prints the paths that the cache lacks.
    Missing(Box<MissingOptions>),
    /// Uploads standard input under one key.
    PutKey(Box<PutKeyOptions>),
    /// Changes the `nix-cache-info` of an existing cache.
    SetCacheInfo(Box<SetCacheInfoOptions>),
}

/// The bucket and how to access it.
pub struct BucketOptions {
    /// The bucket.
    pub location: Location,
    /// The bucket as it was given, for a command in a hint.
    pub argument: String,
    /// Limits of the requests.
    pub limits: RequestLimits,
    /// Which messages are printed.
    pub verbosity: Verbosity,
}

/// Options of every upload.
pub struct UploadOptions {
    /// Headers of every object.
    pub object_options: ObjectOptions,
    /// Whether nothing is written.
    pub is_dry_run: bool,
    /// Memory for bodies in flight, in bytes.
    pub memory: u64,
    /// Minimum part size in bytes.
    pub part_size: u64,
}

/// Options of [`Mode::Push`].
pub struct PushOptions {
    /// The bucket.
    pub bucket: BucketOptions,
    /// Options of the uploads.
    pub upload: UploadOptions,
    /// The store directory of every path.
    pub store_dir: StoreDir,
    /// The path of a NAR on standard input.
    pub path: Option<NarPath>,
    /// URLs of upstream caches.
    pub upstreams: Vec<String>,
    /// Whether paths with missing references are published.
    pub allow_missing_references: bool,
    /// Whether narinfo text replaces narinfos instead of being merged.
    pub exact: bool,
    /// Maximum time to wait for a collector that deletes.
    pub collector_timeout: Duration,
    /// Whether NARs of paths that the cache has are put again where they are missing or damaged.
    pub repair: bool,
    /// How the NARs of an archive are checked.
    pub nar_check: NarCheck,
    /// How existing NARs are compared with those of the push.
    pub existing_check: ExistingCheck,
    /// Priority of a new `nix-cache-info`.
    pub priority: Option<u32>,
    /// `WantMassQuery` of a new `nix-cache-info`.
    pub want_mass_query: Option<bool>,
    /// Whether the report is JSON.
    pub is_json: bool,
    /// How NARs are compressed.
    pub compression: Settings,
    /// Where references and other facts about paths come from.
    pub path_info: PathInfoSource,
}

/// Options of [`Mode::Missing`].
pub struct MissingOptions {
    /// The bucket.
    pub bucket: BucketOptions,
    /// What a path in the bucket must have besides a narinfo.
    pub requirements: Requirements,
    /// URLs of upstream caches.
    pub upstreams: Vec<String>,
    /// Whether the output is JSON.
    pub is_json: bool,
}

/// Options of [`Mode::SetCacheInfo`].
pub struct SetCacheInfoOptions {
    /// The bucket.
    pub bucket: BucketOptions,
    /// Options of the upload.
    pub upload: UploadOptions,
    /// The new values.
    pub changes: Changes,
    /// The store directory of the cache.
    pub store_dir: StoreDir,
    /// Whether the result is printed as JSON.
    pub is_json: bool,
}

/// Options of [`Mode::PutKey`].
pub struct PutKeyOptions {
    /// The bucket.
    pub bucket: BucketOptions,
    /// Options of the upload.
    pub upload: UploadOptions,
    /// The object.
    pub target: KeyTarget,
    /// Whether the result is printed as JSON.
    pub is_json: bool,
}

impl Mode {
    /// Turns the command line and the environment into a mode.
    ///
    /// # Errors
    /// Returns a usage error for an invalid combination. Fails when the file of `--path-info` cannot be read.
    pub fn from_cli(cli: &Cli) -> Result<Self> {
        let store_dir = StoreDir::new(&cli.path_info_args.store_dir)?;
        let (url, path) = split_targets(&cli.targets, &store_dir)?;
        let bucket = BucketOptions {
            location: Location::parse(&url)?,
            argument: shell_argument(&cli.targets, &url),
            limits: cli.request_args.limits(cli.jobs, cli.quiet),
            verbosity: Verbosity::new(cli.quiet, cli.verbose),
        };
        reject_inapplicable_options(cli)?;
        check_part_size(cli)?;
        let path = path.map(|path| PathArgument::resolve(Path::new(&path), &store_dir)).transpose()?;
        if cli.missing {
            refuse_path("--missing", path.as_ref())?;
            let requirements = Requirements { store_dir, signers: signers(cli)?, requires_nar: cli.deep };
            let options = MissingOptions { bucket, requirements, upstreams: cli.upstream.clone(), is_json: cli.json };
            return Ok(Self::Missing(Box::new(options)));
        }
        if let Some(key) = &cli.key {
            refuse_path("--key", path.as_ref())?;
            let target = KeyTarget::new(key, cli.content_type.as_deref())?;
            let options = PutKeyOptions { bucket, upload: UploadOptions::from_cli(cli)?, target, is_json: cli.json };
            return Ok(Self::PutKey(Box::new(options)));
        }
        if cli.set_cache_info {
            refuse_path("--set-cache-info", path.as_ref())?;
            let changes = Changes { priority: cli.priority, want_mass_query: cli.want_mass_query };
            let upload = UploadOptions::from_cli(cli)?;
            return Ok(Self::SetCacheInfo(Box::new(SetCacheInfoOptions {
                bucket,
                upload,
                changes,
                store_dir,
                is_json: cli.json,
            })));
        }
        let path = path.map(|path| path.into_path_of_nar(&store_dir, TOOL));
        Ok(Self::Push(Box::new(PushOptions {
            bucket,
            upload: UploadOptions::from_cli(cli)?,
            store_dir,
            path: nar_path(cli, path)?,
            upstreams: cli.upstream.clone(),
            allow_missing_references: cli.allow_missing_references,
            exact: cli.exact,
            collector_timeout: cli.collector_timeout,
            repair: cli.repair,
            nar_check: cli.check.unwrap_or_default(),
            existing_check: match (cli.repair, cli.check_existing) {
                (true, _) => ExistingCheck::Read,
                (false, true) => ExistingCheck::ReadIfUnknown,
                (false, false) => ExistingCheck::EntityTag,
            },
            priority: cli.priority,
            want_mass_query: cli.want_mass_query,
            is_json: cli.json,
            compression: cli.compression_args.settings()?,
            path_info: PathInfoSource::open(&cli.path_info_args, None)?,
        })))
    }
}

impl UploadOptions {
    fn from_cli(cli: &Cli) -> Result<Self> {
        Ok(Self {
            object_options: object_options(&cli.object_options)?,
            is_dry_run: cli.dry_run,
            memory: cli.memory,
            part_size: cli.part_size.max(MIN_PART_SIZE),
        })
    }
}

fn reject_inapplicable_options(cli: &Cli) -> Result {
    let modes = [("--missing", cli.missing), ("--key", cli.key.is_some()), ("--set-cache-info", cli.set_cache_info)];
    let Some((mode, _)) = modes.into_iter().find(|(_, is_given)| *is_given) else { return Ok(()) };
    let object_options = &cli.object_options;
    let push = "paths to publish";
    let uploads = &[push, "--key", "--set-cache-info"][..];
    let options = [
        ("--content-type", cli.content_type.is_some(), &["--key"][..]),
        ("--deep", cli.deep, &["--missing"]),
        ("--signed-by", !cli.signed_by.is_empty(), &["--missing"]),
        ("--no-references", cli.no_references, &[push]),
        ("--allow-missing-references", cli.allow_missing_references, &[push]),
        ("--exact", cli.exact, &[push]),
        ("--priority", cli.priority.is_some(), &[push, "--set-cache-info"]),
        ("--want-mass-query", cli.want_mass_query.is_some(), &[push, "--set-cache-info"]),
        ("--storage-class", object_options.storage_class.is_some(), uploads),
        ("--sse", object_options.sse.is_some(), uploads),
        ("--sse-kms-key-id", object_options.sse_kms_key_id.is_some(), uploads),
        ("--tag", !object_options.tag.is_empty(), uploads),
        ("--object-lock-days", object_options.object_lock_days.is_some(), uploads),
        ("--cache-control", object_options.cache_control.is_some(), uploads),
    ];
    reject_inapplicable(mode, options)
}

fn check_part_size(cli: &Cli) -> Result {
    let part_size = cli.part_size.max(MIN_PART_SIZE);
    if part_size > MAX_PART_SIZE {
        return Err(Error::usage("--part-size must be at most 5GiB, the maximum of S3"));
    }
    if cli.memory < 2 * part_size {
        let error = Error::usage("--memory must be at least twice --part-size, and 10MiB");
        return Err(error.with_hint(format!("pass --memory {}MiB or more", (2 * part_size).div_ceil(1 << 20))));
    }
    Ok(())
}

fn signers(cli: &Cli) -> Result<Vec<Signer>> {
    let parse = |text: &String| {
        text.parse().map_err(|error: Error| Error::usage(format!("--signed-by {text:?}: {}", error.message())))
    };
    cli.signed_by.iter().map(parse).collect()
}

/// Returns whether a word is a command.
fn is_command(word: &str) -> bool {
    FLAG_COMMANDS.contains(&word) || Cli::command().find_subcommand(word).is_some()
}

/// Returns the path of a NAR on standard input: the argument, or the one that `--name` stands for.
fn nar_path(cli: &Cli, path: Option<StorePath>) -> Result<Option<NarPath>> {
    match (path, &cli.name) {
        (Some(path), Some(_)) => Err(Error::usage(format!("unexpected argument {path}: --name computes the path"))),
        (Some(path), None) => Ok(Some(NarPath::Given(path))),
        (None, name) => Ok(name.clone().map(|name| NarPath::Added { name, no_references: cli.no_references })),
    }
}

/// Splits the positional arguments into the URL of the bucket and a store path, each of which is optional.
fn split_targets(targets: &[String], store_dir: &StoreDir) -> Result<(String, Option<String>)> {
    match targets {
        [word, ..] if PULL_COMMANDS.contains(&word.as_str()) && !is_path_argument(word, store_dir) => {
            Err(command_of_other_tool(word, TOOL, "s3-pull"))
        }
        [word, ..] if is_command(word) && !is_path_argument(word, store_dir) => Err(command_after_option(word, TOOL)),
        [] => Ok((url_from_environment("")?, None)),
        [path] if is_path_argument(path, store_dir) => {
            Ok((url_from_environment(&format!(" before {path}"))?, Some(path.clone())))
        }
        [url] => Ok((url.clone(), None)),
        [word, url] if url.contains("://") && is_word(word) && !is_path_argument(word, store_dir) => {
            Err(unknown_command(word, TOOL))
        }
        [_, url] if url.contains("://") => Err(Error::usage(format!("{url}: expected a store path, found a URL"))
            .with_hint("pass exactly one bucket, before the store path")),
        [url, path] => Ok((url.clone(), Some(path.clone()))),
        _ => Err(Error::usage("expected a bucket and at most one store path")),
    }
}

fn refuse_path(flag: &str, path: Option<&PathArgument>) -> Result {
    match path {
        None => Ok(()),
        Some(PathArgument { path, .. }) => {
            Err(Error::usage(format!("unexpected argument {path}: {flag} does not take a STORE-PATH")))
        }
    }
}
