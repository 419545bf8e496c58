//! Bad input: for each tool one clear line on standard error, the exit code that the design page promises, nothing on
//! standard output, and nothing published. Each test prints its part of the table.

use std::fs;
use std::net::TcpListener;

use crate::fixtures::bucket::{Service, assert_closed, narinfo_keys, snapshot};
use crate::fixtures::site::{ARCHIVE, PUBLISH, Site, random_seed};
use cache_tests::{Credentials, EmbeddedS3, Minio, Random, store_path};

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
struct Bench {
    site: Site,
}

/// A path whose hash part has a letter that Nix does not use.
const BAD_PATH: &str = "/nix/store/eeeeeeeeeeeeeeeeeeeeeeeeeeeeeeee-bad";

/// Makes the reader of a command's standard output go away before the command starts: `GONE; command >&3`.
const GONE: &str = "exec 3> >(true); wait $!";

impl Bench {
    fn new(service: &impl Service) -> Self {
        let mut site = Site::new();
        service.owner().apply(&mut site.scratch);
        // A server that is not there is not asked for long.
        site.scratch.env("AWS_MAX_ATTEMPTS", "2");
        let full = service.fresh();
        site.scratch.env("FULL", service.url(&full)).env("WEB", format!("http://{}/{full}", service.address()));
        site.scratch.sh(&format!("{ARCHIVE} > archive; {ARCHIVE} | s3-push --no-nix \"$FULL\"")).ok();
        site.scratch.sh("nar-pack --root root --no-nix \"$LIB\" > nar; nar-pack --root root --no-nix --export --stdin < paths > export").ok();
        site.scratch.sh("nar-pack --root root --no-nix \"$APP\" > app.nar").ok();
        site.scratch.sh("mkdir cache; tar x -C cache < archive; narinfo-gen --no-nix < export > narinfos").ok();
        for name in ["nar", "export", "archive", "narinfos"] {
            site.scratch.sh(&format!("head -c 700 {name} > {name}.cut")).ok();
        }
        fs::write(site.path("random"), random_bytes()).unwrap();
        fs::write(site.path("empty"), "").unwrap();
        Self { site }
    }

    /// Runs every case and prints the table.
    fn run(&self, tool: &str, service: &impl Service, cases: &[Case]) {
        let failures: Vec<String> = cases.iter().filter_map(|case| self.check(tool, service, case).err()).collect();
        assert!(failures.is_empty(), "{} of {} cases:\n{}", failures.len(), cases.len(), failures.join("\n"));
    }

    /// Runs one case with a fresh bucket `$C`, prints its row, and says what is wrong with it.
    fn check(&self, tool: &str, service: &impl Service, case: &Case) -> Result<(), String> {
        let bucket = service.fresh();
        // A function, so that `timeout` bounds the tool itself and leaves its exit code and descriptors alone.
        let bounded = format!("{tool}() {{ timeout --kill-after=5 60 {tool} \"$@\"; }}");
        let script = format!("export C='{}'; {bounded}; {}", service.url(&bucket), case.script);
        let outcome = self.site.scratch.sh(&script);
        let said = outcome.stderr.trim_end_matches('\n');
        println!("| {tool} | {} | {} | {} |", case.name, outcome.status, said.replace('\n', " ⏎ "));
        let lower = said.to_lowercase();
        let missing: Vec<&String> = case.words.iter().filter(|word| !lower.contains(word.as_str())).collect();
        let one_line = said.lines().count() == 1 && said.starts_with(&format!("{tool}: "));
        let jargon = JARGON.iter().find(|word| lower.contains(**word));
        let published = service.keys(&bucket).into_iter().filter(|key| !may_be_left(case, key)).collect::<Vec<_>>();
        let wrong = [
            (outcome.status != case.code, format!("status {} instead of {}", outcome.status, case.code)),
            (case.code == 141 && !said.is_empty(), "it complains about the reader".to_owned()),
            (case.code != 141 && !one_line, "expected one line that begins with the tool's name".to_owned()),
            (jargon.is_some() || said.len() > 500, format!("not a clear line: {jargon:?}, {} bytes", said.len())),
            (!missing.is_empty(), format!("does not say {missing:?}")),
            (!outcome.stdout.is_empty(), format!("standard output: {:?}", outcome.text())),
            (!published.is_empty(), format!("published {published:?}")),
        ];
        let wrong: Vec<String> = wrong.into_iter().filter(|(is, _)| *is).map(|(_, what)| what).collect();
        if wrong.is_empty() {
            return Ok(());
        }
        Err(format!("{tool}: {}: {}\n  {}\n  {said}", case.name, wrong.join("; "), case.script))
    }
}

