//! Paths in an upstream cache are not pushed, and an unreachable cache is not treated as one without them.

use crate::fixtures::bucket::{nar_keys, narinfo_keys, snapshot};
use crate::fixtures::closure_fixture::{ARCHIVE, Fixture};
use cache_tests::fault_proxy::{FaultProxy, INTERNAL_ERROR, ObjectKind, Request, RequestKind, always, only};
use cache_tests::{EmbeddedS3, split_hint, unique};

/// Creates a fixture and returns the URLs of an upstream cache that contains only `lib`.
fn fixture() -> (Fixture, &'static EmbeddedS3, String, [String; 3]) {
    let (mut fixture, s3, bucket) = Fixture::embedded();
    let upstream = s3.make_bucket();
    fixture.scratch.env("U", s3.cache_url(&upstream));
    fixture.scratch.sh(&format!("{ARCHIVE} > archive; head -n 1 paths > one")).ok();
    fixture.scratch.sh(&format!("{} | s3-push -q --no-nix \"$U\"", ARCHIVE.replace("< paths", "< one"))).ok();
    fixture.scratch.sh("s3-pull --archive \"$U\" \"$LIB\" | tar x -C \"$(mkdir -p dir; echo dir)\"").ok();
    let dir = format!("file://{}", fixture.path("dir").display());
    let urls = [s3.cache_url(&upstream), s3.http_url(&upstream), dir];
    (fixture, s3, bucket, urls)
}

#[test]
fn paths_of_an_upstream_cache_are_not_missing() {
    let (fixture, _, _, urls) = fixture();
    let rest = format!("{}\n{}", fixture.closure.app, fixture.closure.top);
    for url in urls {
        let missing = format!("s3-push --missing --upstream '{url}' \"$C\" < paths");
        assert_eq!(fixture.scratch.sh(&missing).ok(), rest, "{url}");
    }
}

#[test]
fn paths_of_an_upstream_cache_are_not_pushed() {
    let (fixture, s3, bucket, urls) = fixture();
    let stdout = fixture.scratch.sh(&format!("s3-push --no-nix --json --upstream '{}' \"$C\" < archive", urls[1])).ok();
    let summary: serde_json::Value = serde_json::from_str(stdout.lines().last().unwrap()).unwrap();
    let summary = &summary["summary"];
    assert_eq!((&summary["sent"], &summary["upstream"], &summary["skipped"]), (&2.into(), &1.into(), &1.into()));
    let objects = snapshot(s3, &bucket);
    let expected = [&fixture.closure.app, &fixture.closure.top].map(|path| Fixture::narinfo_key(path));
    let found = narinfo_keys(&objects);
    assert!(found.len() == 2 && expected.iter().all(|key| found.contains(&key.as_str())), "{found:?}");
    assert_eq!(nar_keys(&objects).len(), 2);
}

/// A pipeline that skips paths of the upstream cache: references to them are not missing.
#[test]
fn a_closure_may_refer_to_an_upstream_cache() {
    let (fixture, s3, bucket, urls) = fixture();
    let push = format!(
        "s3-push --missing --upstream '{0}' \"$C\" < paths | nar-pack --root root --no-nix --export --stdin \
         | narinfo-gen --no-nix --archive > rest; s3-push -q --no-nix \"$C\" < rest && exit 9; \
         s3-push -q --no-nix --upstream '{0}' \"$C\" < rest",
        urls[0]
    );
    fixture.scratch.sh(&push).ok();
    assert_eq!(narinfo_keys(&snapshot(s3, &bucket)).len(), 2);
}

#[test]
fn an_unreachable_upstream_cache_is_an_error() {
    let (fixture, s3, bucket, urls) = fixture();
    let is_lookup = |request: &Request| request.kind() == RequestKind::GetObject(ObjectKind::Narinfo);
    let proxy = FaultProxy::start(&s3.endpoint(), only(is_lookup, always(INTERNAL_ERROR)));
    let broken = urls[..2].iter().map(|url| url.replace(&s3.endpoint(), proxy.endpoint()));
    let absent = unique("no-such-bucket-");
    let wrong = [
        (s3.http_url(&absent), "nix-cache-info is missing"),
        (format!("file://{}", fixture.path("root").display()), "nix-cache-info is missing"),
        ("http://127.0.0.1:1/x".to_owned(), "cannot connect"),
        ("ssh://host".to_owned(), "expected s3://"),
    ];
    let cases = broken.map(|url| (url, "HTTP 500")).chain(wrong);
    for (url, cause) in cases {
        for script in
            ["s3-push --missing --upstream '$U' \"$C\" < paths", "s3-push --no-nix --upstream '$U' \"$C\" < archive"]
        {
            let script = format!("export AWS_MAX_ATTEMPTS=2; {}", script.replace("$U", &url));
            let output = fixture.scratch.sh(&script);
            assert_eq!(output.text(), "", "{script}");
            let stderr = output.fails(2);
            let lines = split_hint(&stderr).0.lines().count();
            assert!(stderr.contains(cause) && lines == 1, "{script}: {stderr}");
        }
    }
    assert_eq!(narinfo_keys(&snapshot(s3, &bucket)), Vec::<&str>::new());
}

/// An upstream cache that answers with something else for each key, as a login page does, has no path: a client that gets
/// that page could not get the path from anywhere.
#[test]
fn an_object_that_is_no_narinfo_of_the_path_does_not_count() {
    let (fixture, s3, bucket, urls) = fixture();
    let upstream = fixture.scratch.sh("echo \"$U\"").ok();
    let upstream = upstream.split(['/', '?']).nth(2).unwrap();
    let key = Fixture::narinfo_key(&fixture.closure.lib);
    let other =
        fixture.scratch.sh("tar xOf archive \"$(basename \"$APP\" | cut -c 1-32).narinfo\"").text().into_bytes();
    for text in [Vec::new(), b"<html></html>\n".to_vec(), other, vec![0xff; 9], vec![b'x'; 2 << 20]] {
        s3.put(upstream, &key, &text);
        for url in &urls[..2] {
            let missing = format!("s3-push --missing --upstream '{url}' \"$C\" < paths | wc -l");
            assert_eq!(fixture.scratch.sh(&missing).ok(), "3", "{url}");
        }
    }
    fixture.scratch.sh(&format!("s3-push -q --no-nix --upstream '{}' \"$C\" < archive", urls[0])).ok();
    assert_eq!(narinfo_keys(&snapshot(s3, &bucket)).len(), 3);
}
