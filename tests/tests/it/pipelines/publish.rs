//! The documented pipelines against the embedded server, without Nix.

use crate::fixtures::bucket::{Fields, assert_closed, nar_keys, narinfo_keys, snapshot};
use crate::fixtures::closure_fixture::{ARCHIVE, Fixture, PUBLISH, generate_key};

#[test]
fn five_stages_publish_a_closure_that_can_be_pulled() {
    let (fixture, s3, bucket) = Fixture::embedded();
    assert_eq!(fixture.scratch.sh(PUBLISH).lines(), fixture.closure.paths(), "s3-push prints what it published");
    let objects = snapshot(s3, &bucket);
    fixture.assert_complete(&objects);
    fixture.assert_pulls("$C", "");
    fixture.assert_pulls("$C", "--no-sign-request");
    fixture.assert_pulls(&s3.http_url(&bucket), "");
    for key in narinfo_keys(&objects) {
        let narinfo = Fields::parse(&objects[key]);
        assert_eq!(narinfo.one("Compression"), "zstd");
        assert_eq!(narinfo.all("Sig").len(), 1);
        assert!(narinfo.one("Sig").starts_with(fixture.key.split_once(':').unwrap().0));
    }
    let again = fixture.scratch.sh(PUBLISH);
    assert_eq!(again.ok(), "", "no path is missing, and none is published");
    assert_eq!(snapshot(s3, &bucket), objects);
}

#[test]
fn every_compression_can_be_pulled() {
    for compression in ["none", "zstd", "xz", "bzip2", "gzip", "br"] {
        let (fixture, s3, bucket) = Fixture::embedded();
        let script = ARCHIVE.replace("--archive", &format!("--archive -c {compression} --level 1"));
        let script = if compression == "none" { script.replace(" --level 1", "") } else { script };
        fixture.scratch.sh(&format!("{script} | s3-push --no-nix \"$C\"")).ok();
        let objects = snapshot(s3, &bucket);
        fixture.assert_complete(&objects);
        let narinfo = Fields::parse(&objects[narinfo_keys(&objects)[0]]);
        assert_eq!(narinfo.one("Compression"), compression);
        fixture.assert_pulls("$C", "");
    }
}

#[test]
fn a_nar_is_published_with_a_warning_that_it_is_unsigned() {
    let (fixture, s3, bucket) = Fixture::embedded();
    let sh = |script: &str| fixture.scratch.sh(script);
    let pushed = sh("nar-pack --root root --no-nix \"$LIB\" | s3-push --no-nix \"$C\" \"$LIB\"");
    assert_eq!(pushed.ok(), fixture.closure.lib);
    assert!(pushed.stderr.contains(&fixture.closure.lib) && pushed.stderr.contains("sign"), "{}", pushed.stderr);
    // The references of a NAR are found by scanning for candidates.
    sh("nar-pack --root root --no-nix \"$APP\" | s3-push --no-nix --candidates paths \"$C\" \"$APP\"").ok();
    let objects = snapshot(s3, &bucket);
    assert_closed(&objects);
    let app = Fields::parse(&objects[&Fixture::narinfo_key(&fixture.closure.app)]);
    assert_eq!(format!("/nix/store/{}", app.one("References")), fixture.closure.lib);
    assert_eq!(app.all("Sig"), [""; 0]);
    let refused = sh("s3-pull --root out \"$C\" \"$LIB\"").fails(1);
    assert!(refused.contains(&fixture.closure.lib) && refused.contains("sign"), "{refused}");
    fixture.assert_nothing_below("out");
    sh("s3-pull -r --root out --no-verify-signatures \"$C\" \"$APP\"; cmp {root,out}\"$APP\"/bin/app").ok();
}

