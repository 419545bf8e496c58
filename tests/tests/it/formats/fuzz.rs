//! Checks the properties of the fuzz targets on their corpus and on mutations of it; `cargo xtask fuzz` runs a real
//! fuzzer. `$FUZZ_INPUTS` is the number of mutations for each target, `$FUZZ_SEED` the seed, which is random by default.

use std::env;
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::properties::corpus::{entries, expand};
use crate::properties::{Property, TARGETS};
use cache_tests::{Random, mutate, repository};

/// Number of mutations for each target.
const DEFAULT_INPUTS: usize = 5_000;

fn env_number(name: &str, default: usize) -> usize {
    env::var(name).map_or(default, |text| text.parse().unwrap())
}

/// Checks a property; the panic message contains the input.
fn check(target: &str, property: Property, name: &str, input: &[u8]) {
    let held = catch_unwind(AssertUnwindSafe(|| property(input)));
    assert!(held.is_ok(), "{target}, {name}: the property does not hold for b\"{}\"", input.escape_ascii());
}

#[test]
fn properties_hold_for_the_corpus_and_mutations_of_it() {
    let random_seed = usize::try_from(cache_tests::random_seed()).unwrap_or_default();
    let (inputs, seed) = (env_number("FUZZ_INPUTS", DEFAULT_INPUTS), env_number("FUZZ_SEED", random_seed));
    for (target, property) in TARGETS {
        let corpus = entries(&repository().join("tests/fuzz/corpus").join(target)).unwrap();
        assert!(!corpus.is_empty(), "{target} has no corpus");
        for (name, input) in &corpus {
            check(target, property, name, input);
        }
        let mut random = Random::new(seed as u64);
        for count in 0..inputs {
            let (name, input) = &corpus[random.below(corpus.len())];
            let other = &corpus[random.below(corpus.len())].1;
            let input = mutate(input, other, &mut random);
            check(target, property, &format!("mutation {count} (of {name}) of seed {seed}"), &input);
        }
        println!("{target}: {} inputs of the corpus, {inputs} mutations of seed {seed}", corpus.len());
    }
}

#[test]
fn every_target_has_a_property_and_a_corpus() {
    let dir = repository().join("tests/fuzz");
    let names = |folder: &str| {
        let entries = std::fs::read_dir(dir.join(folder)).unwrap();
        let mut names: Vec<String> =
            entries.map(|entry| entry.unwrap().path().file_stem().unwrap().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    };
    let targets: Vec<&str> = TARGETS.iter().map(|(name, _)| *name).collect();
    assert_eq!(names("fuzz_targets"), targets);
    assert_eq!(names("corpus"), targets);
}

#[test]
fn corpus_lines_are_expanded_to_bytes() {
    assert_eq!(expand("# x\ns ab\nn 1\nt \\x00\\n\nb c\nz 2\np 8\nx 0fF0\n").unwrap(), {
        let mut bytes = b"\x02\0\0\0\0\0\0\0ab\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\0\n\nc\0\0".to_vec();
        bytes.resize(32, 0);
        bytes.extend(b"\x0f\xf0");
        bytes
    });
    assert_eq!(expand("r 2\nb x\nr 2\nb y\n.\n.\n").unwrap(), b"xyyxyy");
    for wrong in ["q", "n x", "x 0", "b \\q", "r 2\nb x"] {
        assert!(expand(wrong).unwrap_err().contains("line 1"), "{wrong}");
    }
}
