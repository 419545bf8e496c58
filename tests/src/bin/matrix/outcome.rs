//! The outcome of a row with a server.

/// What was found, without its note.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It works, as with S3.
    Ok,
    /// The server differs from S3, and our tools work all the same.
    WorksAround,
    /// The server does not have this function.
    NotSupported,
    /// It does not work.
    Fails,
    /// It was not tried.
    NotRun,
}

impl Verdict {
    /// Returns the word in the table.
    pub fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::WorksAround => "works around",
            Self::NotSupported => "not supported",
            Self::Fails => "**fails**",
            Self::NotRun => "not run",
        }
    }

    /// Returns the name in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::WorksAround => "works-around",
            Self::NotSupported => "not-supported",
            Self::Fails => "fails",
            Self::NotRun => "not-run",
        }
    }
}

/// A verdict with a note that explains it. Only [`Verdict::Ok`] may have an empty note.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The verdict.
    pub verdict: Verdict,
    /// What was found, and what our tools do about it.
    pub note: String,
}

impl Outcome {
    /// It works.
    pub fn ok() -> Self {
        Self { verdict: Verdict::Ok, note: String::new() }
    }

    /// The server differs, and our tools work all the same.
    pub fn works_around(note: impl Into<String>) -> Self {
        Self { verdict: Verdict::WorksAround, note: note.into() }
    }

    /// The server does not have this function.
    pub fn not_supported(note: impl Into<String>) -> Self {
        Self { verdict: Verdict::NotSupported, note: note.into() }
    }

    /// It does not work.
    pub fn fails(note: impl Into<String>) -> Self {
        Self { verdict: Verdict::Fails, note: note.into() }
    }

    /// It was not tried.
    pub fn not_run(note: impl Into<String>) -> Self {
        Self { verdict: Verdict::NotRun, note: note.into() }
    }
}
