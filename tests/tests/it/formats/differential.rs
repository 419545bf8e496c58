//! Compares our readers with others on generated and mutated input: `nix-store --restore` and the crates `nix-archive`
//! and `nix-narinfo`. If the results differ, the reason must be in a list below; each is counted.
//!
//! `$DIFFERENTIAL` is the number of inputs for Nix (default 250), and the crates get a hundred times as many.
//! `$DIFFERENTIAL_SEED` is the seed.

use std::collections::BTreeMap;
use std::env;
use std::fmt;
use std::fs::{self, File};
use std::io::Cursor;
use std::path::Path;
use std::process::Stdio;
use std::sync::Mutex;
use std::thread;

use crate::fixtures::malicious_cache::{directory, file, link, nar_of, store_dir};
use crate::properties::corpus::entries;
use cache_tests::{Random, Scratch, mutate, nix, remove_tree, repository};
use nar_pack::error::{Error, Result};
use nar_pack::nar::{Skip, dump, parse, restore};
use narinfo_gen::hash::Sha256;
use narinfo_gen::narinfo::NarInfo;

/// Number of inputs for Nix.
const DEFAULT_INPUTS: usize = 250;

/// The results of two readers of the same input.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Verdict {
    BothAccept,
    BothRefuse,
    /// They differ for a known reason.
    Known(&'static str),
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BothAccept => f.write_str("both accept it with the same result"),
            Self::BothRefuse => f.write_str("both refuse"),
            Self::Known(reason) => write!(f, "known difference: {reason}"),
        }
    }
}

/// How often each verdict occurred.
type Counts = BTreeMap<Verdict, usize>;

fn print(what: &str, seed: u64, counts: &Counts) {
    println!("{what}, {} inputs of seed {seed}:", counts.values().sum::<usize>());
    for (verdict, count) in counts {
        println!("  {count:7} {verdict}");
    }
}

fn env_number(name: &str, default: usize) -> usize {
    env::var(name).map_or(default, |text| text.parse().unwrap())
}

fn seed() -> u64 {
    env_number("DIFFERENTIAL_SEED", 1) as u64
}

/// Returns the strings of a random tree.
fn tree(random: &mut Random, depth: usize) -> Vec<Vec<u8>> {
    let owned = |strings: Vec<&[u8]>| strings.into_iter().map(<[u8]>::to_vec).collect();
    match random.below(if depth == 0 { 3 } else { 6 }) {
        0 => {
            let size = [0, 1, 7, 8, 9, 40, 5000][random.below(7)];
            owned(file(&random.bytes(size)))
        }
        1 => {
            let text = [b"executable".as_slice(), b"", b"contents", b"#!/bin/sh\n"];
            owned([&[b"(".as_slice(), b"type", b"regular"], &text[..], &[b")"]].concat())
        }
        2 => {
            let targets = [b"x".as_slice(), b"/nix/store/x", b"..", b"\xff", b"a b", b"0123456789abcdef"];
            owned(link(targets[random.below(targets.len())]))
        }
        _ => {
            let mut names: Vec<Vec<u8>> = (0..random.below(5)).map(|_| name(random)).collect();
            names.sort();
            names.dedup();
            let nodes: Vec<_> = names.into_iter().map(|name| (name, tree(random, depth - 1))).collect();
            let entries: Vec<(&[u8], Vec<&[u8]>)> =
                nodes.iter().map(|(name, node)| (name.as_slice(), node.iter().map(Vec::as_slice).collect())).collect();
            owned(directory(&entries))
        }
    }
}

fn name(random: &mut Random) -> Vec<u8> {
    const LETTERS: &[u8] = b"aAbB.-_~0 \n\x01\x7f\xc3\xa4\xff";
    let name: Vec<u8> = (0..=random.below(9)).map(|_| LETTERS[random.below(LETTERS.len())]).collect();
    if matches!(name.as_slice(), b"." | b"..") { b"dots".to_vec() } else { name }
}

/// Returns NARs: the corpus of the fuzz target, then generated ones, of which one in three is not mutated.
fn nars(count: usize, random: &mut Random) -> Vec<Vec<u8>> {
    let corpus = entries(&repository().join("tests/fuzz/corpus/nar")).unwrap();
    let mut nars: Vec<Vec<u8>> = corpus.into_iter().map(|(_, nar)| nar).collect();
    let seeds = nars.len();
    let generate = |random: &mut Random| {
        let strings = tree(random, 4);
        nar_of(&strings.iter().map(Vec::as_slice).collect::<Vec<_>>())
    };
    while nars.len() < count {
        let nar = generate(random);
        nars.push(match random.below(3) {
            0 => nar,
            1 => mutate(&nar, &generate(random), random),
            _ => mutate(&nars[random.below(seeds)], &nar, random),
        });
    }
    nars
}

