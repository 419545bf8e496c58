//! A cache that lies in every conceivable way. Nothing appears that is not signed and hashed; `s3-pull` prints clear
//! lines and exits with status 1, or 2 if there was no valid response. Each test prints its part of the table: the lie,
//! the exit status, and the messages of `s3-pull`.

use crate::fixtures::malicious_cache::{Attacker, CachedPath, objects, small_nar, visible_names};
use cache_tests::lying_server::{LyingServer, Objects, Responder, Response};
use cache_tests::{CommandOutput, Credentials, Scratch, TIMEOUT_SECONDS, unique};
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

/// Number of cases that run concurrently; most of them wait.
const CONCURRENCY: usize = 12;

/// The protocol by which the client reads the cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Protocol {
    Http,
    S3,
}

/// A directory, and an attacker whose key the user trusts.
struct PullFixture {
    scratch: Scratch,
    attacker: Attacker,
}

/// A row of the table.
struct Case {
    name: &'static str,
    /// The accepted exit statuses.
    codes: &'static [i32],
    /// The paths to pull.
    requested: Vec<CachedPath>,
    /// The paths that must be written.
    expected: Vec<CachedPath>,
    /// Paths that may be written as well.
    allowed: Vec<CachedPath>,
    /// Additional arguments.
    args: &'static [&'static str],
    respond: Responder,
}

impl Case {
    fn of(name: &'static str, codes: &'static [i32], requested: &[&CachedPath], respond: Responder) -> Self {
        let requested = requested.iter().map(|&cached| cached.clone()).collect();
        Self { name, codes, requested, expected: Vec::new(), allowed: Vec::new(), args: &[], respond }
    }
}

impl PullFixture {
    fn new() -> Self {
        let mut scratch = Scratch::new();
        // A lie that looks like a transient failure is retried once.
        scratch.env("AWS_MAX_ATTEMPTS", "2");
        Credentials::random().apply(&mut scratch);
        Self { scratch, attacker: Attacker::new() }
    }

    /// Returns a directory to pull into, which does not exist yet.
    fn root(&self) -> PathBuf {
        self.scratch.path().join(unique("root-"))
    }

    fn url(server: &LyingServer, protocol: Protocol) -> String {
        match protocol {
            Protocol::Http => server.http_url(),
            Protocol::S3 => server.s3_url(),
        }
    }

    /// Runs `s3-pull` on these paths with a timeout.
    fn pull(&self, url: &str, args: &[&str], paths: &[String]) -> CommandOutput {
        let mut command = self.scratch.command("timeout");
        command.args(["--kill-after=5", TIMEOUT_SECONDS, "s3-pull", "--stdin", "--idle-timeout", "1"]);
        command.args(["--trusted-public-key", &self.attacker.public()]).args(args).arg(url);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let list: String = paths.iter().flat_map(|path| [path, "\n"]).collect();
        thread::spawn(move || drop(stdin.write_all(list.as_bytes())));
        let output = child.wait_with_output().unwrap();
        CommandOutput {
            script: format!("s3-pull {url}"),
            status: output.status.code().unwrap_or(-1),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
            stdout: output.stdout,
        }
    }

    fn pull_to(&self, url: &str, root: &Path, args: &[&str], paths: &[String]) -> CommandOutput {
        self.pull(url, &[&["--root", root.to_str().unwrap()], args].concat(), paths)
    }

    /// Runs a case over one protocol; returns an error if the reaction is wrong.
    fn run_case(&self, case: &Case, server: &LyingServer, protocol: Protocol) -> Result<(), String> {
        let root = self.root();
        let paths: Vec<String> = case.requested.iter().map(CachedPath::full_path).collect();
        let output = self.pull_to(&Self::url(server, protocol), &root, case.args, &paths);
        let text = output.stderr.trim_end();
        let protocol_name = if protocol == Protocol::Http { "http" } else { "s3" };
        println!("| {} | {protocol_name} | {} | {} |", case.name, output.status, table_cell(text));
        let mut wrong = Vec::new();
        if !case.codes.contains(&output.status) {
            wrong.push(format!("expected one of the exit statuses {:?}, found {}", case.codes, output.status));
        }
        wrong.extend(find_problems(text));
        let named = |cached: &CachedPath| {
            text.contains(cached.narinfo.path.hash_part().as_str()) || text.contains(&cached.narinfo.url)
        };
        // A path that was not unpacked because of another one is counted in the line of that one.
        let names_a_path = text.contains("paths depend on it") || text.contains("path depends on it");
        if !text.contains("nix-cache-info") && !names_a_path && !case.requested.iter().any(named) {
            wrong.push("the message names neither path nor key".to_owned());
        }
        let allowed: Vec<&CachedPath> = case.allowed.iter().filter(|cached| cached.is_in_root(&root)).collect();
        let good: Vec<&str> =
            case.expected.iter().chain(allowed).map(|cached| cached.narinfo.path.base_name()).collect();
        let unexpected: Vec<String> =
            visible_names(&root).into_iter().filter(|name| !good.contains(&name.as_str())).collect();
        if !unexpected.is_empty() {
            wrong.push(format!("unexpected paths {unexpected:?}"));
        }
        for cached in &case.expected {
            if !cached.is_in_root(&root) {
                wrong.push(format!("{} is missing", cached.narinfo.path));
            }
        }
        if wrong.is_empty() {
            Ok(())
        } else {
            Err(format!("{} ({protocol:?}): {}\n  {text}", case.name, wrong.join("; ")))
        }
    }

