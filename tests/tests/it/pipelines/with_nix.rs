//! The tools between a real Nix and a real S3 server: what each writes, the other reads.

use std::fs;

use crate::fixtures::bucket::{Fields, assert_closed, head, narinfo_keys, snapshot};
use crate::fixtures::site;
use crate::fixtures::site::make_key;
use cache_tests::nix::{self, Closure};
use cache_tests::{Credentials, Minio, Outcome, Random, Scratch, http_status, make_tree, tree, unique};

const COMPRESSIONS: [&str; 6] = ["zstd", "xz", "none", "bzip2", "gzip", "br"];

/// Somebody who builds: a closure in the local store and a key pair `key.sec`, `key.pub`.
struct Builder {
    scratch: Scratch,
    closure: Closure,
    key: String,
}

impl Builder {
    /// None where there is no Nix.
    fn new() -> Option<Self> {
        if !nix::available() {
            return None;
        }
        let mut scratch = Scratch::new();
        let closure = nix::build(&scratch);
        let key = make_key(&scratch, "key");
        scratch.env("TOP", &closure.top).env("KEY", &key).env("NIX_CONFIG", format!("trusted-public-keys = {key}\n"));
        Some(Self { scratch, closure, key })
    }

    fn sh(&self, script: &str) -> Outcome {
        self.scratch.sh(script)
    }

    /// Asserts that the closure below `root` is the one that was built.
    #[track_caller]
    fn assert_trees(&self, root: &str) {
        for path in self.closure.paths() {
            assert_eq!(tree(format!("{root}{path}")), tree(path), "{path} below {root}");
        }
    }

    /// The hash that the local Nix knows.
    fn nar_hash(&self, path: &str) -> String {
        self.sh(&format!("nix-store -q --hash {path}")).ok()
    }
}

/// The first pipeline of the design page, word for word.
const PUBLISH: &str = "nix-store -qR $TOP | s3-push --missing \"$C\" | nar-pack --export --stdin \
     | narinfo-gen --archive | cache-sign -k key.sec | s3-push \"$C\"";

/// Somebody else, who has nothing but a URL and a public key: copies `path` with Nix into an empty store.
///
/// Returns also the directory that holds the store.
fn fetch(url: &str, path: &str, key: &str) -> (Scratch, String, Outcome) {
    let mut scratch = Scratch::new();
    scratch.env("NIX_CONFIG", format!("require-sigs = true\ntrusted-public-keys = {key}\n"));
    let store = nix::fresh_store(&scratch);
    let outcome = scratch.sh(&format!("nix copy --from '{url}' --to '{store}' {path}"));
    (scratch, store, outcome)
}

/// Asserts that Nix fills an empty store from `url` and that the program runs there, but not for whoever trusts another key.
#[track_caller]
fn assert_nix_reads(builder: &Builder, url: &str) {
    let (scratch, store, copied) = fetch(url, &builder.closure.top, &builder.key);
    copied.ok();
    builder.assert_trees(&store);
    let program = format!("GREETING_ROOT={store} {store}{}/bin/app", builder.closure.app);
    assert_eq!(scratch.sh(&program).ok(), builder.closure.greeting);
    let stranger = make_key(&scratch, "stranger");
    let (_other, store, refused) = fetch(url, &builder.closure.top, &stranger);
    assert_ne!(refused.status, 0);
    assert!(refused.stderr.contains("signature"), "{}", refused.stderr);
    assert!(!fs::exists(format!("{store}{}", builder.closure.lib)).unwrap(), "not even a part of it");
}

/// What the IAM policy or bucket policy `flag` says for `bucket`.
fn policy(scratch: &Scratch, flag: &str, bucket: &str) -> String {
    scratch.sh(&format!("cache-policy {flag} {bucket}")).ok()
}

/// A bucket `$C` and the credentials of a user who has only the --upload policy for it.
fn uploader(minio: &Minio, scratch: &mut Scratch) -> (String, Credentials) {
    let bucket = minio.make_bucket();
    let user = minio.add_user(&policy(scratch, "--upload", &bucket));
    user.apply(scratch);
    scratch.env("C", minio.cache_url(&bucket));
    (bucket, user)
}

