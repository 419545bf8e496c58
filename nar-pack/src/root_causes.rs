//! Errors of many store paths, grouped by root cause. One bad NAR or missing reference can keep thousands of paths from
//! being pushed or pulled, and is reported once, with the number of paths that depend on it. What a cause is, the tool
//! decides: it names the cause of each path, and this module counts.

use std::collections::HashMap;
use std::hash::Hash;

use crate::error::{Error, Result};

/// The errors of the paths of one run. `S` identifies a path or another object that can be a cause.
#[derive(Debug)]
pub struct RootCauses<S> {
    /// In the order in which they occurred.
    groups: Vec<Group>,
    /// The index of the group of each cause and of each dependent.
    group_of: HashMap<S, usize>,
    count: usize,
    outcome: &'static str,
}

/// A root cause, and the paths that were refused because of it.
#[derive(Debug)]
struct Group {
    error: Error,
    /// Full store paths.
    dependents: Vec<String>,
}

impl<S: Hash + Eq> RootCauses<S> {
    /// Creates an empty collection. `outcome` completes the sentence "N paths depend on it and were not", for example with
    /// `unpacked`.
    #[must_use]
    pub fn new(outcome: &'static str) -> Self {
        Self { groups: Vec::new(), group_of: HashMap::new(), count: 0, outcome }
    }

    /// Returns whether `subject` was refused, or is a cause.
    #[must_use]
    pub fn contains(&self, subject: &S) -> bool {
        self.group_of.contains_key(subject)
    }

    /// Adds the error of a path that has no other cause.
    pub fn add(&mut self, subject: S, error: &Error) {
        self.count += 1;
        self.group(subject, error);
    }

    /// Adds the path `dependent`, called `path` in messages, which is refused because of `cause`, the error of which is
    /// `error`. A dependent may be added before its cause.
    pub fn add_dependent(&mut self, cause: S, error: &Error, dependent: S, path: String) {
        self.count += 1;
        let index = self.group(cause, error);
        self.group_of.insert(dependent, index);
        self.groups[index].dependents.push(path);
    }

    /// Returns the index of the group of `cause`, which is created if there is none.
    fn group(&mut self, cause: S, error: &Error) -> usize {
        *self.group_of.entry(cause).or_insert_with(|| {
            self.groups.push(Group { error: error.clone(), dependents: Vec::new() });
            self.groups.len() - 1
        })
    }

    /// Returns the number of paths and other objects that were refused.
    #[must_use]
    pub fn count(&self) -> usize {
        self.count
    }

    /// Returns one error for each root cause, with the number of paths that depend on it and the first of them.
    pub fn errors(&self) -> impl Iterator<Item = Error> {
        self.groups.iter().map(|group| group.error(self.outcome))
    }

    /// Returns the full store paths of all dependents.
    pub fn dependents(&self) -> impl Iterator<Item = &str> {
        self.groups.iter().flat_map(|group| &group.dependents).map(String::as_str)
    }

    /// Returns the result of the run: the error of the only root cause or, after `print` was called with the error of each,
    /// that of their number. It is a refusal unless an operation failed.
    ///
    /// # Errors
    /// Returns an error unless the collection is empty.
    pub fn to_result(&self, print: impl FnMut(Error)) -> Result {
        match self.groups.as_slice() {
            [] => return Ok(()),
            [group] => return Err(group.error(self.outcome)),
            _ => self.errors().for_each(print),
        }
        let failed = self.groups.iter().filter(|group| !group.error.is_refusal()).count();
        let error = match (failed, self.count - failed) {
            (0, refused) => Error::refused(format!("{refused} paths were refused")),
            (failed, 0) => Error::failed(format!("{failed} paths could not be read")),
            (failed, refused) => Error::failed(format!(
                "{} paths were not {}: {failed} could not be read, {refused} {} refused",
                self.count,
                self.outcome,
                if refused == 1 { "was" } else { "were" }
            )),
        };
        // Only a hint that applies to all of them.
        let hint = self.groups.first().and_then(|group| group.error.hint());
        let is_common = self.groups.iter().all(|group| group.error.hint() == hint);
        Err(hint.filter(|_| is_common).into_iter().fold(error, Error::with_hint))
    }
}

impl Group {
    fn error(&self, outcome: &str) -> Error {
        let message = match self.dependents.as_slice() {
            [] => return self.error.clone(),
            [path] => format!("{}; 1 path depends on it and was not {outcome}: {path}", self.error.message()),
            [first, ..] => format!(
                "{}; {} paths depend on it and were not {outcome}, among them {first}",
                self.error.message(),
                self.dependents.len()
            ),
        };
        let error = if self.error.is_refusal() { Error::refused(message) } else { Error::failed(message) };
        self.error.hint().into_iter().fold(error, Error::with_hint)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the message and the exit status of the result, and the messages that were printed before.
    fn result(causes: &RootCauses<char>) -> (Error, Vec<String>) {
        let mut printed = Vec::new();
        let result = causes.to_result(|error| printed.push(error.message().to_owned()));
        (result.unwrap_err(), printed)
    }

    #[test]
    fn dependents_count_under_their_cause_in_any_order() {
        let bad = Error::refused("/a: bad NAR").with_hint("push it again");
        let mut causes = RootCauses::new("published");
        assert!(causes.to_result(drop).is_ok());
        causes.add_dependent('a', &bad, 'b', "/b".to_owned());
        causes.add('a', &bad);
        // The cause of a dependent is that of the path that it needs.
        causes.add_dependent('b', &bad, 'c', "/c".to_owned());
        assert_eq!((causes.count(), causes.dependents().collect::<Vec<_>>()), (3, vec!["/b", "/c"]));
        let (error, printed) = result(&causes);
        assert_eq!(
            (error.message(), error.hint(), error.exit_status(), printed.len()),
            ("/a: bad NAR; 2 paths depend on it and were not published, among them /b", Some("push it again"), 1, 0)
        );
    }

    #[test]
    fn several_causes_are_printed_and_counted() {
        let mut causes = RootCauses::new("published");
        let (one, two) =
            (Error::refused("/a: one").with_hint("do this"), Error::refused("/b: two").with_hint("do this"));
        causes.add('a', &one);
        causes.add('b', &two);
        causes.add_dependent('b', &two, 'c', "/c".to_owned());
        let (error, printed) = result(&causes);
        assert_eq!((error.message(), error.hint()), ("3 paths were refused", Some("do this")));
        assert_eq!(printed, ["/a: one", "/b: two; 1 path depends on it and was not published: /c"]);
        causes.add('d', &Error::refused("/d: three"));
        assert_eq!(result(&causes).0.hint(), None);
    }

    #[test]
    fn an_operation_that_failed_outranks_refusals() {
        let mut causes = RootCauses::new("unpacked");
        causes.add('a', &Error::failed("timeout"));
        causes.add('b', &Error::refused("bad NAR"));
        causes.add_dependent('a', &Error::failed("timeout"), 'c', "/c".to_owned());
        let (error, _) = result(&causes);
        assert_eq!(
            (error.exit_status(), error.message()),
            (2, "3 paths were not unpacked: 1 could not be read, 2 were refused")
        );
    }
}
