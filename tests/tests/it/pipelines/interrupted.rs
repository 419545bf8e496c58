//! Truncated streams, killed processes and dropped connections: the cache stays closed, and the next run completes.

use crate::fixtures::bucket::{Fields, assert_closed, narinfo_keys, snapshot};
use crate::fixtures::closure_fixture::{ARCHIVE, Fixture, PUBLISH, generate_key, path_in_root};
use cache_tests::random_seed;
use cache_tests::{EmbeddedS3, Random};
use std::fs;
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;

/// A pipeline: its stages, and the streams between them.
struct Pipeline {
    name: &'static str,
    stages: &'static [&'static str],
    streams: &'static [Stream],
}

/// How a stream marks its end.
#[derive(Clone, Copy)]
enum Stream {
    /// A path list or narinfo text: a truncated one may be valid.
    Text,
    /// An export stream needs its last byte.
    Export,
    /// An archive ends with a block of zeros and then padding, which is not needed.
    Archive,
}

impl Stream {
    /// Returns whether the first `bytes` of `whole` are certainly an incomplete stream.
    fn is_truncated(self, whole: &[u8], bytes: usize) -> bool {
        match self {
            Self::Text => false,
            Self::Export => bytes < whole.len(),
            Self::Archive => whole[bytes..].iter().any(|&byte| byte != 0),
        }
    }
}

const PIPELINES: [Pipeline; 5] = [
    Pipeline {
        name: "five stages",
        stages: &[
            "s3-push --missing \"$C\" < paths",
            "nar-pack --root root --no-nix --export --stdin",
            "narinfo-gen --no-nix --archive",
            "cache-sign -k key.sec",
            "s3-push --no-nix \"$C\"",
        ],
        streams: &[Stream::Text, Stream::Export, Stream::Archive, Stream::Archive],
    },
    Pipeline {
        name: "an export stream",
        stages: &["nar-pack --root root --no-nix --export --stdin < paths", "s3-push --no-nix \"$C\""],
        streams: &[Stream::Export],
    },
    Pipeline {
        name: "an unsorted archive",
        stages: &["tar c -C cache $NARINFOS nar nix-cache-info", "s3-push --no-nix \"$C\""],
        streams: &[Stream::Archive],
    },
    Pipeline {
        name: "a mirror",
        stages: &["s3-pull -r --archive \"file://$PWD/cache\" \"$TOP\"", "s3-push \"$C\""],
        streams: &[Stream::Archive],
    },
    Pipeline {
        name: "a mirror by an export stream",
        stages: &["s3-pull -r --export \"file://$PWD/cache\" \"$TOP\"", "s3-push --no-nix \"$C\""],
        streams: &[Stream::Export],
    },
];

/// Inserts `head -c BYTES` after the stage `at`.
fn truncated_pipeline(stages: &[&str], at: usize, bytes: usize) -> String {
    let head = format!("head -c {bytes}");
    let mut stages = stages.to_vec();
    stages.insert(at + 1, &head);
    stages.join(" | ")
}

/// Returns where to truncate a stream of `length` bytes: near its ends, in the middle, and at random positions.
fn positions(length: usize, random: &mut Random) -> Vec<usize> {
    assert_ne!(length, 0, "the stream is empty");
    let mut positions = vec![0, 1, 8, 513, length / 2, length.saturating_sub(1025)];
    positions.extend([random.below(length), random.below(length)]);
    positions.retain(|&bytes| bytes < length);
    positions.sort_unstable();
    positions.dedup();
    positions
}

