//! Turns the command line into one [`Mode`]. Selects the document, rejects flags that do not apply to it, and parses all
//! values, so that no other module reads flags.

use std::path::{Path, PathBuf};

use cache_sign::trust::read_public_keys;
use nar_pack::error::{Error, Result};
use s3_push::remote::location::VARIABLE;

use crate::bucket::{Bucket, bucket_argument, require_bucket_argument};
use crate::cli::Cli;
use crate::documents::arn::{BucketArns, Partition};
use crate::documents::condition::RequestConditions;
use crate::documents::cors::Cors;
use crate::documents::lifecycle::Lifecycle;
use crate::documents::oidc_trust::TrustPolicy;
use crate::documents::policy::{Access, Form, Policy};
use crate::documents::principal::{Principal, Principals};
use crate::infrastructure::{Format, Resource};
use crate::nix_conf::{ClientConfig, UrlForm};
use crate::url_report::UrlReport;

/// The audience that AWS expects in the tokens of CI jobs.
const DEFAULT_AUDIENCE: &str = "sts.amazonaws.com";

/// What one invocation prints or edits.
#[derive(Debug)]
pub enum Mode {
    /// Print a bucket policy or an identity policy.
    Policy(Policy),
    /// Print a lifecycle configuration.
    Lifecycle(Lifecycle),
    /// Print a document as a resource of OpenTofu or Terraform.
    Tofu(Resource),
    /// Print a document as a template of CloudFormation.
    CloudFormation(Resource),
    /// Print a CORS configuration.
    Cors(Cors),
    /// Print the trust policy of a role.
    OidcTrust(TrustPolicy),
    /// Print what an `s3://` URL means.
    CheckUrl(UrlReport),
    /// Print the page that a visitor of the bucket sees.
    LandingPage(ClientConfig),
    /// Print the nix.conf lines of a client, or edit a file.
    NixConf {
        /// The lines.
        config: ClientConfig,
        /// What to do with them.
        action: NixConfAction,
    },
}

/// What to do with the lines of nix.conf.
#[derive(Debug, PartialEq, Eq)]
pub enum NixConfAction {
    /// Print them to standard output.
    Print,
    /// Merge them into a file.
    Write(PathBuf),
    /// Remove them from a file.
    Remove(PathBuf),
}

/// The document that the command line selects; clap ensures that it is exactly one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Document {
    ReadOnly,
    Upload,
    Admin,
    Collect,
    Lifecycle,
    Cors,
    OidcTrust,
    NixConf,
    LandingPage,
    CheckUrl,
}

impl Document {
    const POLICIES: [Self; 4] = [Self::ReadOnly, Self::Upload, Self::Admin, Self::Collect];

    fn from_cli(cli: &Cli) -> Self {
        if cli.upload {
            Self::Upload
        } else if cli.admin {
            Self::Admin
        } else if cli.collect {
            Self::Collect
        } else if cli.lifecycle.is_some() {
            Self::Lifecycle
        } else if cli.cors {
            Self::Cors
        } else if cli.oidc_trust.is_some() {
            Self::OidcTrust
        } else if cli.nix_conf {
            Self::NixConf
        } else if cli.landing_page {
            Self::LandingPage
        } else if cli.check_url {
            Self::CheckUrl
        } else {
            Self::ReadOnly
        }
    }

    fn flag(self) -> &'static str {
        match self {
            Self::ReadOnly => "--read-only",
            Self::Upload => "--upload",
            Self::Admin => "--admin",
            Self::Collect => "--collect",
            Self::Lifecycle => "--lifecycle",
            Self::Cors => "--cors",
            Self::OidcTrust => "--oidc-trust",
            Self::NixConf => "--nix-conf",
            Self::LandingPage => "--landing-page",
            Self::CheckUrl => "--check-url",
        }
    }
}

