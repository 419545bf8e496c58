//! Users with one policy each: an uploader, a reader, an anonymous reader, a stranger.

use crate::fixtures::bucket::{assert_closed, head, narinfo_keys, snapshot};
use crate::fixtures::bucket::{policy, uploader};
use crate::fixtures::site;
use crate::fixtures::site::make_key;
use cache_tests::{Minio, Random, http_status};
use std::fs;

#[test]
fn an_uploader_needs_no_more_than_the_upload_policy() {
    let Some(minio) = Minio::shared() else { return };
    let mut site = site::Site::new();
    let (bucket, _) = uploader(minio, &mut site.scratch);
    site.scratch.sh(site::PUBLISH).ok();
    assert_closed(&snapshot(minio, &bucket));
    // In several parts too, of known and of unknown length.
    let noise = Random::new(cache_tests::random_seed()).bytes(12 << 20);
    let big = cache_tests::store_path("big", cache_tests::random_seed());
    fs::write(site::below(&site.path("root"), &big), &noise).unwrap();
    site.scratch
        .sh(&format!(
            "nar-pack --root root --no-nix {big} | s3-push --no-nix --part-size 5MiB --memory 16MiB \"$C\" {big}; \
             cat root{big} | s3-push \"$C\" --part-size 5MiB --key log/pipe"
        ))
        .ok();
    let objects = snapshot(minio, &bucket);
    assert_closed(&objects);
    assert!(objects["log/pipe"] == noise);
    minio.set_bucket_policy(&bucket, &policy(&site.scratch, "--read-only", &bucket));
    let large: Vec<&String> = objects.iter().filter(|(_, bytes)| bytes.len() > 11 << 20).map(|(key, _)| key).collect();
    assert_eq!(large.len(), 2);
    for key in large {
        let about = head(&site.scratch, &minio.endpoint(), &format!("/{bucket}/{key}"));
        let etag = about.lines().find(|line| line.starts_with("etag:")).unwrap();
        assert!(etag.trim_end().trim_end_matches('"').ends_with("-3"), "{key} did not go in three parts: {etag}");
    }
    site.scratch.sh("s3-pull -r --root out \"$C\" \"$TOP\"").ok();
    site.assert_trees("out");
    // It may not do more: nothing is removed, and no other bucket is touched.
    let other = minio.make_bucket();
    let said = site.scratch.sh(&format!("echo x | s3-push '{}' --key log/x", minio.cache_url(&other))).fails(2);
    assert!(said.contains(&other) && said.contains("log/x"), "{said}");
    assert_eq!(minio.objects(&other), [""; 0]);
}

#[test]
fn a_reader_cannot_write() {
    let Some(minio) = Minio::shared() else { return };
    let mut site = site::Site::new();
    let bucket = minio.make_bucket();
    let reader = minio.add_user(&format!(
        r#"{{"Version":"2012-10-17","Statement":[{{"Effect":"Allow","Action":["s3:GetObject","s3:GetBucketLocation"],
            "Resource":["arn:aws:s3:::{bucket}","arn:aws:s3:::{bucket}/*"]}}]}}"#
    ));
    reader.apply(&mut site.scratch);
    site.scratch.env("C", minio.cache_url(&bucket));
    let archive = format!("{} | s3-push --no-nix \"$C\"", site::ARCHIVE);
    let said = site.scratch.sh(&archive).fails(2);
    let line = said.lines().last().unwrap().to_lowercase();
    assert!(line.starts_with("s3-push: ") && (line.contains("403") || line.contains("access denied")), "{said}");
    assert!(line.contains("nar/") || line.contains("nix-cache-info"), "the key is named: {said}");
    let said = site.scratch.sh("echo x | s3-push \"$C\" --key log/x").fails(2);
    assert!(
        said.contains("log/x") && (said.contains("403") || said.to_lowercase().contains("access denied")),
        "{said}"
    );
    assert_eq!(minio.objects(&bucket), [""; 0]);
    // It can read. Without ListBucket a missing object is a 403, which means missing.
    minio.root().apply(&mut site.scratch);
    site.scratch.sh(site::PUBLISH).ok();
    reader.apply(&mut site.scratch);
    site.scratch.sh("s3-pull -r --root out \"$C\" \"$TOP\"").ok();
    site.assert_trees("out");
    let absent = cache_tests::store_path("absent", cache_tests::random_seed());
    let said = site.scratch.sh(&format!("s3-pull --root out \"$C\" {absent}")).fails(1);
    assert!(said.contains(&absent), "{said}");
    let before = snapshot(minio, &bucket);
    make_key(&site.scratch, "new");
    site.scratch.sh("s3-pull -r --narinfo \"$C\" \"$TOP\" | cache-sign -k new.sec | s3-push \"$C\"").fails(2);
    assert_eq!(snapshot(minio, &bucket), before);
    assert_eq!(narinfo_keys(&before).len(), 3);
}

#[test]
fn an_anonymous_reads_only_what_is_public_and_writes_nothing() {
    let Some(minio) = Minio::shared() else { return };
    let mut site = site::Site::new();
    let (bucket, _) = uploader(minio, &mut site.scratch);
    site.scratch.sh(site::PUBLISH).ok();
    let url = minio.cache_url(&bucket);
    let anonymous = |script: &str| site.scratch.sh(&format!("unset AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY; {script}"));
    let pull = "s3-pull -r --root out --no-sign-request \"$C\" \"$TOP\"";
    let said = anonymous(pull).fails(1);
    assert!(said.contains(&site.closure.top) && said.contains("403"), "a 403 means missing, with a hint: {said}");
    site.assert_nothing_below("out");
    minio.set_bucket_policy(&bucket, &policy(&site.scratch, "--read-only", &url));
    anonymous(pull).ok();
    site.assert_trees("out");
    anonymous(&format!("s3-pull -r --root web {} \"$TOP\"", minio.http_url(&bucket))).ok();
    site.assert_trees("web");
    let before = snapshot(minio, &bucket);
    for key in ["nix-cache-info", "nar/x.nar", "log/x"] {
        assert_eq!(http_status(&minio.endpoint(), "PUT", &format!("/{bucket}/{key}"), b"x").unwrap(), 403, "{key}");
    }
    let said = anonymous("echo x | s3-push \"$C\" --key log/x").fails(2);
    assert!(said.to_lowercase().contains("credentials"), "{said}");
    assert_eq!(snapshot(minio, &bucket), before);
}

#[test]
fn whom_no_policy_names_reads_nothing() {
    let Some(minio) = Minio::shared() else { return };
    let mut site = site::Site::new();
    let (bucket, _) = uploader(minio, &mut site.scratch);
    site.scratch.sh(site::PUBLISH).ok();
    let nobody = minio.add_user(
        r#"{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":["s3:GetBucketLocation"],"Resource":["arn:aws:s3:::unrelated"]}]}"#,
    );
    nobody.apply(&mut site.scratch);
    let said = site.scratch.sh("s3-pull --root out \"$C\" \"$LIB\"").fails(1);
    assert!(said.contains(&site.closure.lib), "{said}");
    site.assert_nothing_below("out");
    assert!(!minio.objects(&bucket).is_empty());
}
