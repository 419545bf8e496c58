//! A refused path leaves nothing in the bucket: neither the object of its NAR nor a multipart upload that is not
//! completed. The user has only the rights of `cache-policy --upload`, so nothing can be deleted afterwards.

use std::fs;

use crate::fixtures::bucket::{Fields, nar_keys, policy, snapshot};
use crate::fixtures::closure_fixture::{ARCHIVE, Fixture};
use cache_tests::{Minio, Random, Scratch, sha256_base32, store_path};

/// The push of these tests. A NAR of more than 5 MiB is sent in parts.
const PUSH: &str = "s3-push --no-nix --part-size 5MiB \"$C\"";
/// Size of the file in a NAR that is sent in parts, in bytes.
const LARGE: usize = 11 << 20;

/// A server of its own, because the uploads in progress can only be counted for all of its buckets.
struct Bucket {
    minio: Minio,
    name: String,
}

impl Bucket {
    /// Creates a bucket `$C`, and a user who has only the --upload policy for it.
    fn new(scratch: &mut Scratch) -> Option<Self> {
        let minio = Minio::start()?;
        let name = minio.make_bucket();
        minio.add_user(&policy(scratch, "--upload", &name)).apply(scratch);
        scratch.env("C", minio.cache_url(&name));
        Some(Self { minio, name })
    }

    /// Asserts that no NAR is in the bucket and no upload is in progress.
    #[track_caller]
    fn assert_no_nars(&self, case: &str) {
        self.assert_nars(case, 0);
    }

    #[track_caller]
    fn assert_nars(&self, case: &str, count: usize) {
        let objects = snapshot(&self.minio, &self.name);
        assert_eq!(nar_keys(&objects).len(), count, "{case}: {:?}", objects.keys());
        assert_eq!(self.minio.upload_dirs().len(), 0, "{case}: an upload is neither completed nor aborted");
    }
}

/// A binary cache of one path in `c/`.
struct OnePath {
    scratch: Scratch,
    key: String,
    text: String,
    fields: Fields,
}

impl OnePath {
    fn new(seed: u64, size: usize) -> Self {
        let mut scratch = Scratch::new();
        let path = store_path("one", seed);
        let dir = scratch.path().join("root").join(path.trim_start_matches('/'));
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("data"), Random::new(seed).bytes(size)).unwrap();
        scratch.env("P", &path);
        scratch
            .sh("mkdir c; nar-pack --root root --no-nix --export \"$P\" | narinfo-gen --no-nix --archive | tar x -C c
                 chmod -R u+w c")
            .ok();
        let key = Fixture::narinfo_key(&path);
        let text = fs::read_to_string(scratch.path().join("c").join(&key)).unwrap();
        let fields = Fields::parse(text.as_bytes());
        Self { scratch, key, text, fields }
    }

    /// Returns the narinfo with another value of one field.
    fn with(&self, field: &str, value: &str) -> String {
        let line = format!("{field}: {}\n", self.fields.one(field));
        assert!(self.text.contains(&line), "{line}");
        self.text.replace(&line, &format!("{field}: {value}\n"))
    }

    /// Pushes the NAR with this narinfo in both orders.
    #[track_caller]
    fn assert_refused(&self, bucket: &Bucket, narinfo: &str, word: &str) {
        fs::write(self.scratch.path().join("c").join(&self.key), narinfo).unwrap();
        let (key, url) = (&self.key, self.fields.one("URL"));
        for members in [format!("{url} {key}"), format!("{key} {url}")] {
            let stderr = self.scratch.sh(&format!("tar c -C c nix-cache-info {members} | {PUSH}")).fails(1);
            assert!(stderr.contains(word), "{word}: {stderr}");
            bucket.assert_no_nars(&format!("{word}, {members}"));
        }
    }

