//! The closures of a cache: the largest ones, and which paths only one pin keeps.

use s3_push::remote::liveness::Graph;

/// Number of paths and of closures that are reported.
const MAX_LARGEST: usize = 10;
/// Maximum number of references that are followed to find the largest closures: about a second.
const MAX_STEPS: u64 = 100_000_000;

/// Number of paths and their sizes in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Sizes {
    /// Bytes of NARs.
    pub nar_size: u64,
    /// Bytes of compressed NARs.
    pub file_size: u64,
    /// Paths.
    pub paths: u64,
}

impl Sizes {
    /// Adds paths.
    pub fn add(&mut self, other: Self) {
        self.paths += other.paths;
        self.nar_size = self.nar_size.saturating_add(other.nar_size);
        self.file_size = self.file_size.saturating_add(other.file_size);
    }
}

/// Returns the indices and sizes of the largest paths, by their unpacked size, largest first.
pub fn largest_paths(sizes: &[Sizes]) -> Vec<(usize, Sizes)> {
    let mut paths: Vec<(usize, Sizes)> =
        sizes.iter().copied().enumerate().filter(|(_, sizes)| sizes.paths > 0).collect();
    paths.sort_by_key(|(index, sizes)| (std::cmp::Reverse(sizes.nar_size), *index));
    paths.truncate(MAX_LARGEST);
    paths
}

/// The largest closures.
pub struct LargestClosures {
    /// The index of each path and the sizes of its closure, largest first.
    pub largest: Vec<(usize, Sizes)>,
    /// How many closures were examined.
    pub examined: usize,
    /// How many closures there are: those of the pinned paths, and of the paths that no other path references.
    pub total: usize,
}

/// Finds the largest closures, by their unpacked size: those of the pinned paths first, then those of paths that no other
/// path references, until too many references have been followed.
pub fn find_largest(graph: &Graph, sizes: &[Sizes], pinned: &[usize]) -> LargestClosures {
    find_largest_within(graph, sizes, pinned, MAX_STEPS)
}

fn find_largest_within(graph: &Graph, sizes: &[Sizes], pinned: &[usize], max_steps: u64) -> LargestClosures {
    let candidates = candidates(graph, sizes, pinned);
    // The number of the last closure that contained each path.
    let mut seen = vec![0_u32; graph.count()];
    let (mut largest, mut steps, mut examined): (Vec<(usize, Sizes)>, u64, usize) = (Vec::new(), 0, 0);
    for (number, &top) in (1_u32..).zip(&candidates) {
        if steps >= max_steps {
            break;
        }
        let (mut closure, mut unvisited) = (Sizes::default(), vec![top]);
        seen[top] = number;
        while let Some(index) = unvisited.pop() {
            closure.add(sizes[index]);
            for &reference in graph.references(index) {
                steps += 1;
                if std::mem::replace(&mut seen[reference as usize], number) != number {
                    unvisited.push(reference as usize);
                }
            }
        }
        examined += 1;
        largest.push((top, closure));
        largest.sort_by_key(|(index, sizes)| (std::cmp::Reverse(*sizes), *index));
        largest.truncate(MAX_LARGEST);
    }
    LargestClosures { largest, examined, total: candidates.len() }
}

/// Returns the pinned paths, and then those that no other path references, in the order of their own sizes.
fn candidates(graph: &Graph, sizes: &[Sizes], pinned: &[usize]) -> Vec<usize> {
    let mut is_referenced = vec![false; graph.count()];
    for index in 0..graph.count() {
        for &reference in graph.references(index) {
            is_referenced[reference as usize] = true;
        }
    }
    let mut candidates = pinned.to_vec();
    candidates.sort_unstable();
    candidates.dedup();
    let is_pinned = |index: &usize| candidates.binary_search(index).is_ok();
    let exists = |index: &usize| sizes[*index].paths > 0;
    let mut tops: Vec<usize> =
        (0..graph.count()).filter(|index| !is_referenced[*index] && exists(index) && !is_pinned(index)).collect();
    // Many references to begin with make a large closure.
    tops.sort_by_key(|&index| std::cmp::Reverse((graph.references(index).len(), sizes[index])));
    candidates.extend(tops);
    candidates
}

/// What each pin keeps alone, and what no pin keeps.
pub struct Pinned {
    /// In the order of the pins.
    pub alone: Vec<Sizes>,
    /// Kept by no pin.
    pub unpinned: Sizes,
}

/// Which pins keep a path.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Owner {
    None,
    Pin(u32),
    Several,
}

