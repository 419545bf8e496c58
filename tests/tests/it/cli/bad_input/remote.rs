//! Bad input to s3-push, s3-pull and cache-policy.

use super::{BAD_PATH, BadInputFixture, CLOSED_STDOUT, Case, case, on_terminal};
use crate::fixtures::bucket::{S3Server, assert_closed, narinfo_keys, snapshot};
use crate::fixtures::closure_fixture::{Fixture, PUBLISH};
use cache_tests::random_seed;
use cache_tests::{Credentials, EmbeddedS3, Minio, store_path};
use std::net::TcpListener;

/// Returns a loopback address without a listener.
fn closed_port() -> String {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}

/// Returns cases of invalid bucket URLs between `command` and `rest`.
fn url_cases(command: &str, rest: &str) -> Vec<Case> {
    let with = |url: &str| format!("{command} '{url}' {rest}");
    vec![
        case("unknown URL parameter", with("s3://bucket?regoin=eu-west-2"), 2, "regoin|region"),
        case("unknown value of a parameter", with("s3://bucket?scheme=ftp"), 2, "ftp|https"),
        case("bad region in the URL", with("s3://bucket?region=a.example/x"), 2, "region|a.example/x"),
        case("bad profile in the URL", with("s3://bucket?profile=a]b"), 2, "profile|a]b"),
        case("bad endpoint in the URL", with("s3://bucket?endpoint=https://a;b"), 2, "endpoint|HOST"),
        case("bad bucket name", with("s3://b/"), 2, "s3://b/"),
        case("no bucket name", with("s3://"), 2, "s3://"),
    ]
}

/// Returns cases of servers that are unreachable or deny access.
fn server_cases(service: &impl S3Server, command: &str, rest: &str) -> Vec<Case> {
    let endpoint = service.address();
    let closed = closed_port();
    let other = Credentials::random();
    let wrong_secret = format!("export AWS_SECRET_ACCESS_KEY={}", other.secret_key);
    let wrong_both = format!("{wrong_secret} AWS_ACCESS_KEY_ID={}", other.access_key);
    // The embedded server reports a missing bucket only to a listing.
    let hidden = service.hides_missing_buckets() && (command.contains("--key") || command.contains("--root"));
    let none = "unset AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY";
    let closed_url = format!("s3://bucket?endpoint={closed}&scheme=http");
    let no_bucket = format!("s3://no-such-bucket-here?endpoint={endpoint}&scheme=http");
    let mut cases = vec![
        case("wrong endpoint", format!("{command} '{closed_url}' {rest}"), 2, &format!("{closed}|refused")),
        case("bucket that does not exist", format!("{command} '{no_bucket}' {rest}"), 2, "no-such-bucket-here|bucket"),
        case("wrong secret key", format!("{wrong_secret}; {command} \"$C\" {rest}"), 2, "signature"),
        case("unknown access key", format!("{wrong_both}; {command} \"$C\" {rest}"), 2, "403"),
        case(
            "line end in the access key",
            format!("export AWS_ACCESS_KEY_ID=x$'\\n'; {command} \"$C\" {rest}"),
            2,
            "AWS_ACCESS_KEY_ID|line end",
        ),
        case("no credentials", format!("{none}; {command} \"$C\" {rest}"), 2, "credentials"),
        case("profile that does not exist", format!("{none}; {command} \"$C&profile=nobody\" {rest}"), 2, "nobody"),
    ];
    cases.retain(|case| !(hidden && case.name.starts_with("bucket")));
    cases
}