// ---- 1. NARs and export streams ----

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
    let Some(builder) = Builder::new() else { return };
    let sh = |script: &str| builder.sh(script);
    sh("nix-store --export $(nix-store -qR $TOP) > nix.export").ok();
    sh("nar-pack --export $(nix-store -qR $TOP) | cmp - nix.export").ok();
    sh("nar-pack --export -r $TOP | cmp - nix.export").ok();
    sh("nix-store -qR $TOP | nar-pack --export --stdin | cmp - nix.export").ok();
    // The path list may come in any order; references come first all the same.
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

/// Three paths that Nix describes differently: built and signed, added, and written by an expression.
fn described_paths(builder: &Builder) -> [String; 3] {
    make_tree(builder.scratch.path().join(unique("added-")), site::random_seed());
    let added = builder.sh("nix-store --add added-*").ok();
    let written = builder
        .sh(&format!(
            "nix-instantiate --eval --read-write-mode -E 'builtins.toFile \"{}\" \"text\"' | tr -d '\"'",
            unique("text-")
        ))
        .ok();
    builder.sh("nix store sign --key-file key.sec --recursive $TOP").ok();
    [builder.closure.top.clone(), added, written]
}

#[test]
fn narinfos_are_those_of_nix_field_by_field() {
    let Some(builder) = Builder::new() else { return };
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
        // A cache that Nix wrote is one that we read.
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
    let Some(builder) = Builder::new() else { return };
    for path in described_paths(&builder) {
        builder.sh(&format!("nix copy --to \"file://$PWD/cache?compression=none\" {path}")).ok();
        let ours = builder.sh(&format!("nar-pack {path} | narinfo-gen -c none {path}"));
        ours.ok();
        let key = format!("cache/{}.narinfo", &path["/nix/store/".len()..][..32]);
        let nix = fs::read(builder.scratch.path().join(&key)).unwrap();
        assert_eq!(String::from_utf8_lossy(&ours.stdout), String::from_utf8_lossy(&nix), "{path}");
        // Where no Nix knows the path, the scan finds the same references.
        let scanned = builder.sh(&format!(
            "nix-store -qR $TOP > list; nar-pack {path} | narinfo-gen --no-nix --candidates list -c none {path}"
        ));
        let scanned = Fields::parse(scanned.ok().as_bytes());
        assert_eq!(scanned.one("References"), Fields::parse(&nix).one("References"));
        assert_eq!(scanned.all("Deriver"), [""; 0]);
    }
}

// ---- Keys and signatures ----

