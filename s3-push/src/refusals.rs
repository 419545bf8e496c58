//! Refusals, grouped by root cause: a refused NAR or a missing reference can keep thousands of paths from being
//! published, and is reported once, with the number of paths that depend on it.

use std::collections::HashMap;
use std::sync::Arc;

use nar_pack::error::Error;

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

/// The refusals of a push.
#[derive(Debug, Default)]
pub struct Refusals {
    groups: Vec<Group>,
    /// The index in `groups` by subject.
    by_subject: HashMap<String, usize>,
    count: usize,
}

/// The refusals of one root cause.
#[derive(Debug)]
struct Group {
    root_cause: Arc<RootCause>,
    /// Number of refused paths other than that of the root cause.
    dependents: usize,
}

impl Refusals {
    /// Adds the refusal of a path or object. Dependents of a root cause may be added before it.
    pub fn add(&mut self, path: &str, error: &PathError) {
        self.count += 1;
        let root_cause = error.root_cause(path);
        let index = *self.by_subject.entry(root_cause.subject.clone()).or_insert_with(|| {
            self.groups.push(Group { root_cause, dependents: 0 });
            self.groups.len() - 1
        });
        let group = &mut self.groups[index];
        if group.root_cause.path != path {
            group.dependents += 1;
        }
    }

    /// Returns the number of refused paths and objects.
    #[must_use]
    pub fn count(&self) -> usize {
        self.count
    }

    /// Returns one error for each root cause, with the number of paths that depend on it.
    pub fn root_causes(&self) -> impl Iterator<Item = Error> {
        self.groups.iter().map(Group::to_error)
    }

    /// Returns the error of the push, if anything was refused: that of the root cause if there is one, else their number.
    /// In the second case the caller prints the root causes.
    #[must_use]
    pub fn to_error(&self) -> Option<Error> {
        match self.groups.as_slice() {
            [] => None,
            [group] => Some(group.to_error()),
            groups => {
                let error = Error::refused(format!("{} paths were refused", self.count));
                // Only a hint that applies to all of them.
                let hint = groups.first().and_then(|group| group.root_cause.error.hint());
                let is_common = groups.iter().all(|group| group.root_cause.error.hint() == hint);
                Some(hint.filter(|_| is_common).into_iter().fold(error, Error::with_hint))
            }
        }
    }
}

impl Group {
    fn to_error(&self) -> Error {
        let RootCause { error, .. } = &*self.root_cause;
        let dependents = match self.dependents {
            0 => return error.clone(),
            1 => "1 path depends on it and was not published".to_owned(),
            count => format!("{count} paths depend on it and were not published"),
        };
        let refusal = Error::refused(format!("{}; {dependents}", error.message()));
        match error.hint() {
            Some(hint) => refusal.with_hint(hint),
            None => refusal,
        }
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
        let expected = ["/a: nar/x: wrong hash; 2 paths depend on it and were not published"];
        assert_eq!(messages(&[("/a", &bad), ("/b", &second), ("/c", &third)]), expected);
        assert_eq!(messages(&[("/c", &third), ("/b", &second), ("/a", &bad)]), expected);
        // Another path with the same NAR.
        assert_eq!(
            messages(&[("/a", &bad), ("/d", &bad)]),
            ["/a: nar/x: wrong hash; 1 path depends on it and was not published"]
        );
    }

    #[test]
    fn each_root_cause_is_reported_once() {
        let (one, two) = (PathError::from(Error::refused("one")), PathError::from(Error::refused("two")));
        let third = PathError::depends_on("/b", two.root_cause("/b"));
        assert_eq!(
            messages(&[("/a", &one), ("/b", &two), ("/c", &third)]),
            ["/a: one", "/b: two; 1 path depends on it and was not published"]
        );
    }

    #[test]
    fn the_error_of_a_push_keeps_a_hint() {
        let error = PathError::from(Error::refused("one").with_hint("do this"));
        let mut refusals = Refusals::default();
        assert!(refusals.to_error().is_none());
        refusals.add("/a", &error);
        refusals.add("/b", &PathError::depends_on("/a", error.root_cause("/a")));
        assert_eq!(refusals.to_error().unwrap().hint(), Some("do this"));
        refusals.add("/c", &error);
        let several = refusals.to_error().unwrap();
        assert_eq!((several.message(), several.hint()), ("3 paths were refused", Some("do this")));
    }

    #[test]
    fn a_failed_operation_stays_one_for_its_dependents() {
        let failed = PathError::from(Error::failed("HTTP 500"));
        let dependent = PathError::depends_on("/a", failed.root_cause("/a"));
        assert!(!dependent.error().is_refusal());
    }
}
