//! `s3-pull check` finds each kind of damage, and the path list that it prints repairs the cache.

use std::fs;
use std::time::Duration;

use cache_tests::fault_proxy::{
    ACCESS_DENIED, Fault, FaultProxy, INTERNAL_ERROR, ObjectKind, Request, RequestKind, always, only,
};
use cache_tests::synthetic_bucket::{Options, SyntheticBucket};
use cache_tests::{Credentials, EmbeddedS3, Minio, Scratch, cache_url};

use crate::fixtures::bucket::{Fields, S3Server, snapshot};
use crate::fixtures::closure_fixture::{ARCHIVE, Fixture, PUBLISH};

const CHECK: &str = "s3-pull check -q \"$C\"";
const REPAIR: &str = "s3-pull archive --stdin \"file://$PWD/mirror\" < broken | s3-push repair --no-nix \"$C\"";

/// A bucket with the closure, and a mirror of it in `mirror/`.
fn mirrored_cache() -> (Fixture, &'static EmbeddedS3, String) {
    let (fixture, s3, bucket) = Fixture::embedded();
    fixture.scratch.sh(&format!("mkdir mirror; {ARCHIVE} > archive; tar x -C mirror < archive")).ok();
    fixture.scratch.sh("s3-push --no-nix \"$C\" < archive").ok();
    (fixture, s3, bucket)
}

/// The key of the NAR of a path.
fn nar_key(s3: &impl S3Server, bucket: &str, path: &str) -> String {
    Fields::parse(&s3.bytes(bucket, &Fixture::narinfo_key(path))).one("URL").to_owned()
}

/// The path list of `s3-pull check` with these options.
#[track_caller]
fn broken(fixture: &Fixture, options: &str) -> (Vec<String>, String) {
    let output = fixture.scratch.sh(&format!("s3-pull check -q {options} \"$C\" | tee broken"));
    let stderr = output.fails(1);
    (output.text().lines().map(str::to_owned).collect(), stderr)
}

/// The findings of `s3-pull check --json`, without the summary.
fn findings(fixture: &Fixture, options: &str) -> Vec<serde_json::Value> {
    let output = fixture.scratch.sh(&format!("s3-pull check -q --json {options} \"$C\""));
    let lines: Vec<serde_json::Value> =
        output.text().lines().map(|line| serde_json::from_str(line).expect("a JSON object per line")).collect();
    assert_eq!(lines[lines.len() - 1]["version"], 1);
    lines[..lines.len() - 1].to_vec()
}

#[test]
fn an_intact_cache_has_no_findings_and_takes_a_request_per_narinfo() {
    let (mut fixture, s3, bucket) = mirrored_cache();
    for options in ["", "--nars", "--read-nars 1/1", "--list-only"] {
        let output = fixture.scratch.sh(&format!("s3-pull check {options} \"$C\""));
        assert_eq!(output.ok(), "", "{options}");
        assert!(output.stderr.contains("3 paths, 3 NARs") && output.stderr.contains(": 0 broken"), "{}", output.stderr);
        assert_eq!(output.stderr.contains("read: 0 broken"), options.contains("nars"), "{}", output.stderr);
        assert_eq!(findings(&fixture, options), Vec::<serde_json::Value>::new());
    }
    let proxy = FaultProxy::start(&s3.endpoint(), always(Fault::Pass));
    fixture.scratch.env("C", cache_url(proxy.endpoint(), &bucket));
    fixture.scratch.sh(CHECK).ok();
    let kinds = |kind: RequestKind| proxy.requests().iter().filter(|seen| **seen == kind).count();
    let narinfos = kinds(RequestKind::GetObject(ObjectKind::Narinfo));
    let pages = kinds(RequestKind::ListObjects);
    let uploads = kinds(RequestKind::ListMultipartUploads);
    // And the nix-cache-info.
    assert_eq!((narinfos, pages, uploads, proxy.requests().len()), (3, 2, 1, 7));
}

/// Damages one path.
type Damage = fn(&Fixture, &EmbeddedS3, &str);