impl Mode {
    /// Determines the mode from the command line and reads the files of public keys.
    ///
    /// # Errors
    /// A usage error for a flag that does not apply to the document, or has an invalid value.
    pub fn from_cli(cli: &Cli) -> Result<Self> {
        let document = Document::from_cli(cli);
        reject_inapplicable_flags(cli, document)?;
        match document {
            Document::ReadOnly => policy(cli, Access::Read { list: cli.allow_list }),
            Document::Upload => policy(cli, Access::Upload),
            Document::Admin => policy(cli, Access::Admin),
            Document::Collect => policy(cli, Access::Collect),
            Document::Lifecycle => lifecycle(cli),
            Document::Cors => Cors::allow_read(&cli.origin).map(Self::Cors),
            Document::OidcTrust => {
                let provider = cli.oidc_trust.as_deref().unwrap_or_default();
                let account = cli.account.as_deref().unwrap_or_default();
                let partition = cli.partition.unwrap_or_default();
                let audience = cli.audience.as_deref().unwrap_or(DEFAULT_AUDIENCE);
                TrustPolicy::oidc(partition, provider, account, audience, &cli.subject).map(Self::OidcTrust)
            }
            Document::NixConf => nix_conf(cli),
            Document::LandingPage => client_config(cli, UrlForm::Public).map(Self::LandingPage),
            Document::CheckUrl => UrlReport::new(&cache_url(cli)?).map(Self::CheckUrl),
        }
    }
}

/// Prints the document of a resource, or the resource.
fn in_format(format: Option<Format>, resource: Resource) -> Mode {
    match (format.unwrap_or_default(), resource) {
        (Format::Json, Resource::BucketPolicy { policy, .. } | Resource::IdentityPolicy { policy, .. }) => {
            Mode::Policy(policy)
        }
        (Format::Json, Resource::Lifecycle { lifecycle, .. }) => Mode::Lifecycle(lifecycle),
        (Format::Tofu, resource) => Mode::Tofu(resource),
        (Format::Cloudformation, resource) => Mode::CloudFormation(resource),
    }
}

/// The document applies to any bucket, but a resource names one.
fn lifecycle(cli: &Cli) -> Result<Mode> {
    let has_format = cli.format.is_some_and(|format| format != Format::Json);
    let argument = if has_format {
        Some(require_bucket_argument(cli.bucket.as_deref())?)
    } else {
        bucket_argument(cli.bucket.as_deref())?
    };
    let bucket = argument.map(|text| Bucket::parse(&text)).transpose()?.unwrap_or_default();
    let lifecycle = Lifecycle::new(&bucket.prefix, cli.lifecycle.unwrap_or_default(), cli.noncurrent)?;
    Ok(in_format(cli.format, Resource::Lifecycle { bucket: bucket.name, lifecycle }))
}

/// Rejects flags that would be ignored. clap does not check the requirements of a flag if another document is selected.
fn reject_inapplicable_flags(cli: &Cli, document: Document) -> Result {
    let (read_only, nix_conf) = (&[Document::ReadOnly][..], &[Document::NixConf][..]);
    let clients = &[Document::NixConf, Document::LandingPage][..];
    let policies = &Document::POLICIES[..];
    let policies_and = |document| [&Document::POLICIES[..], &[document]].concat();
    let policies_and_lifecycle = &policies_and(Document::Lifecycle)[..];
    let policies_and_trust = &policies_and(Document::OidcTrust)[..];
    let flags = [
        ("--principal", !cli.principal.is_empty(), policies),
        ("--principal-key-id", !cli.principal_key_id.is_empty(), policies),
        ("--require-tls", cli.require_tls, policies),
        ("--source-ip", !cli.source_ip.is_empty(), policies),
        ("--vpc-endpoint", !cli.vpc_endpoint.is_empty(), policies),
        ("--partition", cli.partition.is_some(), policies_and_trust),
        ("--minimal", cli.minimal, &[Document::ReadOnly, Document::Upload]),
        ("--identity", cli.identity, read_only),
        ("--allow-list", cli.allow_list, read_only),
        ("--format", cli.format.is_some(), policies_and_lifecycle),
        ("--noncurrent", cli.noncurrent.is_some(), &[Document::Lifecycle]),
        ("--origin", !cli.origin.is_empty(), &[Document::Cors]),
        ("--account", cli.account.is_some(), &[Document::OidcTrust]),
        ("--subject", !cli.subject.is_empty(), &[Document::OidcTrust]),
        ("--audience", cli.audience.is_some(), &[Document::OidcTrust]),
        ("--https", cli.https.is_some(), clients),
        ("--only", cli.only, nix_conf),
        ("--pusher", cli.pusher, nix_conf),
        ("--write", cli.write.is_some(), nix_conf),
        ("--remove", cli.remove.is_some(), nix_conf),
        ("--trusted-public-key", !cli.keys.trusted_public_keys.is_empty(), clients),
        ("--trusted-public-key-file", !cli.keys.trusted_public_key_files.is_empty(), clients),
    ];
    for (flag, is_given, documents) in flags {
        if is_given && !documents.contains(&document) {
            let allowed: Vec<&str> = documents.iter().map(|document| document.flag()).collect();
            return Err(Error::inapplicable(flag, document.flag(), &allowed.join(", ")));
        }
    }
    if cli.bucket.is_some() && matches!(document, Document::Cors | Document::OidcTrust) {
        let error = Error::usage(format!("a bucket cannot be given with {}", document.flag()));
        return Err(error.with_hint("remove the bucket: the document applies to any bucket"));
    }
    Ok(())
}

