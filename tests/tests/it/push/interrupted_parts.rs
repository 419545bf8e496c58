//! Pushes whose connection was cut within a part: the parts that are complete are not sent again.

use std::fmt::Write as _;
use std::fs;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};

use crate::fixtures::large_path::{LargePath, PART_SIZE};
use crate::fixtures::s3_calls::S3Client;
use cache_tests::fault_proxy::{Fault, FaultProxy, INTERNAL_ERROR, Request, RequestKind, SLOW_DOWN, once};
use cache_tests::lying_server::{self, LyingServer, Response};
use cache_tests::{Credentials, Minio, Random, Scratch, random_seed, store_path};
use md5::{Digest, Md5};

/// Four whole parts and a fifth.
const FIVE_PARTS: usize = 4 * PART_SIZE + (1 << 20);

/// Parts that have arrived at the proxy, and whether one of them was cut off.
#[derive(Default)]
struct Parts {
    arrived: usize,
    is_cut: bool,
}

/// Cuts the connection within the part 3 that arrives first, while `count` parts are in flight. The others go on after that.
fn cut_within_part_3(count: usize) -> impl Fn(&Request) -> Fault + Send + Sync {
    let (parts, changed) = (Arc::new(Mutex::new(Parts::default())), Condvar::new());
    move |request| {
        if request.kind() != RequestKind::UploadPart {
            return Fault::Pass;
        }
        let mut state = parts.lock().unwrap();
        state.arrived += 1;
        changed.notify_all();
        let is_third = request.query.split('&').any(|pair| pair == "partNumber=3");
        let mut state = changed.wait_while(state, |state| state.arrived < count && !state.is_cut).unwrap();
        if is_third && !state.is_cut {
            state.is_cut = true;
            changed.notify_all();
            return Fault::TruncateRequest;
        }
        drop(changed.wait_while(state, |state| !state.is_cut).unwrap());
        Fault::Pass
    }
}

/// Pushes the file `archive` through a proxy, with 5 MiB parts; returns how many parts were sent.
fn push_counting_parts(scratch: &Scratch, minio: &Minio, bucket: &str) -> usize {
    push_counting_parts_with_faults(scratch, minio, bucket, |_| Fault::Pass)
}

fn push_counting_parts_with_faults(
    scratch: &Scratch,
    minio: &Minio,
    bucket: &str,
    plan: impl Fn(&Request) -> Fault + Send + Sync + 'static,
) -> usize {
    let proxy = FaultProxy::start(&minio.endpoint(), plan);
    let url = minio.cache_url(bucket).replace(&minio.endpoint(), proxy.endpoint());
    scratch.sh(&format!("s3-push --no-nix -q --part-size 5MiB '{url}' < archive")).ok();
    proxy.requests().iter().filter(|kind| **kind == RequestKind::UploadPart).count()
}

/// Pushes the file `archive`; the connection is cut within a part, while `parts` are in flight, and the push fails.
fn push_and_cut(scratch: &Scratch, minio: &Minio, bucket: &str, parts: usize) {
    let proxy = FaultProxy::start(&minio.endpoint(), cut_within_part_3(parts));
    let url = minio.cache_url(bucket).replace(&minio.endpoint(), proxy.endpoint());
    scratch.sh(&format!("s3-push --no-nix -q --attempts 1 --part-size 5MiB '{url}' < archive")).fails(2);
}

fn fixture(minio: &Minio) -> (Scratch, LargePath, String) {
    let mut scratch = Scratch::new();
    minio.root().apply(&mut scratch);
    let bucket = minio.make_bucket();
    scratch.env("C", minio.cache_url(&bucket));
    let path = LargePath::write(&mut scratch, random_seed(), FIVE_PARTS);
    (scratch, path, bucket)
}

#[test]
fn only_the_part_that_was_cut_off_is_sent_again() {
    let Some(minio) = Minio::shared() else { return };
    let (scratch, _, bucket) = fixture(minio);
    push_and_cut(&scratch, minio, &bucket, 5);
    assert_eq!(push_counting_parts(&scratch, minio, &bucket), 1);
    LargePath::assert_pulls(&scratch);
}

