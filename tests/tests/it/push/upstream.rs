//! Paths that another cache serves are not pushed, and a cache that cannot be asked is never taken for one that lacks
//! them.

use crate::fixtures::bucket::{nar_keys, narinfo_keys, snapshot};
use crate::fixtures::site::{ARCHIVE, Site};
use cache_tests::fault_proxy::{FaultProxy, INTERNAL_ERROR, Kind, Request, What, always, only};
use cache_tests::{EmbeddedS3, unique};

/// A site, its bucket, and the URLs of another cache that has `lib` only.
fn site() -> (Site, &'static EmbeddedS3, String, [String; 3]) {
    let (mut site, s3, bucket) = Site::embedded();
    let upstream = s3.make_bucket();
    site.scratch.env("U", s3.cache_url(&upstream));
    site.scratch.sh(&format!("{ARCHIVE} > archive; head -n 1 paths > one")).ok();
    site.scratch.sh(&format!("{} | s3-push -q --no-nix \"$U\"", ARCHIVE.replace("< paths", "< one"))).ok();
    site.scratch.sh("s3-pull --archive \"$U\" \"$LIB\" | tar x -C \"$(mkdir -p dir; echo dir)\"").ok();
    let dir = format!("file://{}", site.path("dir").display());
    let urls = [s3.cache_url(&upstream), s3.http_url(&upstream), dir];
    (site, s3, bucket, urls)
}

#[test]
fn paths_of_another_cache_are_not_missing() {
    let (site, _, _, urls) = site();
    let rest = format!("{}\n{}", site.closure.app, site.closure.top);
    for url in urls {
        let missing = format!("s3-push --missing --upstream '{url}' \"$C\" < paths");
        assert_eq!(site.scratch.sh(&missing).ok(), rest, "{url}");
    }
}

#[test]
fn paths_of_another_cache_are_not_pushed() {
    let (site, s3, bucket, urls) = site();
    let said = site.scratch.sh(&format!("s3-push --no-nix --json --upstream '{}' \"$C\" < archive", urls[1])).ok();
    let summary: serde_json::Value = serde_json::from_str(said.lines().last().unwrap()).unwrap();
    let summary = &summary["summary"];
    assert_eq!((&summary["sent"], &summary["upstream"], &summary["skipped"]), (&2.into(), &1.into(), &1.into()));
    let objects = snapshot(s3, &bucket);
    let expected = [&site.closure.app, &site.closure.top].map(|path| Site::narinfo_key(path));
    let found = narinfo_keys(&objects);
    assert!(found.len() == 2 && expected.iter().all(|key| found.contains(&key.as_str())), "{found:?}");
    assert_eq!(nar_keys(&objects).len(), 2);
}

/// The pipeline that leaves out what the other cache has: references to it are not missing.
#[test]
fn a_closure_on_top_of_another_cache() {
    let (site, s3, bucket, urls) = site();
    let push = format!(
        "s3-push --missing --upstream '{0}' \"$C\" < paths | nar-pack --root root --no-nix --export --stdin \
         | narinfo-gen --no-nix --archive > rest; s3-push -q --no-nix \"$C\" < rest && exit 9; \
         s3-push -q --no-nix --upstream '{0}' \"$C\" < rest",
        urls[0]
    );
    site.scratch.sh(&push).ok();
    assert_eq!(narinfo_keys(&snapshot(s3, &bucket)).len(), 2);
}

#[test]
fn a_cache_that_cannot_be_asked_is_an_error() {
    let (site, s3, bucket, urls) = site();
    let asking = |request: &Request| request.kind() == Kind::HeadObject(What::Narinfo);
    let proxy = FaultProxy::start(&s3.endpoint(), only(asking, always(INTERNAL_ERROR)));
    let broken = urls[..2].iter().map(|url| url.replace(&s3.endpoint(), proxy.endpoint()));
    let absent = unique("no-such-bucket-");
    let wrong = [
        (s3.http_url(&absent), "no nix-cache-info"),
        (format!("file://{}", site.path("root").display()), "no nix-cache-info"),
        ("http://127.0.0.1:1/x".to_owned(), "cannot connect"),
        ("ssh://host".to_owned(), "expected s3://"),
    ];
    let cases = broken.map(|url| (url, "HTTP 500")).chain(wrong);
    for (url, cause) in cases {
        for script in
            ["s3-push --missing --upstream '$U' \"$C\" < paths", "s3-push --no-nix --upstream '$U' \"$C\" < archive"]
        {
            let script = format!("export AWS_MAX_ATTEMPTS=2; {}", script.replace("$U", &url));
            let outcome = site.scratch.sh(&script);
            assert_eq!(outcome.text(), "", "{script}");
            let said = outcome.fails(2);
            let lines = said.lines().filter(|line| !line.starts_with("hint: ")).count();
            assert!(said.contains(cause) && lines == 1, "{script}: {said}");
        }
    }
    assert_eq!(narinfo_keys(&snapshot(s3, &bucket)), Vec::<&str>::new());
}
