//! The terminal on which progress bars are drawn. indicatif panics when drawing fails, and a terminal may be closed at any
//! time, so errors are ignored here, as they are for messages.

use std::io::{self, Write as _};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use indicatif::TermLike;
use nar_pack::sync::lock;

/// Columns of a terminal that does not report its width.
const DEFAULT_COLUMNS: u16 = 80;

/// Returns the width of the terminal on standard error, in columns.
pub fn columns() -> u16 {
    let columns = rustix::termios::tcgetwinsize(io::stderr()).map_or(0, |size| size.ws_col);
    if columns == 0 { DEFAULT_COLUMNS } else { columns }
}

/// Returns whether the terminal on standard error belongs to the shell or to another job, because this process was
/// started with `&` or continued with `bg`.
fn is_in_background() -> bool {
    // Fails if it does not control this process. Then there are no jobs.
    rustix::termios::tcgetpgrp(io::stderr()).is_ok_and(|group| group != rustix::process::getpgrp())
}

/// Whether bars are drawn while this process is in the background.
static DRAWS_IN_BACKGROUND: AtomicBool = AtomicBool::new(false);

/// Lets bars be drawn while this process is in the background.
pub fn draw_in_background() {
    DRAWS_IN_BACKGROUND.store(true, Ordering::Relaxed);
}

/// The terminal on standard error. It writes one frame at a time, and none while the process is in the background unless
/// [`draw_in_background`] was called. Ignores errors.
#[derive(Debug, Default)]
pub struct StderrTerminal {
    frame: Mutex<Vec<u8>>,
}

impl StderrTerminal {
    fn append(&self, text: &str) {
        lock(&self.frame).extend_from_slice(text.as_bytes());
    }

    /// Moves the cursor by `count` columns or lines (ECMA-48, CUU to CUB); 0 would move it by one.
    fn move_cursor(&self, count: usize, direction: char) {
        if count > 0 {
            self.append(&format!("\x1b[{count}{direction}"));
        }
    }
}

impl TermLike for StderrTerminal {
    fn width(&self) -> u16 {
        columns()
    }

    fn move_cursor_up(&self, count: usize) -> io::Result<()> {
        self.move_cursor(count, 'A');
        Ok(())
    }

    fn move_cursor_down(&self, count: usize) -> io::Result<()> {
        self.move_cursor(count, 'B');
        Ok(())
    }

    fn move_cursor_right(&self, count: usize) -> io::Result<()> {
        self.move_cursor(count, 'C');
        Ok(())
    }

    fn move_cursor_left(&self, count: usize) -> io::Result<()> {
        self.move_cursor(count, 'D');
        Ok(())
    }

    fn write_line(&self, line: &str) -> io::Result<()> {
        self.append(line);
        self.append("\n");
        Ok(())
    }

    fn write_str(&self, text: &str) -> io::Result<()> {
        self.append(text);
        Ok(())
    }

    fn clear_line(&self) -> io::Result<()> {
        self.append("\r\x1b[2K");
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        let frame = std::mem::take(&mut *lock(&self.frame));
        if DRAWS_IN_BACKGROUND.load(Ordering::Relaxed) || !is_in_background() {
            let _ = io::stderr().write_all(&frame);
        }
        Ok(())
    }
}
