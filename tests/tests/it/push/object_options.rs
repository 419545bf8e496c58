//! Options of objects, such as encryption and tags, reach the service, for uploads in one request and in parts.

use std::fs;
use std::sync::{Arc, Mutex};

use crate::fixtures::closure_fixture::{ARCHIVE, Fixture, path_in_root};
use cache_tests::fault_proxy::{ErrorResponse, Fault, FaultProxy, RequestKind};
use cache_tests::tls_front::TlsFront;
use cache_tests::{Minio, Random, cache_url, store_path};
use serde_json::Value;

/// The header x-amz-content-sha256 of a request whose body is not signed.
const UNSIGNED: &str = "UNSIGNED-PAYLOAD";

/// Creates a fixture with an additional path, whose NAR is uploaded in parts, and access to the bucket.
fn fixture(minio: &Minio, bucket: &str) -> Fixture {
    let mut fixture = Fixture::new();
    let large = store_path("large", 7);
    fs::write(path_in_root(&fixture.path("root"), &large), Random::new(7).bytes(12 << 20)).unwrap();
    fixture.scratch.sh(&format!("echo {large} >> paths; {ARCHIVE} > archive")).ok();
    minio.root().apply(&mut fixture.scratch);
    fixture.scratch.env("C", minio.cache_url(bucket));
    fixture
}

/// Pushes with these flags and returns the metadata of each object.
fn pushed(minio: &Minio, bucket: &str, flags: &str) -> Vec<(String, Value)> {
    let fixture = fixture(minio, bucket);
    fixture.scratch.sh(&format!("s3-push -q --part-size 5MiB {flags} \"$C\" < archive")).ok();
    let keys = minio.objects(bucket);
    assert_eq!(keys.len(), 9, "{keys:?}");
    let stat_of = |key: &String| {
        let stat = minio.mc(&["stat", "--json", &format!("cache/{bucket}/{key}")]);
        let stat = serde_json::from_slice(&stat).unwrap();
        (key.clone(), stat)
    };
    keys.iter().map(stat_of).collect()
}

/// Returns the metadata `name` of an object, ignoring case.
fn metadata<'a>(stat: &'a Value, name: &str) -> &'a str {
    let all = stat["metadata"].as_object().unwrap();
    let found = all.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
    found.map_or("", |(_, value)| value.as_str().unwrap())
}

#[test]
fn content_types_and_cache_control_are_set() {
    let Some(minio) = Minio::shared() else { return };
    let bucket = minio.make_bucket();
    for (key, stat) in pushed(minio, &bucket, "--cache-control 'public, max-age=31536000'") {
        let expected = match key.as_str() {
            "nix-cache-info" => "text/x-nix-cache-info",
            key if key.starts_with("nar/") => "application/x-nix-nar",
            _ => "text/x-nix-narinfo",
        };
        assert_eq!(metadata(&stat, "content-type"), expected, "{key}");
        assert_eq!(metadata(&stat, "content-encoding"), "", "{key}");
        assert_eq!(metadata(&stat, "cache-control"), "public, max-age=31536000", "{key}");
    }
}

#[test]
fn encryption_at_rest_is_requested() {
    let Some(minio) = Minio::shared() else { return };
    let header = "x-amz-server-side-encryption";
    let cases = [
        ("--sse AES256", "AES256"),
        ("--sse aws:kms", "aws:kms"),
        ("--sse aws:kms --sse-kms-key-id cache-key", "aws:kms"),
        ("--sse-kms-key-id cache-key", "aws:kms"),
    ];
    for (flags, expected) in cases {
        let bucket = minio.make_bucket();
        for (key, stat) in pushed(minio, &bucket, flags) {
            assert_eq!(metadata(&stat, header), expected, "{flags}: {key}");
        }
        // Encrypted objects are read unchanged, and recognized as existing.
        let fixture = fixture(minio, &bucket);
        let large = minio.objects(&bucket).into_iter().filter(|key| key.ends_with(".narinfo"));
        assert_eq!(large.count(), 4);
        fixture.scratch.sh("s3-pull --all --archive --no-verify-signatures \"$C\" | tar t > members").ok();
        assert_eq!(fixture.scratch.sh("sort members | uniq | wc -l").ok(), "9", "{flags}");
    }
}

