//! A cache that lies in every way that we can think of. Whatever it says, nothing is visible that was not signed and
//! hashed; `s3-pull` says so in clear lines and ends with exit code 1, or 2 where no answer was one. Each test prints
//! its part of the table: the lie, the exit code, what `s3-pull` said.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use crate::fixtures::forgery::{
    Forged, Forger, compressed, directory, file, file_nar, link, nar_of, nested_nar, objects, small_nar, store_dir,
    visible,
};
use cache_tests::lying_server::{Answer, Asked, BUCKET, LyingServer, Objects, Plan};
use cache_tests::{Credentials, Random, Scratch, TIME_LIMIT, store_path, unique};
use nar_pack::nar::{MAX_DEPTH, MAX_TARGET};
use narinfo_gen::compression::{Compression, decoder};
use narinfo_gen::hash::Sha256;
use narinfo_gen::narinfo::MAX_SIZE;

const MIB: u64 = 1 << 20;

/// Lies that are told at the same time: most of the time somebody waits.
const AT_ONCE: usize = 12;

/// How the client reads the cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Door {
    Http,
    S3,
}

/// A user's directory and a forger whose key the user trusts.
struct Scene {
    scratch: Scratch,
    forger: Forger,
}

/// What `s3-pull` did.
struct Said {
    status: i32,
    stderr: String,
    stdout: Vec<u8>,
}

/// One row of the table.
struct Lie {
    name: &'static str,
    /// The exit codes that are right.
    codes: &'static [i32],
    /// What is asked for.
    wanted: Vec<Forged>,
    /// What is there in the end.
    there: Vec<Forged>,
    /// What may be there as well.
    maybe: Vec<Forged>,
    /// Arguments beside the usual ones.
    args: &'static [&'static str],
    plan: Plan,
}

impl Lie {
    fn of(name: &'static str, codes: &'static [i32], wanted: &[&Forged], plan: Plan) -> Self {
        let wanted = wanted.iter().map(|&forged| forged.clone()).collect();
        Self { name, codes, wanted, there: Vec::new(), maybe: Vec::new(), args: &[], plan }
    }
}

impl Scene {
    fn new() -> Self {
        let mut scratch = Scratch::new();
        // A lie that looks like an accident is asked about once more.
        scratch.env("AWS_MAX_ATTEMPTS", "2");
        Credentials::random().apply(&mut scratch);
        Self { scratch, forger: Forger::new() }
    }

    /// A directory to pull into, which is not there yet.
    fn root(&self) -> PathBuf {
        self.scratch.path().join(unique("root-"))
    }

    fn url(server: &LyingServer, door: Door) -> String {
        match door {
            Door::Http => server.http_url(),
            Door::S3 => server.s3_url(),
        }
    }

    /// Runs `s3-pull` on these paths; one that hangs is ended.
    fn pull(&self, url: &str, args: &[&str], paths: &[String]) -> Said {
        let mut command = self.scratch.command("timeout");
        command.args(["--kill-after=5", TIME_LIMIT, "s3-pull", "--stdin", "--idle-timeout", "1"]);
        command.args(["--trusted-public-key", &self.forger.public()]).args(args).arg(url);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let list: String = paths.iter().flat_map(|path| [path, "\n"]).collect();
        thread::spawn(move || drop(stdin.write_all(list.as_bytes())));
        let output = child.wait_with_output().unwrap();
        Said {
            status: output.status.code().unwrap_or(-1),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
            stdout: output.stdout,
        }
    }

    fn pull_to(&self, url: &str, root: &Path, args: &[&str], paths: &[String]) -> Said {
        self.pull(url, &[&["--root", root.to_str().unwrap()], args].concat(), paths)
    }

    /// Tells a lie through both doors; what was wrong with the reaction, if anything.
    fn tell(&self, lie: &Lie, server: &LyingServer, door: Door) -> Result<(), String> {
        let root = self.root();
        let paths: Vec<String> = lie.wanted.iter().map(Forged::full_path).collect();
        let said = self.pull_to(&Self::url(server, door), &root, lie.args, &paths);
        let text = said.stderr.trim_end();
        let door_name = if door == Door::Http { "http" } else { "s3" };
        println!("| {} | {door_name} | {} | {} |", lie.name, said.status, shown(text));
        let mut wrong = Vec::new();
        if !lie.codes.contains(&said.status) {
            wrong.push(format!("exit code {} instead of one of {:?}", said.status, lie.codes));
        }
        wrong.extend(unclear(text));
        let named = |forged: &Forged| {
            text.contains(forged.narinfo.path.hash_part().as_str()) || text.contains(&forged.narinfo.url)
        };
        if !text.contains("nix-cache-info") && !lie.wanted.iter().any(named) {
            wrong.push("it names neither path nor key".to_owned());
        }
        let maybe: Vec<&Forged> = lie.maybe.iter().filter(|forged| forged.lies_below(&root)).collect();
        let good: Vec<&str> = lie.there.iter().chain(maybe).map(|forged| forged.narinfo.path.base_name()).collect();
        let surplus: Vec<String> = visible(&root).into_iter().filter(|name| !good.contains(&name.as_str())).collect();
        if !surplus.is_empty() {
            wrong.push(format!("there is {surplus:?}"));
        }
        for forged in &lie.there {
            if !forged.lies_below(&root) {
                wrong.push(format!("{} is not there", forged.narinfo.path));
            }
        }
        if wrong.is_empty() { Ok(()) } else { Err(format!("{} ({door:?}): {}\n  {text}", lie.name, wrong.join("; "))) }
    }

    /// Tells all lies through both doors, several at a time.
    fn tell_all(&self, lies: Vec<Lie>) {
        let count = lies.len();
        let servers: Vec<(Lie, LyingServer)> = lies
            .into_iter()
            .map(|mut lie| {
                let plan = std::mem::replace(&mut lie.plan, Box::new(|_| Answer::status(500)));
                (lie, LyingServer::start(plan))
            })
            .collect();
        let tasks: Vec<_> = servers.iter().flat_map(|one| [(one, Door::Http), (one, Door::S3)]).collect();
        let (next, failures) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
        thread::scope(|scope| {
            for _ in 0..AT_ONCE {
                scope.spawn(|| {
                    while let Some(((lie, server), door)) = tasks.get(next.fetch_add(1, Ordering::Relaxed)) {
                        if let Err(failure) = self.tell(lie, server, *door) {
                            failures.lock().unwrap().push(failure);
                        }
                    }
                });
            }
        });
        let failures = failures.into_inner().unwrap();
        println!("{count} lies, each through two doors");
        assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n"));
    }
}

