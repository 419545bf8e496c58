//! Lies in a NAR, and NARs that are hostile.

use super::{Case, HTML_PAGE, Protocol, PullFixture, correct, find_problems, table_cell, with_response};
use crate::fixtures::malicious_cache::{
    compressed, directory, file, file_nar, link, nar_of, nested_nar, objects, small_nar, visible_names,
};
use cache_tests::Random;
use cache_tests::lying_server::{BUCKET, LyingServer, Response};
use nar_pack::nar::{MAX_DEPTH, MAX_TARGET};
use narinfo_gen::compression::Compression;
use std::fs;
use std::sync::Arc;

#[test]
fn every_lie_about_a_nar_is_refused() {
    let fixture = PullFixture::new();
    let attacker = &fixture.attacker;
    let victim = attacker.path("victim", small_nar(b'v'), Compression::Zstd, &[]);
    let (a, b) = (
        attacker.path("one", small_nar(b'1'), Compression::None, &[]),
        attacker.path("two", small_nar(b'2'), Compression::None, &[]),
    );
    let all = objects([&victim]);
    let (file, size) = (victim.file.clone(), victim.file.len() as u64);
    let responds = |response: Response| with_response(all.clone(), &victim.narinfo.url, response);
    let holding = |bytes: Vec<u8>| {
        let other = victim.clone().stored_as("nar/x".to_owned(), bytes);
        correct(objects([&other]))
    };
    let zstd = |nar: &[u8]| compressed(Compression::Zstd, nar);
    let bare = victim.clone().with(|narinfo| {
        narinfo.file_hash = None;
        narinfo.file_size = None;
    });
    let bare_responds = |response: Response| with_response(objects([&bare]), &bare.narinfo.url, response);
    let half = &file[..file.len() / 2];
    let refused = |name, respond| Case::of(name, &[1], &[&victim], respond);
    let failed = |name, respond| Case::of(name, &[1, 2], &[&victim], respond);
    let swapped = |refiled: bool| {
        let (x, y) = if refiled {
            (
                a.clone().stored_as("nar/a".to_owned(), b.file.clone()),
                b.clone().stored_as("nar/b".to_owned(), a.file.clone()),
            )
        } else {
            (a.clone(), b.clone())
        };
        let mut all = objects([&x, &y]);
        if !refiled {
            all.insert(a.narinfo.url.clone(), b.file.clone());
            all.insert(b.narinfo.url.clone(), a.file.clone());
        }
        correct(all)
    };
    let noise = Random::new(5).bytes(1 << 16);
    let repeated = |bytes: &[u8]| bytes.repeat(65536_usize.div_ceil(bytes.len().max(1)));
    let cases = vec![
        refused("no NAR, as MinIO reports it (404)", responds(Response::no_such_key())),
        refused("no NAR, as AWS reports it without ListBucket (403)", responds(Response::access_denied())),
        refused("an HTML page instead of the NAR", responds(Response::object(HTML_PAGE))),
        refused("an HTML page instead of the NAR, no FileHash", bare_responds(Response::object(HTML_PAGE))),
        refused("an empty NAR", responds(Response::object(""))),
        refused("an empty NAR, no FileHash", bare_responds(Response::object(""))),
        Case::of("two NARs swapped", &[1], &[&a, &b], swapped(false)),
        Case::of("two NARs swapped, with FileHash", &[1], &[&a, &b], swapped(true)),
        refused("half of the NAR, with its length", responds(Response::object(half))),
        refused("half of the NAR, with its length, no FileHash", bare_responds(Response::object(half))),
        refused("half of the NAR, with FileHash", holding(half.to_vec())),
        refused("all but a byte of the NAR, with FileHash", holding(file[..file.len() - 1].to_vec())),
        refused("data after the file, with FileHash", holding([file.as_slice(), b"x"].concat())),
        refused("another frame after the file, with FileHash", holding([file.clone(), zstd(b"x")].concat())),
        refused("a NAR twice, with FileHash", holding(zstd(&[victim.nar.clone(), victim.nar.clone()].concat()))),
        refused("random bytes instead of the NAR, with FileHash", holding(noise.clone())),
        refused("a narinfo instead of the NAR", holding(victim.narinfo.to_string().into_bytes())),
        refused("no bytes at all, compressed", holding(zstd(b""))),
        refused("a NAR in a NAR", holding(zstd(&zstd(&victim.nar)))),
        refused("a NAR without an end, no length", responds(Response::endless(file.clone(), repeated(&[0])))),
        refused(
            "a NAR without an end, no FileHash",
            bare_responds(Response::endless(file.clone(), repeated(&zstd(&[0; 65536])))),
        ),
        refused("a NAR of 2^60 bytes", responds(Response::endless_with_length(file.clone(), repeated(&[0]), 1 << 60))),
        refused(
            "a NAR of 2^60 bytes, no FileHash",
            bare_responds(Response::endless_with_length(file.clone(), repeated(&[0]), 1 << 60)),
        ),
        failed("a length that is too small", responds(Response::with_length(file.clone(), size - 10))),
        failed("a length that is too large", responds(Response::with_length(file.clone(), size + 10))),
        failed(
            "a length that is not a number",
            responds(Response::raw("HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n")),
        ),
        failed("the NAR stops half way", responds(Response::with_length(half, size))),
        failed("the NAR stops half way, no length", responds(Response::without_length(half))),
        failed("the NAR stalls half way", responds(Response::stalled(half, size))),
        failed("no response for the NAR", responds(Response::silent())),
        failed(
            "the NAR redirects to itself",
            responds(Response::redirect(format!("/{BUCKET}/{}", victim.narinfo.url))),
        ),
        failed("the NAR redirects to a file", responds(Response::redirect("file:///etc/passwd"))),
        failed("status 500 for the NAR", responds(Response::status(500))),
        failed("status 206 without a requested range", responds(Response::raw(partial(half, 0, file.len())))),
        failed(
            "another range than the requested one",
            responds(Response::raw(partial(half, file.len() / 2, file.len()))),
        ),
        refused(
            "Content-Encoding: gzip on a NAR that has none, no FileHash",
            bare_responds(Response::object(HTML_PAGE).header("Content-Encoding", "gzip")),
        ),
    ];
    // These are retried by two layers and take half a minute.
    let long = ["no response for the NAR", "status 500 for the NAR"];
    let patient = std::env::var_os("LIES").is_some_and(|cases| cases == "all");
    fixture.run_cases(cases.into_iter().filter(|refused| patient || !long.contains(&refused.name)).collect());
}

