//! Lies in a narinfo.

use super::{Lie, PAGE, Scene, at, honest};
use crate::fixtures::forgery::{Forged, Forger, compressed, objects, small_nar, store_dir};
use cache_tests::lying_server::{Answer, BUCKET};
use narinfo_gen::compression::Compression;
use narinfo_gen::hash::Sha256;
use narinfo_gen::narinfo::MAX_SIZE;

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
