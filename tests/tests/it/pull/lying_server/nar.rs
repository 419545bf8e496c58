//! Lies in a NAR, and NARs that are hostile.

use super::{Door, Lie, PAGE, Scene, at, honest, shown, unclear};
use crate::fixtures::forgery::{
    compressed, directory, file, file_nar, link, nar_of, nested_nar, objects, small_nar, visible,
};
use cache_tests::Random;
use cache_tests::lying_server::{Answer, BUCKET, LyingServer};
use nar_pack::nar::{MAX_DEPTH, MAX_TARGET};
use narinfo_gen::compression::Compression;
use std::fs;
use std::sync::Arc;

#[test]
fn lies_about_a_nar() {
    let scene = Scene::new();
    let forger = &scene.forger;
    let victim = forger.path("victim", small_nar(b'v'), Compression::Zstd, &[]);
    let (a, b) = (
        forger.path("one", small_nar(b'1'), Compression::None, &[]),
        forger.path("two", small_nar(b'2'), Compression::None, &[]),
    );
    let all = objects([&victim]);
    let (file, size) = (victim.file.clone(), victim.file.len() as u64);
    let answers = |answer: Answer| at(all.clone(), &victim.narinfo.url, answer);
    let holding = |bytes: Vec<u8>| {
        let other = victim.clone().filed("nar/x".to_owned(), bytes);
        honest(objects([&other]))
    };
    let zstd = |nar: &[u8]| compressed(Compression::Zstd, nar);
    let bare = victim.clone().but(|narinfo| {
        narinfo.file_hash = None;
        narinfo.file_size = None;
    });
    let bare_answers = |answer: Answer| at(objects([&bare]), &bare.narinfo.url, answer);
    let half = &file[..file.len() / 2];
    let lie = |name, plan| Lie::of(name, &[1], &[&victim], plan);
    let broken = |name, plan| Lie::of(name, &[1, 2], &[&victim], plan);
    let swapped = |refiled: bool| {
        let (x, y) = if refiled {
            (a.clone().filed("nar/a".to_owned(), b.file.clone()), b.clone().filed("nar/b".to_owned(), a.file.clone()))
        } else {
            (a.clone(), b.clone())
        };
        let mut all = objects([&x, &y]);
        if !refiled {
            all.insert(a.narinfo.url.clone(), b.file.clone());
            all.insert(b.narinfo.url.clone(), a.file.clone());
        }
        honest(all)
    };
    let noise = Random::new(5).bytes(1 << 16);
    let again = |bytes: &[u8]| bytes.repeat(65536_usize.div_ceil(bytes.len().max(1)));
    let lies = vec![
        lie("no NAR, as MinIO says it (404)", answers(Answer::no_such_key())),
        lie("no NAR, as AWS says it without ListBucket (403)", answers(Answer::access_denied())),
        lie("a page in place of the NAR", answers(Answer::object(PAGE))),
        lie("a page in place of the NAR, no FileHash", bare_answers(Answer::object(PAGE))),
        lie("an empty NAR", answers(Answer::object(""))),
        lie("an empty NAR, no FileHash", bare_answers(Answer::object(""))),
        Lie::of("two NARs swapped", &[1], &[&a, &b], swapped(false)),
        Lie::of("two NARs swapped, with FileHash", &[1], &[&a, &b], swapped(true)),
        lie("half of the NAR, with its length", answers(Answer::object(half))),
        lie("half of the NAR, with its length, no FileHash", bare_answers(Answer::object(half))),
        lie("half of the NAR, with FileHash", holding(half.to_vec())),
        lie("all but a byte of the NAR, with FileHash", holding(file[..file.len() - 1].to_vec())),
        lie("something after the file, with FileHash", holding([file.as_slice(), b"x"].concat())),
        lie("another frame after the file, with FileHash", holding([file.clone(), zstd(b"x")].concat())),
        lie("a NAR twice, with FileHash", holding(zstd(&[victim.nar.clone(), victim.nar.clone()].concat()))),
        lie("noise in place of the NAR, with FileHash", holding(noise.clone())),
        lie("a narinfo in place of the NAR", holding(victim.narinfo.to_string().into_bytes())),
        lie("no bytes at all, compressed", holding(zstd(b""))),
        lie("a NAR in a NAR", holding(zstd(&zstd(&victim.nar)))),
        lie("a NAR without an end, no length", answers(Answer::endless(file.clone(), again(&[0])))),
        lie(
            "a NAR without an end, no FileHash",
            bare_answers(Answer::endless(file.clone(), again(&zstd(&[0; 65536])))),
        ),
        lie("a NAR of 2^60 bytes", answers(Answer::endless_stated(file.clone(), again(&[0]), 1 << 60))),
        lie(
            "a NAR of 2^60 bytes, no FileHash",
            bare_answers(Answer::endless_stated(file.clone(), again(&[0]), 1 << 60)),
        ),
        broken("a length that is too small", answers(Answer::stated(file.clone(), size - 10))),
        broken("a length that is too large", answers(Answer::stated(file.clone(), size + 10))),
        broken("a length that is no number", answers(Answer::raw("HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n"))),
        broken("the NAR stops half way", answers(Answer::stated(half, size))),
        broken("the NAR stops half way, no length", answers(Answer::unstated(half))),
        broken("the NAR stalls half way", answers(Answer::stalled(half, size))),
        broken("the NAR's answer never comes", answers(Answer::silent())),
        broken("the NAR redirects to itself", answers(Answer::redirect(format!("/{BUCKET}/{}", victim.narinfo.url)))),
        broken("the NAR redirects to a file", answers(Answer::redirect("file:///etc/passwd"))),
        broken("status 500 for the NAR", answers(Answer::status(500))),
        broken("status 206 without being asked", answers(Answer::raw(partial(half, 0, file.len())))),
        broken("another range than was asked for", answers(Answer::raw(partial(half, file.len() / 2, file.len())))),
        lie(
            "Content-Encoding: gzip on a NAR that has none, no FileHash",
            bare_answers(Answer::object(PAGE).header("Content-Encoding", "gzip")),
        ),
    ];
    // Those are retried by both layers, with a wait between: half a minute of doing nothing.
    let long = ["the NAR's answer never comes", "status 500 for the NAR"];
    let patient = std::env::var_os("LIES").is_some_and(|lies| lies == "all");
    scene.tell_all(lies.into_iter().filter(|lie| patient || !long.contains(&lie.name)).collect());
}

