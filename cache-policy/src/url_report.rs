//! `--check-url`: what an `s3://` URL means to Nix, Lix and these tools, and whether all their versions read it.

use std::fmt;

use nar_pack::error::{Error, Result};
use s3_push::remote::location::{DEFAULT_REGION, Location};

use crate::nix_conf::url::{display_url, https_url, portable_url};

/// The explanation of a URL.
#[derive(Debug, PartialEq, Eq)]
pub struct UrlReport {
    lines: Vec<(&'static str, String)>,
    /// What some clients cannot read.
    problems: Vec<&'static str>,
    /// The URL in the form that all clients read.
    portable: String,
    display_url: String,
}

impl UrlReport {
    /// Explains an `s3://` URL.
    ///
    /// # Errors
    /// A usage error for any other URL, and for an invalid one.
    pub fn new(url: &str) -> Result<Self> {
        let location = Location::parse(url)?;
        let portable = portable_url(url, &location);
        let or_none = |value: Option<String>| value.unwrap_or_else(|| "none".to_owned());
        let lines = vec![
            ("bucket", location.bucket.clone()),
            ("prefix", or_none(Some(location.prefix.clone()).filter(|prefix| !prefix.is_empty()))),
            ("region", location.region.clone().unwrap_or_else(|| format!("{DEFAULT_REGION} (default)"))),
            ("endpoint", location.endpoint_url().unwrap_or_else(|| "that of AWS in the region".to_owned())),
            ("profile", or_none(location.profile.clone())),
            ("objects", format!("{}/…", https_url(&location))),
            ("portable", portable.clone()),
        ];
        Ok(Self { lines, problems: problems(url), portable, display_url: display_url(url) })
    }

    /// Checks that all clients read the URL.
    ///
    /// # Errors
    /// Refuses a URL that some clients cannot read, with the reason and the portable URL as a hint.
    pub fn require_portable(&self) -> Result {
        if self.problems.is_empty() {
            return Ok(());
        }
        let error = Error::refused(format!("{:?} is not portable: {}", self.display_url, self.problems.join(", and ")));
        Err(error.with_hint(format!("use {}", self.portable)))
    }
}

impl fmt::Display for UrlReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.lines.iter().try_for_each(|(name, value)| writeln!(f, "{name:9} {value}"))
    }
}

/// Returns what some clients cannot read. The last value of a parameter counts.
fn problems(url: &str) -> Vec<&'static str> {
    let query = url.split_once('?').map_or("", |(_, query)| query);
    let last = |name: &str| {
        let mut parameters = query.split('&').rev().filter_map(|pair| pair.split_once('='));
        parameters.find(|(key, _)| *key == name).map(|(_, value)| value)
    };
    let mut problems = Vec::new();
    let has_scheme = |endpoint: &str| {
        let endpoint = endpoint.to_ascii_lowercase();
        ["://", "%3a//", "%3a%2f%2f", ":%2f%2f"].iter().any(|separator| endpoint.contains(separator))
    };
    if last("endpoint").is_some_and(|endpoint| !endpoint.is_empty() && !has_scheme(endpoint)) {
        problems.push("its endpoint has no scheme, and Nix 2.33 to 2.35.2 takes the host for one");
    }
    if last("scheme").is_some_and(|scheme| !scheme.is_empty()) {
        problems.push("it has the parameter scheme, which later versions of Nix deprecate");
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_portable_url_is_explained_without_an_error() {
        let report = UrlReport::new("s3://my-cache/a?endpoint=https://minio.example.org:9000&region=garage").unwrap();
        assert_eq!(
            report.to_string(),
            "bucket    my-cache\n\
             prefix    a/\n\
             region    garage\n\
             endpoint  https://minio.example.org:9000\n\
             profile   none\n\
             objects   https://minio.example.org:9000/my-cache/a/…\n\
             portable  s3://my-cache/a?endpoint=https://minio.example.org:9000&region=garage\n"
        );
        report.require_portable().unwrap();
        let aws = UrlReport::new("s3://my-cache").unwrap();
        assert!(aws.to_string().contains("region    us-east-1 (default)\n"), "{aws}");
        aws.require_portable().unwrap();
        for url in ["s3://my-cache?endpoint=https%3A%2F%2Fh", "s3://my-cache?endpoint=&scheme="] {
            UrlReport::new(url).unwrap().require_portable().unwrap();
        }
    }

    #[test]
    fn the_error_of_a_url_that_is_not_portable_names_the_reason_and_the_portable_url() {
        for (url, reason, portable) in [
            ("s3://my-cache?endpoint=h:9000", "2.33 to 2.35.2", "s3://my-cache?endpoint=https://h:9000"),
            ("s3://my-cache?endpoint=h&scheme=http", "2.33 to 2.35.2", "s3://my-cache?endpoint=http://h"),
            ("s3://my-cache?scheme=http&endpoint=h", "parameter scheme", "s3://my-cache?endpoint=http://h"),
            ("s3://my-cache?scheme=https", "parameter scheme", "s3://my-cache"),
            (
                "s3://my-cache?scheme=http&region=cn-north-1",
                "parameter scheme",
                "s3://my-cache?endpoint=http://s3.cn-north-1.amazonaws.com.cn&region=cn-north-1",
            ),
        ] {
            let error = UrlReport::new(url).unwrap().require_portable().unwrap_err();
            assert!(error.is_refusal() && error.message().contains(reason), "{url}: {error}");
            assert_eq!(error.hint(), Some(format!("use {portable}").as_str()), "{url}");
        }
        for url in ["https://cache.example.org", "s3://my-cache?endpoint=a;b", "s3://a"] {
            assert!(UrlReport::new(url).unwrap_err().is_usage(), "{url}");
        }
    }
}