#[test]
fn an_upload_is_continued_after_throttling_and_one_failure_to_list_its_parts() {
    let Some(minio) = Minio::shared() else { return };
    let (scratch, _, bucket) = fixture(minio);
    push_and_cut(&scratch, minio, &bucket, 5);
    let (fail_once, throttled) = (once(INTERNAL_ERROR), AtomicUsize::new(0));
    let plan = move |request: &Request| match request.kind() {
        RequestKind::ListParts if throttled.fetch_add(1, Ordering::Relaxed) < 2 => SLOW_DOWN,
        RequestKind::ListParts => fail_once(request),
        _ => Fault::Pass,
    };
    assert_eq!(push_counting_parts_with_faults(&scratch, minio, &bucket, plan), 1);
}

/// The failure of one NAR ends the push. The parts of the others are completed too.
#[test]
fn the_parts_of_other_nars_are_not_sent_again() {
    let Some(minio) = Minio::shared() else { return };
    let (mut scratch, _, bucket) = fixture(minio);
    let second = store_path("second", random_seed());
    let data = scratch.path().join("root").join(second.trim_start_matches('/'));
    fs::write(data, Random::new(random_seed()).bytes(FIVE_PARTS)).unwrap();
    scratch.env("Q", second);
    let archive = "nar-pack --root root --no-nix --export \"$P\" \"$Q\" | narinfo-gen --no-nix --archive > archive";
    scratch.sh(archive).ok();
    push_and_cut(&scratch, minio, &bucket, 10);
    assert_eq!(push_counting_parts(&scratch, minio, &bucket), 1);
    LargePath::assert_pulls(&scratch);
}

#[test]
fn an_older_upload_with_more_parts_is_continued() {
    let Some(minio) = Minio::shared() else { return };
    let (scratch, path, bucket) = fixture(minio);
    let client = S3Client::new(&minio.endpoint(), Some(&minio.root()));
    let create = || client.create_multipart_upload(&bucket, &path.nar_key).unwrap();
    let (older, newer) = (create(), create());
    for number in [1, 2, 4, 5] {
        client.upload_part(&bucket, &path.nar_key, &older, number, path.part(number));
    }
    client.upload_part(&bucket, &path.nar_key, &newer, 1, path.part(1));
    assert_eq!(push_counting_parts(&scratch, minio, &bucket), 1);
    LargePath::assert_pulls(&scratch);
}

/// A part that is shorter than the others is sent again. One that is longer belongs to an upload of another part size.
#[test]
fn short_parts_are_sent_again_and_an_upload_of_larger_parts_is_not_continued() {
    let Some(minio) = Minio::shared() else { return };
    let (scratch, path, bucket) = fixture(minio);
    let client = S3Client::new(&minio.endpoint(), Some(&minio.root()));
    let create = || client.create_multipart_upload(&bucket, &path.nar_key).unwrap();
    let short = create();
    client.upload_part(&bucket, &path.nar_key, &short, 1, path.part(1));
    client.upload_part(&bucket, &path.nar_key, &short, 2, &path.part(2)[..PART_SIZE / 2]);
    client.upload_part(&bucket, &path.nar_key, &short, 4, path.part(4));
    let larger = create();
    for number in [1, 2, 3] {
        client.upload_part(&bucket, &path.nar_key, &larger, number, path.part(number));
    }
    client.upload_part(&bucket, &path.nar_key, &larger, 4, &path.nar[3 * PART_SIZE..]);
    assert_eq!(push_counting_parts(&scratch, minio, &bucket), 3);
    LargePath::assert_pulls(&scratch);
}

fn hex_md5(bytes: &[u8]) -> String {
    Md5::digest(bytes).iter().fold(String::new(), |hex, byte| format!("{hex}{byte:02x}"))
}

/// Returns the XML of a page of parts of an upload.
fn page_of_parts(path: &LargePath, numbers: &[usize], next: Option<usize>) -> String {
    let mut xml = String::from("<ListPartsResult>");
    if let Some(next) = next {
        let _ = write!(xml, "<IsTruncated>true</IsTruncated><NextPartNumberMarker>{next}</NextPartNumberMarker>");
    }
    for &number in numbers {
        let part = path.part(number);
        let etag = hex_md5(part);
        let _ = write!(
            xml,
            "<Part><PartNumber>{number}</PartNumber><ETag>\"{etag}\"</ETag><Size>{}</Size></Part>",
            part.len()
        );
    }
    xml + "</ListPartsResult>"
}

