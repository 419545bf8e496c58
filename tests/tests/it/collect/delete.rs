//! `s3-push delete`: paths are doomed, and deleted a day later unless something needs them; undo.

use std::time::Duration;

use cache_tests::EmbeddedS3;

use super::dead::{old_cache, set_age};
use crate::fixtures::bucket::{assert_closed, nar_keys, narinfo_keys, snapshot};
use crate::fixtures::closure_fixture::{Fixture, PUBLISH};

pub const DEAD: &str = "s3-pull dead -q --older-than 30d --no-roots \"$C\" > dead";
pub const DELETE: &str = "s3-push delete --max-delete 100% \"$C\" < dead";
const DAY: Duration = Duration::from_hours(24);

/// Lets time pass: the records are older by so much.
pub fn age_records(s3: &EmbeddedS3, bucket: &str, age: Duration) {
    for key in records(s3, bucket) {
        set_age(s3, bucket, &key, age);
    }
}

pub fn records(s3: &EmbeddedS3, bucket: &str) -> Vec<String> {
    s3.objects(bucket).into_iter().filter(|key| key.starts_with("gc/2")).collect()
}

pub fn narinfo_count(s3: &EmbeddedS3, bucket: &str) -> usize {
    narinfo_keys(&snapshot(s3, bucket)).iter().filter(|key| !key.starts_with("gc/")).count()
}

/// A cache whose paths are all doomed for a day.
pub fn doomed_cache() -> (Fixture, &'static EmbeddedS3, String) {
    let (fixture, s3, bucket) = old_cache();
    fixture.scratch.sh(&format!("{DEAD}; {DELETE}")).ok();
    age_records(s3, &bucket, DAY);
    (fixture, s3, bucket)
}

#[test]
fn a_dry_run_prints_what_a_run_deletes_and_writes_nothing() {
    let (fixture, s3, bucket) = old_cache();
    let sh = |script: &str| fixture.scratch.sh(script);
    let collect = "s3-push collect --older-than 30d --no-roots --max-delete 100% \"$C\"";
    let dry_run = |s3: &EmbeddedS3| {
        let before = snapshot(s3, &bucket);
        let outputs = [sh(&format!("{collect} -n")), sh(&format!("{DEAD}; {DELETE} -n"))];
        assert_eq!(snapshot(s3, &bucket), before);
        outputs.map(|output| {
            output.ok();
            (output.text(), output.stderr)
        })
    };
    for (deleted, stderr) in dry_run(s3) {
        assert!(deleted.is_empty() && stderr.contains("3 paths would be doomed"), "{stderr}");
    }
    sh(collect).ok();
    age_records(s3, &bucket, DAY);
    let planned = dry_run(s3);
    for (_, stderr) in &planned {
        assert!(stderr.contains("3 paths would be deleted"), "{stderr}");
    }
    // The NARs of these paths are not needed then.
    assert!(planned[0].1.contains("0 would be deleted, 3 would be doomed"), "{}", planned[0].1);
    let nars = sh("s3-push delete --nars --dry-run --max-delete 100% \"$C\"");
    assert!(nars.ok().is_empty() && nars.stderr.contains("0 would be deleted, 0 would be doomed"), "{}", nars.stderr);
    // Where a run fails, the dry run does too.
    s3.put(&bucket, "gc/sweeping", b"Owner: another\n");
    assert!(sh(&format!("{collect} -n")).fails(2).contains("another collector is deleting"));
    s3.remove(&bucket, "gc/sweeping");
    let deleted = sh(&format!("{DEAD}; {DELETE}")).text();
    assert_eq!(planned.map(|(planned, _)| planned), [deleted.clone(), deleted]);
}

