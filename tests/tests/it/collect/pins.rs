//! Pins: written, listed and removed; their names and contents are checked.

use std::sync::atomic::{AtomicBool, Ordering};

use cache_tests::fault_proxy::{ACCESS_DENIED, Fault, FaultProxy, ObjectKind, Request, RequestKind, always, only};
use cache_tests::store_path;

use crate::fixtures::closure_fixture::{Fixture, PUBLISH};

#[test]
fn a_pin_lists_its_paths_until_it_is_removed() {
    let (fixture, s3, bucket) = Fixture::embedded();
    let sh = |script: &str| fixture.scratch.sh(script);
    sh(PUBLISH).ok();
    assert_eq!(sh("s3-pull pins \"$C\"").ok(), "");
    sh("echo \"$TOP\" | s3-push pin \"$C\" main/2026-11-24").ok();
    sh("NIX_S3_CACHE=$C s3-push pin pr-17 < paths; cat paths paths | s3-push pin \"$C\" pr-2").ok();
    assert_eq!(s3.get(&bucket, "pins/main/2026-11-24"), format!("{}\n", fixture.closure.top).as_bytes());
    assert_eq!(sh("s3-pull pins \"$C\"").ok(), "main/2026-11-24\npr-17\npr-2");
    assert_eq!(sh("NIX_S3_CACHE=$C s3-pull pins").ok(), "main/2026-11-24\npr-17\npr-2");
    assert_eq!(sh("s3-pull pins \"$C\" main/2026-11-24").ok(), fixture.closure.top);
    assert_eq!(sh("s3-pull pins \"$C\" pr-2 | sort").ok(), sh("sort paths").ok());
    assert_eq!(sh("s3-push unpin -n \"$C\" 'pr-*'").ok(), "pr-17\npr-2");
    assert_eq!(sh("s3-push unpin \"$C\" 'pr-*'").ok(), "pr-17\npr-2");
    assert_eq!(sh("s3-pull pins \"$C\"").ok(), "main/2026-11-24");
    assert!(sh("s3-push unpin \"$C\" 'pr-*'").fails(1).contains("no pin matches pr-*"));
    // The others are removed.
    sh("s3-push pin -q \"$C\" pr-3 < paths").ok();
    let partly = sh("s3-push unpin \"$C\" pr-3 pr-4 'x*'");
    assert!(partly.stderr.contains("no pin matches pr-4 x*") && partly.text().trim() == "pr-3", "{}", partly.stderr);
    assert_eq!((partly.status, sh("s3-pull pins \"$C\"").ok()), (1, "main/2026-11-24".to_owned()));
    assert!(sh("s3-pull pins \"$C\" pr-2").fails(1).contains("there is no such pin"));
}

#[test]
fn a_pin_of_a_path_that_the_cache_lacks_is_refused() {
    let (fixture, s3, bucket) = Fixture::embedded();
    let stderr = fixture.scratch.sh("s3-push pin \"$C\" main < paths").fails(1);
    assert!(
        stderr.contains(&format!("{} (and 2 more) is not in the cache", fixture.closure.app))
            || stderr.contains("and 2 more"),
        "{stderr}"
    );
    assert_eq!(s3.objects(&bucket), Vec::<String>::new());
}

/// A collector that has read an expired pin of that name before the new one was written removes it.
#[test]
fn a_pin_that_a_collector_removes_meanwhile_is_written_again() {
    let (mut fixture, s3, bucket) = Fixture::embedded();
    fixture.scratch.sh(PUBLISH).ok();
    let (target, is_removed) = (bucket.clone(), AtomicBool::new(false));
    let proxy = FaultProxy::start(&s3.endpoint(), move |request| {
        let is_written = s3.objects(&target).contains(&"pins/main/1".to_owned());
        if request.key() == "gc/sweeping" && is_written && !is_removed.swap(true, Ordering::Relaxed) {
            s3.remove(&target, "pins/main/1");
        }
        Fault::Pass
    });
    fixture.scratch.env("C", s3.cache_url(&bucket).replace(&s3.endpoint(), proxy.endpoint()));
    fixture.scratch.sh("echo \"$TOP\" | s3-push pin \"$C\" main/1").ok();
    assert_eq!(s3.get(&bucket, "pins/main/1"), format!("{}\n", fixture.closure.top).as_bytes());
    let writes = proxy.requests().into_iter().filter(|kind| *kind == RequestKind::PutObject(ObjectKind::Other));
    assert_eq!(writes.count(), 2);
}

/// An uploader may be allowed to write pins and not to read them.
#[test]
fn a_pin_that_cannot_be_read_back_is_written_once() {
    let (mut fixture, s3, bucket) = Fixture::embedded();
    fixture.scratch.sh(PUBLISH).ok();
    let reads_pin =
        |request: &Request| request.key().starts_with("pins/") && matches!(request.method.as_str(), "GET" | "HEAD");
    let proxy = FaultProxy::start(&s3.endpoint(), only(reads_pin, always(ACCESS_DENIED)));
    fixture.scratch.env("C", s3.cache_url(&bucket).replace(&s3.endpoint(), proxy.endpoint()));
    fixture.scratch.sh("s3-push pin \"$C\" main < paths").ok();
    let writes = proxy.requests().into_iter().filter(|kind| *kind == RequestKind::PutObject(ObjectKind::Other));
    assert_eq!(writes.count(), 1);
}

