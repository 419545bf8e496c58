//! Pulls that are interrupted or killed while they download a large NAR, and continued.

use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;

use crate::fixtures::closure_fixture::{Fixture, PUBLISH, path_in_root};
use cache_tests::fault_proxy::{Fault, FaultProxy};
use cache_tests::{EmbeddedS3, random_seed, store_path, tree};

const MIB: u64 = 1 << 20;
/// The server stops answering requests for the large NAR from here on.
const STALLED_AT: u64 = 24 * MIB;
/// Bytes in front of the NAR in a partial download.
const HEADER_SIZE: u64 = 1024;

/// A bucket with the closure of a fixture and a large path.
struct LargeFixture {
    fixture: Fixture,
    s3: &'static EmbeddedS3,
    bucket: String,
    /// The large path.
    large: String,
    /// The key of its NAR.
    key: String,
    size: u64,
}

/// The ranges of the large NAR that were requested: the first byte and the number of bytes of each.
type Ranges = Arc<Mutex<Vec<(u64, u64)>>>;

impl LargeFixture {
    fn new() -> Self {
        let (mut fixture, s3, bucket) = Fixture::embedded();
        let large = store_path("large", random_seed());
        fixture.scratch.env("LARGE", &large);
        fixture.scratch.sh(PUBLISH).ok();
        fixture
            .scratch
            .sh("mkdir \"root$LARGE\"; head -c 40M /dev/urandom > \"root$LARGE/data\"
                 nar-pack \"root$LARGE\" | narinfo-gen --no-nix --archive \"$LARGE\" | cache-sign -k key.sec \
                   | s3-push --no-nix \"$C\"")
            .ok();
        let narinfo = s3.get(&bucket, &Fixture::narinfo_key(&large));
        let key = crate::fixtures::bucket::Fields::parse(&narinfo).one("URL").to_owned();
        let size = s3.get(&bucket, &key).len() as u64;
        Self { fixture, s3, bucket, large, key, size }
    }

    /// Starts a proxy that stalls at [`STALLED_AT`] if `stalls`.
    fn proxy(&self, stalls: bool) -> (FaultProxy, Ranges) {
        let ranges = Ranges::default();
        let (seen, key) = (Arc::clone(&ranges), self.key.clone());
        let proxy = FaultProxy::start(&self.s3.endpoint(), move |request| {
            let range = request.header("range").and_then(|range| range.strip_prefix("bytes=")?.split_once('-'));
            let Some((start, end)) = range.filter(|_| request.key() == key) else { return Fault::Pass };
            let [start, end] = [start, end].map(|text| text.parse::<u64>().unwrap());
            seen.lock().unwrap().push((start, end + 1 - start));
            if stalls && start >= STALLED_AT { Fault::Stall } else { Fault::Pass }
        });
        (proxy, ranges)
    }

    fn url(&self, proxy: &FaultProxy, is_http: bool) -> String {
        let url = if is_http { self.s3.http_url(&self.bucket) } else { self.s3.cache_url(&self.bucket) };
        url.replace(&self.s3.endpoint(), proxy.endpoint())
    }

    fn partial(&self) -> PathBuf {
        let hash = &self.key["nar/".len()..][..52];
        self.fixture.path("out/nix/store").join(format!(".s3-pull-partial-{hash}"))
    }

    /// Starts a pull of the closure and of the large path, and waits until the server stalls and all else is complete.
    fn stalled_pull(&self, url: &str) -> Child {
        let mut command = self.fixture.scratch.command("s3-pull");
        command.args(["-r", "--root", "out", url, &self.fixture.closure.top, &self.large]);
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let top = path_in_root(&self.fixture.path("out"), &self.fixture.closure.top);
        let has_stalled = || fs::metadata(self.partial()).is_ok_and(|file| file.len() == HEADER_SIZE + STALLED_AT);
        while !(top.exists() && has_stalled()) {
            assert!(child.try_wait().unwrap().is_none(), "{:?}", child.wait_with_output());
            thread::yield_now();
        }
        child
    }