/// What no user understands: the names of an SDK's states, line feeds that were in its message, a panic.
const JARGON: [&str; 4] = ["dispatch failure", "unhandled", "\u{fffd}", "panicked"];

/// What was refused later may have made the bucket a cache before; an empty one is closed.
fn may_be_left(case: &Case, key: &str) -> bool {
    (case.name.starts_with("truncated") || case.name == "narinfo without its NAR") && key == "nix-cache-info"
}

/// Bytes that begin like no stream that the tools know.
fn random_bytes() -> Vec<u8> {
    let mut bytes = Random::new(random_seed()).bytes(4096);
    bytes[0] = 0xff;
    bytes
}

/// A loopback address that nobody listens on.
fn closed_port() -> String {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}

/// Runs `command` on a terminal; standard error stays what it is.
fn on_terminal(command: &str) -> String {
    format!(
        "script -qec 'timeout --foreground 60 {command} 2>said' /dev/null </dev/null >shown || code=$?; cat said >&2; exit ${{code:-0}}"
    )
}

#[test]
fn nar_pack() {
    let s3 = EmbeddedS3::shared();
    let bench = Bench::new(s3);
    let absent = store_path("absent", random_seed());
    let local = "nar-pack --root root --no-nix";
    let mut cases = vec![
        case("no argument", "nar-pack", 2, "PATH|--help"),
        case("empty input", "nar-pack --list < empty", 1, "NAR"),
        case("empty input to --unpack", "nar-pack --unpack out < empty", 1, "NAR"),
        case("truncated NAR", "nar-pack --unpack out < nar.cut", 1, "truncated"),
        case("random bytes", "nar-pack --unpack out < random", 1, "NAR"),
        case("an export stream where a NAR should be", "nar-pack --list < export", 1, "NAR"),
        case("something after the NAR", "cat nar random | nar-pack --unpack out", 1, "follows"),
        case("--unpack onto something", "mkdir there; nar-pack --unpack there < nar", 2, "there|exists"),
        case("missing file", "nar-pack no-such-file", 2, "no-such-file|No such file"),
        case("missing store path", format!("{local} --export {absent}"), 2, &format!("{absent}|No such file")),
        case("bad hash part", format!("{local} --export {BAD_PATH}"), 1, "eeee|base-32"),
        case("bad hash part in a path list", format!("echo {BAD_PATH} | {local} --export --stdin"), 1, "line 1|eeee"),
        case("truncated path list", format!("head -c 60 paths | {local} --export --stdin"), 1, "line |cut off"),
        case("random bytes as path list", format!("{local} --export --stdin < random"), 1, "path list|line 1"),
        case(
            "missing --path-info",
            format!("{local} --export --path-info nowhere \"$LIB\""),
            2,
            "nowhere|No such file",
        ),
        case("bad --path-info", format!("{local} --export --path-info random \"$LIB\""), 1, "random"),
        case("closure that nobody knows", format!("{local} --export -r \"$LIB\""), 1, "closure|--path-info"),
        case("terminal as input", on_terminal("nar-pack --list"), 2, "terminal"),
        case("terminal as output", on_terminal("nar-pack nar"), 2, "terminal"),
        case(
            "terminal for an export stream",
            on_terminal("nar-pack --root root --no-nix --export $LIB"),
            2,
            "terminal",
        ),
        case("closed output", format!("{GONE}; nar-pack nar >&3"), 141, ""),
        case("closed output of --list", format!("{GONE}; nar-pack --list < app.nar >&3"), 141, ""),
        case("full disk", "nar-pack nar > /dev/full", 2, "No space left"),
        case("unknown flag", "nar-pack --exprt nar", 2, "--exprt|--export|--help"),
        case("bad store directory", "nar-pack --store-dir nix/store --export x", 2, "nix/store|absolute"),
    ];
    cases.push(case("a FIFO", "mkfifo fifo; nar-pack fifo", 2, "fifo"));
    bench.run("nar-pack", s3, &cases);
    assert!(!fs::exists(bench.site.path("out")).unwrap(), "what could not be unpacked is not there");
}

