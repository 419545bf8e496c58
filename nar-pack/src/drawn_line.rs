//! A line that a tool redraws on the terminal, such as a progress bar. Other output must not be mixed with it, so
//! [`crate::process`] and [`crate::stdio`] write to a terminal through this module: above the line.

use std::io;
use std::sync::OnceLock;

/// Calls its argument while the line is not on the terminal.
pub type Suspend = fn(&mut dyn FnMut());

static SUSPEND: OnceLock<Suspend> = OnceLock::new();

/// Sets the function that suspends the line that this process draws: it removes the line from the terminal, calls its
/// argument and draws the line again. Only the first call has an effect.
pub fn set_suspend(suspend: Suspend) {
    let _ = SUSPEND.set(suspend);
}

/// Calls `write`, above the line if there is one.
pub(crate) fn write_above(mut write: impl FnMut() -> io::Result<usize>) -> io::Result<usize> {
    let Some(suspend) = SUSPEND.get() else { return write() };
    let mut result = Ok(0);
    suspend(&mut || result = write());
    result
}