fn policy(cli: &Cli, access: Access) -> Result<Mode> {
    let bucket = Bucket::parse(&require_bucket_argument(cli.bucket.as_deref())?)?;
    let mut principals: Vec<Principal> =
        cli.principal.iter().map(|text| Principal::parse(text)).collect::<Result<_>>()?;
    for id in &cli.principal_key_id {
        principals.push(Principal::from_key_id(id)?);
    }
    let partition = partition(cli.partition, &principals, &bucket)?;
    let arns = BucketArns::new(partition, &bucket.name, &bucket.prefix)?;
    let conditions = RequestConditions::new(&cli.source_ip, &cli.vpc_endpoint, cli.require_tls)?;
    let form = if cli.minimal { Form::Minimal } else { Form::NixManual };
    // Everyone may read by default, but only named principals may upload or administer.
    let is_read_only = matches!(access, Access::Read { .. });
    if cli.identity || (principals.is_empty() && !is_read_only) {
        let policy = Policy::identity(access, form, &arns, &conditions);
        return Ok(in_format(cli.format, Resource::IdentityPolicy { access, policy }));
    }
    let policy = Policy::bucket(access, form, &arns, &Principals::new(principals), &conditions);
    Ok(in_format(cli.format, Resource::BucketPolicy { bucket: bucket.name, access, policy }))
}

/// Determines the partition from the flag, the principals and the region of the URL, which must agree.
fn partition(flag: Option<Partition>, principals: &[Principal], bucket: &Bucket) -> Result<Partition> {
    let candidates = [
        ("--partition", flag),
        ("--principal", Partition::of_principals(principals)?),
        ("the region of the bucket", bucket.region.as_deref().map(Partition::of_region)),
    ];
    let mut known = candidates.into_iter().filter_map(|(source, partition)| Some((source, partition?)));
    let Some((source, partition)) = known.next() else { return Ok(Partition::default()) };
    match known.find(|(_, other)| *other != partition) {
        None => Ok(partition),
        Some((other_source, other)) => Err(Error::usage(format!(
            "{source} is in partition {partition}, but {other_source} is in {other}: permissions cannot cross partitions"
        ))),
    }
}

/// Returns the URL of the cache; a bare name is that of a bucket.
fn cache_url(cli: &Cli) -> Result<String> {
    let argument = cli.bucket.as_deref().or_else(|| bucket_after_https(cli));
    let cache = require_bucket_argument(argument)?;
    Ok(if cache.contains("://") { cache } else { format!("s3://{cache}") })
}

/// Returns the bucket of `--nix-conf --https BUCKET`, which was the form before `--https` had a value.
fn bucket_after_https(cli: &Cli) -> Option<&str> {
    cli.https.as_ref()?.as_deref().filter(|value| cli.bucket.is_none() && (cli.nix_conf || value.contains("://")))
}

