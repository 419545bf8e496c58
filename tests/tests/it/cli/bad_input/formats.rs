//! Bad input to nar-pack, narinfo-gen and cache-sign.

use super::{BAD_PATH, BadInputFixture, CLOSED_STDOUT, case, on_terminal};
use cache_tests::random_seed;
use cache_tests::{EmbeddedS3, store_path};
use std::fs;

/// Writes path information that contradicts itself to `two`.
const TWO_ENTRIES: &str = "entry='{\"path\":\"%s\",\"narHash\":\"sha256:%064d\",\"narSize\":%d,\"references\":[]}'
    printf \"[$entry,$entry]\" \"$LIB\" 0 1 \"$LIB\" 0 2 > two";

#[test]
fn nar_pack_reports_bad_input() {
    let s3 = EmbeddedS3::shared();
    let fixture = BadInputFixture::new(s3);
    let absent = store_path("absent", random_seed());
    let local = "nar-pack --root root --no-nix";
    let mut cases = vec![
        case("no argument", "nar-pack", 2, "PATH|--help"),
        case("empty input", "nar-pack --list < empty", 1, "NAR"),
        case("empty input to --unpack", "nar-pack --unpack out < empty", 1, "NAR"),
        case("truncated NAR", "nar-pack --unpack out < nar.cut", 1, "truncated"),
        case("random bytes", "nar-pack --unpack out < random", 1, "NAR"),
        case("an export stream instead of a NAR", "nar-pack --list < export", 1, "NAR"),
        case("data after the NAR", "cat nar random | nar-pack --unpack out", 1, "unexpected data after"),
        case("--unpack to an existing directory", "mkdir there; nar-pack --unpack there < nar", 2, "there|exists"),
        case("missing file", "nar-pack no-such-file", 2, "no-such-file|No such file"),
        case("missing store path", format!("{local} --export {absent}"), 2, &format!("{absent}|No such file")),
        case("bad hash part", format!("{local} --export {BAD_PATH}"), 2, "eeee|base-32"),
        case("bad hash part in a path list", format!("echo {BAD_PATH} | {local} --export --stdin"), 1, "line 1|eeee"),
        case("truncated path list", format!("head -c 60 paths | {local} --export --stdin"), 1, "line |truncated"),
        case("random bytes as path list", format!("{local} --export --stdin < random"), 1, "path list|line 1"),
        case(
            "missing --path-info",
            format!("{local} --export --path-info nowhere \"$LIB\""),
            2,
            "nowhere|No such file",
        ),
        case("bad --path-info", format!("{local} --export --path-info random \"$LIB\""), 1, "random"),
        case("unknown closure", format!("{local} --export -r \"$LIB\""), 1, "closure|--path-info"),
        case("terminal as input", on_terminal("nar-pack --list"), 2, "terminal"),
        case("terminal as output", on_terminal("nar-pack nar"), 2, "terminal"),
        case(
            "terminal for an export stream",
            on_terminal("nar-pack --root root --no-nix --export $LIB"),
            2,
            "terminal",
        ),
        case("closed output", format!("{CLOSED_STDOUT}; nar-pack nar >&3"), 141, ""),
        case("closed output of --list", format!("{CLOSED_STDOUT}; nar-pack --list < app.nar >&3"), 141, ""),
        case("full disk", "nar-pack nar > /dev/full", 2, "No space left"),
        case("full disk for --help", "nar-pack --help > /dev/full", 2, "standard output|No space left"),
        case("comment in a path list", format!("echo '# x' | {local} --export --stdin"), 1, "line 1|comment"),
        case(
            "two entries of --path-info that differ",
            format!("{TWO_ENTRIES}; {local} --export --path-info two \"$LIB\""),
            1,
            "two entries that differ",
        ),
        case("unknown flag", "nar-pack --exprt nar", 2, "--exprt|--export|--help"),
        case("bad store directory", "nar-pack --store-dir nix/store --export x", 2, "nix/store|absolute"),
    ];
    cases.push(case("a FIFO", "mkfifo fifo; nar-pack fifo", 2, "fifo"));
    fixture.run("nar-pack", s3, &cases);
    assert!(!fs::exists(fixture.fixture.path("out")).unwrap(), "a NAR that was refused left files");
}

