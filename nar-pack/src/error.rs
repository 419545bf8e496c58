//! The error of every tool: one line, an optional hint, and an exit code.
//!
//! The exit code is 1 when the answer is no or data was refused, 2 when an operation failed or the usage was wrong, and
//! 141 when the reader of standard output went away.

use std::fmt::Display;
use std::io;

use crate::process::one_line;

/// Why a tool or one of its steps failed: a message of one line, an optional hint, and an exit code.
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
    /// The answer is no, or data was refused: exit code 1.
    pub fn refused(message: impl Display) -> Self {
        Self::new(Kind::Refused, message)
    }

    /// An operation failed: exit code 2.
    pub fn failed(message: impl Display) -> Self {
        Self::new(Kind::Failed, message)
    }

    /// The command line or an environment variable is wrong: exit code 2. Unless there is another hint, `main` adds one
    /// that names `--help`.
    pub fn usage(message: impl Display) -> Self {
        Self::new(Kind::Usage, message)
    }

    /// The reader of standard output went away: exit code 141, without a message.
    pub(crate) fn broken_pipe() -> Self {
        Self::new(Kind::BrokenPipe, "the reader of standard output went away")
    }

    fn new(kind: Kind, message: impl Display) -> Self {
        Self { kind, message: message.to_string(), hint: None }
    }

    /// The same error with `context` before the message: what was being done, or to which path or key.
    #[must_use]
    pub fn context(mut self, context: impl Display) -> Self {
        self.message = format!("{context}: {}", self.message);
        self
    }

    /// The same error with a hint: what the user can do next. It is printed on a line of its own after the message. An
    /// error has at most one hint; the first one stays.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Display) -> Self {
        self.hint.get_or_insert_with(|| hint.to_string());
        self
    }

    /// Whether data was refused, or the answer is no; otherwise an operation failed.
    #[must_use]
    pub fn is_refusal(&self) -> bool {
        self.kind == Kind::Refused
    }

    /// Whether the command line or an environment variable is wrong.
    #[must_use]
    pub fn is_usage(&self) -> bool {
        self.kind == Kind::Usage
    }

    /// Whether the reader of standard output went away.
    #[must_use]
    pub fn is_broken_pipe(&self) -> bool {
        self.kind == Kind::BrokenPipe
    }

    /// Exit code of the process.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self.kind {
            Kind::Refused => 1,
            Kind::Failed | Kind::Usage => 2,
            Kind::BrokenPipe => 141,
        }
    }

    /// The message, without the name of the tool and without the hint.
    #[must_use]
    pub fn message(&self) -> &str {
        &self.message
    }

    /// The hint, if there is one.
    #[must_use]
    pub fn hint(&self) -> Option<&str> {
        self.hint.as_deref()
    }
}

/// The message on one line, with control characters and keys replaced; without the hint.
impl Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&one_line(&self.message))
    }
}

impl std::error::Error for Error {}

/// Malformed and truncated data is refused; any other I/O error is a failed operation. An [`Error`] that was passed
/// through an `io::Error` (by a `Read` or `Write` of a library) is returned as it was.
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
    /// As [`Error::context`]; the text is only made when there is an error.
    ///
    /// # Errors
    /// The error of `self`, with context.
    fn context<D: Display>(self, context: impl FnOnce() -> D) -> Result<T>;

    /// As [`Error::with_hint`].
    ///
    /// # Errors
    /// The error of `self`, with a hint.
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
    fn a_failure_survives_a_trip_through_io_error() {
        let failure = Error::refused("bad hash").context("reading x");
        let back = Error::from(io::Error::from(failure));
        assert_eq!((back.exit_code(), back.message()), (1, "reading x: bad hash"));
    }

    #[test]
    fn an_error_keeps_its_first_hint() {
        let error = Error::usage("no bucket").with_hint("set NIX_S3_CACHE").context("s3-push").with_hint("other");
        assert_eq!(
            (error.hint(), error.exit_code(), error.message()),
            (Some("set NIX_S3_CACHE"), 2, "s3-push: no bucket")
        );
    }

    #[test]
    fn malformed_data_is_refused_and_other_errors_fail() {
        assert_eq!(Error::from(io::Error::from(io::ErrorKind::UnexpectedEof)).exit_code(), 1);
        assert_eq!(Error::from(io::Error::from(io::ErrorKind::PermissionDenied)).exit_code(), 2);
    }
}
