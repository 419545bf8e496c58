//! The documents of a bucket that serves as a binary cache, and its clients' nix.conf; the library behind
//! `cache-policy`.
//!
//! | module | owns |
//! | --- | --- |
//! | [`cli`] | the command line |
//! | [`documents`] | the documents, as types that serialise to what S3 and IAM read |
//! | [`nix_conf`] | the lines of nix.conf, and merging them into a file |

pub mod cli;
pub mod documents;
pub mod nix_conf;

use std::env;
use std::io::Write as _;
use std::net::Ipv4Addr;
use std::path::Path;

use cache_sign::trust::named_keys;
use nar_pack::error::{Error, Result};
use nar_pack::process;
use nar_pack::stdio;
use s3_push::remote::location::{Location, VARIABLE, check_bucket_name};
use serde::Serialize;

use cli::Cli;
use documents::{Cors, Lifecycle, Origins, Partition, Place, Policy, Principal, Readers, Role, TrustPolicy};
use nix_conf::Client;

const TOOL: &str = "cache-policy";

/// Runs `cache-policy`.
///
/// # Errors
/// See the exit codes in [`nar_pack::error`].
pub fn run(cli: &Cli) -> Result {
    check_flags(cli)?;
    if cli.nix_conf {
        return configure_client(cli);
    }
    if let Some(days) = cli.lifecycle {
        let prefix = named(cli.bucket.as_deref())?.map(|text| bucket(&text)).transpose()?.unwrap_or_default().prefix;
        return print(&Lifecycle::abort_incomplete(&prefix, days)?);
    }
    if cli.cors {
        return print(&Cors::read(&cli.origin)?);
    }
    if let Some(provider) = &cli.oidc_trust {
        let account = cli.account.as_deref().unwrap_or_default();
        let partition = cli.partition.unwrap_or_default();
        return print(&TrustPolicy::oidc(partition, provider, account, &cli.audience, &cli.subject)?);
    }
    print(&policy(cli)?)
}

/// A flag that would be ignored is a mistake.
fn check_flags(cli: &Cli) -> Result {
    let policy = cli.read_only || cli.upload || cli.admin;
    let narrowed = !cli.principal.is_empty()
        || !cli.principal_key_id.is_empty()
        || cli.require_tls
        || !cli.source_ip.is_empty()
        || !cli.vpc_endpoint.is_empty();
    let keys = !cli.keys.trusted_public_keys.is_empty() || !cli.keys.trusted_public_key_files.is_empty();
    let misplaced = [
        (narrowed && !policy, "--principal, --require-tls, --source-ip and --vpc-endpoint go with a policy"),
        (cli.partition.is_some() && !policy && cli.oidc_trust.is_none(), "--partition goes with a policy"),
        // clap does not ask for what a flag requires where another document is given.
        ((cli.allow_list || cli.identity) && !cli.read_only, "--allow-list and --identity go with --read-only"),
        (!cli.origin.is_empty() && !cli.cors, "--origin goes with --cors"),
        (
            (cli.account.is_some() || !cli.subject.is_empty()) && cli.oidc_trust.is_none(),
            "--account and --subject go with --oidc-trust",
        ),
        (
            (cli.https || cli.only || cli.write.is_some() || cli.remove.is_some()) && !cli.nix_conf,
            "--https, --only, --write and --remove go with --nix-conf",
        ),
        (keys && !cli.nix_conf, "public keys go with --nix-conf"),
        (cli.bucket.is_some() && (cli.cors || cli.oidc_trust.is_some()), "this document is about no bucket"),
    ];
    match misplaced.iter().find(|(wrong, _)| *wrong) {
        Some((_, why)) => Err(Error::failed(format!("{why}"))),
        None => Ok(()),
    }
}

fn policy(cli: &Cli) -> Result<Policy> {
    let bucket = bucket(&required(cli.bucket.as_deref())?)?;
    let mut principals: Vec<Principal> =
        cli.principal.iter().map(|text| Principal::parse(text)).collect::<Result<_>>()?;
    for id in &cli.principal_key_id {
        principals.push(Principal::key_id(id)?);
    }
    let told = [
        ("--partition", cli.partition),
        ("--principal", Partition::of(&principals)?),
        ("the region", bucket.region.as_deref().map(Partition::of_region)),
    ];
    let mut told = told.into_iter().filter_map(|(source, partition)| partition.map(|partition| (source, partition)));
    let partition = match told.next() {
        None => Partition::default(),
        Some((source, partition)) => match told.find(|(_, other)| *other != partition) {
            None => partition,
            Some((other_source, other)) => {
                return Err(Error::failed(format!(
                    "{source} is of {partition}, {other_source} of {other}, and between them there are no permissions"
                )));
            }
        },
    };
    let place = Place::new(partition, &bucket.name, &bucket.prefix)?;
    let origins = Origins::new(&cli.source_ip, &cli.vpc_endpoint, cli.require_tls)?;
    let role = match (cli.upload, cli.admin) {
        (true, _) => Role::Upload,
        (_, true) => Role::Admin,
        _ => Role::Read { list: cli.allow_list },
    };
    if cli.identity || (principals.is_empty() && !cli.read_only) {
        return Ok(Policy::identity(role, &place, &origins));
    }
    Ok(Policy::bucket(role, &place, &Readers::new(principals), &origins))
}

