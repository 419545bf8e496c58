//! How `s3-pull` reads: by ranges, after a reset, from an object that changes, through a proxy, over TLS, with a password,
//! without credentials.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::fixtures::forgery::{Forged, Forger, file_nar, objects, small_nar};
use crate::fixtures::site::{PUBLISH, Site};
use cache_tests::lying_server::{Answer, Asked, LyingServer, Objects, etag};
use cache_tests::tls_front::TlsFront;
use cache_tests::{CommandOutput, Credentials, Minio, Random, Scratch};
use narinfo_gen::compression::Compression;

const MIB: usize = 1 << 20;

/// A user who trusts a forger, and a path of the forger's.
struct Scene {
    scratch: Scratch,
    forger: Forger,
}

impl Scene {
    fn new() -> Self {
        let mut scratch = Scratch::new();
        let forger = Forger::new();
        scratch.env("NIX_CONFIG", format!("trusted-public-keys = {}\n", forger.public()));
        Credentials::random().apply(&mut scratch);
        Self { scratch, forger }
    }

    /// A path whose NAR of random bytes comes in ranges.
    fn large(&self) -> Forged {
        let contents = Random::new(1).bytes(18 * MIB + 12_345);
        self.forger.path("large", file_nar(&contents), Compression::None, &[])
    }

    fn pull(&self, url: &str, args: &str, path: &Forged) -> CommandOutput {
        self.scratch.sh(&format!("s3-pull --root out {args} '{url}' {}", path.full_path()))
    }

    /// Pulls, and asserts that the path is as it should be.
    #[track_caller]
    fn pulls(&self, url: &str, args: &str, path: &Forged) -> String {
        let output = self.pull(url, args, path);
        assert_eq!(output.status, 0, "{}", output.stderr);
        assert!(path.lies_below(&self.scratch.path().join("out")));
        output.stderr
    }
}

fn of_nar<'a>(asked: &'a [Asked], path: &'a Forged) -> impl Iterator<Item = &'a Asked> {
    asked.iter().filter(|asked| asked.key == path.narinfo.url)
}

#[test]
fn a_large_object_comes_in_ranges_of_one_entity_tag() {
    let scene = Scene::new();
    let large = scene.large();
    let server = LyingServer::start({
        let all = objects([&large]);
        move |asked| Answer::honest(&all, asked)
    });
    for url in [server.http_url(), server.s3_url()] {
        scene.pulls(&url, "", &large);
        scene.scratch.sh("chmod -R u+w out; rm -r out").ok();
    }
    let asked = server.asked();
    let mut begins: Vec<usize> = of_nar(&asked, &large).map(|asked| asked.range().unwrap().0).collect();
    begins.sort_unstable();
    let expected: Vec<usize> = (0..5).flat_map(|range| [range * 4 * MIB; 2]).collect();
    assert_eq!(begins, expected);
    let pinned = of_nar(&asked, &large).filter(|asked| asked.header("if-match").is_some());
    assert_eq!(pinned.count(), 8, "every range but the first is bound to what the first one was of");
}

#[test]
fn a_small_object_comes_in_one_request() {
    let scene = Scene::new();
    let small = scene.forger.path("small", small_nar(b's'), Compression::Zstd, &[]);
    let server = LyingServer::start({
        let all = objects([&small]);
        move |asked| Answer::honest(&all, asked)
    });
    scene.pulls(&server.http_url(), "", &small);
    let asked = server.asked();
    let of_nar: Vec<&Asked> = of_nar(&asked, &small).collect();
    assert!(of_nar.len() == 1 && of_nar[0].range().is_none(), "{of_nar:?}");
}

#[test]
fn a_body_that_breaks_off_is_continued_where_it_was() {
    let scene = Scene::new();
    let contents = Random::new(2).bytes(2 * MIB);
    let path = scene.forger.path("broken", file_nar(&contents), Compression::None, &[]);
    let (all, victim) = (objects([&path]), path.clone());
    let server = LyingServer::start(move |asked| {
        if asked.key == victim.narinfo.url && asked.range().is_none() {
            // The whole is promised, and an entity tag, but only a half comes.
            let honest = etag(&victim.file);
            return Answer::stated(&victim.file[..MIB], victim.file.len() as u64).header("ETag", honest);
        }
        Answer::honest(&all, asked)
    });
    for url in [server.http_url(), server.s3_url()] {
        scene.pulls(&url, "", &path);
        scene.scratch.sh("chmod -R u+w out; rm -r out").ok();
    }
    let asked = server.asked();
    let ranges: Vec<_> =
        of_nar(&asked, &path).map(|asked| (asked.range(), asked.header("if-match").is_some())).collect();
    let end = Some(path.file.len() - 1);
    assert_eq!(ranges, [(None, false), (Some((MIB, end)), true), (None, false), (Some((MIB, end)), true)]);
}

