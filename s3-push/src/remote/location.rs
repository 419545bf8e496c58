//! The location of a bucket: `s3://BUCKET[/PREFIX][?PARAMETERS]`, as in Nix and Lix.
//!
//! The parameters are those of Nix's S3 binary cache store (manual, "S3 Binary Cache Store"). Parameters that concern
//! only Nix itself are accepted and ignored.

use std::net::Ipv6Addr;

use nar_pack::error::{Context, Error, Result};
use percent_encoding::percent_decode_str;

/// The environment variable with the URL of the bucket, for command lines without one.
pub const VARIABLE: &str = "NIX_S3_CACHE";
/// The hint for text that is not a bucket URL.
const URL_HINT: &str = "pass s3://BUCKET[/PREFIX], such as s3://example-nix-cache?region=eu-west-2";
/// The name in an ARN and the domain of the partition of AWS that most regions are in.
const AWS: (&str, &str) = ("aws", "amazonaws.com");
/// The other partitions: how the names of their regions begin, their name and their domain (botocore, `partitions.json`).
const AWS_PARTITIONS: [(&str, &str, &str); 7] = [
    ("cn-", "aws-cn", "amazonaws.com.cn"),
    ("us-gov-", "aws-us-gov", "amazonaws.com"),
    ("eusc-", "aws-eusc", "amazonaws.eu"),
    ("us-iso-", "aws-iso", "c2s.ic.gov"),
    ("us-isob-", "aws-iso-b", "sc2s.sgov.gov"),
    ("eu-isoe-", "aws-iso-e", "cloud.adc-e.uk"),
    ("us-isof-", "aws-iso-f", "csp.hci.ic.gov"),
];
/// Nix's default region.
pub const DEFAULT_REGION: &str = "us-east-1";

/// Parameters of Nix or Lix that these tools ignore.
const IGNORED_PARAMETERS: [&str; 24] = [
    "compression",
    "compression-level",
    "parallel-compression",
    "write-nar-listing",
    "index-debug-info",
    "secret-key",
    "secret-keys",
    "local-nar-cache",
    "trusted",
    "priority",
    "want-mass-query",
    "system-features",
    "path-info-cache-size",
    "store",
    "narinfo-compression",
    "ls-compression",
    "log-compression",
    "buffer-size",
    "multipart-upload",
    "multipart-chunk-size",
    "multipart-threshold",
    "storage-class",
    "parallel",
    "require-sigs",
];
/// Maximum length of a label and of a host name (RFC 1035).
const MAX_LABEL_LENGTH: usize = 63;
const MAX_HOST_LENGTH: usize = 253;
const PARAMETERS: [&str; 5] = ["region", "profile", "endpoint", "scheme", "addressing-style"];

/// Where requests name the bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Addressing {
    /// Path style if an endpoint is given or the bucket's name contains a dot, otherwise virtual-host style.
    #[default]
    Auto,
    /// `https://endpoint/bucket/key`.
    Path,
    /// `https://bucket.endpoint/key`.
    Virtual,
}

/// A bucket, a prefix of its keys, and how to reach it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Location {
    /// The bucket's name.
    pub bucket: String,
    /// The prefix of every key: empty, or ending in a slash.
    pub prefix: String,
    /// The region, if given.
    pub region: Option<String>,
    /// The AWS profile, if given.
    pub profile: Option<String>,
    /// Host and optional port of the service, if given; AWS by default.
    pub endpoint: Option<String>,
    /// Whether requests use plain HTTP.
    pub plain_http: bool,
    /// Where requests name the bucket.
    pub addressing: Addressing,
}

impl Location {
    /// Parses an `s3://` URL.
    ///
    /// # Errors
    /// A usage error for an invalid URL. For an unknown parameter its hint names the most similar one.
    pub fn parse(url: &str) -> Result<Self> {
        // Some users put passwords into the parameters or before an @.
        let without_query = url.split('?').next().unwrap_or_default();
        let display_url = match without_query.rsplit_once('@') {
            Some((_, after)) => format!("s3://…@{after}"),
            None => without_query.to_owned(),
        };
        Self::parse_url(url).context(|| format!("invalid bucket URL {display_url:?}"))
    }