#[test]
fn narinfo_gen() {
    let s3 = EmbeddedS3::shared();
    let bench = Bench::new(s3);
    let cases = [
        case("empty input", "narinfo-gen < empty", 1, "empty|NAR"),
        case("empty input to --archive", "narinfo-gen --archive < empty > out || exit $?", 1, "empty"),
        case("truncated NAR", "narinfo-gen --no-nix \"$LIB\" < nar.cut", 1, "truncated"),
        case("truncated export stream", "narinfo-gen --no-nix < export.cut", 1, "truncated"),
        case("export stream without its end", "head -c -8 export | narinfo-gen --no-nix >/dev/null", 1, "truncated"),
        case("random bytes", "narinfo-gen < random", 1, "NAR"),
        case("narinfo text", "narinfo-gen < narinfos", 1, "narinfo text"),
        case("a cache archive", "narinfo-gen < archive", 1, "archive"),
        case("something after the NAR", "cat nar random | narinfo-gen --no-nix \"$LIB\"", 1, "follows|end"),
        case("NAR without a store path", "narinfo-gen < nar", 2, "STORE-PATH"),
        case("export stream with a store path", "narinfo-gen --no-nix \"$LIB\" < export", 2, "export stream"),
        case("bad hash part", format!("narinfo-gen {BAD_PATH} < nar"), 1, "eeee|base-32"),
        case("no store path at all", "narinfo-gen ./result < nar", 1, "./result|/nix/store"),
        case("missing --path-info", "narinfo-gen --path-info nowhere \"$LIB\" < nar", 2, "nowhere|No such file"),
        case(
            "missing --candidates",
            "narinfo-gen --no-nix --candidates nowhere \"$LIB\" < nar",
            2,
            "nowhere|No such file",
        ),
        case("terminal as input", on_terminal("narinfo-gen"), 2, "terminal|NAR"),
        case("terminal as output", on_terminal("narinfo-gen --no-nix --archive < export"), 2, "terminal|archive"),
        case("closed output", format!("{GONE}; narinfo-gen --no-nix < export >&3"), 141, ""),
        case("closed output of --archive", format!("{GONE}; narinfo-gen --no-nix --archive < export >&3"), 141, ""),
        case("full disk", "narinfo-gen --no-nix < export > /dev/full", 2, "No space left"),
        case("unknown compression", "narinfo-gen -c zst < export", 2, "zst|zstd"),
        case("level that is too high", "narinfo-gen --level 99 < export", 2, "99|19"),
        case("unknown flag", "narinfo-gen --archiv < export", 2, "--archiv|--archive|--help"),
    ];
    bench.run("narinfo-gen", s3, &cases);
}