/// Each kind of damage to `lib`: what is done, the options of the check that finds it, and its reason.
const DAMAGES: [(&str, Damage, &str, &str); 11] = [
    ("a missing NAR", |f, s3, bucket| s3.remove(bucket, &nar_key(s3, bucket, &f.closure.lib)), "", "missing-nar"),
    (
        "a truncated NAR",
        |f, s3, bucket| {
            let key = nar_key(s3, bucket, &f.closure.lib);
            let bytes = s3.get(bucket, &key);
            s3.put(bucket, &key, &bytes[..bytes.len() - 1]);
        },
        "",
        "nar-size",
    ),
    ("an empty NAR", |f, s3, bucket| s3.put(bucket, &nar_key(s3, bucket, &f.closure.lib), b""), "", "nar-size"),
    (
        "a NAR with a flipped byte",
        |f, s3, bucket| {
            let key = nar_key(s3, bucket, &f.closure.lib);
            let mut bytes = s3.get(bucket, &key);
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
            s3.put(bucket, &key, &bytes);
        },
        "--nars",
        "damaged-nar",
    ),
    (
        "the NAR of another path",
        |f, s3, bucket| {
            let (lib, app) = (nar_key(s3, bucket, &f.closure.lib), nar_key(s3, bucket, &f.closure.app));
            let mut bytes = s3.get(bucket, &app);
            bytes.resize(s3.get(bucket, &lib).len(), 0);
            s3.put(bucket, &lib, &bytes);
        },
        "--read-nars 100%",
        "damaged-nar",
    ),
    (
        "a missing narinfo",
        |f, s3, bucket| s3.remove(bucket, &Fixture::narinfo_key(&f.closure.lib)),
        "",
        "missing-narinfo",
    ),
    (
        "a truncated narinfo",
        |f, s3, bucket| {
            let key = Fixture::narinfo_key(&f.closure.lib);
            let text = s3.get(bucket, &key);
            s3.put(bucket, &key, &text[..text.len() / 2]);
        },
        "",
        "malformed-narinfo",
    ),
    (
        "a narinfo with a bad size",
        |f, s3, bucket| {
            replace_in_narinfo(f, s3, bucket, "NarSize: ", "NarSize: -");
        },
        "",
        "malformed-narinfo",
    ),
    (
        "a narinfo with another NarSize",
        |f, s3, bucket| {
            replace_in_narinfo(f, s3, bucket, "NarSize: ", "NarSize: 1");
        },
        "",
        "untrusted",
    ),
    // No signature covers these fields.
    (
        "a narinfo with another compression",
        |f, s3, bucket| replace_in_narinfo(f, s3, bucket, "Compression: zstd", "Compression: none"),
        "--nars",
        "damaged-nar",
    ),
    (
        "a narinfo with another FileSize",
        |f, s3, bucket| replace_in_narinfo(f, s3, bucket, "FileSize: ", "FileSize: 1"),
        "",
        "nar-size",
    ),
];

fn replace_in_narinfo(fixture: &Fixture, s3: &EmbeddedS3, bucket: &str, from: &str, to: &str) {
    let key = Fixture::narinfo_key(&fixture.closure.lib);
    let text = String::from_utf8(s3.get(bucket, &key)).unwrap();
    assert!(text.contains(from), "{text}");
    s3.put(bucket, &key, text.replace(from, to).as_bytes());
}

#[test]
fn each_kind_of_damage_is_found_and_only_the_damaged_path_is_named() {
    for (what, damage, options, reason) in DAMAGES {
        let (fixture, s3, bucket) = mirrored_cache();
        damage(&fixture, s3, &bucket);
        let (paths, stderr) = broken(&fixture, options);
        assert_eq!(paths, [fixture.closure.lib.as_str()], "{what}: {stderr}");
        assert!(stderr.contains(fixture.closure.lib.rsplit('/').next().unwrap()), "{what}: {stderr}");
        assert!(stderr.contains("1 path or object is broken"), "{what}: {stderr}");
        let found = findings(&fixture, options);
        let found: Vec<_> = found.iter().filter(|finding| finding["broken"] == true).collect();
        assert_eq!((found.len(), &found[0]["reason"]), (1, &reason.into()), "{what}: {found:?}");
        assert_eq!(found[0]["path"], fixture.closure.lib.as_str(), "{what}");
        let command = found[0]["command"].as_str().unwrap();
        assert!(command.contains(&fixture.closure.lib) && command.contains("s3-p"), "{what}: {command}");
    }
}

