//! Any tree, published under a name as the content-addressed path that `nix-store --add` computes.

use std::fs;

use crate::fixtures::bucket::{Fields, assert_closed, narinfo_keys, snapshot};
use crate::fixtures::closure_fixture::Fixture;
use cache_tests::{EmbeddedS3, Scratch, make_tree, nix, tree, unique};

/// Creates a tree and an empty bucket; returns the name of the tree and of the bucket.
fn prepare() -> (Scratch, &'static EmbeddedS3, String, String) {
    let mut scratch = Scratch::new();
    let s3 = EmbeddedS3::shared();
    let bucket = s3.make_bucket();
    s3.credentials().apply(&mut scratch);
    scratch.env("C", s3.cache_url(&bucket));
    let name = unique("site-");
    make_tree(scratch.path().join(&name), 5);
    (scratch, s3, bucket, name)
}

#[test]
fn a_tree_is_published_as_the_path_of_nix_store_add_and_needs_no_signature() {
    let (mut scratch, s3, bucket, name) = prepare();
    let published = scratch.sh(&format!("nar-pack ./{name} | s3-push --name {name} \"$C\""));
    let path = published.ok();
    assert!(!published.stderr.contains("signature"), "{}", published.stderr);
    let again = scratch.sh(&format!("nar-pack ./{name} | s3-push --name {name} \"$C\""));
    assert_eq!(again.ok(), path, "printed also if the cache has it");
    let objects = snapshot(s3, &bucket);
    assert_closed(&objects);
    let narinfo = Fields::parse(&objects[narinfo_keys(&objects)[0]]);
    assert_eq!(narinfo.one("StorePath"), path);
    assert_eq!(narinfo.one("References"), "");
    assert_eq!(narinfo.one("CA"), format!("fixed:r:{}", narinfo.one("NarHash")));
    let text = scratch.sh(&format!("nar-pack ./{name} | narinfo-gen --name {name}")).ok();
    assert_eq!(Fields::parse(text.as_bytes()).one("StorePath"), path);
    scratch.sh(&format!("s3-pull --root out --nix-conf /dev/null \"$C\" {path}")).ok();
    assert_eq!(tree(format!("{}/out{path}", scratch.path().display())), tree(scratch.path().join(&name)));
    if !nix::available() {
        return;
    }
    assert_eq!(scratch.sh(&format!("nix-store --add ./{name}")).ok(), path);
    scratch.env("NIX_CONFIG", "require-sigs = true\ntrusted-public-keys =\n");
    let store = nix::fresh_store(&scratch);
    scratch.sh(&format!("nix copy --from {} --to {store} {path}", s3.http_url(&bucket))).ok();
    assert_eq!(tree(format!("{store}{path}")), tree(scratch.path().join(&name)));
}

#[test]
fn a_tree_that_contains_a_hash_part_is_refused_unless_references_are_waived() {
    let (scratch, s3, bucket, name) = prepare();
    let reference = cache_tests::store_path("library", 7);
    fs::write(scratch.path().join("candidates"), format!("{reference}\n")).unwrap();
    fs::write(scratch.path().join(&name).join("script"), format!("exec {reference}/bin/run\n")).unwrap();
    let push = format!("nar-pack ./{name} | s3-push --candidates candidates --name {name} \"$C\"");
    let refused = scratch.sh(&push).fails(1);
    assert!(refused.contains(&reference["/nix/store/".len()..]) && refused.contains("--no-references"), "{refused}");
    assert_eq!(narinfo_keys(&snapshot(s3, &bucket)), [""; 0]);
    let pushed = scratch.sh(&push.replace("--name", "--no-references --name"));
    assert!(pushed.ok().ends_with(&name));
}

#[test]
fn names_that_nix_does_not_accept_are_refused() {
    let (scratch, s3, bucket, name) = prepare();
    for bad in ["..", "a/b", "", "white space"] {
        let message = scratch.sh(&format!("nar-pack ./{name} | s3-push --name '{bad}' \"$C\"")).fails(2);
        assert!(message.contains("name"), "{message}");
    }
    for (flags, input) in [("--missing", "/dev/null"), ("--key x", "/dev/null")] {
        scratch.sh(&format!("s3-push --name x {flags} \"$C\" < {input}")).fails(2);
    }
    let both = format!("nar-pack ./{name} | s3-push --name x \"$C\" {}", cache_tests::store_path("y", 1));
    assert!(scratch.sh(&both).fails(2).contains("--name"));
    let export = "head -c 8 /dev/zero | s3-push --name x \"$C\"";
    assert!(scratch.sh(export).fails(2).contains("--name"));
    assert_eq!(snapshot(s3, &bucket).len(), 0);
}

#[test]
fn a_nar_without_a_path_gets_the_commands_that_would_work() {
    let (fixture, _, _) = Fixture::embedded();
    let message = fixture.scratch.sh("nar-pack --root root --no-nix \"$LIB\" | s3-push --no-nix \"$C\"").fails(2);
    let url = fixture.scratch.sh("echo \"$C\"").ok();
    assert!(message.contains("NAR"), "{message}");
    assert!(message.contains(&format!("nar-pack STORE-PATH | s3-push '{url}' STORE-PATH")), "{message}");
    assert!(message.contains(&format!("cache-sign -k KEYFILE | s3-push '{url}'")), "{message}");
}
