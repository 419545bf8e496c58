//! `--missing` with requirements, and changes of an existing `nix-cache-info`.

use crate::fixtures::bucket::{Fields, snapshot};
use crate::fixtures::closure_fixture::{ARCHIVE, Fixture, PUBLISH, generate_key};

/// The documented pipeline, which signs paths that were first pushed unsigned.
fn publish_signed(key: &str) -> String {
    PUBLISH.replace("--missing", &format!("--missing --signed-by '{key}'"))
}

#[test]
fn paths_that_were_pushed_unsigned_are_signed_by_the_pipeline() {
    let (fixture, s3, bucket) = Fixture::embedded();
    let sh = |script: &str| fixture.scratch.sh(script);
    sh(&PUBLISH.replace("| cache-sign -k key.sec ", "")).ok();
    let name = fixture.key.split_once(':').unwrap().0;
    assert_eq!(sh("s3-push --missing \"$C\" < paths").ok(), "", "their narinfos are in the cache");
    for signer in [name, &fixture.key] {
        assert_eq!(
            sh(&format!("s3-push --missing --signed-by '{signer}' \"$C\" < paths")).lines(),
            fixture.closure.paths()
        );
    }
    sh(&publish_signed(&fixture.key)).ok();
    fixture.assert_pulls("$C", "");
    for signer in [name, &fixture.key] {
        assert_eq!(sh(&format!("s3-push --missing --signed-by '{signer}' \"$C\" < paths")).ok(), "");
    }
    let before = snapshot(s3, &bucket);
    assert_eq!(sh(&publish_signed(name)).ok(), "");
    assert_eq!(snapshot(s3, &bucket), before);
    // Another key of the same name has not signed them, and neither has one of two.
    let (forged, other) = (generate_key(&fixture.scratch, "forged"), generate_key(&fixture.scratch, "other"));
    let forged = format!("{name}:{}", forged.split_once(':').unwrap().1);
    for signers in [format!("--signed-by '{forged}'"), format!("--signed-by {name} --signed-by '{other}'")] {
        assert_eq!(sh(&format!("s3-push --missing {signers} \"$C\" < paths")).lines(), fixture.closure.paths());
    }
    for bad in ["", " ", "name:bad"] {
        let message = sh(&format!("s3-push --missing --signed-by '{bad}' \"$C\" < paths")).fails(2);
        assert!(message.contains("--signed-by"), "{message}");
    }
    sh(&format!("s3-push --signed-by {name} \"$C\" < paths")).fails(2);
}

#[test]
fn deep_counts_paths_whose_nar_is_gone_or_truncated() {
    let (fixture, s3, bucket) = Fixture::embedded();
    let sh = |script: &str| fixture.scratch.sh(script);
    sh(PUBLISH).ok();
    let nar = |path: &str| {
        let narinfo = Fields::parse(&s3.get(&bucket, &Fixture::narinfo_key(path)));
        narinfo.one("URL").to_owned()
    };
    assert_eq!(sh("s3-push --missing --deep \"$C\" < paths").ok(), "");
    s3.remove(&bucket, &nar(&fixture.closure.lib));
    let truncated = nar(&fixture.closure.top);
    s3.put(&bucket, &truncated, b"half");
    assert_eq!(sh("s3-push --missing \"$C\" < paths").ok(), "");
    assert_eq!(
        sh("s3-push --missing --deep \"$C\" < paths").lines(),
        [fixture.closure.lib.as_str(), fixture.closure.top.as_str()]
    );
}

#[test]
fn the_cache_info_of_an_existing_cache_can_be_changed() {
    let (fixture, s3, bucket) = Fixture::embedded();
    let sh = |script: &str| fixture.scratch.sh(script);
    let info = || String::from_utf8(s3.get(&bucket, "nix-cache-info")).unwrap();
    let message = sh("s3-push --set-cache-info --priority 30 \"$C\"").fails(1);
    assert!(message.contains("nix-cache-info: not found"), "{message}");
    s3.put(&bucket, "nix-cache-info", b"StoreDir: /nix/store\nPriority: 50\n\n# Kept\nX-Other: kept\n");
    assert!(sh("s3-push --set-cache-info \"$C\"").stderr.contains("unchanged"));
    sh("s3-push --set-cache-info --priority 30 \"$C\"").ok();
    assert_eq!(info(), "StoreDir: /nix/store\nPriority: 30\n\n# Kept\nX-Other: kept\n");
    sh("s3-push --set-cache-info --want-mass-query=true --priority 41 \"$C\"").ok();
    assert_eq!(info(), "StoreDir: /nix/store\nPriority: 41\n\n# Kept\nX-Other: kept\nWantMassQuery: 1\n");
    let again = sh("s3-push --set-cache-info --priority 41 \"$C\"");
    again.ok();
    assert!(again.stderr.contains("unchanged"), "{}", again.stderr);
    let planned = sh("s3-push --dry-run --set-cache-info --priority 1 \"$C\"");
    planned.ok();
    assert!(planned.stderr.contains("nix-cache-info: would be changed"), "{}", planned.stderr);
    assert!(info().contains("Priority: 41"));
    for flags in ["--priority 1 --missing", "--priority 1 --key x", "--priority high"] {
        sh(&format!("s3-push --set-cache-info {flags} \"$C\" < /dev/null")).fails(2);
    }
    // One that is malformed is completed.
    s3.put(&bucket, "nix-cache-info", b"garbage");
    sh("s3-push --set-cache-info --priority 3 \"$C\"").ok();
    assert_eq!(info(), "garbage\nStoreDir: /nix/store\nPriority: 3\n");
}

/// No client can use it, so the path is published again.
#[test]
fn a_path_with_a_malformed_narinfo_is_missing_if_the_narinfo_is_read() {
    let (fixture, s3, bucket) = Fixture::embedded();
    let sh = |script: &str| fixture.scratch.sh(script);
    sh(&format!("{ARCHIVE} | s3-push -q --no-nix \"$C\"")).ok();
    let large = vec![b'x'; 2 << 20];
    for (text, cause) in [(b"StorePath: x\n".as_slice(), "line 1: "), (&large, "larger than"), (b"\xff", "UTF-8")] {
        s3.put(&bucket, &Fixture::narinfo_key(&fixture.closure.lib), text);
        assert_eq!(sh("s3-push --missing \"$C\" < paths").ok(), "", "only listed");
        for flag in ["--deep", "--signed-by \"$(cut -d: -f1 key.pub)\""] {
            let missing = sh(&format!("s3-push --missing {flag} \"$C\" < paths"));
            assert!(missing.stderr.contains(cause), "{}", missing.stderr);
            assert_eq!(missing.ok(), fixture.closure.lib, "{flag}");
        }
    }
    sh(&format!("{ARCHIVE} | s3-push repair -q --no-nix \"$C\"")).ok();
    assert_eq!(sh("s3-push --missing --deep \"$C\" < paths").ok(), "");
}
