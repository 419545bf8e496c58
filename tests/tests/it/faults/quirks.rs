//! Services that differ from S3 in one respect.

use crate::fixtures::closure_fixture::{Fixture, path_in_root};
use cache_tests::fault_proxy::{ErrorResponse, Fault, FaultProxy, RequestKind, always};
use cache_tests::lying_server::{LyingServer, Response};
use cache_tests::quirks::Quirk;
use cache_tests::{Credentials, EmbeddedS3, Minio, Random, Scratch, random_seed, store_path};

/// Uploads twelve megabytes in parts.
fn push_parts(url: &str) -> String {
    format!("s3-push -q --part-size 5MiB --memory 16MiB '{url}' --key log/large < large")
}

#[test]
fn an_upload_in_parts_works_with_the_response_of_rclone() {
    let s3 = EmbeddedS3::shared();
    let bucket = s3.make_bucket();
    let proxy = FaultProxy::start(&s3.endpoint(), always(Fault::Quirk(Quirk::Rclone)));
    let mut scratch = Scratch::new();
    s3.credentials().apply(&mut scratch);
    let bytes = Random::new(random_seed()).bytes(12 << 20);
    scratch.write("large", &bytes);
    scratch.sh(&push_parts(&s3.cache_url(&bucket).replace(&s3.endpoint(), proxy.endpoint()))).ok();
    assert!(proxy.requests().contains(&RequestKind::CreateMultipartUpload), "{:?}", proxy.requests());
    assert!(s3.get(&bucket, "log/large") == bytes);
}

/// Neither a body without an upload ID nor one with an ID that is not plain text is an upload.
#[test]
fn a_response_that_cannot_be_read_is_not_called_by_its_status() {
    for body in ["<Other/>", "not XML", "<A><UploadId></UploadId></A>", "<A><UploadId>a&amp;b</UploadId></A>"] {
        let server = LyingServer::start(move |request| match request.method.as_str() {
            "POST" => Response::object(body).header("Content-Type", "application/xml"),
            _ => Response::no_such_key(),
        });
        let mut scratch = Scratch::new();
        Credentials::random().apply(&mut scratch);
        scratch.write("large", Random::new(1).bytes(12 << 20));
        let stderr = scratch.sh(&push_parts(&server.s3_url())).fails(2);
        assert!(stderr.contains("cannot read the response of ") && !stderr.contains("HTTP 200"), "{body}: {stderr}");
        assert!(server.requests().iter().all(|request| request.method != "PUT"), "{body}: no part is sent");
    }
}

/// The path is signed as it is sent: with every reserved character encoded (AWS Signature Version 4, "Create a canonical
/// request"). A service that decodes some of them before it verifies the signature refuses such keys.
#[test]
fn a_key_with_reserved_characters_is_signed_as_it_is_sent() {
    const KEY: &str = "log/0123456789abcdfghijklmnpqrsvwxyz-a+b=c?d.drv";
    let push = |service: &dyn Fn(&mut Scratch) -> String| {
        let mut scratch = Scratch::new();
        let url = service(&mut scratch);
        scratch.sh(&format!("echo text | s3-push -q '{url}' --key '{KEY}'")).ok();
    };
    if let Some(minio) = Minio::shared() {
        let bucket = minio.make_bucket();
        push(&|scratch| (minio.root().apply(scratch), minio.cache_url(&bucket)).1);
        assert_eq!(minio.objects(&bucket), [KEY]);
    }
    let s3 = EmbeddedS3::shared();
    let bucket = s3.make_bucket();
    push(&|scratch| (s3.credentials().apply(scratch), s3.cache_url(&bucket)).1);
    assert_eq!(s3.objects(&bucket), [KEY]);
}

/// S3Mock answers 304 instead of 412 to a conditional CompleteMultipartUpload if the object exists.
#[test]
fn an_upload_that_another_process_completes_first_may_be_answered_with_304() {
    const NOT_MODIFIED: Fault = Fault::Respond(ErrorResponse { status: 304, code: "", retry_after: None });
    let (mut fixture, s3, first) = Fixture::embedded();
    let path = store_path("large", random_seed());
    std::fs::write(path_in_root(&fixture.path("root"), &path), Random::new(1).bytes(12 << 20)).unwrap();
    let pack = format!("nar-pack --root root --no-nix --export {path} | narinfo-gen --no-nix --archive > large.tar");
    fixture.scratch.sh(&format!("{pack}; s3-push -q --no-nix --part-size 5MiB \"$C\" < large.tar")).ok();
    let nar = s3.objects(&first).into_iter().find(|key| key.starts_with("nar/")).unwrap();
    let bytes = s3.get(&first, &nar);
    let second = fixture.fresh_bucket(s3);
    let bucket = second.clone();
    let proxy = FaultProxy::start(&s3.endpoint(), move |request| {
        if request.kind() != RequestKind::CompleteMultipartUpload {
            return Fault::Pass;
        }
        EmbeddedS3::shared().put(&bucket, &nar, &bytes);
        NOT_MODIFIED
    });
    let url = s3.cache_url(&second).replace(&s3.endpoint(), proxy.endpoint());
    fixture.scratch.sh(&format!("s3-push -q --no-nix --part-size 5MiB --memory 16MiB '{url}' < large.tar")).ok();
    assert!(proxy.faults() > 0, "{:?}", proxy.requests());
    assert_eq!(s3.objects(&second).len(), 3);
}
