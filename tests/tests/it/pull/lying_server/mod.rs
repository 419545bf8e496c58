//! A cache that lies in every way that we can think of. Whatever it says, nothing is visible that was not signed and
//! hashed; `s3-pull` says so in clear lines and ends with exit code 1, or 2 where no answer was one. Each test prints
//! its part of the table: the lie, the exit code, what `s3-pull` said.

use crate::fixtures::forgery::{Forged, Forger, objects, small_nar, visible};
use cache_tests::lying_server::{Answer, LyingServer, Objects, Plan};
use cache_tests::{Credentials, Scratch, TIMEOUT_SECONDS, unique};
use narinfo_gen::compression::Compression;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

mod bombs;
mod changed_bytes;
mod nar;
mod narinfo;
mod protocol;
mod references;

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
        command.args(["--kill-after=5", TIMEOUT_SECONDS, "s3-pull", "--stdin", "--idle-timeout", "1"]);
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
    for line in text.lines().filter(|line| !line.starts_with("hint: ")) {
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
