//! Faults during a push.

use super::{CASES, CLOSURE, FaultFixture, assert_clear_result, bucket_with_closure, for_each_in_parallel, idle_flag};
use crate::fixtures::bucket::S3Server;
use crate::fixtures::closure_fixture::Fixture;
use cache_tests::fault_proxy::{
    ACCESS_DENIED, ERROR_IN_200, Fault, NOT_IMPLEMENTED, ObjectKind, Request, RequestKind, always, every,
    once_per_kind, only,
};
use cache_tests::{EmbeddedS3, Minio, store_path};
use std::fs;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};
use std::thread;

#[test]
fn the_proxy_forwards_and_counts_requests() {
    let fixture = FaultFixture::new(EmbeddedS3::shared());
    let proxy = fixture.proxy(always(Fault::Pass));
    fixture.push_through(&proxy, Fault::Pass).ok();
    fixture.assert_complete("nothing");
    let kinds = proxy.requests();
    let count = |kind| kinds.iter().filter(|found| **found == kind).count();
    assert_eq!(count(RequestKind::PutObject(ObjectKind::Narinfo)), 5, "{kinds:?}");
    assert_eq!(count(RequestKind::PutObject(ObjectKind::Nar)), 4, "{kinds:?}");
    assert_eq!(count(RequestKind::PutObject(ObjectKind::CacheInfo)), 1, "{kinds:?}");
    assert_eq!(count(RequestKind::CreateMultipartUpload), 1, "{kinds:?}");
    assert_eq!(count(RequestKind::UploadPart), 3, "{kinds:?}");
    assert_eq!(count(RequestKind::CompleteMultipartUpload), 1, "{kinds:?}");
    assert_eq!(count(RequestKind::Other) + count(RequestKind::AbortMultipartUpload), 0, "{kinds:?}");
    assert_eq!(proxy.faults(), 0);
}

/// One fault in each kind of request: a retry succeeds.
#[test]
fn a_push_survives_each_fault_once() {
    for_each_in_parallel(&CASES, |case| {
        let what = format!("{} once per kind of request", case.name);
        let fixture = FaultFixture::new(EmbeddedS3::shared());
        let proxy = fixture.proxy(once_per_kind(case.fault));
        let output = fixture.push_through(&proxy, case.fault);
        assert!(proxy.faults() > 8, "{what}: {:?}", proxy.seen());
        let completed = assert_clear_result(&what, &output, case.causes);
        fixture.assert_closed_and_completed(&what);
        assert!(completed, "{what}: a single fault ended the push: {}", output.stderr);
    });
}

#[test]
fn a_push_survives_or_reports_a_fault_in_every_third_request() {
    for_each_in_parallel(&CASES, |case| {
        let what = format!("{} at every third request", case.name);
        let fixture = FaultFixture::new(EmbeddedS3::shared());
        let proxy = fixture.proxy(every(3, case.fault));
        assert_clear_result(&what, &fixture.push_through(&proxy, case.fault), case.causes);
        assert!(proxy.faults() > 0, "{what}");
        fixture.assert_closed_and_completed(&what);
    });
}

/// A real server has ListMultipartUploads and locks, and validates requests.
#[test]
fn a_push_to_minio_survives_or_reports_faults() {
    let Some(minio) = Minio::shared() else { return };
    for_each_in_parallel(&CASES, |case| {
        let what = format!("MinIO, {} at every third request", case.name);
        let fixture = FaultFixture::new(minio);
        let proxy = fixture.proxy(every(3, case.fault));
        assert_clear_result(&what, &fixture.push_through(&proxy, case.fault), case.causes);
        assert!(proxy.faults() > 0, "{what}");
        fixture.assert_closed_and_completed(&what);
    });
}

#[test]
fn a_persistent_fault_ends_the_push_in_time() {
    for_each_in_parallel(&CASES[..7], |case| {
        let what = format!("{} at every request", case.name);
        let fixture = FaultFixture::new(EmbeddedS3::shared());
        let proxy = fixture.proxy(always(case.fault));
        let flags = format!("--attempts 2 {}", idle_flag(case.fault));
        let completed = assert_clear_result(&what, &fixture.push(&fixture.url_through(&proxy), &flags), case.causes);
        assert!(!completed, "{what}: it completed although every request failed");
        fixture.assert_closed_and_completed(&what);
    });
}

