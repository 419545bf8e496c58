//! `s3-pull --pin`: the paths of a pull are those of a pin.

use cache_tests::EmbeddedS3;
use cache_tests::fault_proxy::{Fault, FaultProxy, INTERNAL_ERROR, ObjectKind, RequestKind, always, only};

use crate::fixtures::closure_fixture::{Fixture, PUBLISH};

/// A cache with the pin `main/1` of `top`.
fn pinned_cache() -> (Fixture, &'static EmbeddedS3, String) {
    let (fixture, s3, bucket) = Fixture::embedded();
    fixture.scratch.sh(PUBLISH).ok();
    fixture.scratch.sh("echo \"$TOP\" | s3-push pin -q \"$C\" main/1").ok();
    (fixture, s3, bucket)
}

#[test]
fn a_pin_names_the_paths_of_a_pull() {
    let (fixture, s3, bucket) = pinned_cache();
    let sh = |script: &str| fixture.scratch.sh(script);
    for (url, name) in [("$C", "bucket"), (&s3.http_url(&bucket), "http")] {
        sh(&format!("s3-pull -r --root {name} --pin main/1 \"{url}\"")).ok();
        fixture.assert_trees(name);
    }
    sh("s3-pull --root one --pin main/1 \"$C\" \"$TOP\" \"$LIB\"").ok();
    assert_eq!(sh("ls one/nix/store | wc -l").ok(), "2");
    assert_eq!(sh("s3-pull list --pin main/1 \"$C\"").ok(), fixture.closure.top);
    for output in ["--list", "--narinfo", "--archive", "--export"] {
        let pinned = format!("s3-pull {output} -r --pin main/1 \"$C\" | sha256sum");
        let named = format!("s3-pull {output} -r \"$C\" \"$TOP\" | sha256sum");
        assert_eq!(sh(&pinned).ok(), sh(&named).ok(), "{output}");
    }
    assert!(sh("s3-pull -r --root out --pin main/2 \"$C\"").fails(1).contains("/pins/main/2: there is no such pin"));
    assert!(sh("s3-pull -r --root out --pin ../x \"$C\"").fails(2).contains("invalid pin name"));
    s3.put(&bucket, "pins/main/2", b"no path\n");
    assert!(sh("s3-pull -r --root out --pin main/2 \"$C\"").fails(1).contains("/pins/main/2: path list, line 1"));
}

/// The first cache responds only for nix-cache-info.
#[test]
fn a_pin_is_read_from_the_next_cache_if_one_fails() {
    let (fixture, s3, bucket) = pinned_cache();
    let is_other = |request: &cache_tests::fault_proxy::Request| request.object_kind() != ObjectKind::CacheInfo;
    let proxy = FaultProxy::start(&s3.endpoint(), only(is_other, always(INTERNAL_ERROR)));
    let failing = s3.http_url(&bucket).replace(&s3.endpoint(), proxy.endpoint());
    let pull = format!("AWS_MAX_ATTEMPTS=1 s3-pull -r --root out --pin main/1 '{failing}' \"$C\"");
    fixture.scratch.sh(&pull).ok();
    fixture.assert_trees("out");
}

#[test]
fn a_pin_that_lists_the_closure_makes_all_lookups_at_once() {
    let (mut fixture, s3, bucket) = pinned_cache();
    fixture.scratch.sh("s3-pull list -r \"$C\" \"$TOP\" | s3-push pin -q \"$C\" all").ok();
    // Each lookup waits until all three have arrived.
    let barrier = std::sync::Barrier::new(3);
    let proxy = FaultProxy::start(&s3.endpoint(), move |request| {
        if request.kind() == RequestKind::GetObject(ObjectKind::Narinfo) {
            barrier.wait();
        }
        Fault::Pass
    });
    fixture.scratch.env("C", s3.cache_url(&bucket).replace(&s3.endpoint(), proxy.endpoint()));
    fixture.scratch.sh("s3-pull -r --root out --pin all \"$C\"").ok();
    fixture.assert_trees("out");
}
