//! What a push writes: objects, their metadata, and its report.

use crate::fixtures::bucket::{assert_closed, head, nar_keys, snapshot};
use crate::fixtures::closure_fixture::{ARCHIVE, Fixture, PUBLISH, path_in_root};
use cache_tests::random_seed;
use cache_tests::{EmbeddedS3, Random, Scratch, store_path};
use std::fs;

#[test]
fn missing_prints_the_paths_that_the_cache_lacks() {
    let (fixture, s3, bucket) = Fixture::embedded();
    let missing = "s3-push --missing \"$C\"";
    let sh = |script: &str| fixture.scratch.sh(script);
    assert_eq!(sh(&format!("{missing} < paths")).lines(), fixture.closure.paths());
    assert_eq!(s3.objects(&bucket), [""; 0], "--missing does not write");
    sh("nar-pack --root root --no-nix \"$LIB\" | s3-push --no-nix \"$C\" \"$LIB\"").ok();
    assert_eq!(sh(&format!("{missing} < paths")).lines(), [fixture.closure.app.as_str(), &fixture.closure.top]);
    assert_eq!(sh(&format!("tac paths | {missing}")).lines(), [fixture.closure.top.as_str(), &fixture.closure.app]);
    assert_eq!(sh(&format!("head -n 1 paths | {missing}")).ok(), "");
    assert_eq!(sh(&format!("{missing} < /dev/null")).ok(), "", "an empty path list has no missing paths");
}

#[test]
fn any_bytes_are_stored_under_a_key() {
    let (fixture, s3, bucket) = Fixture::embedded();
    let sh = |script: &str| fixture.scratch.sh(script);
    let body = Random::new(random_seed()).bytes(12 << 20);
    let push = "s3-push \"$C\" --part-size 5MiB --key";
    // The length of a file is known, that of a pipe is not.
    fixture.scratch.sh_with_input(&format!("cat | {push} log/pipe"), &body).ok();
    fs::write(fixture.path("body"), &body).unwrap();
    sh(&format!("{push} log/file < body")).ok();
    sh(&format!("{push} log/empty < /dev/null; printf x | {push} log/short --content-type text/x-test")).ok();
    // A smaller part size is that of S3, and the memory is for two of these parts.
    fixture.scratch.sh_with_input("cat | s3-push \"$C\" --part-size 1MiB --memory 10MiB --key log/small", &body).ok();
    assert!(s3.get(&bucket, "log/small") == body);
    assert_eq!(s3.objects(&bucket), ["log/empty", "log/file", "log/pipe", "log/short", "log/small"]);
    assert!(s3.get(&bucket, "log/pipe") == body && s3.get(&bucket, "log/file") == body);
    assert_eq!((s3.get(&bucket, "log/empty").len(), s3.get(&bucket, "log/short").len()), (0, 1));
    let about = head(&fixture.scratch, &s3.endpoint(), &format!("/{bucket}/log/short"));
    assert!(about.contains("content-type: text/x-test"), "{about}");
}

#[test]
fn a_large_nar_is_uploaded_in_parts() {
    let (fixture, s3, bucket) = Fixture::embedded();
    let big = store_path("big", random_seed());
    let noise = Random::new(random_seed()).bytes(20 << 20);
    fs::write(path_in_root(&fixture.path("root"), &big), &noise).unwrap();
    let push = "s3-push --no-nix --part-size 5MiB --memory 16MiB -v \"$C\"";
    let pack = format!("nar-pack --root root --no-nix --export {big} | narinfo-gen --no-nix --archive");
    fixture.scratch.sh(&format!("{pack} | cache-sign -k key.sec | {push}")).ok();
    assert_closed(&snapshot(s3, &bucket));
    fixture.scratch.sh(&format!("s3-pull --root out \"$C\" {big}; cmp root{big} out{big}")).ok();
    // The same from a NAR instead of an archive.
    let other = s3.make_bucket();
    let push = push.replace("$C", &s3.cache_url(&other));
    fixture.scratch.sh(&format!("nar-pack --root root --no-nix {big} | {push} {big}")).ok();
    assert_eq!(nar_keys(&snapshot(s3, &other)), nar_keys(&snapshot(s3, &bucket)), "the same bytes, the same name");
    assert_closed(&snapshot(s3, &other));
}

#[test]
fn the_report_is_json_on_request() {
    let (fixture, _, _) = Fixture::embedded();
    let report = fixture.scratch.sh(&format!("{ARCHIVE} | s3-push --no-nix --json \"$C\""));
    let entries: Vec<serde_json::Value> = report.ok().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(entries.len(), 4, "one object per path and a summary: {}", report.text());
    for path in fixture.closure.paths() {
        assert!(entries[..3].iter().any(|entry| entry.to_string().contains(path)), "{path} in {}", report.text());
    }
}

#[test]
fn unsigned_paths_are_counted_in_one_warning() {
    let (fixture, s3, _) = Fixture::embedded();
    let export = "nar-pack --root root --no-nix --export --stdin < paths";
    let push = |input: &str, args: &str| {
        let url = s3.cache_url(&s3.make_bucket());
        let pushed = fixture.scratch.sh(&format!("{input} | s3-push --no-nix '{url}' {args}"));
        pushed.ok();
        pushed.stderr
    };
    let warnings = |stderr: &str| -> Vec<String> {
        stderr.lines().filter(|line| line.contains("warning: ")).map(str::to_owned).collect()
    };
    let [warning] = warnings(&push(export, "")).try_into().unwrap();
    assert!(warning.starts_with("s3-push: warning: 3 paths, among them /nix/store/"), "{warning}");
    let consequence = "published without a signature; clients that verify signatures will reject";
    assert!(warning.ends_with(&format!(", were {consequence} them")), "{warning}");
    let lib = &fixture.closure.lib;
    let [warning] = warnings(&push("nar-pack --root root --no-nix \"$LIB\"", lib)).try_into().unwrap();
    assert_eq!(warning, format!("s3-push: warning: {lib} was {consequence} it"));
}

