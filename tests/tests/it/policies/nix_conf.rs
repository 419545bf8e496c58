//! How nix.conf is written and read.

use super::document;
use crate::fixtures::closure_fixture;
use cache_sign::nix_conf::Settings;
use cache_tests::nix;
use cache_tests::{CommandOutput, Minio, Scratch};
use serde_json::Value;
use std::fs;

const BEFORE: &str = "# hand-written\nsubstituters =   # none of the public ones\n!include machine.conf\n\
     extra-substituters = file:///nowhere/at/all\nbuild-users-group =\nsandbox = false\n\
     extra-experimental-features = nix-command";

fn with_conf(script: &str) -> String {
    format!("unset NIX_CONFIG; export NIX_CONF_DIR=$PWD/etc; {script}")
}

#[test]
fn nix_conf_is_merged_in_place_and_a_real_nix_substitutes() {
    if !nix::available() {
        return;
    }
    let Some(minio) = Minio::shared() else { return };
    let mut scratch = Scratch::new();
    let closure = nix::build(&scratch);
    closure_fixture::generate_key(&scratch, "key");
    let bucket = minio.make_bucket();
    minio.root().apply(&mut scratch);
    scratch.env("C", minio.cache_url(&bucket)).env("TOP", &closure.top);
    scratch.sh("nar-pack --export -r $TOP | narinfo-gen --archive | cache-sign -k key.sec | s3-push \"$C\"").ok();
    minio.set_bucket_policy(&bucket, &document(&scratch, &format!("--read-only {bucket}")));
    let conf = scratch.path().join("etc/nix.conf");
    fs::create_dir(scratch.path().join("etc")).unwrap();
    fs::write(scratch.path().join("etc/machine.conf"), "max-jobs = 1\n").unwrap();
    fs::write(&conf, BEFORE).unwrap();
    scratch.sh("chmod 640 etc/nix.conf; ln -s etc/nix.conf link.conf").ok();
    let write = "cache-policy --nix-conf --https --trusted-public-key-file key.pub --write link.conf \"$C\"";
    scratch.sh(write).ok();
    let after = fs::read_to_string(&conf).unwrap();
    println!("--- before\n{BEFORE}\n--- after\n{after}\n---");
    assert!(after.starts_with(&format!("{BEFORE}\n")), "other lines are unchanged");
    scratch.sh(write).ok();
    assert_eq!(fs::read_to_string(&conf).unwrap(), after, "twice gives the same file");
    assert_eq!(
        scratch.sh("stat -c %a etc/nix.conf; readlink link.conf; ls -A etc").ok(),
        "640\netc/nix.conf\nmachine.conf\nnix.conf"
    );
    let shown: Value = serde_json::from_str(&scratch.sh(&with_conf("nix show-config --json")).ok()).unwrap();
    let url = minio.http_url(&bucket);
    let listed = |name: &str| shown[name]["value"].as_array().unwrap().clone();
    assert!(listed("substituters").iter().any(|value| *value == url.as_str()), "{:?}", listed("substituters"));
    let key = scratch.sh("cat key.pub").ok();
    assert!(listed("trusted-public-keys").iter().any(|value| *value == key.as_str()));
    assert_eq!(shown["max-jobs"]["value"], 1, "the include is still read");
    let store = nix::fresh_store(&scratch);
    scratch.sh(&with_conf(&format!("NIX_REMOTE={store} nix-store -r $TOP"))).ok();
    let program = format!("GREETING_ROOT={store} {store}{}/bin/app", closure.app);
    assert_eq!(scratch.sh(&program).ok(), closure.greeting);
    scratch.sh("cache-policy --nix-conf --https --remove link.conf \"$C\"").ok();
    assert_eq!(fs::read_to_string(&conf).unwrap(), BEFORE, "byte for byte");
    let store = nix::fresh_store(&scratch);
    assert_ne!(scratch.sh(&with_conf(&format!("NIX_REMOTE={store} nix-store -r $TOP"))).status, 0);
}