/// Nothing but what was damaged changes, and signatures that only the damaged cache had stay.
#[test]
fn the_path_list_repairs_the_cache() {
    for (what, damage, options, reason) in DAMAGES {
        if reason == "untrusted" {
            // Another path info of the same path: it is unknown which of the two is right.
            continue;
        }
        let (fixture, s3, bucket) = mirrored_cache();
        fixture.scratch.sh("cache-sign keygen second-1 second.sec second.pub; s3-pull --narinfo --all \"$C\" | cache-sign -k second.sec | s3-push \"$C\"").ok();
        let before = snapshot(s3, &bucket);
        damage(&fixture, s3, &bucket);
        broken(&fixture, options);
        assert_eq!(fixture.scratch.sh(REPAIR).ok(), fixture.closure.lib, "{what}");
        assert_eq!(fixture.scratch.sh(&format!("s3-pull check -q {options} \"$C\"")).ok(), "", "{what}");
        let mut after = snapshot(s3, &bucket);
        if reason.ends_with("narinfo") {
            // Its signature by the second key was lost with it.
            after.insert(
                Fixture::narinfo_key(&fixture.closure.lib),
                before[&Fixture::narinfo_key(&fixture.closure.lib)].clone(),
            );
        }
        assert!(after == before, "{what}");
        fixture.assert_pulls("$C", "");
    }
}

#[test]
fn a_cache_on_minio_is_checked_and_repaired() {
    let Some((fixture, minio, bucket)) = Fixture::on_minio() else { return };
    let sh = |script: &str| fixture.scratch.sh(script);
    sh(&format!("mkdir mirror; {ARCHIVE} > archive; tar x -C mirror < archive; s3-push --no-nix \"$C\" < archive"))
        .ok();
    sh("s3-pull check --nars \"$C\"").ok();
    let before = snapshot(minio, &bucket);
    let keys = fixture.closure.paths().map(|path| nar_key(minio, &bucket, path));
    minio.remove(&bucket, &keys[0]);
    let mut flipped = before[&keys[1]].clone();
    flipped[20] ^= 1;
    minio.put(&bucket, &keys[1], &flipped);
    minio.put(&bucket, &keys[2], &before[&keys[2]][..10]);
    let (mut paths, _) = broken(&fixture, "--nars");
    let mut expected = fixture.closure.paths().to_vec();
    expected.sort_unstable();
    assert_eq!(paths, expected);
    assert_eq!(sh(REPAIR).lines().len(), 3);
    minio.remove(&bucket, &Fixture::narinfo_key(&fixture.closure.lib));
    (paths, _) = broken(&fixture, "--nars");
    assert_eq!(paths, [fixture.closure.lib.as_str()]);
    assert_eq!(sh(REPAIR).ok(), fixture.closure.lib);
    sh("s3-pull check --nars \"$C\"").ok();
    assert!(snapshot(minio, &bucket) == before);
}

/// A narinfo from which no path can be read is reported by its key.
#[test]
fn a_narinfo_without_a_path_is_named_on_standard_error() {
    let large = vec![b'x'; 2 << 20];
    let hostile: [&[u8]; 6] = [b"", b"\0\xff", b"<!DOCTYPE html><html>", b"StorePath: ../../x\n", &large, b"\n\n"];
    for bytes in hostile {
        let (fixture, s3, bucket) = mirrored_cache();
        let key = Fixture::narinfo_key(&fixture.closure.top);
        s3.put(&bucket, &key, bytes);
        let (paths, stderr) = broken(&fixture, "");
        assert_eq!(paths, Vec::<String>::new());
        assert!(stderr.contains(&key) && stderr.lines().count() == 3, "{stderr}");
        // The path is known from elsewhere, such as the local store.
        fixture.scratch.sh(&format!("echo \"$TOP\" > broken; {REPAIR}")).ok();
        fixture.scratch.sh(CHECK).ok();
    }
    let (fixture, s3, bucket) = mirrored_cache();
    let other = s3.get(&bucket, &Fixture::narinfo_key(&fixture.closure.app));
    s3.put(&bucket, &Fixture::narinfo_key(&fixture.closure.top), &other);
    let (paths, stderr) = broken(&fixture, "");
    assert!(paths.is_empty() && stderr.contains("it describes another path"), "{stderr}");
    fixture.scratch.sh(&format!("echo \"$TOP\" > broken; {REPAIR}")).ok();
    fixture.scratch.sh(CHECK).ok();
    fixture.assert_pulls("$C", "");
}