#[test]
fn narinfo_gen_reports_bad_input() {
    let s3 = EmbeddedS3::shared();
    let fixture = BadInputFixture::new(s3);
    let cases = [
        case("empty input", "narinfo-gen < empty", 1, "empty|NAR"),
        case("empty input to --archive", "narinfo-gen --archive < empty > out || exit $?", 1, "empty"),
        case("truncated NAR", "narinfo-gen --no-nix \"$LIB\" < nar.cut", 1, "truncated"),
        case("truncated export stream", "narinfo-gen --no-nix < export.cut", 1, "truncated"),
        case("export stream without its end", "head -c -8 export | narinfo-gen --no-nix >/dev/null", 1, "truncated"),
        case("random bytes", "narinfo-gen < random", 1, "NAR"),
        case("narinfo text", "narinfo-gen < narinfos", 1, "narinfo text"),
        case("a cache archive", "narinfo-gen < archive", 1, "archive"),
        case("data after the NAR", "cat nar random | narinfo-gen --no-nix \"$LIB\"", 1, "after the end of the NAR"),
        case("NAR without a store path", "narinfo-gen < nar", 2, "STORE-PATH"),
        case("export stream with a store path", "narinfo-gen --no-nix \"$LIB\" < export", 2, "export stream"),
        case("bad hash part", format!("narinfo-gen {BAD_PATH} < nar"), 2, "eeee|base-32"),
        case("no store path at all", "narinfo-gen ./result < nar", 2, "./result|HASH-NAME"),
        case("missing --path-info", "narinfo-gen --path-info nowhere \"$LIB\" < nar", 2, "nowhere|No such file"),
        case(
            "missing --candidates",
            "narinfo-gen --no-nix --candidates nowhere \"$LIB\" < nar",
            2,
            "nowhere|No such file",
        ),
        case(
            "--candidates for an export stream",
            "narinfo-gen --no-nix --candidates paths < export",
            2,
            "--candidates|export stream",
        ),
        case(
            "missing --log-dir",
            "narinfo-gen --no-nix --archive --log --log-dir nowhere < export > out",
            2,
            "nowhere|No such file",
        ),
        case("--log-dir without --log", "narinfo-gen --archive --log-dir . < export > out", 2, "--log"),
        case("terminal as input", on_terminal("narinfo-gen"), 2, "terminal|NAR"),
        case("terminal as output", on_terminal("narinfo-gen --no-nix --archive < export"), 2, "terminal|archive"),
        case("closed output", format!("{CLOSED_STDOUT}; narinfo-gen --no-nix < export >&3"), 141, ""),
        case(
            "closed output of --archive",
            format!("{CLOSED_STDOUT}; narinfo-gen --no-nix --archive < export >&3"),
            141,
            "",
        ),
        case("full disk", "narinfo-gen --no-nix < export > /dev/full", 2, "No space left"),
        case("unknown compression", "narinfo-gen -c zst < export", 2, "zst|zstd"),
        case("level that is too high", "narinfo-gen --level 99 < export", 2, "99|19"),
        case("unknown flag", "narinfo-gen --archiv < export", 2, "--archiv|--archive|--help"),
    ];
    fixture.run("narinfo-gen", s3, &cases);
}

