//! Keys and signatures: several contributors, a rotation while clients read, and a real Nix in both directions.

use std::collections::BTreeMap;
use std::fs;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;

use crate::fixtures::bucket::{Fields, assert_closed, narinfo_keys, snapshot};
use crate::fixtures::site;
use crate::fixtures::site::{Site, make_key};
use cache_tests::nix;
use cache_tests::{Minio, Scratch};
use serde_json::Value;

/// A site with the unsigned narinfos and archive of its closure, and a key for each of three contributors.
fn contributors() -> (Site, [String; 3]) {
    let site = Site::new();
    let keys = ["alice", "bob", "carol"]
        .map(|name| site.scratch.sh(&format!("cache-sign keygen {name}-1 {name}.sec {name}.pub; cat {name}.pub")).ok());
    let export = "nar-pack --root root --no-nix --export --stdin < paths";
    site.scratch.sh(&format!("{export} | narinfo-gen --no-nix > narinfos")).ok();
    site.scratch.sh(&format!("{export} | narinfo-gen --no-nix --archive > archive")).ok();
    (site, keys)
}

fn signers(line: &str) -> (bool, Vec<String>) {
    let report: Value = serde_json::from_str(line).unwrap();
    let names = report["signedBy"].as_array().unwrap().iter();
    (report["trusted"].as_bool().unwrap(), names.map(|name| name.as_str().unwrap().to_owned()).collect())
}