#[test]
fn a_name_with_an_asterisk_that_exists_is_no_pattern() {
    let (fixture, s3, bucket) = Fixture::embedded();
    let sh = |script: &str| fixture.scratch.sh(script);
    sh(PUBLISH).ok();
    sh("s3-push pin \"$C\" main/1 < paths").ok();
    s3.put(&bucket, "pins/main/*", b"");
    assert_eq!(sh("s3-push unpin \"$C\" 'main/*'").ok(), "main/*");
    assert_eq!(sh("s3-push unpin \"$C\" 'main/*'").ok(), "main/1");
}

#[test]
fn a_missing_path_is_reported_with_the_pin_that_names_it() {
    let (fixture, s3, bucket) = Fixture::embedded();
    fixture.scratch.sh(PUBLISH).ok();
    let missing = store_path("missing", 1);
    s3.put(&bucket, "pins/main/1", format!("{}\n", fixture.closure.lib).as_bytes());
    s3.put(&bucket, "pins/main/2", format!("{}\n{missing}\n", fixture.closure.lib).as_bytes());
    let stderr = fixture.scratch.sh("s3-push collect --older-than 30d \"$C\"").fails(2);
    assert!(stderr.contains(&format!("/pins/main/2: {missing} is not in the cache")), "{stderr}");
}

/// MinIO stores objects as files, and hides `pins/main/1` when there is an object `pins/main`.
#[test]
fn a_pin_cannot_hide_another_one() {
    let Some((fixture, ..)) = Fixture::on_minio() else { return };
    let sh = |script: &str| fixture.scratch.sh(script);
    sh(PUBLISH).ok();
    sh("s3-push pin \"$C\" main/1 < paths; s3-push pin \"$C\" rel < paths").ok();
    for name in ["main", "rel/1"] {
        let stderr = sh(&format!("s3-push pin \"$C\" {name} < paths")).fails(1);
        assert!(stderr.contains("would hide each other") && stderr.contains("s3-push unpin"), "{stderr}");
    }
    sh("s3-push pin \"$C\" main/1 < paths; s3-push pin \"$C\" main-2 < paths").ok();
    assert_eq!(sh("s3-pull pins \"$C\"").ok(), "main-2\nmain/1\nrel");
}

#[test]
fn a_pin_that_is_not_one_is_named_by_its_key() {
    let (fixture, s3, bucket) = Fixture::embedded();
    s3.put(&bucket, "pins/with space", b"");
    let stderr = fixture.scratch.sh("s3-pull pins \"$C\"").fails(2);
    assert!(stderr.contains("/pins/with space: invalid pin name"), "{stderr}");
}

#[test]
fn invalid_names_and_lists_write_nothing() {
    let (fixture, s3, bucket) = Fixture::embedded();
    fixture.scratch.sh(PUBLISH).ok();
    let objects = s3.objects(&bucket);
    for name in ["''", "/x", "x/", "a//b", "..", "a/../../nix-cache-info", "'a b'", "'pr-*'", "$'a\\nb'"] {
        let stderr = fixture.scratch.sh(&format!("s3-push pin \"$C\" {name} < paths")).fails(2);
        assert!(stderr.contains("invalid pin name"), "{name}: {stderr}");
    }
    for (list, status) in [("printf ''", 1), ("printf \"$TOP\"", 1), ("echo /etc/passwd", 1)] {
        fixture.scratch.sh(&format!("{list} | s3-push pin \"$C\" main")).fails(status);
    }
    assert!(fixture.scratch.sh("s3-push pin \"$C\" < paths").fails(2).contains("name of the pin"));
    assert_eq!(s3.objects(&bucket), objects);
}

#[test]
fn commands_that_stand_for_a_flag_are_that_flag() {
    let (fixture, ..) = Fixture::embedded();
    fixture.scratch.sh(PUBLISH).ok();
    for (command, flag) in [
        ("narinfo -r \"$C\" \"$TOP\"", "--narinfo -r \"$C\" \"$TOP\""),
        ("archive --stdin \"$C\" < paths | sha256sum", "--archive --stdin \"$C\" < paths | sha256sum"),
        ("list --all \"$C\"", "--list --all \"$C\""),
        ("nar \"$C\" \"$TOP\" | sha256sum", "--nar \"$C\" \"$TOP\" | sha256sum"),
        ("cat \"$C\" \"$TOP/self\"", "--cat \"$C\" \"$TOP/self\""),
        ("export -r \"$C\" \"$TOP\" | sha256sum", "--export -r \"$C\" \"$TOP\" | sha256sum"),
    ] {
        let [command, flag] = [command, flag].map(|args| fixture.scratch.sh(&format!("s3-pull {args}")).ok());
        assert_eq!(command, flag);
    }
}
