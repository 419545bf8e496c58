//! Pulling from several caches, with a password from netrc, and what a pull tells.

use std::fs;

use crate::fixtures::site::{Site, below};

/// Three paths in the directory `cache`, published and signed.
fn published() -> Site {
    let site = Site::new();
    site.scratch
        .sh("nar-pack --root root --no-nix --export --stdin < paths | narinfo-gen --no-nix --archive \
             | cache-sign -k key.sec > archive; mkdir cache; tar x -C cache -f archive; chmod -R u+w cache; cp -r cache half")
        .ok();
    site
}

#[test]
fn what_one_cache_lacks_or_has_damaged_comes_from_the_next() {
    let site = published();
    let narinfo = Site::narinfo_key(&site.closure.app);
    fs::remove_file(site.path("half").join(narinfo)).unwrap();
    let damaged = site.scratch.sh(&format!("sed -n 's/^URL: //p' half/{}", Site::narinfo_key(&site.closure.lib))).ok();
    fs::write(site.path("half").join(damaged), "rubbish").unwrap();
    let said = site
        .scratch
        .sh("s3-pull -v -r --json --root out \"file://$PWD/half\" \"file://$PWD/cache\" \"$TOP\" | sort")
        .ok();
    site.assert_trees("out");
    let lines: Vec<&str> = said.lines().collect();
    let from = |path: &str, cache: &str| {
        lines.iter().any(|line| line.contains(path) && line.contains("fetched") && line.contains(cache))
    };
    assert!(from(&site.closure.lib, "/cache") && from(&site.closure.app, "/cache"), "{said}");
    assert!(from(&site.closure.top, "/half"), "{said}");
    assert!(said.contains("\"summary\":{\"fetched\":3,\"present\":0"), "{said}");
}

#[test]
fn a_refused_path_takes_only_those_with_it_that_depend_on_it() {
    let site = published();
    fs::remove_file(site.path("half").join(Site::narinfo_key(&site.closure.app))).unwrap();
    let said = site.scratch.sh("s3-pull -v -r --root out \"file://$PWD/half\" \"$TOP\" \"$LIB\"").fails(1);
    assert!(said.contains(&site.closure.app) && said.contains(&site.closure.top), "{said}");
    assert!(below(&site.path("out"), &site.closure.lib).exists());
    assert!(!below(&site.path("out"), &site.closure.top).exists());
    let left = site.scratch.sh("find out -name '.s3-pull-*'").ok();
    assert_eq!(left, "");
}

#[test]
fn paths_that_depend_on_a_refused_path_are_counted_and_named_only_when_verbose() {
    let site = published();
    let nar = site.scratch.sh(&format!("sed -n 's/^URL: //p' half/{}", Site::narinfo_key(&site.closure.lib))).ok();
    fs::write(site.path("half").join(nar), "rubbish").unwrap();
    let pull = |args: &str| site.scratch.sh(&format!("s3-pull -r {args} \"file://$PWD/half\" \"$TOP\""));
    let dependents = [&site.closure.app, &site.closure.top];
    let said = pull("--root out").fails(1);
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(said.contains(&site.closure.lib), "{said}");
    assert!(said.contains("; 2 paths depend on it and were not unpacked"), "{said}");
    let said = pull("-v --root out").fails(1);
    assert!(dependents.iter().all(|path| said.contains(path.as_str())), "{said}");
    let json = pull("--json --root out");
    let refused =
        |path: &str| json.text().lines().any(|line| line.contains("\"status\":\"refused\"") && line.contains(path));
    assert!(json.status == 1 && dependents.iter().all(|path| refused(path)) && refused(&site.closure.lib), "{json:?}");
    assert!(json.text().contains("\"refused\":3"), "{json:?}");
    site.assert_nothing_below("out");
    fs::remove_file(site.path("half").join(Site::narinfo_key(&site.closure.lib))).unwrap();
    let said = pull("--export").fails(1);
    assert!(said.contains("; 2 paths depend on it and were not written") && said.lines().count() == 1, "{said}");
}

