//! The outputs of a pull, from every kind of cache.

use crate::fixtures::bucket::{Fields, snapshot};
use crate::fixtures::closure_fixture::{ARCHIVE, Fixture, PUBLISH, path_in_root};
use crate::fixtures::large_path::LargePath;
use cache_tests::fault_proxy::{Fault, FaultProxy};
use cache_tests::lying_server::{LyingServer, Objects, Response};
use cache_tests::{EmbeddedS3, Scratch, cache_url};
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::panic;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

#[test]
fn a_pull_writes_every_stream() {
    let (fixture, s3, bucket) = Fixture::embedded();
    let sh = |script: &str| fixture.scratch.sh(script);
    sh(PUBLISH).ok();
    sh("nar-pack --root root --no-nix \"$LIB\" > lib.nar; s3-pull --nar \"$C\" \"$LIB\" | cmp - lib.nar").ok();
    sh("nar-pack --root root --no-nix \"$APP\" | nar-pack --list > a; s3-pull --nar \"$C\" \"$APP\" | nar-pack --list | cmp - a").ok();
    sh("nar-pack --root root --no-nix --export --stdin < paths > closure; s3-pull -r --export \"$C\" \"$TOP\" | cmp - closure").ok();
    sh("s3-pull --all --export \"$C\" | cmp - closure").ok();
    let paths = fixture.closure.paths();
    assert_eq!(sh("s3-pull -r --list \"$C\" \"$TOP\" | sort").lines(), sh("sort paths").lines());
    assert_eq!(sh("s3-pull --all --list \"$C\" | sort").lines(), sh("sort paths").lines());
    assert_eq!(sh("s3-pull --list \"$C\" \"$TOP\"").lines(), [fixture.closure.top.as_str()]);
    assert_eq!(sh("s3-pull --stdin --list \"$C\" < paths | sort").lines(), sh("sort paths").lines());
    let narinfos = sh("s3-pull -r --narinfo \"$C\" \"$TOP\"").ok();
    assert_eq!(narinfos.split("\n\n").count(), 3, "{narinfos}");
    let verified = sh("s3-pull -r --narinfo \"$C\" \"$TOP\" | cache-sign verify --trusted-public-key \"$KEY\"").ok();
    assert_eq!(verified, narinfos);
    let members = sh("s3-pull -r --archive \"$C\" \"$TOP\" | tar t").lines();
    let at =
        |key: &str| members.iter().position(|member| member == key).unwrap_or_else(|| panic!("{key} in {members:?}"));
    let objects = snapshot(s3, &bucket);
    let narinfo_at = paths.map(|path| at(&Fixture::narinfo_key(path)));
    assert!(narinfo_at.is_sorted(), "references come first: {members:?}");
    for (path, narinfo) in paths.iter().zip(narinfo_at) {
        let url = Fields::parse(&objects[&Fixture::narinfo_key(path)]).one("URL").to_owned();
        assert!(at(&url) < narinfo, "a NAR comes before its narinfo: {members:?}");
    }
}

#[test]
fn a_pull_reads_every_kind_of_cache() {
    let (fixture, s3, bucket) = Fixture::embedded();
    fixture
        .scratch
        .sh(&format!("mkdir cache; {ARCHIVE} | tee archive | tar x -C cache; s3-push --no-nix \"$C\" < archive"))
        .ok();
    fixture.assert_pulls("file://$PWD/cache", "");
    fixture.assert_pulls("$C", "");
    fixture.assert_pulls(&s3.http_url(&bucket), "");
    for url in ["file://$PWD/cache", "$C"] {
        let all = fixture.scratch.sh(&format!("s3-pull --all --list \"{url}\" | sort"));
        assert_eq!(all.lines(), fixture.scratch.sh("sort paths").lines(), "{url}");
        fixture.scratch.sh(&format!("s3-pull --all --root all-{} \"{url}\"", url.len())).ok();
        fixture.assert_trees(&format!("all-{}", url.len()));
    }
}

#[test]
fn two_pulls_share_a_root() {
    let (fixture, _, _) = Fixture::embedded();
    fixture.scratch.sh(PUBLISH).ok();
    let pull = "s3-pull -r --root out \"$C\" \"$TOP\"";
    fixture.scratch.sh(&format!("{pull} & a=$!; {pull} & b=$!; wait $a; wait $b")).ok();
    fixture.assert_trees("out");
    let left = fixture.scratch.sh("ls -A out/nix/store | wc -l").ok();
    assert_eq!(left, "3", "no temporary file remains");
}