    /// Pulls again and asserts that everything is complete and no other file remains; returns how many bytes of the large
    /// NAR were requested, and from where on.
    #[track_caller]
    fn continue_pull(&self, is_http: bool) -> (u64, u64) {
        let (proxy, ranges) = self.proxy(false);
        let url = self.url(&proxy, is_http);
        self.fixture.scratch.sh(&format!("s3-pull -r --root out '{url}' \"$TOP\" \"$LARGE\"")).ok();
        self.fixture.assert_trees("out");
        let trees = ["root", "out"].map(|root| tree(path_in_root(&self.fixture.path(root), &self.large)));
        assert!(trees[0] == trees[1], "{} differs", self.large);
        assert_eq!(fs::read_dir(self.fixture.path("out/nix/store")).unwrap().count(), 4, "a file remains");
        let ranges = ranges.lock().unwrap();
        let end = |(start, length): &(u64, u64)| self.size.min(start + length) - start;
        (ranges.iter().map(end).sum(), ranges.iter().map(|(start, _)| *start).min().unwrap_or(self.size))
    }

    fn remove_out(&self) {
        self.fixture.scratch.sh("chmod -R u+w out; rm -rf out").ok();
    }
}

#[test]
fn a_killed_pull_continues_a_large_nar_where_it_stopped() {
    let fixture = LargeFixture::new();
    for is_http in [false, true] {
        let (proxy, _) = fixture.proxy(true);
        let mut child = fixture.stalled_pull(&fixture.url(&proxy, is_http));
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!path_in_root(&fixture.fixture.path("out"), &fixture.large).exists());
        let requested = fixture.continue_pull(is_http);
        assert_eq!(requested, (fixture.size - STALLED_AT, STALLED_AT), "http: {is_http}");
        fixture.remove_out();
    }
}

#[test]
fn an_interrupted_pull_says_what_is_complete_and_how_to_continue() {
    let fixture = LargeFixture::new();
    for (signal, word) in [("INT", "interrupted"), ("TERM", "terminated")] {
        let (proxy, _) = fixture.proxy(true);
        let child = fixture.stalled_pull(&fixture.url(&proxy, false));
        fixture.fixture.scratch.sh(&format!("kill -{signal} {}", child.id())).ok();
        let output = child.wait_with_output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        let expected = format!(
            "s3-pull: {word}: 3 of 4 paths found so far are complete (3 fetched, 0 already present)\n\
             hint: run the same command again to continue\n"
        );
        assert_eq!((output.status.code(), stderr), (Some(2), expected));
        let left = fixture.fixture.scratch.sh("ls -A out/nix/store | grep '^.s3-pull-'").ok();
        assert!(left.starts_with(".s3-pull-partial-") && left.lines().count() == 1, "{left}");
        assert_eq!(fixture.continue_pull(false), (fixture.size - STALLED_AT, STALLED_AT));
        fixture.remove_out();
    }
}

/// A shell starts commands in the background of a script with SIGINT ignored.
#[test]
fn a_signal_that_is_ignored_does_not_interrupt_a_pull() {
    let fixture = LargeFixture::new();
    let (proxy, _) = fixture.proxy(true);
    let url = fixture.url(&proxy, false);
    // SIGTERM, which is not ignored, arrives after SIGINT.
    let script = format!(
        "trap '' INT; s3-pull -r --root out '{url}' \"$TOP\" \"$LARGE\" 2> log & pull=$!
         until [ -e out$TOP ]; do sleep 0.05; done; kill -INT $pull; kill -TERM $pull; wait $pull || s=$?; cat log; exit $s"
    );
    let output = fixture.fixture.scratch.sh(&script);
    assert_eq!((output.status, output.text().starts_with("s3-pull: terminated: ")), (2, true), "{}", output.text());
}