/// One kind of request always fails; all others succeed.
#[test]
fn a_persistent_fault_in_one_kind_of_request_leaves_the_cache_closed() {
    use RequestKind::{
        CompleteMultipartUpload, CreateMultipartUpload, GetObject, HeadObject, ListMultipartUploads, ListObjects,
        PutObject, UploadPart,
    };
    // Whether the push completes without it.
    let kinds = [
        (GetObject(ObjectKind::CacheInfo), false),
        (ListObjects, false),
        (PutObject(ObjectKind::CacheInfo), false),
        (PutObject(ObjectKind::Nar), false),
        (PutObject(ObjectKind::Narinfo), false),
        (HeadObject(ObjectKind::Nar), false),
        (ListMultipartUploads, true),
        (CreateMultipartUpload, false),
        (UploadPart, false),
        (CompleteMultipartUpload, false),
    ];
    let pairs: Vec<_> = kinds.iter().flat_map(|kind| [0, 3, 4].map(|at| (*kind, &CASES[at]))).collect();
    for_each_in_parallel(&pairs, |((kind, dispensable), case)| {
        let (kind, what) = (*kind, format!("{} at every {kind:?}", case.name));
        let fixture = FaultFixture::new(EmbeddedS3::shared());
        let proxy = fixture.proxy(only(move |request| request.kind() == kind, always(case.fault)));
        let flags = format!("--attempts 2 {}", idle_flag(case.fault));
        let completed = assert_clear_result(&what, &fixture.push(&fixture.url_through(&proxy), &flags), case.causes);
        assert!(proxy.faults() > 0, "{what}: no fault was injected");
        assert_eq!(completed, *dispensable, "{what}");
        fixture.assert_closed_and_completed(&what);
    });
}

#[test]
fn an_error_inside_200_is_an_error() {
    let completing = |request: &Request| request.kind() == RequestKind::CompleteMultipartUpload;
    let fixture = FaultFixture::new(EmbeddedS3::shared());
    let proxy = fixture.proxy(only(completing, always(ERROR_IN_200)));
    let what = "200 with an error inside";
    assert!(!assert_clear_result(what, &fixture.push_through(&proxy, ERROR_IN_200), &["InternalError"]));
    assert!(proxy.faults() > 0);
    // Neither the NAR, whose upload was never completed, nor the two narinfos that need it exist.
    let objects = fixture.objects();
    let big = CLOSURE.objects.iter().max_by_key(|(_, bytes)| bytes.len()).unwrap().0;
    assert!(!objects.contains_key(big));
    for path in &CLOSURE.paths[3..] {
        assert!(!objects.contains_key(&Fixture::narinfo_key(path)), "{path}");
    }
    fixture.assert_closed_and_completed(what);

    let fixture = FaultFixture::new(EmbeddedS3::shared());
    let proxy = fixture.proxy(only(completing, once_per_kind(ERROR_IN_200)));
    let completed = assert_clear_result(what, &fixture.push_through(&proxy, ERROR_IN_200), &["InternalError"]);
    if completed {
        fixture.assert_complete(what);
    }
    fixture.assert_closed_and_completed(what);
}

/// Another client writes each object first: the conditional write fails with 412, and the push accepts the object.
#[test]
fn an_object_written_first_with_the_same_bytes_is_accepted() {
    let s3 = EmbeddedS3::shared();
    let fixture = FaultFixture::new(s3);
    let bucket = fixture.bucket.clone();
    let plan = move |request: &Request| {
        if matches!(request.kind(), RequestKind::PutObject(_) | RequestKind::CompleteMultipartUpload) {
            let key = request.path.trim_start_matches(&format!("/{bucket}/")).to_owned();
            assert_eq!(request.header("if-none-match"), Some("*"), "{request:?}");
            s3.put(&bucket, &key, &CLOSURE.objects[&key]);
        }
        Fault::Pass
    };
    let proxy = fixture.proxy(plan);
    let output = fixture.push_through(&proxy, Fault::Pass);
    assert_eq!(output.ok(), "", "this push published no path");
    assert_eq!(output.stderr, "");
    fixture.assert_complete("each object was written by another client");
}

/// Another client writes an object with different bytes under the key of a NAR. It is replaced, also
/// when the parts of a large NAR are completed.
#[test]
fn an_object_written_first_with_different_bytes_is_replaced() {
    let s3 = EmbeddedS3::shared();
    for which in [RequestKind::PutObject(ObjectKind::Nar), RequestKind::CompleteMultipartUpload] {
        let fixture = FaultFixture::new(s3);
        let bucket = fixture.bucket.clone();
        let plan = move |request: &Request| {
            if request.kind() == which {
                s3.put(&bucket, request.path.trim_start_matches(&format!("/{bucket}/")), b"cut off");
            }
            Fault::Pass
        };
        let proxy = fixture.proxy(plan);
        let pushed = fixture.push_through(&proxy, Fault::Pass);
        pushed.ok();
        assert!(pushed.stderr.contains("damaged and has been replaced"), "{}", pushed.stderr);
        fixture.assert_complete("each damaged object was replaced");
    }
}

