//! How `s3-pull` reads: ranges, resumed bodies, changing objects, proxies, TLS, passwords, and anonymous access.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::fixtures::closure_fixture::{Fixture, PUBLISH};
use crate::fixtures::malicious_cache::{Attacker, CachedPath, file_nar, objects, small_nar};
use cache_tests::lying_server::{LyingServer, Objects, Request, Response, etag};
use cache_tests::tls_front::TlsFront;
use cache_tests::{CommandOutput, Credentials, Minio, Random, Scratch};
use narinfo_gen::compression::Compression;

const MIB: usize = 1 << 20;

/// A user who trusts the key of an attacker.
struct PullFixture {
    scratch: Scratch,
    attacker: Attacker,
}

impl PullFixture {
    fn new() -> Self {
        let mut scratch = Scratch::new();
        let attacker = Attacker::new();
        scratch.env("NIX_CONFIG", format!("trusted-public-keys = {}\n", attacker.public()));
        Credentials::random().apply(&mut scratch);
        Self { scratch, attacker }
    }

    /// Returns a path whose NAR of random bytes is fetched in ranges.
    fn large(&self) -> CachedPath {
        let contents = Random::new(1).bytes(18 * MIB + 12_345);
        self.attacker.path("large", file_nar(&contents), Compression::None, &[])
    }

    fn pull(&self, url: &str, args: &str, path: &CachedPath) -> CommandOutput {
        self.scratch.sh(&format!("s3-pull --root out {args} '{url}' {}", path.full_path()))
    }

    /// Pulls and asserts that the path is correct; returns standard error.
    #[track_caller]
    fn pulls(&self, url: &str, args: &str, path: &CachedPath) -> String {
        let output = self.pull(url, args, path);
        assert_eq!(output.status, 0, "{}", output.stderr);
        assert!(path.is_in_root(&self.scratch.path().join("out")));
        output.stderr
    }
}

fn nar_requests<'a>(requests: &'a [Request], path: &'a CachedPath) -> impl Iterator<Item = &'a Request> {
    requests.iter().filter(|request| request.key == path.narinfo.url)
}

#[test]
fn a_large_object_is_fetched_in_ranges_with_one_entity_tag() {
    let fixture = PullFixture::new();
    let large = fixture.large();
    let server = LyingServer::start({
        let all = objects([&large]);
        move |request| Response::correct(&all, request)
    });
    for url in [server.http_url(), server.s3_url()] {
        fixture.pulls(&url, "", &large);
        fixture.scratch.sh("chmod -R u+w out; rm -r out").ok();
    }
    let requests = server.requests();
    let mut begins: Vec<usize> = nar_requests(&requests, &large).map(|request| request.range().unwrap().0).collect();
    begins.sort_unstable();
    let expected: Vec<usize> = (0..5).flat_map(|range| [range * 4 * MIB; 2]).collect();
    assert_eq!(begins, expected);
    let pinned = nar_requests(&requests, &large).filter(|request| request.header("if-match").is_some());
    assert_eq!(pinned.count(), 8, "every range but the first is requested with the entity tag of the first");
}

#[test]
fn a_small_object_is_fetched_in_one_request() {
    let fixture = PullFixture::new();
    let small = fixture.attacker.path("small", small_nar(b's'), Compression::Zstd, &[]);
    let server = LyingServer::start({
        let all = objects([&small]);
        move |request| Response::correct(&all, request)
    });
    fixture.pulls(&server.http_url(), "", &small);
    let requests = server.requests();
    let nar_requests: Vec<&Request> = nar_requests(&requests, &small).collect();
    assert!(nar_requests.len() == 1 && nar_requests[0].range().is_none(), "{nar_requests:?}");
}

