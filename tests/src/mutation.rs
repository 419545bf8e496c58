//! Mutations of valid inputs.

use crate::Random;

/// Numbers at the limits that readers may handle incorrectly.
const NUMBERS: [u64; 10] = [0, 1, 7, 8, 255, 256, 4096, 1 << 32, u64::MAX - 7, u64::MAX];

/// Changes `input` in one to four places: flips bits, replaces bytes and 64-bit numbers, removes or repeats pieces, or
/// inserts pieces of `other`.
pub fn mutate(input: &[u8], other: &[u8], random: &mut Random) -> Vec<u8> {
    let mut bytes = input.to_vec();
    for _ in 0..=random.below(4) {
        change(&mut bytes, other, random);
    }
    bytes
}

fn change(bytes: &mut Vec<u8>, other: &[u8], random: &mut Random) {
    let at = random.below(bytes.len() + 1);
    // The strings of a NAR begin at multiples of 8.
    let word = at / 8 * 8;
    let length = 1 + random.below(16);
    match random.below(10) {
        0 => {
            if let Some(byte) = bytes.get_mut(at) {
                *byte ^= 1 << random.below(8);
            }
        }
        1 => {
            if let Some(byte) = bytes.get_mut(at) {
                *byte = random.next().to_le_bytes()[0];
            }
        }
        2 => bytes.truncate(at),
        3 => drop(bytes.drain(at..bytes.len().min(at + length))),
        4 => drop(bytes.splice(at..at, random.bytes(length))),
        5 => {
            let number = NUMBERS[random.below(NUMBERS.len())].to_le_bytes();
            if let Some(place) = bytes.get_mut(word..word + 8) {
                place.copy_from_slice(&number);
            }
        }
        6 => drop(bytes.drain(word..bytes.len().min(word + 8 * length))),
        7 => {
            let piece = bytes[word..bytes.len().min(word + 8 * length)].to_vec();
            let to = random.below(bytes.len() + 1) / 8 * 8;
            bytes.splice(to..to, piece);
        }
        8 => {
            let from = random.below(other.len() + 1) / 8 * 8;
            let piece = other[from..other.len().min(from + 8 * length)].to_vec();
            bytes.splice(word..word, piece);
        }
        _ => {
            let number = random.below(32) as u64;
            if let Some(place) = bytes.get_mut(word..word + 8) {
                place.copy_from_slice(&number.to_le_bytes());
            }
        }
    }
}
