//! Our tools with services that the tests cannot reach, emulated by a proxy: none refuses a request, and nothing is
//! lost.

use crate::fixtures::closure_fixture::{Fixture, PUBLISH, generate_key};
use crate::fixtures::large_path::LargePath;
use crate::fixtures::s3_calls::S3Client;
use cache_tests::fault_proxy::{Fault, FaultProxy, ObjectKind, RequestKind};
use cache_tests::quirks::Quirk;
use cache_tests::service_profiles::Service;
use cache_tests::{EmbeddedS3, Minio, Scratch, random_seed};

/// Three parts of 5 MiB.
const THREE_PARTS: usize = 12 << 20;

/// Publishes, signs again, reads, pins and deletes with the service. It must not refuse anything.
fn use_service(service: Service) {
    let (mut fixture, s3, bucket) = Fixture::embedded();
    let proxy = FaultProxy::start(&s3.endpoint(), service.plan());
    fixture.scratch.env("C", s3.cache_url(&bucket).replace(&s3.endpoint(), proxy.endpoint()));
    // A path without references, which can be deleted in one request with the top of the closure.
    LargePath::write(&mut fixture.scratch, random_seed(), 1000);
    fixture.scratch.sh("cache-sign -k key.sec < archive | s3-push -q --no-nix \"$C\"").ok();
    let large = LargePath::write(&mut fixture.scratch, random_seed(), THREE_PARTS);
    let sh = |script: &str| fixture.scratch.sh(script).ok();
    sh(PUBLISH);
    sh("cache-sign -k key.sec < archive | s3-push -q --no-nix --part-size 5MiB --memory 16MiB \"$C\"");
    assert_eq!(sh("s3-push --missing \"$C\" < paths"), "", "{service}");
    sh("cat nar | s3-push -q --part-size 5MiB --memory 16MiB \"$C\" --key log/large");
    assert!(s3.get(&bucket, "log/large") == large.nar, "{service}");
    generate_key(&fixture.scratch, "second");
    sh("s3-pull --narinfo --all \"$C\" | cache-sign -k second.sec | s3-push -q \"$C\"");
    fixture.assert_pulls(&s3.cache_url(&bucket), "--trusted-public-key-file second.pub");
    fixture.assert_pulls("$C", "");
    LargePath::assert_pulls(&fixture.scratch);
    sh("s3-pull check -q --nars \"$C\"; echo \"$P\" | s3-push pin -q \"$C\" main/1");
    sh("s3-pull dead -q --older-than 0s \"$C\" > dead; s3-push delete -q --now --max-delete 100% \"$C\" < dead");
    assert_eq!(sh("s3-pull --list --all \"$C\""), sh("echo $P"), "{service}");
    assert!(proxy.requests().contains(&RequestKind::DeleteObjects), "{service}");
    let refused: Vec<_> = proxy.seen().into_iter().filter(|(_, fault)| matches!(fault, Fault::Respond(_))).collect();
    assert!(refused.is_empty(), "{service}: {refused:?}");
}

#[test]
fn backblaze_b2_gets_no_checksum_headers() {
    use_service(Service::BackblazeB2);
}

#[test]
fn cloudflare_r2_gets_parts_of_one_size() {
    use_service(Service::CloudflareR2);
}

#[test]
fn hetzner_gets_no_bodies_in_chunks() {
    use_service(Service::Hetzner);
}

#[test]
fn oracle_cloud_gets_no_trailers_and_a_content_md5() {
    use_service(Service::OracleCloud);
}

#[test]
fn ovhcloud_gets_no_trailers() {
    use_service(Service::Ovhcloud);
}

#[test]
fn wasabi_gets_no_checksums_of_parts() {
    use_service(Service::Wasabi);
}

#[test]
fn rustfs_and_seaweedfs_work() {
    use_service(Service::RustFs);
    use_service(Service::SeaweedFs);
}

/// RustFS fails to list the parts of an upload that has none. It is not continued, and
/// the push asks only twice.
#[test]
fn an_upload_whose_parts_cannot_be_listed_is_not_continued() {
    let Some(minio) = Minio::shared() else { return };
    let mut scratch = Scratch::new();
    minio.root().apply(&mut scratch);
    let bucket = minio.make_bucket();
    let large = LargePath::write(&mut scratch, random_seed(), THREE_PARTS);
    S3Client::new(&minio.endpoint(), Some(&minio.root())).create_multipart_upload(&bucket, &large.nar_key).unwrap();
    let proxy = FaultProxy::start(&minio.endpoint(), Service::RustFs.plan());
    scratch.env("C", minio.cache_url(&bucket).replace(&minio.endpoint(), proxy.endpoint()));
    scratch.sh("s3-push -q --no-nix --part-size 5MiB \"$C\" < archive").ok();
    LargePath::assert_pulls(&scratch);
    let count = |kind| proxy.requests().iter().filter(|seen| **seen == kind).count();
    assert_eq!((count(RequestKind::ListParts), count(RequestKind::UploadPart)), (2, 3), "{:?}", proxy.requests());
}

/// SeaweedFS answers 412 to a conditional read of a NAR that is deleted while it is read, as if it had been replaced.
#[test]
fn a_nar_that_is_deleted_while_it_is_read_is_missing() {
    let s3 = EmbeddedS3::shared();
    for fault in [Fault::Pass, Fault::Quirk(Quirk::SeaweedFs)] {
        let (mut fixture, _, bucket) = Fixture::embedded();
        let large = LargePath::write(&mut fixture.scratch, random_seed(), 20 << 20);
        fixture.scratch.sh("s3-push -q --no-nix \"$C\" < archive").ok();
        let deleted = (bucket.clone(), large.nar_key.clone());
        let proxy = FaultProxy::start(&s3.endpoint(), move |request| {
            if request.kind() == RequestKind::GetObject(ObjectKind::Nar) && request.header("if-match").is_some() {
                let (bucket, key) = &deleted;
                if s3.objects(bucket).contains(key) {
                    s3.remove(bucket, key);
                }
            }
            fault
        });
        let url = s3.cache_url(&bucket).replace(&s3.endpoint(), proxy.endpoint());
        let pull = format!("s3-pull --root out --no-verify-signatures '{url}' \"$P\"");
        let stderr = fixture.scratch.sh(&pull).fails(1);
        assert!(stderr.contains(&large.nar_key), "{fault:?}: {stderr}");
        fixture.assert_nothing_below("out");
    }
}
