//! Fields and objects of other versions of Nix pass through every tool unchanged: the narinfo fields of Determinate Nix,
//! repeated unknown fields, and the build trace of Nix 2.35.

use crate::fixtures::bucket::{Fields, Objects, assert_closed, snapshot};
use crate::fixtures::closure_fixture::{Fixture, generate_key, path_in_root};
use cache_tests::{EmbeddedS3, random_seed, store_path};
use std::fs;

/// Returns lines that end the narinfo of a path, as Determinate Nix and others may write them.
fn extra_lines(reference: &str) -> String {
    format!(
        "PartialClosure: {reference}\n\
         Provenance: {{\"next\":{{\"type\":\"derivation\"}},\"type\":\"copied\",\"url\":\"a: b\"}}\n\
         X-List: one\nX-List: two\nX-List: one\nX-Empty: \n"
    )
}

/// Returns the fields that are not Nix's, in their order.
fn unknown_fields(objects: &Objects, key: &str) -> Vec<String> {
    let lines = str::from_utf8(&objects[key]).unwrap().lines();
    lines.filter(|line| line.starts_with('P') || line.starts_with("X-")).map(str::to_owned).collect()
}

/// Writes the closure to `cache/` with the additional fields, and a build trace entry with its key. Returns the key of the
/// narinfo, the expected lines, and the key and contents of the entry.
fn extended_cache(fixture: &Fixture) -> (String, Vec<String>, String, String) {
    let key = Fixture::narinfo_key(&fixture.closure.app);
    let narinfo = fixture.path("cache").join(&key);
    let lib = &fixture.closure.lib["/nix/store/".len()..];
    let lines = extra_lines(lib);
    fs::write(&narinfo, fs::read_to_string(&narinfo).unwrap() + &lines).unwrap();
    let derivation = &store_path("app.drv", random_seed())["/nix/store/".len()..];
    let entry = format!("build-trace-v2/{derivation}/out.doi");
    let json = format!(r#"{{"outPath":"{lib}","signatures":[{{"keyName":"k-1","sig":"AAAA"}}],"future":[1.0, 2]}}"#);
    let file = fixture.path("cache").join(&entry);
    fs::create_dir_all(file.parent().unwrap()).unwrap();
    fs::write(file, &json).unwrap();
    (key, lines.lines().map(str::to_owned).collect(), entry, json)
}

const CACHE: &str = "tar c -C cache nix-cache-info nar build-trace-v2 $(cd cache; echo *.narinfo)";

#[test]
fn unknown_fields_and_build_traces_pass_through_every_tool() {
    let (mut fixture, s3, bucket, _) = Fixture::with_cache();
    let (key, lines, entry, json) = extended_cache(&fixture);
    generate_key(&fixture.scratch, "new");
    let verify = "cache-sign verify --trusted-public-key-file key.pub";
    // Signed again, verified and pushed as an archive.
    fixture.scratch.sh(&format!("{CACHE} | cache-sign -k new.sec | {verify} | s3-push --no-nix \"$C\"")).ok();
    let objects = snapshot(s3, &bucket);
    assert_closed(&objects);
    assert_eq!(unknown_fields(&objects, &key), lines);
    assert_eq!(Fields::parse(&objects[&key]).all("Sig").len(), 2);
    assert_eq!(str::from_utf8(&objects[&entry]).unwrap(), json);
    // Narinfo text, with blank lines at its end.
    generate_key(&fixture.scratch, "newer");
    let rotate = "s3-pull --narinfo --all \"$C\" > text; echo >> text; echo >> text";
    let sign = format!("cache-sign -k newer.sec < text | {verify} | s3-push --no-nix \"$C\"");
    fixture.scratch.sh(&format!("{rotate}; {sign}")).ok();
    let objects = snapshot(s3, &bucket);
    assert_eq!(unknown_fields(&objects, &key), lines);
    assert_eq!(Fields::parse(&objects[&key]).all("Sig").len(), 3);
    // A mirror.
    let source = fixture.scratch.sh("echo -n \"$C\"").ok();
    let mirror = fixture.fresh_bucket(s3);
    fixture.scratch.sh(&format!("s3-pull -r --archive '{source}' \"$TOP\" | s3-push --no-nix \"$C\"")).ok();
    assert_eq!(unknown_fields(&snapshot(s3, &mirror), &key), lines);
}

/// A push of the same path without the fields keeps them, and one with other fields adds them.
#[test]
fn a_merge_keeps_the_unknown_fields_of_both() {
    let (mut fixture, s3, _, _) = Fixture::with_cache();
    let original = fs::read_to_string(fixture.path("cache").join(Fixture::narinfo_key(&fixture.closure.app))).unwrap();
    let (key, lines, _, _) = extended_cache(&fixture);
    let push = |fixture: &Fixture| fixture.scratch.sh(&format!("{CACHE} | s3-push --no-nix \"$C\"")).ok();
    let rest = "X-List: three\nX-Other: 1\nX-Other: 1\n";
    let mut expected: Vec<&str> = lines.iter().map(String::as_str).collect();
    expected.extend(rest.lines());
    expected.sort_unstable();
    let extended = format!("{original}{}\n", lines.join("\n"));
    for texts in
        [[&extended, &original, &format!("{original}{rest}")], [&original, &format!("{original}{rest}"), &extended]]
    {
        let bucket = fixture.fresh_bucket(s3);
        for text in texts {
            fs::write(fixture.path("cache").join(&key), text).unwrap();
            push(&fixture);
        }
        let mut found = unknown_fields(&snapshot(s3, &bucket), &key);
        found.sort_unstable();
        assert_eq!(found, expected);
    }
}

/// A narinfo with a control character is not signed and not published, whichever field has it.
#[test]
fn control_characters_are_not_signed_and_not_published() {
    let (mut fixture, s3, _, _) = Fixture::with_cache();
    let key = Fixture::narinfo_key(&fixture.closure.lib);
    let file = fixture.path("cache").join(&key);
    let original = fs::read_to_string(&file).unwrap();
    assert!(path_in_root(&fixture.path("root"), &fixture.closure.lib).exists());
    let sh = |script: &str| fixture.scratch.sh(script);
    let compression = original.replace("Compression: zstd", "Compression: zstd\u{1b}]0;title\u{7}");
    let changed = [
        compression,
        original.replace("Sig: ", "Sig: \t"),
        format!("{original}Provenance: {{}}\u{9b}2J\n"),
        original.replace('\n', "\r\n"),
    ];
    for text in changed {
        fs::write(&file, &text).unwrap();
        for command in [
            format!("cache-sign -k key.sec < cache/{key} > signed"),
            "tar c -C cache nix-cache-info nar $(cd cache; echo *.narinfo) | cache-sign -k key.sec > signed".to_owned(),
            format!("cache-sign verify --trusted-public-key-file key.pub < cache/{key} > signed"),
        ] {
            let stderr = sh(&command).fails(1);
            assert!(stderr.contains("control character"), "{command}: {stderr}");
            // In an archive, other narinfos may precede the refused one.
            let signed = sh("cat signed").stdout;
            assert!(!signed.windows(key.len()).any(|bytes| bytes == key.as_bytes()), "{command}");
        }
        let stderr = sh("s3-pull --narinfo \"file://$PWD/cache\" \"$LIB\"").fails(1);
        assert!(stderr.contains("control character"), "{stderr}");
    }
    let bucket = fixture.fresh_bucket(s3);
    let push = "tar c -C cache nix-cache-info nar $(cd cache; echo *.narinfo) | s3-push --no-nix \"$C\"";
    let stderr = fixture.scratch.sh(push).fails(1);
    assert!(stderr.contains("control character"), "{stderr}");
    assert!(!EmbeddedS3::shared().objects(&bucket).contains(&key));
}
