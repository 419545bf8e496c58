//! Regression tests: hostile or unusual input and races that once broke a push.

use std::fmt::Write as _;
use std::fs;
use std::io::{Read as _, Write as _};
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::fixtures::bucket::{assert_closed, snapshot};
use crate::fixtures::closure_fixture;
use crate::fixtures::closure_fixture::{ARCHIVE, Fixture};
use cache_tests::fault_proxy::{Fault, FaultProxy, ObjectKind, RequestKind};
use cache_tests::{EmbeddedS3, Minio, Scratch, cache_url, split_hint, store_path};

/// Creates a directory with an empty bucket `$C` of the embedded server, two keys, and archives of one path `$P`.
fn fixture(seed: u64) -> (Scratch, &'static EmbeddedS3, String) {
    let s3 = EmbeddedS3::shared();
    let mut scratch = Scratch::new();
    s3.credentials().apply(&mut scratch);
    let bucket = s3.make_bucket();
    scratch.env("C", s3.cache_url(&bucket));
    write(&mut scratch, seed);
    (scratch, s3, bucket)
}

fn write(scratch: &mut Scratch, seed: u64) {
    let path = store_path("one", seed);
    let file = scratch.path().join("root").join(path.trim_start_matches('/'));
    fs::create_dir_all(file.parent().unwrap()).unwrap();
    fs::write(file, format!("contents {seed}\n")).unwrap();
    scratch.env("P", &path).env("H", &path["/nix/store/".len()..][..32]);
    scratch
        .sh("cache-sign keygen k-1 k1.sec k1.pub; cache-sign keygen k-2 k2.sec k2.pub
             nar-pack --root root --no-nix --export \"$P\" | narinfo-gen --no-nix --archive > unsigned
             cache-sign -k k1.sec < unsigned > one; cache-sign -k k2.sec < unsigned > two")
        .ok();
}

/// A push that starts before another one and ends after it adds its signature to the existing ones.
#[test]
fn concurrent_pushes_with_different_keys_keep_both_signatures() {
    let Some(minio) = Minio::shared() else { return };
    let mut scratch = Scratch::new();
    minio.root().apply(&mut scratch);
    let url = minio.cache_url(&minio.make_bucket());
    scratch.env("C", &url);
    write(&mut scratch, 1);
    let archive = fs::read(scratch.path().join("one")).unwrap();
    let mut command = scratch.command("s3-push");
    command.args(["--json", &url]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut slow = command.spawn().unwrap();
    let mut stdin = slow.stdin.take().unwrap();
    stdin.write_all(&archive[..1024]).unwrap();
    scratch.sh("s3-push -q \"$C\" < two").ok();
    stdin.write_all(&archive[1024..]).unwrap();
    drop(stdin);
    let mut report = String::new();
    slow.stdout.take().unwrap().read_to_string(&mut report).unwrap();
    assert!(slow.wait().unwrap().success(), "{report}");
    let narinfo = scratch.sh("s3-pull --narinfo --no-verify-signatures \"$C\" \"$P\"").ok();
    assert!(narinfo.contains("Sig: k-1:") && narinfo.contains("Sig: k-2:"), "{narinfo}\n{report}");
}

/// MinIO answers a conditional write of a narinfo that was deleted meanwhile with NoSuchKey.
#[test]
fn a_narinfo_that_is_deleted_during_an_update_is_written_again() {
    let Some(minio) = Minio::shared() else { return };
    let mut scratch = Scratch::new();
    minio.root().apply(&mut scratch);
    let bucket = minio.make_bucket();
    let (target, is_deleted) = (bucket.clone(), AtomicBool::new(false));
    let proxy = FaultProxy::start(&minio.endpoint(), move |request| {
        let is_update = request.header("if-match").is_some() && request.key().ends_with(".narinfo");
        if is_update && !is_deleted.swap(true, Ordering::Relaxed) {
            minio.remove(&target, request.key());
        }
        Fault::Pass
    });
    scratch.env("C", cache_url(proxy.endpoint(), &bucket));
    write(&mut scratch, 10);
    let updates = || proxy.requests().into_iter().filter(|kind| *kind == RequestKind::PutObject(ObjectKind::Narinfo));
    scratch.sh("s3-push -q \"$C\" < one").ok();
    let before = updates().count();
    scratch.sh("s3-push \"$C\" < two").ok();
    assert_eq!(updates().count(), before + 2);
    let narinfo = scratch.sh("s3-pull --narinfo --no-verify-signatures \"$C\" \"$P\"").ok();
    assert!(narinfo.contains("Sig: k-2:"), "{narinfo}");
}

/// Several clients sign the same path at the same time; no signature is lost.
#[test]
fn signatures_added_concurrently_are_all_kept() {
    let Some(minio) = Minio::shared() else { return };
    let mut scratch = Scratch::new();
    minio.root().apply(&mut scratch);
    scratch.env("C", minio.cache_url(&minio.make_bucket()));
    write(&mut scratch, 2);
    let narinfo = scratch
        .sh("s3-push -q \"$C\" < one
             s3-pull --narinfo --no-verify-signatures \"$C\" \"$P\" > text
             for i in 3 4 5 6 7 8; do cache-sign keygen \"k-$i\" \"k$i.sec\" \"k$i.pub\"; done
             for i in 3 4 5 6 7 8; do { cache-sign -k \"k$i.sec\" < text | s3-push -q \"$C\" > /dev/null; } & pids+=($!); done
             for pid in \"${pids[@]}\"; do wait \"$pid\"; done
             s3-pull --narinfo --no-verify-signatures \"$C\" \"$P\"")
        .ok();
    for key in [1, 3, 4, 5, 6, 7, 8] {
        assert!(narinfo.contains(&format!("Sig: k-{key}:")), "k-{key} is lost:\n{narinfo}");
    }
}

/// The compression is not signed, so it must be verified.
#[test]
fn a_narinfo_with_the_wrong_compression_is_refused() {
    let (scratch, s3, bucket) = fixture(3);
    scratch
        .sh("mkdir c; tar x -C c -f one; chmod u+w c/*; sed -i 's/^Compression: zstd/Compression: xz/' c/*.narinfo
             tar c -C c nix-cache-info nar \"$H.narinfo\" > lie")
        .ok();
    let stderr = scratch.sh("s3-push \"$C\" < lie").fails(1);
    assert!(stderr.contains("Compression is xz in the narinfo, but the NAR has zstd"), "{stderr}");
    assert!(!s3.objects(&bucket).iter().any(|key| key.contains("narinfo")));
}

/// Narinfo text with other contents, here other references, does not replace the narinfo in the cache, although the NAR that
/// it names is there. `--exact` replaces it.
#[test]
fn narinfo_text_with_other_contents_replaces_a_narinfo_only_if_exact() {
    let (fixture, s3, bucket) = Fixture::embedded();
    let sh = |script: &str| fixture.scratch.sh(script);
    sh(&format!("{ARCHIVE} | s3-push -q --no-nix \"$C\"")).ok();
    let key = Fixture::narinfo_key(&fixture.closure.app);
    let before = s3.get(&bucket, &key);
    let edit =
        "s3-pull --narinfo --no-verify-signatures \"$C\" \"$APP\" | sed '/^Sig/d; s/^References: .*/References: /'";
    sh(&format!("{edit} > edited; grep '^References: $' edited")).ok();
    let kept = sh("s3-push \"$C\" < edited");
    assert_eq!(s3.get(&bucket, &key), before);
    assert!(kept.stderr.contains("the cache has different contents under this path"), "{}", kept.stderr);
    assert_eq!(kept.ok(), "");
    sh("cache-sign -k key.sec < edited | s3-push -q --exact \"$C\"").ok();
    assert!(String::from_utf8(s3.get(&bucket, &key)).unwrap().contains("\nReferences: \n"));
}

/// Nix refuses a narinfo whose signature or content address it cannot read, so none is published.
#[test]
fn malformed_signatures_and_content_addresses_are_refused() {
    let (scratch, s3, bucket) = fixture(9);
    scratch.sh("s3-push -q \"$C\" < one; s3-pull --narinfo --no-verify-signatures \"$C\" \"$P\" > text").ok();
    let before = scratch.sh("cat text").ok();
    for (line, cause) in [
        ("Sig: junk", "Sig: \"junk\" is not a signature (NAME:BASE64)"),
        ("Sig: :AAAA", "is not a signature"),
        ("Sig: k-9:", "is not a signature"),
        ("Sig: k-9:not base 64", "is not a signature"),
        ("CA: junk", "CA: \"junk\" is not a content address"),
        ("CA: fixed:r:sha256:abc", "is not a content address"),
    ] {
        let stderr = scratch.sh(&format!("(cat text; echo '{line}') | s3-push \"$C\"")).fails(1);
        assert!(stderr.contains(cause), "{line}: {stderr}");
        let key = s3.objects(&bucket).into_iter().find(|key| key.ends_with(".narinfo")).unwrap();
        assert_eq!(String::from_utf8(s3.get(&bucket, &key)).unwrap().trim_end(), before, "{line}");
        // An older tool may have published it.
        s3.put(&bucket, &key, format!("{before}\n{line}\n").as_bytes());
        let check = scratch.sh("s3-pull check --json \"$C\"");
        assert_eq!(check.status, 1, "{line}: {}", check.stderr);
        assert!(check.text().contains("malformed"), "{line}: {}", check.text());
        scratch.sh("s3-push -q --repair \"$C\" < one").ok();
        assert_eq!(String::from_utf8(s3.get(&bucket, &key)).unwrap().trim_end(), before, "{line}");
    }
}

/// `--key` does not write other contents under reserved keys.
#[test]
fn reserved_keys_require_matching_contents() {
    let (scratch, s3, bucket) = fixture(4);
    let hash = "0".repeat(52);
    scratch.sh(&format!("echo x | s3-push \"$C\" --key nar/{hash}.nar")).fails(1);
    for key in ["nar/x.nar", "nix-cache-info", "sub/00000000000000000000000000000000.narinfo"] {
        scratch.sh(&format!("echo x | s3-push \"$C\" --key {key}")).fails(2);
    }
    assert_eq!(s3.objects(&bucket), Vec::<String>::new());
    scratch.sh("mkdir c; tar x -C c -f one; cd c; s3-push -q \"$C\" --key nar/* < nar/*").ok();
    scratch.sh("s3-push -q \"$C\" < one; s3-pull --nar --no-verify-signatures \"$C\" \"$P\" | nar-pack --list").ok();
}

/// A truncated object under the key of the NAR is not accepted as the NAR, but replaced.
#[test]
fn a_truncated_object_under_the_key_of_a_nar_is_replaced() {
    let (scratch, s3, bucket) = fixture(5);
    let key = scratch.sh("tar tf one | grep '^nar/'").ok();
    s3.put(&bucket, &key, b"xx");
    let pushed = scratch.sh("s3-push \"$C\" < one");
    pushed.ok();
    assert!(
        pushed.stderr.contains(&format!("{key}: the object was damaged and has been replaced")),
        "{}",
        pushed.stderr
    );
    scratch.sh("s3-pull --nar --no-verify-signatures \"$C\" \"$P\" | nar-pack --list").ok();
}

/// A chain of narinfos in the wrong order, before all NARs.
#[test]
fn a_long_chain_in_the_wrong_order_is_published() {
    const LENGTH: u64 = 1500;
    let (scratch, s3, bucket) = fixture(6);
    let nar = scratch.sh("tar tf one | grep '^nar/'").ok();
    let narinfo = scratch.sh("tar xOf unsigned \"$H.narinfo\"").ok();
    fs::create_dir(scratch.path().join("chain")).unwrap();
    let base = |i: u64| store_path("link", 1000 + i)["/nix/store/".len()..].to_owned();
    let mut order = String::new();
    for i in 0..LENGTH {
        let references = if i + 1 < LENGTH { base(i + 1) } else { String::new() };
        let text: String = narinfo.lines().fold(String::new(), |mut text, line| {
            let line = match line.split(':').next().unwrap() {
                "StorePath" => format!("StorePath: /nix/store/{}", base(i)),
                "References" => format!("References: {references}"),
                _ => line.to_owned(),
            };
            writeln!(text, "{line}").unwrap();
            text
        });
        let key = format!("{}.narinfo", &base(i)[..32]);
        fs::write(scratch.path().join("chain").join(&key), text).unwrap();
        writeln!(order, "{key}").unwrap();
    }
    fs::write(scratch.path().join("order"), order + &nar + "\n").unwrap();
    scratch.sh("tar x -C chain -f one; tar c -C chain -T order | s3-push -q \"$C\" > /dev/null").ok();
    let published = s3.objects(&bucket).iter().filter(|key| key.contains("narinfo")).count();
    assert_eq!(published as u64, LENGTH);
}

/// Memory is not allocated for the size in a header.
#[test]
fn tar_headers_with_huge_sizes_are_refused() {
    let (scratch, _, _) = fixture(7);
    for (name, kind, size) in [
        (format!("nar/{}.nar.zst", "0".repeat(52)), b'0', 1_u64 << 50),
        (format!("nar/{}.nar.zst", "0".repeat(52)), b'0', u64::MAX - 1100),
        ("././@LongLink".to_owned(), b'L', 3 << 30),
        ("pax".to_owned(), b'x', 3 << 30),
    ] {
        let mut header = [0_u8; 512];
        header[..name.len()].copy_from_slice(name.as_bytes());
        header[100..107].copy_from_slice(b"0000444");
        // The binary format of large sizes (GNU).
        header[124] = 0x80;
        header[128..136].copy_from_slice(&size.to_be_bytes());
        header[136..147].copy_from_slice(b"00000000001");
        header[148..156].fill(b' ');
        header[156] = kind;
        header[257..265].copy_from_slice(b"ustar  \0");
        let sum: u32 = header.iter().map(|&byte| u32::from(byte)).sum();
        header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        let input = [header.to_vec(), vec![0; 4096]].concat();
        for tool in ["s3-push \"$C\"", "cache-sign -k k1.sec"] {
            let output = scratch.sh_with_input(&format!("{tool} > /dev/null"), &input);
            let stderr = output.fails(1);
            assert_eq!(split_hint(&stderr).0.lines().count(), 1, "{tool}, {size}: {stderr}");
        }
    }
}

/// `nix-cache-info` is last, as in a plain tar of a directory.
#[test]
fn a_nix_cache_info_at_the_end_is_used() {
    let (scratch, s3, bucket) = fixture(8);
    scratch
        .sh("mkdir c; tar x -C c -f one; chmod u+w c/*; echo 'Priority: 7' >> c/nix-cache-info
             tar c -C c nar \"$H.narinfo\" nix-cache-info | s3-push -q \"$C\"")
        .ok();
    let info = String::from_utf8(s3.get(&bucket, "nix-cache-info")).unwrap();
    assert!(info.contains("Priority: 7"), "{info}");
}

#[test]
fn exact_does_not_drop_every_signature() {
    let (scratch, _, _) = fixture(9);
    scratch.sh("s3-push -q \"$C\" < one").ok();
    let stderr = scratch
        .sh("s3-pull --narinfo --no-verify-signatures \"$C\" \"$P\" | grep -v ^Sig | s3-push --exact \"$C\"")
        .fails(1);
    assert!(stderr.contains("--exact would drop every signature"), "{stderr}");
    scratch.sh("s3-pull --narinfo \"$C\" \"$P\" --trusted-public-key \"$(cat k1.pub)\"").ok();
}

/// A path is in the cache with another compression. A path with the same contents follows after more data than fits in
/// memory: the NAR that the first path did not need is kept for the second.
#[test]
fn a_nar_needed_by_a_later_path_is_kept_despite_little_memory() {
    let (fixture, s3, bucket) = Fixture::embedded();
    let paths: Vec<String> = (0..6).map(|seed| store_path("same", seed)).collect();
    for (index, path) in paths.iter().enumerate() {
        // The first and the last have the same contents.
        let seed = if index == 5 { 0 } else { index as u64 };
        fs::write(
            closure_fixture::path_in_root(&fixture.path("root"), path),
            cache_tests::Random::new(seed).bytes(4 << 20),
        )
        .unwrap();
    }
    let pack = "nar-pack --root root --no-nix --export";
    fixture
        .scratch
        .sh(&format!("{pack} {} | narinfo-gen --no-nix -c xz -a | s3-push -q --no-nix \"$C\"", paths[0]))
        .ok();
    fixture.scratch.sh(&format!("mkdir d; {pack} {} | narinfo-gen --no-nix -a | tar x -C d", paths.join(" "))).ok();
    let narinfo = |path: &String| Fixture::narinfo_key(path);
    let nar = |path: &String| {
        let text = fs::read_to_string(fixture.path("d").join(narinfo(path))).unwrap();
        text.lines().find_map(|line| line.strip_prefix("URL: ")).unwrap().to_owned()
    };
    let mut members = vec!["nix-cache-info".to_owned(), nar(&paths[0]), narinfo(&paths[0])];
    members.extend(paths[1..5].iter().flat_map(|path| [nar(path), narinfo(path)]));
    members.push(narinfo(&paths[5]));
    let push = "s3-push -q --no-nix --memory 10MiB --part-size 5MiB \"$C\"";
    fixture.scratch.sh(&format!("tar c -C d {} | {push}", members.join(" "))).ok();
    let objects = snapshot(s3, &bucket);
    assert_closed(&objects);
    assert!(objects.contains_key(&narinfo(&paths[5])));
}