#[test]
fn keys_are_those_of_nix() {
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
fn signatures_of_nix_are_ours() {
    let Some(builder) = Builder::new() else { return };
    let sh = |script: &str| builder.sh(script);
    sh("nix store sign --key-file key.sec --recursive $TOP; nix copy --to file://$PWD/signed $TOP").ok();
    // Ed25519 has one signature for one message: ours are the same bytes.
    sh("mkdir ours; nix-store --export $(nix-store -qR $TOP) | narinfo-gen --archive | tar x -C ours").ok();
    let unsigned = "sed '/^Sig:/d'";
    for path in builder.closure.paths() {
        let key = format!("{}.narinfo", &path["/nix/store/".len()..][..32]);
        let nix = sh(&format!("grep ^Sig: signed/{key}")).ok();
        assert_eq!(sh(&format!("{unsigned} ours/{key} | cache-sign -k key.sec | grep ^Sig:")).ok(), nix);
    }
    let verify = "cache-sign verify --trusted-public-key";
    sh(&format!("tar c -C signed . | {verify} \"$KEY\" | tar t | grep -c narinfo")).ok();
    let stranger = make_key(&builder.scratch, "stranger");
    let refused = sh(&format!("tar c -C signed . | {verify} {stranger}")).fails(1);
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
    let key = make_key(&scratch, "key");
    let secret = scratch.path().join("key.sec");
    scratch.env("NIX_CONFIG", format!("secret-key-files = {}\ntrusted-public-keys = {key}\n", secret.display()));
    let closure = nix::build(&scratch);
    let verified = scratch.sh(&format!(
        "nix-store --export $(nix-store -qR {}) | narinfo-gen | cache-sign verify --trusted-public-key {key}",
        closure.top
    ));
    assert_eq!(verified.ok().split("\n\n").count(), 3);
    // The keys that nix.conf trusts are those of our tools.
    scratch.sh(&format!("nix-store --export $(nix-store -qR {}) | narinfo-gen | cache-sign verify", closure.top)).ok();
}

// ---- 2. Nix reads what we wrote ----

#[test]
fn nix_reads_a_directory_of_ours_in_every_compression() {
    let Some(builder) = Builder::new() else { return };
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
    let Some(mut builder) = Builder::new() else { return };
    let Some(minio) = Minio::shared() else { return };
    let (bucket, _) = uploader(minio, &mut builder.scratch);
    let http = minio.http_url(&bucket);
    // A default push at the top of the bucket, one below a prefix for each compression.
    builder.sh(PUBLISH).ok();
    for compression in COMPRESSIONS {
        let url = minio.cache_url(&bucket).replacen('?', &format!("/{compression}?"), 1);
        let publish = PUBLISH.replace("--archive", &format!("--archive -c {compression}")).replace("$C", &url);
        builder.sh(&publish).ok();
    }
    let (_scratch, _store, closed) = fetch(&http, &builder.closure.top, &builder.key);
    assert_ne!(closed.status, 0, "the bucket is not public yet");
    minio.set_bucket_policy(&bucket, &policy(&builder.scratch, "--read-only", &bucket));
    assert_nix_reads(&builder, &http);
    for compression in COMPRESSIONS {
        assert_nix_reads(&builder, &format!("{http}/{compression}"));
    }
    assert_closed(&snapshot(minio, &bucket));
}

#[test]
fn a_path_that_its_nar_hash_names_needs_no_signature() {
    let Some(mut builder) = Builder::new() else { return };
    let Some(minio) = Minio::shared() else { return };
    uploader(minio, &mut builder.scratch);
    let [_, added, written] = described_paths(&builder);
    let pull = "s3-pull --root out --nix-conf /dev/null \"$C\"";
    builder.sh(&format!("nix-store --export {added} {written} | s3-push \"$C\"")).ok();
    builder.sh(&format!("{pull} {added}")).ok();
    assert_eq!(tree(format!("{}/out{added}", builder.scratch.path().display())), tree(&added));
    // The hash of a text is not that of its NAR: such a path is signed like any other.
    let said = builder.sh(&format!("{pull} {written}")).fails(1);
    assert!(said.contains(&written) && said.contains("signed"), "{said}");
    // To say so is not enough: the path must follow from the hash.
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
    let said = builder.sh(&format!("s3-pull --root out --nix-conf /dev/null file://$PWD/bad {lib}")).fails(1);
    assert!(said.contains(lib.as_str()), "{said}");
    assert!(!fs::exists(builder.scratch.path().join("out").join(&lib[1..])).unwrap());
}

// ---- 3. We read what Nix wrote ----

#[test]
fn a_directory_of_nix_goes_through_the_bucket() {
    let Some(mut builder) = Builder::new() else { return };
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
        // Nix's own directory is a cache for us as it is.
        let own = format!("{root}-own");
        builder.sh(&format!("s3-pull -r --no-verify-signatures --root {own} file://$PWD/{compression} $TOP")).ok();
        builder.assert_trees(&own);
    }
}

// ---- 4. A cache's first day ----

