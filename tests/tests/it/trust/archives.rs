//! `cache-sign verify` of a cache archive passes only trusted paths.

use super::contributors;
use crate::fixtures::bucket::{Fields, assert_closed, snapshot};
use crate::fixtures::closure_fixture::Fixture;
use crate::fixtures::malicious_cache::{Attacker, CachedPath, compressed, file_nar, nar_of};
use cache_tests::Scratch;
use narinfo_gen::compression::Compression;
use std::fs;

/// Untrusted narinfos and their NARs are removed, and the output is a cache archive that can be pushed.
#[test]
fn verify_of_an_archive_passes_only_trusted_paths() {
    let (mut fixture, [alice, ..]) = contributors();
    let sh = |script: &str| fixture.scratch.sh(script);
    // Only `lib` is signed.
    sh("mkdir dir; tar x -C dir < archive").ok();
    let lib = Fixture::narinfo_key(&fixture.closure.lib);
    sh(&format!("cache-sign -k alice.sec < dir/{lib} > signed; mv signed dir/{lib}; chmod u+w -R dir")).ok();
    let url = Fields::parse(&fs::read(fixture.path(&format!("dir/{lib}"))).unwrap()).one("URL").to_owned();
    // NARs first, as narinfo-gen writes them, and narinfos first, as tar may read them.
    for order in ["nix-cache-info nar *.narinfo", "*.narinfo nix-cache-info nar"] {
        let verify = format!("cd dir; tar c {order} | cache-sign verify --trusted-public-key '{alice}' > ../passed");
        let stderr = sh(&verify).fails(1);
        assert!(stderr.contains("2 of 3 paths are not trusted"), "{stderr}");
        let mut members: Vec<String> = sh("tar t < passed").ok().lines().map(str::to_owned).collect();
        members.sort_unstable();
        let mut expected = vec![lib.clone(), url.clone(), "nix-cache-info".to_owned()];
        expected.sort_unstable();
        assert_eq!(members, expected, "{order}");
    }
    let s3 = cache_tests::EmbeddedS3::shared();
    let bucket = fixture.fresh_bucket(s3);
    fixture.scratch.sh("s3-push --no-nix \"$C\" < passed").ok();
    assert_closed(&snapshot(s3, &bucket));
    // A truncated stream is an error.
    fixture
        .scratch
        .sh(&format!("head -c 3000 archive | cache-sign verify --trusted-public-key '{alice}' > /dev/null"))
        .fails(1);
}

/// Writes a signed archive to `signed` and its members below `dir`; returns the key of the NAR of each path.
fn signed_archive(fixture: &Fixture) -> [String; 3] {
    fixture
        .scratch
        .sh("cache-sign -k alice.sec < archive > signed; mkdir dir; tar x -C dir < signed; chmod -R u+w dir")
        .ok();
    fixture.closure.paths().map(|path| {
        let narinfo = fs::read(fixture.path("dir").join(Fixture::narinfo_key(path))).unwrap();
        Fields::parse(&narinfo).one("URL").to_owned()
    })
}

/// NARs before narinfos, and narinfos before NARs.
const ORDERS: [&str; 2] = ["nix-cache-info nar *.narinfo", "*.narinfo nix-cache-info nar"];

