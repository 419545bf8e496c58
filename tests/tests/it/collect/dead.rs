//! `s3-pull dead`: which paths are dead, in which order, and that nothing is written if anything is unknown.

use std::fs;
use std::time::{Duration, SystemTime};

use cache_tests::EmbeddedS3;

use crate::fixtures::bucket::narinfo_keys;
use crate::fixtures::bucket::snapshot;
use crate::fixtures::closure_fixture::{Fixture, PUBLISH};

const DEAD: &str = "s3-pull dead --older-than 30d \"$C\"";

/// A bucket with the closure, all of whose objects were written 40 days ago.
pub fn old_cache() -> (Fixture, &'static EmbeddedS3, String) {
    let (fixture, s3, bucket) = Fixture::embedded();
    fixture.scratch.sh(PUBLISH).ok();
    for key in s3.objects(&bucket) {
        set_age(s3, &bucket, &key, Duration::from_hours(24 * 40));
    }
    (fixture, s3, bucket)
}

/// Sets the time of an object.
pub fn set_age(s3: &EmbeddedS3, bucket: &str, key: &str, age: Duration) {
    let file = fs::File::options().write(true).open(s3.path(bucket, key)).unwrap();
    file.set_modified(SystemTime::now() - age).unwrap();
}

/// The store paths of narinfo text.
fn paths(text: &str) -> Vec<&str> {
    text.lines().filter_map(|line| line.strip_prefix("StorePath: ")).collect()
}

#[test]
fn what_nothing_keeps_is_dead_and_comes_referrers_first_with_its_exact_text() {
    let (fixture, s3, bucket) = old_cache();
    let output = fixture.scratch.sh(&format!("{DEAD} --no-roots"));
    assert!(output.stderr.contains("3 of 3 paths are dead"), "{}", output.stderr);
    let text = output.ok() + "\n";
    let closure = &fixture.closure;
    assert_eq!(paths(&text), [&closure.top, &closure.app, &closure.lib]);
    let texts = [&closure.top, &closure.app, &closure.lib].map(|path| s3.get(&bucket, &Fixture::narinfo_key(path)));
    assert_eq!(text.as_bytes(), texts.join(&b'\n'));
    assert_eq!(narinfo_keys(&snapshot(s3, &bucket)).len(), 3, "reads only");
}

#[test]
fn pins_lists_and_young_paths_keep_their_closures() {
    let (fixture, s3, bucket) = old_cache();
    let closure = &fixture.closure;
    let sh = |script: &str| fixture.scratch.sh(script);
    let dead = |args: &str| sh(&format!("{args} | {DEAD} -q --roots -")).ok();
    assert_eq!(paths(&dead("echo \"$APP\"")), [&closure.top]);
    assert_eq!(paths(&dead("echo \"$LIB\"")), [&closure.top, &closure.app]);
    assert_eq!(dead("echo \"$TOP\""), "");
    sh("echo \"$APP\" > roots").ok();
    assert_eq!(paths(&sh(&format!("{DEAD} -q --roots roots")).ok()), [&closure.top]);
    sh("echo \"$LIB\" | s3-push pin -q \"$C\" main/1").ok();
    assert_eq!(paths(&sh(DEAD).ok()), [&closure.top, &closure.app]);
    // A recent path is a root without any pin.
    set_age(s3, &bucket, &Fixture::narinfo_key(&closure.app), Duration::from_hours(24 * 29));
    assert_eq!(paths(&sh(DEAD).ok()), [&closure.top]);
}

#[test]
fn retention_thins_the_pins_of_a_group() {
    let (fixture, s3, bucket) = old_cache();
    let closure = &fixture.closure;
    let sh = |script: &str| fixture.scratch.sh(script);
    for (name, path, days) in [("main/1", "$TOP", 20), ("main/2", "$APP", 10), ("main/3", "$LIB", 1)] {
        sh(&format!("echo \"{path}\" | s3-push pin -q \"$C\" {name}")).ok();
        set_age(s3, &bucket, &format!("pins/{name}"), Duration::from_hours(24 * days));
    }
    assert_eq!(sh(DEAD).ok(), "");
    assert_eq!(paths(&sh(&format!("{DEAD} --keep-last 2")).ok()), [&closure.top]);
    assert_eq!(paths(&sh(&format!("{DEAD} --keep-within 2d")).ok()), [&closure.top, &closure.app]);
    assert_eq!(paths(&sh(&format!("{DEAD} --keep-last 1 --keep-within 15d")).ok()), [&closure.top]);
}

/// Without any root everything would be dead.
#[test]
fn a_cache_without_roots_needs_a_flag() {
    let (fixture, ..) = old_cache();
    let output = fixture.scratch.sh(DEAD);
    assert_eq!(output.text(), "");
    assert!(output.fails(2).contains("--no-roots"));
}

#[test]
fn whatever_cannot_be_read_is_an_error_without_output() {
    type Damage = fn(&Fixture, &EmbeddedS3, &str);
    let cases: [(&str, Damage, &str); 6] = [
        (
            "a malformed narinfo",
            |fixture, s3, bucket| {
                s3.put(bucket, &Fixture::narinfo_key(&fixture.closure.lib), b"StorePath: x\n");
            },
            "line 1: StorePath: \"x\"",
        ),
        (
            "an empty narinfo",
            |fixture, s3, bucket| {
                s3.put(bucket, &Fixture::narinfo_key(&fixture.closure.lib), b"");
            },
            "narinfo",
        ),
        (
            "the narinfo of another path",
            |fixture, s3, bucket| {
                let other = s3.get(bucket, &Fixture::narinfo_key(&fixture.closure.app));
                s3.put(bucket, &Fixture::narinfo_key(&fixture.closure.lib), &other);
            },
            "describes another path",
        ),
        ("a malformed pin", |_, s3, bucket| s3.put(bucket, "pins/main", b"/nix/store/x\n"), "path list, line 1"),
        (
            "a truncated pin",
            |fixture, s3, bucket| s3.put(bucket, "pins/main", fixture.closure.top.as_bytes()),
            "truncated",
        ),
        (
            "a pin of a missing path",
            |fixture, s3, bucket| {
                s3.put(bucket, "pins/main", format!("{}\n", fixture.closure.top).as_bytes());
                s3.remove(bucket, &Fixture::narinfo_key(&fixture.closure.top));
            },
            "is not in the cache",
        ),
    ];
    for (what, damage, cause) in cases {
        let (fixture, s3, bucket) = old_cache();
        damage(&fixture, s3, &bucket);
        let output = fixture.scratch.sh(&format!("{DEAD} --no-roots"));
        assert_eq!(output.text(), "", "{what}");
        let stderr = output.fails(2);
        assert!(stderr.contains(cause), "{what}: {stderr}");
    }
    let (fixture, ..) = old_cache();
    for roots in ["no-such-file", "/dev/null"] {
        let output = fixture.scratch.sh(&format!("{DEAD} --roots {roots}"));
        assert_eq!(output.text(), "");
        output.fails(2);
    }
}