    /// Runs all cases over both protocols, several at a time.
    fn run_cases(&self, cases: Vec<Case>) {
        let count = cases.len();
        let servers: Vec<(Case, LyingServer)> = cases
            .into_iter()
            .map(|mut case| {
                let respond = std::mem::replace(&mut case.respond, Box::new(|_| Response::status(500)));
                (case, LyingServer::start(respond))
            })
            .collect();
        let tasks: Vec<_> = servers.iter().flat_map(|one| [(one, Protocol::Http), (one, Protocol::S3)]).collect();
        let (next, errors) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
        thread::scope(|scope| {
            for _ in 0..CONCURRENCY {
                scope.spawn(|| {
                    while let Some(((case, server), protocol)) = tasks.get(next.fetch_add(1, Ordering::Relaxed)) {
                        if let Err(error) = self.run_case(case, server, *protocol) {
                            errors.lock().unwrap().push(error);
                        }
                    }
                });
            }
        });
        let errors = errors.into_inner().unwrap();
        println!("{count} cases, each over two protocols");
        assert!(errors.is_empty(), "{} errors:\n{}", errors.len(), errors.join("\n"));
    }
}

/// Words that no user understands.
const INTERNAL_TERMS: [&str; 4] = ["dispatch failure", "unhandled", "panicked", "RUST_BACKTRACE"];

/// Maximum length of a line in bytes: it may contain a name of 255 bytes, each escaped.
const MAX_LINE: usize = 1500;

/// Returns the problems of the messages of a tool.
fn find_problems(text: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    if text.is_empty() {
        wrong.push("it is invalid".to_owned());
    }
    for line in text.lines().filter(|line| !line.starts_with("hint: ")) {
        if !line.starts_with("s3-pull: ")
            || line.len() > MAX_LINE
            || INTERNAL_TERMS.iter().any(|word| line.contains(word))
        {
            wrong.push(format!("not a clear message: {line:?}"));
        }
    }
    wrong
}

/// Formats messages as a table cell.
fn table_cell(text: &str) -> String {
    let lines: Vec<&str> = text.lines().map(|line| line.trim_start_matches("s3-pull: ")).collect();
    match lines.as_slice() {
        [one] => (*one).to_owned(),
        [first, .., last] if lines.len() > 3 => format!("{first} … ({} lines) … {last}", lines.len()),
        lines => lines.join(" ⏎ "),
    }
}

/// Answers correctly.
fn correct(objects: Objects) -> Responder {
    Box::new(move |request| Response::correct(&objects, request))
}

/// Answers correctly except for one key.
fn with_response(objects: Objects, key: &str, response: Response) -> Responder {
    let key = key.to_owned();
    Box::new(move |request| if request.key == key { response.clone() } else { Response::correct(&objects, request) })
}

/// A page that a captive portal, a misconfigured proxy or a CDN returns.
const HTML_PAGE: &str =
    "<!DOCTYPE html>\n<html><head><title>Welcome</title></head><body><p>Please: log in</p></body></html>\n";

#[test]
fn correct_responses_are_accepted() {
    let fixture = PullFixture::new();
    let leaf = fixture.attacker.path("leaf", small_nar(b'l'), Compression::Zstd, &[]);
    let mut paths: Vec<CachedPath> = Compression::ALL
        .iter()
        .map(|&method| fixture.attacker.path(&format!("as-{method}"), small_nar(b'x'), method, &[&leaf]))
        .collect();
    paths.push(leaf);
    let requested: Vec<String> = paths.iter().map(CachedPath::full_path).collect();
    let all = objects(&paths);
    let server = LyingServer::start(correct(all));
    for protocol in [Protocol::Http, Protocol::S3] {
        let root = fixture.root();
        let output = fixture.pull_to(&PullFixture::url(&server, protocol), &root, &["-r"], &requested);
        assert_eq!(output.status, 0, "{protocol:?}: {}", output.stderr);
        assert!(paths.iter().all(|cached| cached.is_in_root(&root)), "{protocol:?}");
        assert_eq!(visible_names(&root).len(), paths.len());
    }
}