#[test]
fn bytes_of_two_objects_are_never_mixed() {
    let scene = Scene::new();
    let large = scene.large();
    let mut other = large.file.clone();
    let last = other.len() - 1;
    other[last - MIB] ^= 1;
    for changes_at in [1, 3] {
        let (old, mut new): (Objects, Objects) = (objects([&large]), objects([&large]));
        new.insert(large.narinfo.url.clone(), other.clone());
        let (url, count) = (large.narinfo.url.clone(), Arc::new(AtomicUsize::new(0)));
        // After some requests another object is there, and for one more round the first again.
        let server = LyingServer::start(move |asked| {
            let changed =
                asked.key == url && (changes_at..changes_at + 3).contains(&count.fetch_add(1, Ordering::Relaxed));
            Answer::honest(if changed { &new } else { &old }, asked)
        });
        scene.pulls(&server.http_url(), "", &large);
        scene.scratch.sh("chmod -R u+w out; rm -r out").ok();
    }
}

#[test]
fn a_server_without_ranges_or_without_entity_tags_will_do() {
    let scene = Scene::new();
    let large = scene.large();
    let (whole, all) = (large.clone(), objects([&large]));
    let server = LyingServer::start(move |asked| {
        if asked.key == whole.narinfo.url {
            return Answer::stated(whole.file.clone(), whole.file.len() as u64);
        }
        Answer::honest(&all, asked)
    });
    for url in [server.http_url(), server.s3_url()] {
        scene.pulls(&url, "", &large);
        scene.scratch.sh("chmod -R u+w out; rm -r out").ok();
    }
    assert!(of_nar(&server.asked(), &large).all(|asked| asked.header("if-match").is_none()));
}

/// A file may be full of frames with nothing in them, of which each takes its time.
#[test]
fn a_file_out_of_which_nothing_comes_is_given_up() {
    let scene = Scene::new();
    let contents = Random::new(3).bytes(40 * MIB);
    let path = scene.forger.path("tiny", file_nar(&contents), Compression::Zstd, &[]);
    let empty = b"\x28\xb5\x2f\xfd\x20\x00\x01\x00\x00";
    let file = [empty.repeat(30 * MIB / empty.len()), path.file[..MIB].to_vec()].concat();
    let small = scene.forger.path("small", small_nar(b's'), Compression::Zstd, &[]);
    let url = path.narinfo.url.clone();
    let filler = small.clone().filed("nar/filler.nar.zst".to_owned(), empty.repeat(MIB / empty.len()));
    let server = LyingServer::start({
        let all = objects([&path.clone().filed(url, file), &filler]);
        move |asked| Answer::honest(&all, asked)
    });
    for path in [&path, &small] {
        let said = scene.pull(&server.http_url(), "", path).fails(1);
        assert!(said.contains(path.narinfo.path.base_name()), "{said}");
    }
}

/// A cache that fails is asked last from then on, which is said once; all paths come from the other one.
#[test]
fn a_cache_that_fails_is_asked_last() {
    let scene = Scene::new();
    let paths: Vec<Forged> =
        (0..20_u8).map(|n| scene.forger.path(&format!("path-{n}"), small_nar(n), Compression::Zstd, &[])).collect();
    let all = objects(&paths);
    let good = LyingServer::start({
        let all = all.clone();
        move |asked| Answer::honest(&all, asked)
    });
    let bad = LyingServer::start(move |asked| {
        if asked.key.starts_with("nar/") { Answer::status(500) } else { Answer::honest(&all, asked) }
    });
    let list: Vec<String> = paths.iter().map(Forged::full_path).collect();
    let said = scene.scratch.sh(&format!(
        "s3-pull --attempts 2 --jobs 1 --root out {} {} {}",
        bad.http_url(),
        good.http_url(),
        list.join(" ")
    ));
    assert_eq!(said.status, 0, "{}", said.stderr);
    assert!(paths.iter().all(|path| path.lies_below(&scene.scratch.path().join("out"))));
    assert_eq!(said.stderr.matches("tried last from now on").count(), 1, "{}", said.stderr);
    let failed = bad.asked().iter().filter(|asked| asked.key.starts_with("nar/")).count();
    assert!(failed < paths.len(), "{failed} requests to a cache that fails");
}

#[test]
fn proxies_come_from_the_environment() {
    let mut scene = Scene::new();
    let path = scene.forger.path("behind", small_nar(b'p'), Compression::Zstd, &[]);
    let server = LyingServer::start({
        let all = objects([&path]);
        move |asked| Answer::honest(&all, asked)
    });
    scene.scratch.env("HTTP_PROXY", format!("http://{}", server.endpoint()));
    scene.pulls("http://no-such-host.invalid/cache", "", &path);
    scene.scratch.sh("chmod -R u+w out; rm -r out").ok();
    scene.pulls("s3://cache?endpoint=no-such-host.invalid&scheme=http&region=us-east-1", "", &path);
    assert!(server.asked().iter().all(|asked| asked.header("host") == Some("no-such-host.invalid")));
    scene.scratch.env("NO_PROXY", "no-such-host.invalid").env("AWS_MAX_ATTEMPTS", "1");
    let said = scene.pull("http://no-such-host.invalid/cache", "", &path).fails(2);
    assert!(said.contains("cannot connect"), "{said}");
}

