//! Where a bucket is: `s3://BUCKET[/PREFIX][?PARAMETERS]`, as Nix and Lix write it.
//!
//! Parameters are those of Nix's S3 binary cache store (manual, "S3 Binary Cache Store"). Those that matter to a client
//! only are accepted and not looked at.

use nar_pack::error::{Context, Error, Result};
use percent_encoding::percent_decode_str;

/// The environment variable that names the bucket when the command line does not.
pub const VARIABLE: &str = "NIX_S3_CACHE";
/// The region that Nix takes when none is given.
pub const DEFAULT_REGION: &str = "us-east-1";

/// Parameters that Nix or Lix knows and that do not change what these tools do.
const IGNORED: [&str; 24] = [
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
const USED: [&str; 5] = ["region", "profile", "endpoint", "scheme", "addressing-style"];

/// How the bucket's name goes into a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Addressing {
    /// Path style when an endpoint is given or the bucket has a dot, else virtual-host style.
    #[default]
    Auto,
    /// `https://endpoint/bucket/key`.
    Path,
    /// `https://bucket.endpoint/key`.
    Virtual,
}

/// A bucket, a prefix in it, and how to reach it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Location {
    /// The bucket's name.
    pub bucket: String,
    /// What every key begins with: empty, or ending in a slash.
    pub prefix: String,
    /// `region`, if given.
    pub region: Option<String>,
    /// `profile`, if given.
    pub profile: Option<String>,
    /// Host and port of a service that is not AWS, if given.
    pub endpoint: Option<String>,
    /// Whether requests go over plain HTTP.
    pub plain_http: bool,
    /// How the bucket's name goes into a request.
    pub addressing: Addressing,
}

impl Location {
    /// Parses an `s3://` URL.
    ///
    /// # Errors
    /// A usage failure for anything else; a parameter that nobody knows is named, with the nearest one that is known.
    pub fn parse(url: &str) -> Result<Self> {
        // Neither the parameters nor what stands before an @ is shown: people put passwords there.
        let place = url.split('?').next().unwrap_or_default();
        let shown = match place.rsplit_once('@') {
            Some((_, after)) => format!("s3://…@{after}"),
            None => place.to_owned(),
        };
        Self::parse_inner(url).context(|| format!("bucket {shown:?}"))
    }

    fn parse_inner(url: &str) -> Result<Self> {
        let usage = |why: &str| Error::failed(why);
        let rest = url.strip_prefix("s3://").ok_or_else(|| usage("expected s3://BUCKET[/PREFIX][?PARAMETERS]"))?;
        let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (bucket, prefix) = place.split_once('/').unwrap_or((place, ""));
        check_bucket_name(bucket)?;
        let prefix = decode(prefix.trim_matches('/'))?;
        if prefix.split('/').any(|part| matches!(part, "." | "..")) {
            return Err(usage("the prefix must not have . or .. in it"));
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
            let (key, value) = pair.split_once('=').ok_or_else(|| usage("expected PARAMETER=VALUE after the ?"))?;
            location.parameter(key, decode(value)?)?;
        }
        Ok(location)
    }

    fn parameter(&mut self, key: &str, value: String) -> Result {
        let one_of = |words: &str| Err(Error::failed(format!("{key}={value}: expected one of {words}")));
        match key {
            _ if value.is_empty() => {}
            "region" => self.region = Some(value),
            "profile" => self.profile = Some(value),
            "endpoint" => self.set_endpoint(&value)?,
            "scheme" => match value.to_ascii_lowercase().as_str() {
                "https" => self.plain_http = false,
                "http" => self.plain_http = true,
                _ => return one_of("https, http"),
            },
            "addressing-style" => match value.as_str() {
                "auto" => self.addressing = Addressing::Auto,
                "path" => self.addressing = Addressing::Path,
                "virtual" => self.addressing = Addressing::Virtual,
                _ => return one_of("auto, path, virtual"),
            },
            _ if IGNORED.contains(&key) => {}
            _ => {
                let known = USED.iter().chain(&IGNORED);
                let nearest = known.min_by_key(|name| distance(key, name)).unwrap_or(&"region");
                return Err(Error::failed(format!("unknown parameter {key:?}; did you mean {nearest:?}?")));
            }
        }
        Ok(())
    }