#[test]
fn cache_sign() {
    let s3 = EmbeddedS3::shared();
    let bench = Bench::new(s3);
    fs::write(bench.site.path("short.sec"), "short-1:AAAA").unwrap();
    fs::write(bench.site.path("noname.sec"), "AAAA").unwrap();
    fs::write(bench.site.path("text.sec"), "text-1:this is not base 64!").unwrap();
    // Or there is a warning too, of a key that others can read.
    bench.site.scratch.sh("chmod 600 *.sec key.pub empty random").ok();
    let sign = "cache-sign -k key.sec";
    let verify = "cache-sign verify --trusted-public-key";
    let cases = [
        case("no key", "cache-sign < narinfos", 2, "-k|--help"),
        case("empty input", format!("{sign} < empty"), 1, "empty|narinfo"),
        case("truncated narinfo text", format!("{sign} < narinfos.cut >/dev/null"), 1, "narinfo"),
        case("truncated archive", format!("{sign} < archive.cut >/dev/null"), 1, "archive|cut off"),
        case("random bytes", format!("{sign} < random"), 1, "narinfo|archive"),
        case("a NAR", format!("{sign} < nar"), 1, "a NAR"),
        case("an export stream", format!("{sign} < export"), 1, "export stream"),
        case("missing key file", "cache-sign -k no-such-key < narinfos", 2, "no-such-key|No such file"),
        case("empty key file", "cache-sign -k empty < narinfos", 1, "empty"),
        case("key of a bad length", "cache-sign -k short.sec < narinfos", 1, "short.sec|short-1|64|3 bytes"),
        case("key without a name", "cache-sign -k noname.sec < narinfos", 1, "noname.sec|name"),
        case("key that is not base 64", "cache-sign -k text.sec < narinfos", 1, "text.sec|base 64"),
        case("random bytes as key", "cache-sign -k random < narinfos", 1, "random"),
        case(
            "public key where a secret one should be",
            "cache-sign -k key.pub < narinfos",
            1,
            "key.pub|32 bytes|public key",
        ),
        case("public key of a bad length", format!("{verify} a-1:AAAA < narinfos"), 1, "a-1|3 bytes|32"),
        case("public key that is none", format!("{verify} nonsense < narinfos"), 1, "public key|NAME:BASE64"),
        case("missing nix.conf", "cache-sign verify --nix-conf nowhere < narinfos", 2, "nowhere|No such file"),
        case("more keys wanted than given", format!("{verify} \"$KEY\" --threshold 2 < narinfos"), 2, "2|1"),
        case("keygen onto a file", "cache-sign keygen a-1 key.sec new.pub", 2, "key.sec|exists"),
        case("keygen into nowhere", "cache-sign keygen a-1 nowhere/a.sec a.pub", 2, "nowhere/a.sec|No such file"),
        case("keygen with a bad name", "cache-sign keygen a:b a.sec a.pub", 1, "name|colon"),
        case("terminal as input", on_terminal("cache-sign -k key.sec"), 2, "terminal|narinfo"),
        case("terminal as output", on_terminal("cache-sign -k key.sec < archive"), 2, "terminal|archive"),
        case("closed output", format!("{GONE}; {sign} < narinfos >&3"), 141, ""),
        case("closed output of an archive", format!("{GONE}; {sign} < archive >&3"), 141, ""),
        case("full disk", format!("{sign} < archive > /dev/full"), 2, "No space left"),
        case("unknown command", "cache-sign verfy", 2, "verfy|verify"),
        case("unknown flag", "cache-sign --keyfile key.sec", 2, "--keyfile|--key-file|--help"),
    ];
    bench.run("cache-sign", s3, &cases);
    for file in ["new.pub", "a.sec", "a.pub"] {
        assert!(!fs::exists(bench.site.path(file)).unwrap(), "{file} was left");
    }
}

/// What can be wrong with a bucket's URL, for a tool that begins with `command`; `rest` comes after the bucket.
fn url_cases(command: &str, rest: &str) -> Vec<Case> {
    let with = |url: &str| format!("{command} '{url}' {rest}");
    vec![
        case("unknown URL parameter", with("s3://bucket?regoin=eu-west-2"), 2, "regoin|region"),
        case("unknown value of a parameter", with("s3://bucket?scheme=ftp"), 2, "ftp|https"),
        case("bad bucket name", with("s3://b/"), 2, "s3://b/"),
        case("no bucket name", with("s3://"), 2, "s3://"),
    ]
}

/// Servers that are not there or do not let us in.
fn server_cases(service: &impl Service, command: &str, rest: &str) -> Vec<Case> {
    let endpoint = service.address();
    let closed = closed_port();
    let stranger = Credentials::random();
    let wrong_secret = format!("export AWS_SECRET_ACCESS_KEY={}", stranger.secret_key);
    let wrong_both = format!("{wrong_secret} AWS_ACCESS_KEY_ID={}", stranger.access_key);
    // The embedded server tells of a missing bucket only whoever lists it.
    let hidden = service.hides_missing_buckets() && (command.contains("--key") || command.contains("--root"));
    let none = "unset AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY";
    let closed_url = format!("s3://bucket?endpoint={closed}&scheme=http");
    let no_bucket = format!("s3://no-such-bucket-here?endpoint={endpoint}&scheme=http");
    let mut cases = vec![
        case("wrong endpoint", format!("{command} '{closed_url}' {rest}"), 2, &format!("{closed}|refused")),
        case("bucket that is not there", format!("{command} '{no_bucket}' {rest}"), 2, "no-such-bucket-here|bucket"),
        case("wrong secret key", format!("{wrong_secret}; {command} \"$C\" {rest}"), 2, "signature"),
        case("unknown access key", format!("{wrong_both}; {command} \"$C\" {rest}"), 2, "403"),
        case("no credentials", format!("{none}; {command} \"$C\" {rest}"), 2, "credentials"),
        case("profile that is not there", format!("{none}; {command} \"$C&profile=nobody\" {rest}"), 2, "nobody"),
    ];
    cases.retain(|case| !(hidden && case.name.starts_with("bucket")));
    cases
}

