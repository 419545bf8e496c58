//! Closures made without Nix: trees below a directory that contain each other's paths and so refer to each other.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::Path;

use crate::{Random, random_store_path};

/// Size of a file in bytes; larger paths have more files.
const FILE_SIZE: u64 = 1 << 20;

/// A store path to generate.
#[derive(Debug)]
pub struct GeneratedPath {
    /// The store path.
    pub path: String,
    /// Indices of the paths that it refers to: earlier ones, or its own.
    pub references: Vec<usize>,
    /// Total size of its files in bytes.
    pub size: u64,
}

/// The contents of files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileContents {
    /// Incompressible bytes.
    Random,
    /// Text in every other file.
    Mixed,
}

/// Generates 31 paths, a chain and a tree of references below the last path, with sizes from a few bytes to three times
/// `part_size`, the size of a part of a multipart upload.
pub fn for_chaos(seed: u64, part_size: u64) -> Vec<GeneratedPath> {
    let mut random = Random::new(seed);
    let sizes = [1, 60, 900, 7_000, 40_000, 250_000, 1_500_000];
    let mut paths: Vec<GeneratedPath> = Vec::new();
    for index in 0..30 {
        let references = match index {
            0 | 12 => vec![],
            // A binary tree, in which two nodes of three also refer to themselves.
            12.. => vec![12 + (index - 13) / 2, index - usize::from(index % 3 == 0)],
            _ => vec![index - 1],
        };
        let size = match index {
            5 => part_size + 1,
            14 => 2 * part_size + part_size / 3,
            22 => 3 * part_size,
            _ => sizes[random.below(sizes.len())] + random.below(100) as u64,
        };
        paths.push(GeneratedPath { path: path_name(&mut random, index), references, size });
    }
    let top = vec![11, 27, 28, 29];
    paths.push(GeneratedPath { path: path_name(&mut random, 30), references: top, size: 30 });
    paths
}

/// Generates `count` paths with `total` bytes: three have 30 % of them, the sizes of the others are log-normal. Each
/// refers to at most five earlier ones.
pub fn for_bench(seed: u64, count: usize, total: u64) -> Vec<GeneratedPath> {
    let mut random = Random::new(seed);
    let huge = count.min(3);
    // Half of them below e^0, one in forty above e^4: as the paths of a NixOS system.
    let weights: Vec<f64> = (huge..count).map(|_| (2.0 * random.normal()).exp()).collect();
    let sum: f64 = weights.iter().sum();
    let mut sizes: Vec<u64> = weights.iter().map(|weight| share(total, 0.7 * weight / sum)).collect();
    let parts = &[0.15, 0.09, 0.06][..huge];
    // Without others, the huge paths have all bytes.
    let whole = if sizes.is_empty() { parts.iter().sum() } else { 1.0 };
    for (rank, part) in parts.iter().enumerate() {
        let place = (rank + 1) * sizes.len() / (huge + 1);
        sizes.insert(place, share(total, part / whole));
    }
    let generate = |(index, size): (usize, u64)| {
        let count = random.below(6).min(index);
        let mut references: Vec<usize> = (0..count).map(|_| random.below(index)).collect();
        references.sort_unstable();
        references.dedup();
        GeneratedPath { path: path_name(&mut random, index), references, size }
    };
    sizes.into_iter().enumerate().map(generate).collect()
}

/// Returns a part of `total`, at least enough for a line of text.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)] // sizes need no digit 16
fn share(total: u64, part: f64) -> u64 {
    ((total as f64 * part) as u64).max(100)
}

fn path_name(random: &mut Random, index: usize) -> String {
    random_store_path(random, &format!("path-{index}"))
}

/// Writes the trees below `root`.
pub fn write(paths: &[GeneratedPath], root: &Path, contents: FileContents, seed: u64) {
    let mut random = Random::new(seed);
    let words = words(&mut random);
    for path in paths {
        let dir = root.join(path.path.trim_start_matches('/'));
        let written = write_path(path, paths, &dir, contents, &mut random, &words);
        written.unwrap_or_else(|error| panic!("cannot write {}: {error}", dir.display()));
    }
}

fn write_path(
    path: &GeneratedPath,
    paths: &[GeneratedPath],
    dir: &Path,
    contents: FileContents,
    random: &mut Random,
    words: &[String],
) -> io::Result<()> {
    fs::create_dir_all(dir)?;
    let mut references = File::create(dir.join("references"))?;
    for &index in &path.references {
        writeln!(references, "{}", paths[index].path)?;
    }
    // At least two files, so that half of a small path is text too.
    let max = FILE_SIZE.min(path.size.div_ceil(2)).max(1);
    let mut remaining = path.size;
    for number in 0_u32.. {
        let length = remaining.min(max);
        if length == 0 {
            break;
        }
        let size = usize::try_from(length).expect("a file fits into memory");
        let is_text = contents == FileContents::Mixed && number % 2 == 0;
        let bytes = if is_text { text(random, words, size) } else { random.bytes(size) };
        fs::write(dir.join(format!("file-{number}")), bytes)?;
        remaining -= length;
    }
    Ok(())
}

/// Generates words for [`text`].
pub fn words(random: &mut Random) -> Vec<String> {
    let word = |random: &mut Random| {
        let length = 2 + random.below(9);
        (0..length).map(|_| char::from(b"abcdefghijklmnopqrstuvwxyz"[random.below(26)])).collect::<String>() + " "
    };
    (0..4096).map(|_| word(random)).collect()
}

/// Generates text of `length` bytes; some words are more frequent than others, as in a language.
pub fn text(random: &mut Random, words: &[String], length: usize) -> Vec<u8> {
    let mut text = Vec::with_capacity(length + 16);
    while text.len() < length {
        let rarity = random.below(12);
        text.extend_from_slice(words[random.below(1 << rarity)].as_bytes());
    }
    text.truncate(length);
    text
}

/// Returns the path list of a closure.
pub fn path_list(paths: &[GeneratedPath]) -> String {
    paths.iter().flat_map(|path| [path.path.as_str(), "\n"]).collect()
}

#[cfg(test)]
mod tests {
    use super::{for_bench, for_chaos};

    #[test]
    fn a_single_path_has_all_bytes() {
        let sizes: Vec<u64> = for_bench(1, 1, 10 << 30).iter().map(|path| path.size).collect();
        assert_eq!(sizes, [10 << 30]);
    }

    #[test]
    fn closures_have_the_requested_shape() {
        let paths = for_bench(1, 300, 1_500_000_000);
        let total: u64 = paths.iter().map(|path| path.size).sum();
        assert_eq!(paths.len(), 300);
        assert!((1_490_000_000..1_510_000_000).contains(&total), "{total}");
        let mut sizes: Vec<u64> = paths.iter().map(|path| path.size).collect();
        sizes.sort_unstable();
        assert!(sizes[150] < 3_000_000, "half of the paths are small");
        for paths in [paths, for_chaos(1, 5 << 20)] {
            for (index, path) in paths.iter().enumerate() {
                assert!(path.references.iter().all(|&reference| reference <= index), "{}", path.path);
            }
        }
    }
}