#[test]
fn two_of_three_contributors_must_sign() {
    let (site, _) = contributors();
    let sh = |script: &str| site.scratch.sh(script);
    let trust = "--trusted-public-key \"$(cat alice.pub) $(cat bob.pub)\" --trusted-public-key-file carol.pub";
    let verify = format!("cache-sign verify --threshold 2 {trust}");
    sh("cache-sign -k alice.sec < narinfos > one; cache-sign -k bob.sec < one > two").ok();
    sh("cache-sign -k carol.sec < two > three; cache-sign -k alice.sec -k bob.sec < three | cmp - three").ok();
    for (file, status, names) in [
        ("narinfos", 1, &[][..]),
        ("one", 1, &["alice-1"][..]),
        ("two", 0, &["alice-1", "bob-1"]),
        ("three", 0, &["alice-1", "bob-1", "carol-1"]),
    ] {
        let report = sh(&format!("{verify} --json < {file}"));
        println!("{file}: exit {}\n{}\n{}", report.status, report.text(), report.stderr.trim());
        assert_eq!(report.status, status, "{}", report.stderr);
        assert_eq!(report.text().lines().count(), 3);
        for line in report.text().lines() {
            assert_eq!(signers(line), (status == 0, names.iter().map(|&name| name.to_owned()).collect()), "{line}");
        }
        let passed = sh(&format!("{verify} < {file}"));
        assert_eq!(passed.status, status);
        assert_eq!(passed.stdout, if status == 0 { fs::read(site.path(file)).unwrap() } else { Vec::new() });
    }
    // A key under two names is one signer.
    sh("sed s/alice-1/other-1/ alice.sec > other.sec; sed s/alice-1/other-1/ alice.pub > other.pub").ok();
    sh("cache-sign -k other.sec < one | cache-sign verify --threshold 2 --trusted-public-key-file alice.pub \
        --trusted-public-key-file other.pub --trusted-public-key-file bob.pub")
    .fails(1);
    // A signature that is moved to another key's name is worth nothing.
    let moved = sh(&format!("sed 's/^Sig: alice-1/Sig: carol-1/' two | {verify} --json"));
    assert!(moved.status == 1 && moved.text().contains(r#"{"key":"carol-1","verdict":"wrong"}"#), "{}", moved.text());
}

/// Of an archive, narinfos and NARs that do not hold stay out, and what passes is a cache that can be pushed.
#[test]
fn verify_of_an_archive_passes_only_what_holds() {
    let (mut site, [alice, ..]) = contributors();
    let sh = |script: &str| site.scratch.sh(script);
    // Only `lib` is signed.
    sh("mkdir dir; tar x -C dir < archive").ok();
    let lib = Site::narinfo_key(&site.closure.lib);
    sh(&format!("cache-sign -k alice.sec < dir/{lib} > signed; mv signed dir/{lib}; chmod u+w -R dir")).ok();
    let url = Fields::parse(&fs::read(site.path(&format!("dir/{lib}"))).unwrap()).one("URL").to_owned();
    // NARs first, as narinfo-gen writes them, and narinfos first, as tar may find them.
    for order in ["nix-cache-info nar *.narinfo", "*.narinfo nix-cache-info nar"] {
        let verify = format!("cd dir; tar c {order} | cache-sign verify --trusted-public-key '{alice}' > ../passed");
        let said = sh(&verify).fails(1);
        assert!(said.contains("2 of 3 paths are not trusted"), "{said}");
        let mut members: Vec<String> = sh("tar t < passed").ok().lines().map(str::to_owned).collect();
        members.sort_unstable();
        let mut wanted = vec![lib.clone(), url.clone(), "nix-cache-info".to_owned()];
        wanted.sort_unstable();
        assert_eq!(members, wanted, "{order}");
    }
    let s3 = cache_tests::EmbeddedS3::shared();
    let bucket = site.fresh_bucket(s3);
    site.scratch.sh("s3-push --no-nix \"$C\" < passed").ok();
    assert_closed(&snapshot(s3, &bucket));
    // A stream that is cut off is no verdict.
    site.scratch
        .sh(&format!("head -c 3000 archive | cache-sign verify --trusted-public-key '{alice}' > /dev/null"))
        .fails(1);
}

/// A signed archive in `signed` and its members below `dir`, and the NAR's key of each path.
fn signed_archive(site: &Site) -> [String; 3] {
    site.scratch
        .sh("cache-sign -k alice.sec < archive > signed; mkdir dir; tar x -C dir < signed; chmod -R u+w dir")
        .ok();
    site.closure.paths().map(|path| {
        let narinfo = fs::read(site.path("dir").join(Site::narinfo_key(path))).unwrap();
        Fields::parse(&narinfo).one("URL").to_owned()
    })
}

/// NARs before narinfos, and narinfos before NARs.
const ORDERS: [&str; 2] = ["nix-cache-info nar *.narinfo", "*.narinfo nix-cache-info nar"];

/// What is signed is the narinfo: a NAR passes only if it is what the narinfo says.
#[test]
fn verify_of_an_archive_holds_each_nar_against_its_narinfo() {
    let (site, [alice, ..]) = contributors();
    let sh = |script: &str| site.scratch.sh(script);
    let [lib, app, top] = signed_archive(&site);
    let lib_info = Site::narinfo_key(&site.closure.lib);
    let verify = format!("cache-sign verify --trusted-public-key '{alice}'");
    sh(&format!("{verify} < signed > passed; cmp signed passed")).ok();
    // What is wrong, how it is made, what is said, and whether the NAR alone is to blame.
    let cases = [
        ("another NAR", format!("cp {app} {lib}"), "FileHash is"),
        ("a NAR that is cut off", format!("truncate -s -1 {lib}"), "does not unpack|cut off|end"),
        ("a NAR with a changed byte", format!("printf x | dd of={lib} bs=1 seek=40 conv=notrunc status=none"), &lib),
        ("no NAR at all", format!("echo hello > {lib}"), "not a NAR"),
        ("FileSize", format!("sed -i 's/^FileSize: .*/FileSize: 12345/' {lib_info}"), "FileSize is 12345"),
        (
            "FileHash",
            format!(
                "sed -i \"s|^FileHash: .*|$(grep ^FileHash: {})|\" {lib_info}",
                Site::narinfo_key(&site.closure.app)
            ),
            "FileHash is",
        ),
        (
            "only NarHash tells",
            format!("cp {app} {lib}; sed -i '/^FileHash: /d; /^FileSize: /d' {lib_info}"),
            "NarHash is",
        ),
        ("compression", format!("sed -i 's/^Compression: .*/Compression: xz/' {lib_info}"), "Compression is"),
    ];
    for (what, change, message) in cases {
        sh(&format!("rm -rf bad; cp -r dir bad; cd bad; {change}")).ok();
        for order in ORDERS {
            let run = |flags: &str| sh(&format!("cd bad; tar c {order} | {verify} {flags} > ../passed"));
            let said = run("").fails(1);
            assert!(message.split('|').any(|message| said.contains(message)), "{what}, {order}: {said}");
            let members = sh("tar t < passed").ok();
            assert!(!members.contains(&lib) && members.contains(&app) && members.contains(&top), "{what}: {members}");
            if order.starts_with("nix-cache-info") {
                assert!(!members.contains(&lib_info), "{what}: {members}");
            }
            run("--json").fails(1);
            let trusted = sh("grep -c '\"trusted\":true' passed").ok();
            assert_eq!(trusted, if order.starts_with("nix-cache-info") { "2" } else { "3" }, "{what}, {order}");
        }
    }
}

/// Nobody signs the URL: one that names something else than a NAR would let that pass.
#[test]
fn verify_refuses_a_narinfo_whose_url_is_no_nar() {
    let (site, [alice, ..]) = contributors();
    signed_archive(&site);
    let info = Site::narinfo_key(&site.closure.lib);
    for url in
        ["log/x.drv", "debuginfo/ab", "realisations/x.doi", "nix-cache-info", &info, &info.replace("narinfo", "ls")]
    {
        let said = site
            .scratch
            .sh(&format!(
                "cp dir/{info} honest; sed -i 's|^URL: .*|URL: {url}|' dir/{info}
                 cp dir/{info} {info}; cp honest dir/{info}
                 mkdir -p evil/log evil/debuginfo evil/realisations; cp dir/nix-cache-info evil/
                 [ -e evil/{url} ] || echo evil > evil/{url}; cp {info} evil/{info}
                 tar c -C evil $(cd evil; find . -type f -printf '%P ') | cache-sign verify --trusted-public-key '{alice}' > passed \\
                   || s=$?; rm -r evil; exit ${{s:-0}}"
            ))
            .fails(1);
        assert!(said.contains("not that of a NAR"), "{url}: {said}");
        assert!(!site.scratch.sh("tar t < passed").ok().contains("narinfo"), "{url}");
    }
}

#[test]
fn verify_of_an_archive_refuses_members_that_are_there_twice_or_that_nobody_names() {
    let (site, [alice, ..]) = contributors();
    let sh = |script: &str| site.scratch.sh(script);
    let [lib, app, _] = signed_archive(&site);
    let lib_info = Site::narinfo_key(&site.closure.lib);
    let verify = format!("cache-sign verify --trusted-public-key '{alice}'");
    sh(&format!("mkdir -p evil/nar; cp dir/{app} evil/{lib}; cp dir/{lib_info} evil; echo x > evil/nar/extra.nar.zst"))
        .ok();
    sh(&format!("cp dir/{lib} evil/nar/unnamed.nar.zst")).ok();
    for order in ORDERS {
        let run = |appended: &str| {
            sh(&format!(
                "cd dir; tar cf ../t {order}; cd ..; tar rf t {appended}; {verify} --json < t > json || true; {verify} < t > passed"
            ))
        };
        let members = || sh("tar t < passed | sort").ok();
        let whole = sh("tar t < signed | sort").ok();
        // A second, evil NAR.
        let said = run(&format!("-C evil {lib}")).fails(1);
        assert!(said.contains(&format!("{lib}: it is in the archive twice, with other bytes")), "{said}");
        assert!(said.contains("1 other members of the archive are refused"), "{said}");
        assert_eq!(members(), whole, "{order}: the good one passes, once");
        sh(&format!("tar x -O {lib} < passed | cmp - dir/{lib}")).ok();
        // The same NAR again is what narinfo-gen writes for paths of the same contents.
        run(&format!("-C dir {lib}")).ok();
        assert_eq!(members(), whole);
        let said = run(&format!("-C evil {lib_info}")).fails(1);
        assert!(said.contains(&format!("{lib_info}: it is in the archive twice")), "{said}");
        assert_eq!(members(), whole);
        let said = run("-C dir nix-cache-info").fails(1);
        assert!(said.contains("nix-cache-info: it is in the archive twice"), "{said}");
        let said = run("-C evil nar/unnamed.nar.zst nar/extra.nar.zst").fails(1);
        assert!(said.contains("nar/unnamed.nar.zst: no narinfo in the archive names it"), "{said}");
        assert!(said.contains("nar/extra.nar.zst: not a NAR"), "{said}");
        assert!(said.contains("2 other members"), "{said}");
        assert_eq!(members(), whole);
    }
    // The evil one first: neither passes.
    sh(&format!("tar cf t -C evil {lib}; cd dir; tar rf ../t nix-cache-info nar *.narinfo")).ok();
    let said = sh(&format!("{verify} < t > passed")).fails(1);
    assert!(said.contains("with other bytes") && said.contains("FileHash is"), "{said}");
    assert!(!sh("tar t < passed").ok().contains(&lib));
}

/// Two paths of the same contents share a NAR; one of them may be unsigned.
#[test]
fn verify_passes_a_nar_that_a_path_which_holds_shares_with_one_that_does_not() {
    let (site, [alice, ..]) = contributors();
    let sh = |script: &str| site.scratch.sh(script);
    let twin = cache_tests::store_path("twin", site::random_seed());
    let verify = format!("cache-sign verify --trusted-public-key '{alice}'");
    sh(&format!("cp -a root$LIB root{twin}; nar-pack --root root --no-nix --export $LIB {twin} | narinfo-gen --no-nix --archive | cache-sign -k alice.sec > twins")).ok();
    sh(&format!("{verify} < twins > passed; test $(tar t < passed | grep -c ^nar/) = 1; mkdir d; tar x -C d < twins; chmod -R u+w d")).ok();
    for unsigned in [&site.closure.lib, &twin] {
        let key = Site::narinfo_key(unsigned);
        sh(&format!("rm -rf e; cp -r d e; sed -i '/^Sig: /d' e/{key}")).ok();
        for order in ORDERS {
            let said = sh(&format!("cd e; tar c {order} | {verify} > ../passed")).fails(1);
            assert!(said.contains("1 of 2 paths are not trusted") && !said.contains("other members"), "{said}");
            let members = sh("tar t < passed").ok();
            assert!(members.contains("nar/") && !members.contains(&key), "{order}: {members}");
        }
    }
}

#[test]
fn keys_come_from_files_descriptors_and_variables() {
    let (mut site, [alice, ..]) = contributors();
    let sh = |script: &str| site.scratch.sh(script);
    sh("cache-sign -k alice.sec < narinfos > signed").ok();
    let secret = fs::read_to_string(site.path("alice.sec")).unwrap();
    let half = {
        let digits = sh("cut -d: -f2 alice.sec | base64 -d | head -c 32 | base64 -w0").ok();
        format!("alice-1:{digits}")
    };
    fs::write(site.path("half.sec"), &half).unwrap();
    for script in [
        "cache-sign --key-fd 3 3< alice.sec < narinfos",
        "cache-sign --key-fd 7 7< <(cat alice.sec) < narinfos",
        "K=$(cat alice.sec) cache-sign --key-env K < narinfos",
        "chmod 600 half.sec; cache-sign --seed -k half.sec < narinfos",
        "cache-sign --seed -k <(cat half.sec) < narinfos",
    ] {
        let outcome = sh(&format!("{script} | cmp - signed"));
        outcome.ok();
        assert_eq!(outcome.stderr, "", "{script}");
    }
    assert_eq!(sh("cache-sign public-key --seed --key-fd 3 3< half.sec").ok(), alice);
    let said = sh("chmod 644 alice.sec; cache-sign -k alice.sec < narinfos > out; chmod 600 alice.sec");
    said.ok();
    assert!(said.stderr.contains("others may read it (mode 0644)"), "{}", said.stderr);
    site.scratch.env("SECRET", &secret);
    for (script, status) in [
        ("cache-sign --key-fd 9 < narinfos", 2),
        ("cache-sign --key-fd 0 < narinfos", 2),
        ("cache-sign --key-fd 3 --key-fd 3 3< alice.sec < narinfos", 2),
        ("cache-sign --key-env NO_SUCH < narinfos", 2),
        ("cache-sign --key-env \"$SECRET\" < narinfos", 2),
        ("cache-sign --key-fd \"$SECRET\" < narinfos", 2),
        ("cache-sign -k \"$SECRET\" < narinfos", 2),
        ("cache-sign -k - < narinfos", 2),
        ("cache-sign -k bob.pub < narinfos | head -c 1", 0),
        ("cache-sign --key-fd 3 3< /dev/null < narinfos", 1),
        ("cache-sign --key-fd 3 3< <(head -c 5000 /dev/zero) < narinfos", 1),
    ] {
        if status == 0 {
            continue;
        }
        let outcome = site.scratch.sh(script);
        assert_eq!(outcome.status, status, "{script}: {}", outcome.stderr);
        assert!(outcome.stdout.is_empty() && outcome.stderr.lines().count() == 1, "{script}: {}", outcome.stderr);
        let digits = secret.split(':').nth(1).unwrap();
        assert!(!outcome.stderr.contains(&digits[..20]) && !outcome.stderr.contains(&digits[50..]), "{script}");
    }
}

/// Other tools' signatures stay byte for byte; `--replace` drops those of one name, and the base of NarHash is no matter.
#[test]
fn signatures_of_others_stay_and_every_base_is_the_same_path() {
    let (site, _) = contributors();
    let sh = |script: &str| site.scratch.sh(script);
    let lib = &site.closure.lib;
    sh(&format!("awk -v RS= -v p='StorePath: {lib}' 'index($0, p)' narinfos > plain")).ok();
    sh("cache-sign -k alice.sec < plain > signed").ok();
    let signature = sh("grep '^Sig: ' signed").ok();
    let foreign = "Sig: elsewhere-1:not even base 64 =\nSig: elsewhere-2:AAAA";
    sh(&format!("(cat plain; printf '%s\\n' '{foreign}') | cache-sign -k alice.sec > both; grep -F '{foreign}' both"))
        .ok();
    assert_eq!(sh("grep -c '^Sig: ' both").ok(), "3");
    let replaced = sh("cache-sign -k bob.sec --replace alice-1 --replace elsewhere-2 < both");
    assert!(replaced.text().contains("Sig: elsewhere-1:not even base 64 =") && replaced.text().contains("Sig: bob-1:"));
    assert!(!replaced.text().contains("alice-1") && !replaced.text().contains("elsewhere-2"), "{}", replaced.text());
    assert!(sh("cache-sign -k bob.sec --replace nobody < both").stderr.contains("--replace nobody"));
    let hash = sh("sed -n 's/^NarHash: //p' plain").ok();
    let bytes = base32(hash.strip_prefix("sha256:").unwrap());
    let hex = bytes.iter().fold(String::new(), |hex, byte| format!("{hex}{byte:02x}"));
    let base64 = sh(&format!("printf {hex} | sed 's/../\\\\x&/g' | xargs -0 printf | base64 -w0")).ok();
    for other in [format!("sha256:{hex}"), format!("sha256:{base64}"), format!("sha256-{base64}")] {
        let signed =
            sh(&format!("sed 's|^NarHash: .*|NarHash: {other}|' plain | cache-sign -k alice.sec | grep '^Sig: '"));
        assert_eq!(signed.ok(), signature, "{other}");
    }
}

/// Nix's base 32, read by other code than ours.
fn base32(digits: &str) -> Vec<u8> {
    let mut bytes = vec![0_u8; 32];
    for (n, digit) in digits.bytes().rev().enumerate() {
        let value =
            u16::try_from("0123456789abcdfghijklmnpqrsvwxyz".bytes().position(|d| d == digit).unwrap()).unwrap();
        let (at, shift) = (n * 5 / 8, n * 5 % 8);
        let [low, high] = (value << shift).to_le_bytes();
        bytes[at] |= low;
        if let Some(next) = bytes.get_mut(at + 1) {
            *next |= high;
        }
    }
    bytes
}

/// What Nix signs, we accept; what we sign, Nix accepts; neither accepts a stranger's.
#[test]
fn a_real_nix_in_both_directions() {
    if !nix::available() {
        return;
    }
    let mut scratch = Scratch::new();
    let closure = nix::build(&scratch);
    let (ours, theirs) = (make_key(&scratch, "ours"), make_key(&scratch, "theirs"));
    scratch.env("TOP", &closure.top);
    let stranger = make_key(&scratch, "stranger");
    // By `nix copy` with a key, and by `nix store sign`.
    scratch.sh("nix copy --to \"file://$PWD/copied?secret-key=$PWD/theirs.sec\" $TOP").ok();
    scratch.sh("nix store sign -k theirs.sec -r $TOP; nix copy --to file://$PWD/signed $TOP").ok();
    for dir in ["copied", "signed"] {
        let archive = format!("tar c -C {dir} . | cache-sign verify --trusted-public-key");
        scratch.sh(&format!("{archive} '{theirs}' > /dev/null")).ok();
        let said = scratch.sh(&format!("{archive} '{stranger}' > /dev/null")).fails(1);
        assert!(said.contains("3 of 3 paths are not trusted"), "{said}");
    }
    // Nix's signatures are still there, byte for byte, after we added ours; and Nix takes either.
    scratch.sh("mkdir both; tar c -C signed . | cache-sign -k ours.sec | tar x -C both").ok();
    scratch.sh("chmod -R u+w both; for f in signed/*.narinfo; do grep ^Sig: $f | grep -qFf - both/${f#*/}; done").ok();
    // In another base, as other tools write it.
    for path in closure.paths() {
        let info = format!("both/{}", Site::narinfo_key(path));
        scratch
            .sh(&format!(
                "h=$(sed -n 's/^NarHash: //p' {info}); sed -i \"s|^NarHash: .*|NarHash: $(nix hash to-sri $h)|\" {info}"
            ))
            .ok();
    }
    for (key, accepted) in [(&ours, true), (&theirs, true), (&stranger, false)] {
        let mut client = Scratch::new();
        client.env("NIX_CONFIG", format!("require-sigs = true\ntrusted-public-keys = {key}\n"));
        let store = nix::fresh_store(&client);
        let copy = format!("nix copy --from file://{}/both --to {store} {}", scratch.path().display(), closure.top);
        assert_eq!(client.sh(&copy).status == 0, accepted, "{key}");
    }
}

/// ETag and time of change of each object.
fn states(minio: &Minio, bucket: &str) -> BTreeMap<String, String> {
    let listing = String::from_utf8(minio.mc(&["ls", "--recursive", "--json", &format!("cache/{bucket}/")])).unwrap();
    let state = |line: &str| {
        let entry: Value = serde_json::from_str(line).unwrap();
        (entry["key"].as_str().unwrap().to_owned(), format!("{} {}", entry["etag"], entry["lastModified"]))
    };
    listing.lines().map(state).collect()
}

fn summary(report: &str) -> Value {
    serde_json::from_str::<Value>(report.lines().last().unwrap()).unwrap()["summary"].clone()
}

#[test]
fn a_key_is_rotated_while_clients_read_and_no_nar_moves() {
    let Some(minio) = Minio::shared() else { return };
    let mut site = Site::new();
    let bucket = minio.make_bucket();
    let policy = site.scratch.sh(&format!("cache-policy --upload {bucket}")).ok();
    minio.add_user(&policy).apply(&mut site.scratch);
    site.scratch.env("C", minio.cache_url(&bucket));
    site.scratch.sh("cache-sign keygen old-1 old.sec old.pub; cache-sign keygen new-1 new.sec new.pub").ok();
    site.scratch.sh(&site::PUBLISH.replace("key.sec", "old.sec")).ok();
    let before = states(minio, &bucket);
    let (stop, moved, reads) = (AtomicBool::new(false), AtomicBool::new(false), AtomicU32::new(0));
    let site = &site;
    thread::scope(|scope| {
        // A client that trusts the old key until the new one is everywhere, and the new one from then on.
        let client = scope.spawn(|| {
            while !stop.load(Ordering::SeqCst) {
                let n = reads.load(Ordering::SeqCst);
                let key = if moved.load(Ordering::SeqCst) { "new.pub" } else { "old.pub" };
                let pull = format!("s3-pull -q -r --root out{n} --trusted-public-key-file {key} \"$C\" \"$TOP\"");
                site.scratch.sh(&pull).ok();
                reads.fetch_add(1, Ordering::SeqCst);
            }
        });
        let read_once_more = |stage: &str| {
            let seen = reads.load(Ordering::SeqCst);
            while reads.load(Ordering::SeqCst) < seen + 2 && !client.is_finished() {
                thread::yield_now();
            }
            println!("{stage}: {} closures read so far", reads.load(Ordering::SeqCst));
        };
        read_once_more("before");
        let report = site.scratch.sh(
            "s3-pull --narinfo --all --trusted-public-key-file old.pub \"$C\" | cache-sign -k new.sec | s3-push --json \"$C\"",
        );
        let first = summary(&report.ok());
        println!("signed anew: {first}\n{}", report.stderr.trim());
        assert_eq!((&first["signed"], &first["bytes"]), (&3.into(), &0.into()));
        assert_eq!(first["requests"]["put"], 3, "three narinfos and nothing else: {first}");
        read_once_more("signed by both, read with the old key");
        moved.store(true, Ordering::SeqCst);
        read_once_more("signed by both, read with the new key");
        // Everybody trusts the new key by now: the old one goes, and the client goes on.
        let report = site.scratch.sh(
            "s3-pull --narinfo --all --trusted-public-key-file new.pub \"$C\" | cache-sign -k new.sec --replace old-1 \
             | s3-push --json --exact \"$C\"",
        );
        let second = summary(&report.ok());
        println!("old key dropped: {second}");
        assert_eq!((&second["requests"]["put"], &second["bytes"]), (&3.into(), &0.into()), "{second}");
        read_once_more("signed by the new key alone");
        stop.store(true, Ordering::SeqCst);
        client.join().unwrap();
    });
    println!("{} closures read meanwhile", reads.load(Ordering::SeqCst));
    assert!(reads.load(Ordering::SeqCst) >= 8);
    let objects = snapshot(minio, &bucket);
    assert_closed(&objects);
    for key in narinfo_keys(&objects) {
        let narinfo = Fields::parse(&objects[key]);
        let signatures = narinfo.all("Sig");
        assert!(signatures.len() == 1 && signatures[0].starts_with("new-1:"), "{key}: {signatures:?}");
    }
    site.scratch.sh("s3-pull -r --root gone --trusted-public-key-file old.pub \"$C\" \"$TOP\"").fails(1);
    site.scratch.sh("s3-pull -r --root last --trusted-public-key-file new.pub \"$C\" \"$TOP\"").ok();
    site.assert_trees("last");
    let after = states(minio, &bucket);
    for (key, state) in &before {
        let same = after[key] == *state;
        println!("{key:70} {} {}", if same { "unchanged" } else { "rewritten" }, after[key]);
        assert_eq!(same, !key.ends_with(".narinfo"), "{key}");
    }
    assert_eq!(before.len(), after.len());
}