fn s3_push_cases(service: &impl S3Server) -> Vec<Case> {
    let push = "s3-push --no-nix \"$C\"";
    let mut cases = vec![
        case("no bucket", "s3-push < archive", 2, "s3://"),
        case("not a bucket", "s3-push ./dir < archive", 2, "./dir|s3://"),
        case("an https:// URL", "s3-push https://example.org < archive", 2, "https://example.org|s3://"),
        case("command after an option", "s3-push --dry-run collect \"$C\"", 2, "collect is a command|first argument"),
        case("empty input", format!("{push} < empty"), 1, "empty"),
        case("truncated archive", format!("{push} < archive.cut"), 1, "archive|truncated"),
        case("truncated NAR", format!("{push} \"$LIB\" < nar.cut"), 1, "truncated"),
        case("truncated export stream", format!("{push} < export.cut"), 1, "truncated"),
        case("truncated narinfo text", format!("head -c 300 narinfos | {push}"), 1, "narinfo|truncated"),
        case("random bytes", format!("{push} < random"), 1, "archive|NAR"),
        case("NAR without a store path", format!("{push} < nar"), 2, "STORE-PATH"),
        case("archive with a store path", format!("{push} \"$LIB\" < archive"), 2, "archive"),
        case("bad hash part", format!("{push} {BAD_PATH} < nar"), 2, "eeee|base-32"),
        case("bad hash part in a path list", format!("echo {BAD_PATH} | {push} --missing"), 1, "line 1|eeee"),
        case("truncated path list", format!("head -c 60 paths | {push} --missing"), 1, "line |truncated"),
        case("random bytes as path list", format!("{push} --missing < random"), 1, "path list|line 1"),
        case("narinfo without its NAR", format!("{push} < cache/$(basename $LIB | cut -c-32).narinfo"), 1, "nar/|lib"),
        case("missing --path-info", format!("{push} --path-info nowhere < export"), 2, "nowhere|No such file"),
        case("terminal as input", on_terminal("s3-push --no-nix $C"), 2, "terminal"),
        case("terminal for --missing", on_terminal("s3-push --missing $C"), 2, "terminal|path list"),
        case(
            "--content-type with --missing",
            format!("{push} --missing --content-type text/plain < paths"),
            2,
            "--content-type cannot be used with --missing",
        ),
        case(
            "--exact with --missing",
            format!("{push} --missing --exact < paths"),
            2,
            "--exact cannot be used with --missing",
        ),
        case(
            "--storage-class with --missing",
            format!("{push} --missing --storage-class X < paths"),
            2,
            "--storage-class",
        ),
        case(
            "--priority with --key",
            "echo x | s3-push --key x --priority 3 \"$C\"",
            2,
            "--priority cannot be used with --key",
        ),
        case("nix-cache-info as a key", "echo x | s3-push --key nix-cache-info \"$C\"", 2, "--set-cache-info"),
        case(
            "--part-size above that of S3",
            format!("{push} --part-size 10000000000GB < archive"),
            2,
            "--part-size|5GiB",
        ),
        case("--memory for one part", format!("{push} --memory 6MiB --part-size 1MiB < archive"), 2, "--memory|10MiB"),
        case("several buckets", "NIX_S3_CACHE=\"$C $C\" s3-push < archive", 2, "expected one bucket|found 2"),
        case("pin as a key", "echo x | s3-push --key pins/main \"$C\"", 2, "pins/main|s3-push pin"),
        case("the prefix of pins as a key", "echo x | s3-push --key pins \"$C\"", 2, "pins|prefix"),
        case("--exact with an archive", format!("{push} --exact < archive"), 2, "--exact|cache archive|narinfo text"),
        case("bad name of a path", format!("{push} --name 'a b' < nar"), 2, "--name|letters, digits"),
        case(
            "bad AWS_MAX_ATTEMPTS",
            format!("AWS_MAX_ATTEMPTS=x {push} < archive"),
            2,
            "invalid value 'x' for AWS_MAX_ATTEMPTS: expected a number",
        ),
        case("blank AWS_MAX_ATTEMPTS", format!("AWS_MAX_ATTEMPTS= NIX_STORE_DIR=' ' {push} < empty"), 1, "empty"),
        case("bad --part-size", format!("{push} --part-size 5Mq < archive"), 2, "--part-size|MiB"),
        case("unknown flag", format!("{push} --mising < archive"), 2, "--mising|--missing|--help"),
        case("closed output", format!("{CLOSED_STDOUT}; s3-push --missing \"$C\" < paths >&3"), 141, ""),
    ];
    cases.extend(url_cases("s3-push --no-nix", "< archive"));
    cases.extend(url_cases("s3-push --missing", "< paths"));
    cases.extend(server_cases(service, "s3-push --no-nix", "< archive"));
    cases.extend(server_cases(service, "s3-push --missing", "< paths"));
    cases.extend(server_cases(service, "s3-push --key log/x", "< paths"));
    cases
}

