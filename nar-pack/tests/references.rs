//! The scanner finds what a plain search finds, however the stream is cut.

#![allow(clippy::unwrap_used)] // a test that cannot go on has failed

use std::sync::Arc;

use nar_pack::references::{Candidates, Scanner};
use nar_pack::store_path::{HASH_PART, StorePath};
use proptest::collection::vec;
use proptest::prelude::*;

/// Few different paths, so that they are often mentioned.
fn candidates() -> Vec<StorePath> {
    let digits = ["0", "z", "01", "abcd"];
    let path = |digits: &&str| format!("{}-x", digits.repeat(HASH_PART / digits.len()));
    digits.iter().map(path).map(|base| StorePath::from_base_name(&base).unwrap()).collect()
}

fn pieces() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        (0..4_usize).prop_map(|index| candidates()[index].hash_part().as_bytes().to_vec()),
        // A hash part with its end cut off, or a digit changed.
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
    fn what_is_mentioned_is_found_however_the_stream_is_cut(
        pieces in vec(pieces(), 0..12),
        cuts in vec(any::<prop::sample::Index>(), 0..8),
    ) {
        let stream = pieces.concat();
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(stream.len() + 1)).collect();
        cuts.extend([0, stream.len()]);
        cuts.sort_unstable();
        let paths = candidates();
        let mut scanner = Scanner::new(Arc::new(paths.iter().cloned().collect::<Candidates>()));
        for ends in cuts.windows(2) {
            scanner.feed(&stream[ends[0]..ends[1]]);
        }
        let mentioned = |path: &&StorePath| {
            stream.windows(HASH_PART).any(|window| window == path.hash_part().as_bytes())
        };
        let mut wanted: Vec<StorePath> = paths.iter().filter(mentioned).cloned().collect();
        wanted.sort();
        prop_assert_eq!(scanner.finish(), wanted);
    }
}