#[test]
fn an_interrupted_body_is_resumed() {
    let fixture = PullFixture::new();
    let contents = Random::new(2).bytes(2 * MIB);
    let path = fixture.attacker.path("broken", file_nar(&contents), Compression::None, &[]);
    let (all, victim) = (objects([&path]), path.clone());
    let server = LyingServer::start(move |request| {
        if request.key == victim.narinfo.url && request.range().is_none() {
            // The response has the whole length and an entity tag, but half of the bytes.
            let etag = etag(&victim.file);
            return Response::with_length(&victim.file[..MIB], victim.file.len() as u64).header("ETag", etag);
        }
        Response::correct(&all, request)
    });
    for url in [server.http_url(), server.s3_url()] {
        fixture.pulls(&url, "", &path);
        fixture.scratch.sh("chmod -R u+w out; rm -r out").ok();
    }
    let requests = server.requests();
    let ranges: Vec<_> =
        nar_requests(&requests, &path).map(|request| (request.range(), request.header("if-match").is_some())).collect();
    let end = Some(path.file.len() - 1);
    assert_eq!(ranges, [(None, false), (Some((MIB, end)), true), (None, false), (Some((MIB, end)), true)]);
}

#[test]
fn bytes_of_two_objects_are_never_mixed() {
    let fixture = PullFixture::new();
    let large = fixture.large();
    let mut other = large.file.clone();
    let last = other.len() - 1;
    other[last - MIB] ^= 1;
    for changes_at in [1, 3] {
        let (old, mut new): (Objects, Objects) = (objects([&large]), objects([&large]));
        new.insert(large.narinfo.url.clone(), other.clone());
        let (url, count) = (large.narinfo.url.clone(), Arc::new(AtomicUsize::new(0)));
        // After some requests the object is replaced, and after some more it is restored.
        let server = LyingServer::start(move |request| {
            let changed =
                request.key == url && (changes_at..changes_at + 3).contains(&count.fetch_add(1, Ordering::Relaxed));
            Response::correct(if changed { &new } else { &old }, request)
        });
        fixture.pulls(&server.http_url(), "", &large);
        fixture.scratch.sh("chmod -R u+w out; rm -r out").ok();
    }
}

#[test]
fn a_server_without_ranges_or_entity_tags_is_supported() {
    let fixture = PullFixture::new();
    let large = fixture.large();
    let (whole, all) = (large.clone(), objects([&large]));
    let server = LyingServer::start(move |request| {
        if request.key == whole.narinfo.url {
            return Response::with_length(whole.file.clone(), whole.file.len() as u64);
        }
        Response::correct(&all, request)
    });
    for url in [server.http_url(), server.s3_url()] {
        fixture.pulls(&url, "", &large);
        fixture.scratch.sh("chmod -R u+w out; rm -r out").ok();
    }
    assert!(nar_requests(&server.requests(), &large).all(|request| request.header("if-match").is_none()));
}

/// A file may consist of empty frames, each of which takes time to decompress.
#[test]
fn a_file_that_decompresses_to_nothing_is_refused() {
    let fixture = PullFixture::new();
    let contents = Random::new(3).bytes(40 * MIB);
    let path = fixture.attacker.path("tiny", file_nar(&contents), Compression::Zstd, &[]);
    let empty = b"\x28\xb5\x2f\xfd\x20\x00\x01\x00\x00";
    let file = [empty.repeat(30 * MIB / empty.len()), path.file[..MIB].to_vec()].concat();
    let small = fixture.attacker.path("small", small_nar(b's'), Compression::Zstd, &[]);
    let url = path.narinfo.url.clone();
    let filler = small.clone().stored_as("nar/filler.nar.zst".to_owned(), empty.repeat(MIB / empty.len()));
    let server = LyingServer::start({
        let all = objects([&path.clone().stored_as(url, file), &filler]);
        move |request| Response::correct(&all, request)
    });
    for path in [&path, &small] {
        let stderr = fixture.pull(&server.http_url(), "", path).fails(1);
        assert!(stderr.contains(path.narinfo.path.base_name()), "{stderr}");
    }
}