#[test]
fn paths_are_doomed_first_and_deleted_a_day_later() {
    let (fixture, s3, bucket) = old_cache();
    let first = fixture.scratch.sh(&format!("{DEAD}; {DELETE}"));
    assert!(first.stderr.contains("3 paths are doomed: run the command again in 24 hours"), "{}", first.stderr);
    assert_eq!(first.ok(), "");
    assert_eq!(narinfo_count(s3, &bucket), 3);
    let record = records(s3, &bucket);
    assert_eq!(record.len(), 1, "{record:?}");
    assert_eq!(s3.get(&bucket, &record[0]), std::fs::read(fixture.path("dead")).unwrap(), "the record is the undo log");
    // An hour is missing.
    age_records(s3, &bucket, Duration::from_hours(23));
    let early = fixture.scratch.sh(DELETE);
    assert!(early.stderr.contains("3 paths are doomed and can be deleted in 1 hour"), "{}", early.stderr);
    assert_eq!(early.ok(), "");
    age_records(s3, &bucket, DAY);
    let closure = &fixture.closure;
    assert_eq!(fixture.scratch.sh(DELETE).ok(), [&*closure.top, &closure.app, &closure.lib].join("\n"));
    let objects = snapshot(s3, &bucket);
    assert_eq!((narinfo_count(s3, &bucket), nar_keys(&objects).len()), (0, 3), "NARs stay");
    assert_eq!(records(s3, &bucket).len(), 1);
    assert!(!objects.contains_key("gc/sweeping") && !objects.contains_key("gc/clock"));
}

#[test]
fn pushing_the_deleted_text_undoes_the_deletion() {
    let (fixture, s3, bucket) = doomed_cache();
    fixture.scratch.sh(DELETE).ok();
    assert_eq!(narinfo_count(s3, &bucket), 0);
    fixture.scratch.sh("s3-push -q \"$C\" < dead").ok();
    fixture.assert_pulls("$C", "");
    // What was published again is recent, and not deleted by the list of yesterday.
    assert_eq!(fixture.scratch.sh(DELETE).ok(), "");
    fixture.assert_pulls("$C", "");
}

#[test]
fn what_was_written_changed_pinned_or_referenced_since_stays_with_its_closure() {
    type Change = fn(&Fixture, &EmbeddedS3, &str);
    let cases: [(&str, Change, usize); 4] = [
        (
            "written since",
            |fixture, s3, bucket| set_age(s3, bucket, &Fixture::narinfo_key(&fixture.closure.app), Duration::ZERO),
            2,
        ),
        (
            "changed",
            |fixture, s3, bucket| {
                let key = Fixture::narinfo_key(&fixture.closure.app);
                let text = [&s3.get(bucket, &key)[..], b"X: y\n"].concat();
                s3.put(bucket, &key, &text);
                set_age(s3, bucket, &key, DAY * 40);
            },
            2,
        ),
        ("pinned", |fixture, _, _| drop(fixture.scratch.sh("echo \"$APP\" | s3-push pin \"$C\" main").ok()), 2),
        (
            "referenced",
            |fixture, s3, bucket| {
                // A path that is not in the list, by a pusher that knows nothing of the protocol.
                let key = Fixture::narinfo_key(&fixture.closure.app);
                let other = "0".repeat(32);
                let text = String::from_utf8(s3.get(bucket, &key)).unwrap();
                let text = text.replace(&key[..32], &other);
                s3.put(bucket, &format!("{other}.narinfo"), text.as_bytes());
            },
            2,
        ),
    ];
    for (what, change, count) in cases {
        let (fixture, s3, bucket) = doomed_cache();
        change(&fixture, s3, &bucket);
        let output = fixture.scratch.sh(DELETE);
        output.ok();
        let expected = if what == "referenced" {
            vec![&fixture.closure.lib]
        } else {
            vec![&fixture.closure.app, &fixture.closure.lib]
        };
        let objects = s3.objects(&bucket);
        for path in &expected {
            assert!(objects.contains(&Fixture::narinfo_key(path)), "{what}: {path} is deleted: {}", output.stderr);
        }
        assert_eq!(narinfo_count(s3, &bucket), count, "{what}: {}", output.stderr);
        let mut closed = snapshot(s3, &bucket);
        closed.retain(|key, _| !key.starts_with("gc/"));
        assert_closed(&closed);
    }
}

#[test]
fn more_than_the_maximum_share_is_refused() {
    let (fixture, s3, bucket) = old_cache();
    let before = s3.objects(&bucket);
    fixture.scratch.sh(DEAD).ok();
    let stderr = fixture.scratch.sh("s3-push delete \"$C\" < dead").fails(1);
    assert!(stderr.contains("3 of 3 paths (100%) would be deleted, more than --max-delete 20%"), "{stderr}");
    assert_eq!(s3.objects(&bucket), before);
}

