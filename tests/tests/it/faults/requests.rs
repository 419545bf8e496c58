//! The number of requests that a push makes.

use crate::fixtures::bucket::{S3Server, assert_closed, narinfo_keys, snapshot};
use crate::fixtures::closure_fixture::{ARCHIVE, Fixture};
use cache_tests::fault_proxy::{ACCESS_DENIED, Fault, FaultProxy, ObjectKind, RequestKind, always, only};
use cache_tests::{EmbeddedS3, Minio, store_path};
use std::fs;

/// Creates a fixture with archives of its first two paths and of all three, and a bucket.
fn three_path_fixture(service: &impl S3Server) -> (Fixture, String) {
    let mut fixture = Fixture::new();
    let bucket = service.new_bucket();
    service.owner().apply(&mut fixture.scratch);
    let two = ARCHIVE.replace("< paths", "< two");
    fixture.scratch.sh(&format!("head -n 2 paths > two; {ARCHIVE} > three.tar; {two} > two.tar")).ok();
    (fixture, bucket)
}

/// Runs a push that succeeds and returns its requests.
#[track_caller]
fn requests(fixture: &Fixture, service: &impl S3Server, bucket: &str, script: &str) -> Vec<RequestKind> {
    let proxy = FaultProxy::start(&service.address(), always(Fault::Pass));
    let url = service.url(bucket).replace(&service.address(), proxy.endpoint());
    fixture.scratch.sh(&script.replace("$C", &url)).ok();
    proxy.requests()
}

fn assert_few_requests(service: &impl S3Server, tells_md5: bool) {
    let (fixture, bucket) = three_path_fixture(service);
    let push = |archive: &str| requests(&fixture, service, &bucket, &format!("s3-push -q --no-nix '$C' < {archive}"));
    // Two for each path, a read and a write of nix-cache-info, and listings of gc/ and of the cache.
    let new = push("two.tar");
    assert!(new.len() <= 2 * 2 + 4, "two new paths: {new:?}");
    // If listings have no MD5, existing narinfos are fetched to see whether they lack signatures.
    let asked = |there: usize| if tells_md5 { 0 } else { there };
    let one_more = push("three.tar");
    assert!(one_more.len() <= 2 + 3 + asked(2), "one new path and two existing ones: {one_more:?}");
    let nothing = push("three.tar");
    assert!(nothing.len() <= 4 + asked(3), "no new path: {nothing:?}");
    let objects = snapshot(service, &bucket);
    assert_closed(&objects);
    assert_eq!(narinfo_keys(&objects).len(), 3);
}

#[test]
fn a_push_makes_two_requests_per_new_path_and_none_per_existing_path() {
    if let Some(minio) = Minio::shared() {
        assert_few_requests(minio, true);
    }
    assert_few_requests(EmbeddedS3::shared(), false);
}

/// If listing is forbidden, each path is looked up once.
#[test]
fn a_push_looks_up_a_path_once_if_listing_is_forbidden() {
    let s3 = EmbeddedS3::shared();
    let (fixture, bucket) = three_path_fixture(s3);
    let proxy = FaultProxy::start(
        &s3.address(),
        only(|request| request.kind() == RequestKind::ListObjects, always(ACCESS_DENIED)),
    );
    let url = s3.url(&bucket).replace(&s3.address(), proxy.endpoint());
    fixture.scratch.sh(&format!("s3-push -q --no-nix '{url}' < three.tar")).ok();
    let asked =
        proxy.requests().into_iter().filter(|kind| *kind == RequestKind::HeadObject(ObjectKind::Narinfo)).count();
    assert_eq!(asked, 3, "{:?}", proxy.requests());
}

#[test]
fn a_thousand_existing_paths_take_five_requests() {
    let s3 = EmbeddedS3::shared();
    let (fixture, bucket) = three_path_fixture(s3);
    let paths: Vec<String> = (0..1000).map(|seed| store_path("tiny", seed)).collect();
    fs::write(fixture.path("many"), paths.join("\n") + "\n").unwrap();
    for path in &paths {
        s3.put(&bucket, &Fixture::narinfo_key(path), b"StorePath: only the existence of this object matters\n");
    }
    let missing = "s3-push -q --missing '$C' < many > missing; test ! -s missing";
    let kinds = requests(&fixture, s3, &bucket, missing);
    assert!(kinds.len() <= 5, "{} requests: {kinds:?}", kinds.len());
    // As in a real cache, the objects next to the narinfos make the listing longer than one page.
    s3.put(&bucket, "nix-cache-info", b"StoreDir: /nix/store\n");
    s3.put(&bucket, "nar/0000000000000000000000000000000000000000000000000000.nar.zst", b"x");
    let kinds = requests(&fixture, s3, &bucket, missing);
    assert!(kinds.len() <= 5, "{} requests: {kinds:?}", kinds.len());
}
