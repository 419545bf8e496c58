//! `s3-pull --pin`, and the narinfos beside a pin, which save round trips but never decide what is fetched.

use cache_tests::fault_proxy::{Fault, FaultProxy, ObjectKind, RequestKind};
use cache_tests::{EmbeddedS3, cache_url};

use crate::fixtures::closure_fixture::{ARCHIVE, Fixture, PUBLISH, generate_key};

const PULL: &str = "rm -rf out; s3-pull -r --root out --pin main/1 \"$C\"";

/// A cache with the pin `main/1` of `top`, and the narinfos of its closure beside it.
fn pinned_cache() -> (Fixture, &'static EmbeddedS3, String) {
    let (fixture, s3, bucket) = Fixture::embedded();
    fixture.scratch.sh(PUBLISH).ok();
    fixture.scratch.sh("echo \"$TOP\" | s3-push pin -q --closure \"$C\" main/1").ok();
    (fixture, s3, bucket)
}

/// Sends the requests of the fixture through a proxy.
fn counted(fixture: &mut Fixture, s3: &EmbeddedS3, bucket: &str) -> FaultProxy {
    let proxy = FaultProxy::start(&s3.endpoint(), |_| Fault::Pass);
    fixture.scratch.env("C", cache_url(proxy.endpoint(), bucket));
    proxy
}

fn narinfo_requests(proxy: &FaultProxy) -> usize {
    let is_lookup = |kind: &&RequestKind| **kind == RequestKind::GetObject(ObjectKind::Narinfo);
    // That of the closure is one too, by its name.
    proxy.requests().iter().filter(is_lookup).count() - 1
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
        assert_eq!(sh(&pinned).ok(), sh(&format!("s3-pull {output} -r \"$C\" \"$TOP\" | sha256sum")).ok(), "{output}");
    }
    assert!(sh("s3-pull -r --root out --pin main/2 \"$C\"").fails(1).contains("/pins/main/2: there is no such pin"));
    assert!(sh("s3-pull -r --root out --pin ../x \"$C\"").fails(2).contains("invalid pin name"));
}

#[test]
fn the_narinfos_beside_a_pin_save_all_lookups_but_only_where_the_contents_matter() {
    let (mut fixture, s3, bucket) = pinned_cache();
    let proxy = counted(&mut fixture, s3, &bucket);
    fixture.scratch.sh(PULL).ok();
    fixture.assert_trees("out");
    assert_eq!((narinfo_requests(&proxy), proxy.requests().len()), (0, 6), "{:?}", proxy.requests());
    let proxy = counted(&mut fixture, s3, &bucket);
    fixture.scratch.sh("s3-pull archive -r --pin main/1 \"$C\" > archive").ok();
    let lookups = proxy.requests().iter().filter(|kind| **kind == RequestKind::GetObject(ObjectKind::Narinfo)).count();
    assert_eq!(lookups, 3, "an archive has the narinfos that the cache has now");
}

/// Each path is compressed anew, so that the cache has other NARs than the narinfos beside the pin name.
#[test]
fn old_narinfos_beside_a_pin_are_replaced_by_those_of_the_cache() {
    let (fixture, s3, bucket) = pinned_cache();
    let sh = |script: &str| fixture.scratch.sh(script);
    for key in s3.objects(&bucket).iter().filter(|key| key.starts_with("nar/") || key.ends_with(".narinfo")) {
        if !key.starts_with("pins/") {
            s3.remove(&bucket, key);
        }
    }
    sh(&format!("{} | s3-push -q --no-nix \"$C\"", ARCHIVE.replace("narinfo-gen", "narinfo-gen -c xz"))).ok();
    sh(PULL).ok();
    fixture.assert_trees("out");
    sh("s3-pull -r --export --pin main/1 \"$C\" > export; s3-pull -r --export \"$C\" \"$TOP\" | cmp - export").ok();
    // A damaged NAR is as one that is gone.
    let (fixture, s3, bucket) = pinned_cache();
    let text = fixture.scratch.sh("s3-pull narinfo -r \"$C\" \"$TOP\"").text();
    s3.put(&bucket, "pins/main/1.narinfo", text.replace("FileSize: ", "FileSize: 1").as_bytes());
    fixture.scratch.sh(PULL).ok();
    fixture.assert_trees("out");
}

#[test]
fn hostile_narinfos_beside_a_pin_change_nothing() {
    let (fixture, s3, bucket) = pinned_cache();
    let sh = |script: &str| fixture.scratch.sh(script);
    generate_key(&fixture.scratch, "other");
    let text = sh("s3-pull narinfo -r \"$C\" \"$TOP\"").text();
    let resigned = sh("s3-pull narinfo -r \"$C\" \"$TOP\" | sed /^Sig/d | cache-sign -k other.sec").text();
    // Names of other paths, contents that no trusted key has signed, and what is no narinfo text.
    let forged = [
        text.replace("NarSize: ", "NarSize: 1"),
        text.replace("References: ", "References: 00000000000000000000000000000000-x "),
        text.replace("-lib\n", "-other\n"),
        text.lines().filter(|line| !line.starts_with("Sig")).fold(String::new(), |text, line| text + line + "\n"),
        resigned,
        "<html></html>\n".to_owned(),
        "\0".repeat(100),
        "x".repeat(17 << 20),
        String::new(),
    ];
    for (index, text) in forged.iter().enumerate() {
        s3.put(&bucket, "pins/main/1.narinfo", text.as_bytes());
        sh(PULL).ok();
        fixture.assert_trees("out");
        println!("{index}");
    }
    // Without signatures, the hashes decide.
    let lie = text.replace("NarHash: sha256:", "NarHash: sha256:1").replace("NarSize: ", "NarSize: 9");
    s3.put(&bucket, "pins/main/1.narinfo", lie.as_bytes());
    sh(&PULL.replace("--root", "--no-verify-signatures --root")).ok();
    fixture.assert_trees("out");
}

#[test]
fn the_narinfos_beside_a_pin_are_no_pin_and_go_with_it() {
    let (fixture, s3, bucket) = pinned_cache();
    let sh = |script: &str| fixture.scratch.sh(script);
    assert!(s3.objects(&bucket).contains(&"pins/main/1.narinfo".to_owned()));
    assert_eq!(sh("s3-pull pins \"$C\"").ok(), "main/1");
    sh("s3-pull check \"$C\"").ok();
    assert!(sh("s3-push pin \"$C\" x.narinfo < paths").fails(2).contains("must not end with .narinfo"));
    let texts = String::from_utf8(s3.get(&bucket, "pins/main/1.narinfo")).unwrap();
    assert_eq!(texts.matches("StorePath: ").count(), 3);
    assert_eq!(sh("s3-push unpin \"$C\" 'main/*'").ok(), "main/1");
    assert!(!s3.objects(&bucket).iter().any(|key| key.starts_with("pins/")), "{:?}", s3.objects(&bucket));
}