/// Unpacks as `nar-pack --unpack` does.
fn unpack(nar: &[u8], place: &Path) -> Result {
    let mut input = Cursor::new(nar);
    restore(&mut input, place)?;
    check_end(&input)
}

fn check_end(input: &Cursor<&[u8]>) -> Result {
    let size = input.get_ref().len() as u64;
    if input.position() == size { Ok(()) } else { Err(Error::refused("unexpected data after the end of the NAR")) }
}

fn pack(place: &Path) -> Vec<u8> {
    let mut nar = Vec::new();
    dump(place, &mut nar, &mut |_| {}).unwrap();
    nar
}

#[test]
fn nars_are_accepted_or_refused_as_by_nix() {
    if !nix::available() {
        return;
    }
    let mut scratch = Scratch::new();
    // Otherwise Nix preallocates a false size and fills the disk.
    scratch.env("NIX_CONFIG", "preallocate-contents = false\n");
    let seed = seed();
    let nars = nars(env_number("DIFFERENTIAL", DEFAULT_INPUTS), &mut Random::new(seed));
    let counts = Mutex::new(Counts::new());
    let workers = thread::available_parallelism().map_or(2, usize::from);
    thread::scope(|scope| {
        for worker in 0..workers {
            let (scratch, nars, counts) = (&scratch, &nars, &counts);
            scope.spawn(move || {
                for (index, nar) in nars.iter().enumerate().skip(worker).step_by(workers) {
                    let verdict = compare_with_nix(scratch, index, nar).unwrap_or_else(|why| {
                        panic!("input {index} of seed {seed}: {why}: b\"{}\"", nar.escape_ascii())
                    });
                    *counts.lock().unwrap().entry(verdict).or_default() += 1;
                }
            });
        }
    });
    let counts = counts.into_inner().unwrap();
    print("NARs, nar-pack and nix-store --restore", seed, &counts);
    assert!(counts[&Verdict::BothAccept] * 4 > nars.len() && counts[&Verdict::BothRefuse] * 5 > nars.len());
}

/// Restores a NAR with our reader and with Nix.
fn compare_with_nix(scratch: &Scratch, index: usize, nar: &[u8]) -> Result<Verdict, String> {
    let at = |name: &str| scratch.path().join(format!("{name}-{index}"));
    let (ours, theirs, input) = (at("ours"), at("theirs"), at("nar"));
    fs::write(&input, nar).unwrap();
    let unpacked = unpack(nar, &ours);
    let mut command = scratch.command("bash");
    // Nix 2.8 allocates 4 GiB for a string whose length field has that value.
    command.args(["-c", "ulimit -v 1000000; exec nix-store --restore \"$1\"", "restore"]).arg(&theirs);
    command.stdin(File::open(&input).unwrap());
    let output = command.stdout(Stdio::null()).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    let verdict = match (unpacked, output.status.success()) {
        (Ok(()), true) if pack(&ours) == nar && pack(&theirs) == nar => Ok(Verdict::BothAccept),
        (Ok(()), true) => Err("both accept it, but the trees differ".to_owned()),
        (Err(error), false) if error.is_refusal() => Ok(Verdict::BothRefuse),
        (Ok(()), false) => why_only_we_accept(&stderr),
        (Err(error), true) if error.is_refusal() => why_only_nix_accepts(nar, &error, &theirs),
        (Err(error), _) => Err(format!("not a refusal: {error}")),
    };
    for place in [ours, theirs, input] {
        if place.symlink_metadata().is_ok_and(|meta| meta.is_dir()) {
            remove_tree(&place).unwrap();
        } else {
            drop(fs::remove_file(&place));
        }
    }
    verdict
}

/// Returns the known reason why only we accept an input.
fn why_only_we_accept(stderr: &str) -> Result<Verdict, String> {
    // Nix uses whole paths, and we use names relative to open directories.
    if stderr.contains("File name too long") {
        return Ok(Verdict::Known("Nix 2.8 cannot restore paths of more than 4095 bytes"));
    }
    Err(format!("we accept it, and Nix refuses it: {}", stderr.trim()))
}

