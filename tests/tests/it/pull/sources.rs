//! Pulls from several caches, options of the destination, and reports.

use cache_tests::{Scratch, split_hint};
use std::fs;
use std::os::unix::net::UnixListener;

use crate::fixtures::closure_fixture::{Fixture, path_in_root};

/// Creates a fixture with a signed cache in the directories `cache` and `half`.
fn published() -> Fixture {
    let fixture = Fixture::new();
    fixture.scratch
        .sh("nar-pack --root root --no-nix --export --stdin < paths | narinfo-gen --no-nix --archive \
             | cache-sign -k key.sec > archive; mkdir cache; tar x -C cache -f archive; chmod -R u+w cache; cp -r cache half")
        .ok();
    fixture
}

#[test]
fn paths_missing_or_damaged_in_one_cache_come_from_the_next() {
    let fixture = published();
    let narinfo = Fixture::narinfo_key(&fixture.closure.app);
    fs::remove_file(fixture.path("half").join(narinfo)).unwrap();
    let damaged =
        fixture.scratch.sh(&format!("sed -n 's/^URL: //p' half/{}", Fixture::narinfo_key(&fixture.closure.lib))).ok();
    fs::write(fixture.path("half").join(damaged), "rubbish").unwrap();
    let stdout = fixture
        .scratch
        .sh("s3-pull -v -r --json --root out \"file://$PWD/half\" \"file://$PWD/cache\" \"$TOP\" | sort")
        .ok();
    fixture.assert_trees("out");
    let lines: Vec<&str> = stdout.lines().collect();
    let from = |path: &str, cache: &str| {
        lines.iter().any(|line| line.contains(path) && line.contains("fetched") && line.contains(cache))
    };
    assert!(from(&fixture.closure.lib, "/cache") && from(&fixture.closure.app, "/cache"), "{stdout}");
    assert!(from(&fixture.closure.top, "/half"), "{stdout}");
    assert!(stdout.contains("\"summary\":{\"fetched\":3,\"present\":0"), "{stdout}");
}

#[test]
fn a_cache_that_cannot_be_opened_is_skipped_unless_its_url_is_wrong() {
    let fixture = published();
    let pull = |first: &str| fixture.scratch.sh(&format!("s3-pull -r --list '{first}' \"file://$PWD/cache\" \"$LIB\""));
    let output = pull("file:///nonexistent");
    assert_eq!(output.ok(), fixture.closure.lib);
    assert!(output.stderr.contains("warning: skipping a cache: cannot read /nonexistent"), "{}", output.stderr);
    pull("s3://x").fails(2);
    fixture.scratch.sh("s3-pull --list file:///nonexistent \"$LIB\"").fails(2);
    // What the others do not have may be in the cache that was skipped.
    fs::remove_file(fixture.path("half").join(Fixture::narinfo_key(&fixture.closure.lib))).unwrap();
    let missing = fixture.scratch.sh("s3-pull --list file:///nonexistent \"file://$PWD/half\" \"$LIB\"").fails(2);
    assert!(missing.contains("not found in any of the caches, but one was skipped: cannot read"), "{missing}");
    let all = fixture.scratch.sh("s3-pull --list --all file:///nonexistent \"file://$PWD/cache\"");
    assert_eq!((all.status, all.text()), (2, String::new()));
}

