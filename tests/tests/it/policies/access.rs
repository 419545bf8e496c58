//! Users with one policy each: an uploader, a reader, an anonymous reader, and a user without permissions.

use crate::fixtures::bucket::{assert_closed, head, narinfo_keys, snapshot};
use crate::fixtures::bucket::{policy, uploader};
use crate::fixtures::closure_fixture;
use crate::fixtures::closure_fixture::generate_key;
use cache_tests::{Minio, Random, http_status, split_hint};
use std::fs;

#[test]
fn an_uploader_needs_no_more_than_the_upload_policy() {
    let Some(minio) = Minio::shared() else { return };
    let mut fixture = closure_fixture::Fixture::new();
    let (bucket, _) = uploader(minio, &mut fixture.scratch);
    fixture.scratch.sh(closure_fixture::PUBLISH).ok();
    assert_closed(&snapshot(minio, &bucket));
    // Also in several parts, with known and with unknown length.
    let noise = Random::new(cache_tests::random_seed()).bytes(12 << 20);
    let big = cache_tests::store_path("big", cache_tests::random_seed());
    fs::write(closure_fixture::path_in_root(&fixture.path("root"), &big), &noise).unwrap();
    fixture
        .scratch
        .sh(&format!(
            "nar-pack --root root --no-nix {big} | s3-push --no-nix --part-size 5MiB --memory 16MiB \"$C\" {big}; \
             cat root{big} | s3-push \"$C\" --part-size 5MiB --key log/pipe"
        ))
        .ok();
    let objects = snapshot(minio, &bucket);
    assert_closed(&objects);
    assert!(objects["log/pipe"] == noise);
    minio.set_bucket_policy(&bucket, &policy(&fixture.scratch, "--read-only", &bucket));
    let large: Vec<&String> = objects.iter().filter(|(_, bytes)| bytes.len() > 11 << 20).map(|(key, _)| key).collect();
    assert_eq!(large.len(), 2);
    for key in large {
        let about = head(&fixture.scratch, &minio.endpoint(), &format!("/{bucket}/{key}"));
        let etag = about.lines().find(|line| line.starts_with("etag:")).unwrap();
        assert!(etag.trim_end().trim_end_matches('"').ends_with("-3"), "{key} was not uploaded in three parts: {etag}");
    }
    fixture.scratch.sh("s3-pull -r --root out \"$C\" \"$TOP\"").ok();
    fixture.assert_trees("out");
    // It cannot write to another bucket.
    let other = minio.make_bucket();
    let stderr = fixture.scratch.sh(&format!("echo x | s3-push '{}' --key log/x", minio.cache_url(&other))).fails(2);
    assert!(stderr.contains(&other) && stderr.contains("log/x"), "{stderr}");
    assert_eq!(minio.objects(&other), [""; 0]);
}