/// Returns the known reason why only Nix 2.8 accepts an input.
fn why_only_nix_accepts(nar: &[u8], error: &Error, theirs: &Path) -> Result<Verdict, String> {
    let message = error.message();
    if message.starts_with("unexpected data after") {
        return Ok(Verdict::Known("Nix 2.8 does not check for data after a NAR"));
    }
    if message.contains("nested deeper than") {
        return Ok(Verdict::Known("Nix 2.8 does not limit the depth; 2.36 has the same limit, 64"));
    }
    // A reader that accepts a non-canonical NAR restores a tree with another NAR hash.
    if theirs.symlink_metadata().is_err() {
        return Ok(Verdict::Known("Nix 2.8 accepts a NAR without a root node; 2.36 does not"));
    }
    if pack(theirs) != nar {
        return Ok(Verdict::Known("Nix 2.8 accepts NARs that are not canonical; 2.36 does not"));
    }
    Err(format!("Nix accepts it, and we refuse it: {message}"))
}

#[test]
fn nars_are_accepted_or_refused_as_by_nix_archive() {
    let seed = seed();
    let mut counts = Counts::new();
    for (index, nar) in
        nars(100 * env_number("DIFFERENTIAL", DEFAULT_INPUTS), &mut Random::new(seed)).iter().enumerate()
    {
        let mut input = Cursor::new(nar.as_slice());
        let ours = parse(&mut input, &mut Skip).and_then(|_| check_end(&input));
        let theirs = nix_archive::nar::decode_events(nar, |_| Ok(()));
        let verdict = match (&ours, &theirs) {
            (Ok(()), Ok(())) => Verdict::BothAccept,
            (Err(_), Err(_)) => Verdict::BothRefuse,
            (Err(error), Ok(())) if error.message().contains("file name of") => {
                Verdict::Known("nix-archive does not limit names in memory; Nix 2.36 has the same limit, 255")
            }
            (Err(error), Ok(())) if error.message().contains("link target of") => {
                Verdict::Known("nix-archive does not limit targets in memory; Nix 2.36 has the same limit, 4095")
            }
            (Err(error), Ok(())) if error.message().contains("link target is empty") => {
                Verdict::Known("nix-archive accepts targets that are empty or contain a NUL byte; Nix 2.36 does not")
            }
            _ => panic!(
                "input {index} of seed {seed}: our result is {ours:?}, that of nix-archive {theirs:?}: b\"{}\"",
                nar.escape_ascii()
            ),
        };
        *counts.entry(verdict).or_default() += 1;
    }
    print("NARs, nar-pack and nix-archive", seed, &counts);
    assert!(counts.len() >= 2);
}

/// Returns narinfos: some as our writer writes them, others mutated.
fn narinfos(count: usize, random: &mut Random) -> Vec<Vec<u8>> {
    let corpus = entries(&repository().join("tests/fuzz/corpus/narinfo")).unwrap();
    let mut texts: Vec<Vec<u8>> = corpus.into_iter().map(|(_, text)| text).collect();
    let path = |random: &mut Random| {
        let name = ["a", "hello-2.12", "x.drv", "?=+"][random.below(4)];
        store_dir().parse(&cache_tests::store_path(name, random.next())).unwrap()
    };
    let generate = |random: &mut Random| {
        let hash = |random: &mut Random| Sha256::of(&random.bytes(4));
        let mut references: Vec<_> = (0..random.below(4)).map(|_| path(random)).collect();
        references.sort_unstable();
        references.dedup();
        let narinfo = NarInfo {
            store_dir: store_dir(),
            path: path(random),
            url: format!("nar/{}.nar", hash(random).base32()),
            compression: ["none", "xz", "zstd", "bzip2", "br"][random.below(5)].to_owned(),
            file_hash: Some(hash(random)).filter(|_| random.below(2) == 0),
            file_size: Some(random.next()).filter(|_| random.below(2) == 0),
            nar_hash: hash(random),
            nar_size: random.next().max(1),
            references,
            deriver: Some(path(random)).filter(|_| random.below(2) == 0),
            signatures: (0..random.below(3)).map(|i| format!("key-{i}:AAAA")).collect(),
            ca: Some(format!("fixed:r:{}", hash(random))).filter(|_| random.below(3) == 0),
            unknown: Vec::new(),
        };
        narinfo.to_string().into_bytes()
    };
    let seeds = texts.len();
    while texts.len() < count {
        let text = generate(random);
        texts.push(match random.below(4) {
            0 => text,
            1 => mutate(&texts[random.below(seeds)], &text, random),
            _ => mutate(&text, &generate(random), random),
        });
    }
    texts
}

