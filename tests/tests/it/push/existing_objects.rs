//! A push that meets an object of the right size under the key of a large NAR compares its entity tag.

use crate::fixtures::large_path::LargePath;
use crate::fixtures::s3_calls::S3Client;
use cache_tests::fault_proxy::{Fault, FaultProxy, ObjectKind, RequestKind};
use cache_tests::{Credentials, Minio, Scratch, Versitygw, cache_url, random_seed};

/// Sizes with which an object of 12 MiB is uploaded in three parts, as by the push, and in one request.
const PART_SIZES: [&str; 2] = ["5MiB", "16MiB"];

/// A large path, and an empty bucket `$C`.
struct Fixture {
    scratch: Scratch,
    path: LargePath,
    endpoint: String,
    bucket: String,
}

impl Fixture {
    fn new(endpoint: String, user: &Credentials) -> Self {
        let mut scratch = Scratch::new();
        user.apply(&mut scratch);
        let path = LargePath::write(&mut scratch, random_seed(), 12 << 20);
        let bucket = S3Client::new(&endpoint, Some(user)).make_bucket();
        scratch.env("C", cache_url(&endpoint, &bucket));
        let mut damaged = path.nar.clone();
        damaged[9 << 20] ^= 1;
        scratch.write("damaged", damaged);
        Self { scratch, path, endpoint, bucket }
    }

    /// Puts a file under the key of the NAR. `s3-push --key` accepts any bytes under a key below the prefix `nar`.
    fn put(&self, file: &str, part_size: &str, flags: &str) {
        let name = self.path.nar_key.strip_prefix("nar/").unwrap();
        let url = cache_url(&self.endpoint, &format!("{}/nar", self.bucket));
        self.scratch.sh(&format!("s3-push -q --part-size {part_size} {flags} '{url}' --key {name} < {file}")).ok();
    }

    fn push(&self, flags: &str) -> cache_tests::CommandOutput {
        self.scratch.sh(&format!("s3-push --no-nix --part-size 5MiB {flags} \"$C\" < archive"))
    }

    /// Asserts that a damaged object is never reported as sent, and that the command in the hint replaces it.
    fn assert_finds_damage(&self) {
        for part_size in PART_SIZES {
            self.put("damaged", part_size, "");
            let stderr = self.push("").fails(1);
            assert!(stderr.contains(&self.path.nar_key) && stderr.contains("damaged"), "{part_size}: {stderr}");
            assert!(stderr.contains("hint: ") && stderr.contains("--check-existing"), "{part_size}: {stderr}");
            let replaced = self.push("--check-existing");
            replaced.ok();
            assert!(replaced.stderr.contains("has been replaced"), "{part_size}: {}", replaced.stderr);
            LargePath::assert_pulls(&self.scratch);
        }
    }

    /// Asserts that an intact object is recognized by its entity tag: it is not read.
    fn assert_accepts_intact_objects(&self) {
        let proxy = FaultProxy::start(&self.endpoint, |_| Fault::Pass);
        for part_size in PART_SIZES {
            self.put("nar", part_size, "");
            let url = cache_url(proxy.endpoint(), &self.bucket);
            self.scratch.sh(&format!("s3-push --no-nix -q --part-size 5MiB '{url}' < archive")).ok();
        }
        let requests = proxy.requests();
        assert!(requests.contains(&RequestKind::HeadObject(ObjectKind::Nar)), "{requests:?}");
        assert!(!requests.contains(&RequestKind::GetObject(ObjectKind::Nar)), "{requests:?}");
        assert!(!requests.contains(&RequestKind::UploadPart), "{requests:?}");
    }
}

#[test]
fn a_damaged_large_nar_is_never_reported_as_sent_on_minio() {
    let Some(minio) = Minio::shared() else { return };
    let fixture = Fixture::new(minio.endpoint(), &minio.root());
    fixture.assert_finds_damage();
    fixture.assert_accepts_intact_objects();
}

#[test]
fn a_damaged_large_nar_is_never_reported_as_sent_on_versitygw() {
    let Some(gateway) = Versitygw::shared() else { return };
    let fixture = Fixture::new(gateway.endpoint(), &gateway.root());
    fixture.assert_finds_damage();
    fixture.assert_accepts_intact_objects();
}

/// An object in another number of parts is compared by its size, and read with `--check-existing`.
#[test]
fn an_entity_tag_of_other_parts_tells_nothing() {
    let Some(minio) = Minio::shared() else { return };
    let fixture = Fixture::new(minio.endpoint(), &minio.root());
    fixture.put("damaged", "7MiB", "");
    fixture.push("").ok();
    fixture.push("--check-existing").ok();
    LargePath::assert_pulls(&fixture.scratch);
}

/// The entity tag of an object that is encrypted with a KMS key is not an MD5 hash, although it looks like one.
#[test]
fn an_entity_tag_of_an_object_encrypted_with_a_kms_key_tells_nothing() {
    let Some(minio) = Minio::shared() else { return };
    let fixture = Fixture::new(minio.endpoint(), &minio.root());
    for part_size in PART_SIZES {
        fixture.put("nar", part_size, "--sse aws:kms --sse-kms-key-id cache-key");
        fixture.push("").ok();
        fixture.put("damaged", part_size, "--sse aws:kms --sse-kms-key-id cache-key");
        fixture.push("--check-existing").ok();
        LargePath::assert_pulls(&fixture.scratch);
    }
}

/// The upload finds the object only when it is completed, because the body of `--key` has no known size.
#[test]
fn a_damaged_object_that_the_completion_meets_is_replaced() {
    let Some(minio) = Minio::shared() else { return };
    let fixture = Fixture::new(minio.endpoint(), &minio.root());
    fixture.put("damaged", "5MiB", "");
    let key = &fixture.path.nar_key;
    let pushed = fixture.scratch.sh(&format!("s3-push --part-size 5MiB \"$C\" --key {key} < nar"));
    pushed.ok();
    assert!(pushed.stderr.contains("has been replaced"), "{}", pushed.stderr);
    assert!(minio.get(&fixture.bucket, key) == fixture.path.nar);
    assert_eq!(minio.incomplete_uploads(&fixture.bucket), Vec::<String>::new());
}
