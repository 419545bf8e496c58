//! NARs that several paths name, that nothing needs, or whose keys are taken: the result depends neither on the memory nor on
//! what the service supports.

use std::fs;

use crate::fixtures::bucket::{nar_keys, snapshot};
use crate::fixtures::malicious_cache::{Attacker, CachedPath, file_nar, objects};
use crate::fixtures::s3_calls::S3Client;
use cache_tests::{CommandOutput, EmbeddedS3, Minio, Random, Scratch};
use narinfo_gen::compression::Compression;

const MIB: usize = 1 << 20;
/// Little memory, so that what no path has needed so far cannot wait in it.
const SHORT: &str = "--memory 10MiB --part-size 5MiB";

/// A bucket `$C`, and paths signed by one key.
struct Test<'a> {
    s3: &'a EmbeddedS3,
    bucket: String,
    scratch: Scratch,
    attacker: Attacker,
}

impl<'a> Test<'a> {
    fn new(s3: &'a EmbeddedS3) -> Self {
        let (mut scratch, bucket) = (Scratch::new(), s3.make_bucket());
        s3.credentials().apply(&mut scratch);
        scratch.env("C", s3.cache_url(&bucket));
        scratch.dir("d");
        Self { s3, bucket, scratch, attacker: Attacker::new() }
    }

    /// Returns an uncompressed path whose file has `size` random bytes.
    fn path(&self, name: &str, seed: u64, size: usize, references: &[&CachedPath]) -> CachedPath {
        self.attacker.path(name, file_nar(&Random::new(seed).bytes(size)), Compression::None, references)
    }

    /// Writes the objects of the paths to the directory `d`.
    fn write(&self, paths: &[&CachedPath]) {
        for (key, bytes) in objects(paths.iter().copied()) {
            let file = self.scratch.path().join("d").join(key);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, bytes).unwrap();
        }
    }

    /// Pushes members of an archive in this order: NARs and narinfos of the paths.
    fn push(&self, options: &str, paths: &[&CachedPath], members: &[String]) -> CommandOutput {
        self.write(paths);
        let members = members.join(" ");
        self.scratch.sh(&format!("tar c -C d nix-cache-info {members} | s3-push --no-nix {options} \"$C\""))
    }

    fn nars(&self) -> Vec<String> {
        nar_keys(&snapshot(self.s3, &self.bucket)).iter().map(|&key| key.to_owned()).collect()
    }

    fn has(&self, path: &CachedPath) -> bool {
        self.s3.objects(&self.bucket).contains(&path.narinfo.key())
    }
}

/// The members of a path, NAR first.
fn members(path: &CachedPath) -> [String; 2] {
    [path.narinfo.url.clone(), path.narinfo.key()]
}

fn all_members<'a>(paths: impl IntoIterator<Item = &'a CachedPath>) -> Vec<String> {
    paths.into_iter().flat_map(members).collect()
}

#[test]
fn a_nar_without_a_hash_in_its_key_replaces_no_other_nar() {
    for (ignores_conditions, size) in [(true, MIB), (true, 6 * MIB), (false, MIB), (false, 6 * MIB)] {
        let own = ignores_conditions.then(EmbeddedS3::start_ignoring_conditions);
        let test = Test::new(own.as_ref().unwrap_or_else(|| EmbeddedS3::shared()));
        let stored = |path: CachedPath| {
            let file = path.file.clone();
            path.stored_as("nar/x.nar".to_owned(), file)
        };
        let (first, second) =
            (stored(test.path("first", 1, size, &[])), stored(test.path("second", 2, size + 4096, &[])));
        test.push("--part-size 5MiB", &[&first], &members(&first)).ok();
        let output = test.push("--part-size 5MiB", &[&second], &members(&second));
        let stderr = output.fails(1);
        assert!(stderr.contains("another NAR may have this key"), "{size}: {stderr}");
        assert!(test.s3.get(&test.bucket, "nar/x.nar") == first.file, "{size}: the NAR was replaced");
        assert!(!test.has(&second), "{size}");
    }
}