#[test]
fn tls_roots_are_those_of_the_system() {
    let mut scene = Scene::new();
    let path = scene.forger.path("secure", small_nar(b't'), Compression::Zstd, &[]);
    let server = LyingServer::start({
        let all = objects([&path]);
        move |asked| Answer::honest(&all, asked)
    });
    let front = TlsFront::start(server.endpoint());
    let https = format!("https://{}/cache", front.endpoint());
    let s3 = format!("s3://cache?endpoint={}&scheme=https&region=us-east-1", front.endpoint());
    scene.scratch.env("AWS_MAX_ATTEMPTS", "1");
    for url in [&https, &s3] {
        let said = scene.pull(url, "", &path).fails(2);
        assert!(said.contains("certificate"), "{said}");
    }
    fs::write(scene.scratch.path().join("ca.pem"), front.certificate()).unwrap();
    scene.scratch.env("SSL_CERT_FILE", scene.scratch.path().join("ca.pem"));
    for url in [&https, &s3] {
        scene.pulls(url, "", &path);
        scene.scratch.sh("chmod -R u+w out; rm -r out").ok();
    }
}

#[test]
fn passwords_come_from_netrc() {
    let scene = Scene::new();
    let path = scene.forger.path("private", small_nar(b'n'), Compression::Zstd, &[]);
    let all = objects([&path]);
    let server = LyingServer::start(move |asked| match asked.header("authorization") {
        // printf 'ann:se#cret' | base64
        Some("Basic YW5uOnNlI2NyZXQ=") => Answer::honest(&all, asked),
        _ => Answer::status(401),
    });
    let said = scene.pull(&server.http_url(), "", &path).fails(2);
    assert!(said.contains("401") && said.contains("netrc"), "{said}");
    let dir = scene.scratch.path();
    fs::write(dir.join("netrc"), "machine 127.0.0.1 login ann password se#cret\n").unwrap();
    scene.pulls(&server.http_url(), "--netrc-file netrc", &path);
    scene.scratch.sh("chmod -R u+w out; rm -r out; mkdir -p home; cp netrc home/.netrc").ok();
    scene.pulls(&server.http_url(), "", &path);
    fs::write(dir.join("netrc"), "machine 127.0.0.1 login ann password wrong\n").unwrap();
    let said = scene.pull(&server.http_url(), "--netrc-file netrc --verify-existing", &path).fails(2);
    assert!(said.contains("401") && !said.contains("wrong"), "{said}");
    let said = scene.pull(&server.http_url(), "--netrc-file nowhere", &path).fails(2);
    assert!(said.contains("nowhere"), "{said}");
}

/// A closure in a fresh bucket, `$C`.
fn published(minio: &Minio) -> (Site, String) {
    let mut site = Site::new();
    let bucket = minio.make_bucket();
    minio.root().apply(&mut site.scratch);
    site.scratch.env("C", minio.cache_url(&bucket));
    site.scratch.sh(PUBLISH).ok();
    (site, bucket)
}

/// Without credentials a public bucket is read all the same, and of one that is not public it is said what is missing.
#[test]
fn a_public_bucket_needs_no_credentials() {
    let Some(minio) = Minio::shared() else { return };
    let (site, bucket) = published(minio);
    let nobody = |script: &str| site.scratch.sh(&format!("unset AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY; {script}"));
    let said = nobody("s3-pull -r --root out \"$C\" \"$TOP\"").fails(2);
    assert!(said.contains("no AWS credentials found") && said.contains("403"), "{said}");
    let policy = site.scratch.sh(&format!("cache-policy --read-only {bucket}")).ok();
    minio.set_bucket_policy(&bucket, &policy);
    nobody("s3-pull -r --root out \"$C\" \"$TOP\"").ok();
    site.assert_trees("out");
}

/// Who may list but not read is told so, and does not take the cache for empty.
#[test]
fn a_cache_that_may_be_listed_but_not_read_is_not_empty() {
    let Some(minio) = Minio::shared() else { return };
    let (mut site, bucket) = published(minio);
    let lister = minio.add_user(&format!(
        "{{\"Version\":\"2012-10-17\",\"Statement\":[{{\"Effect\":\"Allow\",\"Action\":[\"s3:ListBucket\"],\
         \"Resource\":[\"arn:aws:s3:::{bucket}\"]}}]}}"
    ));
    lister.apply(&mut site.scratch);
    let said = site.scratch.sh("s3-pull --list --all \"$C\"").fails(2);
    assert!(said.contains("s3:GetObject"), "{said}");
}