/// Only the narinfo is signed: a NAR passes only if it matches its narinfo.
#[test]
fn verify_of_an_archive_checks_each_nar_against_its_narinfo() {
    let (fixture, [alice, ..]) = contributors();
    let sh = |script: &str| fixture.scratch.sh(script);
    let [lib, app, top] = signed_archive(&fixture);
    let lib_info = Fixture::narinfo_key(&fixture.closure.lib);
    let verify = format!("cache-sign verify --trusted-public-key '{alice}'");
    sh(&format!("{verify} < signed > passed; cmp signed passed")).ok();
    let unhashed = format!("sed -i '/^FileHash: /d; /^FileSize: /d' {lib_info}");
    let change_byte = format!("printf x | dd of={lib} bs=1 seek=40 conv=notrunc status=none");
    // The error, the command that causes it, and the expected text.
    let cases = [
        ("another NAR", format!("cp {app} {lib}"), "FileHash is"),
        ("a truncated NAR", format!("truncate -s -1 {lib}"), "FileHash is"),
        ("a truncated NAR", format!("truncate -s -1 {lib}; {unhashed}"), "cannot decompress|truncated|end"),
        ("a NAR with a changed byte", change_byte.clone(), "FileHash is"),
        (
            "a NAR with a changed byte",
            format!("{change_byte}; {unhashed}"),
            "cannot decompress|NarHash is|malformed NAR",
        ),
        ("data that is not a NAR", format!("echo hello > {lib}; {unhashed}"), "cannot decompress as zstd|not a NAR"),
        ("FileSize", format!("sed -i 's/^FileSize: .*/FileSize: 12345/' {lib_info}"), "FileSize is 12345"),
        (
            "FileHash",
            format!(
                "sed -i \"s|^FileHash: .*|$(grep ^FileHash: {})|\" {lib_info}",
                Fixture::narinfo_key(&fixture.closure.app)
            ),
            "FileHash is",
        ),
        ("only NarHash differs", format!("cp {app} {lib}; {unhashed}"), "NarHash is|larger than its NarSize"),
        ("compression", format!("sed -i 's/^Compression: .*/Compression: xz/' {lib_info}"), "Compression is"),
    ];
    for (what, change, message) in cases {
        sh(&format!("rm -rf bad; cp -r dir bad; cd bad; {change}")).ok();
        for order in ORDERS {
            let run = |flags: &str| sh(&format!("cd bad; tar c {order} | {verify} {flags} > ../passed"));
            let stderr = run("").fails(1);
            assert!(message.split('|').any(|message| stderr.contains(message)), "{what}, {order}: {stderr}");
            let members = sh("tar t < passed").ok();
            assert!(!members.contains(&lib) && members.contains(&app) && members.contains(&top), "{what}: {members}");
            if order.starts_with("nix-cache-info") {
                assert!(!members.contains(&lib_info), "{what}: {members}");
            } else {
                // It was passed on before its NAR, so the next stage must not take the archive for complete.
                assert!(sh(&format!("{verify} < passed")).fails(1).contains("truncated"), "{what}, {order}");
            }
            run("--json").fails(1);
            let trusted = sh("grep -c '\"trusted\":true' passed").ok();
            assert_eq!(trusted, if order.starts_with("nix-cache-info") { "2" } else { "3" }, "{what}, {order}");
        }
    }
}

/// The URL is not signed: a URL of another kind of object must not let that object pass.
#[test]
fn verify_refuses_a_url_that_is_not_a_nar() {
    let (fixture, [alice, ..]) = contributors();
    signed_archive(&fixture);
    let info = Fixture::narinfo_key(&fixture.closure.lib);
    for url in
        ["log/x.drv", "debuginfo/ab", "realisations/x.doi", "nix-cache-info", &info, &info.replace("narinfo", "ls")]
    {
        let stderr = fixture
            .scratch
            .sh(&format!(
                "cp dir/{info} original; sed -i 's|^URL: .*|URL: {url}|' dir/{info}
                 cp dir/{info} {info}; cp original dir/{info}
                 mkdir -p wrong/log wrong/debuginfo wrong/realisations; cp dir/nix-cache-info wrong/
                 [ -e wrong/{url} ] || echo wrong > wrong/{url}; cp {info} wrong/{info}
                 tar c -C wrong $(cd wrong; find . -type f -printf '%P ') | cache-sign verify --trusted-public-key '{alice}' > passed \\
                   || s=$?; rm -r wrong; exit ${{s:-0}}"
            ))
            .fails(1);
        assert!(stderr.contains("not the key of a NAR"), "{url}: {stderr}");
        assert!(!fixture.scratch.sh("tar t < passed").ok().contains("narinfo"), "{url}");
    }
}