    /// Nix wants a host; a whole URL, as other tools want it, says the scheme too.
    fn set_endpoint(&mut self, value: &str) -> Result {
        let (scheme, host) = value.split_once("://").map_or((None, value), |(scheme, host)| (Some(scheme), host));
        match scheme {
            None => {}
            Some("https") => self.plain_http = false,
            Some("http") => self.plain_http = true,
            Some(_) => return Err(Error::failed("endpoint: expected HOST or HOST:PORT, and nothing else")),
        }
        let host = host.trim_end_matches('/');
        if host.is_empty() || host.contains(['/', '?', '#', '@', ' ']) {
            return Err(Error::failed("endpoint: expected HOST or HOST:PORT, and nothing else"));
        }
        self.endpoint = Some(host.to_owned());
        Ok(())
    }

    /// The URL of the endpoint, when one is given.
    #[must_use]
    pub fn endpoint_url(&self) -> Option<String> {
        let scheme = if self.plain_http { "http" } else { "https" };
        match &self.endpoint {
            Some(host) => Some(format!("{scheme}://{host}")),
            // AWS over plain HTTP must be said in full.
            None if self.plain_http => {
                Some(format!("http://s3.{}.amazonaws.com", self.region.as_deref().unwrap_or(DEFAULT_REGION)))
            }
            None => None,
        }
    }

    /// Whether requests are in path style.
    #[must_use]
    pub fn path_style(&self) -> bool {
        match self.addressing {
            Addressing::Path => true,
            Addressing::Virtual => false,
            Addressing::Auto => self.endpoint.is_some() || self.bucket.contains('.'),
        }
    }

    /// Whether the service is AWS itself.
    #[must_use]
    pub fn is_aws(&self) -> bool {
        self.endpoint.as_deref().is_none_or(|host| {
            let host = host.split(':').next().unwrap_or(host);
            host.ends_with(".amazonaws.com") || host.ends_with(".amazonaws.com.cn")
        })
    }

    /// The key of an object in the bucket.
    #[must_use]
    pub fn key(&self, object: &str) -> String {
        format!("{}{object}", self.prefix)
    }

    /// Bucket and key, for messages.
    #[must_use]
    pub fn shown(&self, object: &str) -> String {
        format!("s3://{}/{}{object}", self.bucket, self.prefix)
    }
}

/// Checks the name of a bucket, as AWS restricts it: 3 to 63 lower-case letters, digits, dots and dashes, beginning and
/// ending with a letter or digit. Older services allow underscores and capitals too.
///
/// # Errors
/// A usage failure.
pub fn check_bucket_name(bucket: &str) -> Result {
    let inner = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
    let outer = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    let good = (3..=63).contains(&bucket.len())
        && bucket.chars().all(inner)
        && outer(bucket.chars().next())
        && outer(bucket.chars().last())
        && !bucket.contains("..");
    let shown = bucket.rsplit('@').next().unwrap_or_default();
    if good { Ok(()) } else { Err(Error::failed(format!("{shown:?} is not the name of a bucket"))) }
}

fn decode(text: &str) -> Result<String> {
    let decoded = percent_decode_str(text).decode_utf8();
    let decoded = decoded.map_err(|_| Error::failed(format!("{text:?} is not UTF-8 when decoded")))?;
    if decoded.contains(|c: char| c.is_control()) {
        return Err(Error::failed(format!("{text:?} has control characters in it")));
    }
    Ok(decoded.into_owned())
}

/// Edit distance, for the nearest name.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.bytes().enumerate() {
            let change = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = change.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_urls_of_the_manuals() {
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
    fn a_parameter_that_nobody_knows_gets_the_nearest_name() {
        let failure = Location::parse("s3://cache?regoin=x").unwrap_err();
        assert!(failure.message().contains("\"region\"") && failure.exit_code() == 2, "{failure}");
    }

    #[test]
    fn what_is_no_bucket_is_a_usage_error() {
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
            assert_eq!(Location::parse(url).unwrap_err().exit_code(), 2, "{url}");
        }
    }
}
