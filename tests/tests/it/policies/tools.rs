//! The permissions that the tools need: without any one of them a command fails and names it.

use super::document;
use crate::fixtures::bucket::{Fields, narinfo_keys, snapshot};
use crate::fixtures::closure_fixture;
use crate::fixtures::closure_fixture::Fixture;
use crate::fixtures::s3_calls::S3Client;
use cache_tests::{Credentials, Minio, Random, Versitygw};
use serde_json::Value;
use std::fs;

/// Returns the document without one action.
fn without(document: &str, action: &str) -> String {
    let mut document: Value = serde_json::from_str(document).unwrap();
    let mut found = false;
    let statements = document["Statement"].as_array_mut().unwrap();
    for statement in statements.iter_mut() {
        let actions = statement["Action"].as_array_mut().unwrap();
        let before = actions.len();
        actions.retain(|other| other != action);
        found |= actions.len() < before;
    }
    statements.retain(|statement| !statement["Action"].as_array().unwrap().is_empty());
    assert!(found, "{action} is not in the document");
    document.to_string()
}

/// Creates a fixture with a closure and a large path to push, and a user whose upload policy lacks `action`.
fn pusher_without(minio: &Minio, action: Option<&str>) -> (Fixture, String) {
    let mut fixture = Fixture::new();
    let bucket = minio.make_bucket();
    let upload = document(&fixture.scratch, &format!("--upload --minimal {bucket}"));
    let user = minio.add_user(&action.map_or(upload.clone(), |action| without(&upload, action)));
    user.apply(&mut fixture.scratch);
    fixture.scratch.env("C", minio.cache_url(&bucket));
    let large = cache_tests::store_path("large", cache_tests::random_seed());
    fs::write(
        closure_fixture::path_in_root(&fixture.path("root"), &large),
        Random::new(cache_tests::random_seed()).bytes(11 << 20),
    )
    .unwrap();
    fixture.scratch.env("LARGE", &large);
    fixture
        .scratch
        .sh("nar-pack --root root --no-nix --export $LARGE | narinfo-gen --no-nix --archive \
            | cache-sign -k key.sec > large")
        .ok();
    (fixture, bucket)
}

const LARGE: &str = "s3-push --no-nix --json --part-size 5MiB --memory 16MiB \"$C\" < large";

/// Pushes an archive whose NAR does not match its narinfo, so that the upload is aborted.
const DAMAGED: &str = "cp large bad; printf 'xxxxxxxx' | dd of=bad bs=1 seek=8000000 conv=notrunc status=none; \
     s3-push --no-nix --part-size 5MiB --memory 16MiB \"$C\" < bad";

const ROTATE: &str = "s3-pull --narinfo --all \"$C\" | cache-sign -k key.sec | s3-push \"$C\"";

/// Removes each permission from the upload policy and runs the command that needs it.
#[test]
fn a_push_needs_every_permission_and_names_a_missing_one() {
    let Some(minio) = Minio::shared() else { return };
    let (fixture, bucket) = pusher_without(minio, None);
    for script in [closure_fixture::PUBLISH, LARGE, ROTATE, "s3-pull -r --root out \"$C\" \"$TOP\""] {
        let output = fixture.scratch.sh(script);
        output.ok();
        assert!(!output.stderr.contains("s3:"), "no permission is missing: {}", output.stderr);
    }
    fixture.scratch.sh(DAMAGED).fails(1);
    assert_eq!(narinfo_keys(&snapshot(minio, &bucket)).len(), 4);
    let cases: [(&str, &str, i32); 6] = [
        ("s3:PutObject", closure_fixture::PUBLISH, 2),
        ("s3:GetObject", "s3-pull -r --root out \"$C\" \"$TOP\"", 1),
        ("s3:ListBucket", "s3-pull --narinfo --all \"$C\" > narinfos", 2),
        ("s3:AbortMultipartUpload", DAMAGED, 1),
        // Without these two, more bytes are sent.
        ("s3:ListBucketMultipartUploads", LARGE, 0),
        ("s3:ListMultipartUploadParts", LARGE, 0),
    ];
    println!("\n{:30} {:60} status, message", "without", "command");
    for (action, script, status) in cases {
        let (fixture, bucket) = pusher_without(minio, Some(action));
        if action == "s3:ListMultipartUploadParts" {
            // An upload of the same NAR exists.
            let archive = fixture.scratch.sh("tar xf large --wildcards '*.narinfo' -O").ok();
            let key = Fields::parse(archive.as_bytes()).one("URL").to_owned();
            S3Client::new(&minio.endpoint(), Some(&minio.root())).create_multipart_upload(&bucket, &key).unwrap();
        }
        let output = fixture.scratch.sh(script);
        let named = output.stderr.lines().find(|line| line.contains(action)).unwrap_or("-");
        let shown: String = script.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(60).collect();
        println!("{action:30} {shown:60} {}, {named}", output.status);
        assert_eq!(output.status, status, "{action}: {}", output.stderr);
        let whole_word = |line: &str| {
            line.match_indices(action)
                .any(|(at, _)| !line[at + action.len()..].starts_with(|c: char| c.is_ascii_alphanumeric()))
        };
        assert!(output.stderr.lines().any(whole_word), "{action} is not named: {}", output.stderr);
    }
}