/// Finds what each pin keeps alone; `pins` are the paths of each. A path changes its owner at most twice, so the time
/// depends on the size of the cache and not on the number of pins.
pub fn find_pinned(graph: &Graph, sizes: &[Sizes], pins: &[Vec<usize>]) -> Pinned {
    let mut owners = vec![Owner::None; graph.count()];
    for (pin, paths) in (0_u32..).zip(pins) {
        let mut unvisited = paths.clone();
        while let Some(index) = unvisited.pop() {
            owners[index] = match owners[index] {
                Owner::None => Owner::Pin(pin),
                Owner::Pin(other) if other != pin => Owner::Several,
                Owner::Pin(_) | Owner::Several => continue,
            };
            unvisited.extend(graph.references(index).iter().map(|reference| *reference as usize));
        }
    }
    let mut pinned = Pinned { alone: vec![Sizes::default(); pins.len()], unpinned: Sizes::default() };
    for (owner, sizes) in owners.iter().zip(sizes) {
        match owner {
            Owner::None => pinned.unpinned.add(*sizes),
            Owner::Pin(pin) => pinned.alone[*pin as usize].add(*sizes),
            Owner::Several => {}
        }
    }
    pinned
}

#[cfg(test)]
mod tests {
    use nar_pack::store_path::HashPart;

    use super::*;

    fn hash(digit: usize) -> HashPart {
        HashPart::parse(&[b"0123456789abcdfghijklmnpqrsvwxyz"[digit]; 32]).unwrap()
    }

    /// A graph of paths of 1, 2, 4, … bytes.
    fn graph(references: &[&[usize]]) -> (Graph, Vec<Sizes>) {
        let mut graph = Graph::new((0..references.len()).map(hash));
        for (index, references) in references.iter().enumerate() {
            graph.set_references(index, references.iter().map(|&reference| hash(reference)));
        }
        let sizes = (0..references.len()).map(|index| Sizes { paths: 1, nar_size: 1 << index, file_size: 1 });
        (graph, sizes.collect())
    }

    #[test]
    fn closures_are_those_of_tops_and_pins_and_count_each_path_once() {
        // A diamond 0 -> {1, 2} -> 3, a chain 4 -> 3, and 5 -> itself.
        let (graph, sizes) = graph(&[&[1, 2], &[3], &[3], &[], &[3], &[5]]);
        let found = find_largest(&graph, &sizes, &[1]);
        let nar_sizes: Vec<(usize, u64)> =
            found.largest.iter().map(|(index, sizes)| (*index, sizes.nar_size)).collect();
        assert_eq!(nar_sizes, [(5, 32), (4, 24), (0, 15), (1, 10)]);
        assert_eq!((found.examined, found.total), (4, 4));
        let found = find_largest_within(&graph, &sizes, &[1], 1);
        assert_eq!((found.largest.len(), found.examined, found.total), (1, 1, 4));
    }

    #[test]
    fn the_largest_paths_are_those_that_exist() {
        let mut sizes: Vec<Sizes> = (0..20).map(|nar_size| Sizes { paths: 1, nar_size, file_size: 0 }).collect();
        sizes[19] = Sizes::default();
        sizes[3].nar_size = 18;
        let indices: Vec<usize> = largest_paths(&sizes).into_iter().map(|(index, _)| index).collect();
        assert_eq!(indices, [3, 18, 17, 16, 15, 14, 13, 12, 11, 10]);
    }

    #[test]
    fn a_pin_keeps_alone_what_no_other_pin_reaches() {
        // 0 -> 1 -> 2 -> 3, 4 -> 2, 5 alone.
        let (graph, sizes) = graph(&[&[1], &[2], &[3], &[], &[2], &[]]);
        let alone = |pins: &[Vec<usize>]| {
            let pinned = find_pinned(&graph, &sizes, pins);
            let alone: Vec<u64> = pinned.alone.iter().map(|sizes| sizes.nar_size).collect();
            (alone, pinned.unpinned.nar_size)
        };
        assert_eq!(alone(&[vec![0], vec![4]]), (vec![3, 16], 32));
        assert_eq!(alone(&[vec![4], vec![0]]), (vec![16, 3], 32));
        assert_eq!(alone(&[vec![3], vec![0], vec![0, 4]]), (vec![0, 0, 16], 32));
        assert_eq!(alone(&[vec![0, 1, 2]]), (vec![15], 48));
        assert_eq!(alone(&[]), (vec![], 63));
    }

    /// References form no cycle in a cache, but nothing keeps anybody from writing one.
    #[test]
    fn a_cycle_ends() {
        let (graph, sizes) = graph(&[&[1], &[0]]);
        assert_eq!(find_largest(&graph, &sizes, &[0]).largest[0].1.paths, 2);
        assert_eq!(find_pinned(&graph, &sizes, &[vec![0]]).alone[0].paths, 2);
    }
}
