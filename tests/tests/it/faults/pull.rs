//! Faults during a pull.

use super::{CASES, GOODS, User, assert_clear, each, idle_flag, stocked};
use crate::fixtures::site::below;
use cache_tests::fault_proxy::{ACCESS_DENIED, Fault, Kind, Request, What, always, every, once_per_kind, only};
use cache_tests::{CommandOutput, EmbeddedS3, tree};
use std::fs;

/// Pulls the last path's closure and the three small ones into `out`.
fn pull(user: &User<EmbeddedS3>, url: &str, flags: &str) -> CommandOutput {
    user.scratch.sh(&format!("timeout 100 s3-pull -q -r --root out {flags} '{url}' {}", GOODS.paths.join(" ")))
}

/// Asserts that whatever lies below `out` is whole, and, when the pull has completed, that nothing is missing.
#[track_caller]
fn assert_whole(what: &str, user: &User<EmbeddedS3>, completed: bool) {
    let out = user.scratch.path().join("out");
    for (path, expected) in GOODS.paths.iter().zip(&GOODS.trees) {
        let there = below(&out, path).exists();
        assert!(there || !completed, "{what}: {path} is missing");
        assert!(!there || tree(below(&out, path)) == *expected, "{what}: {path} is not what it was");
    }
    if completed {
        let left = fs::read_dir(out.join("nix/store")).unwrap().count();
        assert_eq!(left, GOODS.paths.len(), "{what}: something temporary is left");
    }
}

/// Pulls by S3 and by HTTP through faults, and then without; `heals` when the faults must not end the pull.
fn assert_pulls<P>(how: &str, heals: bool, plan: impl Fn(Fault) -> P + Sync)
where
    P: Fn(&Request) -> Fault + Send + Sync + 'static,
{
    let s3 = EmbeddedS3::shared();
    let bucket = stocked(s3);
    let pairs: Vec<_> = CASES.iter().flat_map(|case| [(case, false), (case, true)]).collect();
    each(&pairs, |(case, by_http)| {
        let what = format!("{} pull, {} {how}", if *by_http { "HTTP" } else { "S3" }, case.name);
        let user = User::of(s3, bucket.clone());
        let url = if *by_http { s3.http_url(&bucket) } else { s3.cache_url(&bucket) };
        let proxy = user.proxy(plan(case.fault));
        let flags = format!("{} --attempts {}", idle_flag(case.fault), if heals { 4 } else { 2 });
        let outcome = pull(&user, &url.replace(&s3.endpoint(), proxy.endpoint()), &flags);
        assert!(proxy.faults() > 0, "{what}: there was none");
        let completed = assert_clear(&what, &outcome, case.causes);
        assert_whole(&what, &user, completed);
        let again = pull(&user, &url, "");
        assert_eq!(again.status, 0, "{what}, then the next pull: {}", again.stderr);
        assert_whole(&what, &user, true);
        assert!(completed || !heals, "{what}: a single accident ended the pull: {}", outcome.stderr);
    });
}

#[test]
fn a_pull_outlives_each_fault_once() {
    assert_pulls("once for each kind of request", true, once_per_kind);
}

#[test]
fn a_pull_outlives_each_fault_at_every_third_request() {
    assert_pulls("at every third request", false, |fault| every(3, fault));
}

#[test]
fn a_fault_that_stays_ends_the_pull_in_time() {
    let nar = |request: &Request| request.kind() == Kind::GetObject(What::Nar);
    assert_pulls("at every NAR", false, move |fault| only(nar, always(fault)));
    assert_pulls("at every request", false, always);
}

#[test]
fn a_narinfo_that_is_forbidden_is_missing_and_a_hint_says_so() {
    let s3 = EmbeddedS3::shared();
    let bucket = stocked(s3);
    for url in [s3.cache_url(&bucket), s3.http_url(&bucket)] {
        let user = User::of(s3, bucket.clone());
        let narinfo = |request: &Request| request.kind() == Kind::GetObject(What::Narinfo);
        let proxy = user.proxy(only(narinfo, always(ACCESS_DENIED)));
        let script = format!(
            "s3-pull --root out '{}' {}",
            url.replace(&s3.endpoint(), proxy.endpoint()),
            GOODS.paths[..2].join(" ")
        );
        let said = user.scratch.sh(&script).fails(1);
        assert_eq!(said.matches("forbidden (HTTP 403)").count(), 1, "one hint: {said}");
        for path in &GOODS.paths[..2] {
            assert!(said.contains(&format!("{path}: not found in the cache")), "{said}");
        }
        let store = below(&user.scratch.path().join("out"), "/nix/store");
        assert_eq!(fs::read_dir(store).map_or(0, Iterator::count), 0, "nothing is left");
        assert_eq!(proxy.faults(), 2, "a refusal is not repeated: {:?}", proxy.seen());
    }
}