#[test]
fn a_reader_cannot_write() {
    let Some(minio) = Minio::shared() else { return };
    let mut fixture = closure_fixture::Fixture::new();
    let bucket = minio.make_bucket();
    let reader = minio.add_user(&format!(
        r#"{{"Version":"2012-10-17","Statement":[{{"Effect":"Allow","Action":["s3:GetObject","s3:GetBucketLocation"],
            "Resource":["arn:aws:s3:::{bucket}","arn:aws:s3:::{bucket}/*"]}}]}}"#
    ));
    reader.apply(&mut fixture.scratch);
    fixture.scratch.env("C", minio.cache_url(&bucket));
    let archive = format!("{} | s3-push --no-nix \"$C\"", closure_fixture::ARCHIVE);
    let stderr = fixture.scratch.sh(&archive).fails(2);
    let line = split_hint(&stderr).0.lines().last().unwrap().to_lowercase();
    assert!(line.starts_with("s3-push: ") && (line.contains("403") || line.contains("access denied")), "{stderr}");
    assert!(line.contains("nar/") || line.contains("nix-cache-info"), "the key is named: {stderr}");
    let stderr = fixture.scratch.sh("echo x | s3-push \"$C\" --key log/x").fails(2);
    assert!(
        stderr.contains("log/x") && (stderr.contains("403") || stderr.to_lowercase().contains("access denied")),
        "{stderr}"
    );
    assert_eq!(minio.objects(&bucket), [""; 0]);
    // It can read. Without ListBucket, S3 returns 403 for a missing object.
    minio.root().apply(&mut fixture.scratch);
    fixture.scratch.sh(closure_fixture::PUBLISH).ok();
    reader.apply(&mut fixture.scratch);
    fixture.scratch.sh("s3-pull -r --root out \"$C\" \"$TOP\"").ok();
    fixture.assert_trees("out");
    let absent = cache_tests::store_path("absent", cache_tests::random_seed());
    let stderr = fixture.scratch.sh(&format!("s3-pull --root out \"$C\" {absent}")).fails(1);
    assert!(stderr.contains(&absent), "{stderr}");
    let before = snapshot(minio, &bucket);
    generate_key(&fixture.scratch, "new");
    fixture.scratch.sh("s3-pull -r --narinfo \"$C\" \"$TOP\" | cache-sign -k new.sec | s3-push \"$C\"").fails(2);
    assert_eq!(snapshot(minio, &bucket), before);
    assert_eq!(narinfo_keys(&before).len(), 3);
}

#[test]
fn an_anonymous_client_reads_only_public_buckets_and_writes_nothing() {
    let Some(minio) = Minio::shared() else { return };
    let mut fixture = closure_fixture::Fixture::new();
    let (bucket, _) = uploader(minio, &mut fixture.scratch);
    fixture.scratch.sh(closure_fixture::PUBLISH).ok();
    let url = minio.cache_url(&bucket);
    let anonymous =
        |script: &str| fixture.scratch.sh(&format!("unset AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY; {script}"));
    let pull = "s3-pull -r --root out --no-sign-request \"$C\" \"$TOP\"";
    let stderr = anonymous(pull).fails(1);
    assert!(
        stderr.contains(&fixture.closure.top) && stderr.contains("403"),
        "a 403 means missing, with a hint: {stderr}"
    );
    fixture.assert_nothing_below("out");
    minio.set_bucket_policy(&bucket, &policy(&fixture.scratch, "--read-only", &url));
    anonymous(pull).ok();
    fixture.assert_trees("out");
    anonymous(&format!("s3-pull -r --root web {} \"$TOP\"", minio.http_url(&bucket))).ok();
    fixture.assert_trees("web");
    let before = snapshot(minio, &bucket);
    for key in ["nix-cache-info", "nar/x.nar", "log/x"] {
        assert_eq!(http_status(&minio.endpoint(), "PUT", &format!("/{bucket}/{key}"), b"x").unwrap(), 403, "{key}");
    }
    let stderr = anonymous("echo x | s3-push \"$C\" --key log/x").fails(2);
    assert!(stderr.to_lowercase().contains("credentials"), "{stderr}");
    assert_eq!(snapshot(minio, &bucket), before);
}

#[test]
fn a_user_without_a_policy_reads_nothing() {
    let Some(minio) = Minio::shared() else { return };
    let mut fixture = closure_fixture::Fixture::new();
    let (bucket, _) = uploader(minio, &mut fixture.scratch);
    fixture.scratch.sh(closure_fixture::PUBLISH).ok();
    let user = minio.add_user(
        r#"{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":["s3:GetBucketLocation"],"Resource":["arn:aws:s3:::unrelated"]}]}"#,
    );
    user.apply(&mut fixture.scratch);
    let stderr = fixture.scratch.sh("s3-pull --root out \"$C\" \"$LIB\"").fails(1);
    assert!(stderr.contains(&fixture.closure.lib), "{stderr}");
    fixture.assert_nothing_below("out");
    assert!(!minio.objects(&bucket).is_empty());
}
