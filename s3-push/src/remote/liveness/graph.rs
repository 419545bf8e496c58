//! The graph of references of a cache, by index into its sorted listing: 4 bytes per reference.

use nar_pack::store_path::HashPart;

/// The paths of a cache and their references.
pub struct Graph {
    /// Sorted.
    hashes: Vec<HashPart>,
    references: Vec<Box<[u32]>>,
    states: Vec<State>,
    /// Live paths whose references have not been marked yet.
    unvisited: Vec<u32>,
}

/// Whether a path is needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Unknown,
    Live,
    /// It is not in the cache any more.
    Removed,
}

/// Why the dead paths have no order.
#[derive(Debug, PartialEq, Eq)]
pub enum GraphError {
    /// A path of a cycle of references.
    Cycle(HashPart),
}

impl Graph {
    /// Creates a graph of these paths, which must be sorted and unique, without references.
    #[must_use]
    pub fn new(hashes: impl Iterator<Item = HashPart>) -> Self {
        let hashes: Vec<HashPart> = hashes.collect();
        let count = hashes.len();
        Self { hashes, references: vec![Box::default(); count], states: vec![State::Unknown; count], unvisited: vec![] }
    }

    /// Returns the number of paths.
    #[must_use]
    pub fn count(&self) -> usize {
        self.hashes.len()
    }

    /// Returns the index of a path, if the graph has it.
    #[must_use]
    pub fn find(&self, hash: HashPart) -> Option<usize> {
        self.hashes.binary_search(&hash).ok()
    }

    /// Returns the references of a path, as indices.
    #[must_use]
    pub fn references(&self, index: usize) -> &[u32] {
        &self.references[index]
    }

    /// Sets the references of a path. Those that are not in the graph are in another cache, and are ignored.
    pub fn set_references(&mut self, index: usize, references: impl Iterator<Item = HashPart>) {
        let found = references.filter_map(|hash| self.hashes.binary_search(&hash).ok());
        let found = found.filter(|&reference| reference != index);
        self.references[index] = found.filter_map(|reference| u32::try_from(reference).ok()).collect();
    }

    /// Removes a path that is not in the cache any more.
    pub fn remove(&mut self, index: usize) {
        self.states[index] = State::Removed;
    }

    /// Marks a path as live.
    pub fn mark_live(&mut self, index: usize) {
        if self.states[index] == State::Unknown {
            self.states[index] = State::Live;
            self.unvisited.extend(u32::try_from(index).ok());
        }
    }

    /// Marks a root as live. Returns whether the cache has it.
    pub fn mark_root(&mut self, hash: HashPart) -> bool {
        match self.hashes.binary_search(&hash) {
            Ok(index) if self.states[index] != State::Removed => {
                self.mark_live(index);
                true
            }
            _ => false,
        }
    }

    /// Marks everything that a live path references as live.
    pub fn propagate(&mut self) {
        while let Some(index) = self.unvisited.pop() {
            for reference in std::mem::take(&mut self.references[index as usize]) {
                self.mark_live(reference as usize);
            }
        }
    }

    /// Returns the dead paths in batches. Each batch contains the paths that no path of a later batch references, so after
    /// any number of batches, and in the middle of one, the cache is closed.
    ///
    /// # Errors
    /// Names a path of a cycle.
    pub fn dead_referrers_first(&self) -> Result<Vec<Vec<usize>>, GraphError> {
        let is_dead = |index: usize| self.states[index] == State::Unknown;
        let dead = || (0..self.count()).filter(|&index| is_dead(index));
        let mut referrers = vec![0_u32; self.count()];
        for reference in dead().flat_map(|index| &self.references[index]) {
            referrers[*reference as usize] += 1;
        }
        let mut batch: Vec<usize> = dead().filter(|&index| referrers[index] == 0).collect();
        let (mut batches, mut ordered) = (Vec::new(), 0);
        while !batch.is_empty() {
            let mut next = Vec::new();
            for reference in batch.iter().flat_map(|&index| &self.references[index]) {
                let reference = *reference as usize;
                referrers[reference] -= 1;
                if referrers[reference] == 0 && is_dead(reference) {
                    next.push(reference);
                }
            }
            ordered += batch.len();
            batches.push(std::mem::replace(&mut batch, next));
        }
        if ordered == dead().count() {
            return Ok(batches);
        }
        let in_cycle = dead().find(|&index| referrers[index] > 0).unwrap_or_default();
        Err(GraphError::Cycle(self.hashes[in_cycle]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hash(digit: usize) -> HashPart {
        let digits = b"0123456789abcdfghijklmnpqrsvwxyz";
        HashPart::parse(&[digits[digit]; 32]).unwrap()
    }

    fn graph(references: &[&[usize]]) -> Graph {
        let mut graph = Graph::new((0..references.len()).map(hash));
        for (index, references) in references.iter().enumerate() {
            graph.set_references(index, references.iter().map(|&reference| hash(reference)));
        }
        graph
    }

    #[test]
    fn what_a_root_references_is_live_and_the_rest_comes_referrers_first() {
        // 0 -> 1 -> 2, a diamond 3 -> {4, 5} -> 6, and 7 -> itself, 2 and a path elsewhere.
        let mut graph = graph(&[&[1], &[2], &[], &[4, 5], &[6], &[6], &[], &[7, 2, 9]]);
        assert!(graph.mark_root(hash(1)) && !graph.mark_root(hash(20)));
        graph.propagate();
        assert_eq!(graph.dead_referrers_first().unwrap(), [vec![0, 3, 7], vec![4, 5], vec![6]]);
    }

    #[test]
    fn a_path_comes_after_the_last_of_its_referrers() {
        let graph = graph(&[&[1, 2, 3], &[2], &[3], &[]]);
        assert_eq!(graph.dead_referrers_first().unwrap(), [[0], [1], [2], [3]]);
    }

    #[test]
    fn a_removed_root_is_missing_and_removed_paths_are_not_dead() {
        let mut graph = graph(&[&[1], &[]]);
        graph.remove(1);
        assert!(!graph.mark_root(hash(1)));
        assert_eq!(graph.dead_referrers_first().unwrap(), [[0]]);
    }

    #[test]
    fn a_cycle_has_no_order() {
        let graph = graph(&[&[1], &[2], &[1]]);
        assert_eq!(graph.dead_referrers_first(), Err(GraphError::Cycle(hash(1))));
    }
}