#[test]
fn existing_paths_are_left_unchanged() {
    let (fixture, _, _) = Fixture::embedded();
    fixture.scratch.sh(PUBLISH).ok();
    fixture.scratch.sh("s3-pull --root out \"$C\" \"$LIB\"").ok();
    let lib = path_in_root(&fixture.path("out"), &fixture.closure.lib);
    let inode = |name: &str| fs::metadata(lib.join(name)).unwrap().ino();
    let before = [inode(""), inode("noise"), inode("bin/hello")];
    fixture.scratch.sh("chmod u+w \"out$LIB\"; touch \"out$LIB/marker\"").ok();
    fixture.scratch.sh("s3-pull -r --root out \"$C\" \"$TOP\"").ok();
    assert_eq!([inode(""), inode("noise"), inode("bin/hello")], before);
    assert!(lib.join("marker").exists());
}

/// The NARs that a stream opens in advance must not take the ranges that are requested ahead from the one that is being
/// written: it alone is being read.
#[test]
fn a_stream_requests_ranges_ahead_only_of_the_nar_that_it_writes() {
    let mut scratch = Scratch::new();
    let s3 = EmbeddedS3::shared();
    s3.credentials().apply(&mut scratch);
    let bucket = s3.make_bucket();
    let mut keys = Vec::new();
    for seed in [1, 2] {
        let path = LargePath::write(&mut scratch, seed, 40 << 20);
        scratch.env("C", s3.cache_url(&bucket)).sh("s3-push -q --no-nix \"$C\" < archive; echo \"$P\" >> large").ok();
        keys.push(path.nar_key);
    }
    let ranges: Arc<Mutex<Vec<String>>> = Arc::default();
    let seen = Arc::clone(&ranges);
    let proxy = FaultProxy::start(&s3.endpoint(), move |request| {
        // The first range of each NAR is requested in advance.
        if request.header("range").is_some_and(|range| !range.starts_with("bytes=0-")) {
            seen.lock().unwrap().push(request.key().to_owned());
        }
        Fault::Pass
    });
    scratch.env("C", cache_url(proxy.endpoint(), &bucket));
    scratch.sh("s3-pull --export --stdin --no-verify-signatures \"$C\" < large > export").ok();
    let order = ranges.lock().unwrap().clone();
    assert!(order.len() >= 16, "{order:?}");
    let (first, second) = order.split_at(order.len() / 2);
    assert!(first.iter().all(|key| *key == first[0]) && second.iter().all(|key| *key == second[0]), "{order:?}");
    assert!(keys.contains(&first[0]) && first[0] != second[0], "{order:?}");
}

/// The time in which a NAR waits for its turn is not the server's. Without an entity tag, it could not be continued.
#[test]
fn a_nar_that_waits_for_another_does_not_time_out() {
    let mut scratch = Scratch::new();
    scratch.env("AWS_MAX_ATTEMPTS", "2");
    let mut objects = Objects::new();
    for seed in [1, 2] {
        let path = LargePath::write(&mut scratch, seed, 20 << 20);
        scratch.sh("mkdir -p cache; tar x -C cache < archive; echo \"$P\" >> large").ok();
        objects.insert(path.nar_key, path.nar);
    }
    let cache = scratch.path().join("cache");
    for entry in fs::read_dir(&cache).unwrap().map(Result::unwrap).filter(|entry| entry.path().is_file()) {
        objects.insert(entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap());
    }
    let is_first = AtomicBool::new(true);
    let server = LyingServer::start(move |request| match objects.get(&request.key) {
        // The other is requested and waits, while the first request for this one times out.
        Some(_) if request.key.starts_with("nar/") && is_first.swap(false, Ordering::Relaxed) => Response::silent(),
        Some(bytes) => Response::with_length(bytes.clone(), bytes.len() as u64),
        None => Response::no_such_key(),
    });
    let pull = "s3-pull --export --stdin --no-verify-signatures --idle-timeout 1s";
    scratch.sh(&format!("{pull} '{}' < large > export", server.http_url())).ok();
    // Each NAR was verified; the order of the paths may be another.
    scratch.sh("nar-pack --root root --no-nix --export --stdin < large > packed").ok();
    assert_eq!(scratch.sh("wc -c < export").ok(), scratch.sh("wc -c < packed").ok());
}
