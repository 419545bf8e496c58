//! `s3-push delete --nars` and `s3-push collect`: what no path needs any more is doomed, and deleted after the grace period.

use std::time::{Duration, SystemTime};

use cache_tests::EmbeddedS3;
use cache_tests::fault_proxy::{ACCESS_DENIED, Fault, FaultProxy};

use super::dead::{old_cache, set_age};
use super::delete::{DEAD, DELETE, age_records, doomed_cache, records};
use super::sweep::on_flag;
use crate::fixtures::closure_fixture::{ARCHIVE, Fixture, PUBLISH};

pub const DELETE_NARS: &str = "s3-push delete --nars --max-delete 100% \"$C\"";
const COLLECT: &str = "s3-push collect --older-than 30d --max-delete 100% --no-roots \"$C\"";
const DAY: Duration = Duration::from_hours(24);
const GRACE: Duration = Duration::from_hours(24 * 30);

pub fn keys_below(s3: &EmbeddedS3, bucket: &str, prefix: &str) -> Vec<String> {
    s3.objects(bucket).into_iter().filter(|key| key.starts_with(prefix)).collect()
}

fn is_young(s3: &EmbeddedS3, bucket: &str, key: &str) -> bool {
    let written = s3.path(bucket, key).metadata().unwrap().modified().unwrap();
    SystemTime::now().duration_since(written).unwrap_or_default() < Duration::from_hours(1)
}

/// Makes all objects a year older than they would be.
fn age_objects(s3: &EmbeddedS3, bucket: &str, prefix: &str) {
    for key in keys_below(s3, bucket, prefix) {
        set_age(s3, bucket, &key, DAY * 365);
    }
}

/// A cache without narinfos, whose NARs have been doomed for the grace period.
pub fn cache_of_doomed_nars() -> (Fixture, &'static EmbeddedS3, String) {
    let (fixture, s3, bucket) = doomed_cache();
    fixture.scratch.sh(DELETE).ok();
    age_objects(s3, &bucket, "nar/");
    assert_eq!(fixture.scratch.sh(DELETE_NARS).ok(), "");
    age_records(s3, &bucket, GRACE);
    (fixture, s3, bucket)
}

#[test]
fn nars_that_no_narinfo_names_are_deleted_after_the_grace_period() {
    let (fixture, s3, bucket) = doomed_cache();
    let sh = |script: &str| fixture.scratch.sh(script);
    sh(DELETE).ok();
    age_objects(s3, &bucket, "nar/");
    let first = sh(DELETE_NARS);
    assert!(first.stderr.contains("3 doomed"), "{}", first.stderr);
    assert_eq!(first.ok(), "");
    age_records(s3, &bucket, DAY * 29);
    let early = sh(DELETE_NARS);
    assert!(early.stderr.contains("3 within the grace period"), "{}", early.stderr);
    assert_eq!(early.ok(), "");
    assert_eq!(keys_below(s3, &bucket, "nar/").len(), 3);
    age_records(s3, &bucket, GRACE);
    let deleted = sh(DELETE_NARS).ok();
    assert!(deleted.lines().count() == 3 && deleted.lines().all(|key| key.starts_with("nar/")), "{deleted}");
    assert_eq!(records(s3, &bucket).len(), 1, "the paths were deleted up to two days after they were doomed");
    age_records(s3, &bucket, GRACE + DAY * 2);
    assert_eq!(sh(DELETE_NARS).ok(), "");
    assert_eq!(s3.objects(&bucket), ["nix-cache-info"], "the records are gone too");
}

/// Several caches in one bucket, one of which is the bucket itself.
#[test]
fn a_collection_touches_only_its_prefix() {
    let (mut fixture, s3, bucket) = Fixture::embedded();
    let mut in_cache = |prefix: &str, script: &str| {
        fixture.scratch.env("C", s3.cache_url(&bucket).replace(&bucket, &format!("{bucket}{prefix}")));
        fixture.scratch.sh(script).ok()
    };
    for prefix in ["", "/team", "/team2", "/a+b%20c"] {
        in_cache(prefix, PUBLISH);
    }
    age_objects(s3, &bucket, "");
    let others = || s3.objects(&bucket).into_iter().filter(|key| !key.starts_with("a+b c/")).collect::<Vec<_>>();
    let before = others();
    assert_eq!(before.len(), 3 * 7, "{before:?}");
    for age in [DAY, GRACE, GRACE + DAY * 2] {
        in_cache("/a+b%20c", COLLECT);
        for key in keys_below(s3, &bucket, "a+b c/gc/") {
            set_age(s3, &bucket, &key, age);
        }
    }
    in_cache("/a+b%20c", COLLECT);
    assert_eq!(keys_below(s3, &bucket, "a+b c/"), ["a+b c/nix-cache-info"]);
    assert_eq!(others(), before);
}