#[test]
fn the_first_day_of_a_cache() {
    let Some(mut builder) = Builder::new() else { return };
    let Some(minio) = Minio::shared() else { return };
    uploader(minio, &mut builder.scratch);
    let before: Vec<_> = builder.closure.paths().iter().map(tree).collect();
    let run = format!("{}/bin/app", builder.closure.top);
    assert_eq!(builder.sh(&run).ok(), builder.closure.greeting);
    let published = builder.sh(PUBLISH).ok();
    assert_eq!(published.lines().collect::<Vec<_>>(), builder.closure.paths());
    // Without $TOP: what a process has in its environment is alive.
    nix::delete(&Scratch::new(), &builder.closure);
    assert_eq!(builder.sh(&run).status, 127, "the program is gone");
    // The store knows nothing of it any more; the bucket does.
    let imported = builder.sh("s3-pull -r --export \"$C\" $TOP | nix-store --import");
    assert_eq!(imported.ok().lines().count(), 3);
    assert_eq!(builder.sh(&run).ok(), builder.closure.greeting);
    let after: Vec<_> = builder.closure.paths().iter().map(tree).collect();
    assert_eq!(after, before);
    builder.sh("nix-store --verify-path $(nix-store -qR $TOP)").ok();
    assert_eq!(builder.sh(PUBLISH).ok(), "", "and nothing is missing in the cache");
}

// ---- 5. Who may do what ----

#[test]
fn an_uploader_needs_no_more_than_the_upload_policy() {
    let Some(minio) = Minio::shared() else { return };
    let mut site = site::Site::new();
    let (bucket, _) = uploader(minio, &mut site.scratch);
    site.scratch.sh(site::PUBLISH).ok();
    assert_closed(&snapshot(minio, &bucket));
    // In several parts too, of known and of unknown length.
    let noise = Random::new(site::random_seed()).bytes(12 << 20);
    let big = cache_tests::store_path("big", site::random_seed());
    fs::write(site::below(&site.path("root"), &big), &noise).unwrap();
    site.scratch
        .sh(&format!(
            "nar-pack --root root --no-nix {big} | s3-push --no-nix --part-size 5MiB --memory 16MiB \"$C\" {big}; \
             cat root{big} | s3-push \"$C\" --part-size 5MiB --key log/pipe"
        ))
        .ok();
    let objects = snapshot(minio, &bucket);
    assert_closed(&objects);
    assert!(objects["log/pipe"] == noise);
    minio.set_bucket_policy(&bucket, &policy(&site.scratch, "--read-only", &bucket));
    let large: Vec<&String> = objects.iter().filter(|(_, bytes)| bytes.len() > 11 << 20).map(|(key, _)| key).collect();
    assert_eq!(large.len(), 2);
    for key in large {
        let about = head(&site.scratch, &minio.endpoint(), &format!("/{bucket}/{key}"));
        let etag = about.lines().find(|line| line.starts_with("etag:")).unwrap();
        assert!(etag.trim_end().trim_end_matches('"').ends_with("-3"), "{key} did not go in three parts: {etag}");
    }
    site.scratch.sh("s3-pull -r --root out \"$C\" \"$TOP\"").ok();
    site.assert_trees("out");
    // It may not do more: nothing is removed, and no other bucket is touched.
    let other = minio.make_bucket();
    let said = site.scratch.sh(&format!("echo x | s3-push '{}' --key log/x", minio.cache_url(&other))).fails(2);
    assert!(said.contains(&other) && said.contains("log/x"), "{said}");
    assert_eq!(minio.objects(&other), [""; 0]);
}