#[test]
fn a_dry_run_fetches_nothing_and_says_how_much_there_is() {
    let site = published();
    let told = site.scratch.sh("s3-pull -r --dry-run --json --root out \"file://$PWD/cache\" \"$TOP\"").ok();
    assert!(told.contains("would-fetch") && told.contains("\"wouldFetch\":3"), "{told}");
    assert!(!site.path("out").exists());
}

#[test]
fn verify_existing_refuses_other_contents_and_leaves_them() {
    let site = published();
    let pull = "s3-pull -r --root out --verify-existing \"file://$PWD/cache\" \"$TOP\"";
    site.scratch.sh(pull).ok();
    site.scratch.sh(pull).ok();
    site.scratch.sh("chmod -R u+w out; echo other > out\"$LIB\"/other").ok();
    let said = site.scratch.sh(pull).fails(1);
    assert!(said.contains("other contents"), "{said}");
    assert!(below(&site.path("out"), &site.closure.lib).join("other").exists());
}

#[test]
fn one_file_of_a_path_is_printed_once_the_path_is_good() {
    let site = published();
    let cat = |file: &str| site.scratch.sh(&format!("s3-pull --cat \"file://$PWD/cache\" {file}"));
    assert_eq!(cat("$APP/bin/app").ok(), format!("#!/bin/sh\nexec {}/bin/hello", site.closure.lib));
    assert!(cat("$APP/bin").fails(1).contains("directory"));
    assert!(cat("$TOP/bin").fails(1).contains("symbolic link"));
    assert!(cat("$APP/bin/other").fails(1).contains("bin/other"));
    assert!(cat("$APP/bin/app $LIB").fails(2).contains("--cat"));
    let nar = |path: &str| format!("cache/$(sed -n 's/^URL: //p' cache/{})", Site::narinfo_key(path));
    site.scratch.sh(&format!("cp {} {}", nar(&site.closure.top), nar(&site.closure.app))).ok();
    let refused = cat("$APP/bin/app");
    assert!(refused.status == 1 && refused.stdout.is_empty(), "{refused:?}");
}