#[test]
fn a_nar_that_one_narinfo_names_stays() {
    let (fixture, s3, bucket) = old_cache();
    for key in [&fixture.closure.top, &fixture.closure.app] {
        s3.remove(&bucket, &Fixture::narinfo_key(key));
    }
    fixture.scratch.sh(DELETE_NARS).ok();
    age_records(s3, &bucket, GRACE);
    assert_eq!(fixture.scratch.sh(DELETE_NARS).ok().lines().count(), 2);
    fixture.scratch.sh("s3-pull --root out --no-verify-signatures \"$C\" \"$LIB\"").ok();
}

#[test]
fn pushes_make_doomed_nars_young() {
    type Push = &'static str;
    let pushes: [(&str, Push); 2] = [("with the NARs", PUBLISH), ("of the narinfo text", "s3-push \"$C\" < dead")];
    for (what, push) in pushes {
        let (fixture, s3, bucket) = cache_of_doomed_nars();
        fixture.scratch.sh(push).ok();
        let nars = keys_below(s3, &bucket, "nar/");
        assert!(nars.len() == 3 && nars.iter().all(|key| is_young(s3, &bucket, key)), "{what}: {nars:?}");
        // The narinfos are gone again: the NARs are doomed anew, and not deleted by the old record.
        for path in fixture.closure.paths() {
            s3.remove(&bucket, &Fixture::narinfo_key(path));
        }
        assert_eq!(fixture.scratch.sh(DELETE_NARS).ok(), "", "{what}");
        assert_eq!(keys_below(s3, &bucket, "nar/").len(), 3, "{what}");
    }
}

#[test]
fn a_push_that_needs_a_doomed_nar_waits_for_the_collector() {
    let archive = format!("{ARCHIVE} > archive; s3-push --no-nix --collector-timeout 0s \"$C\" < archive");
    for push in [archive, "s3-push --collector-timeout 0s \"$C\" < dead".to_owned()] {
        let (fixture, s3, bucket) = cache_of_doomed_nars();
        s3.put(&bucket, "gc/sweeping", b"Owner: another\n");
        let stderr = fixture.scratch.sh(&push).fails(2);
        assert!(stderr.contains("the collector has not ended after 0 seconds"), "{stderr}");
        let narinfos = s3.objects(&bucket).iter().filter(|key| key.ends_with(".narinfo") && !key.contains('/')).count();
        assert_eq!(narinfos, 0);
    }
}

#[test]
fn debuginfo_and_realisations_go_with_their_paths() {
    let (fixture, s3, bucket) = old_cache();
    let text = String::from_utf8(s3.get(&bucket, &Fixture::narinfo_key(&fixture.closure.app))).unwrap();
    let nar = text.lines().find_map(|line| line.strip_prefix("URL: ")).unwrap();
    let link = format!("{{\"archive\":\"../{nar}\",\"member\":\"x\"}}");
    let base_name = fixture.closure.app.rsplit('/').next().unwrap();
    let id = format!("sha256:{}!out", "0".repeat(64));
    let realisation = format!("{{\"id\":\"{id}\",\"outPath\":\"{base_name}\",\"signatures\":[]}}");
    let (link_key, realisation_key) = ("debuginfo/0123.debug", format!("realisations/{id}.doi"));
    s3.put(&bucket, link_key, link.as_bytes());
    s3.put(&bucket, &realisation_key, realisation.as_bytes());
    s3.put(&bucket, "debuginfo/odd", b"not JSON");
    age_objects(s3, &bucket, "debuginfo/");
    age_objects(s3, &bucket, "realisations/");
    let run = || {
        fixture.scratch.sh(DELETE_NARS).ok();
        age_records(s3, &bucket, GRACE);
        fixture.scratch.sh(DELETE_NARS).ok()
    };
    assert_eq!(run(), "", "all are needed");
    s3.remove(&bucket, &Fixture::narinfo_key(&fixture.closure.app));
    let deleted = run();
    let mut deleted: Vec<&str> = deleted.lines().collect();
    deleted.sort_unstable();
    assert_eq!(deleted, [link_key, nar, &realisation_key]);
    assert!(s3.objects(&bucket).contains(&"debuginfo/odd".to_owned()), "what is not understood stays");
}

