//! The tree that `bench pack` packs.

use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;

use cache_tests::Random;
use cache_tests::generated_closure::{text, words};

/// The tree is the same in every run.
const SEED: u64 = 7;

/// File sizes are log-normal, as those of /usr on a Debian: half below 1.9 kB, one in ten above 23 kB.
const MEDIAN_SIZE: f64 = 1900.0;
const SIZE_SIGMA: f64 = 1.95;
const MIN_SIZE: f64 = 200.0;
const MAX_SIZE: f64 = 4_194_304.0;

/// What a tree contains.
pub struct PackedTree {
    pub files: usize,
    pub directories: usize,
    pub bytes: u64,
}

/// Writes a tree of `files` files, in directories with one to nineteen of them. Every other file is text, one in ten is
/// executable, and two directories in five have a link.
pub fn write(root: &Path, files: usize) -> io::Result<PackedTree> {
    let mut random = Random::new(SEED);
    let words = words(&mut random);
    let prose = text(&mut random, &words, 16 << 20);
    let noise = random.bytes(16 << 20);
    let mut tree = PackedTree { files: 0, directories: 0, bytes: 0 };
    while tree.files < files {
        let number = tree.directories;
        let dir = root.join(format!("d{:03}", number / 200)).join(format!("d{:03}", number % 200));
        fs::create_dir_all(&dir)?;
        tree.directories += 1;
        for index in 0..=random.below(19) {
            if tree.files == files {
                break;
            }
            let size = file_size(&mut random);
            let source = if random.below(2) == 0 { &prose } else { &noise };
            let start = random.below(source.len() - size);
            let file = dir.join(format!("file-{index}"));
            fs::write(&file, &source[start..start + size])?;
            if random.below(10) == 0 {
                fs::set_permissions(&file, fs::Permissions::from_mode(0o755))?;
            }
            tree.files += 1;
            tree.bytes += size as u64;
        }
        if random.below(5) < 2 {
            symlink("file-0", dir.join("link"))?;
        }
    }
    Ok(tree)
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // between the minimum and the maximum
fn file_size(random: &mut Random) -> usize {
    (MEDIAN_SIZE * (SIZE_SIGMA * random.normal()).exp()).clamp(MIN_SIZE, MAX_SIZE) as usize
}

#[cfg(test)]
mod tests {
    use super::{Random, file_size};

    #[test]
    fn sizes_are_those_of_a_closure() {
        let mut random = Random::new(1);
        let mut sizes: Vec<usize> = (0..10_000).map(|_| file_size(&mut random)).collect();
        sizes.sort_unstable();
        assert!((1500..2500).contains(&sizes[5000]), "{}", sizes[5000]);
        assert!((15_000..35_000).contains(&sizes[9000]), "{}", sizes[9000]);
    }
}
