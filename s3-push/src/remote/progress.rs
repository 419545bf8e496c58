//! Verbosity, and the progress bar on standard error.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Creates a progress bar that counts objects, with the time that is left. It is drawn only if standard error is a
/// terminal.
#[must_use]
pub fn count_bar(total: usize, is_quiet: bool) -> ProgressBar {
    let target = if is_quiet { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() };
    let bar = ProgressBar::with_draw_target(Some(total as u64), target);
    let style = ProgressStyle::with_template("{spinner} {human_pos} of {human_len} ({per_sec}), {eta} left");
    if let Ok(style) = style { bar.with_style(style) } else { bar }
}

/// How much is printed on standard error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verbosity {
    /// Errors only.
    Quiet,
    /// Errors, warnings, progress and a summary.
    Normal,
    /// A line for each path as well.
    Verbose,
}

impl Verbosity {
    /// Returns the verbosity that `--quiet` and `--verbose` select.
    #[must_use]
    pub fn new(quiet: bool, verbose: bool) -> Self {
        match (quiet, verbose) {
            (true, _) => Self::Quiet,
            (_, true) => Self::Verbose,
            _ => Self::Normal,
        }
    }

    /// Creates a progress bar that counts bytes. It is drawn only if standard error is a terminal.
    #[must_use]
    pub fn progress_bar(self) -> ProgressBar {
        let target = if self == Self::Quiet { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() };
        let bar = ProgressBar::with_draw_target(None, target);
        let style = ProgressStyle::with_template("{spinner} {msg} {bytes} ({binary_bytes_per_sec}) {elapsed}");
        if let Ok(style) = style { bar.with_style(style) } else { bar }
    }
}