/// A pull needs one permission, over S3 and over HTTP, and names it if it is missing.
#[test]
fn a_pull_needs_only_get_object() {
    let Some(minio) = Minio::shared() else { return };
    let (mut fixture, bucket) = pusher_without(minio, None);
    fixture.scratch.sh(closure_fixture::PUBLISH).ok();
    let read = document(&fixture.scratch, &format!("--read-only --minimal --identity {bucket}"));
    assert_eq!(read.matches("s3:").count(), 1 + read.matches("arn:aws:s3:").count(), "one action: {read}");
    minio.add_user(&read).apply(&mut fixture.scratch);
    fixture.scratch.sh("s3-pull -r --root out \"$C\" \"$TOP\"").ok();
    fixture.assert_trees("out");
    let http = format!("s3-pull -r --root web '{}' \"$TOP\"", minio.http_url(&bucket));
    let stderr = fixture.scratch.sh(&http).fails(1);
    assert!(stderr.contains("s3:GetObject"), "{stderr}");
    minio.set_bucket_policy(&bucket, &document(&fixture.scratch, &format!("--read-only {bucket}")));
    fixture.scratch.sh(&http).ok();
    fixture.assert_trees("web");
    let stderr = fixture.scratch.sh("s3-pull --list --all \"$C\"").fails(2);
    assert!(stderr.contains("s3:ListBucket"), "{stderr}");
}

/// Push and pull on versitygw, with bucket policies that name the user.
#[test]
fn the_tools_work_on_versitygw_with_these_policies() {
    let Some(gateway) = Versitygw::shared() else { return };
    let mut fixture = Fixture::new();
    let owner = S3Client::new(&gateway.endpoint(), Some(&gateway.root()));
    let (user, bucket): (Credentials, String) = (gateway.add_user(), owner.make_bucket());
    fixture.scratch.env("C", format!("s3://{bucket}?endpoint=http://{}&region=us-east-1", gateway.endpoint()));
    user.apply(&mut fixture.scratch);
    let stderr = fixture.scratch.sh(closure_fixture::PUBLISH).fails(2);
    assert!(stderr.contains("s3:PutObject"), "{stderr}");
    let upload = format!("--upload --principal-key-id {} {bucket}", user.access_key);
    owner.set_policy(&bucket, &document(&fixture.scratch, &upload)).unwrap();
    fixture.scratch.sh(closure_fixture::PUBLISH).ok();
    fixture.scratch.sh("s3-pull -r --root out \"$C\" \"$TOP\"").ok();
    fixture.assert_trees("out");
    owner.set_policy(&bucket, &document(&fixture.scratch, &format!("--read-only {bucket}"))).unwrap();
    let http = format!("http://{}/{bucket}", gateway.endpoint());
    fixture.scratch.sh(&format!("s3-pull -r --root web '{http}' \"$TOP\"")).ok();
    fixture.assert_trees("web");
}