#[test]
fn pins_that_are_malformed_or_name_missing_paths_are_found() {
    let (fixture, s3, bucket) = mirrored_cache();
    let sh = |script: &str| fixture.scratch.sh(script);
    sh("s3-push pin -q \"$C\" main/1 < paths; echo \"$LIB\" | s3-push pin -q \"$C\" main/2").ok();
    sh(CHECK).ok();
    s3.remove(&bucket, &Fixture::narinfo_key(&fixture.closure.top));
    let (paths, stderr) = broken(&fixture, "");
    assert_eq!(paths, [fixture.closure.top.as_str()], "{stderr}");
    assert!(stderr.contains(&format!("{}: not in the cache; pinned by main/1", fixture.closure.top)), "{stderr}");
    sh(&format!("echo \"$TOP\" > broken; {REPAIR}")).ok();
    sh(CHECK).ok();
    for (name, text) in [("bad name", "x"), ("main/3", "no path\n"), ("main/4", "\u{fffd}")] {
        s3.put(&bucket, &format!("pins/{name}"), text.as_bytes());
        let found = findings(&fixture, "");
        let found: Vec<_> = found.iter().filter(|finding| finding["broken"] == true).collect();
        assert_eq!((found.len(), &found[0]["reason"]), (1, &"malformed-pin".into()), "{name}: {found:?}");
        assert_eq!(found[0]["key"], format!("pins/{name}"));
        assert_eq!(sh(&format!("s3-push unpin \"$C\" '{name}'")).ok(), name);
        sh(CHECK).ok();
    }
}

#[test]
fn signatures_are_those_of_the_trusted_keys() {
    let (fixture, ..) = mirrored_cache();
    fixture.scratch.sh("cache-sign keygen second-1 second.sec second.pub").ok();
    let trust = "--trusted-public-key-file second.pub";
    let (paths, stderr) = broken(&fixture, trust);
    assert!(paths.len() == 3 && stderr.contains("not signed by a trusted key"), "{stderr}");
    let found = findings(&fixture, trust);
    assert!(found.iter().all(|finding| finding["reason"] == "untrusted"), "{found:?}");
    fixture.scratch.sh("s3-pull check --no-verify-signatures \"$C\"").ok();
    // The command of a finding mends it, with a cache that has the signature.
    fixture.scratch.sh("mkdir signed; s3-pull archive --all \"$C\" | cache-sign -k second.sec | tar x -C signed").ok();
    for finding in found {
        let command = finding["command"].as_str().unwrap();
        fixture.scratch.sh(&format!("A=\"file://$PWD/signed\"; {command}")).ok();
    }
    fixture.scratch.sh(&format!("s3-pull check {trust} \"$C\"")).ok();
    assert!(fixture.scratch.sh("NIX_CONFIG= s3-pull check --threshold 9 \"$C\"").fails(2).contains("threshold"));
}

#[test]
fn references_may_be_in_an_upstream_cache() {
    let (fixture, s3, bucket) = mirrored_cache();
    s3.remove(&bucket, &Fixture::narinfo_key(&fixture.closure.lib));
    let (paths, stderr) = broken(&fixture, "");
    assert_eq!(paths, [fixture.closure.lib.as_str()], "{stderr}");
    fixture.scratch.sh("s3-pull check --allow-missing-references \"$C\"").ok();
    fixture.scratch.sh("s3-pull check --upstream \"file://$PWD/mirror\" \"$C\"").ok();
    // One that cannot be read may have what the others do not.
    fixture
        .scratch
        .sh("s3-pull check --upstream file:///nonexistent --upstream \"file://$PWD/mirror\" \"$C\"")
        .fails(2);
    fixture.scratch.sh("rm mirror/*.narinfo").ok();
    broken(&fixture, "--upstream \"file://$PWD/mirror\"");
}

