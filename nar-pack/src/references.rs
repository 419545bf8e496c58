//! References between store paths: finding them by scanning for hash parts, and ordering paths by them. Scanning is on the
//! path of every byte of a NAR, so [`Scanner`] skips ahead by a whole hash part where it can. Which paths are candidates
//! is left to [`crate::path_info`].

use std::collections::{BTreeSet, HashMap, HashSet};
use std::io::{self, Write};
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::store_path::{HASH_PART, HashPart, StorePath, is_base32};

/// Finds the hash parts of candidate paths in a stream of bytes, also where they span two writes (Nix's
/// `src/libutil/references.cc`). The NAR is written into it.
#[derive(Debug)]
pub struct Scanner {
    candidates: Arc<Candidates>,
    found: HashSet<HashPart>,
    /// The last bytes of the stream so far, fewer than the length of a hash part.
    tail: Vec<u8>,
}

/// The paths that a [`Scanner`] looks for; built once for many NARs.
#[derive(Debug, Default)]
pub struct Candidates {
    paths: HashMap<HashPart, StorePath>,
    /// For each hash value, whether a candidate has it: a filter before the lookup in `paths`. The length is a power of 2.
    filter: Vec<bool>,
}

/// Minimum length of the filter per candidate: the filter rejects all but one in 8 digit runs that are no candidate.
const FILTER_SLOTS_PER_CANDIDATE: usize = 8;

impl FromIterator<StorePath> for Candidates {
    fn from_iter<T: IntoIterator<Item = StorePath>>(candidates: T) -> Self {
        let mut paths: HashMap<HashPart, StorePath> = HashMap::new();
        for path in candidates {
            // No two store paths share a hash part. Nix appends `.lock` and `.chroot` to the name of a path for files that
            // are no store paths, so the shortest name is the store path.
            let existing = paths.get(&path.hash_part());
            if existing.is_none_or(|existing| path.base_name().len() < existing.base_name().len()) {
                paths.insert(path.hash_part(), path);
            }
        }
        let mut filter = vec![false; (paths.len() * FILTER_SLOTS_PER_CANDIDATE).next_power_of_two()];
        for hash in paths.keys() {
            let slot = filter_slot(hash.as_bytes(), filter.len());
            filter[slot] = true;
        }
        Self { paths, filter }
    }
}

impl Candidates {
    /// Returns the digits as a hash part if they are that of a candidate.
    fn hash_part(&self, digits: &[u8; HASH_PART]) -> Option<HashPart> {
        let may_match = self.filter.get(filter_slot(digits, self.filter.len())).is_some_and(|&is_set| is_set);
        let hash = may_match.then(|| HashPart::parse(digits)).flatten()?;
        self.paths.contains_key(&hash).then_some(hash)
    }
}

