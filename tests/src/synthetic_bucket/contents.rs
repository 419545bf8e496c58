//! The computed contents of a synthetic bucket: what is there is a function of the index of a path.

use std::fmt::Write as _;

use crate::Random;
use crate::store_paths::BASE32_DIGITS;

/// Paths per group.
const GROUP: u64 = 1000;
/// One of so many groups is not pinned.
const UNPINNED: u64 = 10;
/// Maximum number of references of a path.
const MAX_REFERENCES: usize = 62;
/// Digits of a hash that encode the index of its path.
const INDEX_DIGITS: u32 = 8;

/// The computed contents of the bucket.
pub(super) struct Contents {
    pub(super) paths: u64,
    /// Size of each compressed NAR in bytes, if they all have the same.
    nar_size: Option<u64>,
    /// Multiplies the index of a path, modulo `paths`, to give its number, so that groups are spread over the listing.
    stride: u64,
    /// The inverse of `stride`.
    inverse: u64,
}

impl Contents {
    pub(super) fn new(paths: u64) -> Self {
        assert!(paths > 0, "a synthetic bucket has at least one path");
        // A stride near the golden section spreads the numbers evenly.
        let mut stride = (paths * 618 / 1000).max(1);
        let inverse = loop {
            match inverse_modulo(stride, paths) {
                Some(inverse) => break inverse,
                None => stride += 1,
            }
        };
        Self { paths, nar_size: None, stride, inverse }
    }

    /// Returns the contents with NARs of that size in bytes.
    pub(super) fn with_nars_of(mut self, size: u64) -> Self {
        self.nar_size = Some(size);
        self
    }

    /// Returns the number of the path with this index, by which paths are grouped.
    fn number(&self, index: u64) -> u64 {
        multiply_modulo(index, self.stride, self.paths)
    }

    fn index(&self, number: u64) -> u64 {
        multiply_modulo(number, self.inverse, self.paths)
    }

    /// Returns digits that grow with the index, so that the listing is in the order of the indexes.
    fn index_digits(&self, index: u64) -> String {
        let step = 32_u64.pow(INDEX_DIGITS) / self.paths;
        (0..INDEX_DIGITS).rev().map(|place| base32_digit(index * step / 32_u64.pow(place))).collect()
    }

    fn hash(&self, index: u64) -> String {
        let mut random = Random::new(index);
        self.index_digits(index) + &random_digits(&mut random, 24)
    }

    pub(super) fn narinfo_key(&self, index: u64) -> String {
        self.hash(index) + ".narinfo"
    }

    pub(super) fn nar_key(&self, index: u64) -> String {
        let mut random = Random::new(!index);
        // The first of the 52 digits of 256 bits is 0 or 1.
        format!("nar/0{}{}.nar.zst", self.index_digits(index), random_digits(&mut random, 43))
    }

    fn base_name(&self, index: u64) -> String {
        format!("{}-synthetic-{}", self.hash(index), self.number(index))
    }

    /// Returns the index of the path with this narinfo key.
    pub(super) fn find_narinfo(&self, key: &str) -> Option<u64> {
        self.find(key, key.get(..INDEX_DIGITS as usize)?, Self::narinfo_key)
    }

    pub(super) fn find_nar(&self, key: &str) -> Option<u64> {
        self.find(key, key.strip_prefix("nar/0")?.get(..INDEX_DIGITS as usize)?, Self::nar_key)
    }

    fn find(&self, key: &str, digits: &str, key_of: fn(&Self, u64) -> String) -> Option<u64> {
        let value = digits.bytes().try_fold(0_u64, |value, digit| {
            let digit = BASE32_DIGITS.iter().position(|&known| known == digit)?;
            Some(value * 32 + digit as u64)
        })?;
        let index = value / (32_u64.pow(INDEX_DIGITS) / self.paths);
        (index < self.paths && key_of(self, index) == key).then_some(index)
    }

    /// Returns the size of a compressed NAR: between 1 kB and 1 MB, unless all have the same.
    pub(super) fn file_size(&self, index: u64) -> u64 {
        self.nar_size.unwrap_or_else(|| 1000 + Random::new(index ^ 0x5eed).next() % 1_000_000)
    }