#[test]
fn an_export_stream_is_published_and_unsigned_paths_are_named() {
    let (fixture, s3, bucket) = Fixture::embedded();
    let export = "nar-pack --root root --no-nix --export --stdin < paths | s3-push --no-nix";
    let pushed = fixture.scratch.sh(&format!("{export} -v \"$C\""));
    assert_eq!(pushed.lines(), fixture.closure.paths());
    for path in fixture.closure.paths() {
        let line = format!("s3-push: {path}: sent, without a signature\n");
        assert!(pushed.stderr.contains(&line), "{path} is not named in {}", pushed.stderr);
    }
    fixture.assert_complete(&snapshot(s3, &bucket));
    fixture.assert_pulls("$C", "--no-verify-signatures");
    let other = s3.make_bucket();
    let quiet = fixture.scratch.sh(&format!("{export} --quiet '{}'", s3.cache_url(&other)));
    quiet.ok();
    assert_eq!(quiet.stderr, "", "--quiet leaves only errors");
}

#[test]
fn the_bucket_url_is_read_from_the_environment() {
    let (mut fixture, s3, bucket) = Fixture::embedded();
    fixture.scratch.env("NIX_S3_CACHE", s3.cache_url(&bucket));
    fixture.scratch.sh(&PUBLISH.replace("\"$C\"", "")).ok();
    fixture.assert_complete(&snapshot(s3, &bucket));
    fixture.scratch.sh("s3-pull -r --root out \"$TOP\"").ok();
    fixture.assert_trees("out");
    let policy = fixture.scratch.sh("cache-policy --read-only").ok();
    assert!(policy.contains(&format!("arn:aws:s3:::{bucket}/*")), "{policy}");
}

#[test]
fn a_mirror_has_the_same_objects() {
    let (mut fixture, s3, bucket) = Fixture::embedded();
    fixture.scratch.sh(PUBLISH).ok();
    let mirror = s3.make_bucket();
    fixture.scratch.env("B", s3.cache_url(&mirror));
    fixture.scratch.sh("s3-pull -r --archive \"$C\" \"$TOP\" | s3-push \"$B\"").ok();
    assert_eq!(snapshot(s3, &mirror), snapshot(s3, &bucket));
    fixture.assert_pulls("$B", "");
    let third = s3.make_bucket();
    fixture.scratch.sh(&format!("s3-pull --all --archive \"$C\" | s3-push '{}'", s3.cache_url(&third))).ok();
    assert_eq!(snapshot(s3, &third), snapshot(s3, &bucket));
}

#[test]
fn a_key_rotation_leaves_nars_unchanged() {
    let (fixture, s3, bucket) = Fixture::embedded();
    let sh = |script: &str| fixture.scratch.sh(script);
    sh(PUBLISH).ok();
    let before = snapshot(s3, &bucket);
    let new = generate_key(&fixture.scratch, "new");
    let rotate = "s3-pull --narinfo --all \"$C\" | cache-sign -k new.sec | s3-push \"$C\"";
    assert_eq!(sh(rotate).lines().len(), 3);
    let after = snapshot(s3, &bucket);
    fixture.assert_complete(&after);
    for key in nar_keys(&before) {
        assert_eq!(after[key], before[key], "{key}");
    }
    for key in narinfo_keys(&after) {
        assert_eq!(Fields::parse(&after[key]).all("Sig").len(), 2);
    }
    fixture.assert_pulls("$C", "");
    fixture.assert_pulls("$C", &format!("--trusted-public-key {new}"));
    fixture.assert_pulls("$C", &format!("--trusted-public-key {new} --trusted-public-key \"$KEY\" --threshold 2"));
    sh(rotate).ok();
    assert_eq!(snapshot(s3, &bucket), after, "no signature is made twice");
}

#[test]
fn a_threshold_counts_distinct_keys() {
    let (fixture, s3, bucket) = Fixture::embedded();
    fixture.scratch.sh(PUBLISH).ok();
    let new = generate_key(&fixture.scratch, "new");
    let pull = format!("s3-pull -r --root out --trusted-public-key \"$KEY\" --trusted-public-key {new}");
    let refused = fixture.scratch.sh(&format!("{pull} --threshold 2 \"$C\" \"$TOP\"")).fails(1);
    assert!(refused.contains("/nix/store/") && refused.contains('2'), "{refused}");
    fixture.assert_nothing_below("out");
    fixture.scratch.sh("s3-pull --narinfo --all \"$C\" | cache-sign -k new.sec | s3-push \"$C\"").ok();
    fixture.scratch.sh(&format!("{pull} --threshold 2 \"$C\" \"$TOP\"")).ok();
    fixture.assert_trees("out");
    fixture.assert_complete(&snapshot(s3, &bucket));
}

