//! Faults during a push.

use super::{CASES, GOODS, User, assert_clear, each, idle_flag, stocked};
use crate::fixtures::bucket::{Service, assert_closed, nar_keys};
use crate::fixtures::site::Site;
use cache_tests::fault_proxy::{
    ACCESS_DENIED, ERROR_IN_200, Fault, Kind, NOT_IMPLEMENTED, Request, What, always, every, once_per_kind, only,
};
use cache_tests::{EmbeddedS3, Minio, store_path};
use std::fs;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};
use std::thread;

#[test]
fn the_proxy_lets_requests_through_and_counts_them() {
    let user = User::new(EmbeddedS3::shared());
    let proxy = user.proxy(always(Fault::Pass));
    user.push_through(&proxy, Fault::Pass).ok();
    user.assert_complete("nothing");
    let kinds = proxy.requests();
    let count = |kind| kinds.iter().filter(|found| **found == kind).count();
    assert_eq!(count(Kind::PutObject(What::Narinfo)), 5, "{kinds:?}");
    assert_eq!(count(Kind::PutObject(What::Nar)), 4, "{kinds:?}");
    assert_eq!(count(Kind::PutObject(What::CacheInfo)), 1, "{kinds:?}");
    assert_eq!(count(Kind::CreateMultipartUpload), 1, "{kinds:?}");
    assert_eq!(count(Kind::UploadPart), 3, "{kinds:?}");
    assert_eq!(count(Kind::CompleteMultipartUpload), 1, "{kinds:?}");
    assert_eq!(count(Kind::Other) + count(Kind::AbortMultipartUpload), 0, "{kinds:?}");
    assert_eq!(proxy.faults(), 0);
}

/// One accident for each kind of request: a retry heals it.
#[test]
fn a_push_outlives_each_fault_once() {
    each(&CASES, |case| {
        let what = format!("{} once for each kind of request", case.name);
        let user = User::new(EmbeddedS3::shared());
        let proxy = user.proxy(once_per_kind(case.fault));
        let outcome = user.push_through(&proxy, case.fault);
        assert!(proxy.faults() > 8, "{what}: {:?}", proxy.seen());
        let completed = assert_clear(&what, &outcome, case.causes);
        user.assert_closed_and_completed(&what);
        assert!(completed, "{what}: a single accident ended the push: {}", outcome.stderr);
    });
}

#[test]
fn a_push_outlives_each_fault_at_every_third_request() {
    each(&CASES, |case| {
        let what = format!("{} at every third request", case.name);
        let user = User::new(EmbeddedS3::shared());
        let proxy = user.proxy(every(3, case.fault));
        assert_clear(&what, &user.push_through(&proxy, case.fault), case.causes);
        assert!(proxy.faults() > 0, "{what}");
        user.assert_closed_and_completed(&what);
    });
}

/// A real server: with ListMultipartUploads, locks, and an opinion on broken requests.
#[test]
fn minio_behind_faults() {
    let Some(minio) = Minio::shared() else { return };
    each(&CASES, |case| {
        let what = format!("MinIO, {} at every third request", case.name);
        let user = User::new(minio);
        let proxy = user.proxy(every(3, case.fault));
        assert_clear(&what, &user.push_through(&proxy, case.fault), case.causes);
        assert!(proxy.faults() > 0, "{what}");
        user.assert_closed_and_completed(&what);
    });
}

#[test]
fn a_fault_that_stays_ends_the_push_in_time() {
    each(&CASES[..7], |case| {
        let what = format!("{} at every request", case.name);
        let user = User::new(EmbeddedS3::shared());
        let proxy = user.proxy(always(case.fault));
        let flags = format!("--attempts 2 {}", idle_flag(case.fault));
        let completed = assert_clear(&what, &user.push(&user.through(&proxy), &flags), case.causes);
        assert!(!completed, "{what}: who has answered?");
        user.assert_closed_and_completed(&what);
    });
}