/// The same with an `s3://` URL: a real Nix reads it from the file, and reads the bucket if it was built with S3
/// support.
#[test]
fn nix_conf_names_a_bucket_and_a_real_nix_reads_it() {
    if !nix::available() {
        return;
    }
    let Some(minio) = Minio::shared() else { return };
    let mut scratch = Scratch::new();
    let closure = nix::build(&scratch);
    let key = closure_fixture::generate_key(&scratch, "key");
    let bucket = minio.make_bucket();
    minio.root().apply(&mut scratch);
    let url = minio.cache_url(&bucket);
    scratch.env("C", &url).env("TOP", &closure.top);
    scratch.sh("nar-pack --export -r $TOP | narinfo-gen --archive | cache-sign -k key.sec | s3-push \"$C\"").ok();
    let read = document(&scratch, &format!("--read-only --identity {bucket}"));
    minio.add_user(&read).apply(&mut scratch);
    fs::create_dir(scratch.path().join("etc")).unwrap();
    let conf = scratch.path().join("etc/nix.conf");
    fs::write(&conf, BEFORE).unwrap();
    scratch
        .sh("cache-policy --nix-conf --trusted-public-key-file key.pub --write etc/nix.conf \"$C&priority=10\"")
        .ok();
    scratch.sh("cache-policy --nix-conf --trusted-public-key-file key.pub --write etc/nix.conf \"$C\"").ok();
    println!("--- after\n{}\n---", fs::read_to_string(&conf).unwrap());
    let shown: Value = serde_json::from_str(&scratch.sh(&with_conf("nix show-config --json")).ok()).unwrap();
    assert_eq!(shown["substituters"]["value"], serde_json::json!(["file:///nowhere/at/all", url]));
    let keys = shown["trusted-public-keys"]["value"].as_array().unwrap();
    assert!(keys.iter().any(|listed| *listed == key.as_str()));
    // s3-pull reads its keys from the same file.
    scratch.sh("s3-pull -r --root out --nix-conf etc/nix.conf \"$C\" \"$TOP\"").ok();
    let asked = scratch.sh(&with_conf("nix path-info --store \"$C\" $TOP"));
    if asked.stderr.contains("don't know how to open Nix store 's3://") {
        println!("NOT RUN: this Nix was built without S3, and does not read {url}");
        return;
    }
    asked.ok();
    let store = nix::fresh_store(&scratch);
    scratch.sh(&with_conf(&format!("NIX_REMOTE={store} nix-store -r $TOP"))).ok();
    let program = format!("GREETING_ROOT={store} {store}{}/bin/app", closure.app);
    assert_eq!(scratch.sh(&program).ok(), closure.greeting);
}

