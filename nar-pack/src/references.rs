//! Finding references: by scanning for hash parts, and ordering paths so that references come first.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::io::{self, Write};
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::store_path::{HASH_PART, HashPart, StorePath, is_base32};

/// Finds the hash parts of candidate paths in a stream of bytes, however it is cut into pieces (Nix's
/// `src/libutil/references.cc`). Write the NAR into it.
#[derive(Debug)]
pub struct Scanner {
    candidates: Arc<Candidates>,
    found: HashSet<HashPart>,
    /// The last bytes seen, fewer than a hash part has.
    tail: Vec<u8>,
}

/// The paths that scanners look for; made once for many NARs.
#[derive(Debug, Default)]
pub struct Candidates {
    paths: HashMap<HashPart, StorePath>,
    /// Whether a hash part of that slot is among them, so that few runs of digits need be looked up; 2^n slots.
    slots: Vec<bool>,
}

/// Slots for each candidate, at least: one of so many runs of digits that are none is looked up.
const SLOTS_EACH: usize = 8;

impl FromIterator<StorePath> for Candidates {
    fn from_iter<T: IntoIterator<Item = StorePath>>(candidates: T) -> Self {
        let mut paths: HashMap<HashPart, StorePath> = HashMap::new();
        for path in candidates {
            // Nix puts `.lock` and `.chroot` after the name of a path for what is not one, and no two paths share their
            // hash parts.
            let other = paths.get(&path.hash_part());
            if other.is_none_or(|other| path.base_name().len() < other.base_name().len()) {
                paths.insert(path.hash_part(), path);
            }
        }
        let mut slots = vec![false; (paths.len() * SLOTS_EACH).next_power_of_two()];
        for hash in paths.keys() {
            let slot = slot(hash.as_bytes(), slots.len());
            slots[slot] = true;
        }
        Self { paths, slots }
    }
}

impl Candidates {
    /// The hash part of a candidate, if the digits are one.
    fn hash_part(&self, digits: &[u8; HASH_PART]) -> Option<HashPart> {
        let may_be = self.slots.get(slot(digits, self.slots.len())).is_some_and(|&taken| taken);
        let hash = may_be.then(|| HashPart::parse(digits)).flatten()?;
        self.paths.contains_key(&hash).then_some(hash)
    }
}