    fn references(&self, index: u64) -> Vec<String> {
        let number = self.number(index);
        let (first, position) = (number / GROUP * GROUP, number % GROUP);
        let mut random = Random::new(index ^ 0x00de_9000);
        let count = random.below(MAX_REFERENCES + 1);
        let mut numbers: Vec<u64> = match position {
            0 => Vec::new(),
            _ => (0..count).map(|_| first + random.next() % position).collect(),
        };
        numbers.sort_unstable();
        numbers.dedup();
        let mut names: Vec<String> = numbers.into_iter().map(|number| self.base_name(self.index(number))).collect();
        names.sort_unstable();
        names
    }

    pub(super) fn narinfo(&self, index: u64, sign: &dyn Fn(&str) -> String) -> String {
        let (path, references) = (format!("/nix/store/{}", self.base_name(index)), self.references(index));
        let (key, size) = (self.nar_key(index), self.file_size(index));
        let nar_hash = format!("sha256:0{}", random_digits(&mut Random::new(index ^ 0xda7a), 51));
        let full: Vec<String> = references.iter().map(|name| format!("/nix/store/{name}")).collect();
        let signature = sign(&format!("1;{path};{nar_hash};{};{}", size * 4, full.join(",")));
        format!(
            "StorePath: {path}\nURL: {key}\nCompression: zstd\nFileHash: sha256:{}\nFileSize: {size}\n\
             NarHash: {nar_hash}\nNarSize: {}\nReferences: {}\nSig: {signature}\n",
            &key["nar/".len()..key.len() - ".nar.zst".len()],
            size * 4,
            references.join(" ")
        )
    }

    /// Returns the pin: the last path of each pinned group, one per line.
    pub(super) fn pin(&self) -> String {
        let mut lines = String::new();
        for group in (0..self.paths.div_ceil(GROUP)).filter(|group| group % UNPINNED != 0 || self.paths <= GROUP) {
            let last = ((group + 1) * GROUP).min(self.paths) - 1;
            // Writing to a string cannot fail.
            let _ = writeln!(lines, "/nix/store/{}", self.base_name(self.index(last)));
        }
        lines
    }

    /// Returns the index of the first path whose key, as `key_of` returns it, comes after `after`.
    pub(super) fn first_after(&self, after: &str, key_of: fn(&Self, u64) -> String) -> u64 {
        let (mut low, mut high) = (0, self.paths);
        while low < high {
            let middle = low + (high - low) / 2;
            if key_of(self, middle).as_str() > after { high = middle } else { low = middle + 1 }
        }
        low
    }
}

fn base32_digit(value: u64) -> char {
    char::from(BASE32_DIGITS[usize::try_from(value % 32).expect("below 32")])
}

fn random_digits(random: &mut Random, count: usize) -> String {
    (0..count).map(|_| base32_digit(random.next())).collect()
}

fn multiply_modulo(a: u64, b: u64, modulus: u64) -> u64 {
    u64::try_from(u128::from(a) * u128::from(b) % u128::from(modulus)).expect("below the modulus")
}

/// Returns the inverse by the extended Euclidean algorithm, or None if the numbers have a common divisor.
fn inverse_modulo(value: u64, modulus: u64) -> Option<u64> {
    let (mut remainder, mut next_remainder) = (i128::from(modulus), i128::from(value % modulus.max(2)));
    let (mut factor, mut next_factor) = (0_i128, 1_i128);
    while next_remainder != 0 {
        let quotient = remainder / next_remainder;
        (remainder, next_remainder) = (next_remainder, remainder - quotient * next_remainder);
        (factor, next_factor) = (next_factor, factor - quotient * next_factor);
    }
    (remainder == 1).then(|| u64::try_from(factor.rem_euclid(i128::from(modulus))).expect("below the modulus"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_in_the_bucket_and_have_the_stated_average() {
        let contents = Contents::new(3000);
        let mut total = 0;
        for index in 0..3000 {
            assert_eq!(contents.find_narinfo(&contents.narinfo_key(index)), Some(index));
            assert_eq!(contents.find_nar(&contents.nar_key(index)), Some(index));
            assert_eq!(contents.index(contents.number(index)), index);
            let references = contents.references(index);
            total += references.len();
            for name in references {
                let number: u64 = name.rsplit('-').next().unwrap().parse().unwrap();
                assert!(number < contents.number(index));
                assert_eq!(name, contents.base_name(contents.index(number)));
            }
        }
        assert!((28..=32).contains(&(total / 3000)), "{}", total / 3000);
    }
}
