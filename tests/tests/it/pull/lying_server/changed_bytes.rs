//! Every byte of a narinfo and of a NAR, changed in turn.

use super::{PullFixture, correct, find_problems};
use crate::fixtures::malicious_cache::{CachedPath, compressed, objects, small_nar, store_dir, visible_names};
use cache_tests::lying_server::{LyingServer, Objects};
use cache_tests::{Random, store_path};
use narinfo_gen::compression::Compression;
use std::collections::{BTreeMap, HashSet};

/// Each byte of a narinfo is changed in turn: the path is refused, or the change is in a field that nobody signs and that
/// does not matter, and the path is what was signed.
#[test]
fn a_narinfo_with_a_changed_byte_is_refused_or_equivalent() {
    let fixture = PullFixture::new();
    let seed = seed();
    let mut random = Random::new(seed);
    let deriver = store_dir().parse(&store_path("victim.drv", 1)).unwrap();
    let make = |index: usize| {
        let cached = fixture.attacker.path(&format!("byte-{index:04}"), small_nar(b'v'), Compression::None, &[]);
        fixture.attacker.signed(cached.with(|narinfo| narinfo.deriver = Some(deriver.clone())))
    };
    let length = make(0).narinfo.to_string().len();
    let paths: Vec<CachedPath> = (0..length).map(make).collect();
    let mut all = objects(&paths);
    let mut fields = Vec::new();
    for (index, cached) in paths.iter().enumerate() {
        let text = cached.narinfo.to_string();
        fields.push(text[..index].lines().last().filter(|_| !text[..index].ends_with('\n')).map_or_else(
            || text[index..].split(':').next().unwrap_or_default().to_owned(),
            |line| {
                text.lines()
                    .find(|whole| whole.starts_with(line))
                    .unwrap_or_default()
                    .split(':')
                    .next()
                    .unwrap_or_default()
                    .to_owned()
            },
        ));
        all.insert(cached.narinfo.key(), flipped(text.as_bytes(), index, &mut random));
    }
    let accepted = pull_all(&fixture, &all, &paths, seed);
    let mut by_field: BTreeMap<&str, usize> = BTreeMap::new();
    for index in &accepted {
        *by_field.entry(&fields[*index]).or_default() += 1;
    }
    println!(
        "| each of {length} bytes of a narinfo changed | http | 1 | {} refused, {} accepted as what was signed, changes in {by_field:?} |",
        length - accepted.len(),
        accepted.len()
    );
    for field in by_field.keys() {
        assert!(["FileHash", "FileSize", "Deriver"].contains(field), "seed {seed}: a changed {field} was accepted");
    }
}

/// Each byte of a NAR is changed in turn, in every compression: the path is refused by FileHash, or where the liar
/// makes that fit, by NarHash, unless what comes out is what was signed.
#[test]
fn a_nar_with_a_changed_byte_is_refused_or_equivalent() {
    let fixture = PullFixture::new();
    let seed = seed();
    let mut random = Random::new(seed);
    for refiled in [false, true] {
        let (mut paths, mut all, mut counts) = (Vec::new(), objects([]), Vec::new());
        for method in Compression::ALL {
            let stored = compressed(method, &small_nar(b'v'));
            counts.push((method, stored.len()));
            for index in 0..stored.len() {
                let name = format!("{}-{index}", method.name());
                let cached = fixture.attacker.path(&name, small_nar(b'v'), method, &[]);
                let bytes = flipped(&cached.file, index, &mut random);
                let url = format!("nar/{name}");
                let cached = if refiled {
                    cached.stored_as(url, bytes)
                } else {
                    CachedPath { file: bytes, ..cached.with(|narinfo| narinfo.url = url) }
                };
                all.extend(cached.objects());
                paths.push(cached);
            }
        }
        let accepted = pull_all(&fixture, &all, &paths, seed);
        let sizes: Vec<String> = counts.iter().map(|(method, size)| format!("{method} {size}")).collect();
        let mut of: BTreeMap<&str, usize> = BTreeMap::new();
        for index in &accepted {
            *of.entry(&paths[*index].narinfo.compression).or_default() += 1;
        }
        println!(
            "| each byte of a NAR changed{}: {} | http | 1 | {} refused, {} accepted as what was signed {of:?} |",
            if refiled { ", with FileHash" } else { "" },
            sizes.join(", "),
            paths.len() - accepted.len(),
            accepted.len()
        );
        assert!(refiled || accepted.is_empty(), "seed {seed}: FileHash was not looked at");
        // Only what a decoder does not look at may change: times and flags in gzip's head and the like.
        assert!(!of.contains_key("none") && accepted.len() * 10 < paths.len(), "seed {seed}: {of:?}");
    }
}

/// A number for this run, or that of an earlier one.
fn seed() -> u64 {
    std::env::var("LIES_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(20)
}

/// The bytes with another one at `index`.
fn flipped(bytes: &[u8], index: usize, random: &mut Random) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes[index] ^= u8::try_from(1 + random.below(255)).unwrap();
    bytes
}

/// Pulls all paths at once, every one of which is a lie, and returns which were accepted all the same; each of those is
/// what was signed, and each other one is named on standard error.
fn pull_all(fixture: &PullFixture, all: &Objects, paths: &[CachedPath], seed: u64) -> Vec<usize> {
    let server = LyingServer::start(correct(all.clone()));
    let root = fixture.root();
    let requested: Vec<String> = paths.iter().map(CachedPath::full_path).collect();
    let output = fixture.pull_to(&server.http_url(), &root, &[], &requested);
    assert_eq!((output.status, find_problems(&output.stderr)), (1, Vec::new()), "seed {seed}");
    let accepted: Vec<usize> = (0..paths.len()).filter(|&index| paths[index].is_in_root(&root)).collect();
    assert_eq!(visible_names(&root).len(), accepted.len(), "seed {seed}: something is there that was not asked for");
    let words: HashSet<&str> =
        output.stderr.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| word.len() == 32).collect();
    let unreported: Vec<usize> = (0..paths.len())
        .filter(|index| !accepted.contains(index) && !words.contains(paths[*index].narinfo.path.hash_part().as_str()))
        .collect();
    assert!(unreported.is_empty(), "seed {seed}: nothing is said of {unreported:?}");
    accepted
}
