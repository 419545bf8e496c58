//! Optional objects of a cache entry: listings, debug information links, build logs and realisations are those of Nix.

use std::fs;

use crate::fixtures::bucket::head;
use cache_tests::{EmbeddedS3, Scratch, make_tree, nix, unique};
use serde_json::Value;

/// Creates a tree with debug information and with names that need escapes in JSON; returns its name.
fn debug_tree(scratch: &Scratch) -> String {
    let name = unique("debug-");
    let tree = scratch.path().join(&name);
    make_tree(&tree, 3);
    // JSON cannot represent these names.
    scratch
        .sh(&format!("cd {name}; find . -print0 | LC_ALL=C grep -zav '^[ -~]*$' | xargs -0 rm -f; rm 'strange link'"))
        .ok();
    scratch
        .sh(&format!(
            "mkdir -p {name}/lib/debug/.build-id/ab {name}/lib/debug/.build-id/zz
             cd {name}/lib/debug/.build-id
             echo one > ab/cdef0123456789abcdef0123456789abcdef01.debug
             echo two > ab/cdef0123456789abcdef0123456789abcdef02.debug
             ln -s ../x ab/cdef0123456789abcdef0123456789abcdef03.debug
             echo no > ab/short.debug; echo no > zz/cdef0123456789abcdef0123456789abcdef01.debug
             printf x > \"$(printf 'quote\\\" back\\\\ tab\\t bell\\a del\\177 \\303\\251')\""
        ))
        .ok();
    name
}

/// Formats a document as recent versions of Nix do: on one line, with sorted keys.
fn sorted(value: &Value) -> String {
    match value {
        Value::Object(members) => {
            let mut members: Vec<_> = members.iter().collect();
            members.sort_by(|a, b| a.0.cmp(b.0));
            let members: Vec<_> =
                members.iter().map(|(key, value)| format!("{}:{}", Value::from(key.as_str()), sorted(value))).collect();
            format!("{{{}}}", members.join(","))
        }
        other => other.to_string(),
    }
}