/// Reads the keys, and configures the cache with a URL of the form that `--https` says; `default` without it.
fn client_config(cli: &Cli, default: UrlForm) -> Result<ClientConfig> {
    if bucket_after_https(cli).is_some_and(|value| !value.contains("://")) && bucket_argument(None)?.is_some() {
        let error =
            Error::usage(format!("--https is ambiguous: its value is a host, or a bucket instead of {VARIABLE}"));
        return Err(error.with_hint("pass the s3:// URL of the bucket as an argument too"));
    }
    let url = cache_url(cli)?;
    if cli.https.is_some() && !url.starts_with("s3://") {
        let error = Error::usage("--https requires the s3:// URL of a bucket");
        return Err(error.with_hint("remove --https: the cache already has an http:// or https:// URL"));
    }
    let form = match &cli.https {
        None => default,
        Some(Some(host)) if bucket_after_https(cli).is_none() => UrlForm::HttpsAt(host.clone()),
        Some(_) => UrlForm::Https,
    };
    let keys = read_public_keys(&cli.keys)?;
    if keys.is_empty() && cli.remove.is_none() {
        return Err(Error::usage("no public key given: use --trusted-public-key or --trusted-public-key-file"));
    }
    ClientConfig::new(&url, &form, &keys, cli.only)
}

fn nix_conf(cli: &Cli) -> Result<Mode> {
    let config = client_config(cli, UrlForm::Portable)?.with_pusher(cli.pusher);
    let action = match (&cli.write, &cli.remove) {
        (Some(file), _) => NixConfAction::Write(require_file(file)?),
        (None, Some(file)) => NixConfAction::Remove(require_file(file)?),
        (None, None) => NixConfAction::Print,
    };
    Ok(Mode::NixConf { config, action })
}

fn require_file(file: &Path) -> Result<PathBuf> {
    if file == Path::new("-") {
        let error = Error::usage("--write and --remove cannot edit standard input");
        return Err(error.with_hint("omit them to print the lines to standard output"));
    }
    Ok(file.to_owned())
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[test]
    fn a_flag_of_another_document_is_rejected_by_name() {
        for (arguments, flag, document) in [
            ("--lifecycle 7 --require-tls my-cache", "--require-tls", "--lifecycle"),
            ("--upload --allow-list my-cache", "--allow-list", "--upload"),
            ("--cors --partition aws", "--partition", "--cors"),
            ("--admin --write nix.conf my-cache", "--write", "--admin"),
            ("--nix-conf --origin https://example.org my-cache", "--origin", "--nix-conf"),
            ("--read-only --audience sts.example.org my-cache", "--audience", "--read-only"),
            ("--admin --minimal my-cache", "--minimal", "--admin"),
            ("--lifecycle 7 --minimal", "--minimal", "--lifecycle"),
            ("--collect --minimal my-cache", "--minimal", "--collect"),
            ("--upload --noncurrent 30 my-cache", "--noncurrent", "--upload"),
            ("--upload --pusher my-cache", "--pusher", "--upload"),
            ("--cors --format tofu", "--format", "--cors"),
            ("--nix-conf --format json my-cache", "--format", "--nix-conf"),
            ("--landing-page --only my-cache", "--only", "--landing-page"),
            ("--upload --https my-cache", "--https", "--upload"),
            ("--check-url --https my-cache", "--https", "--check-url"),
            ("--check-url --only my-cache", "--only", "--check-url"),
        ] {
            let cli = Cli::try_parse_from(["cache-policy"].into_iter().chain(arguments.split(' '))).unwrap();
            let error = Mode::from_cli(&cli).unwrap_err();
            assert_eq!(error.message(), format!("{flag} cannot be used with {document}"), "{arguments}");
            assert!(error.is_usage() && error.hint().is_some_and(|hint| hint.contains(flag)), "{arguments}");
        }
    }

    #[test]
    fn https_requires_a_bucket() {
        let cli = Cli::try_parse_from(["cache-policy", "--nix-conf", "--https", "https://cache.example.org"]).unwrap();
        let error = Mode::from_cli(&cli).unwrap_err();
        assert!(error.is_usage() && error.message().contains("--https"), "{error}");
    }
}
