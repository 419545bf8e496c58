//! The policy documents of a bucket that serves as a binary cache; the library behind `cache-policy`.
//!
//! | module | owns |
//! | --- | --- |
//! | [`cli`] | the command line |
//! | [`documents`] | the documents, as types that serialise to what S3 and IAM read |

pub mod cli;
pub mod documents;

use std::env;
use std::io::Write as _;

use nar_pack::stage::{self, Failure, Outcome};
use s3_push::location::{Location, VARIABLE, check_bucket_name};
use serde::Serialize;

use cli::Cli;
use documents::{BucketPolicy, IamPolicy, Partition, Place, Principal, Readers};

/// Runs `cache-policy`.
///
/// # Errors
/// See the exit codes in [`stage`].
pub fn run(cli: &Cli) -> Outcome {
    let (bucket, prefix) = bucket(cli.bucket.as_deref())?;
    let principals: Vec<Principal> = cli.principal.iter().map(|text| Principal::parse(text)).collect::<Outcome<_>>()?;
    let place = Place::new(Partition::of(&principals)?, &bucket, &prefix)?;
    if cli.upload {
        return print(&IamPolicy::upload(&place));
    }
    print(&BucketPolicy::read(&place, Readers::new(principals)))
}

/// The bucket's name, and the prefix of its keys: empty, or ending in a slash.
fn bucket(argument: Option<&str>) -> Outcome<(String, String)> {
    let text = match (argument, env::var_os(VARIABLE)) {
        (Some(text), _) => text.to_owned(),
        (None, Some(text)) => {
            text.into_string().map_err(|_| Failure::failed(format!("${VARIABLE} is not UTF-8 text")))?
        }
        (None, None) => String::new(),
    };
    if text.is_empty() {
        let message = format!("say which bucket: s3://BUCKET, its bare name, or set ${VARIABLE} (try --help)");
        return Err(Failure::failed(message));
    }
    if text.contains("://") {
        let location = Location::parse(&text)?;
        return Ok((location.bucket, location.prefix));
    }
    match check_bucket_name(&text) {
        Ok(()) => Ok((text, String::new())),
        Err(failure) => {
            Err(Failure::refused(format!("{}; expected s3://BUCKET[/PREFIX] or a bare name", failure.message())))
        }
    }
}

/// Writes a document and one newline.
fn print(document: &impl Serialize) -> Outcome {
    let mut text = serde_json::to_vec_pretty(document).map_err(Failure::failed)?;
    text.push(b'\n');
    let mut out = stage::stdout(None)?;
    out.write_all(&text)?;
    out.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_is_a_url_or_a_bare_name() {
        let of = |text: &str| bucket(Some(text)).unwrap();
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
            long.as_str(),
        ];
        let urls = [
            "",
            "https://my-cache.s3.amazonaws.com",
            "s3://",
            "s3:///prefix",
            "s3://my-cache?regoin=x",
            "s3://my-cache/%0a",
            "s3://my-cache/../other",
        ];
        for (texts, code) in [(&bare[..], 1), (&urls[..], 2)] {
            for text in texts {
                let failure = bucket(Some(text)).unwrap_err();
                assert_eq!(failure.exit_code(), code, "{text:?}: {failure}");
                assert!(!failure.to_string().contains(char::is_control), "{text:?}: {failure}");
            }
        }
    }
}