    fn parse_url(url: &str) -> Result<Self> {
        let rest = url.strip_prefix("s3://");
        let expected = || Error::usage("expected s3://BUCKET[/PREFIX][?PARAMETERS]").with_hint(URL_HINT);
        let rest = rest.ok_or_else(expected)?;
        let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (bucket, prefix) = path.split_once('/').unwrap_or((path, ""));
        if let Some(rule) = broken_name_rule(bucket) {
            let error = Error::usage(format!("the name of a bucket must {rule}"));
            return Err(error.with_hint(URL_HINT));
        }
        let prefix = decode(prefix.trim_matches('/'))?;
        if prefix.split('/').any(|part| matches!(part, "." | "..")) {
            return Err(Error::usage("the prefix must not contain '.' or '..' as a component"));
        }
        let mut location = Self {
            bucket: bucket.to_owned(),
            prefix: if prefix.is_empty() { prefix } else { prefix + "/" },
            region: None,
            profile: None,
            endpoint: None,
            plain_http: false,
            addressing: Addressing::Auto,
        };
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let parameter = pair.split_once('=');
            let (name, value) = parameter.ok_or_else(|| Error::usage("expected NAME=VALUE after the '?'"))?;
            location.set_parameter(name, decode(value)?)?;
        }
        Ok(location)
    }

    fn set_parameter(&mut self, name: &str, value: String) -> Result {
        let invalid = |values: &str| {
            let error = format!("invalid value {value:?} of parameter {name:?}: expected one of {values}");
            Err(Error::usage(error))
        };
        match name {
            _ if value.is_empty() => {}
            "region" => {
                check_region(&value)?;
                self.region = Some(value);
            }
            "profile" => {
                check_profile(&value)?;
                self.profile = Some(value);
            }
            "endpoint" => self.set_endpoint(&value)?,
            "scheme" => match value.to_ascii_lowercase().as_str() {
                "https" => self.plain_http = false,
                "http" => self.plain_http = true,
                _ => return invalid("https, http"),
            },
            "addressing-style" => match value.as_str() {
                "auto" => self.addressing = Addressing::Auto,
                "path" => self.addressing = Addressing::Path,
                "virtual" => self.addressing = Addressing::Virtual,
                _ => return invalid("auto, path, virtual"),
            },
            _ if IGNORED_PARAMETERS.contains(&name) => {}
            _ => {
                let known = PARAMETERS.iter().chain(&IGNORED_PARAMETERS);
                let nearest = known.min_by_key(|known| strsim::levenshtein(name, known)).unwrap_or(&"region");
                let error = Error::usage(format!("unknown parameter {name:?}"));
                return Err(error.with_hint(format!("a similar parameter is {nearest:?}")));
            }
        }
        Ok(())
    }

    /// Nix expects a host; other tools expect a URL, whose scheme is then used.
    fn set_endpoint(&mut self, value: &str) -> Result {
        let invalid = || Error::usage("invalid endpoint: expected HOST[:PORT] or http(s)://HOST[:PORT]");
        let (scheme, host) = value.split_once("://").map_or((None, value), |(scheme, host)| (Some(scheme), host));
        match scheme {
            None => {}
            Some("https") => self.plain_http = false,
            Some("http") => self.plain_http = true,
            Some(_) => return Err(invalid()),
        }
        let host = host.trim_end_matches('/');
        if !is_host_and_port(host) {
            return Err(invalid());
        }
        self.endpoint = Some(host.to_owned());
        Ok(())
    }

    /// Returns the URL of the endpoint, or none for the default endpoint of AWS.
    #[must_use]
    pub fn endpoint_url(&self) -> Option<String> {
        let scheme = if self.plain_http { "http" } else { "https" };
        match &self.endpoint {
            Some(host) => Some(format!("{scheme}://{host}")),
            // The SDK has no setting for the default endpoint over plain HTTP.
            None if self.plain_http => Some(format!("http://{}", self.aws_host())),
            None => None,
        }
    }

    /// Returns the host of the service of AWS in the region.
    #[must_use]
    pub fn aws_host(&self) -> String {
        let region = self.region.as_deref().unwrap_or(DEFAULT_REGION);
        let (_, domain) = partition_of(region);
        format!("s3.{region}.{domain}")
    }

    /// Returns whether requests are in path style.
    #[must_use]
    pub fn path_style(&self) -> bool {
        match self.addressing {
            Addressing::Path => true,
            Addressing::Virtual => false,
            Addressing::Auto => self.endpoint.is_some() || self.bucket.contains('.'),
        }
    }

    /// Returns whether the service is AWS.
    #[must_use]
    pub fn is_aws(&self) -> bool {
        self.endpoint.as_deref().is_none_or(|host| {
            let host = host.split(':').next().unwrap_or(host);
            let is_below = |domain: &str| host.strip_suffix(domain).is_some_and(|host| host.ends_with('.'));
            AWS_PARTITIONS.iter().map(|(.., domain)| *domain).chain([AWS.1]).any(is_below)
        })
    }

    /// Returns the key of an object in the bucket, with the prefix.
    #[must_use]
    pub fn key(&self, object: &str) -> String {
        format!("{}{object}", self.prefix)
    }

    /// Returns the URL of an object without parameters, for messages; that of the cache for an empty key.
    #[must_use]
    pub fn display_url(&self, object: &str) -> String {
        format!("s3://{}/{}{object}", self.bucket, self.prefix)
    }
}

