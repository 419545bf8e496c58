//! Services that ignore the conditions of writes: an update that another process overwrites is not lost.

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use cache_tests::EmbeddedS3;
use cache_tests::fault_proxy::{Fault, FaultProxy, ObjectKind, RequestKind};

use crate::fixtures::closure_fixture::{ARCHIVE, Fixture};

/// Returns the lines of a narinfo that are signatures by a key.
fn has_signature(s3: &EmbeddedS3, bucket: &str, key: &str, name: &str) -> bool {
    let narinfo = String::from_utf8(s3.get(bucket, key)).unwrap();
    narinfo.lines().any(|line| line.starts_with(&format!("Sig: {name}:")))
}

/// Another process has read the narinfo before we write it, and writes it after us.
#[test]
fn a_signature_that_another_process_overwrites_is_added_again() {
    let s3 = Arc::new(EmbeddedS3::start_ignoring_conditions());
    let mut fixture = Fixture::new();
    let bucket = fixture.fresh_bucket(&s3);
    let sh = |script: &str| fixture.scratch.sh(script).ok();
    sh(&format!(
        "{ARCHIVE} | s3-push -q --no-nix \"$C\"; for key in ours theirs; do cache-sign keygen $key $key.sec $key.pub; done"
    ));
    sh(
        "s3-pull --narinfo \"$C\" \"$LIB\" > text; cache-sign -k theirs.sec < text > theirs; cache-sign -k ours.sec < text > ours",
    );
    let key = Fixture::narinfo_key(&fixture.closure.lib);
    let theirs = fs::read(fixture.path("theirs")).unwrap();
    let (is_overwritten, reads) = (Arc::new(AtomicBool::new(false)), Mutex::new(0));
    let overwrite = {
        let (s3, bucket, key, is_overwritten) =
            (Arc::clone(&s3), bucket.clone(), key.clone(), Arc::clone(&is_overwritten));
        move || {
            if !is_overwritten.swap(true, Ordering::Relaxed) {
                s3.put(&bucket, &key, &theirs);
            }
        }
    };
    let plan_overwrite = overwrite.clone();
    let proxy = FaultProxy::start(&s3.endpoint(), move |request| {
        if request.kind() == RequestKind::GetObject(ObjectKind::Narinfo) {
            let mut reads = reads.lock().unwrap();
            *reads += 1;
            // The first read is before our write, the second one reads it back.
            if *reads == 2 {
                plan_overwrite();
            }
        }
        Fault::Pass
    });
    let url = s3.cache_url(&bucket).replace(&s3.endpoint(), proxy.endpoint());
    let pushed = fixture.scratch.sh(&format!("s3-push -v '{url}' < ours"));
    pushed.ok();
    overwrite();
    assert!(has_signature(&s3, &bucket, &key, "ours"), "our signature was lost: {:?}", proxy.requests());
    assert!(has_signature(&s3, &bucket, &key, "theirs"), "their signature was lost: {:?}", proxy.requests());
    let notes = pushed.stderr.matches("does not apply conditions to writes").count();
    assert_eq!(notes, 1, "{}", pushed.stderr);
}

/// A service that applies them is asked once, and its narinfos are not read back.
#[test]
fn narinfos_are_not_read_back_from_a_service_that_applies_conditions() {
    let (fixture, s3, bucket) = Fixture::embedded();
    fixture
        .scratch
        .sh(&format!("{ARCHIVE} | s3-push -q --no-nix \"$C\"; cache-sign keygen ours ours.sec ours.pub"))
        .ok();
    fixture.scratch.sh("s3-pull --narinfo --all \"$C\" | cache-sign -k ours.sec > ours").ok();
    let proxy = FaultProxy::start(&s3.endpoint(), |_| Fault::Pass);
    let url = s3.cache_url(&bucket).replace(&s3.endpoint(), proxy.endpoint());
    let pushed = fixture.scratch.sh(&format!("s3-push -v '{url}' < ours"));
    pushed.ok();
    let count = |kind: RequestKind| proxy.requests().into_iter().filter(|found| *found == kind).count();
    assert_eq!(count(RequestKind::PutObject(ObjectKind::CacheInfo)), 1, "{:?}", proxy.requests());
    assert_eq!(count(RequestKind::GetObject(ObjectKind::Narinfo)), 3, "{:?}", proxy.requests());
    assert!(!pushed.stderr.contains("conditions"), "{}", pushed.stderr);
}
