//! Closures made without Nix: trees below a directory that name each other and so refer to each other.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::Path;

use crate::random::Random;

/// The characters of a store path's hash.
const ALPHABET: &[u8; 32] = b"0123456789abcdfghijklmnpqrsvwxyz";

/// Bytes of a file; larger paths have more files.
const FILE: u64 = 1 << 20;

/// A store path to be.
pub struct Entry {
    pub path: String,
    /// Indices of the entries that it refers to, all before it, or its own.
    pub references: Vec<usize>,
    pub size: u64,
}

/// What files hold.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Contents {
    /// Bytes that no compressor makes smaller.
    Random,
    /// Every other file is text.
    Mixed,
}

/// Some thirty paths, a chain and a tree of references below one path, from a few bytes to three times a part.
pub fn for_chaos(seed: u64, part: u64) -> Vec<Entry> {
    let mut random = Random::new(seed);
    let sizes = [1, 60, 900, 7_000, 40_000, 250_000, 1_500_000];
    let mut entries: Vec<Entry> = Vec::new();
    for index in 0..30 {
        let references = match index {
            0 | 12 => vec![],
            // The tree's nodes have the two halves of their number below them; some nodes name themselves too.
            12.. => vec![12 + (index - 13) / 2, index - usize::from(index % 3 == 0)],
            _ => vec![index - 1],
        };
        let size = match index {
            5 => part + 1,
            14 => 2 * part + part / 3,
            22 => 3 * part,
            _ => sizes[random.index(sizes.len())] + random.below(100),
        };
        entries.push(Entry { path: store_path(&mut random, index), references, size });
    }
    let top = vec![11, 27, 28, 29];
    entries.push(Entry { path: store_path(&mut random, 30), references: top, size: 30 });
    entries
}

/// `count` paths with `total` bytes together: three with 30 % of them, the others log-normal; each refers to at most
/// five before it.
pub fn for_bench(seed: u64, count: usize, total: u64) -> Vec<Entry> {
    let mut random = Random::new(seed);
    let huge = count.min(3);
    // Half of them smaller than e^0, one in forty larger than e^4: as the paths of a NixOS system.
    let weights: Vec<f64> = (huge..count).map(|_| (2.0 * random.normal()).exp()).collect();
    let sum: f64 = weights.iter().sum();
    let mut sizes: Vec<u64> = weights.iter().map(|weight| share(total, 0.7 * weight / sum)).collect();
    let parts = &[0.15, 0.09, 0.06][..huge];
    // Where there are no others, theirs is everything.
    let whole = if sizes.is_empty() { parts.iter().sum() } else { 1.0 };
    for (rank, part) in parts.iter().enumerate() {
        let place = (rank + 1) * sizes.len() / (huge + 1);
        sizes.insert(place, share(total, part / whole));
    }
    let entry = |(index, size): (usize, u64)| {
        let wanted = random.index(6).min(index);
        let mut references: Vec<usize> = (0..wanted).map(|_| random.index(index)).collect();
        references.sort_unstable();
        references.dedup();
        Entry { path: store_path(&mut random, index), references, size }
    };
    sizes.into_iter().enumerate().map(entry).collect()
}

/// A part of `total`, at least enough for a line of text.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)] // sizes need no digit 16
fn share(total: u64, part: f64) -> u64 {
    ((total as f64 * part) as u64).max(100)
}

fn store_path(random: &mut Random, index: usize) -> String {
    let hash: String = (0..32).map(|_| char::from(ALPHABET[random.index(32)])).collect();
    format!("/nix/store/{hash}-path-{index}")
}

/// Makes the trees below `root`.
pub fn write(entries: &[Entry], root: &Path, contents: Contents, seed: u64) -> Result<(), String> {
    let mut random = Random::new(seed);
    let words = words(&mut random);
    for entry in entries {
        let dir = root.join(entry.path.trim_start_matches('/'));
        let made = write_entry(entry, entries, &dir, contents, &mut random, &words);
        made.map_err(|error| format!("cannot make {}: {error}", dir.display()))?;
    }
    Ok(())
}

fn write_entry(
    entry: &Entry,
    entries: &[Entry],
    dir: &Path,
    contents: Contents,
    random: &mut Random,
    words: &[String],
) -> io::Result<()> {
    fs::create_dir_all(dir)?;
    let mut references = File::create(dir.join("references"))?;
    for &index in &entry.references {
        writeln!(references, "{}", entries[index].path)?;
    }
    // Two files at least, so that half of a small path is text too.
    let most = FILE.min(entry.size.div_ceil(2)).max(1);
    let mut left = entry.size;
    for number in 0_u32.. {
        let length = left.min(most);
        if length == 0 {
            break;
        }
        let size = usize::try_from(length).unwrap_or(usize::MAX);
        let is_text = contents == Contents::Mixed && number % 2 == 0;
        let bytes = if is_text { text(random, words, size) } else { random.bytes(size) };
        fs::write(dir.join(format!("file-{number}")), bytes)?;
        left -= length;
    }
    Ok(())
}

/// Words to make text of.
pub fn words(random: &mut Random) -> Vec<String> {
    let word = |random: &mut Random| {
        let length = 2 + random.below(9);
        (0..length).map(|_| char::from(b'a' + u8::try_from(random.below(26)).unwrap_or(0))).collect::<String>() + " "
    };
    (0..4096).map(|_| word(random)).collect()
}

/// Text of `length` bytes; some words are more frequent than others, as in a language.
pub fn text(random: &mut Random, words: &[String], length: usize) -> Vec<u8> {
    let mut text = Vec::with_capacity(length + 16);
    while text.len() < length {
        let kind = random.below(12);
        text.extend_from_slice(words[random.index(1 << kind)].as_bytes());
    }
    text.truncate(length);
    text
}

/// The path list of a closure.
pub fn path_list(entries: &[Entry]) -> String {
    entries.iter().flat_map(|entry| [entry.path.as_str(), "\n"]).collect()
}

#[cfg(test)]
mod tests {
    use super::{for_bench, for_chaos};

    #[test]
    fn a_single_path_has_everything() {
        let sizes: Vec<u64> = for_bench(1, 1, 10 << 30).iter().map(|entry| entry.size).collect();
        assert_eq!(sizes, [10 << 30]);
    }

    #[test]
    fn closures_have_the_shape_that_was_asked_for() {
        let entries = for_bench(1, 300, 1_500_000_000);
        let total: u64 = entries.iter().map(|entry| entry.size).sum();
        assert_eq!(entries.len(), 300);
        assert!((1_490_000_000..1_510_000_000).contains(&total), "{total}");
        let mut sizes: Vec<u64> = entries.iter().map(|entry| entry.size).collect();
        sizes.sort_unstable();
        assert!(sizes[150] < 3_000_000, "half of the paths are small");
        for entries in [entries, for_chaos(1, 5 << 20)] {
            for (index, entry) in entries.iter().enumerate() {
                assert!(entry.references.iter().all(|&reference| reference <= index), "{}", entry.path);
            }
        }
    }
}
