//! The URL of a cache. Two URLs are the same cache if they differ only in parameters or in a trailing slash. Everyone
//! can read nix.conf, so a URL with a password or a token is rejected and never printed.

use nar_pack::error::{Error, Result};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use s3_push::remote::location::{Addressing, Location, is_host_and_port};

/// The characters that are percent-encoded in the path of a URL. S3 decodes a plus sign to a space.
const ENCODED_IN_PATH: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~').remove(b'/');

/// Whether two URLs are of the same cache.
pub(super) fn is_same_cache(one: &str, other: &str) -> bool {
    cache_identity(one) == cache_identity(other)
}

/// Returns the part of a URL that identifies the cache: without parameters such as `priority` and without a trailing
/// slash. For a bucket it includes the endpoint.
pub(super) fn cache_identity(url: &str) -> String {
    if let Ok(location) = Location::parse(url) {
        let bucket = format!("s3://{}/{}", location.bucket, utf8_percent_encode(&location.prefix, ENCODED_IN_PATH));
        let endpoint = location.endpoint.map(|endpoint| format!("?endpoint={}", endpoint.to_ascii_lowercase()));
        return format!("{}{}", bucket.trim_end_matches('/'), endpoint.unwrap_or_default());
    }
    let url = without_parameters(url).trim_end_matches('/');
    match url.split_once("://") {
        Some((scheme, rest)) => {
            let (host, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
            format!("{}://{}{path}", scheme.to_ascii_lowercase(), host.to_ascii_lowercase())
        }
        None => url.to_owned(),
    }
}

/// Returns the `s3://` URL in the form that all versions of Nix and Lix read: the endpoint has a scheme, and there is no
/// parameter `scheme`. Nix 2.33 to 2.35.2 takes the host of `endpoint=HOST:PORT` for a scheme, and later versions deprecate
/// `scheme`. All other parameters are unchanged.
pub(crate) fn portable_url(url: &str, location: &Location) -> String {
    let Some((address, query)) = url.split_once('?') else { return url.to_owned() };
    let mut endpoint = location.endpoint_url().map(|url| format!("endpoint={url}"));
    let mut parameters: Vec<String> = Vec::new();
    for parameter in query.split('&').filter(|parameter| !parameter.is_empty()) {
        match parameter.split_once('=').map_or(parameter, |(name, _)| name) {
            "scheme" | "endpoint" => parameters.extend(endpoint.take()),
            _ => parameters.push(parameter.to_owned()),
        }
    }
    if parameters.is_empty() { address.to_owned() } else { format!("{address}?{}", parameters.join("&")) }
}

/// Returns a URL for messages, without credentials and parameters.
pub(crate) fn display_url(url: &str) -> String {
    let url = without_parameters(url);
    url.rfind('@').map_or_else(|| url.to_owned(), |at| format!("…{}", &url[at..]))
}

pub(super) fn without_parameters(url: &str) -> &str {
    url.split('?').next().unwrap_or_default()
}

/// Rejects an `http(s)://` URL that may contain a secret: credentials, or a parameter that Nix does not know.
pub(super) fn require_no_secrets(url: &str) -> Result {
    let invalid = |reason: &str| {
        let error = Error::usage(format!("invalid cache URL {:?}: {reason}", display_url(url)));
        error.with_hint("put credentials in the netrc file that the netrc-file setting of nix.conf names")
    };
    let (address, query) = url.split_once('?').unwrap_or((url, ""));
    let authority = address.split_once("://").map_or(address, |(_, rest)| rest).split('/').next().unwrap_or_default();
    if !authority.contains('@') && !is_host_and_port(authority) {
        return Err(Error::usage(format!("invalid cache URL {:?}: expected HOST[:PORT] after ://", display_url(url))));
    }
    if address.contains('@') {
        return Err(invalid("it must not contain credentials, because every user can read nix.conf"));
    }
    // Every kind of binary cache has the parameters of an S3 cache.
    if Location::parse(&format!("s3://bucket?{query}")).is_err() {
        return Err(invalid(
            "it has a parameter that Nix does not know; Nix sends no parameters, and every user can read nix.conf",
        ));
    }
    Ok(())
}

/// Returns the `s3://` URL with only those parameters that locate the bucket; others concern only one user.
pub(super) fn public_url(url: &str, location: &Location) -> String {
    let style = match location.addressing {
        Addressing::Auto => None,
        Addressing::Path => Some("path".to_owned()),
        Addressing::Virtual => Some("virtual".to_owned()),
    };
    let parameters =
        [("region", location.region.clone()), ("endpoint", location.endpoint_url()), ("addressing-style", style)];
    let parameters = parameters.into_iter().filter_map(|(name, value)| Some(format!("{name}={}", value?)));
    let parameters: Vec<String> = parameters.collect();
    let address = without_parameters(url);
    if parameters.is_empty() { address.to_owned() } else { format!("{address}?{}", parameters.join("&")) }
}

/// Returns the HTTPS URL of a bucket, in path style or virtual-host style as in requests to it.
pub(crate) fn https_url(location: &Location) -> String {
    let scheme = if location.plain_http { "http" } else { "https" };
    let host = location.endpoint.clone().unwrap_or_else(|| location.aws_host());
    let path_style = location.path_style();
    let bucket = if path_style { format!("{host}/{}", location.bucket) } else { format!("{}.{host}", location.bucket) };
    below_prefix(&format!("{scheme}://{bucket}"), location)
}

/// Returns the URL of a bucket that `host` serves, such as that of a CDN.
///
/// # Errors
/// A usage error if `host` is not `HOST[:PORT]`.
pub(super) fn url_at_host(host: &str, location: &Location) -> Result<String> {
    if !is_host_and_port(host) {
        let error = Error::usage(format!("invalid host {host:?} of --https: expected HOST[:PORT]"));
        return Err(error.with_hint("pass the name of the host alone, such as --https cache.example.org"));
    }
    Ok(below_prefix(&format!("https://{host}"), location))
}

/// Appends the prefix to the URL of a bucket.
fn below_prefix(url: &str, location: &Location) -> String {
    let prefix = utf8_percent_encode(location.prefix.trim_end_matches('/'), ENCODED_IN_PATH);
    format!("{url}/{prefix}").trim_end_matches('/').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn https_urls_of_buckets() {
        for (url, expected) in [
            ("s3://my-cache?region=eu-west-2", "https://my-cache.s3.eu-west-2.amazonaws.com"),
            ("s3://my-cache/a/b", "https://my-cache.s3.us-east-1.amazonaws.com/a/b"),
            ("s3://my.cache?region=eu-west-2", "https://s3.eu-west-2.amazonaws.com/my.cache"),
            ("s3://my-cache?region=cn-north-1", "https://my-cache.s3.cn-north-1.amazonaws.com.cn"),
            ("s3://my-cache/x?endpoint=minio.example.org:9000", "https://minio.example.org:9000/my-cache/x"),
            ("s3://my-cache?endpoint=127.0.0.1:9000&scheme=http", "http://127.0.0.1:9000/my-cache"),
            ("s3://my-cache?endpoint=s3.example.org&addressing-style=virtual", "https://my-cache.s3.example.org"),
        ] {
            assert_eq!(https_url(&Location::parse(url).unwrap()), expected, "{url}");
        }
    }

    #[test]
    fn an_endpoint_is_written_with_its_scheme() {
        for (url, expected) in [
            ("s3://my-cache?endpoint=h:9000", "s3://my-cache?endpoint=https://h:9000"),
            ("s3://my-cache/a?scheme=http&endpoint=h:9000&region=x", "s3://my-cache/a?endpoint=http://h:9000&region=x"),
            ("s3://my-cache?endpoint=https://h/&scheme=http", "s3://my-cache?endpoint=http://h"),
            ("s3://my-cache?endpoint=https%3A%2F%2Fh", "s3://my-cache?endpoint=https://h"),
            ("s3://my-cache?endpoint=a&endpoint=b&priority=3", "s3://my-cache?endpoint=https://b&priority=3"),
            ("s3://my-cache?scheme=http", "s3://my-cache?endpoint=http://s3.us-east-1.amazonaws.com"),
            ("s3://my-cache?scheme=https&endpoint=", "s3://my-cache"),
            ("s3://my-cache?region=eu-west-2&profile=x", "s3://my-cache?region=eu-west-2&profile=x"),
            ("s3://my-cache", "s3://my-cache"),
        ] {
            let Ok(location) = Location::parse(url) else { panic!("{url}") };
            let portable = portable_url(url, &location);
            assert_eq!(portable, expected, "{url}");
            let again = Location::parse(&portable).unwrap();
            assert_eq!((again.endpoint_url(), portable_url(&portable, &again)), (location.endpoint_url(), portable));
        }
    }

    #[test]
    fn a_public_url_locates_the_bucket_and_tells_nothing_else() {
        for (url, expected) in [
            (
                "s3://my-cache/a?profile=admin&region=eu-west-2&secret-key=/k&compression=xz",
                "s3://my-cache/a?region=eu-west-2",
            ),
            ("s3://my-cache?endpoint=h:9000&scheme=http", "s3://my-cache?endpoint=http://h:9000"),
            (
                "s3://my-cache?scheme=http&addressing-style=path",
                "s3://my-cache?endpoint=http://s3.us-east-1.amazonaws.com&addressing-style=path",
            ),
            ("s3://my-cache?profile=x", "s3://my-cache"),
            ("s3://my-cache", "s3://my-cache"),
        ] {
            let location = Location::parse(url).unwrap();
            assert_eq!(public_url(url, &location), expected, "{url}");
            assert_eq!(https_url(&Location::parse(expected).unwrap()), https_url(&location), "{url}");
        }
    }

    #[test]
    fn a_host_serves_the_objects_below_the_prefix() {
        let at = |host: &str, url: &str| url_at_host(host, &Location::parse(url).unwrap());
        assert_eq!(at("cache.example.org", "s3://my-cache").unwrap(), "https://cache.example.org");
        assert_eq!(at("[::1]:8443", "s3://my-cache/a/b c?region=x").unwrap(), "https://[::1]:8443/a/b%20c");
        for host in ["", "https://h", "h/a", "user@h", "h?x", "<b>", "h\n"] {
            assert!(at(host, "s3://my-cache").unwrap_err().is_usage(), "{host}");
        }
    }

    #[test]
    fn urls_that_differ_in_parameters_or_a_slash_are_the_same_cache() {
        for same in [
            &["https://h/c", "https://h/c/", "https://h/c?priority=10", "https://h/c/?trusted=1", "HTTPS://H/c"][..],
            &[
                "s3://bucket/p",
                "s3://bucket/p/",
                "s3://bucket/p?region=eu-west-2",
                "s3://bucket/p?priority=3&profile=x",
            ],
            &["s3://bucket?endpoint=h", "s3://bucket/?endpoint=https://H/&region=auto"],
        ] {
            for one in same {
                for other in same {
                    assert!(is_same_cache(one, other), "{one} {other}");
                }
            }
        }
        for (one, other) in [
            ("https://h/c", "https://h/C"),
            ("https://h/c", "http://h/c"),
            ("s3://bucket/p", "s3://bucket/q"),
            ("s3://bucket", "s3://bucket?endpoint=h"),
            ("s3://bucket", "https://bucket"),
        ] {
            assert!(!is_same_cache(one, other), "{one} {other}");
        }
    }
}
