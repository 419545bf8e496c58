//! The error type of every tool: a message of one line, an optional hint, and an exit status. An error carries its exit
//! status from where it is created, so that the caller never has to classify it: 1 if data was refused or is missing,
//! 2 if an operation failed or for a usage error, 141 if the reader closed standard output. [`crate::process`] prints
//! errors.

use std::fmt::Display;
use std::io;

use crate::redact::one_line;

/// The reason why a tool or one of its steps failed: a message, an optional hint, and an exit status.
#[derive(Debug, Clone)]
pub struct Error {
    kind: Kind,
    message: String,
    hint: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Refused,
    Failed,
    Usage,
    BrokenPipe,
}

/// The result of a tool or of one of its steps.
pub type Result<T = (), E = Error> = std::result::Result<T, E>;

impl Error {
    /// Returns the error for data that is refused or missing: exit status 1.
    pub fn refused(message: impl Display) -> Self {
        Self::new(Kind::Refused, message)
    }

    /// Returns the error for an operation that failed: exit status 2.
    pub fn failed(message: impl Display) -> Self {
        Self::new(Kind::Failed, message)
    }

    /// Returns the error for a wrong command line or environment variable: exit status 2. An error without a hint is
    /// printed with one that names `--help`.
    pub fn usage(message: impl Display) -> Self {
        Self::new(Kind::Usage, message)
    }

    /// Returns the error for a standard output that its reader has closed: exit status 141. It is not printed.
    pub(crate) fn broken_pipe() -> Self {
        Self::new(Kind::BrokenPipe, "the reader of standard output closed the pipe")
    }

    /// Returns the error for a thread or a task that panicked, such as `verification task`: exit status 2.
    #[must_use]
    pub fn panicked(task: &str) -> Self {
        Self::failed(format!("internal error: {task} panicked"))
    }

    /// Returns the error of work that ends early because other work has failed or was interrupted: exit status 2. The
    /// reason of that is reported instead.
    #[must_use]
    pub fn canceled() -> Self {
        Self::failed("canceled")
    }

    /// Returns the usage error for an option that would be ignored with `selected`. `allowed` is what it can be used with.
    #[must_use]
    pub fn inapplicable(option: &str, selected: &str, allowed: &str) -> Self {
        Self::usage(format!("{option} cannot be used with {selected}"))
            .with_hint(format!("use {option} only with {allowed}"))
    }

    fn new(kind: Kind, message: impl Display) -> Self {
        Self { kind, message: message.to_string(), hint: None }
    }

    /// Prepends `context` to the message: the path or key concerned, or the operation.
    #[must_use]
    pub fn context(mut self, context: impl Display) -> Self {
        self.message = format!("{context}: {}", self.message);
        self
    }

    /// Adds a hint: what the user can do next, printed on a second line. An error has at most one hint; the first one
    /// is kept.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Display) -> Self {
        self.hint.get_or_insert_with(|| hint.to_string());
        self
    }

    /// Returns whether data was refused or is missing.
    #[must_use]
    pub fn is_refusal(&self) -> bool {
        self.kind == Kind::Refused
    }

    /// Returns whether the command line or an environment variable is wrong.
    #[must_use]
    pub fn is_usage(&self) -> bool {
        self.kind == Kind::Usage
    }

    /// Returns whether the reader closed standard output.
    #[must_use]
    pub fn is_broken_pipe(&self) -> bool {
        self.kind == Kind::BrokenPipe
    }

    /// Returns the name of its kind in JSON.
    pub(crate) fn kind_name(&self) -> &'static str {
        match self.kind {
            Kind::Refused => "refused",
            Kind::Failed => "failed",
            Kind::Usage => "usage",
            Kind::BrokenPipe => "broken-pipe",
        }
    }

    /// Returns the exit status of the process.
    #[must_use]
    pub fn exit_status(&self) -> u8 {
        match self.kind {
            Kind::Refused => 1,
            Kind::Failed | Kind::Usage => 2,
            Kind::BrokenPipe => 141,
        }
    }

    /// Returns the message, without the name of the tool and without the hint.
    #[must_use]
    pub fn message(&self) -> &str {
        &self.message
    }

    /// Returns the hint, if there is one.
    #[must_use]
    pub fn hint(&self) -> Option<&str> {
        self.hint.as_deref()
    }
}

/// Formats the message on one line, with control characters and secret keys replaced; without the hint.
impl Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&one_line(&self.message))
    }
}

impl std::error::Error for Error {}

/// Treats malformed and truncated data as refused and any other I/O error as a failed operation. An [`Error`] that was
/// wrapped in an `io::Error` to pass through a library's `Read` or `Write` is unwrapped.
impl From<io::Error> for Error {
    fn from(error: io::Error) -> Self {
        if let Some(inner) = error.get_ref().and_then(|inner| inner.downcast_ref::<Self>()) {
            return inner.clone();
        }
        match error.kind() {
            io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof => Self::refused(error),
            _ => Self::failed(error),
        }
    }
}

impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        Self::other(error)
    }
}

/// Adds context to the error of a `Result`.
pub trait Context<T> {
    /// Adds context as [`Error::context`] does; the text is computed only when there is an error.
    ///
    /// # Errors
    /// Returns the error of `self` with the context.
    fn context<D: Display>(self, context: impl FnOnce() -> D) -> Result<T>;

    /// Adds a hint as [`Error::with_hint`] does; the text is computed only when there is an error.
    ///
    /// # Errors
    /// Returns the error of `self` with the hint.
    fn with_hint<D: Display>(self, hint: impl FnOnce() -> D) -> Result<T>;
}

impl<T, E: Into<Error>> Context<T> for Result<T, E> {
    fn context<D: Display>(self, context: impl FnOnce() -> D) -> Result<T> {
        self.map_err(|error| error.into().context(context()))
    }

    fn with_hint<D: Display>(self, hint: impl FnOnce() -> D) -> Result<T> {
        self.map_err(|error| error.into().with_hint(hint()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_unchanged_after_conversion_to_io_error_and_back() {
        let error = Error::refused("bad hash").context("x.narinfo");
        let converted = Error::from(io::Error::from(error));
        assert_eq!((converted.exit_status(), converted.message()), (1, "x.narinfo: bad hash"));
    }

    #[test]
    fn an_error_keeps_its_first_hint() {
        let error = Error::usage("no bucket").with_hint("set NIX_S3_CACHE").context("s3-push").with_hint("other");
        assert_eq!(
            (error.hint(), error.exit_status(), error.message()),
            (Some("set NIX_S3_CACHE"), 2, "s3-push: no bucket")
        );
    }

    #[test]
    fn malformed_data_is_refused_and_other_errors_fail() {
        assert_eq!(Error::from(io::Error::from(io::ErrorKind::UnexpectedEof)).exit_status(), 1);
        assert_eq!(Error::from(io::Error::from(io::ErrorKind::PermissionDenied)).exit_status(), 2);
    }
}