#[test]
fn objects_that_nothing_needs_are_notes() {
    let (fixture, s3, bucket) = mirrored_cache();
    fixture.scratch.sh("echo \"$TOP\" | s3-push pin -q \"$C\" main/1").ok();
    let absent = format!("{}.ls", "0".repeat(32));
    for (key, bytes) in [
        ("backup/x.tar", &b"x"[..]),
        ("notes.html", b"x"),
        // The page of `cache-policy --landing-page`.
        ("index.html", b"x"),
        ("nar/unneeded.nar", b"abc"),
        ("log/x.drv", b""),
        ("gc/20260101T000000Z.narinfo", b"x"),
        (&absent, b"{}"),
    ] {
        s3.put(&bucket, key, bytes);
    }
    let output = fixture.scratch.sh("s3-pull check \"$C\"");
    assert_eq!(output.ok(), "");
    for note in ["2 objects that do not belong", "nar/unneeded.nar: a NAR that no narinfo names"] {
        assert!(output.stderr.contains(note), "{note}: {}", output.stderr);
    }
    let found = findings(&fixture, "");
    let keys = |reason: &str| -> Vec<&str> {
        found
            .iter()
            .filter(|finding| finding["reason"] == reason)
            .map(|finding| finding["key"].as_str().unwrap())
            .collect()
    };
    assert_eq!(keys("foreign-object"), ["backup/x.tar", "notes.html"]);
    assert_eq!(keys("unneeded-nar"), ["nar/unneeded.nar"]);
    assert_eq!(keys("unneeded-listing"), [absent.as_str()]);
    assert!(found.len() == 4 && found.iter().all(|finding| finding["broken"] == false), "{found:?}");
}

#[test]
fn the_listing_alone_tells_of_empty_and_foreign_objects() {
    let (fixture, s3, bucket) = mirrored_cache();
    s3.put(&bucket, "notes.html", b"x");
    assert_eq!(findings(&fixture, "--list-only").len(), 1);
    let keys = [nar_key(s3, &bucket, &fixture.closure.lib), Fixture::narinfo_key(&fixture.closure.top)];
    for key in &keys {
        s3.put(&bucket, key, b"");
    }
    let (paths, stderr) = broken(&fixture, "--list-only");
    assert!(paths.is_empty() && keys.iter().all(|key| stderr.contains(key)), "{stderr}");
    for options in ["--nars", "--read-nars 5%", "--have x", "--upstream file:///x"] {
        fixture.scratch.sh(&format!("s3-pull check --list-only {options} \"$C\"")).fails(2);
    }
}

/// Nix uses no cache without a valid `nix-cache-info`. A URL with a wrong prefix has none.
#[test]
fn a_missing_or_malformed_cache_info_is_broken() {
    let (fixture, s3, bucket) = mirrored_cache();
    let wrong = fixture.scratch.sh("s3-pull check \"${C/\\?/\\/typo?}\"");
    assert!(wrong.fails(1).contains("there is no nix-cache-info"), "{}", wrong.stderr);
    assert!(wrong.stderr.contains("0 paths") && wrong.stderr.contains("hint: check the URL"), "{}", wrong.stderr);
    for (text, cause) in [(&b"garbage\n"[..], "no field \"StoreDir\""), (b"", "no field"), (b"\xff", "UTF-8")] {
        s3.put(&bucket, "nix-cache-info", text);
        let (paths, stderr) = broken(&fixture, "");
        assert!(paths.is_empty() && stderr.contains(cause), "{stderr}");
        assert!(fixture.scratch.sh(PUBLISH).fails(1).contains(cause));
    }
    // The command of the finding mends it, and keeps the other fields.
    s3.put(&bucket, "nix-cache-info", b"Store: x\ngarbage\nPriority: 30\n");
    let found = findings(&fixture, "");
    assert_eq!((found.len(), &found[0]["reason"]), (1, &"malformed-cache-info".into()), "{found:?}");
    fixture.scratch.sh(found[0]["command"].as_str().unwrap()).ok();
    assert_eq!(s3.get(&bucket, "nix-cache-info"), b"Store: x\ngarbage\nPriority: 30\nStoreDir: /nix/store\n");
    fixture.scratch.sh(CHECK).ok();
    for bytes in [b"\xff".to_vec(), vec![b'x'; 100_000]] {
        s3.put(&bucket, "nix-cache-info", &bytes);
        let found = findings(&fixture, "");
        fixture.scratch.sh(found[0]["command"].as_str().unwrap()).ok();
        assert_eq!(s3.get(&bucket, "nix-cache-info"), b"StoreDir: /nix/store\n");
    }
    s3.put(&bucket, "nix-cache-info", b"");
    assert!(broken(&fixture, "--list-only").1.contains("hint: check the URL"));
    s3.put(&bucket, "nix-cache-info", b"StoreDir: /foo/store\n");
    let found = findings(&fixture, "");
    assert_eq!((&found[0]["reason"], &found[0]["command"]), (&"other-store-dir".into(), &serde_json::Value::Null));
    assert!(broken(&fixture, "").1.contains("the store directory /foo/store"));
    assert!(fixture.scratch.sh("s3-push --set-cache-info \"$C\"").fails(1).contains("/foo/store"));
}