#[test]
fn the_longest_name_is_unpacked() {
    let mut scratch = Scratch::new();
    let path = format!("/nix/store/{}-{}", "0".repeat(32), "n".repeat(211));
    scratch.env("P", &path);
    scratch
        .sh("mkdir -p root/nix/store cache; echo x > root$P
             nar-pack --root root --no-nix --export $P | narinfo-gen --no-nix --archive | tar x -C cache
             s3-pull --root out --no-verify-signatures file://$PWD/cache $P; cmp root$P out$P")
        .ok();
}

#[test]
fn an_archive_of_a_nar_without_a_name_is_refused_before_it_begins() {
    let fixture = published();
    let narinfo = Fixture::narinfo_key(&fixture.closure.top);
    fixture.scratch.sh(&format!("sed -i '/^FileHash/d; s/^URL: .*/URL: nar\\/x.nar.zst/' half/{narinfo}")).ok();
    let output = fixture.scratch.sh("s3-pull -r --archive \"file://$PWD/half\" \"$TOP\"");
    assert!(output.fails(1).contains("FileHash is missing"), "{output:?}");
    assert_eq!(output.text(), "");
}

#[test]
fn a_refused_path_fails_only_paths_that_depend_on_it() {
    let fixture = published();
    fs::remove_file(fixture.path("half").join(Fixture::narinfo_key(&fixture.closure.app))).unwrap();
    let stderr = fixture.scratch.sh("s3-pull -v -r --root out \"file://$PWD/half\" \"$TOP\" \"$LIB\"").fails(1);
    assert!(stderr.contains(&fixture.closure.app) && stderr.contains(&fixture.closure.top), "{stderr}");
    assert!(path_in_root(&fixture.path("out"), &fixture.closure.lib).exists());
    assert!(!path_in_root(&fixture.path("out"), &fixture.closure.top).exists());
    let left = fixture.scratch.sh("find out -name '.s3-pull-*'").ok();
    assert_eq!(left, "");
}

#[test]
fn paths_that_depend_on_a_refused_path_are_counted_and_named_only_when_verbose() {
    let fixture = published();
    let nar =
        fixture.scratch.sh(&format!("sed -n 's/^URL: //p' half/{}", Fixture::narinfo_key(&fixture.closure.lib))).ok();
    fs::write(fixture.path("half").join(nar), "rubbish").unwrap();
    let pull = |args: &str| fixture.scratch.sh(&format!("s3-pull -r {args} \"file://$PWD/half\" \"$TOP\""));
    let dependents = [&fixture.closure.app, &fixture.closure.top];
    let stderr = pull("--root out").fails(1);
    assert_eq!(split_hint(&stderr).0.lines().count(), 1, "{stderr}");
    assert!(stderr.contains(&fixture.closure.lib), "{stderr}");
    assert!(stderr.contains("; 2 paths depend on it and were not unpacked"), "{stderr}");
    let stderr = pull("-v --root out").fails(1);
    assert!(dependents.iter().all(|path| stderr.contains(path.as_str())), "{stderr}");
    let json = pull("--json --root out");
    let refused =
        |path: &str| json.text().lines().any(|line| line.contains("\"status\":\"refused\"") && line.contains(path));
    assert!(
        json.status == 1 && dependents.iter().all(|path| refused(path)) && refused(&fixture.closure.lib),
        "{json:?}"
    );
    assert!(json.text().contains("\"refused\":3"), "{json:?}");
    fixture.assert_nothing_below("out");
    fs::remove_file(fixture.path("half").join(Fixture::narinfo_key(&fixture.closure.lib))).unwrap();
    let stderr = pull("--export").fails(1);
    assert!(
        stderr.contains("; 2 paths depend on it and were not written") && split_hint(&stderr).0.lines().count() == 1,
        "{stderr}"
    );
}

/// Whether the closure is walked or the cache is listed, the error names the path that is missing and one that needs it.
#[test]
fn a_missing_reference_is_named_with_a_path_that_needs_it() {
    let fixture = published();
    fs::remove_file(fixture.path("half").join(Fixture::narinfo_key(&fixture.closure.lib))).unwrap();
    for (output, done) in [
        ("--root out", "unpacked"),
        ("--root out --json", "unpacked"),
        ("--root out --dry-run", "unpacked"),
        ("--archive", "written"),
        ("--export", "written"),
    ] {
        for selection in ["--all \"file://$PWD/half\"", "-r \"file://$PWD/half\" \"$TOP\""] {
            let pulled = fixture.scratch.sh(&format!("s3-pull {output} {selection}"));
            let message = format!(
                "{}: not found in the cache; 2 paths depend on it and were not {done}, among them {}",
                fixture.closure.lib, fixture.closure.app
            );
            let stderr = pulled.fails(1);
            if output.contains("--json") {
                let error: serde_json::Value = serde_json::from_str(&stderr).unwrap();
                assert_eq!(error["error"]["message"], message, "{output} {selection}");
                let count = pulled.text().matches("\"status\":\"refused\"").count();
                assert!(count == 3 && pulled.text().contains("\"refused\":3"), "{pulled:?}");
            } else {
                assert_eq!(stderr, format!("s3-pull: {message}\n"), "{output} {selection}");
            }
        }
    }
    fixture.assert_nothing_below("out");
}

/// A file that another user put in the place of a lock is neither waited for nor followed.
#[test]
fn a_planted_lock_is_an_error_and_a_planted_temporary_file_is_removed() {
    let fixture = published();
    let pull = "timeout 60 s3-pull -r --root out \"file://$PWD/cache\" \"$TOP\"";
    let planted = [
        ("mkfifo LOCK", "a FIFO"),
        ("mkdir LOCK", "a directory"),
        ("ln -s ../../../victim LOCK", "a symbolic link"),
        ("ln -s missing LOCK", "a symbolic link"),
        ("socket", "a socket"),
    ];
    for (plant, kind) in planted {
        let lock = "out/nix/store/.s3-pull-old.lock";
        let plant = plant.replace("LOCK", lock);
        if plant == "socket" {
            drop(UnixListener::bind(fixture.path(lock)).unwrap());
        } else {
            fixture.scratch.sh(&format!("mkdir -p out/nix/store; echo victim > victim; {plant}")).ok();
        }
        let stderr = fixture.scratch.sh(pull).fails(2);
        assert!(stderr.contains(lock) && stderr.contains(kind) && stderr.contains("hint: remove "), "{kind}: {stderr}");
        assert_eq!(fixture.scratch.sh(&format!("rm -r {lock}; cat victim")).ok(), "victim");
    }
    fixture.scratch.sh("cd out/nix/store; touch .s3-pull-old.lock; ln -s \"$PWD/../../../root\" .s3-pull-old-link; mkfifo .s3-pull-old-fifo").ok();
    fixture.scratch.sh(pull).ok();
    fixture.assert_trees("out");
    assert_eq!(fixture.scratch.sh("find out -name '.s3-pull-*'; ls root/nix/store | wc -l").ok(), "3");
}

#[test]
fn a_dry_run_reports_what_would_be_fetched_and_fetches_nothing() {
    let fixture = published();
    let report = fixture.scratch.sh("s3-pull -r --dry-run --json --root out \"file://$PWD/cache\" \"$TOP\"").ok();
    assert!(report.contains("would-fetch") && report.contains("\"wouldFetch\":3"), "{report}");
    assert!(!fixture.path("out").exists());
}

#[test]
fn verify_existing_refuses_modified_paths_and_keeps_them() {
    let fixture = published();
    let pull = "s3-pull -r --root out --verify-existing \"file://$PWD/cache\" \"$TOP\"";
    fixture.scratch.sh(pull).ok();
    fixture.scratch.sh(pull).ok();
    fixture.scratch.sh("chmod -R u+w out; echo other > out\"$LIB\"/other").ok();
    let stderr = fixture.scratch.sh(pull).fails(1);
    assert!(stderr.contains("different contents"), "{stderr}");
    assert!(path_in_root(&fixture.path("out"), &fixture.closure.lib).join("other").exists());
}

#[test]
fn cat_prints_a_file_after_the_path_is_verified() {
    let fixture = published();
    let cat = |file: &str| fixture.scratch.sh(&format!("s3-pull --cat \"file://$PWD/cache\" {file}"));
    assert_eq!(cat("$APP/bin/app").ok(), format!("#!/bin/sh\nexec {}/bin/hello", fixture.closure.lib));
    assert!(cat("$APP/bin").fails(1).contains("directory"));
    assert!(cat("$TOP/bin").fails(1).contains("symbolic link"));
    assert!(cat("$APP/bin/other").fails(1).contains("bin/other"));
    assert!(cat("$APP/bin/app $LIB").fails(2).contains("--cat"));
    let nar = |path: &str| format!("cache/$(sed -n 's/^URL: //p' cache/{})", Fixture::narinfo_key(path));
    fixture.scratch.sh(&format!("cp {} {}", nar(&fixture.closure.top), nar(&fixture.closure.app))).ok();
    let refused = cat("$APP/bin/app");
    assert!(refused.status == 1 && refused.stdout.is_empty(), "{refused:?}");
}

/// With --unverified, a file is read from the range in the listing, which must be within the NAR.
#[test]
fn cat_unverified_reads_only_the_range_in_the_listing() {
    let fixture = Fixture::new();
    fixture
        .scratch
        .sh("nar-pack --root root --no-nix --export --stdin < paths \
             | narinfo-gen --no-nix --archive --compression none --listing | cache-sign -k key.sec > archive
             mkdir cache; tar x -C cache -f archive; chmod -R u+w cache")
        .ok();
    let key = Fixture::narinfo_key(&fixture.closure.app);
    let nar = fixture.scratch.sh(&format!("sed -n 's/^URL: //p' cache/{key}")).ok();
    let cat =
        |args: &str, file: &str| fixture.scratch.sh(&format!("s3-pull --cat {args} \"file://$PWD/cache\" {file}"));
    // The damage is after the file, so that only the verified read refuses it.
    fixture
        .scratch
        .sh(&format!(
            "printf X | dd of=cache/{nar} bs=1 seek=$(($(stat -c %s cache/{nar}) - 3)) conv=notrunc status=none"
        ))
        .ok();
    assert_eq!(cat("", "$APP/bin/app").status, 1);
    assert_eq!(cat("--unverified", "$APP/bin/app").ok(), format!("#!/bin/sh\nexec {}/bin/hello", fixture.closure.lib));
    assert!(cat("--unverified", "$APP/bin").fails(1).contains("directory"));
    assert!(cat("--unverified", "$APP/nothing").fails(1).contains("nothing is not in the listing"));
    let listing = format!("cache/{}", key.replace("narinfo", "ls"));
    fixture.scratch.sh(&format!("cp {listing} original; mkdir intact; tar x -C intact -f archive")).ok();
    // Without a listing that matches the NAR, the whole NAR is read and verified, and the next cache is tried.
    for lie in [
        "s/\"narOffset\":/&1/",
        "s/\"size\":/&1/",
        "s/\"narOffset\":[0-9]*/\"narOffset\":96/",
        "s/regular/regula/",
        "d",
    ] {
        fixture.scratch.sh(&format!("sed '{lie}' original > {listing}")).ok();
        assert!(cat("--unverified", "$APP/bin/app").fails(1).contains("malformed NAR"), "{lie}");
        let verified = cat("--unverified", "\"file://$PWD/intact\" $APP/bin/app").ok();
        assert_eq!(verified, format!("#!/bin/sh\nexec {}/bin/hello", fixture.closure.lib), "{lie}");
    }
}

#[test]
fn case_hack_renames_names_that_differ_only_in_case() {
    let fixture = Fixture::new();
    let tree = path_in_root(&fixture.path("root"), &fixture.closure.lib);
    for name in ["Makefile", "makefile", "MAKEFILE"] {
        fs::write(tree.join(name), name).unwrap();
    }
    fixture
        .scratch
        .sh("nar-pack --root root --no-nix --export --stdin < paths | narinfo-gen --no-nix --archive \
             | cache-sign -k key.sec > archive; mkdir cache; tar x -C cache -f archive
             s3-pull -r --case-hack --root out \"file://$PWD/cache\" \"$LIB\"")
        .ok();
    let verify = |option: &str| {
        fixture.scratch.sh(&format!("s3-pull --verify-existing {option} --root out \"file://$PWD/cache\" \"$LIB\""))
    };
    verify("--case-hack").ok();
    assert!(verify("").fails(1).contains("has different contents"));
    let names = fixture.scratch.sh("cd out$LIB; ls -d [Mm]* | LC_ALL=C sort; cat makefile*").ok();
    assert_eq!(names, "MAKEFILE\nMakefile~nix~case~hack~1\nmakefile~nix~case~hack~2\nmakefile");
}

/// On a case-insensitive file system (ntfs-3g is available on Linux) a path with both names is refused, and nothing of
/// it remains.
#[test]
fn names_that_collide_on_a_case_insensitive_file_system_are_refused() {
    let fixture = Fixture::new();
    let mounted = fixture
        .scratch
        .sh("truncate -s 32M disk; mkntfs -q -F -f disk; mkdir out; lowntfs-3g -o ignore_case,permissions disk out");
    if mounted.status != 0 {
        println!("NOT RUN: no case-insensitive file system here (ntfs-3g and /dev/fuse)");
        return;
    }
    let tree = path_in_root(&fixture.path("root"), &fixture.closure.app);
    fs::write(tree.join("a-File"), "one").unwrap();
    fs::write(tree.join("a-file"), "two").unwrap();
    let pulled =
        fixture.scratch.sh("nar-pack --root root --no-nix --export --stdin < paths | narinfo-gen --no-nix --archive \
         | cache-sign -k key.sec > archive; mkdir cache; tar x -C cache -f archive
         s3-pull --root out \"file://$PWD/cache\" \"$APP\"");
    let left = fixture.scratch.sh("find out/nix/store -mindepth 1");
    let hacked = fixture
        .scratch
        .sh("s3-pull --case-hack --root out \"file://$PWD/cache\" \"$APP\"; ls out$APP | grep -i a-file | tr A-Z a-z");
    fixture.scratch.sh("umount out").ok();
    assert!(pulled.fails(1).contains("does not distinguish this name"));
    assert_eq!(left.ok(), "");
    assert_eq!(hacked.ok(), "a-file\na-file~nix~case~hack~1");
}

#[test]
fn owner_sets_the_owner_of_every_file() {
    let fixture = published();
    let pulled = fixture.scratch.sh("s3-pull -r --owner 12345:54321 --root out \"file://$PWD/cache\" \"$TOP\"");
    if fixture.scratch.sh("id -u").ok() == "0" {
        pulled.ok();
        fixture.assert_trees("out");
        let owners = fixture.scratch.sh("find out/nix/store -mindepth 1 -printf '%U:%G\\n' | sort -u").ok();
        assert_eq!(owners, "12345:54321");
    } else {
        assert!(pulled.fails(2).contains("cannot change the owner"));
        fixture.assert_nothing_below("out");
    }
}

#[test]
fn four_concurrent_pulls_share_a_root() {
    let fixture = published();
    fixture
        .scratch
        .sh("for n in 1 2 3 4; do s3-pull -q -r --root out \"file://$PWD/cache\" \"$TOP\" & p[n]=$!; done
             for n in 1 2 3 4; do wait ${p[n]}; done")
        .ok();
    fixture.assert_trees("out");
    assert_eq!(fixture.scratch.sh("find out -name '.s3-pull-*'").ok(), "");
}

#[test]
fn many_files_are_unpacked_with_few_open_files() {
    let fixture = Fixture::new();
    fixture
        .scratch
        .sh("for path in {10..25}; do dir=root/nix/store/0000000000000000000000000000$path$path-many; mkdir -p $dir; \
             for file in {1..200}; do echo $path > $dir/$file; done; echo ${dir#root} >> many; done; \
             nar-pack --root root --no-nix --export --stdin < many | narinfo-gen --no-nix --archive \
             | cache-sign -k key.sec > archive; mkdir cache; tar x -C cache -f archive")
        .ok();
    let pull = "s3-pull --root out --stdin \"file://$PWD/cache\" < many";
    fixture
        .scratch
        .sh(&format!("ulimit -Sn 60; {pull}; diff -r root/nix/store out/nix/store -x '*-app' -x '*-lib' -x '*-top'"))
        .ok();
}

#[test]
fn streams_use_the_next_cache_if_one_lacks_the_nar() {
    let fixture = published();
    let nar =
        fixture.scratch.sh(&format!("sed -n 's/^URL: //p' half/{}", Fixture::narinfo_key(&fixture.closure.app))).ok();
    fs::remove_file(fixture.path("half").join(&nar)).unwrap();
    let caches = "\"file://$PWD/half\" \"file://$PWD/cache\"";
    for what in ["--nar", "--export", "--archive", "--cat"] {
        let inside = if what == "--cat" { "/bin/app" } else { "" };
        fixture.scratch.sh(&format!("s3-pull {what} {caches} $APP{inside} > got")).ok();
        fixture.scratch.sh(&format!("s3-pull {what} \"file://$PWD/cache\" $APP{inside} | cmp - got")).ok();
        let stderr = fixture.scratch.sh(&format!("s3-pull {what} \"file://$PWD/half\" $APP{inside} > got")).fails(1);
        assert!(stderr.contains("is not in the cache"), "{what}: {stderr}");
    }
    fs::write(fixture.path("half").join(&nar), "rubbish").unwrap();
    fixture.scratch.sh(&format!("s3-pull --cat {caches} $APP/bin/app > got")).ok();
}

/// Unreadable paths are reported at the end, and paths that do not depend on them are written.
#[test]
fn an_unreadable_path_does_not_stop_other_paths() {
    let fixture = published();
    let nar =
        fixture.scratch.sh(&format!("sed -n 's/^URL: //p' half/{}", Fixture::narinfo_key(&fixture.closure.app))).ok();
    fixture.scratch.sh(&format!("rm half/{nar}; mkfifo half/{nar}")).ok();
    let stderr = fixture.scratch.sh("timeout 20 s3-pull --root out \"file://$PWD/half\" $LIB $APP $TOP").fails(1);
    assert!(stderr.contains("not a regular file"), "{stderr}");
    let (is_there, closure) = (|path: &str| path_in_root(&fixture.path("out"), path).exists(), &fixture.closure);
    assert!(is_there(&closure.lib) && !is_there(&closure.app) && !is_there(&closure.top));
    let report = fixture.scratch.sh("s3-pull -r --root out --dry-run --json \"file://$PWD/cache\" $TOP").ok();
    assert!(report.contains("\"wouldFetch\":2"), "{report}");
    fs::remove_file(fixture.path("half").join(Fixture::narinfo_key(&fixture.closure.app))).unwrap();
    let report = fixture.scratch.sh("s3-pull -r --root new --dry-run --json \"file://$PWD/half\" $TOP || true").ok();
    assert!(report.contains("\"wouldFetch\":0") && report.contains("\"refused\":2"), "{report}");
    let broken = path_in_root(&fixture.path("odd"), &fixture.closure.lib);
    fs::create_dir_all(&broken).unwrap();
    fixture.scratch.sh("mkfifo odd$LIB/pipe").ok();
    let stderr = fixture.scratch.sh("s3-pull --verify-existing --root odd \"file://$PWD/cache\" $LIB $TOP").fails(1);
    assert!(stderr.contains("not changed"), "{stderr}");
    assert!(path_in_root(&fixture.path("odd"), &fixture.closure.top).exists());
}

#[test]
fn a_password_in_a_mistyped_url_is_not_printed() {
    let fixture = published();
    for targets in
        ["ann:s3cret@host/cache $LIB", "https:/ann:s3cret@host/c $LIB", "file:///tmp $LIB https://ann:s3cret@h"]
    {
        let stderr = fixture.scratch.sh(&format!("s3-pull --root out {targets}")).fails(2);
        assert!(!stderr.contains("s3cret"), "{stderr}");
    }
}