fn s3_push_cases(service: &impl Service) -> Vec<Case> {
    let push = "s3-push --no-nix \"$C\"";
    let mut cases = vec![
        case("no bucket", "s3-push < archive", 2, "s3://"),
        case("not a bucket", "s3-push ./dir < archive", 2, "./dir|s3://"),
        case("an https:// URL", "s3-push https://example.org < archive", 2, "https://example.org|s3://"),
        case("empty input", format!("{push} < empty"), 1, "empty"),
        case("truncated archive", format!("{push} < archive.cut"), 1, "archive|cut off"),
        case("truncated NAR", format!("{push} \"$LIB\" < nar.cut"), 1, "truncated"),
        case("truncated export stream", format!("{push} < export.cut"), 1, "truncated"),
        case("truncated narinfo text", format!("head -c 300 narinfos | {push}"), 1, "narinfo|cut off"),
        case("random bytes", format!("{push} < random"), 1, "archive|NAR"),
        case("NAR without a store path", format!("{push} < nar"), 2, "STORE-PATH"),
        case("archive with a store path", format!("{push} \"$LIB\" < archive"), 2, "archive"),
        case("bad hash part", format!("{push} {BAD_PATH} < nar"), 1, "eeee|base-32"),
        case("bad hash part in a path list", format!("echo {BAD_PATH} | {push} --missing"), 1, "line 1|eeee"),
        case("truncated path list", format!("head -c 60 paths | {push} --missing"), 1, "line |cut off"),
        case("random bytes as path list", format!("{push} --missing < random"), 1, "path list|line 1"),
        case("narinfo without its NAR", format!("{push} < cache/$(basename $LIB | cut -c-32).narinfo"), 1, "nar/|lib"),
        case("missing --path-info", format!("{push} --path-info nowhere < export"), 2, "nowhere|No such file"),
        case("terminal as input", on_terminal("s3-push --no-nix $C"), 2, "terminal"),
        case("terminal for --missing", on_terminal("s3-push --missing $C"), 2, "terminal|path list"),
        case("bad --part-size", format!("{push} --part-size 5Mb < archive"), 2, "--part-size|MiB"),
        case("unknown flag", format!("{push} --mising < archive"), 2, "--mising|--missing|--help"),
        case("closed output", format!("{GONE}; s3-push --missing \"$C\" < paths >&3"), 141, ""),
    ];
    cases.extend(url_cases("s3-push --no-nix", "< archive"));
    cases.extend(url_cases("s3-push --missing", "< paths"));
    cases.extend(server_cases(service, "s3-push --no-nix", "< archive"));
    cases.extend(server_cases(service, "s3-push --missing", "< paths"));
    cases.extend(server_cases(service, "s3-push --key log/x", "< paths"));
    cases
}