#[test]
fn objects_have_the_content_types_of_nix() {
    let (fixture, s3, bucket) = Fixture::embedded();
    fixture.scratch.sh(PUBLISH).ok();
    for key in s3.objects(&bucket) {
        let about = head(&fixture.scratch, &s3.endpoint(), &format!("/{bucket}/{key}"));
        let expected = match key.as_str() {
            "nix-cache-info" => "text/x-nix-cache-info",
            key if key.starts_with("nar/") => "application/x-nix-nar",
            _ => "text/x-nix-narinfo",
        };
        assert!(about.contains(&format!("content-type: {expected}")), "{key}: {about}");
        assert!(!about.contains("content-encoding"), "{key}: {about}");
    }
}

#[test]
fn nix_cache_info_is_written_once() {
    let (fixture, s3, bucket) = Fixture::embedded();
    fixture.scratch.sh(&format!("{ARCHIVE} | s3-push --no-nix --priority 17 --want-mass-query=true \"$C\"")).ok();
    let info = String::from_utf8(s3.get(&bucket, "nix-cache-info")).unwrap();
    for line in ["StoreDir: /nix/store", "Priority: 17", "WantMassQuery: 1"] {
        assert!(info.lines().any(|found| found == line), "{line} in {info}");
    }
    fixture.scratch.sh(&format!("{ARCHIVE} | s3-push --no-nix --priority 18 \"$C\"")).ok();
    assert_eq!(s3.get(&bucket, "nix-cache-info"), info.as_bytes(), "an existing one is kept");
}

/// Two paths with the same contents share a NAR. The cache has one of them with another compression, so that only the
/// other one needs the NAR.
#[test]
fn paths_with_the_same_contents_share_a_nar() {
    let s3 = EmbeddedS3::shared();
    let mut scratch = Scratch::new();
    s3.credentials().apply(&mut scratch);
    let bucket = s3.make_bucket();
    scratch.env("C", s3.cache_url(&bucket));
    let [one, two] = ["one", "two"].map(|name| store_path(name, 77));
    for path in [&one, &two] {
        let file = scratch.path().join("root").join(path.trim_start_matches('/'));
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, "the same\n").unwrap();
    }
    scratch.env("ONE", &one).env("TWO", &two);
    scratch.sh("nar-pack --root root --no-nix --export \"$ONE\" | s3-push --no-nix -c none -q \"$C\"").ok();
    scratch
        .sh("nar-pack --root root --no-nix --export \"$ONE\" \"$TWO\" | narinfo-gen -c xz --no-nix --archive > twice
             mkdir cache; tar x -C cache -f twice; tar c -C cache nix-cache-info nar $(cd cache; ls *.narinfo) > once")
        .ok();
    for archive in ["twice", "once"] {
        scratch.sh(&format!("s3-push -q \"$C\" < {archive}")).ok();
        let listed = scratch.sh("s3-pull --list --all --no-verify-signatures \"$C\" | sort").ok();
        let mut wanted = [one.as_str(), two.as_str()];
        wanted.sort_unstable();
        assert_eq!(listed.lines().collect::<Vec<_>>(), wanted, "{archive}");
        scratch
            .sh("s3-pull --nar --no-verify-signatures \"$C\" \"$TWO\" | cmp - <(nar-pack --root root \"$TWO\")")
            .ok();
        let hash = &two["/nix/store/".len()..][..32];
        s3.remove(&bucket, &format!("{hash}.narinfo"));
        for nar in s3.objects(&bucket).iter().filter(|key| key.contains(".xz")) {
            s3.remove(&bucket, nar);
        }
    }
}

/// If sizes are known, the largest path is packed first, after its references.
#[test]
fn the_largest_path_is_packed_first() {
    let mut fixture = Fixture::new();
    let names = ["small", "large", "base", "middle"];
    let paths = names.map(|name| store_path(name, 1));
    let entry = |index: usize, size: usize, references: &[&String]| {
        let file = path_in_root(&fixture.path("root"), &paths[index]);
        fs::write(&file, vec![b'x'; size]).unwrap();
        let size: u64 = fixture.scratch.sh(&format!("nar-pack '{}' | wc -c", file.display())).ok().parse().unwrap();
        serde_json::json!({
            "path": paths[index], "narHash": "sha256-x", "narSize": size, "references": references,
        })
    };
    let info = [entry(0, 10, &[]), entry(1, 9000, &[&paths[2]]), entry(2, 5, &[]), entry(3, 800, &[])];
    fs::write(fixture.path("info.json"), serde_json::Value::from(info.to_vec()).to_string()).unwrap();
    fixture.scratch.env("PATHS", paths.join(" "));
    let script = "nar-pack --root root --no-nix --path-info info.json --export $PATHS | narinfo-gen --no-nix \
                  | sed -n 's/^StorePath: //p'";
    let expected = [2, 1, 3, 0].map(|index: usize| paths[index].as_str());
    assert_eq!(fixture.scratch.sh(script).ok(), expected.join("\n"));
}