/// What no user understands.
const JARGON: [&str; 4] = ["dispatch failure", "unhandled", "panicked", "RUST_BACKTRACE"];

/// Longest line, in bytes: it may show a name of 255 bytes, each escaped.
const MAX_LINE: usize = 1500;

/// What is wrong with what a tool said, whatever it was about.
fn unclear(text: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    if text.is_empty() {
        wrong.push("it says nothing".to_owned());
    }
    for line in text.lines() {
        if !line.starts_with("s3-pull: ") || line.len() > MAX_LINE || JARGON.iter().any(|word| line.contains(word)) {
            wrong.push(format!("not a clear line: {line:?}"));
        }
    }
    wrong
}

/// What was said, on one line of the table.
fn shown(text: &str) -> String {
    let lines: Vec<&str> = text.lines().map(|line| line.trim_start_matches("s3-pull: ")).collect();
    match lines.as_slice() {
        [one] => (*one).to_owned(),
        [first, .., last] if lines.len() > 3 => format!("{first} … ({} lines) … {last}", lines.len()),
        lines => lines.join(" ⏎ "),
    }
}

/// Answers honestly.
fn honest(objects: Objects) -> Plan {
    Box::new(move |asked| Answer::honest(&objects, asked))
}

/// Answers honestly but for one key.
fn at(objects: Objects, key: &str, answer: Answer) -> Plan {
    let key = key.to_owned();
    Box::new(move |asked| if asked.key == key { answer.clone() } else { Answer::honest(&objects, asked) })
}

/// A page that a captive portal, a misconfigured proxy or a CDN would show.
const PAGE: &str =
    "<!DOCTYPE html>\n<html><head><title>Welcome</title></head><body><p>Please: log in</p></body></html>\n";

#[test]
fn honest_answers_are_taken() {
    let scene = Scene::new();
    let leaf = scene.forger.path("leaf", small_nar(b'l'), Compression::Zstd, &[]);
    let mut paths: Vec<Forged> = Compression::ALL
        .iter()
        .map(|&method| scene.forger.path(&format!("as-{method}"), small_nar(b'x'), method, &[&leaf]))
        .collect();
    paths.push(leaf);
    let wanted: Vec<String> = paths.iter().map(Forged::full_path).collect();
    let all = objects(&paths);
    let server = LyingServer::start(honest(all));
    for door in [Door::Http, Door::S3] {
        let root = scene.root();
        let said = scene.pull_to(&Scene::url(&server, door), &root, &["-r"], &wanted);
        assert_eq!(said.status, 0, "{door:?}: {}", said.stderr);
        assert!(paths.iter().all(|forged| forged.lies_below(&root)), "{door:?}");
        assert_eq!(visible(&root).len(), paths.len());
    }
}