fn read(scratch: &Scratch, path: &str) -> String {
    fs::read_to_string(scratch.path().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

#[test]
fn listings_and_debug_information_are_those_of_nix() {
    if !nix::available() {
        return;
    }
    let scratch = Scratch::new();
    let path = scratch.sh(&format!("nix-store --add {}", debug_tree(&scratch))).ok();
    scratch
        .sh(&format!(
            "nix copy --to \"file://$PWD/nix?compression=none&write-nar-listing=true&index-debug-info=true\" {path}
             mkdir ours; nix-store --export {path} | narinfo-gen --archive -c none --listing --debug-info > archive
             tar x -C ours < archive"
        ))
        .ok();
    let files = |side: &str| scratch.sh(&format!("cd {side}; find . -type f | LC_ALL=C sort")).ok();
    assert_eq!(files("ours"), files("nix"));
    assert_eq!(files("ours").lines().filter(|line| line.contains("debuginfo/")).count(), 2);
    scratch.sh("diff -r nix/debuginfo ours/debuginfo").ok();
    let listing = format!("{}.ls", &path["/nix/store/".len()..][..32]);
    // Nix 2.8 writes `version` and `type` first, and recent versions sort all keys; the values and escapes are the
    // same.
    let nix: Value = serde_json::from_str(&read(&scratch, &format!("nix/{listing}"))).unwrap();
    assert_eq!(read(&scratch, &format!("ours/{listing}")), sorted(&nix));
    let plain = scratch.sh(&format!("nar-pack --list <(nar-pack {path})"));
    assert_eq!(plain.ok(), read(&scratch, &format!("ours/{listing}")));
    // The archive has the NAR of a path first and its narinfo last.
    let members = scratch.sh("tar t < archive").ok();
    let members: Vec<&str> = members.lines().collect();
    assert!(members[1].starts_with("nar/") && members.last().unwrap().ends_with(".narinfo"), "{members:?}");
}

#[test]
fn a_build_log_is_the_one_that_nix_copies() {
    if !nix::available() {
        return;
    }
    let scratch = Scratch::new();
    let name = unique("logged-");
    let expression = format!(
        "let d = o: derivation {{ name = \"{name}\"; system = builtins.currentSystem; builder = \"/bin/sh\"; \
         outputs = [ \"out\" \"dev\" ]; args = [ \"-c\" \"echo a line of $name; echo x > $out; echo $out > $dev\" ]; }}; \
         in d 1"
    );
    fs::write(scratch.path().join("logged.nix"), expression).unwrap();
    scratch.sh("nix-build --no-out-link logged.nix > outs 2>/dev/null; nix-build --no-out-link logged.nix -A dev >> outs 2>/dev/null").ok();
    scratch
        .sh("drv=$(nix-store -q --deriver $(head -1 outs)); echo $drv > drv
             nix store copy-log --to file://$PWD/nix $drv
             mkdir ours; nix-store --export $(nix-store -qR $(cat outs)) | narinfo-gen --archive --log > archive
             tar x -C ours < archive
             diff -r nix/log ours/log; [ $(tar t < archive | grep -c ^log/) = 1 ]
             grep -q 'a line of' ours/log/$(basename $drv)")
        .ok();
    // A missing log is not an error; a log that cannot be decompressed or is not a file is reported.
    scratch
        .sh("nix-store --export $(head -1 outs) | narinfo-gen --archive --log --log-dir nowhere | tar t | grep -c ^log")
        .fails(1);
    let drv = read(&scratch, "drv");
    let base = drv.trim().strip_prefix("/nix/store/").unwrap();
    scratch
        .sh(&format!("mkdir -p logs/drvs/{}; echo garbage > logs/drvs/{}/{}.bz2", &base[..2], &base[..2], &base[2..]))
        .ok();
    let archive =
        "nix-store --export $(head -1 outs) | narinfo-gen --archive --log --log-dir logs | tar t | grep narinfo$";
    let run = scratch.sh(archive);
    run.ok();
    assert!(run.stderr.contains(".drv.bz2") && run.stderr.contains("cannot decompress"), "{}", run.stderr);
    scratch.sh("rm logs/drvs/*/*.bz2; drv=$(basename $(cat drv)); mkfifo logs/drvs/${drv:0:2}/${drv:2}").ok();
    let run = scratch.sh(archive);
    run.ok();
    assert!(run.stderr.contains("no log is written") && run.stderr.contains("not a regular file"), "{}", run.stderr);
}

#[test]
fn realisations_are_those_of_nix() {
    if !nix::available() {
        return;
    }
    let mut scratch = Scratch::new();
    scratch.env("NIX_CONFIG", "extra-experimental-features = ca-derivations\n");
    let expression = format!(
        "derivation {{ name = \"{}\"; system = builtins.currentSystem; builder = \"/bin/sh\"; \
         args = [ \"-c\" \"echo $name > $out\" ]; __contentAddressed = true; outputHashMode = \"recursive\"; \
         outputHashAlgo = \"sha256\"; }}",
        unique("addressed-")
    );
    fs::write(scratch.path().join("ca.nix"), expression).unwrap();
    scratch
        .sh("nix-build --no-out-link ca.nix > out 2>/dev/null; nix copy --to file://$PWD/nix -f ca.nix
             mkdir ours; nix-store --export $(cat out) | narinfo-gen --archive --realisations | tar x -C ours
             diff -r nix/realisations ours/realisations; [ $(ls ours/realisations | wc -l) = 1 ]")
        .ok();
    // A Nix with another store reads the path and its realisation from our cache.
    let store = nix::fresh_store(&scratch);
    scratch.sh(&format!("nix copy --no-check-sigs --from file://$PWD/ours --to {store} $(cat out)")).ok();
    // Without Nix there is a warning, and everything else is written.
    let output = scratch.sh("nix-store --export $(cat out) > export; nix path-info --json $(cat out) > info
                           narinfo-gen --archive --realisations --no-nix --path-info info < export | tar t; false");
    assert!(output.stderr.contains("no realisation is written: no installed Nix"), "{}", output.stderr);
}

#[test]
fn realisations_of_all_outputs_are_queried_at_once() {
    if !nix::available() {
        return;
    }
    let mut scratch = Scratch::new();
    scratch.env("NIX_CONFIG", "extra-experimental-features = ca-derivations\n");
    let expression = format!(
        "derivation {{ name = \"{}\"; system = builtins.currentSystem; builder = \"/bin/sh\"; \
         outputs = [ \"out\" \"dev\" ]; args = [ \"-c\" \"echo $name > $dev; echo $dev > $out\" ]; \
         __contentAddressed = true; outputHashMode = \"recursive\"; outputHashAlgo = \"sha256\"; }}",
        unique("addressed-")
    );
    fs::write(scratch.path().join("ca.nix"), expression).unwrap();
    // Nix 2.15 and later return all outputs in one call, which two calls of an older version simulate here.
    let newer = "#!/bin/bash
        case \"$*\" in
            *realisation*.drv^\\*) echo \"$*\" >> asked; cat both ;;
            *realisation*) exit 1 ;;
            *) exec \"$NIX\" \"$@\" ;;
        esac\n";
    fs::create_dir(scratch.path().join("newer")).unwrap();
    fs::write(scratch.path().join("newer/nix"), newer).unwrap();
    scratch
        .sh("chmod +x newer/nix; export NIX=$(command -v nix)
             for output in out dev; do
               nix-build --no-out-link ca.nix -A $output >> outs 2>/dev/null
               nix realisation info --json -f ca.nix $output > $output
             done
             { sed 's/]$//' out; echo ,; sed 's/^\\[//' dev; } > both
             nix copy --to file://$PWD/nix -f ca.nix out dev
             mkdir ours; nix-store --export $(cat outs) > export
             PATH=$PWD/newer:$PATH narinfo-gen --archive --realisations < export | tar x -C ours
             diff -r nix/realisations ours/realisations; [ $(ls ours/realisations | wc -l) = 2 ]")
        .ok();
    assert!(read(&scratch, "asked").lines().all(|asked| asked.ends_with(".drv^*")));
}

#[test]
fn extras_are_pushed_with_their_content_type_and_ignored_by_pull() {
    let s3 = EmbeddedS3::shared();
    let mut scratch = Scratch::new();
    s3.credentials().apply(&mut scratch);
    let bucket = s3.make_bucket();
    scratch.env("C", s3.cache_url(&bucket));
    let tree = debug_tree(&scratch);
    let path = cache_tests::store_path("debug", 9);
    let deriver = cache_tests::store_path("debug.drv", 9);
    let base = &deriver["/nix/store/".len()..];
    scratch
        .sh(&format!(
            "mkdir -p logs/drvs/{first}; echo built > logs/drvs/{first}/{rest}
             nar-pack {tree} | narinfo-gen --no-nix --archive --listing --debug-info --log --log-dir logs \
               --deriver {deriver} {path} > archive
             s3-push --quiet \"$C\" < archive
             s3-pull --no-verify-signatures --root out \"$C\" {path}
             s3-pull --no-verify-signatures --archive --all \"$C\" | tar t | grep -c narinfo",
            first = &base[..2],
            rest = &base[2..],
        ))
        .ok();
    let members = scratch.sh("tar t < archive").ok();
    let mut kinds = Vec::new();
    for key in members.lines() {
        let about = head(&scratch, &s3.endpoint(), &format!("/{bucket}/{key}"));
        let wanted = match key.split_once('/') {
            Some(("debuginfo", _)) => "application/json",
            Some(("log", _)) => "text/plain; charset=utf-8",
            Some(("nar", _)) => "application/x-nix-nar",
            _ if key.split_once('.').is_some_and(|(_, extension)| extension == "ls") => "application/json",
            _ if key.ends_with(".narinfo") => "text/x-nix-narinfo",
            _ => "text/x-nix-cache-info",
        };
        assert!(about.to_lowercase().contains(&format!("content-type: {wanted}")), "{key}: {about}");
        assert!(!about.to_lowercase().contains("content-encoding"), "{key}: {about}");
        kinds.push(wanted);
    }
    kinds.sort_unstable();
    kinds.dedup();
    assert_eq!(kinds.len(), 5, "{members}");
}

#[test]
fn extras_without_an_archive_are_a_usage_error() {
    let scratch = Scratch::new();
    for flag in ["--listing", "--debug-info", "--log", "--realisations"] {
        let stderr = scratch.sh(&format!("narinfo-gen {flag} < /dev/null")).fails(2);
        assert!(stderr.contains("--archive"), "{stderr}");
    }
}
