//! The errors of paths, counted by their cause. A path that is refused only because a path that it references could not
//! be fetched counts under the error of that path, so one bad NAR under 2,000 paths is one error and not 2,000.

use std::collections::HashMap;

use nar_pack::error::{Error, Result};
use nar_pack::process;
use nar_pack::store_path::{HashPart, StorePath};
use narinfo_gen::narinfo::NarInfo;
use s3_push::remote::progress::Verbosity;

use crate::TOOL;

/// The errors of the paths of one pull.
#[derive(Debug, Default)]
pub struct Refusals {
    /// In the order in which they occurred.
    causes: Vec<Cause>,
    /// The index of the cause of each path that was not fetched.
    cause_of: HashMap<HashPart, usize>,
    /// Paths in all causes.
    count: usize,
}

/// An error of a path, and the paths that were refused because of it.
#[derive(Debug)]
struct Cause {
    error: Error,
    /// Full store paths.
    dependents: Vec<String>,
}

impl Refusals {
    /// Records that the path with this hash part was refused or could not be read.
    pub fn add(&mut self, hash: HashPart, error: Error) {
        self.count += 1;
        self.cause_of.insert(hash, self.causes.len());
        self.causes.push(Cause { error, dependents: Vec::new() });
    }

    /// Records that the path of `narinfo` was refused because `reference` was not fetched, and returns its error. A
    /// reference that was never looked up is not in the cache, and is recorded as such.
    pub fn add_dependent(&mut self, narinfo: &NarInfo, reference: &StorePath) -> Error {
        self.add_missing_reference(narinfo, reference);
        let path = narinfo.full_path();
        let error = Error::refused(format!("{path}: references {reference}, which was not fetched"));
        if let Some(cause) = self.cause_of.get(&reference.hash_part()).copied() {
            self.count += 1;
            self.cause_of.insert(narinfo.path.hash_part(), cause);
            self.causes[cause].dependents.push(path);
        }
        error
    }

    /// Records that a reference of `narinfo` is not in the cache, unless it was refused before. Returns the error if it
    /// is new.
    pub fn add_missing_reference(&mut self, narinfo: &NarInfo, reference: &StorePath) -> Option<Error> {
        if self.cause_of.contains_key(&reference.hash_part()) {
            return None;
        }
        let error = Error::refused(format!("{}: not found in the cache", narinfo.store_dir.join(reference)));
        self.add(reference.hash_part(), error.clone());
        Some(error)
    }

    /// Returns the number of paths that were not fetched.
    #[must_use]
    pub fn count(&self) -> usize {
        self.count
    }

    /// Prints the errors, for a pull that was aborted by another error. `done` completes the sentence "N paths depend
    /// on it and were not", for example with `unpacked`.
    pub fn print(&self, verbosity: Verbosity, done: &str) {
        for cause in &self.causes {
            process::print_message(TOOL, cause.error(done).message());
            cause.print_dependents(verbosity);
        }
    }

    /// Returns the only error, or prints several errors and returns their number. `done` is as for [`Refusals::print`].
    ///
    /// # Errors
    /// Returns an error unless there are no refusals. It is a refusal unless an operation failed.
    pub fn into_result(self, verbosity: Verbosity, done: &str) -> Result {
        match self.causes.as_slice() {
            [] => return Ok(()),
            [cause] => {
                cause.print_dependents(verbosity);
                return Err(cause.error(done));
            }
            _ => self.print(verbosity, done),
        }
        let failed = self.causes.iter().filter(|cause| !cause.error.is_refusal()).count();
        let error = match (failed, self.count - failed) {
            (0, refused) => Error::refused(format!("{refused} paths were refused")),
            (failed, 0) => Error::failed(format!("{failed} paths could not be read")),
            (failed, refused) => Error::failed(format!(
                "{} paths were not {done}: {failed} could not be read, {refused} were refused",
                self.count
            )),
        };
        // Only a hint that applies to all of them.
        let hint = self.causes.first().and_then(|cause| cause.error.hint());
        let is_common = self.causes.iter().all(|cause| cause.error.hint() == hint);
        Err(hint.filter(|_| is_common).into_iter().fold(error, Error::with_hint))
    }
}