#[test]
#[allow(clippy::too_many_lines)] // a table
fn lies_about_a_narinfo() {
    let scene = Scene::new();
    let forger = &scene.forger;
    let victim = forger.path("victim", small_nar(b'v'), Compression::Zstd, &[]);
    let other = forger.path("other", small_nar(b'o'), Compression::Zstd, &[]);
    let stranger = Forger::new();
    let (key, text) = (victim.narinfo.key(), victim.narinfo.to_string());
    let all = objects([&victim, &other]);
    let of = |forged: &Forged| honest(objects([forged, &other]));
    let says = |text: &str| {
        let mut all = all.clone();
        all.insert(key.clone(), text.as_bytes().to_vec());
        honest(all)
    };
    let answers = |answer: Answer| at(all.clone(), &key, answer);
    let with = |from: &str, to: &str| {
        assert!(text.contains(from), "{text}");
        says(&text.replacen(from, to, 1))
    };
    let hash = |letter: u8| Sha256::of(&[letter]);
    let bomb = compressed(Compression::Gzip, &vec![b'\n'; 8 << 20]);
    let signed = |change: &dyn Fn(&mut narinfo_gen::narinfo::NarInfo)| of(&forger.signed(victim.clone().but(change)));
    let unsigned = |change: &dyn Fn(&mut narinfo_gen::narinfo::NarInfo)| of(&victim.clone().but(change));
    let renamed = victim.full_path().replace("-victim", "-impostor");
    let lie = |name, plan| Lie::of(name, &[1], &[&victim], plan);
    let broken = |name, plan| Lie::of(name, &[1, 2], &[&victim], plan);
    let lies = vec![
        lie("no narinfo, as MinIO says it (404)", answers(Answer::no_such_key())),
        lie("no narinfo, as AWS says it without ListBucket (403)", answers(Answer::access_denied())),
        broken("no narinfo (410)", answers(Answer::status(410))),
        lie("a page in place of the narinfo", says(PAGE)),
        lie("an empty narinfo", says("")),
        lie("another path's narinfo", says(&other.narinfo.to_string())),
        lie("another name under the same hash, signed", signed(&|n| n.path = store_dir().parse(&renamed).unwrap())),
        lie("a narinfo of another store directory", with("/nix/store", "/gnu/store")),
        lie("a narinfo that is not UTF-8", answers(Answer::object([text.as_bytes(), b"Note: \xff\xfe\n"].concat()))),
        lie("a narinfo with a NUL byte", says(&format!("{text}\0"))),
        lie("a narinfo and half of another", says(&format!("{text}StorePath: /nix/store/"))),
        lie("two narinfos", says(&format!("{text}\n{}", other.narinfo))),
        lie("a narinfo of 1 MiB and a byte", says(&format!("{text}X: {}\n", "x".repeat(MAX_SIZE - text.len() - 3)))),
        lie("a narinfo without an end, no length", answers(Answer::endless(text.clone(), vec![b'x'; 65536]))),
        lie("a narinfo of 2^60 bytes", answers(Answer::endless_stated(text.clone(), vec![b'x'; 65536], 1 << 60))),
        lie("a narinfo that is a gzip bomb", answers(Answer::object(bomb).header("Content-Encoding", "gzip"))),
        lie("a narinfo in gzip that is none", answers(Answer::object(text.clone()).header("Content-Encoding", "gzip"))),
        lie("a narinfo in an unknown encoding", answers(Answer::object(text.clone()).header("Content-Encoding", "x"))),
        lie("no signature", unsigned(&|n| n.signatures.clear())),
        lie("a stranger's signature", of(&stranger.signed(victim.clone()))),
        lie(
            "a stranger's signature under the trusted name",
            unsigned(&|n| n.signatures = vec![stranger.signed(victim.clone()).narinfo.signatures[0].clone()]),
        ),
        lie("another path's signature", unsigned(&|n| n.signatures.clone_from(&other.narinfo.signatures))),
        lie(
            "ten thousand bad signatures",
            unsigned(&|n| n.signatures = (0..10_000).map(|i| format!("k-{i}:x")).collect()),
        ),
        lie("a signature that is no base 64", unsigned(&|n| n.signatures = vec!["forger-1:!".to_owned()])),
        lie("NarHash changed", unsigned(&|n| n.nar_hash = hash(1))),
        lie("NarSize changed", unsigned(&|n| n.nar_size += 8)),
        lie("a reference added", unsigned(&|n| n.references.push(other.narinfo.path.clone()))),
        lie(
            "CA claims to prove it",
            unsigned(&|n| {
                n.signatures.clear();
                n.ca = Some(format!("fixed:r:{}", n.nar_hash));
            }),
        ),
        lie(
            "CA: text, without a signature",
            unsigned(&|n| {
                n.signatures.clear();
                n.ca = Some(format!("text:{}", n.nar_hash));
            }),
        ),
        lie("signed NarHash of other bytes", signed(&|n| n.nar_hash = hash(1))),
        lie("signed NarSize one too small", signed(&|n| n.nar_size -= 1)),
        lie("signed NarSize 8 too small", signed(&|n| n.nar_size -= 8)),
        lie("signed NarSize one too large", signed(&|n| n.nar_size += 1)),
        lie("signed NarSize 2^64-1", signed(&|n| n.nar_size = u64::MAX)),
        lie("NarSize 0", with(&format!("NarSize: {}", victim.narinfo.nar_size), "NarSize: 0")),
        lie("NarSize -1", with("NarSize: ", "NarSize: -")),
        lie("NarSize 2^64", with(&format!("NarSize: {}", victim.narinfo.nar_size), "NarSize: 18446744073709551616")),
        lie("FileHash of other bytes", unsigned(&|n| n.file_hash = Some(hash(2)))),
        lie("FileSize one too small", unsigned(&|n| n.file_size = n.file_size.map(|size| size - 1))),
        lie("FileSize one too large", unsigned(&|n| n.file_size = n.file_size.map(|size| size + 1))),
        lie("FileSize 0", unsigned(&|n| n.file_size = Some(0))),
        lie("FileSize 2^64-1", unsigned(&|n| n.file_size = Some(u64::MAX))),
        lie("Compression: xz, but it is zstd", with("Compression: zstd", "Compression: xz")),
        lie("Compression: none, but it is zstd", with("Compression: zstd", "Compression: none")),
        lie("no Compression, but it is zstd", with("Compression: zstd\n", "")),
        lie("Compression: nonsense", with("Compression: zstd", "Compression: nonsense")),
        lie("the URL leaves the cache: ..", with("URL: nar/", "URL: ../nar/")),
        lie("the URL leaves the cache: percent-encoded", with("URL: nar/", "URL: nar/%2e%2e/%2E%2E/")),
        lie("the URL leaves the cache: another host", with("URL: nar/", "URL: http://127.0.0.1:1/")),
        lie("the URL leaves the cache: file://", with("URL: nar/", "URL: file:///etc/passwd#")),
        lie("the URL leaves the cache: absolute", with("URL: nar/", "URL: /etc/passwd#")),
        lie("the URL is the narinfo's own", with("URL: nar/", &format!("URL: {key}#"))),
        lie("StorePath twice", with("URL: ", &format!("StorePath: {}\nURL: ", other.full_path()))),
        lie("NarHash of another algorithm", with("NarHash: sha256:", "NarHash: sha512:")),
        lie("a reference that is no store path", with("References: ", "References: ../../etc")),
        lie("a reference in another store", with("References: ", "References: /gnu/store/x")),
        lie("control characters in what is said", with("References: ", "References: \x1b[2Jx\x07")),
        broken("the narinfo redirects to itself", answers(Answer::redirect(format!("/{BUCKET}/{key}")))),
        broken("the narinfo redirects to a file", answers(Answer::redirect("file:///etc/passwd"))),
        broken("the narinfo redirects to nowhere", answers(Answer::status(302))),
        broken("the narinfo redirects to no URL", answers(Answer::redirect("http://[:::"))),
        broken("the narinfo is not HTTP", answers(Answer::raw("SSH-2.0-OpenSSH_9.9\r\n"))),
        broken(
            "the narinfo's head does not end",
            answers(Answer::raw(format!("HTTP/1.1 200 OK\r\nX: {}", "x".repeat(1 << 20)))),
        ),
        broken("the connection closes without an answer", answers(Answer::raw(""))),
        broken(
            "the narinfo is half as long as its head says",
            answers(Answer::stated(&text.as_bytes()[..100], text.len() as u64)),
        ),
        broken("the narinfo stalls", answers(Answer::stalled(&text.as_bytes()[..100], text.len() as u64))),
        broken("no answer at all", answers(Answer::silent())),
        broken("status 500", answers(Answer::status(500))),
        broken(
            "status 503, as S3 says it",
            answers(Answer::error(503, "SlowDown", "Please reduce your request rate.")),
        ),
        broken("status 401", answers(Answer::status(401))),
        broken(
            "an error of S3 with status 200",
            answers(Answer::error(200, "InternalError", "We encountered an internal error.")),
        ),
        broken(
            "a body of chunks that are none",
            answers(Answer::raw("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzzz\r\n")),
        ),
        broken("two lengths", answers(Answer::stated(text.clone(), 10).header("Content-Length", "99999"))),
    ];
    scene.tell_all(lies);
}

