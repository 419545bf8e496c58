//! Arguments that name a store path: every tool accepts the same forms, which are those of Nix and a few more.

use crate::fixtures::closure_fixture::Fixture;
use cache_tests::{Scratch, nix};

/// The forms of the path `$LIB`, which contains `share/greeting`, with links to it in the working directory.
const FORMS: [&str; 8] =
    ["$LIB", "$LIB/", "$LIB/share/greeting", "./result", "result", "./result/", "./profile", "$PWD/result"];
/// The forms that Nix does not accept: it needs a directory, and follows only links at the end of a path.
const FURTHER_FORMS: [&str; 3] = ["${LIB##*/}", "${LIB##*/}/share", "./result/share/greeting"];

const LINKS: &str = "ln -s \"$LIB\" result; ln -s result profile-1-link; ln -s profile-1-link profile";

#[test]
fn the_forms_that_nix_accepts_name_the_same_path() {
    if !nix::available() {
        return;
    }
    let mut scratch = Scratch::new();
    let closure = nix::build(&scratch);
    scratch.env("LIB", &closure.lib);
    scratch.sh(LINKS).ok();
    let exported =
        |form: &str| scratch.sh(&format!("nar-pack --export {form} | narinfo-gen | sed -n 's/^StorePath: //p'")).ok();
    for form in FORMS {
        // The path has no references, so it is its own closure.
        let nix = scratch.sh(&format!("nix-store --query --requisites {form}")).ok();
        assert_eq!((nix.as_str(), exported(form).as_str()), (closure.lib.as_str(), closure.lib.as_str()), "{form}");
    }
    for form in FURTHER_FORMS {
        assert_eq!(exported(form), closure.lib, "{form}");
    }
    for form in ["/usr", "./no-such-link", "${LIB%/*}"] {
        scratch.sh(&format!("nix-store --query --requisites {form}")).fails(1);
        scratch.sh(&format!("nar-pack --export {form}")).fails(2);
    }
    // As with nix-store --dump, a link is packed as one, but not without a warning.
    let packed = scratch.sh("nar-pack ./result > link.nar; nix-store --dump ./result | cmp - link.nar");
    packed.ok();
    assert!(packed.stderr.contains(&format!("pass {} to pack the store path", closure.lib)), "{}", packed.stderr);
    scratch.sh("nix-store --dump $LIB > nar; nar-pack ./result/ | cmp - nar; nar-pack ${LIB##*/} | cmp - nar").ok();
}

#[test]
fn every_tool_accepts_the_forms_of_a_store_path() {
    let (fixture, ..) = Fixture::with_cache();
    let lib = &fixture.closure.lib;
    let scratch = &fixture.scratch;
    scratch.sh(LINKS).ok();
    scratch.sh("nar-pack --root root --no-nix \"$LIB\" > nar").ok();
    for form in FORMS.into_iter().chain(FURTHER_FORMS) {
        let pull = scratch.sh(&format!("s3-pull --list file://$PWD/cache {form}"));
        assert_eq!(&pull.ok(), lib, "s3-pull {form}");
        let narinfo = scratch.sh(&format!("narinfo-gen --no-nix {form} < nar | sed -n 's/^StorePath: //p'"));
        assert_eq!(&narinfo.ok(), lib, "narinfo-gen {form}");
        let has_file = form.contains("share");
        assert_eq!(narinfo.stderr.contains("warning: ") && narinfo.stderr.contains("expected the NAR of"), has_file);
        let push = scratch.sh(&format!("s3-push --no-nix -n \"$C\" {form} < nar"));
        assert_eq!(&push.ok(), lib, "s3-push {form}");
        if !has_file {
            scratch.sh(&format!("nar-pack --root root --no-nix {form} | cmp - nar")).ok();
        }
    }
    // The URL may come from the environment.
    scratch
        .sh("export NIX_S3_CACHE=file://$PWD/cache; s3-pull --list ./result; s3-pull --nar ${LIB##*/} | cmp - nar")
        .ok();
    scratch.sh("NIX_S3_CACHE=$C s3-push --no-nix -n result < nar").ok();
    // A path list has the forms that need no file system.
    let list = "printf '%s\\n' $LIB/ ${LIB##*/} $LIB/share/x | s3-push --missing \"$C\" | uniq";
    assert_eq!(&scratch.sh(list).ok(), lib);
    let refused = scratch.sh("echo ./result | s3-push --missing \"$C\"").fails(1);
    assert!(refused.contains("line 1") && refused.contains("hint: symbolic links"), "{refused}");
}

#[test]
fn a_file_of_a_path_is_printed_through_a_link() {
    let (fixture, ..) = Fixture::with_cache();
    let cat = "s3-pull --cat file://$PWD/cache";
    fixture.scratch.sh("ln -s \"$APP\" result").ok();
    for form in ["$APP/bin/app", "./result/bin/app", "${APP##*/}/bin//app", "$APP/bin/../bin/app"] {
        fixture.scratch.sh(&format!("{cat} {form} | cmp - root$APP/bin/app")).ok();
    }
}

#[test]
fn the_error_for_another_argument_names_what_it_looks_like() {
    let (fixture, ..) = Fixture::with_cache();
    for (argument, expected) in [
        ("nixpkgs#hello", "found a flake reference"),
        ("$(basename $LIB | head -c 32)", "found a hash part without a name"),
        ("$(basename $LIB | head -c 32).narinfo", "found the name of a narinfo"),
        ("$LIB.drv^out", "found an output of a derivation"),
        ("/gnu/store/${LIB##*/}", "found one in /gnu/store"),
        ("./no-such-link", "No such file or directory"),
        ("''", "empty argument|a value is required"),
    ] {
        for command in ["s3-pull --list file://$PWD/cache", "narinfo-gen --no-nix", "s3-push $C", "nar-pack --export"] {
            let stderr = fixture.scratch.sh(&format!("{command} {argument} < /dev/null")).fails(2);
            assert!(
                expected.split('|').any(|text| stderr.contains(text)) && stderr.contains("\nhint: "),
                "{command} {argument}: {stderr}"
            );
        }
    }
    for command in ["s3-push $LIB $C < /dev/null", "s3-pull --list $LIB file://$PWD/cache", "nar-pack --export s3://b"]
    {
        let stderr = fixture.scratch.sh(command).fails(2);
        assert!(stderr.contains("URL"), "{command}: {stderr}");
    }
}
