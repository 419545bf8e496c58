//! A key is replaced while clients read.

use crate::fixtures::bucket::{Fields, assert_closed, narinfo_keys, snapshot};
use crate::fixtures::closure_fixture;
use crate::fixtures::closure_fixture::Fixture;
use cache_tests::Minio;
use serde_json::Value;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;

/// Returns the ETag and the modification time of each object.
fn states(minio: &Minio, bucket: &str) -> BTreeMap<String, String> {
    let listing = String::from_utf8(minio.mc(&["ls", "--recursive", "--json", &format!("cache/{bucket}/")])).unwrap();
    let state = |line: &str| {
        let entry: Value = serde_json::from_str(line).unwrap();
        (entry["key"].as_str().unwrap().to_owned(), format!("{} {}", entry["etag"], entry["lastModified"]))
    };
    listing.lines().map(state).collect()
}

/// Sets a flag when it is dropped.
struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

fn summary(report: &str) -> Value {
    serde_json::from_str::<Value>(report.lines().last().unwrap()).unwrap()["summary"].clone()
}

#[test]
fn a_key_is_rotated_while_clients_read_and_no_nar_is_rewritten() {
    let Some(minio) = Minio::shared() else { return };
    let mut fixture = Fixture::new();
    let bucket = minio.make_bucket();
    let policy = fixture.scratch.sh(&format!("cache-policy --upload {bucket}")).ok();
    minio.add_user(&policy).apply(&mut fixture.scratch);
    fixture.scratch.env("C", minio.cache_url(&bucket));
    fixture.scratch.sh("cache-sign keygen old-1 old.sec old.pub; cache-sign keygen new-1 new.sec new.pub").ok();
    fixture.scratch.sh(&closure_fixture::PUBLISH.replace("key.sec", "old.sec")).ok();
    let before = states(minio, &bucket);
    let (stop, moved, reads) = (AtomicBool::new(false), AtomicBool::new(false), AtomicU32::new(0));
    let fixture = &fixture;
    thread::scope(|scope| {
        // A client that trusts the old key until all paths have the new one, and then the new one.
        let client = scope.spawn(|| {
            while !stop.load(Ordering::SeqCst) {
                let n = reads.load(Ordering::SeqCst);
                let key = if moved.load(Ordering::SeqCst) { "new.pub" } else { "old.pub" };
                let pull = format!("s3-pull -q -r --root out{n} --trusted-public-key-file {key} \"$C\" \"$TOP\"");
                fixture.scratch.sh(&pull).ok();
                reads.fetch_add(1, Ordering::SeqCst);
            }
        });
        // The client also stops when an assertion fails.
        let _stop = StopOnDrop(&stop);
        let read_once_more = |stage: &str| {
            let seen = reads.load(Ordering::SeqCst);
            while reads.load(Ordering::SeqCst) < seen + 2 && !client.is_finished() {
                thread::yield_now();
            }
            println!("{stage}: {} closures read so far", reads.load(Ordering::SeqCst));
        };
        read_once_more("before");
        let report = fixture.scratch.sh(
            "s3-pull --narinfo --all --trusted-public-key-file old.pub \"$C\" | cache-sign -k new.sec | s3-push --json \"$C\"",
        );
        let first = summary(&report.ok());
        println!("signed again: {first}\n{}", report.stderr.trim());
        assert_eq!((&first["signed"], &first["bytes"]), (&3.into(), &0.into()));
        // The fourth finds out whether the service applies conditions: it puts nix-cache-info with the condition that
        // there is none.
        assert_eq!(first["requests"]["put"], 4, "only three narinfos are written: {first}");
        read_once_more("signed by both, read with the old key");
        moved.store(true, Ordering::SeqCst);
        read_once_more("signed by both, read with the new key");
        // All clients trust the new key now: the old signatures are removed while the client reads.
        let report = fixture.scratch.sh(
            "s3-pull --narinfo --all --trusted-public-key-file new.pub \"$C\" | cache-sign -k new.sec --replace old-1 \
             | s3-push --json --exact \"$C\"",
        );
        let second = summary(&report.ok());
        println!("old key dropped: {second}");
        assert_eq!((&second["requests"]["put"], &second["bytes"]), (&4.into(), &0.into()), "{second}");
        read_once_more("signed by the new key alone");
        stop.store(true, Ordering::SeqCst);
        client.join().unwrap();
    });
    println!("{} closures read meanwhile", reads.load(Ordering::SeqCst));
    assert!(reads.load(Ordering::SeqCst) >= 8);
    let objects = snapshot(minio, &bucket);
    assert_closed(&objects);
    for key in narinfo_keys(&objects) {
        let narinfo = Fields::parse(&objects[key]);
        let signatures = narinfo.all("Sig");
        assert!(signatures.len() == 1 && signatures[0].starts_with("new-1:"), "{key}: {signatures:?}");
    }
    fixture.scratch.sh("s3-pull -r --root gone --trusted-public-key-file old.pub \"$C\" \"$TOP\"").fails(1);
    fixture.scratch.sh("s3-pull -r --root last --trusted-public-key-file new.pub \"$C\" \"$TOP\"").ok();
    fixture.assert_trees("last");
    let after = states(minio, &bucket);
    for (key, state) in &before {
        let same = after[key] == *state;
        println!("{key:70} {} {}", if same { "unchanged" } else { "rewritten" }, after[key]);
        assert_eq!(same, !key.ends_with(".narinfo"), "{key}");
    }
    assert_eq!(before.len(), after.len());
}
