//! Cache archives that a push refuses; no narinfo is published.

use crate::fixtures::bucket::{assert_closed, narinfo_keys, snapshot};
use crate::fixtures::closure_fixture::{ARCHIVE, Fixture};
use cache_tests::EmbeddedS3;
use std::fs;

/// Pushes an archive of `members` of `cache/`, and asserts that it is refused with `word` in the message and no narinfo
/// is published.
#[track_caller]
fn assert_refused(fixture: &Fixture, s3: &EmbeddedS3, bucket: &str, members: &str, word: &str) {
    let pushed = fixture.scratch.sh(&format!("tar c -C cache {members} | s3-push --no-nix \"$C\""));
    let stderr = pushed.fails(1);
    assert!(stderr.contains(word), "{word:?} in {stderr}");
    assert_eq!(pushed.stdout.len(), 0, "no path was published");
    let objects = snapshot(s3, bucket);
    assert_eq!(narinfo_keys(&objects), [""; 0]);
}

#[test]
fn a_narinfo_without_its_nar_is_refused() {
    let (fixture, s3, bucket, lib) = Fixture::with_cache();
    let key = Fixture::narinfo_key(&fixture.closure.lib);
    assert_refused(&fixture, s3, &bucket, &format!("nix-cache-info {key}"), lib.one("URL"));
    let stderr = fixture.scratch.sh(&format!("s3-push \"$C\" < cache/{key}")).fails(1);
    assert!(stderr.contains(lib.one("URL")), "{stderr}");
    assert_eq!(narinfo_keys(&snapshot(s3, &bucket)), [""; 0]);
    // If the NAR exists, narinfo text is sufficient.
    s3.put(&bucket, lib.one("URL"), &fs::read(fixture.path("cache").join(lib.one("URL"))).unwrap());
    assert_eq!(fixture.scratch.sh(&format!("s3-push \"$C\" < cache/{key}")).ok(), fixture.closure.lib);
    assert_closed(&snapshot(s3, &bucket));
}

#[test]
fn changed_nar_bytes_are_refused() {
    let (fixture, s3, bucket, lib) = Fixture::with_cache();
    let file = fixture.path("cache").join(lib.one("URL"));
    let bytes = fs::read(&file).unwrap();
    let mut flipped = bytes.clone();
    flipped[bytes.len() / 2] ^= 1;
    let cases = [flipped, bytes[..bytes.len() - 1].to_vec(), [bytes.as_slice(), b"x"].concat(), Vec::new()];
    for changed in cases {
        fs::write(&file, changed).unwrap();
        assert_refused(&fixture, s3, &bucket, ".", lib.one("URL"));
        // Also in the order of our own archives.
        let order = format!("nix-cache-info {} {}", lib.one("URL"), Fixture::narinfo_key(&fixture.closure.lib));
        assert_refused(&fixture, s3, &bucket, &order, lib.one("URL"));
        assert!(
            !s3.objects(&bucket).contains(&lib.one("URL").to_owned()),
            "wrong bytes under the key of the right ones"
        );
    }
}

#[test]
fn a_narinfo_that_does_not_match_its_nar_is_refused() {
    let (fixture, s3, bucket, lib) = Fixture::with_cache();
    let key = Fixture::narinfo_key(&fixture.closure.lib);
    let file = fixture.path("cache").join(&key);
    let truth = fs::read_to_string(&file).unwrap();
    let other = format!("sha256:{}", cache_tests::sha256_base32(b"other"));
    let lies = [
        ("NarHash", truth.replace(lib.one("NarHash"), &other)),
        ("FileHash", truth.replace(&format!("FileHash: {}", lib.one("FileHash")), &format!("FileHash: {other}"))),
        ("NarSize", truth.replace(&format!("NarSize: {}", lib.one("NarSize")), "NarSize: 408")),
        ("FileSize", truth.replace(&format!("FileSize: {}", lib.one("FileSize")), "FileSize: 7")),
    ];
    for (field, lie) in lies {
        assert_ne!(lie, truth, "{field}");
        fs::write(&file, lie).unwrap();
        assert_refused(&fixture, s3, &bucket, ".", field);
        assert_refused(&fixture, s3, &bucket, &format!("nix-cache-info nar {key}"), field);
    }
    // A narinfo under the key of another path.
    fs::write(&file, fs::read(fixture.path("cache").join(Fixture::narinfo_key(&fixture.closure.app))).unwrap())
        .unwrap();
    assert_refused(&fixture, s3, &bucket, ".", &key);
}

#[test]
fn missing_references_are_refused_unless_allowed() {
    let (fixture, s3, bucket, _) = Fixture::with_cache();
    let app = Fixture::narinfo_key(&fixture.closure.app);
    let lib = &fixture.closure.lib["/nix/store/".len()..];
    assert_refused(&fixture, s3, &bucket, &format!("nix-cache-info nar {app}"), lib);
    assert_refused(&fixture, s3, &bucket, &format!("{app} nar"), lib);
    let allowed =
        format!("tar c -C cache nix-cache-info nar {app} | s3-push --no-nix --allow-missing-references \"$C\"");
    assert_eq!(fixture.scratch.sh(&allowed).ok(), fixture.closure.app);
    // Paths in the cache count as references.
    let lib = Fixture::narinfo_key(&fixture.closure.lib);
    let top = Fixture::narinfo_key(&fixture.closure.top);
    fixture.scratch.sh(&format!("tar c -C cache nar {lib} | s3-push --no-nix \"$C\"")).ok();
    fixture.scratch.sh(&format!("tar c -C cache nar {top} | s3-push --no-nix \"$C\"")).ok();
    fixture.assert_complete(&snapshot(s3, &bucket));
}