#[test]
fn archive_members_may_be_in_any_order() {
    let (mut fixture, s3, bucket) = Fixture::embedded();
    fixture.scratch.sh(&format!("mkdir cache; {ARCHIVE} | tar x -C cache")).ok();
    fixture.scratch.sh("tar c -C cache . | s3-push --no-nix \"$C\"").ok();
    let objects = snapshot(s3, &bucket);
    fixture.assert_complete(&objects);
    // The worst order: narinfos first, each before its references, and the NARs last.
    let keys: Vec<String> = fixture.closure.paths().iter().rev().map(|path| Fixture::narinfo_key(path)).collect();
    for order in [format!("{} nar nix-cache-info", keys.join(" ")), format!("nar {}", keys.join(" "))] {
        let other = fixture.fresh_bucket(s3);
        let pushed = fixture.scratch.sh(&format!("tar c -C cache {order} | s3-push --no-nix \"$C\""));
        assert_eq!(pushed.lines().len(), 3);
        let other = snapshot(s3, &other);
        fixture.assert_complete(&other);
        assert_eq!(narinfo_keys(&other), narinfo_keys(&objects));
        fixture.assert_pulls("$C", "");
    }
}

#[test]
fn pushing_again_changes_nothing() {
    let (fixture, s3, bucket) = Fixture::embedded();
    fixture.scratch.sh(&format!("{ARCHIVE} > archive; s3-push --no-nix \"$C\" < archive")).ok();
    let before = snapshot(s3, &bucket);
    let again = fixture.scratch.sh("s3-push --no-nix \"$C\" < archive");
    assert_eq!(again.ok(), "", "no path was published");
    assert_eq!(snapshot(s3, &bucket), before);
    // A push without the key does not remove signatures.
    fixture.scratch.sh(&format!("{} | s3-push --no-nix \"$C\"", ARCHIVE.replace("| cache-sign -k key.sec", ""))).ok();
    assert_eq!(snapshot(s3, &bucket), before, "the signatures are kept");
}

#[test]
fn two_pushes_share_a_bucket() {
    let (fixture, s3, bucket) = Fixture::embedded();
    fixture.scratch
        .sh(&format!(
            "{ARCHIVE} > archive; make() {{ s3-push --no-nix \"$C\" < archive; }}; make & first=$!; make & wait $!; wait $first"
        ))
        .ok();
    fixture.assert_complete(&snapshot(s3, &bucket));
    fixture.assert_pulls("$C", "");
}

#[test]
fn a_prefix_is_a_cache_of_its_own() {
    let (mut fixture, s3, bucket) = Fixture::embedded();
    let url = |prefix: &str| s3.cache_url(&bucket).replacen('?', &format!("/{prefix}?"), 1);
    let sites: Vec<String> = ["some/prefix", "other"].map(url).to_vec();
    for url in &sites {
        fixture.scratch.env("C", url);
        fixture.scratch.sh(PUBLISH).ok();
        fixture.assert_pulls("$C", "");
    }
    fixture.scratch.sh("echo log | s3-push \"$C\" --key log/x").ok();
    let objects = snapshot(s3, &bucket);
    assert_closed(&objects);
    assert_eq!(objects.len(), 15, "{:?}", objects.keys());
    assert!(objects.keys().all(|key| key.starts_with("some/prefix/") || key.starts_with("other/")));
    assert!(objects.contains_key("other/log/x"));
    let listed = fixture.scratch.sh("s3-pull --list --all \"$C\"");
    assert_eq!(listed.lines().len(), 3, "--all lists only the prefix");
    fixture.assert_pulls(&format!("{}/some/prefix", s3.http_url(&bucket)), "");
}