/// A NAR waits for the reference of its path until memory is short, and another object is under its key.
#[test]
fn a_damaged_object_is_replaced_despite_little_memory() {
    let test = Test::new(EmbeddedS3::shared());
    let last = test.path("last", 1, 1000, &[]);
    let first = test.path("first", 2, MIB, &[&last]);
    let others: Vec<CachedPath> = (0..24).map(|n| test.path(&format!("other-{n}"), 10 + n, MIB, &[])).collect();
    let mut damaged = first.file.clone();
    damaged[5000] ^= 1;
    test.s3.put(&test.bucket, &first.narinfo.url, &damaged);
    let paths: Vec<&CachedPath> = [&first].into_iter().chain(&others).chain([&last]).collect();
    let output = test.push(SHORT, &paths, &all_members(paths.iter().copied()));
    output.ok();
    assert!(output.stderr.contains("the object was damaged and has been replaced"), "{}", output.stderr);
    assert!(test.s3.get(&test.bucket, &first.narinfo.url) == first.file);
}

/// It is sent in parts before its narinfo is known.
#[test]
fn a_large_nar_of_a_path_that_needs_none_is_not_left_in_the_bucket() {
    let test = Test::new(EmbeddedS3::shared());
    let path = test.path("large", 1, 6 * MIB, &[]);
    let push = |path: &CachedPath| test.push("--part-size 5MiB", &[path], &members(path));
    push(&path).ok();
    let before = test.nars();
    // The same contents with another compression, and other contents.
    for other in
        [test.attacker.path("large", path.nar.clone(), Compression::Gzip, &[]), test.path("large", 2, 6 * MIB, &[])]
    {
        let output = push(&other);
        output.ok();
        assert!(output.stderr.contains("1 already present"), "{}", output.stderr);
        assert_eq!(test.nars(), before);
    }
    // A link that was published before the narinfo was known does not dangle.
    let other = test.attacker.path("large", path.nar.clone(), Compression::Gzip, &[]);
    let link = format!("debuginfo/{}.debug", "ab".repeat(20));
    test.scratch.dir("d/debuginfo");
    let json = format!("{{\"archive\":\"../{}\",\"member\":\"lib/debug/x\"}}", other.narinfo.url);
    fs::write(test.scratch.path().join("d").join(&link), json).unwrap();
    let [nar, narinfo] = members(&other);
    test.push("--part-size 5MiB", &[&other], &[nar.clone(), link, narinfo]).ok();
    assert!(test.nars().contains(&nar));
}

/// The keys have no hash, and the objects under them have another size.
#[test]
fn paths_with_other_contents_do_not_stop_a_push_that_has_little_memory() {
    let test = Test::new(EmbeddedS3::shared());
    let paths = |seed: u64, size: usize| -> Vec<CachedPath> {
        let stored = |n: u64| {
            let path = test.path(&format!("path-{n}"), seed + n, size, &[]);
            let file = path.file.clone();
            path.stored_as(format!("nar/p{n}.nar"), file)
        };
        (0..24).map(stored).collect()
    };
    for (paths, word) in [(paths(0, MIB), "24 sent"), (paths(100, MIB + 4096), "24 with other contents")] {
        let all: Vec<&CachedPath> = paths.iter().collect();
        let output = test.push(SHORT, &all, &all_members(&paths));
        output.ok();
        assert!(output.stderr.contains(word), "{}", output.stderr);
    }
}

/// The first narinfo of a path is wrong, and a path references it.
#[test]
fn a_path_whose_second_narinfo_is_right_is_published_with_its_referrers() {
    let test = Test::new(EmbeddedS3::shared());
    let right = test.path("path", 1, 1000, &[]);
    let wrong = right.clone().with(|narinfo| narinfo.nar_size += 8);
    let referrer = test.path("referrer", 2, 1000, &[&right]);
    let [nar, narinfo] = members(&right);
    test.scratch.dir("first");
    fs::write(test.scratch.path().join("first").join(&narinfo), wrong.narinfo.to_string()).unwrap();
    test.write(&[&right, &referrer]);
    let rest = members(&referrer).join(" ");
    let script = format!(
        "tar c -C d {nar} > a; tar r -f a -C first {narinfo}; tar r -f a -C d {narinfo} {rest}
         s3-push --no-nix \"$C\" < a"
    );
    let stderr = test.scratch.sh(&script).fails(1);
    assert!(test.has(&right) && test.has(&referrer), "{stderr}");
}

