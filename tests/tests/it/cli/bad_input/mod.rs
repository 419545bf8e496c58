//! Bad input: each tool prints one clear line on standard error, exits with the documented status, prints nothing on
//! standard output and publishes nothing. Each test prints its part of the table.

use crate::fixtures::bucket::S3Server;
use crate::fixtures::closure_fixture::{ARCHIVE, Fixture};
use cache_tests::random_seed;
use cache_tests::{Random, split_hint};
use std::fs;

mod formats;
mod remote;

/// A row of the table: the error, the command line, the expected text of the message, and the exit status.
struct Case {
    name: &'static str,
    script: String,
    code: i32,
    words: Vec<String>,
}

/// Returns a row of the table. `words` are separated by bars; each must be part of the message, in any case.
fn case(name: &'static str, script: impl Into<String>, code: i32, words: &str) -> Case {
    let words = words.split('|').filter(|word| !word.is_empty()).map(str::to_lowercase).collect();
    Case { name, script: script.into(), code, words }
}

/// A fixture with bad files next to the good ones, and a bucket `$FULL` that contains the closure.
struct BadInputFixture {
    fixture: Fixture,
}

/// A path whose hash part has a letter that is not a base-32 digit.
const BAD_PATH: &str = "/nix/store/eeeeeeeeeeeeeeeeeeeeeeeeeeeeeeee-bad";

/// Closes the reader of a command's standard output before the command starts: `CLOSED_STDOUT; command >&3`.
const CLOSED_STDOUT: &str = "exec 3> >(true); wait $!";

impl BadInputFixture {
    fn new(service: &impl S3Server) -> Self {
        let mut fixture = Fixture::new();
        service.owner().apply(&mut fixture.scratch);
        // Keeps retries of an unreachable server short.
        fixture.scratch.env("AWS_MAX_ATTEMPTS", "2");
        let full = service.new_bucket();
        fixture.scratch.env("FULL", service.url(&full)).env("WEB", format!("http://{}/{full}", service.address()));
        fixture.scratch.sh(&format!("{ARCHIVE} > archive; {ARCHIVE} | s3-push --no-nix \"$FULL\"")).ok();
        fixture.scratch.sh("nar-pack --root root --no-nix \"$LIB\" > nar; nar-pack --root root --no-nix --export --stdin < paths > export").ok();
        fixture.scratch.sh("nar-pack --root root --no-nix \"$APP\" > app.nar").ok();
        fixture.scratch.sh("mkdir cache; tar x -C cache < archive; narinfo-gen --no-nix < export > narinfos").ok();
        for name in ["nar", "export", "archive", "narinfos"] {
            fixture.scratch.sh(&format!("head -c 700 {name} > {name}.cut")).ok();
        }
        fs::write(fixture.path("random"), random_bytes()).unwrap();
        fs::write(fixture.path("empty"), "").unwrap();
        Self { fixture }
    }

    /// Runs every case and prints the table.
    fn run(&self, tool: &str, service: &impl S3Server, cases: &[Case]) {
        let failures: Vec<String> = cases.iter().filter_map(|case| self.check(tool, service, case).err()).collect();
        assert!(failures.is_empty(), "{} of {} cases:\n{}", failures.len(), cases.len(), failures.join("\n"));
    }

    /// Runs one case with an empty bucket `$C`, prints its row, and returns an error if the result is wrong.
    fn check(&self, tool: &str, service: &impl S3Server, case: &Case) -> Result<(), String> {
        let bucket = service.new_bucket();
        // A shell function, so that `timeout` limits only the tool and passes on its exit status and descriptors.
        let bounded = format!("{tool}() {{ timeout --kill-after=5 60 {tool} \"$@\"; }}");
        let script = format!("export C='{}'; {bounded}; {}", service.url(&bucket), case.script);
        let output = self.fixture.scratch.sh(&script);
        let stderr = output.stderr.trim_end_matches('\n');
        println!("| {tool} | {} | {} | {} |", case.name, output.status, stderr.replace('\n', " ⏎ "));
        let lower = stderr.to_lowercase();
        let missing: Vec<&String> = case.words.iter().filter(|word| !lower.contains(word.as_str())).collect();
        let (message, _) = split_hint(stderr);
        let one_line = message.lines().count() == 1 && message.starts_with(&format!("{tool}: "));
        let jargon = INTERNAL_TERMS.iter().find(|word| lower.contains(**word));
        let published = service.keys(&bucket).into_iter().filter(|key| !may_remain(case, key)).collect::<Vec<_>>();
        let wrong = [
            (output.status != case.code, format!("status {} instead of {}", output.status, case.code)),
            (case.code == 141 && !stderr.is_empty(), "there is a message about the closed pipe".to_owned()),
            (
                case.code != 141 && !one_line,
                "expected one line that begins with the tool's name, and perhaps a hint".to_owned(),
            ),
            (
                jargon.is_some() || stderr.len() > 500,
                format!("not a clear message: {jargon:?}, {} bytes", stderr.len()),
            ),
            (!missing.is_empty(), format!("expected {missing:?} in the message")),
            (!output.stdout.is_empty(), format!("standard output: {:?}", output.text())),
            (!published.is_empty(), format!("published {published:?}")),
        ];
        let wrong: Vec<String> = wrong.into_iter().filter(|(is, _)| *is).map(|(_, what)| what).collect();
        if wrong.is_empty() {
            return Ok(());
        }
        Err(format!("{tool}: {}: {}\n  {}\n  {stderr}", case.name, wrong.join("; "), case.script))
    }
}

/// Words that no user understands: states of the SDK, replaced control characters, a panic.
const INTERNAL_TERMS: [&str; 4] = ["dispatch failure", "unhandled", "\u{fffd}", "panicked"];

/// Returns whether an object may remain: a later refusal may come after nix-cache-info is written, and an empty cache
/// is closed.
fn may_remain(case: &Case, key: &str) -> bool {
    (case.name.starts_with("truncated") || case.name == "narinfo without its NAR") && key == "nix-cache-info"
}

/// Returns bytes that do not begin like any stream that the tools know.
fn random_bytes() -> Vec<u8> {
    let mut bytes = Random::new(random_seed()).bytes(4096);
    bytes[0] = 0xff;
    bytes
}

/// Returns a script that runs `command` on a terminal and keeps its standard error.
fn on_terminal(command: &str) -> String {
    format!(
        "script -qec 'timeout --foreground 60 {command} 2>stderr' /dev/null </dev/null >terminal || code=$?; cat stderr >&2; exit ${{code:-0}}"
    )
}