/// Settings that an included file or the user has written are not repeated, and those of the user are kept.
#[test]
fn nix_conf_keeps_existing_settings() {
    let scratch = Scratch::new();
    let key = closure_fixture::generate_key(&scratch, "key");
    let run = |arguments: &str| -> CommandOutput {
        scratch
            .sh(&format!("cache-policy --nix-conf --trusted-public-key '{key}' {arguments} https://cache.example.org"))
    };
    let conf = |text: &str| fs::write(scratch.path().join("nix.conf"), text).unwrap();
    let now = || fs::read_to_string(scratch.path().join("nix.conf")).unwrap();
    fs::write(scratch.path().join("more.conf"), format!("extra-trusted-public-keys = {key} \\\n")).unwrap();
    conf("include more.conf\n");
    run("--write nix.conf").ok();
    assert!(!now().contains(&key) && now().contains("extra-substituters = https://cache.example.org\n"), "{}", now());
    let output = run("--remove nix.conf");
    output.ok();
    assert_eq!(now(), "include more.conf\n");
    conf("substituters = https://cache.example.org/\n");
    run("--write nix.conf").ok();
    let output = run("--remove nix.conf");
    output.ok();
    assert!(output.stderr.contains("still configured"), "{}", output.stderr);
    assert_eq!(now(), "substituters = https://cache.example.org/\n");
    // If the file cannot be evaluated, nothing is written.
    conf("include absent.conf\n");
    run("--write nix.conf").fails(2);
    assert_eq!(now(), "include absent.conf\n");
    // Removal succeeds even if the rest of the file is invalid.
    let output = run("--remove nix.conf");
    output.ok();
    assert!(output.stderr.contains("absent.conf"), "{}", output.stderr);
    // Nix does not join lines.
    conf("substituters = a \\");
    run("--write nix.conf").ok();
    assert!(now().starts_with("substituters = a \\\n# cache-policy begin"), "{}", now());
    run("--remove nix.conf").ok();
    assert_eq!(now(), "substituters = a \\");
    // Lines that Nix refuses are kept and reported.
    conf("no setting at all\n\u{b} = 1\n");
    let output = run("--write nix.conf");
    output.ok();
    assert!(output.stderr.contains("nix.conf, line 1: invalid line"), "{}", output.stderr);
    assert!(now().starts_with("no setting at all\n\u{b} = 1\n# cache-policy begin"), "{}", now());
    run("--write no/such/directory/nix.conf").fails(2);
    run("--write new.conf").ok();
    let printed = run("").ok();
    assert!(scratch.sh("cat new.conf").ok().contains(&printed));
    run("--remove new.conf").ok();
    assert_eq!(scratch.sh("wc -c < new.conf").ok(), "0", "the file remains, empty");
    run("--remove never.conf").ok();
    assert_eq!(scratch.sh("ls -A | grep -c 'cache-policy\\|never'").status, 1, "no temporary file remains");
    for arguments in ["--write -", "--remove -", "--write ''"] {
        run(arguments).fails(2);
    }
    let stderr = run("--write /proc/self/nix.conf").fails(2);
    assert!(stderr.contains("cannot write /proc/self/nix.conf") && !stderr.contains(".cache-policy."), "{stderr}");
    let only = run("--only").ok();
    assert_eq!(only, format!("substituters = https://cache.example.org\ntrusted-public-keys = {key}"));
}

/// A host that pushes with Nix asks the cache each time.
#[test]
fn the_setting_of_a_pusher_is_read_by_a_real_nix() {
    if !nix::available() {
        return;
    }
    let scratch = Scratch::new();
    let key = closure_fixture::generate_key(&scratch, "key");
    fs::create_dir(scratch.path().join("etc")).unwrap();
    fs::write(scratch.path().join("etc/nix.conf"), "narinfo-cache-positive-ttl = 60\n").unwrap();
    let policy = format!("cache-policy --nix-conf --trusted-public-key '{key}' --write etc/nix.conf https://h");
    let ttl = || {
        scratch
            .sh(&with_conf(
                "NIX_USER_CONF_FILES= nix --extra-experimental-features nix-command show-config \
        | grep ^narinfo-cache-positive-ttl",
            ))
            .ok()
    };
    scratch.sh(&policy).ok();
    assert_eq!(ttl(), "narinfo-cache-positive-ttl = 60");
    scratch.sh(&format!("{policy} --pusher")).ok();
    assert_eq!(ttl(), "narinfo-cache-positive-ttl = 0");
    scratch.sh(&policy).ok();
    assert_eq!(ttl(), "narinfo-cache-positive-ttl = 60");
}

/// Returns the substituters that Nix reads from a nix.conf, or None if it refuses the file.
fn as_nix_reads(scratch: &Scratch, dir: &str) -> Option<Vec<String>> {
    let show = format!(
        "unset NIX_CONFIG; export NIX_CONF_DIR=$PWD/{dir} NIX_USER_CONF_FILES=
         nix --extra-experimental-features nix-command show-config --json"
    );
    let shown = scratch.sh(&show);
    let shown: Value = (shown.status == 0).then(|| serde_json::from_slice(&shown.stdout).unwrap())?;
    let values = shown["substituters"]["value"].as_array().unwrap().iter();
    Some(values.map(|value| value.as_str().unwrap().to_owned()).collect())
}

