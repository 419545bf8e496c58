//! Every byte of a narinfo and of a NAR, changed in turn.

use super::{PullFixture, correct, find_problems};
use crate::fixtures::malicious_cache::{CachedPath, compressed, objects, small_nar, store_dir, visible_names};
use cache_tests::lying_server::{LyingServer, Objects};
use cache_tests::{Random, store_path};
use narinfo_gen::compression::Compression;
use std::collections::{BTreeMap, HashSet};

/// Changes each byte of a narinfo in turn: the path is refused, or the change is in an unsigned field and the path has
/// the signed contents.
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

/// Changes each byte of a NAR in turn, in every compression: the path is refused because of FileHash, or, if the
/// attacker adapts that, because of NarHash, unless the decompressed NAR is unchanged.
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
        assert!(refiled || accepted.is_empty(), "seed {seed}: FileHash was not verified");
        // Only fields that a decoder ignores may change, such as times and flags in a gzip header.
        assert!(!of.contains_key("none") && accepted.len() * 10 < paths.len(), "seed {seed}: {of:?}");
    }
}

/// Returns the seed, which `$LIES_SEED` overrides.
fn seed() -> u64 {
    std::env::var("LIES_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(20)
}

/// Changes the byte at `index`.
fn flipped(bytes: &[u8], index: usize, random: &mut Random) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes[index] ^= u8::try_from(1 + random.below(255)).unwrap();
    bytes
}

/// Pulls all paths, each of which is changed, and returns the accepted ones. Asserts that those have the signed
/// contents and that all others are named on standard error.
fn pull_all(fixture: &PullFixture, all: &Objects, paths: &[CachedPath], seed: u64) -> Vec<usize> {
    let server = LyingServer::start(correct(all.clone()));
    let root = fixture.root();
    let requested: Vec<String> = paths.iter().map(CachedPath::full_path).collect();
    let output = fixture.pull_to(&server.http_url(), &root, &[], &requested);
    assert_eq!((output.status, find_problems(&output.stderr)), (1, Vec::new()), "seed {seed}");
    let accepted: Vec<usize> = (0..paths.len()).filter(|&index| paths[index].is_in_root(&root)).collect();
    assert_eq!(visible_names(&root).len(), accepted.len(), "seed {seed}: a path was written that was not requested");
    let words: HashSet<&str> =
        output.stderr.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| word.len() == 32).collect();
    let unreported: Vec<usize> = (0..paths.len())
        .filter(|index| !accepted.contains(index) && !words.contains(paths[*index].narinfo.path.hash_part().as_str()))
        .collect();
    assert!(unreported.is_empty(), "seed {seed}: there is no message about {unreported:?}");
    accepted
}