fn s3_pull_cases(service: &impl Service) -> Vec<Case> {
    let pull = "s3-pull --root out \"$FULL\"";
    let absent = store_path("absent", random_seed());
    let closed = closed_port();
    let mut cases = vec![
        case("no argument", "s3-pull", 2, "--root"),
        case("no path", pull, 2, "store paths|--all|--help"),
        case("no output", "s3-pull \"$FULL\" \"$LIB\"", 2, "--root"),
        case("missing path", format!("{pull} {absent}"), 1, &absent),
        case("missing path in an empty bucket", "s3-pull --root out \"$C\" \"$LIB\"", 1, "lib"),
        case("bad hash part", format!("{pull} {BAD_PATH}"), 1, "eeee|base-32"),
        case("not a store path", format!("{pull} ./result"), 1, "./result"),
        case("bad hash part in a path list", format!("echo {BAD_PATH} | {pull} --stdin"), 1, "line 1|eeee"),
        case("truncated path list", format!("head -c 60 paths | {pull} --stdin"), 1, "line |cut off"),
        case("random bytes as path list", format!("{pull} --stdin < random"), 1, "path list|line 1"),
        case("unknown kind of URL", "s3-pull --root out ftp://example.org \"$LIB\"", 2, "ftp://|s3://"),
        case("no URL", "s3-pull --root out \"$LIB\"", 2, "URL"),
        case(
            "file:// directory that is not there",
            "s3-pull --root out file:///no/such/dir \"$LIB\"",
            2,
            "/no/such/dir",
        ),
        case(
            "http:// server that is not there",
            format!("s3-pull --root out http://{closed} \"$LIB\""),
            2,
            &format!("{closed}|refused"),
        ),
        case("--all of an http:// cache", "s3-pull --list --all \"$WEB\"", 2, "http|listed"),
        case("bad public key", format!("{pull} --trusted-public-key a-1:AAAA \"$LIB\""), 1, "a-1|3 bytes"),
        case("missing nix.conf", format!("{pull} --nix-conf nowhere \"$LIB\""), 2, "nowhere|No such file"),
        case("root that is a file", "s3-pull --root empty \"$FULL\" \"$LIB\"", 2, "empty"),
        case("--nar of two paths", "s3-pull --nar \"$FULL\" \"$LIB\" \"$APP\"", 2, "--nar"),
        case("terminal as path list", on_terminal("s3-pull --root out --stdin $FULL"), 2, "terminal|path list"),
        case("terminal as output", on_terminal("s3-pull --nar $FULL $LIB"), 2, "terminal|NAR"),
        case("terminal for an archive", on_terminal("s3-pull --archive $FULL $LIB"), 2, "terminal|archive"),
        case("terminal for an export stream", on_terminal("s3-pull --export $FULL $LIB"), 2, "terminal|export"),
        case("closed output", format!("{GONE}; s3-pull --nar \"$FULL\" \"$LIB\" >&3"), 141, ""),
        case("closed output of --list", format!("{GONE}; s3-pull --list \"$FULL\" \"$LIB\" >&3"), 141, ""),
        case("full disk", "s3-pull --nar \"$FULL\" \"$LIB\" > /dev/full", 2, "No space left"),
        case("unknown flag", "s3-pull --rot out \"$FULL\" \"$LIB\"", 2, "--rot|--root|--help"),
    ];
    cases.extend(url_cases("s3-pull --root out", "\"$LIB\""));
    cases.extend(server_cases(service, "s3-pull --root out", "\"$LIB\""));
    cases.extend(server_cases(service, "s3-pull --list --all", ""));
    cases
}

/// Cases whose answer depends on how a server treats strangers: the embedded one lets them read.
fn not_for_public_buckets(case: &Case) -> bool {
    case.name != "no credentials" || !case.script.contains("s3-pull --root")
}

#[test]
fn s3_push() {
    let s3 = EmbeddedS3::shared();
    let bench = Bench::new(s3);
    bench.run("s3-push", s3, &s3_push_cases(s3));
}

#[test]
fn what_was_published_before_anybody_could_be_told_stays() {
    let s3 = EmbeddedS3::shared();
    let mut bench = Bench::new(s3);
    let bucket = bench.site.fresh_bucket(s3);
    let told = bench.site.scratch.sh(&format!("{GONE}; s3-push --quiet --no-nix \"$C\" < archive >&3"));
    assert_eq!(told.fails(141), "", "the reader is gone");
    assert_closed(&snapshot(s3, &bucket));
    bench.site.scratch.sh(PUBLISH).ok();
    assert_eq!(narinfo_keys(&snapshot(s3, &bucket)).len(), 3);
}

#[test]
fn s3_push_to_minio() {
    let Some(minio) = Minio::shared() else { return };
    let bench = Bench::new(minio);
    let commands =
        [("s3-push --no-nix", "< archive"), ("s3-push --missing", "< paths"), ("s3-push --key log/x", "< paths")];
    let cases: Vec<Case> = commands.iter().flat_map(|(command, rest)| server_cases(minio, command, rest)).collect();
    bench.run("s3-push", minio, &cases);
}