#[test]
fn cache_sign_reports_bad_input() {
    let s3 = EmbeddedS3::shared();
    let fixture = BadInputFixture::new(s3);
    fs::write(fixture.fixture.path("short.sec"), "short-1:AAAA").unwrap();
    fs::write(fixture.fixture.path("noname.sec"), "AAAA").unwrap();
    fs::write(fixture.fixture.path("text.sec"), "text-1:this is not base 64!").unwrap();
    // Otherwise cache-sign also warns that others can read the key.
    fixture.fixture.scratch.sh("chmod 600 *.sec key.pub empty random").ok();
    let sign = "cache-sign -k key.sec";
    let verify = "cache-sign verify --trusted-public-key";
    let cases = [
        case("no key", "cache-sign < narinfos", 2, "-k|--help"),
        case("empty input", format!("{sign} < empty"), 1, "empty|narinfo"),
        case("truncated narinfo text", format!("{sign} < narinfos.cut >/dev/null"), 1, "narinfo"),
        case("truncated archive", format!("{sign} < archive.cut >/dev/null"), 1, "archive|truncated"),
        case("random bytes", format!("{sign} < random"), 1, "narinfo|archive"),
        case("a NAR", format!("{sign} < nar"), 1, "a NAR"),
        case("an export stream", format!("{sign} < export"), 1, "export stream"),
        case("missing key file", "cache-sign -k no-such-key < narinfos", 2, "no-such-key|No such file"),
        case("empty key file", "cache-sign -k empty < narinfos", 2, "empty"),
        case(
            "two keys in a file",
            "for n in 1 2; do cat key.sec; echo; done > two.sec; chmod 600 two.sec; cache-sign -k two.sec < narinfos",
            1,
            "one key on one line",
        ),
        case(
            "no trusted keys",
            "echo trusted-public-keys = > e.conf; cache-sign verify --nix-conf e.conf < narinfos",
            2,
            "no trusted keys",
        ),
        case("key of a bad length", "cache-sign -k short.sec < narinfos", 1, "short.sec|short-1|64|3 bytes"),
        case("key without a name", "cache-sign -k noname.sec < narinfos", 1, "noname.sec|name"),
        case("key that is not base 64", "cache-sign -k text.sec < narinfos", 1, "text.sec|whitespace"),
        case("random bytes as key", "cache-sign -k random < narinfos", 1, "random"),
        case(
            "public key instead of a secret key",
            "cache-sign -k key.pub < narinfos",
            1,
            "key.pub|32 bytes|public key",
        ),
        case("public key of a bad length", format!("{verify} a-1:AAAA < narinfos"), 2, "a-1|3 bytes|32"),
        case("text that is not a public key", format!("{verify} nonsense < narinfos"), 2, "public key|NAME:BASE64"),
        case("missing nix.conf", "cache-sign verify --nix-conf nowhere < narinfos", 2, "nowhere|No such file"),
        case(
            "threshold larger than the number of keys",
            format!("{verify} \"$KEY\" --threshold 2 < narinfos"),
            2,
            "2|1",
        ),
        case("keygen to an existing file", "cache-sign keygen a-1 key.sec new.pub", 2, "key.sec|exists"),
        case(
            "keygen to a missing directory",
            "cache-sign keygen a-1 nowhere/a.sec a.pub",
            2,
            "nowhere/a.sec|No such file",
        ),
        case("keygen with a bad name", "cache-sign keygen a:b a.sec a.pub", 1, "name|must not be empty"),
        case("terminal as input", on_terminal("cache-sign -k key.sec"), 2, "terminal|narinfo"),
        case("terminal as output", on_terminal("cache-sign -k key.sec < archive"), 2, "terminal|archive"),
        case("closed output", format!("{CLOSED_STDOUT}; {sign} < narinfos >&3"), 141, ""),
        case("closed output of an archive", format!("{CLOSED_STDOUT}; {sign} < archive >&3"), 141, ""),
        case("full disk", format!("{sign} < archive > /dev/full"), 2, "No space left"),
        case("unknown command", "cache-sign verfy", 2, "verfy|verify"),
        case("unknown flag", "cache-sign --keyfile key.sec", 2, "--keyfile|--key-file|--help"),
    ];
    fixture.run("cache-sign", s3, &cases);
    for file in ["new.pub", "a.sec", "a.pub"] {
        assert!(!fs::exists(fixture.fixture.path(file)).unwrap(), "{file} was created");
    }
}
