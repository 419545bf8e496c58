//! How keys are read, and which signatures count.

use super::contributors;
use crate::fixtures::closure_fixture::{Fixture, generate_key};
use cache_tests::Scratch;
use cache_tests::nix;
use serde_json::Value;
use std::fs;

fn signers(line: &str) -> (bool, Vec<String>) {
    let report: Value = serde_json::from_str(line).unwrap();
    let names = report["signedBy"].as_array().unwrap().iter();
    (report["trusted"].as_bool().unwrap(), names.map(|name| name.as_str().unwrap().to_owned()).collect())
}

#[test]
fn two_of_three_contributors_must_sign() {
    let (fixture, _) = contributors();
    let sh = |script: &str| fixture.scratch.sh(script);
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
        assert_eq!(passed.stdout, if status == 0 { fs::read(fixture.path(file)).unwrap() } else { Vec::new() });
    }
    // A key with two names counts once.
    sh("sed s/alice-1/other-1/ alice.sec > other.sec; sed s/alice-1/other-1/ alice.pub > other.pub").ok();
    sh("cache-sign -k other.sec < one | cache-sign verify --threshold 2 --trusted-public-key-file alice.pub \
        --trusted-public-key-file other.pub --trusted-public-key-file bob.pub")
    .fails(1);
    // A signature under the name of another key is invalid.
    let moved = sh(&format!("sed 's/^Sig: alice-1/Sig: carol-1/' two | {verify} --json"));
    assert!(moved.status == 1 && moved.text().contains(r#"{"key":"carol-1","verdict":"wrong"}"#), "{}", moved.text());
}

#[test]
fn keys_are_read_from_files_descriptors_and_variables() {
    let (mut fixture, [alice, ..]) = contributors();
    let sh = |script: &str| fixture.scratch.sh(script);
    sh("cache-sign -k alice.sec < narinfos > signed").ok();
    let secret = fs::read_to_string(fixture.path("alice.sec")).unwrap();
    let half = {
        let digits = sh("cut -d: -f2 alice.sec | base64 -d | head -c 32 | base64 -w0").ok();
        format!("alice-1:{digits}")
    };
    fs::write(fixture.path("half.sec"), &half).unwrap();
    for script in [
        "cache-sign --key-fd 3 3< alice.sec < narinfos",
        "cache-sign --key-fd 7 7< <(cat alice.sec) < narinfos",
        "K=$(cat alice.sec) cache-sign --key-env K < narinfos",
        "chmod 600 half.sec; cache-sign --seed -k half.sec < narinfos",
        "cache-sign --seed -k <(cat half.sec) < narinfos",
        // Some editors begin a file with a byte order mark.
        "cache-sign -k <(printf '\\xef\\xbb\\xbf'; cat alice.sec) < narinfos",
    ] {
        let output = sh(&format!("{script} | cmp - signed"));
        output.ok();
        assert_eq!(output.stderr, "", "{script}");
    }
    assert_eq!(sh("cache-sign public-key --seed --key-fd 3 3< half.sec").ok(), alice);
    let output = sh("chmod 644 alice.sec; cache-sign -k alice.sec < narinfos > out; chmod 600 alice.sec");
    output.ok();
    assert!(output.stderr.contains("readable by other users (mode 0644)"), "{}", output.stderr);
    fixture.scratch.env("SECRET", &secret);
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
        ("cache-sign --key-fd 3 3< /dev/null < narinfos", 2),
        ("cache-sign --key-fd 3 3< <(head -c 5000 /dev/zero) < narinfos", 1),
    ] {
        if status == 0 {
            continue;
        }
        let output = fixture.scratch.sh(script);
        assert_eq!(output.status, status, "{script}: {}", output.stderr);
        assert!(output.stdout.is_empty() && output.error_lines().len() == 1, "{script}: {}", output.stderr);
        let digits = secret.split(':').nth(1).unwrap();
        assert!(!output.stderr.contains(&digits[..20]) && !output.stderr.contains(&digits[50..]), "{script}");
    }
}