#[test]
fn now_deletes_at_once_and_warns() {
    let (fixture, s3, bucket) = old_cache();
    let output = fixture.scratch.sh(&format!("{DEAD}; s3-push delete --now --max-delete 100% \"$C\" < dead"));
    assert!(output.stderr.contains("warning: --now"), "{}", output.stderr);
    assert_eq!(output.ok().lines().count(), 3);
    assert_eq!(narinfo_count(s3, &bucket), 0);
    let [record] = records(s3, &bucket).try_into().unwrap();
    assert_eq!(paths_of(&s3.get(&bucket, &record)), paths_of(&std::fs::read(fixture.path("dead")).unwrap()));
    fixture.scratch.sh("s3-push -q \"$C\" < dead").ok();
    fixture.assert_pulls("$C", "");
}

/// Returns the store paths of narinfo text, sorted.
fn paths_of(text: &[u8]) -> Vec<String> {
    let text = str::from_utf8(text).unwrap();
    let mut paths: Vec<_> = text.lines().filter(|line| line.starts_with("StorePath: ")).map(str::to_owned).collect();
    paths.sort_unstable();
    paths
}

/// The record that doomed a path may be removed before the grace period of its NAR has passed.
#[test]
fn what_was_doomed_long_ago_is_recorded_again_before_it_is_deleted() {
    for (days, count) in [(1, 1), (2, 2), (39, 2)] {
        let (fixture, s3, bucket) = doomed_cache();
        age_records(s3, &bucket, DAY * days);
        let [old] = records(s3, &bucket).try_into().unwrap();
        assert_eq!(fixture.scratch.sh(DELETE).ok().lines().count(), 3);
        let records = records(s3, &bucket);
        assert_eq!(records.len(), count, "{days} days: {records:?}");
        for record in &records {
            assert_eq!(paths_of(&s3.get(&bucket, record)), paths_of(&s3.get(&bucket, &old)));
        }
    }
}

/// A service that deletes many objects in one request, and whose entity tags are MD5 hashes.
#[test]
fn paths_are_deleted_and_published_again_on_minio() {
    let Some((fixture, minio, bucket)) = Fixture::on_minio() else { return };
    fixture.scratch.sh(PUBLISH).ok();
    let delete = "s3-pull dead -q --older-than 0s --no-roots \"$C\" > dead; \
                  s3-push delete --now --max-delete 100% \"$C\" < dead";
    assert_eq!(fixture.scratch.sh(delete).ok().lines().count(), 3);
    let objects = snapshot(minio, &bucket);
    assert_eq!(
        (narinfo_keys(&objects).len(), nar_keys(&objects).len(), objects.len()),
        (1, 3, 5),
        "the record, the NARs and nix-cache-info: {:?}",
        objects.keys()
    );
    fixture.scratch.sh("s3-push -q \"$C\" < dead").ok();
    fixture.assert_pulls("$C", "");
}

#[test]
fn nothing_is_deleted_while_another_collector_deletes() {
    let (fixture, s3, bucket) = doomed_cache();
    s3.put(&bucket, "gc/sweeping", b"Owner: another\n");
    let stderr = fixture.scratch.sh(DELETE).fails(2);
    assert!(stderr.contains("another collector is deleting"), "{stderr}");
    assert_eq!(narinfo_count(s3, &bucket), 3);
    assert_eq!(s3.get(&bucket, "gc/sweeping"), b"Owner: another\n");
}

#[test]
fn malformed_input_deletes_nothing() {
    let (fixture, s3, bucket) = doomed_cache();
    for input in ["head -c 100 dead", "(cat dead; echo x)", "cat paths", "(cat dead; echo; cat dead)"] {
        fixture.scratch.sh(&format!("{input} | s3-push delete --max-delete 100% \"$C\"")).fails(1);
    }
    assert_eq!(fixture.scratch.sh("s3-push delete \"$C\" < /dev/null").ok(), "");
    assert_eq!(narinfo_count(s3, &bucket), 3);
}