fn assert_truncation_is_harmless(pipeline: &Pipeline) {
    let mut fixture = Fixture::new();
    let s3 = EmbeddedS3::shared();
    fixture.scratch.sh(&format!("mkdir cache; {ARCHIVE} | tar x -C cache")).ok();
    let narinfos: Vec<_> = fixture.closure.paths().iter().rev().map(|path| Fixture::narinfo_key(path)).collect();
    fixture.scratch.env("NARINFOS", narinfos.join(" "));
    let mut random = Random::new(random_seed());
    for (at, stream) in pipeline.streams.iter().enumerate() {
        fixture.fresh_bucket(s3);
        let whole = fixture.scratch.sh(&pipeline.stages[..=at].join(" | "));
        whole.ok();
        for bytes in positions(whole.stdout.len(), &mut random) {
            let bucket = fixture.fresh_bucket(s3);
            let script = truncated_pipeline(pipeline.stages, at, bytes);
            let output = fixture.scratch.sh(&script);
            let objects = snapshot(s3, &bucket);
            assert_closed(&objects);
            if stream.is_truncated(&whole.stdout, bytes) {
                assert_ne!(output.status, 0, "{}: {script}\n{}", pipeline.name, output.stderr);
                let last = output.stderr.lines().rfind(|line| line.starts_with("s3-push: "));
                assert!(last.is_some(), "{script}: the last stage printed no message\n{}", output.stderr);
            }
            let again = fixture.scratch.sh(&pipeline.stages.join(" | "));
            again.ok();
            fixture.assert_complete(&snapshot(s3, &bucket));
        }
    }
}

#[test]
fn a_truncated_stream_between_five_stages_is_harmless() {
    assert_truncation_is_harmless(&PIPELINES[0]);
}

#[test]
fn a_truncated_export_stream_is_harmless() {
    assert_truncation_is_harmless(&PIPELINES[1]);
}

#[test]
fn a_truncated_unsorted_archive_is_harmless() {
    assert_truncation_is_harmless(&PIPELINES[2]);
}

#[test]
fn a_truncated_mirror_is_harmless() {
    assert_truncation_is_harmless(&PIPELINES[3]);
}

#[test]
fn a_truncated_mirror_by_an_export_stream_is_harmless() {
    assert_truncation_is_harmless(&PIPELINES[4]);
}

#[test]
fn a_truncated_nar_is_refused() {
    let (fixture, s3, bucket) = Fixture::embedded();
    fixture.scratch.sh("nar-pack --root root --no-nix \"$LIB\" > nar").ok();
    let length = usize::try_from(fs::metadata(fixture.path("nar")).unwrap().len()).unwrap();
    for bytes in positions(length, &mut Random::new(random_seed())).into_iter().chain([length - 1]) {
        let consumers = [
            "s3-push --no-nix \"$C\" \"$LIB\"",
            "nar-pack --unpack out",
            "narinfo-gen --no-nix \"$LIB\"",
            "narinfo-gen --no-nix --archive \"$LIB\" | s3-push \"$C\"",
        ];
        for consumer in consumers {
            let output = fixture.scratch.sh(&format!("head -c {bytes} nar | {consumer}"));
            assert_eq!(output.status, 1, "{consumer} of {bytes} bytes: {}", output.stderr);
            assert_eq!(output.text(), "");
        }
        assert!(!fixture.path("out").exists(), "a truncated NAR was unpacked");
        assert_eq!(narinfo_keys(&snapshot(s3, &bucket)), [""; 0]);
    }
    fixture.scratch.sh("s3-push --no-nix \"$C\" \"$LIB\" < nar; nar-pack --unpack out < nar").ok();
    assert_closed(&snapshot(s3, &bucket));
}

#[test]
fn a_truncated_rotation_is_harmless() {
    let (fixture, s3, bucket) = Fixture::embedded();
    fixture.scratch.sh(PUBLISH).ok();
    generate_key(&fixture.scratch, "new");
    let stages = ["s3-pull --narinfo --all \"$C\"", "cache-sign -k new.sec", "s3-push \"$C\""];
    let mut random = Random::new(random_seed());
    for at in 0..2 {
        let length = fixture.scratch.sh(&stages[..=at].join(" | ")).stdout.len();
        for bytes in positions(length, &mut random) {
            fixture.scratch.sh(&truncated_pipeline(&stages, at, bytes));
            fixture.assert_complete(&snapshot(s3, &bucket));
            fixture.assert_pulls("$C", "");
        }
    }
    fixture.scratch.sh(&stages.join(" | ")).ok();
    let objects = snapshot(s3, &bucket);
    assert!(narinfo_keys(&objects).iter().all(|key| Fields::parse(&objects[*key]).all("Sig").len() == 2));
}