fn s3_pull_cases(service: &impl S3Server) -> Vec<Case> {
    let pull = "s3-pull --root out \"$FULL\"";
    let absent = store_path("absent", random_seed());
    let closed = closed_port();
    let mut cases = vec![
        case("no argument", "s3-pull", 2, "--root"),
        case("no path", pull, 2, "store paths|--all|--help"),
        case("no output", "s3-pull \"$FULL\" \"$LIB\"", 2, "--root"),
        case("command after an option", "s3-pull --jobs 2 check \"$FULL\"", 2, "check is a command|first argument"),
        case("flag command after an option", "s3-pull -r list \"$FULL\" \"$LIB\"", 2, "list is a command"),
        case("missing path", format!("{pull} {absent}"), 1, &absent),
        case("missing path in an empty bucket", "s3-pull --root out \"$C\" \"$LIB\"", 1, "lib"),
        case("bad hash part", format!("{pull} {BAD_PATH}"), 2, "eeee|base-32"),
        case("not a store path", format!("{pull} ./result"), 2, "./result|No such file"),
        case("bad hash part in a path list", format!("echo {BAD_PATH} | {pull} --stdin"), 1, "line 1|eeee"),
        case("truncated path list", format!("head -c 60 paths | {pull} --stdin"), 1, "line |truncated"),
        case("random bytes as path list", format!("{pull} --stdin < random"), 1, "path list|line 1"),
        case("unknown kind of URL", "s3-pull --root out ftp://example.org \"$LIB\"", 2, "ftp://|s3://"),
        case("no URL", "s3-pull --root out \"$LIB\"", 2, "URL"),
        case(
            "file:// directory that does not exist",
            "s3-pull --root out file:///no/such/dir \"$LIB\"",
            2,
            "/no/such/dir",
        ),
        case(
            "http:// server that is unreachable",
            format!("s3-pull --root out http://{closed} \"$LIB\""),
            2,
            &format!("{closed}|refused"),
        ),
        case("--all of an http:// cache", "s3-pull --list --all \"$WEB\"", 2, "http|listed"),
        case("bad public key", format!("{pull} --trusted-public-key a-1:AAAA \"$LIB\""), 2, "a-1|3 bytes"),
        case(
            "bad public key in a file of --nix-conf",
            format!("echo trusted-public-keys = a-1:AAAA > keys.conf; {pull} --nix-conf keys.conf \"$LIB\""),
            1,
            "keys.conf: |a-1|3 bytes",
        ),
        case("missing nix.conf", format!("{pull} --nix-conf nowhere \"$LIB\""), 2, "nowhere|No such file"),
        case("root that is a file", "s3-pull --root empty \"$FULL\" \"$LIB\"", 2, "empty"),
        case("--nar of two paths", "s3-pull --nar \"$FULL\" \"$LIB\" \"$APP\"", 2, "--nar"),
        case("terminal as path list", on_terminal("s3-pull --root out --stdin $FULL"), 2, "terminal|path list"),
        case("terminal as output", on_terminal("s3-pull --nar $FULL $LIB"), 2, "terminal|NAR"),
        case("terminal for an archive", on_terminal("s3-pull --archive $FULL $LIB"), 2, "terminal|archive"),
        case("terminal for an export stream", on_terminal("s3-pull --export $FULL $LIB"), 2, "terminal|export"),
        case("closed output", format!("{CLOSED_STDOUT}; s3-pull --nar \"$FULL\" \"$LIB\" >&3"), 141, ""),
        case("closed output of --list", format!("{CLOSED_STDOUT}; s3-pull --list \"$FULL\" \"$LIB\" >&3"), 141, ""),
        case("full disk", "s3-pull --nar \"$FULL\" \"$LIB\" > /dev/full", 2, "No space left"),
        case("unknown flag", "s3-pull --rot out \"$FULL\" \"$LIB\"", 2, "--rot|--root|--help"),
    ];
    cases.extend(url_cases("s3-pull --root out", "\"$LIB\""));
    cases.extend(server_cases(service, "s3-pull --root out", "\"$LIB\""));
    cases.extend(server_cases(service, "s3-pull --list --all", ""));
    cases
}

/// Returns whether a case applies to the embedded server, which allows anonymous reads.
fn applies_to_public_buckets(case: &Case) -> bool {
    case.name != "no credentials" || !case.script.contains("s3-pull --root")
}

#[test]
fn s3_push_reports_bad_input() {
    let s3 = EmbeddedS3::shared();
    let fixture = BadInputFixture::new(s3);
    fixture.run("s3-push", s3, &s3_push_cases(s3));
}

#[test]
fn published_paths_remain_if_stdout_is_closed() {
    let s3 = EmbeddedS3::shared();
    let mut fixture = BadInputFixture::new(s3);
    let bucket = fixture.fixture.fresh_bucket(s3);
    let output = fixture.fixture.scratch.sh(&format!("{CLOSED_STDOUT}; s3-push --quiet --no-nix \"$C\" < archive >&3"));
    assert_eq!(output.fails(141), "", "there is no message");
    assert_closed(&snapshot(s3, &bucket));
    fixture.fixture.scratch.sh(PUBLISH).ok();
    assert_eq!(narinfo_keys(&snapshot(s3, &bucket)).len(), 3);
}