#[test]
fn malformed_objects_beside_a_path_are_refused() {
    let (fixture, s3, bucket, _) = Fixture::with_cache();
    let listing = format!("{}.ls", Fixture::narinfo_key(&fixture.closure.lib).strip_suffix(".narinfo").unwrap());
    let realisation = format!("realisations/sha256:{}!out.doi", "0".repeat(64));
    let build_id = format!("debuginfo/{}", "0".repeat(40));
    let cases = [
        (listing.as_str(), "{\"version\":1,\"root\":{\"type\":\"socket\"}}"),
        (&listing, ""),
        (&realisation, "{\"id\":\"sha256:1!out\",\"outPath\":\"x\"}"),
        (&build_id, "{\"member\":\"x\"}"),
    ];
    let cache = fixture.path("cache");
    for directory in ["realisations", "debuginfo"] {
        fs::create_dir(cache.join(directory)).unwrap();
    }
    for (key, contents) in cases {
        fs::write(cache.join(key), contents).unwrap();
        assert_refused(&fixture, s3, &bucket, &format!("nix-cache-info '{key}' ."), key);
        assert!(!s3.objects(&bucket).contains(&key.to_owned()), "{key}");
        fs::remove_file(cache.join(key)).unwrap();
    }
}

#[test]
fn a_bucket_of_another_store_directory_is_refused() {
    let (fixture, s3, bucket) = Fixture::embedded();
    s3.put(&bucket, "nix-cache-info", b"StoreDir: /gnu/store\n");
    let stderr = fixture.scratch.sh(&format!("{ARCHIVE} | s3-push --no-nix \"$C\"")).fails(1);
    assert!(stderr.contains("/gnu/store"), "{stderr}");
    assert_eq!(narinfo_keys(&snapshot(s3, &bucket)), [""; 0]);
    assert_eq!(s3.get(&bucket, "nix-cache-info"), b"StoreDir: /gnu/store\n");
    let stderr = fixture.scratch.sh("s3-pull --root out \"$C\" \"$LIB\"").fails(1);
    assert!(stderr.contains(&fixture.closure.lib) || stderr.contains("/gnu/store"), "{stderr}");
}

/// One bad NAR keeps every path above it from being published: the cause is printed once, with their number, and their
/// names only with `-v`.
#[test]
fn refused_dependents_are_counted_and_named_with_verbose() {
    let (fixture, s3, bucket, lib) = Fixture::with_cache();
    let file = fixture.path("cache").join(lib.one("URL"));
    let mut bytes = fs::read(&file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&file, bytes).unwrap();
    let push = |flags: &str| fixture.scratch.sh(&format!("tar c -C cache . | s3-push --no-nix {flags} \"$C\""));
    let stderr = push("").fails(1);
    assert_eq!(stderr.lines().filter(|line| line.starts_with("s3-push: ")).count(), 1, "{stderr}");
    assert!(stderr.contains(lib.one("URL")) && stderr.contains(&fixture.closure.lib), "{stderr}");
    assert!(stderr.contains("2 paths depend on it and were not published"), "{stderr}");
    let [app, top] = [&fixture.closure.app, &fixture.closure.top].map(|path| stderr.contains(path));
    assert!(app != top, "one of the two is named: {stderr}");
    let stderr = push("-v").fails(1);
    for path in [&fixture.closure.app, &fixture.closure.top] {
        let line = format!("s3-push: {path}: not published, because it depends on {}", lib.one("URL"));
        assert!(stderr.lines().any(|found| found == line), "{stderr}");
    }
    // JSON has an object for each path, whatever its cause.
    let report = push("--json");
    assert_eq!(report.status, 1);
    assert_eq!(report.text().matches("\"status\":\"refused\"").count(), 3, "{}", report.text());
    assert!(report.text().contains("\"refused\":3"), "{}", report.text());
    assert_eq!(narinfo_keys(&snapshot(s3, &bucket)), [""; 0]);
}

/// Several paths that lack the same reference have one cause, and a hint.
#[test]
fn a_missing_reference_is_reported_once() {
    let (fixture, _, _, _) = Fixture::with_cache();
    let keys = [&fixture.closure.app, &fixture.closure.top].map(|path| Fixture::narinfo_key(path)).join(" ");
    let stderr = fixture.scratch.sh(&format!("tar c -C cache nar {keys} | s3-push --no-nix \"$C\"")).fails(1);
    assert!(stderr.contains(&fixture.closure.lib) && stderr.contains("1 path depends on it"), "{stderr}");
    assert_eq!(stderr.matches("hint: ").count(), 1, "{stderr}");
    assert!(stderr.contains("--allow-missing-references"), "{stderr}");
}