#[test]
fn a_missing_path_counts_once_whatever_names_it() {
    let (fixture, s3, bucket) = mirrored_cache();
    fixture.scratch.sh("for n in 1 2 3; do echo \"$TOP\" | s3-push pin -q \"$C\" main/$n; done").ok();
    s3.remove(&bucket, &Fixture::narinfo_key(&fixture.closure.top));
    let (paths, stderr) = broken(&fixture, "");
    assert_eq!(paths, [fixture.closure.top.as_str()]);
    assert!(stderr.contains("pinned by main/1 and 2 other pins\n") && stderr.contains("1 path or"), "{stderr}");
    fixture.scratch.sh(REPAIR).ok();
    s3.put(&bucket, "pins/main/1", b"garbage");
    let (paths, stderr) = broken(&fixture, "");
    assert!(paths.is_empty() && stderr.contains("hint: write the pin again with 's3-push pin'"), "{stderr}");
}

/// What cannot be read is no finding.
#[test]
fn a_failed_request_is_an_error_without_output() {
    let (mut fixture, s3, bucket) = mirrored_cache();
    s3.remove(&bucket, &nar_key(s3, &bucket, &fixture.closure.lib));
    let nar = nar_key(s3, &bucket, &fixture.closure.app);
    for part in [".narinfo", "list-type", nar.as_str()] {
        for fault in [INTERNAL_ERROR, ACCESS_DENIED, Fault::Reset, Fault::TruncateResponse(10)] {
            let part = part.to_owned();
            let is_part = move |request: &Request| request.path.contains(&part) || request.query.contains(&part);
            let proxy = FaultProxy::start(&s3.endpoint(), only(is_part, always(fault)));
            fixture.scratch.env("C", cache_url(proxy.endpoint(), &bucket));
            let output = fixture.scratch.sh("s3-pull check --nars --attempts 1 \"$C\"");
            assert_eq!(output.text(), "", "{}", output.stderr);
            output.fails(2);
        }
    }
}

#[test]
fn known_narinfos_are_not_read_again() {
    // The listings of the embedded server have no entity tags that are MD5 hashes.
    let Some(s3) = Minio::shared() else { return };
    let mut fixture = Fixture::new();
    let bucket = s3.make_bucket();
    s3.root().apply(&mut fixture.scratch);
    let direct = s3.cache_url(&bucket);
    fixture.scratch.env("C", &direct);
    fixture.scratch.sh(PUBLISH).ok();
    fixture.scratch.sh("s3-pull narinfo --all \"$C\" > last.narinfo").ok();
    let text = fs::read_to_string(fixture.path("last.narinfo")).unwrap();
    let proxy = FaultProxy::start(&s3.endpoint(), always(Fault::Pass));
    fixture.scratch.env("C", cache_url(proxy.endpoint(), &bucket));
    let narinfos = |script: &str| {
        let is_narinfo = |kind: &&RequestKind| **kind == RequestKind::GetObject(ObjectKind::Narinfo);
        let count = || proxy.requests().iter().filter(is_narinfo).count();
        let before = count();
        let output = fixture.scratch.sh(script).ok();
        (output, count() - before)
    };
    let all = "s3-pull narinfo --all --have last.narinfo \"$C\"";
    assert_eq!(narinfos(all), (text.trim().to_owned(), 0));
    assert_eq!(narinfos("s3-pull check -q --have last.narinfo \"$C\""), (String::new(), 0));
    let dead = "s3-pull dead -q --older-than 0s --no-roots \"$C\"";
    let (without, count) = narinfos(dead);
    assert_eq!(count, 3);
    assert_eq!(narinfos(&format!("{dead} --have last.narinfo")), (without, 0));
    let stats = "s3-pull stats --json -q \"$C\"";
    let (without, count) = narinfos(stats);
    assert_eq!(count, 3);
    assert_eq!(narinfos(&format!("{stats} --have last.narinfo")), (without, 0));
    let (_, count) =
        narinfos("s3-push collect -q --older-than 0s --no-roots --max-delete 100% --have last.narinfo \"$C\"");
    assert_eq!(count, 0);
    // One is changed, one is gone, and one was added: the output is that of a run without the file.
    let lib = Fixture::narinfo_key(&fixture.closure.lib);
    let signed = "cache-sign keygen second-1 second.sec second.pub; s3-pull narinfo \"$D\" \"$LIB\" | cache-sign -k second.sec | s3-push \"$D\"";
    fixture.scratch.sh(&format!("D='{direct}'; {signed}")).ok();
    s3.remove(&bucket, &Fixture::narinfo_key(&fixture.closure.top));
    let expected = fixture.scratch.sh("s3-pull narinfo --all \"$C\"").ok();
    assert!(expected.contains("second-1") && !expected.contains(&fixture.closure.top));
    assert_eq!(narinfos(all), (expected.clone(), 1), "{lib}");
    // A file that is truncated, of another cache or no text at all is harmless.
    for file in [&text.as_bytes()[..text.len() / 2], b"", b"\xff\n\n\nStorePath: x\n"] {
        fs::write(fixture.path("last.narinfo"), file).unwrap();
        assert_eq!(narinfos(all).0, expected);
    }
    fs::write(fixture.path("last.narinfo"), text.replace("NarSize: ", "NarSize: 1")).unwrap();
    assert_eq!(narinfos(all), (expected, 2));
    for command in [
        "narinfo --all --have missing",
        "narinfo --have last.narinfo",
        "list --all --have last.narinfo",
        "dead --older-than 1d --have /dev/null",
    ] {
        fixture.scratch.sh(&format!("s3-pull {command} \"$C\"")).fails(2);
    }
}