/// A failing cache is tried last from then on, which is reported once; all paths come from the other one.
#[test]
fn a_failing_cache_is_used_last() {
    let fixture = PullFixture::new();
    let paths: Vec<CachedPath> =
        (0..20_u8).map(|n| fixture.attacker.path(&format!("path-{n}"), small_nar(n), Compression::Zstd, &[])).collect();
    let all = objects(&paths);
    let good = LyingServer::start({
        let all = all.clone();
        move |request| Response::correct(&all, request)
    });
    let bad = LyingServer::start(move |request| {
        if request.key.starts_with("nar/") { Response::status(500) } else { Response::correct(&all, request) }
    });
    let list: Vec<String> = paths.iter().map(CachedPath::full_path).collect();
    let output = fixture.scratch.sh(&format!(
        "s3-pull --attempts 2 --jobs 1 --root out {} {} {}",
        bad.http_url(),
        good.http_url(),
        list.join(" ")
    ));
    assert_eq!(output.status, 0, "{}", output.stderr);
    assert!(paths.iter().all(|path| path.is_in_root(&fixture.scratch.path().join("out"))));
    assert_eq!(output.stderr.matches("tried last from now on").count(), 1, "{}", output.stderr);
    let failed = bad.requests().iter().filter(|request| request.key.starts_with("nar/")).count();
    assert!(failed < paths.len(), "{failed} requests to a cache that fails");
}

#[test]
fn proxies_are_read_from_the_environment() {
    let mut fixture = PullFixture::new();
    let path = fixture.attacker.path("behind", small_nar(b'p'), Compression::Zstd, &[]);
    let server = LyingServer::start({
        let all = objects([&path]);
        move |request| Response::correct(&all, request)
    });
    fixture.scratch.env("HTTP_PROXY", format!("http://{}", server.endpoint()));
    fixture.pulls("http://no-such-host.invalid/cache", "", &path);
    fixture.scratch.sh("chmod -R u+w out; rm -r out").ok();
    fixture.pulls("s3://cache?endpoint=no-such-host.invalid&scheme=http&region=us-east-1", "", &path);
    assert!(server.requests().iter().all(|request| request.header("host") == Some("no-such-host.invalid")));
    fixture.scratch.env("NO_PROXY", "no-such-host.invalid").env("AWS_MAX_ATTEMPTS", "1");
    let stderr = fixture.pull("http://no-such-host.invalid/cache", "", &path).fails(2);
    assert!(stderr.contains("cannot connect"), "{stderr}");
}

#[test]
fn the_trust_store_of_the_system_is_used() {
    let mut fixture = PullFixture::new();
    let path = fixture.attacker.path("secure", small_nar(b't'), Compression::Zstd, &[]);
    let server = LyingServer::start({
        let all = objects([&path]);
        move |request| Response::correct(&all, request)
    });
    let front = TlsFront::start(server.endpoint());
    let https = format!("https://{}/cache", front.endpoint());
    let s3 = format!("s3://cache?endpoint={}&scheme=https&region=us-east-1", front.endpoint());
    fixture.scratch.env("AWS_MAX_ATTEMPTS", "1");
    for url in [&https, &s3] {
        let stderr = fixture.pull(url, "", &path).fails(2);
        assert!(stderr.contains("certificate"), "{stderr}");
    }
    fs::write(fixture.scratch.path().join("ca.pem"), front.certificate()).unwrap();
    fixture.scratch.env("SSL_CERT_FILE", fixture.scratch.path().join("ca.pem"));
    for url in [&https, &s3] {
        fixture.pulls(url, "", &path);
        fixture.scratch.sh("chmod -R u+w out; rm -r out").ok();
    }
}