#[test]
fn narinfos_are_parsed_as_by_nix_narinfo() {
    let seed = seed();
    let mut counts = Counts::new();
    let store = nix_derivation::StoreDir::default();
    for (index, text) in
        narinfos(100 * env_number("DIFFERENTIAL", DEFAULT_INPUTS), &mut Random::new(seed)).iter().enumerate()
    {
        let ours = str::from_utf8(text)
            .map_err(|_| Error::refused("not UTF-8"))
            .and_then(|text| NarInfo::parse(text, &store_dir()));
        let theirs = nix_narinfo::NarInfo::parse_in(&store, text);
        let shown = || String::from_utf8_lossy(text).into_owned();
        let verdict = match (&ours, &theirs) {
            (Ok(ours), Ok(theirs)) => {
                let signatures: Vec<String> =
                    theirs.signatures().iter().map(nix_narinfo::NixSignature::to_nix_string).collect();
                let same = ours.fingerprint() == theirs.fingerprint(&store)
                    && (ours.url.as_str(), ours.compression.as_str(), ours.file_size, ours.nar_size)
                        == (theirs.url(), theirs.compression().as_str(), theirs.file_size(), theirs.nar_size())
                    && ours.file_hash.is_some() == theirs.file_hash().is_some()
                    && ours.deriver.is_some() == theirs.deriver().is_some();
                let differ = |what: &str| panic!("input {index} of seed {seed}: {what}:\n{}", shown());
                if !same {
                    match known_disagreement(ours, theirs) {
                        Some(reason) => Verdict::Known(reason),
                        None => differ("both accept it with different results"),
                    }
                } else if !ours.signatures.iter().all(|ours| signatures.contains(ours)) {
                    Verdict::Known("nix-narinfo strips all whitespace before a value; we strip one space, as Nix does")
                } else {
                    Verdict::BothAccept
                }
            }
            (Err(_), Err(_)) => Verdict::BothRefuse,
            (Err(error), Ok(_)) => Verdict::Known(why_we_refuse(error.message()).unwrap_or_else(|| {
                panic!("input {index} of seed {seed}: nix-narinfo accepts it; we refuse it: {error}:\n{}", shown())
            })),
            (Ok(_), Err(error)) => Verdict::Known(why_nix_narinfo_refuses(&error.to_string()).unwrap_or_else(|| {
                panic!("input {index} of seed {seed}: we accept it; nix-narinfo refuses it: {error}:\n{}", shown())
            })),
        };
        *counts.entry(verdict).or_default() += 1;
    }
    print("narinfos, narinfo-gen and nix-narinfo", seed, &counts);
    assert!(counts[&Verdict::BothAccept] > 1000 && counts[&Verdict::BothRefuse] > 1000);
}

/// Returns the known reason why both readers accept a narinfo with different results.
fn known_disagreement(ours: &NarInfo, theirs: &nix_narinfo::NarInfo) -> Option<&'static str> {
    if ours.compression.trim() == theirs.compression().as_str() || ours.url.trim() == theirs.url() {
        return Some("nix-narinfo strips all whitespace before a value; we strip one space, as Nix does");
    }
    None
}

/// Returns the known reason why we refuse a narinfo that nix-narinfo accepts.
fn why_we_refuse(message: &str) -> Option<&'static str> {
    let reasons = [
        ("expected KEY: VALUE", "nix-narinfo skips blank lines; in our narinfo text they separate narinfos"),
        (
            "expected a space after",
            "nix-narinfo does not require a space after the colon; Nix skips two characters after the key",
        ),
        (
            "the last line does not end with a newline",
            "nix-narinfo accepts a last line without a newline; Nix and we do not",
        ),
        (
            "missing field \"References\"",
            "we require References, which every writer writes: without it, the narinfo is truncated",
        ),
        (
            "contains the control character",
            "we refuse control characters, which could start another field or control a terminal",
        ),
        ("is outside the cache", "we require URLs within the cache"),
        ("is not a signature", "nix-narinfo accepts a signature that is not base64; Nix 2.34 and we do not"),
        ("is not a content address", "nix-narinfo does not look at the hash of a content address; Nix and we do"),
        ("is not a SHA-256 hash", "we require SHA-256, which every cache has"),
        ("invalid store path name", "we require base names as references, as Nix writes and reads them"),
        ("is not a number of bytes", "nix-narinfo accepts a sign or whitespace before a number"),
        ("is not a store path in", "nix-narinfo strips all whitespace before a value; we strip one space, as Nix does"),
        ("expected a field name before the colon", "we require a key before the colon"),
    ];
    reasons.into_iter().find(|(words, _)| message.contains(words)).map(|(_, reason)| reason)
}

/// Returns the known reason why nix-narinfo refuses a narinfo that we accept.
fn why_nix_narinfo_refuses(message: &str) -> Option<&'static str> {
    let reasons = [
        ("CA: at line", "we treat an empty CA as a missing one"),
        ("Deriver", "we treat an empty Deriver as a missing one"),
    ];
    reasons.into_iter().find(|(words, _)| message.contains(words)).map(|(_, reason)| reason)
}