/// Checks the name of a bucket against the rules of AWS ("Bucket naming rules"), except that capitals and underscores,
/// which older services allow, are valid.
///
/// # Errors
/// A usage error that names the broken rule.
pub fn check_bucket_name(bucket: &str) -> Result {
    let Some(rule) = broken_name_rule(bucket) else { return Ok(()) };
    // Some users put passwords before an @.
    let shown = bucket.rsplit('@').next().unwrap_or_default();
    Err(Error::usage(format!("invalid bucket name {shown:?}: it must {rule}")))
}

/// Returns the rule of [`check_bucket_name`] that a name breaks, which completes the sentence "it must …".
fn broken_name_rule(bucket: &str) -> Option<&'static str> {
    let is_alphanumeric = |c: char| c.is_ascii_alphanumeric();
    if !(3..=63).contains(&bucket.len()) {
        Some("be 3 to 63 characters long")
    } else if !bucket.chars().all(|c| is_alphanumeric(c) || matches!(c, '-' | '.' | '_')) {
        Some("contain only letters, digits, '-', '.' and '_'")
    } else if !(bucket.starts_with(is_alphanumeric) && bucket.ends_with(is_alphanumeric)) {
        Some("begin and end with a letter or digit")
    } else if bucket.contains("..") {
        Some("not contain '..'")
    } else {
        None
    }
}

/// Returns the URLs in `$NIX_S3_CACHE`, which whitespace separates; none if it is not set.
///
/// # Errors
/// A usage error if the variable is not UTF-8 text.
pub fn urls_from_environment() -> Result<Vec<String>> {
    let Some(urls) = std::env::var_os(VARIABLE) else { return Ok(Vec::new()) };
    let urls = urls.into_string().map_err(|_| Error::usage(format!("{VARIABLE} is not UTF-8 text")))?;
    Ok(urls.split_whitespace().map(str::to_owned).collect())
}

/// Returns the bucket in `$NIX_S3_CACHE` for a command line without one; none if it is not set.
///
/// # Errors
/// A usage error if the variable contains several URLs.
pub fn bucket_from_environment() -> Result<Option<String>> {
    let mut urls = urls_from_environment()?;
    match urls.len() {
        0 | 1 => Ok(urls.pop()),
        count => Err(Error::usage(format!("expected one bucket in {VARIABLE}, found {count}"))
            .with_hint("this command uses one bucket: pass it as an argument")),
    }
}

/// Returns the URL of the bucket for a command line without one: the value of `$NIX_S3_CACHE`. `before` is what would follow
/// the URL on the command line, for the message.
///
/// # Errors
/// A usage error if the variable is not set, is empty, or contains several URLs.
pub fn url_from_environment(before: &str) -> Result<String> {
    bucket_from_environment()?
        .ok_or_else(|| Error::usage(format!("no bucket given: pass s3://BUCKET{before} or set {VARIABLE}")))
}