/// Returns the XML of a page of uploads.
fn page_of_uploads(key: &str, id: &str, day: u32, is_last: bool) -> String {
    format!(
        "<ListMultipartUploadsResult><IsTruncated>{}</IsTruncated><NextKeyMarker>{key}</NextKeyMarker>\
         <NextUploadIdMarker>{id}</NextUploadIdMarker><Upload><Key>{key}</Key><UploadId>{id}</UploadId>\
         <Initiated>2026-01-0{day}T00:00:00.000Z</Initiated></Upload></ListMultipartUploadsResult>",
        !is_last
    )
}

/// The service lists the uploads in two pages, and the parts of the one with more parts too.
#[test]
fn all_pages_of_uploads_and_of_parts_are_considered() {
    let mut scratch = Scratch::new();
    Credentials::random().apply(&mut scratch);
    let path = LargePath::write(&mut scratch, random_seed(), FIVE_PARTS);
    let key = path.nar_key.clone();
    let respond = move |request: &lying_server::Request| {
        let has = |parameter: &str| request.query.split('&').any(|pair| pair == parameter);
        let xml = |body: String| Response::object(body).header("Content-Type", "application/xml");
        let is_first = !request.query.contains("marker=");
        match request.method.as_str() {
            "GET" if request.query.contains("uploads") && is_first => xml(page_of_uploads(&key, "newer", 2, false)),
            "GET" if request.query.contains("uploads") => xml(page_of_uploads(&key, "older", 1, true)),
            "GET" if has("uploadId=newer") => xml(page_of_parts(&path, &[1], None)),
            "GET" if has("uploadId=older") && is_first => xml(page_of_parts(&path, &[1, 2], Some(2))),
            "GET" if has("uploadId=older") => xml(page_of_parts(&path, &[4, 5], None)),
            "GET" if request.key.is_empty() => xml("<ListBucketResult></ListBucketResult>".to_owned()),
            "PUT" => Response::object(""),
            "POST" if has("uploadId=older") => {
                xml("<CompleteMultipartUploadResult><ETag>\"0-5\"</ETag></CompleteMultipartUploadResult>".to_owned())
            }
            _ => Response::no_such_key(),
        }
    };
    let server = LyingServer::start(respond);
    scratch.sh(&format!("s3-push --no-nix -q --part-size 5MiB '{}' < archive", server.s3_url())).ok();
    let requests = server.requests();
    let parts = requests.iter().filter(|request| request.query.contains("partNumber="));
    assert_eq!(parts.map(|request| request.method.as_str()).collect::<Vec<_>>(), ["PUT"]);
}

/// The upload no longer exists when it is to be completed, and there is an object of the right size.
#[test]
fn an_upload_that_another_process_completed_is_compared_by_its_entity_tag() {
    let mut scratch = Scratch::new();
    Credentials::random().apply(&mut scratch);
    let path = LargePath::write(&mut scratch, random_seed(), FIVE_PARTS);
    let part_tag = hex_md5(b"part");
    let object_tag = hex_md5(&Md5::digest(b"part").repeat(5));
    let other_tag = hex_md5(b"other");
    for (tag, status) in [(format!("{object_tag}-5"), 0), (format!("{other_tag}-5"), 2)] {
        let (nar, is_completed, part_tag) = (path.nar.clone(), AtomicBool::new(false), part_tag.clone());
        let server = LyingServer::start(move |request| {
            let has = |parameter: &str| request.query.contains(parameter);
            let xml = |body: &str| Response::object(body).header("Content-Type", "application/xml");
            match request.method.as_str() {
                "POST" if has("uploads") => {
                    xml("<InitiateMultipartUploadResult><UploadId>id</UploadId></InitiateMultipartUploadResult>")
                }
                "POST" => {
                    is_completed.store(true, Ordering::Relaxed);
                    Response::error(404, "NoSuchUpload", "The specified upload does not exist.")
                }
                "PUT" => Response::with_length("", 0).header("ETag", format!("\"{part_tag}\"")),
                "HEAD" if request.key.starts_with("nar/") && is_completed.load(Ordering::Relaxed) => {
                    Response::with_length(nar.clone(), nar.len() as u64).header("ETag", format!("\"{tag}\""))
                }
                "GET" if has("uploads") => xml("<ListMultipartUploadsResult></ListMultipartUploadsResult>"),
                "GET" if request.key.is_empty() => xml("<ListBucketResult></ListBucketResult>"),
                _ => Response::no_such_key(),
            }
        });
        let url = server.s3_url();
        let output = scratch.sh(&format!("s3-push --no-nix -q --attempts 1 --part-size 5MiB '{url}' < archive"));
        assert_eq!(output.status, status, "{}", output.stderr);
    }
}