#[test]
fn verify_of_an_archive_refuses_duplicate_and_unreferenced_members() {
    let (fixture, [alice, ..]) = contributors();
    let sh = |script: &str| fixture.scratch.sh(script);
    let [lib, app, _] = signed_archive(&fixture);
    let lib_info = Fixture::narinfo_key(&fixture.closure.lib);
    let verify = format!("cache-sign verify --trusted-public-key '{alice}'");
    sh(&format!(
        "mkdir -p wrong/nar; cp dir/{app} wrong/{lib}; cp dir/{lib_info} wrong; echo x > wrong/nar/extra.nar.zst"
    ))
    .ok();
    sh(&format!("cp dir/{lib} wrong/nar/unnamed.nar.zst")).ok();
    for order in ORDERS {
        let run = |appended: &str| {
            sh(&format!(
                "cd dir; tar cf ../t {order}; cd ..; tar rf t {appended}; {verify} --json < t > json || true; {verify} < t > passed"
            ))
        };
        let members = || sh("tar t < passed | sort").ok();
        let whole = sh("tar t < signed | sort").ok();
        // A second NAR with different bytes.
        let stderr = run(&format!("-C wrong {lib}")).fails(1);
        assert!(stderr.contains(&format!("{lib}: duplicate archive member with different contents")), "{stderr}");
        assert!(stderr.contains("1 other archive member was refused"), "{stderr}");
        assert_eq!(members(), whole, "{order}: the valid one passes once");
        sh(&format!("tar x -O {lib} < passed | cmp - dir/{lib}")).ok();
        // A repeated identical NAR passes: narinfo-gen writes one for each path with the same contents.
        run(&format!("-C dir {lib}")).ok();
        assert_eq!(members(), whole);
        let stderr = run(&format!("-C wrong {lib_info}")).fails(1);
        assert!(stderr.contains(&format!("{lib_info}: duplicate archive member")), "{stderr}");
        assert_eq!(members(), whole);
        let stderr = run("-C dir nix-cache-info").fails(1);
        assert!(stderr.contains("nix-cache-info: duplicate archive member"), "{stderr}");
        let stderr = run("-C wrong nar/unnamed.nar.zst nar/extra.nar.zst").fails(1);
        assert!(stderr.contains("nar/unnamed.nar.zst: no narinfo in the archive refers to this NAR"), "{stderr}");
        assert!(stderr.contains("nar/extra.nar.zst: no narinfo in the archive refers to this NAR"), "{stderr}");
        assert!(stderr.contains("2 other archive members were refused"), "{stderr}");
        assert_eq!(members(), whole);
    }
    // If the wrong NAR is first, neither passes.
    sh(&format!("tar cf t -C wrong {lib}; cd dir; tar rf ../t nix-cache-info nar *.narinfo")).ok();
    let stderr = sh(&format!("{verify} < t > passed")).fails(1);
    assert!(stderr.contains("different contents") && stderr.contains("FileHash is"), "{stderr}");
    assert!(!sh("tar t < passed").ok().contains(&lib));
}

/// Two paths with the same contents share a NAR, and one of them is unsigned.
#[test]
fn verify_passes_a_nar_shared_by_a_trusted_and_an_untrusted_path() {
    let (fixture, [alice, ..]) = contributors();
    let sh = |script: &str| fixture.scratch.sh(script);
    let twin = cache_tests::store_path("twin", cache_tests::random_seed());
    let verify = format!("cache-sign verify --trusted-public-key '{alice}'");
    sh(&format!("cp -a root$LIB root{twin}; nar-pack --root root --no-nix --export $LIB {twin} | narinfo-gen --no-nix --archive | cache-sign -k alice.sec > twins")).ok();
    sh(&format!("{verify} < twins > passed; test $(tar t < passed | grep -c ^nar/) = 1; mkdir d; tar x -C d < twins; chmod -R u+w d")).ok();
    for unsigned in [&fixture.closure.lib, &twin] {
        let key = Fixture::narinfo_key(unsigned);
        sh(&format!("rm -rf e; cp -r d e; sed -i '/^Sig: /d' e/{key}")).ok();
        for order in ORDERS {
            let stderr = sh(&format!("cd e; tar c {order} | {verify} > ../passed")).fails(1);
            assert!(stderr.contains("1 of 2 paths is not trusted") && !stderr.contains("archive member"), "{stderr}");
            let members = sh("tar t < passed").ok();
            assert!(members.contains("nar/") && !members.contains(&key), "{order}: {members}");
        }
    }
}

/// A path with a NAR of `nar_size` bytes according to its signed narinfo, and the beginning of a file of 1 TiB in it.
fn bomb(attacker: &Attacker, name: &str, method: Compression, nar_size: u64) -> CachedPath {
    let mut nar = nar_of(&[b"(", b"type", b"regular", b"contents"]);
    nar.extend((1_u64 << 40).to_le_bytes());
    nar.resize(32 << 20, 0);
    let cached = attacker.path(name, nar, method, &[]).with(|narinfo| {
        narinfo.url.push_str(method.extension());
        narinfo.nar_size = nar_size;
    });
    attacker.signed(cached)
}