#[test]
fn storage_class_and_tags_are_set() {
    let Some(minio) = Minio::shared() else { return };
    let bucket = minio.make_bucket();
    let flags = "--storage-class REDUCED_REDUNDANCY --tag team=build --tag 'note=a b+c'";
    for (key, stat) in pushed(minio, &bucket, flags) {
        assert_eq!(metadata(&stat, "x-amz-storage-class"), "REDUCED_REDUNDANCY", "{key}");
        let tags = minio.mc(&["tag", "list", "--json", &format!("cache/{bucket}/{key}")]);
        let tags: Value = serde_json::from_slice(&tags).unwrap();
        assert_eq!(tags["tagset"]["team"], "build", "{key}: {tags}");
        assert_eq!(tags["tagset"]["note"], "a b+c", "{key}: {tags}");
    }
}

#[test]
fn object_lock_is_set_or_reported() {
    let Some(minio) = Minio::shared() else { return };
    let bucket = cache_tests::unique("locked-");
    minio.mc(&["mb", "--with-lock", &format!("cache/{bucket}")]);
    for (key, _) in pushed(minio, &bucket, "--object-lock-days 2 --object-lock-mode compliance") {
        let held = minio.mc(&["retention", "info", "--json", &format!("cache/{bucket}/{key}")]);
        let held: Value = serde_json::from_slice(&held).unwrap();
        assert_eq!(held["mode"], "COMPLIANCE", "{key}: {held}");
    }
    // A bucket without object lock is reported.
    let bucket = minio.make_bucket();
    let fixture = fixture(minio, &bucket);
    let stderr = fixture.scratch.sh("s3-push -q --object-lock-days 2 \"$C\" < archive").fails(2);
    assert!(stderr.contains("ObjectLock") || stderr.to_lowercase().contains("object lock"), "{stderr}");
    assert_eq!(minio.objects(&bucket), Vec::<String>::new());
}

/// Object lock requires checksums. With them, and TLS, the parts of a NAR are not hashed for the signature too, unless the
/// bucket forbids that; without TLS they are.
#[test]
fn parts_with_a_checksum_are_not_signed_over_tls() {
    let Some(minio) = Minio::shared() else { return };
    for (uses_tls, forbids_unsigned) in [(true, false), (true, true), (false, false)] {
        let bucket = cache_tests::unique("locked-");
        minio.mc(&["mb", "--with-lock", &format!("cache/{bucket}")]);
        let mut fixture = fixture(minio, &bucket);
        let accepted: Arc<Mutex<Vec<String>>> = Arc::default();
        let recorded = Arc::clone(&accepted);
        let proxy = FaultProxy::start(&minio.endpoint(), move |request| {
            if request.kind() != RequestKind::UploadPart {
                return Fault::Pass;
            }
            assert!(request.header("x-amz-checksum-crc32").is_some(), "no checksum");
            let hash = request.header("x-amz-content-sha256").unwrap_or_default();
            if forbids_unsigned && hash == UNSIGNED {
                return Fault::Respond(ErrorResponse { status: 403, code: "AccessDenied", retry_after: None });
            }
            recorded.lock().unwrap().push(hash.to_owned());
            Fault::Pass
        });
        let front = TlsFront::start(proxy.endpoint());
        fixture.scratch.write("ca.pem", front.certificate());
        fixture.scratch.env("SSL_CERT_FILE", fixture.path("ca.pem"));
        let url = if uses_tls {
            format!("s3://{bucket}?endpoint={}&scheme=https&region=us-east-1", front.endpoint())
        } else {
            cache_url(proxy.endpoint(), &bucket)
        };
        fixture.scratch.sh(&format!("s3-push -q --part-size 5MiB --object-lock-days 1 '{url}' < archive")).ok();
        let accepted = accepted.lock().unwrap();
        assert_eq!(accepted.len(), 3, "12 MiB in parts of 5 MiB");
        let is_unsigned = uses_tls && !forbids_unsigned;
        assert!(accepted.iter().all(|hash| (hash == UNSIGNED) == is_unsigned), "{accepted:?}");
        assert_eq!(minio.objects(&bucket).len(), 9);
    }
}
