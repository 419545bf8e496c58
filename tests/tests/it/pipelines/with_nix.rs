//! A real Nix and a real S3 server: we read what Nix writes, and Nix reads what we write.

use crate::fixtures::bucket::{Fields, assert_closed, snapshot};
use crate::fixtures::bucket::{policy, uploader};
use crate::fixtures::closure_fixture::generate_key;
use crate::fixtures::nix_builder::{COMPRESSIONS, NixBuilder, described_paths};
use cache_tests::nix::{self};
use cache_tests::{CommandOutput, Minio, Scratch, tree};
use std::fs;

/// The first documented pipeline, unchanged.
const PUBLISH: &str = "nix-store -qR $TOP | s3-push --missing \"$C\" | nar-pack --export --stdin \
     | narinfo-gen --archive | cache-sign -k key.sec | s3-push \"$C\"";

/// Copies `path` with Nix into an empty store, as a client that knows only a URL and a public key.
///
/// Also returns the directory that contains the store.
fn copy_with_nix(url: &str, path: &str, key: &str) -> (Scratch, String, CommandOutput) {
    let mut scratch = Scratch::new();
    scratch.env("NIX_CONFIG", format!("require-sigs = true\ntrusted-public-keys = {key}\n"));
    let store = nix::fresh_store(&scratch);
    let output = scratch.sh(&format!("nix copy --from '{url}' --to '{store}' {path}"));
    (scratch, store, output)
}

/// Asserts that Nix copies the closure from `url` and that the program runs, but not for a client that trusts another
/// key.
#[track_caller]
fn assert_nix_reads(builder: &NixBuilder, url: &str) {
    let (scratch, store, copied) = copy_with_nix(url, &builder.closure.top, &builder.key);
    copied.ok();
    builder.assert_trees(&store);
    let program = format!("GREETING_ROOT={store} {store}{}/bin/app", builder.closure.app);
    assert_eq!(scratch.sh(&program).ok(), builder.closure.greeting);
    let untrusted = generate_key(&scratch, "untrusted");
    let (_other, store, refused) = copy_with_nix(url, &builder.closure.top, &untrusted);
    assert_ne!(refused.status, 0);
    assert!(refused.stderr.contains("signature"), "{}", refused.stderr);
    assert!(!fs::exists(format!("{store}{}", builder.closure.lib)).unwrap(), "no part of it is present");
}

#[test]
fn nix_reads_our_directory_in_every_compression() {
    let Some(builder) = NixBuilder::new() else { return };
    for compression in COMPRESSIONS {
        builder
            .sh(&format!(
                "mkdir {compression}; nix-store --export $(nix-store -qR $TOP) | narinfo-gen --archive -c {compression} \
                 | cache-sign -k key.sec | tar x -C {compression}"
            ))
            .ok();
        assert_nix_reads(&builder, &format!("file://{}/{compression}", builder.scratch.path().display()));
    }
}

#[test]
fn nix_reads_a_public_bucket_in_every_compression() {
    let Some(mut builder) = NixBuilder::new() else { return };
    let Some(minio) = Minio::shared() else { return };
    let (bucket, _) = uploader(minio, &mut builder.scratch);
    let http = minio.http_url(&bucket);
    // A push with defaults to the bucket itself, and one to a prefix for each compression.
    builder.sh(PUBLISH).ok();
    for compression in COMPRESSIONS {
        let url = minio.cache_url(&bucket).replacen('?', &format!("/{compression}?"), 1);
        let publish = PUBLISH.replace("--archive", &format!("--archive -c {compression}")).replace("$C", &url);
        builder.sh(&publish).ok();
    }
    let (_scratch, _store, closed) = copy_with_nix(&http, &builder.closure.top, &builder.key);
    assert_ne!(closed.status, 0, "the bucket is not public yet");
    minio.set_bucket_policy(&bucket, &policy(&builder.scratch, "--read-only", &bucket));
    assert_nix_reads(&builder, &http);
    for compression in COMPRESSIONS {
        assert_nix_reads(&builder, &format!("{http}/{compression}"));
    }
    assert_closed(&snapshot(minio, &bucket));
}