#[test]
fn s3_pull() {
    let s3 = EmbeddedS3::shared();
    let bench = Bench::new(s3);
    let cases: Vec<Case> = s3_pull_cases(s3).into_iter().filter(not_for_public_buckets).collect();
    bench.run("s3-pull", s3, &cases);
    bench.site.assert_nothing_below("out");
}

#[test]
fn s3_pull_from_minio() {
    let Some(minio) = Minio::shared() else { return };
    let bench = Bench::new(minio);
    let commands = [("s3-pull --root out", "\"$LIB\""), ("s3-pull --list --all", "")];
    let cases: Vec<Case> = commands.iter().flat_map(|(command, rest)| server_cases(minio, command, rest)).collect();
    bench.run("s3-pull", minio, &cases);
    bench.site.assert_nothing_below("out");
}

/// Objects of a cache that are wrong, on a directory as cache, which is as good as a bucket.
#[test]
fn s3_pull_from_a_bad_cache() {
    let s3 = EmbeddedS3::shared();
    let bench = Bench::new(s3);
    let pull = "s3-pull --root out file://$PWD/bad \"$LIB\"";
    let narinfo = Site::narinfo_key(&bench.site.closure.lib);
    let bad = |how: &str| format!("rm -rf bad; cp -r cache bad; chmod -R u+w bad; N=bad/{narinfo}; {how}; {pull}");
    let nar = "bad/$(sed -n 's/^URL: //p' $N)";
    let cases = [
        case("empty narinfo", bad(": > $N"), 1, "narinfo|missing"),
        case("truncated narinfo", bad("truncate -s 50 $N"), 1, "narinfo"),
        case("random bytes as narinfo", bad("cp random $N"), 1, "narinfo"),
        case(
            "narinfo of another path",
            bad(&format!("cp bad/{} $N", Site::narinfo_key(&bench.site.closure.app))),
            1,
            "another path|app",
        ),
        case("narinfo without a NarHash", bad("sed -i /NarHash/d $N"), 1, "NarHash|missing"),
        case("unknown compression", bad("sed -i 's/^Compression: .*/Compression: lzma2000/' $N"), 1, "lzma2000"),
        case("NAR outside the cache", bad("sed -i 's|^URL: .*|URL: ../../etc/passwd|' $N"), 1, "../../etc/passwd"),
        case("empty NAR", bad(&format!(": > {nar}")), 1, "lib"),
        case("truncated NAR", bad(&format!("truncate -s 5000 {nar}")), 1, "lib"),
        case("random bytes as NAR", bad(&format!("cp random {nar}")), 1, "lib"),
        case("missing NAR", bad(&format!("rm {nar}")), 1, "nar/"),
        case("unsigned", bad("sed -i /^Sig/d $N"), 1, "lib|not signed"),
        case(
            "no nix-cache-info of this store directory",
            bad("echo StoreDir: /gnu/store > bad/nix-cache-info"),
            1,
            "/gnu/store",
        ),
    ];
    bench.run("s3-pull", s3, &cases);
    bench.site.assert_nothing_below("out");
}

#[test]
fn cache_policy() {
    let s3 = EmbeddedS3::shared();
    let bench = Bench::new(s3);
    let mut cases = vec![
        case("no argument", "cache-policy", 2, "--read-only|--upload|--help"),
        case("no bucket", "cache-policy --read-only", 2, "bucket"),
        case("empty bucket", "cache-policy --read-only ''", 2, "bucket"),
        case("bad bucket name", "cache-policy --read-only a_bucket/", 2, "a_bucket/"),
        case("bucket name with a quote", "cache-policy --upload 'a\"b'", 2, "a\\\"b"),
        case("bad ARN", "cache-policy --read-only --principal bob my-cache", 2, "bob|ARN"),
        case("both documents", "cache-policy --read-only --upload my-cache", 2, "--upload"),
        case("closed output", format!("{GONE}; cache-policy --read-only my-cache >&3"), 141, ""),
        case("full disk", "cache-policy --read-only my-cache > /dev/full", 2, "No space left"),
        case("unknown flag", "cache-policy --readonly my-cache", 2, "--readonly|--read-only|--help"),
    ];
    let unknown = |case: &Case| case.name.starts_with("unknown");
    cases.extend(url_cases("cache-policy --read-only", "").into_iter().filter(unknown));
    bench.run("cache-policy", s3, &cases);
}
