//! Pulling from several caches, with a password from netrc, and what a pull tells.

#![allow(clippy::unwrap_used, clippy::panic)] // a test that cannot go on has failed

mod site;

use std::fs;

use site::{Site, below};

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
    let said = site.scratch.sh("s3-pull -r --root out \"file://$PWD/half\" \"$TOP\" \"$LIB\"").fails(1);
    assert!(said.contains(&site.closure.app) && said.contains(&site.closure.top), "{said}");
    assert!(below(&site.path("out"), &site.closure.lib).exists());
    assert!(!below(&site.path("out"), &site.closure.top).exists());
    let left = site.scratch.sh("find out -name '.s3-pull-*'").ok();
    assert_eq!(left, "");
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
