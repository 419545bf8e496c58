//! The error of every tool: one line, and the exit code that goes with it.
//!
//! 1 means that the answer is no or that data was refused, 2 that an operation failed or the usage was wrong, 141 that the
//! reader of standard output went away.

use std::fmt::Display;
use std::io;

use crate::process::one_line;

/// Why a tool stops: an exit code and one line.
#[derive(Debug, Clone)]
pub struct Error {
    kind: Kind,
    message: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Refused,
    Failed,
    BrokenPipe,
}

/// The result of a tool or of one of its steps.
pub type Result<T = (), E = Error> = std::result::Result<T, E>;

impl Error {
    /// The answer is no, or data was refused: exit code 1.
    pub fn refused(message: impl Display) -> Self {
        Self { kind: Kind::Refused, message: message.to_string() }
    }

    /// Wrong usage, or an operation that failed: exit code 2.
    pub fn failed(message: impl Display) -> Self {
        Self { kind: Kind::Failed, message: message.to_string() }
    }

    /// The reader of standard output went away: exit code 141, without a message.
    pub(crate) fn broken_pipe() -> Self {
        Self { kind: Kind::BrokenPipe, message: "the reader of standard output went away".into() }
    }

    /// Whether the reader of standard output went away.
    #[must_use]
    pub fn is_broken_pipe(&self) -> bool {
        self.kind == Kind::BrokenPipe
    }

    /// The same failure, with what the tool was doing put before it.
    #[must_use]
    pub fn context(mut self, what: impl Display) -> Self {
        self.message = format!("{what}: {}", self.message);
        self
    }

    /// Whether this is the refusal of data rather than a failed operation.
    #[must_use]
    pub fn is_refusal(&self) -> bool {
        self.kind == Kind::Refused
    }

    /// Exit code of the process.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self.kind {
            Kind::Refused => 1,
            Kind::Failed => 2,
            Kind::BrokenPipe => 141,
        }
    }

    /// The line without the tool's name.
    #[must_use]
    pub fn message(&self) -> &str {
        &self.message
    }
}

impl Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&one_line(&self.message))
    }
}

impl std::error::Error for Error {}

/// Malformed and truncated data is refused; any other I/O error is a failed operation. A [`Error`] that travelled
/// inside an `io::Error` (through a `Read` or `Write` of a library) comes out as itself.
impl From<io::Error> for Error {
    fn from(error: io::Error) -> Self {
        if let Some(failure) = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) {
            return failure.clone();
        }
        match error.kind() {
            io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof => Self::refused(error),
            _ => Self::failed(error),
        }
    }
}

impl From<Error> for io::Error {
    fn from(failure: Error) -> Self {
        Self::other(failure)
    }
}

/// Puts what was being done before the cause of an error.
pub trait Context<T> {
    /// See [`Error::doing`]; the text is only made when there is an error.
    fn context<D: Display>(self, what: impl FnOnce() -> D) -> Result<T>;
}

impl<T, E: Into<Error>> Context<T> for Result<T, E> {
    fn context<D: Display>(self, what: impl FnOnce() -> D) -> Result<T> {
        self.map_err(|error| error.into().context(what()))
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
    fn malformed_data_is_refused_and_other_errors_fail() {
        assert_eq!(Error::from(io::Error::from(io::ErrorKind::UnexpectedEof)).exit_code(), 1);
        assert_eq!(Error::from(io::Error::from(io::ErrorKind::PermissionDenied)).exit_code(), 2);
    }
}
