//! Faults during a pull.

use super::{CASES, CLOSURE, FaultFixture, assert_clear_result, bucket_with_closure, for_each_in_parallel, idle_flag};
use crate::fixtures::closure_fixture::path_in_root;
use cache_tests::fault_proxy::{
    ACCESS_DENIED, Fault, ObjectKind, Request, RequestKind, always, every, once_per_kind, only,
};
use cache_tests::{CommandOutput, EmbeddedS3, tree};
use std::fs;

/// Pulls all paths into `out`.
fn pull(fixture: &FaultFixture<EmbeddedS3>, url: &str, flags: &str) -> CommandOutput {
    fixture.scratch.sh(&format!("timeout 100 s3-pull -q -r --root out {flags} '{url}' {}", CLOSURE.paths.join(" ")))
}

/// Asserts that every path below `out` is complete, and, if the pull has completed, that none is missing.
#[track_caller]
fn assert_whole(what: &str, fixture: &FaultFixture<EmbeddedS3>, completed: bool) {
    let out = fixture.scratch.path().join("out");
    for (path, expected) in CLOSURE.paths.iter().zip(&CLOSURE.trees) {
        let there = path_in_root(&out, path).exists();
        assert!(there || !completed, "{what}: {path} is missing");
        assert!(!there || tree(path_in_root(&out, path)) == *expected, "{what}: {path} has changed");
    }
    if completed {
        let left = fs::read_dir(out.join("nix/store")).unwrap().count();
        assert_eq!(left, CLOSURE.paths.len(), "{what}: temporary files remain");
    }
}

/// Pulls over S3 and over HTTP with faults, and then without; `heals` means that the first pull must complete.
fn assert_pulls<P>(how: &str, heals: bool, plan: impl Fn(Fault) -> P + Sync)
where
    P: Fn(&Request) -> Fault + Send + Sync + 'static,
{
    let s3 = EmbeddedS3::shared();
    let bucket = bucket_with_closure(s3);
    let pairs: Vec<_> = CASES.iter().flat_map(|case| [(case, false), (case, true)]).collect();
    for_each_in_parallel(&pairs, |(case, by_http)| {
        let what = format!("{} pull, {} {how}", if *by_http { "HTTP" } else { "S3" }, case.name);
        let fixture = FaultFixture::with_bucket(s3, bucket.clone());
        let url = if *by_http { s3.http_url(&bucket) } else { s3.cache_url(&bucket) };
        let proxy = fixture.proxy(plan(case.fault));
        let flags = format!("{} --attempts {}", idle_flag(case.fault), if heals { 4 } else { 2 });
        let output = pull(&fixture, &url.replace(&s3.endpoint(), proxy.endpoint()), &flags);
        assert!(proxy.faults() > 0, "{what}: no fault was injected");
        let completed = assert_clear_result(&what, &output, case.causes);
        assert_whole(&what, &fixture, completed);
        let again = pull(&fixture, &url, "");
        assert_eq!(again.status, 0, "{what}, then the next pull: {}", again.stderr);
        assert_whole(&what, &fixture, true);
        assert!(completed || !heals, "{what}: a single fault ended the pull: {}", output.stderr);
    });
}

#[test]
fn a_pull_survives_each_fault_once() {
    assert_pulls("once per kind of request", true, once_per_kind);
}

#[test]
fn a_pull_survives_or_reports_a_fault_in_every_third_request() {
    assert_pulls("at every third request", false, |fault| every(3, fault));
}

#[test]
fn a_persistent_fault_ends_the_pull_in_time() {
    let nar = |request: &Request| request.kind() == RequestKind::GetObject(ObjectKind::Nar);
    assert_pulls("at every NAR", false, move |fault| only(nar, always(fault)));
    assert_pulls("at every request", false, always);
}

#[test]
fn a_forbidden_narinfo_is_missing_and_has_a_hint() {
    let s3 = EmbeddedS3::shared();
    let bucket = bucket_with_closure(s3);
    for url in [s3.cache_url(&bucket), s3.http_url(&bucket)] {
        let fixture = FaultFixture::with_bucket(s3, bucket.clone());
        let narinfo = |request: &Request| request.kind() == RequestKind::GetObject(ObjectKind::Narinfo);
        let proxy = fixture.proxy(only(narinfo, always(ACCESS_DENIED)));
        let script = format!(
            "s3-pull --root out '{}' {}",
            url.replace(&s3.endpoint(), proxy.endpoint()),
            CLOSURE.paths[..2].join(" ")
        );
        let stderr = fixture.scratch.sh(&script).fails(1);
        assert_eq!(stderr.matches("forbidden (HTTP 403)").count(), 1, "one hint: {stderr}");
        for path in &CLOSURE.paths[..2] {
            assert!(stderr.contains(&format!("{path}: not found in the cache")), "{stderr}");
        }
        let store = path_in_root(&fixture.scratch.path().join("out"), "/nix/store");
        assert_eq!(fs::read_dir(store).map_or(0, Iterator::count), 0, "no file remains");
        assert_eq!(proxy.faults(), 2, "a refusal is not retried: {:?}", proxy.seen());
    }
}