#[test]
fn lies_about_a_nar() {
    let scene = Scene::new();
    let forger = &scene.forger;
    let victim = forger.path("victim", small_nar(b'v'), Compression::Zstd, &[]);
    let (a, b) = (
        forger.path("one", small_nar(b'1'), Compression::None, &[]),
        forger.path("two", small_nar(b'2'), Compression::None, &[]),
    );
    let all = objects([&victim]);
    let (file, size) = (victim.file.clone(), victim.file.len() as u64);
    let answers = |answer: Answer| at(all.clone(), &victim.narinfo.url, answer);
    let holding = |bytes: Vec<u8>| {
        let other = victim.clone().filed("nar/x".to_owned(), bytes);
        honest(objects([&other]))
    };
    let zstd = |nar: &[u8]| compressed(Compression::Zstd, nar);
    let bare = victim.clone().but(|narinfo| {
        narinfo.file_hash = None;
        narinfo.file_size = None;
    });
    let bare_answers = |answer: Answer| at(objects([&bare]), &bare.narinfo.url, answer);
    let half = &file[..file.len() / 2];
    let lie = |name, plan| Lie::of(name, &[1], &[&victim], plan);
    let broken = |name, plan| Lie::of(name, &[1, 2], &[&victim], plan);
    let swapped = |refiled: bool| {
        let (x, y) = if refiled {
            (a.clone().filed("nar/a".to_owned(), b.file.clone()), b.clone().filed("nar/b".to_owned(), a.file.clone()))
        } else {
            (a.clone(), b.clone())
        };
        let mut all = objects([&x, &y]);
        if !refiled {
            all.insert(a.narinfo.url.clone(), b.file.clone());
            all.insert(b.narinfo.url.clone(), a.file.clone());
        }
        honest(all)
    };
    let noise = Random::new(5).bytes(1 << 16);
    let again = |bytes: &[u8]| bytes.repeat(65536_usize.div_ceil(bytes.len().max(1)));
    let lies = vec![
        lie("no NAR, as MinIO says it (404)", answers(Answer::no_such_key())),
        lie("no NAR, as AWS says it without ListBucket (403)", answers(Answer::access_denied())),
        lie("a page in place of the NAR", answers(Answer::object(PAGE))),
        lie("a page in place of the NAR, no FileHash", bare_answers(Answer::object(PAGE))),
        lie("an empty NAR", answers(Answer::object(""))),
        lie("an empty NAR, no FileHash", bare_answers(Answer::object(""))),
        Lie::of("two NARs swapped", &[1], &[&a, &b], swapped(false)),
        Lie::of("two NARs swapped, with FileHash", &[1], &[&a, &b], swapped(true)),
        lie("half of the NAR, with its length", answers(Answer::object(half))),
        lie("half of the NAR, with its length, no FileHash", bare_answers(Answer::object(half))),
        lie("half of the NAR, with FileHash", holding(half.to_vec())),
        lie("all but a byte of the NAR, with FileHash", holding(file[..file.len() - 1].to_vec())),
        lie("something after the file, with FileHash", holding([file.as_slice(), b"x"].concat())),
        lie("another frame after the file, with FileHash", holding([file.clone(), zstd(b"x")].concat())),
        lie("a NAR twice, with FileHash", holding(zstd(&[victim.nar.clone(), victim.nar.clone()].concat()))),
        lie("noise in place of the NAR, with FileHash", holding(noise.clone())),
        lie("a narinfo in place of the NAR", holding(victim.narinfo.to_string().into_bytes())),
        lie("no bytes at all, compressed", holding(zstd(b""))),
        lie("a NAR in a NAR", holding(zstd(&zstd(&victim.nar)))),
        lie("a NAR without an end, no length", answers(Answer::endless(file.clone(), again(&[0])))),
        lie(
            "a NAR without an end, no FileHash",
            bare_answers(Answer::endless(file.clone(), again(&zstd(&[0; 65536])))),
        ),
        lie("a NAR of 2^60 bytes", answers(Answer::endless_stated(file.clone(), again(&[0]), 1 << 60))),
        lie(
            "a NAR of 2^60 bytes, no FileHash",
            bare_answers(Answer::endless_stated(file.clone(), again(&[0]), 1 << 60)),
        ),
        broken("a length that is too small", answers(Answer::stated(file.clone(), size - 10))),
        broken("a length that is too large", answers(Answer::stated(file.clone(), size + 10))),
        broken("a length that is no number", answers(Answer::raw("HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n"))),
        broken("the NAR stops half way", answers(Answer::stated(half, size))),
        broken("the NAR stops half way, no length", answers(Answer::unstated(half))),
        broken("the NAR stalls half way", answers(Answer::stalled(half, size))),
        broken("the NAR's answer never comes", answers(Answer::silent())),
        broken("the NAR redirects to itself", answers(Answer::redirect(format!("/{BUCKET}/{}", victim.narinfo.url)))),
        broken("the NAR redirects to a file", answers(Answer::redirect("file:///etc/passwd"))),
        broken("status 500 for the NAR", answers(Answer::status(500))),
        broken("status 206 without being asked", answers(Answer::raw(partial(half, 0, file.len())))),
        broken("another range than was asked for", answers(Answer::raw(partial(half, file.len() / 2, file.len())))),
        lie(
            "Content-Encoding: gzip on a NAR that has none, no FileHash",
            bare_answers(Answer::object(PAGE).header("Content-Encoding", "gzip")),
        ),
    ];
    // Those are retried by both layers, with a wait between: half a minute of doing nothing.
    let long = ["the NAR's answer never comes", "status 500 for the NAR"];
    let patient = std::env::var_os("LIES").is_some_and(|lies| lies == "all");
    scene.tell_all(lies.into_iter().filter(|lie| patient || !long.contains(&lie.name)).collect());
}

/// A partial answer from `first`, whatever was asked.
fn partial(bytes: &[u8], first: usize, total: usize) -> Vec<u8> {
    let last = first + bytes.len() - 1;
    let head = format!("HTTP/1.1 206 Partial Content\r\nContent-Range: bytes {first}-{last}/{total}\r\n");
    [format!("{head}Content-Length: {}\r\nConnection: close\r\n\r\n", bytes.len()).as_bytes(), bytes].concat()
}