/// Where in a table of `count` slots, 2^n, these digits are.
#[allow(clippy::cast_possible_truncation)] // the bits above do not count
fn slot(digits: &[u8; HASH_PART], count: usize) -> usize {
    // Hash parts are as good as random: the first digits, mixed, tell most of them apart.
    let first = digits.first_chunk().map_or(0, |first| u64::from_le_bytes(*first));
    (first.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as usize & count.wrapping_sub(1)
}

/// [`is_base32`] for every byte (the last one is none).
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
    /// A scanner that looks for these paths.
    #[must_use]
    pub fn new(candidates: Arc<Candidates>) -> Self {
        Self { candidates, found: HashSet::new(), tail: Vec::with_capacity(2 * HASH_PART) }
    }

    /// Looks at the next bytes of the stream.
    pub fn feed(&mut self, bytes: &[u8]) {
        if self.candidates.paths.is_empty() {
            return;
        }
        let joint = bytes.len().min(HASH_PART - 1);
        let mut seam = std::mem::take(&mut self.tail);
        seam.extend_from_slice(&bytes[..joint]);
        self.scan(&seam);
        self.scan(bytes);
        if bytes.len() >= HASH_PART - 1 {
            seam.clear();
            seam.extend_from_slice(&bytes[bytes.len() - (HASH_PART - 1)..]);
        } else {
            seam.drain(..seam.len().saturating_sub(HASH_PART - 1));
        }
        self.tail = seam;
    }

    /// The candidates that were found, sorted.
    #[must_use]
    pub fn finish(self) -> Vec<StorePath> {
        let sorted: BTreeSet<StorePath> =
            self.found.iter().filter_map(|hash| self.candidates.paths.get(hash)).cloned().collect();
        sorted.into_iter().collect()
    }

    fn scan(&mut self, bytes: &[u8]) {
        let mut start = 0;
        // Up to where the bytes from `start` on are known to be digits: none is looked at twice.
        let mut digits_to = 0;
        while let Some(window) = bytes[start..].first_chunk::<HASH_PART>() {
            let end = start + HASH_PART;
            // From the end: the last byte that is no digit tells how far the window may move.
            if let Some(last) = bytes[digits_to..end].iter().rposition(|&byte| !IS_DIGIT[usize::from(byte)]) {
                start = digits_to + last + 1;
            } else {
                self.found.extend(self.candidates.hash_part(window));
                start += 1;
            }
            digits_to = end;
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

/// Orders paths so that each comes after those of the others that it references; otherwise in the order given.
///
/// `references` says what a path refers to; what is not among `paths` does not count, nor do references to itself.
///
/// # Errors
/// Refuses references in a cycle, and names a path in it.
pub fn references_first<'a>(
    paths: &'a [StorePath],
    references: impl Fn(&StorePath) -> &'a [StorePath],
) -> Result<Vec<&'a StorePath>> {
    #[derive(Clone, Copy, PartialEq)]
    enum Mark {
        New,
        Open,
        Done,
    }
    let index: HashMap<&StorePath, usize> = paths.iter().enumerate().map(|(i, path)| (path, i)).collect();
    let mut marks = vec![Mark::New; paths.len()];
    let mut order = Vec::with_capacity(paths.len());
    // A stack of its own: a chain of references may be deeper than the thread's stack.
    let mut stack: Vec<(usize, std::slice::Iter<'_, StorePath>)> = Vec::new();
    for root in 0..paths.len() {
        if marks[root] == Mark::New {
            marks[root] = Mark::Open;
            stack.push((root, references(&paths[root]).iter()));
        }
        while let Some((node, rest)) = stack.last_mut() {
            let node = *node;
            match rest
                .find_map(|reference| index.get(reference).copied().filter(|&i| i != node && marks[i] != Mark::Done))
            {
                Some(next) if marks[next] == Mark::Open => {
                    return Err(Error::refused(format!("the references of {} lead back to it", paths[next])));
                }
                Some(next) => {
                    marks[next] = Mark::Open;
                    stack.push((next, references(&paths[next]).iter()));
                }
                None => {
                    marks[node] = Mark::Done;
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
    fn a_hash_is_found_wherever_the_stream_is_cut() {
        let [a, b] = [path('a', "x"), path('b', "y")];
        let text = format!("..{}zz/nix/store/{}-x", "0".repeat(40), a.hash_part());
        for cut in 0..text.len() {
            for second in cut..text.len() {
                let mut scanner = Scanner::new(Arc::new(Candidates::from_iter([a.clone(), b.clone()])));
                scanner.feed(&text.as_bytes()[..cut]);
                scanner.feed(&text.as_bytes()[cut..second]);
                scanner.feed(&text.as_bytes()[second..]);
                assert_eq!(scanner.finish(), std::slice::from_ref(&a), "cut at {cut} and {second}");
            }
        }
    }

    #[test]
    fn a_hash_within_a_longer_run_of_digits_is_found_and_a_shorter_one_is_not() {
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
    fn what_lies_beside_a_path_under_its_hash_part_is_not_taken_for_it() {
        let object = path('a', "yarn.lock");
        let beside = path('a', "yarn.lock.lock");
        for candidates in [[object.clone(), beside.clone()], [beside, object.clone()]] {
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
    fn a_chain_of_a_hundred_thousand_references_needs_no_stack() {
        let name = |i: u32| StorePath::from_base_name(&format!("{}-{i}", "0".repeat(32))).unwrap();
        let paths: Vec<StorePath> = (0..100_000).map(name).collect();
        let index: HashMap<&StorePath, usize> = paths.iter().enumerate().map(|(i, p)| (p, i)).collect();
        let order = references_first(&paths, |p| paths.get(index[p] + 1..index[p] + 2).unwrap_or_default()).unwrap();
        assert_eq!(order[0], paths.last().unwrap());
    }
}