/// A push between the listing and the reads is no damage.
#[test]
fn what_is_published_meanwhile_is_not_missing() {
    let (mut fixture, s3, bucket) = Fixture::embedded();
    fixture.scratch.sh(PUBLISH).ok();
    let objects = snapshot(s3, &bucket);
    let lib = Fixture::narinfo_key(&fixture.closure.lib);
    s3.remove(&bucket, &lib);
    let put_back = (bucket.clone(), lib.clone(), objects[&lib].clone());
    let proxy = FaultProxy::start(&s3.endpoint(), move |request| {
        if request.kind() == RequestKind::GetObject(ObjectKind::Narinfo) {
            EmbeddedS3::shared().put(&put_back.0, &put_back.1, &put_back.2);
        }
        Fault::Pass
    });
    fixture.scratch.env("C", cache_url(proxy.endpoint(), &bucket));
    fixture.scratch.sh(CHECK).ok();
}

/// Listings of many pages are split into ranges, which overlap a little.
#[test]
fn a_check_takes_a_request_per_page_and_narinfo() {
    let (paths, page_size) = (2500, 50);
    let sign = Box::new(|_: &str| "synthetic-1:AAAA".to_owned());
    let s3 = SyntheticBucket::start(Options { paths, page_size, latency: Duration::ZERO, sign });
    let mut scratch = Scratch::new();
    Credentials::random().apply(&mut scratch);
    scratch.env("C", s3.cache_url());
    let check = "s3-pull check --no-verify-signatures \"$C\"";
    let output = scratch.sh(check);
    assert_eq!(output.ok(), "");
    assert!(output.stderr.contains("2,500 paths, 2,500 NARs"), "{}", output.stderr);
    let counts = s3.take_counts();
    let pages = 2 * paths / page_size as u64;
    assert_eq!((counts.narinfos, counts.others), (paths, 2), "the pin and nix-cache-info: {counts:?}");
    assert!((pages..pages * 3 / 2 + 5).contains(&counts.pages), "{counts:?}");
    scratch.sh("s3-pull narinfo --all --no-verify-signatures \"$C\" > last.narinfo").ok();
    s3.take_counts();
    scratch.sh(&format!("{check} --have last.narinfo")).ok();
    assert_eq!(s3.take_counts().narinfos, 0);
    scratch.sh("s3-push collect -q --older-than 1d --max-delete 60% \"$C\"").ok();
    assert_eq!(s3.take_counts().narinfos, paths, "the steps of a collection read a narinfo once");
    let stats = scratch.sh("s3-pull stats --json --have last.narinfo \"$C\"").ok();
    let stats: serde_json::Value = serde_json::from_str(&stats).unwrap();
    assert_eq!((&stats["paths"], s3.take_counts().narinfos), (&paths.into(), 0));
}