#[test]
fn signed_nars_that_are_evil() {
    let scene = Scene::new();
    let long_name = [b'n'; 256];
    let long_target = vec![b't'; MAX_TARGET + 1];
    let one = |name: &'static [u8]| nar_of(&directory(&[(name, link(b"x"))]));
    let outside = scene.scratch.path().join("outside");
    fs::create_dir(&outside).unwrap();
    let outside = outside.to_str().unwrap().as_bytes().to_vec();
    let mut padded = file_nar(b"x");
    let at = padded.len() - 20;
    padded[at] = 1;
    let sized = |size: u64| {
        let mut nar = nar_of(&[b"(", b"type", b"regular", b"contents"]);
        nar.extend(size.to_le_bytes());
        nar.extend([0; 64]);
        nar
    };
    let evil: Vec<(&'static str, Vec<u8>)> = vec![
        ("a file called .", one(b".")),
        ("a file called ..", one(b"..")),
        ("a file without a name", one(b"")),
        ("a name with a slash", one(b"a/b")),
        ("an absolute name", one(b"/etc/cron.d/x")),
        ("a name that climbs", one(b"../../../x")),
        ("a name with a NUL byte", one(b"a\0b")),
        ("a name of 256 bytes", nar_of(&directory(&[(&long_name, link(b"x"))]))),
        ("names out of order", nar_of(&directory(&[(b"b", link(b"x")), (b"a", link(b"x"))]))),
        ("a name twice", nar_of(&directory(&[(b"a", link(b"x")), (b"a", link(b"x"))]))),
        (
            "a link, then a directory of the same name",
            nar_of(&directory(&[(b"d", link(&outside)), (b"d", directory(&[(b"pwned", file(b"x"))]))])),
        ),
        ("a link, then a file through it", nar_of(&directory(&[(b"d", link(&outside)), (b"d/pwned", file(b"x"))]))),
        (
            "a link, then a file of the same name",
            nar_of(&directory(&[(b"d", link(b"../outside")), (b"d", file(b"x"))])),
        ),
        ("a link with entries", nar_of(&[b"(", b"type", b"symlink", b"target", &outside, b"entry", b"(", b")", b")"])),
        ("a link without a target", nar_of(&[b"(", b"type", b"symlink", b")"])),
        ("a link to nothing", nar_of(&link(b""))),
        ("a target with a NUL byte", nar_of(&link(b"a\0b"))),
        ("a target of 4096 bytes", nar_of(&link(&long_target))),
        ("a directory 65 deep", nested_nar(MAX_DEPTH + 1)),
        ("a directory 100,000 deep", nested_nar(100_000)),
        ("an unknown type", nar_of(&[b"(", b"type", b"fifo", b")"])),
        ("no type", nar_of(&[b"(", b")"])),
        ("two types", nar_of(&[b"(", b"type", b"regular", b"type", b"symlink", b"target", b"x", b")"])),
        ("a file without contents", nar_of(&[b"(", b"type", b"regular", b")"])),
        ("contents twice", nar_of(&[b"(", b"type", b"regular", b"contents", b"x", b"contents", b"y", b")"])),
        (
            "executable, but not quite",
            nar_of(&[b"(", b"type", b"regular", b"executable", b"x", b"contents", b"x", b")"]),
        ),
        (
            "an entry without a name",
            nar_of(&[b"(", b"type", b"directory", b"entry", b"(", b"node", b"(", b")", b")", b")"]),
        ),
        ("an entry without a node", nar_of(&[b"(", b"type", b"directory", b"entry", b"(", b"name", b"x", b")", b")"])),
        ("padding that is not zero", padded),
        ("a file of 2^64-1 bytes", sized(u64::MAX)),
        ("a file of 2^63 bytes", sized(1 << 63)),
        ("a file of 1 TiB", sized(1 << 40)),
        ("a tag of 2^40 bytes", [nar_of(&[b"("]), (1_u64 << 40).to_le_bytes().to_vec(), vec![0; 64]].concat()),
        ("something after the NAR", [file_nar(b"x"), b"x".to_vec()].concat()),
        ("a NAR of version 2", nar_of(&[]).iter().map(|&byte| if byte == b'1' { b'2' } else { byte }).collect()),
        ("a NAR that ends early", nar_of(&[b"(", b"type", b"directory"])),
        ("zeros", vec![0; 4096]),
        ("one byte", vec![b'n']),
    ];
    let lies = evil.into_iter().map(|(name, nar)| {
        let method = if nar.len() > 1 << 20 { Compression::Zstd } else { Compression::None };
        let victim = scene.forger.path("victim", nar, method, &[]);
        let plan = honest(objects([&victim]));
        Lie::of(name, &[1], &[&victim], plan)
    });
    scene.tell_all(lies.collect());
    assert_eq!(fs::read_dir(std::ffi::OsString::from(String::from_utf8(outside).unwrap())).unwrap().count(), 0);
}

#[test]
fn lies_about_references_and_the_cache() {
    let scene = Scene::new();
    let forger = &scene.forger;
    let victim = forger.path("victim", small_nar(b'v'), Compression::Zstd, &[]);
    let user = forger.path("user", small_nar(b'u'), Compression::Zstd, &[&victim]);
    let alone = forger.path("alone", small_nar(b'a'), Compression::Zstd, &[]);
    let back = forger.signed(victim.clone().but(|narinfo| narinfo.references.push(user.narinfo.path.clone())));
    let many: Vec<Forged> =
        (0..3).map(|i| forger.path(&format!("ring-{i}"), small_nar(b'r'), Compression::None, &[])).collect();
    let ring: Vec<Forged> = (0..3)
        .map(|i| {
            let next = many[(i + 1) % 3].narinfo.path.clone();
            forger.signed(many[i].clone().but(|narinfo| narinfo.references.push(next)))
        })
        .collect();
    let absent = |name: String| store_dir().parse(&store_path(&name, 9)).unwrap();
    let crowd = forger.signed(victim.clone().but(|narinfo| {
        narinfo.references = (0..300).map(|i| absent(format!("absent-{i}"))).collect();
        narinfo.references.sort_unstable();
    }));
    let info = |answer: Answer| at(objects([&victim]), "nix-cache-info", answer);
    let recursive = |name, codes, wanted: &[&Forged], plan, there: &[&Forged]| Lie {
        args: &["-r"],
        there: there.iter().map(|&forged| forged.clone()).collect(),
        ..Lie::of(name, codes, wanted, plan)
    };
    let mut bad = objects([&victim, &user, &alone]);
    bad.insert(victim.narinfo.url.clone(), b"x".to_vec());
    let mut unsigned = objects([&victim, &user, &alone]);
    unsigned
        .insert(victim.narinfo.key(), victim.clone().but(|n| n.signatures.clear()).narinfo.to_string().into_bytes());
    let lie = |name, plan| Lie::of(name, &[1], &[&victim], plan);
    let broken = |name, plan| Lie::of(name, &[1, 2], &[&victim], plan);
    let circle = recursive(
        "references in a circle; another path is good",
        &[1],
        &[&user, &back, &alone],
        honest(objects([&user, &back, &alone])),
        &[],
    );
    let lies = vec![
        Lie { maybe: vec![alone.clone()], ..circle },
        recursive("references in a circle of two", &[1], &[&user, &back], honest(objects([&user, &back])), &[]),
        recursive(
            "references in a circle of three",
            &[1],
            &[&ring[0], &ring[1], &ring[2]],
            honest(objects(&ring)),
            &[],
        ),
        recursive("300 references that are not there", &[1], &[&crowd], honest(objects([&crowd])), &[]),
        recursive("a reference's NAR is bad; another path is good", &[1], &[&user, &alone], honest(bad), &[&alone]),
        recursive(
            "a reference is not signed; another path is good",
            &[1],
            &[&user, &alone],
            honest(unsigned),
            &[&alone],
        ),
        recursive(
            "a reference is not there; another path is good",
            &[1],
            &[&user, &alone],
            honest(objects([&user, &alone])),
            &[&alone],
        ),
        lie("a cache of another store directory", info(Answer::object("StoreDir: /gnu/store\n"))),
        lie("a page in place of nix-cache-info", info(Answer::object(PAGE))),
        lie("a nix-cache-info without an end", info(Answer::endless("StoreDir: /nix/store\n", vec![b'x'; 65536]))),
        lie("a nix-cache-info that is not UTF-8", info(Answer::object(b"StoreDir: \xff\n".to_vec()))),
        broken(
            "a nix-cache-info that redirects to itself",
            info(Answer::redirect(format!("/{BUCKET}/nix-cache-info"))),
        ),
        broken("a nix-cache-info that never comes", info(Answer::silent())),
    ];
    scene.tell_all(lies);
}

