//! NARs, export streams, narinfos, keys and signatures are identical to those of a real Nix.

use crate::fixtures::bucket::Fields;
use crate::fixtures::closure_fixture::generate_key;
use crate::fixtures::nix_builder::{COMPRESSIONS, NixBuilder, described_paths};
use cache_tests::nix::{self};
use cache_tests::{Scratch, make_tree, tree};
use std::fs;

#[test]
fn every_kind_of_node_is_packed_as_nix_does() {
    if !nix::available() {
        return;
    }
    let scratch = Scratch::new();
    make_tree(scratch.path().join("tree"), 7);
    let compared = scratch.sh("find tree -print0 | while IFS= read -r -d '' path; do \
           cmp <(nar-pack \"$path\") <(nix-store --dump \"$path\"); echo . ; \
           nar-pack --unpack copy < <(nix-store --dump \"$path\"); \
           cmp <(nix-store --dump copy) <(nix-store --dump \"$path\"); chmod -Rf u+w copy || true; rm -rf copy; \
         done");
    assert_eq!(compared.ok().lines().count(), tree(scratch.path().join("tree")).len());
    scratch.sh("nar-pack tree | nix-store --restore restored").ok();
    assert_eq!(tree(scratch.path().join("restored")), tree(scratch.path().join("tree")));
}

#[test]
fn an_export_stream_is_the_one_of_nix() {
    let Some(builder) = NixBuilder::new() else { return };
    let sh = |script: &str| builder.sh(script);
    sh("nix-store --export $(nix-store -qR $TOP) > nix.export").ok();
    sh("nar-pack --export $(nix-store -qR $TOP) | cmp - nix.export").ok();
    sh("nar-pack --export -r $TOP | cmp - nix.export").ok();
    sh("nix-store -qR $TOP | nar-pack --export --stdin | cmp - nix.export").ok();
    // The path list may be in any order; the output has references first.
    sh("nix-store -qR $TOP | tac | nar-pack --export --stdin | cmp - nix.export").ok();
    sh("ln -s $TOP result; nar-pack --export -r ./result | cmp - nix.export").ok();
    let store = nix::fresh_store(&builder.scratch);
    let imported = sh(&format!("nar-pack --export -r $TOP | nix-store --store {store} --import"));
    assert_eq!(imported.ok().lines().count(), 3);
    builder.assert_trees(&store);
    for path in builder.closure.paths() {
        for query in ["--references", "--deriver", "--hash"] {
            let there = sh(&format!("nix-store --store {store} -q {query} {path}"));
            assert_eq!(there.ok(), sh(&format!("nix-store -q {query} {path}")).ok(), "{query} {path}");
        }
    }
}

#[test]
fn narinfos_are_those_of_nix_field_by_field() {
    let Some(builder) = NixBuilder::new() else { return };
    let paths = described_paths(&builder);
    for compression in COMPRESSIONS {
        let copy =
            format!("nix copy --to \"file://$PWD/nix-{compression}?compression={compression}\" {}", paths.join(" "));
        let flags = if compression == "zstd" { String::new() } else { format!("-c {compression}") };
        let ours = format!(
            "mkdir ours-{compression}; nix-store --export $(nix-store -qR {}) | narinfo-gen --archive {flags} | tar x -C ours-{compression}",
            paths.join(" ")
        );
        builder.sh(&format!("{copy}; {ours}")).ok();
        let narinfos = builder.sh(&format!("cd nix-{compression}; ls *.narinfo")).ok();
        assert_eq!(builder.sh(&format!("cd ours-{compression}; ls *.narinfo")).ok(), narinfos);
        assert_eq!(narinfos.lines().count(), 5);
        for name in narinfos.lines() {
            let read = |side: &str| {
                Fields::parse(&fs::read(builder.scratch.path().join(format!("{side}-{compression}/{name}"))).unwrap())
            };
            let (nix, ours) = (read("nix"), read("ours"));
            let same = |fields: &Fields| {
                let free = |key: &str| compression != "none" && ["URL", "FileHash", "FileSize"].contains(&key);
                fields.0.iter().filter(|(key, _)| !free(key)).cloned().collect::<Vec<_>>()
            };
            assert_eq!(same(&ours), same(&nix), "{compression} {name}");
            let extension = |fields: &Fields| fields.one("URL").split_once('.').unwrap().1.to_owned();
            assert_eq!(extension(&ours), extension(&nix), "{compression}");
        }
        // We can read a cache that Nix wrote.
        builder
            .sh(&format!(
                "[ -e own.sec ] || cache-sign keygen own-1 own.sec own.pub
                 cd nix-{compression}; tar c nix-cache-info nar *.narinfo | cache-sign -k ../own.sec |
                 cache-sign verify --trusted-public-key $(cat ../own.pub) | tar t | grep -c narinfo$"
            ))
            .ok();
    }
}

