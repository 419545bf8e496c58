//! The text of error messages: each names what the tool was doing and the object, once.

use cache_tests::Scratch;

const ISDIR: &str = "Is a directory (os error 21)";
const NOENT: &str = "No such file or directory (os error 2)";

/// The archive `$ARCHIVE` has a narinfo of this name, which is the text `$NARINFO`.
const KEY: &str = "00000000000000000000000000000000.narinfo";

/// Runs commands that fail, and returns those whose first line on standard error is not the expected one.
fn unexpected(scratch: &Scratch, cases: &[(&str, &str)]) -> Vec<String> {
    let run = |&(script, expected): &(&str, &str)| {
        let output = scratch.sh(script);
        let line = output.stderr.lines().next().unwrap_or_default().to_owned();
        (output.status == 0 || line != expected).then(|| format!("{script}\n  {line}\n  expected {expected}"))
    };
    cases.iter().filter_map(run).collect()
}

/// A directory with files that are directories, and with malformed narinfos.
fn scratch() -> Scratch {
    let scratch = Scratch::new();
    scratch.dir("dir");
    scratch.dir("cache");
    scratch.write("cache/nix-cache-info", "StoreDir: /nix/store\n");
    scratch.write(&format!("cache/{KEY}"), "StorePath: x\n");
    scratch.write("latin1", b"Sig: a\nSig: \xff\n");
    scratch.sh(&format!("tar c -C cache nix-cache-info {KEY} > bad.tar")).ok();
    scratch.sh(&format!("mkdir other; cp latin1 other/{KEY}; tar c -C other {KEY} > latin1.tar")).ok();
    scratch
        .sh("truncate -s 4K other/nix-cache-info; tar c -C other nix-cache-info > cut.tar; truncate -s 2K cut.tar")
        .ok();
    scratch.write("nix.conf", "include absent.conf\n");
    scratch.sh("nar-pack dir > nar").ok();
    scratch
}