/// Runs two pushes that both see an empty bucket before either writes.
fn push_concurrently(service: &(impl S3Server + Sync)) -> String {
    let fixture = FaultFixture::new(service);
    // Both have requested nix-cache-info before they list, and both have listed before they write.
    let gates = [RequestKind::ListObjects, RequestKind::PutObject(ObjectKind::CacheInfo)];
    let gates = Arc::new(gates.map(|kind| (kind, AtomicUsize::new(0), Barrier::new(2))));
    let proxy = fixture.proxy(move |request| {
        for (kind, passed, barrier) in gates.iter() {
            // A retried request is not held back.
            if request.kind() == *kind && passed.fetch_add(1, Ordering::SeqCst) < 2 {
                barrier.wait();
            }
        }
        Fault::Pass
    });
    let url = fixture.url_through(&proxy);
    let outcomes = thread::scope(|scope| {
        let pushers = [(); 2].map(|()| scope.spawn(|| fixture.push(&url, "")));
        pushers.map(|pusher| pusher.join().unwrap())
    });
    for output in &outcomes {
        output.ok();
        assert_eq!(output.stderr, "");
    }
    let lists = proxy.requests().into_iter().filter(|kind| *kind == RequestKind::ListObjects).count();
    // Each lists gc/ and the cache.
    assert_eq!(lists, 4, "neither push started over");
    fixture.assert_complete("two concurrent pushes");
    fixture.bucket
}

#[test]
fn two_concurrent_pushes_both_succeed() {
    for _ in 0..3 {
        push_concurrently(EmbeddedS3::shared());
    }
    let Some(minio) = Minio::shared() else { return };
    for _ in 0..2 {
        let bucket = push_concurrently(minio);
        assert_eq!(
            String::from_utf8(minio.mc(&["ls", "--recursive", "--incomplete", &format!("cache/{bucket}")])).unwrap(),
            "",
            "an upload is incomplete"
        );
    }
}

#[test]
fn a_service_without_conditional_writes_is_supported() {
    let conditional =
        |request: &Request| request.header("if-none-match").is_some() || request.header("if-match").is_some();
    let fixture = FaultFixture::new(EmbeddedS3::shared());
    let proxy = fixture.proxy(only(conditional, always(NOT_IMPLEMENTED)));
    assert!(assert_clear_result("no conditional writes", &fixture.push_through(&proxy, NOT_IMPLEMENTED), &[]));
    assert!(proxy.faults() > 0);
    fixture.assert_complete("no conditional writes");
    // Also if only multipart uploads do not support them.
    let fixture = FaultFixture::new(EmbeddedS3::shared());
    let completing =
        move |request: &Request| conditional(request) && request.kind() == RequestKind::CompleteMultipartUpload;
    let proxy = fixture.proxy(only(completing, always(NOT_IMPLEMENTED)));
    assert!(assert_clear_result("no conditional completing", &fixture.push_through(&proxy, NOT_IMPLEMENTED), &[]));
    assert_eq!(proxy.faults(), 1);
    fixture.assert_complete("no conditional completing");
}

#[test]
fn a_failed_lookup_is_not_reported_as_missing() {
    let s3 = EmbeddedS3::shared();
    let bucket = bucket_with_closure(s3);
    // By listing, and by HEAD for each path if listing is forbidden.
    let pairs: Vec<_> = CASES.iter().flat_map(|case| [(case, false), (case, true)]).collect();
    for_each_in_parallel(&pairs, |(case, by_head)| {
        let (fault, by_head) = (case.fault, *by_head);
        let what = format!("--missing, {} at every {}", case.name, if by_head { "HEAD" } else { "LIST" });
        if by_head && matches!(fault, Fault::TruncateResponse(_) | Fault::StallResponse(_)) {
            return; // its answer has no body
        }
        let fixture = FaultFixture::with_bucket(s3, bucket.clone());
        fs::write(fixture.scratch.path().join("paths"), CLOSURE.paths.join("\n") + "\n").unwrap();
        let proxy = fixture.proxy(move |request| match request.kind() {
            RequestKind::ListObjects if by_head => ACCESS_DENIED,
            RequestKind::ListObjects | RequestKind::HeadObject(_) => fault,
            _ => Fault::Pass,
        });
        let url = fixture.url_through(&proxy);
        let script = format!("timeout 100 s3-push -q --attempts 2 --missing {} '{url}' < paths", idle_flag(fault));
        let output = fixture.scratch.sh(&script);
        assert!(
            !assert_clear_result(&what, &output, case.causes),
            "{what}: it completed although every request failed"
        );
        assert_eq!(output.text(), "", "{what}: it reports existing paths as missing");
    });
}

#[test]
fn existing_paths_are_found_by_head_if_listing_is_forbidden() {
    let s3 = EmbeddedS3::shared();
    let fixture = FaultFixture::with_bucket(s3, bucket_with_closure(s3));
    let absent = store_path("absent", 1);
    fs::write(fixture.scratch.path().join("paths"), format!("{}\n{absent}\n", CLOSURE.paths.join("\n"))).unwrap();
    let proxy = fixture.proxy(only(|request| request.kind() == RequestKind::ListObjects, always(ACCESS_DENIED)));
    let url = fixture.url_through(&proxy);
    assert_eq!(fixture.scratch.sh(&format!("s3-push --missing '{url}' < paths")).ok(), absent);
    let again = fixture.push(&url, "");
    assert_eq!((again.ok().as_str(), again.stderr.as_str()), ("", ""));
    fixture.assert_complete("listing is forbidden");
}
