//! Conditional requests and the metadata of objects, with single requests. Our tools are asked only where they depend
//! on the answer.

use std::fmt::Write as _;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use md5::{Digest as _, Md5};

use crate::outcome::Outcome;
use crate::trial::Trial;

/// What our tools do without conditional writes.
const READ_BACK: &str = "s3-push finds that out when it updates a narinfo, and reads it back a second later, so that no \
                         signature is lost";
/// What follows for two first pushes.
const FIRST_PUSHES: &str = "if two processes publish the same path for the first time at the same moment with different \
                            signatures, push again, which adds what is missing";

pub(super) fn etag(trial: &Trial<'_>) -> Result<Outcome, String> {
    let put = trial.object("PUT", "log/etag", &[], b"text")?.success()?;
    let expected = hex(&Md5::digest(b"text"));
    let head = trial.object("HEAD", "log/etag", &[], b"")?.success()?;
    let etags = [put.header("etag"), head.header("etag")].map(|etag| etag.unwrap_or("none").to_owned());
    if etags.iter().all(|etag| etag.trim_matches('"') == expected) {
        return Ok(Outcome::ok());
    }
    Ok(Outcome::works_around(
        "the entity tag is not the MD5: parts of an interrupted upload are sent again, because they cannot be compared",
    ))
}

pub(super) fn put_if_none_match(trial: &Trial<'_>) -> Result<Outcome, String> {
    trial.object("PUT", "log/new", &[("If-None-Match", "*")], b"one")?;
    let second = trial.object("PUT", "log/new", &[("If-None-Match", "*")], b"two")?;
    let found = trial.object("GET", "log/new", &[], b"")?.success()?;
    Ok(match (second.status, found.body.as_slice()) {
        (412 | 409, b"one") => Outcome::ok(),
        (200..300, b"two") => Outcome::not_supported(format!("the condition is ignored: {FIRST_PUSHES}")),
        (501 | 400 | 405, _) => {
            Outcome::not_supported(format!("{}; s3-push writes without a condition", second.error()))
        }
        _ => Outcome::fails(format!("{}, and the object is {:?}", second.error(), found.text())),
    })
}

pub(super) fn put_if_match(trial: &Trial<'_>) -> Result<Outcome, String> {
    let first = trial.object("PUT", "log/match", &[], b"one")?.success()?;
    let etag = first.header("etag").ok_or("no ETag")?.to_owned();
    trial.object("PUT", "log/match", &[("If-Match", &etag)], b"two")?.success()?;
    let stale = trial.object("PUT", "log/match", &[("If-Match", &etag)], b"three")?;
    let found = trial.object("GET", "log/match", &[], b"")?.success()?;
    Ok(match (stale.status, found.body.as_slice()) {
        (412 | 409, b"two") => Outcome::ok(),
        (200..300, b"three") => Outcome::works_around(format!("the condition is ignored: {READ_BACK}")),
        (501 | 400 | 405, _) => {
            Outcome::not_supported(format!("{}; s3-push writes without a condition", stale.error()))
        }
        _ => Outcome::fails(format!("{}, and the object is {:?}", stale.error(), found.text())),
    })
}

pub(super) fn complete_if_none_match(trial: &Trial<'_>) -> Result<Outcome, String> {
    trial.object("PUT", "log/parts", &[], b"one")?.success()?;
    let created = trial.object("POST", "log/parts?uploads=", &[], b"")?.success()?;
    let id = created.elements("UploadId").into_iter().next().ok_or("no upload ID")?;
    let query = percent_encode(&id);
    let part = vec![b'x'; 5 << 20];
    let part = trial.object("PUT", &format!("log/parts?partNumber=1&uploadId={query}"), &[], &part)?.success()?;
    let etag = part.header("etag").ok_or("no ETag of the part")?;
    let body = format!(
        "<CompleteMultipartUpload xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"><Part><PartNumber>1</PartNumber>\
         <ETag>{etag}</ETag></Part></CompleteMultipartUpload>"
    );
    let target = format!("log/parts?uploadId={query}");
    let completed = trial.object("POST", &target, &[("If-None-Match", "*")], body.as_bytes())?;
    let replaced = trial.object("GET", "log/parts", &[], b"")?.success()?.body != b"one";
    Ok(match (completed.status, replaced) {
        (412 | 409, false) => Outcome::ok(),
        (304, false) => Outcome::works_around("304 instead of 412; s3-push then finds that the object is there"),
        (200..300, true) => Outcome::not_supported(
            "the condition is ignored: two pushes of one NAR write the same bytes twice, since its key is its FileHash",
        ),
        (501 | 400 | 405, false) => {
            Outcome::not_supported(format!("{}; s3-push writes without a condition", completed.error()))
        }
        _ => Outcome::fails(format!(
            "{}; the object was {}replaced",
            completed.error(),
            if replaced { "" } else { "not " }
        )),
    })
}

pub(super) fn get_missing(trial: &Trial<'_>) -> Result<Outcome, String> {
    let missing = trial.object("GET", "log/missing", &[("If-Match", "\"0123456789abcdef0123456789abcdef\"")], b"")?;
    Ok(match missing.status {
        404 => Outcome::ok(),
        412 => Outcome::works_around("412 instead of 404; s3-pull sends If-Match only for an object that it has read"),
        _ => Outcome::fails(missing.error()),
    })
}

pub(super) fn delete_objects(trial: &Trial<'_>) -> Result<Outcome, String> {
    trial.object("PUT", "log/a", &[], b"a")?.success()?;
    trial.object("PUT", "log/b", &[], b"b")?.success()?;
    let body = "<Delete xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"><Object><Key>log/a</Key></Object><Object><Key>log/b</Key></Object></Delete>";
    let md5 = BASE64_STANDARD.encode(Md5::digest(body.as_bytes()));
    let target = format!("/{}?delete=", trial.bucket);
    let deleted = trial.s3.send("POST", &target, &[("Content-MD5", &md5)], body.as_bytes())?;
    let remaining = trial.keys()?.len();
    Ok(match (deleted.status, remaining) {
        (200, 0) => Outcome::ok(),
        _ => Outcome::not_supported(format!("{}, and {remaining} of 2 objects remain", deleted.error())),
    })
}

pub(super) fn last_modified(trial: &Trial<'_>) -> Result<Outcome, String> {
    for number in 0..4 {
        trial.object("PUT", &format!("log/{number}"), &[], b"x")?.success()?;
    }
    let list = trial.s3.send("GET", &format!("/{}?list-type=2", trial.bucket), &[], b"")?.success()?;
    let times = list.elements("LastModified");
    if times.len() < 4 {
        return Ok(Outcome::works_around("LastModified is missing in listings; s3-push does not depend on it"));
    }
    let fraction = |time: &String| time.trim_end_matches('Z').split_once('.').map(|(_, digits)| digits.to_owned());
    if times.iter().filter_map(fraction).any(|digits| digits.chars().any(|digit| digit != '0')) {
        return Ok(Outcome::ok());
    }
    Ok(Outcome::works_around(
        "whole seconds; nothing that s3-push or s3-pull decides depends on a fraction of a second",
    ))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap_or_default();
        text
    })
}

/// Encodes an upload ID for a query.
fn percent_encode(text: &str) -> String {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    text.bytes()
        .map(|byte| if is_plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") })
        .collect()
}