#[test]
fn a_nar_alone_is_described_as_nix_does() {
    let Some(builder) = NixBuilder::new() else { return };
    for path in described_paths(&builder) {
        builder.sh(&format!("nix copy --to \"file://$PWD/cache?compression=none\" {path}")).ok();
        let ours = builder.sh(&format!("nar-pack {path} | narinfo-gen -c none {path}"));
        ours.ok();
        let key = format!("cache/{}.narinfo", &path["/nix/store/".len()..][..32]);
        let nix = fs::read(builder.scratch.path().join(&key)).unwrap();
        assert_eq!(String::from_utf8_lossy(&ours.stdout), String::from_utf8_lossy(&nix), "{path}");
        // Without Nix, the scan finds the same references.
        let scanned = builder.sh(&format!(
            "nix-store -qR $TOP > list; nar-pack {path} | narinfo-gen --no-nix --candidates list -c none {path}"
        ));
        let scanned = Fields::parse(scanned.ok().as_bytes());
        assert_eq!(scanned.one("References"), Fields::parse(&nix).one("References"));
        assert_eq!(scanned.all("Deriver"), [""; 0]);
    }
}

#[test]
fn keys_are_compatible_with_nix() {
    if !nix::available() {
        return;
    }
    let scratch = Scratch::new();
    scratch
        .sh("nix-store --generate-binary-cache-key nix-1 nix.sec nix.pub; cache-sign keygen our-1 our.sec our.pub")
        .ok();
    for name in ["nix", "our"] {
        let public = scratch.sh(&format!("cat {name}.pub")).ok();
        assert_eq!(scratch.sh(&format!("cache-sign public-key {name}.sec")).ok(), public);
        assert_eq!(scratch.sh(&format!("nix key convert-secret-to-public < {name}.sec")).ok(), public);
        assert_eq!(scratch.sh(&format!("wc -c < {name}.sec")).ok().parse::<usize>().unwrap(), 6 + 88);
        assert_eq!(scratch.sh(&format!("stat -c %a {name}.sec")).ok(), "600");
    }
}

#[test]
fn signatures_are_identical_to_those_of_nix() {
    let Some(builder) = NixBuilder::new() else { return };
    let sh = |script: &str| builder.sh(script);
    sh("nix store sign --key-file key.sec --recursive $TOP; nix copy --to file://$PWD/signed $TOP").ok();
    // Ed25519 signatures are deterministic, so ours have the same bytes.
    sh("mkdir ours; nix-store --export $(nix-store -qR $TOP) | narinfo-gen --archive | tar x -C ours").ok();
    let unsigned = "sed '/^Sig:/d'";
    for path in builder.closure.paths() {
        let key = format!("{}.narinfo", &path["/nix/store/".len()..][..32]);
        let nix = sh(&format!("grep ^Sig: signed/{key}")).ok();
        assert_eq!(sh(&format!("{unsigned} ours/{key} | cache-sign -k key.sec | grep ^Sig:")).ok(), nix);
    }
    let verify = "cache-sign verify --trusted-public-key";
    sh(&format!("tar c -C signed . | {verify} \"$KEY\" | tar t | grep -c narinfo")).ok();
    let untrusted = generate_key(&builder.scratch, "untrusted");
    let refused = sh(&format!("tar c -C signed . | {verify} {untrusted}")).fails(1);
    for path in builder.closure.paths() {
        assert!(refused.contains(path), "{refused}");
    }
}

#[test]
fn signatures_that_nix_makes_after_a_build_are_accepted() {
    if !nix::available() {
        return;
    }
    let mut scratch = Scratch::new();
    let key = generate_key(&scratch, "key");
    let secret = scratch.path().join("key.sec");
    scratch.env("NIX_CONFIG", format!("secret-key-files = {}\ntrusted-public-keys = {key}\n", secret.display()));
    let closure = nix::build(&scratch);
    let verified = scratch.sh(&format!(
        "nix-store --export $(nix-store -qR {}) | narinfo-gen | cache-sign verify --trusted-public-key {key}",
        closure.top
    ));
    assert_eq!(verified.ok().split("\n\n").count(), 3);
    // Our tools trust the keys in nix.conf.
    scratch.sh(&format!("nix-store --export $(nix-store -qR {}) | narinfo-gen | cache-sign verify", closure.top)).ok();
}