#[test]
fn a_reader_cannot_write() {
    let Some(minio) = Minio::shared() else { return };
    let mut site = site::Site::new();
    let bucket = minio.make_bucket();
    let reader = minio.add_user(&format!(
        r#"{{"Version":"2012-10-17","Statement":[{{"Effect":"Allow","Action":["s3:GetObject","s3:GetBucketLocation"],
            "Resource":["arn:aws:s3:::{bucket}","arn:aws:s3:::{bucket}/*"]}}]}}"#
    ));
    reader.apply(&mut site.scratch);
    site.scratch.env("C", minio.cache_url(&bucket));
    let archive = format!("{} | s3-push --no-nix \"$C\"", site::ARCHIVE);
    let said = site.scratch.sh(&archive).fails(2);
    let line = said.lines().last().unwrap().to_lowercase();
    assert!(line.starts_with("s3-push: ") && (line.contains("403") || line.contains("access denied")), "{said}");
    assert!(line.contains("nar/") || line.contains("nix-cache-info"), "the key is named: {said}");
    let said = site.scratch.sh("echo x | s3-push \"$C\" --key log/x").fails(2);
    assert!(
        said.contains("log/x") && (said.contains("403") || said.to_lowercase().contains("access denied")),
        "{said}"
    );
    assert_eq!(minio.objects(&bucket), [""; 0]);
    // It can read. Without ListBucket a missing object is a 403, which means missing.
    minio.root().apply(&mut site.scratch);
    site.scratch.sh(site::PUBLISH).ok();
    reader.apply(&mut site.scratch);
    site.scratch.sh("s3-pull -r --root out \"$C\" \"$TOP\"").ok();
    site.assert_trees("out");
    let absent = cache_tests::store_path("absent", site::random_seed());
    let said = site.scratch.sh(&format!("s3-pull --root out \"$C\" {absent}")).fails(1);
    assert!(said.contains(&absent), "{said}");
    let before = snapshot(minio, &bucket);
    make_key(&site.scratch, "new");
    site.scratch.sh("s3-pull -r --narinfo \"$C\" \"$TOP\" | cache-sign -k new.sec | s3-push \"$C\"").fails(2);
    assert_eq!(snapshot(minio, &bucket), before);
    assert_eq!(narinfo_keys(&before).len(), 3);
}

#[test]
fn an_anonymous_reads_only_what_is_public_and_writes_nothing() {
    let Some(minio) = Minio::shared() else { return };
    let mut site = site::Site::new();
    let (bucket, _) = uploader(minio, &mut site.scratch);
    site.scratch.sh(site::PUBLISH).ok();
    let url = minio.cache_url(&bucket);
    let anonymous = |script: &str| site.scratch.sh(&format!("unset AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY; {script}"));
    let pull = "s3-pull -r --root out --no-sign-request \"$C\" \"$TOP\"";
    let said = anonymous(pull).fails(1);
    assert!(said.contains(&site.closure.top) && said.contains("403"), "a 403 means missing, with a hint: {said}");
    site.assert_nothing_below("out");
    minio.set_bucket_policy(&bucket, &policy(&site.scratch, "--read-only", &url));
    anonymous(pull).ok();
    site.assert_trees("out");
    anonymous(&format!("s3-pull -r --root web {} \"$TOP\"", minio.http_url(&bucket))).ok();
    site.assert_trees("web");
    let before = snapshot(minio, &bucket);
    for key in ["nix-cache-info", "nar/x.nar", "log/x"] {
        assert_eq!(http_status(&minio.endpoint(), "PUT", &format!("/{bucket}/{key}"), b"x").unwrap(), 403, "{key}");
    }
    let said = anonymous("echo x | s3-push \"$C\" --key log/x").fails(2);
    assert!(said.to_lowercase().contains("credentials"), "{said}");
    assert_eq!(snapshot(minio, &bucket), before);
}

#[test]
fn whom_no_policy_names_reads_nothing() {
    let Some(minio) = Minio::shared() else { return };
    let mut site = site::Site::new();
    let (bucket, _) = uploader(minio, &mut site.scratch);
    site.scratch.sh(site::PUBLISH).ok();
    let nobody = minio.add_user(
        r#"{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":["s3:GetBucketLocation"],"Resource":["arn:aws:s3:::unrelated"]}]}"#,
    );
    nobody.apply(&mut site.scratch);
    let said = site.scratch.sh("s3-pull --root out \"$C\" \"$LIB\"").fails(1);
    assert!(said.contains(&site.closure.lib), "{said}");
    site.assert_nothing_below("out");
    assert!(!minio.objects(&bucket).is_empty());
}