#[test]
fn messages_name_the_object_once() {
    let scratch = scratch();
    let verify = "cache-sign verify --trusted-public-key a-1:gKkVNqzMzpoNLo6VNl1o+5QLrbnCTwKuuNTTjwwPUk4=";
    let nix_conf = "cache-policy s3://cache --nix-conf --trusted-public-key \
                    a-1:gKkVNqzMzpoNLo6VNl1o+5QLrbnCTwKuuNTTjwwPUk4= --write nix.conf";
    let absent = format!("{}/absent.conf", scratch.path().canonicalize().unwrap().display());
    let cases = [
        (
            format!("{verify} < bad.tar"),
            format!("cache-sign: cache archive: {KEY}: line 1: StorePath: \"x\" is not a store path in /nix/store"),
        ),
        (format!("{verify} < latin1.tar"), format!("cache-sign: cache archive: {KEY}: line 2: not valid UTF-8")),
        (
            format!("{verify} < cut.tar"),
            "cache-sign: cache archive: nix-cache-info: truncated: 2560 bytes are missing".to_owned(),
        ),
        (
            format!("{verify} < cache/{KEY}"),
            "cache-sign: narinfo 1 of the stream: line 1: StorePath: \"x\" is not a store path in /nix/store"
                .to_owned(),
        ),
        (nix_conf.to_owned(), format!("cache-policy: nix.conf, line 1: included file {absent} not found")),
    ];
    let cases: Vec<_> = cases.iter().map(|(script, expected)| (script.as_str(), expected.as_str())).collect();
    let wrong = unexpected(&scratch, &cases);
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn messages_say_what_cannot_be_read() {
    let scratch = scratch();
    let path = "/nix/store/00000000000000000000000000000000-x";
    let cases = [
        ("nar-pack --list < dir".to_owned(), format!("nar-pack: cannot read standard input: {ISDIR}")),
        ("nar-pack --unpack out < dir".to_owned(), format!("nar-pack: cannot read standard input: {ISDIR}")),
        ("nar-pack --cat x < dir".to_owned(), format!("nar-pack: cannot read standard input: {ISDIR}")),
        ("nar-pack --list dir".to_owned(), "nar-pack: cannot read dir: it is a directory".to_owned()),
        ("nar-pack --list nope".to_owned(), format!("nar-pack: cannot read nope: {NOENT}")),
        ("nar-pack --export --stdin < dir".to_owned(), format!("nar-pack: cannot read standard input: {ISDIR}")),
        (format!("narinfo-gen {path} < dir"), format!("narinfo-gen: cannot read standard input: {ISDIR}")),
        (
            format!("narinfo-gen --path-info nope {path} < nar"),
            format!("narinfo-gen: cannot read the path info in nope: {NOENT}"),
        ),
        (
            format!("narinfo-gen --no-nix --candidates nope {path} < nar"),
            format!("narinfo-gen: 00000000000000000000000000000000-x: cannot read the candidates in nope: {NOENT}"),
        ),
        (
            format!("narinfo-gen --no-nix --candidates dir {path} < nar"),
            format!("narinfo-gen: 00000000000000000000000000000000-x: cannot read the candidates in dir: {ISDIR}"),
        ),
        ("cache-sign -k dir < nar".to_owned(), format!("cache-sign: key file dir: cannot read the key: {ISDIR}")),
        (
            "cache-sign public-key - < dir".to_owned(),
            format!("cache-sign: standard input: cannot read the key: {ISDIR}"),
        ),
        (
            "cache-sign verify --trusted-public-key-file dir < nar".to_owned(),
            format!("cache-sign: cannot read dir: {ISDIR}"),
        ),
        ("s3-push --missing s3://cache < dir".to_owned(), format!("s3-push: cannot read standard input: {ISDIR}")),
    ];
    let cases: Vec<_> = cases.iter().map(|(script, expected)| (script.as_str(), expected.as_str())).collect();
    let wrong = unexpected(&scratch, &cases);
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn messages_say_what_an_argument_must_be() {
    let scratch = scratch();
    let range = |tool: &str, option: &str, value: &str, range: &str| {
        (
            format!("{tool} {} {value}", option.split(' ').next().unwrap_or_default()),
            format!("{tool}: invalid value '{value}' for '{option}': expected a number from {range}"),
        )
    };
    let mut cases = vec![
        (
            "s3-push s3://x < nar".to_owned(),
            "s3-push: invalid bucket URL \"s3://x\": the name of a bucket must be 3 to 63 characters long".to_owned(),
        ),
        (
            "cache-policy --read-only x".to_owned(),
            "cache-policy: invalid bucket name \"x\": it must be 3 to 63 characters long".to_owned(),
        ),
        ("nar-pack --cat '' nar".to_owned(), "nar-pack: \"\" in the NAR is a directory, not a file".to_owned()),
        ("nar-pack --cat x nar".to_owned(), "nar-pack: \"x\" does not exist in the NAR".to_owned()),
    ];
    for value in ["x", "0", "99999999"] {
        cases.extend([
            range("s3-push", "--jobs <N>", value, "1 to 1024"),
            range("s3-push", "--attempts <N>", value, "1 to 100"),
            range("s3-pull", "--jobs <N>", value, "1 to 1024"),
            range("narinfo-gen", "--threads <N>", value, "1 to 256"),
            range("cache-policy", "--lifecycle [<DAYS>]", value, "1 to 3650"),
        ]);
    }
    cases.push(range("narinfo-gen", "--level <N>", "x", "0 to 19"));
    let hint = scratch.sh("s3-push s3://x < nar");
    assert!(hint.stderr.contains("\nhint: pass s3://BUCKET[/PREFIX]"), "{}", hint.stderr);
    let cases: Vec<_> = cases.iter().map(|(script, expected)| (script.as_str(), expected.as_str())).collect();
    let wrong = unexpected(&scratch, &cases);
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
