//! Bad input: for each tool one clear line on standard error, the exit code that the design page promises, nothing on
//! standard output, and nothing published. Each test prints its part of the table.

use crate::fixtures::bucket::S3Server;
use crate::fixtures::closure_fixture::{ARCHIVE, Fixture};
use cache_tests::random_seed;
use cache_tests::{Random, split_hint};
use std::fs;

mod formats;
mod remote;

/// One row: what is wrong, the command line, what it has to say, and the exit code.
struct Case {
    name: &'static str,
    script: String,
    code: i32,
    words: Vec<String>,
}

/// A row of the table; what stands between bars in `words` must be part of the line, in whatever case.
fn case(name: &'static str, script: impl Into<String>, code: i32, words: &str) -> Case {
    let words = words.split('|').filter(|word| !word.is_empty()).map(str::to_lowercase).collect();
    Case { name, script: script.into(), code, words }
}

/// A site with some bad files beside the good ones, and a bucket `$FULL` with the closure.
struct BadInputFixture {
    fixture: Fixture,
}

/// A path whose hash part has a letter that Nix does not use.
const BAD_PATH: &str = "/nix/store/eeeeeeeeeeeeeeeeeeeeeeeeeeeeeeee-bad";

/// Makes the reader of a command's standard output go away before the command starts: `GONE; command >&3`.
const CLOSED_STDOUT: &str = "exec 3> >(true); wait $!";

impl BadInputFixture {
    fn new(service: &impl S3Server) -> Self {
        let mut fixture = Fixture::new();
        service.owner().apply(&mut fixture.scratch);
        // A server that is not there is not asked for long.
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

    /// Runs one case with a fresh bucket `$C`, prints its row, and says what is wrong with it.
    fn check(&self, tool: &str, service: &impl S3Server, case: &Case) -> Result<(), String> {
        let bucket = service.new_bucket();
        // A function, so that `timeout` bounds the tool itself and leaves its exit code and descriptors alone.
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
            (case.code == 141 && !stderr.is_empty(), "it complains about the reader".to_owned()),
            (
                case.code != 141 && !one_line,
                "expected one line that begins with the tool's name, and perhaps a hint".to_owned(),
            ),
            (jargon.is_some() || stderr.len() > 500, format!("not a clear line: {jargon:?}, {} bytes", stderr.len())),
            (!missing.is_empty(), format!("does not say {missing:?}")),
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

/// What no user understands: the names of an SDK's states, line feeds that were in its message, a panic.
const INTERNAL_TERMS: [&str; 4] = ["dispatch failure", "unhandled", "\u{fffd}", "panicked"];

/// What was refused later may have made the bucket a cache before; an empty one is closed.
fn may_remain(case: &Case, key: &str) -> bool {
    (case.name.starts_with("truncated") || case.name == "narinfo without its NAR") && key == "nix-cache-info"
}

/// Bytes that begin like no stream that the tools know.
fn random_bytes() -> Vec<u8> {
    let mut bytes = Random::new(random_seed()).bytes(4096);
    bytes[0] = 0xff;
    bytes
}

/// Runs `command` on a terminal; standard error stays what it is.
fn on_terminal(command: &str) -> String {
    format!(
        "script -qec 'timeout --foreground 60 {command} 2>stderr' /dev/null </dev/null >terminal || code=$?; cat stderr >&2; exit ${{code:-0}}"
    )
}
