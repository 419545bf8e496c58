//! What a pull refuses: invalid signatures, damaged objects, missing paths.

use crate::fixtures::bucket::Fields;
use crate::fixtures::closure_fixture::{ARCHIVE, Fixture, PUBLISH, generate_key};
use cache_tests::random_seed;
use cache_tests::store_path;

#[test]
fn a_wrong_key_leaves_nothing_visible() {
    let (fixture, _, _) = Fixture::embedded();
    fixture.scratch.sh(PUBLISH).ok();
    let other = generate_key(&fixture.scratch, "other");
    // A key with another name, and one with the right name.
    let name = fixture.key.split_once(':').unwrap().0;
    let cached = format!("{name}:{}", other.split_once(':').unwrap().1);
    for key in [other, cached] {
        for output in ["--root out", "--nar", "--export", "--archive", "--narinfo"] {
            let pulled = fixture.scratch.sh(&format!("s3-pull {output} --trusted-public-key {key} \"$C\" \"$LIB\""));
            let line = pulled.fails(1);
            assert!(line.contains(&fixture.closure.lib), "{output}: {line}");
            assert_eq!(pulled.stdout.len(), 0, "{output}: unverified data is not written");
            fixture.assert_nothing_below("out");
        }
    }
    let without_trusted_keys = fixture.scratch.sh("s3-pull --root out --nix-conf /dev/null \"$C\" \"$LIB\"").fails(1);
    assert!(without_trusted_keys.contains(&fixture.closure.lib), "{without_trusted_keys}");
    fixture.assert_nothing_below("out");
    fixture.scratch.sh("s3-pull -r --root out --nix-conf /dev/null --no-verify-signatures \"$C\" \"$TOP\"").ok();
    fixture.assert_trees("out");
}

#[test]
fn damaged_objects_are_refused() {
    let (fixture, s3, bucket) = Fixture::embedded();
    fixture.scratch.sh(PUBLISH).ok();
    let narinfo_key = Fixture::narinfo_key(&fixture.closure.lib);
    let narinfo = s3.get(&bucket, &narinfo_key);
    let url = Fields::parse(&narinfo).one("URL").to_owned();
    let nar = s3.get(&bucket, &url);
    let mut flipped = nar.clone();
    flipped[nar.len() / 2] ^= 1;
    let longer = [nar.as_slice(), b"x"].concat();
    for damaged in [&nar[..nar.len() - 1], &[], &flipped, &longer] {
        s3.put(&bucket, &url, damaged);
        // Hashes are verified even without signatures.
        for trust in ["", "--no-verify-signatures"] {
            let line = fixture.scratch.sh(&format!("s3-pull {trust} --root out \"$C\" \"$LIB\"")).fails(1);
            assert!(line.contains(&fixture.closure.lib), "{line}");
            fixture.assert_nothing_below("out");
        }
    }
    s3.remove(&bucket, &url);
    let line = fixture.scratch.sh("s3-pull --root out \"$C\" \"$LIB\"").fails(1);
    assert!(line.contains(&url) || line.contains(&fixture.closure.lib), "{line}");
    fixture.assert_nothing_below("out");
    s3.put(&bucket, &url, &nar);
    for cut in [0, 1, narinfo.len() / 2, narinfo.len() - 1] {
        s3.put(&bucket, &narinfo_key, &narinfo[..cut]);
        let line = fixture.scratch.sh("s3-pull --root out \"$C\" \"$LIB\"").fails(1);
        assert!(line.contains(&narinfo_key) || line.contains(&fixture.closure.lib), "{line}");
        fixture.assert_nothing_below("out");
    }
}

#[test]
fn signed_but_wrong_hashes_and_sizes_are_refused() {
    let (fixture, s3, bucket) = Fixture::embedded();
    fixture.scratch.sh(PUBLISH).ok();
    let narinfos: Vec<_> = fixture.closure.paths().iter().map(|path| Fixture::narinfo_key(path)).collect();
    let [lib, app] = [0, 1].map(|at| Fields::parse(&s3.get(&bucket, &narinfos[at])));
    let truth = String::from_utf8(s3.get(&bucket, &narinfos[0])).unwrap();
    let lies = [
        truth.replace(lib.one("NarHash"), app.one("NarHash")),
        truth.replace(&format!("NarSize: {}", lib.one("NarSize")), "NarSize: 400"),
        truth.replace(&format!("NarSize: {}", lib.one("NarSize")), &format!("NarSize: 1{}", lib.one("NarSize"))),
    ];
    for lie in lies {
        assert_ne!(lie, truth);
        let unsigned: String =
            lie.lines().filter(|line| !line.starts_with("Sig:")).fold(String::new(), |text, line| text + line + "\n");
        let signed = fixture.scratch.sh_with_input("cache-sign -k key.sec", unsigned.as_bytes());
        signed.ok();
        s3.put(&bucket, &narinfos[0], &signed.stdout);
        let line = fixture.scratch.sh("s3-pull --root out \"$C\" \"$LIB\"").fails(1);
        assert!(line.contains(&fixture.closure.lib), "{line}");
        fixture.assert_nothing_below("out");
    }
}

#[test]
fn a_missing_path_exits_with_status_1() {
    let (fixture, _, _) = Fixture::embedded();
    fixture.scratch.sh(PUBLISH).ok();
    let absent = store_path("absent", random_seed());
    for url in ["$C", "file://$PWD/cache"] {
        fixture.scratch.sh(&format!("mkdir -p cache; {ARCHIVE} | tar x -C cache")).ok();
        for output in ["--root out", "--nar", "--export", "--archive", "--narinfo", "--list"] {
            let pulled = fixture.scratch.sh(&format!("s3-pull {output} \"{url}\" {absent}"));
            let line = pulled.fails(1);
            assert!(line.contains(&absent), "{line}");
            assert_eq!(pulled.stdout.len(), 0);
            fixture.assert_nothing_below("out");
        }
    }
}