/// By the cache's word a file is read where the listing says it is, which is no further than what fits.
#[test]
fn one_file_may_be_taken_at_the_caches_word() {
    let site = Site::new();
    site.scratch
        .sh("nar-pack --root root --no-nix --export --stdin < paths \
             | narinfo-gen --no-nix --archive --compression none --listing | cache-sign -k key.sec > archive
             mkdir cache; tar x -C cache -f archive; chmod -R u+w cache")
        .ok();
    let key = Site::narinfo_key(&site.closure.app);
    let nar = site.scratch.sh(&format!("sed -n 's/^URL: //p' cache/{key}")).ok();
    let cat = |args: &str, file: &str| site.scratch.sh(&format!("s3-pull --cat {args} \"file://$PWD/cache\" {file}"));
    // What comes after the file is not looked at, so what is verified refuses it, and what is not prints it.
    site.scratch
        .sh(&format!(
            "printf X | dd of=cache/{nar} bs=1 seek=$(($(stat -c %s cache/{nar}) - 3)) conv=notrunc status=none"
        ))
        .ok();
    assert_eq!(cat("", "$APP/bin/app").status, 1);
    assert_eq!(cat("--unverified", "$APP/bin/app").ok(), format!("#!/bin/sh\nexec {}/bin/hello", site.closure.lib));
    assert!(cat("--unverified", "$APP/bin").fails(1).contains("directory"));
    assert!(cat("--unverified", "$APP/nothing").fails(1).contains("nothing is not in the listing"));
    let listing = format!("cache/{}", key.replace("narinfo", "ls"));
    for (lie, why) in [
        ("s/\"narOffset\":/&1/", "not within the NAR"),
        ("s/\"size\":/&1/", "not w"),
        ("s/\"narOffset\":[0-9]*/\"narOffset\":96/", "not where the listing says"),
        ("s/regular/regula/", "not the listing of a NAR"),
    ] {
        let lied = site.scratch.sh(&format!(
            "cp {listing} honest; sed -i '{lie}' {listing}
            s3-pull --cat --unverified \"file://$PWD/cache\" $APP/bin/app || s=$?; cp honest {listing}; exit ${{s:-0}}"
        ));
        assert!(lied.fails(1).contains(why), "{lie}: {}", lied.stderr);
    }
    site.scratch.sh(&format!("rm {listing}")).ok();
    assert_eq!(cat("--unverified", "$APP/bin/app").status, 1, "without a listing the whole NAR is read, and verified");
}

#[test]
fn names_that_differ_in_case_only_are_told_apart_when_asked() {
    let site = Site::new();
    let tree = below(&site.path("root"), &site.closure.lib);
    for name in ["Makefile", "makefile", "MAKEFILE"] {
        fs::write(tree.join(name), name).unwrap();
    }
    site.scratch
        .sh("nar-pack --root root --no-nix --export --stdin < paths | narinfo-gen --no-nix --archive \
             | cache-sign -k key.sec > archive; mkdir cache; tar x -C cache -f archive
             s3-pull -r --case-hack --root out \"file://$PWD/cache\" \"$LIB\"")
        .ok();
    let names = site.scratch.sh("cd out$LIB; ls -d [Mm]* | LC_ALL=C sort; cat makefile*").ok();
    assert_eq!(names, "MAKEFILE\nMakefile~nix~case~hack~1\nmakefile~nix~case~hack~2\nmakefile");
}

/// On a file system that takes such names for one (ntfs-3g is the one that is at hand on Linux) a path with both is
/// refused, and nothing of it stays.
#[test]
fn names_that_a_file_system_takes_for_one_are_refused() {
    let site = Site::new();
    let mounted = site
        .scratch
        .sh("truncate -s 32M disk; mkntfs -q -F -f disk; mkdir out; lowntfs-3g -o ignore_case,permissions disk out");
    if mounted.status != 0 {
        println!("NOT RUN: no case-insensitive file system here (ntfs-3g and /dev/fuse)");
        return;
    }
    let tree = below(&site.path("root"), &site.closure.app);
    fs::write(tree.join("a-File"), "one").unwrap();
    fs::write(tree.join("a-file"), "two").unwrap();
    let pulled =
        site.scratch.sh("nar-pack --root root --no-nix --export --stdin < paths | narinfo-gen --no-nix --archive \
         | cache-sign -k key.sec > archive; mkdir cache; tar x -C cache -f archive
         s3-pull --root out \"file://$PWD/cache\" \"$APP\"");
    let left = site.scratch.sh("find out/nix/store -mindepth 1");
    let hacked = site
        .scratch
        .sh("s3-pull --case-hack --root out \"file://$PWD/cache\" \"$APP\"; ls out$APP | grep -i a-file | tr A-Z a-z");
    site.scratch.sh("umount out").ok();
    assert!(pulled.fails(1).contains("does not distinguish this name"));
    assert_eq!(left.ok(), "");
    assert_eq!(hacked.ok(), "a-file\na-file~nix~case~hack~1");
}

#[test]
fn files_belong_to_whom_is_asked_for() {
    let site = published();
    let pulled = site.scratch.sh("s3-pull -r --owner 12345:54321 --root out \"file://$PWD/cache\" \"$TOP\"");
    if site.scratch.sh("id -u").ok() == "0" {
        pulled.ok();
        site.assert_trees("out");
        let owners = site.scratch.sh("find out/nix/store -mindepth 1 -printf '%U:%G\\n' | sort -u").ok();
        assert_eq!(owners, "12345:54321");
    } else {
        assert!(pulled.fails(2).contains("cannot change the owner"));
        site.assert_nothing_below("out");
    }
}

#[test]
fn two_pulls_into_one_root_get_along() {
    let site = published();
    site.scratch
        .sh("for n in 1 2 3 4; do s3-pull -q -r --root out \"file://$PWD/cache\" \"$TOP\" & p[n]=$!; done
             for n in 1 2 3 4; do wait ${p[n]}; done")
        .ok();
    site.assert_trees("out");
    assert_eq!(site.scratch.sh("find out -name '.s3-pull-*'").ok(), "");
}

#[test]
fn many_paths_of_many_files_need_no_higher_limit_of_open_files() {
    let site = Site::new();
    site.scratch
        .sh("for path in {10..25}; do dir=root/nix/store/0000000000000000000000000000$path$path-many; mkdir -p $dir; \
             for file in {1..200}; do echo $path > $dir/$file; done; echo ${dir#root} >> many; done; \
             nar-pack --root root --no-nix --export --stdin < many | narinfo-gen --no-nix --archive \
             | cache-sign -k key.sec > archive; mkdir cache; tar x -C cache -f archive")
        .ok();
    let pull = "s3-pull --root out --stdin \"file://$PWD/cache\" < many";
    site.scratch
        .sh(&format!("ulimit -Sn 60; {pull}; diff -r root/nix/store out/nix/store -x '*-app' -x '*-lib' -x '*-top'"))
        .ok();
}

#[test]
fn streams_come_from_the_next_cache_where_one_lacks_the_nar() {
    let site = published();
    let nar = site.scratch.sh(&format!("sed -n 's/^URL: //p' half/{}", Site::narinfo_key(&site.closure.app))).ok();
    fs::remove_file(site.path("half").join(&nar)).unwrap();
    let caches = "\"file://$PWD/half\" \"file://$PWD/cache\"";
    for what in ["--nar", "--export", "--archive", "--cat"] {
        let inside = if what == "--cat" { "/bin/app" } else { "" };
        site.scratch.sh(&format!("s3-pull {what} {caches} $APP{inside} > got")).ok();
        site.scratch.sh(&format!("s3-pull {what} \"file://$PWD/cache\" $APP{inside} | cmp - got")).ok();
        let said = site.scratch.sh(&format!("s3-pull {what} \"file://$PWD/half\" $APP{inside} > got")).fails(1);
        assert!(said.contains("is not in the cache"), "{what}: {said}");
    }
    fs::write(site.path("half").join(&nar), "rubbish").unwrap();
    site.scratch.sh(&format!("s3-pull --cat {caches} $APP/bin/app > got")).ok();
}

/// What cannot be read is told in the end, and what does not depend on it is there.
#[test]
fn a_path_that_cannot_be_read_ends_nothing_else() {
    let site = published();
    let nar = site.scratch.sh(&format!("sed -n 's/^URL: //p' half/{}", Site::narinfo_key(&site.closure.app))).ok();
    site.scratch.sh(&format!("rm half/{nar}; mkfifo half/{nar}")).ok();
    let said = site.scratch.sh("timeout 20 s3-pull --root out \"file://$PWD/half\" $LIB $APP $TOP").fails(1);
    assert!(said.contains("not a regular file"), "{said}");
    let (is_there, closure) = (|path: &str| below(&site.path("out"), path).exists(), &site.closure);
    assert!(is_there(&closure.lib) && !is_there(&closure.app) && !is_there(&closure.top));
    let told = site.scratch.sh("s3-pull -r --root out --dry-run --json \"file://$PWD/cache\" $TOP").ok();
    assert!(told.contains("\"wouldFetch\":2"), "{told}");
    fs::remove_file(site.path("half").join(Site::narinfo_key(&site.closure.app))).unwrap();
    let told = site.scratch.sh("s3-pull -r --root new --dry-run --json \"file://$PWD/half\" $TOP || true").ok();
    assert!(told.contains("\"wouldFetch\":0") && told.contains("\"refused\":2"), "{told}");
    let broken = below(&site.path("odd"), &site.closure.lib);
    fs::create_dir_all(&broken).unwrap();
    site.scratch.sh("mkfifo odd$LIB/pipe").ok();
    let said = site.scratch.sh("s3-pull --verify-existing --root odd \"file://$PWD/cache\" $LIB $TOP").fails(1);
    assert!(said.contains("not changed"), "{said}");
    assert!(below(&site.path("odd"), &site.closure.top).exists());
}

#[test]
fn a_password_in_a_mistyped_url_is_not_shown() {
    let site = published();
    for targets in
        ["ann:s3cret@host/cache $LIB", "https:/ann:s3cret@host/c $LIB", "file:///tmp $LIB https://ann:s3cret@h"]
    {
        let said = site.scratch.sh(&format!("s3-pull --root out {targets}")).fails(2);
        assert!(!said.contains("s3cret"), "{said}");
    }
}
