//! NAR objects that are damaged or missing: a push replaces them, and `--repair` also those of paths that are cached.

use crate::fixtures::bucket::{Fields, snapshot};
use crate::fixtures::closure_fixture::{ARCHIVE, Fixture, path_in_root};
use cache_tests::{Random, random_seed, store_path};
use std::fs;

/// Returns the key of the NAR of a path.
fn nar_key(narinfo: &[u8]) -> String {
    Fields::parse(narinfo).one("URL").to_owned()
}

#[test]
fn a_damaged_nar_of_the_right_size_is_replaced() {
    let Some((fixture, minio, bucket)) = Fixture::on_minio() else { return };
    let sh = |script: &str| fixture.scratch.sh(script);
    sh(&format!("{ARCHIVE} > archive; mkdir cache; tar x -C cache < archive; chmod -R u+w cache")).ok();
    let narinfo = fs::read(fixture.path("cache").join(Fixture::narinfo_key(&fixture.closure.lib))).unwrap();
    let key = nar_key(&narinfo);
    sh(&format!("printf x | dd of=cache/{key} bs=1 seek=50 conv=notrunc status=none")).ok();
    minio.put(&bucket, &key, &fs::read(fixture.path("cache").join(&key)).unwrap());
    let pushed = sh("s3-push --no-nix \"$C\" < archive");
    assert_eq!(pushed.lines(), fixture.closure.paths());
    assert!(pushed.stderr.contains(&key) && pushed.stderr.contains("damaged"), "{}", pushed.stderr);
    fixture.assert_complete(&snapshot(minio, &bucket));
    fixture.assert_pulls("$C", "");
}

#[test]
fn repair_puts_missing_and_damaged_nars_again_and_keeps_signatures() {
    let (fixture, s3, bucket) = Fixture::embedded();
    let sh = |script: &str| fixture.scratch.sh(script);
    sh(&format!("{ARCHIVE} > archive; s3-push --no-nix \"$C\" < archive")).ok();
    sh("cache-sign keygen second-1 second.sec second.pub; s3-pull --narinfo --all \"$C\" | cache-sign -k second.sec | s3-push \"$C\"").ok();
    let before = snapshot(s3, &bucket);
    let keys = fixture.closure.paths().map(|path| nar_key(&before[&Fixture::narinfo_key(path)]));
    s3.remove(&bucket, &keys[0]);
    s3.put(&bucket, &keys[2], b"half");
    assert_eq!(sh("s3-push --no-nix \"$C\" < archive").ok(), "", "a push without --repair leaves the paths alone");
    let repaired = sh("s3-push --no-nix --repair \"$C\" < archive");
    let mut paths = repaired.lines();
    paths.sort_unstable();
    let mut expected = [fixture.closure.lib.as_str(), &fixture.closure.top];
    expected.sort_unstable();
    assert_eq!(paths, expected);
    assert!(repaired.stderr.contains("2 repaired"), "{}", repaired.stderr);
    assert_eq!(snapshot(s3, &bucket), before);
    assert_eq!(sh("s3-push --no-nix --repair \"$C\" < archive").ok(), "");
    // An export stream is compressed again, here with a method that the cache does not have: the narinfo follows.
    s3.remove(&bucket, &keys[1]);
    let export = "nar-pack --root root --no-nix --export \"$APP\" | s3-push --no-nix -c xz --repair \"$C\"";
    assert_eq!(sh(export).ok(), fixture.closure.app);
    let narinfo = Fields::parse(&s3.get(&bucket, &Fixture::narinfo_key(&fixture.closure.app)));
    assert_eq!((narinfo.one("Compression"), narinfo.all("Sig").len()), ("xz", 2));
    fixture.assert_pulls("$C", "");
    let message = sh("s3-pull --narinfo --all \"$C\" | s3-push --repair \"$C\"").fails(2);
    assert!(message.contains("narinfo text"), "{message}");
}

/// A cache that names its NARs otherwise may have another NAR under the same key, and a narinfo that names it.
#[test]
fn an_object_whose_key_contains_no_hash_is_never_replaced() {
    let (fixture, s3, bucket) = Fixture::embedded();
    let sh = |script: &str| fixture.scratch.sh(script);
    sh(&format!("mkdir cache; {ARCHIVE} | tar x -C cache; chmod -R u+w cache")).ok();
    let narinfo = fs::read(fixture.path("cache").join(Fixture::narinfo_key(&fixture.closure.lib))).unwrap();
    let key = nar_key(&narinfo);
    sh(&format!(
        "cd cache; mv {key} nar/lib.nar.zst; sed -i 's|^URL: .*|URL: nar/lib.nar.zst|' {}
         tar c nix-cache-info nar/lib.nar.zst {} > ../renamed",
        Fixture::narinfo_key(&fixture.closure.lib),
        Fixture::narinfo_key(&fixture.closure.lib)
    ))
    .ok();
    for flags in ["", "--repair --check-existing"] {
        s3.put(&bucket, "nar/lib.nar.zst", b"another");
        sh(&format!("s3-push --no-nix {flags} \"$C\" < renamed")).fails(1);
        assert_eq!(s3.get(&bucket, "nar/lib.nar.zst"), b"another");
    }
}