/// Nix and our reader agree on every unusual line.
#[test]
fn nix_conf_is_read_as_a_real_nix_reads_it() {
    if !nix::available() {
        return;
    }
    let scratch = Scratch::new();
    scratch
        .sh("mkdir -p etc/sub real elsewhere/deep; ln -s ../elsewhere/deep etc/link; ln -s nowhere etc/dangling")
        .ok();
    scratch.sh("ln -s etc linked-dir; ln -s ../nix.conf real/nix.conf; ln -s ../../elsewhere/inner.conf etc/sub/inner.conf").ok();
    for (file, text) in [
        ("etc/more.conf", "extra-substituters = more"),
        ("etc/sub/outer.conf", "include inner.conf\ninclude last.conf"),
        ("elsewhere/inner.conf", "extra-substituters = inner\n!include last.conf"),
        ("etc/sub/last.conf", "extra-substituters = beside-the-link"),
        ("elsewhere/last.conf", "extra-substituters = beside-the-target"),
        ("nix.conf", "include more.conf"),
        ("more.conf", "substituters = beside-the-target"),
        ("real/more.conf", "substituters = beside-the-link"),
    ] {
        fs::write(scratch.path().join(file), text).unwrap();
    }
    let read = |dir: &str| {
        let found = Settings::read(Some(&scratch.path().join(dir).join("nix.conf")));
        found.ok().map(|settings| settings.substituters)
    };
    for text in [
        "substituters = a \\\n  b\n",
        "substituters = a \\\n  max-jobs = 2\nextra-substituters = d\n",
        "substituters = a\\\nextra-substituters = b",
        "substituters = a \\",
        "substituters = a # x \\\nextra-substituters = b",
        "# x \\\nsubstituters = a",
        "substituters = a\r\nextra-substituters =\tb\r\n\r\n",
        "binary-caches = a\nextra-binary-caches = b",
        "substituters =\nextra-substituters = a a a/",
        "  substituters   =   a   ",
        "substituters=a",
        "substituters",
        "substituters a",
        "substituters = a\u{b}b\u{3000}c",
        "= a",
        "substituters = a = b",
        "include more.conf",
        "include more.conf # twice\ninclude ./more.conf",
        "include more.conf more.conf",
        "include",
        "include absent.conf",
        "!include absent.conf\nsubstituters = a",
        "include sub/outer.conf",
        "include link/../more.conf",
        "include dangling\nsubstituters = a",
        "include sub\nsubstituters = a",
        "include more.conf/x",
    ] {
        fs::write(scratch.path().join("etc/nix.conf"), text).unwrap();
        let nix = as_nix_reads(&scratch, "etc");
        assert_eq!(read("etc"), nix, "{text:?}");
    }
    fs::write(scratch.path().join("etc/nix.conf"), "substituters = a\ninclude ../etc/more.conf").unwrap();
    for (dir, expected_row) in [("real", &["beside-the-link"][..]), ("linked-dir", &["a", "more"])] {
        assert_eq!(as_nix_reads(&scratch, dir).unwrap(), expected_row, "{dir}");
        assert_eq!(read(dir).unwrap(), expected_row, "{dir}");
    }
}

