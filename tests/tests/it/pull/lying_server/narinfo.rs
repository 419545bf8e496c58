//! Lies in a narinfo.

use super::{Case, HTML_PAGE, PullFixture, correct, with_response};
use crate::fixtures::malicious_cache::{Attacker, CachedPath, compressed, objects, small_nar, store_dir};
use cache_tests::lying_server::{BUCKET, Response};
use narinfo_gen::compression::Compression;
use narinfo_gen::hash::Sha256;
use narinfo_gen::narinfo::MAX_SIZE;

#[test]
#[allow(clippy::too_many_lines)] // a table
fn every_lie_about_a_narinfo_is_refused() {
    let fixture = PullFixture::new();
    let attacker = &fixture.attacker;
    let victim = attacker.path("victim", small_nar(b'v'), Compression::Zstd, &[]);
    let other = attacker.path("other", small_nar(b'o'), Compression::Zstd, &[]);
    let other_attacker = Attacker::new();
    let (key, text) = (victim.narinfo.key(), victim.narinfo.to_string());
    let all = objects([&victim, &other]);
    let of = |cached: &CachedPath| correct(objects([cached, &other]));
    let with_text = |text: &str| {
        let mut all = all.clone();
        all.insert(key.clone(), text.as_bytes().to_vec());
        correct(all)
    };
    let responds = |response: Response| with_response(all.clone(), &key, response);
    let with = |from: &str, to: &str| {
        assert!(text.contains(from), "{text}");
        with_text(&text.replacen(from, to, 1))
    };
    let hash = |letter: u8| Sha256::of(&[letter]);
    let bomb = compressed(Compression::Gzip, &vec![b'\n'; 8 << 20]);
    let signed =
        |change: &dyn Fn(&mut narinfo_gen::narinfo::NarInfo)| of(&attacker.signed(victim.clone().with(change)));
    let unsigned = |change: &dyn Fn(&mut narinfo_gen::narinfo::NarInfo)| of(&victim.clone().with(change));
    let renamed = victim.full_path().replace("-victim", "-impostor");
    let refused = |name, respond| Case::of(name, &[1], &[&victim], respond);
    let failed = |name, respond| Case::of(name, &[1, 2], &[&victim], respond);
    let cases = vec![
        refused("no narinfo, as MinIO reports it (404)", responds(Response::no_such_key())),
        refused("no narinfo, as AWS reports it without ListBucket (403)", responds(Response::access_denied())),
        failed("no narinfo (410)", responds(Response::status(410))),
        refused("an HTML page instead of the narinfo", with_text(HTML_PAGE)),
        refused("an empty narinfo", with_text("")),
        refused("another path's narinfo", with_text(&other.narinfo.to_string())),
        refused("another name under the same hash, signed", signed(&|n| n.path = store_dir().parse(&renamed).unwrap())),
        refused("a narinfo of another store directory", with("/nix/store", "/gnu/store")),
        refused(
            "a narinfo that is not UTF-8",
            responds(Response::object([text.as_bytes(), b"Note: \xff\xfe\n"].concat())),
        ),
        refused("a narinfo with a NUL byte", with_text(&format!("{text}\0"))),
        refused("a narinfo and half of another", with_text(&format!("{text}StorePath: /nix/store/"))),
        refused("two narinfos", with_text(&format!("{text}\n{}", other.narinfo))),
        refused(
            "a narinfo of 1 MiB and a byte",
            with_text(&format!("{text}X: {}\n", "x".repeat(MAX_SIZE - text.len() - 3))),
        ),
        refused("a narinfo without an end, no length", responds(Response::endless(text.clone(), vec![b'x'; 65536]))),
        refused(
            "a narinfo of 2^60 bytes",
            responds(Response::endless_with_length(text.clone(), vec![b'x'; 65536], 1 << 60)),
        ),
        refused("a narinfo that is a gzip bomb", responds(Response::object(bomb).header("Content-Encoding", "gzip"))),
        refused(
            "a narinfo with invalid gzip data",
            responds(Response::object(text.clone()).header("Content-Encoding", "gzip")),
        ),
        refused(
            "a narinfo in an unknown encoding",
            responds(Response::object(text.clone()).header("Content-Encoding", "x")),
        ),
        refused("no signature", unsigned(&|n| n.signatures.clear())),
        refused("the signature of an untrusted key", of(&other_attacker.signed(victim.clone()))),
        refused(
            "the signature of an untrusted key under the trusted name",
            unsigned(&|n| n.signatures = vec![other_attacker.signed(victim.clone()).narinfo.signatures[0].clone()]),
        ),
        refused("another path's signature", unsigned(&|n| n.signatures.clone_from(&other.narinfo.signatures))),
        refused(
            "ten thousand bad signatures",
            unsigned(&|n| n.signatures = (0..10_000).map(|i| format!("k-{i}:x")).collect()),
        ),
        refused("a signature that is not base64", unsigned(&|n| n.signatures = vec!["forger-1:!".to_owned()])),
        refused("NarHash changed", unsigned(&|n| n.nar_hash = hash(1))),
        refused("NarSize changed", unsigned(&|n| n.nar_size += 8)),
        refused("a reference added", unsigned(&|n| n.references.push(other.narinfo.path.clone()))),
        refused(
            "a CA that does not match the name of the path",
            unsigned(&|n| {
                n.signatures.clear();
                n.ca = Some(format!("fixed:r:{}", n.nar_hash));
            }),
        ),
        refused(
            "CA: text, without a signature",
            unsigned(&|n| {
                n.signatures.clear();
                n.ca = Some(format!("text:{}", n.nar_hash));
            }),
        ),
        refused("signed NarHash of other bytes", signed(&|n| n.nar_hash = hash(1))),
        refused("signed NarSize one too small", signed(&|n| n.nar_size -= 1)),
        refused("signed NarSize 8 too small", signed(&|n| n.nar_size -= 8)),
        refused("signed NarSize one too large", signed(&|n| n.nar_size += 1)),
        refused("signed NarSize 2^64-1", signed(&|n| n.nar_size = u64::MAX)),
        refused("NarSize 0", with(&format!("NarSize: {}", victim.narinfo.nar_size), "NarSize: 0")),
        refused("NarSize -1", with("NarSize: ", "NarSize: -")),
        refused(
            "NarSize 2^64",
            with(&format!("NarSize: {}", victim.narinfo.nar_size), "NarSize: 18446744073709551616"),
        ),
        refused("FileHash of other bytes", unsigned(&|n| n.file_hash = Some(hash(2)))),
        refused("FileSize one too small", unsigned(&|n| n.file_size = n.file_size.map(|size| size - 1))),
        refused("FileSize one too large", unsigned(&|n| n.file_size = n.file_size.map(|size| size + 1))),
        refused("FileSize 0", unsigned(&|n| n.file_size = Some(0))),
        refused("FileSize 2^64-1", unsigned(&|n| n.file_size = Some(u64::MAX))),
        refused("Compression: xz, but it is zstd", with("Compression: zstd", "Compression: xz")),
        refused("Compression: none, but it is zstd", with("Compression: zstd", "Compression: none")),
        refused("no Compression, but it is zstd", with("Compression: zstd\n", "")),
        refused("Compression: nonsense", with("Compression: zstd", "Compression: nonsense")),
        refused("the URL leaves the cache: ..", with("URL: nar/", "URL: ../nar/")),
        refused("the URL leaves the cache: percent-encoded", with("URL: nar/", "URL: nar/%2e%2e/%2E%2E/")),
        refused("the URL leaves the cache: another host", with("URL: nar/", "URL: http://127.0.0.1:1/")),
        refused("the URL leaves the cache: file://", with("URL: nar/", "URL: file:///etc/passwd#")),
        refused("the URL leaves the cache: absolute", with("URL: nar/", "URL: /etc/passwd#")),
        refused("the URL is the narinfo's own", with("URL: nar/", &format!("URL: {key}#"))),
        refused("StorePath twice", with("URL: ", &format!("StorePath: {}\nURL: ", other.full_path()))),
        refused("NarHash of another algorithm", with("NarHash: sha256:", "NarHash: sha512:")),
        refused("a reference that is not a store path", with("References: ", "References: ../../etc")),
        refused("a reference in another store", with("References: ", "References: /gnu/store/x")),
        refused("control characters in a value", with("References: ", "References: \x1b[2Jx\x07")),
        failed("the narinfo redirects to itself", responds(Response::redirect(format!("/{BUCKET}/{key}")))),
        failed("the narinfo redirects to a file", responds(Response::redirect("file:///etc/passwd"))),
        failed("the narinfo redirects without a Location", responds(Response::status(302))),
        failed("the narinfo redirects to an invalid URL", responds(Response::redirect("http://[:::"))),
        failed("the narinfo is not HTTP", responds(Response::raw("SSH-2.0-OpenSSH_9.9\r\n"))),
        failed(
            "the narinfo's head does not end",
            responds(Response::raw(format!("HTTP/1.1 200 OK\r\nX: {}", "x".repeat(1 << 20)))),
        ),
        failed("the connection closes without a response", responds(Response::raw(""))),
        failed(
            "the narinfo is shorter than its Content-Length",
            responds(Response::with_length(&text.as_bytes()[..100], text.len() as u64)),
        ),
        failed("the narinfo stalls", responds(Response::stalled(&text.as_bytes()[..100], text.len() as u64))),
        failed("no response", responds(Response::silent())),
        failed("status 500", responds(Response::status(500))),
        failed(
            "status 503 with an S3 error",
            responds(Response::error(503, "SlowDown", "Please reduce your request rate.")),
        ),
        failed("status 401", responds(Response::status(401))),
        failed(
            "an error of S3 with status 200",
            responds(Response::error(200, "InternalError", "We encountered an internal error.")),
        ),
        failed(
            "a body of invalid chunks",
            responds(Response::raw("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzzz\r\n")),
        ),
        failed("two lengths", responds(Response::with_length(text.clone(), 10).header("Content-Length", "99999"))),
    ];
    fixture.run_cases(cases);
}