/// A partial answer from `first`, whatever was asked.
fn partial(bytes: &[u8], first: usize, total: usize) -> Vec<u8> {
    let last = first + bytes.len() - 1;
    let head = format!("HTTP/1.1 206 Partial Content\r\nContent-Range: bytes {first}-{last}/{total}\r\n");
    [format!("{head}Content-Length: {}\r\nConnection: close\r\n\r\n", bytes.len()).as_bytes(), bytes].concat()
}

#[test]
fn signed_nars_that_are_evil() {
    let scene = Scene::new();
    let long_name = [b'n'; 256];
    let long_target = vec![b't'; MAX_TARGET + 1];
    let one = |name: &'static [u8]| nar_of(&directory(&[(name, link(b"x"))]));
    let outside = scene.scratch.path().join("outside");
    fs::create_dir(&outside).unwrap();
    let outside = outside.to_str().unwrap().as_bytes().to_vec();
    let mut padded = file_nar(b"x");
    let at = padded.len() - 20;
    padded[at] = 1;
    let sized = |size: u64| {
        let mut nar = nar_of(&[b"(", b"type", b"regular", b"contents"]);
        nar.extend(size.to_le_bytes());
        nar.extend([0; 64]);
        nar
    };
    let evil: Vec<(&'static str, Vec<u8>)> = vec![
        ("a file called .", one(b".")),
        ("a file called ..", one(b"..")),
        ("a file without a name", one(b"")),
        ("a name with a slash", one(b"a/b")),
        ("an absolute name", one(b"/etc/cron.d/x")),
        ("a name that climbs", one(b"../../../x")),
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
        ("a link to nothing", nar_of(&link(b""))),
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
            "executable, but not quite",
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
        ("something after the NAR", [file_nar(b"x"), b"x".to_vec()].concat()),
        ("a NAR of version 2", nar_of(&[]).iter().map(|&byte| if byte == b'1' { b'2' } else { byte }).collect()),
        ("a NAR that ends early", nar_of(&[b"(", b"type", b"directory"])),
        ("zeros", vec![0; 4096]),
        ("one byte", vec![b'n']),
    ];
    let lies = evil.into_iter().map(|(name, nar)| {
        let method = if nar.len() > 1 << 20 { Compression::Zstd } else { Compression::None };
        let victim = scene.forger.path("victim", nar, method, &[]);
        let plan = honest(objects([&victim]));
        Lie::of(name, &[1], &[&victim], plan)
    });
    scene.tell_all(lies.collect());
    assert_eq!(fs::read_dir(std::ffi::OsString::from(String::from_utf8(outside).unwrap())).unwrap().count(), 0);
}

