//! A push beside the collector: doomed paths count as missing, are written again, and wait for the flag.

use std::time::{Duration, SystemTime};

use cache_tests::fault_proxy::{ACCESS_DENIED, Fault, FaultProxy};

use super::delete::{DELETE, doomed_cache, records};
use crate::fixtures::closure_fixture::{ARCHIVE, Fixture, PUBLISH};

#[test]
fn doomed_paths_are_missing_and_a_push_makes_them_young() {
    let (fixture, s3, bucket) = doomed_cache();
    let sh = |script: &str| fixture.scratch.sh(script);
    assert_eq!(sh("s3-push --missing \"$C\" < paths").ok().lines().count(), 3);
    sh(PUBLISH).ok();
    for path in fixture.closure.paths() {
        let written = s3.path(&bucket, &Fixture::narinfo_key(path)).metadata().unwrap().modified().unwrap();
        assert!(SystemTime::now().duration_since(written).unwrap_or_default() < Duration::from_hours(1), "{path}");
    }
    assert_eq!(sh(DELETE).ok(), "", "what was doomed is not deleted any more");
    fixture.assert_pulls("$C", "");
}

/// The narinfo keeps its signatures, also if the input has none.
#[test]
fn a_doomed_path_that_is_pushed_unsigned_stays_signed() {
    let (fixture, ..) = doomed_cache();
    let unsigned = ARCHIVE.replace("| cache-sign -k key.sec", "");
    assert_ne!(unsigned, ARCHIVE);
    let pushed = fixture.scratch.sh(&format!("{unsigned} | s3-push --no-nix \"$C\""));
    pushed.ok();
    assert!(!pushed.stderr.contains("without a signature"), "{}", pushed.stderr);
    fixture.assert_pulls("$C", "");
}

/// The records stay for the grace period of the NARs. Until then, what was published again is not published every time.
#[test]
fn paths_that_were_published_again_are_not_doomed_any_more() {
    let (fixture, s3, bucket) = doomed_cache();
    fixture.scratch.sh(PUBLISH).ok();
    let written = || {
        let paths = fixture.closure.paths();
        paths.map(|path| s3.path(&bucket, &Fixture::narinfo_key(path)).metadata().unwrap().modified().unwrap())
    };
    let before = written();
    assert_eq!(fixture.scratch.sh("s3-push --missing \"$C\" < paths").ok(), "");
    fixture.scratch.sh(&format!("{ARCHIVE} | s3-push --no-nix \"$C\"")).ok();
    assert_eq!(written(), before);
}

#[test]
fn a_reference_to_a_doomed_path_is_missing() {
    let (fixture, ..) = doomed_cache();
    let archive = ARCHIVE.replace("< paths", "< top");
    fixture.scratch.sh(&format!("echo \"$TOP\" > top; {archive} > archive")).ok();
    let stderr = fixture.scratch.sh("s3-push --no-nix \"$C\" < archive").fails(1);
    assert!(stderr.contains(&fixture.closure.app), "{stderr}");
}

#[test]
fn a_push_of_doomed_paths_waits_until_the_collector_has_ended() {
    let (fixture, s3, bucket) = doomed_cache();
    s3.put(&bucket, "gc/sweeping", b"Owner: another\n");
    let flag = s3.path(&bucket, "gc/sweeping");
    let script = format!(
        "{ARCHIVE} > archive; s3-push --no-nix \"$C\" < archive 2> log & \
         until grep -q 'waiting until the collector has ended' log; do sleep 0.05; done; rm '{}'; wait $!",
        flag.display()
    );
    let pushed = fixture.scratch.sh(&script).ok();
    assert_eq!(pushed.lines().count(), 3);
    fixture.assert_pulls("$C", "");
}

#[test]
fn a_push_that_has_waited_for_too_long_fails_and_publishes_no_referrer() {
    let (fixture, s3, bucket) = doomed_cache();
    // The collector has deleted the referrers, and is still at it.
    for path in [&fixture.closure.top, &fixture.closure.app] {
        s3.remove(&bucket, &Fixture::narinfo_key(path));
    }
    s3.put(&bucket, "gc/sweeping", b"Owner: another\n");
    let push = format!("{ARCHIVE} > archive; s3-push --no-nix --collector-timeout 0s \"$C\" < archive");
    let stderr = fixture.scratch.sh(&push).fails(2);
    assert!(stderr.contains("the collector has not ended after 0 seconds"), "{stderr}");
    assert!(!s3.objects(&bucket).contains(&Fixture::narinfo_key(&fixture.closure.app)));
}

/// Paths that are not doomed are published while a collector deletes.
#[test]
fn a_push_of_other_paths_does_not_wait() {
    let (fixture, s3, bucket) = Fixture::embedded();
    s3.put(&bucket, "gc/sweeping", b"Owner: another\n");
    fixture.scratch.sh(&PUBLISH.replace("--no-nix \"$C\"", "--no-nix --collector-timeout 0s \"$C\"")).ok();
    fixture.assert_pulls("$C", "");
}

/// The policy of a pusher lacks `gc/`: it would take for missing what a collector has doomed, and publish nothing anew.
#[test]
fn a_push_that_may_not_read_the_records_fails() {
    let (mut fixture, s3, bucket) = doomed_cache();
    let proxy = FaultProxy::start(&s3.endpoint(), |request| {
        let is_denied = request.key().starts_with("gc/") && matches!(request.method.as_str(), "GET" | "HEAD");
        if is_denied { ACCESS_DENIED } else { Fault::Pass }
    });
    let url = s3.cache_url(&bucket).replace(&s3.endpoint(), proxy.endpoint());
    fixture.scratch.env("C", &url);
    let push = "tar c -C c . | s3-push --no-nix \"$C\"";
    fixture.scratch.sh(&format!("mkdir c; {ARCHIVE} | tar x -C c")).ok();
    for command in [push, "echo \"$LIB\" | s3-push --missing \"$C\""] {
        let stderr = fixture.scratch.sh(command).fails(2);
        assert!(
            stderr.contains("cannot read s3://") && stderr.contains("requires s3:GetObject"),
            "{command}: {stderr}"
        );
    }
    // Without records, the listing tells that a collector deletes.
    for record in records(s3, &bucket) {
        s3.remove(&bucket, &record);
    }
    s3.put(&bucket, "gc/sweeping", b"Owner: another\n");
    let pin = "echo \"$LIB\" | s3-push pin --collector-timeout 0s \"$C\" name";
    let stderr = fixture.scratch.sh(pin).fails(2);
    assert!(stderr.contains("the collector has not ended"), "{stderr}");
}