/// Returns a partial response that begins at `first`, regardless of the request.
fn partial(bytes: &[u8], first: usize, total: usize) -> Vec<u8> {
    let last = first + bytes.len() - 1;
    let head = format!("HTTP/1.1 206 Partial Content\r\nContent-Range: bytes {first}-{last}/{total}\r\n");
    [format!("{head}Content-Length: {}\r\nConnection: close\r\n\r\n", bytes.len()).as_bytes(), bytes].concat()
}

#[test]
fn hostile_nars_are_refused_even_if_signed() {
    let fixture = PullFixture::new();
    let long_name = [b'n'; 256];
    let long_target = vec![b't'; MAX_TARGET + 1];
    let one = |name: &'static [u8]| nar_of(&directory(&[(name, link(b"x"))]));
    let outside = fixture.scratch.path().join("outside");
    fs::create_dir(&outside).unwrap();
    let outside = outside.to_str().unwrap().as_bytes().to_vec();
    let mut padded = file_nar(b"x");
    let offset = padded.len() - 20;
    padded[offset] = 1;
    let sized = |size: u64| {
        let mut nar = nar_of(&[b"(", b"type", b"regular", b"contents"]);
        nar.extend(size.to_le_bytes());
        nar.extend([0; 64]);
        nar
    };
    let hostile: Vec<(&'static str, Vec<u8>)> = vec![
        ("a file called .", one(b".")),
        ("a file called ..", one(b"..")),
        ("a file without a name", one(b"")),
        ("a name with a slash", one(b"a/b")),
        ("an absolute name", one(b"/etc/cron.d/x")),
        ("a name with ..", one(b"../../../x")),
        ("a name with a NUL byte", one(b"a\0b")),
        ("a name of 256 bytes", nar_of(&directory(&[(&long_name, link(b"x"))]))),
        ("names out of order", nar_of(&directory(&[(b"b", link(b"x")), (b"a", link(b"x"))]))),
        ("a name twice", nar_of(&directory(&[(b"a", link(b"x")), (b"a", link(b"x"))]))),
        (
            "a link, then a directory of the same name",
            nar_of(&directory(&[(b"d", link(&outside)), (b"d", directory(&[(b"pwned", file(b"x"))]))])),
        ),
        ("a link, then a file through it", nar_of(&directory(&[(b"d", link(&outside)), (b"d/pwned", file(b"x"))]))),
        (
            "a link, then a file of the same name",
            nar_of(&directory(&[(b"d", link(b"../outside")), (b"d", file(b"x"))])),
        ),
        ("a link with entries", nar_of(&[b"(", b"type", b"symlink", b"target", &outside, b"entry", b"(", b")", b")"])),
        ("a link without a target", nar_of(&[b"(", b"type", b"symlink", b")"])),
        ("a link with an empty target", nar_of(&link(b""))),
        ("a target with a NUL byte", nar_of(&link(b"a\0b"))),
        ("a target of 4096 bytes", nar_of(&link(&long_target))),
        ("a directory 65 deep", nested_nar(MAX_DEPTH + 1)),
        ("a directory 100,000 deep", nested_nar(100_000)),
        ("an unknown type", nar_of(&[b"(", b"type", b"fifo", b")"])),
        ("no type", nar_of(&[b"(", b")"])),
        ("two types", nar_of(&[b"(", b"type", b"regular", b"type", b"symlink", b"target", b"x", b")"])),
        ("a file without contents", nar_of(&[b"(", b"type", b"regular", b")"])),
        ("contents twice", nar_of(&[b"(", b"type", b"regular", b"contents", b"x", b"contents", b"y", b")"])),
        (
            "a malformed executable marker",
            nar_of(&[b"(", b"type", b"regular", b"executable", b"x", b"contents", b"x", b")"]),
        ),
        (
            "an entry without a name",
            nar_of(&[b"(", b"type", b"directory", b"entry", b"(", b"node", b"(", b")", b")", b")"]),
        ),
        ("an entry without a node", nar_of(&[b"(", b"type", b"directory", b"entry", b"(", b"name", b"x", b")", b")"])),
        ("padding that is not zero", padded),
        ("a file of 2^64-1 bytes", sized(u64::MAX)),
        ("a file of 2^63 bytes", sized(1 << 63)),
        ("a file of 1 TiB", sized(1 << 40)),
        ("a tag of 2^40 bytes", [nar_of(&[b"("]), (1_u64 << 40).to_le_bytes().to_vec(), vec![0; 64]].concat()),
        ("data after the NAR", [file_nar(b"x"), b"x".to_vec()].concat()),
        ("a NAR of version 2", nar_of(&[]).iter().map(|&byte| if byte == b'1' { b'2' } else { byte }).collect()),
        ("a NAR that ends early", nar_of(&[b"(", b"type", b"directory"])),
        ("zeros", vec![0; 4096]),
        ("one byte", vec![b'n']),
    ];
    let cases = hostile.into_iter().map(|(name, nar)| {
        let method = if nar.len() > 1 << 20 { Compression::Zstd } else { Compression::None };
        let victim = fixture.attacker.path("victim", nar, method, &[]);
        Case::of(name, &[1], &[&victim], correct(objects([&victim])))
    });
    fixture.run_cases(cases.collect());
    assert_eq!(fs::read_dir(std::ffi::OsString::from(String::from_utf8(outside).unwrap())).unwrap().count(), 0);
}