/// Returns the index of these digits in a filter of `length` slots, a power of 2.
#[allow(clippy::cast_possible_truncation)] // the mask discards the upper bits
fn filter_slot(digits: &[u8; HASH_PART], length: usize) -> usize {
    // Hash parts are random: multiplicative hashing of the first 8 digits distributes them well.
    let first = digits.first_chunk().map_or(0, |first| u64::from_le_bytes(*first));
    (first.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as usize & length.wrapping_sub(1)
}

/// The value of [`is_base32`] for every byte; 255, which the loop leaves out, is not a digit.
const IS_DIGIT: [bool; 256] = {
    let mut table = [false; 256];
    let mut byte = 0;
    while byte < u8::MAX {
        table[byte as usize] = is_base32(byte);
        byte += 1;
    }
    table
};

impl Scanner {
    /// Creates a scanner for these candidates.
    #[must_use]
    pub fn new(candidates: Arc<Candidates>) -> Self {
        Self { candidates, found: HashSet::new(), tail: Vec::with_capacity(2 * HASH_PART) }
    }

    /// Scans the next bytes of the stream.
    pub fn feed(&mut self, bytes: &[u8]) {
        if self.candidates.paths.is_empty() {
            return;
        }
        // A hash part may span the end of the previous bytes and the beginning of these.
        let overlap = bytes.len().min(HASH_PART - 1);
        let mut boundary = std::mem::take(&mut self.tail);
        boundary.extend_from_slice(&bytes[..overlap]);
        self.scan(&boundary);
        self.scan(bytes);
        if bytes.len() >= HASH_PART - 1 {
            boundary.clear();
            boundary.extend_from_slice(&bytes[bytes.len() - (HASH_PART - 1)..]);
        } else {
            boundary.drain(..boundary.len().saturating_sub(HASH_PART - 1));
        }
        self.tail = boundary;
    }

    /// Returns the candidates that were found, sorted.
    #[must_use]
    pub fn finish(self) -> Vec<StorePath> {
        let sorted: BTreeSet<StorePath> =
            self.found.iter().filter_map(|hash| self.candidates.paths.get(hash)).cloned().collect();
        sorted.into_iter().collect()
    }

    fn scan(&mut self, bytes: &[u8]) {
        let mut start = 0;
        // The bytes from `start` to here are known to be digits and are not checked again.
        let mut digits_end = 0;
        while let Some(window) = bytes[start..].first_chunk::<HASH_PART>() {
            let end = start + HASH_PART;
            // The last byte that is not a digit determines how far the window can move.
            if let Some(last) = bytes[digits_end..end].iter().rposition(|&byte| !IS_DIGIT[usize::from(byte)]) {
                start = digits_end + last + 1;
            } else {
                self.found.extend(self.candidates.hash_part(window));
                start += 1;
            }
            digits_end = end;
        }
    }
}

impl Write for Scanner {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.feed(buf);
        Ok(buf.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Sorts paths topologically, references first, and otherwise keeps the order given. `references` returns the references
/// of a path; references to the path itself and to paths that are not in `paths` are ignored.
///
/// # Errors
/// Refuses a cycle of references, and names a path in it.
pub fn references_first<'a>(
    paths: &'a [StorePath],
    references: impl Fn(&StorePath) -> &'a [StorePath],
) -> Result<Vec<&'a StorePath>> {
    #[derive(Clone, Copy, PartialEq)]
    enum State {
        Unvisited,
        OnStack,
        Done,
    }
    let index: HashMap<&StorePath, usize> = paths.iter().enumerate().map(|(i, path)| (path, i)).collect();
    let mut states = vec![State::Unvisited; paths.len()];
    let mut order = Vec::with_capacity(paths.len());
    // An explicit stack: a chain of references may be longer than recursion on the thread's stack allows.
    let mut stack: Vec<(usize, std::slice::Iter<'_, StorePath>)> = Vec::new();
    for root in 0..paths.len() {
        if states[root] == State::Unvisited {
            states[root] = State::OnStack;
            stack.push((root, references(&paths[root]).iter()));
        }
        while let Some((node, rest)) = stack.last_mut() {
            let node = *node;
            match rest
                .find_map(|reference| index.get(reference).copied().filter(|&i| i != node && states[i] != State::Done))
            {
                Some(next) if states[next] == State::OnStack => {
                    return Err(Error::refused(format!("cycle of references through {}", paths[next])));
                }
                Some(next) => {
                    states[next] = State::OnStack;
                    stack.push((next, references(&paths[next]).iter()));
                }
                None => {
                    states[node] = State::Done;
                    order.push(&paths[node]);
                    stack.pop();
                }
            }
        }
    }
    Ok(order)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(digit: char, name: &str) -> StorePath {
        StorePath::from_base_name(&format!("{}-{name}", digit.to_string().repeat(32))).unwrap()
    }

    #[test]
    fn a_hash_part_is_found_across_writes() {
        let [a, b] = [path('a', "x"), path('b', "y")];
        let text = format!("..{}zz/nix/store/{}-x", "0".repeat(40), a.hash_part());
        for cut in 0..text.len() {
            for second in cut..text.len() {
                let mut scanner = Scanner::new(Arc::new(Candidates::from_iter([a.clone(), b.clone()])));
                scanner.feed(&text.as_bytes()[..cut]);
                scanner.feed(&text.as_bytes()[cut..second]);
                scanner.feed(&text.as_bytes()[second..]);
                assert_eq!(scanner.finish(), std::slice::from_ref(&a), "split at {cut} and {second}");
            }
        }
    }

    #[test]
    fn a_hash_part_within_a_longer_run_of_digits_is_found_and_a_truncated_one_is_not() {
        let a = path('a', "x");
        let mut scanner = Scanner::new(Arc::new(Candidates::from_iter([a.clone()])));
        scanner.feed(format!("{}e", "a".repeat(31)).as_bytes());
        scanner.feed("aaa".as_bytes());
        assert!(scanner.finish().is_empty());
        let mut scanner = Scanner::new(Arc::new(Candidates::from_iter([a.clone()])));
        scanner.feed(format!("123{}456", a.hash_part()).as_bytes());
        assert_eq!(scanner.finish(), [a]);
    }

    #[test]
    fn a_lock_file_is_not_mistaken_for_its_store_path() {
        let object = path('a', "yarn.lock");
        let lock = path('a', "yarn.lock.lock");
        for candidates in [[object.clone(), lock.clone()], [lock, object.clone()]] {
            let mut scanner = Scanner::new(Arc::new(Candidates::from_iter(candidates)));
            scanner.feed("a".repeat(HASH_PART).as_bytes());
            assert_eq!(scanner.finish(), std::slice::from_ref(&object));
        }
    }

    #[test]
    fn references_come_first_and_cycles_are_refused() {
        let [a, b, c] = [path('a', "a"), path('b', "b"), path('c', "c")];
        let paths = [a.clone(), b.clone(), c.clone()];
        let of_a = [a.clone(), c.clone()];
        let of_c = [b.clone(), path('d', "elsewhere")];
        let chain = |p: &StorePath| {
            if *p == a {
                &of_a[..]
            } else if *p == c {
                &of_c[..]
            } else {
                &[]
            }
        };
        assert_eq!(references_first(&paths, chain).unwrap(), [&b, &c, &a]);
        let back = [a.clone()];
        let cycle = |p: &StorePath| if *p == a { &of_a[..] } else { &back[..] };
        assert!(references_first(&paths, cycle).unwrap_err().is_refusal());
    }

    #[test]
    fn a_chain_of_100_000_references_does_not_overflow_the_stack() {
        let name = |i: u32| StorePath::from_base_name(&format!("{}-{i}", "0".repeat(32))).unwrap();
        let paths: Vec<StorePath> = (0..100_000).map(name).collect();
        let index: HashMap<&StorePath, usize> = paths.iter().enumerate().map(|(i, p)| (p, i)).collect();
        let order = references_first(&paths, |p| paths.get(index[p] + 1..index[p] + 2).unwrap_or_default()).unwrap();
        assert_eq!(order[0], paths.last().unwrap());
    }
}