/// Prints the lines of nix.conf, or merges them into a file, or takes them out.
fn configure_client(cli: &Cli) -> Result {
    let named = required(cli.bucket.as_deref())?;
    let url = if named.contains("://") { named } else { format!("s3://{named}") };
    let keys = named_keys(&cli.keys)?;
    if keys.is_empty() && cli.remove.is_none() {
        return Err(Error::failed("expected --trusted-public-key or --trusted-public-key-file"));
    }
    let client = Client::new(&url, cli.https, &keys, cli.only)?;
    if [&cli.write, &cli.remove].into_iter().flatten().any(|file| file == Path::new("-")) {
        return Err(Error::failed("--write and --remove take a file; without them the lines go to standard output"));
    }
    let told = |file: &Path, changed: bool| {
        process::print_message(TOOL, format!("{}: {}", file.display(), if changed { "changed" } else { "unchanged" }));
    };
    if let Some(file) = &cli.write {
        told(file, client.write(file)?);
        for line in client.look(file)?.illegal {
            process::print_message(
                TOOL,
                format!("{line}: not a line of nix.conf: Nix refuses the whole file for it; it stays as it is"),
            );
        }
        return Ok(());
    }
    if let Some(file) = &cli.remove {
        told(file, client.remove(file)?);
        let named = client.look(file).map(|look| look.names_the_cache);
        if let Some(rest) = match named {
            Ok(true) => Some("it still names the cache, in lines that are not of cache-policy".to_owned()),
            Ok(false) => None,
            // The lines are out, whatever the rest of the file says.
            Err(failure) => Some(failure.to_string()),
        } {
            process::print_message(TOOL, format!("{}: {rest}", file.display()));
        }
        return Ok(());
    }
    let mut out = stdio::stdout(None)?;
    out.write_all(client.lines().as_bytes())?;
    out.finish()
}

/// A bucket, the prefix of its keys (empty, or ending in a slash), and its region where it is of AWS and the URL tells.
#[derive(Debug, Default, PartialEq, Eq)]
struct Bucket {
    name: String,
    prefix: String,
    region: Option<String>,
}

/// What the argument or the environment names; none where neither does.
fn named(argument: Option<&str>) -> Result<Option<String>> {
    let text = match (argument, env::var_os(VARIABLE)) {
        (Some(text), _) => Some(text.to_owned()),
        (None, Some(text)) => {
            let text = text.into_string().map_err(|_| Error::failed(format!("${VARIABLE} is not UTF-8 text")))?;
            Some(text).filter(|text| !text.is_empty())
        }
        (None, None) => None,
    };
    Ok(text)
}

fn required(argument: Option<&str>) -> Result<String> {
    named(argument)?
        .filter(|text| !text.is_empty())
        .ok_or_else(|| Error::failed(format!("say which bucket: s3://BUCKET, its bare name, or set ${VARIABLE}")))
}

fn bucket(text: &str) -> Result<Bucket> {
    let bucket = if text.contains("://") {
        let location = Location::parse(text)?;
        let region = location.region.clone().filter(|_| location.is_aws());
        Bucket { name: location.bucket, prefix: location.prefix, region }
    } else {
        check_bucket_name(text).map_err(|failure| {
            Error::failed(format!("{}; expected s3://BUCKET[/PREFIX] or a bare name", failure.message()))
        })?;
        Bucket { name: text.to_owned(), ..Bucket::default() }
    };
    // Amazon S3 user guide, "General purpose bucket naming rules".
    if bucket.name.parse::<Ipv4Addr>().is_ok() {
        return Err(Error::failed(format!("{:?} is an address, not the name of a bucket", bucket.name)));
    }
    Ok(bucket)
}

/// Writes a document and one newline.
fn print(document: &impl Serialize) -> Result {
    let mut text = serde_json::to_vec_pretty(document).map_err(Error::failed)?;
    text.push(b'\n');
    let mut out = stdio::stdout(None)?;
    out.write_all(&text)?;
    out.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_is_a_url_or_a_bare_name() {
        let of = |text: &str| {
            let bucket = bucket(text).unwrap();
            (bucket.name, bucket.prefix)
        };
        let named = |bucket: &str, prefix: &str| (bucket.to_owned(), prefix.to_owned());
        assert_eq!(of("my-cache"), named("my-cache", ""));
        assert_eq!(of("s3://my-cache"), named("my-cache", ""));
        assert_eq!(of("s3://my-cache/a/b/?region=eu-west-2&profile=cache-upload"), named("my-cache", "a/b/"));
        assert_eq!(of("s3://my.cache?scheme=http&endpoint=127.0.0.1:9000"), named("my.cache", ""));
    }

    #[test]
    fn what_is_no_bucket_is_an_error_in_one_line() {
        let long = "a".repeat(64);
        let bare = [
            "a",
            "-cache",
            "cache-",
            "my cache",
            "my-cache/prefix",
            "my-cache?region=x",
            "my..cache",
            "*",
            "my-cache*",
            "my-cache\n",
            "\u{1b}[2J-cache",
            "${aws:username}",
            "cäche",
            "cache\",\"arn:aws:s3:::other",
            "arn:aws:s3:::my-cache",
            "192.0.2.1",
            long.as_str(),
        ];
        assert_eq!(required(Some("")).unwrap_err().exit_code(), 2);
        let urls = [
            "https://my-cache.s3.amazonaws.com",
            "s3://",
            "s3:///prefix",
            "s3://my-cache?regoin=x",
            "s3://my-cache/%0a",
            "s3://my-cache/../other",
            "s3://192.0.2.1/x",
        ];
        for text in bare.iter().chain(&urls) {
            let failure = bucket(text).unwrap_err();
            assert_eq!(failure.exit_code(), 2, "{text:?}: {failure}");
            assert!(!failure.to_string().contains(char::is_control), "{text:?}: {failure}");
        }
    }
}