#[test]
fn a_share_above_the_maximum_and_a_short_grace_period_are_refused() {
    let (fixture, s3, bucket) = old_cache();
    s3.remove(&bucket, &Fixture::narinfo_key(&fixture.closure.top));
    let stderr = fixture.scratch.sh("s3-push delete --nars \"$C\"").fails(1);
    assert!(stderr.contains("1 of 3 NARs and other objects (33%) would be deleted"), "{stderr}");
    let stderr = fixture.scratch.sh("s3-push delete --nars --grace 23h \"$C\"").fails(2);
    assert!(stderr.contains("--grace must be at least 24h"), "{stderr}");
}

#[test]
fn collect_dooms_deletes_and_then_deletes_the_nars() {
    let (fixture, s3, bucket) = old_cache();
    let sh = |script: &str| fixture.scratch.sh(script);
    assert!(sh(&COLLECT.replace("--no-roots", "")).fails(2).contains("no pins and no roots"));
    sh("echo \"$LIB\" | s3-push pin -q \"$C\" main").ok();
    assert_eq!(sh(COLLECT).ok(), "", "doomed");
    age_records(s3, &bucket, DAY);
    let closure = &fixture.closure;
    assert_eq!(sh(COLLECT).ok(), [&*closure.top, &closure.app].join("\n"));
    age_records(s3, &bucket, GRACE + DAY * 2);
    let deleted = sh(COLLECT).ok();
    assert!(deleted.lines().count() == 2 && deleted.lines().all(|key| key.starts_with("nar/")), "{deleted}");
    sh("s3-pull --root out --no-verify-signatures \"$C\" \"$LIB\"").ok();
    assert!(keys_below(s3, &bucket, "gc/").is_empty(), "{:?}", s3.objects(&bucket));
}

/// The paths of --roots are kept also when they were no roots in the run that doomed them.
#[test]
fn collect_keeps_further_roots() {
    let (fixture, s3, bucket) = doomed_cache();
    let collect = format!("echo \"$APP\" | {}", COLLECT.replace("--no-roots", "--roots -"));
    assert_eq!(fixture.scratch.sh(&collect).ok(), fixture.closure.top);
    fixture.scratch.sh(DEAD).ok();
    age_records(s3, &bucket, DAY);
    fixture.scratch.sh("s3-pull --root out -r --no-verify-signatures \"$C\" \"$APP\"").ok();
}

/// Those that wait for the end of their grace period were within the share of the run that doomed them.
#[test]
fn what_was_doomed_before_does_not_count_towards_the_share() {
    let (fixture, s3, bucket) = old_cache();
    let sh = |script: &str| fixture.scratch.sh(script);
    s3.remove(&bucket, &Fixture::narinfo_key(&fixture.closure.top));
    sh("s3-push delete --nars --max-delete 34% \"$C\"").ok();
    let waiting = sh("s3-push delete --nars --max-delete 1% \"$C\"");
    assert!(waiting.stderr.contains("1 within the grace period"), "{}", waiting.stderr);
    assert_eq!(waiting.ok(), "");
    s3.remove(&bucket, &Fixture::narinfo_key(&fixture.closure.app));
    let before = records(s3, &bucket);
    let stderr = sh("s3-push delete --nars --max-delete 1% \"$C\"").fails(1);
    assert!(stderr.contains("1 of 3 NARs and other objects (33%) would be deleted"), "{stderr}");
    assert_eq!(records(s3, &bucket), before, "nothing is doomed by a run that is refused");
}

/// A pin that --keep-last does not keep is removed with the paths that only it kept; until then it stays.
#[test]
fn a_pin_that_is_not_kept_goes_with_its_paths() {
    let (fixture, s3, bucket) = old_cache();
    let sh = |script: &str| fixture.scratch.sh(script);
    for (name, path, days) in [("main/1", "$TOP", 20), ("main/2", "$LIB", 10), ("main/3", "$APP", 1)] {
        sh(&format!("echo \"{path}\" | s3-push pin -q \"$C\" {name}")).ok();
        set_age(s3, &bucket, &format!("pins/{name}"), DAY * days);
    }
    let collect = "s3-push collect --older-than 30d --max-delete 100% --keep-last 1 \"$C\"";
    assert_eq!(sh(collect).ok(), "", "doomed");
    assert_eq!(keys_below(s3, &bucket, "pins/").len(), 3);
    age_records(s3, &bucket, DAY);
    let output = sh(collect);
    assert!(output.stderr.contains("1 pin is removed: not kept by --keep-last"), "{}", output.stderr);
    assert_eq!(output.ok(), fixture.closure.top);
    // lib is a reference of app, so the second pin names nothing that is deleted.
    assert_eq!(keys_below(s3, &bucket, "pins/"), ["pins/main/2", "pins/main/3"]);
    sh("s3-push collect --older-than 30d --max-delete 100% \"$C\"").ok();
}

