//! The scanner finds the same references as a plain search, however the stream is split into writes.

#![allow(clippy::unwrap_used)] // a panic fails the test

use std::sync::Arc;

use nar_pack::references::{Candidates, Scanner};
use nar_pack::store_path::{HASH_PART, StorePath};
use proptest::collection::vec;
use proptest::prelude::*;

/// Few candidates, so that many streams contain them.
fn candidates() -> Vec<StorePath> {
    let digits = ["0", "z", "01", "abcd"];
    let path = |digits: &&str| format!("{}-x", digits.repeat(HASH_PART / digits.len()));
    digits.iter().map(path).map(|base| StorePath::from_base_name(&base).unwrap()).collect()
}

fn segments() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        (0..4_usize).prop_map(|index| candidates()[index].hash_part().as_bytes().to_vec()),
        // A truncated hash part, or one with a modified digit.
        (0..4_usize, 1..HASH_PART)
            .prop_map(|(index, length)| candidates()[index].hash_part().as_bytes()[..length].to_vec()),
        (0..4_usize, 0..HASH_PART, any::<u8>()).prop_map(|(index, at, byte)| {
            let mut digits = candidates()[index].hash_part().as_bytes().to_vec();
            digits[at] = byte;
            digits
        }),
        vec(any::<u8>(), 0..50),
        "[0-9a-z]{0,60}".prop_map(String::into_bytes),
    ]
}

proptest! {
    #[test]
    fn the_scanner_agrees_with_a_plain_search(
        segments in vec(segments(), 0..12),
        splits in vec(any::<prop::sample::Index>(), 0..8),
    ) {
        let stream = segments.concat();
        let mut splits: Vec<usize> = splits.iter().map(|split| split.index(stream.len() + 1)).collect();
        splits.extend([0, stream.len()]);
        splits.sort_unstable();
        let paths = candidates();
        let mut scanner = Scanner::new(Arc::new(paths.iter().cloned().collect::<Candidates>()));
        for ends in splits.windows(2) {
            scanner.feed(&stream[ends[0]..ends[1]]);
        }
        let is_contained = |path: &&StorePath| {
            stream.windows(HASH_PART).any(|window| window == path.hash_part().as_bytes())
        };
        let mut expected: Vec<StorePath> = paths.iter().filter(is_contained).cloned().collect();
        expected.sort();
        prop_assert_eq!(scanner.finish(), expected);
    }
}
