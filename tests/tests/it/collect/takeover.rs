//! Collectors that were killed, and those that take over from them.

use std::process::Stdio;
use std::sync::Mutex;
use std::sync::mpsc;
use std::time::Duration;

use cache_tests::EmbeddedS3;
use cache_tests::fault_proxy::{Fault, FaultProxy, Request};

use super::dead::set_age;
use super::delete::{DELETE, doomed_cache, narinfo_count};
use crate::fixtures::bucket::{assert_closed, snapshot};

const MINUTE: Duration = Duration::from_mins(1);

/// Another collector has set the flag so long ago.
fn set_flag(s3: &EmbeddedS3, bucket: &str, age: Duration) {
    s3.put(bucket, "gc/sweeping", b"Owner: another\n");
    set_age(s3, bucket, "gc/sweeping", age);
}

#[track_caller]
fn assert_bucket_closed(s3: &EmbeddedS3, bucket: &str) {
    let mut objects = snapshot(s3, bucket);
    objects.retain(|key, _| !key.starts_with("gc/") && !key.starts_with("pins/"));
    assert_closed(&objects);
}

fn is_narinfo_deletion(request: &Request) -> bool {
    let deletes_many = request.method == "POST" && request.has_parameter("delete");
    deletes_many || (request.method == "DELETE" && request.key().ends_with(".narinfo"))
}

#[test]
fn a_flag_older_than_fifteen_minutes_is_taken_over() {
    let (fixture, s3, bucket) = doomed_cache();
    set_flag(s3, &bucket, MINUTE * 14);
    let stderr = fixture.scratch.sh(DELETE).fails(2);
    assert!(stderr.contains("another collector is deleting"), "{stderr}");
    assert_eq!((narinfo_count(s3, &bucket), s3.get(&bucket, "gc/sweeping").len()), (3, 15), "nothing has changed");
    set_flag(s3, &bucket, MINUTE * 15);
    let take_over = DELETE.replace("push delete", "push delete --takeover-pause 0s");
    assert_eq!(fixture.scratch.sh(&take_over).ok().lines().count(), 3);
    assert!(!s3.objects(&bucket).contains(&"gc/sweeping".to_owned()));
}

/// Another collector has written its flag between the read and the write of this one.
#[test]
fn a_flag_that_another_collector_takes_over_first_stays() {
    let (mut fixture, s3, bucket) = doomed_cache();
    set_flag(s3, &bucket, MINUTE * 15);
    let target = bucket.clone();
    let proxy = FaultProxy::start(&s3.endpoint(), move |request| {
        if request.method == "PUT" && request.key() == "gc/sweeping" {
            s3.put(&target, "gc/sweeping", b"Owner: faster\n");
        }
        Fault::Pass
    });
    fixture.scratch.env("C", s3.cache_url(&bucket).replace(&s3.endpoint(), proxy.endpoint()));
    let delete = DELETE.replace("push delete", "push delete --takeover-pause 0s");
    let stderr = fixture.scratch.sh(&delete).fails(2);
    assert!(stderr.contains("another collector is deleting"), "{stderr}");
    assert_eq!((s3.get(&bucket, "gc/sweeping"), narinfo_count(s3, &bucket)), (b"Owner: faster\n".to_vec(), 3));
}

/// It would make pins and some pushes wait, although no collector deletes.
#[test]
fn an_abandoned_flag_is_removed_also_if_nothing_is_deleted() {
    let (fixture, s3, bucket) = doomed_cache();
    fixture.scratch.sh("s3-push pin \"$C\" main < paths").ok();
    for command in [
        "delete --takeover-pause 0s \"$C\" < /dev/null",
        "delete --takeover-pause 0s --nars \"$C\"",
        "collect --takeover-pause 0s --older-than 30d \"$C\"",
    ] {
        for (age, is_removed) in [(MINUTE * 14, false), (MINUTE * 15, true)] {
            set_flag(s3, &bucket, age);
            fixture.scratch.sh(&format!("s3-push {command}")).ok();
            assert_eq!(!s3.objects(&bucket).contains(&"gc/sweeping".to_owned()), is_removed, "{command}: {age:?}");
        }
    }
    assert_eq!(narinfo_count(s3, &bucket), 3);
}

/// The owner of the flag was slow, not dead: it stops when it finds the flag of another collector.
#[test]
fn a_collector_whose_flag_was_taken_over_deletes_nothing_more() {
    let (mut fixture, s3, bucket) = doomed_cache();
    let taken = bucket.clone();
    let proxy = FaultProxy::start(&s3.endpoint(), move |request| {
        // After the first deletion.
        if is_narinfo_deletion(request) {
            s3.put(&taken, "gc/sweeping", b"Owner: another\n");
        }
        Fault::Pass
    });
    fixture.scratch.env("C", s3.cache_url(&bucket).replace(&s3.endpoint(), proxy.endpoint()));
    let stderr = fixture.scratch.sh(DELETE).fails(2);
    assert!(stderr.contains("another collector has taken over; nothing more is deleted"), "{stderr}");
    assert_eq!(narinfo_count(s3, &bucket), 2);
    assert_bucket_closed(s3, &bucket);
    assert_eq!(s3.get(&bucket, "gc/sweeping"), b"Owner: another\n", "the flag of the other one stays");
}