/// Two narinfos of one path, of which the service would keep the last.
#[test]
fn narinfos_of_one_path_are_merged_where_the_service_ignores_conditions() {
    let s3 = EmbeddedS3::start_ignoring_conditions();
    let test = Test::new(&s3);
    let first = test.path("path", 1, 1000, &[]);
    let second = Attacker::new().signed(first.clone());
    let narinfos = format!("{}\n{}", first.narinfo, second.narinfo);
    test.push("", &[&first], &members(&first)[..1]).ok();
    test.scratch.sh_with_input("s3-push -q \"$C\"", narinfos.as_bytes()).ok();
    let found = String::from_utf8(s3.get(&test.bucket, &first.narinfo.key())).unwrap();
    assert_eq!(found.matches("Sig: ").count(), 2, "{found}");
    // Other contents, in one archive: the first one stays, and a path that references it is published.
    let (kept, other) = (test.path("twice", 2, 1000, &[]), test.path("twice", 3, 1000, &[]));
    let referrer = test.path("referrer", 4, 1000, &[&kept]);
    let (kept_keys, other_keys) = (members(&kept), members(&other));
    test.push("", &[&kept], &kept_keys[..1]).ok();
    fs::write(test.scratch.path().join("kept"), kept.narinfo.to_string()).unwrap();
    let script = format!(
        "mkdir first; cp kept first/{key}; tar c -C d {nar} > a; tar r -f a -C first {key}",
        key = kept_keys[1],
        nar = kept_keys[0]
    );
    test.scratch.sh(&script).ok();
    test.write(&[&other, &referrer]);
    let keys = [&other_keys[..], &members(&referrer)[..]].concat().join(" ");
    let output = test.scratch.sh(&format!("tar r -f a -C d {keys}; s3-push --no-nix \"$C\" < a"));
    output.ok();
    assert!(output.stderr.contains("1 with other contents"), "{}", output.stderr);
    let found = String::from_utf8(s3.get(&test.bucket, &kept.narinfo.key())).unwrap();
    assert_eq!(found, kept.narinfo.to_string());
    assert!(test.has(&referrer));
}

/// Another process sends a NAR in parts, and this one is refused after it has continued the upload.
#[test]
fn a_refused_push_does_not_abort_the_upload_of_another_process() {
    let Some(minio) = Minio::shared() else { return };
    let mut test = Test::new(EmbeddedS3::shared());
    let (bucket, missing) = (minio.make_bucket(), test.path("missing", 1, 1000, &[]));
    let path = test.path("large", 2, 11 * MIB, &[&missing]);
    let owner = S3Client::new(&minio.endpoint(), Some(&minio.root()));
    let key = &path.narinfo.url;
    let id = owner.create_multipart_upload(&bucket, key).unwrap();
    owner.upload_part(&bucket, key, &id, 1, &path.file[..5 * MIB]);
    minio.root().apply(&mut test.scratch);
    test.scratch.env("C", minio.cache_url(&bucket));
    let stderr = test.push("--part-size 5MiB", &[&path], &members(&path)).fails(1);
    assert!(stderr.contains("neither in the cache nor in this push"), "{stderr}");
    assert!(owner.list_parts(&bucket, key, &id).is_ok(), "the upload was aborted: {stderr}");
}

/// The link is so slow that a body takes longer than the timeout, with which the first attempt begins.
#[test]
fn an_upload_over_a_slow_link_succeeds() {
    let s3 = EmbeddedS3::shared();
    let mut test = Test::new(s3);
    let path = test.path("large", 1, 3 * MIB, &[]);
    let proxy = cache_tests::DelayProxy::start_with(&s3.endpoint(), 0, Some(10));
    test.scratch.env("C", s3.cache_url(&test.bucket).replace(&s3.endpoint(), proxy.endpoint()));
    test.push("--idle-timeout 1s --attempts 4", &[&path], &members(&path)).ok();
    assert!(test.has(&path));
}