/// Signatures of other tools are kept unchanged, `--replace` removes those of one name, and any base of NarHash gives
/// the same signature.
#[test]
fn foreign_signatures_are_kept_and_hash_bases_are_equivalent() {
    let (fixture, _) = contributors();
    let sh = |script: &str| fixture.scratch.sh(script);
    let lib = &fixture.closure.lib;
    sh(&format!("awk -v RS= -v p='StorePath: {lib}' 'index($0, p)' narinfos > plain")).ok();
    sh("cache-sign -k alice.sec < plain > signed").ok();
    let signature = sh("grep '^Sig: ' signed").ok();
    let foreign = "Sig: elsewhere-1:b+/=\nSig: elsewhere-2:AAAA";
    sh(&format!("(cat plain; printf '%s\\n' '{foreign}') | cache-sign -k alice.sec > both; grep -F '{foreign}' both"))
        .ok();
    assert_eq!(sh("grep -c '^Sig: ' both").ok(), "3");
    let replaced = sh("cache-sign -k bob.sec --replace alice-1 --replace elsewhere-2 < both");
    assert!(replaced.text().contains("Sig: elsewhere-1:b+/=") && replaced.text().contains("Sig: bob-1:"));
    assert!(!replaced.text().contains("alice-1") && !replaced.text().contains("elsewhere-2"), "{}", replaced.text());
    assert!(sh("cache-sign -k bob.sec --replace nobody < both").stderr.contains("--replace \"nobody\""));
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

/// Decodes Nix's base 32 without the code under test.
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

/// We accept signatures of Nix, Nix accepts ours, and neither accepts those of an untrusted key.
#[test]
fn nix_accepts_our_signatures_and_we_accept_those_of_nix() {
    if !nix::available() {
        return;
    }
    let mut scratch = Scratch::new();
    let closure = nix::build(&scratch);
    let (ours, theirs) = (generate_key(&scratch, "ours"), generate_key(&scratch, "theirs"));
    scratch.env("TOP", &closure.top);
    let untrusted = generate_key(&scratch, "untrusted");
    // Signed by `nix copy` with a key, and by `nix store sign`.
    scratch.sh("nix copy --to \"file://$PWD/copied?secret-key=$PWD/theirs.sec\" $TOP").ok();
    scratch.sh("nix store sign -k theirs.sec -r $TOP; nix copy --to file://$PWD/signed $TOP").ok();
    for dir in ["copied", "signed"] {
        let archive = format!("tar c -C {dir} . | cache-sign verify --trusted-public-key");
        scratch.sh(&format!("{archive} '{theirs}' > /dev/null")).ok();
        let stderr = scratch.sh(&format!("{archive} '{untrusted}' > /dev/null")).fails(1);
        assert!(stderr.contains("3 of 3 paths are not trusted"), "{stderr}");
    }
    // Nix's signatures are unchanged after we add ours, and Nix accepts either.
    scratch.sh("mkdir both; tar c -C signed . | cache-sign -k ours.sec | tar x -C both").ok();
    scratch.sh("chmod -R u+w both; for f in signed/*.narinfo; do grep ^Sig: $f | grep -qFf - both/${f#*/}; done").ok();
    // With NarHash in another base, as other tools write it.
    for path in closure.paths() {
        let info = format!("both/{}", Fixture::narinfo_key(path));
        scratch
            .sh(&format!(
                "h=$(sed -n 's/^NarHash: //p' {info}); sed -i \"s|^NarHash: .*|NarHash: $(nix hash to-sri $h)|\" {info}"
            ))
            .ok();
    }
    for (key, accepted) in [(&ours, true), (&theirs, true), (&untrusted, false)] {
        let mut client = Scratch::new();
        client.env("NIX_CONFIG", format!("require-sigs = true\ntrusted-public-keys = {key}\n"));
        let store = nix::fresh_store(&client);
        let copy = format!("nix copy --from file://{}/both --to {store} {}", scratch.path().display(), closure.top);
        assert_eq!(client.sh(&copy).status == 0, accepted, "{key}");
    }
}

/// An unset variable in a script must not select other keys: without an option, those of nix.conf are trusted.
#[test]
fn an_empty_key_is_a_usage_error() {
    let (fixture, [alice, ..]) = contributors();
    let sh = |script: &str| fixture.scratch.sh(script);
    // nix.conf trusts the key that signed everything, so the fallback to it would succeed.
    sh("cache-sign -k key.sec < narinfos > signed; cache-sign -k key.sec < archive > signed.tar").ok();
    sh("mkdir cache; tar x -C cache < signed.tar; : > empty; printf ' \\n\\t\\n' > blank; chmod 600 empty blank").ok();
    sh("cache-sign verify < signed; s3-pull --list --all file://$PWD/cache").ok();
    let mut scripts = Vec::new();
    for trust in [
        "--trusted-public-key ''",
        "--trusted-public-key \"$UNSET\"",
        "--trusted-public-key ' '",
        "--trusted-public-key=",
        "--trusted-public-key-file empty",
        "--trusted-public-key-file blank",
        "--trusted-public-key-file ''",
        &format!("--trusted-public-key '{alice}' --trusted-public-key ''"),
        &format!("--trusted-public-key '{alice}' --trusted-public-key-file empty"),
    ] {
        scripts.extend([
            format!("cache-sign verify {trust} < signed"),
            format!("cache-sign verify {trust} < signed.tar"),
            format!("cache-sign verify --nix-conf /dev/null {trust} < signed"),
            format!("s3-pull --list --all {trust} file://$PWD/cache"),
            format!("s3-pull -r --root out {trust} file://$PWD/cache \"$TOP\""),
            format!("cache-policy --nix-conf {trust} s3://my-cache"),
        ]);
    }
    for key in ["-k ''", "-k empty", "-k blank", "--key-env EMPTY", "--key-env BLANK", "--key-env ''", "--key-fd ''"] {
        scripts.push(format!("EMPTY= BLANK=' ' cache-sign {key} < narinfos"));
        scripts.push(format!("EMPTY= BLANK=' ' cache-sign -k key.sec {key} < narinfos"));
        scripts.push(format!("EMPTY= BLANK=' ' cache-sign public-key {}", key.trim_start_matches("-k ")));
    }
    scripts.extend(
        [
            "cache-sign --key-fd 3 3< empty < narinfos",
            "cache-sign public-key - < blank",
            "cache-sign -k key.sec --replace '' < narinfos",
            "cache-sign keygen '' new.sec new.pub",
            "cache-sign keygen name '' new.pub",
        ]
        .map(str::to_owned),
    );
    for script in scripts {
        let output = sh(&format!("UNSET=; {script}"));
        assert_eq!(output.status, 2, "{script}: {}", output.stderr);
        assert!(output.stdout.is_empty() && output.error_lines().len() == 1, "{script}: {}", output.stderr);
    }
    assert_eq!(sh("ls -d out new.* 2> /dev/null || true").ok(), "");
}