/// Ranges of a large NAR that are from different objects, or not the requested ones: the path is refused unless the
/// result is correct.
#[test]
fn ranges_that_do_not_match_are_refused() {
    const LARGE: usize = 17 << 20;
    let fixture = PullFixture::new();
    let (mut random, mut contents) = (Random::new(3), vec![0; LARGE]);
    contents[..1 << 20].copy_from_slice(&random.bytes(1 << 20));
    let nar = file_nar(&contents);
    contents[LARGE - 1] = 1;
    let other = Arc::new(file_nar(&contents));
    let victim = fixture.attacker.path("victim", nar, Compression::None, &[]);
    let (all, url) = (objects([&victim]), victim.narinfo.url.clone());
    for (name, how) in [
        ("ranges of another object", BadRanges::OfAnotherObject),
        ("ranges that are shifted by a byte", BadRanges::Shifted),
        ("ranges that are a byte short", BadRanges::Short),
        ("the whole object instead of a range", BadRanges::Whole),
        ("the first range instead of each", BadRanges::First),
    ] {
        let (all, other, url) = (all.clone(), Arc::clone(&other), url.clone());
        let server = LyingServer::start(move |request| {
            let Some((first, last)) = request.range().filter(|&(first, _)| request.key == url && first > 0) else {
                return Response::correct(&all, request);
            };
            let whole = &all[&url];
            let last = last.unwrap_or(usize::MAX).min(whole.len() - 1);
            match how {
                BadRanges::OfAnotherObject => Response::raw(partial(&other[first..=last], first, whole.len())),
                BadRanges::Shifted => Response::raw(partial(&whole[first - 1..last], first, whole.len())),
                BadRanges::Short => Response::raw(partial(&whole[first..last], first, whole.len())),
                BadRanges::Whole => Response::object(whole.clone()),
                BadRanges::First => Response::raw(partial(&whole[..=last - first], 0, whole.len())),
            }
        });
        for protocol in [Protocol::Http, Protocol::S3] {
            let root = fixture.root();
            let output = fixture.pull_to(&PullFixture::url(&server, protocol), &root, &[], &[victim.full_path()]);
            let expected = victim.is_in_root(&root);
            let ranges = server.requests().iter().filter(|request| request.range().is_some()).count();
            println!(
                "| {name} | {protocol:?} | {} | {} | {ranges} ranges requested",
                output.status,
                table_cell(output.stderr.trim_end())
            );
            assert!(
                if expected { output.status == 0 } else { [1, 2].contains(&output.status) },
                "{name}: {}",
                output.stderr
            );
            assert_eq!(find_problems(&output.stderr), Vec::<String>::new());
            // What arrived before the bad range is kept for the next pull.
            let visible = visible_names(&root).into_iter().filter(|name| !name.starts_with(".s3-pull-partial-"));
            assert_eq!(visible.count(), usize::from(expected));
        }
    }
}

/// The error in all ranges but the first.
#[derive(Debug, Clone, Copy)]
enum BadRanges {
    OfAnotherObject,
    Shifted,
    Short,
    Whole,
    First,
}