/// Returns the URL of the bucket as an argument of a shell: as it is if it is one of `arguments`, and otherwise as the
/// variable that it comes from.
#[must_use]
pub fn shell_argument(arguments: &[String], url: &str) -> String {
    if arguments.iter().any(|argument| argument == url) { format!("'{url}'") } else { format!("\"${VARIABLE}\"") }
}

/// Checks a region, which becomes part of host names and of the scope of signatures. Services other than AWS have regions
/// such as `auto`, `garage` or `RegionOne`.
///
/// # Errors
/// A usage error for text that cannot be a region.
pub fn check_region(region: &str) -> Result {
    let is_valid = region.len() <= MAX_LABEL_LENGTH
        && region.starts_with(|c: char| c.is_ascii_alphanumeric())
        && region.ends_with(|c: char| c.is_ascii_alphanumeric())
        && region.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_'));
    if is_valid {
        Ok(())
    } else {
        Err(Error::usage(format!(
            "invalid region {region:?}: expected letters, digits, '-' and '_', such as eu-west-2"
        )))
    }
}

/// Checks the name of a profile: the AWS SDK ignores profiles of `~/.aws/config` with other characters.
fn check_profile(profile: &str) -> Result {
    if profile.chars().all(|c| c.is_ascii_alphanumeric() || "_-/.%@:+".contains(c)) {
        Ok(())
    } else {
        Err(Error::usage(format!("invalid profile {profile:?}: expected letters, digits and _-/.%@:+")))
    }
}

/// Returns whether this is `HOST[:PORT]`: a host name, an IPv4 address, or an IPv6 address in brackets.
#[must_use]
pub fn is_host_and_port(text: &str) -> bool {
    let (host, port) = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, "")) => return address.parse::<Ipv6Addr>().is_ok(),
        Some((address, rest)) => match rest.strip_prefix(':') {
            Some(port) => return address.parse::<Ipv6Addr>().is_ok() && is_port(port),
            None => return false,
        },
        None => text.split_once(':').map_or((text, None), |(host, port)| (host, Some(port))),
    };
    host.len() <= MAX_HOST_LENGTH && host.split('.').all(is_host_label) && port.is_none_or(is_port)
}

/// Returns whether this is a label of a host name (RFC 1035), in which underscores are allowed too.
#[must_use]
pub fn is_host_label(text: &str) -> bool {
    (1..=MAX_LABEL_LENGTH).contains(&text.len())
        && !text.starts_with('-')
        && !text.ends_with('-')
        && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_'))
}

fn is_port(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_digit()) && text.parse::<u16>().is_ok_and(|port| port > 0)
}

fn decode(text: &str) -> Result<String> {
    let decoded = percent_decode_str(text).decode_utf8();
    let decoded = decoded.map_err(|_| Error::usage(format!("{text:?} is not UTF-8 after percent-decoding")))?;
    if decoded.contains(|c: char| c.is_control()) {
        return Err(Error::usage(format!("{text:?} contains control characters")));
    }
    Ok(decoded.into_owned())
}