/// One thing that the service never does; all else works.
#[test]
fn a_fault_that_stays_at_one_kind_of_request_leaves_the_cache_closed() {
    use Kind::{
        CompleteMultipartUpload, CreateMultipartUpload, GetObject, HeadObject, ListMultipartUploads, ListObjects,
        PutObject, UploadPart,
    };
    // Whether the push can do without it.
    let kinds = [
        (GetObject(What::CacheInfo), false),
        (ListObjects, false),
        (PutObject(What::CacheInfo), false),
        (PutObject(What::Nar), false),
        (PutObject(What::Narinfo), false),
        (HeadObject(What::Nar), false),
        (ListMultipartUploads, true),
        (CreateMultipartUpload, false),
        (UploadPart, false),
        (CompleteMultipartUpload, false),
    ];
    let pairs: Vec<_> = kinds.iter().flat_map(|kind| [0, 3, 4].map(|at| (*kind, &CASES[at]))).collect();
    each(&pairs, |((kind, dispensable), case)| {
        let (kind, what) = (*kind, format!("{} at every {kind:?}", case.name));
        let user = User::new(EmbeddedS3::shared());
        let proxy = user.proxy(only(move |request| request.kind() == kind, always(case.fault)));
        let flags = format!("--attempts 2 {}", idle_flag(case.fault));
        let completed = assert_clear(&what, &user.push(&user.through(&proxy), &flags), case.causes);
        assert!(proxy.faults() > 0, "{what}: there was none");
        assert_eq!(completed, *dispensable, "{what}");
        user.assert_closed_and_completed(&what);
    });
}

#[test]
fn an_error_inside_200_is_an_error() {
    let completing = |request: &Request| request.kind() == Kind::CompleteMultipartUpload;
    let user = User::new(EmbeddedS3::shared());
    let proxy = user.proxy(only(completing, always(ERROR_IN_200)));
    let what = "200 with an error inside";
    assert!(!assert_clear(what, &user.push_through(&proxy, ERROR_IN_200), &["InternalError"]));
    assert!(proxy.faults() > 0);
    // Neither the NAR, which was never completed, nor the two narinfos that need it.
    let objects = user.objects();
    let big = GOODS.objects.iter().max_by_key(|(_, bytes)| bytes.len()).unwrap().0;
    assert!(!objects.contains_key(big));
    for path in &GOODS.paths[3..] {
        assert!(!objects.contains_key(&Site::narinfo_key(path)), "{path}");
    }
    user.assert_closed_and_completed(what);

    let user = User::new(EmbeddedS3::shared());
    let proxy = user.proxy(only(completing, once_per_kind(ERROR_IN_200)));
    let completed = assert_clear(what, &user.push_through(&proxy, ERROR_IN_200), &["InternalError"]);
    if completed {
        user.assert_complete(what);
    }
    user.assert_closed_and_completed(what);
}

/// Somebody else is faster with each object in turn: 412, and the push is content.
#[test]
fn an_object_of_the_same_bytes_that_comes_first_is_as_good() {
    let s3 = EmbeddedS3::shared();
    let user = User::new(s3);
    let bucket = user.bucket.clone();
    let plan = move |request: &Request| {
        if matches!(request.kind(), Kind::PutObject(_) | Kind::CompleteMultipartUpload) {
            let key = request.path.trim_start_matches(&format!("/{bucket}/")).to_owned();
            assert_eq!(request.header("if-none-match"), Some("*"), "{request:?}");
            s3.put(&bucket, &key, &GOODS.objects[&key]);
        }
        Fault::Pass
    };
    let proxy = user.proxy(plan);
    let outcome = user.push_through(&proxy, Fault::Pass);
    assert_eq!(outcome.ok(), "", "nothing of this was published here");
    assert_eq!(outcome.stderr, "");
    user.assert_complete("each object was there a moment before");
}

/// Under the key of a NAR lies something else, which came first or was cut off: it stays, and no narinfo names it.
#[test]
fn an_object_of_other_bytes_that_comes_first_is_refused() {
    let s3 = EmbeddedS3::shared();
    for which in [Kind::PutObject(What::Nar), Kind::CompleteMultipartUpload] {
        let user = User::new(s3);
        let bucket = user.bucket.clone();
        let plan = move |request: &Request| {
            if request.kind() == which {
                s3.put(&bucket, request.path.trim_start_matches(&format!("/{bucket}/")), b"cut off");
            }
            Fault::Pass
        };
        let proxy = user.proxy(plan);
        let said = user.push_through(&proxy, Fault::Pass).fails(1);
        assert!(said.contains("an object of 7 bytes"), "{said}");
        let objects = user.objects();
        assert_closed(&objects);
        let damaged: Vec<_> = nar_keys(&objects).into_iter().filter(|key| objects[*key] == b"cut off").collect();
        assert!(!damaged.is_empty());
        for key in damaged {
            s3.remove(&user.bucket, key);
        }
        user.assert_closed_and_completed("an object of other bytes was removed");
    }
}