/// The partial download takes space that the path needs, and may belong to another user.
#[test]
fn a_pull_does_without_the_partial_download_where_there_is_no_space_or_permission() {
    let fixture = LargeFixture::new();
    let scratch = &fixture.fixture.scratch;
    if scratch.sh("unshare --mount true && setpriv --reuid=65534 --clear-groups true").status != 0 {
        println!("NOT RUN: only root can mount a file system and be another user");
        return;
    }
    // Enough for the path, but not twice.
    let pull = "s3-pull --root out \"$C\" \"$LARGE\"";
    let on_tmpfs = format!("mkdir out; mount -t tmpfs -o size=60M tmpfs out; {pull}; ls -A out/nix/store");
    let left = scratch.sh(&format!("exec unshare --mount bash -euo pipefail -c '{on_tmpfs}'")).ok();
    assert_eq!(left, fixture.large.rsplit_once('/').unwrap().1);
    let partial = fixture.partial();
    let as_other_user = format!(
        "mkdir -p out/nix/store; chown -R 65534 . ; install -m 600 /dev/null {}
         setpriv --reuid=65534 --regid=65534 --clear-groups {pull}",
        partial.display()
    );
    scratch.sh(&as_other_user).ok();
    assert!(path_in_root(&fixture.fixture.path("out"), &fixture.large).exists());
}

/// The bytes of an earlier download are not trusted, and a file in their place is neither followed nor changed.
#[test]
fn a_partial_download_is_verified_and_opened_safely() {
    let fixture = LargeFixture::new();
    let (proxy, _) = fixture.proxy(true);
    let url = fixture.url(&proxy, false);
    let stop = |mut child: Child| (child.kill().unwrap(), child.wait().unwrap());
    stop(fixture.stalled_pull(&url));
    let file = fs::File::options().write(true).open(fixture.partial()).unwrap();
    file.write_all_at(b"damaged", HEADER_SIZE + 5 * MIB).unwrap();
    let (requested, from) = fixture.continue_pull(false);
    assert!(requested >= fixture.size && from == 0, "{requested} bytes from {from}");
    fixture.remove_out();
    // The object was written again, with another entity tag.
    stop(fixture.stalled_pull(&url));
    let file = fs::File::options().write(true).open(fixture.partial()).unwrap();
    file.write_all_at(b"\"0123456789abcdef0123456789abcdef\"\n", 0).unwrap();
    let (requested, from) = fixture.continue_pull(false);
    assert!(requested >= fixture.size && from == 0, "{requested} bytes from {from}");
    fixture.remove_out();
    // One that cannot be a header.
    stop(fixture.stalled_pull(&url));
    let file = fs::File::options().write(true).open(fixture.partial()).unwrap();
    file.write_all_at(b"\"0123456789\rbcdef\"\n", 0).unwrap();
    let (requested, from) = fixture.continue_pull(false);
    assert!(requested >= fixture.size && from == 0, "{requested} bytes from {from}");
    fixture.remove_out();
    let scratch = &fixture.fixture.scratch;
    let partial = fixture.partial();
    let partial = partial.to_str().unwrap();
    for (plant, kind) in [
        ("ln -s \"$PWD/victim\"", "a symbolic link"),
        ("ln \"$PWD/victim\"", "several hard links"),
        ("mkfifo", "a FIFO"),
        ("mkdir", "a directory"),
    ] {
        scratch.sh(&format!("mkdir -p out/nix/store; echo victim > victim; {plant} {partial}")).ok();
        let pull = format!("timeout 60 s3-pull --root out '{}' \"$LARGE\"", fixture.s3.cache_url(&fixture.bucket));
        let stderr = scratch.sh(&pull).fails(2);
        let name = fixture.partial();
        let name = name.file_name().unwrap().to_str().unwrap();
        assert!(stderr.contains(name) && stderr.contains(kind) && stderr.contains("hint: remove "), "{stderr}");
        assert_eq!(scratch.sh("cat victim; chmod -R u+w out; rm -rf out").ok(), "victim");
    }
    scratch.sh("mkdir -p out/nix/store; cd out/nix/store; touch .s3-pull-partial-new; touch -d '8 days ago' .s3-pull-partial-old").ok();
    scratch.sh("s3-pull --root out \"$C\" \"$LIB\"").ok();
    assert_eq!(scratch.sh("ls -A out/nix/store | grep partial").ok(), ".s3-pull-partial-new");
}