/// Ranges of a large NAR that are not of one object, or not those that were asked for: whoever puts them together
/// refuses the path, unless the result is what was signed.
#[test]
fn ranges_that_do_not_fit() {
    const LARGE: usize = 17 << 20;
    let scene = Scene::new();
    let (mut random, mut contents) = (Random::new(3), vec![0; LARGE]);
    contents[..1 << 20].copy_from_slice(&random.bytes(1 << 20));
    let nar = file_nar(&contents);
    contents[LARGE - 1] = 1;
    let other = Arc::new(file_nar(&contents));
    let victim = scene.forger.path("victim", nar, Compression::None, &[]);
    let (all, url) = (objects([&victim]), victim.narinfo.url.clone());
    for (name, how) in [
        ("ranges of another object", Ranges::OfAnother),
        ("ranges that are shifted by a byte", Ranges::Shifted),
        ("ranges that are a byte short", Ranges::Short),
        ("the whole in place of a range", Ranges::Whole),
        ("the first range in place of each", Ranges::First),
    ] {
        let (all, other, url) = (all.clone(), Arc::clone(&other), url.clone());
        let server = LyingServer::start(move |asked| {
            let Some((first, last)) = asked.range().filter(|&(first, _)| asked.key == url && first > 0) else {
                return Answer::honest(&all, asked);
            };
            let whole = &all[&url];
            let last = last.unwrap_or(usize::MAX).min(whole.len() - 1);
            match how {
                Ranges::OfAnother => Answer::raw(partial(&other[first..=last], first, whole.len())),
                Ranges::Shifted => Answer::raw(partial(&whole[first - 1..last], first, whole.len())),
                Ranges::Short => Answer::raw(partial(&whole[first..last], first, whole.len())),
                Ranges::Whole => Answer::object(whole.clone()),
                Ranges::First => Answer::raw(partial(&whole[..=last - first], 0, whole.len())),
            }
        });
        for door in [Door::Http, Door::S3] {
            let root = scene.root();
            let said = scene.pull_to(&Scene::url(&server, door), &root, &[], &[victim.full_path()]);
            let there = victim.lies_below(&root);
            let ranges = server.asked().iter().filter(|asked| asked.range().is_some()).count();
            println!(
                "| {name} | {door:?} | {} | {} | {ranges} ranges asked for",
                said.status,
                shown(said.stderr.trim_end())
            );
            assert!(if there { said.status == 0 } else { [1, 2].contains(&said.status) }, "{name}: {}", said.stderr);
            assert_eq!(unclear(&said.stderr), Vec::<String>::new());
            assert_eq!(visible(&root).len(), usize::from(there));
        }
    }
}

/// What is wrong with all ranges but the first.
#[derive(Debug, Clone, Copy)]
enum Ranges {
    OfAnother,
    Shifted,
    Short,
    Whole,
    First,
}