/// Ranges of a large NAR that are not of one object, or not those that were asked for: whoever puts them together
/// refuses the path, unless the result is what was signed.
#[test]
fn ranges_that_do_not_fit() {
    const LARGE: usize = 17 << 20;
    let scene = Scene::new();
    let (mut random, mut contents) = (Random::new(3), vec![0; LARGE]);
    contents[..1 << 20].copy_from_slice(&random.bytes(1 << 20));
    let nar = file_nar(&contents);
    contents[LARGE - 1] = 1;
    let other = Arc::new(file_nar(&contents));
    let victim = scene.forger.path("victim", nar, Compression::None, &[]);
    let (all, url) = (objects([&victim]), victim.narinfo.url.clone());
    for (name, how) in [
        ("ranges of another object", Ranges::OfAnother),
        ("ranges that are shifted by a byte", Ranges::Shifted),
        ("ranges that are a byte short", Ranges::Short),
        ("the whole in place of a range", Ranges::Whole),
        ("the first range in place of each", Ranges::First),
    ] {
        let (all, other, url) = (all.clone(), Arc::clone(&other), url.clone());
        let server = LyingServer::start(move |asked| {
            let Some((first, last)) = asked.range().filter(|&(first, _)| asked.key == url && first > 0) else {
                return Answer::honest(&all, asked);
            };
            let whole = &all[&url];
            let last = last.unwrap_or(usize::MAX).min(whole.len() - 1);
            match how {
                Ranges::OfAnother => Answer::raw(partial(&other[first..=last], first, whole.len())),
                Ranges::Shifted => Answer::raw(partial(&whole[first - 1..last], first, whole.len())),
                Ranges::Short => Answer::raw(partial(&whole[first..last], first, whole.len())),
                Ranges::Whole => Answer::object(whole.clone()),
                Ranges::First => Answer::raw(partial(&whole[..=last - first], 0, whole.len())),
            }
        });
        for door in [Door::Http, Door::S3] {
            let root = scene.root();
            let said = scene.pull_to(&Scene::url(&server, door), &root, &[], &[victim.full_path()]);
            let there = victim.lies_below(&root);
            let ranges = server.asked().iter().filter(|asked| asked.range().is_some()).count();
            println!(
                "| {name} | {door:?} | {} | {} | {ranges} ranges asked for",
                said.status,
                shown(said.stderr.trim_end())
            );
            assert!(if there { said.status == 0 } else { [1, 2].contains(&said.status) }, "{name}: {}", said.stderr);
            assert_eq!(unclear(&said.stderr), Vec::<String>::new());
            assert_eq!(visible(&root).len(), usize::from(there));
        }
    }
}

/// What is wrong with all ranges but the first.
#[derive(Debug, Clone, Copy)]
enum Ranges {
    OfAnother,
    Shifted,
    Short,
    Whole,
    First,
}

/// A chain of references, ten thousand deep: taken where it is whole, refused to the last where its end is missing.
#[test]
fn references_ten_thousand_deep() {
    const DEEP: usize = 10_000;
    let scene = Scene::new();
    let mut chain: Vec<Forged> = Vec::with_capacity(DEEP);
    for i in 0..DEEP {
        let next: Vec<&Forged> = chain.last().into_iter().collect();
        chain.push(scene.forger.path(&format!("link-{i}"), small_nar(b'x'), Compression::None, &next));
    }
    let top = [chain.last().unwrap().full_path()];
    let mut all = objects(&chain);
    let whole = LyingServer::start(honest(all.clone()));
    let said = scene.pull(&whole.http_url(), &["-r", "--list", "--jobs", "64"], &top);
    assert_eq!(said.status, 0, "{}", said.stderr);
    assert_eq!(String::from_utf8(said.stdout).unwrap().lines().next(), Some(chain[0].full_path().as_str()));
    all.remove(&chain[0].narinfo.key());
    let cut = LyingServer::start(honest(all));
    let root = scene.root();
    let said = scene.pull_to(&cut.http_url(), &root, &["-r", "--jobs", "64"], &top);
    println!(
        "| a chain of {DEEP} references without its end | http | {} | {} |",
        said.status,
        shown(said.stderr.trim_end())
    );
    assert_eq!((said.status, unclear(&said.stderr)), (1, Vec::new()));
    assert_eq!(visible(&root), Vec::<String>::new());
}