/// It keeps nothing, so it does not stop the collector, and nothing is recorded again in each run.
#[test]
fn a_malformed_pin_that_is_not_kept_stays() {
    let (fixture, s3, bucket) = doomed_cache();
    let sh = |script: &str| fixture.scratch.sh(script);
    age_records(s3, &bucket, DAY * 3);
    s3.put(&bucket, "pins/main/1", b"no path\n");
    set_age(s3, &bucket, "pins/main/1", DAY * 5);
    sh("echo \"$LIB\" | s3-push pin -q \"$C\" main/2").ok();
    let collect = "s3-push collect --older-than 30d --max-delete 100% --keep-last 1 \"$C\"";
    let output = sh(collect);
    assert!(output.stderr.contains("warning: ") && output.stderr.contains("/pins/main/1: "), "{}", output.stderr);
    assert_eq!(output.ok(), [&*fixture.closure.top, &fixture.closure.app].join("\n"));
    assert_eq!(keys_below(s3, &bucket, "pins/"), ["pins/main/1", "pins/main/2"]);
}

/// What a run that holds the flag relies on is listed again: another one may have removed the record since.
#[test]
fn no_nar_is_deleted_whose_record_was_removed_after_it_was_read() {
    let (mut fixture, s3, bucket) = cache_of_doomed_nars();
    let target = bucket.clone();
    let _proxy = on_flag(&mut fixture, s3, &bucket, move || {
        // The records of keys and of paths.
        for key in records(s3, &target) {
            s3.remove(&target, &key);
        }
    });
    let output = fixture.scratch.sh(&DELETE_NARS.replace("--nars", "--nars --json"));
    assert!(output.stderr.contains("another collector removed records meanwhile"), "{}", output.stderr);
    let summary: serde_json::Value = serde_json::from_str(&output.ok()).unwrap();
    let objects = &summary["summary"]["objects"];
    assert_eq!((&objects["deleted"], &objects["kept"]), (&0.into(), &3.into()));
    assert_eq!(keys_below(s3, &bucket, "nar/").len(), 3);
}

/// A NAR was doomed long ago, and needed since: a narinfo that names it came back without it, and is deleted now.
#[test]
fn a_nar_that_was_needed_until_now_stays_for_the_grace_period() {
    let (fixture, s3, bucket) = doomed_cache();
    let nars = keys_below(s3, &bucket, "nar/");
    age_objects(s3, &bucket, "nar/");
    let record = "gc/20260101T000000Z-00000001.keys";
    s3.put(&bucket, record, (nars.join("\n") + "\n").as_bytes());
    set_age(s3, &bucket, record, GRACE);
    let collected = fixture.scratch.sh(COLLECT);
    assert_eq!(collected.ok().lines().count(), 3, "{}", collected.text());
    assert!(collected.stderr.contains("3 within the grace period"), "{}", collected.stderr);
    assert_eq!(keys_below(s3, &bucket, "nar/"), nars);
}

/// The second batch of deletions fails.
#[test]
fn what_was_deleted_before_an_error_is_reported() {
    let (mut fixture, s3, bucket) = cache_of_doomed_nars();
    let proxy = FaultProxy::start(&s3.endpoint(), |request| {
        let is_flag = request.key() == "gc/sweeping";
        if is_flag && request.method == "DELETE" { ACCESS_DENIED } else { Fault::Pass }
    });
    fixture.scratch.env("C", s3.cache_url(&bucket).replace(&s3.endpoint(), proxy.endpoint()));
    let output = fixture.scratch.sh(DELETE_NARS);
    output.fails(2);
    assert_eq!(output.text().lines().count(), 3, "{}", output.stderr);
    assert_eq!(keys_below(s3, &bucket, "nar/"), [""; 0]);
}