/// Two pushers that both see an empty bucket before either writes.
fn race(service: &(impl Service + Sync)) -> String {
    let user = User::new(service);
    // Both have asked for nix-cache-info when they list, and both have listed when they write.
    let gates = [Kind::ListObjects, Kind::PutObject(What::CacheInfo)];
    let gates = Arc::new(gates.map(|kind| (kind, AtomicUsize::new(0), Barrier::new(2))));
    let proxy = user.proxy(move |request| {
        for (kind, passed, barrier) in gates.iter() {
            // One that is repeated finds the gate open.
            if request.kind() == *kind && passed.fetch_add(1, Ordering::SeqCst) < 2 {
                barrier.wait();
            }
        }
        Fault::Pass
    });
    let url = user.through(&proxy);
    let outcomes = thread::scope(|scope| {
        let pushers = [(); 2].map(|()| scope.spawn(|| user.push(&url, "")));
        pushers.map(|pusher| pusher.join().unwrap())
    });
    for outcome in &outcomes {
        outcome.ok();
        assert_eq!(outcome.stderr, "");
    }
    let lists = proxy.requests().into_iter().filter(|kind| *kind == Kind::ListObjects).count();
    assert_eq!(lists, 2, "nobody gave up and began again");
    user.assert_complete("two pushers at once");
    user.bucket
}

#[test]
fn two_pushers_at_once_both_succeed() {
    for _ in 0..3 {
        race(EmbeddedS3::shared());
    }
    let Some(minio) = Minio::shared() else { return };
    for _ in 0..2 {
        let bucket = race(minio);
        assert_eq!(
            String::from_utf8(minio.mc(&["ls", "--recursive", "--incomplete", &format!("cache/{bucket}")])).unwrap(),
            "",
            "an upload is left unfinished"
        );
    }
}

#[test]
fn a_service_without_conditional_writes_will_do() {
    let conditional =
        |request: &Request| request.header("if-none-match").is_some() || request.header("if-match").is_some();
    let user = User::new(EmbeddedS3::shared());
    let proxy = user.proxy(only(conditional, always(NOT_IMPLEMENTED)));
    assert!(assert_clear("no conditional writes", &user.push_through(&proxy, NOT_IMPLEMENTED), &[]));
    assert!(proxy.faults() > 0);
    user.assert_complete("no conditional writes");
    // Also where they are missing for uploads in parts only.
    let user = User::new(EmbeddedS3::shared());
    let completing = move |request: &Request| conditional(request) && request.kind() == Kind::CompleteMultipartUpload;
    let proxy = user.proxy(only(completing, always(NOT_IMPLEMENTED)));
    assert!(assert_clear("no conditional completing", &user.push_through(&proxy, NOT_IMPLEMENTED), &[]));
    assert_eq!(proxy.faults(), 1);
    user.assert_complete("no conditional completing");
}

#[test]
fn a_failed_check_is_never_missing() {
    let s3 = EmbeddedS3::shared();
    let bucket = stocked(s3);
    // By listing, and, where that is forbidden, path by path.
    let pairs: Vec<_> = CASES.iter().flat_map(|case| [(case, false), (case, true)]).collect();
    each(&pairs, |(case, by_head)| {
        let (fault, by_head) = (case.fault, *by_head);
        let what = format!("--missing, {} at every {}", case.name, if by_head { "HEAD" } else { "LIST" });
        if by_head && matches!(fault, Fault::TruncateResponse(_) | Fault::StallResponse(_)) {
            return; // its answer has no body
        }
        let user = User::of(s3, bucket.clone());
        fs::write(user.scratch.path().join("paths"), GOODS.paths.join("\n") + "\n").unwrap();
        let proxy = user.proxy(move |request| match request.kind() {
            Kind::ListObjects if by_head => ACCESS_DENIED,
            Kind::ListObjects | Kind::HeadObject(_) => fault,
            _ => Fault::Pass,
        });
        let url = user.through(&proxy);
        let script = format!("timeout 100 s3-push -q --attempts 2 --missing {} '{url}' < paths", idle_flag(fault));
        let outcome = user.scratch.sh(&script);
        assert!(!assert_clear(&what, &outcome, case.causes), "{what}: who has answered?");
        assert_eq!(outcome.text(), "", "{what}: it names paths that are there");
    });
}

#[test]
fn what_is_there_is_known_by_asking_where_listing_is_forbidden() {
    let s3 = EmbeddedS3::shared();
    let user = User::of(s3, stocked(s3));
    let absent = store_path("absent", 1);
    fs::write(user.scratch.path().join("paths"), format!("{}\n{absent}\n", GOODS.paths.join("\n"))).unwrap();
    let proxy = user.proxy(only(|request| request.kind() == Kind::ListObjects, always(ACCESS_DENIED)));
    let url = user.through(&proxy);
    assert_eq!(user.scratch.sh(&format!("s3-push --missing '{url}' < paths")).ok(), absent);
    let again = user.push(&url, "");
    assert_eq!((again.ok().as_str(), again.stderr.as_str()), ("", ""));
    user.assert_complete("listing is forbidden");
}
