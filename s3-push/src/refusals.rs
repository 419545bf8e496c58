//! Why paths were not published: an error of the path itself, of a NAR that it shares with others, or of a path that it
//! references. [`RootCauses`] counts them by their root cause.

use std::collections::HashMap;
use std::sync::Arc;

use nar_pack::error::{Error, Result};
use nar_pack::root_causes::RootCauses;

/// Why a path was not published.
#[derive(Debug, Clone)]
pub struct PathError {
    error: Error,
    cause: Cause,
}

#[derive(Debug, Clone)]
enum Cause {
    /// The path itself.
    Path,
    /// A NAR or a missing reference, which several paths can have in common.
    Shared(String),
    /// A reference that was not published.
    Reference(Arc<RootCause>),
}

/// The first cause in a chain of refused paths.
#[derive(Debug)]
pub struct RootCause {
    /// The path, or the key of the NAR, that was refused or is missing.
    subject: String,
    /// The path whose refusal `error` describes.
    path: String,
    error: Error,
}

impl From<Error> for PathError {
    /// An error of the path itself.
    fn from(error: Error) -> Self {
        Self { error, cause: Cause::Path }
    }
}

impl PathError {
    /// Creates an error whose cause is `subject`, which other paths can have in common with this one.
    #[must_use]
    pub fn shared(subject: &str, error: Error) -> Self {
        Self { error, cause: Cause::Shared(subject.to_owned()) }
    }

    /// Creates the error of a path that references `reference`, which was not published because of `root_cause`.
    #[must_use]
    pub fn depends_on(reference: &str, root_cause: Arc<RootCause>) -> Self {
        // A failed operation ends the push, so it keeps its own message.
        let error = if root_cause.error.is_refusal() {
            Error::refused(format!("it references {reference}, which was not published"))
        } else {
            root_cause.error.clone()
        };
        Self { error, cause: Cause::Reference(root_cause) }
    }

    /// Returns the error of this path.
    #[must_use]
    pub fn error(&self) -> &Error {
        &self.error
    }

    /// Returns the path or NAR, other than `path`, that caused this error.
    #[must_use]
    pub fn other_subject(&self, path: &str) -> Option<&str> {
        let subject = match &self.cause {
            Cause::Path => return None,
            Cause::Shared(subject) => subject,
            Cause::Reference(root_cause) => &root_cause.subject,
        };
        (subject != path).then_some(subject.as_str())
    }

    /// Returns the root cause of this error, which is the error of `path`.
    #[must_use]
    pub fn root_cause(&self, path: &str) -> Arc<RootCause> {
        let subject = match &self.cause {
            Cause::Path => path,
            Cause::Shared(subject) => subject,
            Cause::Reference(root_cause) => return Arc::clone(root_cause),
        };
        let error = with_subject(path, self.error.clone());
        Arc::new(RootCause { subject: subject.to_owned(), path: path.to_owned(), error })
    }
}

/// Adds the path or key to an error that does not mention it.
fn with_subject(subject: &str, error: Error) -> Error {
    if error.message().contains(subject) { error } else { error.context(subject) }
}

/// The refusals of a push. A cause is a store path or the key of a NAR.
#[derive(Debug)]
pub struct Refusals {
    causes: RootCauses<String>,
    /// The path whose refusal describes each cause. Others that share it, such as a NAR, are its dependents.
    described_by: HashMap<String, String>,
}

impl Default for Refusals {
    fn default() -> Self {
        Self { causes: RootCauses::new("published"), described_by: HashMap::new() }
    }
}

impl Refusals {
    /// Adds the refusal of a path or object. Dependents of a root cause may be added before it.
    pub fn add(&mut self, path: &str, error: &PathError) {
        let RootCause { subject, path: cause, error } = &*error.root_cause(path);
        let first = self.described_by.entry(subject.clone()).or_insert_with(|| cause.clone());
        if first == path {
            self.causes.add(subject.clone(), error);
        } else {
            self.causes.add_dependent(subject.clone(), error, path.to_owned(), path.to_owned());
        }
    }

    /// Returns the number of refused paths and objects.
    #[must_use]
    pub fn count(&self) -> usize {
        self.causes.count()
    }

    /// Returns one error for each root cause, with the number of paths that depend on it.
    pub fn root_causes(&self) -> impl Iterator<Item = Error> {
        self.causes.errors()
    }

    /// Returns the result of the push; see [`RootCauses::to_result`].
    ///
    /// # Errors
    /// Returns the refusals, if there are any.
    pub fn to_result(&self, print: impl FnMut(Error)) -> Result {
        self.causes.to_result(print)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The messages of all root causes after adding `errors` in order.
    fn messages(errors: &[(&str, &PathError)]) -> Vec<String> {
        let mut refusals = Refusals::default();
        for (path, error) in errors {
            refusals.add(path, error);
        }
        assert_eq!(refusals.count(), errors.len());
        refusals.root_causes().map(|error| error.message().to_owned()).collect()
    }

    #[test]
    fn dependents_are_counted_in_any_order() {
        let bad = PathError::shared("nar/x", Error::refused("nar/x: wrong hash"));
        let second = PathError::depends_on("/a", bad.root_cause("/a"));
        let third = PathError::depends_on("/b", second.root_cause("/b"));
        let expected =
            |first| [format!("/a: nar/x: wrong hash; 2 paths depend on it and were not published, among them {first}")];
        assert_eq!(messages(&[("/a", &bad), ("/b", &second), ("/c", &third)]), expected("/b"));
        assert_eq!(messages(&[("/c", &third), ("/b", &second), ("/a", &bad)]), expected("/c"));
        // Another path with the same NAR.
        assert_eq!(
            messages(&[("/a", &bad), ("/d", &bad)]),
            ["/a: nar/x: wrong hash; 1 path depends on it and was not published: /d"]
        );
    }

    #[test]
    fn a_failed_operation_stays_one_for_its_dependents() {
        let failed = PathError::from(Error::failed("HTTP 500"));
        let dependent = PathError::depends_on("/a", failed.root_cause("/a"));
        assert!(!dependent.error().is_refusal());
    }
}