    fn assert_every_refusal(&mut self) {
        let Some(bucket) = Bucket::new(&mut self.scratch) else { return };
        let other = format!("sha256:{}", sha256_base32(b"other"));
        let missing = &store_path("missing", 1)["/nix/store/".len()..];
        for (field, value, word) in [
            ("NarHash", other.as_str(), "NarHash"),
            ("FileHash", &other, "FileHash"),
            ("FileSize", "7", "FileSize"),
            ("NarSize", "408", "NarSize"),
            ("NarSize", "999999999", "NarSize"),
            ("NarSize", "x", "NarSize"),
            ("Compression", "xz", "Compression"),
            ("References", missing, missing),
        ] {
            let narinfo = if field == "References" {
                self.text.replace("References: \n", &format!("References: {missing}\n"))
            } else {
                self.with(field, value)
            };
            assert_ne!(narinfo, self.text, "{field}");
            self.assert_refused(&bucket, &narinfo, word);
        }
        // The right one is published, after all of them.
        fs::write(self.scratch.path().join("c").join(&self.key), &self.text).unwrap();
        self.scratch.sh(&format!("tar c -C c . | {PUSH}")).ok();
        bucket.assert_nars("published", 1);
    }
}

#[test]
fn a_refused_nar_of_one_part_is_not_left_in_the_bucket() {
    OnePath::new(1, 1000).assert_every_refusal();
}

#[test]
fn a_refused_nar_of_several_parts_is_not_left_in_the_bucket() {
    OnePath::new(2, LARGE).assert_every_refusal();
}

/// The check of the file does not decompress the NAR, and refuses whatever the file disproves.
#[test]
fn the_check_of_the_file_trusts_nar_hash_and_nothing_else() {
    let mut one = OnePath::new(3, 1000);
    let Some(bucket) = Bucket::new(&mut one.scratch) else { return };
    let nar_hash = one.with("NarHash", &format!("sha256:{}", sha256_base32(b"other")));
    let without_file_hash = one.text.replace(&format!("FileHash: {}\n", one.fields.one("FileHash")), "");
    let file_hash = one.with("FileHash", &format!("sha256:{}", sha256_base32(b"other")));
    let (file_size, compression) = (one.with("FileSize", "7"), one.with("Compression", "xz"));
    let push = |narinfo: &str, check: &str| {
        fs::write(one.scratch.path().join("c").join(&one.key), narinfo).unwrap();
        one.scratch.sh(&format!("tar c -C c . | {PUSH} {check}"))
    };
    for (narinfo, word) in [
        (&file_hash, "FileHash"),
        (&file_size, "FileSize"),
        (&compression, "Compression"),
        (&without_file_hash, "FileHash"),
    ] {
        let stderr = push(narinfo, "--check file").fails(1);
        assert!(stderr.contains(word), "{word}: {stderr}");
        let is_hinted = stderr.contains("hint: run the same command without --check file");
        assert_eq!(is_hinted, *narinfo == without_file_hash, "{stderr}");
        bucket.assert_no_nars(word);
    }
    let narinfo_only = one.scratch.sh("s3-push --check file \"$C\" < c/*.narinfo");
    assert!(narinfo_only.fails(2).contains("standard input is narinfo text, not a cache archive"));
    assert!(push(&nar_hash, "").fails(1).contains("NarHash"));
    assert!(push(&nar_hash, "--check nar").fails(1).contains("NarHash"));
    bucket.assert_no_nars("NarHash");
    push(&nar_hash, "--check file").ok();
    bucket.assert_nars("published", 1);
}

