//! The bucket that a document applies to, from the argument or from `$NIX_S3_CACHE`: a URL `s3://BUCKET[/PREFIX]` or the
//! bare name of a bucket.

use std::net::Ipv4Addr;

use nar_pack::error::{Context as _, Error, Result};
use s3_push::remote::location::{Location, VARIABLE, bucket_from_environment, check_bucket_name};

/// A bucket and a prefix in it.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Bucket {
    /// The name of the bucket.
    pub name: String,
    /// The prefix of its keys: empty, or ending in a slash.
    pub prefix: String,
    /// The AWS region, if the URL contains one and the service is AWS.
    pub region: Option<String>,
}

impl Bucket {
    /// Parses a URL or a bare name.
    ///
    /// # Errors
    /// A usage error for an invalid URL or name.
    pub fn parse(text: &str) -> Result<Self> {
        let bucket = if text.contains("://") {
            let location = Location::parse(text)?;
            let region = location.region.clone().filter(|_| location.is_aws());
            Self { name: location.bucket, prefix: location.prefix, region }
        } else {
            check_bucket_name(text).with_hint(|| "pass s3://BUCKET[/PREFIX] or the name of a bucket")?;
            Self { name: text.to_owned(), ..Self::default() }
        };
        // Amazon S3 user guide, "General purpose bucket naming rules".
        if bucket.name.parse::<Ipv4Addr>().is_ok() {
            return Err(Error::usage(format!(
                "invalid bucket name {:?}: it must not be formatted as an IP address",
                bucket.name
            )));
        }
        Ok(bucket)
    }
}

/// Returns the bucket argument, or without it the value of `$NIX_S3_CACHE`, if it is not empty.
///
/// # Errors
/// A usage error if the variable contains several URLs.
pub fn bucket_argument(argument: Option<&str>) -> Result<Option<String>> {
    argument.map_or_else(bucket_from_environment, |text| Ok(Some(text.to_owned())))
}

/// Returns the bucket argument like [`bucket_argument`].
///
/// # Errors
/// A usage error if there is none.
pub fn require_bucket_argument(argument: Option<&str>) -> Result<String> {
    bucket_argument(argument)?
        .filter(|text| !text.is_empty())
        .ok_or_else(|| Error::usage(format!("no bucket given: pass s3://BUCKET or set {VARIABLE}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_is_a_url_or_a_bare_name() {
        let parse = |text: &str| {
            let bucket = Bucket::parse(text).unwrap();
            (bucket.name, bucket.prefix)
        };
        let expected = |bucket: &str, prefix: &str| (bucket.to_owned(), prefix.to_owned());
        assert_eq!(parse("my-cache"), expected("my-cache", ""));
        assert_eq!(parse("s3://my-cache"), expected("my-cache", ""));
        assert_eq!(parse("s3://my-cache/a/b/?region=eu-west-2&profile=cache-upload"), expected("my-cache", "a/b/"));
        assert_eq!(parse("s3://my.cache?scheme=http&endpoint=127.0.0.1:9000"), expected("my.cache", ""));
    }

    #[test]
    fn an_invalid_bucket_is_an_error_in_one_line() {
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
        assert_eq!(require_bucket_argument(Some("")).unwrap_err().exit_status(), 2);
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
            let error = Bucket::parse(text).unwrap_err();
            assert_eq!(error.exit_status(), 2, "{text:?}: {error}");
            assert!(!error.to_string().contains(char::is_control), "{text:?}: {error}");
        }
    }
}