impl Cause {
    /// Returns the error with the number of dependent paths and the first of them.
    fn error(&self, done: &str) -> Error {
        let message = match self.dependents.as_slice() {
            [] => return self.error.clone(),
            [path] => format!("{}; 1 path depends on it and was not {done}: {path}", self.error.message()),
            [first, ..] => format!(
                "{}; {} paths depend on it and were not {done}, among them {first}",
                self.error.message(),
                self.dependents.len()
            ),
        };
        let error = if self.error.is_refusal() { Error::refused(message) } else { Error::failed(message) };
        self.error.hint().into_iter().fold(error, Error::with_hint)
    }

    fn print_dependents(&self, verbosity: Verbosity) {
        if verbosity == Verbosity::Verbose {
            for path in &self.dependents {
                process::print_message(
                    TOOL,
                    format!("{path}: refused, because a path that it depends on was not fetched"),
                );
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use nar_pack::store_path::StoreDir;

    use super::*;

    fn path(digit: char) -> StorePath {
        StorePath::from_base_name(&format!("{}-x", digit.to_string().repeat(32))).unwrap()
    }

    fn narinfo(digit: char) -> NarInfo {
        let text = format!(
            "StorePath: /nix/store/{}\nURL: nar/x\nCompression: none\nNarHash: sha256:{}\nNarSize: 1\nReferences: \n",
            path(digit),
            "0".repeat(52)
        );
        NarInfo::parse(&text, &StoreDir::new("/nix/store").unwrap()).unwrap()
    }

    #[test]
    fn dependents_count_under_the_error_of_the_path_that_they_need() {
        let mut refusals = Refusals::default();
        refusals.add(path('1').hash_part(), Error::refused("1-x: bad NAR").with_hint("push it again"));
        refusals.add_dependent(&narinfo('2'), &path('1'));
        let error = refusals.add_dependent(&narinfo('3'), &path('2'));
        assert!(error.message().ends_with("-x, which was not fetched"), "{error}");
        assert_eq!(refusals.count(), 3);
        let error = refusals.into_result(Verbosity::Quiet, "unpacked").unwrap_err();
        assert_eq!(
            error.message(),
            format!("1-x: bad NAR; 2 paths depend on it and were not unpacked, among them /nix/store/{}", path('2'))
        );
        assert_eq!((error.exit_code(), error.hint()), (1, Some("push it again")));
    }

    #[test]
    fn an_operation_that_failed_outranks_refusals() {
        let mut refusals = Refusals::default();
        refusals.add(path('1').hash_part(), Error::failed("timeout"));
        refusals.add(path('2').hash_part(), Error::refused("bad NAR"));
        refusals.add_dependent(&narinfo('3'), &path('1'));
        let error = refusals.into_result(Verbosity::Quiet, "unpacked").unwrap_err();
        assert_eq!(
            (error.exit_code(), error.message()),
            (2, "3 paths were not unpacked: 1 could not be read, 2 were refused")
        );
    }

    #[test]
    fn a_reference_that_was_not_looked_up_is_missing_and_counts_once() {
        let mut refusals = Refusals::default();
        refusals.add_dependent(&narinfo('2'), &path('1'));
        refusals.add_dependent(&narinfo('3'), &path('1'));
        assert_eq!(refusals.count(), 3);
        let error = refusals.into_result(Verbosity::Quiet, "written").unwrap_err();
        let missing =
            format!("/nix/store/{}: not found in the cache; 2 paths depend on it and were not written", path('1'));
        assert_eq!(error.message(), format!("{missing}, among them /nix/store/{}", path('2')));
    }
}