/// The file of a NAR without compression is the NAR.
#[test]
fn the_check_of_the_file_refuses_a_wrong_nar_hash_without_compression() {
    let mut one = OnePath::new(4, 1000);
    let Some(bucket) = Bucket::new(&mut one.scratch) else { return };
    one.scratch
        .sh("rm -r c; mkdir c; nar-pack --root root --no-nix --export \"$P\" \
             | narinfo-gen --no-nix --archive --compression none | tar x -C c; chmod -R u+w c
             sed -i 's/^NarSize: .*/NarSize: 408/' c/*.narinfo")
        .ok();
    let stderr = one.scratch.sh(&format!("tar c -C c . | {PUSH} --check file")).fails(1);
    assert!(stderr.contains("NarSize"), "{stderr}");
    bucket.assert_no_nars("NarSize");
}

/// The paths that depend on a refused one are refused too.
#[test]
fn the_nars_of_dependents_of_a_refused_path_are_not_left_in_the_bucket() {
    let mut fixture = Fixture::new();
    let Some(bucket) = Bucket::new(&mut fixture.scratch) else { return };
    let lib = Fixture::narinfo_key(&fixture.closure.lib);
    fixture
        .scratch
        .sh(&format!(
            "mkdir c; {ARCHIVE} > archive; tar x -C c -f archive; chmod -R u+w c; tar tf archive > members
             sed -i 's/^NarSize: .*/NarSize: 999999/' c/{lib}"
        ))
        .ok();
    let stderr = fixture.scratch.sh(&format!("tar c -C c -T members | {PUSH}")).fails(1);
    assert!(stderr.contains("2 paths depend on it"), "{stderr}");
    bucket.assert_no_nars("dependents");
}

/// A path waits for its reference until the end of the input, while a large NAR needs the memory.
#[test]
fn a_nar_without_its_reference_is_not_left_in_the_bucket_when_memory_runs_out() {
    let mut fixture = Fixture::new();
    let Some(bucket) = Bucket::new(&mut fixture.scratch) else { return };
    let large = OnePath::new(3, 4 * LARGE);
    let app = Fixture::narinfo_key(&fixture.closure.app);
    let dir = large.scratch.path().join("c");
    let script = format!(
        "mkdir c; {ARCHIVE} | tar x -C c; cp -r {}/* c; url=$(sed -n 's/^URL: //p' c/{app})
         tar c -C c nix-cache-info \"$url\" {app} {} {} | {PUSH} --memory 10MiB",
        dir.display(),
        large.fields.one("URL"),
        large.key
    );
    let stderr = fixture.scratch.sh(&script).fails(1);
    assert!(stderr.contains(&fixture.closure.lib), "{stderr}");
    bucket.assert_nars("memory", 1);
}

/// 4 GiB of zeros in a NAR: the narinfo limits what is decompressed, in both orders.
#[test]
fn a_nar_that_decompresses_to_more_than_its_nar_size_is_not_decompressed_to_its_end() {
    let mut cache = OnePath::new(4, 1000);
    let Some(bucket) = Bucket::new(&mut cache.scratch) else { return };
    // Each frame is 256 MiB of zeros in 8 KiB.
    cache
        .scratch
        .sh(r"s() { printf '%b' $(printf '\\x%02x' ${#1} 0 0 0 0 0 0 0); printf %s $1; head -c $(((8 - ${#1} % 8) % 8)) /dev/zero; }
             { s nix-archive-1; s '('; s type; s regular; s contents; printf '\0\0\0\0\001\0\0\0'; } | zstd -q > bomb
             head -c 268435456 /dev/zero | zstd -q > frame; for i in {1..16}; do cat frame; done >> bomb
             s ')' | zstd -q >> bomb")
        .ok();
    let bomb = fs::read(cache.scratch.path().join("bomb")).unwrap();
    let url = format!("nar/{}.nar.zst", sha256_base32(&bomb));
    fs::write(cache.scratch.path().join("c").join(&url), &bomb).unwrap();
    let hash = format!("sha256:{}", sha256_base32(&bomb));
    let narinfo = [("URL", url.as_str()), ("FileHash", &hash), ("FileSize", &bomb.len().to_string())].iter().fold(
        cache.with("NarSize", "1000"),
        |text, (field, value)| {
            text.replace(&format!("{field}: {}\n", cache.fields.one(field)), &format!("{field}: {value}\n"))
        },
    );
    cache.fields = Fields::parse(narinfo.as_bytes());
    cache.assert_refused(&bucket, &narinfo, "the NAR is larger than its NarSize, 1000 bytes");
}