/// Returns the name in an ARN and the domain of the partition of AWS with this region.
#[must_use]
pub fn partition_of(region: &str) -> (&'static str, &'static str) {
    let partition = AWS_PARTITIONS.iter().find(|(prefix, ..)| region.starts_with(prefix));
    partition.map_or(AWS, |(_, name, domain)| (name, domain))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_of_the_manuals_are_accepted() {
        let aws = Location::parse("s3://example-nix-cache?profile=cache-upload&region=eu-west-2").unwrap();
        assert_eq!((aws.profile.as_deref(), aws.region.as_deref()), (Some("cache-upload"), Some("eu-west-2")));
        assert_eq!((aws.endpoint_url(), aws.path_style(), aws.is_aws()), (None, false, true));
        let minio = "s3://example-nix-cache?profile=cache-upload&scheme=https&endpoint=minio.example.com:9000";
        let minio = Location::parse(minio).unwrap();
        assert_eq!(minio.endpoint_url().as_deref(), Some("https://minio.example.com:9000"));
        assert!(minio.path_style() && !minio.is_aws());
        let plain =
            Location::parse("s3://cache/a/b/?scheme=http&endpoint=127.0.0.1:9000&want-mass-query=true").unwrap();
        assert_eq!((plain.key("nix-cache-info").as_str(), plain.plain_http), ("a/b/nix-cache-info", true));
        assert!(Location::parse("s3://my.cache").unwrap().path_style());
        assert!(!Location::parse("s3://my.cache?addressing-style=virtual").unwrap().path_style());
    }

    #[test]
    fn an_unknown_parameter_gets_the_most_similar_name_as_a_hint() {
        let error = Location::parse("s3://cache?regoin=x").unwrap_err();
        assert_eq!(error.message(), "invalid bucket URL \"s3://cache\": unknown parameter \"regoin\"");
        assert_eq!((error.hint(), error.exit_status()), (Some("a similar parameter is \"region\""), 2));
    }

    #[test]
    fn the_error_of_a_bucket_name_names_the_broken_rule() {
        for (name, rule) in [
            ("ab", "3 to 63 characters"),
            ("a/b", "must contain only"),
            ("-ab", "begin and end"),
            ("ab.", "begin and end"),
            ("a..b", "'..'"),
        ] {
            let error = check_bucket_name(name).unwrap_err();
            assert!(error.message().contains(rule) && error.is_usage(), "{name}: {error}");
        }
        check_bucket_name("my_Cache.example-1").unwrap();
    }

    /// Text of the URL becomes a host name, the scope of a signature, and a line of nix.conf.
    #[test]
    fn regions_profiles_and_endpoints_are_validated() {
        let (label, long) = ("a".repeat(63), "a".repeat(64));
        for region in ["eu-west-2", "auto", "garage", "RegionOne", "us_east", &label] {
            let url = format!("s3://cache?region={region}");
            assert_eq!(Location::parse(&url).unwrap().region.as_deref(), Some(region));
        }
        for region in ["a.evil.example", "eu-west-2/x", "a@b", "a:b", "-a", "a-", "é", "a%20b", "%2e", "a%23", &long] {
            let error = Location::parse(&format!("s3://cache?region={region}")).unwrap_err();
            assert!(error.is_usage() && error.message().contains("invalid region"), "{region}: {error}");
        }
        for profile in ["default", "cache-upload", "a.b/c@d:e+f_g"] {
            Location::parse(&format!("s3://cache?profile={profile}")).unwrap();
        }
        for profile in ["a b", "a]", "a;b", "é", "a#b", "a\"b"] {
            let error = Location::parse(&format!("s3://cache?profile={profile}")).unwrap_err();
            assert!(error.is_usage() && error.message().contains("invalid profile"), "{profile}: {error}");
        }
        for endpoint in ["h", "h:1", "minio.example.org:9000", "127.0.0.1:65535", "[::1]", "[2001:db8::1]:9000", "a_b"]
        {
            for form in [endpoint.to_owned(), format!("https://{endpoint}"), format!("http://{endpoint}/")] {
                let url = format!("s3://cache?endpoint={form}");
                assert_eq!(Location::parse(&url).unwrap().endpoint.as_deref(), Some(endpoint), "{url}");
            }
        }
        for endpoint in [
            "h:", "h:0", "h:65536", "h:+1", "h:x", ":1", ".", "a..b", "-a", "a-.b", "a b", "a%22b", "a;b", "a,b", "é",
            "a\\b", "::1", "[::1", "[h]", "[::1]x", "[::1]:", "h:1:2", "https:", "ftp://h", "https://", "u@h", "h/x",
            "h?x", &long,
        ] {
            let error = Location::parse(&format!("s3://cache?endpoint={endpoint}")).unwrap_err();
            assert!(error.is_usage() && error.message().contains("invalid endpoint"), "{endpoint}: {error}");
        }
    }

    #[test]
    fn an_invalid_url_is_a_usage_error() {
        for url in [
            "",
            "cache",
            "s3:",
            "s3://",
            "s3:///x",
            "s3://a",
            "s3://-ab",
            "s3://a..b",
            "s3://cache?x",
            "s3://cache?scheme=ftp",
            "s3://cache?endpoint=a/b",
            "s3://cache/../x",
            "s3://cache?region=%ff",
        ] {
            assert!(Location::parse(url).unwrap_err().is_usage(), "{url}");
        }
    }
}
