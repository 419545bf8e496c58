//! The errors of paths, counted by their root cause ([`RootCauses`]). A path that is refused only because a path that it
//! references could not be fetched counts under the error of that path, so one bad NAR under 2,000 paths is one error and
//! not 2,000.

use nar_pack::error::{Error, Result};
use nar_pack::process;
use nar_pack::root_causes::RootCauses;
use nar_pack::store_path::{HashPart, StorePath};
use narinfo_gen::narinfo::NarInfo;
use s3_push::remote::progress::Verbosity;

use crate::TOOL;

/// The errors of the paths of one pull.
#[derive(Debug)]
pub struct Refusals {
    causes: RootCauses<HashPart>,
}

impl Refusals {
    /// Creates an empty collection. `outcome` is what paths that are not refused are, for example `unpacked`.
    #[must_use]
    pub fn new(outcome: &'static str) -> Self {
        Self { causes: RootCauses::new(outcome) }
    }

    /// Records that the path with this hash part was refused or could not be read.
    pub fn add(&mut self, hash: HashPart, error: &Error) {
        self.causes.add(hash, error);
    }

    /// Records that the path of `narinfo` was refused because `reference` was not fetched, and returns its error. A
    /// reference that was never looked up is not in the cache, and is recorded as such.
    pub fn add_dependent(&mut self, narinfo: &NarInfo, reference: &StorePath) -> Error {
        self.add_missing_reference(narinfo, reference);
        let path = narinfo.full_path();
        let error = Error::refused(format!("{path}: references {reference}, which was not fetched"));
        self.causes.add_dependent(reference.hash_part(), &error, narinfo.path.hash_part(), path);
        error
    }

    /// Records that a reference of `narinfo` is not in the cache, unless it was refused before. Returns the error if it
    /// is new.
    pub fn add_missing_reference(&mut self, narinfo: &NarInfo, reference: &StorePath) -> Option<Error> {
        if self.causes.contains(&reference.hash_part()) {
            return None;
        }
        let error = Error::refused(format!("{}: not found in the cache", narinfo.store_dir.join(reference)));
        self.add(reference.hash_part(), &error);
        Some(error)
    }

    /// Returns the number of paths that were not fetched.
    #[must_use]
    pub fn count(&self) -> usize {
        self.causes.count()
    }

    /// Prints the errors, for a pull that was aborted by another error.
    pub fn print(&self, verbosity: Verbosity) {
        self.causes.errors().for_each(|error| process::print_message(TOOL, error.message()));
        self.print_dependents(verbosity);
    }

    /// Returns the only error, or prints several errors and returns their number.
    ///
    /// # Errors
    /// Returns an error unless there are no refusals. It is a refusal unless an operation failed.
    pub fn into_result(self, verbosity: Verbosity) -> Result {
        let result = self.causes.to_result(|error| process::print_message(TOOL, error.message()));
        self.print_dependents(verbosity);
        result
    }

    fn print_dependents(&self, verbosity: Verbosity) {
        if verbosity == Verbosity::Verbose {
            for path in self.causes.dependents() {
                let message = format!("{path}: refused, because a path that it depends on was not fetched");
                process::print_message(TOOL, message);
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
        let mut refusals = Refusals::new("unpacked");
        refusals.add(path('1').hash_part(), &Error::refused("1-x: bad NAR").with_hint("push it again"));
        refusals.add_dependent(&narinfo('2'), &path('1'));
        let error = refusals.add_dependent(&narinfo('3'), &path('2'));
        assert!(error.message().ends_with("-x, which was not fetched"), "{error}");
        assert_eq!(refusals.count(), 3);
        let error = refusals.into_result(Verbosity::Quiet).unwrap_err();
        assert_eq!(
            error.message(),
            format!("1-x: bad NAR; 2 paths depend on it and were not unpacked, among them /nix/store/{}", path('2'))
        );
        assert_eq!((error.exit_status(), error.hint()), (1, Some("push it again")));
    }

    #[test]
    fn a_reference_that_was_not_looked_up_is_missing_and_counts_once() {
        let mut refusals = Refusals::new("written");
        refusals.add_dependent(&narinfo('2'), &path('1'));
        refusals.add_dependent(&narinfo('3'), &path('1'));
        assert_eq!(refusals.count(), 3);
        let error = refusals.into_result(Verbosity::Quiet).unwrap_err();
        let missing =
            format!("/nix/store/{}: not found in the cache; 2 paths depend on it and were not written", path('1'));
        assert_eq!(error.message(), format!("{missing}, among them /nix/store/{}", path('2')));
    }
}