#[test]
fn a_large_nar_that_is_truncated_or_differs_is_replaced() {
    let (fixture, s3, bucket) = Fixture::embedded();
    let sh = |script: &str| fixture.scratch.sh(script);
    let big = store_path("big", random_seed());
    let noise = Random::new(random_seed()).bytes(12 << 20);
    fs::write(path_in_root(&fixture.path("root"), &big), &noise).unwrap();
    sh(&format!(
        "nar-pack --root root --no-nix --export {big} | narinfo-gen --no-nix --archive | cache-sign -k key.sec > big"
    ))
    .ok();
    let push = "s3-push --no-nix --part-size 5MiB --memory 16MiB \"$C\" < big";
    sh(push).ok();
    let before = snapshot(s3, &bucket);
    let key = nar_key(&before[&Fixture::narinfo_key(&big)]);
    s3.put(&bucket, &key, b"half");
    let pushed = sh(push);
    pushed.ok();
    assert!(pushed.stderr.contains("damaged"), "{}", pushed.stderr);
    assert_eq!(snapshot(s3, &bucket), before);
    let mut damaged = before[&key].clone();
    damaged[9 << 20] ^= 1;
    s3.put(&bucket, &key, &damaged);
    sh(&push.replace("--no-nix", "--no-nix --check-existing")).ok();
    assert!(snapshot(s3, &bucket) == before);
}

/// A repair cannot know which contents are right, and must not end as if the path were whole.
#[test]
fn a_repair_that_finds_other_contents_fails_after_the_rest() {
    let (fixture, s3, bucket) = Fixture::embedded();
    let sh = |script: &str| fixture.scratch.sh(script);
    sh(&format!("{ARCHIVE} > archive; s3-push --no-nix \"$C\" < archive")).ok();
    let before = snapshot(s3, &bucket);
    let key = Fixture::narinfo_key(&fixture.closure.app);
    let other = sh(
        "s3-pull --narinfo \"$C\" \"$APP\" | sed '/^Sig/d; s/^References: .*/References: /' | cache-sign -k key.sec",
    )
    .ok();
    s3.put(&bucket, &key, format!("{other}\n").as_bytes());
    s3.remove(&bucket, &nar_key(&before[&Fixture::narinfo_key(&fixture.closure.lib)]));
    let stderr = sh("s3-push repair --no-nix \"$C\" < archive").fails(1);
    assert!(
        stderr.contains(&format!("{} was not repaired, because the cache has other", fixture.closure.app)),
        "{stderr}"
    );
    assert!(stderr.contains("1 repaired") && stderr.contains("hint: if the input is right"), "{stderr}");
    let mut after = snapshot(s3, &bucket);
    assert_eq!(after.insert(key.clone(), before[&key].clone()), Some(format!("{other}\n").into_bytes()));
    assert_eq!(after, before);
    let warned = sh("s3-push --no-nix \"$C\" < archive");
    assert!(warned.stderr.contains("the cache has different contents under this path"), "{}", warned.stderr);
    warned.ok();
}

/// The input has another compression than the cache, as after `nix copy`: the narinfo keeps its NAR if that is intact, and
/// names that of the input if it is damaged.
#[test]
fn a_damaged_nar_is_repaired_by_one_with_another_compression() {
    let (fixture, s3, bucket) = Fixture::embedded();
    let sh = |script: &str| fixture.scratch.sh(script);
    sh(&format!("{ARCHIVE} | s3-push -q --no-nix \"$C\"")).ok();
    sh(&format!("{} > xz", ARCHIVE.replace("narinfo-gen", "narinfo-gen -c xz"))).ok();
    let before = snapshot(s3, &bucket);
    let intact = sh("s3-push repair --no-nix \"$C\" < xz");
    assert!(intact.stderr.contains("3 already present"), "{}", intact.stderr);
    assert_eq!((intact.ok(), snapshot(s3, &bucket) == before), (String::new(), true));
    let key = nar_key(&before[&Fixture::narinfo_key(&fixture.closure.app)]);
    let mut damaged = before[&key].clone();
    let middle = damaged.len() / 2;
    damaged[middle] ^= 1;
    s3.put(&bucket, &key, &damaged);
    // A narinfo whose NAR did not arrive.
    let narinfo_key = Fixture::narinfo_key(&fixture.closure.app);
    sh(&format!("mkdir xz-cache; tar x -C xz-cache < xz; tar c -C xz-cache nix-cache-info {narinfo_key} > alone")).ok();
    let stderr = sh("s3-push repair --no-nix \"$C\" < alone").fails(1);
    assert!(stderr.contains("is not in the bucket"), "{stderr}");
    assert_eq!(s3.get(&bucket, &narinfo_key), before[&narinfo_key]);
    assert_eq!(sh("s3-push repair --no-nix \"$C\" < xz").ok(), fixture.closure.app);
    let narinfo = Fields::parse(&s3.get(&bucket, &Fixture::narinfo_key(&fixture.closure.app)));
    assert_eq!(narinfo.one("Compression"), "xz");
    fixture.assert_pulls("$C", "");
    assert_eq!(sh("s3-push repair --no-nix \"$C\" < xz").ok(), "");
}