#[test]
fn s3_push_reports_errors_of_minio() {
    let Some(minio) = Minio::shared() else { return };
    let fixture = BadInputFixture::new(minio);
    let commands =
        [("s3-push --no-nix", "< archive"), ("s3-push --missing", "< paths"), ("s3-push --key log/x", "< paths")];
    let cases: Vec<Case> = commands.iter().flat_map(|(command, rest)| server_cases(minio, command, rest)).collect();
    fixture.run("s3-push", minio, &cases);
}

#[test]
fn s3_pull_reports_bad_input() {
    let s3 = EmbeddedS3::shared();
    let fixture = BadInputFixture::new(s3);
    let cases: Vec<Case> = s3_pull_cases(s3).into_iter().filter(applies_to_public_buckets).collect();
    fixture.run("s3-pull", s3, &cases);
    fixture.fixture.assert_nothing_below("out");
}

#[test]
fn s3_pull_reports_errors_of_minio() {
    let Some(minio) = Minio::shared() else { return };
    let fixture = BadInputFixture::new(minio);
    let commands = [("s3-pull --root out", "\"$LIB\""), ("s3-pull --list --all", "")];
    let cases: Vec<Case> = commands.iter().flat_map(|(command, rest)| server_cases(minio, command, rest)).collect();
    fixture.run("s3-pull", minio, &cases);
    fixture.fixture.assert_nothing_below("out");
}

/// Invalid objects, in a cache in a directory.
#[test]
fn s3_pull_reports_bad_objects() {
    let s3 = EmbeddedS3::shared();
    let fixture = BadInputFixture::new(s3);
    let pull = "s3-pull --root out file://$PWD/bad \"$LIB\"";
    let narinfo = Fixture::narinfo_key(&fixture.fixture.closure.lib);
    let bad = |how: &str| format!("rm -rf bad; cp -r cache bad; chmod -R u+w bad; N=bad/{narinfo}; {how}; {pull}");
    let nar = "bad/$(sed -n 's/^URL: //p' $N)";
    let cases = [
        case("empty narinfo", bad(": > $N"), 1, "narinfo|missing"),
        case("truncated narinfo", bad("truncate -s 50 $N"), 1, "narinfo"),
        case("random bytes as narinfo", bad("cp random $N"), 1, "narinfo"),
        case(
            "narinfo of another path",
            bad(&format!("cp bad/{} $N", Fixture::narinfo_key(&fixture.fixture.closure.app))),
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
    fixture.run("s3-pull", s3, &cases);
    fixture.fixture.assert_nothing_below("out");
}

#[test]
fn cache_policy_reports_bad_input() {
    let s3 = EmbeddedS3::shared();
    let fixture = BadInputFixture::new(s3);
    let mut cases = vec![
        case("no argument", "cache-policy", 2, "--read-only|--upload|--help"),
        case("no bucket", "cache-policy --read-only", 2, "bucket"),
        case("empty bucket", "cache-policy --read-only ''", 2, "bucket"),
        case("blank bucket", "NIX_S3_CACHE=' ' cache-policy --read-only", 2, "no bucket given"),
        case("several buckets", "NIX_S3_CACHE='a-b c-d' cache-policy --read-only", 2, "expected one bucket"),
        case("bad bucket name", "cache-policy --read-only a_bucket/", 2, "a_bucket/"),
        case("bucket name with a quote", "cache-policy --upload 'a\"b'", 2, "a\\\"b"),
        case("bad ARN", "cache-policy --read-only --principal bob my-cache", 2, "bob|ARN"),
        case("both documents", "cache-policy --read-only --upload my-cache", 2, "--upload"),
        case("audience without --oidc-trust", "cache-policy --read-only --audience x my-cache", 2, "--audience"),
        case("minimal without a policy", "cache-policy --cors --minimal", 2, "--minimal|--cors"),
        case("URL with a bad region", "cache-policy --check-url 's3://my-cache?region=a.b'", 2, "region|a.b"),
        case(
            "URL that is not portable",
            "cache-policy --check-url 's3://my-cache?endpoint=h:1' > out",
            1,
            "2.35.2|https://h:1",
        ),
        case("URL of another kind", "cache-policy --check-url https://cache.example.org", 2, "s3://"),
        case("closed output", format!("{CLOSED_STDOUT}; cache-policy --read-only my-cache >&3"), 141, ""),
        case("full disk", "cache-policy --read-only my-cache > /dev/full", 2, "No space left"),
        case("unknown flag", "cache-policy --readonly my-cache", 2, "--readonly|--read-only|--help"),
    ];
    let unknown = |case: &Case| case.name.starts_with("unknown");
    cases.extend(url_cases("cache-policy --read-only", "").into_iter().filter(unknown));
    fixture.run("cache-policy", s3, &cases);
}
