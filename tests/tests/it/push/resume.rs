//! Interrupted multipart uploads are resumed: existing parts are not sent again, and not trusted either.

use std::io::Write;
use std::process::Stdio;

use crate::fixtures::large_path::{LargePath, PART_SIZE};
use cache_tests::{Minio, Random, Scratch};

/// Writes an archive of one path with 40 MiB of incompressible data.
fn archive(scratch: &mut Scratch, seed: u64) -> Vec<u8> {
    LargePath::write(scratch, seed, 8 * PART_SIZE).archive
}

/// Pushes the beginning of an archive and kills the push. Its memory holds two parts, so at least three of the six that
/// it has read are in the bucket.
fn push_and_kill(scratch: &Scratch, url: &str, bytes: &[u8]) {
    let mut command = scratch.command("s3-push");
    command.args(["--no-nix", "--quiet", "--part-size", "5MiB", "--memory", "10MiB", url]).stdin(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.as_mut().unwrap().write_all(&bytes[..6 * PART_SIZE + (1 << 20)]).unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
}

fn push_again(scratch: &Scratch, url: &str) -> serde_json::Value {
    let report = scratch.sh(&format!("s3-push --no-nix --json --part-size 5MiB '{url}' < archive")).ok();
    let summary: serde_json::Value = serde_json::from_str(report.lines().last().unwrap()).unwrap();
    summary["summary"].clone()
}

#[test]
fn uploaded_parts_are_not_sent_again() {
    let Some(minio) = Minio::shared() else { return };
    let mut scratch = Scratch::new();
    minio.root().apply(&mut scratch);
    let url = minio.cache_url(&minio.make_bucket());
    let bytes = archive(&mut scratch, 1);
    push_and_kill(&scratch, &url, &bytes);
    let summary = push_again(&scratch, &url);
    assert!(summary["partsContinued"].as_u64().unwrap() >= 3, "{summary}");
    assert_eq!(summary["requests"].get("createMultipartUpload"), None, "{summary}");
    assert_eq!(summary["sent"], 1);
    scratch.env("C", &url);
    LargePath::assert_pulls(&scratch);
}

/// An upload with different bytes exists under the key of our NAR: each part is compared, and sent again if it differs.
#[test]
fn parts_with_different_bytes_are_replaced() {
    let Some(minio) = Minio::shared() else { return };
    let mut scratch = Scratch::new();
    minio.root().apply(&mut scratch);
    let url = minio.cache_url(&minio.make_bucket());
    let bytes = archive(&mut scratch, 2);
    let mut changed = bytes.clone();
    // Within the first part, after the headers of the members before the NAR.
    for byte in &mut changed[1 << 20..(1 << 20) + 100] {
        *byte ^= 0xff;
    }
    push_and_kill(&scratch, &url, &changed);
    let summary = push_again(&scratch, &url);
    assert_eq!(summary["sent"], 1, "{summary}");
    assert!(summary["requests"]["uploadPart"].as_u64().unwrap() >= 1, "{summary}");
    scratch.env("C", &url);
    LargePath::assert_pulls(&scratch);
}

#[test]
fn a_terminated_upload_of_any_bytes_is_aborted() {
    let Some(minio) = Minio::shared() else { return };
    let mut scratch = Scratch::new();
    minio.root().apply(&mut scratch);
    let bucket = minio.make_bucket();
    let mut command = scratch.command("s3-push");
    command.args(["--quiet", "--part-size", "5MiB", "--memory", "10MiB", "--key", "log/x", &minio.cache_url(&bucket)]);
    let mut child = command.stdin(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    child.stdin.as_mut().unwrap().write_all(&Random::new(3).bytes(6 * PART_SIZE)).unwrap();
    scratch.sh(&format!("kill -TERM {}", child.id())).ok();
    assert_eq!(child.wait().unwrap().code(), Some(2));
    assert_eq!(minio.mc(&["ls", "--recursive", "--incomplete", &format!("cache/{bucket}")]), b"");
    assert_eq!(minio.objects(&bucket), Vec::<String>::new());
}

/// The options of an upload are set when it is created and cannot be queried, so it is not resumed with others.
#[test]
fn an_upload_with_object_options_is_not_resumed() {
    let Some(minio) = Minio::shared() else { return };
    let mut scratch = Scratch::new();
    minio.root().apply(&mut scratch);
    let bucket = minio.make_bucket();
    let url = minio.cache_url(&bucket);
    let bytes = archive(&mut scratch, 4);
    push_and_kill(&scratch, &url, &bytes);
    scratch.sh(&format!("s3-push -q --no-nix --part-size 5MiB --cache-control immutable '{url}' < archive")).ok();
    let nar = minio.objects(&bucket).into_iter().find(|key| key.starts_with("nar/")).unwrap();
    let stat = String::from_utf8(minio.mc(&["stat", "--json", &format!("cache/{bucket}/{nar}")])).unwrap();
    assert!(stat.contains("immutable"), "{stat}");
}

#[test]
fn an_upload_that_cannot_be_resumed_is_aborted() {
    let Some(minio) = Minio::shared() else { return };
    let mut scratch = Scratch::new();
    minio.root().apply(&mut scratch);
    let bucket = minio.make_bucket();
    let key = format!("nar/{}.nar", "0".repeat(52));
    let url = minio.cache_url(&bucket);
    scratch.sh(&format!("head -c 20000000 /dev/urandom | s3-push -q --part-size 5MiB '{url}' --key {key}")).fails(1);
    assert_eq!(minio.mc(&["ls", "--recursive", "--incomplete", &format!("cache/{bucket}")]), b"");
    assert_eq!(minio.objects(&bucket), Vec::<String>::new());
}