#[test]
fn a_content_addressed_path_needs_no_signature() {
    let Some(mut builder) = NixBuilder::new() else { return };
    let Some(minio) = Minio::shared() else { return };
    uploader(minio, &mut builder.scratch);
    let [_, added, written] = described_paths(&builder);
    let pull = "s3-pull --root out --nix-conf /dev/null \"$C\"";
    builder.sh(&format!("nix-store --export {added} {written} | s3-push \"$C\"")).ok();
    builder.sh(&format!("{pull} {added}")).ok();
    assert_eq!(tree(format!("{}/out{added}", builder.scratch.path().display())), tree(&added));
    // The hash of a text is not the hash of its NAR, so such a path needs a signature.
    let stderr = builder.sh(&format!("{pull} {written}")).fails(1);
    assert!(stderr.contains(&written) && stderr.contains("signed"), "{stderr}");
    // A CA field alone is not sufficient: the path must be the one computed from the hash.
    let lib = &builder.closure.lib;
    let forge = "sed '/^Sig:/d; s/^NarHash: \\(.*\\)/&\\nCA: fixed:r:\\1/'";
    builder
        .sh(&format!(
            "nix-store --export {lib} | narinfo-gen --archive | tee a | tar x nix-cache-info; s3-push \"$C\" < a"
        ))
        .ok();
    builder
        .sh(&format!(
            "mkdir bad; tar x -C bad < a; chmod -R u+w bad; {forge} -i bad/*.narinfo; grep -q ^CA: bad/*.narinfo"
        ))
        .ok();
    let stderr = builder.sh(&format!("s3-pull --root out --nix-conf /dev/null file://$PWD/bad {lib}")).fails(1);
    assert!(stderr.contains(lib.as_str()), "{stderr}");
    assert!(!fs::exists(builder.scratch.path().join("out").join(&lib[1..])).unwrap());
}

#[test]
fn a_cache_written_by_nix_is_pushed_and_pulled() {
    let Some(mut builder) = NixBuilder::new() else { return };
    let Some(minio) = Minio::shared() else { return };
    for compression in ["xz", "zstd"] {
        let (bucket, _) = uploader(minio, &mut builder.scratch);
        builder.sh(&format!("nix copy --to \"file://$PWD/{compression}?compression={compression}\" $TOP")).ok();
        let pushed = builder.sh(&format!("tar c -C {compression} . | cache-sign -k key.sec | s3-push \"$C\""));
        assert_eq!(pushed.ok().lines().count(), 3);
        let objects = snapshot(minio, &bucket);
        assert_closed(&objects);
        let root = format!("{}/out-{compression}", builder.scratch.path().display());
        builder.sh(&format!("s3-pull -r --root {root} \"$C\" $TOP")).ok();
        builder.assert_trees(&root);
        for path in builder.closure.paths() {
            let narinfo = Fields::parse(builder.sh(&format!("s3-pull --narinfo \"$C\" {path}")).ok().as_bytes());
            assert_eq!(narinfo.one("NarHash"), builder.nar_hash(path));
            assert_eq!(narinfo.one("Compression"), compression);
            builder.sh(&format!("s3-pull --nar \"$C\" {path} | cmp - <(nix-store --dump {path})")).ok();
        }
        builder.sh("cmp <(s3-pull -r --export \"$C\" $TOP) <(nix-store --export $(nix-store -qR $TOP))").ok();
        // The directory that Nix wrote is a valid cache for us.
        let own = format!("{root}-own");
        builder.sh(&format!("s3-pull -r --no-verify-signatures --root {own} file://$PWD/{compression} $TOP")).ok();
        builder.assert_trees(&own);
    }
}

#[test]
fn a_published_closure_is_imported_after_it_is_deleted() {
    let Some(mut builder) = NixBuilder::new() else { return };
    let Some(minio) = Minio::shared() else { return };
    uploader(minio, &mut builder.scratch);
    let before: Vec<_> = builder.closure.paths().iter().map(tree).collect();
    let run = format!("{}/bin/app", builder.closure.top);
    assert_eq!(builder.sh(&run).ok(), builder.closure.greeting);
    let published = builder.sh(PUBLISH).ok();
    assert_eq!(published.lines().collect::<Vec<_>>(), builder.closure.paths());
    // In a scratch directory without $TOP: Nix considers paths in the environment of a process alive.
    nix::delete(&Scratch::new(), &builder.closure);
    assert_eq!(builder.sh(&run).status, 127, "the program was deleted");
    // The paths are gone from the store, but not from the bucket.
    let imported = builder.sh("s3-pull -r --export \"$C\" $TOP | nix-store --import");
    assert_eq!(imported.ok().lines().count(), 3);
    assert_eq!(builder.sh(&run).ok(), builder.closure.greeting);
    let after: Vec<_> = builder.closure.paths().iter().map(tree).collect();
    assert_eq!(after, before);
    builder.sh("nix-store --verify-path $(nix-store -qR $TOP)").ok();
    assert_eq!(builder.sh(PUBLISH).ok(), "", "no path is missing in the cache");
}