/// If nix.conf is a link, as on NixOS and Debian, included files are relative to the link.
#[test]
fn a_linked_nix_conf_includes_files_next_to_the_link() {
    let scratch = Scratch::new();
    let key = closure_fixture::generate_key(&scratch, "key");
    scratch
        .sh("mkdir etc static; echo 'include keys.conf' > static/nix.conf; ln -s ../static/nix.conf etc/nix.conf")
        .ok();
    fs::write(scratch.path().join("etc/keys.conf"), format!("extra-trusted-public-keys = {key}\n")).unwrap();
    let run = |arguments: &str| {
        let output = scratch
            .sh(&format!("cache-policy --nix-conf --trusted-public-key '{key}' {arguments} https://c.example.org"));
        output.ok();
        output
    };
    run("--write etc/nix.conf");
    let text = scratch.sh("cat static/nix.conf").ok();
    assert!(text.contains("extra-substituters = https://c.example.org") && !text.contains(&key), "{text}");
    assert_eq!(scratch.sh("readlink etc/nix.conf").ok(), "../static/nix.conf");
    fs::write(scratch.path().join("etc/keys.conf"), "substituters = https://c.example.org/?priority=3\n").unwrap();
    let output = run("--remove etc/nix.conf");
    assert!(output.stderr.contains("still configured"), "{}", output.stderr);
    assert_eq!(scratch.sh("cat static/nix.conf").ok(), "include keys.conf");
}

/// Each cache keeps its key when another that has the same one is removed, and a file of the store does not change.
#[test]
fn caches_do_not_share_lines_and_the_store_does_not_change() {
    let mut scratch = Scratch::new();
    let key = closure_fixture::generate_key(&scratch, "key");
    scratch.write("nix.conf", "");
    let write = format!("cache-policy --nix-conf --trusted-public-key '{key}' --write nix.conf");
    scratch.sh(&format!("{write} https://c1.example.org; {write} https://c2.example.org")).ok();
    scratch.sh("cache-policy --nix-conf --remove nix.conf https://c1.example.org").ok();
    let text = scratch.sh("cat nix.conf").ok();
    assert!(!text.contains("c1.example.org") && text.contains(&format!("extra-trusted-public-keys = {key}")), "{text}");
    let store = scratch.dir("store");
    scratch.env("NIX_STORE_DIR", &store);
    scratch.sh("echo 'max-jobs = 1' > store/nix.conf; rm nix.conf; ln -s store/nix.conf nix.conf").ok();
    let stderr = scratch.sh(&format!("{write} https://c1.example.org")).fails(1);
    assert!(stderr.contains("a store path must not change"), "{stderr}");
    assert_eq!(scratch.sh("cat store/nix.conf").ok(), "max-jobs = 1");
}

/// Concurrent writers do not lose each other's changes, and temporary files of a killed one are removed.
#[test]
fn parallel_writers_of_one_nix_conf_wait_for_each_other() {
    let scratch = Scratch::new();
    closure_fixture::generate_key(&scratch, "key");
    fs::write(scratch.path().join("nix.conf"), "max-jobs = 1\n").unwrap();
    let write = "cache-policy --nix-conf --trusted-public-key-file key.pub --write nix.conf";
    // The limit forbids writing, so the kernel kills the process after it has created its temporary file.
    let killed = scratch.sh(&format!("ulimit -f 0; {write} https://killed.example.org"));
    assert_eq!(killed.status, 128 + 25, "{}", killed.stderr);
    assert_eq!(scratch.sh("cat nix.conf; ls -A | grep -c cache-policy").ok(), "max-jobs = 1\n1");
    let all = format!(
        "for n in {{1..24}}; do {write} https://c$n.example.org & pids+=($!); done; for p in ${{pids[@]}}; do wait $p; done"
    );
    scratch.sh(&all).ok();
    assert_eq!(scratch.sh("grep -c '^extra-substituters' nix.conf; grep -c '^extra-trusted' nix.conf").ok(), "24\n24");
    assert_eq!(scratch.sh("ls -A | grep -c cache-policy").status, 1, "no temporary file remains");
    let remove = "cache-policy --nix-conf --remove nix.conf";
    scratch.sh(&all.replace(write, remove)).ok();
    assert_eq!(scratch.sh("cat nix.conf").ok(), "max-jobs = 1");
}