/// Each byte of a narinfo is changed in turn: the path is refused, or the change is in a field that nobody signs and that
/// does not matter, and the path is what was signed.
#[test]
fn a_narinfo_with_a_changed_byte() {
    let scene = Scene::new();
    let seed = seed();
    let mut random = Random::new(seed);
    let deriver = store_dir().parse(&store_path("victim.drv", 1)).unwrap();
    let make = |index: usize| {
        let forged = scene.forger.path(&format!("byte-{index:04}"), small_nar(b'v'), Compression::None, &[]);
        scene.forger.signed(forged.but(|narinfo| narinfo.deriver = Some(deriver.clone())))
    };
    let length = make(0).narinfo.to_string().len();
    let paths: Vec<Forged> = (0..length).map(make).collect();
    let mut all = objects(&paths);
    let mut fields = Vec::new();
    for (index, forged) in paths.iter().enumerate() {
        let text = forged.narinfo.to_string();
        fields.push(text[..index].lines().last().filter(|_| !text[..index].ends_with('\n')).map_or_else(
            || text[index..].split(':').next().unwrap_or_default().to_owned(),
            |line| {
                text.lines()
                    .find(|whole| whole.starts_with(line))
                    .unwrap_or_default()
                    .split(':')
                    .next()
                    .unwrap_or_default()
                    .to_owned()
            },
        ));
        all.insert(forged.narinfo.key(), flipped(text.as_bytes(), index, &mut random));
    }
    let accepted = pull_all(&scene, &all, &paths, seed);
    let mut by_field: BTreeMap<&str, usize> = BTreeMap::new();
    for index in &accepted {
        *by_field.entry(&fields[*index]).or_default() += 1;
    }
    println!(
        "| each of {length} bytes of a narinfo changed | http | 1 | {} refused, {} accepted as what was signed, changes in {by_field:?} |",
        length - accepted.len(),
        accepted.len()
    );
    for field in by_field.keys() {
        assert!(["FileHash", "FileSize", "Deriver"].contains(field), "seed {seed}: a changed {field} was accepted");
    }
}

/// Each byte of a NAR is changed in turn, in every compression: the path is refused by FileHash, or where the liar
/// makes that fit, by NarHash, unless what comes out is what was signed.
#[test]
fn a_nar_with_a_changed_byte() {
    let scene = Scene::new();
    let seed = seed();
    let mut random = Random::new(seed);
    for refiled in [false, true] {
        let (mut paths, mut all, mut counts) = (Vec::new(), objects([]), Vec::new());
        for method in Compression::ALL {
            let stored = compressed(method, &small_nar(b'v'));
            counts.push((method, stored.len()));
            for index in 0..stored.len() {
                let name = format!("{}-{index}", method.name());
                let forged = scene.forger.path(&name, small_nar(b'v'), method, &[]);
                let bytes = flipped(&forged.file, index, &mut random);
                let url = format!("nar/{name}");
                let forged = if refiled {
                    forged.filed(url, bytes)
                } else {
                    Forged { file: bytes, ..forged.but(|narinfo| narinfo.url = url) }
                };
                all.extend(forged.objects());
                paths.push(forged);
            }
        }
        let accepted = pull_all(&scene, &all, &paths, seed);
        let sizes: Vec<String> = counts.iter().map(|(method, size)| format!("{method} {size}")).collect();
        let mut of: BTreeMap<&str, usize> = BTreeMap::new();
        for index in &accepted {
            *of.entry(&paths[*index].narinfo.compression).or_default() += 1;
        }
        println!(
            "| each byte of a NAR changed{}: {} | http | 1 | {} refused, {} accepted as what was signed {of:?} |",
            if refiled { ", with FileHash" } else { "" },
            sizes.join(", "),
            paths.len() - accepted.len(),
            accepted.len()
        );
        assert!(refiled || accepted.is_empty(), "seed {seed}: FileHash was not looked at");
        // Only what a decoder does not look at may change: times and flags in gzip's head and the like.
        assert!(!of.contains_key("none") && accepted.len() * 10 < paths.len(), "seed {seed}: {of:?}");
    }
}

/// A number for this run, or that of an earlier one.
fn seed() -> u64 {
    std::env::var("LIES_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(20)
}

/// The bytes with another one at `index`.
fn flipped(bytes: &[u8], index: usize, random: &mut Random) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes[index] ^= u8::try_from(1 + random.below(255)).unwrap();
    bytes
}

/// Pulls all paths at once, every one of which is a lie, and returns which were accepted all the same; each of those is
/// what was signed, and each other one is named on standard error.
fn pull_all(scene: &Scene, all: &Objects, paths: &[Forged], seed: u64) -> Vec<usize> {
    let server = LyingServer::start(honest(all.clone()));
    let root = scene.root();
    let wanted: Vec<String> = paths.iter().map(Forged::full_path).collect();
    let said = scene.pull_to(&server.http_url(), &root, &[], &wanted);
    assert_eq!((said.status, unclear(&said.stderr)), (1, Vec::new()), "seed {seed}");
    let accepted: Vec<usize> = (0..paths.len()).filter(|&index| paths[index].lies_below(&root)).collect();
    assert_eq!(visible(&root).len(), accepted.len(), "seed {seed}: something is there that was not asked for");
    let words: HashSet<&str> =
        said.stderr.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| word.len() == 32).collect();
    let silent: Vec<usize> = (0..paths.len())
        .filter(|index| !accepted.contains(index) && !words.contains(paths[*index].narinfo.path.hash_part().as_str()))
        .collect();
    assert!(silent.is_empty(), "seed {seed}: nothing is said of {silent:?}");
    accepted
}

/// Bombs and bodies without an end: refused, and never in memory.
#[test]
fn bombs_and_endless_bodies_take_no_memory() {
    let scene = Scene::new();
    let zeros = vec![0; 8 << 20];
    // A NAR that holds 1 TiB of zeros and begins to; the narinfo says that it has 1,000 bytes.
    let mut start = nar_of(&[b"(", b"type", b"regular", b"contents"]);
    start.extend((1_u64 << 40).to_le_bytes());
    let claim = |method: Compression| {
        let forged = scene.forger.stored(&format!("bomb-{method}"), start.clone(), Vec::new(), method.name(), &[]);
        let forged = forged.but(|narinfo| {
            narinfo.nar_size = 1000;
            narinfo.file_hash = None;
            narinfo.file_size = None;
        });
        scene.forger.signed(forged)
    };
    for method in Compression::ALL {
        let forged = claim(method);
        let (first, again) = (compressed(method, &start), compressed(method, &zeros));
        // One stream after another is one file to all of them but brotli.
        let file = match method {
            Compression::Brotli => compressed(method, &[start.as_slice(), &zeros.repeat(32)].concat()),
            Compression::None => start.clone(),
            _ => [first.clone(), again.repeat(32)].concat(),
        };
        let (size, unpacked) = (file.len(), if method == Compression::None { 0 } else { unpacked_size(method, &file) });
        let server = LyingServer::start(at(objects([&forged]), &forged.narinfo.url, Answer::object(file)));
        let (said, peak) = measured(&scene, &server, &forged);
        println!(
            "| a bomb in {method}: {size} bytes for {} MiB, NarSize 1000 | http | {} | {} | peak {} KiB |",
            unpacked / MIB,
            said.status,
            shown(said.stderr.trim_end()),
            peak / 1024
        );
        assert_eq!((said.status, unclear(&said.stderr)), (1, Vec::new()));
        assert!(peak < 100 * MIB, "{method}: {peak} bytes");
        let endless = at(objects([&forged]), &forged.narinfo.url, Answer::endless(first, again));
        let server = LyingServer::start(endless);
        let (said, peak) = measured(&scene, &server, &forged);
        println!(
            "| a file without an end in {method}, NarSize 1000 | http | {} | {} | peak {} KiB, {} bytes sent |",
            said.status,
            shown(said.stderr.trim_end()),
            peak / 1024,
            server.sent()
        );
        assert_eq!((said.status, unclear(&said.stderr)), (1, Vec::new()));
        assert!(peak < 100 * MIB, "{method}: {peak} bytes");
    }
}

