//! A larger closure of installed files: our cache is identical to the one that Nix writes.

use std::fs;
use std::path::Path;

use cache_tests::{Scratch, nix, unique};

/// Trees that most systems have: programs, libraries, scripts and all kinds of links.
const INSTALLED: [&str; 9] = [
    "/usr/share/perl5",
    "/usr/share/zoneinfo",
    "/usr/lib/python3",
    "/usr/share/bash-completion",
    "/usr/lib/git-core",
    "/usr/share/man/man1",
    "/usr/lib/gcc",
    "/usr/share/nix",
    "/etc/ssl",
];
/// Maximum number of files of each tree.
const MAX_FILES: usize = 1000;
/// Larger files are skipped, so that the closure is read in seconds.
const MAX_FILE_SIZE: &str = "1024k";

/// Returns an expression with a derivation for each tree; its value is the last one.
fn expression(trees: &[&str], seed: &str) -> String {
    let paths: Vec<String> = trees.iter().enumerate().map(|(index, tree)| derivation(index, tree, seed)).collect();
    format!(
        "let\n  text = builtins.toFile \"text-{seed}\" \"text of {seed}\";
  source = builtins.path {{ path = ./source; name = \"source-{seed}\"; }};\n{}in p{}\n",
        paths.concat(),
        trees.len() - 1
    )
}

/// Returns a derivation that refers to itself, to the previous and to an earlier one, and to a content-addressed text
/// and tree, at a buffer boundary. The first one has two outputs.
fn derivation(index: usize, tree: &str, seed: &str) -> String {
    let references = match index {
        0 => "$dev".to_owned(),
        _ => format!("${{p{}}} ${{p{}}}", index - 1, index / 2),
    };
    let outputs = if index == 0 { "\"out\" \"dev\"" } else { "\"out\"" };
    format!(
        r#"  p{index} = derivation {{
    name = "tree-{index}-{seed}";
    system = builtins.currentSystem;
    outputs = [ {outputs} ];
    builder = "/bin/sh";
    PATH = "/usr/bin:/bin";
    args = [ "-euc" ''
      mkdir -p $out/tree
      cd {tree}
      find . -size -{MAX_FILE_SIZE} \( -type f -o -type l \) | sort | head -{MAX_FILES} | tar c --no-recursion -T - | tar x -C $out/tree
      if [ -n "''${{dev-}}" ]; then echo dev > $dev; fi
      head -c 65530 /dev/zero > $out/mentions
      echo "$out x{references} ${{text}}${{source}}" >> $out/mentions
    '' ];
  }};
"#
    )
}

/// For Nix before 2.15 a derivation stands for its outputs, which its text contains too. It does not refer to them.
#[test]
fn a_derivation_has_the_narinfo_of_nix() {
    if !nix::available() {
        return;
    }
    let scratch = Scratch::new();
    let text = format!(
        "let dep = builtins.toFile \"dep\" \"{}\"; in derivation {{ name = \"x\"; system = builtins.currentSystem; \
         builder = \"/bin/sh\"; args = [ \"-c\" \"echo ${{dep}} > $out\" ]; }}",
        unique("")
    );
    scratch.write("x.nix", text);
    scratch
        .sh("nix-instantiate x.nix > drv 2> log; nix-store -qR $(cat drv) > paths
             nix copy --derivation --to \"file://$PWD/nix?compression=none\" $(cat drv); mkdir ours")
        .ok();
    let same = "diff -r -x nix-cache-info -x log -x realisations nix ours && rm -r ours && mkdir ours";
    for build in ["", "nix-store -r $(cat drv) > out 2> log"] {
        scratch
            .sh(&format!(
                "{build}
                 nar-pack --export --stdin < paths | narinfo-gen --archive -c none | tar x -C ours; {same}
                 nar-pack --export -r $(cat drv) | narinfo-gen --archive -c none | tar x -C ours; {same}
                 nix-store --export $(cat paths) | narinfo-gen --archive -c none | tar x -C ours; {same}"
            ))
            .ok();
    }
    let stderr = scratch.sh("nar-pack --export --no-nix $(cat drv) > export").fails(1);
    assert!(stderr.contains("the references of a derivation cannot be found by a scan"), "{stderr}");
}

#[test]
fn a_closure_of_installed_trees_has_the_narinfos_of_nix() {
    if !nix::available() {
        return;
    }
    let scratch = Scratch::new();
    let seed = unique("");
    let trees: Vec<&str> = INSTALLED.into_iter().filter(|tree| Path::new(tree).is_dir()).collect();
    assert!(trees.len() > 2, "too little is installed: {trees:?}");
    fs::create_dir(scratch.path().join("source")).unwrap();
    fs::write(scratch.path().join("source/file"), &seed).unwrap();
    fs::write(scratch.path().join("closure.nix"), expression(&trees, &seed)).unwrap();
    scratch
        .sh("nix-build --no-out-link closure.nix > top 2> build.log || { cat build.log >&2; exit 1; }
             nix-store -qR $(cat top) > paths
             nix-store --generate-binary-cache-key test-1 key.sec key.pub
             nix store sign --key-file key.sec $(head -3 paths)
             nix copy --no-check-sigs --to \"file://$PWD/nix?compression=none\" $(cat top)")
        .ok();
    // Compares all narinfos and NARs. Our nix-cache-info has a priority, and Nix creates empty directories.
    let same = "diff -r -x nix-cache-info -x log -x realisations nix ours && rm -r ours && mkdir ours";
    scratch
        .sh(&format!(
            "mkdir ours
             nar-pack --export --stdin < paths | narinfo-gen --archive -c none | tar x -C ours; {same}
             nix-store --export $(cat paths) | narinfo-gen --archive -c none | tar x -C ours; {same}
             nix path-info --json -r $(cat top) > info
             nar-pack --export --stdin --no-nix --path-info info < paths \\
               | narinfo-gen --archive -c none --no-nix --path-info info | tar x -C ours; {same}"
        ))
        .ok();
    // From the contents alone, a scan finds the same references as Nix after the build.
    let scanned = scratch.sh("while read path; do
             nar-pack $path | narinfo-gen --no-nix --candidates paths -c none $path | grep '^References:' > scanned
             grep '^References:' nix/$(basename $path | cut -c-32).narinfo | diff - scanned; echo .
           done < paths");
    let paths = fs::read_to_string(scratch.path().join("paths")).unwrap();
    assert_eq!(scanned.ok().lines().count(), paths.lines().count());
    assert!(paths.lines().count() >= trees.len() + 3);
    // The closure covers all cases and is large enough.
    let size = scratch.sh("cat nix/nar/* | wc -c").ok().parse::<u64>().unwrap();
    println!("{} paths, {} MB", paths.lines().count(), size / 1_000_000);
    assert!(size > 5_000_000);
    let text = scratch.sh("cat nix/*.narinfo").ok();
    for case in ["\nSig: test-1:", "\nCA: text:", "\nCA: fixed:r:", "\nReferences: \n", "\nDeriver: "] {
        assert!(text.contains(case), "no {case:?}");
    }
    // Nix keeps some paths because their derivations exist; the large ones are deleted.
    drop(scratch.sh("nix-store --delete $(cat paths)"));
}