#[test]
fn a_killed_upload_of_any_bytes_leaves_no_object() {
    let (fixture, s3, bucket) = Fixture::embedded();
    // An interrupted multipart upload does not create an object.
    let body = "head -c 12000000 /dev/urandom";
    let killed = "s3-push \"$C\" --part-size 5MiB --key log/x < fifo & pid=$!; exec 3>fifo; \
                  head -c 12000000 /dev/urandom >&3; kill -KILL $pid; wait $pid || echo \"status $?\"";
    assert_eq!(fixture.scratch.sh(&format!("mkfifo fifo; {killed}")).ok(), "status 137");
    assert_eq!(s3.objects(&bucket), [""; 0]);
    fixture.scratch.sh(&format!("{body} | s3-push \"$C\" --part-size 5MiB --key log/x")).ok();
    assert_eq!(s3.get(&bucket, "log/x").len(), 12_000_000);
}

#[test]
fn a_killed_push_leaves_a_valid_cache_and_the_next_completes_it() {
    let mut fixture = Fixture::new();
    let s3 = EmbeddedS3::shared();
    fixture.scratch.sh(&format!("mkfifo fifo; {ARCHIVE} > archive")).ok();
    let length = usize::try_from(fs::metadata(fixture.path("archive")).unwrap().len()).unwrap();
    let mut random = Random::new(random_seed());
    for bytes in positions(length, &mut random).into_iter().chain([length]) {
        let bucket = fixture.fresh_bucket(s3);
        // The push is killed after it was sent this number of bytes. The pipe stays open, so that it never sees the end
        // of its input.
        let killed = format!(
            "s3-push --no-nix \"$C\" < fifo & pid=$!; exec 3>fifo; head -c {bytes} archive >&3; kill -KILL $pid; \
             wait $pid || echo \"status $?\""
        );
        assert_eq!(fixture.scratch.sh(&killed).ok().lines().last(), Some("status 137"));
        assert_closed(&snapshot(s3, &bucket));
        fixture.scratch.sh("s3-push --no-nix \"$C\" < archive").ok();
        fixture.assert_complete(&snapshot(s3, &bucket));
    }
}

#[test]
fn a_failed_pull_leaves_only_complete_paths_and_the_next_completes_it() {
    let (fixture, s3, bucket) = Fixture::embedded();
    fixture.scratch.sh(PUBLISH).ok();
    // The second of three paths is damaged, so the pull stops in the middle.
    let url = Fields::parse(&s3.get(&bucket, &Fixture::narinfo_key(&fixture.closure.app))).one("URL").to_owned();
    let nar = s3.get(&bucket, &url);
    s3.put(&bucket, &url, b"damaged");
    let stderr = fixture.scratch.sh("s3-pull -r --root out \"$C\" \"$TOP\"").fails(1);
    assert!(stderr.contains(&fixture.closure.app), "{stderr}");
    let left = fixture.scratch.sh("mkdir -p out/nix/store; ls -A out/nix/store").ok();
    for name in left.lines() {
        let path = format!("/nix/store/{name}");
        assert_ne!(path, fixture.closure.app);
        assert!(fixture.closure.paths().contains(&path.as_str()), "{name} remains");
        assert_eq!(
            cache_tests::tree(path_in_root(&fixture.path("out"), &path)),
            cache_tests::tree(path_in_root(&fixture.path("root"), &path))
        );
    }
    s3.put(&bucket, &url, &nar);
    fixture.scratch.sh("s3-pull -r --root out \"$C\" \"$TOP\"").ok();
    fixture.assert_trees("out");
}

#[test]
fn narinfo_text_truncated_after_a_line_loses_no_fields() {
    let (fixture, s3, bucket) = Fixture::embedded();
    fixture.scratch.sh(PUBLISH).ok();
    generate_key(&fixture.scratch, "new");
    let before = snapshot(s3, &bucket);
    let signed = fixture.scratch.sh("s3-pull --narinfo --all \"$C\" | cache-sign -k new.sec").ok() + "\n";
    let last = signed.rfind("\n\n").unwrap() + 2;
    // Each prefix looks like a narinfo with fewer lines.
    for (at, _) in signed.match_indices('\n').filter(|(at, _)| *at > last) {
        let truncated_pipeline = &signed[..=at];
        fixture.scratch.sh_with_input("s3-push --no-nix \"$C\"", truncated_pipeline.as_bytes());
        let after = snapshot(s3, &bucket);
        fixture.assert_complete(&after);
        for key in narinfo_keys(&after) {
            let [old, new] = [&before, &after].map(|objects| Fields::parse(&objects[key]));
            for field in &old.0 {
                assert!(new.0.contains(field), "{key} lost {field:?} to\n{truncated_pipeline}");
            }
        }
    }
    fixture.scratch.sh_with_input("s3-push --no-nix \"$C\"", signed.as_bytes()).ok();
}