/// The collector has deleted the first of three paths, each of which references the next one, when it is killed.
#[test]
fn a_killed_collector_leaves_the_cache_closed_and_the_next_one_continues() {
    let (mut fixture, s3, bucket) = doomed_cache();
    let (sender, stalled) = mpsc::channel();
    let (sender, deletions) = (Mutex::new(sender), Mutex::new(0));
    let proxy = FaultProxy::start(&s3.endpoint(), move |request| {
        if !is_narinfo_deletion(request) {
            return Fault::Pass;
        }
        let mut deletions = deletions.lock().unwrap();
        *deletions += 1;
        if *deletions < 2 {
            return Fault::Pass;
        }
        sender.lock().unwrap().send(()).unwrap();
        Fault::Stall
    });
    let direct = s3.cache_url(&bucket);
    fixture.scratch.env("C", &direct);
    let url = direct.replace(&s3.endpoint(), proxy.endpoint());
    let mut delete = fixture.scratch.tool("s3-push", &["delete", "--max-delete", "100%", &url]);
    let input = std::fs::File::open(fixture.path("dead")).unwrap();
    let mut collector = delete.stdin(input).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    stalled.recv().unwrap();
    collector.kill().unwrap();
    collector.wait().unwrap();
    assert_eq!(narinfo_count(s3, &bucket), 2);
    assert_bucket_closed(s3, &bucket);
    let delete = DELETE.replace("push delete", "push delete --takeover-pause 0s");
    assert!(fixture.scratch.sh(&delete).fails(2).contains("another collector is deleting"));
    assert_eq!(narinfo_count(s3, &bucket), 2);
    set_age(s3, &bucket, "gc/sweeping", MINUTE * 15);
    let output = fixture.scratch.sh(&delete);
    assert!(output.stderr.contains("1 path is skipped: not in the cache"), "{}", output.stderr);
    assert_eq!(output.ok(), [&*fixture.closure.app, &fixture.closure.lib].join("\n"));
    assert!(!s3.objects(&bucket).contains(&"gc/sweeping".to_owned()));
}

/// A collector may have read the pins before a new one was written, and delete its paths.
#[test]
fn a_pin_is_not_reported_while_a_collector_may_not_have_seen_it() {
    let (mut fixture, s3, bucket) = doomed_cache();
    let pin = "echo \"$TOP\" | s3-push pin --collector-timeout 0s \"$C\" main";
    set_flag(s3, &bucket, MINUTE);
    let stderr = fixture.scratch.sh(pin).fails(2);
    assert!(stderr.contains("the collector has not ended after 0 seconds"), "{stderr}");
    assert!(!s3.objects(&bucket).contains(&"pins/main".to_owned()), "nothing is pinned that may be deleted");
    // It begins when the pin is written.
    s3.remove(&bucket, "gc/sweeping");
    let flagged = bucket.clone();
    let proxy = FaultProxy::start(&s3.endpoint(), move |request| {
        if request.method == "PUT" && request.key() == "pins/main" {
            s3.put(&flagged, "gc/sweeping", b"Owner: another\n");
        }
        Fault::Pass
    });
    fixture.scratch.env("C", s3.cache_url(&bucket).replace(&s3.endpoint(), proxy.endpoint()));
    let stderr = fixture.scratch.sh(pin).fails(2);
    assert!(stderr.contains("the collector has not ended after 0 seconds"), "{stderr}");
    s3.remove(&bucket, "gc/sweeping");
    fixture.scratch.sh(pin).fails(2);
    s3.remove(&bucket, "gc/sweeping");
    fixture.scratch.env("C", s3.cache_url(&bucket));
    fixture.scratch.sh(pin).ok();
    assert_eq!(fixture.scratch.sh(DELETE).ok(), "", "the pin keeps the closure");
    assert_eq!(narinfo_count(s3, &bucket), 3);
}

/// Another collector takes the flag over between the first listing of this one and its own attempt.
#[test]
fn a_flag_that_was_taken_over_since_the_listing_stays() {
    let (mut fixture, s3, bucket) = doomed_cache();
    set_flag(s3, &bucket, MINUTE * 15);
    let (target, listings) = (bucket.clone(), Mutex::new(0));
    let proxy = FaultProxy::start(&s3.endpoint(), move |request| {
        // The listing of narinfos comes after that of the flag.
        if request.method == "GET" && request.has_parameter("list-type") && !request.query.contains("gc") {
            let mut listings = listings.lock().unwrap();
            *listings += 1;
            if *listings == 1 {
                s3.put(&target, "gc/sweeping", b"Owner: faster\n");
            }
        }
        Fault::Pass
    });
    fixture.scratch.env("C", s3.cache_url(&bucket).replace(&s3.endpoint(), proxy.endpoint()));
    let stderr = fixture.scratch.sh(&DELETE.replace("push delete", "push delete --takeover-pause 0s")).fails(2);
    assert!(stderr.contains("another collector is deleting"), "{stderr}");
    assert_eq!(s3.get(&bucket, "gc/sweeping"), b"Owner: faster\n");
    assert_eq!(narinfo_count(s3, &bucket), 3);
}