#[test]
fn passwords_are_read_from_netrc() {
    let fixture = PullFixture::new();
    let path = fixture.attacker.path("private", small_nar(b'n'), Compression::Zstd, &[]);
    let all = objects([&path]);
    let server = LyingServer::start(move |request| match request.header("authorization") {
        // printf 'ann:se#cret' | base64
        Some("Basic YW5uOnNlI2NyZXQ=") => Response::correct(&all, request),
        _ => Response::status(401),
    });
    let stderr = fixture.pull(&server.http_url(), "", &path).fails(2);
    assert!(stderr.contains("401") && stderr.contains("netrc"), "{stderr}");
    let dir = fixture.scratch.path();
    fs::write(dir.join("netrc"), "machine 127.0.0.1 login ann password se#cret\n").unwrap();
    fixture.pulls(&server.http_url(), "--netrc-file netrc", &path);
    fixture.scratch.sh("chmod -R u+w out; rm -r out; mkdir -p home; cp netrc home/.netrc").ok();
    fixture.pulls(&server.http_url(), "", &path);
    fs::write(dir.join("netrc"), "machine 127.0.0.1 login ann password wrong\n").unwrap();
    let stderr = fixture.pull(&server.http_url(), "--netrc-file netrc --verify-existing", &path).fails(2);
    assert!(stderr.contains("HTTP 401: the server refused the user name or the password"), "{stderr}");
    assert!(!stderr.contains("wrong") && !stderr.contains("hint"), "{stderr}");
    let stderr = fixture.pull(&server.http_url(), "--netrc-file nowhere", &path).fails(2);
    assert!(stderr.contains("nowhere"), "{stderr}");
}

/// Creates a fixture with a published closure in a new bucket `$C`.
fn published(minio: &Minio) -> (Fixture, String) {
    let mut fixture = Fixture::new();
    let bucket = minio.make_bucket();
    minio.root().apply(&mut fixture.scratch);
    fixture.scratch.env("C", minio.cache_url(&bucket));
    fixture.scratch.sh(PUBLISH).ok();
    (fixture, bucket)
}

/// A public bucket is read without credentials; for any other bucket, the message states that credentials are missing.
#[test]
fn a_public_bucket_needs_no_credentials() {
    let Some(minio) = Minio::shared() else { return };
    let (fixture, bucket) = published(minio);
    let anonymous =
        |script: &str| fixture.scratch.sh(&format!("unset AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY; {script}"));
    let stderr = anonymous("s3-pull -r --root out \"$C\" \"$TOP\"").fails(2);
    assert!(stderr.contains("no AWS credentials found") && stderr.contains("403"), "{stderr}");
    let policy = fixture.scratch.sh(&format!("cache-policy --read-only {bucket}")).ok();
    minio.set_bucket_policy(&bucket, &policy);
    anonymous("s3-pull -r --root out \"$C\" \"$TOP\"").ok();
    fixture.assert_trees("out");
}

/// A client that may list but not read gets an error and does not treat the cache as empty.
#[test]
fn a_cache_that_can_be_listed_but_not_read_is_an_error() {
    let Some(minio) = Minio::shared() else { return };
    let (mut fixture, bucket) = published(minio);
    let lister = minio.add_user(&format!(
        "{{\"Version\":\"2012-10-17\",\"Statement\":[{{\"Effect\":\"Allow\",\"Action\":[\"s3:ListBucket\"],\
         \"Resource\":[\"arn:aws:s3:::{bucket}\"]}}]}}"
    ));
    lister.apply(&mut fixture.scratch);
    let stderr = fixture.scratch.sh("s3-pull --list --all \"$C\"").fails(2);
    assert!(stderr.contains("s3:GetObject"), "{stderr}");
}

/// A question mark in the name of a derivation is not the beginning of a query.
#[test]
fn the_log_of_a_derivation_with_a_question_mark_is_read_over_http() {
    let (fixture, s3, bucket, _) = Fixture::with_cache();
    fixture.scratch.sh(PUBLISH).ok();
    let deriver = format!("{}-what?x=1.drv", "0".repeat(32));
    let key = Fixture::narinfo_key(&fixture.closure.lib);
    let narinfo = String::from_utf8(s3.get(&bucket, &key)).unwrap();
    s3.put(&bucket, &key, format!("{}\nDeriver: {deriver}\n", narinfo.trim_end()).as_bytes());
    s3.put(&bucket, &format!("log/{deriver}"), b"the log\n");
    let url = s3.http_url(&bucket);
    let archive = format!("s3-pull --archive --with log --no-verify-signatures '{url}' \"$LIB\" | tar t");
    let members = fixture.scratch.sh(&archive).ok();
    assert!(members.lines().any(|member| member == format!("log/{deriver}")), "{members}");
}