/// An HTTP cache that interrupts the response for one file.
struct InterruptingServer {
    listener: TcpListener,
    dir: PathBuf,
    key: String,
    /// Receives a message at each interruption; the connection is then held until the test resumes or ends the server.
    interrupted: Sender<()>,
    resumed: Receiver<()>,
}

impl InterruptingServer {
    /// Answers requests until the test ends the server.
    fn serve(&self) {
        for connection in self.listener.incoming() {
            let Ok(true) = self.answer(&mut connection.unwrap()) else { return };
        }
    }

    /// Answers a request; returns whether to continue.
    fn answer(&self, connection: &mut TcpStream) -> io::Result<bool> {
        let mut request = String::new();
        let mut reader = BufReader::new(connection.try_clone()?);
        while reader.read_line(&mut request)? > 2 {}
        let key = request.split(' ').nth(1).unwrap_or_default().trim_start_matches('/').to_owned();
        let Ok(body) = fs::read(self.dir.join(&key)) else {
            write!(connection, "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")?;
            return Ok(true);
        };
        write!(connection, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len())?;
        if key != self.key {
            connection.write_all(&body)?;
            return Ok(true);
        }
        connection.write_all(&body[..body.len() / 2])?;
        self.interrupted.send(()).unwrap();
        Ok(self.resumed.recv().is_ok())
    }
}

/// Creates a fixture with a cache in `cache/` and starts such a server for it; returns its URL, the channel of
/// interruptions, and the channel that resumes the server.
fn interrupted_fixture() -> (Fixture, String, Receiver<()>, Sender<()>) {
    let (fixture, _, _, lib) = Fixture::with_cache();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let (interrupted, interruptions) = mpsc::channel();
    let (resume, resumed) = mpsc::channel();
    let server = InterruptingServer {
        listener,
        dir: fixture.path("cache"),
        key: lib.one("URL").to_owned(),
        interrupted,
        resumed,
    };
    thread::spawn(move || server.serve());
    (fixture, url, interruptions, resume)
}

#[test]
fn an_interrupted_response_is_an_error() {
    let (fixture, url, interruptions, resume) = interrupted_fixture();
    // For every retry.
    thread::spawn(move || while interruptions.recv().is_ok_and(|()| resume.send(()).is_ok()) {});
    for output in ["--root out", "--export", "--nar", "--archive"] {
        let pulled = fixture.scratch.sh(&format!("timeout 60 s3-pull {output} {url} \"$LIB\" | cat > got"));
        assert!([1, 2].contains(&pulled.status), "{output}: status {}: {}", pulled.status, pulled.stderr);
        assert!(pulled.stderr.contains(&fixture.closure.lib), "{output}: {}", pulled.stderr);
        fixture.assert_nothing_below("out");
        // The next stage refuses the partial output.
        for reader in ["nar-pack --unpack tree", "s3-push --no-nix \"$C\"", "s3-push --no-nix \"$C\" \"$LIB\""] {
            assert_ne!(fixture.scratch.sh(&format!("{reader} < got")).status, 0, "{output} | {reader}");
        }
        assert!(!fixture.path("tree").exists());
    }
}

#[test]
fn a_killed_pull_leaves_nothing_under_a_final_name_and_the_next_cleans_up() {
    let (fixture, url, interruptions, resume) = interrupted_fixture();
    let mut pull =
        fixture.scratch.command("s3-pull").args(["--root", "out", &url, &fixture.closure.lib]).spawn().unwrap();
    interruptions.recv().unwrap();
    pull.kill().unwrap();
    pull.wait().unwrap();
    drop(resume);
    assert!(!path_in_root(&fixture.path("out"), &fixture.closure.lib).exists());
    fixture.scratch.sh("s3-pull -r --root out file://$PWD/cache \"$TOP\"").ok();
    fixture.assert_trees("out");
    assert_eq!(fixture.scratch.sh("ls -A out/nix/store | wc -l").ok(), "3", "no temporary file remains");
}