/// A NAR is unpacked only for a trusted narinfo, and not beyond the NarSize that is signed.
#[test]
fn verify_of_an_archive_stops_at_the_nar_size() {
    let (scratch, attacker) = (Scratch::new(), Attacker::new());
    let trust = format!("--trusted-public-key '{}'", attacker.public());
    let verify = |dir: &str, order: &str, trust: &str| {
        let output = scratch.sh(&format!("cd {dir}; tar c {order} | cache-sign verify {trust} > ../passed"));
        (output.fails(1), scratch.sh("tar t < passed").ok())
    };
    scratch.sh("cache-sign keygen other-1 other.sec other.pub").ok();
    for method in [Compression::None, Compression::Zstd, Compression::Xz, Compression::Brotli] {
        let dir = format!("bomb-{method}");
        scratch.dir(&format!("{dir}/nar"));
        for (key, body) in bomb(&attacker, "bomb", method, 1000).objects() {
            scratch.write(&format!("{dir}/{key}"), body);
        }
        for order in ["nar *.narinfo", "*.narinfo nar"] {
            let (stderr, members) = verify(&dir, order, &trust);
            assert!(
                stderr.contains("larger than its NarSize, 1000 bytes")
                    || stderr.contains("larger than its NarSize allows"),
                "{method}, {order}: {stderr}"
            );
            assert!(!members.contains("nar/"), "{method}, {order}: {members}");
            let (stderr, _) = verify(&dir, order, "--trusted-public-key-file ../other.pub");
            assert!(
                !stderr.contains("cannot decompress") && !stderr.contains("truncated"),
                "{method}, {order}: {stderr}"
            );
        }
    }
    // Two narinfos of one NAR, the first of which states a NarSize that is too small.
    let good = attacker.path("good", file_nar(&[b'x'; 5000]), Compression::Zstd, &[]);
    let small = attacker.path("small", file_nar(b"x"), Compression::Zstd, &[]);
    let small = small.with(|narinfo| {
        narinfo.url = good.narinfo.url.clone() + ".zst";
        (narinfo.file_hash, narinfo.file_size) = (None, None);
    });
    scratch.dir("two/nar");
    scratch.write("two/nar.tmp", compressed(Compression::Zstd, &good.nar));
    let good = good.with(|narinfo| narinfo.url.push_str(".zst"));
    scratch.sh(&format!("mv two/nar.tmp two/{}", good.narinfo.url)).ok();
    let (good_key, small_key) = (good.narinfo.key(), small.narinfo.key());
    scratch.write(&format!("two/{good_key}"), good.narinfo.to_string());
    scratch.write(&format!("two/{small_key}"), small.narinfo.to_string());
    for order in [format!("nar {small_key} {good_key}"), format!("{small_key} {good_key} nar")] {
        let (stderr, members) = verify("two", &order, &trust);
        assert!(stderr.contains(&small.full_path()) && !stderr.contains(&good.full_path()), "{order}: {stderr}");
        assert!(members.contains(&good.narinfo.url) && members.contains(&good_key), "{order}: {members}");
    }
}

/// NARs that pass through a pipe are not read; the output is the same as without a pipe. Bodies end at, before and after the
/// end of a block, and are larger than a pipe.
#[test]
fn an_archive_is_signed_the_same_through_pipes_and_files() {
    let (fixture, _) = contributors();
    let mut writer = narinfo_gen::archive::Writer::new(Vec::new());
    for (number, size) in [0_usize, 1, 511, 512, 513, 300_000, 3 << 20].into_iter().enumerate() {
        let body: Vec<u8> = (0..=250).cycle().skip(number).take(size).collect();
        writer.member(&format!("nar/{number}.nar"), size as u64, body.as_slice()).unwrap();
    }
    let archive = writer.finish().unwrap();
    fixture.scratch.write("nars", &archive);
    let sign = "cache-sign -k alice.sec";
    for script in [
        format!("{sign} < nars > out"),
        format!("cat nars | {sign} > out"),
        format!("{sign} < nars | cat > out"),
        format!("cat nars | {sign} | cat > out"),
        format!(": > out; cat nars | {sign} >> out"),
        format!("(head -c 700; cat) < nars | {sign} | cat > out"),
    ] {
        fixture.scratch.sh(&script).ok();
        assert!(fs::read(fixture.path("out")).unwrap() == archive, "{script}");
    }
    let stderr = fixture.scratch.sh(&format!("head -c 1000000 nars | {sign} | cat > out")).fails(1);
    assert!(stderr.contains("nar/6.nar: truncated"), "{stderr}");
    let closed = format!("cat nars | {{ {sign} || echo $? > status; }} | head -c 1000 > out || true; cat status");
    assert_eq!(fixture.scratch.sh(&closed).ok(), "141");
}