/// How much a bomb unpacks to, at most 1 GiB.
fn unpacked_size(method: Compression, file: &[u8]) -> u64 {
    std::io::copy(&mut decoder(method, file).unwrap().take(1 << 30), &mut std::io::sink()).unwrap()
}

/// Pulls one path that must not appear, and returns the largest resident size of `s3-pull` too.
fn measured(scene: &Scene, server: &LyingServer, forged: &Forged) -> (Said, u64) {
    let root = scene.root();
    let mut command = scene.scratch.command("s3-pull");
    command.args(["--idle-timeout", "2", "--trusted-public-key", &scene.forger.public(), "--root"]).arg(&root);
    command.arg(server.http_url()).arg(forged.full_path());
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let status = PathBuf::from(format!("/proc/{}/status", child.id()));
    let mut peak = 0;
    // It only rises; a process that has ended has none.
    while child.try_wait().unwrap().is_none() {
        let text = fs::read_to_string(&status).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or_default();
        peak = peak.max(line.trim().trim_end_matches(" kB").parse().unwrap_or(0) * 1024);
        thread::yield_now();
    }
    let mut stderr = String::new();
    child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
    assert_eq!(visible(&root), Vec::<String>::new(), "{stderr}");
    (Said { status: child.wait().unwrap().code().unwrap_or(-1), stderr, stdout: Vec::new() }, peak)
}

/// What goes to standard output of a lie is never whole: the next stage refuses it.
#[test]
fn streams_of_lies_are_cut_off() {
    let scene = Scene::new();
    let good = scene.forger.path("good", small_nar(b'g'), Compression::Zstd, &[]);
    let victim = scene.forger.path("victim", small_nar(b'v'), Compression::Zstd, &[&good]);
    let evil = small_nar(b'e');
    assert_eq!(evil.len(), victim.nar.len());
    let lie = victim.clone().filed("nar/lie".to_owned(), compressed(Compression::Zstd, &evil));
    for (name, lie) in [
        ("another NAR of the same size", lie),
        ("FileHash of other bytes", victim.but(|n| n.file_hash = Some(Sha256::of(b"")))),
    ] {
        let server = LyingServer::start(honest(objects([&good, &lie])));
        for (flags, next) in [
            (&["--nar"][..], "nar-pack --list"),
            (&["--export", "-r"], "narinfo-gen --no-nix"),
            (&["--archive", "-r"], "cache-sign -k key.sec"),
        ] {
            let said = scene.pull(&server.http_url(), flags, &[lie.full_path()]);
            println!("| {name}, {} | http | {} | {} |", flags.join(" "), said.status, shown(said.stderr.trim_end()));
            assert_eq!((said.status, unclear(&said.stderr)), (1, Vec::new()));
            assert!(!said.stdout.is_empty() || flags == ["--nar"], "what is good was not written");
            scene.scratch.sh("[ -e key.sec ] || cache-sign keygen k-1 key.sec key.pub").ok();
            let refused = scene.scratch.sh_with_input(next, &said.stdout);
            assert_eq!(refused.status, 1, "{next} took it: {}", refused.stderr);
        }
    }
}

/// Who is sent to another host is not to take the password along.
#[test]
fn passwords_do_not_follow_redirects() {
    let scene = Scene::new();
    let victim = scene.forger.path("victim", small_nar(b'v'), Compression::Zstd, &[]);
    let all = objects([&victim]);
    let elsewhere = LyingServer::start(honest(all.clone()));
    let there = elsewhere.http_url();
    let here = LyingServer::start(move |asked: &Asked| Answer::redirect(format!("{there}/{}", asked.key)));
    let root = scene.root();
    let url = here.http_url().replace("http://", "http://somebody:secret@");
    let said = scene.pull_to(&url, &root, &[], &[victim.full_path()]);
    assert_eq!(said.status, 0, "{}", said.stderr);
    assert!(victim.lies_below(&root));
    assert!(!here.asked().is_empty() && here.asked().iter().all(|asked| asked.header("authorization").is_some()));
    assert!(!elsewhere.asked().is_empty());
    let told: Vec<Asked> =
        elsewhere.asked().into_iter().filter(|asked| asked.header("authorization").is_some()).collect();
    assert!(told.is_empty(), "{told:?}");
    assert!(!said.stderr.contains("secret"), "{}", said.stderr);
}

/// A listing that says for ever that there is more.
#[test]
fn a_listing_that_goes_in_circles_ends() {
    let scene = Scene::new();
    let page = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<ListBucketResult><Name>{BUCKET}</Name><KeyCount>1</KeyCount>\
         <IsTruncated>true</IsTruncated><NextContinuationToken>again</NextContinuationToken>\
         <Contents><Key>{}.narinfo</Key><Size>1</Size></Contents></ListBucketResult>",
        "0".repeat(32)
    );
    let cache_info = objects([]);
    let server = LyingServer::start(move |asked: &Asked| {
        if asked.key.is_empty() { Answer::object(page.clone()) } else { Answer::honest(&cache_info, asked) }
    });
    let mut command = scene.scratch.command("timeout");
    command.args(["--kill-after=5", "20", "s3-pull", "--all", "--list", "--no-verify-signatures", &server.s3_url()]);
    let output = command.stdin(Stdio::null()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    println!("| a listing that goes in circles | s3 | {:?} | {} |", output.status.code(), shown(said.trim_end()));
    assert!(matches!(output.status.code(), Some(1 | 2)), "{:?}: {said}", output.status);
    assert_eq!(unclear(&said), Vec::<String>::new());
}