/// Removes each permission from the administration policy and runs the command that needs it. Our tools name the
/// permission; mc prints the message of the server.
#[test]
fn an_admin_needs_every_permission() {
    let Some(minio) = Minio::shared() else { return };
    let mut fixture = Fixture::new();
    let bucket = minio.make_bucket();
    let owner = S3Client::new(&minio.endpoint(), Some(&minio.root()));
    minio.root().apply(&mut fixture.scratch);
    fixture.scratch.env("C", minio.cache_url(&bucket)).env("BUCKET", &bucket);
    fixture.scratch.env("MC_CONFIG_DIR", fixture.path("mc"));
    fixture.scratch.sh(closure_fixture::PUBLISH).ok();
    let admin = document(&fixture.scratch, &format!("--admin {bucket}"));
    // MinIO does not support rules that only abort incomplete uploads, so the rule also has an expiration.
    let mut lifecycle: Value =
        serde_json::from_str(&document(&fixture.scratch, &format!("--lifecycle 7 {bucket}"))).unwrap();
    lifecycle["Rules"][0]["Expiration"] = serde_json::json!({ "Days": 400 });
    fs::write(fixture.path("lifecycle.json"), lifecycle.to_string()).unwrap();
    let cases = [
        ("s3:GetObject", "s3-pull -r --root $(mktemp -d) \"$C\" \"$TOP\"", 1),
        ("s3:ListBucket", "s3-pull --list --all \"$C\"", 2),
        ("s3:DeleteObject", "mc rm admin/$BUCKET/log/old", 1),
        ("s3:PutLifecycleConfiguration", "mc ilm import admin/$BUCKET < lifecycle.json", 1),
        ("s3:GetLifecycleConfiguration", "mc ilm export admin/$BUCKET", 1),
        ("s3:ListBucketMultipartUploads", "mc ls --incomplete admin/$BUCKET/", 1),
        ("s3:AbortMultipartUpload", "(AbortMultipartUpload, by the SDK)", 1),
        ("s3:ListMultipartUploadParts", "(ListParts, by the SDK)", 1),
    ];
    let parsed: Value = serde_json::from_str(&admin).unwrap();
    let actions =
        parsed["Statement"].as_array().unwrap().iter().flat_map(|statement| statement["Action"].as_array().unwrap());
    assert_eq!(actions.count(), cases.len(), "each action has its case");
    println!("\n{:30} {:60} status, message", "without", "command");
    let whole = minio.add_user(&admin);
    for (action, script, status) in cases {
        let reduced = minio.add_user(&without(&admin, action));
        for (user, expected_row) in [(&whole, 0), (&reduced, status)] {
            owner.put(&bucket, "log/old").unwrap();
            if script.starts_with('(') {
                let caller = S3Client::new(&minio.endpoint(), Some(user));
                let found = if action == "s3:AbortMultipartUpload" {
                    caller.call("ABORT", &owner, &bucket, "")
                } else {
                    let id = owner.create_multipart_upload(&bucket, "log/unfinished").unwrap();
                    caller.list_parts(&bucket, "log/unfinished", &id)
                };
                assert_eq!(found.is_ok(), expected_row == 0, "{action}: {found:?}");
                if expected_row != 0 {
                    println!("{action:30} {script:60} 403");
                }
                continue;
            }
            user.apply(&mut fixture.scratch);
            let host = format!("http://{}:{}@{}", user.access_key, user.secret_key, minio.endpoint());
            fixture.scratch.env("MC_HOST_admin", host);
            let output = fixture.scratch.sh(script);
            assert_eq!(output.status, expected_row, "{action}, {script}: {}", output.stderr);
            if expected_row != 0 {
                let stderr = output.stderr.trim();
                println!("{action:30} {script:60} {}, {stderr}", output.status);
                let named = if script.starts_with("s3-") { action } else { "Access Denied" };
                assert!(stderr.contains(named), "{action}: {stderr}");
            }
        }
    }
}
